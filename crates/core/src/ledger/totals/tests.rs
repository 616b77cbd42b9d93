use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::Moment;
use crate::clearing::Cleared;
use crate::ledger::{Ledger, Remembered};
use crate::names::{Key, NodeName};
use crate::report::{Answer, Outcome, Record, Report, Target};

const NODES: usize = NODE_SHARE + 2;
const MAX_KEYS: usize = 600;
const CMDLINE_BUDGET: usize = 1 << 20;
const CMDLINES_OF_NODE: usize = CMDLINE_BUDGET / NODE_SHARE;
/// A long command line, in bytes.
const LONG: usize = 4 << 10;

/// A ledger of [`NODES`] nodes with the limits [`MAX_KEYS`] and [`CMDLINE_BUDGET`], and the time in minutes.
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
        let rules = Detection { max_keys: MAX_KEYS, cmdline_budget: CMDLINE_BUDGET, ..Detection::default() };
        let mut ledger = Ledger::new(rules, at(0));
        ledger.expect((0..NODES).map(target), 0);
        Self { ledger, minute: 0 }
    }

    fn pass(&mut self, minutes: u64) {
        self.minute += minutes;
        self.ledger.advance(at(self.minute));
    }

    /// Absorbs an answer of `node` with fresh records of `found`: keys, and the bytes of their command lines. Absorbs it twice, and checks
    /// that the second time changes nothing.
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

    /// How many violations the first nodes have.
    fn keys<const N: usize>(&self) -> [usize; N] {
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
    cluster.flood(1, "ns-b", RESERVED_KEYS, 1);
    cluster.flood(2, "ns-c", RESERVED_KEYS + 1, 1);
    cluster.flood(3, "ns-d", 5, 1);
    assert_eq!(cluster.keys(), [MAX_KEYS, RESERVED_KEYS, RESERVED_KEYS, 5]);
}

#[test]
fn a_node_may_use_the_room_that_others_leave_up_to_the_limit_of_one_node() {
    let mut cluster = Cluster::new();
    cluster.flood(0, "ns-a", 100, 1);
    assert!(!cluster.ledger.is_full());
    cluster.flood(1, "ns-b", MAX_KEYS, 1);
    assert_eq!(cluster.keys(), [100, MAX_KEYS - 100]);
    assert!(cluster.ledger.is_full());
    let mut rules = cluster.ledger.rules.clone();
    rules.max_keys_per_node = 50;
    cluster.ledger.set_rules(rules);
    cluster.flood(2, "ns-c", MAX_KEYS, 1);
    assert_eq!(cluster.keys(), [100, MAX_KEYS - 100, 50]);
}

#[test]
fn a_tenant_of_a_node_that_floods_has_room_although_nothing_is_free() {
    let mut cluster = Cluster::new();
    cluster.flood(0, "ns-a", MAX_KEYS, 1);
    cluster.minute += 1;
    let mut found: Vec<_> = (0..MAX_KEYS).map(|number| (key("ns-a", number), 1)).collect();
    found.push((key("ns-z", 0), 1));
    cluster.list(0, &found);
    assert_eq!(cluster.keys(), [MAX_KEYS]);
    assert!(cluster.ledger.violations.contains_key(&key("ns-z", 0)));
}

#[test]
fn the_room_of_expired_violations_is_free_for_other_nodes() {
    let mut cluster = Cluster::new();
    cluster.flood(0, "ns-a", MAX_KEYS, 1);
    // They clear, and tombstones stay.
    for _ in 0..120 {
        cluster.pass(1);
        cluster.list(0, &[]);
    }
    cluster.flood(1, "ns-b", RESERVED_KEYS + 1, 1);
    assert_eq!(cluster.keys(), [MAX_KEYS, RESERVED_KEYS], "tombstones count");
    // The tombstones expire.
    cluster.pass(48 * 60);
    assert_eq!(cluster.keys(), [0]);
    cluster.flood(1, "ns-b", RESERVED_KEYS + 1, 1);
    assert_eq!(cluster.keys(), [0, RESERVED_KEYS + 1]);
}

#[test]
fn the_latest_remembered_evidence_has_room_first_and_tombstones_last() {
    let mut cluster = Cluster::new();
    cluster.minute = 48 * 60;
    let now = at(cluster.minute);
    let remembered = |namespace: &'static str, node: usize, count: usize, cleared: Option<u64>| {
        (0..count).map(move |number| Remembered {
            key: key(namespace, number),
            node: name(node),
            record: Record::of(key(namespace, number)),
            first_seen: at(0).wall(),
            fresh_at: at(number as u64).wall(),
            observations: 1,
            cleared: cleared.map(|minute| (at(minute).wall(), Cleared::ByClock)),
            scan_interval: None,
            hidden_for: Duration::ZERO,
        })
    };
    let all = remembered("ns-a", 0, RESERVED_KEYS, Some(48 * 60 - 1))
        .chain(remembered("ns-b", 0, MAX_KEYS + 1, None))
        .chain(remembered("ns-a", 1, RESERVED_KEYS + 1, Some(48 * 60 - 1)))
        // These cleared more than a day ago, so they have expired.
        .chain(remembered("ns-a", 2, 10, Some(23 * 60)));
    cluster.ledger.remember(all, now);
    assert_eq!(cluster.keys(), [MAX_KEYS, RESERVED_KEYS, 0]);
    let is_known = |namespace, number| cluster.ledger.violations.contains_key(&key(namespace, number));
    assert!(is_known("ns-b", MAX_KEYS) && !is_known("ns-b", 0));
    assert_eq!(cluster.ledger.totals.keys, MAX_KEYS + RESERVED_KEYS);
}

