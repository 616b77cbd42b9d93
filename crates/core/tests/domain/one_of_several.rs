//! Agents that list one of several processes, and not in turn: one process that runs beside another, and one that has
//! ended.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::common::agent::{Process, RealAgent};
use crate::common::{HOUR, MINUTE, World, app, complete, record, settings};
use procscan_core::clearing::Cleared;
use procscan_core::ledger::{ChangeKind, Detection};
use procscan_core::names::{Key, NodeName};
use procscan_core::policy::{InheritedBlock, OnIngresses};
use procscan_core::report::{Answer, Outcome};
use procscan_core::resources::{Existing, render};
use procscan_core::snapshot::{EvidenceView, State, Violation};
use proptest::collection::vec;
use proptest::prelude::*;

const LIMIT: u64 = 24 * HOUR;

/// A round of a world with one node.
fn ask(world: &mut World, agent: &mut RealAgent) {
    let outcome = agent.outcome(world.now.uptime().as_secs());
    world.report("n1", outcome);
}

/// How much longer than its clearing time the clearing of an ended process may take: a few scans and a few rounds.
fn slack(interval: u64) -> u64 {
    3 * interval + 3 * MINUTE
}

/// The clearing time with an agent of this scan interval.
fn required(interval: u64) -> u64 {
    (30 * MINUTE).max(6 * interval)
}

#[test]
fn a_process_that_another_one_hides_does_not_clear_while_both_run() {
    for interval in [100, 1000] {
        let mut world = World::new(&["n1"]);
        let mut agent = RealAgent::new(interval, 0);
        // "999" comes after "1000" in the order of strings.
        agent.run(1000, Process::of("ns-j"));
        world.rounds(60, |w| ask(w, &mut agent));
        assert_eq!(world.blocked(), ["ns-j"]);
        agent.run(999, Process::of("ns-k"));
        let rounds = LIMIT / MINUTE - interval / MINUTE - 3;
        world.rounds(rounds, |w| {
            ask(w, &mut agent);
            assert_ne!(w.state("ns-j"), State::Cleared, "{} s", w.clock());
        });
        assert_eq!(world.blocked(), ["ns-j", "ns-k"], "interval {interval}");
    }
}

#[test]
fn a_process_that_has_ended_clears_although_another_ones_last_record_stays_listed() {
    for interval in [100, 1000] {
        let mut world = World::new(&["n1"]);
        let mut agent = RealAgent::new(interval, 0);
        agent.run(1000, Process::of("ns-j"));
        world.rounds(60, |w| ask(w, &mut agent));
        agent.run(999, Process::of("ns-k"));
        world.rounds(60, |w| ask(w, &mut agent));
        agent.processes.clear();
        world.rounds((required(interval) + slack(interval)) / MINUTE, |w| ask(w, &mut agent));
        assert_eq!(agent.lists().unwrap().namespace, "ns-k", "for ever");
        for namespace in ["ns-j", "ns-k"] {
            assert_eq!(world.state(namespace), State::Cleared, "{namespace}, interval {interval}");
        }
        assert!(world.blocked().is_empty());
    }
}

/// In an earlier version such processes delayed each other's clearing to ten times the time that one needs.
#[test]
fn twelve_short_lived_processes_clear_as_soon_as_one() {
    let cleared = |w: &mut World| w.snapshot().count(State::Cleared);
    for (interval, round, clear_after) in [(5, 5, 30), (100, 60, 1800), (1000, 60, 1800)] {
        let rules = Detection {
            clear_after: Duration::from_secs(clear_after),
            answer_gap: Duration::from_secs(round),
            ..Detection::default()
        };
        let mut world = World::with(&["n1"], rules);
        let mut agent = RealAgent::new(interval, 0);
        for n in 0..12 {
            agent.processes.clear();
            agent.run(n, Process::of(&format!("ns-{n:02}")));
            let begun = world.now.uptime().as_secs();
            while world.now.uptime().as_secs() < begun + interval {
                world.wait(round);
                ask(&mut world, &mut agent);
            }
        }
        agent.processes.clear();
        assert_eq!(cleared(&mut world), 0, "interval {interval}");
        let quiet = clear_after.max(6 * interval) + 3 * interval + 3 * round;
        (0..quiet / round).for_each(|_| {
            world.wait(round);
            ask(&mut world, &mut agent);
        });
        assert_eq!(cleared(&mut world), 12, "interval {interval}, quiet for {quiet} s");
    }
}

