//! The grace: how much time a tenant has between the warning and the block.
//!
//! It is given once in an incident, to all names of the same workload together. A tenant that stops until its
//! incident has cleared and then begins again has only what is left of it. Otherwise it could offend for ever with
//! pauses. The grace counts as given when the warning has been written. An operator's release revokes it, and so does
//! an exemption that covers what the warning was for. The tenant is then given a whole one again. It is measured by
//! the leader clock.

use crate::policy::incident::grace::Grace;
use std::sync::Arc;
use std::time::Duration;

use super::context::EvaluationContext;
use crate::Moment;
use crate::decision::DecisionKind;
use crate::decision::Mode;
use crate::names::{App, Text};
use crate::plan::human;
use crate::policy::Policy;
use crate::policy::incident::{Incident, NotificationKind, Phase};
use crate::policy::incidents::Incidents;
use crate::report::Record;

/// How long after the grace a block waits for a tenant that can't be notified; another grace if that is longer.
const MAX_NOTICE_WAIT: Duration = Duration::from_hours(1);

impl Incident {
    /// When the grace ends that the tenant was given, as monotonic time; `None` if none was given. In dry-run no
    /// tenant is notified, so each grace that has begun counts.
    fn given_until(&self, policy: &Policy) -> Option<Duration> {
        let until = self.persisted.grace.as_ref()?.until.uptime();
        if policy.mode == Mode::DryRun {
            return Some(until);
        }
        // From its notification on, the tenant has the whole grace of the present configuration, even if that is
        // longer now.
        let known = self.grace_written_at?.uptime().saturating_add(policy.grace);
        Some(until.max(known))
    }

    /// The remark in the reason of a block without a new warning: when the grace ended that the tenant was given
    /// before.
    pub(in crate::policy) fn warned_before(&self, policy: &Policy) -> Option<String> {
        if self.persisted.hold.is_approved()
            || policy.grace.is_zero()
            || matches!(self.phase(), Phase::Grace { .. })
        {
            return None;
        }
        let until = self.persisted.grace.as_ref()?.until.wall();
        Some(format!("; its tenant was warned before, and the grace ended at {until}"))
    }

    /// Whether the tenant has known of the grace for less time than the grace lasts. In dry-run no tenant is
    /// notified.
    pub(in crate::policy) fn is_notice_short(&self, context: &EvaluationContext<'_>) -> bool {
        let has_known = self.grace_written_at.is_some_and(|at| context.now.since(at) >= context.policy.grace);
        !has_known && context.policy.mode != Mode::DryRun
    }

    /// When the grace may end: at its time, or once the tenant has known of it for long enough, or when that wait
    /// ends.
    pub(in crate::policy) fn deadlines(&self, policy: &Policy) -> impl Iterator<Item = Moment> {
        let after = |at: Moment, wait: Duration| Moment::new(at.uptime().saturating_add(wait), at.wall());
        let until = match self.phase() {
            Phase::Grace { until } => Some(until),
            _ => None,
        };
        let written = self.grace_written_at.filter(|_| until.is_some());
        let known = written.map(|at| after(at, policy.grace));
        let waited = until.map(|until| after(until, policy.grace.max(MAX_NOTICE_WAIT)));
        until.into_iter().chain(known).chain(waited)
    }

    /// Whether `app`, whose incident this is, may be blocked now because its grace is over, or there is none. Begins
    /// the grace if it has not begun, or lets the tenant have what is left of it. `covers` has the cover of each piece of
    /// accepted evidence.
    pub(in crate::policy) fn is_due(
        &mut self,
        app: &App,
        covers: &[Option<String>],
        context: &mut EvaluationContext<'_>,
    ) -> bool {
        let grace = context.policy.grace;
        if grace.is_zero() || self.persisted.hold.is_approved() {
            return true;
        }
        let now = context.now;
        if let Phase::Grace { until } = self.phase() {
            // The tenant has the whole grace from its notification on. It can't put off the block by making its
            // notification impossible.
            return now.uptime() >= until.uptime()
                && (!self.is_notice_short(context)
                    || now.uptime() >= until.uptime().saturating_add(grace.max(MAX_NOTICE_WAIT)));
        }
        let given = self.given_until(context.policy);
        let left = given.map_or(grace, |until| until.saturating_sub(now.uptime()));
        let record = match (given.and(self.persisted.grace.as_ref()), self.reason_record(covers, context)) {
            (Some(given), _) => given.record.clone(),
            (None, Some(record)) => record,
            (None, None) => return false,
        };
        if left.is_zero() {
            if self.persisted.grace.as_ref().is_some_and(|grace| grace.idle_since.is_some()) {
                self.persisted_mut().grace =
                    self.persisted.grace.clone().map(|grace| Box::new(Grace { idle_since: None, ..*grace }));
            }
            return true;
        }
        let wall = now.wall().checked_add(left).unwrap_or(now.wall());
        let until = Moment::new(now.uptime().saturating_add(left), wall);
        let persisted = self.persisted_mut();
        persisted.phase = Phase::Grace { until };
        persisted.grace = Some(Box::new(Grace { until, record, idle_since: None }));
        let rest = if given.is_some() {
            ", when the grace ends of which its tenant was notified before"
        } else {
            ""
        };
        let reason = format!("{}; to be blocked in {}{rest}", self.accusation(), human(left));
        context.record_decision(app, DecisionKind::Warned, reason);
        false
    }

