//! Converts incidents to documents: what is persisted of an incident.

use jiff::Timestamp;

use crate::Moment;
use crate::clearing::Cleared;
use crate::decision::{Decision, DecisionKind};
use crate::names::{App, Key, NodeName, Text};
use crate::policy::brake::Brake;
use crate::policy::dates::Dates;
use crate::policy::incident::accepted_evidence::{AcceptedEvidence, ClearingCause, Tombstone, whole_seconds};
use crate::policy::incident::ranking::{MAX_EVIDENCE, rank};
use crate::policy::incident::{
    EvidenceId, Incident, MAX_DECISIONS, NotificationKind, PersistedIncident, Phase, StickyRelease,
};
use crate::policy::leader_clock::LeaderClock;
use crate::policy::window::Due;
use crate::state::incident::{
    self as document, AppRef, BrakeKind, ClearedBy, IncidentSpec, IncidentState, IncidentStatus, MAX_SERVICES,
};
use crate::time::CompactTimestamp;

pub(in crate::policy) fn document(
    app: &App,
    incident: &Incident,
    clock: &LeaderClock,
    dates: &Dates,
) -> document::Incident {
    let spec = IncidentSpec::of(app);
    document::Incident { name: incident.name(app), spec, status: status(incident, clock, dates) }
}

fn status(incident: &Incident, clock: &LeaderClock, dates: &Dates) -> IncidentStatus {
    let reading = |at: Moment| clock.at(at.uptime()).get();
    let (persisted, rare) = (&incident.persisted, incident.persisted.rare());
    let (state, since) = state(incident);
    let grace_end = match incident.phase() {
        Phase::Grace { until } => Some(until),
        _ => None,
    };
    let others = persisted.exposure.others.as_deref();
    IncidentStatus {
        state,
        opened: persisted.opened.wall(),
        since: since.map(Moment::wall),
        until: grace_end.map(Moment::wall),
        grace_ends: grace_end.map(reading),
        clock: clock.last().map(|(reading, _)| reading.get()),
        written: clock.last().map(|(_, wall)| wall.get()),
        wall_clock: dates.persisted(),
        reason: reason(incident),
        brake: persisted.hold.brake().and_then(|(since, brake)| held_by(since.wall(), brake)),
        release_held: match incident.phase() {
            Phase::Blocked { release_held, .. } => release_held.map(Moment::wall),
            _ => None,
        },
        approved: persisted.hold.is_approved(),
        exempted: rare.exempted.as_deref().map(str::to_owned),
        withheld: rare.withheld.clone(),
        evidence: evidence_and_tombstones(incident),
        evidence_omitted: evidence_omitted(incident),
        processes: persisted.processes.iter().cloned().collect(),
        inherited: rare.inherited.as_ref().map(|accused| {
            let process =
                |key: &Key| document::PodProcess { pod: key.pod.clone(), process: key.process.clone() };
            accused.iter().take(MAX_EVIDENCE).map(process).collect()
        }),
        cleared: incident.cleared.map(cleared_by),
        exposure: exposure(persisted),
        origins: persisted.origins.iter().cloned().collect(),
        formerly: rare.formerly.iter().map(AppRef::from).collect(),
        also_closes: others.iter().flat_map(|others| &others.named).map(AppRef::from).collect(),
        also_closes_more: others.map_or(0, |others| others.more),
        told: notification(incident, reading),
        grace: grace(incident, reading),
        due: persisted.due.as_deref().map(due),
        release_due: rare.release_due.as_ref().map(|due| document::ReleaseDue {
            at: due.at.get(),
            passed: due.passed,
            proven: due.proven,
        }),
        releases: rare.releases.iter().map(release).collect(),
        decisions: log(persisted.decisions.iter().map(|entry| decision(entry)), &rare.foreign),
        decided: persisted.decided.into(),
        observed: incident.observed(),
        writer: None,
    }
}

/// The state of the incident, and since when, if that is persisted.
fn state(incident: &Incident) -> (IncidentState, Option<Moment>) {
    match incident.phase() {
        Phase::Watched => (IncidentState::Watched, None),
        Phase::Grace { .. } => (IncidentState::Grace, None),
        Phase::Held => (IncidentState::Held, incident.persisted.hold.brake().map(|(since, _)| *since)),
        Phase::Blocked { since, release_held: Some(_), .. } => (IncidentState::ReleaseHeld, Some(since)),
        Phase::Blocked { since, .. } => (IncidentState::Blocked, Some(since)),
        Phase::Ended { at } => (IncidentState::Ended, Some(at)),
    }
}

