//! Which releases the brakes hold, and which pass them.

use crate::brakes::{accuse_apps, many_nodes};
use crate::common::{HOUR, MINUTE, World, app, namespaces, record, record_of};
use procscan_core::decision::{DecisionKind, Mode};
use procscan_core::ledger::Detection;
use procscan_core::policy::IncidentCommand;

#[test]
fn a_mass_release_is_held_until_approved() {
    let nodes = namespaces(30);
    let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let mut world = World::new(&names);
    world.policy.brake.max_new_tenants = 100;
    world.policy.brake.max_tenants_per_rule = 100;
    for ns in &nodes {
        world.answer(ns, vec![record(ns, 0)]);
    }
    assert_eq!(world.blocked().len(), 30);
    let mut alerts = Vec::new();
    world.rounds(40, |w| {
        for ns in &nodes {
            w.answer(ns, vec![]);
        }
        alerts.extend(w.evaluate().alerts);
    });
    assert_eq!(world.blocked().len(), 10, "twenty may go by themselves");
    assert_eq!(alerts.len(), 1);
    world.wait(5 * HOUR);
    assert_eq!(world.blocked().len(), 10);
    let held = world.evaluate().held[0].clone();
    assert!(held.release);
    world
        .incidents
        .execute(&IncidentCommand::Approve { app: held.app }, "ops", &world.policy, world.now)
        .unwrap();
    assert_eq!(world.blocked().len(), 9);
    // Fresh evidence ends the hold on a release.
    let left = world.blocked()[0].clone();
    let now = world.clock();
    world.answer(&left, vec![record(&left, now)]);
    assert!(world.evaluate().held.iter().all(|held| *held.app.namespace != *left));
    assert!(world.blocked().contains(&left));
}

#[test]
fn an_app_that_is_proven_gone_is_released_whatever_the_brakes_hold_but_not_while_paused() {
    let mut world = World::new(&["n1"]);
    world.policy.brake.max_releases = 0;
    let names = ["ns-a", "ns-b", "ns-c"];
    world.answer("n1", names.iter().map(|name| record(name, 0)).collect());
    assert_eq!(world.blocked(), names);
    world.policy.mode = Mode::Paused;
    world.facts.terminating = names.iter().map(|name| (*name).into()).collect();
    for name in names {
        world.facts.apps.entry(app(name)).or_default().gone = true;
    }
    assert_eq!(world.blocked(), names);
    world.policy.mode = Mode::Enforce;
    assert!(world.blocked().is_empty());
    // An agent may still list its Pods for a while.
    world.wait(MINUTE);
    world.answer("n1", vec![record("ns-c", 60)]);
    assert!(world.blocked().is_empty());
}

#[test]
fn a_namespace_that_is_being_deleted_stays_closed_until_its_pods_are_gone() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.facts.terminating.insert("ns-a".into());
    // The Pod has a long termination grace, and still runs.
    for _ in 0..3 {
        world.wait(MINUTE);
        let now = world.clock();
        world.answer("n1", vec![record("ns-a", now)]);
        assert_eq!(world.blocked(), ["ns-a"]);
    }
    assert!(world.evaluate().decisions.is_empty());
    // It is not known whether the Pod still runs.
    world.facts.apps.remove(&app("ns-a"));
    assert_eq!(world.blocked(), ["ns-a"]);
    world.facts.apps.entry(app("ns-a")).or_default().gone = true;
    let evaluation = world.evaluate();
    assert!(evaluation.plan.blocks.is_empty());
    let decision = &evaluation.decisions[0];
    assert_eq!((decision.kind, decision.reason.contains("being deleted")), (DecisionKind::Released, true));
}

#[test]
fn a_block_of_dry_run_does_not_become_real_in_a_namespace_that_is_being_deleted() {
    let mut world = World::new(&["n1"]);
    world.policy.mode = Mode::DryRun;
    world.answer("n1", vec![record("ns-a", 0)]);
    world.evaluate();
    world.facts.terminating.insert("ns-a".into());
    world.policy.mode = Mode::Enforce;
    world.wait(MINUTE);
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    assert!(world.blocked().is_empty() && world.evaluate().plan.blocks.is_empty());
}

