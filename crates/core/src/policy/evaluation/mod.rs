//! One evaluation: applies evidence to incidents, decides, and makes the plan.

mod accusations;
mod admit_exemptions;
mod apply_brakes;
mod apply_evidence;
mod build_plan;
pub(in crate::policy) mod context;
mod earlier_names;
mod forgotten;
mod judge;
mod notify;
mod review_grace;

use std::collections::BTreeSet;

use jiff::Timestamp;

use self::context::{EvaluationContext, Holds, ReleaseBasis, Releases};
use self::judge::Action;
use crate::Moment;
use crate::decision::Mode;
use crate::decision::{Decision, DecisionKind};
use crate::names::{App, Key, NodeName};
use crate::plan::{Dispute, HeldApp, Plan};
use crate::policy::Policy;
use crate::policy::alert::Alert;
use crate::policy::cluster_facts::ClusterFacts;
use crate::policy::dates::Validity;
use crate::policy::incident::Incident;
use crate::policy::incidents::Incidents;
use crate::policy::namespace_refusals::NamespaceRefusals;
use crate::snapshot::Snapshot;

/// The outcome of one evaluation.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// The desired blocks and notifications.
    pub plan: Plan,
    /// The Apps that brakes hold.
    pub held: Vec<HeldApp>,
    /// The decisions, in order. Every difference to the plan before has its reason here.
    pub decisions: Vec<Decision>,
    /// Conditions that an operator should look at now.
    pub alerts: Vec<Alert>,
    /// Evidence that is not believed, because its node accuses a Pod that does not run on it.
    pub disputes: Vec<Dispute>,
    /// Evidence that can't be judged, because its Pod could not be read.
    pub unverified: usize,
}

/// The decisions, before a plan is made from them.
#[derive(Clone, Debug)]
pub struct Decided {
    /// See [`Evaluation::decisions`].
    pub decisions: Vec<Decision>,
    /// See [`Evaluation::alerts`].
    pub alerts: Vec<Alert>,
    /// See [`Evaluation::disputes`].
    pub disputes: Vec<Dispute>,
    /// See [`Evaluation::unverified`].
    pub unverified: usize,
}

impl Incidents {
    /// Decides, and returns the decisions with the plan that follows. The same inputs give the same outcome.
    /// Evaluating again without a change decides nothing new.
    pub fn evaluate(
        &mut self,
        snapshot: &Snapshot,
        policy: &Policy,
        facts: &ClusterFacts,
        now: Moment,
    ) -> Evaluation {
        let Decided { decisions, alerts, disputes, unverified } = self.decide(snapshot, policy, facts, now);
        let (plan, held) = (self.plan(policy, facts, now), self.held(policy));
        Evaluation { plan, held, decisions, alerts, disputes, unverified }
    }

    /// Decides. The caller persists the decisions, rolls back those that could not be persisted (see
    /// [`Incidents::roll_back`]), and then calls [`Incidents::plan`].
    pub fn decide(
        &mut self,
        snapshot: &Snapshot,
        policy: &Policy,
        facts: &ClusterFacts,
        now: Moment,
    ) -> Decided {
        let reading = self.clock.read(now);
        let dates = std::mem::take(&mut self.dates);
        let mut context = EvaluationContext {
            snapshot,
            policy,
            facts,
            now,
            refusals: NamespaceRefusals::new(policy),
            dates,
            exemptions: Vec::new(),
            released: Releases::new(),
            held: Holds::new(),
            refused_stay_closed: policy.mode == Mode::Paused,
            unreadable: self.unreadable.apps(),
            doubtful: BTreeSet::new(),
            unjudged: BTreeSet::new(),
            decisions: Vec::new(),
            alerts: Vec::new(),
        };
        self.note_dates(&mut context);
        let unverified = self.apply_evidence(&mut context);
        (context.released, context.held) = self.of_earlier_names();
        self.clear_evidence(&context);
        self.admit(&mut context);
        self.admit_refusals(&mut context);

        let mut blocks: Vec<(Moment, App)> = Vec::new();
        let mut releases: Vec<(App, Option<String>, ReleaseBasis)> = Vec::new();
        for (app, incident) in &mut self.by_app {
            incident.limit_forgotten(app, &context);
            match incident.judge(app, &mut context) {
                Action::Nothing => {}
                Action::Release(why, basis) => releases.push((app.clone(), why, basis)),
                Action::Block => {
                    let fresh_at = incident.accepted.values().map(|accepted| accepted.fresh_at).min();
                    blocks.push((fresh_at.unwrap_or(now), app.clone()));
                }
            }
        }
        // The App whose evidence came first is blocked first. Equally early ones go by name, so that the outcome is
        // the same each time.
        blocks.sort();
        self.apply_brakes(&mut context, reading, blocks, releases);
        self.note_withheld(policy);
        self.forget(policy, now);
        self.notify_tenants(&mut context);
        let EvaluationContext { decisions, alerts, dates, .. } = context;
        self.dates = dates;
        // A dispute is not caused by the App. A lying node must not push the App's decisions out of the log.
        for decision in decisions.iter().filter(|decision| decision.kind != DecisionKind::Disputed) {
            if let Some(incident) = self.by_app.get_mut(&decision.app) {
                incident.log_decision(decision);
            }
        }
        Decided { decisions, alerts, disputes: self.disputes(), unverified }
    }

