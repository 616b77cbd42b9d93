//! Converts incidents to documents and back, and finds the incidents that differ from their documents.
//!
//! Everything that a restart must not forget is persisted. What agents report again within a round is not persisted,
//! and neither is what counts only for the moment: fresh evidence, disputes, readings of odometers. Moments are
//! persisted by the wall clock. They get back a reading of the monotonic clock when they are read (see
//! [`Moment::at_wall`]).

mod clocks;
mod read;
mod write;

use std::sync::Arc;
use std::time::Duration;

use crate::Moment;
use crate::names::App;
use crate::ordered_lookups::OrderedLookups;
use crate::policy::incident::accepted_evidence::{
    AcceptedEvidence, ClearingCause, PersistedEvidence, seconds_of_interval,
};
use crate::policy::incident::ranking::MAX_EVIDENCE;
use crate::policy::incident::{
    Incident, PersistedIncident, Phase, RareFields, SentNotification, StickyRelease,
};
use crate::policy::incidents::Incidents;
use crate::policy::leader_clock::LeaderClock;
use crate::snapshot::Snapshot;
use crate::state::incident as document;
use crate::time::CompactTimestamp;

pub(in crate::policy) use self::clocks::ClockWritten;
pub(in crate::policy) use self::read::record;
pub use self::read::remembered;
use self::read::{dates, order, reading, restored};
use self::write::document;

/// How far the persisted time of the last evidence may lag behind. Agents bring fresh evidence with each scan, and
/// persisting each would cost a write per App and scan.
const EVIDENCE_REFRESH: Duration = Duration::from_hours(1);

/// The committed part of an incident. A later decision has no effect until it is persisted.
///
/// Evidence is not copied. Each piece and each tombstone notes what is persisted of it, and the counts show whether
/// one has gone.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Committed {
    persisted: Arc<PersistedIncident>,
    cleared: Option<ClearingCause>,
    written_at: Option<Moment>,
    /// Boxed, because few incidents have a grace.
    grace_written_at: Option<Box<Moment>>,
    accepted: u32,
    tombstones: u32,
    /// The incident as it was, if it had ended, because evidence that reopens it may have to be rolled back.
    ended: Option<Box<Incident>>,
    /// Whether it is known to be persisted in this form.
    is_persisted: bool,
}

impl Committed {
    /// The incident as it is now, not known to be persisted.
    pub(in crate::policy) fn not_persisted(incident: &Incident) -> Self {
        Self {
            persisted: incident.share_persisted(),
            cleared: incident.cleared,
            written_at: incident.written_at,
            grace_written_at: incident.grace_written_at.map(Box::new),
            accepted: count(incident.accepted.len()),
            tombstones: count(incident.tombstones.len()),
            ended: matches!(incident.phase(), Phase::Ended { .. }).then(|| Box::new(incident.clone())),
            is_persisted: false,
        }
    }

    /// The incident as it is now, after it was persisted.
    fn persisted(incident: &mut Incident) -> Self {
        incident.note_end();
        for (_, accepted) in incident.accepted.iter_mut() {
            accepted.note_persisted();
        }
        for (_, tombstone) in incident.tombstones.iter_mut() {
            tombstone.is_persisted = true;
        }
        Self { is_persisted: true, ..Self::not_persisted(incident) }
    }
}

/// How many seconds the persisted scan interval of an agent may be shorter than the learned one. Most agents scan
/// more often than this, so a change of their intervals alone causes no write.
const INTERVAL_SLACK_SECONDS: u32 = 60;

