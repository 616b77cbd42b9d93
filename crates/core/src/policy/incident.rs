//! One App's incident: what has come of it, and on what grounds.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;

use super::book::released_by;
use super::evaluate::Pass;
use super::grace::Grace;
use super::ground::{ClearedGround, Ground, Tombstone};
use super::window::{Due, ReleaseDue};
use super::{Brake, Decision, Policy};
use crate::Moment;
use crate::few::{FewMap, FewSet};
use crate::moment::WallTime;
use crate::names::{App, Key, NodeName, Text};
use crate::plan::Exposure;
use crate::report::Record;
use crate::snapshot::EvidenceView;
use crate::state;

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
    pub(super) grounds: FewMap<EvidenceId, Ground>,
    /// Grounds that have cleared: the record may still be listed, and must not be believed again as it is.
    pub(super) tombstones: FewMap<EvidenceId, Tombstone>,
    /// By which rule its last ground cleared.
    pub(super) cleared: Option<ClearedGround>,
    /// When what its tenant has been told last had been written. Not in the file: in a storm it would have to be copied for each App
    /// only to enter this.
    pub(super) delivered: Option<Moment>,
    /// When its tenant had been told of [`File::grace`]. Stays when the tenant is told something else. Not in the file, as above.
    pub(super) grace_told: Option<Moment>,
    /// How many accusations, at least, were not kept when this was persisted: their nodes may list them again.
    pub(super) omitted: u32,
    /// When it was read it was blocked, although everything that was kept of it had cleared.
    pub(super) had_cleared: bool,
    /// Since when its block waits for a direct read of its Pods. Reports of the watches are enough for a block to
    /// continue, but not to begin one. Boxed, because few incidents wait.
    pub(super) wants_look: Option<Box<Moment>>,
    /// Shared with what is in effect of it for as long as nothing else is decided.
    file: Arc<File>,
}

/// What is decided of an incident, and what is known of its App. Boxed is what few have.
#[derive(Clone, Debug)]
pub struct File {
    /// When it opened.
    pub opened: Moment,
    /// What has come of it.
    pub standing: Standing,
    /// The names of its processes. They only grow, so that what the tenant is told does not change back and forth.
    pub(super) processes: FewSet<Text>,
    /// Why it is blocked, as of when that was decided.
    pub(super) reason: Text,
    /// An operator has approved its block.
    pub(super) approved: bool,
    /// What its tenant has been told last.
    pub(super) told: Option<Told>,
    /// The last grace that has begun. Stays when its accusations clear, and when the App is blocked.
    pub(super) grace: Option<Box<Grace>>,
    /// How it is reached, as last known: not knowing it for a while is no reason to open or close anything.
    pub(super) exposure: Arc<Exposure>,
    /// What made its accused Pods, as `Kind/name`.
    pub(super) origins: FewSet<Text>,
    /// What the brakes have counted of it: the window's entry of this App.
    pub(super) due: Option<Arc<Due>>,
    /// The last decisions, the latest last.
    pub(super) decisions: Vec<Arc<Decision>>,
    /// How many decisions there have been.
    pub(super) decided: u32,
    /// Up to which number operators' acts have been done.
    pub(super) observed: i64,
    /// `None` if all its fields have their defaults.
    pub(super) rare: Option<Box<Rare>>,
}

/// The fields of a [`File`] that have their defaults in most incidents. Allocated separately, so that those incidents take
/// less memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rare {
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
    pub(super) formerly: FewSet<App>,
    /// What covers it, as last logged.
    pub(super) exempted: Option<Box<str>>,
    /// Fingerprints of exemptions that are withheld: each would open this App and those of too many other tenants.
    pub(super) withheld: Vec<Text>,
    /// What the brake on releases has counted of it: the window's entry of this App.
    pub(super) release_due: Option<ReleaseDue>,
    /// What operators' releases cover.
    pub(super) releases: Vec<StickyRelease>,
    /// Entries of the log with kinds that only another version knows.
    pub(super) foreign: Vec<state::incident::Decision>,
}

/// The fields of a [`File`] without a [`Rare`].
static DEFAULT_RARE: LazyLock<Rare> = LazyLock::new(Rare::default);

/// What a tenant has been told, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) at: WallTime,
    pub(super) what: Telling,
    /// It had been written before the start.
    pub(super) inherited: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Telling {
    Grace,
    Blocked,
    Recovered,
}

