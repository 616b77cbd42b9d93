//! One evaluation: from evidence to incidents, from incidents to a plan.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use jiff::Timestamp;

use super::Policy;
use super::accepted_evidence::{AcceptedEvidence, ClearingCause};
use super::alert::Alert;
use super::cluster_facts::ClusterFacts;
use super::dates::{Dates, Validity};
use super::incident::{EvidenceId, Incident, Phase};
use super::incidents::{Incidents, LastPlan};
use super::namespace_refusals::NamespaceRefusals;
use super::notify::{may_be_notified, notification_kind};
use super::plan_builder::{block, closed_too, same};
use super::renamed::{Holds, Releases};
use crate::Moment;
use crate::clearing::Cleared;
use crate::decision::Mode;
use crate::decision::{Actor, Decision, DecisionKind};
use crate::names::{App, Key, NodeName, PodRef, Text};
use crate::plan::{Dispute, HeldApp, Notice, NoticePhase, Plan, Summary};
use crate::snapshot::Snapshot;

/// What one evaluation comes to.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// What should be true outside.
    pub plan: Plan,
    /// The Apps that brakes hold.
    pub held: Vec<HeldApp>,
    /// What was decided, in order: every difference to the plan before has its reason here.
    pub decisions: Vec<Decision>,
    /// What an operator should look at now.
    pub alerts: Vec<Alert>,
    /// Evidence that is not believed, because its node accuses a Pod that does not run on it.
    pub disputes: Vec<Dispute>,
    /// Evidence that can't be judged, because its Pod could not be read.
    pub unverified: usize,
}

/// What has been decided, before anything follows from it.
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

pub(super) struct EvaluationContext<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) policy: &'a Policy,
    pub(super) facts: &'a ClusterFacts,
    pub(super) now: Moment,
    pub(super) refusals: NamespaceRefusals<'a>,
    pub(super) dates: Dates,
    /// Whether each of the policy's exemptions is in force now, in their order.
    pub(super) exemptions: Vec<Validity>,
    /// Operators' releases, by the earlier names of Apps.
    pub(super) released: Releases,
    /// The holds of brakes, by the earlier names of Apps.
    held: Holds,
    /// What is blocked in namespaces that may not be blocked stays closed.
    pub(super) keeps_refused: bool,
    /// The Apps whose persisted incidents can't be read.
    aside: BTreeSet<App>,
    /// Namespaces with accusations, fresh or old, that are not cleared and can't be judged.
    pub(super) doubtful: BTreeSet<Text>,
    /// The Pods of those accusations that are fresh, with the accusing nodes.
    pub(super) unjudged: BTreeSet<(PodRef, NodeName)>,
    decisions: Vec<Decision>,
    pub(super) alerts: Vec<Alert>,
}

const NAMESPACE_IS_BEING_DELETED: &str = "the namespace is being deleted";

/// What an incident asks for, before the brakes are asked.
enum Action {
    Nothing,
    Block,
    /// With the reason, if it is another than that nothing is left.
    Release(Option<String>, ReleaseBasis),
}

/// The basis of a release.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ReleaseBasis {
    /// The rules: the accusations have cleared. The brakes apply.
    Rules,
    /// The cluster proves that the App or its namespace is gone or being deleted, so the release opens nothing, if the
    /// cluster is right.
    Proof,
}

impl Incidents {
    /// Decides, and says what follows. The same inputs give the same outcome; evaluating again without a change decides nothing
    /// new.
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