#[test]
fn two_processes_that_run_in_turn_stay_and_clear_when_both_have_ended() {
    let mut world = World::new(&["n1"]);
    let mut agent = RealAgent::new(100, 0);
    for turn in 0..48 {
        agent.processes.clear();
        agent.run(turn, Process::of(["ns-j", "ns-k"][turn as usize % 2]));
        world.rounds(29, |w| {
            ask(w, &mut agent);
            w.evaluate();
        });
    }
    assert_eq!(world.blocked(), ["ns-j", "ns-k"]);
    agent.processes.clear();
    // Each was unseen for half an hour and came back.
    world.rounds((required(30 * MINUTE) + slack(100)) / MINUTE, |w| ask(w, &mut agent));
    assert!(world.blocked().is_empty());
}

#[test]
fn a_process_that_changes_its_name_hides_others_like_any_other() {
    for interval in [100, 1000] {
        let mut world = World::new(&["n1"]);
        let mut agent = RealAgent::new(interval, 0);
        agent.run(1000, Process::of("ns-j"));
        world.rounds(60, |w| ask(w, &mut agent));
        assert_eq!(world.blocked(), ["ns-j"]);
        let mut names = 0;
        let mut rename = |agent: &mut RealAgent| {
            names += 1;
            agent.run(999, Process::named("ns-k", &format!("p{names}")));
        };
        let rounds = LIMIT / MINUTE - interval / MINUTE - 3;
        let of_j = |w: &mut World| {
            let violations = w.snapshot().violations;
            violations.into_iter().find(|violation| *violation.key.namespace == *"ns-j").unwrap()
        };
        world.rounds(rounds, |w| {
            rename(&mut agent);
            ask(w, &mut agent);
            assert_ne!(of_j(w).state, State::Cleared);
        });
        assert!(world.blocked().contains(&"ns-j".to_owned()));
        assert_eq!(of_j(&mut world).state, State::Unconfirmed, "no other process renews it");
    }
}

/// The evidence of a namespace's only violation on its only node.
fn evidence(world: &mut World, namespace: &str) -> EvidenceView {
    world.violation(namespace).leading
}

fn hidden_by(world: &mut World, namespace: &str) -> Option<String> {
    evidence(world, namespace).hidden_by.map(|key| key.namespace.to_string())
}

