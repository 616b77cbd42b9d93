//! What is known of every violation over time: presence and absence both need evidence.
//!
//! A record in an answer does not mean that its process runs (an agent keeps listing one that ended), and an answer
//! without it does not mean that it ended (an agent lists one of several, or has just restarted). So the ledger
//! believes in presence only when a record's timestamp *changes*, and in absence only after the violation's own node
//! has answered for long enough without such a change. Silence is evidence of nothing. If an agent has never listed two
//! violations in one answer, a fresh record of one violation is no evidence about another.
//!
//! Evidence is kept per (violation, node): nodes that disagree do not overwrite each other.

mod clock;
mod evidence;
mod node;
mod steps;
mod target;
mod texts;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

pub use self::clock::{NodeClock, Reading};
pub use self::evidence::{Cleared, Presence};

use self::evidence::{Evidence, Listed};
use self::node::Node;
use self::steps::Longest;
use self::target::TargetEntry;
use self::texts::Texts;
use crate::Moment;
use crate::dense::Dense;
use crate::few::FewSet;
use crate::moment::Span;
use crate::names::{Key, KeyRef, NodeName, PodRef, Text};
use crate::report::{Answer, LeftOut, Outcome, Record, RecordRef, Rejection, Rejections, Report, Target};
use crate::snapshot::{Coverage, Snapshot, State, TargetState, TargetView, Violation};

/// The rules of evidence.
#[derive(Clone, Debug)]
pub struct Detection {
    /// How old a record may be at first sight, by its agent's own clock, to count as fresh; and how long fresh evidence
    /// keeps a violation active. At least 3 learned scan intervals of its node are allowed in any case, but no new
    /// block follows from evidence older than this (see [`crate::policy::Policy::max_age`]).
    pub max_age: Duration,
    /// How long a node has to answer, in sum, without fresh evidence of a violation until it clears. Never less than 6
    /// learned scan intervals of the node. Answers that say nothing of the violation do not count.
    pub clear_after: Duration,
    /// How long to wait for a node from which nothing of an answer comes. And how long to wait, in answered time, for a
    /// node whose answers say nothing of a violation.
    pub unreachable_limit: Duration,
    /// Offending again within this time continues the same incident; tombstones are kept as long.
    pub same_incident: Duration,
    /// How much time one answer can vouch for: the collector's round interval.
    pub answer_gap: Duration,
    /// How recent a target's last whole answer must be for its coverage to count as fresh.
    pub fresh_within: Duration,
    /// Violations, tombstones included, that one node may have here. A flood costs the flooding node only.
    pub max_keys_per_node: usize,
}

impl Default for Detection {
    fn default() -> Self {
        Self {
            max_age: Duration::from_mins(30),
            clear_after: Duration::from_mins(30),
            unreachable_limit: Duration::from_hours(24),
            same_incident: Duration::from_hours(24),
            answer_gap: Duration::from_mins(1),
            fresh_within: Duration::from_secs(150),
            max_keys_per_node: 4000,
        }
    }
}

/// Something that changed, for logs and streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The violation.
    pub key: Key,
    /// The node whose evidence it is.
    pub node: NodeName,
    /// What happened.
    pub kind: ChangeKind,
}

/// What happened to one node's evidence of a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// Fresh evidence where there was none, or only a tombstone.
    Appeared,
    /// Listed for the first time, but too old or of unknown age: no evidence yet.
    Sighted,
    /// Fresh evidence has become too old, without proof of absence.
    Unconfirmed,
    /// Absent, and by which rule.
    Cleared(Cleared),
}

/// What happened to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeChange {
    /// The node is there, but none of its answers could be used for longer than `fresh_within`. What is known of it
    /// stays until an answer can be used.
    Unusable,
    /// Its answers can be used again.
    UsableAgain,
}