    /// Decides. What follows is said by [`Book::plan`], after what could not be kept is taken back (see [`Book::take_back`]).
    pub fn decide(
        &mut self,
        snapshot: &Snapshot,
        policy: &Policy,
        facts: &ClusterFacts,
        now: Moment,
    ) -> Decided {
        let (doubtful, decisions, alerts) = (BTreeSet::new(), Vec::new(), Vec::new());
        let reading = self.clock.read(now);
        let dates = std::mem::take(&mut self.dates);
        let (exemptions, unjudged) = (Vec::new(), BTreeSet::new());
        let mut context = EvaluationContext {
            snapshot,
            policy,
            facts,
            now,
            refusals: NamespaceRefusals::new(policy),
            dates,
            exemptions,
            released: Releases::new(),
            held: Holds::new(),
            keeps_refused: policy.mode == Mode::Paused,
            aside: self.unreadable.apps(),
            doubtful,
            unjudged,
            decisions,
            alerts,
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
            match Self::judge(app, incident, &mut context) {
                Action::Nothing => {}
                Action::Release(why, basis) => releases.push((app.clone(), why, basis)),
                Action::Block => {
                    let fresh_at = incident.accepted.values().map(|accepted| accepted.fresh_at).min();
                    blocks.push((fresh_at.unwrap_or(now), app.clone()));
                }
            }
        }
        // First come, first blocked; what arrived together goes by name, so that the outcome is the same each time.
        blocks.sort();
        self.apply_brakes(&mut context, reading, blocks, releases);
        self.note_withheld(policy);
        self.forget(policy, now);
        self.notify_tenants(&mut context);
        let EvaluationContext { decisions, alerts, dates, .. } = context;
        self.dates = dates;
        // A dispute is not the App's doing: whoever lies about it must not push its decisions out of its log.
        for decision in decisions.iter().filter(|decision| decision.kind != DecisionKind::Disputed) {
            if let Some(incident) = self.by_app.get_mut(&decision.app) {
                incident.log_decision(decision);
            }
        }
        let dispute = |((key, node), reason): (&(Key, NodeName), &String)| Dispute {
            key: key.clone(),
            node: node.clone(),
            reason: reason.clone(),
        };
        let disputes = self.disputes.iter().map(dispute).collect();
        Decided { decisions, alerts, disputes, unverified }
    }

    /// Updates which exemptions and releases are in force, and forgets releases that ended long ago.
    fn note_dates(&mut self, context: &mut EvaluationContext<'_>) {
        let now = context.now;
        let exemptions = context.policy.exemptions.iter().chain(&context.policy.unread_exemptions);
        let exempted = exemptions.filter_map(|exemption| Some((exemption.until?, None)));
        let with_releases = self.by_app.iter().filter(|(_, incident)| !incident.releases.is_empty());
        let apps: Vec<App> = with_releases.map(|(app, _)| app.clone()).collect();
        let releases = apps.iter().filter_map(|app| self.by_app.get(app)).flat_map(|it| &it.releases);
        let until = releases.map(|release| (release.until, release.until_by_clock));
        let doubtful = context.dates.note(exempted.chain(until), &self.clock, now);
        if let Some(first) = doubtful.first() {
            context.alerts.push(Alert::Clock { message: clock_doubt(doubtful.len(), *first, now) });
        }
        for app in apps {
            let Some(incident) = self.by_app.get_mut(&app) else { continue };
            if incident.releases.iter().any(|release| context.dates.is_history(release.until, now)) {
                incident.persisted_mut().reset_rare(|rare| {
                    rare.releases.retain(|release| !context.dates.is_history(release.until, now));
                });
            }
        }
        let force = |until: Option<Timestamp>| {
            until.map_or(Validity::InForce, |until| context.dates.validity(until, now))
        };
        context.exemptions =
            context.policy.exemptions.iter().map(|exemption| force(exemption.until)).collect();
    }

    /// When time alone may change a decision: a grace ends, an exemption or a release runs out. Clearing clocks run with answers,
    /// not with time.
    pub fn next_deadline(&self, policy: &Policy, now: Moment) -> Option<Moment> {
        let dates = self.dates.changes(now);
        let graces = self.by_app.values().flat_map(|incident| incident.deadlines(policy));
        dates.chain(graces).filter(|at| at.uptime() > now.uptime()).min()
    }

    /// Whether something may be decided at the end of a round, without any other news: what was blocked before the start and
    /// is not known since, and what is not judged yet.
    pub fn waits_for_rounds(&self) -> bool {
        !self.unjudged.is_empty() || self.by_app.values().any(Incident::waits_for_all)
    }

