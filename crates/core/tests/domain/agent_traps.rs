//! The traps of the real agent, one test each: conclusions that its answers suggest and that are wrong.

use std::sync::Arc;

use crate::common::{HOUR, World, app, complete, failed, record, record_of, settings};
use procscan_core::clearing::Cleared;
use procscan_core::decision::DecisionKind;
use procscan_core::ledger::{ChangeKind, Remembered};
use procscan_core::names::{App, NodeName, PodRef};
use procscan_core::policy::PodState;
use procscan_core::report::FailureReason;
use procscan_core::resources;
use procscan_core::snapshot::State;

/// An agent that scans every 100 s and is asked every 60 s, as shipped.
fn scan_time(world: &World) -> i64 {
    world.clock() / 100 * 100
}

#[test]
fn trap_1_an_empty_answer_does_not_mean_clean() {
    let mut world = World::new(&["n1"]);
    world.rounds(5, |w| drop(w.answer("n1", vec![record("ns-a", scan_time(w))])));
    assert_eq!(world.blocked(), ["ns-a"]);
    // Half an hour of empty answers, less one round: nothing clears.
    world.rounds(29, |w| drop(w.answer("n1", vec![])));
    assert_ne!(world.state("ns-a"), State::Cleared);
    assert_eq!(world.blocked(), ["ns-a"]);
    // The ledger allows a restarted agent some time for its first scan. The clearing clock ends after that time.
    world.rounds(3, |w| drop(w.answer("n1", vec![])));
    assert_eq!(world.state("ns-a"), State::Cleared);
    assert!(world.blocked().is_empty());
}

#[test]
fn trap_1_three_offenders_of_which_each_scan_lists_one_neither_flap_nor_clear() {
    let names = ["ns-a", "ns-b", "ns-c"];
    // In turn, and in an order that repeats some and leaves others out for a while.
    for order in [vec![0, 1, 2], vec![0, 0, 1, 0, 2, 2, 1, 1, 0, 2, 2, 0, 1]] {
        let mut world = World::new(&["n1"]);
        let mut changes = Vec::new();
        world.rounds(24 * 60, |w| {
            let scan = usize::try_from(w.clock() / 100).unwrap();
            let listed = names[order[scan % order.len()]];
            changes.extend(w.answer("n1", vec![record(listed, scan_time(w))]));
            changes.extend(w.ledger.advance(w.now));
            w.evaluate();
        });
        assert_eq!(changes.len(), 3, "each appears once and that is all: {changes:?}");
        assert_eq!(world.blocked(), names);
        assert!(names.iter().all(|name| world.state(name) == State::Active));
    }
}

#[test]
fn trap_2_a_listed_record_does_not_mean_running() {
    let mut world = World::new(&["n1"]);
    world.rounds(3, |w| drop(w.answer("n1", vec![record("ns-a", scan_time(w))])));
    assert_eq!(world.blocked(), ["ns-a"]);
    // The process ends. The agent lists its last record, with its last timestamp, for ever.
    let last = record("ns-a", scan_time(&world));
    world.rounds(31, |w| drop(w.answer("n1", vec![last.clone()])));
    let cleared = world.violation("ns-a");
    assert_eq!(cleared.state, State::Cleared);
    assert_eq!(cleared.leading.cleared, Some(Cleared::ByClock));
    assert!(world.blocked().is_empty());
    // The tombstone has the record's timestamps, so listing it for a day changes nothing.
    let mut changes = Vec::new();
    world.rounds(26 * 60, |w| changes.extend(w.answer("n1", vec![last.clone()])));
    assert!(changes.is_empty(), "{changes:?}");
    assert!(world.blocked().is_empty());
    // A new timestamp is fresh evidence at once.
    world.wait(60);
    let changes = world.answer("n1", vec![record("ns-a", scan_time(&world))]);
    assert_eq!(changes[0].kind, ChangeKind::Appeared);
    assert_eq!(world.blocked(), ["ns-a"]);
}

#[test]
fn trap_2_a_record_that_is_old_at_first_sight_is_unconfirmed_until_it_changes() {
    let mut world = World::new(&["n1"]);
    world.wait(6 * HOUR);
    let old = record("ns-a", world.clock() - 31 * 60);
    assert_eq!(world.answer("n1", vec![old.clone()])[0].kind, ChangeKind::Sighted);
    assert_eq!(world.state("ns-a"), State::Unconfirmed);
    assert!(world.blocked().is_empty());
    world.rounds(5, |w| drop(w.answer("n1", vec![old.clone()])));
    assert!(world.blocked().is_empty());
    world.answer("n1", vec![record("ns-a", world.clock() - 20)]);
    assert_eq!(world.blocked(), ["ns-a"]);
}

