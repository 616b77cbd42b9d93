//! A node with more records than the ledger has room for.

mod age;
mod gone;
mod pods;
mod rules;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;

use crate::Moment;
use crate::ledger::{Detection, Ledger};
use crate::names::{Key, NodeName, PodRef};
use crate::report::{Answer, Outcome, Record, Records, Rejection, Report, Target};
use crate::snapshot::State;

/// A node with room for 8, whose agent answers once a minute.
struct Crowded {
    ledger: Ledger,
    minute: u64,
}

impl Crowded {
    const MAX: usize = 8;

    fn new() -> Self {
        let rules = Detection { max_keys_per_node: Self::MAX, ..Detection::default() };
        let mut ledger = Ledger::new(rules, at(0));
        ledger.expect([target()], 0);
        Self { ledger, minute: 0 }
    }

    /// The agent lists these, each found so many minutes ago. Returns the violations that are known then.
    fn list_found(&mut self, keys: &[(&str, &str, String, u64)]) -> Vec<String> {
        self.answer(keys, true)
    }

    /// As [`Self::list_found`]. With `has_date` the agent sends its time.
    fn answer(&mut self, keys: &[(&str, &str, String, u64)], has_date: bool) -> Vec<String> {
        self.minute += 1;
        let now = at(self.minute);
        let records = keys.iter().map(|(namespace, pod, process, ago)| {
            let found = now.wall() - Duration::from_mins(*ago);
            let mut record = Record::of(Key::new(*namespace, *pod, process.as_str()));
            (record.timestamp, record.detected_at) = (found.to_string().into(), found);
            // The processes of property tests are numbers. They match up to three rules, not always the same.
            if let Ok(number) = process.parse::<u64>() {
                Arc::make_mut(&mut record.claim).regex = format!("rule-{}", number * self.minute % 3).into();
            }
            record
        });
        let records = records.collect();
        self.absorb(records, has_date)
    }

    /// The agent lists these, all found just now. Returns the violations that are known then.
    fn take_in(&mut self, records: Vec<Record>) -> Vec<String> {
        self.minute += 1;
        let now = at(self.minute).wall();
        let found = |record| Record { timestamp: now.to_string().into(), detected_at: now, ..record };
        self.absorb(records.into_iter().map(found).collect(), true)
    }

    fn absorb(&mut self, records: Records, has_date: bool) -> Vec<String> {
        let now = at(self.minute);
        let date = has_date.then(|| now.wall());
        let answer = Answer { records, date, ..Answer::default() };
        let report = Report { target: target(), at: now, outcome: Outcome::Complete(answer) };
        self.ledger.absorb(&report);
        let known = self.known(now);
        assert_eq!(self.ledger.absorb(&report), [], "the same report changes nothing");
        assert_eq!(self.known(now), known);
        known.into_iter().map(|(key, _)| key).collect()
    }

    fn known(&mut self, now: Moment) -> Vec<(String, State)> {
        let snapshot = self.ledger.snapshot(now);
        assert!(snapshot.violations.len() <= Self::MAX);
        let held = self.ledger.nodes.values().map(|node| node.evidence.len()).sum();
        assert_eq!(
            (snapshot.violations.len(), self.ledger.violations.len()),
            (held, held),
            "the ledger holds as many"
        );
        let name = |key: &Key| format!("{}/{}/{}", key.namespace, key.pod, key.process);
        snapshot.violations.iter().map(|violation| (name(&violation.key), violation.state)).collect()
    }

    /// The agent lists these, each found just now. Returns the violations that are known then.
    fn list(&mut self, keys: &[(&str, &str, String)]) -> Vec<String> {
        let now = |(namespace, pod, process): &(_, _, String)| (*namespace, *pod, process.clone(), 0);
        self.list_found(&keys.iter().map(now).collect::<Vec<_>>())
    }

    fn limit_pods(&mut self, max: usize) {
        self.ledger.set_rules(Detection {
            max_keys_per_pod: max,
            max_keys_per_node: Self::MAX,
            ..Detection::default()
        });
    }

    /// The agent finds these once a minute, and then does not answer until their evidence has grown old.
    fn let_grow_old(&mut self, keys: &[(&str, &str, String)], more: &[(&str, &str, String, u64)]) {
        for minute in 0..5 {
            let now = keys.iter().map(|(namespace, pod, process)| (*namespace, *pod, process.clone(), 0));
            let more = more
                .iter()
                .cloned()
                .map(|(namespace, pod, process, ago)| (namespace, pod, process, ago + minute));
            self.list_found(&now.chain(more).collect::<Vec<_>>());
        }
        self.minute = 300;
        self.ledger.advance(at(300));
    }
}

fn at(minutes: u64) -> Moment {
    let passed = Duration::from_mins(minutes);
    Moment::new(passed, Timestamp::from_second(1_766_399_400).unwrap() + passed)
}

fn target() -> Target {
    Target { address: "n1:9090".into(), node: NodeName::new("n1") }
}

