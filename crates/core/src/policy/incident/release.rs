//! What an operator's release covers.

use jiff::Timestamp;

use crate::names::Text;
use crate::report::Record;
use crate::time::CompactTimestamp;

/// An operator's release: sticks to the App, the process and the rule; to any of them where there are too many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::policy) struct StickyRelease {
    pub(in crate::policy) process: Option<Text>,
    pub(in crate::policy) rule: Option<Text>,
    pub(in crate::policy) until: Timestamp,
    /// The reading of the leader clock at which the time that the operator asked for has been measured. An earlier
    /// version persisted none.
    pub(in crate::policy) until_by_clock: Option<CompactTimestamp>,
    pub(in crate::policy) actor: Text,
}

impl StickyRelease {
    /// What an operator has said.
    pub(in crate::policy) fn declared(&self) -> (Option<&Text>, Option<&Text>, Timestamp, &Text) {
        (self.process.as_ref(), self.rule.as_ref(), self.until, &self.actor)
    }

    /// Whether it covers `record`; it does not look at `until`.
    pub(in crate::policy) fn covers(&self, record: &Record) -> bool {
        self.process.as_ref().is_none_or(|process| *process == record.key.process)
            && self.rule.as_ref().is_none_or(|rule| rule == record.rule())
    }
}

pub(in crate::policy) fn released_by(actor: &str, until: Timestamp) -> String {
    format!("released by {} until {until}", actor.escape_debug())
}
