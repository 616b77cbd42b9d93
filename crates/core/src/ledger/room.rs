//! Which violations of a node there is room for, when there are more than one node may have here.
//!
//! A tenant can run any number of processes with any names. So each Pod has room for one violation first. Then namespaces share the
//! room fairly, and the Pods of a namespace share what it has. One tenant's flood leaves the violations of every other tenant in place,
//! and one Pod's flood those of the other Pods. If there are more Pods than room, their namespaces share it. If there are more namespaces
//! than room, those have it whose violations have fresh evidence and were seen first. The exceptions make room first, because a later answer that lists them is judged like a first one: tombstones, records that
//! were never believed, and violations of a Pod that is gone, unless the node lists them with a young record.
//! Within a Pod, violations with fresh evidence have room first, and of these the ones that were seen first. So new names push out
//! nothing that still runs. A Pod also has a limit of its own, because more names of one Pod say nothing new.
//!
//! A violation that made room for others is no longer known. The App's block does not end by that: the policy then waits for
//! `unreachable_limit`, as for a node whose answers say nothing of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use super::evidence::Evidence;
use super::node::Node;
use crate::Moment;
use crate::names::{Key, KeyRef, Text};
use crate::report::RecordRef;
use crate::shares::fair_shares;

/// What there is room for.
#[derive(Default)]
pub(super) struct Room {
    /// The violations that made room for others. They are no longer the node's.
    pub(super) evicted: Vec<Key>,
    /// Those for which there is no room, known before or not.
    pub(super) refused: BTreeSet<Key>,
}

/// How a record and a violation are judged: from that follows which ones have room first.
pub(super) struct Judge<A, G> {
    /// The age of a record by its agent's own clock, and whether that is young; `None` if the agent does not tell its time.
    pub(super) own_age: A,
    /// Whether the Pod of a violation is proven gone, and nothing fresh has come of it since.
    pub(super) is_gone: G,
}

/// How much would be lost. Ordered from what has room first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    /// Fresh evidence that has not grown old, or a listed record that is young.
    Live,
    /// Evidence that has grown old.
    Aged,
    /// What can be judged anew: a tombstone, a record never believed, a violation of a Pod that is gone.
    Expendable,
}

/// A listed violation that is not known.
struct New<'a> {
    key: KeyRef<'a>,
    worth: Worth,
}

/// A violation of a namespace that has more than its share.
struct Candidate {
    key: Key,
    worth: Worth,
    /// `None` if it is not known yet.
    first_seen: Option<Moment>,
    /// How many violations of its Pod come before it.
    rank: usize,
}