/// One node's evidence as it was known before the start, or to another replica.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// The violation.
    pub key: Key,
    /// The node.
    pub node: NodeName,
    /// The record as it was last fresh, without its command line.
    pub record: Record,
    /// When it was first listed.
    pub first_seen: Timestamp,
    /// When it was last fresh.
    pub fresh_at: Timestamp,
    /// How many different timestamps were seen.
    pub observations: u64,
    /// When and by which rule it cleared, if it has.
    pub cleared: Option<(Timestamp, Cleared)>,
    /// The learned scan interval of the node's agent; longer if the violation itself was unseen for longer and came
    /// back.
    pub scan_interval: Option<Duration>,
}

impl Remembered {
    fn away(&self) -> Span {
        Longest::of(self.scan_interval.unwrap_or_default()).get()
    }
}

/// Every violation, every node, every target. Owned by one task; others read its snapshots.
#[derive(Debug)]
pub struct Ledger {
    since: Moment,
    rules: Detection,
    /// Boxed, because a tree has room for nearly twice as many as are in it.
    nodes: BTreeMap<NodeName, Box<Node>>,
    /// Which nodes have evidence of a violation, and since when its Pod is known to be gone.
    violations: BTreeMap<Key, Entry>,
    /// Of `violations`.
    dense: Dense,
    targets: BTreeMap<Text, TargetEntry>,
    /// What records have in common is in memory once.
    texts: Texts,
    /// What the last report has changed of its node as such.
    node_change: Option<NodeChange>,
    /// Agents that should exist but have no address: a DaemonSet's desired number beyond what is listed.
    unlisted: usize,
    rejected: Rejections,
    revision: u64,
    news: u64,
    deadlines: Deadlines,
    list: Arc<[Arc<Record>]>,
    list_changed_at: Moment,
    rounds: u64,
}

/// When time alone may change something of a node, by the monotonic clock. A node is in it at its earliest time, and perhaps at later
/// ones that no longer count.
type Deadlines = BinaryHeap<Reverse<(Span, NodeName)>>;

#[derive(Debug, Default)]
struct Entry {
    nodes: FewSet<NodeName>,
    pod_gone: Option<Moment>,
}

impl Ledger {
    /// An empty ledger. `now` is when its (empty) list came to be.
    pub fn new(rules: Detection, now: Moment) -> Self {
        Self {
            since: now,
            rules,
            nodes: BTreeMap::new(),
            violations: BTreeMap::new(),
            dense: Dense::default(),
            targets: BTreeMap::new(),
            texts: Texts::default(),
            node_change: None,
            unlisted: 0,
            rejected: Rejections::default(),
            revision: 0,
            news: 0,
            deadlines: BinaryHeap::new(),
            list: Arc::new([]),
            list_changed_at: now,
            rounds: 0,
        }
    }

    /// Replaces the rules of evidence. What has cleared stays cleared.
    pub fn set_rules(&mut self, rules: Detection) {
        self.rules = rules;
        let nodes: Vec<NodeName> = self.nodes.keys().cloned().collect();
        for name in nodes {
            self.schedule(&name);
        }
        self.tell_news();
    }

    /// Which targets are expected to answer. `unlisted` are those that should exist but have no address.
    ///
    /// A target that leaves keeps its node's violations until they clear by the rules.
    pub fn expect(&mut self, targets: impl IntoIterator<Item = Target>, unlisted: usize) {
        for entry in self.targets.values_mut() {
            entry.expected = false;
        }
        for target in targets {
            let entry =
                self.targets.entry(target.address).or_insert_with(|| TargetEntry::new(target.node.clone()));
            entry.expected = true;
            if entry.node != target.node {
                *entry = TargetEntry { expected: true, ..TargetEntry::new(target.node) };
            }
        }
        let all = std::mem::take(&mut self.targets);
        // Made anew from those that are left, because a tree that grows is half empty.
        self.targets = all.into_iter().filter(|(_, entry)| entry.expected).collect();
        for node in self.nodes.values_mut() {
            node.note_addresses(|address| self.targets.contains_key(address));
        }
        self.drop_idle_nodes();
        self.unlisted = unlisted;
        self.tell_news();
    }