/// What has come of an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
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
    pub(super) until_by_clock: Option<WallTime>,
    pub(super) actor: Text,
}

impl Told {
    /// To be told for the first time.
    pub(super) fn news(what: Telling, at: Timestamp) -> Self {
        Self { at: at.into(), what, inherited: false }
    }
}

impl StickyRelease {
    /// What an operator has said.
    pub(super) fn words(&self) -> (Option<&Text>, Option<&Text>, Timestamp, &Text) {
        (self.process.as_ref(), self.rule.as_ref(), self.until, &self.actor)
    }

    /// Whether it covers `record`; it does not look at `until`.
    pub(super) fn covers(&self, record: &Record) -> bool {
        self.process.as_ref().is_none_or(|process| *process == record.key.process)
            && self.rule.as_ref().is_none_or(|rule| rule == record.rule())
    }
}

impl Deref for Incident {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl Deref for File {
    type Target = Rare;

    fn deref(&self) -> &Rare {
        self.rare.as_deref().unwrap_or(&DEFAULT_RARE)
    }
}

impl File {
    /// Replaces the rare fields. Allocates nothing if all have their defaults.
    pub(super) fn set_rare(&mut self, rare: Rare) {
        self.rare = (rare != *DEFAULT_RARE).then(|| Box::new(rare));
    }

    /// Returns the rare fields, to set one. Allocates them if the file has none.
    pub(super) fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Resets rare fields to their defaults by `reset`, which is not called if all have them already.
    pub(super) fn reset_rare(&mut self, reset: impl FnOnce(&mut Rare)) {
        if let Some(mut rare) = self.rare.take() {
            reset(&mut rare);
            self.rare = Some(rare).filter(|rare| **rare != *DEFAULT_RARE);
        }
    }

    /// What the brakes have counted of it.
    pub(super) fn count(&mut self, (due, release): (Option<Arc<Due>>, Option<ReleaseDue>)) {
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
            standing: Standing::Watched,
            processes: FewSet::default(),
            reason: Text::from(""),
            approved: false,
            told: None,
            grace: None,
            exposure: Arc::default(),
            origins: FewSet::default(),
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
            grounds: FewMap::default(),
            tombstones: FewMap::default(),
            cleared: None,
            delivered: None,
            grace_told: None,
            omitted: 0,
            had_cleared: false,
            wants_look: None,
            file: Arc::new(File::new(opened)),
        }
    }

    /// To enter something into its file. Makes a copy of it, if it is still the one that is in effect: so nothing is entered
    /// that is there already.
    pub(super) fn file(&mut self) -> &mut File {
        Arc::make_mut(&mut self.file)
    }

    /// Its file as it is now. What is entered later is not in it.
    pub(super) fn share_file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Whether nothing has been entered since `file` was shared.
    pub(super) fn has_file(&self, file: &Arc<File>) -> bool {
        Arc::ptr_eq(&self.file, file)
    }

    /// Takes back all that has been entered since `file` was shared. What has been heard stays.
    pub(super) fn refile(&mut self, file: Arc<File>, [delivered, grace_told]: [Option<Moment>; 2]) {
        (self.file, self.delivered, self.grace_told) = (file, delivered, grace_told);
    }

    pub(super) fn stand(&mut self, standing: Standing) {
        self.file().standing = standing;
    }

    /// The name under which it is kept.
    pub fn name(&self, app: &App) -> String {
        self.file.name(app)
    }

    /// Up to which number operators' acts have been done.
    pub fn observed(&self) -> i64 {
        self.observed
    }

    /// Why, for people: its first ground, and how many more there are.
    pub(super) fn accusation(&self) -> String {
        let Some(((key, node), ground)) = self.grounds.iter().min_by_key(|(_, ground)| !ground.active) else {
            return "no accusation is left".to_owned();
        };
        let record = &ground.record;
        let by = if record.regex.is_empty() {
            "a keyword of its command line".to_owned()
        } else {
            format!("rule `{}`", record.regex.escape_debug())
        };
        let more = match self.grounds.len() {
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
            self.file().processes.insert(process.clone());
        }
    }

    /// Sets what its tenant is to be told from now on.
    pub(super) fn tell(&mut self, told: Told) {
        self.file().told = Some(told);
        if told.what != Telling::Recovered {
            self.delivered = None;
        }
    }

