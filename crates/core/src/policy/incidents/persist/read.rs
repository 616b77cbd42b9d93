//! Converts documents to incidents: what a restart, or another leader, knows of an incident.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::count;
use crate::Moment;
use crate::clearing::Reading;
use crate::decision::{Actor, Decision};
use crate::ledger::Remembered;
use crate::names::{App, Key, NodeName, Text};
use crate::plan::{Exposure, OtherApps};
use crate::policy::brake::Brake;
use crate::policy::dates::Dates;
use crate::policy::incident::accepted_evidence::{self, AcceptedEvidence, ClearingCause, Tombstone};
use crate::policy::incident::grace::Grace;
use crate::policy::incident::{
    EvidenceId, Hold, Incident, NotificationKind, Phase, RareFields, SentNotification, StickyRelease,
};
use crate::policy::leader_clock::LeaderClock;
use crate::policy::window::{Due, ReleaseDue};
use crate::report::{Claim, Record};
use crate::snapshot::Snapshot;
use crate::state::incident::{
    self as document, BrakeKind, ClearedBy, IncidentState, IncidentStatus, WallClock,
};
use crate::time::{CompactDuration, CompactTimestamp};

/// The evidence in `documents`, for the ledger.
pub fn remembered(documents: &[document::Incident]) -> Vec<Remembered> {
    let mut all: BTreeMap<EvidenceId, Remembered> = BTreeMap::new();
    for document in documents {
        let namespace = &document.spec.app.namespace;
        for evidence in &document.status.evidence {
            let record = record(namespace, evidence);
            let id = (record.key.clone(), NodeName(evidence.node.clone()));
            let remembered = Remembered {
                key: id.0.clone(),
                node: id.1.clone(),
                record,
                first_seen: evidence.first_seen,
                fresh_at: evidence.fresh_at,
                observations: evidence.observations,
                cleared: evidence.cleared.as_ref().map(|cleared| (cleared.at, cleared.by.into())),
                scan_interval: evidence.scan_interval.map(Duration::from_secs),
                hidden_for: hidden_for(evidence),
            };
            if all.get(&id).is_none_or(|known| recency(known) < recency(&remembered)) {
                all.insert(id, remembered);
            }
        }
    }
    all.into_values().collect()
}

/// Orders the copies of one piece of evidence in several incidents. The greatest one counts. The agent's own clock
/// comes first, because leaders' wall clocks differ and jump. Of equal times, a copy that has not cleared counts.
fn recency(known: &Remembered) -> (Timestamp, bool, Timestamp) {
    (known.record.detected_at, known.cleared.is_none(), known.fresh_at)
}

fn hidden_for(evidence: &document::EvidenceStatus) -> Duration {
    Duration::from_secs(evidence.hidden_for.unwrap_or_default())
}

fn brake_of(brake: BrakeKind, of: Option<&Text>) -> Brake {
    match (brake, of) {
        (BrakeKind::Node, Some(node)) => Brake::Node(NodeName(node.clone())),
        (BrakeKind::Rule, Some(rule)) => Brake::Rule(rule.clone()),
        (BrakeKind::NewApps, Some(namespace)) => Brake::Tenant(namespace.clone()),
        (BrakeKind::SharedService, Some(service)) => Brake::SharedService(service.clone()),
        // A brake without its subject still holds.
        _ => Brake::NewTenants,
    }
}

fn clearing_cause(by: ClearedBy) -> ClearingCause {
    match by {
        ClearedBy::AppGone => ClearingCause::AppGone,
        by => ClearingCause::By(by.into()),
    }
}

/// The record of persisted evidence. Its command line was not persisted.
pub(in crate::policy) fn record(namespace: &Text, evidence: &document::EvidenceStatus) -> Record {
    Record {
        key: Key::new(namespace.clone(), evidence.pod.clone(), evidence.process.clone()),
        claim: Arc::new(Claim {
            cmdline: Text::from(""),
            regex: evidence.regex.clone(),
            status: Text::from("active"),
            kind: evidence.kind.clone(),
            name: evidence.name.clone(),
        }),
        timestamp: evidence.timestamp.clone(),
        // The timestamp was valid when it was received. If it has been edited since, it differs from every timestamp
        // that agents send.
        detected_at: evidence.timestamp.parse().unwrap_or(Timestamp::MIN),
    }
}

