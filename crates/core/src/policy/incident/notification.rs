//! What the tenant of an incident is notified of.

use jiff::Timestamp;

use crate::time::CompactTimestamp;

/// What a tenant has been told, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) struct SentNotification {
    pub(in crate::policy) sent_at: CompactTimestamp,
    pub(in crate::policy) kind: NotificationKind,
    /// It had been written before the start.
    pub(in crate::policy) inherited: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) enum NotificationKind {
    Grace,
    Blocked,
    Recovered,
}

impl SentNotification {
    /// To be told for the first time.
    pub(in crate::policy) fn first(what: NotificationKind, at: Timestamp) -> Self {
        Self { sent_at: at.into(), kind: what, inherited: false }
    }
}
