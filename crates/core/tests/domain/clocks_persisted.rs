//! The time that leaders measure is persisted while a decision depends on it, so that starts and stops lose little of
//! it.

use std::time::Duration;

use procscan_core::decision::{DecisionKind, Mode};
use procscan_core::exemption::Pattern;
use procscan_core::policy::Alert;

use crate::clocks::{DAY, accuse, accuse_one, nodes};
use crate::common::{HOUR, MINUTE, World, app, exemption, record};
use crate::grace::{accuse as offend, is_blocked, with_grace};

/// The service is stopped for so many seconds, and started again.
fn stop(world: &mut World, seconds: u64) {
    world.incidents.persist_clocks();
    world.evaluate();
    world.wait(seconds);
    world.restart();
}

/// The service is killed and started again after so many seconds.
fn kill(world: &mut World, seconds: u64) {
    world.wait(seconds);
    world.restart();
}

/// Exempts `ns-a` for so many hours.
fn exempt(world: &mut World, hours: i64) {
    let until = world.now.wall() + jiff::SignedDuration::from_hours(hours);
    let covers =
        |e: &mut procscan_core::exemption::Exemption| e.namespace = Some(Pattern::Exact("ns-a".into()));
    world.policy.exemptions = vec![exemption(covers, Some(until))];
}

#[test]
fn a_grace_goes_on_over_any_number_of_starts() {
    // Seconds between two evaluations, seconds from one start to the next, and how many of those are lost.
    for (step, term, lost, ends) in [(10, 120, 30, kill as fn(&mut World, u64)), (20, 40, 0, stop)] {
        let mut world = with_grace(60);
        offend(&mut world);
        let (begun, mut starts) = (world.now, 0);
        while !is_blocked(&offend(&mut world)) {
            world.wait(step);
            let passed = world.now.since(begun).as_secs();
            assert!(passed <= HOUR + starts * (lost + 5) + term, "{passed} s, {starts} starts");
            if passed / (term + 5) > starts {
                starts += 1;
                ends(&mut world, 5);
            }
        }
        assert!(world.now.since(begun).as_secs() >= HOUR, "never early");
        assert!(starts > 20, "{starts}");
    }
}

#[test]
fn only_a_running_grace_causes_a_write_each_half_minute() {
    let mut world = with_grace(60);
    offend(&mut world);
    let due = |world: &World| world.incidents.clocks_due(world.now).map(|at| at.since(world.now).as_secs());
    assert_eq!(due(&world), Some(30));
    world.wait(29);
    assert_eq!((due(&world), world.incidents.dirty()), (Some(1), vec![]));
    world.evaluate();
    assert_eq!(due(&world), Some(1), "nothing was written");
    world.wait(1);
    world.incidents.decide(&world.ledger.snapshot(world.now), &world.policy, &world.facts, world.now);
    assert_eq!((due(&world), world.incidents.dirty()), (None, vec![app("ns-a")]));
    assert!(world.persist().is_empty());
    assert_eq!((due(&world), world.incidents.dirty()), (Some(30), vec![]));
    // Once the App is blocked, the clocks need no write.
    world.wait(HOUR);
    assert!(is_blocked(&offend(&mut world)));
    world.wait(MINUTE);
    world.evaluate();
    assert_eq!((due(&world), world.incidents.dirty()), (None, vec![]));
}

#[test]
fn an_incident_that_can_not_be_written_does_not_carry_the_clocks() {
    let mut world = with_grace(60);
    world.unwritable.insert("ns-a".into());
    offend(&mut world);
    world.answer("n1", vec![record("ns-b", world.clock())]);
    world.evaluate();
    world.wait(MINUTE);
    world.incidents.decide(&world.ledger.snapshot(world.now), &world.policy, &world.facts, world.now);
    assert!(world.incidents.dirty().contains(&app("ns-b")), "{:?}", world.incidents.dirty());
    world.persist();
    assert!(world.incidents.clocks_due(world.now).is_some());
    // The write is tried again and again. Another incident is still written for the clocks.
    for _ in 0..8 {
        world.wait(15);
        world.incidents.decide(&world.ledger.snapshot(world.now), &world.policy, &world.facts, world.now);
        world.persist();
    }
    assert!(
        world
            .incidents
            .clocks_due(world.now)
            .is_some_and(|due| due.since(world.now) > Duration::from_secs(10))
    );
}

#[test]
fn while_writes_fail_no_more_than_one_more_incident_is_tried_each_half_minute_for_the_clocks() {
    let mut world = nodes(20);
    world.policy.grace = Duration::from_hours(1);
    accuse(&mut world, 1..11);
    world.unwritable.extend((1..11).map(|tenant| format!("ns-{tenant:03}")));
    world.wait(MINUTE);
    let tried = |world: &mut World| {
        world.incidents.decide(&world.ledger.snapshot(world.now), &world.policy, &world.facts, world.now);
        let tried = world.incidents.dirty().len();
        assert_eq!(world.persist().len(), tried);
        tried
    };
    assert_eq!((0..5).map(|_| tried(&mut world)).collect::<Vec<_>>(), [1; 5]);
    world.wait(30);
    assert_eq!((0..5).map(|_| tried(&mut world)).collect::<Vec<_>>(), [2; 5]);
}