#[test]
fn trap_2_skewed_clocks_are_judged_by_the_agents_own_date() {
    for skew in [-9 * 3600, 0, 9 * 3600] {
        let mut world = World::new(&["n1"]);
        world.wait(24 * HOUR);
        let own = world.clock() + skew;
        world.report("n1", complete(vec![record("ns-new", own - 60), record("ns-old", own - 7200)], own));
        assert_eq!(world.state("ns-new"), State::Active, "skew {skew}");
        assert_eq!(world.state("ns-old"), State::Unconfirmed, "skew {skew}");
    }
    // Without a `Date` header there is no age: only a change is evidence, forward or back.
    let mut world = World::new(&["n1"]);
    let no_date = |stamp| {
        let mut outcome = complete(vec![record("ns-a", stamp)], 0);
        if let procscan_core::report::Outcome::Complete(answer) = &mut outcome {
            answer.date = None;
        }
        outcome
    };
    world.report("n1", no_date(100));
    assert_eq!(world.state("ns-a"), State::Unconfirmed);
    world.wait(60);
    world.report("n1", no_date(40));
    assert_eq!(world.state("ns-a"), State::Active);
}

#[test]
fn trap_2_a_clock_that_was_set_back_is_believed_and_a_record_found_long_ago_is_not() {
    let mut world = World::new(&["n1"]);
    world.wait(24 * HOUR);
    let listed = |w: &World, stamp: i64, skew: i64| complete(vec![record("ns-a", stamp)], w.clock() + skew);
    world.report("n1", listed(&world, world.clock() + 7200, 7200));
    world.rounds(40, |w| drop(w.fail("n1")));
    assert_eq!(world.state("ns-a"), State::Unconfirmed);
    world.report("n1", listed(&world, world.clock() - 5 * 3600, 0));
    assert_eq!(world.state("ns-a"), State::Unconfirmed);
    world.report("n1", listed(&world, world.clock(), 0));
    assert_eq!(world.state("ns-a"), State::Active);
}

/// While an agent's pod is being replaced, two agents of one node answer in turn.
#[test]
fn trap_2_a_record_is_fresh_only_if_its_timestamp_is_later_than_all_before_it() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    world.wait(HOUR);
    for stamp in [3600, 0] {
        world.answer("n1", vec![record("ns-a", stamp)]);
    }
    world.wait(5 * HOUR);
    assert_eq!(world.state("ns-a"), State::Unconfirmed);
    world.answer("n1", vec![record("ns-a", 1800)]);
    assert_eq!(world.state("ns-a"), State::Unconfirmed, "it is earlier than the latest");
    world.answer("n1", vec![record("ns-a", 5400)]);
    assert_eq!(world.state("ns-a"), State::Active, "it is later than all of them");
}

#[test]
fn trap_3_a_restarted_agents_empty_list_clears_nothing() {
    let mut world = World::new(&["n1"]);
    world.rounds(5, |w| drop(w.answer("n1", vec![record("ns-a", scan_time(w))])));
    assert_eq!(world.blocked(), ["ns-a"]);
    // The agent crashes again and again before its first scan: refused, then empty, for a day.
    world.rounds(12 * 60, |w| {
        drop(w.report("n1", failed(FailureReason::Refused)));
        w.wait(60);
        w.answer("n1", vec![]);
    });
    assert_ne!(world.state("ns-a"), State::Cleared);
    assert_eq!(world.blocked(), ["ns-a"]);
}

#[test]
fn trap_3_two_agents_of_one_node_answering_in_turn_are_not_fresh_evidence() {
    let mut world = World::new(&["n1"]);
    let (old, older) = (record("ns-a", 0), record("ns-a", -500));
    world.answer("n1", vec![old.clone()]);
    world.wait(1);
    world.answer("n1", vec![older.clone()]);
    let observations = world.violation("ns-a").observations();
    world.rounds(100, |w| {
        w.answer("n1", vec![old.clone()]);
        w.wait(1);
        w.answer("n1", vec![older.clone()]);
    });
    assert_eq!(world.violation("ns-a").observations(), observations);
    assert_eq!(world.state("ns-a"), State::Cleared);
}

