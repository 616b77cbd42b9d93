//! The time of decisions: the API server's, where this replica's clock differs from it.

use jiff::{SignedDuration, Timestamp};
use procscan_core::Moment;

use super::LeaderTerm;

/// How far this replica's clock may differ from the API server's before the API server's time is used.
const MAX_CLOCK_DIFFERENCE: SignedDuration = SignedDuration::from_secs(30);

impl LeaderTerm<'_> {
    /// The time. Its wall time is the API server's if this replica's clock differs from it. So operators and all
    /// replicas mean the same time by a date.
    pub(super) fn now(&self) -> Moment {
        let now = self.task.clock.now();
        let server = self.task.store.server_time();
        let differs = |server: &Timestamp| server.duration_since(now.wall()).abs() > MAX_CLOCK_DIFFERENCE;
        server.filter(differs).map_or(now, |server| Moment::new(now.uptime(), server))
    }

    /// Logs once that this replica's clock differs from the API server's.
    pub(super) fn compare_clocks(&mut self, now: Moment) {
        let own = self.task.clock.now().wall();
        let differs = own.duration_since(now.wall()).abs() > MAX_CLOCK_DIFFERENCE;
        if differs && !self.is_clock_wrong {
            let (own, server) = (own.to_string(), now.wall().to_string());
            tracing::error!(
                alert = "clock",
                own,
                server,
                "the clock of this replica differs from the API server's; decisions use the API server's time"
            );
        } else if !differs && self.is_clock_wrong {
            tracing::info!("the clock of this replica agrees with the API server's again");
        }
        self.is_clock_wrong = differs;
    }
}
