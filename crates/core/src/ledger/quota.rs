//! Decides which violations of a node have room, when there are more than one node may have here.
//!
//! A tenant can run any number of processes with any names, and any number of Pods. So room is given class by class:
//!
//! 1. one violation of each rule in each Pod, if its evidence is fresh;
//! 2. one of each other Pod, if its evidence has grown old or can't be judged yet;
//! 3. further ones with fresh evidence;
//! 4. further old ones;
//! 5. violations that can be judged anew.
//!
//! Rules count separately, because an exemption may cover the hits of one rule and must not hide the hits of another.
//! In each class the namespaces share the rest of the room fairly, and the Pods of a namespace take turns. So if there
//! is not enough room, the rules of one Pod can take the place of another namespace's Pod. That happens only within the
//! fair share of each namespace.
//!
//! Within the share of a namespace, violations that were seen first stay. So new names do not take the place of the
//! first live violation of a Pod. A new namespace takes the room that others have beyond their fair share, but never
//! the place of another's last live violation.
//!
//! Violations that can be judged anew make room first, because a later answer that lists them is judged like a first
//! one. They are tombstones, records that were never believed, and violations of a Pod that is gone, unless the node
//! lists them with a young record. A Pod also has a limit of its own, because further names under one rule add
//! nothing about its App.
//!
//! A violation that made room for others is no longer known, but the App's block does not end by that. The policy
//! then waits for `unreachable_limit`, as for a node whose answers are inconclusive about it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use super::evidence::ViolationEvidence;
use super::node::Node;
use crate::Moment;
use crate::names::{Key, KeyRef, Text};
use crate::report::RecordRef;
use crate::shares::fair_shares;

/// The outcome of making room on a node.
#[derive(Default)]
pub(super) struct NodeQuota {
    /// The violations that made room for others. The node no longer has them.
    pub(super) evicted: Vec<Key>,
    /// The violations for which there is no room, known before or not.
    pub(super) refused: BTreeSet<Key>,
}

/// How a record and a violation are judged. The judgement decides which ones have room first.
pub(super) struct Judge<A, G> {
    /// The age of a record by its agent's own clock, and whether that is young; `None` if the agent does not send its
    /// time.
    pub(super) own_age: A,
    /// Whether the Pod of a violation is proven gone, without fresh evidence since.
    pub(super) is_gone: G,
}

/// The rank of a violation by its evidence. Ordered from the one that has room first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    /// Fresh evidence that has not grown old, or a listed record that is young.
    Live,
    /// Evidence that has grown old, or a listed record whose age is not known, because it may be of a process that
    /// runs.
    Aged,
    /// A violation that can be judged anew: a tombstone, an old record that was never believed, a violation of a Pod
    /// that is gone.
    Expendable,
}

/// A listed violation that is not known.
struct New<'a> {
    key: KeyRef<'a>,
    rule: &'a str,
    worth: Worth,
}

/// A violation for which there may be no room.
struct Candidate {
    key: Key,
    rule: Text,
    worth: Worth,
    /// `None` if it is not known yet.
    first_seen: Option<Moment>,
    /// How many violations of its Pod come before it.
    rank: usize,
    /// No other violation of its Pod under the same rule comes before it.
    is_first_of_rule: bool,
}

/// Violations of one class have room before those of the next one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    FirstLiveOfRule,
    FirstAgedOfPod,
    Live,
    Aged,
    Expendable,
}

impl NodeQuota {
    pub(super) fn is_for(&self, key: KeyRef<'_>) -> bool {
        // Nearly always empty.
        self.refused.is_empty() || !self.refused.contains(&Key::new(key.namespace, key.pod, key.process))
    }
}

