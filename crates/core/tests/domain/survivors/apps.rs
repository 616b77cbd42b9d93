//! Pods, their Apps and their namespaces: those that are gone, that belong to another App, or that can't be read.

use crate::common::{HOUR, MINUTE, World, app, at, exemption, record, record_of};
use procscan_core::decision::{DecisionKind, Mode};
use procscan_core::exemption::Pattern;
use procscan_core::ledger::Detection;
use procscan_core::names::{App, Key, NodeName, PodRef};
use procscan_core::policy::{AppFact, Incidents, InheritedBlock, PodFact, PodState};
use procscan_core::state::incident::ClearedBy;

fn inherited(accused: &[&str]) -> InheritedBlock {
    InheritedBlock {
        app: app("ns-a"),
        notified_at: None,
        accused: accused.iter().map(|process| Key::new("ns-a", "web", *process)).collect(),
        is_guess: accused.is_empty(),
        services: vec!["web.ns-a.svc".into()],
        on_ingresses: procscan_core::policy::OnIngresses::default(),
    }
}

#[test]
fn a_static_target_accuses_the_pods_of_its_host_by_any_of_its_addresses() {
    for (target, is_host) in [("10.0.0.1:9090", true), ("[fd00::1]:9090", true), ("10.0.0.2:9090", false)] {
        let mut world = World::new(&["n1"]);
        world.policy.verify_pods = true;
        let node = NodeName::new(target);
        world
            .ledger
            .expect([procscan_core::report::Target { address: target.into(), node: node.clone() }], 0);
        world.pod_on("ns-a", "web", "node-7", "web");
        let pod = PodRef { namespace: "ns-a".into(), pod: "web".into() };
        if let Some(PodFact { state: PodState::Present { host_ips, .. }, .. }) =
            world.facts.pods.get_mut(&pod)
        {
            *host_ips = vec!["10.0.0.1".into(), "fd00::1".into()];
        }
        let outcome = crate::common::complete(vec![record("ns-a", 0)], 0);
        let target = procscan_core::report::Target { address: target.into(), node };
        world.ledger.absorb(&procscan_core::report::Report { target, at: world.now, outcome });
        assert_eq!(world.blocked().len(), usize::from(is_host));
    }
}

#[test]
fn the_proof_that_a_pod_is_gone_is_persisted_with_its_evidence() {
    // In the second world the Pod was found to offend once more, just before.
    for again in [false, true] {
        let mut world = World::new(&["n1"]);
        world.answer("n1", vec![record("ns-a", 0)]);
        assert_eq!(world.blocked(), ["ns-a"]);
        world.wait(MINUTE);
        if again {
            world.answer("n1", vec![record("ns-a", 60)]);
        }
        world.ledger.pod_gone(&record("ns-a", 0).key.pod_ref(), world.now);
        assert_eq!(world.blocked(), ["ns-a"], "its processes may come back with the next Pod");
        let cleared = &world.incidents.document(&app("ns-a")).unwrap().status.evidence[0].cleared;
        let cleared = cleared.as_ref().unwrap_or_else(|| panic!("{again}"));
        assert_eq!((cleared.by, cleared.ended), (ClearedBy::PodGone, false));
    }
}

#[test]
fn an_unverified_accusation_holds_an_inherited_block_and_a_disputed_one_does_not() {
    for (state, is_released) in
        [(PodState::Unreadable("forbidden".to_owned()), false), (PodState::Gone, true)]
    {
        let mut world = World::new(&["n1"]);
        world.policy.verify_pods = true;
        world.incidents.inherit([inherited(&["xmrig"])], &world.policy, world.now);
        world.pod_is("ns-a", "other", state);
        world.rounds(40, |w| {
            let now = w.clock();
            w.answer("n1", ["zmap", "xmrig"].map(|name| record_of("ns-a", "other", name, now)).into());
            w.evaluate();
        });
        assert_eq!(world.blocked().is_empty(), is_released);
    }
}

