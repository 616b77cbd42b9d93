//! Judges one incident: whether its App is to be blocked or released, before the brakes decide.

use super::context::{EvaluationContext, ReleaseBasis, cleared_reason};
use crate::decision::{DecisionKind, Mode};
use crate::names::App;
use crate::policy::incident::accepted_evidence::AcceptedEvidence;
use crate::policy::incident::{Incident, Phase};
use crate::policy::incidents::Incidents;

const NAMESPACE_IS_BEING_DELETED: &str = "the namespace is being deleted";

/// What is to be done with an App, before the brakes decide.
pub(super) enum Action {
    Nothing,
    Block,
    /// With the reason, if it is another one than that no accusation is left.
    Release(Option<String>, ReleaseBasis),
}

impl Incidents {
    /// Judges one incident. Does at once what no brake limits.
    pub(super) fn judge(app: &App, incident: &mut Incident, context: &mut EvaluationContext<'_>) -> Action {
        if matches!(incident.phase(), Phase::Ended { .. }) {
            incident.review_grace(app, &[], context);
            return Action::Nothing;
        }
        let wanted_since = incident.read_wanted_since.take().map(|since| *since);
        let excuses = incident.excuses(app, context);
        incident.review_grace(app, &excuses, context);
        let is_reason = |(accepted, excuse): (&AcceptedEvidence, &Option<String>)| {
            incident.justifies_block(accepted, excuse.as_deref(), context)
        };
        let active = incident.accepted.values().zip(&excuses).any(is_reason);
        let stays_closed = context.refused_stay_closed && matches!(incident.phase(), Phase::Blocked { .. });
        let refused = context.refusals.of(&app.namespace).filter(|_| !stays_closed);
        let covered = refused.map(str::to_owned).or_else(|| incident.covered(app, &excuses, context));
        // A blocked App stays closed while its namespace is being deleted, because a Pod may take time to end.
        let is_closed = matches!(incident.phase(), Phase::Blocked { dry_run: false, .. });
        let is_ending =
            context.facts.terminating.contains(&app.namespace) && (!is_closed || context.facts.is_gone(app));
        let covered = covered.or_else(|| is_ending.then(|| NAMESPACE_IS_BEING_DELETED.to_owned()));
        if is_ending
            && covered.as_deref() == Some(NAMESPACE_IS_BEING_DELETED)
            && matches!(incident.phase(), Phase::Blocked { .. })
        {
            let may = context.policy.mode != Mode::Paused;
            return if may { Action::Release(covered, ReleaseBasis::Proof) } else { Action::Nothing };
        }
        if let Some(why) = covered {
            if matches!(incident.phase(), Phase::Blocked { .. }) {
                context.record_decision(app, DecisionKind::Released, why.clone());
            } else if incident.persisted.rare().exempted.is_none() {
                context.record_decision(app, DecisionKind::Exempted, why.clone());
            }
            incident.excuse(why, context.now);
            return Action::Nothing;
        }
        if incident.persisted.rare().exempted.is_some() {
            incident.persisted_mut().reset_rare(|rare| rare.exempted = None);
        }

        if incident.accepted.is_empty() {
            // This is checked now and not when the last evidence cleared, because Pods may have come back since.
            let is_gone = context.facts.is_gone(app);
            return match incident.phase() {
                Phase::Blocked { .. } if context.policy.mode == Mode::Paused => Action::Nothing,
                // An App that is gone can't be opened, so no hold on its release matters.
                Phase::Blocked { .. } if is_gone => Action::Release(None, ReleaseBasis::Proof),
                // Accusations in this namespace are not applied, so their absence proves nothing.
                Phase::Blocked { .. } if context.refusals.of(&app.namespace).is_some() => Action::Nothing,
                Phase::Blocked { release_held: Some(_), .. } => Action::Nothing,
                // Some of the App's nodes are not known, so all nodes must have answered for long enough.
                Phase::Blocked { .. }
                    if (incident.persisted.rare().inherited.is_some() || incident.omitted > 0)
                        && (context.doubtful.contains(&app.namespace)
                            || !context.snapshot.is_settled(context.policy.unreachable_limit)) =>
                {
                    Action::Nothing
                }
                Phase::Blocked { .. } if incident.may_be_accused(app, context) => Action::Nothing,
                Phase::Blocked { .. } => Action::Release(None, ReleaseBasis::Rules),
                _ => {
                    let reason = cleared_reason(app, incident.cleared, context);
                    context.record_decision(app, DecisionKind::Closed, reason);
                    incident.end(context.now);
                    Action::Nothing
                }
            };
        }
        if let Phase::Blocked { dry_run, .. } = incident.phase() {
            if !dry_run || context.policy.mode != Mode::Enforce {
                return Action::Nothing;
            }
            // A block that was decided in dry-run had no effect. It becomes real like any new block, brakes included.
            incident.set_phase(Phase::Watched);
        }
        incident.take_earlier_hold(&context.held);
        if incident.phase() != Phase::Held
            && let Some((_, brake)) = incident.persisted.hold.brake()
        {
            let reason =
                format!("still held: {}; {}", brake.reason(&context.policy.brake), incident.accusation());
            context.record_decision(app, DecisionKind::Held, reason);
            incident.set_phase(Phase::Held);
        }
        if incident.phase() == Phase::Held || context.policy.mode == Mode::Paused {
            return Action::Nothing;
        }
        if !active {
            // Evidence that was renewed since is not judged yet. It waits for the direct read that was requested
            // before.
            incident.read_wanted_since =
                wanted_since.filter(|_| incident.has_unjudged(context)).map(Box::new);
            return Action::Nothing;
        }
        let formerly = incident.persisted.rare().formerly.iter();
        if formerly.chain([app]).any(|name| context.may_exempt(name) || context.unreadable.contains(name)) {
            // An exemption or incident that can't be read may protect the App. A late block is better than a wrong
            // one.
            return Action::Nothing;
        }
        if !incident.is_due(app, &excuses, context) {
            return Action::Nothing;
        }
        if incident.is_proven(&excuses, wanted_since, context) {
            return Action::Block;
        }
        incident.read_wanted_since = Some(Box::new(wanted_since.unwrap_or(context.now)));
        Action::Nothing
    }
}
