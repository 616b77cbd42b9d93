//! Which blocks the brakes hold, and for how long.

use crate::common::{HOUR, MINUTE, World, app, exemption, namespaces, record, record_of};
use procscan_core::decision::{Actor, DecisionKind, Mode};
use procscan_core::exemption::Pattern;
use procscan_core::policy::{Alert, IncidentCommand, IncidentCommandError};

#[test]
fn a_bad_rule_blocks_no_more_apps_than_the_brake_allows_and_the_rest_stays_held_for_days() {
    let nodes: Vec<String> = (0..500).map(|i| format!("node-{i}")).collect();
    let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let mut world = World::new(&names);
    let mut alerts: Vec<Alert> = Vec::new();
    let accuse = |w: &mut World| {
        let now = w.clock();
        for (i, node) in nodes.iter().enumerate() {
            let mut record = record(&format!("ns-{i:03}"), now);
            std::sync::Arc::make_mut(&mut record.claim).regex = ".*".into();
            w.answer(node, vec![record]);
        }
    };
    // Scans a minute apart, from which the scan interval is learned.
    let scans = |world: &mut World| {
        for _ in 0..9 {
            world.wait(MINUTE);
            accuse(world);
        }
    };
    accuse(&mut world);
    let evaluation = world.evaluate();
    alerts.extend(evaluation.alerts);
    assert_eq!(evaluation.plan.blocks.len(), 10, "one rule may hit ten tenants");
    assert_eq!(evaluation.held.len(), 490);
    // Held Apps are not in any object, and time changes nothing.
    for _ in 0..3 * 24 {
        world.wait(HOUR);
        accuse(&mut world);
        let evaluation = world.evaluate();
        assert_eq!((evaluation.plan.blocks.len(), evaluation.held.len()), (10, 490));
        assert_eq!(evaluation.plan.notices.len(), 10);
        alerts.extend(evaluation.alerts);
    }
    assert_eq!(alerts.len(), 1, "one alert: {alerts:?}");

    // One approval blocks one App.
    let held = world.evaluate().held[0].app.clone();
    let decision = world
        .incidents
        .execute(&IncidentCommand::Approve { app: held.clone() }, "ops", &world.policy, world.now)
        .unwrap();
    assert_eq!((decision.kind, decision.actor), (DecisionKind::Approved, Actor::Operator("ops".into())));
    let evaluation = world.evaluate();
    assert_eq!((evaluation.plan.blocks.len(), evaluation.held.len()), (11, 489));
    let again = world.incidents.execute(
        &IncidentCommand::Approve { app: held.clone() },
        "ops",
        &world.policy,
        world.now,
    );
    assert_eq!(again, Err(IncidentCommandError::NotHeld(held)));

    scans(&mut world);
    // The rule is gone. The clearing clock clears everything, and an App that offends again within a day is still
    // held.
    world.rounds(40, |w| {
        for node in &nodes {
            w.answer(node, vec![]);
        }
        w.evaluate();
    });
    let evaluation = world.evaluate();
    assert_eq!((evaluation.plan.blocks.len(), evaluation.held.len()), (0, 0));
    accuse(&mut world);
    assert!(world.held().len() >= 480);
}

#[test]
fn at_most_twenty_new_apps_in_a_window_and_a_falling_rate_rearms_for_later_accusations_only() {
    let nodes = namespaces(40);
    let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let mut world = World::new(&names);
    // Each tenant has its own node and its own rule, so only the number is suspicious.
    let accuse = |w: &mut World, range: std::ops::Range<usize>| {
        let now = w.clock();
        for i in range {
            let process = format!("miner{i}");
            w.answer(&nodes[i], vec![record_of(&nodes[i], "web", &process, now)]);
        }
    };
    accuse(&mut world, 0..30);
    assert_eq!(world.blocked().len(), 20);
    // The storm goes on at less than the limit's rate, so the brake stays on.
    world.wait(5 * MINUTE);
    accuse(&mut world, 30..32);
    assert_eq!(world.blocked().len(), 20);
    // The storm is over: new accusations are judged on their own, and held Apps stay held.
    world.wait(10 * MINUTE);
    accuse(&mut world, 32..34);
    let evaluation = world.evaluate();
    assert_eq!((evaluation.plan.blocks.len(), evaluation.held.len()), (22, 12));
}

