//! The book as documents and back: what is kept of each incident, and which incidents differ from what is kept.
//!
//! Kept is what a restart must not forget. Not kept is what is heard again within a round, or only counts while it lasts: which
//! evidence is fresh at this moment, disputes, the readings of odometers. Moments are kept by the wall clock and get back a
//! reading of the monotonic clock when they are read (see [`Moment::at_wall`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::book::Book;
use super::brake::Brake;
use super::dates::Dates;
use super::decision::{Actor, Decision};
use super::incident::{
    ClearedGround, EvidenceId, File, Ground, Incident, MAX_DECISIONS, Standing, StickyRelease, Telling, Told,
    Tombstone,
};
use super::leader_clock::LeaderClock;
use super::window::{Due, ReleaseDue};
use crate::Moment;
use crate::ledger::{Cleared, Reading, Remembered};
use crate::moment::{Span, WallTime};
use crate::names::{App, Key, NodeName, Text};
use crate::plan::{Exposure, OtherApps};
use crate::report::{Claim, Record};
use crate::snapshot::Snapshot;
use crate::state::incident::{
    self as kept, AppRef, BrakeKind, ClearedBy, IncidentSpec, IncidentState, IncidentStatus,
};

/// How many accusations of one incident are kept. A tenant can start any number of processes, and an object has its bounds;
/// what is left out is heard again from its node.
const MAX_EVIDENCE: usize = 64;
/// How many Services of one App are kept: they only have to last until the cluster has been asked again.
const MAX_SERVICES: usize = 1000;
/// How old the kept time of the last evidence may become. Agents bring fresh evidence with each scan: keeping each would mean a
/// write per App and scan.
const EVIDENCE_REFRESH: Duration = Duration::from_hours(1);

/// What is in effect of an incident. Whatever is decided beyond it has no effect before it is kept.
///
/// What had been heard by then is not copied: each ground and tombstone says itself what is kept of it, and how many there were
/// tells whether one is gone.
#[derive(Clone, Debug)]
pub(super) struct Effective {
    file: Arc<File>,
    cleared: Option<ClearedGround>,
    delivered: Option<Moment>,
    grounds: u32,
    tombstones: u32,
    /// If it was over, as it was: what is heard later may be taken back with its new beginning.
    over: Option<Box<Incident>>,
    /// It is known to be kept like this.
    is_kept: bool,
}

impl Effective {
    /// As it is, and not known to be kept.
    pub(super) fn unkept(incident: &Incident) -> Self {
        Self {
            file: incident.share_file(),
            cleared: incident.cleared,
            delivered: incident.delivered,
            grounds: count(incident.grounds.len()),
            tombstones: count(incident.tombstones.len()),
            over: matches!(incident.standing, Standing::Ended { .. }).then(|| Box::new(incident.clone())),
            is_kept: false,
        }
    }

    /// As it is, which has been kept.
    fn kept(incident: &mut Incident) -> Self {
        for (_, ground) in incident.grounds.iter_mut() {
            ground.note_kept();
        }
        for (_, tombstone) in incident.tombstones.iter_mut() {
            tombstone.is_kept = true;
        }
        Self { is_kept: true, ..Self::unkept(incident) }
    }
}

