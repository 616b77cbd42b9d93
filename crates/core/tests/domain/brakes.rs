//! What the brakes hold, and for how long.

use crate::common::{HOUR, MINUTE, World, app, namespaces, record, record_of};
use procscan_core::policy::{Act, ActError, Actor, Alert, DecisionKind, Mode};

#[test]
fn a_bad_rule_blocks_at_most_the_brakes_number_and_the_rest_stays_held_for_days() {
    let nodes: Vec<String> = (0..500).map(|i| format!("node-{i}")).collect();
    let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let mut world = World::new(&names);
    let mut alerts: Vec<Alert> = Vec::new();
    let accuse = |w: &mut World| {
        let now = w.clock();
        for (i, node) in nodes.iter().enumerate() {
            let mut record = record(&format!("ns-{i:03}"), now);
            std::sync::Arc::make_mut(&mut record.claim).regex = ".*".into();
            w.answer(node, vec![record]);
        }
    };
    // Scans a minute apart, from which the scan interval is learned.
    let scans = |world: &mut World| {
        for _ in 0..9 {
            world.wait(MINUTE);
            accuse(world);
        }
    };
    accuse(&mut world);
    let evaluation = world.evaluate();
    alerts.extend(evaluation.alerts);
    assert_eq!(evaluation.plan.blocks.len(), 10, "one rule may hit ten tenants");
    assert_eq!(evaluation.held.len(), 490);
    // The held ones are not in any object either, and time changes nothing.
    for _ in 0..3 * 24 {
        world.wait(HOUR);
        accuse(&mut world);
        let evaluation = world.evaluate();
        assert_eq!((evaluation.plan.blocks.len(), evaluation.held.len()), (10, 490));
        assert_eq!(evaluation.plan.notices.len(), 10);
        alerts.extend(evaluation.alerts);
    }
    assert_eq!(alerts.len(), 1, "one loud alert: {alerts:?}");

    // Approval of one blocks one.
    let held = world.evaluate().held[0].app.clone();
    let decision =
        world.book.act(&Act::Approve { app: held.clone() }, "ops", &world.policy, world.now).unwrap();
    assert_eq!((decision.kind, decision.actor), (DecisionKind::Approved, Actor::Operator("ops".into())));
    let evaluation = world.evaluate();
    assert_eq!((evaluation.plan.blocks.len(), evaluation.held.len()), (11, 489));
    let again = world.book.act(&Act::Approve { app: held.clone() }, "ops", &world.policy, world.now);
    assert_eq!(again, Err(ActError::NotHeld(held)));

    scans(&mut world);
    // The rule is gone: by the clearing clock nothing is left, and offending again within a day is still held.
    world.rounds(40, |w| {
        for node in &nodes {
            w.answer(node, vec![]);
        }
        w.evaluate();
    });
    let evaluation = world.evaluate();
    assert_eq!((evaluation.plan.blocks.len(), evaluation.held.len()), (0, 0));
    accuse(&mut world);
    assert!(world.held().len() >= 480);
}

#[test]
fn at_most_twenty_new_apps_in_a_window_and_a_falling_rate_rearms_for_later_accusations_only() {
    let nodes = namespaces(40);
    let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let mut world = World::new(&names);
    // Each tenant by its own node and its own rule: only the number is suspicious.
    let accuse = |w: &mut World, range: std::ops::Range<usize>| {
        let now = w.clock();
        for i in range {
            let process = format!("miner{i}");
            w.answer(&nodes[i], vec![record_of(&nodes[i], "web", &process, now)]);
        }
    };
    accuse(&mut world, 0..30);
    assert_eq!(world.blocked().len(), 20);
    // The storm goes on below the limit's rate: the brake stays on.
    world.wait(5 * MINUTE);
    accuse(&mut world, 30..32);
    assert_eq!(world.blocked().len(), 20);
    // It has passed: what comes now is judged by itself, what is held stays held.
    world.wait(10 * MINUTE);
    accuse(&mut world, 32..34);
    let evaluation = world.evaluate();
    assert_eq!((evaluation.plan.blocks.len(), evaluation.held.len()), (22, 12));
}

#[test]
fn a_lying_node_gets_at_most_five_of_its_own_pods_blocked() {
    let mut world = World::new(&["liar", "honest"]);
    let all = namespaces(12);
    let lies =
        |now| (0..12).map(|i| record_of(&format!("ns-{i:03}"), "web", &format!("m{i}"), now)).collect();
    world.answer("liar", lies(0));
    let blocked = world.blocked();
    assert_eq!(blocked.len(), 5);
    // An honest node's word about another tenant is not held back by the liar.
    world.answer("honest", vec![record("ns-x", 0)]);
    assert!(world.blocked().contains(&"ns-x".to_owned()));
    world.rounds(60, |w| {
        let now = w.clock();
        w.answer("liar", lies(now));
    });
    assert_eq!(world.blocked().len(), 6);
    assert_eq!(world.held().len(), all.len() - 5);
}

