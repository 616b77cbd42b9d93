//! Decides whether a snapshot has to be evaluated after an earlier one.

use std::time::Duration;

use procscan_core::Moment;
use procscan_core::snapshot::Snapshot;

use crate::ledger_task::Published;

/// After how many rounds without a change everything is evaluated again, and after which time at the latest.
pub(super) const QUIET_ROUNDS: u64 = 5;
const MAX_QUIET_TIME: Duration = Duration::from_mins(5);

/// The parts of a snapshot that are compared.
#[derive(Clone, Copy)]
pub(super) struct EvaluatedInputs {
    pub(super) changes: u64,
    pub(super) rounds: u64,
    pub(super) at: Moment,
}

impl EvaluatedInputs {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        Self { changes: snapshot.changes, rounds: snapshot.rounds, at: snapshot.at }
    }

    pub(super) fn of_published(published: &Published) -> Self {
        Self { changes: published.changes, rounds: published.rounds, at: published.at }
    }

    /// Whether `now` needs no evaluation. If something `is_waiting` for the end of a round, the next round needs one.
    pub(super) fn makes_needless(self, now: EvaluatedInputs, is_waiting: bool) -> bool {
        let rounds = if is_waiting { 1 } else { QUIET_ROUNDS };
        // Every snapshot is evaluated until the first round is done, because nothing is written before that.
        let is_first = self.rounds == 0;
        !is_first
            && self.changes == now.changes
            && now.rounds < self.rounds + rounds
            && now.at.since(self.at) < MAX_QUIET_TIME
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn inputs(changes: u64, rounds: u64, seconds: u64) -> EvaluatedInputs {
        let at = Moment::new(Duration::from_secs(1000 + seconds), Timestamp::UNIX_EPOCH);
        EvaluatedInputs { changes, rounds, at }
    }

    #[test]
    fn without_a_change_everything_is_evaluated_again_after_five_rounds_or_five_minutes() {
        let before = inputs(7, 10, 0);
        for (rounds, seconds, is_again) in [
            (10, 0, false),
            (11, 60, false),
            (14, 299, false),
            (15, 60, true),
            (16, 60, true),
            (60, 60, true),
            (11, 300, true),
            (11, 301, true),
            (15, 300, true),
        ] {
            let now = inputs(7, rounds, seconds);
            assert_eq!(!before.makes_needless(now, false), is_again, "round {rounds}, {seconds} s");
        }
    }

    #[test]
    fn a_change_and_a_round_that_something_waits_for_are_evaluated_at_once() {
        let before = inputs(7, 10, 0);
        assert!(!before.makes_needless(inputs(8, 10, 0), false));
        assert!(before.makes_needless(inputs(7, 10, 60), true), "the same round");
        assert!(!before.makes_needless(inputs(7, 11, 1), true), "the next round");
    }

    #[test]
    fn every_snapshot_is_evaluated_until_the_first_round_is_done() {
        assert!(!inputs(7, 0, 0).makes_needless(inputs(7, 0, 0), false));
        assert!(!inputs(7, 0, 0).makes_needless(inputs(7, 1, 0), false));
    }
}
