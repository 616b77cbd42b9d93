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

    /// As [`Self::list_found`]; an agent that `has_date` says what time it is.
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
fn violations_seen_first_stay_and_a_flood_in_one_pod_leaves_the_other_pods_of_the_tenant() {
    let mut node = Crowded::new();
    node.list(&[("ns-a", "old", "miner".to_owned())]);
    let mut keys = flood("ns-a", "flood", 20);
    node.list(&keys);
    keys.push(("ns-a", "new", "miner".to_owned()));
    keys.push(("ns-b", "web", "miner".to_owned()));
    keys.push(("ns-a", "old", "miner".to_owned()));
    let known = node.list(&keys);
    for expected in ["ns-a/old/miner", "ns-a/new/miner", "ns-b/web/miner", "ns-a/flood/p00"] {
        assert!(known.contains(&expected.to_owned()), "{expected} in {known:?}");
    }
    let renamed: Vec<_> = (0..20).map(|n| ("ns-a", "flood", format!("q{n:02}"))).collect();
    assert_eq!(node.list(&renamed), known, "new names push out nothing");
}

#[test]
fn fresh_and_live_violations_stay_before_those_that_have_ended() {
    let mut node = Crowded::new();
    let known = |name: &str, ago| ("ns-a", "q", name.to_owned(), ago);
    // The record was found long ago, so it was never believed.
    node.list_found(&[known("x1", 600)]);
    let mut keys: Vec<_> = (0..12).map(|n| ("ns-a", "p", format!("y{n:02}"), 0)).collect();
    keys.push(known("x1", 0));
    let listed = node.list_found(&keys);
    assert!(listed.contains(&"ns-a/q/x1".to_owned()), "{listed:?}");
    // Pods that are gone make room for one that has come.
    let pod = |n| format!("gone{n}");
    let names: Vec<String> = (0..8).map(pod).collect();
    let mut node = Crowded::new();
    node.list(&names.iter().map(|pod| ("ns-a", pod.as_str(), "x".to_owned())).collect::<Vec<_>>());
    for pod in &names {
        node.ledger.pod_gone(&PodRef { namespace: "ns-a".into(), pod: pod.as_str().into() }, at(node.minute));
    }
    // Hours later the agent goes on listing what it found in the first minute.
    node.minute = 600;
    let mut keys: Vec<_> = names.iter().map(|pod| ("ns-a", pod.as_str(), "x".to_owned(), 600)).collect();
    keys.push(("ns-a", "new", "x".to_owned(), 0));
    assert!(node.list_found(&keys).contains(&"ns-a/new/x".to_owned()));
}

#[test]
fn a_pod_with_many_names_has_violations_up_to_its_limit_and_running_processes_stay() {
    let mut node = Crowded::new();
    node.limit_pods(4);
    let mut keys = flood("ns-a", "flood", 20);
    keys.push(("ns-a", "web", "xmrig".to_owned()));
    let known = node.list(&keys);
    assert_eq!(
        known,
        ["ns-a/flood/p00", "ns-a/flood/p01", "ns-a/flood/p02", "ns-a/flood/p03", "ns-a/web/xmrig"]
    );
    // Hours later under other names: old evidence makes room.
    node.minute = 300;
    let renamed: Vec<_> = (0..20).map(|n| ("ns-a", "flood", format!("q{n:02}"))).collect();
    node.ledger.advance(at(300));
    let known = node.list(&renamed);
    assert_eq!(
        known,
        ["ns-a/flood/q00", "ns-a/flood/q01", "ns-a/flood/q02", "ns-a/flood/q03", "ns-a/web/xmrig"]
    );
}