impl Node {
    /// Makes room for the records in `listed`, which are in the order of their keys. With those that have room, the node has at most
    /// `max` violations, and each of its Pods at most `max_of_pod`.
    pub(super) fn make_room<A, G>(
        &mut self,
        listed: &[RecordRef<'_>],
        max: usize,
        max_of_pod: usize,
        judge: &Judge<A, G>,
    ) -> NodeQuota
    where
        A: Fn(Timestamp) -> Option<(Duration, bool)>,
        G: Fn(&Key, &ViolationEvidence) -> bool,
    {
        if self.evidence.len() + listed.len() <= max.min(max_of_pod) {
            return NodeQuota::default();
        }
        let mut new = Vec::new();
        for record in listed.iter().filter(|record| self.evidence_of(record.key).is_none()) {
            let worth = match (judge.own_age)(record.detected_at) {
                Some((_, true)) => Worth::Live,
                Some((_, false)) => Worth::Expendable,
                None => Worth::Aged,
            };
            new.push(New { key: record.key, rule: record.regex, worth });
        }
        if new.is_empty() {
            return NodeQuota::default();
        }
        let find = |key: &Key| listed.binary_search_by(|record| record.key.cmp(&key.view()));
        let judge_known = |key: &Key, evidence: &ViolationEvidence| {
            let record = find(key).ok().and_then(|place| listed.get(place));
            // The rule that this answer names. With an earlier rule, the same answer applied twice would change
            // something.
            let rule = record.map_or_else(|| evidence.rule().clone(), |record| record.regex.into());
            let age = record.map(|record| (judge.own_age)(record.detected_at));
            let is_fresh = record.zip(age).is_some_and(|(record, age)| {
                // If it were forgotten, its young record would be believed anew, even if its tombstone is here.
                age.is_some_and(|(_, is_young)| is_young)
                    || evidence.would_be_fresh_evidence(record.detected_at, age)
            });
            if is_fresh {
                return (Worth::Live, rule);
            }
            let alone = if evidence.is_expendable() || (judge.is_gone)(key, evidence) {
                Worth::Expendable
            } else if evidence.has_aged() {
                Worth::Aged
            } else {
                Worth::Live
            };
            // If it were forgotten, it would count like any listed record whose age is not known.
            (if age == Some(None) { alone.min(Worth::Aged) } else { alone }, rule)
        };
        let mut room = NodeQuota::default();
        self.limit_pods(&new, max_of_pod, judge_known, &mut room);
        new.retain(|new| room.is_for(new.key));
        let free = max.saturating_sub(self.evidence.len());
        room.evicted.extend(self.evict(new.len().saturating_sub(free), |key| find(key).is_ok()));
        if self.evidence.len() + new.len() > max {
            self.share_out(&new, max, judge_known, &mut room);
        }
        room
    }

    /// Leaves no Pod with more than `max` violations.
    fn limit_pods(
        &mut self,
        new: &[New<'_>],
        max: usize,
        judge_known: impl Fn(&Key, &ViolationEvidence) -> (Worth, Text),
        room: &mut NodeQuota,
    ) {
        // Counted in one pass: a node can list as many Pods as records.
        let mut known: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (key, _) in self.evidence.iter() {
            *known.entry((&key.namespace, &key.pod)).or_default() += 1;
        }
        let is_of_one_pod =
            |a: &New<'_>, b: &New<'_>| (a.key.namespace, a.key.pod) == (b.key.namespace, b.key.pod);
        let crowded = new.chunk_by(is_of_one_pod).filter(|of_pod| {
            let pod = of_pod.first().map(|new| (new.key.namespace, new.key.pod));
            of_pod.len() + pod.and_then(|pod| known.get(&pod)).copied().unwrap_or(0) > max
        });
        let crowded: Vec<&[New<'_>]> = crowded.collect();
        for of_pod in crowded {
            let Some(New { key: KeyRef { namespace, pod, .. }, .. }) = of_pod.first() else { continue };
            let is_of_pod = |key: &Key| *key.namespace == **namespace && *key.pod == **pod;
            let known = self.evidence.iter().filter(|(key, _)| is_of_pod(key));
            let known = known.map(|(key, evidence)| Candidate::known(key, evidence, &judge_known));
            let candidates = known.chain(of_pod.iter().map(Candidate::new)).collect();
            in_order_of_pods(candidates).iter().skip(max).for_each(|out| self.refuse(out, room));
        }
    }

    /// Shares out room for `max` violations, class by class.
    fn share_out(
        &mut self,
        new: &[New<'_>],
        max: usize,
        judge_known: impl Fn(&Key, &ViolationEvidence) -> (Worth, Text),
        room: &mut NodeQuota,
    ) {
        let known = self.evidence.iter().map(|(key, evidence)| Candidate::known(key, evidence, &judge_known));
        let mut candidates = in_order_of_pods(known.chain(new.iter().map(Candidate::new)).collect());
        candidates.sort_by(|a, b| {
            (a.class(), a.rank).cmp(&(b.class(), b.rank)).then_with(|| a.order().cmp(&b.order()))
        });
        let mut left = max;
        for of_class in candidates.chunk_by(|a, b| a.class() == b.class()) {
            // The remainder goes to the namespaces that come first in this order. Of live violations the known ones
            // come before the new ones, so no new namespace takes their last place.
            let mut places: BTreeMap<&Text, usize> = BTreeMap::new();
            let mut wants: Vec<usize> = Vec::new();
            for candidate in of_class {
                let place = *places.entry(&candidate.key.namespace).or_insert(wants.len());
                match wants.get_mut(place) {
                    Some(want) => *want += 1,
                    None => wants.push(1),
                }
            }
            let mut shares = fair_shares(&wants, left);
            for candidate in of_class {
                let share = places.get(&candidate.key.namespace).and_then(|place| shares.get_mut(*place));
                match share.filter(|share| **share > 0) {
                    Some(share) => (*share, left) = (*share - 1, left - 1),
                    None => self.refuse(candidate, room),
                }
            }
        }
    }

    fn refuse(&mut self, out: &Candidate, room: &mut NodeQuota) {
        if out.first_seen.is_some() {
            self.evidence.remove(&out.key);
            room.evicted.push(out.key.clone());
        }
        room.refused.insert(out.key.clone());
    }
}

impl Candidate {
    fn known(
        key: &Key,
        evidence: &ViolationEvidence,
        judge: impl Fn(&Key, &ViolationEvidence) -> (Worth, Text),
    ) -> Self {
        let first_seen = Some(evidence.first_seen());
        let (worth, rule) = judge(key, evidence);
        Self { key: key.clone(), rule, worth, first_seen, rank: 0, is_first_of_rule: false }
    }

    fn new(New { key, rule, worth }: &New<'_>) -> Self {
        let key = Key::new(key.namespace, key.pod, key.process);
        Self { key, rule: (*rule).into(), worth: *worth, first_seen: None, rank: 0, is_first_of_rule: false }
    }

    fn class(&self) -> Class {
        match (self.worth, self.rank) {
            (Worth::Live, _) if self.is_first_of_rule => Class::FirstLiveOfRule,
            (Worth::Aged, 0) => Class::FirstAgedOfPod,
            (Worth::Live, _) => Class::Live,
            (Worth::Aged, _) => Class::Aged,
            (Worth::Expendable, _) => Class::Expendable,
        }
    }

    fn pod(&self) -> (&str, &str) {
        (&self.key.namespace, &self.key.pod)
    }

    /// The order of candidates of one class and rank: by worth, then the one that was seen first, and known ones before new ones.
    fn order(&self) -> impl Ord {
        (self.worth, self.first_seen.is_none(), self.first_seen, &self.key)
    }
}

/// The violations with their ranks; those of one Pod in the order in which they are to have room.
fn in_order_of_pods(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    candidates.sort_by(|a, b| a.pod().cmp(&b.pod()).then_with(|| a.order().cmp(&b.order())));
    for of_pod in candidates.chunk_by_mut(|a, b| a.pod() == b.pod()) {
        // First its place among those of its rule, so that the rules take turns. Then its place in the Pod.
        let mut counts: BTreeMap<Text, usize> = BTreeMap::new();
        for candidate in &mut *of_pod {
            let count = counts.entry(candidate.rule.clone()).or_default();
            (candidate.rank, candidate.is_first_of_rule) = (*count, *count == 0);
            *count += 1;
        }
        of_pod.sort_by(|a, b| {
            (a.worth, a.rank).cmp(&(b.worth, b.rank)).then_with(|| a.order().cmp(&b.order()))
        });
        of_pod.iter_mut().enumerate().for_each(|(rank, candidate)| candidate.rank = rank);
    }
    candidates
}

#[cfg(test)]
mod tests;
