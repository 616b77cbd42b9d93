//! What the tenant of an incident is notified of, and when.

use jiff::Timestamp;

use crate::time::CompactTimestamp;

/// The last notification of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) struct SentNotification {
    pub(in crate::policy) sent_at: CompactTimestamp,
    pub(in crate::policy) kind: NotificationKind,
    /// It had been written before the start of this process.
    pub(in crate::policy) inherited: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) enum NotificationKind {
    Grace,
    Blocked,
    Recovered,
}

impl SentNotification {
    /// A new notification.
    pub(in crate::policy) fn first(kind: NotificationKind, at: Timestamp) -> Self {
        Self { sent_at: at.into(), kind, inherited: false }
    }
}
