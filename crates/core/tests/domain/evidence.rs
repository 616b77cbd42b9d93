//! Which evidence of nodes is believed, rule by rule.

use std::time::Duration;

use crate::common::{MINUTE, World, app, record, record_of};
use procscan_core::decision::{DecisionKind, Mode};
use procscan_core::ledger::Detection;
use procscan_core::names::{Key, NodeName, PodRef};
use procscan_core::policy::{
    AccusedPod, ClusterFacts, InheritedBlock, OnIngresses, PodFact, PodIdentity, PodState,
};
use procscan_core::snapshot::State;

fn fact(asked: u64, state: PodState) -> PodFact {
    PodFact { asked: crate::common::at(asked), state }
}

#[test]
fn facts_from_before_an_accusation_do_not_judge_it() {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web", "n1", "web");
    let pod = PodRef { namespace: "ns-a".into(), pod: "web".into() };
    let present = world.facts.pods[&pod].state.clone();
    world.wait(100);
    world.answer("n1", vec![record("ns-a", 90)]);
    for (asked, state) in [(99, present.clone()), (99, PodState::Gone)] {
        world.facts.pods.insert(pod.clone(), fact(asked, state));
        let evaluation = world.evaluate();
        assert_eq!(
            (evaluation.plan.blocks.len(), evaluation.disputes.len(), evaluation.unverified),
            (0, 0, 1)
        );
    }
    let snapshot = world.snapshot();
    let requests = world.incidents.lookup_requests(&snapshot, &world.policy);
    assert_eq!(requests.pods[&pod].since, crate::common::at(100));
    assert!(!requests.are_answered_by(&world.facts));
    world.facts.pods.insert(pod.clone(), fact(100, present));
    assert!(requests.are_answered_by(&world.facts));
    assert_eq!(world.blocked(), ["ns-a"]);
    let snapshot = world.snapshot();
    let requests = world.incidents.lookup_requests(&snapshot, &world.policy);
    let accused = AccusedPod { pod, which: PodIdentity::Uid("uid of web".into()) };
    assert_eq!(requests.apps.into_values().collect::<Vec<_>>(), [[accused]]);
}

#[test]
fn an_app_is_accused_since_the_earliest_of_its_fresh_evidence() {
    let mut world = World::new(&["n1", "n2"]);
    let since = |world: &World| world.incidents.incident(&app("ns-a")).unwrap().accused_since();
    for (node, process) in [("n2", "xmrig"), ("n1", "nmap")] {
        world.wait(10);
        let now = world.clock();
        world.answer(node, vec![record_of("ns-a", "web", process, now)]);
        world.evaluate();
        assert_eq!(since(&world), Some(crate::common::at(10)), "{process}");
        assert!(world.incidents.incident(&app("ns-a")).unwrap().is_blocked());
    }
    for _ in 0..90 {
        world.wait(MINUTE);
        world.answer("n1", Vec::new());
        world.answer("n2", Vec::new());
        world.evaluate();
    }
    assert_eq!(since(&world), None, "everything has cleared");
    assert!(!world.incidents.incident(&app("ns-a")).unwrap().is_blocked());
}

/// A node that accuses many Pods must not move a Pod that another node accuses to the end of the order.
#[test]
fn every_node_that_accuses_a_pod_is_named_with_the_time_of_its_own_evidence() {
    let mut world = World::new(&["n1", "n2", "n3"]);
    world.policy.verify_pods = true;
    for node in ["n2", "n3", "n1", "n2"] {
        world.wait(10);
        let now = world.clock();
        world.answer(node, vec![record("ns-a", now)]);
    }
    let snapshot = world.snapshot();
    let requests = world.incidents.lookup_requests(&snapshot, &world.policy);
    let pod = PodRef { namespace: "ns-a".into(), pod: "web".into() };
    let at = crate::common::at;
    let nodes = [("n1", at(30)), ("n2", at(40)), ("n3", at(20))].map(|(node, at)| (NodeName::new(node), at));
    assert_eq!((&requests.pods[&pod].nodes[..], requests.pods[&pod].since), (&nodes[..], at(40)));
}

