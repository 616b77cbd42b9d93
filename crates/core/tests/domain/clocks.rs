//! Wall clocks that jump, and leaders whose wall clocks differ: no clock blocks or releases an App.

use std::time::Duration;

use crate::common::{HOUR, MINUTE, World, app, exemption, record, record_of};
use procscan_core::decision::DecisionKind;
use procscan_core::exemption::Pattern;
use procscan_core::ledger::Detection;
use procscan_core::policy::{Alert, Evaluation, IncidentCommand};

pub(crate) const DAY: i64 = 86_400;
pub(crate) const MONTH: i64 = 31 * DAY;

/// Another leader begins; its wall clock is ahead of the last leader's.
pub(crate) fn leader(world: &mut World, ahead: i64) {
    world.jump(ahead);
    world.restart();
}

/// Accuses tenants, each by its own node and rule.
pub(crate) fn accuse(world: &mut World, tenants: std::ops::Range<usize>) -> Evaluation {
    let now = world.clock();
    for tenant in tenants {
        let record = record_of(&format!("ns-{tenant:03}"), "web", &format!("miner{tenant}"), now);
        world.answer(&format!("n{tenant}"), vec![record]);
    }
    world.evaluate()
}

pub(crate) fn nodes(n: usize) -> World {
    let nodes: Vec<String> = (0..n).map(|i| format!("n{i}")).collect();
    World::new(&nodes.iter().map(String::as_str).collect::<Vec<_>>())
}

fn release(world: &mut World, namespace: &str, hours: i64) {
    let until = world.now.wall() + jiff::SignedDuration::from_hours(hours);
    let command = IncidentCommand::Release { app: app(namespace), until };
    assert_eq!(world.blocked(), [namespace]);
    world.incidents.execute(&command, "ops", &world.policy, world.now).unwrap();
    assert!(world.blocked().is_empty());
}

pub(crate) fn accuse_one(world: &mut World) {
    world.wait(MINUTE);
    let now = world.clock();
    world.answer("n0", vec![record("ns-a", now)]);
}

fn is_clock(alert: &Alert) -> bool {
    matches!(alert, Alert::Clock { .. })
}

#[test]
fn a_leader_with_a_wrong_clock_forgets_nothing_that_passed_the_brakes() {
    for ahead in [0, 11 * 60, -DAY, MONTH, -MONTH] {
        let mut world = nodes(80);
        assert_eq!(accuse(&mut world, 0..20).plan.blocks.len(), 20);
        leader(&mut world, ahead);
        world.wait(MINUTE);
        let evaluation = accuse(&mut world, 20..40);
        assert_eq!((evaluation.plan.blocks.len(), evaluation.held.len()), (20, 20), "{ahead}");
        // Two more changes of leader at once, with a clock that is behind.
        leader(&mut world, -2 * ahead);
        leader(&mut world, ahead);
        world.wait(MINUTE);
        let evaluation = accuse(&mut world, 40..60);
        assert_eq!((evaluation.plan.blocks.len(), evaluation.held.len()), (20, 40), "{ahead}");
        // Once the time of the window has been measured, later accusations are judged on their own.
        world.wait(10 * MINUTE);
        let evaluation = accuse(&mut world, 60..80);
        assert_eq!((evaluation.plan.blocks.len(), evaluation.held.len()), (40, 40), "{ahead}");
    }
}

#[test]
fn the_time_without_a_leader_does_not_count_and_the_persisted_time_does() {
    let mut world = nodes(41);
    accuse(&mut world, 0..20);
    // No replica leads for a day.
    world.wait(24 * HOUR);
    world.restart();
    assert_eq!(accuse(&mut world, 20..21).held.len(), 1);
    // Another incident is written when the window is over. So the next leader knows how much time has passed.
    let mut world = nodes(41);
    accuse(&mut world, 0..19);
    world.wait(11 * MINUTE);
    accuse(&mut world, 19..20);
    world.restart();
    assert_eq!(accuse(&mut world, 20..40).held.len(), 1);
}

#[test]
fn a_leader_with_a_wrong_clock_forgets_no_release_of_the_window_and_raises_no_alert_again() {
    for ahead in [0, 11 * 60, -DAY, MONTH] {
        let assumed_interval = Duration::from_mins(1);
        let rules =
            Detection { clear_after: Duration::from_mins(3), assumed_interval, ..Detection::default() };
        let mut world = World::with(&["n0", "n1", "n2", "n3", "n4", "n5"], rules);
        world.policy.brake.max_releases = 2;
        accuse(&mut world, 0..6);
        let mut alerts = Vec::new();
        let mut clean = |world: &mut World, nodes: usize| {
            world.rounds(4, |w| {
                (0..nodes).for_each(|n| drop(w.answer(&format!("n{n}"), vec![])));
                alerts.extend(w.evaluate().alerts);
            });
            (world.blocked().len(), world.held().len(), alerts.len())
        };
        // Two releases pass and a third one is held. Then another leader begins, and the others clear.
        assert_eq!(clean(&mut world, 3), (4, 1, 1), "{ahead}");
        leader(&mut world, ahead);
        assert_eq!(clean(&mut world, 6), (4, 4, 1), "{ahead}");
    }
}

