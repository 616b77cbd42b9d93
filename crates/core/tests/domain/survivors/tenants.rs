//! The texts that tenants and administrators read about a block.

use std::time::Duration;

use crate::common::{MINUTE, World, app, exemption, record_of};
use procscan_core::decision::Mode;
use procscan_core::exemption::Pattern;
use procscan_core::names::Key;
use procscan_core::policy::{InheritedBlock, OnIngresses, simulate};

#[test]
fn a_reason_names_active_processes_and_none_that_may_have_ended() {
    let mut world = World::new(&["n1"]);
    world.policy.exemptions = vec![exemption(|e| e.namespace = Some(Pattern::Exact("ns-a".into())), None)];
    world.answer("n1", vec![record_of("ns-a", "web", "aaa", 0)]);
    world.evaluate();
    // No report comes for so long that the evidence no longer counts.
    world.wait(31 * MINUTE);
    world.policy.exemptions.clear();
    let now = world.clock();
    world.answer("n1", vec![record_of("ns-a", "web", "zzz", now)]);
    let reason = world.evaluate().plan.blocks[0].reason.to_string();
    assert!(reason.starts_with("process `zzz` in Pod web") && reason.ends_with("(and 1 more)"), "{reason}");
}

#[test]
fn a_tenant_that_can_not_be_notified_again_of_a_running_grace_has_the_rest_of_it() {
    let mut world = World::new(&["n1"]);
    world.policy.grace = Duration::from_mins(40);
    let accuse = |w: &mut World| {
        let now = w.clock();
        w.answer("n1", vec![record_of("ns-a", "web", "xmrig", now)]);
        w.evaluate();
    };
    accuse(&mut world);
    world.rounds(31, |w| {
        w.answer("n1", vec![]);
        w.evaluate();
    });
    assert!(world.blocked().is_empty());
    // The tenant begins again, and its earlier notification counts.
    world.is_mute = true;
    accuse(&mut world);
    world.rounds(8, accuse);
    assert!(world.blocked().is_empty());
    world.rounds(1, accuse);
    assert_eq!(world.blocked(), ["ns-a"]);
}

#[test]
fn a_block_lists_its_violations_even_if_no_accusation_supports_it_any_more() {
    let keys: Vec<Key> = ["miner", "xmrig"].map(|process| Key::new("ns-a", "web", process)).into();
    let mut world = World::new(&["n1"]);
    let found = InheritedBlock {
        app: app("ns-a"),
        notified_at: None,
        accused: keys.iter().cloned().collect(),
        is_guess: false,
        services: vec!["web.ns-a.svc".into()],
        on_ingresses: OnIngresses::default(),
    };
    world.incidents.inherit([found], &world.policy, world.now);
    let accused = |world: &mut World| {
        let block = world.evaluate().plan.blocks[0].clone();
        (block.grounds.len(), block.left.to_vec(), block.accused().cloned().collect::<Vec<_>>())
    };
    assert_eq!(accused(&mut world), (0, keys.clone(), keys.clone()));
    // An App that is accused again is blocked for that.
    let now = world.clock();
    world.answer("n1", vec![record_of("ns-a", "web", "zmap", now)]);
    assert_eq!(accused(&mut world), (1, vec![], vec![Key::new("ns-a", "web", "zmap")]));
    // Its release is held, so it is blocked for evidence that has cleared.
    world.policy.brake.max_releases = 0;
    world.rounds(31, |w| drop(w.answer("n1", vec![])));
    let zmap = vec![Key::new("ns-a", "web", "zmap")];
    assert_eq!(accused(&mut world), (0, zmap.clone(), zmap));
}

