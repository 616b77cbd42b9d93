//! An App whose process another process hides for ever is released after the limit of answered time, however often the
//! leader changes.

use crate::common::agent::{Process, RealAgent};
use std::time::Duration;

use crate::common::{HOUR, MINUTE, World, record};
use procscan_core::clearing::Cleared;
use procscan_core::ledger::Detection;
use procscan_core::snapshot::State;

const LIMIT: u64 = 24 * HOUR;

fn ask(world: &mut World, agent: &mut RealAgent) {
    let outcome = agent.outcome(world.now.uptime().as_secs());
    world.report("n1", outcome);
    if world.now.uptime().as_secs().is_multiple_of(300) {
        world.evaluate();
    }
}

/// `ns-j` is blocked, and from then on `ns-k` hides it.
fn hidden(interval: u64) -> (World, RealAgent) {
    hidden_in(World::new(&["n1"]), interval)
}

fn hidden_in(mut world: World, interval: u64) -> (World, RealAgent) {
    let mut agent = RealAgent::new(interval, 0);
    agent.run(1000, Process::of("ns-j"));
    world.rounds(60, |w| ask(w, &mut agent));
    assert_eq!(world.blocked(), ["ns-j"]);
    // "999" comes after "1000" in the order of strings.
    agent.run(999, Process::of("ns-k"));
    (world, agent)
}

/// For how many minutes it stays blocked, with a restart each `every` minutes.
fn outlasts(world: &mut World, agent: &mut RealAgent, every: u64) -> u64 {
    let mut minutes = 0;
    while world.blocked().contains(&"ns-j".to_owned()) {
        world.rounds(1, |w| ask(w, agent));
        minutes += 1;
        if minutes % every == 0 {
            world.restart();
        }
        assert!(minutes < 100 * 60, "never released");
    }
    minutes
}

#[test]
fn restarts_make_a_hidden_violation_wait_a_little_longer_but_not_anew() {
    for every in [3 * 60, 7 * 60, 11 * 60] {
        let (mut world, mut agent) = hidden(100);
        let minutes = outlasts(&mut world, &mut agent, every);
        // Time that was not persisted yet is lost with each restart: an hour at the most, and the round of the
        // restart.
        let most = LIMIT / MINUTE * every / (every - 66) + 70;
        assert!((LIMIT / MINUTE - 3..=most).contains(&minutes), "{minutes} min, a restart each {every} min");
        assert!(world.blocked().contains(&"ns-k".to_owned()));
        if world.state("ns-j") == State::Cleared {
            assert_eq!(world.violation("ns-j").leading.cleared, Some(Cleared::Hidden));
        }
    }
}

#[test]
fn evidence_that_was_seen_again_waits_anew_whichever_leader_has_seen_it() {
    for restarts_before in [false, true] {
        let (mut world, mut agent) = hidden(100);
        world.rounds(20 * 60, |w| ask(w, &mut agent));
        if restarts_before {
            world.restart();
        }
        // One scan finds it alone. From then on it is hidden again.
        agent.end(999);
        world.rounds(2, |w| ask(w, &mut agent));
        agent.run(999, Process::of("ns-k"));
        world.evaluate();
        world.restart();
        let minutes = outlasts(&mut world, &mut agent, u64::MAX);
        assert!(minutes >= LIMIT / MINUTE - 3, "{minutes} min");
    }
}

/// The limit is for hidden violations. A violation that may only be seen seldom waits for its own clearing time.
#[test]
fn a_new_leader_releases_nothing_by_the_limit_before_it_has_listened_for_the_clearing_time() {
    let (mut world, mut agent) = hidden(100);
    world.rounds(23 * 60 + 50, |w| ask(w, &mut agent));
    world.restart();
    world.rounds(29, |w| {
        ask(w, &mut agent);
        assert!(w.blocked().contains(&"ns-j".to_owned()));
    });
    world.rounds(130, |w| ask(w, &mut agent));
    assert!(!world.blocked().contains(&"ns-j".to_owned()));
}

#[test]
fn the_hidden_time_is_persisted_seldom() {
    let (mut world, mut agent) = hidden(100);
    let mut writes = 0;
    world.rounds(23 * 60, |w| {
        let before = w.persisted.clone();
        ask(w, &mut agent);
        let of_j = |persisted: &std::collections::BTreeMap<String, procscan_core::state::Incident>| {
            persisted.values().find(|it| *it.spec.app.namespace == *"ns-j").cloned()
        };
        writes += usize::from(of_j(&w.persisted) != of_j(&before));
    });
    assert!(writes <= 24, "{writes} writes in 23 h");
}

/// Both replicas receive the report, but the leader is killed before it decides, so nothing of it is persisted.
#[test]
fn evidence_that_only_the_next_leader_has_seen_again_waits_anew() {
    let (mut world, mut agent) = hidden(100);
    world.follower = Some((world.new_ledger(), true));
    world.rounds(22 * 60 + 1, |w| ask(w, &mut agent));
    agent.end(999);
    world.rounds(2, |w| {
        let outcome = agent.outcome(w.now.uptime().as_secs());
        w.report("n1", outcome);
    });
    assert_eq!(world.state("ns-j"), State::Active);
    agent.run(999, Process::of("ns-k"));
    world.fail_over();
    let minutes = outlasts(&mut world, &mut agent, u64::MAX);
    assert!(minutes >= LIMIT / MINUTE - 3, "{minutes} min");
}

#[test]
fn evidence_that_was_seen_again_and_could_not_be_judged_waits_anew_after_a_restart() {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    for namespace in ["ns-j", "ns-k"] {
        world.pod_on(namespace, "web", "n1", "web");
    }
    let (mut world, mut agent) = hidden_in(world, 100);
    world.rounds(20 * 60, |w| ask(w, &mut agent));
    let facts = world.facts.clone();
    world.facts.pods.clear();
    agent.end(999);
    world.rounds(2, |w| ask(w, &mut agent));
    world.evaluate();
    agent.run(999, Process::of("ns-k"));
    world.rounds(5, |w| ask(w, &mut agent));
    world.restart();
    world.facts = facts;
    let minutes = outlasts(&mut world, &mut agent, u64::MAX);
    assert!(minutes >= LIMIT / MINUTE - 10, "{minutes} min");
}

#[test]
fn a_new_leaders_ledger_clears_a_hidden_violation_when_its_policy_does() {
    let (mut world, mut agent) = hidden(100);
    world.rounds(20 * 60, |w| ask(w, &mut agent));
    world.restart();
    outlasts(&mut world, &mut agent, u64::MAX);
    assert_eq!(world.state("ns-j"), State::Cleared);
}

#[test]
fn another_evaluation_at_the_same_moment_changes_no_document() {
    let (mut world, mut agent) = hidden(100);
    world.rounds(3 * 60, |w| {
        ask(w, &mut agent);
        w.evaluate();
        let before = w.persisted.clone();
        w.evaluate();
        assert_eq!(w.persisted, before);
    });
}

#[test]
fn evidence_that_is_not_hidden_is_not_persisted_as_hidden() {
    let rules = Detection { clear_after: Duration::from_secs(3 * HOUR), ..Detection::default() };
    let mut world = World::with(&["n1"], rules);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.rounds(150, |w| {
        w.answer("n1", vec![]);
        w.evaluate();
        assert!(w.persisted.values().all(|it| it.status.evidence[0].hidden_for.is_none()), "{}", w.clock());
    });
}