#[test]
fn an_inherited_block_of_an_app_that_is_gone_is_released_for_that_reason() {
    let mut world = World::new(&["n1"]);
    world.incidents.inherit([inherited(&["xmrig"])], &world.policy, world.now);
    world.facts.apps.insert(app("ns-a"), AppFact { gone: true, ..AppFact::default() });
    let decisions = world.evaluate().decisions;
    assert_eq!(decisions[0].kind, DecisionKind::Released);
    assert_eq!(&*decisions[0].reason, "no Pod of the App remains");
}

#[test]
fn an_exemption_opens_an_app_of_a_namespace_that_is_being_deleted_while_paused_too() {
    for gone in [false, true] {
        let mut world = World::new(&["n1"]);
        world.answer("n1", vec![record("ns-a", 0)]);
        assert_eq!(world.blocked(), ["ns-a"]);
        world.policy.mode = Mode::Paused;
        world.facts.terminating.insert("ns-a".into());
        world.facts.apps.entry(app("ns-a")).or_default().gone = gone;
        assert_eq!(world.blocked(), ["ns-a"]);
        world.policy.exemptions =
            vec![exemption(|e| e.namespace = Some(Pattern::Exact("ns-a".into())), None)];
        assert!(world.blocked().is_empty(), "{gone}");
    }
}

#[test]
fn evidence_that_can_not_be_verified_any_more_still_counts_against_its_last_app() {
    // One App has the name after the other.
    for (first, last) in [("miner", "shop"), ("shop", "miner")] {
        let mut world = World::new(&["n1"]);
        world.policy.verify_pods = true;
        let blocked = |world: &mut World| -> Vec<String> {
            world.evaluate().plan.blocks.iter().map(|block| block.app.name.to_string()).collect()
        };
        for (minute, name) in [(0, first), (10, last)] {
            world.wait(minute * MINUTE);
            world.recreate("ns-a", "web", "n1", name);
            world.wait(1);
            let now = world.clock();
            world.answer("n1", vec![record("ns-a", now)]);
            blocked(&mut world);
        }
        assert_eq!(blocked(&mut world), ["miner", "shop"]);
        // Later evidence of the same Pod counts against that App too, whatever its labels are by then.
        let pod = PodRef { namespace: "ns-a".into(), pod: "web".into() };
        if let Some(PodFact { state: PodState::Present { app, .. }, .. }) = world.facts.pods.get_mut(&pod) {
            *app = App::new("ns-a", "app", "other");
        }
        world.wait(MINUTE);
        let now = world.clock();
        world.answer("n1", vec![record("ns-a", now)]);
        assert_eq!(blocked(&mut world), ["miner", "shop"]);
        world.pod_is("ns-a", "web", PodState::Unreadable("forbidden".to_owned()));
        world.rounds(40, |w| {
            let now = w.clock();
            w.answer("n1", vec![record("ns-a", now)]);
            w.evaluate();
        });
        assert!(blocked(&mut world).contains(&last.to_owned()));
    }
}

#[test]
fn an_app_that_offends_again_within_a_day_has_the_same_incident_and_later_another() {
    for (more, is_same) in [(0, true), (1, false)] {
        let mut world = World::new(&["n1"]);
        world.answer("n1", vec![record("ns-a", 0)]);
        assert_eq!(world.blocked(), ["ns-a"]);
        let name = world.incidents.name_of(&app("ns-a"));
        world.rounds(30, |w| drop(w.answer("n1", vec![])));
        assert!(world.blocked().is_empty());
        world.wait(24 * HOUR + more);
        let now = world.clock();
        world.answer("n1", vec![record("ns-a", now)]);
        assert_eq!(world.blocked(), ["ns-a"]);
        assert_eq!(world.incidents.name_of(&app("ns-a")) == name, is_same);
    }
}

