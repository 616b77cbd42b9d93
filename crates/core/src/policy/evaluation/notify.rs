//! Decides which tenants are notified, and in which order if more of them wait than a round allows.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::context::EvaluationContext;
use crate::Moment;
use crate::decision::DecisionKind;
use crate::decision::Mode;
use crate::names::{App, Text};
use crate::plan::{NoticePhase, SharedServices};
use crate::policy::alert::Alert;
use crate::policy::cluster_facts::ClusterFacts;
use crate::policy::incident::{Hold, Incident, NotificationKind, Phase, SentNotification};
use crate::policy::incidents::Incidents;
use crate::policy::{Brake, Policy};

impl Incidents {
    /// Decides which tenants are notified. Also updates the exposure of blocked Apps.
    pub(in crate::policy) fn notify_tenants(&mut self, context: &mut EvaluationContext<'_>) {
        if self.notices.0 != context.snapshot.rounds {
            self.notices = (context.snapshot.rounds, 0);
        }
        let is_blocked =
            |app: &App| self.by_app.get(app).is_some_and(|it| matches!(it.phase(), Phase::Blocked { .. }));
        self.blocked_before.look(context.policy, context.facts, is_blocked);
        let mut waiting = Vec::new();
        for (app, incident) in &mut self.by_app {
            let kind = notification_kind(&notice_phase(incident, context.policy.mode));
            if kind == NotificationKind::Blocked
                && let Some(exposure) = context.facts.to_close(app, context.policy, &incident.persisted)
                && *incident.persisted.exposure != *exposure
            {
                let exposure = exposure.into_owned();
                let exposure = if self.blocked_before.has(app) {
                    incident.persisted.exposure.and(&exposure)
                } else {
                    exposure
                };
                if *incident.persisted.exposure != exposure {
                    incident.persisted_mut().close(exposure);
                }
            }
            if kind == NotificationKind::Blocked {
                hold_what_is_left_open(app, incident, context);
            }
            if !may_be_notified(app, incident, context.policy, context.facts) {
                continue;
            }
            match incident.persisted.notification {
                // A tenant that was never notified of the incident is not notified of its end.
                None if kind == NotificationKind::Recovered => {}
                Some(sent) if sent.kind == kind => {}
                Some(sent) if kind == NotificationKind::Recovered => {
                    incident.notify(SentNotification { kind, ..sent });
                }
                // A tenant that was warned does not count as newly notified.
                Some(SentNotification { kind: NotificationKind::Grace, .. }) => {
                    incident.notify(SentNotification::first(kind, context.now.wall()));
                }
                _ => waiting.push((incident.waiting_since(context.policy), app.clone())),
            }
        }
        self.notify_in_turn(waiting, context);
    }

    /// Notifies as many waiting tenants as a round allows, in the order of [`Incidents::notification_order`].
    fn notify_in_turn(&mut self, mut waiting: Vec<(Moment, App)>, context: &mut EvaluationContext<'_>) {
        let free = context.policy.max_notices_per_round.saturating_sub(self.notices.1);
        let left = waiting.len().saturating_sub(free);
        if left > 0 {
            let mut turns = self.notification_order(waiting);
            turns.sort_unstable();
            waiting = turns.into_iter().take(free).map(|(_, since, app)| (since, app)).collect();
            context.alerts.push(Alert::Notices { waiting: left });
        }
        self.notices.1 += waiting.len();
        for (_, app) in waiting {
            if let Some(incident) = self.by_app.get_mut(&app) {
                let kind = notification_kind(&notice_phase(incident, context.policy.mode));
                incident.notify(SentNotification::first(kind, context.now.wall()));
            }
        }
    }

    /// The order in which tenants are notified. Each App's place is the number of Apps of the same tenant that have
    /// waited longer or were notified since it began to wait. For equal places, the longest wait goes first. So no
    /// tenant waits because another one makes many Apps.
    fn notification_order(&self, mut waiting: Vec<(Moment, App)>) -> Vec<(usize, Moment, App)> {
        waiting.sort_unstable();
        let mut of_tenant: BTreeMap<Text, (usize, Vec<Timestamp>)> =
            waiting.iter().map(|(_, app)| (app.namespace.clone(), (0, Vec::new()))).collect();
        for (app, incident) in &self.by_app {
            if let (Some(sent), Some((_, times))) =
                (incident.persisted.notification, of_tenant.get_mut(&app.namespace))
            {
                times.push(sent.sent_at.get());
            }
        }
        for (_, times) in of_tenant.values_mut() {
            times.sort_unstable();
        }
        let turn = |(since, app): (Moment, App)| {
            let before = of_tenant.get_mut(&app.namespace).map_or(0, |(longer, times)| {
                *longer += 1;
                *longer + times.len() - times.partition_point(|at| *at < since.wall())
            });
            (before, since, app)
        };
        waiting.into_iter().map(turn).collect()
    }
}

/// With `enforcement.shared_services: hold`, a Service that comes to be shared after the block stays open until an
/// operator approves. That is logged once, however many Services the tenant makes.
fn hold_what_is_left_open(app: &App, incident: &mut Incident, context: &mut EvaluationContext<'_>) {
    if context.policy.shared_services != SharedServices::Hold || incident.persisted.hold != Hold::Free {
        return;
    }
    let Some(service) = incident.persisted.exposure.left_open.first().cloned() else { return };
    let brake = Brake::SharedService(service);
    let reason = format!(
        "{}: it stays open until that is approved; the App's other Services are closed",
        brake.reason(&context.policy.brake)
    );
    context.record_decision(app, DecisionKind::Held, reason);
    incident.persisted_mut().hold = Hold::by(brake, context.now);
}

pub(in crate::policy) fn notification_kind(phase: &NoticePhase) -> NotificationKind {
    match phase {
        NoticePhase::Grace { .. } => NotificationKind::Grace,
        NoticePhase::Blocked => NotificationKind::Blocked,
        NoticePhase::Recovered => NotificationKind::Recovered,
    }
}

/// Whether the tenant of `app` may be notified. The tenant of an App that stays blocked is notified, even if the
/// namespace may not be blocked any more.
pub(in crate::policy) fn may_be_notified(
    app: &App,
    incident: &Incident,
    policy: &Policy,
    facts: &ClusterFacts,
) -> bool {
    let is_blocked = matches!(incident.phase(), Phase::Blocked { .. });
    !facts.terminating.contains(&app.namespace) && (is_blocked || policy.refuses(&app.namespace).is_none())
}

/// What the tenant is notified of, by the phase of the incident.
pub(in crate::policy) fn notice_phase(incident: &Incident, mode: Mode) -> NoticePhase {
    match incident.phase() {
        Phase::Blocked { dry_run, .. } if !dry_run || mode == Mode::DryRun => NoticePhase::Blocked,
        Phase::Grace { until } => NoticePhase::Grace { until: until.wall() },
        _ => NoticePhase::Recovered,
    }
}
