//! The limits of memory, and the order in which entries are dropped.

use std::time::Duration;

use crate::common::{HOUR, MINUTE, World, exemption, record_of};
use procscan_core::exemption::Pattern;
use procscan_core::ledger::Detection;
use procscan_core::policy::remembered;

/// A minute later, every one of these `apps` of the namespace is accused. An exemption covers all, so that nothing is
/// decided.
fn accused(world: &mut World, namespace: &str, apps: std::ops::Range<usize>) {
    world.wait(MINUTE);
    let now = world.clock();
    let of = |n: usize| record_of(namespace, &format!("web-{n:03}"), "xmrig", now);
    world.answer("n1", apps.map(of).collect());
    world.evaluate();
}

fn known(world: &World, namespace: &str) -> Vec<String> {
    let apps = world.incidents.incidents().filter(|(app, _)| *app.namespace == *namespace);
    apps.map(|(app, _)| app.name.to_string()).collect()
}

/// All of these Apps have ended, each a minute after the one before.
fn ended(tenants: &[(&str, usize)]) -> World {
    let rules = Detection { clear_after: Duration::from_secs(1), ..Detection::default() };
    let mut world = World::with(&["n1"], rules);
    world.policy.exemptions = vec![exemption(|e| e.process = Some(Pattern::Exact("xmrig".into())), None)];
    for (namespace, apps) in tenants {
        for n in 0..*apps {
            accused(&mut world, namespace, n..n + 1);
        }
    }
    // All of them clear by this.
    world.rounds(400, |w| {
        w.answer("n1", vec![]);
    });
    world.evaluate();
    world
}

#[test]
fn of_one_tenant_the_last_two_hundred_ended_incidents_are_remembered_and_those_of_others_too() {
    let world = ended(&[("ns-few", 3), ("ns-many", 203)]);
    assert_eq!(known(&world, "ns-few").len(), 3, "they are the oldest, but there are few of them");
    let many = known(&world, "ns-many");
    assert_eq!(many.len(), 200);
}

#[test]
fn persisted_evidence_of_a_node_has_no_more_room_than_its_reports() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", (0..5).map(|n| record_of("ns-a", "web", &format!("miner{n}"), 0)).collect());
    assert_eq!(world.blocked(), ["ns-a"]);
    world.rules.max_keys_per_node = 3;
    world.ledger = world.new_ledger();
    let persisted: Vec<_> = world.persisted.values().cloned().collect();
    world.ledger.remember(remembered(&persisted), world.now);
    assert_eq!(world.snapshot().violations.len(), 3);
}

#[test]
fn the_list_is_the_same_when_another_node_goes_on_with_the_same_record() {
    let mut world = World::new(&["n1", "n2"]);
    let found = record_of("ns-a", "web", "xmrig", 0);
    world.answer("n1", vec![found.clone()]);
    world.wait(10 * MINUTE);
    world.answer("n2", vec![found]);
    let before = world.snapshot();
    // The evidence of the first node has grown old, so that of the other one leads.
    world.wait(25 * MINUTE);
    let after = world.snapshot();
    assert_ne!(before.violations[0].leading.node, after.violations[0].leading.node);
    assert!(std::sync::Arc::ptr_eq(&before.list, &after.list));
    assert_eq!(before.list_changed_at, after.list_changed_at);
}

#[test]
fn the_leader_clock_goes_on_where_the_leader_before_left_it() {
    let mut world = World::new(&["n1"]);
    let start = world.now.wall();
    world.answer("n1", vec![record_of("ns-a", "web", "xmrig", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    assert_eq!(world.incidents.leader_time(world.now), start);
    world.jump(7200);
    world.wait(HOUR);
    assert_eq!(
        world.incidents.leader_time(world.now),
        start + Duration::from_secs(HOUR),
        "a wall clock that jumps does not count"
    );
}

#[test]
fn the_nodes_of_a_snapshot_can_be_counted() {
    let nodes = |names: &[&str]| {
        let mut world = World::new(names);
        for name in names {
            world.answer(name, vec![]);
        }
        let nodes = world.snapshot().nodes;
        (nodes.len(), nodes.is_empty())
    };
    assert_eq!([nodes(&[]), nodes(&["n1", "n2", "n3"])], [(0, true), (3, false)]);
}
