//! Which violations of a node there is room for, when there are more than one node may have here.
//!
//! A tenant can run any number of processes with any names. So namespaces share the room fairly, and the Pods of a namespace share
//! what it has. One tenant's flood leaves the violations of every other tenant in place, and one Pod's flood those of the other
//! Pods. The exceptions make room first, because a later answer that lists them is judged like a first one: tombstones, records that
//! were never believed, and violations of a Pod that is gone, unless the node lists them with a young record.
//! Within a Pod, violations with fresh evidence have room first, and of these the ones that were seen first. So new names push out
//! nothing that still runs. A Pod also has a limit of its own, because more names of one Pod say nothing new.
//!
//! A violation that made room for others is no longer known. The App's block does not end by that: the policy then waits for
//! `unreachable_limit`, as for a node whose answers say nothing of it. With as many Pods as a node can run, each Pod keeps a
//! violation.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use super::Detection;
use super::evidence::Evidence;
use super::node::Node;
use crate::Moment;
use crate::names::{Key, KeyRef, Text};
use crate::report::RecordRef;
use crate::shares::fair_share;

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
    /// Makes room for what `listed` says, in the order of the keys, so that no more violations are known than the node and each Pod
    /// may have.
    pub(super) fn make_room<A, G>(
        &mut self,
        listed: &[RecordRef<'_>],
        rules: &Detection,
        judge: &Judge<A, G>,
    ) -> Room
    where
        A: Fn(Timestamp) -> Option<(Duration, bool)>,
        G: Fn(&Key, &Evidence) -> bool,
    {
        let (max, of_pod) = (rules.max_keys_per_node, rules.max_keys_per_pod);
        if self.evidence.len() + listed.len() <= max.min(of_pod) {
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
        self.limit_pods(&new, of_pod, worth, &mut room);
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
            self.refuse(in_order(candidates).skip(max), room);
        }
    }

    /// Shares out `max` violations among namespaces.
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
        let mut wants: Vec<usize> = by_namespace.values().map(Vec::len).collect();
        let (share, mut left) = fair_share(&mut wants, max);
        for candidates in by_namespace.into_values().filter(|candidates| candidates.len() > share) {
            let is_one_more = left > 0;
            left -= usize::from(is_one_more);
            self.refuse(in_order(candidates).skip(share + usize::from(is_one_more)), room);
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
}

/// The violations of one namespace, in the order in which they are to have room.
fn in_order(mut candidates: Vec<Candidate>) -> impl Iterator<Item = Candidate> {
    let seen = |candidate: &Candidate| (candidate.first_seen.is_none(), candidate.first_seen);
    candidates.sort_by(|a, b| {
        let by_pod = (&a.key.pod, a.worth).cmp(&(&b.key.pod, b.worth));
        by_pod.then(seen(a).cmp(&seen(b))).then_with(|| a.key.cmp(&b.key))
    });
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
        by_rank.then(seen(a).cmp(&seen(b))).then_with(|| a.key.cmp(&b.key))
    });
    candidates.into_iter()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;
    use proptest::prelude::*;

    use crate::Moment;
    use crate::ledger::{Detection, Ledger};
    use crate::names::{Key, NodeName, PodRef};
    use crate::report::{Answer, Outcome, Record, Rejection, Report, Target};
    use crate::snapshot::State;

    /// A node with room for 8, whose agent answers once a minute.
    struct Crowded {
        ledger: Ledger,
        minute: u64,
    }

    impl Crowded {
        const MAX: usize = 8;

        fn new() -> Self {
            let rules = Detection { max_keys_per_node: Self::MAX, ..Detection::default() };
            let mut ledger = Ledger::new(rules, at(0));
            ledger.expect([target()], 0);
            Self { ledger, minute: 0 }
        }

        /// The agent lists these, each found so many minutes ago. Returns what is known then.
        fn list_found(&mut self, keys: &[(&str, &str, String, u64)]) -> Vec<String> {
            self.answer(keys, true)
        }

        /// As [`Self::list_found`]; an agent that `has_date` says what time it is.
        fn answer(&mut self, keys: &[(&str, &str, String, u64)], has_date: bool) -> Vec<String> {
            self.minute += 1;
            let now = at(self.minute);
            let records = keys.iter().map(|(namespace, pod, process, ago)| {
                let found = now.wall() - Duration::from_mins(*ago);
                Record {
                    timestamp: found.to_string().into(),
                    detected_at: found,
                    ..Record::of(Key::new(*namespace, *pod, process.as_str()))
                }
            });
            let date = has_date.then(|| now.wall());
            let answer = Answer { records: records.collect(), date, ..Answer::default() };
            let report = Report { target: target(), at: now, outcome: Outcome::Complete(answer) };
            self.ledger.absorb(&report);
            let known = self.known(now);
            assert_eq!(self.ledger.absorb(&report), [], "the same report is no news");
            assert_eq!(self.known(now), known);
            known.into_iter().map(|(key, _)| key).collect()
        }

        fn known(&mut self, now: Moment) -> Vec<(String, State)> {
            let snapshot = self.ledger.snapshot(now);
            assert!(snapshot.violations.len() <= Self::MAX);
            let held = self.ledger.nodes.values().map(|node| node.evidence.len()).sum();
            assert_eq!(
                (snapshot.violations.len(), self.ledger.violations.len()),
                (held, held),
                "no more is held"
            );
            let name = |key: &Key| format!("{}/{}/{}", key.namespace, key.pod, key.process);
            snapshot.violations.iter().map(|violation| (name(&violation.key), violation.state)).collect()
        }

        /// The agent lists these, each found just now. Returns what is known then.
        fn list(&mut self, keys: &[(&str, &str, String)]) -> Vec<String> {
            let now = |(namespace, pod, process): &(_, _, String)| (*namespace, *pod, process.clone(), 0);
            self.list_found(&keys.iter().map(now).collect::<Vec<_>>())
        }

        fn limit_pods(&mut self, max: usize) {
            self.ledger.set_rules(Detection {
                max_keys_per_pod: max,
                max_keys_per_node: Self::MAX,
                ..Detection::default()
            });
        }

        /// The agent finds these once a minute, and then answers no more until what is known of them has grown old.
        fn let_grow_old(&mut self, keys: &[(&str, &str, String)], more: &[(&str, &str, String, u64)]) {
            for minute in 0..5 {
                let now = keys.iter().map(|(namespace, pod, process)| (*namespace, *pod, process.clone(), 0));
                let more = more
                    .iter()
                    .cloned()
                    .map(|(namespace, pod, process, ago)| (namespace, pod, process, ago + minute));
                self.list_found(&now.chain(more).collect::<Vec<_>>());
            }
            self.minute = 300;
            self.ledger.advance(at(300));
        }
    }

    fn at(minutes: u64) -> Moment {
        let passed = Duration::from_mins(minutes);
        Moment::new(passed, Timestamp::from_second(1_766_399_400).unwrap() + passed)
    }

    fn target() -> Target {
        Target { address: "n1:9090".into(), node: NodeName::new("n1") }
    }

    fn flood<'a>(namespace: &'a str, pod: &'a str, count: usize) -> Vec<(&'a str, &'a str, String)> {
        (0..count).map(|n| (namespace, pod, format!("p{n:02}"))).collect()
    }

    /// The names of violations as [`Crowded::list`] returns them.
    fn names(namespace: &str, pod: &str, process: &str, numbers: std::ops::Range<usize>) -> Vec<String> {
        numbers.map(|n| format!("{namespace}/{pod}/{process}{n:02}")).collect()
    }

    #[test]
    fn a_tenant_that_has_taken_all_room_makes_room_for_every_other_tenant() {
        let mut node = Crowded::new();
        let mut keys = flood("ns-flood", "pod", 20);
        assert_eq!(node.list(&keys).len(), 8);
        keys.push(("ns-z", "web", "xmrig".to_owned()));
        keys.push(("ns-a", "web", "xmrig".to_owned()));
        let known = node.list(&keys);
        assert_eq!(known.len(), 8);
        assert!(known.contains(&"ns-z/web/xmrig".to_owned()) && known.contains(&"ns-a/web/xmrig".to_owned()));
        assert_eq!(node.list(&keys), known, "and it stays so");
        let snapshot = node.ledger.snapshot(at(node.minute));
        assert!(snapshot.nodes.get(&NodeName::new("n1")).unwrap().rejected.of(Rejection::NodeQuota) >= 14);
    }

    #[test]
    fn what_was_seen_first_stays_and_a_pods_flood_leaves_the_other_pods_of_the_tenant() {
        let mut node = Crowded::new();
        node.list(&[("ns-a", "old", "miner".to_owned())]);
        let mut keys = flood("ns-a", "flood", 20);
        node.list(&keys);
        keys.push(("ns-a", "new", "miner".to_owned()));
        keys.push(("ns-b", "web", "miner".to_owned()));
        keys.push(("ns-a", "old", "miner".to_owned()));
        let known = node.list(&keys);
        for expected in ["ns-a/old/miner", "ns-a/new/miner", "ns-b/web/miner", "ns-a/flood/p00"] {
            assert!(known.contains(&expected.to_owned()), "{expected} in {known:?}");
        }
        let renamed: Vec<_> = (0..20).map(|n| ("ns-a", "flood", format!("q{n:02}"))).collect();
        assert_eq!(node.list(&renamed), known, "new names push out nothing");
    }

    #[test]
    fn what_becomes_fresh_or_is_live_stays_before_what_has_ended() {
        let mut node = Crowded::new();
        let known = |name: &str, ago| ("ns-a", "q", name.to_owned(), ago);
        // Found long ago, so never believed.
        node.list_found(&[known("x1", 600)]);
        let mut keys: Vec<_> = (0..12).map(|n| ("ns-a", "p", format!("y{n:02}"), 0)).collect();
        keys.push(known("x1", 0));
        let listed = node.list_found(&keys);
        assert!(listed.contains(&"ns-a/q/x1".to_owned()), "{listed:?}");
        // Pods that are gone make room for one that has come.
        let pod = |n| format!("gone{n}");
        let names: Vec<String> = (0..8).map(pod).collect();
        let mut node = Crowded::new();
        node.list(&names.iter().map(|pod| ("ns-a", pod.as_str(), "x".to_owned())).collect::<Vec<_>>());
        for pod in &names {
            node.ledger
                .pod_gone(&PodRef { namespace: "ns-a".into(), pod: pod.as_str().into() }, at(node.minute));
        }
        // Hours later the agent goes on listing what it found in the first minute.
        node.minute = 600;
        let mut keys: Vec<_> = names.iter().map(|pod| ("ns-a", pod.as_str(), "x".to_owned(), 600)).collect();
        keys.push(("ns-a", "new", "x".to_owned(), 0));
        assert!(node.list_found(&keys).contains(&"ns-a/new/x".to_owned()));
    }

    #[test]
    fn a_pod_with_any_number_of_names_has_so_many_violations_and_keeps_those_that_run() {
        let mut node = Crowded::new();
        node.limit_pods(4);
        let mut keys = flood("ns-a", "flood", 20);
        keys.push(("ns-a", "web", "xmrig".to_owned()));
        let known = node.list(&keys);
        assert_eq!(
            known,
            ["ns-a/flood/p00", "ns-a/flood/p01", "ns-a/flood/p02", "ns-a/flood/p03", "ns-a/web/xmrig"]
        );
        // Under other names hours later: what has grown old makes room.
        node.minute = 300;
        let renamed: Vec<_> = (0..20).map(|n| ("ns-a", "flood", format!("q{n:02}"))).collect();
        node.ledger.advance(at(300));
        let known = node.list(&renamed);
        assert_eq!(
            known,
            ["ns-a/flood/q00", "ns-a/flood/q01", "ns-a/flood/q02", "ns-a/flood/q03", "ns-a/web/xmrig"]
        );
    }

    #[test]
    fn a_pods_limit_counts_its_own_violations_and_those_that_were_known_before() {
        let mut node = Crowded::new();
        node.limit_pods(4);
        // The node has room for all of them.
        let mut keys = flood("ns-a", "web", 5);
        let mut expected = names("ns-a", "web", "p", 0..4);
        assert_eq!(node.list(&keys), expected);
        // A Pod of another tenant has the same name.
        keys.extend(flood("ns-b", "web", 3));
        expected.extend(names("ns-b", "web", "p", 0..3));
        assert_eq!(node.list(&keys), expected);
        keys.push(("ns-a", "web", "q00".to_owned()));
        assert_eq!(node.list(&keys), expected);
    }

    #[test]
    fn room_that_can_not_be_shared_evenly_is_used_all_the_same() {
        for (wants, has) in [([5, 5, 5, 0], [3, 3, 2, 0]), ([2, 3, 3, 1], [2, 3, 2, 1])] {
            let of = ["ns-a", "ns-b", "ns-c", "ns-d"].into_iter();
            let keys: Vec<_> =
                of.clone().zip(wants).flat_map(|(namespace, count)| flood(namespace, "pod", count)).collect();
            let expected: Vec<_> =
                of.zip(has).flat_map(|(namespace, count)| names(namespace, "pod", "p", 0..count)).collect();
            assert_eq!(Crowded::new().list(&keys), expected);
        }
    }

    #[test]
    fn what_is_not_listed_and_can_be_judged_anew_makes_room_first_and_no_more_than_is_needed() {
        let mut node = Crowded::new();
        // Found ten hours before the first answer, so never believed.
        let old = |n: usize, minute: u64| ("ns-a", "old", format!("p{n:02}"), 600 + minute);
        node.list_found(&(0..7).map(|n| old(n, 1)).collect::<Vec<_>>());
        node.list_found(&(1..7).map(|n| old(n, 2)).collect::<Vec<_>>());
        let mut expected = names("ns-a", "new", "p", 0..2);
        expected.extend(names("ns-a", "old", "p", 1..7));
        assert_eq!(
            node.list(&flood("ns-a", "new", 2)),
            expected,
            "p00 has been missing from the answers for longest"
        );
        // They make room even if their namespace has less than its share.
        expected.truncate(2);
        expected.extend(names("ns-b", "web", "p", 0..6));
        assert_eq!(node.list(&flood("ns-b", "web", 8)), expected);
    }

    #[test]
    fn old_violations_have_room_before_records_that_were_never_believed() {
        let mut node = Crowded::new();
        let unbelieved =
            |ago| (0..4).map(move |n| ("ns-a", "pod", format!("x{n:02}"), ago)).collect::<Vec<_>>();
        node.list_found(&unbelieved(600));
        node.let_grow_old(&flood("ns-a", "pod", 4), &unbelieved(601));
        let mut keys = unbelieved(900);
        keys.extend((0..4).map(|n| ("ns-a", "pod", format!("q{n:02}"), 0)));
        let expected = ["p", "q"].map(|name| names("ns-a", "pod", name, 0..4)).concat();
        assert_eq!(node.list_found(&keys), expected);
    }

    #[test]
    fn new_records_of_an_answer_without_a_date_do_not_push_out_old_violations() {
        let mut node = Crowded::new();
        node.let_grow_old(&flood("ns-a", "pod", 8), &[]);
        let keys: Vec<_> = (0..8).map(|n| ("ns-a", "pod", format!("q{n:02}"), 0)).collect();
        assert_eq!(node.answer(&keys, false), names("ns-a", "pod", "p", 0..8));
        assert_eq!(node.answer(&keys, true), names("ns-a", "pod", "q", 0..8), "these are fresh");
    }

    #[test]
    fn live_violations_have_room_before_old_ones_that_an_answer_without_a_date_lists_again() {
        let mut node = Crowded::new();
        node.let_grow_old(&flood("ns-a", "pod", 4), &[]);
        let live = |minute: u64| (0..4).map(move |n| ("ns-a", "pod", format!("q{n:02}"), minute));
        node.list_found(&live(0).collect::<Vec<_>>());
        // What has grown old was found in the fifth minute, and this is the minute 302.
        let old = (0..4).map(|n| ("ns-a", "pod", format!("p{n:02}"), 297));
        let other = (0..8).map(|n| ("ns-b", "web", format!("p{n:02}"), 0));
        let known = node.answer(&old.chain(live(1)).chain(other).collect::<Vec<_>>(), false);
        assert_eq!(known, [names("ns-a", "pod", "q", 0..4), names("ns-b", "web", "p", 0..4)].concat());
    }

    #[test]
    fn what_was_found_again_stays_even_if_that_is_some_time_ago() {
        let mut node = Crowded::new();
        node.let_grow_old(&flood("ns-a", "pod", 8), &[]);
        let mut keys = vec![("ns-a", "pod", "p07".to_owned(), 60)];
        keys.extend((0..8).map(|n| ("ns-a", "pod", format!("q{n:02}"), 0)));
        let expected = [names("ns-a", "pod", "p", 7..8), names("ns-a", "pod", "q", 0..7)].concat();
        assert_eq!(node.list_found(&keys), expected);
    }

    /// If the violation were forgotten, the next answer with its young record would make it active again.
    #[test]
    fn a_flood_does_not_push_out_a_violation_whose_pod_is_gone_while_its_record_is_young() {
        let mut node = Crowded::new();
        let gone = |ago| vec![("ns-a", "gone", "x".to_owned(), ago)];
        node.list_found(&gone(0));
        node.ledger.pod_gone(&PodRef { namespace: "ns-a".into(), pod: "gone".into() }, at(1));
        for minute in 1..4 {
            let mut keys = gone(minute);
            keys.extend((0..20).map(|n| ("ns-a", "flood", format!("p{n:02}"), 0)));
            node.list_found(&keys);
            let known = node.known(at(node.minute));
            assert_eq!(known.last(), Some(&("ns-a/gone/x".to_owned(), State::Cleared)));
        }
    }

    /// In a StatefulSet the next Pod has the name of the one before.
    #[test]
    fn what_is_found_again_after_its_pod_was_gone_makes_no_room_for_a_flood() {
        let mut node = Crowded::new();
        let again = ("ns-a", "web-0", "x".to_owned());
        node.list(std::slice::from_ref(&again));
        node.ledger.pod_gone(&PodRef { namespace: "ns-a".into(), pod: "web-0".into() }, at(1));
        node.list(&[again]);
        let known = node.list(&flood("ns-a", "flood", 8));
        assert_eq!(known.last(), Some(&"ns-a/web-0/x".to_owned()), "{known:?}");
    }

    #[test]
    fn violations_that_were_seen_first_have_room_before_later_ones() {
        let mut node = Crowded::new();
        let first = ("ns-a", "pod", "z".to_owned());
        node.list(std::slice::from_ref(&first));
        node.list(&[flood("ns-a", "pod", 7), vec![first.clone()]].concat());
        let known = node.list(&[first, ("ns-a", "web", "p00".to_owned())]);
        let mut expected = names("ns-a", "pod", "p", 0..6);
        expected.extend(["ns-a/pod/z".to_owned(), "ns-a/web/p00".to_owned()]);
        assert_eq!(known, expected);
    }

    #[test]
    fn of_pods_with_one_violation_each_those_that_were_seen_first_stay() {
        let mut node = Crowded::new();
        let first = ("ns-a", "z", "p00".to_owned());
        node.list(std::slice::from_ref(&first));
        let pods: Vec<String> = (0..8).map(|n| format!("pod{n}")).collect();
        let mut keys: Vec<_> = pods.iter().map(|pod| ("ns-a", pod.as_str(), "p00".to_owned())).collect();
        keys.push(first);
        let known: Vec<String> =
            pods[..7].iter().chain([&"z".to_owned()]).map(|pod| format!("ns-a/{pod}/p00")).collect();
        assert_eq!(node.list(&keys), known);
    }

    #[test]
    fn live_violations_have_room_before_the_only_violation_of_a_pod_that_is_gone() {
        let mut node = Crowded::new();
        let pods = ["gone0", "gone1", "gone2"];
        let listed = |ago| pods.map(|pod| ("ns-a", pod, "x".to_owned(), ago)).to_vec();
        node.list_found(&listed(0));
        for pod in pods {
            node.ledger.pod_gone(&PodRef { namespace: "ns-a".into(), pod: pod.into() }, at(node.minute));
        }
        node.minute = 600;
        let mut keys = listed(600);
        keys.extend((0..8).map(|n| ("ns-a", "new", format!("p{n:02}"), 0)));
        assert_eq!(node.list_found(&keys), names("ns-a", "new", "p", 0..8));
    }

    proptest! {
        /// [`Crowded::list_found`] sees that the same report twice changes nothing.
        #[test]
        fn of_each_pod_that_lists_something_fresh_something_is_known(
            rounds in proptest::collection::vec(
                proptest::collection::btree_map((0..4_usize, 0..2_usize, 0..12_usize), prop_oneof![Just(0_u64), 1..90_u64], 0..30),
                1..6,
            ),
        ) {
            let (namespaces, pods) = (["ns-a", "ns-b", "ns-c", "ns-d"], ["one", "two"]);
            let mut node = Crowded::new();
            for round in rounds {
                let keys: Vec<_> = round
                    .iter()
                    .map(|((n, p, process), ago)| (namespaces[*n], pods[*p], process.to_string(), *ago))
                    .collect();
                let known = node.list_found(&keys);
                for (namespace, pod, _, _) in keys.iter().filter(|(.., ago)| *ago == 0) {
                    let prefix = format!("{namespace}/{pod}/");
                    prop_assert!(known.iter().any(|key| key.starts_with(&prefix)), "{prefix} in {known:?}");
                }
            }
        }
    }
}
