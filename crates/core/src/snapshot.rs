//! The immutable read view of the ledger, with its coverage.
//!
//! The API, the policy and the progress line each use one snapshot, and show how complete it is.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use crate::Moment;
use crate::clearing::{Cleared, NodeClock, Presence, Reading};
use crate::names::{Key, NodeName, Text};
use crate::report::{Failure, Record, Rejections};
use crate::time::{CompactDuration, CompactTimestamp};

/// The ledger at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When it was taken.
    pub at: Moment,
    /// When the ledger began to receive reports.
    pub(crate) since: Moment,
    /// The ledger's revision; equal revisions and times mean equal snapshots.
    pub revision: u64,
    /// Counts the changes that may change a decision (see [`crate::ledger::Ledger::changes`]).
    pub changes: u64,
    /// Rounds over all targets that are done.
    pub rounds: u64,
    /// Every violation, tombstones included, ordered by key.
    pub violations: Vec<Violation>,
    /// The records of active and unconfirmed violations, in the same order: the list that the first version served.
    /// It is the same allocation for as long as nothing in it changes.
    pub list: Arc<[Arc<Record>]>,
    /// When `list` last changed.
    pub list_changed_at: Timestamp,
    /// Every node that has evidence or a target.
    pub nodes: Nodes,
    /// Every expected target, ordered by address.
    pub targets: Vec<TargetView>,
    /// The coverage: how many targets this view is based on.
    pub coverage: Coverage,
    /// Records refused since the start, by reason.
    pub rejected: Rejections,
}

impl Snapshot {
    /// Whether every expected node has answered for so long that a violation which it has not listed is absent. A
    /// node without an address has been waited for long enough after `limit` since the start. Answers that may have
    /// hidden a violation do not count. Without any target nothing is settled.
    pub(crate) fn is_settled(&self, limit: Duration) -> bool {
        let is_whole = self.coverage.expected() == self.targets.len();
        (is_whole || self.at.since(self.since) >= limit)
            && !self.targets.is_empty()
            && self.targets.iter().all(|target| self.has_settled(&target.node))
    }

    /// The same for one node.
    pub(crate) fn has_settled(&self, node: &NodeName) -> bool {
        self.nodes.get(node).is_some_and(|NodeView { clock, .. }| {
            clock
                .cleared(Reading::ZERO, CompactDuration::ZERO, || clock.inconclusive, clock.since, self.at)
                .is_some()
        })
    }

    /// How much of the answered time of `node` was inconclusive about `key`; `None` if the ledger does not know `key`
    /// there.
    pub fn inconclusive(&self, key: &Key, node: &NodeName) -> Option<CompactDuration> {
        let place = self.violations.binary_search_by(|violation| violation.key.cmp(key)).ok()?;
        let mut evidence = self.violations.get(place)?.evidence();
        evidence.find(|evidence| evidence.node == *node).map(|evidence| evidence.inconclusive)
    }

    /// Whether there are targets, and all of them refused the connection when they were last asked.
    pub fn all_refuse(&self) -> bool {
        !self.targets.is_empty() && self.targets.iter().all(|target| target.refuses)
    }

    /// How many violations are in `state`.
    pub fn count(&self, state: State) -> usize {
        self.violations.iter().filter(|v| v.state == state).count()
    }
}

/// A violation's state over all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "ViolationState")]
pub enum State {
    /// Fresh evidence.
    Active,
    /// Neither fresh evidence nor proof of absence.
    Unconfirmed,
    /// Proven absent.
    Cleared,
}

/// One violation with its evidence.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The key of the violation.
    pub key: Key,
    /// Its state over all nodes.
    pub state: State,
    /// The leading evidence: the oldest of the strongest evidence.
    pub leading: EvidenceView,
    /// The evidence of other nodes. Nearly always empty.
    others: Box<[EvidenceView]>,
}

impl Violation {
    /// The violation with all of this evidence; `None` without any.
    pub(crate) fn new(key: Key, evidence: impl IntoIterator<Item = EvidenceView>) -> Option<Self> {
        let mut evidence = evidence.into_iter();
        let (mut leading, mut others) = (evidence.next()?, Vec::new());
        for mut other in evidence {
            // The leading evidence does not depend on the order of arrival. A second, lying node does not replace it
            // by later evidence.
            if other.rank() < leading.rank() {
                std::mem::swap(&mut leading, &mut other);
            }
            others.push(other);
        }
        let state = match leading.presence {
            Presence::Active => State::Active,
            Presence::Unconfirmed => State::Unconfirmed,
            Presence::Cleared => State::Cleared,
        };
        Some(Self { key, state, leading, others: others.into() })
    }

    /// The evidence of each node, the leading evidence first.
    pub fn evidence(&self) -> impl Iterator<Item = &EvidenceView> + Clone {
        std::iter::once(&self.leading).chain(&self.others)
    }

    /// The record as the agent last gave it.
    pub fn record(&self) -> &Arc<Record> {
        &self.leading.record
    }

    /// When an agent first listed it, in this incident.
    pub fn first_seen(&self) -> Timestamp {
        let seen = self.evidence().map(|e| e.first_seen.wall());
        seen.min().unwrap_or_else(|| self.leading.first_seen.wall())
    }