#[test]
fn a_pods_limit_counts_its_own_violations_and_those_that_were_known_before() {
    let mut node = Crowded::new();
    node.limit_pods(4);
    // The node has room for all of them.
    let mut keys = flood("ns-a", "web", 5);
    let mut expected = names("ns-a", "web", "p", 0..4);
    assert_eq!(node.list(&keys), expected);
    // A Pod of another tenant has the same name.
    keys.extend(flood("ns-b", "web", 3));
    expected.extend(names("ns-b", "web", "p", 0..3));
    assert_eq!(node.list(&keys), expected);
    keys.push(("ns-a", "web", "q00".to_owned()));
    assert_eq!(node.list(&keys), expected);
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

#[test]
fn unlisted_violations_that_can_be_judged_anew_make_room_first_and_no_more_than_needed() {
    let mut node = Crowded::new();
    // The records were found ten hours before the first answer, so they were never believed.
    let old = |n: usize, minute: u64| ("ns-a", "old", format!("p{n:02}"), 600 + minute);
    node.list_found(&(0..7).map(|n| old(n, 1)).collect::<Vec<_>>());
    node.list_found(&(1..7).map(|n| old(n, 2)).collect::<Vec<_>>());
    let mut expected = names("ns-a", "new", "p", 0..2);
    expected.extend(names("ns-a", "old", "p", 1..7));
    assert_eq!(
        node.list(&flood("ns-a", "new", 2)),
        expected,
        "p00 has been missing from the answers for longest"
    );
    // The old records make room even if their namespace has less than its share.
    expected.truncate(2);
    expected.extend(names("ns-b", "web", "p", 0..6));
    assert_eq!(node.list(&flood("ns-b", "web", 8)), expected);
}

#[test]
fn old_violations_have_room_before_records_that_were_never_believed() {
    let mut node = Crowded::new();
    let unbelieved = |ago| (0..4).map(move |n| ("ns-a", "pod", format!("x{n:02}"), ago)).collect::<Vec<_>>();
    node.list_found(&unbelieved(600));
    node.let_grow_old(&flood("ns-a", "pod", 4), &unbelieved(601));
    let mut keys = unbelieved(900);
    keys.extend((0..4).map(|n| ("ns-a", "pod", format!("q{n:02}"), 0)));
    let expected = ["p", "q"].map(|name| names("ns-a", "pod", name, 0..4)).concat();
    assert_eq!(node.list_found(&keys), expected);
}

#[test]
fn new_records_of_an_answer_without_a_date_do_not_push_out_old_violations() {
    let mut node = Crowded::new();
    node.let_grow_old(&flood("ns-a", "pod", 8), &[]);
    let keys: Vec<_> = (0..8).map(|n| ("ns-a", "pod", format!("q{n:02}"), 0)).collect();
    assert_eq!(node.answer(&keys, false), names("ns-a", "pod", "p", 0..8));
    assert_eq!(node.answer(&keys, true), names("ns-a", "pod", "q", 0..8), "these are fresh");
}

#[test]
fn live_violations_have_room_before_old_ones_that_an_answer_without_a_date_lists_again() {
    let mut node = Crowded::new();
    node.let_grow_old(&flood("ns-a", "pod", 4), &[]);
    let live = |minute: u64| (0..4).map(move |n| ("ns-a", "pod", format!("q{n:02}"), minute));
    node.list_found(&live(0).collect::<Vec<_>>());
    // The old violations were found in the fifth minute, and this is the minute 302.
    let old = (0..4).map(|n| ("ns-a", "pod", format!("p{n:02}"), 297));
    let other = (0..8).map(|n| ("ns-b", "web", format!("p{n:02}"), 0));
    let known = node.answer(&old.chain(live(1)).chain(other).collect::<Vec<_>>(), false);
    // Each Pod has one. Further ones of the other Pod can't be judged yet, so they have only the room that live ones
    // leave.
    let old = names("ns-a", "pod", "p", 0..1);
    assert_eq!(known, [old, names("ns-a", "pod", "q", 0..4), names("ns-b", "web", "p", 0..3)].concat());
}

#[test]
fn a_violation_that_was_found_again_stays_even_if_that_is_some_time_ago() {
    let mut node = Crowded::new();
    node.let_grow_old(&flood("ns-a", "pod", 8), &[]);
    let mut keys = vec![("ns-a", "pod", "p07".to_owned(), 60)];
    keys.extend((0..8).map(|n| ("ns-a", "pod", format!("q{n:02}"), 0)));
    let expected = [names("ns-a", "pod", "p", 7..8), names("ns-a", "pod", "q", 0..7)].concat();
    assert_eq!(node.list_found(&keys), expected);
}

/// If the violation were forgotten, the next answer with its young record would make it active again.
#[test]
fn a_flood_does_not_push_out_a_violation_whose_pod_is_gone_while_its_record_is_young() {
    let mut node = Crowded::new();
    let gone = |ago| vec![("ns-a", "gone", "x".to_owned(), ago)];
    node.list_found(&gone(0));
    node.ledger.pod_gone(&PodRef { namespace: "ns-a".into(), pod: "gone".into() }, at(1));
    for minute in 1..4 {
        let mut keys = gone(minute);
        keys.extend((0..20).map(|n| ("ns-a", "flood", format!("p{n:02}"), 0)));
        node.list_found(&keys);
        let known = node.known(at(node.minute));
        assert_eq!(known.last(), Some(&("ns-a/gone/x".to_owned(), State::Cleared)));
    }
}

/// In a StatefulSet the next Pod has the name of the one before.
#[test]
fn a_violation_that_is_found_again_after_its_pod_was_gone_makes_no_room_for_a_flood() {
    let mut node = Crowded::new();
    let again = ("ns-a", "web-0", "x".to_owned());
    node.list(std::slice::from_ref(&again));
    node.ledger.pod_gone(&PodRef { namespace: "ns-a".into(), pod: "web-0".into() }, at(1));
    node.list(&[again]);
    let known = node.list(&flood("ns-a", "flood", 8));
    assert_eq!(known.last(), Some(&"ns-a/web-0/x".to_owned()), "{known:?}");
}

#[test]
fn violations_that_were_seen_first_have_room_before_later_ones() {
    let mut node = Crowded::new();
    let first = ("ns-a", "pod", "z".to_owned());
    node.list(std::slice::from_ref(&first));
    node.list(&[flood("ns-a", "pod", 7), vec![first.clone()]].concat());
    let known = node.list(&[first, ("ns-a", "web", "p00".to_owned())]);
    let mut expected = names("ns-a", "pod", "p", 0..6);
    expected.extend(["ns-a/pod/z".to_owned(), "ns-a/web/p00".to_owned()]);
    assert_eq!(known, expected);
}

#[test]
fn of_pods_with_one_violation_each_those_that_were_seen_first_stay() {
    let mut node = Crowded::new();
    let first = ("ns-a", "z", "p00".to_owned());
    node.list(std::slice::from_ref(&first));
    let pods: Vec<String> = (0..8).map(|n| format!("pod{n}")).collect();
    let mut keys: Vec<_> = pods.iter().map(|pod| ("ns-a", pod.as_str(), "p00".to_owned())).collect();
    keys.push(first);
    let known: Vec<String> =
        pods[..7].iter().chain([&"z".to_owned()]).map(|pod| format!("ns-a/{pod}/p00")).collect();
    assert_eq!(node.list(&keys), known);
}

#[test]
fn live_violations_have_room_before_the_only_violation_of_a_pod_that_is_gone() {
    let mut node = Crowded::new();
    let pods = ["gone0", "gone1", "gone2"];
    let listed = |ago| pods.map(|pod| ("ns-a", pod, "x".to_owned(), ago)).to_vec();
    node.list_found(&listed(0));
    for pod in pods {
        node.ledger.pod_gone(&PodRef { namespace: "ns-a".into(), pod: pod.into() }, at(node.minute));
    }
    node.minute = 600;
    let mut keys = listed(600);
    keys.extend((0..8).map(|n| ("ns-a", "new", format!("p{n:02}"), 0)));
    assert_eq!(node.list_found(&keys), names("ns-a", "new", "p", 0..8));
}

proptest! {
    /// [`Crowded::list_found`] checks that the same report twice changes nothing.
    #[test]
    fn a_violation_is_known_of_each_pod_with_a_fresh_record(
        rounds in proptest::collection::vec(
            proptest::collection::btree_map((0..4_usize, 0..2_usize, 0..12_usize), prop_oneof![Just(0_u64), 1..90_u64], 0..30),
            1..6,
        ),
    ) {
        let (namespaces, pods) = (["ns-a", "ns-b", "ns-c", "ns-d"], ["one", "two"]);
        let mut node = Crowded::new();
        for round in rounds {
            let keys: Vec<_> = round
                .iter()
                .map(|((n, p, process), ago)| (namespaces[*n], pods[*p], process.to_string(), *ago))
                .collect();
            let known = node.list_found(&keys);
            for (namespace, pod, _, _) in keys.iter().filter(|(.., ago)| *ago == 0) {
                let prefix = format!("{namespace}/{pod}/");
                prop_assert!(known.iter().any(|key| key.starts_with(&prefix)), "{prefix} in {known:?}");
            }
        }
    }
}

/// Names must not decide which namespaces have room: a hostile node can list as many as it likes.
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

#[test]
fn each_pod_has_a_violation_before_any_has_a_second_one() {
    let mut node = Crowded::new();
    let mut listed = flood("ns-a", "flood", 5);
    listed.extend(["p1", "p2", "p3", "p4", "p5", "p6"].iter().flat_map(|pod| flood("ns-b", pod, 1)));
    let known = node.list(&listed);
    assert_eq!(known.iter().filter(|name| name.starts_with("ns-a/flood/")).count(), 2, "{known:?}");
    assert_eq!(known.iter().filter(|name| name.starts_with("ns-b/")).count(), 6, "{known:?}");
}

/// Pods that come and go take no room from a Pod that runs, whether its process was seen before them or not.
#[test]
fn pods_that_are_gone_push_out_no_violation_of_a_pod_that_runs() {
    let mut node = Crowded::new();
    let gone: Vec<String> = (0..3 * Crowded::MAX).map(|n| format!("gone-{n:02}")).collect();
    let miner = |name: &str| ("ns-m", name.to_owned());
    let list = |node: &mut Crowded, pods: &[String], miners: &[(&str, String)]| {
        let pods = pods.iter().map(|pod| ("ns-a", pod.as_str(), "x".to_owned()));
        let miners = miners.iter().map(|(namespace, pod)| (*namespace, pod.as_str(), "xmrig".to_owned()));
        node.list(&pods.chain(miners).collect::<Vec<_>>())
    };
    list(&mut node, &gone[..6], &[miner("known")]);
    for turn in 1..4 {
        for pod in &gone {
            node.ledger.pod_gone(&pod_ref("ns-a", pod), at(node.minute));
        }
        let miners = [miner("known"), miner("new")];
        let known = list(&mut node, &gone[turn * 6..(turn + 1) * 6], &miners);
        for name in ["ns-m/known/xmrig", "ns-m/new/xmrig"] {
            assert!(known.contains(&name.to_owned()), "{name} in {known:?}");
        }
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

/// The hits of one rule may be exempted, and must not hide the hits of another.
#[test]
fn the_rules_in_a_pod_take_turns() {
    let mut node = Crowded::new();
    node.limit_pods(4);
    let exempted = flood("ns-a", "web", 6);
    node.list(&exempted);
    let mut records: Vec<Record> =
        exempted.iter().map(|(namespace, pod, process)| hit(namespace, pod, process, "")).collect();
    records.push(hit("ns-a", "web", "xmrig", "^xmrig$"));
    let mut expected = names("ns-a", "web", "p", 0..3);
    expected.push("ns-a/web/xmrig".to_owned());
    assert_eq!(node.take_in(records), expected);
}

/// A Pod's process that is exempted does not hide another one of it, even if other tenants have a Pod for each place.
#[test]
fn the_first_violation_of_a_rule_has_room_before_other_tenants_take_all() {
    let mut node = Crowded::new();
    let exempted = || hit("ns-v", "web", "editor", "editor");
    let known = node.take_in(vec![exempted()]);
    assert_eq!(known, ["ns-v/web/editor"]);
    let others = || (0..8).map(|n| hit("ns-h", &format!("pod-{n}"), "xmrig", "xmrig"));
    let known = node.take_in(others().chain([exempted(), hit("ns-v", "web", "xmrig", "xmrig")]).collect());
    assert_eq!(known.iter().filter(|name| name.starts_with("ns-h/")).count(), 6);
    assert!(known.contains(&"ns-v/web/editor".to_owned()) && known.contains(&"ns-v/web/xmrig".to_owned()));
    // A second name under the same rule has no such place.
    let second = hit("ns-v", "web", "miner", "xmrig");
    assert_eq!(node.take_in(others().chain([exempted(), second]).collect()).len(), 8);
    assert!(!node.known(at(node.minute)).iter().any(|(name, _)| name == "ns-v/web/miner"));
}

/// A process may match another rule than before.
#[test]
fn a_known_violation_counts_under_the_rule_of_the_answer_at_hand() {
    let mut node = Crowded::new();
    node.limit_pods(4);
    let hits = |rules: &[(&str, &str)]| {
        rules.iter().map(|(process, rule)| hit("ns-a", "web", process, rule)).collect::<Vec<_>>()
    };
    node.take_in(hits(&[("a", "r1"), ("b", "r1"), ("c", "r1"), ("d", "r1")]));
    // `d` is the first of its rule now, so `c` makes room for `e`, and the same answer again changes nothing.
    let known = node.take_in(hits(&[("a", "r1"), ("b", "r1"), ("c", "r1"), ("d", "r2"), ("e", "r2")]));
    assert_eq!(known, ["ns-a/web/a", "ns-a/web/b", "ns-a/web/d", "ns-a/web/e"]);
}

/// The answer lists no record of ns-a. So its forgotten violations leave no record out.
#[test]
fn forgotten_violations_that_are_not_listed_leave_no_record_out_of_the_answer() {
    let mut node = Crowded::new();
    node.let_grow_old(&flood("ns-a", "pod", 8), &[]);
    let known = node.list(&flood("ns-b", "web", 7));
    assert_eq!(known, [names("ns-a", "pod", "p", 0..1), names("ns-b", "web", "p", 0..7)].concat());
    assert_eq!(node.ledger.take_node_change(), None);
}
