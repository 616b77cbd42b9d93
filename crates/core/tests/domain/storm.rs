//! The law of the brakes, over random storms.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::common::{World, record_of};
use procscan_core::decision::DecisionKind;
use procscan_core::exemption::Pattern;
use procscan_core::names::App;
use procscan_core::policy::IncidentCommand;
use procscan_core::report::Record;
use proptest::collection::vec;
use proptest::prelude::*;

const NODES: [&str; 3] = ["n0", "n1", "n2"];

fn namespace(tenant: usize) -> String {
    format!("ns-t{tenant}")
}

/// A step of a storm of accusations.
#[derive(Clone, Debug)]
enum StormStep {
    /// A node accuses Apps of several tenants, by several rules.
    Accuse {
        node: usize,
        list: Vec<(usize, usize, usize)>,
    },
    Wait(u64),
    /// Another leader, whose wall clock is `days` ahead of the last leader's.
    Leader {
        days: i64,
    },
    Release(usize, usize),
    Exempt(usize),
    EndExemptions,
    Unwritable(Vec<usize>),
}

/// The last rule is a keyword, which any process can match.
const RULES: usize = 4;

fn storm_step() -> impl Strategy<Value = StormStep> {
    let accused = (0..12_usize, 0..5_usize, 0..RULES);
    prop_oneof![
        12 => (0..NODES.len(), vec(accused, 1..9)).prop_map(|(node, list)| StormStep::Accuse { node, list }),
        4 => prop_oneof![1..60_u64, 1..700_u64].prop_map(StormStep::Wait),
        2 => prop_oneof![Just(0), Just(31), Just(-31), -1..=1_i64].prop_map(|days| StormStep::Leader { days }),
        1 => (0..12_usize, 0..5_usize).prop_map(|(tenant, app)| StormStep::Release(tenant, app)),
        1 => (0..12_usize).prop_map(StormStep::Exempt),
        1 => Just(StormStep::EndExemptions),
        1 => prop_oneof![vec(0..12_usize, 0..3), Just(Vec::new())].prop_map(StormStep::Unwritable),
    ]
}

fn storm_app(tenant: usize, app: usize) -> App {
    App::new(namespace(tenant), "app", format!("web-{app}"))
}

fn storm_record(tenant: usize, app: usize, rule: usize, now: i64) -> Record {
    let pod = format!("web-{app}");
    if rule + 1 < RULES {
        return record_of(&namespace(tenant), &pod, &format!("p{rule}"), now);
    }
    let mut record = record_of(&namespace(tenant), &pod, &format!("k{tenant}"), now);
    // The rule is empty, or cut out of a message.
    Arc::make_mut(&mut record.claim).regex = if app.is_multiple_of(2) { "" } else { "t coin (" }.into();
    record
}

proptest! {
    #![proptest_config(crate::common::cases(400))]

    /// Within any window no more Apps are blocked than the brakes allow, approvals excepted. That holds in any order,
    /// whichever nodes accuse, whatever operators release and whatever can't be persisted. It also holds if another
    /// leader has a wrong wall clock.
    #[test]
    fn no_sequence_of_accusations_exceeds_the_brakes(steps in vec(storm_step(), 1..120)) {
        let mut world = World::new(&NODES);
        let brake = &mut world.policy.brake;
        (brake.max_new_tenants, brake.max_tenants_per_node, brake.max_apps_per_node) = (5, 3, 5);
        (brake.max_tenants_per_rule, brake.max_apps_per_tenant) = (4, 3);
        let mut accusers: BTreeMap<App, BTreeSet<(usize, usize)>> = BTreeMap::new();
        let mut blocks: Vec<(u64, App)> = Vec::new();
        for step in &steps {
            match step {
                StormStep::Accuse { node, list } => {
                    for (tenant, app, rule) in list {
                        accusers.entry(storm_app(*tenant, *app)).or_default().insert((*node, *rule));
                    }
                    let now = world.clock();
                    let records = list.iter().map(|(tenant, app, rule)| storm_record(*tenant, *app, *rule, now));
                    world.answer(NODES[*node], records.collect());
                }
                StormStep::Wait(seconds) => drop(world.wait(*seconds)),
                StormStep::Leader { days } => {
                    world.jump(days * 86_400);
                    world.restart();
                }
                StormStep::Release(tenant, app) => {
                    let until = world.now.wall() + Duration::from_mins(1);
                    let release = IncidentCommand::Release { app: storm_app(*tenant, *app), until };
                    let _ = world.incidents.execute(&release, "ops", &world.policy, world.now);
                }
                StormStep::Exempt(tenant) => {
                    let namespace = Pattern::Exact(namespace(*tenant));
                    world.policy.exemptions = vec![crate::common::exemption(|e| e.namespace = Some(namespace.clone()), None)];
                }
                StormStep::EndExemptions => world.policy.exemptions.clear(),
                StormStep::Unwritable(tenants) => {
                    world.unwritable = tenants.iter().map(|tenant| namespace(*tenant)).collect();
                }
            }
            let now = world.now.uptime().as_secs();
            let decisions = world.evaluate().decisions.into_iter();
            blocks.extend(decisions.filter(|d| d.kind == DecisionKind::Blocked).map(|d| (now, d.app)));
            let recent: BTreeSet<&App> = blocks.iter().filter(|(at, _)| now - at < 600).map(|(_, app)| app).collect();
            let tenants = |apps: &BTreeSet<&App>| apps.iter().map(|app| app.namespace.clone()).collect::<BTreeSet<_>>().len();
            prop_assert!(tenants(&recent) <= 5, "{} tenants", tenants(&recent));
            for app in &recent {
                let of_tenant = recent.iter().filter(|other| other.namespace == app.namespace).count();
                prop_assert!(of_tenant <= 3, "{of_tenant} Apps of {}", app.namespace);
            }
            // An App that only one node has ever accused counts for that node. One that only one rule has ever hit
            // counts for that rule.
            for node in 0..NODES.len() {
                let only = |app: &&&App| accusers[**app].iter().all(|(by, _)| *by == node);
                let of_node: BTreeSet<&App> = recent.iter().filter(only).copied().collect();
                prop_assert!(tenants(&of_node) <= 3 && of_node.len() <= 5, "by {node}: {of_node:?}");
            }
            for rule in 0..RULES {
                let only = |app: &&&App| accusers[**app].iter().all(|(_, by)| *by == rule);
                let of_rule: BTreeSet<&App> = recent.iter().filter(only).copied().collect();
                prop_assert!(tenants(&of_rule) <= 4, "by {rule}: {of_rule:?}");
            }
        }
    }
}
