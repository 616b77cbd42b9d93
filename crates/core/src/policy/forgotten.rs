//! Accusations that are not all known: the ledger has forgotten some, or they were not persisted.
//!
//! A tenant can push out what the ledger knows of its App by new processes, and only a limited number of accusations is persisted. An
//! exemption that covers the remaining accusations may not cover the dropped ones, so dropping must not open the App.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::accepted_evidence::AcceptedEvidence;
use super::evaluate::EvaluationContext;
use super::incident::{EvidenceId, Incident, Phase};
use crate::names::{App, NodeName};
use crate::report::Record;

/// How many accusations of one incident are persisted: a tenant can start any number of processes, and the size of an object is limited.
/// Agents list the others again.
pub(super) const MAX_EVIDENCE: usize = 64;
/// How many grounds of one node an incident has of violations that the ledger no longer knows: a tenant can push out its own violations
/// by new ones, for as long as it likes.
const MAX_FORGOTTEN: usize = 64;

impl Incident {
    /// Limits the grounds of violations that the ledger no longer knows.
    pub(super) fn limit_forgotten(&mut self, app: &App, pass: &EvaluationContext<'_>) {
        let is_forgotten = |(key, node): &EvidenceId, ground: &AcceptedEvidence| {
            !ground.active && pass.snapshot.unheard(key, node).is_none()
        };
        self.drop_cmdlines(is_forgotten);
        if self.accepted.len() <= MAX_EVIDENCE.min(MAX_FORGOTTEN) {
            return;
        }
        // What an exemption in doubt covers does not count as covered while the App is blocked. Once the doubt is over, it would.
        let covered: Vec<bool> =
            self.accepted.values().map(|ground| self.may_be_covered(app, &ground.record, pass)).collect();
        self.accepted.iter_mut().zip(covered).for_each(|((_, ground), covered)| ground.covered = covered);
        let dropped = self.beyond_limit(is_forgotten);
        self.accepted.retain(|id, _| !dropped.contains(id));
    }

    /// Whether an exemption or a release covers an accusation of `app`, or may cover it once a doubt about its date is over.
    fn may_be_covered(&self, app: &App, record: &Record, pass: &EvaluationContext<'_>) -> bool {
        self.excuse_while(false, app, record, pass).is_some()
    }

    /// Drops the long command lines of grounds that the ledger no longer knows.
    fn drop_cmdlines(&mut self, is_forgotten: impl Fn(&EvidenceId, &AcceptedEvidence) -> bool) {
        // Nearly all grounds are active, and nearly none has a long one, so the ledger is seldom asked.
        let long = self.accepted.iter_mut().filter(|(_, ground)| !ground.active && ground.has_long_cmdline());
        long.filter(|(id, ground)| is_forgotten(id, ground)).for_each(|(_, ground)| ground.drop_cmdline());
    }

    /// The forgotten grounds that are too many on their nodes. Those stay that [`rank`] puts first, then those that are counted from
    /// last, because they clear last.
    fn beyond_limit(
        &self,
        is_forgotten: impl Fn(&EvidenceId, &AcceptedEvidence) -> bool,
    ) -> BTreeSet<EvidenceId> {
        let mut of_nodes: BTreeMap<&NodeName, Vec<(&EvidenceId, &AcceptedEvidence)>> = BTreeMap::new();
        for (id, ground) in self.accepted.iter().filter(|(id, ground)| is_forgotten(id, ground)) {
            of_nodes.entry(&id.1).or_default().push((id, ground));
        }
        let mut beyond = BTreeSet::new();
        for mut grounds in of_nodes.into_values().filter(|grounds| grounds.len() > MAX_FORGOTTEN) {
            grounds.sort_by_key(|(_, ground)| (Reverse(ground.counted_from), ground.mark.before));
            rank(&mut grounds);
            beyond.extend(grounds.into_iter().skip(MAX_FORGOTTEN).map(|(id, _)| id.clone()));
        }
        beyond
    }

    /// What covers all that `app` is accused of, whose incident this is; nothing if something may be left. `excuses` is what
    /// [`Incident::excuses`] returned.
    pub(super) fn covered(
        &self,
        app: &App,
        excuses: &[Option<String>],
        pass: &EvaluationContext<'_>,
    ) -> Option<String> {
        let is_covered = excuses.iter().all(Option::is_some) && !self.may_be_accused_of_more(app, pass);
        // The first excuse speaks for all.
        if is_covered { excuses.first().cloned().flatten() } else { None }
    }

    /// Whether some accusations were not persisted, and their nodes may still list them again. What covers the known accusations need not
    /// cover these, unless it is an exemption of the App as such. A release ends a block at once, so it does not matter here.
    fn may_be_accused_of_more(&self, app: &App, pass: &EvaluationContext<'_>) -> bool {
        let exemptions = || pass.policy.exemptions.iter().zip(&pass.exemptions);
        let is_heard_out = || {
            !pass.doubtful.contains(&app.namespace) && pass.snapshot.is_settled(pass.policy.unreachable_limit)
        };
        matches!(self.phase, Phase::Blocked { .. })
            && self.omitted > 0
            && !is_heard_out()
            && !exemptions().any(|(exemption, force)| force.covers(true) && exemption.covers_app(app))
    }
}

/// Puts first the grounds that must not be lost where not all can be held: those that nothing covers, because an exemption must not open
/// a block of which something is not covered; then the last one of each rule in each Pod, because an exemption may be made for the rule
/// of the others. Otherwise the order stays.
pub(super) fn rank(grounds: &mut Vec<(&EvidenceId, &AcceptedEvidence)>) {
    let mut rules = BTreeSet::new();
    let mut ranked = Vec::with_capacity(grounds.len());
    for (id, ground) in grounds.drain(..) {
        let is_last = rules.insert((ground.covered, id.0.pod.clone(), ground.record.regex.clone()));
        ranked.push((ground.covered, !is_last, (id, ground)));
    }
    ranked.sort_by_key(|(covered, is_earlier, _)| (*covered, *is_earlier));
    grounds.extend(ranked.into_iter().map(|(.., ground)| ground));
}

#[cfg(test)]
mod tests;
