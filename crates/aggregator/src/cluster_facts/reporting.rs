//! Reports the state of the look-ups: in the log, once for each state, and in the details of `/readyz`.

use procscan_core::Moment;
use tokio::sync::watch;

use super::state::State;
use super::waiting::{self, ClusterFactsStatus};
use crate::kubernetes::Refusal;

impl State {
    /// Logs a failure of look-ups once, and once that it is over.
    pub(super) fn log_failures(&mut self) {
        let failure = self.failing.values().next().cloned();
        // The same error in another namespace is not logged again.
        let subject = |refusal: &Refusal| (refusal.kind, refusal.subject.clone());
        match (&self.error, &failure) {
            (before, Some(now)) if before.as_ref().map(subject) != Some(subject(now)) => {
                tracing::error!(
                    alert = "evidence",
                    error = now.text,
                    "accusations can't be verified; nothing new is blocked on them meanwhile"
                );
            }
            (Some(_), None) => tracing::info!("accusations can be verified again"),
            _ => {}
        }
        self.error = failure;
    }

    /// Shows the status. Logs when accusations begin to wait too long, and when that ends.
    pub(super) fn publish_status(&mut self, status: &watch::Sender<ClusterFactsStatus>, now: Moment) {
        let error = self.error.as_ref().map(|refusal| refusal.text.clone());
        let too_large = self.too_large.values().next().cloned();
        let is_watched =
            self.watch_states.as_ref().is_some_and(|states| states.changes().reported_until(now).is_some());
        let waiting = waiting::status(&self.lookups, &self.namespace_facts, is_watched, now);
        let is_limited = !self.sweeps.budget.wait(now).is_zero();
        let heavy = self.sweeps.heavy();
        let current = ClusterFactsStatus { error, too_large, heavy, is_limited, ..waiting };
        let is_late = current.late > 0;
        if is_late && !self.is_late {
            tracing::error!(
                alert = "evidence",
                late = current.late,
                waiting = current.waiting,
                longest_wait = %humantime::format_duration(current.longest_wait),
                "accused namespaces have waited too long to be looked up; nothing new is blocked in them meanwhile"
            );
        } else if self.is_late && !is_late {
            tracing::info!(waiting = current.waiting, "no accused namespace waits too long any more");
        }
        self.is_late = is_late;
        status.send_if_modified(|shown| {
            let is_changed = *shown != current;
            *shown = current;
            is_changed
        });
    }
}
