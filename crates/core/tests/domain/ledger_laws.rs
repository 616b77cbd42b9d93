//! The ledger's laws, over random sequences.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::common::{MINUTE, START, World, failed, record_of, target};
use jiff::Timestamp;
use procscan_core::Moment;
use procscan_core::clearing::{Cleared, Presence};
use procscan_core::ledger::{Change, ChangeKind, Detection};
use procscan_core::names::{Key, NodeName};
use procscan_core::report::{Answer, Failure, FailureReason, Outcome, Record, Report};
use procscan_core::snapshot::{Snapshot, State};
use proptest::collection::vec;
use proptest::prelude::*;

const NODES: [&str; 3] = ["n0", "n1", "n2"];
const NAMESPACES: [&str; 3] = ["ns-a", "ns-b", "ns-c"];

/// The action of one node's agent in one round.
#[derive(Clone, Debug)]
enum Action {
    /// Answers with these records: which namespace, and how many seconds before now it was detected.
    List(Vec<(usize, i64)>),
    /// Answers with the list of its last answer.
    Repeat,
    /// The same as an HTTP 304.
    NotModified,
    /// Answers a list that is cut short.
    CutShort(Vec<(usize, i64)>),
    /// Restarts: an empty list.
    Empty,
    Fails(FailureReason),
}

fn action() -> impl Strategy<Value = Action> {
    let records = || vec((0..NAMESPACES.len(), 0..90_i64), 0..4);
    prop_oneof![
        2 => records().prop_map(Action::List),
        4 => Just(Action::Repeat),
        1 => Just(Action::NotModified),
        1 => records().prop_map(Action::CutShort),
        4 => Just(Action::Empty),
        2 => Just(Action::Fails(FailureReason::Timeout)),
        1 => Just(Action::Fails(FailureReason::Refused)),
    ]
}

/// Rounds of different lengths, each with an action of each node.
fn sequence(rounds: usize) -> impl Strategy<Value = Vec<(u64, [Action; 3])>> {
    vec((prop_oneof![5 => 50..70_u64, 1 => 1..4000_u64], [action(), action(), action()]), 1..rounds)
}

fn later(now: Moment, by: Duration) -> Moment {
    Moment::new(now.uptime() + by, now.wall() + by)
}

struct Agents {
    listed: BTreeMap<&'static str, Vec<Record>>,
}

impl Agents {
    fn new() -> Self {
        Self { listed: BTreeMap::new() }
    }

    fn outcome(&mut self, node: &'static str, action: &Action, now: i64) -> Outcome {
        let make = |wanted: &[(usize, i64)]| -> Vec<Record> {
            wanted.iter().map(|(ns, ago)| record_of(NAMESPACES[*ns], "web", "xmrig", now - ago)).collect()
        };
        let answer = |records: Vec<Record>| {
            let date = Some(Timestamp::from_second(START + now).unwrap());
            Answer { records: records.into_iter().collect(), date, ..Answer::default() }
        };
        match action {
            Action::List(wanted) => {
                self.listed.insert(node, make(wanted));
                Outcome::Complete(answer(make(wanted)))
            }
            Action::Repeat => Outcome::Complete(answer(self.listed.get(node).cloned().unwrap_or_default())),
            Action::NotModified => Outcome::Unchanged,
            Action::CutShort(wanted) => {
                let failure = Failure { reason: FailureReason::TooLarge, detail: String::new() };
                Outcome::Partial(answer(make(wanted)), failure)
            }
            Action::Empty => {
                self.listed.remove(node);
                Outcome::Complete(answer(Vec::new()))
            }
            Action::Fails(reason) => failed(*reason),
        }
    }
}

