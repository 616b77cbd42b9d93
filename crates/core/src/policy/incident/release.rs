//! An operator's release and the accusations that it covers.

use jiff::Timestamp;

use crate::names::Text;
use crate::report::Record;
use crate::time::CompactTimestamp;

/// An operator's release. It covers a process and a rule of the App, or any process and rule if there are too many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::policy) struct StickyRelease {
    pub(in crate::policy) process: Option<Text>,
    pub(in crate::policy) rule: Option<Text>,
    pub(in crate::policy) until: Timestamp,
    /// The reading of the leader clock at which the time that the operator asked for has been measured. `None` if an
    /// earlier version persisted it.
    pub(in crate::policy) until_by_clock: Option<CompactTimestamp>,
    pub(in crate::policy) actor: Text,
}

impl StickyRelease {
    /// The fields that an operator's command sets.
    pub(in crate::policy) fn declared(&self) -> (Option<&Text>, Option<&Text>, Timestamp, &Text) {
        (self.process.as_ref(), self.rule.as_ref(), self.until, &self.actor)
    }

    /// Whether the release covers `record`, whatever its `until`.
    pub(in crate::policy) fn covers(&self, record: &Record) -> bool {
        self.process.as_ref().is_none_or(|process| *process == record.key.process)
            && self.rule.as_ref().is_none_or(|rule| rule == record.rule())
    }
}

pub(in crate::policy) fn released_by(actor: &str, until: Timestamp) -> String {
    format!("released by {} until {until}", actor.escape_debug())
}
