//! The state of one node: how long it has answered, how often its agent scans, and its evidence.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::evidence::{ActiveFor, ViolationEvidence};
use super::steps::{Longest, MAX_INTERVAL, Steps};
use super::{ChangeKind, Detection, NodeChange};
use crate::Moment;
use crate::clearing::{NodeClock, Reading, SCANS_WITHOUT_EVIDENCE};
use crate::names::{Key, KeyRef, Text};
#[cfg(doc)]
use crate::report::Outcome;
use crate::report::{FailureReason, LeftOut, Rejections, Report};
use crate::snapshot::NodeView;
use crate::sorted_vec::SortedVecMap;
use crate::time::{CompactDuration, CompactTimestamp};

/// The last violation listed by an agent that lists one of several. Until the agent must have scanned again, its
/// answers are inconclusive about any other violation.
#[derive(Debug)]
struct Hiding {
    key: Arc<Key>,
    /// Until when it hides others, by the node's odometer.
    until: CompactDuration,
}

/// Since when a node gives only answers that can't be used.
#[derive(Clone, Copy, Debug)]
struct Unusable {
    since: Moment,
    is_noted: bool,
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "the flags are independent of each other")]
pub(super) struct Node {
    /// Answered time, in sum. Clearing clocks are differences of its readings.
    pub(super) odometer: CompactDuration,
    /// How much of it was inconclusive about one violation or another: the upper bound for all evidence. A violation
    /// that is forgotten and listed once more begins with it.
    pub(super) inconclusive: CompactDuration,
    /// One of its answers has listed two violations, so a violation that its answers lack is absent. Until then, the
    /// agent is assumed to list one of several, and not in turn.
    lists_several: bool,
    hiding: Option<Hiding>,
    /// Answered time since the agent may have restarted. A restarted agent answers `[]` until its first scan, so its
    /// answers in the first scan interval prove nothing.
    settled: CompactDuration,
    since: Moment,
    last_answer: Option<Moment>,
    /// When the last sign of an answer came, usable or not.
    last_sign: Moment,
    unusable: Option<Box<Unusable>>,
    /// The address of its last sign of life, unless that address has not answered since.
    answers_at: Option<Text>,
    listed_something: bool,
    /// The namespaces of records for which there was no room here: in the last whole answer, and in parts of answers
    /// since.
    no_room: Option<Box<LeftOut>>,
    /// The change that records are left out of its answers has been returned.
    leaves_out: bool,
    /// The last whole answer, or a part of an answer since, had an unusable record, and the agent may list one of
    /// several. So its answers are inconclusive about all violations.
    is_unclear: bool,
    /// The last steps between the newest timestamps of its answers.
    steps: Steps,
    /// The longest of these steps lately.
    longest: Longest,
    latest: Option<CompactTimestamp>,
    pub(super) evidence: SortedVecMap<Key, ViolationEvidence>,
    /// The bytes of its long command lines, counted as in [`super::totals`].
    pub(super) cmdline_bytes: usize,
    pub(super) rejected: Rejections,
    /// When the node has to be looked at because time has passed, by the monotonic clock.
    pub(super) deadline: Option<CompactDuration>,
}

