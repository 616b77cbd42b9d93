//! One App's incident: what has come of it, and on what grounds.

pub(in crate::policy) mod accepted_evidence;
mod closing;
pub(in crate::policy) mod grace;
pub(in crate::policy) mod ranking;

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;

use self::accepted_evidence::{AcceptedEvidence, ClearingCause, Tombstone};
use self::grace::Grace;
use crate::Moment;
use crate::decision::Decision;
use crate::names::{App, Key, NodeName, Text};
use crate::plan::Exposure;
use crate::policy::window::{Due, ReleaseDue};
use crate::policy::{Brake, Policy};
use crate::report::Record;
use crate::snapshot::EvidenceView;
use crate::sorted_vec::{SortedVecMap, SortedVecSet};
use crate::state;
use crate::time::CompactTimestamp;

/// How many process names of an incident its tenant is told: a tenant can start processes of any number of names.
const MAX_PROCESSES: usize = 8;
/// How many decisions an incident keeps.
pub(in crate::policy) const MAX_DECISIONS: usize = 20;
/// How much cleared evidence an incident remembers: a tenant can start any number of processes.
const MAX_TOMBSTONES: usize = 64;

/// How many Services that were closed once are remembered, because a tenant can make any number.
const MAX_ONCE_CLOSED: usize = 1000;
/// How many earlier names of an App are remembered, and how many origins of its Pods.
pub(in crate::policy) const MAX_NAMES: usize = 8;

/// One node's word of one violation.
pub(in crate::policy) type EvidenceId = (Key, NodeName);

/// One App, from its first accepted evidence to its clearing.
///
/// What is heard of it changes with each scan, and is its own; what is decided of it is its file, which seldom changes.
#[derive(Clone, Debug)]
pub struct Incident {
    /// What it rests on. Each ground clears by the clock of its own node.
    pub(in crate::policy) accepted: SortedVecMap<EvidenceId, AcceptedEvidence>,
    /// Grounds that have cleared: the record may still be listed, and must not be believed again as it is.
    pub(in crate::policy) tombstones: SortedVecMap<EvidenceId, Tombstone>,
    /// By which rule its last ground cleared.
    pub(in crate::policy) cleared: Option<ClearingCause>,
    /// When what its tenant has been told last had been written. Not in the file: in a storm it would have to be copied for each App
    /// only to enter this.
    pub(in crate::policy) written_at: Option<Moment>,
    /// When its tenant had been told of [`File::grace`]. Stays when the tenant is told something else. Not in the file, as above.
    pub(in crate::policy) grace_written_at: Option<Moment>,
    /// How many accusations, at least, were not kept when this was persisted: their nodes may list them again.
    pub(in crate::policy) omitted: u32,
    /// When it was read it was blocked, although everything that was kept of it had cleared.
    pub(in crate::policy) had_cleared: bool,
    /// Since when its block waits for a direct read of its Pods. Reports of the watches are enough for a block to
    /// continue, but not to begin one. Boxed, because few incidents wait.
    pub(in crate::policy) read_wanted_since: Option<Box<Moment>>,
    /// Shared with what is in effect of it for as long as nothing else is decided.
    persisted: Arc<PersistedIncident>,
}

/// What is decided of an incident, and what is known of its App. Boxed is what few have.
#[derive(Clone, Debug)]
pub struct PersistedIncident {
    /// When it opened.
    pub opened: Moment,
    /// What has come of it.
    pub phase: Phase,
    /// The names of its processes. They only grow, so that what the tenant is told does not change back and forth.
    pub(in crate::policy) processes: SortedVecSet<Text>,
    /// Why it is blocked, as of when that was decided.
    pub(in crate::policy) reason: Text,
    /// An operator has approved its block.
    pub(in crate::policy) approved: bool,
    /// What its tenant has been told last.
    pub(in crate::policy) notification: Option<SentNotification>,
    /// The last grace that has begun. Stays when its accusations clear, and when the App is blocked.
    pub(in crate::policy) grace: Option<Box<Grace>>,
    /// How it is reached, as last known: not knowing it for a while is no reason to open or close anything.
    pub(in crate::policy) exposure: Arc<Exposure>,
    /// What made its accused Pods, as `Kind/name`.
    pub(in crate::policy) origins: SortedVecSet<Text>,
    /// What the brakes have counted of it: the window's entry of this App.
    pub(in crate::policy) due: Option<Arc<Due>>,
    /// The last decisions, the latest last.
    pub(in crate::policy) decisions: Vec<Arc<Decision>>,
    /// How many decisions there have been.
    pub(in crate::policy) decided: u32,
    /// Up to which number operators' acts have been done.
    pub(in crate::policy) observed: i64,
    /// `None` if all its fields have their defaults.
    pub(in crate::policy) rare: Option<Box<RareFields>>,
}