    /// What one incident asks for. Does at once what no brake is asked about.
    fn judge(app: &App, incident: &mut Incident, context: &mut EvaluationContext<'_>) -> Action {
        if matches!(incident.phase, Phase::Ended { .. }) {
            incident.review_grace(app, &[], context);
            return Action::Nothing;
        }
        let wanted_look = incident.read_wanted_since.take().map(|since| *since);
        let excuses = incident.excuses(app, context);
        incident.review_grace(app, &excuses, context);
        let is_reason = |(g, excuse): (&AcceptedEvidence, &Option<String>)| {
            incident.justifies_block(g, excuse.as_deref(), context)
        };
        let active = incident.accepted.values().zip(&excuses).any(is_reason);
        let is_kept = context.keeps_refused && matches!(incident.phase, Phase::Blocked { .. });
        let refused = context.refusals.of(&app.namespace).filter(|_| !is_kept);
        let covered = refused.map(str::to_owned).or_else(|| incident.covered(app, &excuses, context));
        // What runs on in it while it is being deleted stays closed: a Pod may take its time to end.
        let is_closed = matches!(incident.phase, Phase::Blocked { dry_run: false, .. });
        let is_ending =
            context.facts.terminating.contains(&app.namespace) && (!is_closed || context.facts.is_gone(app));
        let covered = covered.or_else(|| is_ending.then(|| NAMESPACE_IS_BEING_DELETED.to_owned()));
        if is_ending
            && covered.as_deref() == Some(NAMESPACE_IS_BEING_DELETED)
            && matches!(incident.phase, Phase::Blocked { .. })
        {
            let may = context.policy.mode != Mode::Paused;
            return if may { Action::Release(covered, ReleaseBasis::Proof) } else { Action::Nothing };
        }
        if let Some(why) = covered {
            if matches!(incident.phase, Phase::Blocked { .. }) {
                context.decide(app, DecisionKind::Released, why.clone());
            } else if incident.exempted.is_none() {
                context.decide(app, DecisionKind::Exempted, why.clone());
            }
            incident.excuse(why, context.now);
            return Action::Nothing;
        }
        if incident.exempted.is_some() {
            incident.persisted_mut().reset_rare(|rare| rare.exempted = None);
        }

        if incident.accepted.is_empty() {
            // Not as of when its last ground cleared: what could not be released then may have come back since.
            let is_gone = context.facts.is_gone(app);
            return match incident.phase {
                Phase::Blocked { .. } if context.policy.mode == Mode::Paused => Action::Nothing,
                // An App that is gone can't be opened, so no hold on its release matters.
                Phase::Blocked { .. } if is_gone => Action::Release(None, ReleaseBasis::Proof),
                // Accusations in this namespace are not taken in, so having none left proves no absence.
                Phase::Blocked { .. } if context.refusals.of(&app.namespace).is_some() => Action::Nothing,
                Phase::Blocked { .. } if incident.release_held.is_some() => Action::Nothing,
                // Some of its nodes are not known, so all nodes must have answered for long enough.
                Phase::Blocked { .. }
                    if (incident.inherited.is_some() || incident.omitted > 0)
                        && (context.doubtful.contains(&app.namespace)
                            || !context.snapshot.is_settled(context.policy.unreachable_limit)) =>
                {
                    Action::Nothing
                }
                Phase::Blocked { .. } if incident.may_be_accused(app, context) => Action::Nothing,
                Phase::Blocked { .. } => Action::Release(None, ReleaseBasis::Rules),
                _ => {
                    let reason = cleared_reason(app, incident.cleared, context);
                    context.decide(app, DecisionKind::Closed, reason);
                    incident.end(context.now);
                    Action::Nothing
                }
            };
        }
        if let Phase::Blocked { dry_run, .. } = incident.phase {
            if !dry_run || context.policy.mode != Mode::Enforce {
                return Action::Nothing;
            }
            // What dry-run decided had no effect: it becomes real like any new block, brakes included.
            incident.set_phase(Phase::Watched);
        }
        incident.take_earlier_hold(&context.held);
        if incident.phase != Phase::Held
            && let Some((_, brake)) = incident.held.as_ref().filter(|_| !incident.approved)
        {
            let reason =
                format!("still held: {}; {}", brake.reason(&context.policy.brake), incident.accusation());
            context.decide(app, DecisionKind::Held, reason);
            incident.set_phase(Phase::Held);
        }
        if incident.phase == Phase::Held || context.policy.mode == Mode::Paused {
            return Action::Nothing;
        }
        if !active {
            // Evidence that was renewed since is not judged yet: it waits for the look that was wanted before.
            incident.read_wanted_since = wanted_look.filter(|_| incident.has_unjudged(context)).map(Box::new);
            return Action::Nothing;
        }
        if incident
            .formerly
            .iter()
            .chain([app])
            .any(|name| context.may_exempt(name) || context.aside.contains(name))
        {
            // What can't be read may say that the App is not to be blocked. A late block is better than a wrong one.
            return Action::Nothing;
        }
        if !incident.is_due(app, &excuses, context) {
            return Action::Nothing;
        }
        if incident.is_proven(&excuses, wanted_look, context) {
            return Action::Block;
        }
        incident.read_wanted_since = Some(Box::new(wanted_look.unwrap_or(context.now)));
        Action::Nothing
    }