    /// The evidence that is not believed.
    fn disputes(&self) -> Vec<Dispute> {
        let dispute = |((key, node), reason): (&(Key, NodeName), &String)| Dispute {
            key: key.clone(),
            node: node.clone(),
            reason: reason.clone(),
        };
        self.disputes.iter().map(dispute).collect()
    }

    /// Updates which exemptions and releases are in force, and forgets releases that ended long ago.
    fn note_dates(&mut self, context: &mut EvaluationContext<'_>) {
        let now = context.now;
        let exemptions = context.policy.exemptions.iter().chain(&context.policy.unread_exemptions);
        let exempted = exemptions.filter_map(|exemption| Some((exemption.until?, None)));
        let with_releases =
            self.by_app.iter().filter(|(_, incident)| !incident.persisted.rare().releases.is_empty());
        let apps: Vec<App> = with_releases.map(|(app, _)| app.clone()).collect();
        let releases =
            apps.iter().filter_map(|app| self.by_app.get(app)).flat_map(|it| &it.persisted.rare().releases);
        let until = releases.map(|release| (release.until, release.until_by_clock));
        let doubtful = context.dates.note(exempted.chain(until), &self.clock, now);
        if let Some(first) = doubtful.first() {
            context.alerts.push(Alert::Clock { message: clock_doubt(doubtful.len(), *first, now) });
        }
        for app in apps {
            let Some(incident) = self.by_app.get_mut(&app) else { continue };
            if incident
                .persisted
                .rare()
                .releases
                .iter()
                .any(|release| context.dates.is_history(release.until, now))
            {
                incident.persisted_mut().reset_rare(|rare| {
                    rare.releases.retain(|release| !context.dates.is_history(release.until, now));
                });
            }
        }
        let validity = |until: Option<Timestamp>| {
            until.map_or(Validity::InForce, |until| context.dates.validity(until, now))
        };
        context.exemptions =
            context.policy.exemptions.iter().map(|exemption| validity(exemption.until)).collect();
    }

    /// When time alone may change a decision: a grace ends, or an exemption or a release runs out. Clearing clocks
    /// run with answers, not with time.
    pub fn next_deadline(&self, policy: &Policy, now: Moment) -> Option<Moment> {
        let dates = self.dates.changes(now);
        let graces = self.by_app.values().flat_map(|incident| incident.deadlines(policy));
        dates.chain(graces).filter(|at| at.uptime() > now.uptime()).min()
    }

    /// Whether the end of a round may change a decision without any other change. That is so for blocks from before
    /// the start that no agent has reported since, and for evidence that is not judged yet.
    pub fn waits_for_rounds(&self) -> bool {
        !self.unjudged.is_empty() || self.by_app.values().any(Incident::waits_for_all)
    }
}

fn clock_doubt(dates: usize, first: Timestamp, now: Moment) -> String {
    format!(
        "the wall clock of this replica says {}, and disagrees with the time that leaders have measured or believed about whether {dates} \
         dates of exemptions or releases ({first} and later) have passed. What these cover is neither blocked anew nor opened until both \
         agree. No time was measured while the service was stopped: after a stop this ends by itself, at most 24h after the \
         start. Without a stop, the wall clock is or was wrong",
        now.wall()
    )
}
