//! The reason of an incident is the present one.

use crate::common::{HOUR, MINUTE, World, app, at, exemption, record};
use procscan_core::decision::Mode;
use procscan_core::exemption::Pattern;
use procscan_core::policy::IncidentCommand;
use procscan_core::state::IncidentState;

/// One tenant, which is blocked.
fn blocked() -> World {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    world.evaluate();
    assert_eq!(reason(&world), (IncidentState::Blocked, ACCUSATION.to_owned() + "2025-12-22T10:30:00Z"));
    world
}

const ACCUSATION: &str = "process `xmrig` in Pod web matches rule `^xmrig$` on node n1, as of ";

/// The persisted state and reason of the incident of `ns-a`.
fn reason(world: &World) -> (IncidentState, String) {
    let persisted =
        world.persisted.values().find(|persisted| *persisted.spec.app.namespace == *"ns-a").unwrap();
    (persisted.status.state, persisted.status.reason.to_string())
}

/// The process is found again, a minute later.
fn go_on(world: &mut World) {
    world.wait(MINUTE);
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    world.evaluate();
}

#[test]
fn after_a_release_the_reason_names_the_operator_and_the_date() {
    let mut world = blocked();
    let until = at(2 * HOUR).wall();
    world
        .incidents
        .execute(&IncidentCommand::Release { app: app("ns-a"), until }, "ops", &world.policy, world.now)
        .unwrap();
    world.evaluate();
    let released = (IncidentState::Watched, format!("released by ops until {until}"));
    assert_eq!(reason(&world), released);
    go_on(&mut world);
    world.restart();
    go_on(&mut world);
    assert_eq!(reason(&world), released);
}

#[test]
fn after_an_exemption_the_reason_names_it_and_later_the_block_or_why_there_is_none() {
    let mut world = blocked();
    world.policy.exemptions = vec![exemption(|e| e.namespace = Some(Pattern::Exact("ns-a".into())), None)];
    world.evaluate();
    assert_eq!(reason(&world), (IncidentState::Watched, "exempted: a contract".into()));

    // The exemption is removed, but no decision is made while paused.
    world.policy.exemptions.clear();
    world.policy.mode = Mode::Paused;
    go_on(&mut world);
    let undecided = "neither blocked nor held yet; accused of `xmrig`";
    assert_eq!(reason(&world), (IncidentState::Watched, undecided.into()));

    world.policy.mode = Mode::Enforce;
    go_on(&mut world);
    let (state, text) = reason(&world);
    assert_eq!(state, IncidentState::Blocked);
    assert!(text.starts_with(ACCUSATION), "{text}");
}

#[test]
fn the_reason_of_a_held_or_announced_block_names_that_decision_and_no_earlier_block() {
    let mut world = blocked();
    world.policy.exemptions = vec![exemption(|e| e.namespace = Some(Pattern::Exact("ns-a".into())), None)];
    world.evaluate();
    world.policy.exemptions.clear();
    let until = at(HOUR).wall();
    world
        .incidents
        .execute(&IncidentCommand::Release { app: app("ns-a"), until }, "ops", &world.policy, world.now)
        .unwrap();
    world.evaluate();
    world.wait(HOUR);
    world.policy.brake.max_new_tenants = 0;
    go_on(&mut world);
    let (state, text) = reason(&world);
    assert_eq!(state, IncidentState::Held);
    assert!(text.contains("(brake.max_new_tenants)"), "{text}");
    assert!(!text.contains("NewApps"), "{text}");
    world.restart();
    assert_eq!(reason(&world).1, text);

    let mut world = blocked();
    world.policy.grace = std::time::Duration::from_secs(HOUR);
    world.policy.exemptions = vec![exemption(|e| e.namespace = Some(Pattern::Exact("ns-a".into())), None)];
    world.evaluate();
    world.policy.exemptions.clear();
    go_on(&mut world);
    let (state, text) = reason(&world);
    assert_eq!(state, IncidentState::Grace);
    assert!(text.ends_with("; to be blocked in 1h"), "{text}");
}
