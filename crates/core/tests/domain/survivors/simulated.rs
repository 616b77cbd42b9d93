//! Recorded incidents under other rules: when each event happens again.

use std::time::Duration;

use crate::common::{HOUR, MINUTE, World, app, at, exemption, record, record_of};
use procscan_core::decision::{DecisionKind, Mode};
use procscan_core::exemption::Pattern;
use procscan_core::policy::{IncidentCommand, Policy, SimulatedOutcome, simulate};
use procscan_core::state::Incident;

fn outcomes(world: &World, policy: &Policy, since: u64) -> Vec<SimulatedOutcome> {
    let persisted: Vec<Incident> = world.persisted.values().cloned().collect();
    simulate(&persisted, policy, at(since).wall(), world.now.wall())
}

fn with_grace(world: &World, seconds: u64) -> Policy {
    Policy { grace: Duration::from_secs(seconds), ..world.policy.clone() }
}

/// Whether the only App would be blocked, and why.
fn would_be(world: &World, policy: &Policy) -> (bool, String) {
    let outcomes = outcomes(world, policy, 0);
    assert_eq!(outcomes.len(), 1, "{outcomes:?}");
    (outcomes[0].would_be_blocked, outcomes[0].would_be.clone())
}

/// A minute after the start one App is found to offend, and it is blocked at once.
fn blocked() -> World {
    let mut world = World::new(&["n1"]);
    world.wait(MINUTE);
    world.answer("n1", vec![record("ns-a", 60)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world
}

/// The same, and its node answers without evidence until it is released. Returns when that was, in seconds since the
/// start.
fn released() -> (World, u64) {
    let mut world = blocked();
    while !world.blocked().is_empty() {
        world.wait(MINUTE);
        world.answer("n1", vec![]);
        world.ledger.round_done();
    }
    let end = world.now.uptime().as_secs();
    world.wait(HOUR);
    (world, end)
}

#[test]
fn the_same_rules_make_no_difference_whatever_the_start_of_the_replay() {
    let (world, end) = released();
    for since in [0, 59, 60, 61, end - 1, end, end + 1] {
        let outcomes = outcomes(&world, &world.policy, since);
        assert!(outcomes.iter().all(|outcome| !outcome.differs()), "since {since}: {outcomes:?}");
        assert_eq!(outcomes.len(), usize::from(since < end), "since {since}: {outcomes:?}");
    }
}

#[test]
fn the_outcome_of_an_ended_incident_is_its_state_before_its_end() {
    let (world, _) = released();
    let outcome = &outcomes(&world, &with_grace(&world, 5 * MINUTE), 0)[0];
    for reason in [&outcome.was, &outcome.would_be] {
        assert!(reason.starts_with("blocked: process `xmrig`"), "{reason}");
    }
}

#[test]
fn nothing_is_known_before_it_was_found_or_after_it_has_ended() {
    // Of two tenants the second one is found half an hour later, and has not had its grace yet.
    let mut world = blocked();
    world.wait(30 * MINUTE);
    world.answer("n1", vec![record("ns-a", 30 * 60), record_of("ns-b", "web", "zmap", 31 * 60)]);
    world.evaluate();
    world.wait(5 * MINUTE);
    let outcomes = outcomes(&world, &with_grace(&world, 20 * MINUTE), 0);
    let blocked: Vec<(bool, &str)> = outcomes
        .iter()
        .map(|outcome| (outcome.would_be_blocked, outcome.would_be.split(':').next().unwrap()))
        .collect();
    assert_eq!(blocked, [(true, "blocked"), (false, "warned")]);
    // One ends with its grace, or a moment later.
    let (world, end) = released();
    let lasted = end - MINUTE;
    for (grace, is_blocked) in [(lasted - 1, true), (lasted, false), (lasted + 1, false)] {
        assert_eq!(would_be(&world, &with_grace(&world, grace)).0, is_blocked, "{grace} of {lasted}");
    }
}

#[test]
fn an_operators_release_comes_again_and_lasts_for_a_month() {
    let mut world = blocked();
    world.wait(MINUTE);
    let until = at(100 * HOUR).wall();
    world
        .incidents
        .execute(&IncidentCommand::Release { app: app("ns-a"), until }, "ops", &world.policy, world.now)
        .unwrap();
    world.evaluate();
    // With a grace the release comes before the block.
    let policy = with_grace(&world, 5 * MINUTE);
    world.wait(10 * MINUTE);
    assert!(!would_be(&world, &policy).0);
    for _ in 0..60 {
        world.wait(HOUR);
        let now = world.clock();
        world.answer("n1", vec![record("ns-a", now)]);
        world.evaluate();
    }
    let (is_blocked, why) = would_be(&world, &policy);
    assert!(!is_blocked && why.starts_with("released by hand"), "{why}");
}

#[test]
fn a_simulated_grace_counts_for_all_tenants_whatever_the_limit_of_notices_per_round() {
    let mut world = World::new(&["n1"]);
    world.wait(MINUTE);
    let of = |i: usize| record_of(&format!("ns-{i}"), "web", &format!("miner{i}"), 60);
    world.answer("n1", (0..4).map(of).collect());
    assert_eq!(world.blocked().len(), 4);
    world.wait(20 * MINUTE);
    world.policy.max_notices_per_round = 1;
    for mode in [Mode::Enforce, Mode::DryRun] {
        let policy = Policy { mode, ..with_grace(&world, 10 * MINUTE) };
        let outcomes = outcomes(&world, &policy, 0);
        assert!(
            outcomes.len() == 4 && outcomes.iter().all(|outcome| outcome.would_be_blocked),
            "{mode:?}: {outcomes:?}"
        );
    }
}

#[test]
fn of_two_releases_by_one_operator_each_ends_in_the_replay_when_it_ended() {
    let mut world = World::new(&["n1"]);
    world.policy.grace = Duration::from_secs(5 * MINUTE);
    let offend = |world: &mut World, minutes: u64| {
        for _ in 0..minutes {
            world.wait(MINUTE);
            let now = world.clock();
            world.answer("n1", vec![record("ns-a", now)]);
            world.evaluate();
        }
    };
    let release = |world: &mut World, seconds: u64| {
        let until = world.now.wall() + Duration::from_secs(seconds);
        world
            .incidents
            .execute(&IncidentCommand::Release { app: app("ns-a"), until }, "ops", &world.policy, world.now)
            .unwrap();
        assert!(world.blocked().is_empty());
    };
    offend(&mut world, 3);
    release(&mut world, 10 * MINUTE);
    offend(&mut world, 30);
    assert_eq!(world.blocked(), ["ns-a"], "the first release is over");
    release(&mut world, 100 * HOUR);
    offend(&mut world, 30);
    let outcome = &outcomes(&world, &world.policy, 0)[0];
    assert!(outcome.was_blocked && outcome.would_be_blocked, "{outcome:?}");
}

#[test]
fn a_release_whose_date_is_lost_lasts_as_long_as_its_operator_set_or_for_a_month() {
    let mut world = World::new(&["n1"]);
    world.policy.grace = Duration::from_secs(5 * MINUTE);
    let offend = |world: &mut World, seconds: u64| {
        world.wait(seconds);
        let now = world.clock();
        world.answer("n1", vec![record("ns-a", now)]);
        assert!(world.blocked().is_empty());
    };
    (0..3).for_each(|_| offend(&mut world, MINUTE));
    let beginning = world.now.wall();
    let command =
        IncidentCommand::Release { app: app("ns-a"), until: beginning + Duration::from_secs(100 * HOUR) };
    world.incidents.execute(&command, "ops", &world.policy, world.now).unwrap();
    (0..60).for_each(|_| offend(&mut world, HOUR));
    // The operator of the release that is left in the Incident, for how many hours it lasts, and whether the App is
    // blocked.
    for (by, hours, is_blocked) in
        [(Some("ops"), 100, false), (Some("ops"), 1, true), (Some("another"), 1, false), (None, 0, false)]
    {
        for incident in world.persisted.values_mut() {
            for decision in incident.status.decisions.iter_mut().filter(|it| *it.actor == *"ops") {
                decision.reason = "released".into();
            }
            let releases = &mut incident.status.releases;
            let by = by.map(|by| (by, beginning + Duration::from_secs(hours * HOUR)));
            match by {
                Some((by, until)) => (releases[0].by, releases[0].until) = (by.into(), until),
                None => releases.clear(),
            }
        }
        assert_eq!(would_be(&world, &world.policy).0, is_blocked, "{by:?}: {hours} h");
    }
}

#[test]
fn a_warning_of_the_moment_of_a_release_does_not_end_it() {
    let mut world = World::new(&["n1"]);
    world.policy.grace = Duration::from_secs(5 * MINUTE);
    let until = at(10 * MINUTE).wall();
    world.policy.exemptions =
        vec![exemption(|e| e.namespace = Some(Pattern::Exact("ns-a".into())), Some(until))];
    let offend = |world: &mut World| {
        world.wait(MINUTE);
        let now = world.clock();
        world.answer("n1", vec![record("ns-a", now)]);
        world.evaluate();
    };
    while world.now.wall() < until {
        offend(&mut world);
    }
    let command =
        IncidentCommand::Release { app: app("ns-a"), until: until + Duration::from_secs(100 * HOUR) };
    world.incidents.execute(&command, "ops", &world.policy, world.now).unwrap();
    (0..20).for_each(|_| offend(&mut world));
    for incident in world.persisted.values_mut() {
        let log = &mut incident.status.decisions;
        assert!(log.iter().any(|it| it.at == until && it.decision == DecisionKind::Warned), "{log:?}");
        for decision in log.iter_mut().filter(|it| *it.actor == *"ops") {
            decision.reason = "released".into();
        }
        incident.status.releases.clear();
    }
    assert!(!would_be(&world, &world.policy).0);
}
