//! Evidence that earlier leaders, or this program before its start, have persisted.

use std::time::Duration;

use jiff::Timestamp;

use super::steps::Longest;
use crate::clearing::Cleared;
use crate::names::{Key, NodeName};
use crate::report::Record;
use crate::time::CompactDuration;

/// One node's evidence as it was known before the start, or to another replica.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// The violation.
    pub key: Key,
    /// The node.
    pub node: NodeName,
    /// The record as it was last fresh, without its command line.
    pub record: Record,
    /// When it was first listed.
    pub first_seen: Timestamp,
    /// When it was last fresh.
    pub fresh_at: Timestamp,
    /// How many different timestamps were seen.
    pub observations: u64,
    /// When and by which rule it cleared, if it has.
    pub cleared: Option<(Timestamp, Cleared)>,
    /// The learned scan interval of the node's agent; longer if the violation itself was unseen for longer and came
    /// back.
    pub scan_interval: Option<Duration>,
    /// How long its node had answered without fresh evidence of it, if some of these answers were inconclusive about
    /// it; otherwise zero.
    pub hidden_for: Duration,
}

impl Remembered {
    pub(super) fn away(&self) -> CompactDuration {
        Longest::of(self.scan_interval.unwrap_or_default()).get()
    }
}
