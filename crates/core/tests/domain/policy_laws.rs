//! The policy's laws, over random sequences.

mod restarts;
mod steps;
mod wrong_blocks;

use std::collections::BTreeSet;

use crate::common::{World, record_of, target};
use procscan_core::decision::{DecisionKind, Mode};
use procscan_core::names::App;
use procscan_core::policy::{IncidentCommand, Phase, PodState};
use proptest::collection::vec;
use proptest::prelude::*;

use self::steps::{Step, app, step};

const NODES: [&str; 3] = ["n0", "n1", "n2"];
const TENANTS: usize = 8;

fn world() -> World {
    let mut world = World::new(&NODES);
    world.policy.verify_pods = true;
    world.policy.brake.max_new_tenants = 3;
    world.policy.brake.max_tenants_per_node = 2;
    world.policy.brake.max_tenants_per_rule = 4;
    world.policy.brake.max_releases = 2;
    let follower = world.new_ledger();
    world.follower = Some((follower, true));
    world
}

/// A copy of the world, without the follower.
fn world_of(world: &World) -> World {
    World {
        ledger: world.new_ledger(),
        policy: world.policy.clone(),
        facts: world.facts.clone(),
        persisted: world.persisted.clone(),
        unwritable: world.unwritable.clone(),
        is_mute: world.is_mute,
        targets: world.targets.clone(),
        now: world.now,
        ..World::with(&NODES, world.rules.clone())
    }
}

proptest! {
    #![proptest_config(crate::common::cases(400))]

    /// An exempt, protected, terminating, disputed, unverified or held App is never in the plan, and time alone never
    /// takes it there. The log explains every difference between two plans.
    #[test]
    fn never_a_wrong_block(steps in vec(step(), 1..120)) {
        let mut course = wrong_blocks::Course::new(world());
        for step in &steps {
            course.take(step)?;
        }
    }

    /// A restart and another leader change nothing by themselves: no App is released or freed from a brake, and no
    /// tenant is notified again. No App is blocked that an unbroken run would not have blocked at this moment. The
    /// documents have all that the policy knows.
    #[test]
    fn a_restart_and_another_leader_change_nothing_by_themselves(
        steps in vec(step(), 1..100), fails_over in any::<bool>()
    ) {
        let mut course = restarts::Course::new(world());
        for step in steps.iter().filter(|step| !matches!(step, Step::Mode(Mode::DryRun))) {
            course.take(step, fails_over)?;
        }
    }

    /// An operator's release of an accusation holds until its date, whatever steps follow.
    #[test]
    fn no_release_by_hand_is_ever_lost(
        before in vec(step(), 1..40), pick in 0..TENANTS, after in vec(step(), 1..60)
    ) {
        let mut world = world();
        // A command that can't be persisted is not carried out.
        for step in before.iter().filter(|step| !matches!(step, Step::Mode(Mode::DryRun) | Step::Unwritable(_))) {
            step.take(&mut world);
            world.evaluate();
        }
        let has_grounds = |tenant: &usize| {
            world.incidents.documents().iter().any(|incident| {
                App::from(&incident.spec.app) == app(*tenant)
                    && incident.status.evidence.iter().any(|e| e.cleared.as_ref().is_none_or(|c| !c.ended))
            })
        };
        let accused: Vec<usize> = (0..TENANTS).filter(has_grounds).collect();
        let Some(&tenant) = accused.get(pick % accused.len().max(1)) else { return Ok(()) };
        let until = world.now.wall() + jiff::SignedDuration::from_hours(1);
        let release = IncidentCommand::Release { app: app(tenant), until };
        prop_assert!(world.incidents.execute(&release, "ops", &world.policy, world.now).is_ok());
        world.evaluate();
        let is_ours = |step: &&Step| {
            // Another release by the same operator may shorten it.
            !matches!(step, Step::Mode(Mode::DryRun)) && !matches!(step, Step::Release(of) if *of == tenant)
        };
        for step in after.iter().filter(is_ours) {
            step.take(&mut world);
            let blocked = world.evaluate().plan.blocks;
            if world.now.wall() < until {
                prop_assert!(blocked.iter().all(|block| block.app != app(tenant)), "blocked after {step:?}");
            }
        }
    }

    /// A new block has evidence that is fresh at that very moment.
    #[test]
    fn every_new_block_has_fresh_evidence_of_the_pods_own_node(steps in vec(step(), 1..80)) {
        let mut world = world();
        let mut before: BTreeSet<App> = BTreeSet::new();
        for step in &steps {
            step.take(&mut world);
            let evaluation = world.evaluate();
            let snapshot = world.snapshot();
            for decision in evaluation.decisions.iter().filter(|d| d.kind == DecisionKind::Blocked) {
                if before.contains(&decision.app) {
                    continue;
                }
                let fresh = snapshot.violations.iter().any(|violation| {
                    violation.evidence().any(|evidence| {
                        evidence.presence == procscan_core::clearing::Presence::Active
                            && matches!(
                                world.facts.pods.get(&violation.key.pod_ref()).map(|fact| &fact.state),
                                Some(PodState::Present { node, .. }) if *node == evidence.node
                            )
                            && violation.key.namespace == decision.app.namespace
                    })
                });
                prop_assert!(fresh, "{} is blocked on stale or disputed evidence", decision.app);
            }
            before = evaluation.plan.blocks.iter().map(|block| block.app.clone()).collect();
        }
    }

    /// The outcome is a function of the inputs: the same sequence has the same outcome.
    #[test]
    fn the_plan_is_a_function_of_its_inputs(steps in vec(step(), 1..60)) {
        let run = || {
            let mut world = world();
            let mut outcomes = Vec::new();
            for step in &steps {
                step.take(&mut world);
                let evaluation = world.evaluate();
                outcomes.push(format!("{:?} {:?} {:?}", evaluation.plan, evaluation.decisions, evaluation.held));
            }
            outcomes
        };
        prop_assert_eq!(run(), run());
    }

    /// Held Apps stay out of the plan, however long the wait is.
    #[test]
    fn time_alone_never_blocks_a_held_app(waits in vec(1..20_000_u64, 1..60), listen in any::<bool>()) {
        let mut world = World::new(&["n0"]);
        world.policy.brake.max_new_tenants = 0;
        world.answer("n0", vec![record_of("ns-t0", "web", "xmrig", 0)]);
        prop_assert!(world.blocked().is_empty());
        for wait in waits {
            world.wait(wait);
            if listen {
                let now = world.clock();
                world.answer("n0", vec![record_of("ns-t0", "web", "xmrig", now)]);
            } else {
                world.ledger.expect([target("n0")], 0);
            }
            world.policy.brake.max_new_tenants = 100;
            let blocked = world.blocked();
            let forgotten = world.incidents.incidents().all(|(_, i)| matches!(i.phase(), Phase::Ended { .. }));
            prop_assert!(blocked.is_empty() || forgotten);
        }
    }
}
