use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::Moment;
use crate::ledger::{Ledger, Remembered};
use crate::names::{Key, NodeName};
use crate::report::{Answer, Outcome, Record, Report, Target};

const NODES: usize = 4;
const MAX_KEYS: usize = 300;
const MAX_CMDLINES: usize = 256 << 10;

/// Nodes whose agents answer once a minute. Not more than [`MAX_KEYS`] violations and [`MAX_CMDLINES`] of all nodes beyond the
/// reserves.
struct Cluster {
    ledger: Ledger,
    minute: u64,
}

fn at(minute: u64) -> Moment {
    let passed = Duration::from_mins(minute);
    Moment::new(passed, Timestamp::from_second(1_766_399_400).unwrap() + passed)
}

fn target(node: usize) -> Target {
    Target { address: format!("n{node}:9090").into(), node: name(node) }
}

fn name(node: usize) -> NodeName {
    NodeName::new(format!("n{node}"))
}

/// The key of a violation of a namespace; each has a Pod of its own.
fn key(namespace: &str, number: usize) -> Key {
    Key::new(namespace, format!("p{number:04}"), "xmrig")
}

impl Cluster {
    fn new() -> Self {
        let rules = Detection { max_keys: MAX_KEYS, max_cmdlines: MAX_CMDLINES, ..Detection::default() };
        let mut ledger = Ledger::new(rules, at(0));
        ledger.expect((0..NODES).map(target), 0);
        Self { ledger, minute: 0 }
    }

    fn pass(&mut self, minutes: u64) {
        self.minute += minutes;
        self.ledger.advance(at(self.minute));
    }

    /// The agent of `node` has found these just now, with command lines of so many bytes. The same report twice changes nothing.
    fn list(&mut self, node: usize, found: &[(Key, usize)]) {
        let now = at(self.minute);
        let records = found.iter().map(|(key, bytes)| {
            let mut record = Record::of(key.clone());
            (record.detected_at, record.timestamp) = (now.wall(), now.wall().to_string().into());
            Arc::make_mut(&mut record.claim).cmdline = "x".repeat(*bytes).into();
            record
        });
        let answer = Answer { records: records.collect(), date: Some(now.wall()), ..Answer::default() };
        let report = Report { target: target(node), at: now, outcome: Outcome::Complete(answer) };
        self.ledger.absorb(&report);
        let before = self.ledger.snapshot(now).list;
        let keys = self.ledger.totals.keys;
        assert_eq!(self.ledger.absorb(&report), []);
        assert!(Arc::ptr_eq(&self.ledger.snapshot(now).list, &before));
        assert_eq!(self.ledger.totals.keys, keys);
    }

    /// Lists so many violations of a namespace, with command lines of so many bytes each.
    fn flood(&mut self, node: usize, namespace: &str, count: usize, bytes: usize) {
        let found: Vec<_> = (0..count).map(|number| (key(namespace, number), bytes)).collect();
        self.list(node, &found);
    }

    /// How many violations each node has.
    fn keys(&self) -> [usize; NODES] {
        std::array::from_fn(|node| self.ledger.nodes.get(&name(node)).map_or(0, |node| node.evidence.len()))
    }

    /// How long the command lines of a node's violations are.
    fn cmdlines(&self, node: usize) -> Vec<usize> {
        let node = self.ledger.nodes.get(&name(node)).expect("it has answered");
        node.evidence.values().map(|evidence| evidence.cmdline().len()).collect()
    }
}

#[test]
fn nodes_that_flood_share_a_limit_and_every_other_node_has_its_reserve() {
    let mut cluster = Cluster::new();
    cluster.flood(0, "ns-a", MAX_KEYS + 1, 1);
    cluster.flood(1, "ns-b", KEYS_OF_ANY_NODE, 1);
    cluster.flood(2, "ns-c", KEYS_OF_ANY_NODE + 1, 1);
    cluster.flood(3, "ns-d", 5, 1);
    assert_eq!(cluster.keys(), [MAX_KEYS, KEYS_OF_ANY_NODE, KEYS_OF_ANY_NODE, 5]);
}

#[test]
fn a_node_may_have_what_the_others_leave_and_never_more_than_one_node_may_have() {
    let mut cluster = Cluster::new();
    cluster.flood(0, "ns-a", 100, 1);
    cluster.flood(1, "ns-b", MAX_KEYS, 1);
    assert_eq!(cluster.keys(), [100, 200, 0, 0]);
    let mut rules = cluster.ledger.rules.clone();
    rules.max_keys_per_node = 50;
    cluster.ledger.set_rules(rules);
    cluster.flood(2, "ns-c", MAX_KEYS, 1);
    assert_eq!(cluster.keys(), [100, 200, 50, 0]);
}

#[test]
fn a_tenant_of_a_node_that_floods_has_room_although_nothing_is_free() {
    let mut cluster = Cluster::new();
    cluster.flood(0, "ns-a", MAX_KEYS, 1);
    cluster.minute += 1;
    let mut found: Vec<_> = (0..MAX_KEYS).map(|number| (key("ns-a", number), 1)).collect();
    found.push((key("ns-z", 0), 1));
    cluster.list(0, &found);
    assert_eq!(cluster.keys(), [MAX_KEYS, 0, 0, 0]);
    assert!(cluster.ledger.violations.contains_key(&key("ns-z", 0)));
}