/// How many incidents are written at once of which only the evidence is newer.
const MAX_REFRESHES_AT_ONCE: usize = 50;

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Incidents {
    /// Restores the policy's state from documents. No evidence is fresh, and clearing clocks start anew. `snapshot`
    /// has the readings of the nodes' odometers.
    pub fn restore(documents: &[document::Incident], snapshot: &Snapshot, now: Moment) -> Self {
        Self::default().restore_again(documents, snapshot, now)
    }

    /// Like [`Incidents::restore`], in the process that has led with this state without interruption until now. The
    /// time that it has measured since the last write counts.
    #[must_use]
    pub fn restore_again(&self, documents: &[document::Incident], snapshot: &Snapshot, now: Moment) -> Self {
        let newest = documents.iter().filter_map(|document| reading(&document.status)).max();
        let clock = LeaderClock::restored(newest.map(CompactTimestamp::from), now);
        let dates = dates(documents, now);
        let written = ClockWritten::new(&clock, &dates);
        let (clock, dates) = (self.clock.or_later(clock, now), self.dates.clone().or(dates));
        let mut incidents = Self { clock, dates, written_clocks: written, ..Self::default() };
        let mut documents: Vec<&document::Incident> = documents.iter().collect();
        // Only the latest incident of an App counts, so it has to come last. Of two that are equally late, the one
        // that has its own name counts.
        documents.sort_by_cached_key(|document| (order(&document.status), has_own_name(document)));
        for document in documents {
            let app = App::from(&document.spec.app);
            let mut incident = restored(&app, &document.status, snapshot, &clock, now);
            let is_persisted = has_own_name(document);
            if !is_persisted {
                // Operator commands are numbered for each object, so the numbers of another object do not apply.
                let own = incidents.by_app.get(&app).filter(|known| known.name(&app) == incident.name(&app));
                incident.persisted_mut().observed = own.map_or(0, Incident::observed);
            }
            incidents.window.restore(
                &app,
                incident.persisted.due.as_ref(),
                incident.persisted.rare().release_due,
            );
            // An incident that was read from an object of another name is written at once under its own name.
            let committed = Committed { is_persisted, ..Committed::persisted(&mut incident) };
            incidents.committed.insert(app.clone(), committed);
            incidents.by_app.insert(app, incident);
        }
        incidents
    }

    /// The dirty Apps: those whose incidents differ from what is persisted. Apps that are or were blocked come first,
    /// because blocks and releases wait for these writes. Last come a limited number of incidents of which only the
    /// evidence is newer, those with the oldest persisted evidence first. One more comes if the persisted clocks are
    /// outdated. No decision waits for these.
    pub fn dirty(&self) -> Vec<App> {
        let (mut changed, mut refreshes) = (Vec::new(), Vec::new());
        let mut committed = OrderedLookups::new(&self.committed);
        for (app, incident) in &self.by_app {
            match committed.get(app) {
                Some(before) if !is_persisted_by(incident, before) => changed.push((app, incident)),
                Some(_) => refreshes.extend(oldest_outdated_evidence(incident).map(|since| (since, app))),
                None => changed.push((app, incident)),
            }
        }
        refreshes.sort_unstable();
        let is_urgent = |app: &App, incident: &Incident| {
            let is_blocked = |persisted: &PersistedIncident| matches!(persisted.phase, Phase::Blocked { .. });
            is_blocked(&incident.persisted)
                || self.committed.get(app).is_some_and(|before| is_blocked(&before.persisted))
        };
        changed.sort_by_key(|(app, incident)| !is_urgent(app, incident));
        let refreshes = refreshes.into_iter().take(MAX_REFRESHES_AT_ONCE).map(|(_, app)| app);
        let dirty: Vec<App> = changed.into_iter().map(|(app, _)| app).chain(refreshes).cloned().collect();
        let for_clocks = self.to_write_for_clocks().filter(|app| !dirty.contains(app)).cloned();
        dirty.into_iter().chain(for_clocks).collect()
    }

    /// The document to persist for the incident of `app`.
    pub fn document(&self, app: &App) -> Option<document::Incident> {
        self.by_app.get(app).map(|incident| document(app, incident, &self.clock, &self.dates))
    }

    /// Commits the decisions about `apps`: the documents that [`Incidents::document`] returned for them have been
    /// persisted. The incidents may not have changed since.
    pub fn commit<'a>(&mut self, apps: impl IntoIterator<Item = &'a App>) {
        for app in apps {
            if let Some(incident) = self.by_app.get_mut(app) {
                self.committed.insert(app.clone(), Committed::persisted(incident));
                self.written_clocks = ClockWritten::new(&self.clock, &self.dates);
            }
        }
        let mut incidents = OrderedLookups::new(&self.by_app);
        self.committed.retain(|app, _| incidents.get(app).is_some());
    }

    /// Rolls back the decisions about `apps`: the documents that [`Incidents::document`] returned for them could not
    /// be persisted. These decisions had no effect, and are made anew on evidence of a later moment. Evidence stays.
    pub fn roll_back<'a>(&mut self, apps: impl IntoIterator<Item = &'a App>) {
        let mut is_new_failure = false;
        for app in apps {
            let Some(now) = self.by_app.get_mut(app) else { continue };
            is_new_failure |= self.committed.get(app).is_some_and(|before| before.is_persisted);
            match self.committed.get(app) {
                Some(Committed { persisted, ended, written_at, grace_written_at, .. })
                    if persisted.opened == now.persisted.opened =>
                {
                    match ended {
                        Some(ended) => now.clone_from(ended),
                        None => now.roll_back_to(
                            persisted.clone(),
                            [*written_at, grace_written_at.as_deref().copied()],
                        ),
                    }
                }
                // The incident before this one has ended, but operators' releases and a brake's hold outlast it.
                known => {
                    let mut anew = PersistedIncident::new(now.persisted.opened);
                    if let Some(Committed { persisted: before, .. }) = known {
                        anew.take_over_from(before);
                    }
                    now.roll_back_to(Arc::new(anew), [None, None]);
                }
            }
            // A write whose answer was lost may have succeeded, so the incident is written again in any case.
            self.committed.insert(app.clone(), Committed::not_persisted(now));
        }
        if is_new_failure {
            self.note_failed_write();
        }
    }

    /// Marks incidents as not persisted whose objects have been deleted: those for whose names `is_gone` returns
    /// true. They are written again.
    pub fn mark_deleted(&mut self, is_gone: impl Fn(&str) -> bool) {
        for (app, committed) in &mut self.committed {
            committed.is_persisted &= !is_gone(&committed.persisted.name(app));
        }
    }

    /// The documents of all incidents.
    pub fn documents(&self) -> Vec<document::Incident> {
        let document = |(app, incident): (&App, &Incident)| document(app, incident, &self.clock, &self.dates);
        self.by_app.iter().map(document).collect()
    }
}