#[test]
fn the_process_that_hides_another_is_shown_and_the_wait_ends_with_the_limit_of_answered_time() {
    let mut world = World::new(&["n1"]);
    let mut agent = RealAgent::new(100, 0);
    agent.run(1000, Process::of("ns-j"));
    world.rounds(60, |w| ask(w, &mut agent));
    assert_eq!((world.blocked().len(), hidden_by(&mut world, "ns-j")), (1, None));
    agent.run(999, Process::of("ns-k"));
    world.rounds(3, |w| ask(w, &mut agent));
    assert_eq!(hidden_by(&mut world, "ns-j").as_deref(), Some("ns-k"));
    assert_eq!(hidden_by(&mut world, "ns-k"), None);
    // The hiding process may be another tenant's, so this tenant must learn nothing of it.
    let plan = world.evaluate().plan;
    let objects = render(&plan, &settings(), Existing::default());
    let object = objects.iter().find(|object| object.metadata.namespace == "ns-j").unwrap();
    assert!(!serde_json::to_string(&object.spec).unwrap().contains("ns-k"), "{:?}", object.spec);
    // The node does not answer every second hour. That is no answered time, but too short to count as lost.
    let (mut answered, mut cleared) = (3 * MINUTE, Vec::new());
    while answered < LIMIT - 4 * MINUTE {
        world.rounds(60, |w| cleared.extend(w.fail("n1")));
        world.rounds(60, |w| {
            // The first of them counts for a minute only, like any other.
            answered += MINUTE;
            if answered < LIMIT - 4 * MINUTE {
                ask(w, &mut agent);
            }
        });
        assert_ne!(world.state("ns-j"), State::Cleared, "{answered} s");
    }
    assert_eq!(world.blocked(), ["ns-j", "ns-k"]);
    let mut decisions = Vec::new();
    world.rounds(8, |w| {
        ask(w, &mut agent);
        decisions.extend(w.evaluate().decisions);
    });
    assert_eq!(evidence(&mut world, "ns-j").cleared, Some(Cleared::Hidden));
    assert_eq!(hidden_by(&mut world, "ns-j"), None);
    assert_eq!(world.blocked(), ["ns-k"]);
    assert!(decisions[0].reason.contains("another process's record hid it"), "{decisions:?}");
    // The process still runs, and is found once no other hides it.
    agent.end(999);
    world.rounds(4, |w| ask(w, &mut agent));
    assert_eq!(world.blocked(), ["ns-j", "ns-k"]);
}

#[test]
fn from_an_agent_that_has_listed_two_at_once_absence_counts_whatever_it_lists() {
    let mut world = World::new(&["n1"]);
    let lists = |w: &mut World, namespaces: &[&str]| {
        let now = w.clock();
        w.answer("n1", namespaces.iter().map(|namespace| record(namespace, now)).collect());
    };
    world.rounds(5, |w| lists(w, &["ns-j"]));
    world.rounds(4, |w| lists(w, &["ns-k"]));
    assert_eq!(hidden_by(&mut world, "ns-j").as_deref(), Some("ns-k"));
    world.rounds(1, |w| lists(w, &["ns-j", "ns-k"]));
    assert_eq!(hidden_by(&mut world, "ns-j"), None);
    world.rounds(29, |w| lists(w, &["ns-k"]));
    assert_ne!(world.state("ns-j"), State::Cleared);
    world.rounds(1, |w| lists(w, &["ns-k"]));
    assert_eq!(evidence(&mut world, "ns-j").cleared, Some(Cleared::ByClock));
}

/// After a start the clocks begin anew, and the scan interval of its agent may not be known.
#[test]
fn a_hidden_violation_stays_hidden_over_restarts_of_the_aggregator() {
    for is_persisted in [true, false] {
        let mut world = World::new(&["n1"]);
        let mut agent = RealAgent::new(1000, 0);
        agent.run(1000, Process::of("ns-j"));
        world.rounds(if is_persisted { 60 } else { 20 }, |w| {
            ask(w, &mut agent);
            w.evaluate();
        });
        agent.run(999, Process::of("ns-k"));
        for restart in 0..6 {
            for incident in world.persisted.values_mut() {
                for evidence in &mut incident.status.evidence {
                    evidence.scan_interval = evidence.scan_interval.filter(|_| is_persisted);
                }
            }
            world.restart();
            // The sum is less than the limit, which counts over restarts.
            world.rounds(3 * 60, |w| {
                ask(w, &mut agent);
                w.evaluate();
            });
            assert_eq!(world.blocked(), ["ns-j", "ns-k"], "restart {restart}, persisted: {is_persisted}");
        }
    }
}

