//! The records of withheld exemptions if there are few blocked Apps.

use crate::common::{World, namespaces, record};
use crate::withheld::of;

/// Three tenants are blocked, and an exemption may open one of them.
fn three() -> World {
    let mut world = World::new(&["n1"]);
    world.policy.brake.max_releases = 1;
    world.answer("n1", namespaces(3).iter().map(|namespace| record(namespace, 0)).collect());
    assert_eq!(world.blocked().len(), 3);
    world
}

/// How many withheld exemptions each Incident records.
fn recorded(world: &World) -> Vec<usize> {
    world.persisted.values().map(|incident| incident.status.withheld.len()).collect()
}

#[test]
fn a_withheld_exemption_is_recorded_once_in_each_incident_until_it_is_deleted() {
    let mut world = three();
    world.policy.exemptions = vec![of("^ns-", None)];
    for _ in 0..3 {
        assert_eq!(world.blocked().len(), 3);
        assert_eq!(recorded(&world), [1; 3]);
    }
    world.policy.exemptions.clear();
    world.evaluate();
    assert_eq!(recorded(&world), [0; 3]);
}

#[test]
fn an_incident_records_sixteen_at_most() {
    let mut world = three();
    world.policy.exemptions = (0..20).map(|n| of(&format!("^ns-|^other-{n}$"), None)).collect();
    assert_eq!(world.blocked().len(), 3);
    assert_eq!(recorded(&world), [16; 3]);
}
