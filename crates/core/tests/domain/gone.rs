//! Releases because the cluster proves that Apps are gone: many at once are held, because the API server may have lost
//! its objects.

use crate::common::{MINUTE, World, app, namespaces, record};
use procscan_core::decision::{DecisionKind, Mode};
use procscan_core::policy::{Alert, Brake, Evaluation, IncidentCommand};

const TENANTS: usize = 12;

/// Blocked tenants, each on the reports of its own node.
fn blocked_tenants() -> (World, Vec<String>) {
    let nodes: Vec<String> = (0..TENANTS).map(|n| format!("n{n}")).collect();
    let mut world = World::new(&nodes.iter().map(String::as_str).collect::<Vec<_>>());
    world.policy.brake.max_tenants_per_rule = 100;
    world.policy.brake.max_gone_tenants = 5;
    let names = namespaces(TENANTS);
    for (node, name) in nodes.iter().zip(&names) {
        world.answer(node, vec![record(name, 0)]);
    }
    assert_eq!(world.blocked().len(), TENANTS);
    (world, names)
}

fn are_gone(world: &mut World, names: &[String], gone: bool) {
    for name in names {
        world.facts.apps.entry(app(name)).or_default().gone = gone;
    }
}

fn count(evaluation: &Evaluation, kind: DecisionKind) -> usize {
    evaluation.decisions.iter().filter(|decision| decision.kind == kind).count()
}

/// The API server was restored from a backup without any Pods.
#[test]
fn when_the_apps_of_many_tenants_are_gone_at_once_most_stay_blocked_until_an_operator_approves() {
    for terminating in [false, true] {
        let (mut world, names) = blocked_tenants();
        world.wait(20 * MINUTE);
        if terminating {
            world.facts.terminating = names.iter().map(|name| name.as_str().into()).collect();
        }
        are_gone(&mut world, &names, true);
        let evaluation = world.evaluate();
        assert_eq!(count(&evaluation, DecisionKind::Released), 5);
        assert_eq!(count(&evaluation, DecisionKind::ReleaseHeld), 7);
        assert_eq!((evaluation.plan.blocks.len(), evaluation.held.len()), (7, 7));
        assert!(evaluation.held[0].reason.contains("brake.max_gone_tenants"), "{:?}", evaluation.held[0]);
        let is_alert = |alert: &&Alert| matches!(alert, Alert::Brake { brake: Brake::Gone, .. });
        assert_eq!(evaluation.alerts.iter().filter(is_alert).count(), 1);
        // Neither time, nor a restart, nor the return of the Pods opens them.
        for restarts in 0..3 {
            for minutes in [1, 30, 24 * 60] {
                world.wait(minutes * MINUTE);
                let evaluation = world.evaluate();
                assert_eq!((evaluation.decisions, evaluation.plan.blocks.len()), (vec![], 7));
            }
            world.restart();
            if restarts == 1 {
                are_gone(&mut world, &names, false);
                world.facts.terminating.clear();
            }
        }
        let held = world.evaluate().held[0].app.clone();
        world
            .incidents
            .execute(&IncidentCommand::Approve { app: held }, "ops", &world.policy, world.now)
            .unwrap();
        assert_eq!(world.blocked().len(), 6);
    }
}

#[test]
fn an_app_whose_release_as_gone_is_held_is_blocked_as_before_when_it_offends_again() {
    let (mut world, names) = blocked_tenants();
    are_gone(&mut world, &names, true);
    assert_eq!(world.held().len(), 7);
    are_gone(&mut world, &names, false);
    world.wait(MINUTE);
    let now = world.clock();
    world.answer("n11", vec![record("ns-011", now)]);
    assert_eq!((world.held().len(), world.blocked().len()), (6, 7));
    // The rules release them.
    world.rounds(40, |w| (0..TENANTS).for_each(|n| drop(w.answer(&format!("n{n}"), vec![]))));
    assert!(!world.blocked().contains(&"ns-011".to_owned()));
}

/// They take no places of releases by the rules either.
#[test]
fn one_tenants_mass_deletion_takes_one_place_and_those_that_come_one_by_one_pass() {
    let (mut world, names) = blocked_tenants();
    for pair in names.chunks(4) {
        are_gone(&mut world, pair, true);
        world.evaluate();
        world.wait(10 * MINUTE);
    }
    assert!(world.blocked().is_empty() && world.held().is_empty());

    let mut world = World::new(&["n0", "n1", "n2"]);
    world.policy.brake.max_gone_tenants = 1;
    let of = |n: usize| procscan_core::names::App::new("ns-a", "app", format!("web-{n}"));
    let many = (0..10).map(|n| crate::common::record_of("ns-a", &format!("web-{n}"), "xmrig", 0)).collect();
    world.answer("n0", many);
    assert_eq!(world.blocked().len(), 10);
    (0..10).for_each(|n| world.facts.apps.entry(of(n)).or_default().gone = true);
    world.policy.mode = Mode::Enforce;
    assert!(world.blocked().is_empty() && world.held().is_empty());
}
