//! One App's incident: what has come of it, and on what grounds.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;

use super::accepted_evidence::{AcceptedEvidence, ClearingCause, Tombstone};
use super::evaluate::EvaluationContext;
use super::grace::Grace;
use super::incidents::released_by;
use super::window::{Due, ReleaseDue};
use super::{Brake, Policy};
use crate::Moment;
use crate::decision::Decision;
use crate::names::{App, Key, NodeName, Text};
use crate::plan::Exposure;
use crate::report::Record;
use crate::snapshot::EvidenceView;
use crate::sorted_vec::{SortedVecMap, SortedVecSet};
use crate::state;
use crate::time::CompactTimestamp;

/// How many process names of an incident its tenant is told: a tenant can start processes of any number of names.
const MAX_PROCESSES: usize = 8;
/// How many decisions an incident keeps.
pub(super) const MAX_DECISIONS: usize = 20;
/// How much cleared evidence an incident remembers: a tenant can start any number of processes.
const MAX_TOMBSTONES: usize = 64;

/// How many Services that were closed once are remembered, because a tenant can make any number.
const MAX_ONCE_CLOSED: usize = 1000;
/// How many earlier names of an App are remembered, and how many origins of its Pods.
pub(super) const MAX_NAMES: usize = 8;

/// One node's word of one violation.
pub(super) type EvidenceId = (Key, NodeName);

/// One App, from its first accepted evidence to its clearing.
///
/// What is heard of it changes with each scan, and is its own; what is decided of it is its file, which seldom changes.
#[derive(Clone, Debug)]
pub struct Incident {
    /// What it rests on. Each ground clears by the clock of its own node.
    pub(super) accepted: SortedVecMap<EvidenceId, AcceptedEvidence>,
    /// Grounds that have cleared: the record may still be listed, and must not be believed again as it is.
    pub(super) tombstones: SortedVecMap<EvidenceId, Tombstone>,
    /// By which rule its last ground cleared.
    pub(super) cleared: Option<ClearingCause>,
    /// When what its tenant has been told last had been written. Not in the file: in a storm it would have to be copied for each App
    /// only to enter this.
    pub(super) written_at: Option<Moment>,
    /// When its tenant had been told of [`File::grace`]. Stays when the tenant is told something else. Not in the file, as above.
    pub(super) grace_written_at: Option<Moment>,
    /// How many accusations, at least, were not kept when this was persisted: their nodes may list them again.
    pub(super) omitted: u32,
    /// When it was read it was blocked, although everything that was kept of it had cleared.
    pub(super) had_cleared: bool,
    /// Since when its block waits for a direct read of its Pods. Reports of the watches are enough for a block to
    /// continue, but not to begin one. Boxed, because few incidents wait.
    pub(super) read_wanted_since: Option<Box<Moment>>,
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
    pub(super) processes: SortedVecSet<Text>,
    /// Why it is blocked, as of when that was decided.
    pub(super) reason: Text,
    /// An operator has approved its block.
    pub(super) approved: bool,
    /// What its tenant has been told last.
    pub(super) notification: Option<SentNotification>,
    /// The last grace that has begun. Stays when its accusations clear, and when the App is blocked.
    pub(super) grace: Option<Box<Grace>>,
    /// How it is reached, as last known: not knowing it for a while is no reason to open or close anything.
    pub(super) exposure: Arc<Exposure>,
    /// What made its accused Pods, as `Kind/name`.
    pub(super) origins: SortedVecSet<Text>,
    /// What the brakes have counted of it: the window's entry of this App.
    pub(super) due: Option<Arc<Due>>,
    /// The last decisions, the latest last.
    pub(super) decisions: Vec<Arc<Decision>>,
    /// How many decisions there have been.
    pub(super) decided: u32,
    /// Up to which number operators' acts have been done.
    pub(super) observed: i64,
    /// `None` if all its fields have their defaults.
    pub(super) rare: Option<Box<RareFields>>,
}

