//! Replays recorded incidents under other rules: which blocks would differ, and why.
//!
//! Recorded evidence counts as accepted against the App of its incident, from when it was first seen until it
//! cleared. Exemptions, protected namespaces, grace and brakes are judged anew, and operators' commands are repeated
//! at their recorded times. Evidence that the ledger did not believe is not recorded, so rules of evidence can't be
//! tried like this.
//!
//! A release lasts until the date in the log. Without such a date it lasts until the latest date of the incident's
//! releases by that operator. Without these it lasts until the App was next warned, held or blocked, or else for 30
//! days.
//!
//! An exemption that the service would withhold at a start with these rules has no effect here either.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::Policy;
use super::cluster_facts::{AppFact, ClusterFacts, Lineage, PodFact, PodState};
use super::incidents::Incidents;
use super::incidents::admissions::Withheld;
use super::incidents::commands::{IncidentCommand, released_until};
use super::incidents::persist::record;
use crate::Moment;
use crate::clearing::{NodeClock, Presence, Reading};
use crate::decision::DecisionKind;
use crate::names::{App, Key, NodeName, Text};
use crate::report::Rejections;
use crate::snapshot::{Coverage, EvidenceDetails, EvidenceView, NodeView, Snapshot, Violation};
use crate::state::incident::{self as document, IncidentState};
use crate::time::CompactDuration;

/// The recorded and the simulated outcome for one App.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SimulatedOutcome {
    /// The App.
    pub app: App,
    /// The App was blocked in that time.
    pub was_blocked: bool,
    /// The recorded reason.
    pub was: String,
    /// The App would have been blocked in that time.
    pub would_be_blocked: bool,
    /// The simulated reason.
    pub would_be: String,
}

impl SimulatedOutcome {
    /// Whether the rules change the outcome.
    pub fn differs(&self) -> bool {
        self.was_blocked != self.would_be_blocked
    }
}

/// The monotonic time of `since`. It is far from zero, so that earlier moments have a reading too.
const BASE: Duration = Duration::from_hours(24 * 1000);

/// One recorded piece of evidence.
struct RecordedEvidence<'a> {
    app: App,
    evidence: &'a document::EvidenceStatus,
    from: Timestamp,
    until: Option<Timestamp>,
}

/// Replays `incidents` from `since` to `now` under `policy`. Returns one outcome for each App that was accused in
/// that time, in order.
pub fn simulate(
    incidents: &[document::Incident],
    policy: &Policy,
    since: Timestamp,
    now: Timestamp,
) -> Vec<SimulatedOutcome> {
    let mut policy = Policy {
        // The Pods and nodes of recorded evidence were checked when it was accepted.
        verify_pods: true,
        // Agents found the processes again and again until the evidence cleared, so it was never too old.
        max_age: Duration::MAX,
        // The service notifies waiting tenants a few rounds later, but rounds are not replayed, so all are notified
        // at once.
        max_notices_per_round: usize::MAX,
        ..policy.clone()
    };
    let withheld = withheld_at_start(incidents, &policy, now);
    policy.exemptions.retain(|exemption| withheld.iter().all(|it| it.place != exemption.place));
    let pieces = pieces(incidents, since);
    let accused: BTreeSet<&App> = pieces.iter().map(|piece| &piece.app).collect();
    let commands = commands(incidents, since);

    let mut replayed = Incidents::default();
    let mut blocked: BTreeSet<App> = BTreeSet::new();
    let mut why: BTreeMap<App, String> = BTreeMap::new();
    for at in moments(&pieces, &commands, &policy, since, now) {
        let moment = moment(at, since);
        for (_, command, actor) in commands.iter().filter(|(done, _, _)| *done == at) {
            if let Ok(decision) = replayed.execute(command, &**actor, &policy, moment) {
                why.insert(decision.app, decision.reason.to_string());
            }
        }
        let live: Vec<&RecordedEvidence<'_>> = pieces
            .iter()
            .filter(|piece| piece.from <= at && piece.until.is_none_or(|until| at < until))
            .collect();
        let (snapshot, facts) = inputs(&live, &accused, moment, since);
        let evaluation = replayed.evaluate(&snapshot, &policy, &facts, moment);
        for decision in evaluation.decisions {
            let is_end = matches!(decision.kind, DecisionKind::Closed | DecisionKind::Released);
            // The reason of an end does not say why the App was blocked before.
            if !is_end || !why.contains_key(&decision.app) {
                why.insert(decision.app, format!("{}: {}", decision.kind.as_str(), decision.reason));
            }
        }
        let written =
            evaluation.plan.notices.iter().map(|notice| (notice.app.clone(), notice.sent_at.into()));
        replayed.note_written(&written.collect(), moment);
        blocked.extend(evaluation.plan.blocks.iter().map(|block| block.app.clone()));
    }
    let recorded = recorded(incidents, since);
    accused
        .into_iter()
        .map(|app| {
            let (was_blocked, was) = recorded.get(app).cloned().unwrap_or_default();
            let would_be =
                why.get(app).cloned().unwrap_or_else(|| "nothing would have been decided".to_owned());
            SimulatedOutcome {
                app: app.clone(),
                was_blocked,
                was,
                would_be_blocked: blocked.contains(app),
                would_be,
            }
        })
        .collect()
}