impl Room {
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
    ) -> Room
    where
        A: Fn(Timestamp) -> Option<(Duration, bool)>,
        G: Fn(&Key, &Evidence) -> bool,
    {
        if self.evidence.len() + listed.len() <= max.min(max_of_pod) {
            return Room::default();
        }
        let mut new = Vec::new();
        for record in listed.iter().filter(|record| self.evidence_of(record.key).is_none()) {
            let is_young = (judge.own_age)(record.detected_at).is_some_and(|(_, is_young)| is_young);
            new.push(New { key: record.key, worth: if is_young { Worth::Live } else { Worth::Expendable } });
        }
        if new.is_empty() {
            return Room::default();
        }
        let find = |key: &Key| listed.binary_search_by(|record| record.key.cmp(&key.view()));
        let worth = |key: &Key, evidence: &Evidence| {
            let record = find(key).ok().and_then(|place| listed.get(place));
            let is_fresh = record.is_some_and(|record| {
                let age = (judge.own_age)(record.detected_at);
                // Forgotten, a young record would be believed anew, even if its tombstone is here.
                age.is_some_and(|(_, is_young)| is_young) || evidence.would_be_news(record.detected_at, age)
            });
            if is_fresh {
                Worth::Live
            } else if evidence.is_expendable() || (judge.is_gone)(key, evidence) {
                Worth::Expendable
            } else if evidence.has_aged() {
                Worth::Aged
            } else {
                Worth::Live
            }
        };
        let mut room = Room::default();
        self.limit_pods(&new, max_of_pod, worth, &mut room);
        new.retain(|new| room.is_for(new.key));
        let free = max.saturating_sub(self.evidence.len());
        room.evicted.extend(self.evict(new.len().saturating_sub(free), |key| find(key).is_ok()));
        if self.evidence.len() + new.len() > max {
            self.share_out(&new, max, worth, &mut room);
        }
        room
    }

    /// Leaves no Pod with more than `max` violations.
    fn limit_pods(
        &mut self,
        new: &[New<'_>],
        max: usize,
        worth: impl Fn(&Key, &Evidence) -> Worth,
        room: &mut Room,
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
            let known = known.map(|(key, evidence)| Candidate::known(key, evidence, &worth));
            let candidates = known.chain(of_pod.iter().map(Candidate::new)).collect();
            self.refuse(in_order(candidates).into_iter().skip(max), room);
        }
    }

    /// Shares out `max` violations: first one for each Pod, then among namespaces. If there are more Pods, their namespaces share.
    fn share_out(
        &mut self,
        new: &[New<'_>],
        max: usize,
        worth: impl Fn(&Key, &Evidence) -> Worth,
        room: &mut Room,
    ) {
        let mut by_namespace: BTreeMap<Text, Vec<Candidate>> = BTreeMap::new();
        let known = self.evidence.iter().map(|(key, evidence)| Candidate::known(key, evidence, &worth));
        for candidate in known.chain(new.iter().map(Candidate::new)) {
            by_namespace.entry(candidate.key.namespace.clone()).or_default().push(candidate);
        }
        let mut namespaces: Vec<Vec<Candidate>> = by_namespace.into_values().map(in_order).collect();
        // What can't be divided is for those of which most would be lost: a new namespace must not push out an old one.
        namespaces.sort_by(|a, b| a.first().map(Candidate::order).cmp(&b.first().map(Candidate::order)));
        let pods_of = |candidates: &Vec<Candidate>| {
            candidates.iter().map(|candidate| &candidate.key.pod).collect::<BTreeSet<_>>().len()
        };
        let pods = fair_shares(&namespaces.iter().map(pods_of).collect::<Vec<_>>(), max);
        let more = namespaces.iter().zip(&pods).map(|(candidates, pods)| candidates.len() - pods);
        let more = fair_shares(&more.collect::<Vec<_>>(), max - pods.iter().sum::<usize>());
        for (candidates, (pods, more)) in namespaces.into_iter().zip(pods.into_iter().zip(more)) {
            self.refuse(candidates.into_iter().skip(pods + more), room);
        }
    }

    fn refuse(&mut self, out: impl Iterator<Item = Candidate>, room: &mut Room) {
        for Candidate { key, first_seen, .. } in out {
            if first_seen.is_some() {
                self.evidence.remove(&key);
                room.evicted.push(key.clone());
            }
            room.refused.insert(key);
        }
    }
}

impl Candidate {
    fn known(key: &Key, evidence: &Evidence, worth: impl Fn(&Key, &Evidence) -> Worth) -> Self {
        let first_seen = Some(evidence.first_seen());
        Self { key: key.clone(), worth: worth(key, evidence), first_seen, rank: 0 }
    }

    fn new(New { key, worth }: &New<'_>) -> Self {
        let key = Key::new(key.namespace, key.pod, key.process);
        Self { key, worth: *worth, first_seen: None, rank: 0 }
    }

    /// Of candidates with the same rank, the one with the least of these has room first.
    fn order(&self) -> impl Ord {
        (self.worth, self.first_seen.is_none(), self.first_seen, &self.key)
    }
}

/// The violations of one namespace, in the order in which they are to have room.
fn in_order(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    candidates.sort_by(|a, b| a.key.pod.cmp(&b.key.pod).then_with(|| a.order().cmp(&b.order())));
    let (mut pod, mut rank) = (None, 0);
    for candidate in &mut candidates {
        if pod.as_ref() != Some(&candidate.key.pod) {
            (pod, rank) = (Some(candidate.key.pod.clone()), 0);
        }
        candidate.rank = rank;
        rank += 1;
    }
    candidates.sort_by(|a, b| {
        let by_rank = (a.worth, a.rank).cmp(&(b.worth, b.rank));
        by_rank.then_with(|| a.order().cmp(&b.order()))
    });
    candidates
}

#[cfg(test)]
mod tests;