/// The accepted evidence and then the tombstones, the latest first, as far as they fit.
fn evidence_and_tombstones(incident: &Incident) -> Vec<document::EvidenceStatus> {
    let live = in_order(incident).into_iter().map(|(id, accepted)| {
        let gone =
            document::ClearedEvidence { at: accepted.fresh_at.wall(), by: ClearedBy::PodGone, ended: false };
        evidence(id, accepted, accepted.gone.then_some(gone))
    });
    let mut tombstones: Vec<(&EvidenceId, &Tombstone)> = incident.tombstones.iter().collect();
    tombstones.sort_by_key(|(_, tombstone)| std::cmp::Reverse(tombstone.at));
    let cleared = tombstones.into_iter().map(|(id, Tombstone { evidence: accepted, at, by, .. })| {
        let cleared = document::ClearedEvidence { at: at.get(), by: cleared_by(*by), ended: true };
        evidence(id, accepted, Some(cleared))
    });
    live.chain(cleared).take(MAX_EVIDENCE).collect()
}

/// How many accusations are not persisted. Cleared evidence does not count, because no release waits for it.
fn evidence_omitted(incident: &Incident) -> usize {
    let before = match incident.phase() {
        Phase::Ended { .. } => 0,
        _ => usize::try_from(incident.omitted).unwrap_or(usize::MAX),
    };
    incident.accepted.len().saturating_sub(MAX_EVIDENCE).max(before)
}

fn decision(decision: &Decision) -> document::IncidentDecision {
    document::IncidentDecision {
        at: decision.at,
        decision: decision.kind.into(),
        actor: decision.actor.name(),
        reason: decision.reason.clone(),
    }
}

/// The accusations that still count, the freshest first. If not all fit, those that nothing covers come first.
fn in_order(incident: &Incident) -> Vec<(&EvidenceId, &AcceptedEvidence)> {
    let mut accepted: Vec<(&EvidenceId, &AcceptedEvidence)> = incident.accepted.iter().collect();
    accepted.sort_by_key(|(_, accepted)| std::cmp::Reverse(accepted.fresh_at));
    if accepted.len() > MAX_EVIDENCE {
        rank(&mut accepted);
    }
    accepted
}

/// Why the incident is in its state, for people. The reason of a block is persisted with the block, because the log
/// has only the last [`MAX_DECISIONS`].
fn reason(incident: &Incident) -> Text {
    let last = |is: &dyn Fn(DecisionKind) -> bool| {
        let decision = incident.persisted.decisions.iter().rev().find(|decision| is(decision.kind));
        decision.map(|decision| decision.reason.clone())
    };
    let own = || Some(incident.persisted.reason.clone()).filter(|reason| !reason.is_empty());
    let found = match incident.phase() {
        Phase::Watched => Some(match &incident.persisted.rare().exempted {
            Some(cover) => Text::from(&**cover),
            None => undecided(&incident.persisted).into(),
        }),
        Phase::Grace { .. } => last(&|kind| kind == DecisionKind::Warned).or_else(own),
        Phase::Held => last(&|kind| kind == DecisionKind::Held).or_else(own),
        Phase::Blocked { .. } => own().map(|reason| incident.persisted.exposure.complete(&reason)),
        Phase::Ended { .. } => None,
    };
    found.or_else(|| last(&|_| true)).unwrap_or_else(|| Text::from(""))
}

/// The reason of an incident without a decision. It names only what does not change with each scan, because each change
/// is written.
fn undecided(persisted: &PersistedIncident) -> String {
    let processes: Vec<String> =
        persisted.processes.iter().map(|process| format!("`{}`", process.escape_debug())).collect();
    format!("neither blocked nor held yet; accused of {}", processes.join(", "))
}

/// The last notification of its tenant, in the form that is persisted.
fn notification(
    incident: &Incident,
    reading: impl Fn(Moment) -> Timestamp,
) -> Option<document::NotificationStatus> {
    incident.persisted.notification.map(|sent| document::NotificationStatus {
        at: sent.sent_at.get(),
        what: match sent.kind {
            NotificationKind::Grace => document::NotifiedOf::Grace,
            NotificationKind::Blocked => document::NotifiedOf::Blocked,
            NotificationKind::Recovered => document::NotifiedOf::Recovered,
        },
        delivered: incident.written_at.map(Moment::wall),
        delivered_by_clock: incident.written_at.map(reading),
    })
}

/// The last grace that has begun, in the form that is persisted.
fn grace(incident: &Incident, reading: impl Fn(Moment) -> Timestamp) -> Option<document::Grace> {
    incident.persisted.grace.as_deref().map(|grace| document::Grace {
        until: grace.until.wall(),
        until_by_clock: reading(grace.until),
        told: incident.grace_written_at.map(Moment::wall),
        told_by_clock: incident.grace_written_at.map(&reading),
        process: grace.record.key.process.clone(),
        regex: grace.record.regex.clone(),
        idle_since: grace.idle_since.map(reading),
    })
}

