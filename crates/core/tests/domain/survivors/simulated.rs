//! Recorded incidents under other rules: when each thing happens again.

use std::time::Duration;

use crate::common::{HOUR, MINUTE, World, app, at, exemption, record, record_of};
use procscan_core::decision::{DecisionKind, Mode};
use procscan_core::exemption::Pattern;
use procscan_core::policy::{IncidentCommand, Policy, SimulatedOutcome, simulate};
use procscan_core::state::Incident;

fn fates(world: &World, policy: &Policy, since: u64) -> Vec<SimulatedOutcome> {
    let kept: Vec<Incident> = world.kept.values().cloned().collect();
    simulate(&kept, policy, at(since).wall(), world.now.wall())
}

fn with_grace(world: &World, seconds: u64) -> Policy {
    Policy { grace: Duration::from_secs(seconds), ..world.policy.clone() }
}

/// Whether the only App would be blocked, and why.
fn would_be(world: &World, policy: &Policy) -> (bool, String) {
    let fates = fates(world, policy, 0);
    assert_eq!(fates.len(), 1, "{fates:?}");
    (fates[0].would_be_blocked, fates[0].would_be.clone())
}

/// A minute after the start one App is found to offend, and it is blocked at once.
fn blocked() -> World {
    let mut world = World::new(&["n1"]);
    world.wait(MINUTE);
    world.answer("n1", vec![record("ns-a", 60)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world
}

/// The same, and its node answers without it until it is released. When that was, in seconds since the start.
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
        let fates = fates(&world, &world.policy, since);
        assert!(fates.iter().all(|fate| !fate.differs()), "since {since}: {fates:?}");
        assert_eq!(fates.len(), usize::from(since < end), "since {since}: {fates:?}");
    }
}

#[test]
fn what_has_ended_is_told_as_what_it_was_and_not_as_ended() {
    let (world, _) = released();
    let fate = &fates(&world, &with_grace(&world, 5 * MINUTE), 0)[0];
    for told in [&fate.was, &fate.would_be] {
        assert!(told.starts_with("blocked: process `xmrig`"), "{told}");
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
    let fates = fates(&world, &with_grace(&world, 20 * MINUTE), 0);
    let blocked: Vec<(bool, &str)> =
        fates.iter().map(|fate| (fate.would_be_blocked, fate.would_be.split(':').next().unwrap())).collect();
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
    // With a grace it comes before the block.
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
fn a_grace_that_would_have_been_told_counts_for_all_tenants_however_few_are_told_in_a_round() {
    let mut world = World::new(&["n1"]);
    world.wait(MINUTE);
    let of = |i: usize| record_of(&format!("ns-{i}"), "web", &format!("miner{i}"), 60);
    world.answer("n1", (0..4).map(of).collect());
    assert_eq!(world.blocked().len(), 4);
    world.wait(20 * MINUTE);
    world.policy.max_notices_per_round = 1;
    for mode in [Mode::Enforce, Mode::DryRun] {
        let policy = Policy { mode, ..with_grace(&world, 10 * MINUTE) };
        let fates = fates(&world, &policy, 0);
        assert!(fates.len() == 4 && fates.iter().all(|fate| fate.would_be_blocked), "{mode:?}: {fates:?}");
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
    let fate = &fates(&world, &world.policy, 0)[0];
    assert!(fate.was_blocked && fate.would_be_blocked, "{fate:?}");
}

#[test]
fn a_release_whose_date_is_lost_lasts_as_long_as_its_operator_said_or_for_a_month() {
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
    let act =
        IncidentCommand::Release { app: app("ns-a"), until: beginning + Duration::from_secs(100 * HOUR) };
    world.incidents.execute(&act, "ops", &world.policy, world.now).unwrap();
    (0..60).for_each(|_| offend(&mut world, HOUR));
    // What is left of the release, and for how many hours it lasts.
    for (by, hours, is_blocked) in
        [(Some("ops"), 100, false), (Some("ops"), 1, true), (Some("another"), 1, false), (None, 0, false)]
    {
        for incident in world.kept.values_mut() {
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
    let act = IncidentCommand::Release { app: app("ns-a"), until: until + Duration::from_secs(100 * HOUR) };
    world.incidents.execute(&act, "ops", &world.policy, world.now).unwrap();
    (0..20).for_each(|_| offend(&mut world));
    for incident in world.kept.values_mut() {
        let log = &mut incident.status.decisions;
        assert!(log.iter().any(|it| it.at == until && it.decision == DecisionKind::Warned), "{log:?}");
        for decision in log.iter_mut().filter(|it| *it.actor == *"ops") {
            decision.reason = "released".into();
        }
        incident.status.releases.clear();
    }
    assert!(!would_be(&world, &world.policy).0);
}