#[test]
fn a_leader_with_a_wrong_clock_raises_the_alert_of_a_storm_only_once() {
    let mut world = nodes(30);
    world.policy.brake.max_new_tenants = 1;
    let mut alerts = accuse(&mut world, 0..3).alerts;
    leader(&mut world, 11 * 60);
    world.wait(MINUTE);
    alerts.extend(accuse(&mut world, 3..5).alerts);
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    world.wait(11 * MINUTE);
    alerts.extend(accuse(&mut world, 5..7).alerts);
    assert_eq!(alerts.len(), 2, "another storm");
}

#[test]
fn a_wall_clock_that_jumps_ends_no_release_and_no_exemption_early() {
    for by_exemption in [false, true] {
        let mut world = nodes(1);
        accuse_one(&mut world);
        assert_eq!(world.blocked(), ["ns-a"]);
        if by_exemption {
            let until = world.now.wall() + jiff::SignedDuration::from_hours(48);
            let namespace = Some(Pattern::Exact("ns-a".into()));
            world.policy.exemptions = vec![exemption(|e| e.namespace.clone_from(&namespace), Some(until))];
            assert!(world.blocked().is_empty());
        } else {
            release(&mut world, "ns-a", 48);
        }
        world.jump(MONTH);
        let mut alerts = Vec::new();
        for _ in 0..47 {
            world.wait(HOUR);
            accuse_one(&mut world);
            let evaluation = world.evaluate();
            assert!(evaluation.plan.blocks.is_empty());
            alerts.extend(evaluation.alerts);
        }
        assert!(alerts.len() == 1 && is_clock(&alerts[0]), "{alerts:?}");
        // As much time has passed as was left.
        world.wait(HOUR);
        accuse_one(&mut world);
        assert_eq!(world.blocked(), ["ns-a"]);
        // Whatever the clock shows now, it opens no block.
        world.jump(-2 * MONTH);
        accuse_one(&mut world);
        let evaluation = world.evaluate();
        assert_eq!((evaluation.decisions, evaluation.plan.blocks.len()), (vec![], 1));
    }
}

#[test]
fn a_date_is_over_on_time_where_a_clock_is_set_by_seconds() {
    let mut world = nodes(1);
    accuse_one(&mut world);
    release(&mut world, "ns-a", 1);
    world.jump(4);
    world.wait(HOUR - 2 * MINUTE - 4);
    accuse_one(&mut world);
    assert!(world.blocked().is_empty());
    world.wait(MINUTE);
    accuse_one(&mut world);
    assert_eq!(world.blocked(), ["ns-a"]);
    assert!(world.evaluate().alerts.is_empty());
}

#[test]
fn a_leader_whose_clock_is_a_month_ahead_ends_no_release_for_a_day_and_raises_one_alert() {
    let mut world = nodes(1);
    accuse_one(&mut world);
    release(&mut world, "ns-a", 24 * 30);
    leader(&mut world, MONTH);
    let mut alerts = Vec::new();
    for hour in 0..23 {
        accuse_one(&mut world);
        let evaluation = world.evaluate();
        assert!(evaluation.plan.blocks.is_empty(), "hour {hour}");
        alerts.extend(evaluation.alerts);
        world.wait(HOUR);
    }
    assert!(alerts.len() == 1 && is_clock(&alerts[0]), "{alerts:?}");
    // If its clock is set right in time, nothing has happened.
    let mut right = nodes(1);
    std::mem::swap(&mut right.persisted, &mut world.persisted);
    right.now = world.now;
    leader(&mut right, -MONTH);
    right.wait(HOUR);
    accuse_one(&mut right);
    assert!(right.blocked().is_empty());
    // No operator reacts for a day, so the clock counts.
    world.wait(2 * HOUR);
    accuse_one(&mut world);
    assert_eq!(world.blocked(), ["ns-a"]);
}

