//! Recorded incidents under other rules.

use std::time::Duration;

use crate::common::{HOUR, MINUTE, World, app, at, namespaces, record, record_of};
use procscan_core::exemption::{Exemption, Pattern};
use procscan_core::names::App;
use procscan_core::policy::{IncidentCommand, IssuedBy, Policy, SimulatedOutcome, simulate};
use procscan_core::state::Incident;

fn outcomes(world: &World, policy: &Policy) -> Vec<SimulatedOutcome> {
    let persisted: Vec<Incident> = world.persisted.values().cloned().collect();
    simulate(&persisted, policy, at(0).wall(), world.now.wall())
}

fn differing(world: &World, policy: &Policy) -> Vec<(String, bool, String)> {
    let outcomes = outcomes(world, policy).into_iter().filter(SimulatedOutcome::differs);
    outcomes
        .map(|outcome| (outcome.app.namespace.to_string(), outcome.would_be_blocked, outcome.would_be))
        .collect()
}

fn exempt(namespace: &str) -> Exemption {
    Exemption {
        place: "Exemption a".into(),
        confirm: None,
        namespace: Some(Pattern::Exact(namespace.into())),
        app: None,
        process: None,
        rule: None,
        reason: "a contract".into(),
        until: None,
    }
}

/// Three tenants are accused by one node, another by its own, each with its own process. A release by an operator
/// comes in between.
fn recorded() -> World {
    let mut world = World::new(&["n1", "n2"]);
    world.wait(MINUTE);
    let now = world.clock();
    let of = |i: usize| record_of(&format!("ns-{i}"), "web", &format!("miner{i}"), now);
    world.answer("n1", (0..3).map(of).collect());
    world.answer("n2", vec![record("ns-x", now)]);
    world.evaluate();
    world.wait(MINUTE);
    let until = at(2 * HOUR).wall();
    world
        .incidents
        .execute(&IncidentCommand::Release { app: app("ns-1"), until }, "ops", &world.policy, world.now)
        .unwrap();
    world.evaluate();
    world
}

#[test]
fn the_same_rules_make_no_difference() {
    let world = recorded();
    assert_eq!(differing(&world, &world.policy), []);
    let all = outcomes(&world, &world.policy);
    assert_eq!(all.len(), 4);
    assert!(all.iter().all(|outcome| outcome.was_blocked && outcome.would_be_blocked));
    // An App whose evidence has cleared was still blocked in that time.
    let mut world = recorded();
    world.rounds(40, |w| {
        w.answer("n1", vec![]);
        w.answer("n2", vec![]);
        w.evaluate();
    });
    assert!(world.blocked().is_empty());
    assert_eq!(differing(&world, &world.policy), []);
    // Nothing has happened before the time that is asked for.
    let persisted: Vec<Incident> = world.persisted.values().cloned().collect();
    assert_eq!(simulate(&persisted, &world.policy, at(HOUR).wall(), world.now.wall()), []);
}

#[test]
fn exemptions_brakes_and_grace_make_the_difference_that_they_would_have_made() {
    let world = recorded();
    let mut policy = world.policy.clone();
    policy.exemptions = vec![exempt("ns-x")];
    assert_eq!(differing(&world, &policy), [("ns-x".into(), false, "exempted: exempted: a contract".into())]);

    let mut policy = world.policy.clone();
    policy.brake.max_tenants_per_node = 2;
    let held = differing(&world, &policy);
    assert_eq!(held.len(), 1);
    assert!(held[0].0 == "ns-2" && held[0].2.starts_with("held: Apps of more than 2 tenants"), "{held:?}");

    let mut policy = world.policy.clone();
    policy.namespaces = regex::Regex::new("^tenant-").unwrap();
    assert_eq!(differing(&world, &policy).len(), 4);

    // The grace is longer than any offence lasted.
    let mut policy = world.policy.clone();
    policy.grace = Duration::from_secs(HOUR);
    assert_eq!(differing(&world, &policy).len(), 4);
    policy.grace = Duration::from_secs(30);
    assert_eq!(differing(&world, &policy), []);
}