#[test]
fn what_a_node_no_longer_has_is_free_for_others() {
    let mut cluster = Cluster::new();
    cluster.flood(0, "ns-a", MAX_KEYS, 1);
    // They clear, and their tombstones expire.
    for _ in 0..120 {
        cluster.pass(1);
        cluster.list(0, &[]);
    }
    cluster.flood(1, "ns-b", KEYS_OF_ANY_NODE + 1, 1);
    assert_eq!(cluster.keys(), [MAX_KEYS, KEYS_OF_ANY_NODE, 0, 0], "tombstones have room");
    cluster.pass(48 * 60);
    assert_eq!(cluster.keys()[0], 0);
    cluster.flood(1, "ns-b", KEYS_OF_ANY_NODE + 1, 1);
    assert_eq!(cluster.keys()[1], KEYS_OF_ANY_NODE + 1);
}

#[test]
fn what_is_remembered_has_the_same_limit() {
    let mut cluster = Cluster::new();
    let remembered = |node: usize, count: usize| {
        let now = at(0).wall();
        (0..count).map(move |number| Remembered {
            key: key("ns-a", number),
            node: name(node),
            record: Record::of(key("ns-a", number)),
            first_seen: now,
            fresh_at: now,
            observations: 1,
            cleared: None,
            scan_interval: None,
            hidden_for: Duration::ZERO,
        })
    };
    let all = remembered(0, MAX_KEYS + 1).chain(remembered(1, KEYS_OF_ANY_NODE + 1));
    cluster.ledger.remember(all, at(0));
    assert_eq!(cluster.keys(), [MAX_KEYS, KEYS_OF_ANY_NODE, 0, 0]);
    assert_eq!(cluster.ledger.totals.keys, MAX_KEYS + KEYS_OF_ANY_NODE);
}

#[test]
fn long_command_lines_share_a_limit_and_what_exceeds_it_is_cut() {
    const LONG: usize = 4 << 10;
    let mut cluster = Cluster::new();
    cluster.flood(0, "ns-a", 100, LONG);
    let (whole, cut) = (MAX_CMDLINES / LONG, 100 - MAX_CMDLINES / LONG);
    assert_eq!(cluster.cmdlines(0), [vec![LONG; whole], vec![SHORT_CMDLINE; cut]].concat());
    // Any other node has its reserve, and what is short counts in no limit.
    cluster.flood(1, "ns-b", 9, LONG);
    let reserve = CMDLINES_OF_ANY_NODE / LONG;
    assert_eq!(cluster.cmdlines(1), [vec![LONG; reserve], vec![SHORT_CMDLINE]].concat());
    cluster.flood(2, "ns-c", 100, SHORT_CMDLINE);
    assert_eq!(cluster.cmdlines(2), vec![SHORT_CMDLINE; 100]);
    let shown = cluster.ledger.snapshot(at(0)).list;
    let cut = shown.iter().filter(|record| record.cmdline.len() == SHORT_CMDLINE);
    assert_eq!(cut.filter(|record| record.cmdline.ends_with("x…")).count(), 100 - whole + 1);
}

#[test]
fn command_lines_that_are_gone_leave_their_room_to_those_that_were_cut() {
    const LONG: usize = 4 << 10;
    let mut cluster = Cluster::new();
    cluster.flood(0, "ns-a", 100, LONG);
    cluster.flood(1, "ns-b", 20, LONG);
    let cut = cluster.cmdlines(1);
    assert!(cut.contains(&SHORT_CMDLINE));
    cluster.pass(1);
    cluster.ledger.round_done();
    cluster.flood(1, "ns-b", 20, LONG);
    assert_eq!(cluster.cmdlines(1), cut, "nothing has become free");
    // The processes of the first node are others now, and their command lines are short.
    cluster.flood(0, "ns-a", 100, 1);
    cluster.ledger.round_done();
    assert_eq!(cluster.ledger.totals.cmdlines, (CMDLINES_OF_ANY_NODE / LONG) * LONG);
    cluster.pass(1);
    cluster.flood(1, "ns-b", 20, LONG);
    assert_eq!(cluster.cmdlines(1), vec![LONG; 20]);
}

#[test]
fn a_command_line_that_grows_counts_like_a_new_one() {
    let mut cluster = Cluster::new();
    for bytes in [1, 1 << 10, 4 << 10] {
        cluster.flood(0, "ns-a", 100, bytes);
        cluster.pass(1);
    }
    assert!(cluster.cmdlines(0).iter().sum::<usize>() <= MAX_CMDLINES + 100 * SHORT_CMDLINE);
}

proptest! {
    #[test]
    fn no_more_is_held_than_the_limits_and_the_reserves_allow(
        acts in proptest::collection::vec((0..NODES, 0..3_usize, 0..400_usize, 0..6000_usize, 0..600_u64), 1..12),
    ) {
        let mut cluster = Cluster::new();
        for (node, namespace, count, bytes, minutes) in acts {
            cluster.pass(minutes);
            cluster.flood(node, ["ns-a", "ns-b", "ns-c"][namespace], count, bytes);
            let keys = cluster.keys();
            prop_assert_eq!(cluster.ledger.totals.keys, keys.iter().sum::<usize>());
            let beyond = keys.iter().map(|keys| keys.saturating_sub(KEYS_OF_ANY_NODE)).sum::<usize>();
            prop_assert!(beyond <= MAX_KEYS, "{keys:?}");
            let answered = (0..NODES).filter(|node| cluster.ledger.nodes.contains_key(&name(*node)));
            let long: usize = answered
                .map(|node| cluster.cmdlines(node).into_iter().filter(|bytes| *bytes > SHORT_CMDLINE).sum::<usize>())
                .sum();
            prop_assert!(long <= MAX_CMDLINES + NODES * CMDLINES_OF_ANY_NODE);
            prop_assert!(cluster.ledger.totals.cmdlines >= long);
            cluster.ledger.round_done();
            prop_assert_eq!(cluster.ledger.totals.cmdlines, long);
        }
    }
}
