//! Reports decisions to operators, to the log and to the other tasks.

use std::sync::Arc;

use procscan_core::decision::{Actor, Decision, DecisionKind};
use procscan_core::names::App;
use procscan_core::policy::{Alert, Incident, Policy};

use super::LeaderTerm;
use crate::decided::Decided;
use crate::kubernetes::WritePermit;

impl LeaderTerm<'_> {
    /// Notes which notices have been written. Returns whether a decision may follow from it.
    pub(super) fn note_written(&mut self) -> bool {
        let now = self.now();
        let written = self.task.channels.written.borrow_and_update().clone();
        self.incidents.note_written(&written, now)
    }

    /// Reports the decisions that have been persisted.
    pub(super) fn report_decisions(&mut self) {
        let decisions = std::mem::take(&mut self.decisions);
        for decision in &decisions {
            self.task.journal.report(decision);
        }
        if !self.is_copy {
            let named = decisions.into_iter().filter(|decision| decision.kind != DecisionKind::Disputed);
            let named: Vec<(String, Decision)> = named
                .filter_map(|decision| Some((self.incidents.name_of(&decision.app)?, decision)))
                .collect();
            self.task.store.announce(&self.permit, &named);
        }
    }

    /// Notes, for each App that was just blocked, since when it is accused. A block after a grace or by an operator's approval
    /// has waited for that, so it says nothing about how fast the service is.
    pub(super) fn note_accusations(&mut self, policy: &Policy) {
        let blocked = self.decisions.iter().filter(|decision| decision.kind == DecisionKind::Blocked);
        let by_policy = blocked.filter(|decision| decision.actor == Actor::Policy && policy.grace.is_zero());
        for Decision { app, .. } in by_policy {
            let since = self.incidents.incident(app).and_then(Incident::accused_since);
            if let Some(since) = since {
                Arc::make_mut(&mut self.accused_since).insert(app.clone(), since);
            }
        }
        let is_blocked = |app: &App| self.incidents.incident(app).is_some_and(Incident::is_blocked);
        if self.accused_since.keys().any(|app| !is_blocked(app)) {
            Arc::make_mut(&mut self.accused_since).retain(|app, _| is_blocked(app));
        }
    }

    pub(super) fn raise_alerts(&mut self, alerts: &[Alert]) {
        let is_waiting = alerts.iter().any(|alert| matches!(alert, Alert::Notices { .. }));
        // While tenants wait, each evaluation raises this alert, but it is logged once.
        let is_new = |alert: &&Alert| !(self.has_waited && matches!(alert, Alert::Notices { .. }));
        alerts.iter().filter(is_new).for_each(|alert| self.task.journal.raise(alert));
        if self.has_waited && !is_waiting {
            tracing::info!("every tenant has been notified");
        }
        self.has_waited = is_waiting;
    }

    pub(super) fn publish(&mut self, now: Decided) {
        self.task.channels.decided.send_if_modified(|before| {
            let is_changed = has_changed(before, &now);
            if is_changed {
                *before = Arc::new(now);
            }
            is_changed
        });
    }
}

/// Whether `now` differs from `before` in any part that the receivers use.
fn has_changed(before: &Decided, now: &Decided) -> bool {
    let term = |decided: &Decided| decided.permit.as_ref().map(WritePermit::term);
    before.plan != now.plan
        || before.held != now.held
        || before.withheld != now.withheld
        || before.disputes != now.disputes
        || before.unverified != now.unverified
        || before.is_answered != now.is_answered
        || term(before) != term(now)
        // The receivers only need to know whether the first round is over.
        || (before.rounds == 0) != (now.rounds == 0)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use procscan_core::decision::Mode;
    use procscan_core::names::{App, Key, NodeName};
    use procscan_core::plan::{Dispute, HeldApp, Plan};
    use procscan_core::policy::Withheld;

    use super::*;

    #[test]
    fn each_part_of_the_decisions_is_published_when_it_changes_and_a_later_round_is_not() {
        let plan = Plan::empty(Mode::Enforce, Timestamp::UNIX_EPOCH);
        let before = Decided {
            rounds: 1,
            permit: Some(WritePermit::of_term(1, "replica-1")),
            ..Decided::nothing(plan.clone())
        };
        assert!(!has_changed(&before, &before));
        assert!(!has_changed(&before, &Decided { rounds: 2, ..before.clone() }));
        assert!(!has_changed(
            &Decided { rounds: 0, ..before.clone() },
            &Decided { rounds: 0, ..before.clone() }
        ));
        let held = HeldApp {
            app: App::new("ns-a", "app", "web"),
            since: Timestamp::UNIX_EPOCH,
            reason: "too many".to_owned(),
            release: false,
        };
        let withheld = Withheld { place: "Exemption one".to_owned(), reason: "too many".to_owned() };
        let dispute = Dispute {
            key: Key::new("ns-a", "web-0", "xmrig"),
            node: NodeName("node-1".into()),
            reason: "the Pod runs elsewhere".to_owned(),
        };
        let changes = [
            Decided { plan: Plan { mode: Mode::DryRun, ..plan }, ..before.clone() },
            Decided { held: vec![held], ..before.clone() },
            Decided { withheld: vec![withheld], ..before.clone() },
            Decided { disputes: vec![dispute], ..before.clone() },
            Decided { unverified: 1, ..before.clone() },
            Decided { is_answered: true, ..before.clone() },
            Decided { permit: None, ..before.clone() },
            Decided { permit: Some(WritePermit::of_term(2, "replica-1")), ..before.clone() },
            Decided { rounds: 0, ..before.clone() },
        ];
        for (n, now) in changes.iter().enumerate() {
            assert!(has_changed(&before, now), "change {n}");
            assert!(has_changed(now, &before), "change {n} undone");
        }
    }
}
