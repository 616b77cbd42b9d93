//! Evidence that is newer than its persisted form, and persisted evidence on which two incidents disagree.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::common::{HOUR, MINUTE, World, app, namespaces, record};
use procscan_core::clearing::Cleared;
use procscan_core::names::NodeName;
use procscan_core::policy::remembered;
use procscan_core::state::Incident;
use procscan_core::state::incident::{AppRef, ClearedBy, ClearedEvidence};

/// A world in which that many Apps are blocked.
fn blocked(apps: usize) -> World {
    let mut world = World::new(&["n1"]);
    let brake = &mut world.policy.brake;
    (brake.max_new_tenants, brake.max_tenants_per_node, brake.max_apps_per_node) = (500, 500, 1000);
    brake.max_tenants_per_rule = 500;
    accuse(&mut world, apps);
    assert_eq!(world.blocked().len(), apps);
    world
}

fn accuse(world: &mut World, apps: usize) {
    let now = world.clock();
    world.answer("n1", namespaces(apps).iter().map(|namespace| record(namespace, now)).collect());
}

/// How old the persisted evidence of each App is, in minutes.
fn ages(world: &World) -> BTreeMap<String, u64> {
    let age = |incident: &Incident| {
        let fresh_at = incident.status.evidence[0].fresh_at;
        world.now.wall().duration_since(fresh_at).unsigned_abs().as_secs() / MINUTE
    };
    world
        .persisted
        .values()
        .map(|incident| (incident.spec.app.namespace.to_string(), age(incident)))
        .collect()
}

#[test]
fn every_app_takes_its_turn_at_being_refreshed() {
    let mut world = blocked(250);
    for _ in 0..12 {
        world.wait(HOUR / 2);
        accuse(&mut world, 250);
        // Twice: after the decision, and after the notification.
        world.evaluate();
    }
    let old: Vec<(String, u64)> = ages(&world).into_iter().filter(|(_, age)| *age > 150).collect();
    assert!(old.is_empty(), "{old:?}");
}

#[test]
fn an_incident_that_can_not_be_written_delays_no_other_refresh() {
    let mut world = blocked(60);
    world.unwritable.extend(namespaces(50));
    for _ in 0..6 {
        world.wait(HOUR / 2);
        accuse(&mut world, 60);
        world.evaluate();
    }
    let ages = ages(&world);
    assert!(namespaces(50).iter().all(|namespace| ages[namespace] == 180));
    assert!(namespaces(60)[50..].iter().all(|namespace| ages[namespace] <= 90), "{ages:?}");
}

/// Two incidents of the same violation: `before` was written by a leader whose wall clock was `ahead`.
fn two(ahead: SignedDuration, before: &str, now: &str) -> [Incident; 2] {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    world.evaluate();
    let [incident] = &world.incidents.documents()[..] else { panic!("one incident") };
    let (mut old, mut new) = (incident.clone(), incident.clone());
    old.spec.app = AppRef::from(&app("ns-a"));
    old.name = format!("{}-before", old.name);
    let [(old_evidence, before), (new_evidence, now)] =
        [(&mut old, before), (&mut new, now)].map(|(it, text)| (&mut it.status.evidence[0], text));
    old_evidence.fresh_at += ahead;
    (old_evidence.timestamp, new_evidence.timestamp) = (before.into(), now.into());
    [old, new]
}

fn is_cleared(incident: &mut Incident) {
    let at = Timestamp::from_second(crate::common::START).unwrap();
    incident.status.evidence[0].cleared = Some(ClearedEvidence { at, by: ClearedBy::Clock, ended: true });
}

/// The agent's own times show which record is later. The clock of the leader that wrote it may have been wrong.
#[test]
fn of_two_records_of_one_agent_the_later_by_its_own_clock_counts_whatever_the_leaders_clocks() {
    let (before, now) = ("2025-12-22T10:40:00Z", "2025-12-22T11:40:00+00:00");
    for ahead in [SignedDuration::from_hours(24), SignedDuration::from_hours(-24)] {
        for old_is_cleared in [true, false] {
            for is_reversed in [false, true] {
                let mut both = two(ahead, before, now);
                is_cleared(&mut both[usize::from(!old_is_cleared)]);
                if is_reversed {
                    both.reverse();
                }
                let [known] = &remembered(&both)[..] else { panic!("one violation") };
                assert_eq!(&*known.record.timestamp, now, "{ahead}, {is_reversed}");
                assert_eq!(known.cleared.is_none(), old_is_cleared);
            }
        }
    }
}

/// Evidence that has cleared in one App's incident may still count in that of another.
#[test]
fn evidence_that_has_cleared_in_one_incident_is_not_cleared_while_it_counts_in_another() {
    let at = "2025-12-22T10:40:00Z";
    for ahead in [24, 0, -24].map(SignedDuration::from_hours) {
        for is_reversed in [false, true] {
            let mut both = two(ahead, at, at);
            is_cleared(&mut both[0]);
            if is_reversed {
                both.reverse();
            }
            let [known] = &remembered(&both)[..] else { panic!("one violation") };
            assert_eq!(known.cleared, None::<(Timestamp, Cleared)>, "{ahead}, {is_reversed}");
        }
    }
}

#[test]
fn the_scan_interval_beside_the_agents_latest_record_is_taken_over_whatever_the_leaders_clocks() {
    let mut world = World::new(&["n1"]);
    world.wait(MINUTE);
    world.answer("n1", vec![record("ns-a", 0), record("ns-b", 60)]);
    world.evaluate();
    let mut persisted = world.incidents.documents();
    let [a, b] = &mut persisted[..] else { panic!("two incidents") };
    // The first was written when the agent scanned often, by a leader whose clock was a day ahead.
    a.status.evidence[0].scan_interval = Some(100);
    a.status.evidence[0].fresh_at += SignedDuration::from_hours(24);
    b.status.evidence[0].scan_interval = Some(1000);
    let mut ledger = world.new_ledger();
    ledger.remember(remembered(&persisted), world.now);
    let interval = ledger.snapshot(world.now).nodes.get(&NodeName::new("n1")).unwrap().interval;
    assert_eq!(interval.unwrap().get(), Duration::from_secs(1000));
}