#[test]
fn trap_4_identity_comes_from_the_pod_and_the_record_is_the_fallback() {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    let pod = "hello-6d5f7c9b8-x2x4z";
    world.answer("n1", vec![record_of("ns-a", pod, "xmrig", 0)]);
    world.pod_on("ns-a", pod, "n1", "hello");
    let plan = world.evaluate().plan;
    assert_eq!(plan.blocks[0].app, App::new("ns-a", "app", "hello"));
    assert_eq!(&*plan.blocks[0].exposure.services[0], "hello-x7k2.ns-a.svc");

    let mut alone = World::new(&["n1"]);
    alone.answer("n1", vec![record_of("ns-a", pod, "xmrig", 0)]);
    assert_eq!(alone.evaluate().plan.blocks[0].app, App::new("ns-a", "app", pod));
}

#[test]
fn trap_5_texts_that_tenants_choose_stay_data_in_every_object() {
    let nasty = "a: b\n- \"c\" {app} \u{1b}[2J<script>\u{202e}";
    let mut world = World::new(&["n1"]);
    let mut record = record_of("ns-a", "web", nasty, 0);
    let claim = Arc::make_mut(&mut record.claim);
    claim.cmdline = "wallet-secret".into();
    claim.name = nasty.into();
    claim.regex = "".into();
    world.answer("n1", vec![record]);
    let evaluation = world.evaluate();
    let objects = resources::render(&evaluation.plan, &settings(), resources::Existing::default());
    assert_eq!(objects.len(), 3);
    for object in objects {
        let text = serde_json::to_string(&object).unwrap();
        assert!(!text.contains("wallet-secret"), "the command line stays out of {}", object.metadata.name);
        assert!(procscan_core::names::is_dns_subdomain(&object.metadata.name));
        if object.kind == "Notification" {
            assert!(!text.contains("\\u001b") && !text.contains('\u{202e}'));
        } else {
            assert_eq!(object.spec["defaultConfig"]["violations"][0]["process"], nasty);
            let services = object.spec["matchRules"][0]["service"].as_array().unwrap();
            assert_eq!(services.len(), 1, "no Service can have such a name: only the sentinel is there");
        }
    }
    for decision in evaluation.decisions {
        assert!(!decision.reason.contains(['\n', '\u{1b}']) && !decision.app.to_string().contains('\n'));
    }
}

