//! Violations that an agent which lists one of several hides: from when to when, and how a new leader counts that time.

use std::time::Duration;

use crate::common::{HOUR, MINUTE, World, record};
use procscan_core::ledger::Detection;
use procscan_core::names::NodeName;
use procscan_core::policy::{Incidents, remembered};
use procscan_core::report::{Answer, Outcome};
use procscan_core::snapshot::State;

/// `ns-a` offends, then `ns-b`; the agent scans every ten minutes and lists the later result. Runs up to the third scan
/// of `ns-b`, at 30 min.
fn hidden() -> World {
    let mut world = World::new(&["n1"]);
    let follower = world.new_ledger();
    world.follower = Some((follower, true));
    world.answer("n1", vec![record("ns-a", 0)]);
    world.evaluate();
    world.rounds(30, |w| {
        list(w);
        w.evaluate();
    });
    world
}

/// The agent's list: the last scan before 30 min found `ns-b`, and none since has found anything.
fn list(world: &mut World) {
    let scan = (world.clock() / 600 * 600).min(1800);
    let namespace = if scan == 0 { "ns-a" } else { "ns-b" };
    world.answer("n1", vec![record(namespace, scan)]);
}

fn is_hidden(world: &mut World) -> bool {
    let violation = world.violation("ns-a");
    let hider = violation.evidence().next().unwrap().hidden_by.clone();
    hider.inspect(|hider| assert_eq!(*hider.namespace, *"ns-b")).is_some()
}

fn inconclusive(world: &mut World) -> u64 {
    let key = record("ns-a", 0).key;
    world.snapshot().inconclusive(&key, &NodeName::new("n1")).unwrap().get().as_secs() / MINUTE
}

#[test]
fn a_violation_is_hidden_until_the_agent_must_have_scanned_twice_and_answered_once_more() {
    let mut world = hidden();
    assert!(is_hidden(&mut world));
    let before = inconclusive(&mut world);
    world.rounds(20, list);
    assert!(is_hidden(&mut world), "a scan and its answer may have come in the wrong order");
    world.rounds(1, list);
    assert!(!is_hidden(&mut world));
    assert_eq!(inconclusive(&mut world), before + 21);
    world.rounds(10, list);
    assert_eq!(inconclusive(&mut world), before + 21, "from then on answers without it count");
}

#[test]
fn a_record_that_changes_without_a_date_hides_others_even_if_it_is_not_believed_yet() {
    let mut world = World::new(&["n1"]);
    for namespace in ["ns-b", "ns-a"] {
        world.answer("n1", vec![record(namespace, 0)]);
        world.evaluate();
        world.wait(MINUTE);
    }
    world.restart();
    world.wait(MINUTE);
    let records = vec![record("ns-b", 150)].into_iter().collect();
    world.report("n1", Outcome::Complete(Answer { records, ..Answer::default() }));
    assert!(is_hidden(&mut world), "its scan may have found both");
}

#[test]
fn a_new_leader_counts_no_time_as_hidden_that_was_before_its_own() {
    let mut world = hidden();
    world.fail_over();
    // It clears after the usual time in which it was not hidden: 30 min of 51, of which 21 are hidden.
    world.rounds(59, |w| {
        list(w);
        assert!(w.blocked().contains(&"ns-a".to_owned()), "{}", w.clock() / 60);
    });
    list(&mut world);
    let clears_at = (1..60).find(|_| {
        world.wait(MINUTE);
        list(&mut world);
        !world.blocked().contains(&"ns-a".to_owned())
    });
    assert_eq!(clears_at, Some(22));
}

#[test]
fn an_app_whose_violation_a_full_ledger_lacks_is_released_only_after_the_limit() {
    let rules = Detection { unreachable_limit: Duration::from_secs(6 * HOUR), ..Detection::default() };
    let mut world = World::with(&["n1"], rules);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    // Another leader, whose ledger has no place left for the node.
    world.rules.max_keys_per_node = 1;
    let persisted: Vec<_> = world.persisted.values().cloned().collect();
    world.ledger = world.new_ledger();
    let mut is_blocked = |hours: u64| {
        world.rounds(hours * 60, |w| {
            let now = w.clock();
            w.answer("n1", vec![record("ns-b", now)]);
        });
        if hours == 0 {
            world.answer("n1", vec![record("ns-b", 0)]);
            world.ledger.remember(remembered(&persisted), world.now);
            world.incidents = Incidents::restore(&persisted, &world.ledger.snapshot(world.now), world.now);
        }
        world.blocked().contains(&"ns-a".to_owned())
    };
    assert!(is_blocked(0) && is_blocked(5));
    assert!(!is_blocked(2));
}

#[test]
fn an_app_whose_violation_has_made_room_for_others_is_released_only_after_the_limit() {
    let rules = Detection {
        max_keys_per_node: 2,
        unreachable_limit: Duration::from_secs(6 * HOUR),
        ..Detection::default()
    };
    let mut world = World::with(&["n1"], rules);
    world.answer("n1", vec![record("ns-z", 0)]);
    assert_eq!(world.blocked(), ["ns-z"]);
    // The node's whole answers list three others from now on, and it has room for two of all four.
    let mut is_blocked = |hours: u64| {
        world.rounds(hours * 60, |w| {
            let now = w.clock();
            w.answer("n1", ["ns-a", "ns-b", "ns-c"].map(|namespace| record(namespace, now)).into());
        });
        let known = world.snapshot().violations;
        assert!(known.len() == 2 && known.iter().all(|violation| *violation.key.namespace != *"ns-z"));
        world.blocked().contains(&"ns-z".to_owned())
    };
    assert!(is_blocked(1) && is_blocked(4));
    assert!(!is_blocked(2));
}

#[test]
fn an_old_record_that_is_listed_for_the_first_time_hides_no_other() {
    // The agent lists one of several, and has found the listed record long ago.
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    world.rounds(31, |w| drop(w.answer("n1", vec![record("ns-b", -3 * 3600)])));
    let violations = world.snapshot().violations;
    let state =
        |namespace: &str| violations.iter().find(|it| *it.key.namespace == *namespace).map(|it| it.state);
    assert_eq!(state("ns-a"), Some(State::Cleared));
}