#[test]
fn less_strict_rules_block_held_and_exempt_apps() {
    let mut world = World::new(&["n1"]);
    world.policy.brake.max_tenants_per_node = 1;
    world.policy.exemptions = vec![exempt("ns-x")];
    let of = |i: usize| record_of(&format!("ns-{i}"), "web", &format!("miner{i}"), 0);
    world.answer("n1", (0..3).map(of).chain([record("ns-x", 0)]).collect());
    world.evaluate();
    assert_eq!(world.held().len(), 2);
    let mut policy = world.policy.clone();
    policy.brake.max_tenants_per_node = 5;
    let blocked: Vec<String> = differing(&world, &policy).into_iter().map(|(name, _, _)| name).collect();
    assert_eq!(blocked, ["ns-1", "ns-2"]);
    policy.exemptions.clear();
    let outcomes = differing(&world, &policy);
    assert_eq!(outcomes.len(), 3);
    assert!(
        outcomes.iter().all(|(_, would, why)| *would && why.starts_with("blocked: process")),
        "{outcomes:?}"
    );
    // An approval is repeated when it was given.
    let first: App = world.evaluate().held[0].app.clone();
    world.wait(MINUTE);
    world
        .incidents
        .execute(&IncidentCommand::Approve { app: first.clone() }, "ops", &world.policy, world.now)
        .unwrap();
    world.evaluate();
    assert_eq!(differing(&world, &world.policy), []);
}

#[test]
fn an_exemption_that_the_service_would_withhold_makes_no_difference_here_either() {
    let mut world = World::new(&["n1"]);
    let brake = &mut world.policy.brake;
    (brake.max_new_tenants, brake.max_tenants_per_node, brake.max_apps_per_node) = (100, 100, 200);
    (brake.max_tenants_per_rule, brake.max_releases) = (100, 20);
    world.answer("n1", namespaces(25).iter().map(|namespace| record(namespace, 0)).collect());
    world.evaluate();
    assert_eq!(world.blocked().len(), 25);
    let all = |confirm| Exemption {
        namespace: Some(Pattern::Regex(regex::Regex::new("^ns-").unwrap())),
        confirm,
        ..exempt("")
    };
    let differing =
        |exemptions: Vec<Exemption>| differing(&world, &Policy { exemptions, ..world.policy.clone() }).len();
    assert_eq!(differing(vec![all(None)]), 0, "it would have no effect");
    assert_eq!(differing(vec![all(Some(24))]), 0, "another number confirms nothing");
    assert_eq!(differing(vec![all(Some(25))]), 25);
    // Another exemption takes effect all the same.
    let other = Exemption { place: "Exemption b".into(), ..exempt("ns-007") };
    assert_eq!(differing(vec![all(None), other]), 1);
    let over = at(0).wall();
    assert_eq!(differing(vec![Exemption { until: Some(over), ..all(None) }]), 0, "it is over");
}

#[test]
fn a_release_ends_in_the_replay_when_it_ended() {
    // In a grace the App is released for five minutes, and after them it is blocked.
    let mut world = World::new(&["n1"]);
    world.policy.grace = Duration::from_secs(10 * MINUTE);
    world.wait(MINUTE);
    let minute = |world: &mut World| {
        world.wait(MINUTE);
        let now = world.clock();
        world.answer("n1", vec![record("ns-a", now)]);
        world.evaluate();
    };
    for _ in 0..3 {
        minute(&mut world);
    }
    let until = world.now.wall() + jiff::SignedDuration::from_mins(15);
    let by = IssuedBy { name: "ops", reason: Some("let it finish until 2030-01-01T00:00:00Z") };
    world
        .incidents
        .execute(&IncidentCommand::Release { app: app("ns-a"), until }, by, &world.policy, world.now)
        .unwrap();
    for _ in 0..14 {
        minute(&mut world);
        assert!(world.blocked().is_empty());
    }
    for _ in 0..20 {
        minute(&mut world);
    }
    assert_eq!(world.blocked(), ["ns-a"]);
    assert_eq!(differing(&world, &world.policy), []);
    let outcome = &outcomes(&world, &world.policy)[0];
    assert!(outcome.was_blocked && outcome.would_be_blocked, "{outcome:?}");

    // The date is lost. The dates of the incident's releases count, and without those the next action by the rules.
    for with_releases in [true, false] {
        let mut persisted: Vec<Incident> = world.persisted.values().cloned().collect();
        for incident in &mut persisted {
            for decision in incident.status.decisions.iter_mut().filter(|it| *it.actor == *"ops") {
                decision.reason = "released".into();
            }
            if with_releases {
                assert_eq!(incident.status.releases[0].until, until);
            } else {
                incident.status.releases.clear();
            }
        }
        let outcomes = simulate(&persisted, &world.policy, at(0).wall(), world.now.wall());
        assert!(outcomes.len() == 1 && !outcomes[0].differs(), "{outcomes:?}");
    }
}
