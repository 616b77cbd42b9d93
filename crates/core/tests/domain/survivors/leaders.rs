//! Graces, approvals and clocks that continue when another replica leads.

use std::time::Duration;

use crate::common::{HOUR, MINUTE, World, app, record};
use crate::grace::{accuse, is_blocked, with_grace};
use procscan_core::decision::{DecisionKind, Mode};
use procscan_core::policy::IncidentCommand;

#[test]
fn a_grace_ends_with_the_block_at_its_time_though_another_replica_leads_and_the_agent_scans_seldom() {
    let mut world = World::new(&["n1"]);
    world.policy.grace = Duration::from_mins(10);
    let follower = world.new_ledger();
    world.follower = Some((follower, true));
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.evaluate().decisions[0].kind, DecisionKind::Warned);
    world.wait(5 * MINUTE);
    world.fail_over();
    // The agent does not scan again until the grace is over, and the new leader has received the record itself. The
    // time before the grace was written again does not count.
    world.rounds(10, |w| drop(w.answer("n1", vec![record("ns-a", 0)])));
    assert_eq!(world.blocked(), ["ns-a"]);
}

#[test]
fn an_approval_in_dry_run_becomes_real_however_old_the_evidence_is_that_still_counts() {
    // The agent scans once an hour, so its evidence counts for longer than a new block may follow from it.
    let mut world = World::new(&["n1"]);
    world.policy.brake.max_new_tenants = 0;
    let list = |w: &mut World| drop(w.answer("n1", vec![record("ns-a", w.clock() / 3600 * 3600)]));
    list(&mut world);
    world.rounds(120, list);
    assert_eq!(world.held(), ["ns-a"]);
    world.policy.mode = Mode::DryRun;
    for is_approved in [false, true] {
        let mut other = World {
            incidents: world.incidents.clone(),
            policy: world.policy.clone(),
            facts: world.facts.clone(),
            rules: world.rules.clone(),
            persisted: world.persisted.clone(),
            now: world.now,
            targets: world.targets.clone(),
            ..World::new(&["n1"])
        };
        other.ledger = other.new_ledger();
        std::mem::swap(&mut other.ledger, &mut world.ledger);
        if is_approved {
            other
                .incidents
                .execute(&IncidentCommand::Approve { app: app("ns-a") }, "ops", &other.policy, other.now)
                .unwrap();
        }
        other.rounds(40, list);
        other.policy.mode = Mode::Enforce;
        assert_eq!(other.blocked().is_empty(), !is_approved);
        std::mem::swap(&mut other.ledger, &mut world.ledger);
        world.now = other.now;
    }
    assert!(world.now.uptime() > Duration::from_secs(3 * HOUR));
}

#[test]
fn the_persisted_clock_counts_if_leaders_have_measured_more_than_this_process() {
    for (more, blocks) in [(0, false), (HOUR, true)] {
        let mut world = with_grace(60);
        accuse(&mut world);
        let mut persisted: Vec<_> = world.persisted.values().cloned().collect();
        for status in persisted.iter_mut().map(|incident| &mut incident.status) {
            status.clock = status.clock.map(|reading| reading + Duration::from_secs(more));
        }
        world.incidents =
            world.incidents.restore_again(&persisted, &world.ledger.snapshot(world.now), world.now);
        world.wait(MINUTE);
        assert_eq!(is_blocked(&accuse(&mut world)), blocks, "{more}");
    }
}

#[test]
fn a_start_alone_leads_to_no_write_for_the_clocks() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.wait(MINUTE);
    world.restart();
    world.incidents.decide(&world.ledger.snapshot(world.now), &world.policy, &world.facts, world.now);
    assert_eq!(world.incidents.dirty(), []);
}