/// The entry of an App in the brakes' window, in the form that is persisted.
fn due(due: &Due) -> document::Due {
    let accuser =
        |(node, rule): &(NodeName, Text)| document::Accuser { node: node.0.clone(), rule: rule.clone() };
    document::Due {
        at: due.at.get(),
        passed: due.passed,
        accusers: due.accusers.iter().map(accuser).collect(),
        held: due.held.iter().filter_map(scope).collect(),
    }
}

/// An operator's release, in the form that is persisted.
fn release(release: &StickyRelease) -> document::StickyRelease {
    document::StickyRelease {
        process: release.process.clone(),
        rule: release.rule.clone(),
        until: release.until,
        until_by_clock: release.until_by_clock.map(CompactTimestamp::get),
        by: release.actor.clone(),
    }
}

/// The log, with the entries whose kinds only another version knows in their places.
fn log(
    own: impl Iterator<Item = document::IncidentDecision>,
    foreign: &[document::IncidentDecision],
) -> Vec<document::IncidentDecision> {
    if foreign.is_empty() {
        return own.collect();
    }
    let mut all: Vec<document::IncidentDecision> = foreign.iter().cloned().chain(own).collect();
    all.sort_by_key(|entry| entry.at);
    all.split_off(all.len().saturating_sub(MAX_DECISIONS))
}

/// How an App is reached. Bounded, because its tenant makes the Services.
fn exposure(persisted: &PersistedIncident) -> document::Exposure {
    let exposure = &persisted.exposure;
    let some = |all: &[Text]| all.iter().take(MAX_SERVICES).cloned().collect::<Vec<Text>>();
    let is_plain = exposure.otherwise == exposure.services;
    document::Exposure {
        services: some(&exposure.services),
        ingresses: some(&exposure.ingresses),
        otherwise: (!is_plain).then(|| some(&exposure.otherwise)),
        left_open: some(&exposure.left_open),
        once_closed: some(&persisted.rare().once_closed),
        nothing_closed: exposure.nothing_closed.clone(),
    }
}

fn evidence(
    (key, node): &EvidenceId,
    accepted: &AcceptedEvidence,
    cleared: Option<document::ClearedEvidence>,
) -> document::EvidenceStatus {
    document::EvidenceStatus {
        pod: key.pod.clone(),
        pod_uid: accepted.pod_uid.clone(),
        process: key.process.clone(),
        node: node.0.clone(),
        regex: accepted.record.regex.clone(),
        kind: accepted.record.kind.clone(),
        name: accepted.record.name.clone(),
        first_seen: accepted.first_seen.get(),
        fresh_at: accepted.fresh_at.wall(),
        timestamp: accepted.record.timestamp.clone(),
        observations: accepted.observations.into(),
        scan_interval: accepted.longest_interval().map(whole_seconds),
        hidden_for: Some(accepted.hidden_for.get().as_secs()).filter(|seconds| *seconds > 0),
        cleared,
    }
}

fn held_by(since: Timestamp, brake: &Brake) -> Option<document::HeldBy> {
    let document::Scope { brake, of } = scope(brake)?;
    Some(document::HeldBy { since, brake, of })
}

/// The brake in the values that every version reads, so that neither an upgrade nor a downgrade loses a hold: `NewApps`
/// stands for `brake.max_new_tenants`, by the earlier name of that key.
fn scope(brake: &Brake) -> Option<document::Scope> {
    let (brake, of) = match brake {
        Brake::NewTenants => (BrakeKind::NewApps, None),
        Brake::Tenant(namespace) => (BrakeKind::NewApps, Some(namespace.clone())),
        Brake::Node(node) => (BrakeKind::Node, Some(node.0.clone())),
        Brake::Rule(rule) => (BrakeKind::Rule, Some(rule.clone())),
        Brake::SharedService(service) => (BrakeKind::SharedService, Some(service.clone())),
        // These brakes never hold a block.
        Brake::Releases | Brake::Gone => return None,
    };
    Some(document::Scope { brake, of })
}

fn cleared_by(cleared: ClearingCause) -> ClearedBy {
    match cleared {
        ClearingCause::AppGone => ClearedBy::AppGone,
        ClearingCause::By(Cleared::ByClock) => ClearedBy::Clock,
        ClearingCause::By(Cleared::Unreachable) => ClearedBy::Unreachable,
        ClearingCause::By(Cleared::Hidden) => ClearedBy::Hidden,
        ClearingCause::By(Cleared::PodGone) => ClearedBy::PodGone,
    }
}
