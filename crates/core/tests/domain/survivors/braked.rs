//! The counts of the brakes, over a restart and at their limits.

use std::time::Duration;

use crate::common::{MINUTE, World, app, record, record_of};
use procscan_core::decision::DecisionKind;
use procscan_core::ledger::Detection;
use procscan_core::policy::Evaluation;

/// Nodes `n0`, `n1` and so on, by whose answers an accusation clears within three minutes.
fn world(nodes: usize) -> World {
    let (clear_after, assumed_interval) = (Duration::from_mins(3), Duration::from_mins(1));
    let rules = Detection { clear_after, assumed_interval, ..Detection::default() };
    let nodes: Vec<String> = (0..nodes).map(|n| format!("n{n}")).collect();
    World::with(&nodes.iter().map(String::as_str).collect::<Vec<_>>(), rules)
}

/// The node finds a process of that tenant.
fn accuse(world: &mut World, node: &str, namespace: &str) -> Evaluation {
    let now = world.clock();
    world.answer(node, vec![record_of(namespace, "web", &format!("miner-of-{namespace}"), now)]);
    world.evaluate()
}

/// The node answers without evidence until no App of that tenant is blocked, or for ten minutes. Returns whether a
/// release was held.
fn clear(world: &mut World, node: &str, namespace: &str) -> bool {
    let mut is_held = false;
    for _ in 0..10 {
        world.wait(MINUTE);
        world.answer(node, vec![]);
        let evaluation = world.evaluate();
        is_held |= evaluation.decisions.iter().any(|it| it.kind == DecisionKind::ReleaseHeld);
        if evaluation.plan.blocks.iter().all(|block| *block.app.namespace != *namespace) {
            break;
        }
    }
    is_held
}

/// One tenant is blocked and released, and half an hour later once more in another incident.
fn twice() -> World {
    let mut world = world(3);
    world.policy.same_incident = Duration::from_mins(10);
    world.policy.brake.window = Duration::from_hours(1);
    for node in ["n0", "n2"] {
        world.wait(30 * MINUTE);
        assert_eq!(accuse(&mut world, node, "ns-a").plan.blocks.len(), 1);
        assert!(!clear(&mut world, node, "ns-a"));
    }
    assert_eq!(world.persisted.len(), 2, "two incidents");
    world
}

#[test]
fn of_two_incidents_of_an_app_the_later_one_has_the_place_after_a_restart() {
    // Blocked and released half an hour and an hour after the start, with a window of one hour.
    for (is_held, minutes) in [(true, 40), (false, 65)] {
        let mut world = twice();
        world.policy.brake.max_new_tenants = 1;
        world.restart();
        world.wait(minutes * MINUTE);
        let evaluation = accuse(&mut world, "n1", "ns-b");
        assert_eq!(
            evaluation.held.len(),
            usize::from(is_held),
            "a block, {minutes} minutes after the second one"
        );
        let mut world = twice();
        world.restart();
        world.wait((minutes - 5) * MINUTE);
        assert_eq!(accuse(&mut world, "n1", "ns-b").plan.blocks.len(), 1);
        world.policy.brake.max_releases = 1;
        world.wait(5 * MINUTE);
        assert_eq!(clear(&mut world, "n1", "ns-b"), is_held, "a release");
    }
}

#[test]
fn a_storm_raises_an_alert_after_a_restart_unless_it_did_before() {
    for (limit, alerts) in [(1, 0), (2, 1)] {
        // Of the first two tenants the brake holds the second one, or none.
        let mut blocks = world(3);
        blocks.policy.brake.max_new_tenants = limit;
        accuse(&mut blocks, "n0", "ns-a");
        let before = accuse(&mut blocks, "n1", "ns-b").alerts.len();
        blocks.restart();
        blocks.wait(MINUTE);
        let after = accuse(&mut blocks, "n2", "ns-c");
        assert_eq!(
            (before, after.alerts.len(), after.decisions[0].kind),
            (1 - alerts, alerts, DecisionKind::Held)
        );
        // The same with releases.
        let mut releases = world(3);
        releases.policy.brake.max_releases = limit;
        let (mut alerts_before, mut alerts_after) = (0, 0);
        for (node, tenant) in [("n0", "ns-a"), ("n1", "ns-b"), ("n2", "ns-c")] {
            accuse(&mut releases, node, tenant);
        }
        releases.rounds(5, |w| {
            (0..2).for_each(|n| drop(w.answer(&format!("n{n}"), vec![])));
            alerts_before += w.evaluate().alerts.len();
        });
        releases.restart();
        releases.rounds(5, |w| {
            (0..3).for_each(|n| drop(w.answer(&format!("n{n}"), vec![])));
            alerts_after += w.evaluate().alerts.len();
        });
        assert_eq!((alerts_before, alerts_after), (1 - alerts, alerts), "releases, {limit}");
    }
}

#[test]
fn a_place_is_free_again_when_the_window_has_passed_and_not_before() {
    for (early, is_held) in [(1, true), (0, false)] {
        let mut world = world(2);
        world.policy.brake.max_releases = 1;
        accuse(&mut world, "n0", "ns-a");
        clear(&mut world, "n0", "ns-a");
        let released = world.now.uptime();
        assert_eq!(released.as_secs(), 3 * MINUTE);
        // The other release takes as long.
        world.wait(10 * MINUTE - 3 * MINUTE - early);
        accuse(&mut world, "n1", "ns-b");
        assert_eq!(clear(&mut world, "n1", "ns-b"), is_held, "{early} s before the window has passed");
    }
}

#[test]
fn half_of_a_nodes_places_are_for_one_tenant_however_many_tenants_may_come() {
    let mut world = world(1);
    (world.policy.brake.max_tenants_per_node, world.policy.brake.max_apps_per_node) = (100, 6);
    world.answer("n0", (0..9).map(|n| record_of("ns-a", &format!("web-{n}"), "xmrig", 0)).collect());
    let evaluation = world.evaluate();
    assert_eq!((evaluation.plan.blocks.len(), evaluation.held.len()), (3, 6));
}

#[test]
fn as_many_accusers_of_an_app_are_counted_as_are_persisted() {
    let mut world = world(20);
    for n in 0..20 {
        world.answer(&format!("n{n}"), vec![record("ns-a", 0)]);
    }
    assert_eq!(world.blocked(), ["ns-a"]);
    let due = world.incidents.document(&app("ns-a")).unwrap().status.due.unwrap();
    assert_eq!(due.accusers.len(), 16);
}

#[test]
fn a_held_app_takes_a_place_for_as_long_as_one_that_has_passed() {
    let mut world = world(3);
    world.policy.brake.max_new_tenants = 1;
    accuse(&mut world, "n0", "ns-a");
    world.wait(8 * MINUTE);
    assert_eq!(accuse(&mut world, "n1", "ns-b").held.len(), 1);
    // The first one's place is free by now, but the second one's is not.
    world.wait(4 * MINUTE);
    assert_eq!(accuse(&mut world, "n2", "ns-c").held.len(), 2);
}