    /// An accusation that justifies a block now.
    fn reason_record(
        &self,
        covers: &[Option<String>],
        context: &EvaluationContext<'_>,
    ) -> Option<Arc<Record>> {
        let mut accepted = self.accepted.values().zip(covers);
        let reason =
            accepted.find(|(accepted, cover)| self.justifies_block(accepted, cover.as_deref(), context));
        reason.map(|(accepted, _)| accepted.record.clone())
    }

    /// Revokes the grace when an exemption or a release covers what it was given for. Also revokes it when all
    /// accusations of the App have been covered for longer than `same_incident`, because covered accusations do not
    /// preserve an old grace.
    pub(in crate::policy) fn review_grace(
        &mut self,
        app: &App,
        covers: &[Option<String>],
        context: &EvaluationContext<'_>,
    ) {
        let Some(grace) = self.persisted.grace.as_deref() else { return };
        let is_over = |since: Moment| context.now.since(since) > context.policy.same_incident;
        let is_covered = context.refusals.of(&app.namespace).is_some()
            || self.cover_of(app, &grace.record, context).is_some();
        if is_covered {
            let other = matches!(self.phase(), Phase::Grace { .. })
                .then(|| self.reason_record(covers, context))
                .flatten();
            match other {
                // The warning was for this accusation, too.
                Some(record) => {
                    let grace = Grace { record, ..grace.clone() };
                    self.persisted_mut().grace = Some(Box::new(grace));
                }
                None => self.revoke_grace(),
            }
            return;
        }
        if grace.idle_since.is_some_and(is_over) {
            self.revoke_grace();
            return;
        }
        let is_idle = !covers.is_empty() && covers.iter().all(Option::is_some);
        if is_idle && grace.idle_since.is_none() {
            let grace = Grace { idle_since: Some(context.now), ..grace.clone() };
            self.persisted_mut().grace = Some(Box::new(grace));
        }
    }

    /// Revokes the grace, so that the next one is a whole one.
    pub(in crate::policy) fn revoke_grace(&mut self) {
        self.grace_written_at = None;
        if self.persisted.grace.is_some() {
            let is_running = matches!(self.phase(), Phase::Grace { .. });
            let persisted = self.persisted_mut();
            persisted.grace = None;
            if is_running {
                persisted.phase = Phase::Watched;
            }
            // The next warning is written as a new one, even if the next grace begins at once.
            if let Some(sent) =
                persisted.notification.as_mut().filter(|sent| sent.kind == NotificationKind::Grace)
            {
                sent.kind = NotificationKind::Recovered;
            }
        }
    }
}

impl Incidents {
    /// Revokes the grace of `app` and of its earlier names.
    pub(in crate::policy) fn revoke_grace(&mut self, app: &App) {
        let names = self.by_app.get(app).map(|incident| incident.persisted.rare().formerly.clone());
        for name in names.iter().flat_map(|names| names.iter()).chain([app]) {
            if let Some(incident) = self.by_app.get_mut(name) {
                incident.revoke_grace();
            }
        }
    }

    /// The grace that was given to the workload of `origin` under the last name by which it was accused, and when its
    /// warning was written. `None` if that incident ended so long ago that a new one begins.
    pub(in crate::policy) fn given_before(
        &self,
        app: &App,
        origin: &Text,
        policy: &Policy,
        now: Moment,
    ) -> Option<(Grace, Moment)> {
        let others = self.of_tenant(&app.namespace).filter(|(name, _)| *name != app);
        let others = others.filter(|(_, other)| other.persisted.origins.contains(origin));
        let (_, last) = others.max_by_key(|(_, other)| other.persisted.opened)?;
        let is_same = match last.phase() {
            Phase::Ended { at } => now.since(at) <= policy.same_incident,
            _ => true,
        };
        Some((last.persisted.grace.as_deref().filter(|_| is_same)?.clone(), last.grace_written_at?))
    }
}
