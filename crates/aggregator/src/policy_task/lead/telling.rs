//! Reports decisions to operators, to the log and to the other tasks.

use std::sync::Arc;

use procscan_core::policy::{Alert, Decision, DecisionKind};

use super::Lead;
use crate::leader::Pen;
use crate::policy_task::{Decided, journal};

impl Lead<'_> {
    /// Notes which tenants have been told. Returns whether something may be decided because of it.
    pub(super) fn hear_of_deliveries(&mut self) -> bool {
        let now = self.now();
        let delivered = self.task.channels.delivered.borrow_and_update().clone();
        delivered.iter().fold(false, |is_news, (app, at)| self.book.delivered(app, *at, now) || is_news)
    }

    /// Reports the decisions that have been kept.
    pub(super) fn tell(&mut self) {
        let decisions = std::mem::take(&mut self.decisions);
        for decision in &decisions {
            self.task.journal.tell(decision);
        }
        if !self.is_copy {
            let named = decisions.into_iter().filter(|decision| decision.kind != DecisionKind::Disputed);
            let named: Vec<(String, Decision)> =
                named.filter_map(|decision| Some((self.book.name_of(&decision.app)?, decision))).collect();
            self.task.store.announce(&self.pen, &named);
        }
    }

    pub(super) fn raise(&mut self, alerts: &[Alert]) {
        let is_waiting = alerts.iter().any(|alert| matches!(alert, Alert::Notices { .. }));
        // While tenants wait, each evaluation raises this alert: it is logged once.
        let is_news = |alert: &&Alert| !(self.has_waited && matches!(alert, Alert::Notices { .. }));
        alerts.iter().filter(is_news).for_each(journal::raise);
        if self.has_waited && !is_waiting {
            tracing::info!("every tenant has been told");
        }
        self.has_waited = is_waiting;
    }

    pub(super) fn publish(&mut self, now: Decided) {
        self.task.channels.decided.send_if_modified(|before| {
            let term = |decided: &Decided| decided.pen.as_ref().map(Pen::term);
            let is_news = before.plan != now.plan
                || before.held != now.held
                || before.withheld != now.withheld
                || before.disputes != now.disputes
                || before.unverified != now.unverified
                || before.is_answered != now.is_answered
                || term(before) != term(&now)
                // The receivers only need to know whether the first round is over.
                || (before.rounds == 0) != (now.rounds == 0);
            if is_news {
                *before = Arc::new(now);
            }
            is_news
        });
    }
}
