//! Judges one incident: whether its App is to be blocked or released, before the brakes decide.

use super::context::{EvaluationContext, ReleaseBasis, cleared_reason};
use crate::Moment;
use crate::decision::{DecisionKind, Mode};
use crate::names::App;
use crate::policy::incident::accepted_evidence::AcceptedEvidence;
use crate::policy::incident::{Incident, Phase};

const NAMESPACE_IS_BEING_DELETED: &str = "the namespace is being deleted";

/// What is to be done with an App, before the brakes decide.
pub(super) enum Action {
    Nothing,
    Block,
    /// With the reason, if it is another one than that no accusation is left.
    Release(Option<String>, ReleaseBasis),
}

impl Incident {
    /// Judges the incident of `app`. Does at once what no brake limits.
    pub(super) fn judge(&mut self, app: &App, context: &mut EvaluationContext<'_>) -> Action {
        if matches!(self.phase(), Phase::Ended { .. }) {
            self.review_grace(app, &[], context);
            return Action::Nothing;
        }
        let wanted_since = self.read_wanted_since.take().map(|since| *since);
        let covers = self.covers(app, context);
        self.review_grace(app, &covers, context);
        if let Some(action) = self.judge_covered(app, &covers, context) {
            return action;
        }
        if self.persisted.rare().exempted.is_some() {
            self.persisted_mut().reset_rare(|rare| rare.exempted = None);
        }
        if self.accepted.is_empty() {
            return self.judge_cleared(app, context);
        }
        if let Phase::Blocked { dry_run, .. } = self.phase() {
            if !dry_run || context.policy.mode != Mode::Enforce {
                return Action::Nothing;
            }
            // A block that was decided in dry-run had no effect. It becomes real like any new block, brakes included.
            self.set_phase(Phase::Watched);
        }
        self.renew_hold(app, context);
        if self.phase() == Phase::Held || context.policy.mode == Mode::Paused {
            return Action::Nothing;
        }
        self.judge_accused(app, &covers, wanted_since, context)
    }

    /// Ends or pauses the incident if no accusation counts: its namespace may not be blocked, everything is covered, or
    /// its namespace is being deleted. `None` if an accusation may count.
    fn judge_covered(
        &mut self,
        app: &App,
        covers: &[Option<String>],
        context: &mut EvaluationContext<'_>,
    ) -> Option<Action> {
        let is_blocked = matches!(self.phase(), Phase::Blocked { .. });
        let stays_closed = context.refused_stay_closed && is_blocked;
        let refused = context.refusals.of(&app.namespace).filter(|_| !stays_closed);
        let covered = refused.map(str::to_owned).or_else(|| self.cover_of_all(app, covers, context));
        let is_ending = covered.is_none() && self.is_ending(app, context);
        if is_ending && is_blocked {
            let may = context.policy.mode != Mode::Paused;
            let release = Action::Release(Some(NAMESPACE_IS_BEING_DELETED.to_owned()), ReleaseBasis::Proof);
            return Some(if may { release } else { Action::Nothing });
        }
        let why = covered.or_else(|| is_ending.then(|| NAMESPACE_IS_BEING_DELETED.to_owned()))?;
        if is_blocked {
            context.record_decision(app, DecisionKind::Released, why.clone());
        } else if self.persisted.rare().exempted.is_none() {
            context.record_decision(app, DecisionKind::Exempted, why.clone());
        }
        self.note_covered(why, context.now);
        Some(Action::Nothing)
    }

    /// Whether the incident ends because its namespace is being deleted. A blocked App stays closed until it is gone,
    /// because a Pod may take time to end.
    fn is_ending(&self, app: &App, context: &EvaluationContext<'_>) -> bool {
        let is_closed = matches!(self.phase(), Phase::Blocked { dry_run: false, .. });
        context.facts.terminating.contains(&app.namespace) && (!is_closed || context.facts.is_gone(app))
    }

    /// Judges the incident of which no accepted evidence is left.
    fn judge_cleared(&mut self, app: &App, context: &mut EvaluationContext<'_>) -> Action {
        let Phase::Blocked { release_held, .. } = self.phase() else {
            let reason = cleared_reason(app, self.cleared, context);
            context.record_decision(app, DecisionKind::Closed, reason);
            self.end(context.now);
            return Action::Nothing;
        };
        if context.policy.mode == Mode::Paused {
            return Action::Nothing;
        }
        // This is checked now and not when the last evidence cleared, because Pods may have come back since. An App
        // that is gone can't be opened, so no hold on its release matters.
        if context.facts.is_gone(app) {
            return Action::Release(None, ReleaseBasis::Proof);
        }
        // Accusations in such a namespace are not applied, so their absence proves nothing.
        let is_refused = context.refusals.of(&app.namespace).is_some();
        if is_refused
            || release_held.is_some()
            || self.waits_for_unknown_nodes(app, context)
            || self.may_be_accused(app, context)
        {
            return Action::Nothing;
        }
        Action::Release(None, ReleaseBasis::Rules)
    }

    /// Whether some of the nodes that accused the App are not known, and not all nodes have answered for long enough.
    fn waits_for_unknown_nodes(&self, app: &App, context: &EvaluationContext<'_>) -> bool {
        let are_unknown = self.persisted.rare().inherited.is_some() || self.omitted > 0;
        are_unknown && !context.has_settled(app)
    }

    /// Holds the block anew if a brake still holds it, by this or by an earlier name of the App.
    fn renew_hold(&mut self, app: &App, context: &mut EvaluationContext<'_>) {
        self.take_earlier_hold(&context.held);
        if self.phase() != Phase::Held
            && let Some((_, brake)) = self.persisted.hold.brake()
        {
            let reason =
                format!("still held: {}; {}", brake.reason(&context.policy.brake), self.accusation());
            context.record_decision(app, DecisionKind::Held, reason);
            self.set_phase(Phase::Held);
        }
    }

    /// Judges whether the accusations justify a new block now. `wanted_since` is when the block began to wait for a
    /// direct read of its Pods.
    fn judge_accused(
        &mut self,
        app: &App,
        covers: &[Option<String>],
        wanted_since: Option<Moment>,
        context: &mut EvaluationContext<'_>,
    ) -> Action {
        let is_reason = |(accepted, cover): (&AcceptedEvidence, &Option<String>)| {
            self.justifies_block(accepted, cover.as_deref(), context)
        };
        if !self.accepted.values().zip(covers).any(is_reason) {
            // Evidence that was renewed since is not judged yet. It waits for the direct read that was requested
            // before.
            self.read_wanted_since = wanted_since.filter(|_| self.has_unjudged(context)).map(Box::new);
            return Action::Nothing;
        }
        let formerly = self.persisted.rare().formerly.iter();
        if formerly.chain([app]).any(|name| context.may_exempt(name) || context.unreadable.contains(name)) {
            // An exemption or incident that can't be read may protect the App. A late block is better than a wrong
            // one.
            return Action::Nothing;
        }
        if !self.is_due(app, covers, context) {
            return Action::Nothing;
        }
        if self.is_proven(covers, wanted_since, context) {
            return Action::Block;
        }
        self.read_wanted_since = Some(Box::new(wanted_since.unwrap_or(context.now)));
        Action::Nothing
    }
}