    /// When an agent last listed it.
    pub fn last_seen(&self) -> Timestamp {
        let seen = self.evidence().map(|e| e.last_seen.wall());
        seen.max().unwrap_or_else(|| self.leading.last_seen.wall())
    }

    /// How many different timestamps were seen.
    pub fn observations(&self) -> u64 {
        self.evidence().map(|e| e.observations).sum()
    }
}

/// One node's evidence of a violation.
#[derive(Clone, Debug)]
pub struct EvidenceView {
    /// The node.
    pub node: NodeName,
    /// How strong it is.
    pub presence: Presence,
    /// By which rule it cleared, if it has.
    pub cleared: Option<Cleared>,
    /// How much of its node's answered time was inconclusive about this violation, in sum.
    pub(crate) inconclusive: CompactDuration,
    /// The violation whose record hides it at present, because the agent lists one of several and listed that one
    /// last.
    pub hidden_by: Option<Arc<Key>>,
    /// The evidence itself, shared with the ledger and with other snapshots for as long as it stays the same.
    pub(crate) details: Arc<EvidenceDetails>,
}

impl EvidenceView {
    /// The order of evidence; the least is the leading evidence.
    fn rank(&self) -> (Presence, Moment, &NodeName) {
        (self.presence, self.first_seen, &self.node)
    }
}

impl Deref for EvidenceView {
    type Target = EvidenceDetails;

    fn deref(&self) -> &EvidenceDetails {
        &self.details
    }
}

/// The evidence of a violation that one node has reported.
#[derive(Clone, Debug)]
pub struct EvidenceDetails {
    /// The record as this node's agent last gave it.
    pub(crate) record: Arc<Record>,
    /// When evidence was last fresh; `None` if it never was. Then it is never a reason for a decision.
    pub fresh_at: Option<Moment>,
    /// How old the record was at most when evidence was last fresh, by the agent's own clock. If the agent does not
    /// send its time, this is the time since it listed another record of the violation. `None` if that is not known.
    /// Only set for fresh evidence.
    pub age: Option<CompactDuration>,
    /// The reading of its clearing clock at that time.
    pub mark: Reading,
    /// The longest recent answered time after which it was fresh again: for so long it may be unseen although it is
    /// there. At most an hour. If it had cleared and came back after more than two hours, that does not count.
    pub away: CompactDuration,
    /// When this node first listed it.
    pub first_seen: Moment,
    /// When this node last listed it.
    pub last_seen: Moment,
    /// The agent's own timestamp of the last fresh evidence.
    pub evidence_time: CompactTimestamp,
    /// How many different timestamps this node gave.
    pub(crate) observations: u64,
}

/// All nodes of a snapshot.
#[derive(Clone, Debug, Default)]
pub struct Nodes(
    /// Ordered by name. A slice is enough, because nodes are never added.
    Box<[(NodeName, NodeView)]>,
);

impl Nodes {
    /// The node of that name.
    pub fn get(&self, name: &NodeName) -> Option<&NodeView> {
        let place = self.0.binary_search_by(|(other, _)| other.cmp(name)).ok()?;
        self.0.get(place).map(|(_, view)| view)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(NodeName, NodeView)> for Nodes {
    fn from_iter<I: IntoIterator<Item = (NodeName, NodeView)>>(nodes: I) -> Self {
        let mut nodes: Box<[_]> = nodes.into_iter().collect();
        nodes.sort_by(|(a, _), (b, _)| a.cmp(b));
        Self(nodes)
    }
}

/// A node as the ledger knows it.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// Its odometer of answered time.
    pub clock: NodeClock,
    /// Its agent's learned scan interval.
    pub interval: Option<CompactDuration>,
    /// Its agent has listed two violations in one answer. Until then the agent is assumed to list one of several.
    pub lists_several: bool,
    /// Records known of it that have not cleared, believed or not.
    pub records: usize,
    /// Records of it that were refused since the start.
    pub rejected: Rejections,
}

/// How recently a target has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TargetState {
    /// It has given a whole answer recently.
    Fresh,
    /// It has once given a whole answer.
    Stale,
    /// It answers, but its answers can't be used. The coverage counts it as stale or as never seen.
    Unusable,
    /// It has never given one.
    NeverSeen,
}

/// A target as the ledger knows it.
#[derive(Clone, Debug)]
pub struct TargetView {
    /// `host:port`.
    pub address: Text,
    /// The node that it reports for.
    pub node: NodeName,
    /// How recently it has answered.
    pub state: TargetState,
    /// Its last whole answer.
    pub last_answer: Option<CompactTimestamp>,
    /// Its last failure. It stays after the next answer, so that operators can see it.
    pub last_failure: Option<Arc<(Timestamp, Failure)>>,
    /// Failures since the last whole answer.
    pub consecutive_failures: u32,
    /// It refused the connection when it was last asked, so nothing listens at its address.
    pub(crate) refuses: bool,
    /// Since when it has given only answers that can't be used.
    pub unusable_since: Option<CompactTimestamp>,
}

/// How many of the targets a snapshot is based on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Coverage {
    /// Gave a whole answer recently.
    pub fresh: usize,
    /// Once gave a whole answer.
    pub stale: usize,
    /// Never gave one, or should exist but have no address.
    pub never_seen: usize,
}

impl Coverage {
    /// All targets that should answer. The three counts always add up to it.
    pub fn expected(&self) -> usize {
        self.fresh + self.stale + self.never_seen
    }
}
