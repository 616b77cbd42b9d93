//! The evidence of every violation over time. Presence and absence both need evidence.
//!
//! A record in an answer does not prove that its process runs, because an agent may still list a process that ended.
//! An answer without a record does not prove that the process ended, because an agent may list one of several or may
//! have just restarted. So the ledger believes in presence only when a record's timestamp *changes*. It believes in
//! absence only after the violation's own node has answered for long enough without such a change. If an agent has
//! never listed two violations in one answer, a fresh record of one violation is no evidence about another.
//!
//! Evidence is stored per (violation, node), so nodes that disagree do not overwrite each other.

mod absorbing;
mod change;
mod evidence;
mod memory;
mod node;
mod quota;
mod remembered;
mod rules;
mod steps;
mod target;
mod texts;
mod totals;
mod view;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

pub use self::change::{Change, ChangeKind, NodeChange};
pub use self::remembered::Remembered;
pub use self::rules::Detection;
pub(crate) use self::totals::SHORT_CMDLINE;

use self::node::Node;
use self::target::TargetEntry;
use self::texts::Texts;
use self::totals::Totals;
use crate::Moment;
use crate::clearing::Cleared;
use crate::names::{Key, NodeName, PodRef, Text};
use crate::report::{Record, Rejections, Target};
use crate::sorted_vec::SortedVecSet;
use crate::time::CompactDuration;

/// All violations, nodes and targets. Owned by one task; others read its snapshots.
#[derive(Debug)]
pub struct Ledger {
    since: Moment,
    rules: Detection,
    /// Boxed, because a tree has room for nearly twice as many entries as it has.
    nodes: BTreeMap<NodeName, Box<Node>>,
    /// Which nodes have evidence of a violation, and since when its Pod is known to be gone.
    violations: BTreeMap<Key, ViolationEntry>,
    targets: BTreeMap<Text, TargetEntry>,
    /// Texts that records have in common are in memory once.
    texts: Texts,
    totals: Totals,
    /// The change of the node itself that the last report caused.
    node_change: Option<NodeChange>,
    /// The number of agents that should exist but have no address: a DaemonSet's desired number beyond the listed
    /// targets.
    unlisted: usize,
    rejected: Rejections,
    revision: u64,
    changes: u64,
    deadlines: Deadlines,
    list: Arc<[Arc<Record>]>,
    list_changed_at: Moment,
    rounds: u64,
}

/// When time alone may change a node, by the monotonic clock. A node is in it at its earliest time, and perhaps at
/// later times that no longer count.
type Deadlines = BinaryHeap<Reverse<(CompactDuration, NodeName)>>;

#[derive(Debug, Default)]
struct ViolationEntry {
    nodes: SortedVecSet<NodeName>,
    pod_gone: Option<Moment>,
}

impl Ledger {
    /// An empty ledger. `now` is the time of its empty list.
    pub fn new(rules: Detection, now: Moment) -> Self {
        Self {
            since: now,
            rules,
            nodes: BTreeMap::new(),
            violations: BTreeMap::new(),
            targets: BTreeMap::new(),
            texts: Texts::default(),
            totals: Totals::default(),
            node_change: None,
            unlisted: 0,
            rejected: Rejections::default(),
            revision: 0,
            changes: 0,
            deadlines: BinaryHeap::new(),
            list: Arc::new([]),
            list_changed_at: now,
            rounds: 0,
        }
    }

    /// Replaces the rules of evidence. Evidence that has cleared stays cleared.
    pub fn set_rules(&mut self, rules: Detection) {
        self.rules = rules;
        let nodes: Vec<NodeName> = self.nodes.keys().cloned().collect();
        for name in nodes {
            self.schedule(&name);
        }
        self.count_change();
    }

    /// Sets which targets are expected to answer. `unlisted` are those that should exist but have no address.
    ///
    /// When a target leaves, the violations of its node stay until they clear by the rules.
    pub fn expect(&mut self, targets: impl IntoIterator<Item = Target>, unlisted: usize) {
        for entry in self.targets.values_mut() {
            entry.expected = false;
        }
        for target in targets {
            let entry =
                self.targets.entry(target.address).or_insert_with(|| TargetEntry::new(target.node.clone()));
            entry.expected = true;
            if entry.node != target.node {
                *entry = TargetEntry::new(target.node);
            }
        }
        let all = std::mem::take(&mut self.targets);
        // Rebuilt from the targets that are left, because a tree that grows is half empty.
        self.targets = all.into_iter().filter(|(_, entry)| entry.expected).collect();
        for node in self.nodes.values_mut() {
            node.note_addresses(|address| self.targets.contains_key(address));
        }
        self.drop_idle_nodes();
        self.unlisted = unlisted;
        self.count_change();
    }

    /// Notes that a round over all targets is done. Rounds are counted for readiness and for limits per round.
    pub fn round_done(&mut self) {
        self.totals.count_cmdlines(&mut self.nodes);
        self.rounds += 1;
        self.revision += 1;
    }

    /// Takes the change of the node itself that the last report caused. Returns each change once.
    pub fn take_node_change(&mut self) -> Option<NodeChange> {
        self.node_change.take()
    }

    /// How many command lines were cut since the last call, because there was no room for the whole command line (see
    /// [`Detection::cmdline_budget`]). A command line that stays cut counts once.
    pub fn take_cut_cmdlines(&mut self) -> usize {
        std::mem::take(&mut self.totals.cut_cmdlines)
    }