/// The exemptions of `policy` that a service would withhold if it started at `now` with `incidents`. Each of them
/// would open blocked Apps of more tenants than it may.
pub fn withheld_at_start(incidents: &[document::Incident], policy: &Policy, now: Timestamp) -> Vec<Withheld> {
    let at = moment(now, now);
    let (snapshot, facts) = inputs(&[], &BTreeSet::new(), at, now);
    let mut replayed = Incidents::restore(incidents, &snapshot, at);
    replayed.decide(&snapshot, policy, &facts, at);
    replayed.withheld()
}

fn moment(at: Timestamp, since: Timestamp) -> Moment {
    Moment::new(BASE, since).at_wall(at)
}

fn pieces(incidents: &[document::Incident], since: Timestamp) -> Vec<RecordedEvidence<'_>> {
    let mut pieces = Vec::new();
    for incident in incidents {
        let app = App::from(&incident.spec.app);
        for evidence in &incident.status.evidence {
            let ended = evidence.cleared.as_ref().filter(|cleared| cleared.ended).map(|cleared| cleared.at);
            if ended.is_some_and(|ended| ended <= since) {
                continue;
            }
            let from = evidence.first_seen.max(since);
            pieces.push(RecordedEvidence {
                app: app.clone(),
                evidence,
                from,
                until: ended.map(|ended| ended.max(from)),
            });
        }
    }
    pieces
}