/// Whether a document has the name under which the incident of its App is persisted. A copy that an operator made has
/// another name.
fn has_own_name(document: &document::Incident) -> bool {
    let document::Incident { name, spec, status } = document;
    *name == document::name(&App::from(&spec.app), status.opened)
}

/// The moment, on the monotonic clock, of the oldest persisted evidence of `now` that has to be written again. `None`
/// if no evidence has to be.
fn oldest_outdated_evidence(now: &Incident) -> Option<Duration> {
    let persisted = now.accepted.values().filter_map(|accepted| Some((accepted, accepted.persisted?)));
    let outdated = persisted.filter(|(accepted, persisted)| {
        let interval = accepted.longest_interval().map_or(0, seconds_of_interval);
        accepted.fresh_at.uptime().saturating_sub(persisted.fresh_at.get()) >= EVIDENCE_REFRESH
            || interval.saturating_sub(persisted.scan_interval) > INTERVAL_SLACK_SECONDS
            || accepted.hidden_for > persisted.hidden_for
    });
    outdated.map(|(_, persisted)| persisted.fresh_at.get().saturating_add(persisted.hidden_for.get())).min()
}

/// Whether `committed` is persisted, and a restart would lose nothing of `now` that matters, except newer evidence.
fn is_persisted_by(now: &Incident, committed: &Committed) -> bool {
    // Evidence that was seen again must be written, because a restart would still count it as hidden from before. If
    // not all accusations are written, their covers decide which ones are, so covers must be current.
    let are_all_written = now.accepted.len() <= MAX_EVIDENCE;
    let is_same = |accepted: &AcceptedEvidence, persisted: PersistedEvidence| {
        persisted.gone == accepted.gone
            && persisted.hidden_for <= accepted.hidden_for
            && (are_all_written || persisted.covered == accepted.covered)
    };
    let is_written = |accepted: &AcceptedEvidence| {
        accepted.persisted.is_some_and(|persisted| is_same(accepted, persisted))
    };
    committed.is_persisted
        && count(now.accepted.len()) == committed.accepted
        && now.accepted.values().all(is_written)
        && count(now.tombstones.len()) == committed.tombstones
        && now.tombstones.values().all(|tombstone| tombstone.is_persisted)
        && now.cleared == committed.cleared
        && now.written_at == committed.written_at
        && now.grace_written_at.as_ref() == committed.grace_written_at.as_deref()
        && (now.is_unchanged_since(&committed.persisted)
            || is_part_persisted_by(&now.persisted, &committed.persisted))
}

/// Lists every field, so that the compiler asks about a new one.
fn is_part_persisted_by(now: &PersistedIncident, committed: &PersistedIncident) -> bool {
    let PersistedIncident {
        opened,
        phase,
        processes,
        reason,
        hold,
        notification,
        grace,
        exposure,
        origins,
        due,
        // Counted by `decided`.
        decisions: _,
        decided,
        observed,
        // `are_rare_fields_persisted_by` compares it.
        rare: _,
    } = now;
    let kind_and_time = |sent: &Option<SentNotification>| sent.map(|sent| (sent.sent_at, sent.kind));
    opened == &committed.opened
        && phase == &committed.phase
        && decided == &committed.decided
        && observed == &committed.observed
        && processes == &committed.processes
        && reason == &committed.reason
        && hold == &committed.hold
        && kind_and_time(notification) == kind_and_time(&committed.notification)
        && grace == &committed.grace
        && exposure == &committed.exposure
        && origins == &committed.origins
        && due == &committed.due
        && are_rare_fields_persisted_by(now.rare(), committed.rare())
}