/// By how much the kept scan interval of an agent may be too short. Most agents scan more often: theirs is kept when something
/// else is.
const INTERVAL_SLACK: Duration = Duration::from_mins(1);

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Book {
    /// The book as it was kept. Whatever it says is as certain as it was then, but nothing of it is fresh: clearing clocks begin
    /// anew. `snapshot` has the readings of the nodes' odometers.
    pub fn restore(documents: &[kept::Incident], snapshot: &Snapshot, now: Moment) -> Self {
        let newest = documents.iter().filter_map(|document| reading(&document.status)).max();
        let clock = LeaderClock::restored(newest.map(WallTime::from), now);
        let before = documents.iter().map(|document| last_written(&document.status)).max();
        let mut book = Self { clock, dates: Dates::restored(before, now), ..Self::default() };
        for document in documents {
            let app = App::from(&document.spec.app);
            let mut incident = restored(&app, &document.status, snapshot, &clock, now);
            book.window.restore(&app, incident.due.as_ref(), incident.release_due.as_deref().copied());
            // An App's earlier incidents are history.
            if book.incidents.get(&app).is_some_and(|known| known.opened.wall() >= incident.opened.wall()) {
                continue;
            }
            book.effective.insert(app.clone(), Effective::kept(&mut incident));
            book.incidents.insert(app, incident);
        }
        book
    }

    /// The Apps whose incidents differ from what is kept of them, those that are or were blocked first: others wait for their writes.
    pub fn unsaved(&self) -> Vec<App> {
        let differs = |(app, incident): &(&App, &Incident)| {
            let effective = self.effective.get(*app);
            effective.is_none_or(|before| !is_kept_by(incident, before))
        };
        let mut unsaved: Vec<(&App, &Incident)> = self.incidents.iter().filter(differs).collect();
        let is_urgent = |app: &App, incident: &Incident| {
            let is_blocked = |file: &File| matches!(file.standing, Standing::Blocked { .. });
            is_blocked(incident) || self.effective.get(app).is_some_and(|before| is_blocked(&before.file))
        };
        unsaved.sort_by_key(|(app, incident)| !is_urgent(app, incident));
        unsaved.into_iter().map(|(app, _)| app.clone()).collect()
    }

    /// The incident of `app` as it is to be kept.
    pub fn document(&self, app: &App) -> Option<kept::Incident> {
        self.incidents.get(app).map(|incident| document(app, incident, &self.clock))
    }

    /// What [`Book::document`] gave of those has been kept. Nothing may have changed in between.
    pub fn saved<'a>(&mut self, apps: impl IntoIterator<Item = &'a App>) {
        for app in apps {
            if let Some(incident) = self.incidents.get_mut(app) {
                self.effective.insert(app.clone(), Effective::kept(incident));
            }
        }
        self.effective.retain(|app, _| self.incidents.contains_key(app));
    }

    /// What [`Book::document`] gave of those could not be kept. What has been decided about them is taken back: it has had no effect,
    /// and is decided anew on the evidence of a later moment. What has been heard stays.
    pub fn take_back<'a>(&mut self, apps: impl IntoIterator<Item = &'a App>) {
        for app in apps {
            let Some(now) = self.incidents.get_mut(app) else { continue };
            match self.effective.get(app) {
                Some(Effective { file, over, delivered, .. }) if file.opened == now.opened => match over {
                    Some(over) => now.clone_from(over),
                    None => now.refile(file.clone(), *delivered),
                },
                // The incident before this one is over, but what operators have released stays released.
                known => {
                    let mut anew = File::new(now.opened);
                    anew.releases = known.map(|known| known.file.releases.clone()).unwrap_or_default();
                    now.refile(Arc::new(anew), None);
                }
            }
            // It may have been written all the same, by a request that was never answered: to be written again in any case.
            self.effective.insert(app.clone(), Effective::unkept(now));
        }
    }

    /// Those incidents are not kept any more, by their names: they have to be written again.
    pub fn forget_saved(&mut self, is_gone: impl Fn(&str) -> bool) {
        for (app, effective) in &mut self.effective {
            effective.is_kept &= !is_gone(&effective.file.name(app));
        }
    }

    /// Every incident as it would be kept.
    pub fn documents(&self) -> Vec<kept::Incident> {
        self.incidents.iter().map(|(app, incident)| document(app, incident, &self.clock)).collect()
    }
}

