//! Which tenants are notified first, if more of them wait than a round allows.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use crate::common::*;

/// The Apps that have a notice, as `namespace/app`.
fn notified(world: &mut World) -> Vec<String> {
    let notices = world.evaluate().plan.notices;
    notices.iter().map(|notice| format!("{}/{}", notice.app.namespace, notice.app.name)).collect()
}

fn in_grace(limit: usize) -> World {
    let mut world = World::new(&["n1"]);
    world.policy.grace = Duration::from_secs(24 * HOUR);
    world.policy.max_notices_per_round = limit;
    world
}

#[test]
fn a_tenant_whose_name_sorts_last_does_not_wait_for_new_ones_that_sort_before_it() {
    let mut world = in_grace(2);
    let mut records = vec![record("ns-zz", 0)];
    records.extend((0..2).map(|tenant| record(&format!("ns-a-{tenant}"), 0)));
    world.answer("n1", records.clone());
    assert_eq!(notified(&mut world), ["ns-a-0/web", "ns-a-1/web"]);
    world.ledger.round_done();
    // Two more with each round, all earlier in the alphabet.
    world.wait(MINUTE);
    let now = world.clock();
    records.extend((2..4).map(|tenant| record(&format!("ns-a-{tenant}"), now)));
    world.answer("n1", records);
    assert!(notified(&mut world).contains(&"ns-zz/web".to_owned()), "it has waited longest");
}

#[test]
fn another_tenant_does_not_wait_for_the_many_apps_of_one_tenant() {
    let mut world = in_grace(2);
    let mut records: Vec<_> = (0..9).map(|pod| record_of("ns-a", &format!("p{pod}"), "xmrig", 0)).collect();
    world.answer("n1", records.clone());
    assert_eq!(notified(&mut world), ["ns-a/p0", "ns-a/p1"]);
    world.ledger.round_done();
    world.wait(MINUTE);
    let now = world.clock();
    records.push(record("ns-b", now));
    world.answer("n1", records);
    assert_eq!(notified(&mut world), ["ns-a/p0", "ns-a/p1", "ns-a/p2", "ns-b/web"]);
}

#[test]
fn a_repeated_notification_waits_from_its_own_decision_on() {
    let mut world = in_grace(1);
    world.policy.grace = Duration::ZERO;
    let at = |world: &World| world.clock();
    let stamp = at(&world);
    world.answer("n1", vec![record("ns-z", stamp)]);
    assert_eq!(notified(&mut world), ["ns-z/web"]);
    world.rounds(40, |w| drop(w.answer("n1", vec![])));
    assert!(world.blocked().is_empty());
    // Another tenant's new incident is a minute older than the second half of this one.
    world.wait(MINUTE);
    let stamp = at(&world);
    world.answer("n1", vec![record("ns-y", stamp), record("ns-x", stamp)]);
    world.ledger.round_done();
    assert!(notified(&mut world).contains(&"ns-x/web".to_owned()));
    world.wait(MINUTE);
    let again = at(&world);
    let all = vec![record("ns-y", stamp), record("ns-x", stamp), record("ns-z", again)];
    world.answer("n1", all);
    world.ledger.round_done();
    let notified = notified(&mut world);
    assert!(notified.contains(&"ns-y/web".to_owned()), "{notified:?}");
    let phase = |world: &mut World| {
        let plan = world.evaluate().plan;
        plan.notices.iter().find(|notice| &*notice.app.namespace == "ns-z").map(|n| n.phase)
    };
    assert_ne!(
        phase(&mut world),
        Some(procscan_core::plan::NoticePhase::Blocked),
        "it has its turn after that"
    );
    world.ledger.round_done();
    assert_eq!(phase(&mut world), Some(procscan_core::plan::NoticePhase::Blocked));
}

proptest! {
    /// A tenant is notified of its first App once all tenants that waited before it have had their turn, whatever
    /// other tenants do.
    #[test]
    fn a_tenants_first_app_waits_for_one_app_of_each_other_tenant_at_most(
        limit in 1usize..4,
        arrivals in prop::collection::vec((0u8..6, 1u8..8, 0u8..8), 1..12),
    ) {
        let mut world = in_grace(limit);
        let mut records = Vec::new();
        let mut first: BTreeMap<String, u64> = BTreeMap::new();
        let mut pods = 0;
        for round in 0..24u64 {
            let now = world.clock();
            for (tenant, apps, _) in arrivals.iter().filter(|(_, _, at)| u64::from(*at) == round) {
                let namespace = format!("ns-{tenant}");
                for _ in 0..*apps {
                    pods += 1;
                    records.push(record_of(&namespace, &format!("p{pods:03}"), "xmrig", now));
                }
                first.entry(namespace).or_insert(round);
            }
            world.answer("n1", records.clone());
            let notified = notified(&mut world);
            let turns = u64::try_from(first.len().div_ceil(limit)).unwrap();
            for (namespace, since) in first.iter().filter(|(_, since)| round + 1 >= **since + turns) {
                let is_notified = notified.iter().any(|app| app.starts_with(&format!("{namespace}/")));
                prop_assert!(is_notified, "{namespace} waits since round {since}, and now is round {round}: {notified:?}");
            }
            world.ledger.round_done();
            world.wait(MINUTE);
        }
    }
}
