//! Decoys that take long to read: the results of one scan are rounds apart, so that they look like separate scans.

use std::time::Duration;

use crate::common::agent::{Process, RealAgent};
use crate::common::{MINUTE, World, record};
use procscan_core::ledger::Detection;
use procscan_core::snapshot::State;

fn ask(world: &mut World, agent: &mut RealAgent) {
    let outcome = agent.outcome(world.now.uptime().as_secs());
    world.report("n1", outcome);
    world.evaluate();
}

/// Adds `decoys` decoys, each of which takes `lag` seconds longer.
fn add_decoys(agent: &mut RealAgent, decoys: u32, lag: u64) {
    agent.lag = lag;
    for decoy in 0..decoys {
        agent.run(2000 + decoy, Process { is_slow: true, ..Process::of(&format!("ns-d{decoy:02}")) });
    }
}

/// Most steps between two timestamps are within one scan. Then the decoys end, and the agent restarts just before its
/// next scan.
#[test]
fn slow_decoys_do_not_release_a_process_that_runs_beside_them_when_the_agent_restarts() {
    let cases = [
        (0, 0, 3600),
        (2, 130, 1000),
        (2, 130, 3600),
        (3, 300, 3600),
        (2, 300, 2500),
        (9, 200, 3600),
        (16, 200, 3600),
    ];
    for (decoys, lag, interval) in cases {
        let mut world = World::new(&["n1"]);
        let mut agent = RealAgent::new(interval, 0);
        agent.run(1000, Process::of("ns-j"));
        world.rounds(130, |world| ask(world, &mut agent));
        add_decoys(&mut agent, decoys, lag);
        world.rounds(6 * interval / MINUTE, |world| ask(world, &mut agent));
        agent.processes.retain(|pid, _| *pid == 1000);
        while agent.next_scan() > world.now.uptime().as_secs() + MINUTE {
            world.rounds(1, |world| ask(world, &mut agent));
        }
        agent.restart(world.now.uptime().as_secs());
        world.rounds(2 * interval / MINUTE, |world| {
            ask(world, &mut agent);
            let what = format!("{decoys} decoys, {lag} s each, {interval} s");
            assert_ne!(world.state("ns-j"), State::Cleared, "{what}");
            assert!(world.blocked().contains(&"ns-j".to_owned()), "{what}");
        });
    }
}

/// A quick decoy always takes the miner's place in the list at once. So the miner is never listed when the agent is
/// asked.
#[test]
fn a_process_that_many_slow_decoys_hide_in_each_scan_is_not_released_while_it_runs() {
    for (decoys, lag, interval) in
        [(2, 130, 1000), (9, 65, 1000), (12, 65, 1000), (20, 65, 3600), (9, 300, 3600)]
    {
        let mut world = World::new(&["n1"]);
        let mut agent = RealAgent::new(interval, 0);
        agent.run(1000, Process::of("ns-j"));
        world.rounds(130, |world| ask(world, &mut agent));
        assert_eq!(world.blocked(), ["ns-j"]);
        agent.run(1001, Process::of("ns-quick"));
        add_decoys(&mut agent, decoys, lag);
        world.rounds(20 * 60, |world| {
            ask(world, &mut agent);
            let at = world.clock();
            assert_ne!(
                world.state("ns-j"),
                State::Cleared,
                "{decoys} decoys, {lag} s each, {interval} s: {at}"
            );
        });
    }
}

/// The process was known to run all the time, so it may be unseen for as long once more.
#[test]
fn a_process_that_came_back_after_a_while_clears_after_six_times_as_long_even_over_restarts() {
    for restarts in [false, true] {
        let mut world = World::new(&["n1"]);
        let lists = |w: &mut World| {
            let now = w.clock();
            w.answer("n1", vec![record("ns-j", now)]);
            w.evaluate();
        };
        world.rounds(1, lists);
        world.rounds(19, |w| drop(w.answer("n1", vec![])));
        world.rounds(1, lists);
        if restarts {
            world.restart();
        }
        let mut rounds = 0;
        while world.state("ns-j") != State::Cleared {
            world.rounds(1, |w| drop(w.answer("n1", vec![])));
            rounds += 1;
            assert!(rounds < 200, "never released");
            assert_eq!(world.blocked().is_empty(), world.state("ns-j") == State::Cleared);
        }
        // The rounds in which a restarted agent answers nothing do not count.
        assert!((6 * 20 - 2..=6 * 20 + 42).contains(&rounds), "{rounds} rounds, {restarts}");
    }
}

#[test]
fn a_process_that_is_never_unseen_for_long_is_released_after_the_usual_time() {
    let mut world = World::new(&["n1"]);
    let mut agent = RealAgent::new(100, 0);
    agent.run(1000, Process::of("ns-j"));
    world.rounds(60, |world| ask(world, &mut agent));
    agent.processes.clear();
    world.rounds(33, |world| ask(world, &mut agent));
    assert_eq!(world.state("ns-j"), State::Cleared);
}

/// Copies of one process fill the whole scan interval, so that each seems to be a scan. Then the aggregator restarts,
/// and the copies end or run on. A process that runs beside them is listed only if nothing comes after it.
#[test]
fn copies_that_fill_the_scan_interval_and_a_restart_of_ours_release_nothing_that_runs() {
    for (copies, interval) in [(8, 1000), (10, 1000), (10, 3600), (12, 3600), (24, 3600)] {
        for (alone, at, goes_on) in [
            (130, 1, true),
            (130, 1, false),
            (130, 60, true),
            (130, 60, false),
            // It was found once before the copies came.
            (interval / MINUTE + 1, 1, false),
            (interval / MINUTE + 1, 60, true),
            (interval / MINUTE + 1, 60, false),
            (interval / MINUTE + 1, 200, false),
        ] {
            // The operator has configured the scan interval.
            let assumed_interval = Duration::from_secs(interval);
            let mut world = World::with(&["n1"], Detection { assumed_interval, ..Detection::default() });
            let mut agent = RealAgent::new(interval, 0);
            agent.run(1000, Process::of("ns-j"));
            world.rounds(alone, |world| ask(world, &mut agent));
            assert_eq!(world.blocked(), ["ns-j"]);
            agent.lag = interval / copies;
            for copy in 0..u32::try_from(copies).unwrap() {
                agent.run(2000 + copy, Process { is_slow: true, ..Process::of("ns-d") });
            }
            world.rounds(at, |world| ask(world, &mut agent));
            world.restart();
            let what =
                format!("{copies} copies, {interval} s, alone for {alone} min, restart after {at} min");
            let hold = |world: &mut World, agent: &mut RealAgent, rounds: u64| {
                world.rounds(rounds, |world| {
                    ask(world, agent);
                    let what = format!("{what}, they go on: {goes_on}, at {} s", world.clock());
                    assert!(world.blocked().contains(&"ns-j".to_owned()), "{what}");
                });
            };
            hold(&mut world, &mut agent, 300);
            if !goes_on {
                agent.processes.retain(|pid, _| *pid == 1000);
                hold(&mut world, &mut agent, 300);
                world.restart();
            }
            hold(&mut world, &mut agent, 300);
        }
    }
}
