//! One App's incident: its phase, and the accepted evidence for it.

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

/// Of how many process names of an incident its tenant is notified, because a tenant can start processes of any
/// number of names.
const MAX_PROCESSES: usize = 8;
/// How many decisions the log of an incident has at most.
pub(in crate::policy) const MAX_DECISIONS: usize = 20;
/// How many tombstones an incident has at most, because a tenant can start any number of processes.
const MAX_TOMBSTONES: usize = 64;

/// Identifies one node's evidence of one violation.
pub(in crate::policy) type EvidenceId = (Key, NodeName);

/// One App, from its first accepted evidence to its clearing.
///
/// Its evidence changes with each scan. Its persisted part has the decisions and seldom changes.
#[derive(Clone, Debug)]
pub struct Incident {
    /// Its accepted evidence. Each piece clears by the clock of its own node.
    pub(in crate::policy) accepted: SortedVecMap<EvidenceId, AcceptedEvidence>,
    /// Evidence that has cleared. An agent may still list the record, and the record must not be believed again as it
    /// is.
    pub(in crate::policy) tombstones: SortedVecMap<EvidenceId, Tombstone>,
    /// By which rule its last evidence cleared.
    pub(in crate::policy) cleared: Option<ClearingCause>,
    /// When the last notification of its tenant had been written. Not in the persisted part: in a storm that part
    /// would have to be copied for each App only to enter this.
    pub(in crate::policy) written_at: Option<Moment>,
    /// When the warning of [`PersistedIncident::grace`] had been written. It stays when the tenant is notified of
    /// something else. Not in the persisted part, for the same reason.
    pub(in crate::policy) grace_written_at: Option<Moment>,
    /// How many accusations, at least, were not persisted. Their nodes may list them again.
    pub(in crate::policy) omitted: u32,
    /// It was blocked when it was restored, although all its persisted evidence had cleared.
    pub(in crate::policy) had_cleared: bool,
    /// Since when its block waits for a direct read of its Pods. Reports of the watches let a block continue, but not
    /// begin. Boxed, because few incidents wait.
    pub(in crate::policy) read_wanted_since: Option<Box<Moment>>,
    /// Shared with the committed part for as long as nothing else is decided.
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

    /// Returns the persisted part to change it. Copies the part if it is still the committed one, so call this only
    /// for a real change.
    pub(in crate::policy) fn persisted_mut(&mut self) -> &mut PersistedIncident {
        Arc::make_mut(&mut self.persisted)
    }

    /// The persisted part as it is now. Later changes are not in it.
    pub(in crate::policy) fn share_persisted(&self) -> Arc<PersistedIncident> {
        self.persisted.clone()
    }

    /// Whether nothing has been changed since `persisted` was shared.
    pub(in crate::policy) fn is_unchanged_since(&self, persisted: &Arc<PersistedIncident>) -> bool {
        Arc::ptr_eq(&self.persisted, persisted)
    }

    /// Rolls back all changes since `persisted` was shared. The evidence stays.
    pub(in crate::policy) fn roll_back_to(
        &mut self,
        persisted: Arc<PersistedIncident>,
        [written_at, grace_written_at]: [Option<Moment>; 2],
    ) {
        (self.persisted, self.written_at, self.grace_written_at) = (persisted, written_at, grace_written_at);
    }

    pub(in crate::policy) fn set_phase(&mut self, phase: Phase) {
        self.persisted_mut().phase = phase;
    }

    /// Whether its App is blocked.
    pub fn is_blocked(&self) -> bool {
        matches!(self.phase(), Phase::Blocked { .. })
    }

    /// Its phase.
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

    /// The number of the last operator command that has been done.
    pub fn observed(&self) -> i64 {
        self.persisted.observed
    }

    /// The earliest time of the fresh evidence that accuses the App now. `None` if nothing accuses it now.
    pub fn accused_since(&self) -> Option<Moment> {
        self.accepted
            .iter()
            .filter(|(_, accepted)| accepted.active)
            .map(|(_, accepted)| accepted.fresh_at)
            .min()
    }

    /// The accusation, for people: its first accepted evidence, and how many more pieces there are.
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

    /// Sets what its tenant is to be notified of from now on.
    pub(in crate::policy) fn notify(&mut self, notification: SentNotification) {
        self.persisted_mut().notification = Some(notification);
        if notification.kind != NotificationKind::Recovered {
            self.written_at = None;
        }
    }