#[test]
fn a_stop_persists_the_clocks_with_one_open_incident_and_never_with_an_ended_one() {
    let mut world = nodes(3);
    accuse(&mut world, 0..3);
    world.wait(20 * MINUTE);
    assert!(world.incidents.dirty().is_empty());
    world.incidents.persist_clocks();
    assert_eq!(world.incidents.dirty().len(), 1);
    world.evaluate();
    assert!(world.incidents.dirty().is_empty());
    world.rounds(120, |world| {
        for node in ["n0", "n1", "n2"] {
            world.answer(node, vec![]);
        }
        world.evaluate();
    });
    assert!(world.blocked().is_empty());
    world.incidents.persist_clocks();
    assert!(world.incidents.dirty().is_empty());
}

#[test]
fn an_exemption_that_is_over_stays_over_at_the_next_start() {
    for (ends, after) in [(stop as fn(&mut World, u64), 30), (kill, 30), (kill, 4 * HOUR)] {
        let mut world = nodes(10);
        accuse(&mut world, 1..2);
        exempt(&mut world, 1);
        world.evaluate();
        world.wait(HOUR + 1);
        world.evaluate();
        world.wait(after);
        world.evaluate();
        ends(&mut world, 40);
        accuse_one(&mut world);
        let evaluation = world.evaluate();
        assert_eq!(evaluation.plan.blocks.len(), 2, "{after}");
        assert!(evaluation.alerts.is_empty(), "{after}: {:?}", evaluation.alerts);
    }
}

#[test]
fn an_exemption_that_ends_soon_after_a_start_is_in_doubt_for_as_long_as_was_not_measured_and_no_longer() {
    // The seconds of the stop, and the most seconds before it that were not persisted.
    for (ends, stopped, unwritten) in [(stop as fn(&mut World, u64), 300, 0), (kill, 60, 9 * MINUTE)] {
        let mut world = nodes(10);
        accuse(&mut world, 1..2);
        exempt(&mut world, 4);
        world.rounds(229, |world| drop(world.evaluate()));
        ends(&mut world, stopped);
        world.wait(11 * MINUTE - stopped);
        let (date, mut late) = (world.now, 0);
        loop {
            accuse_one(&mut world);
            let evaluation = world.evaluate();
            assert!(evaluation.alerts.is_empty(), "{:?}", evaluation.alerts);
            if evaluation.decisions.iter().any(|it| it.kind == DecisionKind::Blocked) {
                break;
            }
            late = world.now.since(date).as_secs();
            assert!(late <= stopped + unwritten, "{late}");
        }
        assert!(late + MINUTE >= stopped - 5, "{late}: the doubt was shorter than the stop");
    }
}

#[test]
fn the_time_that_a_process_has_measured_counts_when_it_reads_the_state_again() {
    for is_dry_run in [false, true] {
        let mut world = with_grace(10);
        offend(&mut world);
        exempt(&mut world, 1);
        world.policy.exemptions[0].namespace = Some(Pattern::Exact("ns-c".into()));
        world.evaluate();
        if is_dry_run {
            world.policy.mode = Mode::DryRun;
        }
        for _ in 0..8 {
            world.wait(MINUTE);
            offend(&mut world);
        }
        world.policy.mode = Mode::Enforce;
        let persisted: Vec<_> = world.persisted.values().cloned().collect();
        world.incidents =
            world.incidents.restore_again(&persisted, &world.ledger.snapshot(world.now), world.now);
        assert!(!is_blocked(&offend(&mut world)), "{is_dry_run}: early");
        world.wait(MINUTE);
        assert!(!is_blocked(&offend(&mut world)), "{is_dry_run}: early");
        world.wait(MINUTE);
        assert!(is_blocked(&offend(&mut world)), "{is_dry_run}: late");
    }
}

#[test]
fn a_clock_that_is_behind_a_date_that_was_over_raises_an_alert_once() {
    let mut world = nodes(10);
    accuse(&mut world, 1..2);
    exempt(&mut world, 1);
    world.evaluate();
    world.wait(2 * HOUR);
    assert!(world.evaluate().alerts.is_empty());
    world.jump(-3 * 3600);
    let mut alerts = Vec::new();
    for _ in 0..3 {
        accuse_one(&mut world);
        alerts.extend(world.evaluate().alerts);
    }
    assert!(matches!(&alerts[..], [Alert::Clock { .. }]), "{alerts:?}");
    assert_eq!(world.blocked(), ["ns-001"], "in doubt");
    // A start under such a clock raises it too.
    world.jump(-DAY);
    world.restart();
    accuse_one(&mut world);
    assert!(matches!(&world.evaluate().alerts[..], [Alert::Clock { .. }]));
}

#[test]
fn where_no_date_is_ahead_the_clocks_alone_lead_to_no_write() {
    let mut world = nodes(2);
    accuse(&mut world, 1..2);
    // The dirty incidents after a quarter of an hour without any report.
    let dirty = |world: &mut World| {
        world.wait(15 * MINUTE);
        world.incidents.decide(&world.ledger.snapshot(world.now), &world.policy, &world.facts, world.now);
        let dirty = world.incidents.dirty();
        assert!(world.persist().is_empty());
        dirty
    };
    assert_eq!(dirty(&mut world), [], "there is no date");
    exempt(&mut world, 1);
    assert_eq!(dirty(&mut world), [app("ns-001")]);
    world.wait(HOUR);
    assert_eq!(dirty(&mut world), [app("ns-001")], "the date has passed meanwhile");
    assert_eq!(dirty(&mut world), [], "it is over");
}