/// The reading of the leader clock when this was written, as far as it is known. An earlier version had no such
/// clock, so its wall clock takes the place.
pub(in crate::policy) fn reading(status: &IncidentStatus) -> Option<Timestamp> {
    let counted = [status.due.as_ref().map(|due| due.at), status.release_due.map(|due| due.at)];
    counted.into_iter().flatten().chain(status.clock.or(status.since)).max()
}

/// The order of the incidents of one App, the latest last. Leaders' wall clocks differ, so the opening date does not
/// say which is the latest. The reading of the leader clock at the write does.
pub(in crate::policy) fn order(status: &IncidentStatus) -> (Option<Timestamp>, bool, Timestamp) {
    (reading(status), status.state != IncidentState::Ended, status.opened)
}

/// Which dates have passed, as earlier leaders knew it. An earlier version persisted only its wall clock.
pub(in crate::policy) fn dates(documents: &[document::Incident], now: Moment) -> Dates {
    let believed = |status: &IncidentStatus| {
        status.wall_clock.map_or_else(|| last_written(status), |wall_clock| wall_clock.believed)
    };
    let latest = documents.iter().map(|document| believed(&document.status)).max();
    let last = documents.iter().max_by_key(|document| reading(&document.status));
    let last = last.and_then(|document| document.status.wall_clock);
    let last = last.or(latest.map(|believed| WallClock { believed, doubted: None, latest_over: None }));
    Dates::restored(latest, last, now)
}

/// The latest time by the writer's wall clock in this status.
fn last_written(status: &IncidentStatus) -> Timestamp {
    let notified = status.told.and_then(|sent| sent.delivered.or(Some(sent.at)));
    let decided = status.decisions.iter().map(|decision| decision.at);
    let fresh = status.evidence.iter().map(|evidence| evidence.fresh_at);
    let known = status.since.into_iter().chain(status.written).chain(notified).chain(decided).chain(fresh);
    known.fold(status.opened, Timestamp::max)
}

/// When the grace ends. The leader clock shows how much of it has passed. Without its reading the grace begins anew.
fn grace_end(status: &IncidentStatus, clock: &LeaderClock, now: Moment) -> Moment {
    let until = status.until.unwrap_or(now.wall());
    if let Some(ends) = status.grace_ends {
        return clock.moment(ends.into(), until);
    }
    let begun = status.told.map_or(status.opened, |sent| sent.at);
    let grace = until.duration_since(begun);
    let grace = if grace.is_negative() { Duration::ZERO } else { grace.unsigned_abs() };
    Moment::new(now.uptime().saturating_add(grace), until)
}

/// The incident of `app` that `status` describes.
pub(in crate::policy) fn restored(
    app: &App,
    status: &IncidentStatus,
    snapshot: &Snapshot,
    clock: &LeaderClock,
    now: Moment,
) -> Incident {
    let mut incident = Incident::new(now.at_wall(status.opened));
    let persisted = incident.persisted_mut();
    persisted.phase = phase(status, clock, now);
    persisted.hold = hold(status, persisted.phase, now);
    persisted.processes = status.processes.iter().cloned().collect();
    persisted.notification = status.told.map(notification);
    persisted.exposure = Arc::new(exposure(status));
    persisted.reason = persisted.exposure.incomplete(&status.reason);
    persisted.origins = status.origins.iter().cloned().collect();
    persisted.due = status.due.as_ref().map(|due| Arc::new(window_entry(due)));
    persisted.decisions =
        status.decisions.iter().filter_map(|entry| decision(app, entry)).map(Arc::new).collect();
    persisted.decided = accepted_evidence::saturating_u32(status.decided);
    persisted.observed = status.observed;
    persisted.set_rare(rare_fields(app, status));
    incident.cleared = status.cleared.map(clearing_cause);
    incident.omitted = count(status.evidence_omitted);
    incident.written_at = status.told.and_then(|sent| {
        let wall = sent.delivered?;
        // If it is not known how long ago that was, the notification counts from now.
        let by_clock = sent.delivered_by_clock.map(|at| clock.moment(at.into(), wall));
        Some(by_clock.unwrap_or(Moment::new(now.uptime(), wall)))
    });
    restore_evidence(&mut incident, app, &status.evidence, snapshot, now);
    restore_grace(&mut incident, app, status, clock);
    incident.had_cleared = matches!(incident.phase(), Phase::Blocked { .. }) && incident.accepted.is_empty();
    incident
}