#[test]
fn no_pod_is_looked_up_in_a_protected_namespace_or_after_its_accusation_has_cleared() {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    let records = ["ns-a", "kube-system"].map(|namespace| record_of(namespace, "web", "xmrig", 0));
    world.answer("n1", records.into());
    let asked = |world: &mut World| {
        let snapshot = world.snapshot();
        let requests = world.incidents.lookup_requests(&snapshot, &world.policy);
        requests.pods.keys().map(|pod| pod.namespace.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(asked(&mut world), ["ns-a"]);
    world.rounds(31, |w| drop(w.answer("n1", vec![])));
    assert!(asked(&mut world).is_empty());
}

#[test]
fn other_rules_are_tried_on_all_recorded_incidents_whatever_their_mode_and_clocks() {
    // The recorded incident: found once, in a Pod whose App the record does not name, and blocked by a rule without
    // grace.
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web-0", "n1", "web");
    world.answer("n1", vec![record_of("ns-a", "web-0", "xmrig", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.wait(25 * MINUTE);
    let persisted: Vec<_> = world.persisted.values().cloned().collect();
    let since = crate::common::at(0).wall();
    let mut policy = world.policy.clone();
    policy.grace = Duration::from_mins(20);
    policy.max_age = Duration::from_mins(5);
    for mode in [Mode::Enforce, Mode::DryRun] {
        for verify_pods in [true, false] {
            (policy.mode, policy.verify_pods) = (mode, verify_pods);
            let outcomes = simulate(&persisted, &policy, since, world.now.wall());
            assert_eq!(outcomes.len(), 1);
            assert_eq!(outcomes[0].app, app("ns-a"));
            assert!(
                outcomes[0].was_blocked && outcomes[0].would_be_blocked,
                "{mode:?} {verify_pods}: {outcomes:?}"
            );
        }
    }
    // While paused nothing new is blocked.
    policy.mode = Mode::Paused;
    assert!(!simulate(&persisted, &policy, since, world.now.wall())[0].would_be_blocked);
}

#[test]
fn a_covered_accusation_is_logged_once_and_ends_with_its_evidence() {
    let mut world = World::new(&["n1"]);
    let found = |w: &mut World| {
        let now = w.clock();
        w.answer("n1", vec![record_of("ns-a", "web", "xmrig", now)]);
        w.evaluate().decisions.len()
    };
    assert_eq!(found(&mut world), 1);
    // The namespace may not be blocked any more.
    world.policy.protected.push("ns-a".to_owned());
    let decisions: Vec<usize> = (0..3)
        .map(|_| {
            world.wait(MINUTE);
            found(&mut world)
        })
        .collect();
    assert_eq!(decisions, [1, 0, 0]);
    world.rounds(40, |w| {
        w.answer("n1", vec![]);
        w.evaluate();
    });
    let state = world.incidents.document(&app("ns-a")).unwrap().status.state;
    assert_eq!(state, procscan_core::state::incident::IncidentState::Ended);
}

#[test]
fn an_exempt_accusation_is_logged_once_and_again_after_it_was_not_exempt() {
    let mut world = World::new(&["n1"]);
    world.policy.mode = Mode::Paused;
    let exempt = vec![exemption(|e| e.namespace = Some(Pattern::Exact("ns-a".into())), None)];
    let logged = |world: &mut World| {
        let found = (0..3).map(|_| {
            world.wait(MINUTE);
            let now = world.clock();
            world.answer("n1", vec![record_of("ns-a", "web", "xmrig", now)]);
            world.evaluate().decisions.len()
        });
        found.collect::<Vec<_>>()
    };
    world.policy.exemptions.clone_from(&exempt);
    assert_eq!(logged(&mut world), [1, 0, 0]);
    world.policy.exemptions.clear();
    assert_eq!(logged(&mut world), [0, 0, 0]);
    world.policy.exemptions = exempt;
    assert_eq!(logged(&mut world), [1, 0, 0]);
}

#[test]
fn a_block_lists_active_violations_and_none_that_cleared_before() {
    let mut world = World::new(&["n1"]);
    let list = |w: &mut World, names: &[&str]| {
        let now = w.clock();
        w.answer("n1", names.iter().map(|name| record_of("ns-a", "web", name, now)).collect());
        w.evaluate().plan.blocks[0].clone()
    };
    list(&mut world, &["xmrig", "zmap"]);
    let mut block = None;
    world.rounds(40, |w| block = Some(list(w, &["zmap"])));
    let block = block.unwrap();
    let zmap = Key::new("ns-a", "web", "zmap");
    assert_eq!((block.grounds.len(), block.left.len()), (1, 0));
    assert_eq!(block.accused().collect::<Vec<_>>(), [&zmap]);
}

#[test]
fn a_node_whose_evidence_is_too_old_for_a_block_lets_none_pass_either() {
    // The agent of n1 scans once an hour, so its evidence stays active for longer than a block may follow from it.
    let mut world = World::new(&["n1", "n2"]);
    world.policy.mode = Mode::Paused;
    world.policy.brake.max_tenants_per_node = 1;
    world.rounds(4 * 60 + 40, |w| {
        let now = w.clock();
        w.answer("n1", vec![record_of("ns-a", "web", "xmrig", now / 3600 * 3600)]);
        w.answer("n2", vec![]);
    });
    assert_eq!(world.state("ns-a"), procscan_core::snapshot::State::Active);
    world.policy.mode = Mode::Enforce;
    let now = world.clock();
    world.answer("n2", vec![record_of("ns-b", "web", "zmap", now)]);
    assert_eq!(world.blocked(), ["ns-b"]);
    world.wait(1);
    world.answer(
        "n2",
        vec![record_of("ns-b", "web", "zmap", now), record_of("ns-a", "web", "xmrig", now + 1)],
    );
    assert_eq!((world.blocked(), world.held()), (vec!["ns-b".to_owned()], vec!["ns-a".to_owned()]));
}
