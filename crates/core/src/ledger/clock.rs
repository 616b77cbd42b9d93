//! The clearing clock: readings of answered time, and by which rule they clear.

use std::time::Duration;

use super::evidence::Cleared;
use crate::Moment;
use crate::moment::Span;

/// How many scans without it prove that it is absent.
pub(super) const SCANS: u32 = 6;

/// What the clearing clock of one violation on one node reads: how long the node has answered, and how much of that said nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The node's odometer (see [`NodeClock`]).
    pub answered: Span,
    /// How much of it said nothing of this violation.
    pub unheard: Span,
}

impl Reading {
    /// As at the node's first answer.
    pub const ZERO: Self = Self { answered: Span::ZERO, unheard: Span::ZERO };
}

/// By what a node's evidence clears: readings of the node's odometer of answered time.
#[derive(Clone, Copy, Debug)]
pub struct NodeClock {
    /// Answered time of the node, in sum.
    pub odometer: Span,
    /// How much of it said nothing of one violation or another. Of none is it more.
    pub unheard: Span,
    /// How much answered time without fresh evidence proves absence on this node, at least.
    pub required: Span,
    /// When the node was first asked.
    pub since: Moment,
    /// When anything of an answer came last, usable or not; or when the node was first asked.
    pub last_sign: Moment,
    /// How long to wait for a node that never returns, and for one that says nothing of a violation.
    pub unreachable_limit: Span,
}

impl NodeClock {
    /// Whether evidence has cleared by `now`. It was last fresh at `since`, when its clock read `mark`; `unheard` is how much of the answered
    /// time has said nothing of it by now, and only asked for where it matters; `away` is how long it was unseen before and there all the
    /// same (see [`crate::snapshot::Heard::away`]).
    pub fn cleared(
        &self,
        mark: Reading,
        away: Span,
        unheard: impl FnOnce() -> Span,
        since: Moment,
        now: Moment,
    ) -> Option<Cleared> {
        let by_answers = self.cleared_by_answers(mark, away, unheard);
        by_answers.or_else(|| (now.uptime() >= self.lost_at(since)).then_some(Cleared::Unreachable))
    }

    /// How much answered time without fresh evidence proves the absence of what was once `away` for so long and came back.
    pub(super) fn required_of(&self, away: Span) -> Duration {
        self.required.get().max(away.get().saturating_mul(SCANS))
    }

    /// The same, as far as it is the node's answers that clear it.
    pub(super) fn cleared_by_answers(
        &self,
        mark: Reading,
        away: Span,
        unheard: impl FnOnce() -> Span,
    ) -> Option<Cleared> {
        let answered = self.odometer.saturating_sub(mark.answered);
        let required = self.required_of(away);
        if answered < required {
            return None;
        }
        let heard = answered.saturating_sub(unheard().saturating_sub(mark.unheard));
        if heard >= required {
            return Some(Cleared::ByClock);
        }
        (answered >= self.unreachable_limit.get()).then_some(Cleared::Hidden)
    }

    /// When the wait for the node ends if it never returns, for evidence that was last fresh at `since`; by the monotonic clock.
    pub(super) fn lost_at(&self, since: Moment) -> Duration {
        self.last_sign.max(since).uptime().saturating_add(self.unreachable_limit.get())
    }
}