/// The node is not known, so any node's agent may be hiding the process.
#[test]
fn the_process_of_an_inherited_block_may_be_hidden_too() {
    let mut world = World::new(&["n1"]);
    let accused = [Key::new("ns-j", "web", "xmrig")].into();
    let inherited = InheritedBlock {
        app: app("ns-j"),
        notified_at: None,
        is_guess: false,
        accused,
        services: vec!["web.ns-j.svc".into()],
        on_ingresses: OnIngresses::default(),
    };
    world.incidents.inherit([inherited], &world.policy, world.now);
    let mut agent = RealAgent::new(100, 0);
    agent.run(999, Process::of("ns-k"));
    world.rounds(23 * 60, |w| {
        ask(w, &mut agent);
        assert!(w.blocked().contains(&"ns-j".to_owned()), "{} s", w.clock());
    });
    world.rounds(2 * 60, |w| ask(w, &mut agent));
    assert_eq!(world.blocked(), ["ns-k"]);
}

/// A violation that was forgotten and is listed again must not look as if all answers of its node had been conclusive
/// about it.
#[test]
fn a_violation_that_is_forgotten_and_listed_again_begins_with_all_inconclusive_time_of_its_node() {
    let rules = Detection { max_keys_per_node: 1, ..Detection::default() };
    let mut world = World::with(&["n1"], rules);
    // The agent does not send its time, so nothing is believed at first sight and the oldest violations are forgotten
    // first.
    let lists = |w: &mut World, namespace: &str, stamp: i64| {
        let Outcome::Complete(answer) = complete(vec![record(namespace, stamp)], 0) else { return };
        w.report("n1", Outcome::Complete(Answer { date: None, ..answer }));
    };
    world.rounds(10, |w| lists(w, "ns-j", 0));
    world.rounds(10, |w| lists(w, "ns-k", 0));
    let inconclusive = world.snapshot().nodes.get(&NodeName::new("n1")).unwrap().clock.inconclusive;
    assert!(inconclusive.get() >= Duration::from_mins(5), "{inconclusive:?}");
    world.rounds(1, |w| lists(w, "ns-j", 1));
    let evidence = evidence(&mut world, "ns-j");
    assert!(evidence.mark.inconclusive >= inconclusive, "{:?}", evidence.mark);
}

/// An event on a node.
#[derive(Clone, Debug)]
enum Event {
    Begins(u32),
    Ends(u32),
    Restarts,
    Silent(u64),
    Nothing,
}

const PIDS: [u32; 5] = [7, 80, 999, 1000, 31_000];

fn event() -> impl Strategy<Value = Event> {
    let pid = || (0..PIDS.len()).prop_map(|n| PIDS[n]);
    prop_oneof![
        4 => pid().prop_map(Event::Begins),
        3 => pid().prop_map(Event::Ends),
        1 => Just(Event::Restarts),
        1 => (1..90_u64).prop_map(Event::Silent),
        3 => Just(Event::Nothing),
    ]
}

/// Its scan interval, the seconds between two results of a scan, and how far its clock is ahead.
fn agent() -> impl Strategy<Value = RealAgent> {
    let skew = prop_oneof![Just(0), -50_000..50_000_i64];
    (prop_oneof![Just(100), Just(1000)], 0..4_u64, skew).prop_map(|(interval, pace, skew)| {
        let mut agent = RealAgent::new(interval, 0);
        (agent.pace, agent.skew) = (pace, skew);
        agent
    })
}

/// The first process has a long command line, so its result comes last.
fn process(pid: u32) -> Process {
    Process { is_slow: pid == PIDS[0], ..Process::of(&namespace(pid)) }
}

/// The processes that really run. Each has its start, and the number of complete answers since the last scan that
/// listed it.
#[derive(Default)]
struct Truth {
    running: BTreeMap<u32, u64>,
    answered: u64,
    listed: BTreeMap<u32, u64>,
}

fn namespace(pid: u32) -> String {
    format!("ns-{pid}")
}

