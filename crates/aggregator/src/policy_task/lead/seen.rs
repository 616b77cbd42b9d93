//! Whether a snapshot brings anything to decide on after an earlier one.

use std::time::Duration;

use procscan_core::Moment;
use procscan_core::snapshot::Snapshot;

use crate::ledger_task::Published;

/// After how many rounds without news everything is decided again all the same, and after how long at the latest.
pub(super) const QUIET_ROUNDS: u64 = 5;
const QUIET: Duration = Duration::from_mins(5);

/// What identifies a snapshot in this comparison.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    pub(super) news: u64,
    pub(super) rounds: u64,
    pub(super) at: Moment,
}

impl Seen {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        Self { news: snapshot.news, rounds: snapshot.rounds, at: snapshot.at }
    }

    pub(super) fn of_published(published: &Published) -> Self {
        Self { news: published.news, rounds: published.rounds, at: published.at }
    }

    /// Whether `now` brings nothing to decide on. If something `is_waiting` for the end of a round, the next round does.
    pub(super) fn is_as_good_as(self, now: Seen, is_waiting: bool) -> bool {
        let rounds = if is_waiting { 1 } else { QUIET_ROUNDS };
        // Nothing is written before the first round is done.
        let is_first = self.rounds == 0;
        !is_first
            && self.news == now.news
            && now.rounds < self.rounds + rounds
            && now.at.since(self.at) < QUIET
    }
}
