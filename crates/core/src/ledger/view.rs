//! Makes snapshots of the ledger.

use std::sync::Arc;

use super::target::TargetEntry;
use super::{Ledger, ViolationEntry};
use crate::Moment;
use crate::clearing::{Cleared, Presence};
use crate::names::Key;
use crate::snapshot::{Coverage, Snapshot, State, TargetState, TargetView, Violation};

impl Ledger {
    /// How many targets gave a fresh, stale or no answer, as of `now`.
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

    /// Whether there are targets, and all of them refused the connection when they were last asked.
    pub fn all_refuse(&self) -> bool {
        !self.targets.is_empty() && self.targets.values().all(TargetEntry::refuses)
    }

    /// The snapshot as of `now`. Takes `&mut self` because it notes when the list last changed.
    pub fn snapshot(&mut self, now: Moment) -> Snapshot {
        // `collect` does not know the number of violations, and would make room for nearly twice as many.
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
            changes: self.changes,
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

    fn view(&self, key: &Key, entry: &ViolationEntry, now: Moment) -> Option<Violation> {
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
