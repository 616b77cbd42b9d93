//! One App's incident: what has come of it, and on what grounds.

pub(in crate::policy) mod accepted_evidence;
mod closing;
pub(in crate::policy) mod grace;
mod notification;
mod persisted;
mod phase;
pub(in crate::policy) mod ranking;
mod release;

use std::sync::Arc;

use jiff::Timestamp;

use self::accepted_evidence::{AcceptedEvidence, ClearingCause, Tombstone};
pub(in crate::policy) use self::notification::{NotificationKind, SentNotification};
pub(in crate::policy) use self::persisted::PersistedIncident;
pub(in crate::policy) use self::persisted::{MAX_NAMES, RareFields};
pub(in crate::policy) use self::phase::Hold;
pub use self::phase::Phase;
pub(in crate::policy) use self::release::{StickyRelease, released_by};
use crate::Moment;
use crate::decision::Decision;
use crate::names::{App, Key, NodeName, Text};
use crate::policy::Policy;
use crate::report::Record;
use crate::snapshot::EvidenceView;
use crate::sorted_vec::SortedVecMap;
use crate::time::CompactTimestamp;

/// How many process names of an incident its tenant is told: a tenant can start processes of any number of names.
const MAX_PROCESSES: usize = 8;
/// How many decisions an incident keeps.
pub(in crate::policy) const MAX_DECISIONS: usize = 20;
/// How much cleared evidence an incident remembers: a tenant can start any number of processes.
const MAX_TOMBSTONES: usize = 64;

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
    pub(in crate::policy) persisted: Arc<PersistedIncident>,
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

    /// What has come of it.
    pub fn phase(&self) -> Phase {
        self.persisted.phase
    }

    /// When it opened.
    pub fn opened(&self) -> Moment {
        self.persisted.opened
    }

    /// The name under which it is persisted.
    pub fn name(&self, app: &App) -> String {
        self.persisted.name(app)
    }

    /// Up to which number operators' acts have been done.
    pub fn observed(&self) -> i64 {
        self.persisted.observed
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
        if self.persisted.processes.len() < MAX_PROCESSES && !self.persisted.processes.contains(process) {
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
        if self.written_at.is_some() || self.persisted.notification.is_none_or(|told| told.sent_at != at) {
            return false;
        }
        self.written_at = Some(now);
        let is_warned = matches!(self.phase(), Phase::Grace { .. })
            && self.persisted.notification.is_some_and(|told| told.kind == NotificationKind::Grace);
        if is_warned {
            self.grace_written_at.get_or_insert(now);
        }
        is_warned
    }

    /// Since when its tenant has been waiting for news.
    pub(in crate::policy) fn waiting_since(&self, policy: &Policy) -> Moment {
        match (self.persisted.notification, self.phase()) {
            (Some(_), Phase::Blocked { since, .. }) => since,
            (Some(_), Phase::Grace { until }) => {
                Moment::new(until.uptime().saturating_sub(policy.grace), until.wall())
            }
            // Its tenant has been told nothing of this incident yet.
            _ => self.persisted.opened,
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
        if matches!(self.phase(), Phase::Ended { .. }) {
            (self.omitted, self.had_cleared) = (0, false);
        }
    }

    /// Whether its release waits for the answers of all nodes, including those that never accused it.
    pub(in crate::policy) fn waits_for_all(&self) -> bool {
        self.persisted.rare().inherited.is_some() || self.omitted > 0 || self.had_cleared
    }

    /// What it is for, where no ground is left: what has cleared, else what it was inherited with, else the App as such.
    pub(in crate::policy) fn last_records(&self, app: &App) -> Vec<Arc<Record>> {
        if !self.tombstones.is_empty() {
            return self.tombstones.values().map(|tombstone| tombstone.evidence.record.clone()).collect();
        }
        let nothing = Key::new(app.namespace.clone(), "", "");
        let keys = self.persisted.rare().inherited.iter().flat_map(|keys| keys.iter()).cloned();
        let mut records: Vec<Arc<Record>> = keys.map(|key| Arc::new(Record::of(key))).collect();
        if records.is_empty() {
            records.push(Arc::new(Record::of(nothing)));
        }
        records
    }

    /// Ends a brake's hold on its release: it is accused again.
    pub(in crate::policy) fn resume_block(&mut self) {
        if let Phase::Blocked { since, dry_run, release_held: Some(_) } = self.phase() {
            self.set_phase(Phase::Blocked { since, dry_run, release_held: None });
        }
    }

    /// All that it is accused of is covered.
    pub(in crate::policy) fn excuse(&mut self, why: String, now: Moment) {
        let is_watched = self.phase() == Phase::Watched && !self.accepted.is_empty();
        let is_covered_as_before = is_watched && self.persisted.rare().exempted.as_deref() == Some(&*why);
        if is_covered_as_before && !self.persisted.hold.is_approved() {
            return;
        }
        let file = self.persisted_mut();
        file.rare_mut().exempted = Some(why.into());
        // What was approved is covered now. When it is covered no longer, the brakes and the grace come first again.
        file.hold.end_approval();
        if self.accepted.is_empty() {
            self.end(now);
        } else {
            self.set_phase(Phase::Watched);
        }
    }

    pub(in crate::policy) fn end(&mut self, now: Moment) {
        let file = self.persisted_mut();
        // What was approved was this offence. Another one is asked about again.
        file.hold.end_approval();
        file.phase = Phase::Ended { at: now };
        file.reset_rare(|rare| rare.exempted = None);
    }
}