/// The moment of `wall`, or `now` if the wall clock says that `wall` is yet to come.
fn past(wall: Timestamp, now: Moment) -> Moment {
    now.at_wall(wall.min(now.wall()))
}

fn phase(status: &IncidentStatus, clock: &LeaderClock, now: Moment) -> Phase {
    let since = past(status.since.unwrap_or(status.opened), now);
    match status.state {
        IncidentState::Watched => Phase::Watched,
        IncidentState::Grace => Phase::Grace { until: grace_end(status, clock, now) },
        IncidentState::Held => Phase::Held,
        IncidentState::Blocked | IncidentState::ReleaseHeld => {
            let release_held = status.release_held.map(|wall| past(wall, now));
            Phase::Blocked { since, dry_run: false, release_held }
        }
        // An ended incident was written when it ended, or later.
        IncidentState::Ended => {
            Phase::Ended { at: reading(status).map_or(now, |at| clock.moment(at.into(), since.wall())) }
        }
    }
}

fn hold(status: &IncidentStatus, phase: Phase, now: Moment) -> Hold {
    match &status.brake {
        // If a document has both, the hold counts, because a late block is better than a wrong one.
        Some(held) => Hold::by(brake_of(held.brake, held.of.as_ref()), past(held.since, now)),
        None if phase == Phase::Held => {
            Hold::by(Brake::NewTenants, past(status.since.unwrap_or(status.opened), now))
        }
        None if status.approved => Hold::Approved,
        None => Hold::Free,
    }
}

fn notification(sent: document::NotificationStatus) -> SentNotification {
    SentNotification {
        sent_at: sent.at.into(),
        kind: match sent.what {
            document::NotifiedOf::Grace => NotificationKind::Grace,
            document::NotifiedOf::Blocked => NotificationKind::Blocked,
            document::NotifiedOf::Recovered => NotificationKind::Recovered,
        },
        inherited: sent.delivered.is_some(),
    }
}

fn exposure(status: &IncidentStatus) -> Exposure {
    let exposure = &status.exposure;
    Exposure {
        services: exposure.services.clone(),
        ingresses: exposure.ingresses.clone(),
        otherwise: exposure.otherwise.clone().unwrap_or_else(|| exposure.services.clone()),
        others: OtherApps {
            named: status.also_closes.iter().map(App::from).collect(),
            more: status.also_closes_more,
        }
        .non_empty(),
        left_open: exposure.left_open.as_slice().into(),
        nothing_closed: exposure.nothing_closed.clone(),
    }
}

fn window_entry(due: &document::Due) -> Due {
    let accuser = |accuser: &document::Accuser| (NodeName(accuser.node.clone()), accuser.rule.clone());
    Due {
        at: due.at.into(),
        passed: due.passed,
        accusers: due.accusers.iter().map(accuser).collect(),
        held: due.held.iter().map(|scope| brake_of(scope.brake, scope.of.as_ref())).collect(),
    }
}

/// The entry of the log; `None` if only another version knows its kind.
fn decision(app: &App, entry: &document::IncidentDecision) -> Option<Decision> {
    Some(Decision {
        at: entry.at,
        app: app.clone(),
        kind: entry.decision.known()?,
        actor: Actor::named(&entry.actor),
        reason: entry.reason.clone(),
        dry_run: false,
    })
}