#[test]
fn the_evidence_of_a_removed_node_counts_until_the_limit() {
    let mut world = World::with(&[], Detection::default());
    world.ledger.expect([crate::common::target("n1")], 0);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    // The ledger of a new leader does not know the node.
    world.ledger = world.new_ledger();
    let persisted: Vec<_> = world.persisted.values().cloned().collect();
    world.incidents = Incidents::restore(&persisted, &world.ledger.snapshot(world.now), world.now);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.wait(24 * HOUR - 1);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.wait(1);
    let decisions = world.evaluate().decisions;
    assert_eq!(decisions[0].kind, DecisionKind::Released);
    assert_eq!(&*decisions[0].reason, "its node has not answered for detection.unreachable_limit");
    assert_eq!((world.now, App::new("ns-a", "app", "web")), (at(24 * HOUR), app("ns-a")));
}

#[test]
fn the_reason_of_a_release_says_that_the_app_was_gone_and_is_back() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.policy.mode = Mode::Paused;
    world.facts.apps.entry(app("ns-a")).or_default().gone = true;
    assert_eq!(world.blocked(), ["ns-a"]);
    world.facts.apps.entry(app("ns-a")).or_default().gone = false;
    world.policy.mode = Mode::Enforce;
    let decisions = world.evaluate().decisions;
    assert_eq!(decisions[0].kind, DecisionKind::Released);
    assert!(decisions[0].reason.starts_with("no Pod of the App remained"), "{}", decisions[0].reason);
}

#[test]
fn a_dispute_names_the_node_and_the_accused_process() {
    let mut world = World::new(&["n1", "n2"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web", "n1", "web");
    world.answer("n2", vec![record("ns-a", 0)]);
    let decisions = world.evaluate().decisions;
    assert_eq!(decisions[0].kind, DecisionKind::Disputed);
    let reason = &decisions[0].reason;
    let accusation = "node n2 accuses process `xmrig` of Pod web in namespace ns-a";
    assert!(reason.ends_with(accusation), "{reason}");
}

#[test]
fn a_pod_that_ended_since_it_was_found_is_no_dispute_though_another_replica_has_later_evidence() {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web", "n1", "web");
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    let mut follower = world.new_ledger();
    world.wait(20);
    let outcome = crate::common::complete(vec![record("ns-a", 0)], 20);
    let target = crate::common::target("n1");
    follower.absorb(&procscan_core::report::Report { target, at: world.now, outcome });
    world.pod_is("ns-a", "web", PodState::Gone);
    world.follower = Some((follower, true));
    world.fail_over();
    let evaluation = world.evaluate();
    assert!(evaluation.decisions.is_empty() && evaluation.disputes.is_empty(), "{:?}", evaluation.decisions);
    assert_eq!(world.blocked(), ["ns-a"]);
}

#[test]
fn a_service_that_is_left_open_by_the_rules_is_held_by_none() {
    let mut world = World::new(&["n1"]);
    world.policy.shared_services = procscan_core::plan::SharedServices::Skip;
    world.service("ns-a", "own", &["web"]);
    world.service("ns-a", "all", &["shop", "web"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    let evaluation = world.evaluate();
    assert_eq!(evaluation.plan.blocks[0].exposure.left_open.len(), 1);
    assert!(evaluation.held.is_empty() && evaluation.decisions.len() == 1, "{:?}", evaluation.decisions);
    assert!(world.evaluate().decisions.is_empty());
}

#[test]
fn a_process_that_is_renamed_while_its_pod_can_not_be_read_opens_nothing() {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web", "n1", "web");
    world.pod_on("ns-b", "web", "n1", "web");
    world.answer("n1", vec![record("ns-a", 0), record("ns-b", 0)]);
    assert_eq!(world.blocked(), ["ns-a", "ns-b"]);
    // The API server answers no more. The facts about the Pods are as of now.
    for fact in world.facts.pods.values_mut() {
        fact.asked = world.now;
    }
    world.rounds(60, |w| {
        let now = w.clock();
        w.answer("n1", vec![record_of("ns-a", "web", &format!("miner{now}"), now)]);
        w.evaluate();
    });
    assert_eq!(world.blocked(), ["ns-a"], "nothing is found of the other one any more");
}