#[test]
fn the_next_leader_doubts_a_date_that_the_leader_before_doubted() {
    for ahead in [2 * 60, 24 * 60] {
        let mut world = nodes(1);
        accuse_one(&mut world);
        release(&mut world, "ns-a", 1);
        world.jump(ahead * 60);
        // Each leader persists the wrong time, and the next one has the same wrong clock.
        for minute in (0..50).step_by(10) {
            accuse_one(&mut world);
            assert!(world.blocked().is_empty(), "minute {minute}, {ahead} minutes ahead");
            world.wait(10 * MINUTE - 60);
            accuse_one(&mut world);
            world.evaluate();
            world.restart();
        }
        accuse_one(&mut world);
        assert!(world.blocked().is_empty());
        world.wait(HOUR);
        accuse_one(&mut world);
        assert_eq!(world.blocked(), ["ns-a"], "it ends all the same");
    }
}

#[test]
fn a_release_that_has_run_out_while_no_replica_led_lasts_only_as_long_as_was_left() {
    let mut world = nodes(1);
    accuse_one(&mut world);
    release(&mut world, "ns-a", 1);
    world.wait(50 * HOUR);
    world.restart();
    world.wait(HOUR - 3 * MINUTE);
    accuse_one(&mut world);
    assert!(world.blocked().is_empty());
    world.wait(2 * MINUTE);
    accuse_one(&mut world);
    assert_eq!(world.blocked(), ["ns-a"]);
}

#[test]
fn an_exemption_that_has_run_out_opens_nothing_after_a_restart_whatever_the_clock_shows() {
    for ahead in [0, MONTH, -MONTH] {
        for by_exemption in [false, true] {
            let mut world = nodes(1);
            accuse_one(&mut world);
            assert_eq!(world.blocked(), ["ns-a"]);
            if by_exemption {
                let until = world.now.wall() + jiff::SignedDuration::from_hours(1);
                let namespace = Some(Pattern::Exact("ns-a".into()));
                world.policy.exemptions =
                    vec![exemption(|e| e.namespace.clone_from(&namespace), Some(until))];
                assert!(world.blocked().is_empty());
            } else {
                release(&mut world, "ns-a", 1);
            }
            world.wait(HOUR);
            accuse_one(&mut world);
            assert_eq!(world.blocked(), ["ns-a"]);
            for _ in 0..2 {
                leader(&mut world, ahead);
                accuse_one(&mut world);
                let evaluation = world.evaluate();
                let known = (evaluation.decisions, evaluation.plan.blocks.len());
                assert_eq!(known, (vec![], 1), "{ahead} {by_exemption}");
            }
        }
    }
}

#[test]
fn a_new_leader_neither_shortens_nor_extends_a_grace() {
    for ahead in [0, MONTH, -MONTH] {
        for is_mute in [false, true] {
            let mut world = nodes(1);
            world.policy.grace = Duration::from_secs(2 * HOUR);
            world.is_mute = is_mute;
            accuse_one(&mut world);
            assert_eq!(world.evaluate().decisions[0].kind, DecisionKind::Warned);
            // Its evidence is written each hour, and with it how much time has passed.
            for _ in 0..65 {
                accuse_one(&mut world);
                world.evaluate();
            }
            leader(&mut world, ahead);
            leader(&mut world, -ahead);
            leader(&mut world, ahead);
            if is_mute {
                world.is_mute = false;
                // The tenant could not be notified before now, with two hours left.
                accuse_one(&mut world);
                world.evaluate();
                leader(&mut world, ahead);
            }
            let left = if is_mute { 119 } else { 54 };
            for minute in 0..left {
                accuse_one(&mut world);
                assert!(world.blocked().is_empty(), "{ahead} {is_mute} {minute}");
            }
            for _ in 0..20 {
                accuse_one(&mut world);
                world.evaluate();
            }
            assert_eq!(world.blocked(), ["ns-a"], "{ahead} {is_mute}");
        }
    }
}

#[test]
fn a_tenant_has_the_whole_grace_from_its_notification_on_even_if_the_clock_jumps() {
    let mut world = nodes(1);
    world.policy.grace = Duration::from_secs(10 * MINUTE);
    world.is_mute = true;
    accuse_one(&mut world);
    world.evaluate();
    world.wait(9 * MINUTE);
    world.is_mute = false;
    world.evaluate();
    world.jump(MONTH);
    accuse_one(&mut world);
    assert!(world.blocked().is_empty());
    world.wait(8 * MINUTE);
    accuse_one(&mut world);
    assert_eq!(world.blocked(), ["ns-a"]);
}