/// The fields of a [`File`] that have their defaults in most incidents. Allocated separately, so that those incidents take
/// less memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RareFields {
    /// The brake that holds its block. Stays through the end of the incident: coming back does not free it.
    pub(super) held: Option<(Moment, Brake)>,
    /// It was blocked before anything was kept for this, and nothing has been heard of it since: not knowing its node, only
    /// the whole fleet's answers can prove that its processes are gone.
    pub(super) inherited: Option<BTreeSet<Key>>,
    /// The brake's hold on its release.
    pub(super) release_held: Option<Moment>,
    /// Services that were closed once and are not closed at the moment, ordered: if they are made again, or select no Pod
    /// any more, they are closed again.
    pub(super) once_closed: Vec<Text>,
    /// Earlier names of the App, as far as known: what operators have said of these names counts.
    pub(super) formerly: SortedVecSet<App>,
    /// What covers it, as last logged.
    pub(super) exempted: Option<Box<str>>,
    /// Fingerprints of exemptions that are withheld: each would open this App and those of too many other tenants.
    pub(super) withheld: Vec<Text>,
    /// What the brake on releases has counted of it: the window's entry of this App.
    pub(super) release_due: Option<ReleaseDue>,
    /// What operators' releases cover.
    pub(super) releases: Vec<StickyRelease>,
    /// Entries of the log with kinds that only another version knows.
    pub(super) foreign: Vec<state::incident::IncidentDecision>,
}

/// The fields of a [`File`] without a [`Rare`].
static DEFAULT_RARE: LazyLock<RareFields> = LazyLock::new(RareFields::default);