impl Node {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            odometer: CompactDuration::ZERO,
            inconclusive: CompactDuration::ZERO,
            lists_several: false,
            hiding: None,
            settled: CompactDuration::ZERO,
            since: now,
            last_answer: None,
            last_sign: now,
            unusable: None,
            answers_at: None,
            listed_something: false,
            no_room: None,
            leaves_out: false,
            is_unclear: false,
            steps: Steps::default(),
            longest: Longest::default(),
            latest: None,
            evidence: SortedVecMap::default(),
            cmdline_bytes: 0,
            rejected: Rejections::default(),
            deadline: None,
        }
    }

    /// The reading for a violation of which nothing is known yet.
    pub(super) fn reading(&self) -> Reading {
        Reading { answered: self.odometer, inconclusive: self.inconclusive, before: CompactDuration::ZERO }
    }

    /// Notes whether a report is a sign of life, and whether it can be used. Returns a change when the answers could
    /// not be used for longer than `patience`, and when they can be used again.
    pub(super) fn note_sign(&mut self, report: &Report, patience: Duration) -> Option<NodeChange> {
        let address = &report.target.address;
        let reason = report.outcome.failure().map(|failure| failure.reason);
        if reason.is_some_and(FailureReason::is_silence) {
            self.note_silence(address, reason == Some(FailureReason::Refused));
            return None;
        }
        self.last_sign = self.last_sign.max(report.at);
        if self.answers_at.as_ref() != Some(address) {
            self.answers_at = Some(address.clone());
        }
        if reason.is_none() {
            let ended = self.unusable.take().filter(|unusable| unusable.is_noted);
            return ended.map(|_| NodeChange::UsableAgain);
        }
        let unusable =
            self.unusable.get_or_insert_with(|| Box::new(Unusable { since: report.at, is_noted: false }));
        if unusable.is_noted || report.at.since(unusable.since) <= patience {
            return None;
        }
        unusable.is_noted = true;
        Some(NodeChange::Unusable)
    }

    fn note_silence(&mut self, address: &Text, is_refused: bool) {
        let answers_elsewhere = self.answers_at.as_ref().is_some_and(|other| other != address);
        if !answers_elsewhere {
            self.answers_at = None;
        }
        // Nothing listens at this address, so the agent is down and will have restarted when it answers again, unless
        // it listens at another address.
        if is_refused && !answers_elsewhere {
            self.settled = CompactDuration::ZERO;
        }
    }

    /// Notes that only the addresses for which `is_asked` returns true are asked from now on.
    pub(super) fn note_addresses(&mut self, is_asked: impl Fn(&Text) -> bool) {
        self.answers_at.take_if(|address| !is_asked(address));
    }

    /// Notes a whole answer. It counts for the time since the last one, but for `gap` at most. Time that was not
    /// answered counts for nothing, however the failure showed. Returns the time that the answer adds to the odometer.
    ///
    /// `is_empty` is whether it lists no record; `None` if it is the same list as before.
    pub(super) fn answered(&mut self, at: Moment, is_empty: Option<bool>, gap: Duration) -> Duration {
        let credit = self.last_answer.map_or(Duration::ZERO, |last| at.since(last)).min(gap);
        self.last_answer = self.last_answer.max(Some(at));
        let is_empty = is_empty.unwrap_or(!self.listed_something);
        if is_empty && self.listed_something {
            // The upstream agent never removes a record from its list, so its restart looks like this.
            self.settled = CompactDuration::ZERO;
        }
        self.listed_something = !is_empty;
        let warm_up = self.interval();
        let before = self.settled.max(warm_up.into());
        self.settled = (self.settled.get() + credit).into();
        let added = self.settled.saturating_sub(before);
        self.odometer = (self.odometer.get() + added).into();
        added
    }

    /// Notes that an answer lists `count` violations, and that the agent may have found `recent` in its last scan.
    ///
    /// An agent that lists one of several hides the others for as long as that may have been its last scan. That is
    /// two of the longest steps between its scans, because steps differ, and the delay of its answers. The hiding
    /// ends at the latest when the listed violation itself clears.
    pub(super) fn note_listed(&mut self, count: usize, recent: Option<Key>, rules: &Detection) {
        self.lists_several |= count > 1;
        if self.lists_several {
            self.hiding = None;
            return;
        }
        let Some(key) = recent else { return };
        let longest = Some(self.longest.get().get()).filter(|longest| !longest.is_zero());
        let scans = longest.unwrap_or(MAX_INTERVAL).saturating_mul(2);
        let away = self.evidence.get(&key).map_or(CompactDuration::ZERO, ViolationEvidence::away);
        let wait = scans.saturating_add(rules.answer_gap).min(self.clock(rules).required_of(away));
        let until = self.odometer.get().saturating_add(wait).into();
        match &mut self.hiding {
            Some(hiding) if *hiding.key == key => hiding.until = until,
            hiding => *hiding = Some(Hiding { key: Arc::new(key), until }),
        }
    }

    /// Notes the omissions of an answer. There was no room for records of some namespaces, or a record that can't be
    /// used may have replaced another one.
    ///
    /// A part of an answer adds to the omissions of the last whole one, because the agent may repeat that one with
    /// [`Outcome::Unchanged`].
    pub(super) fn note_omissions(&mut self, mut no_room: LeftOut, mut is_unclear: bool, is_whole: bool) {
        if !is_whole {
            no_room.add(self.no_room.as_deref().unwrap_or(&LeftOut::default()));
            is_unclear |= self.is_unclear;
        }
        self.no_room = (!no_room.is_empty()).then(|| Box::new(no_room));
        self.is_unclear = is_unclear && !self.lists_several;
    }

    /// Notes whether records were left out of its last answer, by the agent or here. Returns a change when that
    /// begins, and when an answer that `is_whole` shows that it has ended.
    pub(super) fn note_left_out(&mut self, left_out: &LeftOut, is_whole: bool) -> Option<NodeChange> {
        /// How many namespaces are named.
        const NAMED: usize = 5;
        let leaves_out = !left_out.is_empty() || self.no_room.is_some();
        if leaves_out == self.leaves_out || !leaves_out && !is_whole {
            return None;
        }
        self.leaves_out = leaves_out;
        if !leaves_out {
            return Some(NodeChange::LeavesNothingOut);
        }
        let here = self.no_room.iter().flat_map(|no_room| no_room.namespaces());
        let namespaces: BTreeSet<Text> = left_out.namespaces().chain(here).take(NAMED).cloned().collect();
        Some(NodeChange::LeavesOut { namespaces: namespaces.into_iter().collect() })
    }

    /// Whether a violation that the agent lists may hide others.
    pub(super) fn may_hide(&self) -> bool {
        !self.lists_several
    }

    /// Counts `added`, which the last answer has added to the odometer, as inconclusive for each violation that the
    /// answer may have hidden or left out.
    pub(super) fn count_inconclusive(&mut self, added: Duration, left_out: &LeftOut) {
        let before = self.odometer.get().saturating_sub(added);
        let hidden = self
            .hiding
            .as_ref()
            .map_or(Duration::ZERO, |hiding| hiding.until.min(self.odometer).saturating_sub(before.into()));
        let no_room = self.no_room.as_deref();
        let is_whole = left_out.is_empty() && no_room.is_none() && !self.is_unclear;
        if hidden.is_zero() && is_whole {
            return;
        }
        let most = if is_whole { hidden } else { added };
        self.inconclusive = (self.inconclusive.get() + most).into();
        let hider = self.hiding.as_ref().map(|hiding| &*hiding.key);
        for (key, evidence) in self.evidence.iter_mut() {
            let may_be_omitted = self.is_unclear
                || left_out.concerns(&key.namespace)
                || no_room.is_some_and(|no_room| no_room.concerns(&key.namespace));
            if may_be_omitted {
                evidence.add_inconclusive(added);
            } else if hider != Some(key) {
                evidence.add_inconclusive(hidden);
            }
        }
        self.hiding.take_if(|hiding| hiding.until <= self.odometer);
    }

    /// The violation that hides `key` at present.
    pub(super) fn hider_of(&self, key: &Key) -> Option<&Arc<Key>> {
        let hider = self.hiding.as_ref().map(|hiding| &hiding.key);
        hider.filter(|hider| ***hider != *key)
    }

    /// Learns from the newest timestamp of an answer. The scan interval is the median of the last steps between
    /// different timestamps.
    ///
    /// Steps between the records of one answer do not count, because they belong to one scan. They would make the
    /// interval too small, and with it the clearing time.
    pub(super) fn learn_interval(&mut self, newest: Option<Timestamp>) {
        let Some(newest) = newest.map(CompactTimestamp::from) else { return };
        if let Some(latest) = self.latest
            && newest > latest
        {
            let step = newest.get().duration_since(latest.get()).unsigned_abs();
            self.steps.push(step);
            self.longest.push(step);
        }
        self.latest = Some(newest);
    }

    /// Takes over the interval that was learned before the start or by another replica, unless steps have been seen
    /// here.
    pub(super) fn remember_interval(&mut self, interval: Duration) {
        if self.steps.usual().is_none() {
            self.steps.push(interval);
            self.longest.push(interval);
        }
    }

    /// The learned scan interval; zero while unknown.
    pub(super) fn interval(&self) -> Duration {
        self.steps.usual().unwrap_or_default()
    }

    pub(super) fn active_for(&self, rules: &Detection) -> ActiveFor {
        let reported = rules.max_age.max(self.interval().saturating_mul(3));
        ActiveFor { reported, recalled: rules.max_age }
    }

    /// The least answered time without fresh evidence that proves absence.
    fn required(&self, rules: &Detection) -> Duration {
        let scans = self.steps.usual().map(|interval| interval.saturating_mul(SCANS_WITHOUT_EVIDENCE));
        rules.clear_after.max(scans.unwrap_or(first_scan(rules)))
    }

    /// Whether its agent has had time for a scan since its last possible restart. With a learned interval this needs
    /// no check of its own, because the odometer counts an agent that may have restarted only after one interval.
    fn has_scanned(&self, rules: &Detection) -> bool {
        self.steps.usual().is_some() || self.settled.get() >= first_scan(rules)
    }

    pub(super) fn clock(&self, rules: &Detection) -> NodeClock {
        NodeClock {
            odometer: self.odometer,
            inconclusive: self.inconclusive,
            required: self.required(rules).into(),
            has_scanned: self.has_scanned(rules),
            since: self.since,
            last_sign: self.last_sign,
            unreachable_limit: rules.unreachable_limit.into(),
        }
    }

    /// Clears evidence and lets it grow old, as far as it is time.
    pub(super) fn grow_old(&mut self, rules: &Detection, now: Moment) -> Vec<(Key, ChangeKind)> {
        let (clock, active_for) = (self.clock(rules), self.active_for(rules));
        let mut changes = Vec::new();
        for (key, evidence) in self.evidence.iter_mut() {
            if let Some(why) = evidence.try_clear(&clock, now) {
                changes.push((key.clone(), ChangeKind::Cleared(why)));
            } else if evidence.try_age(now, active_for) {
                changes.push((key.clone(), ChangeKind::Unconfirmed));
            }
        }
        changes
    }

    /// When time alone may change the node, by the monotonic clock. Never later than the change.
    pub(super) fn next_deadline(&self, rules: &Detection) -> Option<Duration> {
        let (clock, active_for) = (self.clock(rules), self.active_for(rules));
        let lifetime = rules.same_incident;
        self.evidence.values().map(|evidence| evidence.deadline(&clock, active_for, lifetime)).min()
    }

    /// The evidence of a violation, with its key as it is stored here.
    pub(super) fn evidence_of(&mut self, key: KeyRef<'_>) -> Option<(&Key, &mut ViolationEvidence)> {
        self.evidence.find_mut(|known| known.view().cmp(&key))
    }

    /// Makes room for `n` more violations by forgetting evidence that can be judged anew, the longest unlisted first.
    ///
    /// Evidence of violations that are `listed` in the present answer stays, because a listed record is compared with
    /// its tombstone.
    pub(super) fn evict(&mut self, n: usize, listed: impl Fn(&Key) -> bool) -> Vec<Key> {
        if n == 0 {
            return Vec::new();
        }
        let mut expendable: Vec<(Moment, Key)> = self
            .evidence
            .iter()
            .filter(|(key, evidence)| evidence.is_expendable() && !listed(key))
            .map(|(key, evidence)| (evidence.last_seen(), key.clone()))
            .collect();
        expendable.sort_unstable();
        expendable.truncate(n);
        let keys: Vec<Key> = expendable.into_iter().map(|(_, key)| key).collect();
        for key in &keys {
            self.evidence.remove(key);
        }
        keys
    }

    /// Drops tombstones that have been unlisted for `lifetime`.
    pub(super) fn expire(&mut self, now: Moment, lifetime: Duration) -> Vec<Key> {
        let keys: Vec<Key> = self
            .evidence
            .iter()
            .filter(|(_, evidence)| evidence.is_expired(now, lifetime))
            .map(|(key, _)| key.clone())
            .collect();
        for key in &keys {
            self.evidence.remove(key);
        }
        keys
    }

    pub(super) fn view(&self, rules: &Detection) -> NodeView {
        NodeView {
            clock: self.clock(rules),
            interval: self.steps.usual().map(CompactDuration::from),
            lists_several: self.lists_several,
            records: self.evidence.values().filter(|evidence| !evidence.is_cleared()).count(),
            rejected: self.rejected.clone(),
        }
    }
}

/// The answered time within which an agent whose interval is not learned is expected to scan.
fn first_scan(rules: &Detection) -> Duration {
    rules.assumed_interval.saturating_add(rules.answer_gap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_out_of_range_is_no_step_when_it_comes_again() {
        let mut node = Node::new(Moment::new(Duration::ZERO, Timestamp::UNIX_EPOCH));
        for _ in 0..3 {
            node.learn_interval(Some(Timestamp::MAX));
        }
        assert_eq!(node.steps.usual(), None);
    }
}