/// The fields of a [`File`] that have their defaults in most incidents. Allocated separately, so that those incidents take
/// less memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RareFields {
    /// The brake that holds its block. Stays through the end of the incident: coming back does not free it.
    pub(in crate::policy) held: Option<(Moment, Brake)>,
    /// It was blocked before anything was kept for this, and nothing has been heard of it since: not knowing its node, only
    /// the whole fleet's answers can prove that its processes are gone.
    pub(in crate::policy) inherited: Option<BTreeSet<Key>>,
    /// The brake's hold on its release.
    pub(in crate::policy) release_held: Option<Moment>,
    /// Services that were closed once and are not closed at the moment, ordered: if they are made again, or select no Pod
    /// any more, they are closed again.
    pub(in crate::policy) once_closed: Vec<Text>,
    /// Earlier names of the App, as far as known: what operators have said of these names counts.
    pub(in crate::policy) formerly: SortedVecSet<App>,
    /// What covers it, as last logged.
    pub(in crate::policy) exempted: Option<Box<str>>,
    /// Fingerprints of exemptions that are withheld: each would open this App and those of too many other tenants.
    pub(in crate::policy) withheld: Vec<Text>,
    /// What the brake on releases has counted of it: the window's entry of this App.
    pub(in crate::policy) release_due: Option<ReleaseDue>,
    /// What operators' releases cover.
    pub(in crate::policy) releases: Vec<StickyRelease>,
    /// Entries of the log with kinds that only another version knows.
    pub(in crate::policy) foreign: Vec<state::incident::IncidentDecision>,
}

/// The fields of a [`File`] without a [`Rare`].
static DEFAULT_RARE: LazyLock<RareFields> = LazyLock::new(RareFields::default);

/// What a tenant has been told, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) struct SentNotification {
    pub(in crate::policy) sent_at: CompactTimestamp,
    pub(in crate::policy) kind: NotificationKind,
    /// It had been written before the start.
    pub(in crate::policy) inherited: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) enum NotificationKind {
    Grace,
    Blocked,
    Recovered,
}

/// What has come of an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing yet: not due, or exempt.
    Watched,
    /// The tenant is told, and will be blocked.
    Grace {
        /// When.
        until: Moment,
    },
    /// A brake holds the block: only an approval blocks it.
    Held,
    /// Blocked.
    Blocked {
        /// Since when.
        since: Moment,
        /// Decided in dry-run, and so without effect.
        dry_run: bool,
    },
    /// Over. Kept for a while, because offending again continues it.
    Ended {
        /// Since when.
        at: Moment,
    },
}

/// An operator's release: sticks to the App, the process and the rule; to any of them where there are too many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::policy) struct StickyRelease {
    pub(in crate::policy) process: Option<Text>,
    pub(in crate::policy) rule: Option<Text>,
    pub(in crate::policy) until: Timestamp,
    /// The reading of the leader clock at which the time that the operator asked for has been measured. An earlier
    /// version persisted none.
    pub(in crate::policy) until_by_clock: Option<CompactTimestamp>,
    pub(in crate::policy) actor: Text,
}

impl SentNotification {
    /// To be told for the first time.
    pub(in crate::policy) fn first(what: NotificationKind, at: Timestamp) -> Self {
        Self { sent_at: at.into(), kind: what, inherited: false }
    }
}

impl StickyRelease {
    /// What an operator has said.
    pub(in crate::policy) fn declared(&self) -> (Option<&Text>, Option<&Text>, Timestamp, &Text) {
        (self.process.as_ref(), self.rule.as_ref(), self.until, &self.actor)
    }

