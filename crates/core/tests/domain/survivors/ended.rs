//! Incidents that end: their waits end with them.

use crate::common::{HOUR, MINUTE, World, record};

/// Lets that many minutes pass in which these nodes answer that they find nothing, and the others do not answer.
fn clear(world: &mut World, minutes: u64, nodes: &[&str], silent: &[&str]) {
    world.rounds(minutes, |world| {
        for node in nodes {
            world.answer(node, vec![]);
        }
        for node in silent {
            world.fail(node);
        }
        world.evaluate();
    });
}

#[test]
fn the_release_of_an_incident_that_begins_again_waits_only_for_the_nodes_that_accuse_it_since() {
    let mut world = World::new(&["n1", "n2"]);
    world.answer("n2", vec![]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    // Not all of its nodes were persisted, so its release waits for all nodes.
    for incident in world.persisted.values_mut() {
        incident.status.evidence_omitted = 3;
    }
    world.restart();
    clear(&mut world, 60, &["n1"], &["n2"]);
    assert_eq!(world.blocked(), ["ns-a"]);
    clear(&mut world, 200, &["n1", "n2"], &[]);
    assert!(world.blocked().is_empty());
    assert!(world.persisted.values().all(|incident| incident.status.evidence_omitted == 0));
    // The App offends again within the day, on one node, and another leader gets no answer from the other node.
    world.wait(MINUTE);
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.restart();
    clear(&mut world, 60, &["n1"], &["n2"]);
    assert!(world.blocked().is_empty());
    assert!(world.now.uptime().as_secs() < 24 * HOUR);
}
