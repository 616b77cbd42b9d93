//! Evidence that one replica has persisted, combined with reports to another one.

use std::time::Duration;

use crate::common::{HOUR, MINUTE, START, World, app, record};
use jiff::Timestamp;
use procscan_core::clearing::Cleared;
use procscan_core::ledger::{ChangeKind, Detection, Remembered};
use procscan_core::names::NodeName;
use procscan_core::snapshot::State;

fn wall(seconds: i64) -> Timestamp {
    Timestamp::from_second(START + seconds).unwrap()
}

/// The evidence of `n1` against `ns-a` as another replica persisted it: the record of `stamp`, fresh at that time.
fn known_elsewhere(stamp: i64, cleared: Option<i64>) -> Remembered {
    let record = record("ns-a", stamp);
    Remembered {
        key: record.key.clone(),
        node: NodeName::new("n1"),
        record,
        first_seen: wall(stamp),
        fresh_at: wall(stamp),
        observations: 7,
        cleared: cleared.map(|at| (wall(at), Cleared::ByClock)),
        scan_interval: None,
        hidden_for: std::time::Duration::ZERO,
    }
}

/// A replica that has received a record of `stamp` at that time, `now` seconds after the start. Its wall clock was
/// set by `jump` seconds at 250 s.
fn replica(stamp: u64, now: u64, jump: i64) -> World {
    let mut world = World::new(&["n1"]);
    world.wait(stamp);
    world.answer("n1", vec![record("ns-a", i64::try_from(stamp).unwrap())]);
    world.wait(250 - stamp);
    world.jump(jump);
    world.wait(now - 250);
    world
}

#[test]
fn evidence_that_another_replica_cleared_is_cleared_unless_both_clocks_show_a_later_report() {
    // (received at, jump of the wall clock at 250 s, cleared by the other at, by the wall clock)
    let cleared = [
        (100, 0, 150),
        // At the same time: it is not known whether the other replica had received it.
        (100, 0, 100),
        // Received before by our monotonic clock, after by the wall clock.
        (200, -1000, -750),
        (200, -1000, -800),
        // Conversely.
        (200, 1000, 1100),
        (200, 1000, 200),
    ];
    for (at, jump, other) in cleared {
        let mut world = replica(at, 300, jump);
        world.ledger.remember([known_elsewhere(50, Some(other))], world.now);
        assert_eq!(world.state("ns-a"), State::Cleared, "{at} {jump} {other}");
    }
    for (at, jump, other) in [(200, 0, 150), (200, -1000, -950), (200, 1000, 150)] {
        let mut world = replica(at, 300, jump);
        world.ledger.remember([known_elsewhere(50, Some(other))], world.now);
        assert_eq!(world.state("ns-a"), State::Active, "{at} {jump} {other}");
    }
}

#[test]
fn a_record_that_another_replica_has_cleared_is_not_fresh_for_one_that_received_it_late() {
    let mut world = World::new(&["n1"]);
    world.wait(200);
    world.answer("n1", vec![record("ns-a", 50)]);
    world.ledger.remember([known_elsewhere(50, Some(150))], world.now);
    assert_eq!(world.state("ns-a"), State::Cleared);
}

#[test]
fn a_record_that_another_replica_has_seen_is_not_fresh_when_an_old_agent_lists_it_once_more() {
    let mut world = World::new(&["n1"]);
    world.wait(60);
    world.answer("n1", vec![record("ns-a", 60)]);
    world.ledger.remember([known_elsewhere(0, None)], world.now);
    assert_eq!(world.violation("ns-a").observations(), 7);
    world.wait(MINUTE);
    world.answer("n1", vec![record("ns-a", 0)]);
    let violation = world.violation("ns-a");
    assert_eq!(violation.observations(), 7);
    let fresh_at = violation.evidence().next().unwrap().fresh_at.unwrap();
    assert_eq!(fresh_at, crate::common::at(60));
    // The other replica has known it for longer.
    assert_eq!(violation.first_seen(), wall(0));
}

#[test]
fn a_seldom_scan_is_fresh_only_for_a_replica_that_received_all_earlier_reports() {
    let hours = |n: u64| i64::try_from(n * HOUR).unwrap();
    // Three hours old by its agent's clock, and later than the known record.
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    world.wait(4 * HOUR);
    world.answer("n1", vec![record("ns-a", hours(1))]);
    assert_eq!(world.state("ns-a"), State::Active);

    let mut world = World::new(&["n1"]);
    world.ledger.remember([known_elsewhere(0, None)], world.now);
    world.wait(4 * HOUR);
    world.answer("n1", vec![record("ns-a", hours(1))]);
    assert_eq!(world.state("ns-a"), State::Unconfirmed, "the other one may have seen it");
    // From then on the last record is known.
    world.answer("n1", vec![record("ns-a", hours(2))]);
    assert_eq!(world.state("ns-a"), State::Active);

    // An earlier record does not show that the last one was seen again.
    let mut world = World::new(&["n1"]);
    world.ledger.remember([known_elsewhere(0, None)], world.now);
    world.wait(6 * HOUR);
    world.answer("n1", vec![record("ns-a", -hours(1))]);
    world.answer("n1", vec![record("ns-a", hours(1))]);
    assert_eq!(world.state("ns-a"), State::Unconfirmed);
}

#[test]
fn a_restart_believes_an_agent_without_a_clock_only_from_the_second_change_on() {
    let mut world = World::new(&["n1"]);
    world.ledger.remember([known_elsewhere(0, None)], world.now);
    let without_a_date = |stamp| {
        let answer = procscan_core::report::Answer {
            records: vec![record("ns-a", stamp)].into_iter().collect(),
            ..Default::default()
        };
        procscan_core::report::Outcome::Complete(answer)
    };
    world.wait(2 * HOUR);
    world.report("n1", without_a_date(60));
    assert_eq!(world.state("ns-a"), State::Unconfirmed);
    world.wait(MINUTE);
    world.report("n1", without_a_date(120));
    assert_eq!(world.state("ns-a"), State::Active);
}

