//! When evidence of a violation has cleared: the rules, and the clock of each node by which they count.
//!
//! The ledger runs these clocks, and the snapshot shows them to the policy, so both use this module.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use crate::Moment;
use crate::time::CompactDuration;

/// How strong one node's evidence is. Ordered from the strongest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// Fresh evidence.
    Active,
    /// Neither fresh evidence nor proof of absence.
    Unconfirmed,
    /// Proven absent by one of the rules in [`Cleared`].
    Cleared,
}

/// The rule by which a violation counts as absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cleared {
    /// Its node has answered for long enough without fresh evidence.
    ByClock,
    /// Its node has not answered for `detection.unreachable_limit`.
    Unreachable,
    /// Its node has answered for `detection.unreachable_limit` in sum, but too many answers were inconclusive about
    /// it. They listed another process instead, or left out records of its namespace.
    Hidden,
    /// Its Pod is proven gone.
    PodGone,
}

impl Cleared {
    /// The rule as a label, `snake_case`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ByClock => "by_clock",
            Self::Unreachable => "unreachable",
            Self::Hidden => "hidden",
            Self::PodGone => "pod_gone",
        }
    }
}

/// How many scans without a violation prove that it is absent.
pub(crate) const SCANS_WITHOUT_EVIDENCE: u32 = 6;

/// A reading of one violation's clearing clock on one node: how long the node has answered, and how much of that time
/// was inconclusive.
///
/// Answered time is inconclusive about a violation if the answers showed neither that it is there nor that it is
/// absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The node's odometer (see [`NodeClock`]).
    pub(crate) answered: CompactDuration,
    /// How much of the answered time was inconclusive about this violation.
    pub inconclusive: CompactDuration,
    /// In the reading that starts a clearing clock: how long the node had answered without fresh evidence of this
    /// violation before this clock started. Earlier leaders received those answers, or this process before its
    /// restart. Known only if some of those answers were inconclusive about the violation. Counts only towards
    /// `unreachable_limit`.
    pub(crate) before: CompactDuration,
}

impl Reading {
    /// The reading at the node's first answer.
    pub(crate) const ZERO: Self = Self {
        answered: CompactDuration::ZERO,
        inconclusive: CompactDuration::ZERO,
        before: CompactDuration::ZERO,
    };
}

/// The clock that clears a node's evidence: its odometer of answered time, and the limits.
#[derive(Clone, Copy, Debug)]
pub struct NodeClock {
    /// Answered time of the node, in sum.
    pub odometer: CompactDuration,
    /// How much of the answered time was inconclusive about some violation: the upper bound for all of them.
    pub inconclusive: CompactDuration,
    /// The least answered time without fresh evidence that proves absence on this node.
    pub(crate) required: CompactDuration,
    /// Whether the node's agent has had time for a scan since its last possible restart. Until then its answers prove
    /// no absence.
    pub(crate) has_scanned: bool,
    /// When the node was first asked.
    pub(crate) since: Moment,
    /// When the last sign of an answer came, usable or not; or when the node was first asked.
    pub(crate) last_sign: Moment,
    /// How long to wait for a node that never returns, and for one whose answers are inconclusive about a violation.
    pub(crate) unreachable_limit: CompactDuration,
}

impl NodeClock {
    /// Whether evidence has cleared by `now`, and by which rule. It was last fresh at `since`, when its clock read
    /// `mark`. `inconclusive` returns how much of the answered time has been inconclusive about it by now. It is
    /// called only if that matters. `away` is the longest time for which it was unseen and came back (see
    /// [`crate::snapshot::EvidenceDetails::away`]).
    pub(crate) fn cleared(
        &self,
        mark: Reading,
        away: CompactDuration,
        inconclusive: impl FnOnce() -> CompactDuration,
        since: Moment,
        now: Moment,
    ) -> Option<Cleared> {
        let by_answers = self.cleared_by_answers(mark, away, inconclusive);
        by_answers.or_else(|| (now.uptime() >= self.lost_at(since)).then_some(Cleared::Unreachable))
    }

    /// How much answered time without fresh evidence proves absence, if the violation was once unseen for `away` and
    /// came back.
    pub(crate) fn required_of(&self, away: CompactDuration) -> Duration {
        self.required.get().max(away.get().saturating_mul(SCANS_WITHOUT_EVIDENCE))
    }

    /// Whether the node's answers have cleared the evidence, and by which rule.
    pub(crate) fn cleared_by_answers(
        &self,
        mark: Reading,
        away: CompactDuration,
        inconclusive: impl FnOnce() -> CompactDuration,
    ) -> Option<Cleared> {
        let answered = self.odometer.saturating_sub(mark.answered);
        let required = self.required_of(away);
        if answered < required {
            return None;
        }
        let conclusive = answered.saturating_sub(inconclusive().saturating_sub(mark.inconclusive));
        if conclusive >= required && self.has_scanned {
            return Some(Cleared::ByClock);
        }
        let answered = answered.saturating_add(mark.before.get());
        (answered >= self.unreachable_limit.get()).then_some(Cleared::Hidden)
    }

    /// When the wait for a node that never returns ends, for evidence that was last fresh at `since`; by the monotonic
    /// clock.
    pub(crate) fn lost_at(&self, since: Moment) -> Duration {
        self.last_sign.max(since).uptime().saturating_add(self.unreachable_limit.get())
    }
}