#[test]
fn a_lying_node_gets_at_most_five_of_its_own_pods_blocked() {
    let mut world = World::new(&["liar", "honest"]);
    let all = namespaces(12);
    let lies =
        |now| (0..12).map(|i| record_of(&format!("ns-{i:03}"), "web", &format!("m{i}"), now)).collect();
    world.answer("liar", lies(0));
    let blocked = world.blocked();
    assert_eq!(blocked.len(), 5);
    // The lying node does not delay an honest node's accusation of another tenant.
    world.answer("honest", vec![record("ns-x", 0)]);
    assert!(world.blocked().contains(&"ns-x".to_owned()));
    world.rounds(60, |w| {
        let now = w.clock();
        w.answer("liar", lies(now));
    });
    assert_eq!(world.blocked().len(), 6);
    assert_eq!(world.held().len(), all.len() - 5);
}

#[test]
fn an_approval_is_for_one_offence_and_another_hold_is_logged_again() {
    let mut world = World::new(&["n1", "n2"]);
    world.policy.brake.max_new_tenants = 0;
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.held(), ["ns-a"]);
    world.rounds(40, |w| {
        w.answer("n1", vec![]);
        w.evaluate();
    });
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    let decisions = world.evaluate().decisions;
    assert!(
        decisions[0].kind == DecisionKind::Held && decisions[0].reason.starts_with("still held"),
        "{decisions:?}"
    );
    world
        .incidents
        .execute(&IncidentCommand::Approve { app: app("ns-a") }, "ops", &world.policy, world.now)
        .unwrap();
    assert_eq!(world.blocked(), ["ns-a"]);
    // It was found twice, far apart, so its agent seems to scan seldom.
    world.rounds(400, |w| {
        w.answer("n1", vec![]);
        w.evaluate();
    });
    assert!(world.blocked().is_empty());
    let now = world.clock();
    world.answer("n2", vec![record_of("ns-a", "web", "zmap", now)]);
    assert!(world.blocked().is_empty(), "another offence needs another approval");
    assert_eq!(world.held(), ["ns-a"]);
}

#[test]
fn an_operators_release_frees_no_place_of_a_node_in_the_brakes() {
    let mut world = World::new(&["n1", "n2"]);
    world.policy.brake.max_apps_per_node = 1;
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    // An operator releases the App, and it is accused of another process. The brakes apply again, and the App's own
    // place is taken.
    let until = world.now.wall() + jiff::SignedDuration::from_hours(24);
    world
        .incidents
        .execute(&IncidentCommand::Release { app: app("ns-a"), until }, "ops", &world.policy, world.now)
        .unwrap();
    world.wait(MINUTE);
    world.answer("n1", vec![record("ns-a", 0), record_of("ns-a", "web", "zmap", 60)]);
    assert!(world.blocked().is_empty());
    assert_eq!(world.held(), ["ns-a"]);
    // Another node's accusation of the same App does not free the first node's place.
    world.answer("n2", vec![record_of("ns-a", "web", "nmap", 60)]);
    world.evaluate();
    world.answer("n1", vec![record_of("ns-b", "web", "zmap", 61)]);
    assert!(world.held().contains(&"ns-b".to_owned()));
}

/// One tenant's Apps, each with a Pod on one of `nodes`.
pub(crate) fn accuse_apps(world: &mut World, namespace: &str, apps: std::ops::Range<usize>, nodes: &[&str]) {
    let now = world.clock();
    for (n, node) in nodes.iter().enumerate() {
        let of_node = apps.clone().filter(|app| app % nodes.len() == n);
        let records = of_node.map(|app| record_of(namespace, &format!("web-{app}"), "xmrig", now)).collect();
        world.answer(node, records);
    }
}

/// How many Apps of a tenant are blocked.
fn blocked_of(world: &mut World, namespace: &str) -> usize {
    world.blocked().iter().filter(|blocked| *blocked == namespace).count()
}

