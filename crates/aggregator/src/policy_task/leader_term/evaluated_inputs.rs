//! Whether a snapshot brings anything to decide on after an earlier one.

use std::time::Duration;

use procscan_core::Moment;
use procscan_core::snapshot::Snapshot;

use crate::ledger_task::Published;

/// After how many rounds without news everything is decided again all the same, and after how long at the latest.
pub(super) const QUIET_ROUNDS: u64 = 5;
const MAX_QUIET_TIME: Duration = Duration::from_mins(5);

/// What identifies a snapshot in this comparison.
#[derive(Clone, Copy)]
pub(super) struct EvaluatedInputs {
    pub(super) news: u64,
    pub(super) rounds: u64,
    pub(super) at: Moment,
}

impl EvaluatedInputs {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        Self { news: snapshot.changes, rounds: snapshot.rounds, at: snapshot.at }
    }

    pub(super) fn of_published(published: &Published) -> Self {
        Self { news: published.changes, rounds: published.rounds, at: published.at }
    }

    /// Whether `now` brings nothing to decide on. If something `is_waiting` for the end of a round, the next round does.
    pub(super) fn is_as_good_as(self, now: EvaluatedInputs, is_waiting: bool) -> bool {
        let rounds = if is_waiting { 1 } else { QUIET_ROUNDS };
        // Nothing is written before the first round is done.
        let is_first = self.rounds == 0;
        !is_first
            && self.news == now.news
            && now.rounds < self.rounds + rounds
            && now.at.since(self.at) < MAX_QUIET_TIME
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn seen(news: u64, rounds: u64, seconds: u64) -> EvaluatedInputs {
        let at = Moment::new(Duration::from_secs(1000 + seconds), Timestamp::UNIX_EPOCH);
        EvaluatedInputs { news, rounds, at }
    }

    #[test]
    fn without_news_everything_is_decided_again_after_five_rounds_or_five_minutes() {
        let before = seen(7, 10, 0);
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
            let now = seen(7, rounds, seconds);
            assert_eq!(!before.is_as_good_as(now, false), is_again, "round {rounds}, {seconds} s");
        }
    }

    #[test]
    fn news_and_the_next_round_that_something_waits_for_are_decided_on_at_once() {
        let before = seen(7, 10, 0);
        assert!(!before.is_as_good_as(seen(8, 10, 0), false));
        assert!(before.is_as_good_as(seen(7, 10, 60), true), "the same round");
        assert!(!before.is_as_good_as(seen(7, 11, 1), true), "the next round");
    }

    #[test]
    fn before_the_first_round_is_done_nothing_counts_as_decided() {
        assert!(!seen(7, 0, 0).is_as_good_as(seen(7, 0, 0), false));
        assert!(!seen(7, 0, 0).is_as_good_as(seen(7, 1, 0), false));
    }
}
