//! Agents whose scan interval is not learned yet. Until such an agent must have scanned, its answers prove no
//! absence.

use std::time::Duration;

use crate::common::agent::{Process, RealAgent};
use crate::common::{World, complete, failed, record};
use procscan_core::clearing::Cleared;
use procscan_core::ledger::Detection;
use procscan_core::report::FailureReason;
use procscan_core::snapshot::State;

/// The shipped interval of the real agent, in seconds.
const SHIPPED: u64 = 1000;

/// One node, asked every `round` seconds.
fn world(clear_after: u64, round: u64) -> World {
    let rules = Detection {
        clear_after: Duration::from_secs(clear_after),
        answer_gap: Duration::from_secs(round),
        ..Detection::default()
    };
    World::with(&["n1"], rules)
}

fn ask(world: &mut World, agent: &mut RealAgent, round: u64) {
    world.wait(round);
    let outcome = agent.outcome(world.now.uptime().as_secs());
    world.report("n1", outcome);
    world.evaluate();
    world.ledger.round_done();
}

/// Waits until the only scan so far has found the process.
fn found_once(world: &mut World, agent: &mut RealAgent, round: u64) {
    while agent.lists().is_none() {
        ask(world, agent, round);
    }
    assert_eq!(world.blocked(), ["ns-j"]);
}

#[test]
fn a_running_process_is_not_released_between_the_first_two_scans_that_find_it() {
    for (interval, round) in [(100, 10), (100, 60), (SHIPPED, 10), (SHIPPED, 60)] {
        let mut world = world(30, round);
        let mut agent = RealAgent::new(interval, 0);
        agent.run(1000, Process::of("ns-j"));
        found_once(&mut world, &mut agent, round);
        for _ in 0..4 * interval / round {
            ask(&mut world, &mut agent, round);
            assert_eq!(world.blocked(), ["ns-j"], "{interval} s, {round} s, at {} s", world.clock());
        }
    }
}

/// A restarted agent scans one interval after its start.
#[test]
fn a_running_process_is_not_released_while_its_agent_restarts_before_its_second_scan() {
    for clear_after in [30, 1800] {
        for restarts in [[900, 900], [990, 990], [500, 990], [990, 0]] {
            let mut world = world(clear_after, 10);
            let mut agent = RealAgent::new(SHIPPED, 0);
            agent.run(1000, Process::of("ns-j"));
            found_once(&mut world, &mut agent, 10);
            for after in restarts.into_iter().filter(|after| *after > 0) {
                for _ in 0..after / 10 - 2 {
                    ask(&mut world, &mut agent, 10);
                }
                // While the agent restarts, nothing listens.
                world.wait(10);
                world.report("n1", failed(FailureReason::Refused));
                agent.restart(world.now.uptime().as_secs());
            }
            for _ in 0..2 * SHIPPED / 10 {
                ask(&mut world, &mut agent, 10);
                let what = format!("{clear_after} s, {restarts:?}, at {} s", world.clock());
                assert_eq!(world.blocked(), ["ns-j"], "{what}");
            }
        }
    }
}

/// For how many seconds the App stays blocked after the end of the process. The only scan so far has found it.
fn stays(world: &mut World, agent: &mut RealAgent) -> u64 {
    found_once(world, agent, 10);
    agent.processes.clear();
    let mut seconds = 0;
    while world.blocked() == ["ns-j"] {
        ask(world, agent, 10);
        seconds += 10;
        assert!(seconds < 10_000, "never released");
    }
    assert_eq!(world.violation("ns-j").leading.cleared, Some(Cleared::ByClock));
    seconds
}

#[test]
fn a_process_that_was_found_once_and_has_ended_is_released_when_its_agent_must_have_scanned() {
    for interval in [100, SHIPPED] {
        let mut agent = RealAgent::new(interval, 0);
        agent.run(1000, Process::of("ns-j"));
        assert_eq!(stays(&mut world(30, 10), &mut agent), SHIPPED + 10);
        let mut agent = RealAgent::new(interval, 0);
        agent.run(1000, Process::of("ns-j"));
        assert_eq!(stays(&mut world(1800, 10), &mut agent), 1800, "no later than ever by the defaults");
    }
    // An operator has configured how often the agents scan.
    let mut agent = RealAgent::new(100, 0);
    agent.run(1000, Process::of("ns-j"));
    let mut world = world(30, 10);
    let rules = Detection { assumed_interval: Duration::from_secs(100), ..world.rules.clone() };
    world.ledger.set_rules(rules);
    assert_eq!(stays(&mut world, &mut agent), 110);
}

#[test]
fn once_the_interval_is_learned_nothing_is_assumed() {
    let mut world = world(30, 5);
    let mut agent = RealAgent::new(5, 0);
    agent.run(1000, Process::of("ns-j"));
    (0..4).for_each(|_| ask(&mut world, &mut agent, 5));
    agent.processes.clear();
    (0..8).for_each(|_| ask(&mut world, &mut agent, 5));
    assert_eq!(world.state("ns-j"), State::Cleared);
}

/// The reference agent lists all processes, and removes those that have ended. The App is released as soon as a later
/// record shows how often the agent scans.
#[test]
fn a_later_record_of_another_process_shows_that_its_agent_has_scanned() {
    let mut world = world(30, 5);
    let answer = |w: &mut World, namespaces: &[&str]| {
        w.wait(5);
        let now = w.clock();
        let records = namespaces.iter().map(|namespace| record(namespace, now)).collect();
        w.report("n1", complete(records, now));
        w.evaluate();
    };
    answer(&mut world, &["ns-j", "ns-k"]);
    (0..6).for_each(|_| answer(&mut world, &["ns-k"]));
    assert_eq!(world.state("ns-j"), State::Cleared);
    assert_eq!(world.blocked(), ["ns-k"]);
}

/// Nothing is known of such an agent. It may hide other processes, so the wait is as long.
#[test]
fn an_inherited_block_waits_until_every_agent_must_have_scanned() {
    let mut world = world(30, 10);
    let mut agent = RealAgent::new(SHIPPED, 0);
    agent.run(1000, Process::of("ns-j"));
    found_once(&mut world, &mut agent, 10);
    for evidence in world.persisted.values_mut().flat_map(|incident| &mut incident.status.evidence) {
        assert_eq!(evidence.scan_interval, None);
    }
    agent.restart(world.now.uptime().as_secs());
    world.restart();
    for _ in 0..2 * SHIPPED / 10 {
        ask(&mut world, &mut agent, 10);
        assert_eq!(world.blocked(), ["ns-j"], "at {} s", world.clock());
    }
}

/// Its agent answers for ten minutes, is down for a minute, and so on. So it may never have scanned.
#[test]
fn an_agent_that_restarts_again_and_again_holds_its_blocks_for_the_limit_and_no_longer() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-j", 0)]);
    assert_eq!(world.blocked(), ["ns-j"]);
    let mut minutes = 0;
    world.rounds(48 * 60, |w| {
        minutes += 1;
        if minutes % 11 == 0 {
            w.report("n1", failed(FailureReason::Refused));
        } else {
            w.answer("n1", vec![]);
        }
        if minutes <= 24 * 60 {
            assert_eq!(w.blocked(), ["ns-j"], "{minutes} min");
        }
    });
    assert!(world.blocked().is_empty());
}