#[test]
fn one_tenants_apps_are_one_tenant_and_hold_no_other_tenant() {
    let nodes: Vec<String> = (0..6).map(|i| format!("n{i}")).collect();
    let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let mut world = World::new(&names);
    accuse_apps(&mut world, "ns-many", 0..30, &names);
    assert_eq!((blocked_of(&mut world, "ns-many"), world.held().len()), (30, 0));
    // Another tenant's miner, found by the same rule on the same node.
    world.wait(MINUTE);
    let now = world.clock();
    world.answer("n0", vec![record("ns-a", now)]);
    assert_eq!(blocked_of(&mut world, "ns-a"), 1);

    // Beyond the tenant's own limit its Apps are held, but no other tenant's.
    world.wait(MINUTE);
    accuse_apps(&mut world, "ns-many", 30..100, &names);
    assert_eq!((blocked_of(&mut world, "ns-many"), world.held().len()), (50, 50));
    let now = world.clock();
    world.answer("n0", vec![record("ns-b", now)]);
    assert_eq!(blocked_of(&mut world, "ns-b"), 1);
    let reason = &world.evaluate().held[0].reason;
    assert!(reason.contains("more than 50 Apps of the tenant ns-many"), "{reason}");
}

#[test]
fn one_tenants_apps_on_one_node_leave_places_for_the_other_tenants_of_that_node() {
    let mut world = World::new(&["n1", "n2"]);
    accuse_apps(&mut world, "ns-many", 0..30, &["n1"]);
    // Twenty Apps on one node's reports, and five tenants: four places are reserved for the other four tenants.
    assert_eq!((blocked_of(&mut world, "ns-many"), world.held().len()), (16, 14));
    let reason = world.evaluate().held[0].reason.clone();
    assert!(reason.contains("more than 16 Apps of one tenant"), "{reason}");
    for tenant in ["ns-a", "ns-b", "ns-c", "ns-d"] {
        world.wait(MINUTE);
        let now = world.clock();
        world.answer("n1", vec![record(tenant, now)]);
        assert_eq!(blocked_of(&mut world, tenant), 1);
    }
    world.wait(1);
    let now = world.clock();
    world.answer("n1", vec![record("ns-e", now)]);
    assert_eq!(blocked_of(&mut world, "ns-e"), 0, "a sixth tenant on one node's reports");
    let held = world.evaluate().held;
    let of_e = held.iter().find(|held| *held.app.namespace == *"ns-e").unwrap();
    assert!(
        of_e.reason.contains("more than 5 tenants, more than 20 Apps, or more than 16 Apps of one tenant"),
        "{}",
        of_e.reason
    );
    // Another node's accusations have their own places.
    world.answer("n2", vec![record_of("ns-many", "web-29", "xmrig", now), record("ns-f", now)]);
    assert_eq!(blocked_of(&mut world, "ns-f"), 1);
}

#[test]
fn decoys_that_are_made_for_a_day_hold_no_other_tenants_miner() {
    let mut world = World::new(&["n1", "n2"]);
    for minute in 0..24 * 60 {
        world.wait(MINUTE);
        accuse_apps(&mut world, "ns-many", minute..minute + 1, &["n1"]);
        if minute % 97 == 50 {
            let (now, tenant) = (world.clock(), format!("ns-{minute}"));
            world.answer("n1", vec![record(&tenant, now)]);
            assert_eq!(blocked_of(&mut world, &tenant), 1, "minute {minute}");
        } else {
            world.evaluate();
        }
    }
}

/// Accuses tenants by one rule, each on its own node, one after the other.
fn by_rule(world: &mut World, tenants: std::ops::Range<usize>, pod: &str, process: &str, regex: &str) {
    for tenant in tenants {
        world.wait(1);
        let now = world.clock();
        let mut record = record_of(&format!("ns-{tenant:03}"), pod, process, now);
        std::sync::Arc::make_mut(&mut record.claim).regex = regex.into();
        world.answer(&format!("n{tenant}"), vec![record]);
        world.evaluate();
    }
}