/// The evidence in documents, for the ledger.
pub fn remembered(documents: &[kept::Incident]) -> Vec<Remembered> {
    let mut all: BTreeMap<EvidenceId, Remembered> = BTreeMap::new();
    for document in documents {
        let namespace = &document.spec.app.namespace;
        for evidence in &document.status.evidence {
            let record = record(namespace, evidence);
            let id = (record.key.clone(), NodeName(evidence.node.clone()));
            // Of one violation in two incidents, the later word counts.
            if all.get(&id).is_some_and(|known| known.fresh_at > evidence.fresh_at) {
                continue;
            }
            let remembered = Remembered {
                key: id.0.clone(),
                node: id.1.clone(),
                record,
                first_seen: evidence.first_seen,
                fresh_at: evidence.fresh_at,
                observations: evidence.observations,
                cleared: evidence.cleared.as_ref().map(|cleared| (cleared.at, cleared.by.into())),
                scan_interval: evidence.scan_interval.map(Duration::from_secs),
            };
            all.insert(id, remembered);
        }
    }
    all.into_values().collect()
}

/// Whether `saved` is kept, and as good as `now` for whoever reads it after a restart.
fn is_kept_by(now: &Incident, saved: &Effective) -> bool {
    let is_same_ground = |ground: &Ground| {
        ground.kept.is_some_and(|kept| {
            kept.gone == ground.gone
                && ground.fresh_at.uptime().saturating_sub(kept.fresh_at.get()) < EVIDENCE_REFRESH
                && ground.scan_interval.unwrap_or(Span::ZERO).saturating_sub(kept.scan_interval)
                    <= INTERVAL_SLACK
        })
    };
    saved.is_kept
        && count(now.grounds.len()) == saved.grounds
        && now.grounds.values().all(is_same_ground)
        && count(now.tombstones.len()) == saved.tombstones
        && now.tombstones.values().all(|tombstone| tombstone.is_kept)
        && now.cleared == saved.cleared
        && now.delivered == saved.delivered
        && (now.has_file(&saved.file) || is_file_kept_by(now, &saved.file))
}

/// Names every field, so that a new one has to be thought of here.
fn is_file_kept_by(now: &File, saved: &File) -> bool {
    let File {
        opened,
        standing,
        processes,
        held,
        reason,
        inherited,
        release_held,
        approved,
        told,
        exposure,
        exempted,
        due,
        release_due,
        releases,
        // Counted by `decided`.
        decisions: _,
        // Never changes.
        foreign: _,
        decided,
        observed,
    } = now;
    let told_of = |told: &Option<Told>| told.map(|told| (told.at, told.what));
    opened == &saved.opened
        && standing == &saved.standing
        && decided == &saved.decided
        && observed == &saved.observed
        && processes == &saved.processes
        && held == &saved.held
        && reason == &saved.reason
        && inherited == &saved.inherited
        && release_held == &saved.release_held
        && approved == &saved.approved
        && told_of(told) == told_of(&saved.told)
        && exposure == &saved.exposure
        && exempted == &saved.exempted
        && due == &saved.due
        && release_due == &saved.release_due
        && releases.iter().map(StickyRelease::words).eq(saved.releases.iter().map(StickyRelease::words))
}

fn document(app: &App, incident: &Incident, clock: &LeaderClock) -> kept::Incident {
    let spec = IncidentSpec::of(app);
    kept::Incident { name: incident.name(app), spec, status: status(incident, clock) }
}