/// Compares the rare fields for [`is_part_persisted_by`]. Lists every field, so that the compiler asks about a new
/// one.
fn are_rare_fields_persisted_by(now: &RareFields, committed: &RareFields) -> bool {
    let RareFields {
        inherited,
        once_closed,
        formerly,
        exempted,
        withheld,
        release_due,
        releases,
        // Never changes.
        foreign: _,
    } = now;
    inherited == &committed.inherited
        && once_closed == &committed.once_closed
        && formerly == &committed.formerly
        && exempted == &committed.exempted
        && withheld == &committed.withheld
        && release_due == &committed.release_due
        && releases
            .iter()
            .map(StickyRelease::declared)
            .eq(committed.releases.iter().map(StickyRelease::declared))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::names::Text;
    use crate::policy::window::ReleaseDue;

    fn now() -> Moment {
        Moment::new(Duration::from_hours(1), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_persisted_part_that_differs_in_one_rare_field_is_written() {
        let release = || StickyRelease {
            process: None,
            rule: None,
            until: Timestamp::UNIX_EPOCH,
            until_by_clock: None,
            actor: "ops".into(),
        };
        let due = || ReleaseDue { at: Timestamp::UNIX_EPOCH.into(), passed: true, proven: false };
        let texts = || vec![Text::from("web.ns-a.svc")];
        let all: [(&str, RareFields); 7] = [
            ("inherited", RareFields { inherited: Some([].into()), ..RareFields::default() }),
            ("once_closed", RareFields { once_closed: texts(), ..RareFields::default() }),
            (
                "formerly",
                RareFields {
                    formerly: [App::new("ns-a", "app", "web")].into_iter().collect(),
                    ..RareFields::default()
                },
            ),
            ("exempted", RareFields { exempted: Some("why".into()), ..RareFields::default() }),
            ("withheld", RareFields { withheld: texts(), ..RareFields::default() }),
            ("release_due", RareFields { release_due: Some(due()), ..RareFields::default() }),
            ("releases", RareFields { releases: vec![release()], ..RareFields::default() }),
        ];
        let none = PersistedIncident::new(now());
        for (field, rare) in all {
            let mut part = none.clone();
            part.set_rare(rare.clone());
            assert!(is_part_persisted_by(&part, &part.clone()), "{field}");
            assert!(!is_part_persisted_by(&part, &none) && !is_part_persisted_by(&none, &part), "{field}");
            // Rare fields that are reset take no memory.
            part.reset_rare(|it| *it = rare);
            assert!(part.rare.is_some(), "{field}");
            part.reset_rare(|it| *it = RareFields::default());
            assert!(part.rare.is_none() && is_part_persisted_by(&part, &none), "{field}");
        }
        let mut part = none.clone();
        part.set_rare(RareFields::default());
        part.reset_rare(|_| unreachable!());
        assert!(part.rare.is_none());
    }

    #[test]
    fn an_incident_that_has_ended_has_neither_a_held_release_nor_an_exemption() {
        let mut incident = Incident::new(now());
        incident.set_phase(Phase::Blocked { since: now(), dry_run: false, release_held: Some(now()) });
        incident.persisted_mut().rare_mut().exempted = Some("why".into());
        incident.end(now());
        assert_eq!(incident.persisted.holds_release(), None);
        assert_eq!(incident.persisted.rare().exempted, None);
    }

    #[test]
    fn the_committed_part_of_an_incident_is_forgotten_with_it() {
        let apps = ["a", "b", "c"].map(|name| App::new("ns-a", "app", name));
        let mut incidents = Incidents::default();
        for app in &apps {
            incidents.by_app.insert(app.clone(), Incident::new(now()));
        }
        assert_eq!(incidents.dirty(), apps);
        incidents.commit(&apps);
        assert!(incidents.dirty().is_empty());
        incidents.by_app.remove(&apps[1]);
        incidents.commit([]);
        assert!(incidents.committed.keys().eq([&apps[0], &apps[2]]));
    }
}
