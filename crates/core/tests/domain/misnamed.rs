//! Incidents that are persisted under other names than their own: copies by operators, and objects of a version with
//! other names.

use crate::common::{MINUTE, World, app, record};
use procscan_core::policy::IncidentCommand;
use procscan_core::state::{Incident, IncidentState};

/// App `web` is blocked, held or released, and its incident is persisted under another name only. Returns its own
/// name.
fn misnamed(world: &mut World) -> String {
    let (own, mut incident) = world.persisted.pop_first().unwrap();
    incident.name = "made-by-hand".into();
    world.persisted.insert(incident.name.clone(), incident);
    own
}

fn blocked() -> World {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world
}

/// The object of another name has been ended, like every open object that is not the App's own.
fn end(incident: &mut Incident, world: &World) {
    incident.status.end_again(world.now.wall());
}

#[test]
fn an_incident_persisted_under_another_name_is_written_at_once_under_its_own() {
    let mut world = blocked();
    let own = misnamed(&mut world);
    world.restart();
    assert_eq!(world.blocked(), ["ns-a"]);
    assert_eq!(
        world.persisted[&own].status.state,
        IncidentState::Blocked,
        "nothing has changed, and it is persisted"
    );
    let mut other = world.persisted["made-by-hand"].clone();
    end(&mut other, &world);
    world.persisted.insert(other.name.clone(), other);
    for _ in 0..2 {
        world.restart();
        assert_eq!(world.blocked(), ["ns-a"]);
    }
}

#[test]
fn a_write_under_its_own_name_that_fails_is_tried_again() {
    let mut world = blocked();
    let own = misnamed(&mut world);
    world.unwritable.insert("ns-a".into());
    world.restart();
    assert_eq!(world.blocked(), ["ns-a"], "it stays as it is persisted");
    assert!(!world.persisted.contains_key(&own));
    world.unwritable.clear();
    assert_eq!(world.blocked(), ["ns-a"]);
    assert!(world.persisted.contains_key(&own));
}

#[test]
fn an_operators_release_is_not_lost_with_an_object_of_another_name() {
    let mut world = blocked();
    let until = world.now.wall() + std::time::Duration::from_hours(24);
    world
        .incidents
        .execute(&IncidentCommand::Release { app: app("ns-a"), until }, "ops", &world.policy, world.now)
        .unwrap();
    assert!(world.blocked().is_empty());
    let own = misnamed(&mut world);
    world.restart();
    world.evaluate();
    let other = world.persisted.remove("made-by-hand").unwrap();
    assert_eq!(world.persisted[&own].status.releases, other.status.releases);
    world.restart();
    world.wait(MINUTE);
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    assert!(world.blocked().is_empty());
}

/// Commands are numbered for each object, and the App's own one has its own numbers.
#[test]
fn commands_in_an_object_of_another_name_do_not_count_for_the_apps_own() {
    let mut world = blocked();
    world.incidents.note_done_up_to(&app("ns-a"), 2);
    world.evaluate();
    let observed = |world: &World| world.incidents.incident(&app("ns-a")).unwrap().observed();
    // A copy beside it, which records that more has been done.
    let mut copy = world.persisted.values().next().unwrap().clone();
    (copy.name, copy.status.observed) = ("a-copy".into(), 7);
    world.persisted.insert(copy.name.clone(), copy.clone());
    world.restart();
    assert_eq!(observed(&world), 2, "of two equal ones its own counts");
    // Of several the latest counts, whatever its name.
    copy.status.clock = Some(world.now.wall() + std::time::Duration::from_mins(1));
    world.persisted.insert(copy.name.clone(), copy);
    world.restart();
    assert_eq!(observed(&world), 2);
    world.persisted.retain(|name, _| name == "a-copy");
    world.restart();
    assert_eq!(observed(&world), 0);
}