    /// Whether it covers `record`; it does not look at `until`.
    pub(in crate::policy) fn covers(&self, record: &Record) -> bool {
        self.process.as_ref().is_none_or(|process| *process == record.key.process)
            && self.rule.as_ref().is_none_or(|rule| rule == record.rule())
    }
}

impl Deref for Incident {
    type Target = PersistedIncident;

    fn deref(&self) -> &PersistedIncident {
        &self.persisted
    }
}

impl Deref for PersistedIncident {
    type Target = RareFields;

    fn deref(&self) -> &RareFields {
        self.rare.as_deref().unwrap_or(&DEFAULT_RARE)
    }
}

impl PersistedIncident {
    /// Replaces the rare fields. Allocates nothing if all have their defaults.
    pub(in crate::policy) fn set_rare(&mut self, rare: RareFields) {
        self.rare = (rare != *DEFAULT_RARE).then(|| Box::new(rare));
    }

    /// Returns the rare fields, to set one. Allocates them if the file has none.
    pub(in crate::policy) fn rare_mut(&mut self) -> &mut RareFields {
        self.rare.get_or_insert_default()
    }

    /// Resets rare fields to their defaults by `reset`, which is not called if all have them already.
    pub(in crate::policy) fn reset_rare(&mut self, reset: impl FnOnce(&mut RareFields)) {
        if let Some(mut rare) = self.rare.take() {
            reset(&mut rare);
            self.rare = Some(rare).filter(|rare| **rare != *DEFAULT_RARE);
        }
    }

    /// What the brakes have counted of it.
    pub(in crate::policy) fn set_window_entries(
        &mut self,
        (due, release): (Option<Arc<Due>>, Option<ReleaseDue>),
    ) {
        self.due = due;
        if self.release_due != release {
            self.rare_mut().release_due = release;
        }
    }

    /// Whether that Service is closed or was once.
    pub(in crate::policy) fn has_closed(&self, service: &Text) -> bool {
        let is_in = |services: &[Text]| services.binary_search(service).is_ok();
        is_in(&self.exposure.services) || is_in(&self.once_closed)
    }

    /// Sets what is closed from now on.
    pub(in crate::policy) fn close(&mut self, exposure: Exposure) {
        let is_in = |services: &[Text], service: &Text| services.binary_search(service).is_ok();
        // Also one that is left open because it is shared: it is closed again when it selects no Pod any more.
        let goes = |service: &&Text| !is_in(&exposure.services, service);
        // The first ones stay, so that a tenant can't push them out by making others.
        let closed = self.once_closed.iter().chain(&self.exposure.services).filter(goes);
        let mut closed: Vec<Text> = closed.take(MAX_ONCE_CLOSED).cloned().collect();
        closed.sort_unstable();
        closed.dedup();
        if *closed != *self.once_closed {
            self.rare_mut().once_closed = closed;
        }
        self.exposure = Arc::new(exposure);
    }

    /// Notes an earlier name of the App.
    pub(in crate::policy) fn note_name(&mut self, name: App) {
        if self.formerly.len() < MAX_NAMES {
            self.rare_mut().formerly.insert(name);
        }
    }

    /// The brake that holds its release.
    pub(in crate::policy) fn holds_release(&self) -> Option<Brake> {
        self.release_held?;
        let is_gone = self.release_due.as_ref().is_some_and(|due| due.proven && !due.passed);
        Some(if is_gone { Brake::Gone } else { Brake::Releases })
    }

    /// The name under which the incident of `app` is kept.
    pub(in crate::policy) fn name(&self, app: &App) -> String {
        state::incident::name(app, self.opened.wall())
    }

    pub(in crate::policy) fn new(opened: Moment) -> Self {
        Self {
            opened,
            phase: Phase::Watched,
            processes: SortedVecSet::default(),
            reason: Text::from(""),
            approved: false,
            notification: None,
            grace: None,
            exposure: Arc::default(),
            origins: SortedVecSet::default(),
            due: None,
            decisions: Vec::new(),
            decided: 0,
            observed: 0,
            rare: None,
        }
    }
}