/// What a tenant has been told, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SentNotification {
    pub(super) sent_at: CompactTimestamp,
    pub(super) kind: NotificationKind,
    /// It had been written before the start.
    pub(super) inherited: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotificationKind {
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
pub(super) struct StickyRelease {
    pub(super) process: Option<Text>,
    pub(super) rule: Option<Text>,
    pub(super) until: Timestamp,
    /// The reading of the leader clock at which the time that the operator asked for has been measured. An earlier
    /// version persisted none.
    pub(super) until_by_clock: Option<CompactTimestamp>,
    pub(super) actor: Text,
}

impl SentNotification {
    /// To be told for the first time.
    pub(super) fn first(what: NotificationKind, at: Timestamp) -> Self {
        Self { sent_at: at.into(), kind: what, inherited: false }
    }
}

impl StickyRelease {
    /// What an operator has said.
    pub(super) fn declared(&self) -> (Option<&Text>, Option<&Text>, Timestamp, &Text) {
        (self.process.as_ref(), self.rule.as_ref(), self.until, &self.actor)
    }

    /// Whether it covers `record`; it does not look at `until`.
    pub(super) fn covers(&self, record: &Record) -> bool {
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
    pub(super) fn set_rare(&mut self, rare: RareFields) {
        self.rare = (rare != *DEFAULT_RARE).then(|| Box::new(rare));
    }

    /// Returns the rare fields, to set one. Allocates them if the file has none.
    pub(super) fn rare_mut(&mut self) -> &mut RareFields {
        self.rare.get_or_insert_default()
    }

    /// Resets rare fields to their defaults by `reset`, which is not called if all have them already.
    pub(super) fn reset_rare(&mut self, reset: impl FnOnce(&mut RareFields)) {
        if let Some(mut rare) = self.rare.take() {
            reset(&mut rare);
            self.rare = Some(rare).filter(|rare| **rare != *DEFAULT_RARE);
        }
    }

    /// What the brakes have counted of it.
    pub(super) fn set_window_entries(&mut self, (due, release): (Option<Arc<Due>>, Option<ReleaseDue>)) {
        self.due = due;
        if self.release_due != release {
            self.rare_mut().release_due = release;
        }
    }

    /// Whether that Service is closed or was once.
    pub(super) fn has_closed(&self, service: &Text) -> bool {
        let is_in = |services: &[Text]| services.binary_search(service).is_ok();
        is_in(&self.exposure.services) || is_in(&self.once_closed)
    }

    /// Sets what is closed from now on.
    pub(super) fn close(&mut self, exposure: Exposure) {
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
    pub(super) fn note_name(&mut self, name: App) {
        if self.formerly.len() < MAX_NAMES {
            self.rare_mut().formerly.insert(name);
        }
    }

    /// The brake that holds its release.
    pub(super) fn holds_release(&self) -> Option<Brake> {
        self.release_held?;
        let is_gone = self.release_due.as_ref().is_some_and(|due| due.proven && !due.passed);
        Some(if is_gone { Brake::Gone } else { Brake::Releases })
    }

    /// The name under which the incident of `app` is kept.
    pub(super) fn name(&self, app: &App) -> String {
        state::incident::name(app, self.opened.wall())
    }

    pub(super) fn new(opened: Moment) -> Self {
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
    pub(super) fn new(opened: Moment) -> Self {
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
    pub(super) fn persisted_mut(&mut self) -> &mut PersistedIncident {
        Arc::make_mut(&mut self.persisted)
    }

    /// Its file as it is now. What is entered later is not in it.
    pub(super) fn share_persisted(&self) -> Arc<PersistedIncident> {
        self.persisted.clone()
    }

    /// Whether nothing has been entered since `file` was shared.
    pub(super) fn has_persisted(&self, file: &Arc<PersistedIncident>) -> bool {
        Arc::ptr_eq(&self.persisted, file)
    }

    /// Takes back all that has been entered since `file` was shared. What has been heard stays.
    pub(super) fn restore_persisted(
        &mut self,
        file: Arc<PersistedIncident>,
        [written_at, grace_written_at]: [Option<Moment>; 2],
    ) {
        (self.persisted, self.written_at, self.grace_written_at) = (file, written_at, grace_written_at);
    }

    pub(super) fn set_phase(&mut self, standing: Phase) {
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
    pub(super) fn accusation(&self) -> String {
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

    pub(super) fn note_process(&mut self, process: &Text) {
        if self.processes.len() < MAX_PROCESSES && !self.processes.contains(process) {
            self.persisted_mut().processes.insert(process.clone());
        }
    }

    /// Sets what its tenant is to be told from now on.
    pub(super) fn notify(&mut self, told: SentNotification) {
        self.persisted_mut().notification = Some(told);
        if told.kind != NotificationKind::Recovered {
            self.written_at = None;
        }
    }

    /// Notes that the Notification that tells the tenant something as of `at` had been written by `now`. Returns true if it
    /// is the warning of a running grace: the grace counts from then, so something may be decided. Does nothing if
    /// something else was told last, or if this is noted already.
    pub(super) fn note_written(&mut self, at: CompactTimestamp, now: Moment) -> bool {
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
    pub(super) fn waiting_since(&self, policy: &Policy) -> Moment {
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
    pub(super) fn log_decision(&mut self, decision: &Decision) {
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
    pub(super) fn has_tombstone(&self, id: &EvidenceId, evidence: &EvidenceView, fresh_at: Moment) -> bool {
        self.tombstones.get(id).is_some_and(|buried| buried.evidence.knows(evidence, fresh_at))
    }

    /// A ground has cleared. The oldest that is remembered gives way.
    pub(super) fn add_tombstone(
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
    pub(super) fn note_end(&mut self) {
        if matches!(self.phase, Phase::Ended { .. }) {
            (self.omitted, self.had_cleared) = (0, false);
        }
    }

    /// Whether its release waits for the answers of all nodes, including those that never accused it.
    pub(super) fn waits_for_all(&self) -> bool {
        self.inherited.is_some() || self.omitted > 0 || self.had_cleared
    }

    /// Whether `app`, whose incident this is, may be accused again by what can't be judged yet: a node whose accusation has
    /// cleared accuses the same Pod, perhaps of another process, or any node accuses any Pod of a namespace that can't be
    /// looked at; or that may have been so before the start.
    pub(super) fn may_be_accused(&self, app: &App, context: &EvaluationContext<'_>) -> bool {
        let is_heard_out = || self.tombstones.keys().all(|(_, node)| context.snapshot.has_settled(node));
        // Its Pods may be replaced by others, on other nodes, and its tenant may be what makes the looks fail.
        let is_hidden =
            || context.doubtful.contains(&app.namespace) && context.facts.is_unreadable(&app.namespace);
        self.is_accused_anew(context) || is_hidden() || (self.had_cleared && !is_heard_out())
    }

    fn is_accused_anew(&self, context: &EvaluationContext<'_>) -> bool {
        !context.unjudged.is_empty() && self.tombstones.keys().any(|id| context.is_unjudged(id))
    }

    /// Whether a node that accuses it has new evidence of the same Pod that can't be judged yet.
    pub(super) fn has_unjudged(&self, context: &EvaluationContext<'_>) -> bool {
        self.accepted.keys().any(|id| context.is_unjudged(id))
    }

    /// What it is for, where no ground is left: what has cleared, else what it was inherited with, else the App as such.
    pub(super) fn last_records(&self, app: &App) -> Vec<Arc<Record>> {
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

    /// Whether the Pod of an accusation that justifies a new block was read directly after the accusation. A report of a
    /// watch is not enough. `since` is when the block began to wait for that read.
    pub(super) fn is_proven(
        &self,
        excuses: &[Option<String>],
        since: Option<Moment>,
        context: &EvaluationContext<'_>,
    ) -> bool {
        let is_proven = |key: &Key, accepted: &AcceptedEvidence| {
            let after = since.map_or(accepted.fresh_at, |since| since.min(accepted.fresh_at)).uptime();
            context.facts.read_at(&key.pod_ref()).is_some_and(|read| read.uptime() >= after)
        };
        let mut accepted = self.accepted.iter().zip(excuses);
        !context.policy.verify_pods
            || accepted.any(|(((key, _), accepted), excuse)| {
                self.justifies_block(accepted, excuse.as_deref(), context) && is_proven(key, accepted)
            })
    }

    /// Whether `ground` justifies a new block. A ground that an exemption or a release covers does not. Neither does an
    /// old one, however seldom its node scans, unless an operator has approved the block.
    pub(super) fn justifies_block(
        &self,
        accepted: &AcceptedEvidence,
        excuse: Option<&str>,
        context: &EvaluationContext<'_>,
    ) -> bool {
        let is_young = self.approved || accepted.is_young(context.policy.max_age, context.now);
        accepted.active && is_young && excuse.is_none()
    }

    /// The excuse of each ground, in order.
    pub(super) fn excuses(&self, app: &App, context: &EvaluationContext<'_>) -> Vec<Option<String>> {
        if self.accepted.is_empty() && matches!(self.phase, Phase::Blocked { .. }) {
            // Blocked still, for what has cleared or was there before anything was kept.
            return self
                .last_records(app)
                .iter()
                .map(|record| self.excuse_of(app, record, context))
                .collect();
        }
        self.accepted.values().map(|accepted| self.excuse_of(app, &accepted.record, context)).collect()
    }

    /// What covers an accusation of `app`, whose incident this is; nothing if nothing does.
    pub(super) fn excuse_of(
        &self,
        app: &App,
        record: &Record,
        context: &EvaluationContext<'_>,
    ) -> Option<String> {
        let is_blocked = matches!(self.phase, Phase::Blocked { .. });
        let excuse = self.excuse_while(is_blocked, app, record, context);
        if is_blocked { excuse } else { excuse.or_else(|| self.excuse_by_earlier_name(record, context)) }
    }

    /// What covers an accusation of `app` if that `is_blocked` or is not.
    pub(super) fn excuse_while(
        &self,
        is_blocked: bool,
        app: &App,
        record: &Record,
        context: &EvaluationContext<'_>,
    ) -> Option<String> {
        let exemptions = context.policy.exemptions.iter().zip(&context.exemptions);
        let mut in_force = exemptions.filter(|(_, force)| force.covers(is_blocked));
        if let Some((exemption, _)) = in_force.find(|(exemption, _)| exemption.covers(app, record)) {
            return Some(format!("exempted: {}", exemption.reason));
        }
        let is_in_force =
            |release: &StickyRelease| context.dates.validity(release.until, context.now).covers(is_blocked);
        let release = self.releases.iter().find(|release| release.covers(record) && is_in_force(release));
        release.map(|release| released_by(&release.actor, release.until))
    }

    /// The exemption or release that covers an accusation by an earlier name of the App. It only prevents new blocks:
    /// if it opened a block, a tenant could do that by changing labels.
    fn excuse_by_earlier_name(&self, record: &Record, context: &EvaluationContext<'_>) -> Option<String> {
        let exemptions = || context.policy.exemptions.iter().zip(&context.exemptions);
        let of = |name: &App| {
            let mut in_force = exemptions().filter(|(_, force)| force.covers(false));
            if let Some((exemption, _)) = in_force.find(|(exemption, _)| exemption.covers(name, record)) {
                return Some(format!("exempted: {}; as App {name}, its name before", exemption.reason));
            }
            let mut releases = context.released.get(name).into_iter().flatten();
            let release = releases.find(|release| {
                release.covers(record) && context.dates.validity(release.until, context.now).covers(false)
            })?;
            Some(format!("{}; as App {name}, its name before", released_by(&release.actor, release.until)))
        };
        self.formerly.iter().find_map(of)
    }

    /// All that it is accused of is covered.
    pub(super) fn excuse(&mut self, why: String, now: Moment) {
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

    pub(super) fn end(&mut self, now: Moment) {
        let file = self.persisted_mut();
        // What was approved was this offence. Another one is asked about again.
        file.approved = false;
        file.phase = Phase::Ended { at: now };
        file.reset_rare(|rare| (rare.release_held, rare.exempted) = (None, None));
    }
}