    /// A round over all targets is done. Rounds are counted for readiness and for limits per round.
    pub fn round_done(&mut self) {
        self.dense.fill(&mut self.violations);
        self.rounds += 1;
        self.revision += 1;
    }

    /// Takes in one report. The same report twice changes nothing; the order of reports of different nodes does not matter.
    ///
    /// A report of a target that is older than one already taken in is ignored.
    pub fn absorb(&mut self, report: &Report) -> Vec<Change> {
        self.node_change = None;
        // A target that has left while it was being asked has nothing to say any more.
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
            let Self { rules, violations, texts, rejected, .. } = self;
            changes = Common { rules, violations, texts, rejected }.take_in(&name, node, answer, report.at);
        }
        if is_whole {
            let nothing = LeftOut::default();
            node.count_unheard(added, answer.map_or(&nothing, |answer| &answer.left_out));
            let clock = node.clock(&self.rules);
            changes.extend(node.evidence.iter_mut().filter_map(|(key, evidence)| {
                let why = evidence.try_clear(&clock, report.at)?;
                Some(Change { key: key.clone(), node: name.clone(), kind: ChangeKind::Cleared(why) })
            }));
        }
        schedule(&name, node, &self.rules, &mut self.deadlines);
        if !changes.is_empty() {
            self.tell_news();
        }
        changes
    }

    /// What the report that was taken in last has changed of its node as such. Says it once.
    pub fn take_node_change(&mut self) -> Option<NodeChange> {
        self.node_change.take()
    }

    /// Proof that a Pod is gone: a direct GET answered 404, another UID, or a terminal phase. Never a cached absence.
    ///
    /// Clears the Pod's violations until fresh evidence comes. The App's block does not end by it (see [`crate::policy`]).
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
                // What had been cleared by an earlier proof is not cleared once more.
                evidence.is_some_and(|evidence| evidence.is_news_since(before))
            });
            changes.extend(nodes.map(|node| Change {
                key: key.clone(),
                node: node.clone(),
                kind: ChangeKind::Cleared(Cleared::PodGone),
            }));
        }
        if !changes.is_empty() {
            self.tell_news();
        }
        changes
    }

    /// Takes over what was known before the start, or to another replica: tombstones stay tombstones, and clearing clocks begin
    /// anew, because our own restart is evidence of nothing. What has been heard since is known better, and wins.
    pub fn remember(&mut self, remembered: impl IntoIterator<Item = Remembered>, now: Moment) {
        // Of several words the latest is right.
        let mut intervals: BTreeMap<NodeName, (Timestamp, Duration)> = BTreeMap::new();
        let mut nodes = BTreeSet::new();
        for known in remembered {
            nodes.insert(known.node.clone());
            if let Some(interval) = known.scan_interval {
                let latest = intervals.entry(known.node.clone()).or_insert((known.fresh_at, interval));
                *latest = (*latest).max((known.fresh_at, interval));
            }
            let node = self.nodes.entry(known.node.clone()).or_insert_with(|| Box::new(Node::new(now)));
            let mark = node.reading();
            if let Some(evidence) = node.evidence.get_mut(&known.key) {
                evidence.merge(&known, now);
            } else if node.evidence.len() < self.rules.max_keys_per_node {
                self.violations.entry(known.key.clone()).or_default().nodes.insert(known.node.clone());
                node.evidence.insert(known.key.clone(), Evidence::remembered(&known, now, mark));
            }
        }
        for (name, (_, interval)) in intervals {
            if let Some(node) = self.nodes.get_mut(&name) {
                node.remember_interval(interval);
            }
        }
        for name in nodes {
            self.schedule(&name);
        }
        self.tell_news();
    }

    /// Lets time pass: evidence grows old, the wait for lost nodes ends, tombstones expire. Idempotent for one `now`.
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
            let keep = self.rules.same_incident;
            let told = |(key, kind)| Change { key, node: name.clone(), kind };
            changes.extend(node.grow_old(&self.rules, now).into_iter().map(told));
            for key in node.expire(now, keep) {
                forget(&mut self.violations, &key, &name);
                expired = true;
            }
            self.schedule(&name);
        }
        if expired {
            self.drop_idle_nodes();
        }
        if expired || !changes.is_empty() {
            self.tell_news();
        }
        changes
    }

    fn schedule(&mut self, name: &NodeName) {
        if let Some(node) = self.nodes.get_mut(name) {
            schedule(name, node, &self.rules, &mut self.deadlines);
        }
    }

    fn tell_news(&mut self) {
        self.revision += 1;
        self.news += 1;
    }

    /// A node without evidence and without a target has nothing left to tell.
    fn drop_idle_nodes(&mut self) {
        let asked: BTreeSet<&NodeName> = self.targets.values().map(|target| &target.node).collect();
        self.nodes.retain(|name, node| !node.evidence.is_empty() || asked.contains(name));
    }

    /// Counts every change of anything that a snapshot shows.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Counts what may change a decision: something appeared, grew old or cleared, others are to be asked.
    ///
    /// That evidence has been renewed is no news: it matters when something else is decided. Nor is it that a round is done.
    pub fn news(&self) -> u64 {
        self.news
    }

    /// How many rounds are done.
    pub fn rounds(&self) -> u64 {
        self.rounds
    }

    /// How much of the cluster is known as of `now`.
    pub fn coverage(&self, now: Moment) -> Coverage {
        let mut coverage = Coverage { never_seen: self.unlisted, ..Coverage::default() };
        for target in self.targets.values() {
            match target.state(&self.rules, now) {
                TargetState::Fresh => coverage.fresh += 1,
                TargetState::Stale | TargetState::Unusable if target.last_answer.is_some() => {
                    coverage.stale += 1;
                }
                TargetState::Stale | TargetState::Unusable | TargetState::NeverSeen => {
                    coverage.never_seen += 1;
                }
            }
        }
        coverage
    }

    /// The read view as of `now`. Takes `&mut self` because it notes when the list last changed.
    pub fn snapshot(&mut self, now: Moment) -> Snapshot {
        // `collect` would not know how many there are, and make room for nearly twice as many.
        let mut violations: Vec<Violation> = Vec::with_capacity(self.violations.len());
        violations.extend(self.violations.iter().filter_map(|(key, entry)| self.view(key, entry, now)));
        let shown = || violations.iter().filter(|v| v.state != State::Cleared).map(Violation::record);
        let same = shown().count() == self.list.len()
            && shown().zip(self.list.iter()).all(|(a, b)| Arc::ptr_eq(a, b) || a == b);
        if !same {
            self.list = shown().cloned().collect();
            self.list_changed_at = now;
        }

        let targets: Vec<TargetView> =
            self.targets.iter().map(|(address, entry)| entry.view(address, &self.rules, now)).collect();
        Snapshot {
            at: now,
            since: self.since,
            revision: self.revision,
            news: self.news,
            rounds: self.rounds,
            nodes: self.nodes.iter().map(|(name, node)| (name.clone(), node.view(&self.rules))).collect(),
            violations,
            list: self.list.clone(),
            list_changed_at: self.list_changed_at.wall(),
            targets,
            coverage: self.coverage(now),
            rejected: self.rejected.clone(),
        }
    }

    fn view(&self, key: &Key, entry: &Entry, now: Moment) -> Option<Violation> {
        let evidence = entry.nodes.iter().filter_map(|name| {
            let node = self.nodes.get(name)?;
            let (evidence, active_for) = (node.evidence.get(key)?, node.active_for(&self.rules));
            let mut view = evidence.view(name, now, active_for, node.hider_of(key));
            let is_gone = |gone: Moment| view.fresh_at.is_none_or(|fresh| fresh.uptime() <= gone.uptime());
            if view.presence != Presence::Cleared && entry.pod_gone.is_some_and(is_gone) {
                (view.presence, view.cleared) = (Presence::Cleared, Some(Cleared::PodGone));
                view.hidden_by = None;
            }
            Some(view)
        });
        Violation::new(key.clone(), evidence)
    }
}