/// The moments from `since` to `now` at which a decision may change, in order.
fn moments(
    pieces: &[RecordedEvidence<'_>],
    commands: &[RecordedCommand],
    policy: &Policy,
    since: Timestamp,
    now: Timestamp,
) -> BTreeSet<Timestamp> {
    let mut moments: BTreeSet<Timestamp> = BTreeSet::from([now]);
    for piece in pieces {
        moments.insert(piece.from);
        moments.extend(piece.until);
        moments.extend(piece.from.checked_add(policy.grace).ok());
    }
    moments.extend(commands.iter().map(|(at, _, _)| *at));
    let ends = commands.iter().filter_map(|(_, command, _)| match command {
        IncidentCommand::Release { until, .. } => Some(*until),
        IncidentCommand::Approve { .. } => None,
    });
    for end in ends.chain(policy.exemptions.iter().filter_map(|exemption| exemption.until)) {
        moments.insert(end);
        // A grace begins when nothing covers the App any more.
        moments.extend(end.checked_add(policy.grace).ok());
    }
    moments.retain(|at| (since..=now).contains(at));
    moments
}

/// A recorded command of an operator, with its time and the operator.
type RecordedCommand = (Timestamp, IncidentCommand, Text);

/// The recorded commands of operators, in order.
fn commands(incidents: &[document::Incident], since: Timestamp) -> Vec<RecordedCommand> {
    let mut commands = Vec::new();
    for incident in incidents {
        let app = App::from(&incident.spec.app);
        let by_people =
            |decision: &&document::IncidentDecision| decision.at >= since && *decision.actor != *"policy";
        for decision in incident.status.decisions.iter().filter(by_people) {
            let command = match decision.decision.known() {
                Some(DecisionKind::Approved) => IncidentCommand::Approve { app: app.clone() },
                Some(DecisionKind::Released) => {
                    IncidentCommand::Release { app: app.clone(), until: release_end(incident, decision) }
                }
                _ => continue,
            };
            commands.push((decision.at, command, decision.actor.clone()));
        }
    }
    commands.sort_by_key(|(at, _, _)| *at);
    commands
}

/// When the release that `decision` records ended.
fn release_end(incident: &document::Incident, decision: &document::IncidentDecision) -> Timestamp {
    let status = &incident.status;
    let later = |at: &Timestamp| *at > decision.at;
    let in_log = || released_until(&decision.reason);
    // Without a date in the log: the latest date of the releases by that operator that are still persisted.
    let persisted = || {
        let of_actor = status.releases.iter().filter(|release| release.by == decision.actor);
        of_actor.map(|release| release.until).filter(later).max()
    };
    // Without these: when the rules next took action against the App, or else after 30 days.
    let next = || {
        use DecisionKind::{Blocked, Held, Warned};
        let is_action = |entry: &&document::IncidentDecision| {
            matches!(entry.decision.known(), Some(Blocked | Held | Warned)) && later(&entry.at)
        };
        status.decisions.iter().find(is_action).map(|entry| entry.at)
    };
    let far = || decision.at.saturating_add(SignedDuration::from_hours(24 * 30)).unwrap_or(Timestamp::MAX);
    in_log().or_else(persisted).or_else(next).unwrap_or_else(far)
}

/// Whether each App was blocked, and why or why not.
fn recorded(incidents: &[document::Incident], since: Timestamp) -> BTreeMap<App, (bool, String)> {
    use DecisionKind::{Approved, Blocked, Held, Inherited, ReleaseHeld, Released, Warned};

    let mut outcomes: BTreeMap<App, (bool, String)> = BTreeMap::new();
    for incident in incidents {
        let status = &incident.status;
        let is_blocked = matches!(status.state, IncidentState::Blocked | IncidentState::ReleaseHeld);
        // An App that was released in that time was blocked in it, unless an operator released it while it was only
        // warned or held.
        let mut is_waiting = false;
        let mut shows_block = |decision: &document::IncidentDecision| {
            let Some(kind) = decision.decision.known() else { return false };
            let shows_block = matches!(kind, Approved | Blocked | Inherited | ReleaseHeld)
                || kind == Released && !is_waiting;
            if matches!(kind, Approved | Blocked | Inherited | ReleaseHeld | Held | Warned) {
                is_waiting = matches!(kind, Held | Warned);
            }
            decision.at >= since && shows_block
        };
        // Counts all entries, because `shows_block` has to see each of them, in order.
        let was_blocked =
            status.decisions.iter().filter(|decision| shows_block(decision)).count() > 0 || is_blocked;
        let is_end = |decision: &&document::IncidentDecision| {
            !matches!(
                decision.decision.known(),
                Some(DecisionKind::Closed | DecisionKind::Released | DecisionKind::Refused)
            )
        };
        let last = status.decisions.iter().rev().find(is_end).or(status.decisions.last());
        let why = last.map_or_else(
            || status.reason.to_string(),
            |last| format!("{}: {}", last.decision.as_str(), last.reason),
        );
        let outcome = outcomes.entry(App::from(&incident.spec.app)).or_default();
        *outcome = (outcome.0 || was_blocked, why);
    }
    outcomes
}

/// The snapshot and the cluster facts at one moment.
fn inputs(
    live: &[&RecordedEvidence<'_>],
    apps: &BTreeSet<&App>,
    now: Moment,
    since: Timestamp,
) -> (Snapshot, ClusterFacts) {
    let mut facts = ClusterFacts::default();
    let mut nodes = BTreeMap::new();
    let mut violations: BTreeMap<Key, Vec<EvidenceView>> = BTreeMap::new();
    // The look-up counts as later than any evidence, because the facts were known then.
    let asked = Moment::new(Duration::MAX, now.wall());
    for RecordedEvidence { app, evidence, from, .. } in live {
        let node = NodeName(evidence.node.clone());
        let record = Arc::new(record(&app.namespace, evidence));
        let state = PodState::Present {
            // The age of the Pod was checked when the evidence was accepted.
            uid: evidence.pod_uid.clone().unwrap_or_else(|| Text::from("")),
            created: Some(Moment::new(Duration::ZERO, since)),
            node: node.clone(),
            host_ips: Vec::new(),
            app: app.clone(),
            lineage: Lineage::default(),
        };
        facts.pods.insert(record.key.pod_ref(), PodFact { asked, state });
        nodes.entry(node.clone()).or_insert_with(|| node_without_clearing(now));
        let seen = moment(*from, since);
        let details = EvidenceDetails {
            record: record.clone(),
            fresh_at: Some(seen),
            age: Some(CompactDuration::ZERO),
            mark: Reading::ZERO,
            away: CompactDuration::ZERO,
            first_seen: seen,
            last_seen: seen,
            evidence_time: record.detected_at.into(),
            observations: evidence.observations,
        };
        let presence = Presence::Active;
        let (inconclusive, hidden_by) = (CompactDuration::ZERO, None);
        let details = Arc::new(details);
        let view =
            EvidenceView { node: node.clone(), presence, cleared: None, inconclusive, hidden_by, details };
        violations.entry(record.key.clone()).or_default().push(view);
    }
    let accused: BTreeSet<&App> = live.iter().map(|piece| &piece.app).collect();
    for app in apps {
        // Without live evidence the App counts as gone, because its evidence had cleared by then.
        let fact = AppFact { gone: !accused.contains(app), ..AppFact::default() };
        facts.apps.insert((*app).clone(), fact);
    }
    let snapshot = Snapshot {
        at: now,
        since: Moment::new(BASE, since),
        revision: 0,
        changes: 0,
        rounds: 1,
        violations: violations.into_iter().filter_map(|(key, all)| Violation::new(key, all)).collect(),
        list: Arc::new([]),
        list_changed_at: since,
        nodes: nodes.into_iter().collect(),
        targets: Vec::new(),
        coverage: Coverage::default(),
        rejected: Rejections::default(),
    };
    (snapshot, facts)
}

/// A node whose clock clears nothing, because the recorded evidence says when it cleared.
fn node_without_clearing(now: Moment) -> NodeView {
    let clock = NodeClock {
        odometer: CompactDuration::ZERO,
        inconclusive: CompactDuration::ZERO,
        required: Duration::MAX.into(),
        has_scanned: true,
        since: now,
        last_sign: now,
        unreachable_limit: Duration::MAX.into(),
    };
    NodeView { clock, interval: None, lists_several: true, records: 0, rejected: Rejections::default() }
}
