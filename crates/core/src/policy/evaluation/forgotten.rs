//! Handles accusations that are not all known: the ledger has forgotten some, or they were not persisted.
//!
//! A tenant can push out what the ledger knows of its App by new processes, and only a limited number of accusations
//! is persisted. An exemption that covers the remaining accusations may not cover the dropped ones, so dropping must
//! not open the App.

use crate::policy::incident::ranking::{MAX_EVIDENCE, rank};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::context::EvaluationContext;
use crate::names::{App, NodeName};
use crate::policy::incident::accepted_evidence::AcceptedEvidence;
use crate::policy::incident::{EvidenceId, Incident, Phase};
use crate::report::Record;

/// How much accepted evidence of one node an incident has of violations that the ledger no longer knows. The limit
/// exists because a tenant can push out its own violations by new ones, for any time.
const MAX_FORGOTTEN: usize = 64;

impl Incident {
    /// Limits the accepted evidence of violations that the ledger no longer knows.
    pub(in crate::policy) fn limit_forgotten(&mut self, app: &App, context: &EvaluationContext<'_>) {
        let is_forgotten = |(key, node): &EvidenceId, accepted: &AcceptedEvidence| {
            !accepted.active && context.snapshot.inconclusive(key, node).is_none()
        };
        self.drop_cmdlines(is_forgotten);
        if self.accepted.len() <= MAX_EVIDENCE.min(MAX_FORGOTTEN) {
            return;
        }
        // Evidence that an exemption in doubt covers does not count as covered while the App is blocked. It would,
        // once the doubt is over.
        let covered: Vec<bool> = self
            .accepted
            .values()
            .map(|accepted| self.may_be_covered(app, &accepted.record, context))
            .collect();
        self.accepted.iter_mut().zip(covered).for_each(|((_, accepted), covered)| accepted.covered = covered);
        let dropped = self.beyond_limit(is_forgotten);
        self.accepted.retain(|id, _| !dropped.contains(id));
    }

    /// Whether an exemption or a release covers an accusation of `app`, or may cover it once a doubt about its date is over.
    fn may_be_covered(&self, app: &App, record: &Record, context: &EvaluationContext<'_>) -> bool {
        self.cover_while(false, app, record, context).is_some()
    }

    /// Drops the long command lines of accepted evidence that the ledger no longer knows.
    fn drop_cmdlines(&mut self, is_forgotten: impl Fn(&EvidenceId, &AcceptedEvidence) -> bool) {
        // Nearly all accepted evidence is active and has a short command line, so the ledger is seldom searched.
        let long =
            self.accepted.iter_mut().filter(|(_, accepted)| !accepted.active && accepted.has_long_cmdline());
        long.filter(|(id, accepted)| is_forgotten(id, accepted))
            .for_each(|(_, accepted)| accepted.drop_cmdline());
    }

    /// The forgotten evidence beyond the limit of each node. The evidence that [`rank`] puts first stays, then the
    /// one that is counted from last, because it clears last.
    fn beyond_limit(
        &self,
        is_forgotten: impl Fn(&EvidenceId, &AcceptedEvidence) -> bool,
    ) -> BTreeSet<EvidenceId> {
        let mut of_nodes: BTreeMap<&NodeName, Vec<(&EvidenceId, &AcceptedEvidence)>> = BTreeMap::new();
        for (id, accepted) in self.accepted.iter().filter(|(id, accepted)| is_forgotten(id, accepted)) {
            of_nodes.entry(&id.1).or_default().push((id, accepted));
        }
        let mut beyond = BTreeSet::new();
        for mut accepted in of_nodes.into_values().filter(|accepted| accepted.len() > MAX_FORGOTTEN) {
            accepted.sort_by_key(|(_, accepted)| (Reverse(accepted.counted_from), accepted.mark.before));
            rank(&mut accepted);
            beyond.extend(accepted.into_iter().skip(MAX_FORGOTTEN).map(|(id, _)| id.clone()));
        }
        beyond
    }

    /// What covers all accusations of `app`, whose incident this is; `None` if one may be left. `covers` is what
    /// [`Incident::covers`] returned.
    pub(in crate::policy) fn cover_of_all(
        &self,
        app: &App,
        covers: &[Option<String>],
        context: &EvaluationContext<'_>,
    ) -> Option<String> {
        let is_covered = covers.iter().all(Option::is_some) && !self.may_be_accused_of_more(app, context);
        // The first cover stands for all.
        if is_covered { covers.first().cloned().flatten() } else { None }
    }

    /// Whether some accusations were not persisted, and their nodes may still list them again. What covers the known
    /// accusations need not cover these, unless it is an exemption of the whole App. A release ends a block at once,
    /// so it does not matter here.
    fn may_be_accused_of_more(&self, app: &App, context: &EvaluationContext<'_>) -> bool {
        let exemptions = || context.policy.exemptions.iter().zip(&context.exemptions);
        matches!(self.phase(), Phase::Blocked { .. })
            && self.omitted > 0
            && !context.has_settled(app)
            && !exemptions().any(|(exemption, validity)| validity.covers(true) && exemption.covers_app(app))
    }
}

#[cfg(test)]
mod tests;
