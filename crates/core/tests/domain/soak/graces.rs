//! The graces that tenants have been given, by the real events.

use procscan_core::plan::NoticePhase;
use procscan_core::policy::Evaluation;

use super::tenants::tenant_in;
use super::{SAME_INCIDENT, Soak};

impl Soak {
    /// Notes which Apps' tenants certainly know of a grace of the same incident. Nothing has hindered the
    /// notification, and no other leader has begun. The App has not been away for as long as another incident takes.
    pub(super) fn note_warned(&mut self, evaluation: &Evaluation) {
        let now = self.now();
        for notice in &evaluation.plan.notices {
            let is_grace = matches!(notice.phase, NoticePhase::Grace { .. });
            if is_grace && !self.world.is_mute {
                self.warned.entry(notice.app.clone()).or_insert((now, now));
            }
        }
        let mut warned = std::mem::take(&mut self.warned);
        warned.retain(|app, (notified_at, found)| {
            let number = tenant_in(&app.namespace);
            let tenant = &self.tenants[number];
            let last = tenant.of(&app.name).filter_map(|pod| pod.last_found).max();
            *found = last.map_or(*found, |last| last.max(*found));
            *notified_at >= self.leaders.since
                && now - *found < SAME_INCIDENT
                && !tenant.is_terminating
                && !self.is_hindered(number)
        });
        self.warned = warned;
    }
}