fn pod_ref(namespace: &str, pod: &str) -> PodRef {
    PodRef { namespace: namespace.into(), pod: pod.into() }
}

/// A record of a process that matches `rule`.
fn hit(namespace: &str, pod: &str, process: &str, rule: &str) -> Record {
    let mut record = Record::of(Key::new(namespace, pod, process));
    Arc::make_mut(&mut record.claim).regex = rule.into();
    record
}

fn flood<'a>(namespace: &'a str, pod: &'a str, count: usize) -> Vec<(&'a str, &'a str, String)> {
    (0..count).map(|n| (namespace, pod, format!("p{n:02}"))).collect()
}

/// The names of violations as [`Crowded::list`] returns them.
fn names(namespace: &str, pod: &str, process: &str, numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|n| format!("{namespace}/{pod}/{process}{n:02}")).collect()
}

#[test]
fn a_tenant_that_has_taken_all_room_makes_room_for_every_other_tenant() {
    let mut node = Crowded::new();
    let mut keys = flood("ns-flood", "pod", 20);
    assert_eq!(node.list(&keys).len(), 8);
    keys.push(("ns-z", "web", "xmrig".to_owned()));
    keys.push(("ns-a", "web", "xmrig".to_owned()));
    let known = node.list(&keys);
    assert_eq!(known.len(), 8);
    assert!(known.contains(&"ns-z/web/xmrig".to_owned()) && known.contains(&"ns-a/web/xmrig".to_owned()));
    assert_eq!(node.list(&keys), known, "and it stays so");
    let snapshot = node.ledger.snapshot(at(node.minute));
    assert!(snapshot.nodes.get(&NodeName::new("n1")).unwrap().rejected.of(Rejection::NodeQuota) >= 14);
}

#[test]
fn room_that_can_not_be_shared_evenly_is_still_used() {
    for (wants, has) in [([5, 5, 5, 0], [3, 3, 2, 0]), ([2, 3, 3, 1], [2, 3, 2, 1])] {
        let of = ["ns-a", "ns-b", "ns-c", "ns-d"].into_iter();
        let keys: Vec<_> =
            of.clone().zip(wants).flat_map(|(namespace, count)| flood(namespace, "pod", count)).collect();
        let expected: Vec<_> =
            of.zip(has).flat_map(|(namespace, count)| names(namespace, "pod", "p", 0..count)).collect();
        assert_eq!(Crowded::new().list(&keys), expected);
    }
}

/// Names must not decide which namespaces have room, because a hostile node can list any number of them.
#[test]
fn new_namespaces_do_not_push_out_those_that_were_seen_first() {
    let mut node = Crowded::new();
    node.list(&flood("ns-z", "web", 1));
    let all: Vec<String> = (0..3 * Crowded::MAX).map(|n| format!("ns-{n:02}")).collect();
    for skipped in [0, Crowded::MAX, 2 * Crowded::MAX] {
        let mut listed = flood("ns-z", "web", 1);
        listed.extend(all.iter().skip(skipped).take(Crowded::MAX).flat_map(|name| flood(name, "web", 1)));
        let known = node.list(&listed);
        assert_eq!(known.len(), Crowded::MAX);
        assert!(known.contains(&"ns-z/web/p00".to_owned()), "{known:?}");
        let expected = all.iter().take(Crowded::MAX - 1).map(|name| format!("{name}/web/p00"));
        assert!(known.iter().cloned().eq(expected.chain(["ns-z/web/p00".to_owned()])), "{known:?}");
    }
}

proptest! {
    /// [`Crowded::answer`] checks that the same report twice changes nothing. A record without room the first time
    /// has none the second time.
    #[test]
    fn the_room_of_violations_does_not_depend_on_how_often_a_report_is_applied(
        rounds in proptest::collection::vec(
            (
                proptest::collection::btree_map((0..5_usize, 0..4_usize, 0..4_usize), prop_oneof![Just(0_u64), 1..90_u64], 0..40),
                prop_oneof![3 => Just(0_u64), 1 => 20..200_u64],
                proptest::collection::vec((0..5_usize, 0..4_usize), 0..6),
                any::<bool>(),
            ),
            1..8,
        ),
    ) {
        let (namespaces, pods) = (["ns-a", "ns-b", "ns-c", "ns-d", "ns-e"], ["one", "two", "three", "four"]);
        let mut node = Crowded::new();
        for (round, pass, gone, has_date) in rounds {
            node.minute += pass;
            node.ledger.advance(at(node.minute));
            for (namespace, pod) in gone {
                node.ledger.pod_gone(&pod_ref(namespaces[namespace], pods[pod]), at(node.minute));
            }
            let keys: Vec<_> = round
                .iter()
                .map(|((n, p, process), ago)| (namespaces[*n], pods[*p], process.to_string(), *ago))
                .collect();
            node.answer(&keys, has_date);
        }
    }
}