    /// Whether all nodes together have as many violations as they may have (see [`Detection::max_keys`]).
    pub fn is_full(&self) -> bool {
        self.totals.keys >= self.rules.max_keys
    }

    /// Applies the proof that a Pod is gone: a direct GET answered 404, another UID, or a terminal phase. Never a
    /// cached absence.
    ///
    /// Clears the Pod's violations until fresh evidence comes. The App's block does not end by it (see
    /// [`crate::policy`]).
    pub fn pod_gone(&mut self, pod: &PodRef, at: Moment) -> Vec<Change> {
        let mut changes = Vec::new();
        for (key, entry) in &mut self.violations {
            let before = entry.pod_gone;
            if key.namespace != pod.namespace || key.pod != pod.pod || before.is_some_and(|gone| gone >= at) {
                continue;
            }
            entry.pod_gone = Some(at);
            let nodes = entry.nodes.iter().filter(|name| {
                let evidence = self.nodes.get(name).and_then(|node| node.evidence.get(key));
                // Evidence that an earlier proof had cleared is not cleared again.
                evidence.is_some_and(|evidence| evidence.has_fresh_evidence_since(before))
            });
            changes.extend(nodes.map(|node| Change {
                key: key.clone(),
                node: node.clone(),
                kind: ChangeKind::Cleared(Cleared::PodGone),
            }));
        }
        if !changes.is_empty() {
            self.count_change();
        }
        changes
    }

    /// Advances to `now`: evidence grows old, the wait for lost nodes ends, tombstones expire. Idempotent for one
    /// `now`.
    ///
    /// Looks only at the nodes whose time has come.
    pub fn advance(&mut self, now: Moment) -> Vec<Change> {
        let mut due = BTreeSet::new();
        while let Some(Reverse((at, name))) = self.deadlines.peek() {
            if at.get() > now.uptime() {
                break;
            }
            if self.nodes.get_mut(name).is_some_and(|node| node.deadline.take_if(|next| next == at).is_some())
            {
                due.insert(name.clone());
            }
            self.deadlines.pop();
        }
        let mut changes = Vec::new();
        let mut expired = false;
        for name in due {
            let Some(node) = self.nodes.get_mut(&name) else { continue };
            let lifetime = self.rules.same_incident;
            let change = |(key, kind)| Change { key, node: name.clone(), kind };
            changes.extend(node.grow_old(&self.rules, now).into_iter().map(change));
            let before = node.evidence.len();
            let old = node.expire(now, lifetime);
            self.totals.note(before, node.evidence.len());
            for key in old {
                forget(&mut self.violations, &key, &name);
                expired = true;
            }
            self.schedule(&name);
        }
        if expired {
            self.drop_idle_nodes();
        }
        if expired || !changes.is_empty() {
            self.count_change();
        }
        changes
    }

    fn schedule(&mut self, name: &NodeName) {
        if let Some(node) = self.nodes.get_mut(name) {
            schedule(name, node, &self.rules, &mut self.deadlines);
        }
    }

    fn count_change(&mut self) {
        self.revision += 1;
        self.changes += 1;
    }

    /// Drops nodes that have neither evidence nor a target.
    fn drop_idle_nodes(&mut self) {
        let asked: BTreeSet<&NodeName> = self.targets.values().map(|target| &target.node).collect();
        self.nodes.retain(|name, node| !node.evidence.is_empty() || asked.contains(name));
    }

    /// Counts every change that a snapshot shows.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Counts the changes that may change a decision: evidence appeared, grew old or cleared, or the targets changed.
    ///
    /// Renewed evidence does not count, because it matters only when something else is decided. The end of a round
    /// does not count either.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// How many rounds are done.
    pub fn rounds(&self) -> u64 {
        self.rounds
    }
}

/// Notes when time alone may change a node, after anything else has changed it.
fn schedule(name: &NodeName, node: &mut Node, rules: &Detection, deadlines: &mut Deadlines) {
    let Some(at) = node.next_deadline(rules).map(CompactDuration::from) else { return };
    // A deadline that is too early costs little, and then no entry of the heap has to be found and removed.
    if node.deadline.is_none_or(|noted| at < noted) {
        node.deadline = Some(at);
        deadlines.push(Reverse((at, name.clone())));
    }
}

fn forget(violations: &mut BTreeMap<Key, ViolationEntry>, key: &Key, node: &NodeName) {
    if let Some(entry) = violations.get_mut(key) {
        entry.nodes.remove(node);
        if entry.nodes.is_empty() {
            violations.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::*;
    use crate::report::{Answer, Outcome, Record, Report, Target};

    #[test]
    fn a_violation_is_removed_when_its_tombstone_expires() {
        let at = |minutes| {
            let passed = Duration::from_mins(minutes);
            Moment::new(passed, Timestamp::UNIX_EPOCH + passed)
        };
        let target = Target { address: "n1:9090".into(), node: NodeName::new("n1") };
        let mut ledger = Ledger::new(Detection::default(), at(0));
        ledger.expect([target.clone()], 0);
        for minute in 0..60 {
            let records = (minute == 0).then(|| Record::of(Key::new("ns-a", "web", "xmrig")));
            let answer = Answer { records: records.into_iter().collect(), ..Answer::default() };
            let outcome = Outcome::Complete(answer);
            ledger.absorb(&Report { target: target.clone(), at: at(minute), outcome });
        }
        assert_eq!(ledger.violations.len(), 1, "its tombstone");
        ledger.advance(at(60 + 48 * 60));
        assert!(ledger.violations.is_empty());
    }
}