/// The model that the laws are checked against. It is computed from the reports alone, by the rules of the
/// specification.
#[derive(Default)]
struct Model {
    last_answer: BTreeMap<&'static str, u64>,
    /// Answered time of a node since the last listing of a key with a new timestamp there.
    answered: BTreeMap<(&'static str, Key), u64>,
    seen: BTreeMap<(&'static str, Key), Vec<Timestamp>>,
    answered_at: BTreeMap<&'static str, u64>,
}

impl Model {
    fn note(&mut self, node: &'static str, outcome: &Outcome, now: u64) {
        if let Outcome::Complete(_) | Outcome::Unchanged = outcome {
            let gap = self.last_answer.insert(node, now).map_or(0, |last| now - last).min(MINUTE);
            for ((of, _), answered) in &mut self.answered {
                if *of == node {
                    *answered += gap;
                }
            }
        }
        if let Outcome::Complete(answer) | Outcome::Partial(answer, _) = outcome {
            self.answered_at.insert(node, now);
            let mut newest: BTreeMap<Key, Timestamp> = BTreeMap::new();
            for record in answer.records.iter().map(Record::from) {
                let slot = newest.entry(record.key).or_insert(record.detected_at);
                *slot = record.detected_at.max(*slot);
            }
            for (key, stamp) in newest {
                let seen = self.seen.entry((node, key.clone())).or_default();
                if !seen.contains(&stamp) {
                    seen.push(stamp);
                    self.answered.insert((node, key), 0);
                }
            }
        }
    }
}

fn shown(snapshot: &Snapshot) -> String {
    format!("{:?} {:?} {:?} {:?}", snapshot.violations, snapshot.nodes, snapshot.targets, snapshot.coverage)
}

proptest! {
    #![proptest_config(crate::common::cases(300))]

    /// No sequence of failures, empty answers or restarts clears before the clock has run on answered time.
    #[test]
    fn nothing_clears_before_its_clock_has_run_on_answered_time(sequence in sequence(120)) {
        // The times are short, because many violations should clear within one sequence.
        let rules = Detection { clear_after: Duration::from_mins(5), ..Detection::default() };
        let mut world = World::with(&NODES, rules);
        let (mut agents, mut model) = (Agents::new(), Model::default());
        let mut cleared = BTreeSet::new();
        for (wait, actions) in &sequence {
            world.wait(*wait);
            for (node, action) in NODES.into_iter().zip(actions) {
                let outcome = agents.outcome(node, action, world.clock());
                model.note(node, &outcome, world.now.uptime().as_secs());
                world.report(node, outcome);
            }
            let snapshot = world.snapshot();
            for violation in &snapshot.violations {
                for evidence in violation.evidence() {
                    let node = NODES.into_iter().find(|n| **n == *evidence.node.0).unwrap();
                    let view = snapshot.nodes.get(&evidence.node).unwrap();
                    let id = (node, violation.key.clone());
                    let is_change = if evidence.cleared.is_some() { cleared.insert(id) } else { !cleared.remove(&id) };
                    if !is_change {
                        continue;
                    }
                    match evidence.cleared {
                        Some(Cleared::ByClock) => {
                            let answered = model.answered[&(node, violation.key.clone())];
                            prop_assert!(answered >= world.rules.clear_after.as_secs(), "{answered}");
                            let turns = view.interval.map_or(0, |interval| interval.get().as_secs()) * 6;
                            prop_assert!(answered >= turns, "{answered} < {turns}");
                        }
                        Some(Cleared::Unreachable) => {
                            let silent = world.now.uptime().as_secs() - model.answered_at.get(node).copied().unwrap_or(0);
                            prop_assert!(silent >= world.rules.unreachable_limit.as_secs() || silent == 0);
                        }
                        Some(Cleared::Hidden) => {
                            let answered = model.answered[&(node, violation.key.clone())];
                            prop_assert!(answered >= world.rules.unreachable_limit.as_secs(), "{answered}");
                        }
                        Some(Cleared::PodGone) => prop_assert!(false, "no Pod was proven gone"),
                        None => {}
                    }
                }
            }
        }
    }

    /// Every change that a snapshot shows has been returned before, at the moment when it happened. So no reader has
    /// to search for it.
    #[test]
    fn changes_by_time_are_returned_when_they_happen(sequence in sequence(60), steps in 1..5_u32) {
        let rules = Detection {
            max_age: Duration::from_mins(3),
            clear_after: Duration::from_mins(5),
            unreachable_limit: Duration::from_mins(20),
            same_incident: Duration::from_mins(30),
            ..Detection::default()
        };
        let mut world = World::with(&NODES, rules.clone());
        let mut agents = Agents::new();
        let mut returned: BTreeMap<(Key, NodeName), Presence> = BTreeMap::new();
        for (wait, actions) in &sequence {
            let mut note = |changes: Vec<Change>| {
                for Change { key, node, kind } in changes {
                    let presence = match kind {
                        ChangeKind::Appeared => Presence::Active,
                        ChangeKind::Sighted | ChangeKind::Unconfirmed => Presence::Unconfirmed,
                        ChangeKind::Cleared(_) => Presence::Cleared,
                    };
                    returned.insert((key, node), presence);
                }
            };
            for _ in 0..steps {
                world.now = later(world.now, Duration::from_secs(*wait) / steps);
                note(world.ledger.advance(world.now));
            }
            for (node, action) in NODES.into_iter().zip(actions) {
                let outcome = agents.outcome(node, action, world.clock());
                note(world.ledger.absorb(&Report { target: target(node), at: world.now, outcome }));
            }
            note(world.ledger.advance(world.now));
            prop_assert!(world.ledger.advance(world.now).is_empty(), "once is enough");
            let changes = world.ledger.changes();
            let snapshot = world.ledger.snapshot(world.now);
            prop_assert_eq!(snapshot.changes, changes);
            for violation in &snapshot.violations {
                for evidence in violation.evidence() {
                    let id = (violation.key.clone(), evidence.node.clone());
                    let (returned, shown) = (returned[&id], evidence.presence);
                    // A newly learned scan interval may give old evidence a little more time.
                    let is_longer = (returned, shown) == (Presence::Unconfirmed, Presence::Active);
                    prop_assert!(returned == shown || is_longer, "{id:?}: returned {returned:?}, shown {shown:?}");
                    // A tombstone stays for as long after its last listing as after it cleared, which took this at
                    // most.
                    let longest = rules.same_incident + rules.unreachable_limit;
                    let is_over = world.now.since(evidence.last_seen) > longest + Duration::from_hours(6);
                    prop_assert!(!is_over, "a tombstone outlives its time");
                }
            }
        }
    }

    /// Failures alone, for any time below the limit, clear nothing.
    #[test]
    fn failures_alone_clear_nothing_below_the_unreachable_limit(
        waits in vec((1..3000_u64, prop_oneof![Just(FailureReason::Timeout), Just(FailureReason::Refused)]), 1..28)
    ) {
        let mut world = World::new(&["n0"]);
        world.answer("n0", vec![record_of("ns-a", "web", "xmrig", 0)]);
        for (wait, reason) in waits {
            world.wait(wait);
            world.report("n0", failed(reason));
            prop_assert_ne!(world.state("ns-a"), State::Cleared);
        }
    }

    /// The reports of one round arrive in any order, and the ledger is the same.
    #[test]
    fn the_order_of_reports_within_a_round_does_not_matter(
        sequence in sequence(40),
        order in Just(vec![0_usize, 1, 2]).prop_shuffle(),
        reverse in any::<bool>(),
    ) {
        let (mut one, mut other) = (World::new(&NODES), World::new(&NODES));
        let mut agents = Agents::new();
        for (wait, actions) in &sequence {
            one.wait(*wait);
            other.wait(*wait);
            let now = one.clock();
            let outcomes: Vec<Outcome> =
                NODES.into_iter().zip(actions).map(|(node, action)| agents.outcome(node, action, now)).collect();
            for index in [0, 1, 2] {
                one.report(NODES[index], outcomes[index].clone());
            }
            for index in &order {
                let mut outcome = outcomes[*index].clone();
                if let Outcome::Complete(answer) | Outcome::Partial(answer, _) = &mut outcome && reverse {
                    let records: Vec<Record> = answer.records.iter().map(Record::from).collect();
                    answer.records = records.into_iter().rev().collect();
                }
                other.report(NODES[*index], outcome);
            }
        }
        prop_assert_eq!(shown(&one.snapshot()), shown(&other.snapshot()));
    }

    /// A report that arrives twice changes nothing, and neither does one that arrives after a later one.
    #[test]
    fn repeated_and_late_reports_change_nothing(sequence in sequence(40), late in any::<prop::sample::Index>()) {
        let (mut one, mut other) = (World::new(&NODES), World::new(&NODES));
        let mut agents = Agents::new();
        let mut sent: Vec<Report> = Vec::new();
        for (wait, actions) in &sequence {
            one.wait(*wait);
            other.wait(*wait);
            for (node, action) in NODES.into_iter().zip(actions) {
                let outcome = agents.outcome(node, action, one.clock());
                let report = Report { target: target(node), at: one.now, outcome };
                one.ledger.absorb(&report);
                other.ledger.absorb(&report);
                prop_assert!(other.ledger.absorb(&report).is_empty());
                if !sent.is_empty() {
                    let old = sent[late.index(sent.len())].clone();
                    if old.at < other.now {
                        prop_assert!(other.ledger.absorb(&old).is_empty());
                    }
                }
                sent.push(report);
            }
        }
        prop_assert_eq!(shown(&one.snapshot()), shown(&other.snapshot()));
    }

    /// Coverage always adds up, whatever targets leave, join, answer or do not answer.
    #[test]
    fn coverage_always_adds_up(
        sequence in vec((sequence(3), vec(any::<bool>(), 3), 0..4_usize), 1..12)
    ) {
        let mut world = World::new(&NODES);
        let mut agents = Agents::new();
        for (rounds, present, unlisted) in sequence {
            let expected: Vec<_> =
                NODES.into_iter().zip(&present).filter(|(_, here)| **here).map(|(node, _)| target(node)).collect();
            let targets = expected.len();
            world.ledger.expect(expected, unlisted);
            for (wait, actions) in &rounds {
                world.wait(*wait);
                for (node, action) in NODES.into_iter().zip(actions) {
                    let outcome = agents.outcome(node, action, world.clock());
                    world.report(node, outcome);
                }
                let snapshot = world.snapshot();
                prop_assert_eq!(snapshot.coverage.expected(), targets + unlisted);
                prop_assert_eq!(snapshot.targets.len(), targets);
            }
        }
    }

    /// A record that is old at first sight and never changes is never active.
    #[test]
    fn a_record_that_is_old_at_first_sight_is_never_active(
        age in 1801..100_000_i64, actions in vec((1..4000_u64, 0..4_u8), 1..100)
    ) {
        let mut world = World::new(&["n0"]);
        world.wait(100_000);
        let old = record_of("ns-a", "web", "xmrig", world.clock() - age);
        for (wait, action) in actions {
            world.wait(wait);
            match action {
                0 => world.fail("n0"),
                1 => world.answer("n0", vec![]),
                _ => world.answer("n0", vec![old.clone()]),
            };
            for violation in world.snapshot().violations {
                prop_assert_ne!(violation.state, State::Active);
                prop_assert!(violation.evidence().all(|e| e.presence != Presence::Active));
            }
            prop_assert!(world.blocked().is_empty());
        }
    }
}

#[test]
fn the_scan_interval_is_the_middle_one_of_the_last_steps_and_believed_up_to_an_hour() {
    let mut world = World::new(&["n0"]);
    let interval = |w: &mut World| {
        w.snapshot().nodes.get(&NodeName::new("n0")).unwrap().interval.map(|i| i.get().as_secs())
    };
    world.answer("n0", vec![record_of("ns-a", "web", "xmrig", 0), record_of("ns-b", "web", "xmrig", 1)]);
    assert_eq!(interval(&mut world), None, "records of one scan are no step");
    world.wait(20_000);
    world.answer("n0", vec![record_of("ns-a", "web", "xmrig", 20_000)]);
    assert_eq!(interval(&mut world), Some(3600));
    world.wait(400);
    world.answer("n0", vec![record_of("ns-b", "web", "xmrig", 20_400)]);
    assert_eq!(interval(&mut world), Some(400));
    world.wait(1000);
    world.answer("n0", vec![record_of("ns-a", "web", "xmrig", 21_400)]);
    assert_eq!(interval(&mut world), Some(400));
    // From four steps on the interval is the median, because an agent that has restarted makes short steps.
    let scans = |world: &mut World, step: u64, expected: &[u64]| {
        for expected in expected {
            world.wait(step);
            let now = world.clock();
            world.answer("n0", vec![record_of("ns-a", "web", "xmrig", now)]);
            assert_eq!(interval(world), Some(*expected));
        }
    };
    scans(&mut world, 1000, &[1000; 5]);
    scans(&mut world, 5, &[1000, 1000, 1000, 1000, 5]);
}

#[test]
fn a_restart_does_not_shorten_the_clearing_time_of_an_agent_that_scans_seldom() {
    let mut world = World::new(&["n0"]);
    for _ in 0..3 {
        world.wait(1000);
        let now = world.clock();
        world.answer("n0", vec![record_of("ns-a", "web", "xmrig", now)]);
        world.evaluate();
    }
    world.restart();
    // 6000 s of answers, after 1000 s in which the agent may have been restarting as well.
    world.rounds(6900 / 60, |w| {
        w.answer("n0", vec![]);
        assert_eq!(w.blocked(), ["ns-a"]);
    });
    world.rounds(4, |w| drop(w.answer("n0", vec![])));
    assert!(world.blocked().is_empty());
}

#[test]
fn long_scan_intervals_make_the_clock_wait_for_six_of_them_however_many_are_listed() {
    let mut world = World::new(&["n0"]);
    for round in 0..3_i64 {
        world.answer(
            "n0",
            vec![record_of("ns-a", "web", "xmrig", round * 1000), record_of("ns-b", "web", "zmap", 0)],
        );
        world.wait(1000);
    }
    // 1000 s: 6,000 s of answers, a minute each, and not the configured 30 minutes.
    let rounds = 6_000 / 60;
    world.rounds(rounds - 1, |w| drop(w.answer("n0", vec![])));
    assert_ne!(world.state("ns-a"), State::Cleared);
    // A restarting agent may have needed 1000 s for its first scan, so these do not count.
    world.rounds(1000 / 60 + 2, |w| drop(w.answer("n0", vec![])));
    assert_eq!(world.state("ns-a"), State::Cleared);
}

#[test]
fn the_wait_for_a_node_that_never_returns_ends_with_the_limit() {
    let mut world = World::new(&["n0"]);
    world.answer("n0", vec![record_of("ns-a", "web", "xmrig", 0)]);
    world.ledger.expect([], 0);
    world.wait(24 * 3600 - 1);
    assert_eq!(world.state("ns-a"), State::Unconfirmed);
    world.wait(1);
    assert_eq!(world.violation("ns-a").leading.cleared, Some(Cleared::Unreachable));
    // A day after that the tombstone, and the node, are forgotten.
    world.wait(24 * 3600 + 1);
    let snapshot = world.snapshot();
    assert!(snapshot.violations.is_empty() && snapshot.nodes.is_empty());
}

#[test]
fn a_flooding_node_takes_no_room_of_another_node() {
    let rules = Detection { max_keys_per_node: 50, ..Detection::default() };
    let mut world = World::with(&["n0", "n1"], rules);
    world.answer("n1", vec![record_of("ns-victim", "web", "xmrig", 0)]);
    world.rounds(100, |w| {
        let flood =
            (0..40).map(|i| record_of("ns-f", "web", &format!("p{}-{i}", w.clock()), w.clock())).collect();
        w.answer("n0", flood);
        let now = w.clock();
        w.answer("n1", vec![record_of("ns-victim", "web", "xmrig", now)]);
    });
    let snapshot = world.snapshot();
    assert!(snapshot.violations.len() <= 51, "{}", snapshot.violations.len());
    assert!(snapshot.rejected.of(procscan_core::report::Rejection::NodeQuota) > 1000);
    assert_eq!(world.state("ns-victim"), State::Active);
}

#[test]
fn the_time_of_the_last_change_of_the_list_changes_only_with_its_records() {
    let mut world = World::new(&["n0"]);
    world.answer("n0", vec![record_of("ns-a", "web", "xmrig", 0)]);
    let changed = world.snapshot().list_changed_at;
    world.rounds(5, |w| {
        drop(w.answer("n0", vec![record_of("ns-a", "web", "xmrig", 0)]));
    });
    assert_eq!(world.snapshot().list_changed_at, changed);
    let now = world.clock();
    world.answer("n0", vec![record_of("ns-a", "web", "xmrig", now)]);
    assert_eq!(world.snapshot().list_changed_at, world.now.wall());
}
