//! The order in which accused namespaces are looked up. Pure: the caller passes the waiting namespaces and since when
//! they wait.
//!
//! Each accusing node has a queue of the namespaces that wait because of its accusations, and the queues are served in
//! turn: the queue that was served longest ago comes first. So a node that accuses thousands of namespaces delays no
//! other node's accusations. A namespace is a tenant, and has one place in each queue however many of its Pods are
//! accused.
//!
//! Within a queue a namespace that has never been looked up comes first, then the one that has waited longest. A
//! namespace waits since its first accusation that is not judged, or since its last look-up if that was later. Renewed
//! evidence changes no place, and each look-up moves its namespace to the end. So every namespace is looked up after at
//! most as many look-ups as its queue is long. Equal ones are ordered by a hash that changes with each selection, so
//! that no name is always last.
//!
//! A part of the places is reserved for the namespaces in which no accusation waits, however many nodes accuse. Their
//! Services and deleted Pods have to be known, too.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::hash::{DefaultHasher, Hash, Hasher};

use procscan_core::Moment;
use procscan_core::names::{NodeName, Text};

/// One place in this many is for the namespaces in which no accusation waits.
const QUIET_SHARE: usize = 4;

/// For how many turns an empty queue keeps its place: otherwise a node that accuses again each second would come first
/// each time.
const MAX_REMEMBERED_TURNS: u64 = 1000;

/// A namespace that may be looked up now.
#[derive(Clone, Debug)]
pub(super) struct Candidate<'a> {
    /// Its name.
    pub(super) namespace: &'a Text,
    /// The nodes whose accusations wait; empty if none waits.
    pub(super) nodes: BTreeSet<&'a NodeName>,
    /// It has been looked up before.
    pub(super) is_known: bool,
    /// Since when it has been waiting for this look-up.
    pub(super) since: Moment,
}

/// When each queue was served.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The number of the turn in which each node's queue was served last.
    served: BTreeMap<NodeName, u64>,
    /// How many turns there have been.
    count: u64,
    /// How many places were given since the last one that was reserved for a namespace in which no accusation waits.
    since_reserved: usize,
}

/// A namespace's place in its queues; the smallest comes first.
type Place<'a> = (bool, Moment, u64, &'a Text);
/// The namespaces that wait because of one node's accusations, the first on top.
type Queue<'a> = BinaryHeap<Reverse<Place<'a>>>;

impl Turns {
    /// Takes up to `most` candidates, in the order in which to look up them.
    pub(super) fn take(&mut self, candidates: &[Candidate<'_>], most: usize) -> Vec<Text> {
        let salt = self.count;
        let mut quiet: Queue<'_> = BinaryHeap::new();
        let mut queues: BTreeMap<&NodeName, Queue<'_>> = BTreeMap::new();
        for candidate in candidates {
            let place = Reverse(candidate.place(salt));
            if candidate.nodes.is_empty() {
                quiet.push(place);
            }
            for &node in &candidate.nodes {
                queues.entry(node).or_default().push(place);
            }
        }
        let turns = self.count;
        self.served.retain(|node, turn| queues.contains_key(node) || *turn + MAX_REMEMBERED_TURNS > turns);
        let reserved = if queues.is_empty() { most } else { self.reserve(most, quiet.len()) };
        let mut taken: BTreeSet<&Text> = BTreeSet::new();
        let mut order: Vec<Text> = Vec::new();
        while order.len() + reserved < most {
            let Some(namespace) = self.serve(&mut queues, &taken) else { break };
            taken.insert(namespace);
            order.push(namespace.clone());
        }
        while order.len() < most {
            let Some(Reverse((.., namespace))) = quiet.pop() else { break };
            order.push(namespace.clone());
        }
        order
    }

    /// How many of `most` places are for namespaces in which nothing waits, if there are as many as `quiet`. Places may
    /// be given one by one.
    fn reserve(&mut self, most: usize, quiet: usize) -> usize {
        let given = self.since_reserved + most;
        self.since_reserved = if quiet == 0 { 0 } else { given % QUIET_SHARE };
        (given / QUIET_SHARE).min(quiet)
    }

    /// Serves the queue whose turn it is, and skips namespaces that were taken from other queues.
    fn serve<'a>(
        &mut self,
        queues: &mut BTreeMap<&'a NodeName, Queue<'a>>,
        taken: &BTreeSet<&Text>,
    ) -> Option<&'a Text> {
        loop {
            let turn = |node: &NodeName| self.served.get(node).copied().unwrap_or(0);
            let next = queues
                .iter()
                .min_by_key(|(node, queue)| (turn(node), queue.peek().map(|Reverse(place)| *place)));
            let node = *next?.0;
            let first = queues.get_mut(node).and_then(BinaryHeap::pop);
            let Some(Reverse((.., namespace))) = first else {
                queues.remove(node);
                continue;
            };
            if taken.contains(namespace) {
                continue;
            }
            self.count += 1;
            self.served.insert(node.clone(), self.count);
            return Some(namespace);
        }
    }
}