impl Incident {
    pub(in crate::policy) fn new(opened: Moment) -> Self {
        Self {
            accepted: SortedVecMap::default(),
            tombstones: SortedVecMap::default(),
            cleared: None,
            written_at: None,
            grace_written_at: None,
            omitted: 0,
            had_cleared: false,
            read_wanted_since: None,
            persisted: Arc::new(PersistedIncident::new(opened)),
        }
    }

    /// To enter something into its file. Makes a copy of it, if it is still the one that is in effect: so nothing is entered
    /// that is there already.
    pub(in crate::policy) fn persisted_mut(&mut self) -> &mut PersistedIncident {
        Arc::make_mut(&mut self.persisted)
    }

    /// Its file as it is now. What is entered later is not in it.
    pub(in crate::policy) fn share_persisted(&self) -> Arc<PersistedIncident> {
        self.persisted.clone()
    }

    /// Whether nothing has been entered since `file` was shared.
    pub(in crate::policy) fn has_persisted(&self, file: &Arc<PersistedIncident>) -> bool {
        Arc::ptr_eq(&self.persisted, file)
    }

    /// Takes back all that has been entered since `file` was shared. What has been heard stays.
    pub(in crate::policy) fn restore_persisted(
        &mut self,
        file: Arc<PersistedIncident>,
        [written_at, grace_written_at]: [Option<Moment>; 2],
    ) {
        (self.persisted, self.written_at, self.grace_written_at) = (file, written_at, grace_written_at);
    }

    pub(in crate::policy) fn set_phase(&mut self, standing: Phase) {
        self.persisted_mut().phase = standing;
    }

    /// The name under which it is kept.
    pub fn name(&self, app: &App) -> String {
        self.persisted.name(app)
    }

    /// Up to which number operators' acts have been done.
    pub fn observed(&self) -> i64 {
        self.observed
    }

    /// Why, for people: its first ground, and how many more there are.
    pub(in crate::policy) fn accusation(&self) -> String {
        let Some(((key, node), accepted)) = self.accepted.iter().min_by_key(|(_, accepted)| !accepted.active)
        else {
            return "no accusation is left".to_owned();
        };
        let record = &accepted.record;
        let by = if record.regex.is_empty() {
            "a keyword of its command line".to_owned()
        } else {
            format!("rule `{}`", record.regex.escape_debug())
        };
        let more = match self.accepted.len() {
            1 => String::new(),
            n => format!(" (and {} more)", n - 1),
        };
        format!(
            "process `{}` in Pod {} matches {by} on node {}, as of {}{more}",
            key.process.escape_debug(),
            key.pod,
            node.0.escape_debug(),
            record.timestamp.escape_debug(),
        )
    }

    pub(in crate::policy) fn note_process(&mut self, process: &Text) {
        if self.processes.len() < MAX_PROCESSES && !self.processes.contains(process) {
            self.persisted_mut().processes.insert(process.clone());
        }
    }

    /// Sets what its tenant is to be told from now on.
    pub(in crate::policy) fn notify(&mut self, told: SentNotification) {
        self.persisted_mut().notification = Some(told);
        if told.kind != NotificationKind::Recovered {
            self.written_at = None;
        }
    }

    /// Notes that the Notification that tells the tenant something as of `at` had been written by `now`. Returns true if it
    /// is the warning of a running grace: the grace counts from then, so something may be decided. Does nothing if
    /// something else was told last, or if this is noted already.
    pub(in crate::policy) fn note_written(&mut self, at: CompactTimestamp, now: Moment) -> bool {
        if self.written_at.is_some() || self.notification.is_none_or(|told| told.sent_at != at) {
            return false;
        }
        self.written_at = Some(now);
        let is_warned = matches!(self.phase, Phase::Grace { .. })
            && self.notification.is_some_and(|told| told.kind == NotificationKind::Grace);
        if is_warned {
            self.grace_written_at.get_or_insert(now);
        }
        is_warned
    }

    /// Since when its tenant has been waiting for news.
    pub(in crate::policy) fn waiting_since(&self, policy: &Policy) -> Moment {
        match (self.notification, self.phase) {
            (Some(_), Phase::Blocked { since, .. }) => since,
            (Some(_), Phase::Grace { until }) => {
                Moment::new(until.uptime().saturating_sub(policy.grace), until.wall())
            }
            // Its tenant has been told nothing of this incident yet.
            _ => self.opened,
        }
    }

