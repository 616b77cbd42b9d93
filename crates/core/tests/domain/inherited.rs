//! Inherited blocks: how long they stay, and which decisions end them.

use crate::common::{HOUR, MINUTE, World, app, at, exemption, namespaces, record, record_of};
use procscan_core::decision::{DecisionKind, Mode};
use procscan_core::exemption::Pattern;
use procscan_core::names::Key;
use procscan_core::policy::{IncidentCommand, Incidents, InheritedBlock, OnIngresses, Policy};

/// A block of the App in `namespace` that the gateway's objects show.
fn block_of(namespace: &str, service: &str) -> InheritedBlock {
    InheritedBlock {
        app: app(namespace),
        notified_at: None,
        accused: [Key::new(namespace, "web", "xmrig")].into(),
        is_guess: false,
        services: vec![format!("{service}.{namespace}.svc").into()],
        on_ingresses: OnIngresses::default(),
    }
}

fn inherited(names: &[&str], policy: &Policy) -> Incidents {
    let mut incidents = Incidents::default();
    let blocks: Vec<_> = names.iter().map(|name| block_of(name, "old")).collect();
    incidents.inherit(blocks, policy, at(0));
    incidents
}

#[test]
fn an_inherited_block_is_released_only_after_every_node_has_answered_long_enough() {
    let mut world = World::new(&["n1", "n2"]);
    world.incidents = inherited(&["ns-a", "ns-b"], &world.policy);
    assert_eq!(world.blocked(), ["ns-a", "ns-b"]);
    // Only one of the two nodes answers. A node that does not answer proves no absence.
    world.rounds(120, |w| {
        w.fail("n1");
        w.answer("n2", vec![]);
        assert!(w.evaluate().decisions.is_empty());
    });
    // Both answer, and one App is accused again, which makes it an ordinary incident.
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now), record_of("ns-a", "web", "zmap", now)]);
    world.rounds(29, |w| {
        w.answer("n1", vec![]);
        w.answer("n2", vec![]);
    });
    assert_eq!(world.blocked(), ["ns-a", "ns-b"]);
    world.rounds(2, |w| {
        let now = w.clock();
        w.answer("n1", vec![record("ns-a", now)]);
        w.answer("n2", vec![]);
    });
    let evaluation = world.evaluate();
    assert_eq!(evaluation.decisions[0].kind, DecisionKind::Released);
    assert!(evaluation.decisions[0].reason.starts_with("every node has answered"));
    assert_eq!(world.blocked(), ["ns-a"]);
}

/// No release follows while paused or without any target. No more Apps are released at once than the brake allows.
#[test]
fn no_inherited_block_is_released_while_paused_or_without_a_target_or_beyond_the_brake() {
    let many = namespaces(50);
    let names: Vec<&str> = many.iter().map(String::as_str).collect();
    let mut world = World::new(&["n1"]);
    world.incidents = inherited(&names, &world.policy);
    world.policy.mode = Mode::Paused;
    world.rounds(60, |w| drop(w.answer("n1", vec![])));
    assert_eq!(world.blocked().len(), 50);
    world.policy.mode = Mode::Enforce;
    assert_eq!(world.blocked().len(), 30);
    let mut alone = World::new(&[]);
    alone.incidents = inherited(&names, &alone.policy);
    alone.wait(48 * HOUR);
    assert_eq!(alone.blocked().len(), 50);
}

#[test]
fn an_agent_that_never_gets_an_address_holds_inherited_blocks_for_a_day_at_most() {
    let mut world = World::new(&["n1"]);
    world.incidents.inherit([block_of("ns-a", "old")], &world.policy, at(0));
    world.ledger.expect([crate::common::target("n1")], 1);
    world.policy.verify_pods = true;
    world.rounds(24 * 60 - 1, |w| drop(w.answer("n1", vec![])));
    let evaluation = world.evaluate();
    // The old Service stays closed while the leader does not know the App's Services.
    assert_eq!(&*evaluation.plan.blocks[0].exposure.services[0], "old.ns-a.svc");
    world.rounds(2, |w| drop(w.answer("n1", vec![])));
    let decisions = world.evaluate().decisions;
    let kinds: Vec<DecisionKind> = decisions.iter().map(|decision| decision.kind).collect();
    assert_eq!(kinds, [DecisionKind::Released]);
}

#[test]
fn a_block_without_accepted_evidence_can_be_exempted_and_released_for_good() {
    let blocked = || {
        let mut world = World::new(&["n1"]);
        world.incidents.inherit([block_of("ns-a", "web")], &world.policy, at(0));
        assert_eq!(world.blocked(), ["ns-a"]);
        world
    };
    let mut world = blocked();
    let namespace = Some(Pattern::Exact("ns-a".to_owned()));
    world.policy.exemptions = vec![exemption(|e| e.namespace.clone_from(&namespace), None)];
    assert!(world.blocked().is_empty());
    let mut world = blocked();
    let release = IncidentCommand::Release { app: app("ns-a"), until: at(2 * HOUR).wall() };
    world.incidents.execute(&release, "ops", &world.policy, world.now).unwrap();
    world.wait(MINUTE);
    world.answer("n1", vec![record("ns-a", 60)]);
    assert!(world.blocked().is_empty());
}

#[test]
fn an_inherited_block_stays_while_it_can_not_be_persisted_and_after_its_object_was_deleted() {
    let mut world = World::new(&["n1"]);
    world.incidents.inherit([block_of("ns-a", "web")], &world.policy, at(0));
    world.unwritable.insert("ns-a".to_owned());
    assert_eq!(world.blocked(), ["ns-a"]);
    world.unwritable.clear();
    assert_eq!(world.blocked(), ["ns-a"]);
    assert_eq!(world.persisted.len(), 1);

    world.persisted.clear();
    world.incidents.mark_deleted(|_| true);
    world.unwritable.insert("ns-a".to_owned());
    assert_eq!(world.blocked(), ["ns-a"]);
    world.unwritable.clear();
    assert_eq!(world.blocked(), ["ns-a"]);
    assert_eq!(world.persisted.len(), 1, "written again");
}
