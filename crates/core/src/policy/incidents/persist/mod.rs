//! Converts the book to documents and back: what is kept of each incident, and which incidents differ from what is
//! kept.
//!
//! Kept is what a restart must not forget. Not kept is what is heard again within a round, or only counts while it lasts: which
//! evidence is fresh at this moment, disputes, the readings of odometers. Moments are kept by the wall clock and get back a
//! reading of the monotonic clock when they are read (see [`Moment::at_wall`]).

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
use crate::state::incident as kept;
use crate::time::CompactTimestamp;

pub(in crate::policy) use self::clocks::ClockWritten;
pub(in crate::policy) use self::read::record;
pub use self::read::remembered;
use self::read::{dates, order, reading, restored};
use self::write::document;

/// How far the kept time of the last evidence may lag behind. Agents bring fresh evidence with each scan, and keeping
/// each would cost a write per App and scan.
const EVIDENCE_REFRESH: Duration = Duration::from_hours(1);

/// The part of an incident that is in effect. A later decision has no effect until it is kept.
///
/// What had been heard by then is not copied: each ground and tombstone notes what is kept of it, and the counts tell
/// whether one has gone.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Committed {
    persisted: Arc<PersistedIncident>,
    cleared: Option<ClearingCause>,
    written_at: Option<Moment>,
    /// Boxed, because few incidents have a grace.
    grace_written_at: Option<Box<Moment>>,
    accepted: u32,
    tombstones: u32,
    /// The incident as it was, if it had ended: evidence that reopens it may have to be taken back.
    ended: Option<Box<Incident>>,
    /// Whether it is known to be kept in this form.
    is_persisted: bool,
}

impl Committed {
    /// The incident as it is now, not known to be kept.
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

