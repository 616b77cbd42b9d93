//! A new block follows from a direct read, not from reports of the watches.

use std::time::Duration;

use procscan_core::Moment;
use procscan_core::exemption::Pattern;
use procscan_core::names::PodRef;
use procscan_core::policy::IncidentCommand;

use crate::common::{HOUR, MINUTE, World, app, at, exemption, record};

fn pod() -> PodRef {
    PodRef { namespace: "ns-a".into(), pod: "web".into() }
}

/// A node that accuses the Pod, which has been read at the start and is known by reports since.
fn world() -> World {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web", "n1", "web");
    world.facts.carried.insert(pod(), at(0));
    world
}

fn accuse(world: &mut World) {
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
}

/// The Pod is not blocked before it has been read once more, which the lookup requests ask for.
fn is_blocked_after_a_direct_read(world: &mut World) {
    for _ in 0..2 {
        assert!(world.blocked().is_empty());
        world.wait(1);
        accuse(world);
    }
    let asked = |world: &mut World| {
        let snapshot = world.snapshot();
        world.incidents.lookup_requests(&snapshot, &world.policy).direct
    };
    let direct = asked(world);
    assert_eq!(direct.keys().collect::<Vec<_>>(), [&pod()]);
    let since = direct[&pod()];
    let early = since.uptime().saturating_sub(Duration::from_secs(1));
    world.facts.carried.insert(pod(), Moment::new(early, since.wall()));
    assert!(world.blocked().is_empty());
    assert_eq!(asked(world), direct, "the block waits for the same direct read");
    world.facts.carried.insert(pod(), since);
    assert_eq!(world.blocked(), ["ns-a"]);
    assert!(asked(world).is_empty());
}

#[test]
fn a_new_accusation_is_blocked_after_a_direct_read_of_its_pod() {
    let mut world = world();
    world.wait(MINUTE);
    accuse(&mut world);
    is_blocked_after_a_direct_read(&mut world);
}

#[test]
fn a_pod_that_was_read_after_the_accusation_needs_no_other_direct_read() {
    let mut world = world();
    world.wait(MINUTE);
    accuse(&mut world);
    world.facts.carried.insert(pod(), world.now);
    assert_eq!(world.blocked(), ["ns-a"]);
}

#[test]
fn a_grace_that_ends_blocks_after_another_direct_read() {
    let mut world = world();
    world.policy.grace = Duration::from_secs(10 * MINUTE);
    for _ in 0..10 {
        accuse(&mut world);
        assert!(world.blocked().is_empty());
        let snapshot = world.snapshot();
        assert!(
            world.incidents.lookup_requests(&snapshot, &world.policy).direct.is_empty(),
            "nothing is to be decided"
        );
        world.wait(MINUTE);
    }
    accuse(&mut world);
    is_blocked_after_a_direct_read(&mut world);
}

#[test]
fn an_exemption_that_ends_blocks_after_another_direct_read() {
    let mut world = world();
    let until = Some(at(HOUR).wall());
    let namespace = Some(Pattern::Exact("ns-a".into()));
    world.policy.exemptions = vec![exemption(|e| e.namespace.clone_from(&namespace), until)];
    for _ in 0..60 {
        accuse(&mut world);
        assert!(world.blocked().is_empty());
        world.wait(MINUTE);
    }
    world.wait(MINUTE);
    accuse(&mut world);
    is_blocked_after_a_direct_read(&mut world);
}

#[test]
fn a_release_that_ends_blocks_after_another_direct_read() {
    let mut world = world();
    accuse(&mut world);
    assert_eq!(world.blocked(), ["ns-a"]);
    let until = at(HOUR).wall();
    world
        .incidents
        .execute(&IncidentCommand::Release { app: app("ns-a"), until }, "alice", &world.policy, world.now)
        .unwrap();
    for _ in 0..61 {
        world.wait(MINUTE);
        accuse(&mut world);
        if world.clock() < 3600 {
            assert!(world.blocked().is_empty());
        }
    }
    is_blocked_after_a_direct_read(&mut world);
}

#[test]
fn a_block_continues_by_reports_of_the_watches() {
    let mut world = world();
    accuse(&mut world);
    assert_eq!(world.blocked(), ["ns-a"]);
    for _ in 0..120 {
        world.wait(MINUTE);
        accuse(&mut world);
        assert_eq!(world.blocked(), ["ns-a"]);
    }
}

/// The agent scans again, and its record is renewed, before the direct read begins. Reports of the watches until then
/// can't judge it.
#[test]
fn a_block_waits_for_its_direct_read_although_the_record_is_renewed_before() {
    let mut world = world();
    world.policy.grace = Duration::from_secs(10 * MINUTE);
    for _ in 0..11 {
        world.facts.pods.get_mut(&pod()).unwrap().asked = world.now;
        accuse(&mut world);
        assert!(world.blocked().is_empty());
        world.wait(MINUTE);
    }
    let asked = |world: &mut World| {
        let snapshot = world.snapshot();
        world.incidents.lookup_requests(&snapshot, &world.policy).direct
    };
    let direct = asked(&mut world);
    assert_eq!(direct.len(), 1, "the grace has ended");
    accuse(&mut world);
    assert!(world.blocked().is_empty());
    assert_eq!(asked(&mut world), direct, "the block waits for the same direct read");
    world.facts.pods.get_mut(&pod()).unwrap().asked = world.now;
    world.facts.carried.remove(&pod());
    assert_eq!(world.blocked(), ["ns-a"]);
    assert!(asked(&mut world).is_empty());
}