pub(crate) fn many_nodes(n: usize) -> World {
    let nodes: Vec<String> = (0..n).map(|i| format!("n{i}")).collect();
    World::new(&nodes.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn a_tenant_that_a_brake_holds_is_held_with_all_its_apps() {
    let mut world = many_nodes(40);
    by_rule(&mut world, 0..10, "web", "xmrig", "^xm");
    for pod in ["a", "b", "c"] {
        by_rule(&mut world, 10..11, pod, "xmrig", "^xm");
    }
    assert_eq!((world.blocked().len(), world.held().len()), (10, 3));
    // Further Apps of a tenant that has passed are blocked.
    by_rule(&mut world, 3..4, "b", "xmrig", "^xm");
    assert_eq!((world.blocked().len(), world.held().len()), (11, 3));
    // Another rule has its own places.
    by_rule(&mut world, 10..11, "d", "zmap", "^zmap$");
    assert_eq!((world.blocked().len(), world.held().len()), (12, 3));
}

#[test]
fn keyword_hits_are_one_rule_whatever_the_processes_are_called() {
    let mut world = many_nodes(18);
    for tenant in 0..18 {
        by_rule(&mut world, tenant..tenant + 1, "web", &format!("java-{tenant}"), "");
    }
    assert_eq!((world.blocked().len(), world.held().len()), (10, 8));
    let reason = &world.evaluate().held[0].reason;
    assert!(reason.starts_with("keyword hits accuse more than 10 tenants"), "{reason}");
}

#[test]
fn a_text_that_an_agent_cuts_out_of_its_message_is_no_rule_of_its_own() {
    let mut world = many_nodes(18);
    for tenant in 0..18_usize {
        // The rest of a message with `'` in it: an invalid regular expression, or one that does not match the
        // process's name.
        let garbage =
            if tenant.is_multiple_of(2) { format!("t miner-{tenant} (") } else { format!("t {tenant} coin") };
        by_rule(&mut world, tenant..tenant + 1, "web", &format!("java-{tenant}"), &garbage);
    }
    assert_eq!((world.blocked().len(), world.held().len()), (10, 8));
    // A rule that would need too much memory is no rule either.
    let mut world = many_nodes(18);
    for tenant in 0..18 {
        let huge = format!(r"(\w{{500}}){{500}}|java-{tenant}");
        by_rule(&mut world, tenant..tenant + 1, "web", &format!("java-{tenant}"), &huge);
    }
    assert_eq!((world.blocked().len(), world.held().len()), (10, 8));
    // A rule that consists of several alternatives counts.
    let mut world = many_nodes(18);
    for tenant in 0..18 {
        let process = format!("java-{tenant}");
        by_rule(&mut world, tenant..tenant + 1, "web", &process, &format!("^java-{tenant}$"));
    }
    assert_eq!((world.blocked().len(), world.held().len()), (18, 0));
}

#[test]
fn an_accusation_that_its_rule_does_not_match_hides_no_later_one_of_the_same_rule() {
    let mut world = many_nodes(11);
    // The keyword hits take all places of their rule.
    by_rule(&mut world, 0..10, "web", "java", "");
    world.wait(1);
    let now = world.clock();
    let by_xm = |process: &str| {
        let mut record = record_of("ns-010", "web", process, now);
        std::sync::Arc::make_mut(&mut record.claim).regex = "^xm".into();
        record
    };
    // `^xm` does not match `java`, so that record counts as a keyword hit. It comes first.
    world.answer("n10", vec![by_xm("java"), by_xm("xmrig")]);
    world.evaluate();
    assert_eq!((world.blocked().len(), world.held().len()), (11, 0));
}

#[test]
fn invented_rules_of_a_node_count_as_one_beyond_a_bound() {
    let nodes: Vec<String> = (0..90).map(|i| format!("n{i}")).collect();
    let mut world = World::new(&nodes.iter().map(String::as_str).collect::<Vec<_>>());
    world.policy.brake.max_new_tenants = 1000;
    for (i, node) in nodes.iter().enumerate() {
        world.answer(node, vec![record_of(&format!("ns-{i:03}"), "web", &format!("java-{i}"), 0)]);
    }
    // 64 Apps by rules of their own, and ten of the others by keywords.
    assert_eq!((world.blocked().len(), world.held().len()), (74, 16));
}

#[test]
fn one_honest_accusation_is_enough_and_only_those_that_let_an_app_through_take_a_place() {
    let mut world = World::new(&["liar", "n1", "n2", "n3"]);
    let pods = |names: &[&str], now: i64| names.iter().map(|name| record(name, now)).collect::<Vec<_>>();
    world.answer("liar", pods(&["ns-0", "ns-1", "ns-2", "ns-3", "ns-4"], 0));
    assert_eq!(world.blocked().len(), 5);
    // The lying node has no places left, so its further accusations change nothing.
    world.wait(MINUTE);
    world.answer("liar", pods(&["ns-5", "ns-6"], 60));
    world.answer("n1", pods(&["ns-5", "ns-6"], 60));
    assert_eq!(world.blocked().len(), 7);
    // Both nodes are within their limits here, so both have a place taken.
    world.policy.brake.max_tenants_per_node = 2;
    world.wait(MINUTE);
    for node in ["n2", "n3"] {
        world.answer(node, pods(&["ns-7", "ns-8"], 120));
    }
    assert_eq!(world.blocked().len(), 9);
    for node in ["n2", "n3"] {
        let tenant = format!("ns-only-{node}");
        world.answer(node, vec![record(&tenant, 120)]);
        assert!(world.held().contains(&tenant));
    }
}

#[test]
fn an_exempted_accusation_takes_no_place_in_the_brakes() {
    let mut world = World::new(&["liar", "n1"]);
    world.policy.brake.max_tenants_per_node = 1;
    world.policy.exemptions = vec![exemption(|e| e.process = Some(Pattern::Exact("exporter".into())), None)];
    world.answer("liar", vec![record("ns-0", 0)]);
    assert_eq!(world.blocked(), ["ns-0"]);
    // The accusation by n1 is exempted, and the remaining one is by a node without a free place.
    world.answer("n1", vec![record_of("ns-a", "web", "exporter", 0)]);
    world.answer("liar", vec![record("ns-0", 0), record("ns-a", 0)]);
    assert_eq!((world.blocked(), world.held()), (vec!["ns-0".to_owned()], vec!["ns-a".to_owned()]));
    // It does not take a place of n1 either.
    world.answer("n1", vec![record_of("ns-a", "web", "exporter", 0), record("ns-b", 0)]);
    assert!(world.blocked().contains(&"ns-b".to_owned()));
}

#[test]
fn an_approved_app_is_blocked_without_the_brakes_or_another_grace() {
    let mut world = World::new(&["n1"]);
    world.policy.brake.max_new_tenants = 0;
    world.policy.mode = Mode::DryRun;
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.held(), ["ns-a"]);
    world
        .incidents
        .execute(&IncidentCommand::Approve { app: app("ns-a") }, "ops", &world.policy, world.now)
        .unwrap();
    assert_eq!(world.blocked(), ["ns-a"]);
    // Decisions of dry-run take effect once decisions are enforced, but not while they are paused.
    world.policy.mode = Mode::Paused;
    let evaluation = world.evaluate();
    assert_eq!((evaluation.decisions, evaluation.plan.blocks.len()), (vec![], 0));
    world.policy.mode = Mode::DryRun;
    let evaluation = world.evaluate();
    assert_eq!(
        (evaluation.decisions, evaluation.plan.blocks.len()),
        (vec![], 1),
        "paused mode has changed no decision"
    );
    world.policy.mode = Mode::Enforce;
    world.policy.grace = std::time::Duration::from_secs(HOUR);
    let evaluation = world.evaluate();
    assert_eq!((evaluation.decisions[0].kind, evaluation.plan.blocks.len()), (DecisionKind::Blocked, 1));
}

#[test]
fn a_held_tenant_takes_no_place_anew_with_each_app_that_it_starts() {
    let mut world = many_nodes(4);
    world.policy.brake.max_new_tenants = 1;
    by_rule(&mut world, 0..1, "web", "xmrig", "^xm");
    by_rule(&mut world, 1..2, "a", "xmrig", "^xm");
    world.wait(9 * MINUTE);
    by_rule(&mut world, 1..2, "b", "xmrig", "^xm");
    assert_eq!((world.blocked().len(), world.held().len()), (1, 2));
    world.wait(2 * MINUTE);
    by_rule(&mut world, 2..3, "web", "xmrig", "^xm");
    assert_eq!((blocked_of(&mut world, "ns-002"), world.held().len()), (1, 2));
}