fn status(incident: &Incident, clock: &LeaderClock) -> IncidentStatus {
    let reading = |at: Moment| clock.at(at.uptime()).get();
    let (state, since, until) = match incident.standing {
        Standing::Watched => (IncidentState::Watched, None, None),
        Standing::Grace { until } => (IncidentState::Grace, None, Some(until.wall())),
        Standing::Held => (IncidentState::Held, incident.held.as_ref().map(|held| held.0.wall()), None),
        Standing::Blocked { since, .. } if incident.release_held.is_some() => {
            (IncidentState::ReleaseHeld, Some(since.wall()), None)
        }
        Standing::Blocked { since, .. } => (IncidentState::Blocked, Some(since.wall()), None),
        Standing::Ended { at } => (IncidentState::Ended, Some(at.wall()), None),
    };
    // What counts comes first, the freshest of it first.
    let mut grounds: Vec<(&EvidenceId, &Ground)> = incident.grounds.iter().collect();
    grounds.sort_by_key(|(_, ground)| std::cmp::Reverse(ground.fresh_at));
    let mut tombstones: Vec<(&EvidenceId, &Tombstone)> = incident.tombstones.iter().collect();
    tombstones.sort_by_key(|(_, tombstone)| std::cmp::Reverse(tombstone.at));
    let live = grounds.into_iter().map(|(id, ground)| {
        let gone = kept::ClearedEvidence { at: ground.fresh_at.wall(), by: ClearedBy::PodGone, ended: false };
        evidence(id, ground, ground.gone.then_some(gone))
    });
    let buried = tombstones.into_iter().map(|(id, Tombstone { ground, at, by, .. })| {
        let cleared = kept::ClearedEvidence { at: at.get(), by: cleared_by(*by), ended: true };
        evidence(id, ground, Some(cleared))
    });
    let total = incident.grounds.len() + incident.tombstones.len();
    let decision = |decision: &Decision| kept::Decision {
        at: decision.at,
        decision: decision.kind.into(),
        actor: decision.actor.name(),
        reason: decision.reason.clone(),
    };
    let last = incident.decisions.last().map(|decision| decision.reason.clone());
    IncidentStatus {
        state,
        opened: incident.opened.wall(),
        since,
        until,
        grace_ends: match incident.standing {
            Standing::Grace { until } => Some(reading(until)),
            _ => None,
        },
        clock: clock.last().map(|(reading, _)| reading.get()),
        written: clock.last().map(|(_, wall)| wall.get()),
        reason: if incident.reason.is_empty() || state == IncidentState::Ended {
            last.unwrap_or_else(|| Text::from(""))
        } else {
            incident.reason.clone()
        },
        brake: incident.held.as_deref().and_then(|(since, brake)| held_by(since.wall(), brake)),
        release_held: incident.release_held.as_ref().map(|at| at.wall()),
        approved: incident.approved,
        exempted: incident.exempted.as_deref().map(str::to_owned),
        evidence: live.chain(buried).take(MAX_EVIDENCE).collect(),
        evidence_omitted: total
            .saturating_sub(MAX_EVIDENCE)
            .max(usize::try_from(incident.omitted).unwrap_or(usize::MAX)),
        processes: incident.processes.iter().cloned().collect(),
        inherited: incident.inherited.as_ref().map(|accused| {
            let process = |key: &Key| kept::PodProcess { pod: key.pod.clone(), process: key.process.clone() };
            accused.iter().take(MAX_EVIDENCE).map(process).collect()
        }),
        cleared: incident.cleared.map(cleared_by),
        exposure: exposure(&incident.exposure),
        also_closes: incident.exposure.others.named.iter().map(AppRef::from).collect(),
        also_closes_more: incident.exposure.others.more,
        told: told(incident, reading),
        due: incident.due.as_ref().map(|due| kept::Due {
            at: due.at.get(),
            passed: due.passed,
            accusers: due
                .accusers
                .iter()
                .map(|(node, rule)| kept::Accuser { node: node.0.clone(), rule: rule.clone() })
                .collect(),
            held: due.held.iter().filter_map(scope).collect(),
        }),
        release_due: incident
            .release_due
            .as_ref()
            .map(|due| kept::ReleaseDue { at: due.at.get(), passed: due.passed }),
        releases: incident
            .releases
            .iter()
            .map(|release| kept::StickyRelease {
                process: release.process.clone(),
                rule: release.rule.clone(),
                until: release.until,
                by: release.actor.clone(),
            })
            .collect(),
        decisions: log(incident.decisions.iter().map(|entry| decision(entry)), &incident.foreign),
        decided: incident.decided,
        observed: incident.observed,
        writer: None,
    }
}

/// What its tenant was told last, as it is kept.
fn told(incident: &Incident, reading: impl Fn(Moment) -> Timestamp) -> Option<kept::Told> {
    incident.told.map(|told| kept::Told {
        at: told.at.get(),
        what: match told.what {
            Telling::Grace => kept::Telling::Grace,
            Telling::Blocked => kept::Telling::Blocked,
            Telling::Recovered => kept::Telling::Recovered,
        },
        delivered: incident.delivered.map(Moment::wall),
        delivered_by_clock: incident.delivered.map(reading),
    })
}

