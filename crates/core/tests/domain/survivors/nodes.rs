//! Nodes with two addresses, and the state of a node.

use std::time::Duration;

use crate::common::{MINUTE, World, complete, failed, record, record_of, target};
use procscan_core::names::NodeName;
use procscan_core::report::{FailureReason, Outcome, Report, Target};

fn second() -> Target {
    Target { address: "[fd00::1]:9090".into(), node: NodeName::new("n1") }
}

/// A node whose agent scans every five minutes, asked at two addresses, of which the first one answers.
fn two_addresses() -> World {
    let mut world = World::new(&["n1"]);
    world.ledger.expect([target("n1"), second()], 0);
    world.rounds(60, |w| {
        let now = w.clock();
        w.answer("n1", vec![record("ns-a", now / 300 * 300)]);
    });
    world
}

fn second_says(world: &mut World, outcome: Outcome) {
    world.ledger.absorb(&Report { target: second(), at: world.now, outcome });
}

fn odometer(world: &mut World) -> Duration {
    world.snapshot().nodes.get(&NodeName::new("n1")).unwrap().clock.odometer.get()
}

/// How many of the next `rounds` minutes count as answered.
fn counted(world: &mut World, rounds: u64, mut each: impl FnMut(&mut World)) -> u64 {
    let before = odometer(world);
    world.rounds(rounds, |w| each(w));
    odometer(world).saturating_sub(before).as_secs() / MINUTE
}

fn answer(world: &mut World) {
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now / 300 * 300)]);
}

#[test]
fn an_address_that_refuses_restarts_nothing_while_another_one_answers_in_whatever_order() {
    let mut world = two_addresses();
    let refuse = |w: &mut World| second_says(w, failed(FailureReason::Refused));
    let after = counted(&mut world, 20, |w| {
        answer(w);
        refuse(w);
    });
    let before = counted(&mut world, 20, |w| {
        refuse(w);
        answer(w);
    });
    assert_eq!((after, before), (20, 20));
}

#[test]
fn a_node_that_refuses_and_answers_nowhere_has_restarted() {
    // The node refuses at its only other address after the first one stopped answering, so the agent is down.
    let mut world = two_addresses();
    world.wait(MINUTE);
    world.fail("n1");
    second_says(&mut world, failed(FailureReason::Refused));
    assert_eq!(counted(&mut world, 20, answer), 20 - 5, "its agent scans once before its answers count");
    // The address that used to answer is not asked any more.
    let mut world = two_addresses();
    world.ledger.expect([second()], 0);
    world.wait(MINUTE);
    second_says(&mut world, failed(FailureReason::Refused));
    let counted = counted(&mut world, 20, |w| {
        let now = w.clock();
        second_says(w, complete(vec![record("ns-a", now / 300 * 300)], now));
    });
    assert_eq!(counted, 20 - 5);
}

#[test]
fn a_node_counts_the_records_that_have_not_cleared() {
    let mut world = World::new(&["n1"]);
    let records = |world: &mut World| world.snapshot().nodes.get(&NodeName::new("n1")).unwrap().records;
    world.answer("n1", vec![record("ns-a", 0), record_of("ns-a", "web", "zmap", 0)]);
    assert_eq!(records(&mut world), 2);
    world.rounds(31, |w| {
        let now = w.clock();
        w.answer("n1", vec![record("ns-a", now)]);
    });
    assert_eq!(records(&mut world), 1);
}

#[test]
fn each_target_counts_as_one_however_long_ago_it_answered() {
    let mut world = World::new(&["n1", "n2", "n3", "n4", "n5", "n6"]);
    world.answer("n1", vec![]);
    world.answer("n2", vec![]);
    world.wait(10 * MINUTE);
    world.answer("n3", vec![]);
    let coverage = world.snapshot().coverage;
    assert_eq!((coverage.fresh, coverage.stale, coverage.never_seen, coverage.expected()), (1, 2, 3, 6));
}

#[test]
fn a_violation_was_last_seen_when_any_node_listed_it_last() {
    let mut world = World::new(&["n1", "n2"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    world.wait(MINUTE);
    world.answer("n2", vec![record("ns-a", 60)]);
    world.wait(MINUTE);
    world.answer("n1", vec![]);
    let violation = world.violation("ns-a");
    let at = |minute| crate::common::at(minute * MINUTE).wall();
    assert_eq!((violation.first_seen(), violation.last_seen()), (at(0), at(1)));
}
