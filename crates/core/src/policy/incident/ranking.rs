//! Ranks accepted evidence: which of it stays if not all of it can be held.

use std::collections::BTreeSet;

use super::EvidenceId;
use crate::policy::incident::accepted_evidence::AcceptedEvidence;

/// How many accusations of one incident are persisted, because a tenant can start any number of processes and the
/// size of an object is limited. Agents list the others again.
pub(in crate::policy) const MAX_EVIDENCE: usize = 64;

/// Puts first the evidence that must not be lost if not all can be held. Otherwise the order stays.
///
/// First comes evidence that nothing covers, because an exemption must not open a block of which an accusation is not
/// covered. Then comes the last evidence of each rule in each Pod, because an exemption may be made for the rule of
/// the others.
pub(in crate::policy) fn rank(accepted: &mut Vec<(&EvidenceId, &AcceptedEvidence)>) {
    let mut rules = BTreeSet::new();
    let mut ranked = Vec::with_capacity(accepted.len());
    for (id, accepted) in accepted.drain(..) {
        let is_last = rules.insert((accepted.covered, id.0.pod.clone(), accepted.record.regex.clone()));
        ranked.push((accepted.covered, !is_last, (id, accepted)));
    }
    ranked.sort_by_key(|(covered, is_earlier, _)| (*covered, *is_earlier));
    accepted.extend(ranked.into_iter().map(|(.., accepted)| accepted));
}
