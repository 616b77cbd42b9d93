//! Applies reports to the ledger.

use std::collections::BTreeMap;
use std::time::Duration;

use super::evidence::{Listed, ViolationEvidence};
use super::node::Node;
use super::quota::Judge;
use super::texts::Texts;
use super::totals::Totals;
use super::{Change, ChangeKind, Detection, Ledger, ViolationEntry, forget, schedule};
use crate::Moment;
use crate::names::{Key, KeyRef, NodeName};
use crate::report::{Answer, LeftOut, Outcome, RecordRef, Rejection, Rejections, Report};

impl Ledger {
    /// Applies one report. The same report twice changes nothing. The order of reports of different nodes does not
    /// matter, as long as there is room for all violations and their command lines.
    ///
    /// A report of a target that is older than one already applied is ignored.
    pub fn absorb(&mut self, report: &Report) -> Vec<Change> {
        self.node_change = None;
        // The report of a target that was removed while it was being asked is ignored.
        let target = self.targets.get_mut(&report.target.address);
        let Some(repeated) = target.and_then(|target| target.note(report)) else { return Vec::new() };
        self.revision += 1;
        let name = report.target.node.clone();
        let node = self.nodes.entry(name.clone()).or_insert_with(|| Box::new(Node::new(report.at)));
        self.node_change = node.note_sign(report, self.rules.fresh_within);
        let (answer, is_whole) = match &report.outcome {
            Outcome::Complete(answer) => (Some(answer), true),
            Outcome::Unchanged => (None, true),
            Outcome::Partial(answer, _) => (Some(answer), false),
            Outcome::Failed(_) => return Vec::new(),
        };
        let mut added = Duration::ZERO;
        if is_whole {
            let is_empty = answer.map(|answer| answer.records.is_empty());
            added = node.answered(report.at, is_empty, self.rules.answer_gap);
        }
        let mut changes = Vec::new();
        if let Some(answer) = answer {
            if !repeated {
                self.rejected.add(&answer.rejected);
                node.rejected.add(&answer.rejected);
            }
            let Self { rules, violations, texts, totals, rejected, .. } = self;
            let before = node.evidence.len();
            let mut common = Common { rules, violations, texts, totals, rejected };
            changes = common.take_in(&name, node, answer, is_whole, report.at);
            common.totals.note(before, node.evidence.len());
        }
        if let Some(answer) = answer
            && self.node_change.is_none()
        {
            self.node_change = node.note_left_out(&answer.left_out, is_whole);
        }
        if is_whole {
            let nothing = LeftOut::default();
            node.count_inconclusive(added, answer.map_or(&nothing, |answer| &answer.left_out));
            let clock = node.clock(&self.rules);
            changes.extend(node.evidence.iter_mut().filter_map(|(key, evidence)| {
                let why = evidence.try_clear(&clock, report.at)?;
                Some(Change { key: key.clone(), node: name.clone(), kind: ChangeKind::Cleared(why) })
            }));
        }
        schedule(&name, node, &self.rules, &mut self.deadlines);
        if !changes.is_empty() {
            self.count_change();
        }
        changes
    }
}

/// The parts of the ledger that the records of all nodes share.
struct Common<'a> {
    rules: &'a Detection,
    violations: &'a mut BTreeMap<Key, ViolationEntry>,
    texts: &'a mut Texts,
    totals: &'a mut Totals,
    rejected: &'a mut Rejections,
}

impl Common<'_> {
    /// Applies the records that `node` lists, in an answer that `is_whole` or in a part of one.
    fn take_in(
        &mut self,
        name: &NodeName,
        node: &mut Node,
        answer: &Answer,
        is_whole: bool,
        at: Moment,
    ) -> Vec<Change> {
        let listed = newest_of_each_key(answer);
        node.learn_interval(listed.iter().map(|record| record.detected_at).max());

        let max_age = self.rules.max_age.max(node.interval().saturating_mul(3));
        let mark = node.reading();
        let own_age = |detected_at| {
            crate::report::age_by_own_clock(detected_at, answer.date).map(|age| (age, age <= max_age))
        };
        let violations = &*self.violations;
        let is_gone = |key: &Key, evidence: &ViolationEvidence| {
            let gone = violations.get(key).and_then(|entry| entry.pod_gone);
            gone.is_some() && !evidence.has_fresh_evidence_since(gone)
        };
        let max = self.totals.limit_of(node, self.rules);
        let room = node.make_room(&listed, max, self.rules.max_keys_per_pod, &Judge { own_age, is_gone });
        for evicted in &room.evicted {
            forget(self.violations, evicted, name);
        }
        let (mut changes, mut recent, mut no_room) = (Vec::new(), None, LeftOut::default());
        let (count, may_hide) = (listed.len(), node.may_hide());
        let mut cmdline_bytes = node.cmdline_bytes;
        for record in listed {
            if !room.is_for(record.key) {
                no_room.note(record.key.namespace);
            }
            if let Some((key, evidence)) = node.evidence_of(record.key) {
                let known = Some(evidence.cmdline());
                let cmdline = self.totals.cmdline(&mut cmdline_bytes, record.cmdline, known, self.rules);
                let record = RecordRef { cmdline: &cmdline, ..record };
                let Listed { change, is_recent } =
                    evidence.listed(record, at, mark.answered, self.rules.same_incident, own_age);
                if is_recent && may_hide {
                    recent = Some(key.clone());
                }
                changes.extend(change.map(|kind| Change { key: key.clone(), node: name.clone(), kind }));
                continue;
            }
            let own_age = own_age(record.detected_at);
            if may_hide && own_age.is_none_or(|(_, is_young)| is_young) {
                let KeyRef { namespace, pod, process } = record.key;
                recent = Some(Key::new(namespace, pod, process));
            }
            if room.is_for(record.key) {
                let young = own_age.filter(|(_, is_young)| *is_young);
                let cmdline = self.totals.cmdline(&mut cmdline_bytes, record.cmdline, None, self.rules);
                let record = self.texts.record(RecordRef { cmdline: &cmdline, ..record });
                let key = record.key.clone();
                let evidence = ViolationEvidence::first_sight(record, at, mark, young.map(|(age, _)| age));
                self.add(name, node, key.clone(), evidence);
                let kind = if young.is_some() { ChangeKind::Appeared } else { ChangeKind::Sighted };
                changes.push(Change { key, node: name.clone(), kind });
            } else {
                self.rejected.count(Rejection::NodeQuota);
                node.rejected.count(Rejection::NodeQuota);
            }
        }
        node.cmdline_bytes = cmdline_bytes;
        node.note_listed(count, recent, self.rules);
        node.note_omissions(no_room, answer.rejected.total() > 0, is_whole);
        changes
    }
    /// Adds the first evidence that `node` has for `key`.
    fn add(&mut self, name: &NodeName, node: &mut Node, key: Key, evidence: ViolationEvidence) {
        node.evidence.insert(key.clone(), evidence);
        self.violations.entry(key).or_default().nodes.insert(name.clone());
    }
}

/// The records of `answer`, in the order of their keys. If it lists a key more than once, in any order, the newest
/// record counts.
fn newest_of_each_key(answer: &Answer) -> Vec<RecordRef<'_>> {
    let mut listed: Vec<RecordRef<'_>> = answer.records.iter().collect();
    listed.sort_by(|a, b| {
        let newest_first = || (b.detected_at, b.cmdline).cmp(&(a.detected_at, a.cmdline));
        a.key.cmp(&b.key).then_with(newest_first)
    });
    listed.dedup_by(|other, newest| other.key == newest.key);
    listed
}