/// Evaluations follow changes, so evidence may be renewed and grow old between two of them.
#[test]
fn evidence_that_is_renewed_between_two_evaluations_counts_from_then() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    // The process runs for ten more minutes, and nothing is decided.
    world.rounds(10, |world| {
        let now = world.clock();
        world.answer("n1", vec![record("ns-a", now)]);
    });
    let last = world.clock();
    // The evidence is old before the clock has run.
    let rules = Detection { max_age: Duration::from_mins(5), ..world.rules.clone() };
    world.ledger.set_rules(rules);
    world.rounds(29, |world| {
        world.answer("n1", vec![record("ns-a", last)]);
    });
    assert_eq!(world.state("ns-a"), State::Unconfirmed);
    assert_eq!(world.blocked(), ["ns-a"], "its node has answered for 29 minutes without fresh evidence");
    world.rounds(1, |world| {
        world.answer("n1", vec![record("ns-a", last)]);
    });
    assert_eq!(world.blocked(), Vec::<String>::new());
}

#[test]
fn a_dispute_is_logged_once_and_stays_while_its_pod_is_looked_up_again() {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web", "n2", "web");
    let pod = PodRef { namespace: "ns-a".into(), pod: "web".into() };
    let elsewhere = world.facts.pods[&pod].state.clone();
    let mut disputed = 0;
    for round in 0..5 {
        world.wait(MINUTE);
        let now = world.clock();
        world.answer("n1", vec![record("ns-a", now)]);
        for asked in [now - 1, now] {
            world.facts.pods.insert(pod.clone(), fact(u64::try_from(asked).unwrap(), elsewhere.clone()));
            let evaluation = world.evaluate();
            disputed += evaluation.decisions.iter().filter(|d| d.kind == DecisionKind::Disputed).count();
            if disputed > 0 {
                assert_eq!(evaluation.disputes[0].reason, "the Pod runs on node n2", "round {round}");
            }
            assert!(evaluation.plan.blocks.is_empty());
        }
    }
    assert_eq!(disputed, 1);
}

#[test]
fn evidence_that_can_not_be_verified_clears_nothing() {
    for is_inherited in [false, true] {
        let mut world = World::new(&["n1"]);
        world.policy.verify_pods = true;
        world.pod_on("ns-a", "web", "n1", "web");
        if is_inherited {
            let accused = [Key::new("ns-a", "web", "xmrig")].into();
            let inherited = InheritedBlock {
                app: app("ns-a"),
                notified_at: None,
                is_guess: false,
                accused,
                services: vec!["web.ns-a.svc".into()],
                on_ingresses: OnIngresses::default(),
            };
            world.incidents.inherit([inherited], &world.policy, crate::common::at(0));
        } else {
            world.answer("n1", vec![record("ns-a", 0)]);
        }
        assert_eq!(world.blocked(), ["ns-a"]);
        world.pod_is("ns-a", "web", PodState::Unreadable("403".into()));
        world.rounds(120, |w| {
            let now = w.clock();
            w.answer("n1", vec![record("ns-a", now)]);
            w.evaluate();
        });
        assert_eq!(world.blocked(), ["ns-a"], "inherited: {is_inherited}");
    }
}

#[test]
fn a_record_of_an_earlier_pod_does_not_block_its_successor_after_the_app_was_gone() {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web", "n1", "web");
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.facts.apps.get_mut(&app("ns-a")).unwrap().gone = true;
    world.pod_is("ns-a", "web", PodState::Gone);
    assert!(world.blocked().is_empty());
    // The next Pod of that name is clean, but its agent still lists the old record.
    world.facts.apps.get_mut(&app("ns-a")).unwrap().gone = false;
    world.pod_on("ns-a", "web", "n1", "web");
    world.wait(5 * MINUTE);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert!(world.blocked().is_empty());
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    assert_eq!(world.blocked(), ["ns-a"], "another time is fresh evidence");
}