    /// What follows from the book as it is.
    pub fn plan(&mut self, policy: &Policy, facts: &ClusterFacts, now: Moment) -> Plan {
        // Whatever has been decided has been kept by now, so both are as they will be for a while.
        let [incidents, effective] = &mut self.dense;
        incidents.fill(&mut self.by_app);
        effective.fill(&mut self.committed);
        let mode = policy.mode;
        let last = std::mem::take(&mut self.last_plan);
        let mut blocks = Vec::with_capacity(last.blocks.len());
        let mut notices = Vec::with_capacity(last.notices.len());
        let (mut last_blocks, mut last_notices) = (last.blocks.into_iter(), last.notices.into_iter());
        // What is happening to each App, so that any change of the set is seen. The key is a secret, so nobody can look for two sets
        // that look the same.
        let mut standing = last.standing.0.build_hasher();
        let mut summary = Summary { blocked: 0, in_grace: 0, held: 0, changed: now.wall() };
        for (app, incident) in &self.by_app {
            let phase = notice_phase(incident, mode);
            match (phase, incident.phase) {
                (NoticePhase::Blocked, Phase::Blocked { since, .. }) => {
                    summary.blocked += 1;
                    (app, 0_u8).hash(&mut standing);
                    blocks.push(same(
                        &mut last_blocks,
                        |last| last.app.cmp(app),
                        block(app, incident, since.wall()),
                    ));
                }
                (_, Phase::Grace { .. }) => {
                    summary.in_grace += 1;
                    (app, 1_u8).hash(&mut standing);
                }
                (_, Phase::Held) => {
                    summary.held += 1;
                    (app, 2_u8).hash(&mut standing);
                }
                _ => {}
            }
            // A tenant that waits to be told, or is not to be told, keeps the Notification that it has.
            let told = incident.notification.filter(|told| told.kind == notification_kind(&phase));
            if let Some(told) = told.filter(|_| may_be_notified(app, incident, policy, facts)) {
                let notice = Notice {
                    app: app.clone(),
                    sent_at: told.sent_at.get(),
                    inherited: told.inherited,
                    phase,
                    processes: incident.processes.iter().cloned().collect(),
                    others: closed_too(incident, phase),
                };
                notices.push(same(&mut last_notices, |last| last.app.cmp(app), notice));
            }
        }
        summary.blocked += self.unreadable.blocks().count();
        self.unreadable.blocks().for_each(|block| (&block.app, 0_u8).hash(&mut standing));
        self.unreadable.add_to(&mut blocks);
        // They live until the next plan, and `last` has copies of them.
        blocks.shrink_to_fit();
        notices.shrink_to_fit();
        let (hashing, before) = last.standing;
        let standing = standing.finish();
        let before = before.filter(|(before, _)| *before == standing);
        summary.changed = before.map_or(summary.changed, |(_, changed)| changed);
        let standing = (hashing, Some((standing, summary.changed)));
        self.last_plan = LastPlan { blocks: blocks.clone(), notices: notices.clone(), standing };
        Plan { mode, blocks, notices, summary }
    }
}