#[test]
fn a_release_that_a_brake_held_is_held_again_when_its_app_was_accused_in_between() {
    let mut world = World::new(&["n1"]);
    world.policy.brake.max_releases = 0;
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    let clean = |w: &mut World| w.rounds(600, |w| drop(w.answer("n1", vec![])));
    clean(&mut world);
    assert!(world.evaluate().held[0].release);
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    assert!(world.held().is_empty());
    clean(&mut world);
    assert_eq!(world.blocked(), ["ns-a"]);
    assert!(world.evaluate().held[0].release);
    // Then its App is gone, so no release has to be held.
    world.facts.apps.entry(app("ns-a")).or_default().gone = true;
    assert!(world.blocked().is_empty());
}

#[test]
fn one_tenants_apps_are_released_as_one_and_a_mass_release_is_held_beyond_the_limit() {
    let mut world = many_nodes(4);
    world.policy.brake.max_releases = 2;
    accuse_apps(&mut world, "ns-000", 0..12, &["n0", "n1", "n2", "n3"]);
    assert_eq!(world.blocked().len(), 12);
    for tenant in 1..4 {
        let now = world.clock();
        let more = record(&format!("ns-00{tenant}"), now);
        world.answer(&format!("n{tenant}"), vec![more]);
    }
    assert_eq!(world.blocked().len(), 15);
    let clean = |w: &mut World| (0..4).for_each(|n| drop(w.answer(&format!("n{n}"), vec![])));
    world.rounds(10 * 60, |w| {
        clean(w);
        w.evaluate();
    });
    assert_eq!(world.blocked(), ["ns-002", "ns-003"], "twelve Apps of one tenant, and another tenant");
    // The held tenant was counted once, so the release of an innocent App does not wait for an operator.
    world.wait(MINUTE);
    let now = world.clock();
    world.answer("n1", vec![record("ns-x", now)]);
    assert_eq!(world.blocked().len(), 3);
    world.rounds(10 * 60, |w| {
        clean(w);
        w.evaluate();
    });
    assert_eq!(world.blocked(), ["ns-002", "ns-003"]);
}

#[test]
fn a_tenants_mass_deletion_holds_no_other_tenants_release() {
    let mut world = many_nodes(4);
    world.policy.brake.max_releases = 1;
    let names = ["ns-a", "ns-b", "ns-c", "ns-d"];
    for (node, name) in names.iter().enumerate() {
        world.answer(&format!("n{node}"), vec![record(name, 0)]);
    }
    assert_eq!(world.blocked(), names);
    for gone in ["ns-a", "ns-b", "ns-c"] {
        world.facts.apps.entry(app(gone)).or_default().gone = true;
    }
    assert_eq!(world.blocked(), ["ns-d"]);
    world.rounds(40, |w| (0..4).for_each(|n| drop(w.answer(&format!("n{n}"), vec![]))));
    assert!(world.blocked().is_empty() && world.held().is_empty());
}

#[test]
fn a_held_release_takes_no_place_anew_with_each_app_of_its_tenant() {
    let minute = std::time::Duration::from_mins(1);
    let rules = Detection { clear_after: minute, assumed_interval: minute, ..Detection::default() };
    let mut world = World::with(&["n0", "n1", "n2", "n3"], rules);
    world.policy.brake.max_releases = 1;
    let accused = [("ns-a", "web"), ("ns-b", "one"), ("ns-b", "two"), ("ns-c", "web")];
    // The minute from which on no process of each tenant is found any more.
    let clean = [1, 1, 3, 7];
    for minute in 0..15 {
        world.wait(MINUTE);
        let now = world.clock();
        for (n, (namespace, pod)) in accused.into_iter().enumerate() {
            let found = (minute < clean[n]).then(|| record_of(namespace, pod, "xmrig", now));
            world.answer(&format!("n{n}"), found.into_iter().collect());
        }
        world.ledger.round_done();
        world.evaluate();
    }
    world.rounds(20, |w| {
        (0..4).for_each(|n| drop(w.answer(&format!("n{n}"), vec![])));
        w.evaluate();
    });
    assert_eq!(world.blocked(), ["ns-b", "ns-b"]);
}