    /// Enters a decision into its log.
    pub(in crate::policy) fn log_decision(&mut self, decision: &Decision) {
        let file = self.persisted_mut();
        if file.decisions.len() == MAX_DECISIONS {
            file.decisions.remove(0);
        }
        // Most have one or two.
        if file.decisions.len() < 2 {
            file.decisions.reserve_exact(1);
        }
        file.decisions.push(Arc::new(decision.clone()));
        file.decided = file.decided.saturating_add(1);
    }

    /// Whether `evidence` is still listed as it was when it cleared: of an earlier Pod, for example.
    pub(in crate::policy) fn has_tombstone(
        &self,
        id: &EvidenceId,
        evidence: &EvidenceView,
        fresh_at: Moment,
    ) -> bool {
        self.tombstones.get(id).is_some_and(|buried| buried.evidence.knows(evidence, fresh_at))
    }

    /// A ground has cleared. The oldest that is remembered gives way.
    pub(in crate::policy) fn add_tombstone(
        &mut self,
        id: EvidenceId,
        mut accepted: AcceptedEvidence,
        by: ClearingCause,
        at: Timestamp,
    ) {
        accepted.drop_cmdline();
        if self.tombstones.len() >= MAX_TOMBSTONES {
            let oldest = self.tombstones.iter().min_by_key(|(_, tombstone)| tombstone.at);
            if let Some(oldest) = oldest.map(|(id, _)| id.clone()) {
                self.tombstones.remove(&oldest);
            }
        }
        self.tombstones.insert(id, Tombstone { evidence: accepted, at: at.into(), by, is_persisted: false });
    }

    /// Notes that its state is persisted: if it has ended, what its release waited for does not count when it begins again.
    pub(in crate::policy) fn note_end(&mut self) {
        if matches!(self.phase, Phase::Ended { .. }) {
            (self.omitted, self.had_cleared) = (0, false);
        }
    }

    /// Whether its release waits for the answers of all nodes, including those that never accused it.
    pub(in crate::policy) fn waits_for_all(&self) -> bool {
        self.inherited.is_some() || self.omitted > 0 || self.had_cleared
    }

    /// What it is for, where no ground is left: what has cleared, else what it was inherited with, else the App as such.
    pub(in crate::policy) fn last_records(&self, app: &App) -> Vec<Arc<Record>> {
        if !self.tombstones.is_empty() {
            return self.tombstones.values().map(|tombstone| tombstone.evidence.record.clone()).collect();
        }
        let nothing = Key::new(app.namespace.clone(), "", "");
        let keys = self.inherited.iter().flat_map(|keys| keys.iter()).cloned();
        let mut records: Vec<Arc<Record>> = keys.map(|key| Arc::new(Record::of(key))).collect();
        if records.is_empty() {
            records.push(Arc::new(Record::of(nothing)));
        }
        records
    }

    /// All that it is accused of is covered.
    pub(in crate::policy) fn excuse(&mut self, why: String, now: Moment) {
        let is_watched = self.phase == Phase::Watched && !self.accepted.is_empty();
        let is_covered_as_before = is_watched && self.exempted.as_deref() == Some(&*why);
        if is_covered_as_before && self.release_held.is_none() && !self.approved {
            return;
        }
        let file = self.persisted_mut();
        let rare = file.rare_mut();
        (rare.exempted, rare.release_held) = (Some(why.into()), None);
        // What was approved is covered now. When it is covered no longer, the brakes and the grace come first again.
        file.approved = false;
        if self.accepted.is_empty() {
            self.end(now);
        } else {
            self.set_phase(Phase::Watched);
        }
    }

    pub(in crate::policy) fn end(&mut self, now: Moment) {
        let file = self.persisted_mut();
        // What was approved was this offence. Another one is asked about again.
        file.approved = false;
        file.phase = Phase::Ended { at: now };
        file.reset_rare(|rare| (rare.release_held, rare.exempted) = (None, None));
    }
}

pub(in crate::policy) fn released_by(actor: &str, until: Timestamp) -> String {
    format!("released by {} until {until}", actor.escape_debug())
}