#[test]
fn trap_6_a_node_may_only_accuse_pods_that_run_on_it() {
    let mut world = World::new(&["n1", "n2"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web", "n1", "web");
    world.pod_is("ns-b", "web", PodState::Gone);
    world.pod_is("ns-c", "web", PodState::Unreadable("403".into()));
    let lies = vec![record("ns-a", 0), record("ns-b", 0), record("ns-c", 0), record("ns-d", 0)];
    world.answer("n2", lies);
    let evaluation = world.evaluate();
    assert!(evaluation.plan.blocks.is_empty());
    assert_eq!((evaluation.disputes.len(), evaluation.unverified), (2, 2));
    let kinds: Vec<_> = evaluation.decisions.iter().map(|d| (d.kind, d.app.namespace.to_string())).collect();
    assert_eq!(kinds, [(DecisionKind::Disputed, "ns-a".into()), (DecisionKind::Disputed, "ns-b".into())]);
    assert!(world.evaluate().decisions.is_empty(), "logged once");
    // The evidence of the Pod's own node stays, whatever the lying node reports.
    world.wait(60);
    world.answer("n1", vec![record("ns-a", world.clock())]);
    world.answer("n2", vec![record("ns-a", world.clock() - 1)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    // When the process ends, the records of the lying node do not preserve the block either.
    world.rounds(31, |w| {
        w.answer("n1", vec![]);
        w.answer("n2", vec![record("ns-a", w.clock())]);
        w.evaluate();
    });
    assert!(world.blocked().is_empty());
    assert_eq!(world.state("ns-a"), State::Active, "the record of the lying node is still shown");
}

#[test]
fn a_pod_that_moves_leaves_a_record_behind_that_neither_blocks_nor_releases() {
    let mut world = World::new(&["old", "new"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web", "old", "web");
    world.answer("old", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.pod_on("ns-a", "web", "new", "web");
    let left_behind = record("ns-a", 0);
    let mut decisions = Vec::new();
    world.rounds(60, |w| {
        w.answer("old", vec![left_behind.clone()]);
        w.answer("new", vec![record("ns-a", w.clock())]);
        decisions.extend(w.evaluate().decisions);
    });
    assert_eq!(decisions, []);
    assert_eq!(world.blocked(), ["ns-a"]);
    assert_eq!(&*world.violation("ns-a").leading.node.0, "new");
}

#[test]
fn a_tenant_does_not_unblock_itself_by_deleting_its_pod() {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web", "n1", "web");
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.wait(60);
    let pod = PodRef { namespace: "ns-a".into(), pod: "web".into() };
    world.ledger.pod_gone(&pod, world.now);
    world.pod_is("ns-a", "web", PodState::Gone);
    assert_eq!(world.state("ns-a"), State::Cleared, "the violation is over");
    assert_eq!(world.blocked(), ["ns-a"], "the App's block goes on, because Pods of it remain");
    world.facts.apps.get_mut(&app("ns-a")).unwrap().gone = true;
    let evaluation = world.evaluate();
    assert!(evaluation.plan.blocks.is_empty());
    assert_eq!(&*evaluation.decisions[0].reason, "no Pod of the App remains");
}

#[test]
fn trap_7_an_answer_that_is_cut_short_is_evidence_of_presence_only() {
    use procscan_core::report::{Failure, Outcome};
    let mut world = World::new(&["n1"]);
    let partial = |records: Vec<_>, date: i64| match complete(records, date) {
        Outcome::Complete(answer) => {
            Outcome::Partial(answer, Failure { reason: FailureReason::TooLarge, detail: String::new() })
        }
        other => other,
    };
    world.report("n1", partial(vec![record("ns-a", 0)], 0));
    assert_eq!(world.blocked(), ["ns-a"]);
    world.rounds(10 * 60, |w| {
        let date = w.clock();
        w.report("n1", partial(vec![], date));
    });
    assert_ne!(world.state("ns-a"), State::Cleared);
    assert_eq!(world.blocked(), ["ns-a"]);
    let coverage = world.snapshot().coverage;
    assert_eq!((coverage.fresh, coverage.expected()), (0, 1), "it is not covered either");
}

/// A node that accuses many Pods seems to have an agent that lists them in turn. So its evidence stays active for
/// longer. That does not apply to evidence that has grown old before.
#[test]
fn old_evidence_is_not_young_again_because_its_node_accuses_others() {
    let mut world = World::new(&["n1"]);
    world.rounds(5, |w| drop(w.answer("n1", vec![record("ns-a", w.clock())])));
    // The node gives no answer for longer than the evidence stays fresh, and not for long enough to clear it.
    world.rounds(40, |w| drop(w.fail("n1")));
    assert_eq!(world.state("ns-a"), State::Unconfirmed);
    world.rounds(2, |w| {
        let many = (0..30).map(|n| record_of("ns-b", &format!("p-{n}"), "xmrig", w.clock()));
        w.answer("n1", many.collect());
    });
    assert_eq!(world.state("ns-a"), State::Unconfirmed);
}

/// The other replica cleared the violation. It had lost some reports by a restart, which this replica has received. The
/// other replica may have received later reports that this one has not.
#[test]
fn evidence_that_another_replica_cleared_is_fresh_again_only_by_a_young_record() {
    let mut world = World::new(&["n1"]);
    let first = world.clock() + 60;
    world.rounds(3, |w| drop(w.answer("n1", vec![record("ns-a", w.clock())])));
    let last = world.clock();
    let remembered_evidence = Remembered {
        key: world.violation("ns-a").key,
        node: NodeName::new("n1"),
        record: record("ns-a", first),
        first_seen: world.now.wall(),
        fresh_at: world.now.wall(),
        observations: 1,
        cleared: Some((world.now.wall(), Cleared::ByClock)),
        scan_interval: None,
        hidden_for: std::time::Duration::ZERO,
    };
    world.ledger.remember([remembered_evidence], world.now);
    assert_eq!(world.state("ns-a"), State::Cleared, "no report has come since");
    for stamp in [last, world.clock() - 2 * 3600] {
        world.rounds(1, |w| drop(w.answer("n1", vec![record("ns-a", stamp)])));
        assert_eq!(world.state("ns-a"), State::Cleared, "the record is old, whether it is known here or not");
    }
    world.rounds(1, |w| drop(w.answer("n1", vec![record("ns-a", w.clock())])));
    assert_eq!(world.state("ns-a"), State::Active);
}