    /// The incident as it is now, after it was kept.
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

/// How many seconds the kept scan interval of an agent may be shorter than the learned one. Most agents scan more often than
/// this, so their intervals are kept only when something else is.
const INTERVAL_SLACK_SECONDS: u32 = 60;

/// How many incidents are written at once of which only the evidence is newer.
const MAX_REFRESHES_AT_ONCE: usize = 50;

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Incidents {
    /// Restores the book from what was kept. It is as certain as it was then, but no evidence is fresh, and clearing
    /// clocks start anew. `snapshot` has the readings of the nodes' odometers.
    pub fn restore(documents: &[kept::Incident], snapshot: &Snapshot, now: Moment) -> Self {
        Self::default().restore_again(documents, snapshot, now)
    }

    /// Like [`Book::restore`], in the process that has led with this book without interruption until now: the time that
    /// it has measured since the last write counts.
    #[must_use]
    pub fn restore_again(&self, documents: &[kept::Incident], snapshot: &Snapshot, now: Moment) -> Self {
        let newest = documents.iter().filter_map(|document| reading(&document.status)).max();
        let clock = LeaderClock::restored(newest.map(CompactTimestamp::from), now);
        let dates = dates(documents, now);
        let written = ClockWritten::new(&clock, &dates);
        let (clock, dates) = (self.clock.or_later(clock, now), self.dates.clone().or(dates));
        let mut incidents = Self { clock, dates, written_clocks: written, ..Self::default() };
        let mut documents: Vec<&kept::Incident> = documents.iter().collect();
        // Only the latest incident of an App counts, so it has to come last. Of two that are equally late, the one that
        // has its own name counts.
        documents.sort_by_cached_key(|document| (order(&document.status), has_own_name(document)));
        for document in documents {
            let app = App::from(&document.spec.app);
            let mut incident = restored(&app, &document.status, snapshot, &clock, now);
            let is_kept = has_own_name(document);
            if !is_kept {
                // Operators' acts are numbered for each object, so the numbers of another object say nothing here.
                let own = incidents.by_app.get(&app).filter(|known| known.name(&app) == incident.name(&app));
                incident.persisted_mut().observed = own.map_or(0, Incident::observed);
            }
            incidents.window.restore(
                &app,
                incident.persisted.due.as_ref(),
                incident.persisted.rare().release_due,
            );
            // An incident that was read from an object of another name is written at once under its own name.
            let effective = Committed { is_persisted: is_kept, ..Committed::persisted(&mut incident) };
            incidents.committed.insert(app.clone(), effective);
            incidents.by_app.insert(app, incident);
        }
        incidents
    }

    /// The Apps whose incidents differ from what is kept. Those that are or were blocked come first, because blocks and
    /// releases wait for these writes. Last come a limited number of incidents of which only the evidence is newer than
    /// what is kept, those with the oldest kept evidence first, and one if the persisted clocks are outdated: no decision
    /// waits for these.
    pub fn dirty(&self) -> Vec<App> {
        let (mut unsaved, mut refreshes) = (Vec::new(), Vec::new());
        let mut effective = OrderedLookups::new(&self.committed);
        for (app, incident) in &self.by_app {
            match effective.get(app) {
                Some(before) if !is_persisted_by(incident, before) => unsaved.push((app, incident)),
                Some(_) => refreshes.extend(oldest_outdated_evidence(incident).map(|since| (since, app))),
                None => unsaved.push((app, incident)),
            }
        }
        refreshes.sort_unstable();
        let is_urgent = |app: &App, incident: &Incident| {
            let is_blocked = |file: &PersistedIncident| matches!(file.phase, Phase::Blocked { .. });
            is_blocked(&incident.persisted)
                || self.committed.get(app).is_some_and(|before| is_blocked(&before.persisted))
        };
        unsaved.sort_by_key(|(app, incident)| !is_urgent(app, incident));
        let refreshes = refreshes.into_iter().take(MAX_REFRESHES_AT_ONCE).map(|(_, app)| app);
        let unsaved: Vec<App> = unsaved.into_iter().map(|(app, _)| app).chain(refreshes).cloned().collect();
        let for_clocks = self.to_write_for_clocks().filter(|app| !unsaved.contains(app)).cloned();
        unsaved.into_iter().chain(for_clocks).collect()
    }

    /// The document to keep for the incident of `app`.
    pub fn document(&self, app: &App) -> Option<kept::Incident> {
        self.by_app.get(app).map(|incident| document(app, incident, &self.clock, &self.dates))
    }

    /// The documents that [`Book::document`] returned for `apps` have been kept. The incidents may not have changed
    /// since.
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

    /// The documents that [`Book::document`] returned for `apps` could not be kept. Their decisions, which had no
    /// effect, are taken back, and are made anew on evidence of a later moment. What has been heard stays.
    pub fn roll_back<'a>(&mut self, apps: impl IntoIterator<Item = &'a App>) {
        let mut is_new_failure = false;
        for app in apps {
            let Some(now) = self.by_app.get_mut(app) else { continue };
            is_new_failure |= self.committed.get(app).is_some_and(|before| before.is_persisted);
            match self.committed.get(app) {
                Some(Committed { persisted: file, ended: over, written_at, grace_written_at, .. })
                    if file.opened == now.persisted.opened =>
                {
                    match over {
                        Some(over) => now.clone_from(over),
                        None => now.restore_persisted(
                            file.clone(),
                            [*written_at, grace_written_at.as_deref().copied()],
                        ),
                    }
                }
                // The incident before this one has ended, but operators' releases and a brake's hold go on.
                known => {
                    let mut anew = PersistedIncident::new(now.persisted.opened);
                    if let Some(Committed { persisted: before, .. }) = known {
                        anew.outlast(before);
                    }
                    now.restore_persisted(Arc::new(anew), [None, None]);
                }
            }
            // A write whose answer was lost may have succeeded, so the incident is written again in any case.
            self.committed.insert(app.clone(), Committed::not_persisted(now));
        }
        if is_new_failure {
            self.note_failed_write();
        }
    }

    /// Incidents for whose names `is_gone` returns true are no longer kept: they have to be written again.
    pub fn mark_deleted(&mut self, is_gone: impl Fn(&str) -> bool) {
        for (app, effective) in &mut self.committed {
            effective.is_persisted &= !is_gone(&effective.persisted.name(app));
        }
    }

    /// The documents of all incidents.
    pub fn documents(&self) -> Vec<kept::Incident> {
        let document = |(app, incident): (&App, &Incident)| document(app, incident, &self.clock, &self.dates);
        self.by_app.iter().map(document).collect()
    }
}

/// Whether a document has the name under which the incident of its App is kept. A copy made by hand has another one.
fn has_own_name(document: &kept::Incident) -> bool {
    let kept::Incident { name, spec, status } = document;
    *name == kept::name(&App::from(&spec.app), status.opened)
}

