//! A random course of the world, with checks that no App is blocked wrongly.

use std::collections::BTreeSet;

use procscan_core::decision::{DecisionKind, Mode};
use procscan_core::names::App;
use procscan_core::plan::NoticePhase;
use procscan_core::policy::{Evaluation, PodState};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::steps::{Step, app};
use crate::common::World;

/// The world, and its Apps' history since its beginning.
pub(super) struct Course {
    world: World,
    /// Apps that a brake holds and no operator has approved.
    held: BTreeSet<App>,
    /// Apps that their Pod's own node has ever accused with fresh evidence.
    accused: BTreeSet<App>,
    /// The blocked Apps before the last step.
    before: BTreeSet<App>,
    /// The mode before the last step.
    mode: Mode,
}

/// The Apps of a plan.
struct Planned {
    blocked: BTreeSet<App>,
    /// The Apps with a notice of a grace or of a block.
    notified: BTreeSet<App>,
}

impl Planned {
    fn of(evaluation: &Evaluation) -> Self {
        let notices = evaluation.plan.notices.iter().filter(|notice| notice.phase != NoticePhase::Recovered);
        Self {
            blocked: evaluation.plan.blocks.iter().map(|block| block.app.clone()).collect(),
            notified: notices.map(|notice| notice.app.clone()).collect(),
        }
    }
}

impl Course {
    pub(super) fn new(world: World) -> Self {
        let mode = world.policy.mode;
        Self { world, held: BTreeSet::new(), accused: BTreeSet::new(), before: BTreeSet::new(), mode }
    }

    /// Takes a step, evaluates, and checks the plan.
    pub(super) fn take(&mut self, step: &Step) -> Result<(), TestCaseError> {
        step.take(&mut self.world);
        let is_restart = matches!(step, Step::Restart | Step::FailOver);
        if self.mode == Mode::DryRun && (is_restart || self.world.policy.mode != self.mode) {
            // Apps that dry-run held are held no more, because they were held in a copy only.
            self.held =
                self.world.incidents.held(&self.world.policy).into_iter().map(|held| held.app).collect();
        }
        self.note_accusations();
        if let Step::Approve(tenant) = step {
            self.held.remove(&app(*tenant));
        }
        let evaluation = self.world.evaluate();
        let planned = Planned::of(&evaluation);
        // An existing block may be held by the brake on releases. An App that dry-run released is blocked as before,
        // once dry-run's copy is dropped.
        let goes_on = self.mode == self.world.policy.mode && !(self.mode == Mode::DryRun && is_restart);
        for app in planned.blocked.union(&planned.notified) {
            self.check_blocked_or_notified(app, goes_on, planned.notified.contains(app))?;
        }
        self.check_held(&evaluation, &planned)?;
        self.check_changes(step, &evaluation, &planned.blocked, goes_on)?;
        if self.world.policy.mode == Mode::Paused
            && self.mode == Mode::Paused
            && !matches!(step, Step::Approve(_))
        {
            self.check_paused(step, &planned.blocked, goes_on)?;
        }
        self.mode = self.world.policy.mode;
        self.before = planned.blocked;
        // After the incident is deleted, the next accusation opens a new one.
        self.held.retain(|app| self.world.incidents.incidents().any(|(known, _)| known == app));

        let again = self.world.evaluate();
        prop_assert_eq!(again.plan, evaluation.plan, "evaluating again is idempotent");
        prop_assert_eq!(again.decisions, vec![]);
        Ok(())
    }

    /// Notes the Apps that their Pod's own node accuses with fresh evidence.
    fn note_accusations(&mut self) {
        for violation in &self.world.snapshot().violations {
            for evidence in violation.evidence().filter(|evidence| evidence.fresh_at.is_some()) {
                if let Some(PodState::Present { node, app, .. }) =
                    self.world.facts.pods.get(&violation.key.pod_ref()).map(|fact| &fact.state)
                    && *node == evidence.node
                {
                    self.accused.insert(app.clone());
                }
            }
        }
    }