/// What the records of all nodes have in common.
struct Common<'a> {
    rules: &'a Detection,
    violations: &'a mut BTreeMap<Key, Entry>,
    texts: &'a mut Texts,
    rejected: &'a mut Rejections,
}

impl Common<'_> {
    /// Takes in what `node` lists.
    fn take_in(&mut self, name: &NodeName, node: &mut Node, answer: &Answer, at: Moment) -> Vec<Change> {
        // One answer may list a key twice, in any order: the newest record speaks.
        let mut listed: Vec<RecordRef<'_>> = answer.records.iter().collect();
        listed.sort_by(|a, b| {
            let newest_first = || (b.detected_at, b.cmdline).cmp(&(a.detected_at, a.cmdline));
            a.key.cmp(&b.key).then_with(newest_first)
        });
        listed.dedup_by(|other, newest| other.key == newest.key);
        node.learn_interval(listed.iter().map(|record| record.detected_at).max());

        let room = self.rules.max_keys_per_node.saturating_sub(node.evidence.len());
        if listed.len() > room {
            let new_keys = listed.iter().filter(|record| node.evidence_of(record.key).is_none()).count();
            let is_listed = |key: &Key| listed.binary_search_by(|record| record.key.cmp(&key.view())).is_ok();
            for evicted in node.evict(new_keys.saturating_sub(room), is_listed) {
                forget(self.violations, &evicted, name);
            }
        }

        let max_age = self.rules.max_age.max(node.interval().saturating_mul(3));
        let mark = node.reading();
        let own_age = |detected_at| {
            crate::report::age_by_own_clock(detected_at, answer.date).map(|age| (age, age <= max_age))
        };
        let (mut changes, mut recent, mut no_room) = (Vec::new(), None, LeftOut::default());
        let (count, may_hide) = (listed.len(), node.may_hide());
        for record in listed {
            let full = node.evidence.len() >= self.rules.max_keys_per_node;
            if let Some((key, evidence)) = node.evidence_of(record.key) {
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
            if full {
                self.rejected.count(Rejection::NodeQuota);
                node.rejected.count(Rejection::NodeQuota);
                no_room.note(record.key.namespace);
            } else {
                let young = own_age.filter(|(_, is_young)| *is_young);
                let record = self.texts.record(record);
                let key = record.key.clone();
                node.evidence
                    .insert(key.clone(), Evidence::first_sight(record, at, mark, young.map(|(age, _)| age)));
                self.violations.entry(key.clone()).or_default().nodes.insert(name.clone());
                let kind = if young.is_some() { ChangeKind::Appeared } else { ChangeKind::Sighted };
                changes.push(Change { key, node: name.clone(), kind });
            }
        }
        node.note_listed(count, recent, self.rules);
        node.note_untold(no_room, answer.rejected.total() > 0);
        changes
    }
}

/// Notes when time alone may change something of a node, after anything else has changed it.
fn schedule(name: &NodeName, node: &mut Node, rules: &Detection, deadlines: &mut Deadlines) {
    let Some(at) = node.next_deadline(rules).map(Span::from) else { return };
    // Being looked at too early costs little, and nothing has to be found and taken out of the heap for it.
    if node.deadline.is_none_or(|noted| at < noted) {
        node.deadline = Some(at);
        deadlines.push(Reverse((at, name.clone())));
    }
}

fn forget(violations: &mut BTreeMap<Key, Entry>, key: &Key, node: &NodeName) {
    if let Some(entry) = violations.get_mut(key) {
        entry.nodes.remove(node);
        if entry.nodes.is_empty() {
            violations.remove(key);
        }
    }
}