    /// Notes that the Notification that tells the tenant something as of `at` had been written by `now`. Returns true if it
    /// is the warning of a running grace: the grace counts from then, so something may be decided. Does nothing if
    /// something else was told last, or if this is noted already.
    pub(super) fn note_delivered(&mut self, at: WallTime, now: Moment) -> bool {
        if self.delivered.is_some() || self.told.is_none_or(|told| told.at != at) {
            return false;
        }
        self.delivered = Some(now);
        let is_warned = matches!(self.standing, Standing::Grace { .. })
            && self.told.is_some_and(|told| told.what == Telling::Grace);
        if is_warned {
            self.grace_told.get_or_insert(now);
        }
        is_warned
    }

    /// Since when its tenant has been waiting for news.
    pub(super) fn waits_since(&self, policy: &Policy) -> Moment {
        match (self.told, self.standing) {
            (Some(_), Standing::Blocked { since, .. }) => since,
            (Some(_), Standing::Grace { until }) => {
                Moment::new(until.uptime().saturating_sub(policy.grace), until.wall())
            }
            // Its tenant has been told nothing of this incident yet.
            _ => self.opened,
        }
    }

    /// Enters a decision into its log.
    pub(super) fn note(&mut self, decision: &Decision) {
        let file = self.file();
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
    pub(super) fn has_buried(&self, id: &EvidenceId, evidence: &EvidenceView, fresh_at: Moment) -> bool {
        self.tombstones.get(id).is_some_and(|buried| buried.ground.knows(evidence, fresh_at))
    }

    /// A ground has cleared. The oldest that is remembered gives way.
    pub(super) fn bury(&mut self, id: EvidenceId, mut ground: Ground, by: ClearedGround, at: Timestamp) {
        ground.drop_cmdline();
        if self.tombstones.len() >= MAX_TOMBSTONES {
            let oldest = self.tombstones.iter().min_by_key(|(_, tombstone)| tombstone.at);
            if let Some(oldest) = oldest.map(|(id, _)| id.clone()) {
                self.tombstones.remove(&oldest);
            }
        }
        self.tombstones.insert(id, Tombstone { ground, at: at.into(), by, is_kept: false });
    }

    /// Notes that its state is persisted: if it has ended, what its release waited for does not count when it begins again.
    pub(super) fn note_end(&mut self) {
        if matches!(self.standing, Standing::Ended { .. }) {
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
    pub(super) fn may_be_accused(&self, app: &App, pass: &Pass<'_>) -> bool {
        let is_heard_out = || self.tombstones.keys().all(|(_, node)| pass.snapshot.has_settled(node));
        // Its Pods may be replaced by others, on other nodes, and its tenant may be what makes the looks fail.
        let is_hidden = || pass.doubtful.contains(&app.namespace) && pass.facts.is_unreadable(&app.namespace);
        self.is_accused_anew(pass) || is_hidden() || (self.had_cleared && !is_heard_out())
    }

    fn is_accused_anew(&self, pass: &Pass<'_>) -> bool {
        !pass.unjudged.is_empty() && self.tombstones.keys().any(|id| pass.is_unjudged(id))
    }

    /// Whether a node that accuses it has new evidence of the same Pod that can't be judged yet.
    pub(super) fn has_unjudged(&self, pass: &Pass<'_>) -> bool {
        self.grounds.keys().any(|id| pass.is_unjudged(id))
    }

    /// What it is for, where no ground is left: what has cleared, else what it was inherited with, else the App as such.
    pub(super) fn last_records(&self, app: &App) -> Vec<Arc<Record>> {
        if !self.tombstones.is_empty() {
            return self.tombstones.values().map(|tombstone| tombstone.ground.record.clone()).collect();
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
        pass: &Pass<'_>,
    ) -> bool {
        let is_proven = |key: &Key, ground: &Ground| {
            let after = since.map_or(ground.fresh_at, |since| since.min(ground.fresh_at)).uptime();
            pass.facts.read_at(&key.pod_ref()).is_some_and(|read| read.uptime() >= after)
        };
        let mut grounds = self.grounds.iter().zip(excuses);
        !pass.policy.verify_pods
            || grounds.any(|(((key, _), ground), excuse)| {
                self.is_reason(ground, excuse.as_deref(), pass) && is_proven(key, ground)
            })
    }

    /// Whether `ground` justifies a new block. A ground that an exemption or a release covers does not. Neither does an
    /// old one, however seldom its node scans, unless an operator has approved the block.
    pub(super) fn is_reason(&self, ground: &Ground, excuse: Option<&str>, pass: &Pass<'_>) -> bool {
        let is_young = self.approved || ground.is_young(pass.policy.max_age, pass.now);
        ground.active && is_young && excuse.is_none()
    }

    /// The excuse of each ground, in order.
    pub(super) fn excuses(&self, app: &App, pass: &Pass<'_>) -> Vec<Option<String>> {
        if self.grounds.is_empty() && matches!(self.standing, Standing::Blocked { .. }) {
            // Blocked still, for what has cleared or was there before anything was kept.
            return self.last_records(app).iter().map(|record| self.excuse_of(app, record, pass)).collect();
        }
        self.grounds.values().map(|ground| self.excuse_of(app, &ground.record, pass)).collect()
    }

    /// What covers an accusation of `app`, whose incident this is; nothing if nothing does.
    pub(super) fn excuse_of(&self, app: &App, record: &Record, pass: &Pass<'_>) -> Option<String> {
        let is_blocked = matches!(self.standing, Standing::Blocked { .. });
        let excuse = self.excuse_while(is_blocked, app, record, pass);
        if is_blocked { excuse } else { excuse.or_else(|| self.excuse_by_earlier_name(record, pass)) }
    }

    /// What covers an accusation of `app` if that `is_blocked` or is not.
    pub(super) fn excuse_while(
        &self,
        is_blocked: bool,
        app: &App,
        record: &Record,
        pass: &Pass<'_>,
    ) -> Option<String> {
        let exemptions = pass.policy.exemptions.iter().zip(&pass.exemptions);
        let mut in_force = exemptions.filter(|(_, force)| force.covers(is_blocked));
        if let Some((exemption, _)) = in_force.find(|(exemption, _)| exemption.covers(app, record)) {
            return Some(format!("exempted: {}", exemption.reason));
        }
        let is_in_force =
            |release: &StickyRelease| pass.dates.force(release.until, pass.now).covers(is_blocked);
        let release = self.releases.iter().find(|release| release.covers(record) && is_in_force(release));
        release.map(|release| released_by(&release.actor, release.until))
    }

    /// The exemption or release that covers an accusation by an earlier name of the App. It only prevents new blocks:
    /// if it opened a block, a tenant could do that by changing labels.
    fn excuse_by_earlier_name(&self, record: &Record, pass: &Pass<'_>) -> Option<String> {
        let exemptions = || pass.policy.exemptions.iter().zip(&pass.exemptions);
        let of = |name: &App| {
            let mut in_force = exemptions().filter(|(_, force)| force.covers(false));
            if let Some((exemption, _)) = in_force.find(|(exemption, _)| exemption.covers(name, record)) {
                return Some(format!("exempted: {}; as App {name}, its name before", exemption.reason));
            }
            let mut releases = pass.released.get(name).into_iter().flatten();
            let release = releases.find(|release| {
                release.covers(record) && pass.dates.force(release.until, pass.now).covers(false)
            })?;
            Some(format!("{}; as App {name}, its name before", released_by(&release.actor, release.until)))
        };
        self.formerly.iter().find_map(of)
    }

    /// All that it is accused of is covered.
    pub(super) fn excuse(&mut self, why: String, now: Moment) {
        let is_watched = self.standing == Standing::Watched && !self.grounds.is_empty();
        let is_covered_as_before = is_watched && self.exempted.as_deref() == Some(&*why);
        if is_covered_as_before && self.release_held.is_none() && !self.approved {
            return;
        }
        let file = self.file();
        let rare = file.rare_mut();
        (rare.exempted, rare.release_held) = (Some(why.into()), None);
        // What was approved is covered now. When it is covered no longer, the brakes and the grace come first again.
        file.approved = false;
        if self.grounds.is_empty() {
            self.end(now);
        } else {
            self.stand(Standing::Watched);
        }
    }

    pub(super) fn end(&mut self, now: Moment) {
        let file = self.file();
        // What was approved was this offence. Another one is asked about again.
        file.approved = false;
        file.standing = Standing::Ended { at: now };
        file.reset_rare(|rare| (rare.release_held, rare.exempted) = (None, None));
    }
}