/// The log, with the entries of another version in their places.
fn log(own: impl Iterator<Item = kept::Decision>, foreign: &[kept::Decision]) -> Vec<kept::Decision> {
    if foreign.is_empty() {
        return own.collect();
    }
    let mut all: Vec<kept::Decision> = foreign.iter().cloned().chain(own).collect();
    all.sort_by_key(|entry| entry.at);
    all.split_off(all.len().saturating_sub(MAX_DECISIONS))
}

/// How an App is reached, within bounds: its tenant makes the Services.
fn exposure(exposure: &Exposure) -> kept::Exposure {
    let some = |all: &[Text]| all.iter().take(MAX_SERVICES).cloned().collect::<Vec<Text>>();
    let is_plain = exposure.otherwise == exposure.services;
    kept::Exposure {
        services: some(&exposure.services),
        ingresses: some(&exposure.ingresses),
        otherwise: (!is_plain).then(|| some(&exposure.otherwise)),
        left_open: some(&exposure.left_open),
    }
}

fn evidence(
    (key, node): &EvidenceId,
    ground: &Ground,
    cleared: Option<kept::ClearedEvidence>,
) -> kept::Evidence {
    kept::Evidence {
        pod: key.pod.clone(),
        pod_uid: ground.pod_uid.clone(),
        process: key.process.clone(),
        node: node.0.clone(),
        regex: ground.record.regex.clone(),
        kind: ground.record.kind.clone(),
        name: ground.record.name.clone(),
        first_seen: ground.first_seen.get(),
        fresh_at: ground.fresh_at.wall(),
        timestamp: ground.record.timestamp.clone(),
        observations: ground.observations,
        // Rounded up: too long only means to wait longer.
        scan_interval: ground
            .scan_interval
            .map(Span::get)
            .map(|interval| interval.as_secs() + u64::from(interval.subsec_nanos() > 0)),
        cleared,
    }
}

fn held_by(since: Timestamp, brake: &Brake) -> Option<kept::HeldBy> {
    let kept::Scope { brake, of } = scope(brake)?;
    Some(kept::HeldBy { since, brake, of })
}

/// In words that the version before knows too.
fn scope(brake: &Brake) -> Option<kept::Scope> {
    let (brake, of) = match brake {
        Brake::NewTenants => (BrakeKind::NewApps, None),
        Brake::Tenant(namespace) => (BrakeKind::NewApps, Some(namespace.clone())),
        Brake::Node(node) => (BrakeKind::Node, Some(node.0.clone())),
        Brake::Rule(rule) => (BrakeKind::Rule, Some(rule.clone())),
        Brake::SharedService(service) => (BrakeKind::SharedService, Some(service.clone())),
        // Never holds a block.
        Brake::Releases => return None,
    };
    Some(kept::Scope { brake, of })
}

fn brake_of(brake: BrakeKind, of: Option<&Text>) -> Brake {
    match (brake, of) {
        (BrakeKind::Node, Some(node)) => Brake::Node(NodeName(node.clone())),
        (BrakeKind::Rule, Some(rule)) => Brake::Rule(rule.clone()),
        (BrakeKind::NewApps, Some(namespace)) => Brake::Tenant(namespace.clone()),
        (BrakeKind::SharedService, Some(service)) => Brake::SharedService(service.clone()),
        // Whatever holds, holds.
        _ => Brake::NewTenants,
    }
}

fn cleared_by(cleared: ClearedGround) -> ClearedBy {
    match cleared {
        ClearedGround::AppGone => ClearedBy::AppGone,
        ClearedGround::By(Cleared::ByClock) => ClearedBy::Clock,
        ClearedGround::By(Cleared::Unreachable) => ClearedBy::Unreachable,
        ClearedGround::By(Cleared::Hidden) => ClearedBy::Hidden,
        ClearedGround::By(Cleared::PodGone) => ClearedBy::PodGone,
    }
}

