//! Who has room among the violations of one node, when there are more than it may have here.
//!
//! A tenant can run any number of processes with any names. So namespaces share the room fairly, and the Pods of a namespace share
//! what it has: one tenant's flood leaves every other tenant's violations in place, and one Pod's flood those of the other Pods.
//! Within a Pod the violations that were seen first stay, so that new names push out nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::node::Node;
use crate::Moment;
use crate::names::{Key, KeyRef};
use crate::report::RecordRef;
use crate::shares::fair_share;

/// What there is room for.
#[derive(Default)]
pub(super) struct Room {
    /// The violations that make room for others. They are no longer the node's.
    pub(super) evicted: Vec<Key>,
    /// The listed violations that are not known and for which there is no room, in the order of their keys.
    refused: BTreeSet<Key>,
}

/// A listed violation that is not known.
struct New<'a> {
    key: KeyRef<'a>,
    is_young: bool,
}

/// A violation of a namespace that has more than its share.
struct Candidate {
    key: Key,
    /// Forgetting it loses nothing that can't be judged anew.
    is_expendable: bool,
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
    /// Makes room for what `listed` says, in the order of the keys, so that no more than `max` violations are known. `is_young` is
    /// whether a record would be believed at first sight.
    pub(super) fn make_room(
        &mut self,
        listed: &[RecordRef<'_>],
        max: usize,
        is_young: impl Fn(&RecordRef<'_>) -> bool,
    ) -> Room {
        let room = max.saturating_sub(self.evidence.len());
        if listed.len() <= room {
            return Room::default();
        }
        let new: Vec<New<'_>> = listed
            .iter()
            .filter(|record| self.evidence_of(record.key).is_none())
            .map(|record| New { key: record.key, is_young: is_young(record) })
            .collect();
        let is_listed = |key: &Key| listed.binary_search_by(|record| record.key.cmp(&key.view())).is_ok();
        let evicted = self.evict(new.len().saturating_sub(room), is_listed);
        let mut room = Room { evicted, ..Room::default() };
        if self.evidence.len() + new.len() > max {
            self.share_out(&new, max, &mut room);
        }
        room
    }

    fn share_out(&mut self, new: &[New<'_>], max: usize, room: &mut Room) {
        let mut wanted: BTreeMap<&str, usize> = BTreeMap::new();
        let known = self.evidence.iter().map(|(key, _)| &*key.namespace);
        for namespace in known.chain(new.iter().map(|new| new.key.namespace)) {
            *wanted.entry(namespace).or_default() += 1;
        }
        let mut wants: Vec<usize> = wanted.values().copied().collect();
        let (share, mut left) = fair_share(&mut wants, max);
        let mut out: Vec<Candidate> = Vec::new();
        for (namespace, wanted) in wanted.into_iter().filter(|(_, wanted)| *wanted > share) {
            let is_one_more = left > 0 && wanted > share;
            left -= usize::from(is_one_more);
            let candidates = self.candidates(namespace, new);
            out.extend(candidates.into_iter().skip(share + usize::from(is_one_more)));
        }
        for Candidate { key, first_seen, .. } in out {
            if first_seen.is_some() {
                self.evidence.remove(&key);
                room.evicted.push(key.clone());
            }
            room.refused.insert(key);
        }
    }

    /// The violations of a namespace, in the order in which they are to have room.
    fn candidates(&self, namespace: &str, new: &[New<'_>]) -> Vec<Candidate> {
        let known = self.evidence.iter().filter(|(key, _)| *key.namespace == *namespace);
        let known = known.map(|(key, evidence)| Candidate {
            key: key.clone(),
            is_expendable: evidence.is_expendable(),
            first_seen: Some(evidence.first_seen()),
            rank: 0,
        });
        let new = new.iter().filter(|new| new.key.namespace == namespace).map(|new| Candidate {
            key: Key::new(new.key.namespace, new.key.pod, new.key.process),
            is_expendable: !new.is_young,
            first_seen: None,
            rank: 0,
        });
        let mut candidates: Vec<Candidate> = known.chain(new).collect();
        let seen_order = |candidate: &Candidate| (candidate.first_seen.is_none(), candidate.first_seen);
        candidates.sort_by(|a, b| {
            let by_pod = (&a.key.pod, a.is_expendable).cmp(&(&b.key.pod, b.is_expendable));
            by_pod.then(seen_order(a).cmp(&seen_order(b))).then_with(|| a.key.cmp(&b.key))
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
            let by_rank = (a.is_expendable, a.rank).cmp(&(b.is_expendable, b.rank));
            by_rank.then(seen_order(a).cmp(&seen_order(b))).then_with(|| a.key.cmp(&b.key))
        });
        candidates
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;
    use proptest::prelude::*;

    use crate::Moment;
    use crate::ledger::{Detection, Ledger};
    use crate::names::{Key, NodeName};
    use crate::report::{Answer, Outcome, Record, Rejection, Report, Target};

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

        /// The agent lists these, each found just now. Returns what is known then.
        fn list(&mut self, keys: &[(&str, &str, String)]) -> Vec<String> {
            self.minute += 1;
            let now = at(self.minute);
            let records = keys.iter().map(|(namespace, pod, process)| Record {
                timestamp: now.wall().to_string().into(),
                detected_at: now.wall(),
                ..Record::of(Key::new(*namespace, *pod, process.as_str()))
            });
            let answer = Answer { records: records.collect(), date: Some(now.wall()), ..Answer::default() };
            self.ledger.absorb(&Report { target: target(), at: now, outcome: Outcome::Complete(answer) });
            let snapshot = self.ledger.snapshot(now);
            assert!(snapshot.violations.len() <= Self::MAX);
            let name = |key: &Key| format!("{}/{}/{}", key.namespace, key.pod, key.process);
            snapshot.violations.iter().map(|violation| name(&violation.key)).collect()
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

    proptest! {
        #[test]
        fn a_namespace_with_no_more_than_its_share_has_room_for_all_it_has(
            rounds in proptest::collection::vec(proptest::collection::btree_set((0..4_usize, 0..2_usize, 0..12_usize), 0..30), 1..6),
        ) {
            let (namespaces, pods) = (["ns-a", "ns-b", "ns-c", "ns-d"], ["one", "two"]);
            let mut node = Crowded::new();
            for round in rounds {
                let keys: Vec<_> =
                    round.iter().map(|(n, p, process)| (namespaces[*n], pods[*p], process.to_string())).collect();
                let known = node.list(&keys);
                for namespace in namespaces {
                    let listed: Vec<_> = keys.iter().filter(|(of, ..)| *of == namespace).collect();
                    let before = known.iter().filter(|key| key.starts_with(namespace)).count();
                    // Each of four has a quarter. What it had before and is not listed now counts too.
                    if before <= Crowded::MAX / 4 && listed.len() <= Crowded::MAX / 4 {
                        for (_, pod, process) in &listed {
                            let key = format!("{namespace}/{pod}/{process}");
                            let is_known = known.contains(&key);
                            prop_assert!(is_known || before == Crowded::MAX / 4, "{key} in {known:?}");
                        }
                    }
                    let pods_listed = pods.iter().filter(|pod| listed.iter().any(|(_, of, _)| of == *pod));
                    for pod in pods_listed {
                        let prefix = format!("{namespace}/{pod}/");
                        prop_assert!(known.iter().any(|key| key.starts_with(&prefix)), "{prefix} in {known:?}");
                    }
                }
            }
        }
    }
}
