//! A hold outlasts the incident in which a brake began it, as long as it is still known.

use crate::common::{HOUR, MINUTE, World, app, record};
use procscan_core::policy::IncidentCommand;

/// The hold is older than the time in which offending again continues an incident. The operator who released the App
/// has not approved its block.
#[test]
fn a_hold_outlasts_a_release_however_long_that_lasts() {
    let mut world = held_beside_another();
    let until = world.now.wall() + std::time::Duration::from_hours(72);
    world
        .incidents
        .execute(&IncidentCommand::Release { app: app("ns-b"), until }, "ops", &world.policy, world.now)
        .unwrap();
    clear(&mut world);
    let (mut blocked, mut held) = (Vec::new(), Vec::new());
    for hour in 0..80 {
        world.wait(HOUR);
        let now = world.clock();
        let is_quiet = hour < 30;
        world.answer("n1", if is_quiet { vec![] } else { vec![record("ns-b", now)] });
        (blocked, held) = (world.blocked(), world.held());
    }
    assert_eq!((blocked, held), (Vec::<String>::new(), vec!["ns-b".to_owned()]));
}

/// A backup restores an incident that was held, and the leader writes it as ended, because that incident had ended.
/// The next leader receives a report that the App offends again.
#[test]
fn an_app_that_is_held_in_a_restored_backup_is_not_blocked_without_an_approval() {
    let mut world = held_beside_another();
    let mut backup =
        world.persisted.values().find(|it| it.spec.app.namespace == "ns-b".into()).unwrap().clone();
    clear(&mut world);
    for _ in 0..30 {
        world.wait(HOUR);
        let now = world.clock();
        world.answer("n1", vec![record("ns-a", now)]);
        world.evaluate();
    }
    backup.status.end_again(world.now.wall());
    world.persisted.insert(backup.name.clone(), backup);
    world.restart();
    // The first decision can't be persisted.
    world.unwritable.insert("ns-b".into());
    for is_held in [false, true] {
        world.wait(MINUTE);
        let now = world.clock();
        world.answer("n1", vec![record("ns-a", now), record("ns-b", now)]);
        assert_eq!(world.blocked(), ["ns-a"]);
        assert_eq!(world.held(), if is_held { vec!["ns-b"] } else { vec![] });
        world.unwritable.clear();
    }
}

/// A document that has both was edited: a late block is better than a wrong one.
#[test]
fn an_approval_outlasts_a_restart_and_a_hold_beside_it_counts_instead() {
    let mut world = held_beside_another();
    let of_b = |world: &World| {
        world.persisted.values().find(|it| it.spec.app.namespace == "ns-b".into()).unwrap().clone()
    };
    let hold = of_b(&world).status.brake.clone();
    let approve = IncidentCommand::Approve { app: app("ns-b") };
    world.incidents.execute(&approve, "ops", &world.policy, world.now).unwrap();
    assert_eq!(world.blocked(), ["ns-a", "ns-b"]);
    world.restart();
    let status = |world: &World| world.incidents.document(&app("ns-b")).unwrap().status;
    assert!(status(&world).approved && status(&world).brake.is_none());
    let mut edited = of_b(&world);
    edited.status.brake = hold;
    world.persisted.insert(edited.name.clone(), edited);
    world.restart();
    assert!(!status(&world).approved && status(&world).brake.is_some());
}

/// `ns-a` is blocked, and a brake holds `ns-b`. Since then the limit of the brake has been raised, so that it would
/// not hold `ns-b` anew.
fn held_beside_another() -> World {
    let mut world = World::new(&["n1"]);
    world.policy.brake.max_new_tenants = 1;
    world.answer("n1", vec![record("ns-a", 0), record("ns-b", 0)]);
    assert_eq!((world.blocked(), world.held()), (vec!["ns-a".to_owned()], vec!["ns-b".to_owned()]));
    world.policy.brake.max_new_tenants = 100;
    world
}

fn clear(world: &mut World) {
    world.rounds(40, |world| {
        world.answer("n1", vec![]);
        world.evaluate();
    });
    assert_eq!((world.blocked().len(), world.held().len()), (0, 0));
}