fn cleared_ground(by: ClearedBy) -> ClearedGround {
    match by {
        ClearedBy::AppGone => ClearedGround::AppGone,
        by => ClearedGround::By(by.into()),
    }
}

/// A record as it was kept: without a command line.
pub(super) fn record(namespace: &Text, evidence: &kept::Evidence) -> Record {
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
        // It was valid when it was taken in; if somebody has spoilt it since, it equals no other.
        detected_at: evidence.timestamp.parse().unwrap_or(Timestamp::MIN),
    }
}

/// What the leader clock read when this was written, as far as that is known. The version before had none: its wall clock stands
/// for it.
fn reading(status: &IncidentStatus) -> Option<Timestamp> {
    let counted = [status.due.as_ref().map(|due| due.at), status.release_due.map(|due| due.at)];
    counted.into_iter().flatten().chain(status.clock.or(status.since)).max()
}

/// The latest time by the wall clock of whoever wrote this that is in it.
fn last_written(status: &IncidentStatus) -> Timestamp {
    let told = status.told.and_then(|told| told.delivered.or(Some(told.at)));
    let decided = status.decisions.iter().map(|decision| decision.at);
    let heard = status.evidence.iter().map(|evidence| evidence.fresh_at);
    let known = status.since.into_iter().chain(status.written).chain(told).chain(decided).chain(heard);
    known.fold(status.opened, Timestamp::max)
}

/// When the grace ends: how much of it is over is known by the leader clock. Where that is not known it begins anew.
fn grace_end(status: &IncidentStatus, clock: &LeaderClock, now: Moment) -> Moment {
    let until = status.until.unwrap_or(now.wall());
    if let Some(ends) = status.grace_ends {
        return clock.moment(ends.into(), until);
    }
    let begun = status.told.map_or(status.opened, |told| told.at);
    let grace = until.duration_since(begun);
    let grace = if grace.is_negative() { Duration::ZERO } else { grace.unsigned_abs() };
    Moment::new(now.uptime().saturating_add(grace), until)
}