fn rare_fields(app: &App, status: &IncidentStatus) -> RareFields {
    let key = |of: &document::PodProcess| Key::new(app.namespace.clone(), of.pod.clone(), of.process.clone());
    let release_due =
        |due: document::ReleaseDue| ReleaseDue { at: due.at.into(), passed: due.passed, proven: due.proven };
    let release = |release: &document::StickyRelease| StickyRelease {
        process: release.process.clone(),
        rule: release.rule.clone(),
        until: release.until,
        until_by_clock: release.until_by_clock.map(CompactTimestamp::from),
        actor: release.by.clone(),
    };
    let is_foreign = |entry: &&document::IncidentDecision| entry.decision.known().is_none();
    RareFields {
        inherited: status.inherited.as_ref().map(|accused| accused.iter().map(key).collect()),
        once_closed: status.exposure.once_closed.clone(),
        formerly: status.formerly.iter().map(App::from).collect(),
        exempted: status.exempted.as_deref().map(Box::from),
        withheld: status.withheld.clone(),
        release_due: status.release_due.map(release_due),
        releases: status.releases.iter().map(release).collect(),
        foreign: status.decisions.iter().filter(is_foreign).cloned().collect(),
    }
}

/// Restores the grace that has begun. An earlier version persisted no separate grace.
fn restore_grace(incident: &mut Incident, app: &App, status: &IncidentStatus, clock: &LeaderClock) {
    let of = |process: &Text, regex: &Text| {
        let mut record = Record::of(Key::new(app.namespace.clone(), "", process.clone()));
        Arc::make_mut(&mut record.claim).regex = regex.clone();
        Arc::new(record)
    };
    if let Some(grace) = &status.grace {
        incident.persisted_mut().grace = Some(Box::new(Grace {
            until: clock.moment(grace.until_by_clock.into(), grace.until),
            record: of(&grace.process, &grace.regex),
            idle_since: grace.idle_since.map(|reading| clock.moment(reading.into(), reading)),
        }));
        let written = grace.told.zip(grace.told_by_clock);
        incident.grace_written_at = written.map(|(wall, reading)| clock.moment(reading.into(), wall));
        return;
    }
    if let Phase::Grace { until } = incident.phase() {
        let record = incident.accepted.values().next().map(|accepted| accepted.record.clone());
        let record = record.unwrap_or_else(|| of(&"".into(), &"".into()));
        incident.grace_written_at = incident.written_at.filter(|_| {
            incident.persisted.notification.is_some_and(|sent| sent.kind == NotificationKind::Grace)
        });
        incident.persisted_mut().grace = Some(Box::new(Grace { until, record, idle_since: None }));
    }
}

/// Restores the evidence. None of it is fresh, and clearing clocks start anew.
fn restore_evidence(
    incident: &mut Incident,
    app: &App,
    evidence: &[document::EvidenceStatus],
    snapshot: &Snapshot,
    now: Moment,
) {
    for evidence in evidence {
        let record = Arc::new(record(&app.namespace, evidence));
        let (key, node) = (record.key.clone(), NodeName(evidence.node.clone()));
        let mark = Reading {
            answered: snapshot.nodes.get(&node).map_or(CompactDuration::ZERO, |node| node.clock.odometer),
            inconclusive: snapshot.inconclusive(&key, &node).unwrap_or(CompactDuration::ZERO),
            before: hidden_for(evidence).into(),
        };
        let accepted = AcceptedEvidence {
            pod_uid: evidence.pod_uid.clone(),
            fresh_at: past(evidence.fresh_at, now),
            found_at: None,
            evidence_time: record.detected_at.into(),
            record,
            counted_from: now,
            mark,
            first_seen: evidence.first_seen.into(),
            scan_interval: evidence.scan_interval.map(|seconds| Duration::from_secs(seconds).into()),
            away: Duration::from_secs(evidence.scan_interval.unwrap_or_default()).into(),
            hidden_for: hidden_for(evidence).into(),
            active: false,
            covered: false,
            gone: evidence.cleared.as_ref().is_some_and(|cleared| !cleared.ended),
            observations: accepted_evidence::saturating_u32(evidence.observations),
            persisted: None,
        };
        match &evidence.cleared {
            Some(cleared) if cleared.ended => {
                let by = clearing_cause(cleared.by);
                let tombstone =
                    Tombstone { evidence: accepted, at: cleared.at.into(), by, is_persisted: false };
                incident.tombstones.insert((key, node), tombstone);
            }
            _ => drop(incident.accepted.insert((key, node), accepted)),
        }
    }
}