#[test]
fn a_mass_release_is_held_until_approved() {
    let nodes = namespaces(30);
    let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let mut world = World::new(&names);
    world.policy.brake.max_new_apps = 100;
    world.policy.brake.max_namespaces_per_rule = 100;
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
    world.book.act(&Act::Approve { app: held.app }, "ops", &world.policy, world.now).unwrap();
    assert_eq!(world.blocked().len(), 9);
    // Fresh evidence ends the wait for a release.
    let left = world.blocked()[0].clone();
    let now = world.clock();
    world.answer(&left, vec![record(&left, now)]);
    assert!(world.evaluate().held.iter().all(|held| *held.app.namespace != *left));
    assert!(world.blocked().contains(&left));
}

#[test]
fn an_approval_is_for_one_offence_and_what_is_held_again_is_said_again() {
    let mut world = World::new(&["n1", "n2"]);
    world.policy.brake.max_new_apps = 0;
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.held(), ["ns-a"]);
    world.rounds(40, |w| {
        w.answer("n1", vec![]);
        w.evaluate();
    });
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    let decisions = world.evaluate().decisions;
    assert!(
        decisions[0].kind == DecisionKind::Held && decisions[0].reason.starts_with("still held"),
        "{decisions:?}"
    );
    world.book.act(&Act::Approve { app: app("ns-a") }, "ops", &world.policy, world.now).unwrap();
    assert_eq!(world.blocked(), ["ns-a"]);
    // It has been seen twice, far apart, so its agent seems to scan seldom.
    world.rounds(400, |w| {
        w.answer("n1", vec![]);
        w.evaluate();
    });
    assert!(world.blocked().is_empty());
    let now = world.clock();
    world.answer("n2", vec![record_of("ns-a", "web", "zmap", now)]);
    assert!(world.blocked().is_empty(), "another offence is asked about again");
    assert_eq!(world.held(), ["ns-a"]);
}

#[test]
fn a_deleted_namespace_opens_its_gateway_as_far_as_the_brake_on_releases_lets_it_and_not_while_paused() {
    let mut world = World::new(&["n1"]);
    world.policy.brake.max_apps_per_node = 100;
    world.policy.brake.max_namespaces_per_rule = 100;
    world.policy.brake.max_releases = 2;
    let names = ["ns-a", "ns-b", "ns-c"];
    world.answer("n1", names.iter().map(|name| record(name, 0)).collect());
    assert_eq!(world.blocked(), names);
    world.policy.mode = Mode::Paused;
    world.facts.terminating = names.iter().map(|name| (*name).into()).collect();
    assert_eq!(world.blocked(), names);
    world.policy.mode = Mode::Enforce;
    assert_eq!(world.blocked(), ["ns-c"]);
    // Its Pods may still be listed for a while.
    world.wait(MINUTE);
    world.answer("n1", vec![record("ns-c", 60)]);
    assert_eq!(world.blocked(), ["ns-c"]);
    assert!(world.evaluate().held[0].release);
    world.book.act(&Act::Approve { app: app("ns-c") }, "ops", &world.policy, world.now).unwrap();
    assert!(world.blocked().is_empty());
}

#[test]
fn a_release_that_a_brake_held_is_held_again_when_its_app_was_accused_in_between() {
    let mut world = World::new(&["n1"]);
    world.policy.brake.max_releases = 0;
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    let gone = |w: &mut World, gone: bool| {
        w.facts.apps.entry(app("ns-a")).or_default().gone = gone;
    };
    gone(&mut world, true);
    assert!(world.evaluate().held[0].release);
    gone(&mut world, false);
    world.wait(MINUTE);
    world.answer("n1", vec![record("ns-a", 60)]);
    assert!(world.held().is_empty());
    gone(&mut world, true);
    assert_eq!(world.blocked(), ["ns-a"]);
    assert!(world.evaluate().held[0].release);
}

#[test]
fn a_node_has_the_places_that_it_used_and_a_release_by_hand_gives_no_free_pass() {
    let mut world = World::new(&["n1", "n2"]);
    world.policy.brake.max_apps_per_node = 1;
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    // Released by hand, and accused of something else: asked about again, and its place is taken by itself.
    let until = world.now.wall() + jiff::SignedDuration::from_hours(24);
    world.book.act(&Act::Release { app: app("ns-a"), until }, "ops", &world.policy, world.now).unwrap();
    world.wait(MINUTE);
    world.answer("n1", vec![record("ns-a", 0), record_of("ns-a", "web", "zmap", 60)]);
    assert!(world.blocked().is_empty());
    assert_eq!(world.held(), ["ns-a"]);
    // Another node's word of the same App does not free the first one's place.
    world.answer("n2", vec![record_of("ns-a", "web", "nmap", 60)]);
    world.evaluate();
    world.answer("n1", vec![record_of("ns-b", "web", "zmap", 61)]);
    assert!(world.held().contains(&"ns-b".to_owned()));
}