impl<'a> Candidate<'a> {
    fn place(&self, salt: u64) -> Place<'a> {
        let mut hasher = DefaultHasher::new();
        (salt, self.namespace).hash(&mut hasher);
        (self.is_known, self.since, hasher.finish(), self.namespace)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::new(Duration::from_secs(seconds), Timestamp::UNIX_EPOCH)
    }

    /// Namespaces by name, with the nodes that accuse, whether they have been looked up, and since when they wait.
    fn take(turns: &mut Turns, all: &[(&str, &[&str], bool, u64)], most: usize) -> Vec<String> {
        let names: Vec<Text> = all.iter().map(|(name, ..)| (*name).into()).collect();
        let nodes: Vec<Vec<NodeName>> = all
            .iter()
            .map(|(_, nodes, ..)| nodes.iter().map(|node| NodeName::new(*node)).collect())
            .collect();
        let candidates: Vec<Candidate<'_>> = all
            .iter()
            .zip(names.iter().zip(&nodes))
            .map(|((_, _, is_known, since), (namespace, nodes))| Candidate {
                namespace,
                nodes: nodes.iter().collect(),
                is_known: *is_known,
                since: at(*since),
            })
            .collect();
        turns.take(&candidates, most).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn within_a_queue_new_namespaces_come_first_and_then_the_ones_that_wait_longest() {
        let all: [(&str, &[&str], bool, u64); 4] = [
            ("ns-a", &["n1"], true, 3),
            ("ns-b", &["n1"], true, 1),
            ("ns-c", &["n1"], false, 9),
            ("ns-d", &["n1"], false, 8),
        ];
        assert_eq!(take(&mut Turns::default(), &all, 4), ["ns-d", "ns-c", "ns-b", "ns-a"]);
    }

    #[test]
    fn the_queue_that_was_served_longest_ago_comes_first() {
        let all: [(&str, &[&str], bool, u64); 4] = [
            ("ns-a", &["liar"], false, 1),
            ("ns-b", &["liar"], false, 1),
            ("ns-c", &["n1"], true, 7),
            ("ns-d", &["n2"], true, 8),
        ];
        let mut turns = Turns::default();
        let first = take(&mut turns, &all, 2);
        assert!(first[0] == "ns-a" || first[0] == "ns-b");
        assert_eq!(first[1], "ns-c");
        assert_eq!(take(&mut turns, &all, 1), ["ns-d"]);
    }

    #[test]
    fn a_namespace_that_two_nodes_accuse_does_not_wait_in_the_longer_queue() {
        let lies: Vec<String> = (0..100).map(|n| format!("ns-{n:03}")).collect();
        let mut all: Vec<(&str, &[&str], bool, u64)> =
            lies.iter().map(|name| (&**name, &["liar"] as &[&str], false, 1)).collect();
        all.push(("ns-x", &["liar", "n1"], true, 50));
        let taken = take(&mut Turns::default(), &all, 2);
        assert!(taken.contains(&"ns-x".to_owned()), "{taken:?}");
        assert_ne!(taken[0], taken[1], "each once");
    }

    #[test]
    fn a_part_of_each_selection_is_reserved_for_namespaces_without_waiting_accusations() {
        let names: Vec<String> = (0..20).map(|n| format!("ns-{n:02}")).collect();
        let mut all: Vec<(&str, &[&str], bool, u64)> =
            names.iter().map(|name| (&**name, &["n1"] as &[&str], false, 1)).collect();
        all.extend([
            ("quiet-a", &[] as &[&str], true, 5),
            ("quiet-b", &[], true, 4),
            ("quiet-c", &[], true, 3),
        ]);
        let taken = take(&mut Turns::default(), &all, 8);
        assert_eq!(taken[6..], ["quiet-c", "quiet-b"]);
        assert_eq!(take(&mut Turns::default(), &all[20..], 8), ["quiet-c", "quiet-b", "quiet-a"]);
        assert_eq!(take(&mut Turns::default(), &all[..3], 8).len(), 3);
    }

    #[test]
    fn no_name_is_always_last_among_equals() {
        let all: [(&str, &[&str], bool, u64); 2] = [("ns-a", &["n1"], false, 1), ("ns-b", &["n1"], false, 1)];
        let mut turns = Turns::default();
        let firsts: BTreeSet<String> = (0..32).flat_map(|_| take(&mut turns, &all, 1)).collect();
        assert_eq!(firsts.len(), 2);
    }
}