#[test]
fn evidence_that_is_renewed_more_often_than_its_pod_is_looked_up_is_still_judged() {
    let mut world = World::new(&["n1", "n2"]);
    world.policy.verify_pods = true;
    let pod = |namespace: &str| PodRef { namespace: namespace.into(), pod: "web".into() };
    world.pod_on("ns-a", "web", "n1", "web");
    let present = world.facts.pods[&pod("ns-a")].state.clone();
    for second in 100..120 {
        world.wait(if second == 100 { 100 } else { 1 });
        let now = world.clock();
        for node in ["n1", "n2"] {
            world.answer(node, vec![record("ns-a", now)]);
        }
        // The fact is five seconds old, each second.
        world.facts.pods.insert(pod("ns-a"), fact(second - 5, present.clone()));
        let evaluation = world.evaluate();
        let is_judged = second >= 105;
        assert_eq!(evaluation.plan.blocks.len(), usize::from(is_judged), "second {second}");
        assert_eq!(evaluation.disputes.len(), usize::from(is_judged), "n2 may not accuse the Pod");
    }
}

#[test]
fn a_process_that_has_another_name_each_time_is_not_released_because_the_cluster_can_not_be_read() {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web", "n1", "web");
    // The agent lists everything that it finds.
    world.answer("n1", vec![record_of("ns-a", "web", "x0", 0), record_of("ns-b", "web", "xmrig", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    let pod = PodRef { namespace: "ns-a".into(), pod: "web".into() };
    let present = world.facts.pods[&pod].clone();
    world.pod_is("ns-a", "web", PodState::Unreadable("503".into()));
    for restarts in [false, true] {
        world.rounds(60, |w| {
            let now = w.clock();
            w.answer("n1", vec![record_of("ns-a", "web", &format!("x{now}"), now)]);
            assert_eq!(w.blocked(), ["ns-a"]);
        });
        if !restarts {
            world.restart();
            assert_eq!(world.blocked(), ["ns-a"]);
        }
    }
    world.facts.pods.insert(pod, present);
    assert_eq!(world.blocked(), ["ns-a"]);
    // The process has ended, and the evidence of its last name clears as usual.
    world.rounds(29, |w| {
        w.answer("n1", vec![]);
        assert_eq!(w.blocked(), ["ns-a"]);
    });
    world.rounds(40, |w| drop(w.answer("n1", vec![])));
    assert!(world.blocked().is_empty());
}

#[test]
fn evidence_of_another_pod_that_can_not_be_judged_holds_no_release() {
    let mut world = World::new(&["n1", "n2"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web", "n1", "web");
    world.answer("n1", vec![record("ns-a", 0), record("ns-b", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    // Another node accuses the Pod, and its own node accuses another Pod: neither has been looked up since.
    world.rounds(32, |w| {
        let now = w.clock();
        w.answer("n1", vec![record_of("ns-a", "made-up", "xmrig", now)]);
        w.answer("n2", vec![record_of("ns-a", "web", &format!("x{now}"), now)]);
    });
    assert!(world.blocked().is_empty());
}

#[test]
fn a_namespace_that_its_tenant_makes_too_large_to_look_at_is_not_opened_by_a_new_pod_name() {
    for successor in ["n1", "n2"] {
        let mut world = World::new(&["n1", "n2"]);
        world.policy.verify_pods = true;
        world.pod_on("ns-a", "web-1", "n1", "web");
        world
            .answer("n1", vec![record_of("ns-a", "web-1", "xmrig", 0), record_of("ns-b", "web", "xmrig", 0)]);
        assert_eq!(world.blocked(), ["ns-a"]);
        // 5,001 Services: every look-up fails. Then the Deployment's Pod is replaced, and mines on, on any node. Its
        // name is another one each time, so no look-up is sent after its accusation.
        world.pod_is("ns-a", "web-1", PodState::Unreadable("there are more than 5000".into()));
        world.rounds(60, |w| {
            let now = w.clock();
            let mines = record_of("ns-a", &format!("web-{now}"), "xmrig", now);
            for node in ["n1", "n2"] {
                w.answer(node, if node == successor { vec![mines.clone()] } else { vec![] });
            }
            assert_eq!(w.blocked(), ["ns-a"], "{successor}");
        });
        // Without an accusation there is nothing to wait for.
        world.rounds(60, |w| ["n1", "n2"].map(|node| w.answer(node, vec![])).into_iter().for_each(drop));
        assert!(world.blocked().is_empty(), "{successor}");
    }
}

/// The look-up of the namespace has failed before its Apps were inherited, and the new leader has not looked it up
/// yet.
#[test]
fn a_new_leader_releases_nothing_in_an_accused_namespace_that_it_has_not_looked_up() {
    let mut world = World::new(&["n1", "n2"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web-1", "n1", "web");
    world.follower = Some((world.new_ledger(), true));
    let list = |w: &mut World| {
        let now = w.clock();
        w.answer("n1", vec![record("ns-b", now), record("ns-c", now)]);
        w.answer("n2", vec![record_of("ns-a", "web-2", "xmrig", now)]);
    };
    world.answer("n1", vec![record_of("ns-a", "web-1", "xmrig", 0), record("ns-b", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.pod_is("ns-a", "web-1", PodState::Unreadable("503".into()));
    world.rounds(60, |w| {
        list(w);
        assert_eq!(w.blocked(), ["ns-a"]);
    });
    world.fail_over();
    world.facts = ClusterFacts::default();
    assert_eq!(world.blocked(), ["ns-a"]);
    // The leader looks it up, and the other Pod is of another App.
    world.pod_is("ns-a", "web-1", PodState::Gone);
    world.pod_on("ns-a", "web-2", "n2", "other");
    assert_eq!(world.blocked(), ["ns-a"], "of another App");
}

/// `ns-a` is blocked for its Pod on n1. Only the replica that does not lead receives the accusation of its other Pod,
/// on n2. Then n2 stops answering, and that evidence is old when that replica leads.
fn only_the_new_leader_has_a_report_of_the_other_pod() -> World {
    let mut world = World::new(&["n1", "n2"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web-1", "n1", "web");
    world.pod_on("ns-a", "web-2", "n2", "web");
    let accuse = |w: &mut World| {
        let now = w.clock();
        w.answer("n1", vec![record_of("ns-a", "web-1", "xmrig", now), record("ns-b", now)]);
    };
    let mut other = world.new_ledger();
    accuse(&mut world);
    assert_eq!(world.blocked(), ["ns-a"]);
    std::mem::swap(&mut world.ledger, &mut other);
    let now = world.clock();
    world.answer("n2", vec![record_of("ns-a", "web-2", "xmrig", now), record("ns-b", now)]);
    std::mem::swap(&mut world.ledger, &mut other);
    world.follower = Some((other, true));
    world.rounds(40, |w| {
        accuse(w);
        w.fail("n2");
        assert_eq!(w.blocked(), ["ns-a"]);
    });
    world.fail_over();
    world
}

/// n1 answers that its Pod has stopped. While n2 does not answer, nothing is released, for the reason `why`. Then n2
/// answers too.
fn is_released_when_n2_has_answered(mut world: World, why: &str) {
    world.rounds(40, |w| {
        w.answer("n1", vec![]);
        w.fail("n2");
        assert_eq!(w.blocked(), ["ns-a"], "{why}");
    });
    world.rounds(45, |w| {
        w.answer("n1", vec![]);
        w.answer("n2", vec![]);
    });
    assert!(world.blocked().is_empty());
}

#[test]
fn a_new_leader_releases_nothing_for_which_it_has_old_evidence_that_it_has_not_looked_up() {
    let mut world = only_the_new_leader_has_a_report_of_the_other_pod();
    world.facts = ClusterFacts::default();
    is_released_when_n2_has_answered(world, "the other Pod has not been looked up");
}

#[test]
fn evidence_that_only_another_replica_received_holds_the_release_until_its_node_has_answered() {
    let world = only_the_new_leader_has_a_report_of_the_other_pod();
    is_released_when_n2_has_answered(world, "the node of the other Pod does not answer");
}

/// An App is blocked, and gone while `prevented`, so that it is not released as gone. Then it is back and mines, and
/// its Pod has not been looked up since the accusation. From then on it may be released.
fn gone_and_back(prevented: impl Fn(&mut World, bool)) -> World {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web", "n1", "web");
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    prevented(&mut world, true);
    world.facts.apps.get_mut(&app("ns-a")).unwrap().gone = true;
    world.pod_is("ns-a", "web", PodState::Gone);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.facts.apps.get_mut(&app("ns-a")).unwrap().gone = false;
    world.wait(MINUTE);
    let now = world.clock();
    world.pod_is("ns-a", "web", PodState::Unreadable("503".into()));
    world.answer("n1", vec![record("ns-a", now)]);
    prevented(&mut world, false);
    world
}

#[test]
fn an_app_that_was_gone_while_paused_and_is_back_is_not_released_as_gone() {
    let mut world = gone_and_back(|world, is_paused| {
        world.policy.mode = if is_paused { Mode::Paused } else { Mode::Enforce };
    });
    assert_eq!(world.blocked(), ["ns-a"]);
    // Without an accusation there is nothing to wait for.
    world.rounds(40, |w| drop(w.answer("n1", vec![])));
    assert!(world.blocked().is_empty());
}

/// The release as gone is decided, can't be persisted, and is rolled back.
#[test]
fn an_app_that_was_gone_while_nothing_could_be_persisted_and_is_back_is_not_released_as_gone() {
    let mut world = gone_and_back(|world, is_unwritable| {
        world.unwritable.clear();
        world.unwritable.extend(is_unwritable.then(|| "ns-a".to_owned()));
    });
    assert_eq!(world.blocked(), ["ns-a"]);
}

/// Two leaders' clocks don't show which of them received the last report. So the answers to a replica before its term
/// prove no absence.
#[test]
fn a_new_leader_counts_no_answers_from_before_its_term_whatever_its_clock_shows() {
    for (is_looked_at, ahead) in [(false, 0), (false, 31), (true, 0), (true, 31)] {
        let mut world = World::new(&["n1"]);
        world.policy.verify_pods = true;
        world.pod_on("ns-a", "web", "n1", "web");
        world.follower = Some((world.new_ledger(), true));
        world.follower_ahead = ahead * 24 * 3600;
        // The agent scans once a minute, lists everything that it finds, and finds the first one seldom.
        let list = |w: &mut World, found: u64| {
            let now = w.clock();
            w.answer("n1", vec![record("ns-a", found.cast_signed()), record("ns-b", now)]);
        };
        world.rounds(15, |w| {
            list(w, w.now.uptime().as_secs() / (5 * MINUTE) * 5 * MINUTE);
            w.evaluate();
        });
        assert_eq!(world.blocked(), ["ns-a"]);
        world.rounds(4, |w| list(w, 15 * MINUTE));
        // The process is found again in a report that only this replica receives. Another Service is closed, so the
        // document has all of it.
        world.wait(MINUTE);
        if let Some((_, receives)) = &mut world.follower {
            *receives = false;
        }
        list(&mut world, 20 * MINUTE);
        world.service("ns-a", "another", &["web"]);
        assert_eq!(world.blocked(), ["ns-a"]);
        world.fail_over();
        if !is_looked_at {
            world.facts = ClusterFacts::default();
        }
        assert_eq!(world.blocked(), ["ns-a"]);
        world.rounds(29, |w| {
            list(w, 20 * MINUTE);
            assert_eq!(w.blocked(), ["ns-a"], "{is_looked_at}, {ahead} days");
        });
        world.rounds(2, |w| list(w, 20 * MINUTE));
        assert!(world.blocked().is_empty(), "{is_looked_at}, {ahead} days");
    }
}