#[test]
fn a_held_app_stays_held_whatever_clock_the_next_leader_has() {
    for ahead in [0, MONTH, -MONTH] {
        let mut world = nodes(1);
        // The monotonic clock needs a reading for a month ago.
        world.wait(40 * 24 * HOUR);
        world.policy.brake.max_new_tenants = 0;
        accuse_one(&mut world);
        assert_eq!(world.held(), ["ns-a"]);
        world.rounds(40, |w| {
            w.answer("n0", vec![]);
            w.evaluate();
        });
        assert!(world.held().is_empty());
        leader(&mut world, ahead);
        world.policy.brake.max_new_tenants = 20;
        world.evaluate();
        accuse_one(&mut world);
        assert_eq!((world.blocked().len(), world.held().len()), (0, 1), "{ahead}");
    }
}

#[test]
fn the_next_deadline_is_when_time_alone_changes_a_decision() {
    let deadline = |world: &World| {
        let at = world.incidents.next_deadline(&world.policy, world.now);
        at.map(|at| at.uptime().saturating_sub(world.now.uptime()).as_secs())
    };
    let mut world = nodes(1);
    accuse_one(&mut world);
    world.evaluate();
    assert_eq!(deadline(&world), None);
    release(&mut world, "ns-a", 1);
    assert_eq!(
        deadline(&world),
        Some(HOUR - 5),
        "the measured time, minus the tolerance for clocks that are set"
    );
    world.wait(HOUR - 5);
    assert_eq!(deadline(&world), Some(5), "and the date");

    let mut world = nodes(1);
    world.policy.grace = Duration::from_secs(10 * MINUTE);
    world.is_mute = true;
    accuse_one(&mut world);
    world.evaluate();
    assert_eq!(deadline(&world), Some(10 * MINUTE));
    world.wait(MINUTE);
    world.is_mute = false;
    world.evaluate();
    world.wait(9 * MINUTE);
    assert_eq!(deadline(&world), Some(MINUTE), "its tenant has known of it for the whole grace");
    world.is_mute = true;
    accuse_one(&mut world);
    world.wait(MINUTE);
    let until = world.now.wall() + jiff::SignedDuration::from_mins(7);
    world.policy.exemptions = vec![exemption(|e| e.app = Some(Pattern::Exact("other".into())), Some(until))];
    world.evaluate();
    assert_eq!(deadline(&world), Some(7 * MINUTE - 5));
}

#[test]
fn documents_of_an_earlier_version_hold_all_brakes_and_give_a_whole_grace() {
    let strip = |world: &mut World| {
        for persisted in world.persisted.values_mut() {
            (persisted.status.clock, persisted.status.written, persisted.status.grace_ends) =
                (None, None, None);
            persisted.status.grace = None;
            if let Some(sent) = &mut persisted.status.told {
                sent.delivered_by_clock = None;
            }
            if let Some(due) = &mut persisted.status.due {
                due.held.clear();
            }
        }
    };
    // An App that an earlier version held takes a place in every brake, as it did then.
    let mut world = nodes(40);
    accuse(&mut world, 0..25);
    strip(&mut world);
    world.restart();
    let evaluation = accuse(&mut world, 25..30);
    assert_eq!((evaluation.plan.blocks.len(), evaluation.held.len()), (20, 10));
    // A grace begins anew.
    let mut world = nodes(1);
    world.policy.grace = Duration::from_secs(10 * MINUTE);
    accuse_one(&mut world);
    world.evaluate();
    world.wait(8 * MINUTE);
    strip(&mut world);
    leader(&mut world, MONTH);
    for _ in 0..9 {
        accuse_one(&mut world);
        assert!(world.blocked().is_empty());
    }
    accuse_one(&mut world);
    assert_eq!(world.blocked(), ["ns-a"]);
}

#[test]
fn the_last_incident_of_an_app_is_known_whatever_its_leaders_clock_showed() {
    for ahead in [0, 11 * 60, -11 * 60, MONTH, -MONTH] {
        let mut world = World::new(&["n0"]);
        accuse_one(&mut world);
        assert_eq!(world.blocked(), ["ns-a"]);
        world.rounds(40, |w| drop(w.answer("n0", vec![])));
        assert!(world.blocked().is_empty());
        leader(&mut world, ahead);
        // Long enough for another incident.
        world.wait(25 * HOUR);
        accuse_one(&mut world);
        assert_eq!(world.blocked(), ["ns-a"]);
        assert_eq!(world.persisted.len(), 2);
        leader(&mut world, 0);
        assert_eq!(world.blocked(), ["ns-a"], "{ahead}");
        // Conversely, an incident that has ended is not continued.
        world.rounds(40, |w| drop(w.answer("n0", vec![])));
        assert!(world.blocked().is_empty());
        leader(&mut world, -ahead);
        assert!(world.blocked().is_empty(), "{ahead}");
    }
}