#[test]
fn long_command_lines_share_a_budget_and_those_without_room_are_cut() {
    let mut cluster = Cluster::new();
    let lines = |whole: usize, all: usize| [vec![LONG; whole], vec![SHORT_CMDLINE; all - whole]].concat();
    for node in 0..NODE_SHARE {
        cluster.flood(node, "ns-a", 100, LONG);
        assert_eq!(cluster.cmdlines(node), lines(CMDLINES_OF_NODE / LONG, 100));
    }
    // Any other node has its reserve, and short command lines do not count.
    let [last, other] = [NODES - 2, NODES - 1];
    let reserve = 8;
    assert_eq!(reserve * LONG, RESERVED_CMDLINE_BYTES);
    cluster.flood(last, "ns-b", reserve + 1, LONG);
    assert_eq!(cluster.cmdlines(last), lines(reserve, reserve + 1));
    cluster.flood(other, "ns-c", 100, SHORT_CMDLINE);
    assert_eq!(cluster.cmdlines(other), vec![SHORT_CMDLINE; 100]);
    let shown = cluster.ledger.snapshot(at(0)).list;
    let cut = |namespace: &str| {
        let of =
            |record: &&Arc<Record>| *record.key.namespace == *namespace && record.cmdline.ends_with("x…");
        shown.iter().filter(of).count()
    };
    assert_eq!((cut("ns-b"), cut("ns-c")), (1, 0));
    let of_others = NODE_SHARE * (100 - CMDLINES_OF_NODE / LONG);
    assert_eq!(cluster.ledger.take_cut_cmdlines(), of_others + 1);
    cluster.pass(1);
    cluster.flood(last, "ns-b", reserve + 1, LONG);
    assert_eq!(cluster.ledger.take_cut_cmdlines(), 0, "it was cut before");
}

#[test]
fn dropped_command_lines_leave_their_room_to_those_that_were_cut() {
    let mut cluster = Cluster::new();
    for node in 0..NODE_SHARE {
        cluster.flood(node, "ns-a", 100, LONG);
    }
    let node = NODE_SHARE;
    let of_node = CMDLINES_OF_NODE / LONG;
    cluster.flood(node, "ns-b", of_node, LONG);
    let cut = cluster.cmdlines(node);
    assert!(cut.contains(&SHORT_CMDLINE));
    cluster.pass(1);
    cluster.ledger.round_done();
    cluster.flood(node, "ns-b", of_node, LONG);
    assert_eq!(cluster.cmdlines(node), cut, "no room has become free");
    // The first node lists the same names with short command lines.
    cluster.flood(0, "ns-a", 100, 1);
    cluster.ledger.round_done();
    cluster.pass(1);
    cluster.flood(node, "ns-b", of_node, LONG);
    assert_eq!(cluster.cmdlines(node), vec![LONG; of_node]);
    assert_eq!(cluster.ledger.totals.cmdline_bytes, CMDLINE_BUDGET);
}

#[test]
fn a_command_line_that_grows_counts_like_a_new_one() {
    let mut cluster = Cluster::new();
    for bytes in [1, 1 << 10, LONG, LONG] {
        cluster.flood(0, "ns-a", 100, bytes);
        assert!(
            cluster.cmdlines(0).iter().filter(|bytes| **bytes > SHORT_CMDLINE).sum::<usize>()
                <= CMDLINES_OF_NODE
        );
        cluster.ledger.round_done();
        cluster.pass(1);
    }
    let whole = CMDLINES_OF_NODE / LONG;
    assert_eq!(cluster.cmdlines(0).iter().filter(|bytes| **bytes == LONG).count(), whole);
    assert_eq!(cluster.cmdlines(0).iter().filter(|bytes| **bytes == SHORT_CMDLINE).count(), 100 - whole);
}

proptest! {
    #[test]
    fn no_more_is_held_than_the_limits_and_the_reserves_allow(
        answers in proptest::collection::vec((0..4_usize, 0..3_usize, 0..900_usize, 0..6000_usize, 0..600_u64), 1..12),
    ) {
        let mut cluster = Cluster::new();
        for (node, namespace, count, bytes, minutes) in answers {
            cluster.pass(minutes);
            cluster.flood(node, ["ns-a", "ns-b", "ns-c"][namespace], count, bytes);
            let keys: [usize; 4] = cluster.keys();
            prop_assert_eq!(cluster.ledger.totals.keys, keys.iter().sum::<usize>());
            let beyond = keys.iter().map(|keys| keys.saturating_sub(RESERVED_KEYS)).sum::<usize>();
            prop_assert!(beyond <= MAX_KEYS, "{keys:?}");
            let answered = (0..4).filter(|node| cluster.ledger.nodes.contains_key(&name(*node)));
            let long = |node| cluster.cmdlines(node).into_iter().filter(|bytes| *bytes > SHORT_CMDLINE).sum();
            let long: Vec<usize> = answered.map(long).collect();
            prop_assert!(long.iter().all(|bytes| *bytes <= CMDLINES_OF_NODE));
            let long: usize = long.into_iter().sum();
            prop_assert!(cluster.ledger.totals.cmdline_bytes >= long);
            cluster.ledger.round_done();
            prop_assert_eq!(cluster.ledger.totals.cmdline_bytes, long);
        }
    }
}