proptest! {
    #![proptest_config(crate::common::cases(48))]

    /// Other processes may run beside it, start, end or restart, and the node may stop answering.
    #[test]
    fn a_process_that_runs_is_never_released_by_the_clock(
        mut agent in agent(), story in vec((event(), 20..240_u64), 4..24)
    ) {
        let mut world = World::new(&["n1"]);
        let (mut truth, mut restarted) = (Truth::default(), 0_u64);
        for (event, rounds) in story {
            let now = world.now.uptime().as_secs();
            let mut silent = 0;
            agent.advance(now);
            match event {
                Event::Begins(pid) => {
                    agent.run(pid, process(pid));
                    truth.running.entry(pid).or_insert(now);
                }
                Event::Ends(pid) => {
                    agent.end(pid);
                    truth.running.remove(&pid);
                }
                Event::Restarts => {
                    agent.restart(now);
                    restarted = now;
                }
                Event::Silent(rounds) => silent = rounds,
                Event::Nothing => {}
            }
            for round in 0..rounds {
                let mut changes = world.wait(MINUTE);
                let now = world.now.uptime().as_secs();
                if round < silent {
                    changes.extend(world.fail("n1"));
                } else {
                    let outcome = agent.outcome(now);
                    truth.answered += MINUTE;
                    if let Some(process) = agent.lists() {
                        let pid = process.namespace[3..].parse().unwrap();
                        if truth.running.contains_key(&pid) {
                            truth.listed.insert(pid, truth.answered);
                        }
                    }
                    changes.extend(world.report("n1", outcome));
                }
                for change in changes {
                    let ChangeKind::Cleared(why) = change.kind else { continue };
                    let pid: u32 = change.key.namespace[3..].parse().unwrap();
                    let Some(since) = truth.running.get(&pid) else { continue };
                    // A process that started a moment ago has not been found yet.
                    if now - since.max(&restarted) <= agent.interval + 2 * MINUTE {
                        continue;
                    }
                    prop_assert_ne!(why, Cleared::ByClock, "{} runs since {}", pid, since);
                    let answered = truth.answered - truth.listed.get(&pid).copied().unwrap_or(0);
                    prop_assert!(answered + agent.interval + MINUTE >= LIMIT, "{}: {:?} after {} s", pid, why, answered);
                }
            }
        }
    }

    /// The other processes, which have ended too, may have started and ended in any order before.
    #[test]
    fn a_process_that_has_ended_is_released_soon(mut agent in agent(), story in vec((event(), 2..60_u64), 1..30)) {
        let mut world = World::new(&["n1"]);
        for (event, rounds) in story {
            let now = world.now.uptime().as_secs();
            agent.advance(now);
            match event {
                Event::Begins(pid) => agent.run(pid, process(pid)),
                Event::Ends(pid) => agent.end(pid),
                Event::Restarts => agent.restart(now),
                Event::Silent(_) | Event::Nothing => {}
            }
            world.rounds(rounds, |w| {
                ask(w, &mut agent);
                w.evaluate();
            });
        }
        agent.processes.clear();
        // Until the results of the last scan have come.
        world.rounds(2, |w| ask(w, &mut agent));
        let snapshot = world.snapshot();
        let interval = snapshot.nodes.get(&NodeName::new("n1")).unwrap().interval;
        // A violation that was unseen for long and came back is waited for longer.
        let away = snapshot.violations.iter().flat_map(Violation::evidence).map(|e| e.away);
        let interval = away.chain(interval).max().map_or(0, |interval| interval.get().as_secs());
        // The last process hides others only until it clears itself.
        let quiet = 2 * required(interval) + 4 * MINUTE + agent.interval;
        world.rounds(quiet / MINUTE, |w| ask(w, &mut agent));
        let left = world.snapshot().violations.into_iter().filter(|v| v.state != State::Cleared).count();
        prop_assert_eq!(left, 0, "quiet for {} s, interval {}", quiet, interval);
        prop_assert!(world.blocked().is_empty());
    }
}
