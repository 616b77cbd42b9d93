//! Takes over evidence that was known before the start or to another replica.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use super::Ledger;
use super::evidence::ViolationEvidence;
use super::node::Node;
use super::remembered::Remembered;
use crate::Moment;
use crate::names::NodeName;

impl Ledger {
    /// Takes over evidence that was known before the start or to another replica. Tombstones stay tombstones, and
    /// clearing clocks begin anew, because our own restart is evidence of nothing about a process. Evidence that was
    /// reported to this ledger since takes precedence.
    ///
    /// If there is not room for all, evidence that was fresh last has room first, and tombstones have it last.
    /// Expired ones have none.
    pub fn remember(&mut self, remembered: impl IntoIterator<Item = Remembered>, now: Moment) {
        // The interval of the latest record of a node counts. The agent's own clock orders the records, because
        // leaders' clocks differ.
        let mut intervals: BTreeMap<NodeName, (Timestamp, Duration)> = BTreeMap::new();
        let mut nodes = BTreeSet::new();
        let mut remembered: Vec<Remembered> = remembered.into_iter().collect();
        remembered.sort_by_key(|known| (known.cleared.is_some(), Reverse(known.fresh_at)));
        for known in remembered {
            nodes.insert(known.node.clone());
            if let Some(interval) = known.scan_interval {
                let dated = (known.record.detected_at, interval);
                let latest = intervals.entry(known.node.clone()).or_insert(dated);
                *latest = (*latest).max(dated);
            }
            let node = self.nodes.entry(known.node.clone()).or_insert_with(|| Box::new(Node::new(now)));
            let mark = node.reading();
            if let Some(evidence) = node.evidence.get_mut(&known.key) {
                evidence.merge(&known, now);
                continue;
            }
            let most = self.totals.limit_of(node, &self.rules);
            let evidence = ViolationEvidence::remembered(&known, now, mark);
            if node.evidence.len() < most && !evidence.is_expired(now, self.rules.same_incident) {
                self.violations.entry(known.key.clone()).or_default().nodes.insert(known.node.clone());
                node.evidence.insert(known.key.clone(), evidence);
                self.totals.note(0, 1);
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
        self.count_change();
    }
}