/// How old the oldest kept evidence of `now` is that has to be written again, as its moment on the monotonic clock;
/// `None` if no evidence has to be.
fn oldest_outdated_evidence(now: &Incident) -> Option<Duration> {
    let kept = now.accepted.values().filter_map(|accepted| Some((accepted, accepted.persisted?)));
    let outdated = kept.filter(|(accepted, kept)| {
        let interval = accepted.longest_interval().map_or(0, seconds_of_interval);
        accepted.fresh_at.uptime().saturating_sub(kept.fresh_at.get()) >= EVIDENCE_REFRESH
            || interval.saturating_sub(kept.scan_interval) > INTERVAL_SLACK_SECONDS
            || accepted.hidden_for > kept.hidden_for
    });
    outdated.map(|(_, kept)| kept.fresh_at.get().saturating_add(kept.hidden_for.get())).min()
}

/// Whether `saved` is kept, and a restart would lose nothing that matters of `now`, but for newer evidence.
fn is_persisted_by(now: &Incident, saved: &Committed) -> bool {
    // Evidence that was seen again must be written, or a restart would still count it as hidden from before.
    // What covers an accusation decides whether it is among those that are written, if not all are.
    let are_all_written = now.accepted.len() <= MAX_EVIDENCE;
    let is_same = |accepted: &AcceptedEvidence, kept: PersistedEvidence| {
        kept.gone == accepted.gone
            && kept.hidden_for <= accepted.hidden_for
            && (are_all_written || kept.covered == accepted.covered)
    };
    let is_same_ground =
        |accepted: &AcceptedEvidence| accepted.persisted.is_some_and(|kept| is_same(accepted, kept));
    saved.is_persisted
        && count(now.accepted.len()) == saved.accepted
        && now.accepted.values().all(is_same_ground)
        && count(now.tombstones.len()) == saved.tombstones
        && now.tombstones.values().all(|tombstone| tombstone.is_persisted)
        && now.cleared == saved.cleared
        && now.written_at == saved.written_at
        && now.grace_written_at.as_ref() == saved.grace_written_at.as_deref()
        && (now.has_persisted(&saved.persisted) || is_part_persisted_by(&now.persisted, &saved.persisted))
}

/// Lists every field, so that the compiler asks about a new one.
fn is_part_persisted_by(now: &PersistedIncident, saved: &PersistedIncident) -> bool {
    let PersistedIncident {
        opened,
        phase: standing,
        processes,
        reason,
        hold,
        notification: told,
        grace,
        exposure,
        origins,
        due,
        // Counted by `decided`.
        decisions: _,
        decided,
        observed,
        // `is_rare_kept_by` compares it.
        rare: _,
    } = now;
    let told_of = |told: &Option<SentNotification>| told.map(|told| (told.sent_at, told.kind));
    opened == &saved.opened
        && standing == &saved.phase
        && decided == &saved.decided
        && observed == &saved.observed
        && processes == &saved.processes
        && reason == &saved.reason
        && hold == &saved.hold
        && told_of(told) == told_of(&saved.notification)
        && grace == &saved.grace
        && exposure == &saved.exposure
        && origins == &saved.origins
        && due == &saved.due
        && are_rare_fields_persisted_by(now.rare(), saved.rare())
}

/// Compares the rare fields for [`is_file_kept_by`]. Lists every field, so that the compiler asks about a new one.
fn are_rare_fields_persisted_by(now: &RareFields, saved: &RareFields) -> bool {
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
    inherited == &saved.inherited
        && once_closed == &saved.once_closed
        && formerly == &saved.formerly
        && exempted == &saved.exempted
        && withheld == &saved.withheld
        && release_due == &saved.release_due
        && releases.iter().map(StickyRelease::declared).eq(saved.releases.iter().map(StickyRelease::declared))
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
    fn a_file_that_differs_in_one_rare_field_is_written() {
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
            let mut file = none.clone();
            file.set_rare(rare.clone());
            assert!(is_part_persisted_by(&file, &file.clone()), "{field}");
            assert!(!is_part_persisted_by(&file, &none) && !is_part_persisted_by(&none, &file), "{field}");
            // Reset, it takes no memory any more.
            file.reset_rare(|it| *it = rare);
            assert!(file.rare.is_some(), "{field}");
            file.reset_rare(|it| *it = RareFields::default());
            assert!(file.rare.is_none() && is_part_persisted_by(&file, &none), "{field}");
        }
        let mut file = none.clone();
        file.set_rare(RareFields::default());
        file.reset_rare(|_| unreachable!());
        assert!(file.rare.is_none());
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
    fn what_was_persisted_of_an_incident_is_forgotten_with_it() {
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
