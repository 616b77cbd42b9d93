//! Which of the waiting tenants is notified first.

use std::time::Duration;

use crate::common::{HOUR, MINUTE, World, exemption, record_of};
use procscan_core::plan::NoticePhase;

fn world() -> World {
    let mut world = World::new(&["n1", "n2"]);
    world.policy.grace = Duration::from_secs(24 * HOUR);
    world.policy.max_notices_per_round = 1;
    world
}

/// The Apps whose tenants have been notified, as `namespace/app`.
fn notified(world: &mut World) -> Vec<String> {
    let notices = world.evaluate().plan.notices;
    notices.iter().map(|notice| format!("{}/{}", notice.app.namespace, notice.app.name)).collect()
}

#[test]
fn a_tenant_that_was_notified_of_another_app_long_ago_has_its_turn_as_before() {
    let mut world = world();
    world.answer("n1", vec![record_of("ns-a", "p0", "xmrig", 0)]);
    assert_eq!(notified(&mut world), ["ns-a/p0"]);
    world.ledger.round_done();
    // Its second App is found a second before another tenant's first one.
    world.wait(MINUTE);
    world.answer("n1", vec![record_of("ns-a", "p0", "xmrig", 60), record_of("ns-a", "p1", "xmrig", 60)]);
    world.wait(1);
    world.answer("n2", vec![record_of("ns-b", "web", "zmap", 61)]);
    assert_eq!(notified(&mut world), ["ns-a/p0", "ns-a/p1"]);
}

#[test]
fn a_repeated_notification_waits_from_its_decision_and_not_from_the_beginning_of_the_incident() {
    for grace in [Duration::ZERO, Duration::from_mins(10)] {
        // One tenant is notified of its incident and of its end.
        let mut world = world();
        world.policy.grace = grace;
        world.answer("n1", vec![record_of("ns-z", "web", "xmrig", 0)]);
        assert_eq!(notified(&mut world), ["ns-z/web"]);
        world.rounds(40, |w| {
            w.answer("n1", vec![]);
            w.evaluate();
        });
        let phase = |world: &mut World, namespace: &str| {
            let notices = world.evaluate().plan.notices;
            notices.iter().find(|notice| *notice.app.namespace == *namespace).map(|notice| notice.phase)
        };
        assert_eq!(phase(&mut world, "ns-z"), Some(NoticePhase::Recovered));
        // The tenant offends once more, and a second later another one offends for the first time.
        world.wait(MINUTE);
        let now = world.clock();
        world.answer("n1", vec![record_of("ns-z", "web", "xmrig", now)]);
        world.policy.max_notices_per_round = 0;
        world.evaluate();
        world.wait(1);
        world.answer("n2", vec![record_of("ns-b", "web", "zmap", now + 1)]);
        world.evaluate();
        world.policy.max_notices_per_round = 1;
        world.ledger.round_done();
        assert_ne!(phase(&mut world, "ns-z"), None, "it has waited longest");
        assert_eq!(phase(&mut world, "ns-b"), None);
        world.ledger.round_done();
        assert_ne!(phase(&mut world, "ns-b"), None);
    }
}

#[test]
fn a_warned_tenant_is_notified_of_the_block_in_time_however_many_wait_for_their_first_notification() {
    let mut world = world();
    world.policy.grace = Duration::from_mins(10);
    world.answer("n1", vec![record_of("ns-z", "web", "xmrig", 0)]);
    assert_eq!(notified(&mut world), ["ns-z/web"]);
    world.rounds(9, |w| {
        let now = w.clock();
        w.answer("n1", vec![record_of("ns-z", "web", "xmrig", now)]);
        w.evaluate();
    });
    world.wait(MINUTE);
    let now = world.clock();
    world.answer("n2", vec![record_of("ns-a", "web", "zmap", now)]);
    let notices = world.evaluate().plan.notices;
    let phases: Vec<bool> = notices.iter().map(|notice| notice.phase == NoticePhase::Blocked).collect();
    assert_eq!(phases, [false, true], "{notices:?}");
}

#[test]
fn a_tenant_without_a_decision_is_not_notified() {
    let mut world = world();
    world.policy.exemptions = vec![exemption(
        |e| e.namespace = Some(procscan_core::exemption::Pattern::Exact("ns-a".into())),
        None,
    )];
    world.answer("n1", vec![record_of("ns-a", "web", "xmrig", 0)]);
    for _ in 0..2 {
        assert!(notified(&mut world).is_empty());
    }
}

#[test]
fn in_dry_run_a_grace_lasts_as_long_as_in_enforce_mode() {
    let mut world = world();
    world.policy.mode = procscan_core::decision::Mode::DryRun;
    world.policy.grace = Duration::from_mins(10);
    let mut blocked = |minute: u64| {
        world.now = crate::common::at(minute * MINUTE);
        let stamp = world.clock();
        world.answer("n1", vec![record_of("ns-a", "web", "xmrig", stamp)]);
        !world.evaluate().plan.blocks.is_empty()
    };
    assert_eq!([0, 1, 9, 10].map(&mut blocked), [false, false, false, true]);
}
