//! The commands of operators, and their effects.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use procscan_core::decision::Decision;
use procscan_core::names::App;
use procscan_core::plan::SharedServices;
use procscan_core::policy::{Evaluation, IncidentCommand};

use super::tenants::{Pod, app_of, host, tenant_in};
use super::{OFFENDERS, Soak};
use crate::common::HOUR;

/// For how long a release lasts, in seconds.
pub(super) const RELEASE: u64 = 3 * HOUR;

#[derive(Default)]
pub(super) struct Operators {
    /// The decisions about their commands since the last minute.
    pub(super) decisions: Vec<Decision>,
    /// The Apps that they have ever approved.
    approved: BTreeSet<App>,
    /// Until when they have released an App. Empty after a backup was restored.
    pub(super) released: BTreeMap<App, u64>,
    /// When they have released an App last.
    pub(super) released_at: BTreeMap<App, u64>,
    /// The tenants of whose Apps they have ever released one. By a leader's wall clock a release may last for a month
    /// longer.
    excused: BTreeSet<usize>,
}

impl Soak {
    /// Executes commands in this minute: releases Apps of some tenants, and approves held Apps of others.
    pub(super) fn operate(&mut self) {
        self.operators.decisions.clear();
        let held: Vec<App> =
            self.world.incidents.held(&self.world.policy).into_iter().map(|it| it.app).collect();
        for app in held {
            let number = tenant_in(&app.namespace);
            if number.is_multiple_of(2) && !self.is_hindered(number) && self.random.once_in(60) {
                self.execute(&IncidentCommand::Approve { app: app.clone() });
                self.operators.approved.insert(app);
                self.counts.approvals += 1;
            }
        }
        for number in (4..OFFENDERS).step_by(5) {
            if self.is_hindered(number) || !self.random.once_in(600) {
                continue;
            }
            let Some(app) = self.blocked.iter().find(|app| tenant_in(&app.namespace) == number).cloned()
            else {
                continue;
            };
            let until = self.world.now.wall() + SignedDuration::from_secs(RELEASE.cast_signed());
            self.execute(&IncidentCommand::Release { app: app.clone(), until });
            let until = self.now() + RELEASE;
            self.operators.released_at.insert(app.clone(), self.now());
            self.operators.released.insert(app, until);
            self.operators.excused.insert(number);
            self.counts.commands += 1;
        }
    }

    fn execute(&mut self, command: &IncidentCommand) {
        match self.world.incidents.execute(command, "ops", &self.world.policy, self.world.now) {
            Ok(decision) => self.operators.decisions.push(decision),
            Err(error) => self.fail(&format!("{command:?} has no effect: {error}")),
        }
    }

    /// Whether the App of the Pod is held, and has to be held until an operator has looked at it.
    pub(super) fn waits_for_operator(&self, number: usize, pod: &Pod, evaluation: &Evaluation) -> bool {
        if self.operators.excused.contains(&number) {
            return true;
        }
        let tenant = &self.tenants[number];
        let is_asked =
            self.world.policy.shared_services == SharedServices::Hold && !tenant.has_shared.is_empty();
        let is_its = |app: &App| tenant_in(&app.namespace) == number && pod.apps.contains(&*app.name);
        is_asked && evaluation.held.iter().any(|held| is_its(&held.app))
    }

    /// An App that an operator has released is not blocked before the date of the release. Under another process name
    /// it may be.
    pub(super) fn check_not_released(&self, app: &App) {
        let is_released = self.operators.released.get(app).is_some_and(|until| self.now() < *until);
        if is_released && !self.tenants[tenant_in(&app.namespace)].renames {
            self.fail(&format!("{app} is blocked, and an operator has released it\n{}", self.log_of(app)));
        }
    }

    /// With `enforcement.shared_services: hold` no innocent App is closed with another one before an operator has
    /// approved it.
    pub(super) fn check_shared_services(&self, app: &App, evaluation: &Evaluation) {
        let number = tenant_in(&app.namespace);
        let is_known = !self.is_hindered(number) && !self.world.facts.apps.is_empty();
        if self.world.policy.shared_services != SharedServices::Hold
            || self.operators.approved.contains(app)
            || !is_known
        {
            return;
        }
        let tenant = &self.tenants[number];
        let Some(block) = evaluation.plan.blocks.iter().find(|block| block.app == *app) else { return };
        for (service, selected) in &tenant.services {
            let host = host(number, service);
            let was_closed = tenant.closed.get(&*app.name).is_some_and(|closed| closed.contains(&host));
            if was_closed || !block.exposure.services.contains(&host) {
                continue;
            }
            let is_innocent = |pod: &&Pod| selected.contains(&pod.app) && !pod.apps.contains(&*app.name);
            if let Some(other) = tenant.living().find(is_innocent) {
                self.fail(&format!(
                    "{app} closes {} too, and no operator was asked",
                    app_of(number, &other.app)
                ));
            }
        }
    }

    /// Notes which Services are closed for which App.
    pub(super) fn note_closed(&mut self, evaluation: &Evaluation) {
        for block in &evaluation.plan.blocks {
            let closed = &mut self.tenants[tenant_in(&block.app.namespace)].closed;
            closed
                .entry(block.app.name.to_string())
                .or_default()
                .extend(block.exposure.services.iter().cloned());
        }
    }
}
