//! Compares a replica with one that has restarted, or that has taken over from it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use procscan_core::Moment;
use procscan_core::clearing::Cleared;
use procscan_core::decision::{Decision, DecisionKind};
use procscan_core::names::{App, Key};
use procscan_core::plan::{Block, HeldApp};
use procscan_core::policy::{Evaluation, Incidents};
use procscan_core::snapshot::{EvidenceView, State, Violation};
use procscan_core::state::Incident;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::steps::Step;
use super::world_of;
use crate::common::World;

/// A world, and the time of its last restart.
pub(super) struct Course {
    world: World,
    restarted: Option<Duration>,
}

impl Course {
    pub(super) fn new(world: World) -> Self {
        Self { world, restarted: None }
    }

    /// Takes a step and evaluates, and compares that with a replica that has restarted or, if `fails_over`, taken over.
    pub(super) fn take(&mut self, step: &Step, fails_over: bool) -> Result<(), TestCaseError> {
        let world = &mut self.world;
        step.take(world);
        let before = world.evaluate();
        let persisted: Vec<_> = world.persisted.values().cloned().collect();
        check_restored(world, &persisted)?;

        let mut other = World { follower: world.follower.take(), ..world_of(world) };
        if fails_over {
            other.fail_over();
        } else {
            other.restart();
        }
        let after = other.evaluate();
        let comparable = self.comparable(&persisted, &mut other);
        let (after, before) = (Effect::of(&after, &comparable), Effect::of(&before, &comparable));
        prop_assert_eq!(
            (&after.blocks, &after.held, &after.notified),
            (&before.blocks, &before.held, &before.notified)
        );
        prop_assert_eq!(after.decisions, vec![]);
        self.world.follower = other.follower.take();
        if matches!(step, Step::Restart | Step::FailOver) {
            // The test continues with the other one.
            self.world = other;
            self.restarted = Some(self.world.now.uptime());
        }
        Ok(())
    }

    /// The Apps whose treatment has to be the same in the `other` replica.
    fn comparable(&mut self, persisted: &[Incident], other: &mut World) -> BTreeSet<App> {
        // The other replica may believe a record that this one knows to be of an earlier Pod. That is an accusation like
        // any other.
        let mut apps: BTreeSet<App> =
            persisted.iter().map(|incident| App::from(&incident.spec.app)).collect();
        // The same holds if evidence and the proof that its Pod is gone have come in the same moment, which only happens
        // here.
        let active = |violation: &&Violation| violation.state == State::Active;
        let theirs = other.snapshot();
        let believed: BTreeSet<Key> =
            theirs.violations.iter().filter(active).map(|violation| violation.key.clone()).collect();
        let is_gone = |evidence: &EvidenceView| evidence.cleared == Some(Cleared::PodGone);
        for violation in &self.world.snapshot().violations {
            if violation.evidence().any(is_gone) && believed.contains(&violation.key) {
                apps.retain(|app| app.namespace != violation.key.namespace);
            }
        }
        // The same holds if the other replica has received a report that this one has only restored since its own restart.
        for violation in theirs.violations.iter().filter(active) {
            let is_read_back = |(at, restarted): (Moment, Duration)| at.uptime() <= restarted;
            if violation.evidence().any(|e| e.fresh_at.zip(self.restarted).is_some_and(is_read_back)) {
                apps.retain(|app| app.namespace != violation.key.namespace);
            }
        }
        apps
    }
}

/// Checks that the persisted incidents have all that the policy knows.
fn check_restored(world: &mut World, persisted: &[Incident]) -> Result<(), TestCaseError> {
    let restored = Incidents::restore(persisted, &world.snapshot(), world.now);
    // If an incident can't be persisted, only its effect is the same.
    let of_persisted = |incidents: &Incidents| {
        let mut documents = incidents.documents();
        documents.retain(|incident| !world.unwritable.contains(&incident.spec.app.namespace.to_string()));
        documents
    };
    let (known, again) = (of_persisted(&world.incidents), of_persisted(&restored));
    prop_assert!(
        known.len() == again.len()
            && known.iter().zip(&again).all(|(a, b)| without_times(a) == without_times(b)),
        "known:\n{known:#?}\npersisted:\n{again:#?}"
    );
    Ok(())
}

/// An incident without the values that are persisted later than they change: the time of fresh evidence is persisted once an
/// hour, and the scan interval to the minute.
fn without_times(incident: &Incident) -> Incident {
    let mut bare = incident.clone();
    for evidence in &mut bare.status.evidence {
        evidence.fresh_at = Timestamp::UNIX_EPOCH;
        evidence.timestamp = "".into();
        evidence.observations = 0;
        evidence.scan_interval = None;
        if let Some(cleared) = &mut evidence.cleared {
            cleared.at = Timestamp::UNIX_EPOCH;
        }
    }
    let status = &mut bare.status;
    (status.clock, status.written, status.wall_clock) = (None, None, None);
    status.evidence.sort_by_key(|e| (e.pod.clone(), e.process.clone(), e.node.clone()));
    bare
}

/// The effect of an evaluation on some Apps.
struct Effect {
    blocks: Vec<Arc<Block>>,
    held: Vec<HeldApp>,
    /// The notified Apps, with the time of each notice.
    notified: Vec<(App, Timestamp)>,
    /// The decisions without disputes.
    decisions: Vec<Decision>,
}

impl Effect {
    fn of(evaluation: &Evaluation, apps: &BTreeSet<App>) -> Self {
        let Evaluation { mut plan, mut held, mut decisions, .. } = evaluation.clone();
        plan.blocks.retain(|block| apps.contains(&block.app));
        // Evidence that came since and can't be persisted, or that only the other replica believes, makes one
        // accusation more or less.
        for block in &mut plan.blocks {
            let block = Arc::make_mut(block);
            (block.grounds, block.left) = (Box::default(), Box::default());
        }
        held.retain(|held| apps.contains(&held.app));
        plan.notices.retain(|notice| apps.contains(&notice.app));
        decisions.retain(|decision| apps.contains(&decision.app) && decision.kind != DecisionKind::Disputed);
        let notified = plan.notices.iter().map(|notice| (notice.app.clone(), notice.sent_at)).collect();
        Self { blocks: plan.blocks, held, notified, decisions }
    }
}
