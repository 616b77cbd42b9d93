//! Releases by operators: what each covers, and for how long.

use crate::common::{HOUR, MINUTE, World, app, record, record_of};
use procscan_core::policy::{IncidentCommand, IncidentCommandError};

fn release(world: &mut World, name: &str) {
    let until = world.now.wall() + jiff::SignedDuration::from_hours(24 * 30);
    world
        .incidents
        .execute(&IncidentCommand::Release { app: app(name), until }, "ops", &world.policy, world.now)
        .unwrap();
}

/// An App that an operator has released, and whose incident ended more than a day ago.
fn released_long_ago() -> World {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    release(&mut world, "ns-a");
    world.rounds(40, |w| {
        w.answer("n1", vec![]);
        w.evaluate();
    });
    world.wait(25 * HOUR);
    world.evaluate();
    world
}

#[test]
fn a_release_covers_the_process_and_the_rule_that_it_was_given_for_and_nothing_else() {
    let by_rule = |rule: &str, now| {
        let mut record = record("ns-a", now);
        std::sync::Arc::make_mut(&mut record.claim).regex = rule.into();
        record
    };
    for restarts in [false, true] {
        let mut world = World::new(&["n1"]);
        world.answer("n1", vec![record("ns-a", 0)]);
        assert_eq!(world.blocked(), ["ns-a"]);
        release(&mut world, "ns-a");
        assert!(world.blocked().is_empty());
        if restarts {
            world.restart();
        }
        world.wait(MINUTE);
        world.answer("n1", vec![record("ns-a", 60)]);
        assert!(world.blocked().is_empty());
        world.wait(MINUTE);
        world.answer("n1", vec![by_rule("^xm", 120)]);
        assert_eq!(world.blocked(), ["ns-a"], "the same process by another rule");
    }
}

#[test]
fn a_new_incident_of_an_app_has_the_releases_of_the_one_before() {
    let mut world = released_long_ago();
    let before = world.incidents.incident(&app("ns-a")).map(procscan_core::policy::Incident::opened);
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    assert!(world.blocked().is_empty());
    assert_ne!(world.incidents.incident(&app("ns-a")).map(procscan_core::policy::Incident::opened), before);
}

#[test]
fn a_new_incident_that_can_not_be_persisted_loses_no_release_either() {
    let mut world = released_long_ago();
    world.unwritable.insert("ns-a".to_owned());
    for _ in 0..3 {
        world.wait(MINUTE);
        let now = world.clock();
        world.answer("n1", vec![record("ns-a", now)]);
        assert!(world.blocked().is_empty());
    }
    world.unwritable.clear();
    world.wait(MINUTE);
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    assert!(world.blocked().is_empty());
}

/// Cleared evidence counts as no accusation that an agent may report again.
#[test]
fn a_release_after_a_restart_covers_what_is_accused_and_not_the_app_because_much_has_cleared() {
    let mut world = World::new(&["n1"]);
    let lists = |w: &mut World, processes: std::ops::Range<usize>| {
        let now = w.clock();
        let records = processes.map(|n| record_of("ns-a", "web", &format!("miner-{n}"), now));
        w.answer("n1", records.collect());
        w.evaluate();
    };
    lists(&mut world, 10..70);
    world.rounds(40, |w| lists(w, 0..10));
    let persisted = world.persisted.values().next().unwrap().status.clone();
    assert_eq!((persisted.evidence.len(), persisted.evidence_omitted), (64, 0));
    world.restart();
    world.rounds(2, |w| lists(w, 0..10));
    let release = IncidentCommand::Release { app: app("ns-a"), until: crate::common::at(24 * HOUR).wall() };
    world.incidents.execute(&release, "ops", &world.policy, world.now).unwrap();
    world.rounds(2, |w| lists(w, 0..10));
    assert!(world.blocked().is_empty());
    world.rounds(2, |w| lists(w, 200..201));
    assert_eq!(world.blocked(), ["ns-a"], "another process");
}

#[test]
fn a_release_of_more_accusations_than_are_persisted_covers_those_reported_again_after_a_restart() {
    let mut world = World::new(&["n1"]);
    let mine = |w: &mut World| {
        let now = w.clock();
        let records = (0..100).map(|n| record_of("ns-a", "web", &format!("miner-{n}"), now));
        w.answer("n1", records.collect());
    };
    mine(&mut world);
    assert_eq!(world.blocked(), ["ns-a"]);
    let persisted = world.persisted.values().next().unwrap().status.clone();
    assert_eq!((persisted.evidence.len(), persisted.evidence_omitted), (64, 36));
    // The second restart reads the same persisted accusations as the first.
    for _ in 0..2 {
        world.restart();
        world.wait(MINUTE);
        assert_eq!(world.blocked(), ["ns-a"]);
        world.incidents.mark_deleted(|_| true);
        world.evaluate();
        assert_eq!(world.persisted.values().next().unwrap().status.evidence_omitted, 36);
    }
    let release = IncidentCommand::Release { app: app("ns-a"), until: crate::common::at(24 * HOUR).wall() };
    world.incidents.execute(&release, "ops", &world.policy, world.now).unwrap();
    world.rounds(5, |w| {
        mine(w);
        assert!(w.blocked().is_empty());
    });
    world.restart();
    world.rounds(5, |w| {
        mine(w);
        assert!(w.blocked().is_empty());
    });
}

#[test]
fn a_release_covers_the_accusations_of_the_app_and_no_other_rule() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.restart();
    let release = IncidentCommand::Release { app: app("ns-a"), until: crate::common::at(24 * HOUR).wall() };
    world.incidents.execute(&release, "ops", &world.policy, world.now).unwrap();
    world.rounds(1, |w| {
        let now = w.clock();
        w.answer("n1", vec![record("ns-a", now)]);
    });
    assert!(world.blocked().is_empty());
    world.rounds(1, |w| {
        let now = w.clock();
        w.answer("n1", vec![record("ns-a", now), record_of("ns-a", "web", "zmap", now)]);
    });
    assert_eq!(world.blocked(), ["ns-a"]);
}

#[test]
fn a_release_until_a_time_that_is_over_is_refused_and_the_refusal_is_logged() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    for until in [world.now.wall(), crate::common::at(0).wall()] {
        let release = IncidentCommand::Release { app: app("ns-a"), until };
        let refused = world.incidents.execute(&release, "ops", &world.policy, world.now).unwrap_err();
        assert!(refused.to_string().contains("is over already"), "{refused}");
        assert_eq!(world.blocked(), ["ns-a"]);
    }
    let log = &world.persisted.values().next().unwrap().status.decisions;
    let kinds: Vec<&str> = log.iter().map(|entry| entry.decision.as_str()).collect();
    assert_eq!(kinds, ["blocked", "refused", "refused"]);
    assert!(log[1].reason.contains("is over already"), "{}", log[1].reason);
    assert!(world.persisted.values().next().unwrap().status.releases.is_empty());
}

#[test]
fn a_release_for_more_than_ten_years_is_refused() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    let until = world.now.wall() + jiff::SignedDuration::from_hours(24 * 366 * 11);
    let refused = world.incidents.execute(
        &IncidentCommand::Release { app: app("ns-a"), until },
        "ops",
        &world.policy,
        world.now,
    );
    assert_eq!(refused, Err(IncidentCommandError::TooFar(until)));
    assert_eq!(world.blocked(), ["ns-a"]);
    let log = &world.incidents.documents()[0].status.decisions;
    assert!(log.last().unwrap().reason.contains("at most ten years ahead"), "{log:?}");
}