#[test]
fn proof_that_a_pod_is_gone_clears_again_only_evidence_that_came_since() {
    let mut world = World::new(&["n1"]);
    world.wait(10);
    world.answer("n1", vec![record("ns-a", 10)]);
    let pod = record("ns-a", 0).key.pod_ref();
    let gone = |world: &mut World| world.ledger.pod_gone(&pod, world.now).len();
    // The record comes at the moment of the proof, so it counts as before it.
    assert_eq!((gone(&mut world), world.state("ns-a")), (1, State::Cleared));
    world.wait(10);
    assert_eq!((gone(&mut world), world.state("ns-a")), (0, State::Cleared));
    world.wait(10);
    world.answer("n1", vec![record("ns-a", 30)]);
    assert_eq!(world.state("ns-a"), State::Active);
    world.wait(10);
    assert_eq!((gone(&mut world), world.state("ns-a")), (1, State::Cleared));
}

#[test]
fn an_old_or_cleared_violation_appears_again_with_fresh_evidence() {
    let mut world = World::new(&["n1"]);
    let appears = |world: &mut World| {
        let now = world.clock();
        let changes = world.answer("n1", vec![record("ns-a", now)]);
        changes.iter().any(|change| change.kind == ChangeKind::Appeared)
    };
    assert!(appears(&mut world));
    world.wait(MINUTE);
    assert!(!appears(&mut world), "it is there already");
    world.wait(31 * MINUTE);
    assert_eq!(world.state("ns-a"), State::Unconfirmed);
    assert!(appears(&mut world));
    world.rounds(40, |w| drop(w.answer("n1", vec![])));
    assert_eq!(world.state("ns-a"), State::Cleared);
    assert!(appears(&mut world));
}

#[test]
fn a_violation_that_returns_within_a_day_is_the_same_and_later_another() {
    for (hours, more, is_same) in [(23, 0, true), (24, 0, true), (24, 1, false), (30, 0, false)] {
        let rules = Detection { clear_after: Duration::from_secs(HOUR), ..Detection::default() };
        let mut world = World::with(&["n1"], rules);
        // The agent still lists the process that has ended.
        let list = |w: &mut World| drop(w.answer("n1", vec![record("ns-a", 0)]));
        list(&mut world);
        world.rounds(60, list);
        assert_eq!(world.state("ns-a"), State::Cleared);
        world.rounds(hours * 60, list);
        world.wait(more);
        let now = world.clock();
        for n in 1..=2 {
            world.answer("n1", vec![record("ns-a", now + n)]);
            let violation = world.violation("ns-a");
            let (first, observations) =
                if is_same { (0, u64::try_from(n).unwrap() + 1) } else { (now, u64::try_from(n).unwrap()) };
            assert_eq!(
                (violation.first_seen(), violation.observations()),
                (wall(first), observations),
                "{hours} {more}"
            );
        }
    }
}

#[test]
fn a_tombstone_stays_for_a_day_after_it_was_listed_last() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    world.rounds(30, |w| drop(w.answer("n1", vec![])));
    assert_eq!(world.state("ns-a"), State::Cleared);
    let cleared = world.now;
    world.wait(24 * HOUR);
    assert_eq!(world.state("ns-a"), State::Cleared, "to the last moment");
    world.wait(1);
    assert!(world.snapshot().violations.is_empty());
    // A tenant that offends again by then continues the same incident.
    assert_eq!(world.now.since(cleared), Duration::from_secs(24 * HOUR + 1));
    assert!(world.incidents.incident(&app("ns-a")).is_none());
}

#[test]
fn the_rules_of_clearing_have_the_same_names_everywhere() {
    for rule in [Cleared::ByClock, Cleared::Unreachable, Cleared::Hidden, Cleared::PodGone] {
        assert_eq!(serde_json::to_value(rule).unwrap(), rule.as_str());
    }
}

#[test]
fn a_tombstone_lasts_to_the_last_moment_of_its_day() {
    // Another violation of the node is forgotten at that moment, so the node is looked at.
    for (lists, last) in [(false, 30), (true, 30), (true, 40)] {
        let mut world = World::new(&["n1"]);
        world.answer("n1", vec![record("ns-a", 0), record("ns-b", 0)]);
        world.rounds(last, |w| {
            let mut listed = vec![record("ns-b", w.clock())];
            listed.extend(lists.then(|| record("ns-a", 0)));
            w.answer("n1", listed);
        });
        assert_eq!((world.state("ns-a"), world.state("ns-b")), (State::Cleared, State::Active));
        let changes = world.wait(24 * HOUR);
        assert!(changes.iter().any(|change| change.kind == ChangeKind::Cleared(Cleared::Unreachable)));
        assert_eq!(world.snapshot().violations.len(), 2, "{lists} {last}");
        world.wait(1);
        assert_eq!(world.snapshot().violations.len(), 1, "{lists} {last}");
    }
}

#[test]
fn old_evidence_is_not_young_again_because_its_agent_is_found_to_scan_seldom() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    world.wait(31 * MINUTE);
    assert_eq!(world.state("ns-a"), State::Unconfirmed);
    // Two scans half an hour apart, so their evidence stays active for an hour and a half.
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", 0), record("ns-b", now)]);
    world.wait(60 * MINUTE);
    assert_eq!((world.state("ns-a"), world.state("ns-b")), (State::Unconfirmed, State::Active));
}