    /// Checks an App that the plan blocks or whose tenant it notifies. `goes_on`: the blocks before the step still count.
    fn check_blocked_or_notified(
        &self,
        app: &App,
        goes_on: bool,
        is_notified: bool,
    ) -> Result<(), TestCaseError> {
        let world = &self.world;
        prop_assert!(self.accused.contains(app), "{app} was only ever disputed or unverified");
        prop_assert!(!self.held.contains(app), "{app} is held, and no operator has approved it");
        if world.unwritable.contains(&app.namespace.to_string()) {
            // A release that can't be persisted has no effect, whatever its reason.
            return Ok(());
        }
        // While paused no App is opened, even if its namespace has become protected.
        let stays = world.policy.mode == Mode::Paused && (!goes_on || self.before.contains(app));
        prop_assert!(stays || world.policy.refuses(&app.namespace).is_none(), "{app} is protected");
        let is_new = goes_on && !self.before.contains(app) || is_notified;
        prop_assert!(!is_new || !world.facts.terminating.contains(&app.namespace), "{app} is terminating");
        let is_exempt = world
            .policy
            .exemptions
            .iter()
            .any(|exemption| exemption.namespace.as_ref().is_some_and(|p| p.matches(&app.namespace)));
        prop_assert!(!is_exempt, "{app} is exempt");
        Ok(())
    }

    /// Checks that no held App is blocked or notified, and notes the held Apps.
    fn check_held(&mut self, evaluation: &Evaluation, planned: &Planned) -> Result<(), TestCaseError> {
        for entry in evaluation.held.iter().filter(|entry| !entry.release) {
            prop_assert!(!planned.blocked.contains(&entry.app) && !planned.notified.contains(&entry.app));
            self.held.insert(entry.app.clone());
        }
        Ok(())
    }

    /// Checks that each change of the blocked Apps has its decision, and could be persisted.
    fn check_changes(
        &self,
        step: &Step,
        evaluation: &Evaluation,
        blocked: &BTreeSet<App>,
        goes_on: bool,
    ) -> Result<(), TestCaseError> {
        // Switching dry-run on or off shows or hides its decisions, and so does dropping them. Any other difference
        // has its decision.
        if goes_on && !matches!(step, Step::Approve(_) | Step::Release(_)) {
            for app in blocked.symmetric_difference(&self.before) {
                let wanted =
                    if blocked.contains(app) { DecisionKind::Blocked } else { DecisionKind::Released };
                prop_assert!(
                    evaluation.decisions.iter().any(|d| d.app == *app && d.kind == wanted),
                    "{app} is {wanted:?} without a decision"
                );
            }
        }
        // A decision that can't be persisted has no effect: it neither blocks nor releases an App.
        if goes_on && self.mode != Mode::DryRun {
            for app in blocked.symmetric_difference(&self.before) {
                prop_assert!(!self.world.unwritable.contains(&app.namespace.to_string()), "{app} changed");
            }
        }
        Ok(())
    }

    /// Checks that a paused policy blocks no other App, and opens an App only because an operator says so.
    fn check_paused(&self, step: &Step, blocked: &BTreeSet<App>, goes_on: bool) -> Result<(), TestCaseError> {
        let world = &self.world;
        prop_assert!(blocked.is_subset(&self.before), "something new while paused");
        if !goes_on || matches!(step, Step::Release(_)) {
            return Ok(());
        }
        // Only an operator's exemption, release or protection opens an App.
        for app in self.before.difference(blocked) {
            let is_covered = world.policy.refuses(&app.namespace).is_some()
                || !world.policy.exemptions.is_empty()
                || world.incidents.documents().iter().any(|incident| {
                    App::from(&incident.spec.app) == *app && !incident.status.releases.is_empty()
                });
            prop_assert!(is_covered, "{app} is released while paused");
        }
        Ok(())
    }
}