/// What is happening to an App, as its tenant is told.
pub(super) fn notice_phase(incident: &Incident, mode: Mode) -> NoticePhase {
    match incident.phase {
        Phase::Blocked { dry_run, .. } if !dry_run || mode == Mode::DryRun => NoticePhase::Blocked,
        Phase::Grace { until } => NoticePhase::Grace { until: until.wall() },
        _ => NoticePhase::Recovered,
    }
}

impl Incidents {
    /// What is blocked and held as of the last decision, without deciding anything: what a replica shows that only follows.
    pub fn current_plan(&self, policy: &Policy, now: Moment) -> Plan {
        let mut plan = Plan::empty(policy.mode, now.wall());
        for (app, incident) in &self.by_app {
            match incident.phase {
                Phase::Blocked { since, .. } => {
                    plan.blocks.push(Arc::new(block(app, incident, since.wall())));
                }
                Phase::Grace { .. } => plan.summary.in_grace += 1,
                Phase::Held => plan.summary.held += 1,
                Phase::Watched | Phase::Ended { .. } => {}
            }
        }
        self.unreadable.add_to(&mut plan.blocks);
        plan.summary.blocked = plan.blocks.len();
        plan
    }
}

impl EvaluationContext<'_> {
    pub(super) fn alert(&mut self, alert: Alert) {
        self.alerts.push(alert);
    }

    /// Whether an accusation of the same Pod by the same node can't be judged.
    pub(super) fn is_unjudged(&self, (key, node): &EvidenceId) -> bool {
        self.unjudged.contains(&(key.pod_ref(), node.clone()))
    }

    /// Whether an exemption that can't be read completely may cover accusations of `app`.
    fn may_exempt(&self, app: &App) -> bool {
        let is_over = |until| self.dates.validity(until, self.now) == Validity::Over;
        let mut unread = self.policy.unread_exemptions.iter();
        unread.any(|exemption| !exemption.until.is_some_and(is_over) && exemption.may_cover(app))
    }

    pub(super) fn decide(&mut self, app: &App, kind: DecisionKind, reason: impl Into<Text>) {
        self.decisions.push(Decision {
            at: self.now.wall(),
            app: app.clone(),
            kind,
            actor: Actor::Policy,
            reason: reason.into(),
            dry_run: self.policy.mode == Mode::DryRun,
        });
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

pub(super) fn cleared_reason(
    app: &App,
    cleared: Option<ClearingCause>,
    context: &EvaluationContext<'_>,
) -> String {
    match cleared {
        Some(ClearingCause::AppGone) if context.facts.is_gone(app) => "no Pod of the App remains".to_owned(),
        Some(ClearingCause::AppGone) => {
            "no Pod of the App remained, and nothing has been accepted against it since".to_owned()
        }
        Some(ClearingCause::By(Cleared::Unreachable)) => {
            "its node has not answered for detection.unreachable_limit".to_owned()
        }
        Some(ClearingCause::By(Cleared::Hidden)) => {
            "its node has answered for detection.unreachable_limit in sum, but during too much of it another process's record hid it, or \
             records of its namespace were left out"
                .to_owned()
        }
        Some(ClearingCause::By(Cleared::ByClock | Cleared::PodGone)) => {
            "its node has answered for the whole clearing time without fresh evidence".to_owned()
        }
        None => format!("nothing is left of the accusation as of {}", context.now.wall()),
    }
}
