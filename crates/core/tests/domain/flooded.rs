//! A tenant removes the evidence of its miner from the ledger by ever new names of processes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::common::{HOUR, MINUTE, World, app, exemption, failed, record, record_of};
use procscan_core::exemption::{Exemption, Pattern};
use procscan_core::ledger::Detection;
use procscan_core::names::NodeName;
use procscan_core::policy::{IncidentCommand, PodState};
use procscan_core::report::{FailureReason, Record};

/// How many violations of a Pod the ledger has room for.
const ROOM: usize = 40;
/// How much evidence of a node an incident holds when the ledger no longer knows it.
const FORGOTTEN: usize = 64;

/// Node `n1` has found the miner of `ns-a` under `rule`, and the App is blocked.
fn world(nodes: &[&str], rule: &str) -> World {
    let mut world = World::with(nodes, Detection { max_keys_per_pod: ROOM, ..Detection::default() });
    world.answer("n1", vec![under(rule, record("ns-a", 0))]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world
}

fn under(rule: &str, mut record: Record) -> Record {
    Arc::make_mut(&mut record.claim).regex = rule.into();
    record
}

/// The exemption's pattern matches the names of the flood, and not that of the miner.
fn exempt_the_flood(world: &mut World) {
    let flood = Pattern::Regex(regex::Regex::new("^p[0-9]+$").unwrap());
    world.policy.exemptions = vec![exemption(|it| it.process = Some(flood.clone()), None)];
}

/// For so many hours, `n1` lists more new processes of the Pod each 35 minutes than there is room for, all under `rule`. `each` is
/// called once a minute, after the answer.
fn flood(world: &mut World, hours: u64, rule: &str, mut each: impl FnMut(&mut World)) {
    // The agent seems to scan every 35 minutes. So after three turns the first ones have grown old, and new ones find room.
    for _ in 0..hours * HOUR / (35 * MINUTE) {
        let found = world.clock();
        let name = |n| format!("p{}", found * 100 + n);
        let flood: Vec<Record> = (0..=i64::try_from(ROOM).unwrap())
            .map(|n| under(rule, record_of("ns-a", "web", &name(n), found)))
            .collect();
        world.rounds(35, |w| {
            w.answer("n1", flood.clone());
            each(w);
        });
        world.evaluate();
    }
    let miner = record("ns-a", 0).key;
    assert_eq!(
        world.snapshot().inconclusive(&miner, &NodeName::new("n1")),
        None,
        "the ledger has forgotten the miner"
    );
}

fn hours(world: &mut World, hours: u64, mut each: impl FnMut(&mut World)) {
    for _ in 0..hours {
        world.rounds(60, &mut each);
        world.evaluate();
    }
}

/// The names of the processes that the block is for.
fn accused(world: &mut World) -> BTreeSet<String> {
    let plan = world.evaluate().plan;
    plan.blocks.iter().flat_map(|block| block.accused()).map(|key| key.process.to_string()).collect()
}

#[test]
fn an_exempted_flood_opens_no_uncovered_block_before_the_limit() {
    for rule in ["^xmrig$", "^p"] {
        let mut world = world(&["n1"], rule);
        exempt_the_flood(&mut world);
        flood(&mut world, 22, "^p", |_| ());
        assert_eq!(world.blocked(), ["ns-a"], "{rule}");
        flood(&mut world, 3, "^p", |_| ());
        assert!(world.blocked().is_empty(), "{rule}");
    }
}

/// While the wall clock is ahead, it is in doubt whether the exemption is over.
#[test]
fn an_exemption_that_was_in_doubt_during_a_flood_opens_nothing() {
    let mut world = world(&["n1"], "^p");
    exempt_the_flood(&mut world);
    world.policy.exemptions[0].until = Some(world.now.wall() + Duration::from_secs(12 * HOUR));
    assert_eq!(world.blocked(), ["ns-a"]);
    let ahead = 13 * i64::try_from(HOUR).unwrap();
    world.jump(ahead);
    flood(&mut world, 9, "^p", |_| ());
    world.jump(-ahead);
    assert_eq!(world.blocked(), ["ns-a"]);
}

#[test]
fn a_block_lists_the_last_violations_of_a_flood_and_the_last_of_each_rule() {
    let mut world = world(&["n1"], "^xmrig$");
    flood(&mut world, 22, "^p", |_| ());
    let accused = accused(&mut world);
    assert!(accused.contains("xmrig"));
    assert_eq!(accused.len(), FORGOTTEN + ROOM);
    // An exemption that comes later covers the flood, but not the miner.
    exempt_the_flood(&mut world);
    assert_eq!(world.blocked(), ["ns-a"]);
}

#[test]
fn a_restart_during_a_flood_opens_nothing() {
    let mut world = world(&["n1"], "^p");
    exempt_the_flood(&mut world);
    flood(&mut world, 5, "^p", |_| ());
    world.restart();
    assert_eq!(world.blocked(), ["ns-a"]);
    flood(&mut world, 15, "^p", |_| ());
    assert_eq!(world.blocked(), ["ns-a"]);
}

/// The next leader has received the agents' reports too, for long enough, but its ledger has forgotten the miner as
/// well.
#[test]
fn a_change_of_leader_during_a_flood_opens_nothing() {
    let mut world = World::with(&["n1"], Detection { max_keys_per_pod: ROOM, ..Detection::default() });
    world.follower = Some((world.new_ledger(), true));
    hours(&mut world, 5, |w| drop(w.answer("n1", vec![])));
    let found = world.clock();
    world.answer("n1", vec![under("^p", record("ns-a", found))]);
    assert_eq!(world.blocked(), ["ns-a"]);
    exempt_the_flood(&mut world);
    flood(&mut world, 5, "^p", |_| ());
    world.fail_over();
    assert_eq!(world.blocked(), ["ns-a"]);
}

fn exempted(count: u32, at: i64) -> impl Iterator<Item = Record> {
    (0..count).map(move |n| record_of("ns-a", "web", &format!("p{n:02}"), at))
}

/// An App is blocked for 64 accusations under different rules, and perhaps for a miner. An exemption then covers the 64. After that comes
/// a restart.
fn restarted(miner: Option<Record>) -> World {
    let mut world = World::new(&["n1"]);
    world.answer("n1", exempted(64, 0).chain(miner).collect());
    assert_eq!(world.blocked(), ["ns-a"]);
    exempt_the_flood(&mut world);
    world.restart();
    world
}

#[test]
fn an_exemption_of_persisted_accusations_does_not_open_the_others() {
    // All of 64 accusations are known after a restart, and covered.
    assert!(restarted(None).blocked().is_empty());
    // Of 65 the miner's is the one that is not persisted.
    let mut world = restarted(Some(record("ns-a", 0)));
    assert_eq!(world.blocked(), ["ns-a"]);
    // Its agent still lists it.
    hours(&mut world, 3, |w| {
        let now = w.clock();
        w.answer("n1", exempted(64, now).chain([record("ns-a", now)]).collect());
    });
    assert_eq!(world.blocked(), ["ns-a"]);
    // Its agent does not list it any more.
    hours(&mut world, 3, |w| drop(w.answer("n1", exempted(64, w.clock()).collect())));
    assert!(world.blocked().is_empty());
}

#[test]
fn an_accusation_that_was_not_persisted_is_not_covered_while_its_pod_can_not_be_read() {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web", "n1", "web");
    world.answer("n1", exempted(64, 0).chain([record("ns-a", 0)]).collect());
    assert_eq!(world.blocked(), ["ns-a"]);
    exempt_the_flood(&mut world);
    world.restart();
    world.pod_is("ns-a", "web", PodState::Unreadable("forbidden".into()));
    hours(&mut world, 3, |w| {
        let now = w.clock();
        w.answer("n1", exempted(64, now).chain([record("ns-a", now)]).collect());
    });
    assert_eq!(world.blocked(), ["ns-a"]);
}

#[test]
fn an_exemption_of_the_whole_app_covers_accusations_that_were_not_persisted() {
    let miner = || Some(record("ns-a", 0));
    let exempted_as = |set: &dyn Fn(&mut Exemption)| {
        let mut world = restarted(miner());
        world.policy.exemptions = vec![exemption(set, None)];
        world.blocked()
    };
    let exact = |text: &str| Some(Pattern::Exact(text.into()));
    assert!(exempted_as(&|it| it.namespace = exact("ns-a")).is_empty());
    assert!(exempted_as(&|it| it.app = exact("web")).is_empty());
    // An exemption that matches the names of all known processes, and even no name, covers no other process.
    let of_process = |text: &str| Some(Pattern::Regex(regex::Regex::new(text).unwrap()));
    assert_eq!(exempted_as(&|it| it.process = of_process("^[p0-9]*$")), ["ns-a"]);
    assert_eq!(exempted_as(&|it| it.rule = of_process("^([^x]|$)*$")), ["ns-a"]);
    assert_eq!(
        exempted_as(&|it| (it.namespace, it.process) = (exact("ns-a"), of_process("^[p0-9]*$"))),
        ["ns-a"]
    );
    // An exemption that is over covers nothing.
    let mut world = restarted(miner());
    let over =
        exemption(|it| it.namespace = exact("ns-a"), Some(world.now.wall() - Duration::from_secs(HOUR)));
    world.policy.exemptions.push(over);
    assert_eq!(world.blocked(), ["ns-a"]);
    // An operator releases the App as a whole, because not all is known. Then comes the next restart.
    let mut world = restarted(miner());
    let until = world.now.wall() + Duration::from_secs(HOUR);
    world
        .incidents
        .execute(&IncidentCommand::Release { app: app("ns-a"), until }, "ops", &world.policy, world.now)
        .unwrap();
    assert!(world.blocked().is_empty());
    world.restart();
    assert!(world.blocked().is_empty());
}

/// A held App is open, so the exemption opens nothing.
#[test]
fn a_hold_of_which_not_all_was_persisted_ends_with_an_exemption_at_once() {
    let mut world = World::new(&["n1"]);
    world.policy.brake.max_new_tenants = 0;
    world.answer("n1", exempted(64, 0).chain([record("ns-a", 0)]).collect());
    assert_eq!(world.held(), ["ns-a"]);
    exempt_the_flood(&mut world);
    world.restart();
    assert!(world.held().is_empty());
}

#[test]
fn of_many_accusations_the_uncovered_ones_are_persisted() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", exempted(64, 0).chain([under("^p", record("ns-a", 0))]).collect());
    assert_eq!(world.blocked(), ["ns-a"]);
    let has_miner = |world: &World| {
        let [incident] = &world.persisted.values().collect::<Vec<_>>()[..] else { panic!("one incident") };
        incident.status.evidence.iter().any(|evidence| *evidence.process == *"xmrig")
    };
    assert!(!has_miner(&world), "it is the last by its name");
    exempt_the_flood(&mut world);
    assert_eq!(world.blocked(), ["ns-a"]);
    assert!(has_miner(&world));
}

#[test]
fn evidence_of_another_node_stays_while_its_answers_can_not_be_used() {
    let mut world = world(&["n1", "n2"], "^p");
    world.answer("n2", vec![under("^p", record("ns-a", 0))]);
    world.evaluate();
    let fails = |w: &mut World| drop(w.report("n2", failed(FailureReason::Malformed)));
    flood(&mut world, 22, "^p", fails);
    hours(&mut world, 40, |w| {
        w.answer("n1", vec![]);
        fails(w);
    });
    assert_eq!(world.blocked(), ["ns-a"]);
    hours(&mut world, 3, |w| {
        w.answer("n1", vec![]);
        w.answer("n2", vec![]);
    });
    assert!(world.blocked().is_empty());
}

#[test]
fn a_release_after_a_flood_does_not_wait_for_a_node_that_has_accused_nothing() {
    let mut world = world(&["n1", "n2"], "^p");
    let fails = |w: &mut World| drop(w.report("n2", failed(FailureReason::Malformed)));
    flood(&mut world, 22, "^p", fails);
    hours(&mut world, 30, |w| {
        w.answer("n1", vec![]);
        fails(w);
    });
    assert!(world.blocked().is_empty());
}