    /// Notes that the notification with `sent_at` equal to `at` had been written by `now`. Returns true if it is the
    /// warning of a running grace. The grace counts from then, so a decision may follow. Does nothing if a later
    /// notification was decided, or if this is noted already.
    pub(in crate::policy) fn note_written(&mut self, at: CompactTimestamp, now: Moment) -> bool {
        if self.written_at.is_some() || self.persisted.notification.is_none_or(|sent| sent.sent_at != at) {
            return false;
        }
        self.written_at = Some(now);
        let is_warned = matches!(self.phase(), Phase::Grace { .. })
            && self.persisted.notification.is_some_and(|sent| sent.kind == NotificationKind::Grace);
        if is_warned {
            self.grace_written_at.get_or_insert(now);
        }
        is_warned
    }

    /// Since when its tenant has been waiting for a notification.
    pub(in crate::policy) fn waiting_since(&self, policy: &Policy) -> Moment {
        match (self.persisted.notification, self.phase()) {
            (Some(_), Phase::Blocked { since, .. }) => since,
            (Some(_), Phase::Grace { until }) => {
                Moment::new(until.uptime().saturating_sub(policy.grace), until.wall())
            }
            // Its tenant has not been notified of this incident yet.
            _ => self.persisted.opened,
        }
    }

    /// Enters a decision into its log.
    pub(in crate::policy) fn log_decision(&mut self, decision: &Decision) {
        let persisted = self.persisted_mut();
        if persisted.decisions.len() == MAX_DECISIONS {
            persisted.decisions.remove(0);
        }
        // Most have one or two.
        if persisted.decisions.len() < 2 {
            persisted.decisions.reserve_exact(1);
        }
        persisted.decisions.push(Arc::new(decision.clone()));
        persisted.decided = persisted.decided.saturating_add(1);
    }

    /// Whether `evidence` is still listed as it was when it cleared, for example because it is about an earlier Pod.
    pub(in crate::policy) fn has_tombstone(
        &self,
        id: &EvidenceId,
        evidence: &EvidenceView,
        fresh_at: Moment,
    ) -> bool {
        self.tombstones.get(id).is_some_and(|tombstone| tombstone.evidence.knows(evidence, fresh_at))
    }

    /// Adds a tombstone for evidence that has cleared. Beyond the limit the oldest tombstone is dropped.
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

    /// Notes that its state is persisted. If it has ended, what its release waited for does not count when it begins
    /// again.
    pub(in crate::policy) fn note_end(&mut self) {
        if matches!(self.phase(), Phase::Ended { .. }) {
            (self.omitted, self.had_cleared) = (0, false);
        }
    }

    /// Whether its release waits for the answers of all nodes, including those that never accused the App.
    pub(in crate::policy) fn waits_for_all(&self) -> bool {
        self.persisted.rare().inherited.is_some() || self.omitted > 0 || self.had_cleared
    }

    /// What it is for if no accepted evidence is left: its tombstones, else the violations of the inherited block,
    /// else the App as such.
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

    /// Ends a brake's hold on its release, because the App is accused again.
    pub(in crate::policy) fn resume_block(&mut self) {
        if let Phase::Blocked { since, dry_run, release_held: Some(_) } = self.phase() {
            self.set_phase(Phase::Blocked { since, dry_run, release_held: None });
        }
    }

    /// Ends or pauses the incident, because all accusations are covered.
    pub(in crate::policy) fn note_covered(&mut self, why: String, now: Moment) {
        let is_watched = self.phase() == Phase::Watched && !self.accepted.is_empty();
        let is_covered_as_before = is_watched && self.persisted.rare().exempted.as_deref() == Some(&*why);
        if is_covered_as_before && !self.persisted.hold.is_approved() {
            return;
        }
        let persisted = self.persisted_mut();
        persisted.rare_mut().exempted = Some(why.into());
        // The approved offence is covered now. Once it is covered no longer, the brakes and the grace apply again.
        persisted.hold.end_approval();
        if self.accepted.is_empty() {
            self.end(now);
        } else {
            self.set_phase(Phase::Watched);
        }
    }

    pub(in crate::policy) fn end(&mut self, now: Moment) {
        let persisted = self.persisted_mut();
        // The approval was for this offence. Another offence needs another one.
        persisted.hold.end_approval();
        persisted.phase = Phase::Ended { at: now };
        persisted.reset_rare(|rare| rare.exempted = None);
    }
}