fn restored(
    app: &App,
    status: &IncidentStatus,
    snapshot: &Snapshot,
    clock: &LeaderClock,
    now: Moment,
) -> Incident {
    let past = |wall: Timestamp| now.at_wall(wall.min(now.wall()));
    let mut incident = Incident::new(now.at_wall(status.opened));
    let file = incident.file();
    let since = past(status.since.unwrap_or(status.opened));
    file.standing = match status.state {
        IncidentState::Watched => Standing::Watched,
        IncidentState::Grace => Standing::Grace { until: grace_end(status, clock, now) },
        IncidentState::Held => Standing::Held,
        IncidentState::Blocked | IncidentState::ReleaseHeld => Standing::Blocked { since, dry_run: false },
        // It was written when it ended, or later.
        IncidentState::Ended => {
            Standing::Ended { at: reading(status).map_or(now, |at| clock.moment(at.into(), since.wall())) }
        }
    };
    let held = status.brake.as_ref();
    file.held = held.map(|held| Box::new((past(held.since), brake_of(held.brake, held.of.as_ref()))));
    if file.held.is_none() && file.standing == Standing::Held {
        file.held = Some(Box::new((since, Brake::NewTenants)));
    }
    file.processes = status.processes.iter().cloned().collect();
    file.reason.clone_from(&status.reason);
    file.inherited = status.inherited.as_ref().map(|accused| {
        let key = |of: &kept::PodProcess| Key::new(app.namespace.clone(), of.pod.clone(), of.process.clone());
        Box::new(accused.iter().map(key).collect::<BTreeSet<Key>>())
    });
    file.release_held = status.release_held.map(past).map(Box::new);
    file.approved = status.approved;
    file.told = status.told.map(|told| Told {
        at: told.at.into(),
        what: match told.what {
            kept::Telling::Grace => Telling::Grace,
            kept::Telling::Blocked => Telling::Blocked,
            kept::Telling::Recovered => Telling::Recovered,
        },
        inherited: told.delivered.is_some(),
    });
    file.exposure = Arc::new(Exposure {
        services: status.exposure.services.clone(),
        ingresses: status.exposure.ingresses.clone(),
        otherwise: status.exposure.otherwise.clone().unwrap_or_else(|| status.exposure.services.clone()),
        others: OtherApps {
            named: status.also_closes.iter().map(App::from).collect(),
            more: status.also_closes_more,
        },
        left_open: status.exposure.left_open.clone(),
    });
    file.exempted = status.exempted.as_deref().map(Box::from);
    file.due = status.due.as_ref().map(|due| {
        let accusers = due
            .accusers
            .iter()
            .map(|accuser| (NodeName(accuser.node.clone()), accuser.rule.clone()))
            .collect();
        let held = due.held.iter().map(|scope| brake_of(scope.brake, scope.of.as_ref())).collect();
        Arc::new(Due { at: due.at.into(), passed: due.passed, accusers, held })
    });
    file.release_due =
        status.release_due.map(|due| Box::new(ReleaseDue { at: due.at.into(), passed: due.passed }));
    file.releases = status
        .releases
        .iter()
        .map(|release| StickyRelease {
            process: release.process.clone(),
            rule: release.rule.clone(),
            until: release.until,
            actor: release.by.clone(),
        })
        .collect();
    let decision = |entry: &kept::Decision| {
        let (at, app, kind) = (entry.at, app.clone(), entry.decision.known()?);
        let (actor, reason) = (Actor::named(&entry.actor), entry.reason.clone());
        Some(Arc::new(Decision { at, app, kind, actor, reason, dry_run: false }))
    };
    file.decisions = status.decisions.iter().filter_map(decision).collect();
    file.foreign =
        status.decisions.iter().filter(|entry| entry.decision.known().is_none()).cloned().collect();
    file.decided = status.decided;
    file.observed = status.observed;
    incident.cleared = status.cleared.map(cleared_ground);
    incident.omitted = count(status.evidence_omitted);
    incident.delivered = status.told.and_then(|told| {
        let wall = told.delivered?;
        // Where it is not known how long ago that was, it counts from now.
        Some(
            told.delivered_by_clock
                .map_or(Moment::new(now.uptime(), wall), |at| clock.moment(at.into(), wall)),
        )
    });
    hear_again(&mut incident, app, &status.evidence, snapshot, now);
    incident
}

/// What was heard of it. Nothing of it is fresh, and clearing clocks begin anew.
fn hear_again(
    incident: &mut Incident,
    app: &App,
    evidence: &[kept::Evidence],
    snapshot: &Snapshot,
    now: Moment,
) {
    let past = |wall: Timestamp| now.at_wall(wall.min(now.wall()));
    for evidence in evidence {
        let record = Arc::new(record(&app.namespace, evidence));
        let (key, node) = (record.key.clone(), NodeName(evidence.node.clone()));
        let mark = Reading {
            answered: snapshot.nodes.get(&node).map_or(Span::ZERO, |node| node.clock.odometer),
            unheard: snapshot.unheard(&key, &node).unwrap_or(Span::ZERO),
        };
        let ground = Ground {
            pod_uid: evidence.pod_uid.clone(),
            fresh_at: past(evidence.fresh_at),
            found_at: None,
            evidence_time: record.detected_at.into(),
            record,
            counted_from: now,
            mark,
            first_seen: evidence.first_seen.into(),
            observations: evidence.observations,
            scan_interval: evidence.scan_interval.map(|seconds| Duration::from_secs(seconds).into()),
            active: false,
            gone: evidence.cleared.as_ref().is_some_and(|cleared| !cleared.ended),
            kept: None,
        };
        match &evidence.cleared {
            Some(cleared) if cleared.ended => {
                let by = cleared_ground(cleared.by);
                let tombstone = Tombstone { ground, at: cleared.at.into(), by, is_kept: false };
                incident.tombstones.insert((key, node), tombstone);
            }
            _ => drop(incident.grounds.insert((key, node), ground)),
        }
    }
}
