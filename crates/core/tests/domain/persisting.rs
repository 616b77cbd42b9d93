//! Decisions that can't be persisted, and a new leader that reads what is persisted.

use crate::common::{HOUR, MINUTE, World, app, record, record_of};
use procscan_core::decision::DecisionKind;
use procscan_core::names::Key;
use procscan_core::plan::Exposure;
use procscan_core::policy::{IncidentCommand, InheritedBlock, OnIngresses};

fn kinds(world: &mut World) -> Vec<DecisionKind> {
    world.evaluate().decisions.iter().map(|decision| decision.kind).collect()
}

#[test]
fn a_decision_that_can_not_be_persisted_is_made_anew_on_later_evidence() {
    let mut world = World::new(&["n1"]);
    world.unwritable.insert("ns-a".to_owned());
    for _ in 0..3 {
        let now = world.clock();
        world.answer("n1", vec![record("ns-a", now), record_of("ns-b", "web", "zmap", now)]);
        let evaluation = world.evaluate();
        assert_eq!(evaluation.plan.blocks.len(), 1, "the other one is blocked");
        assert!(evaluation.plan.notices.iter().all(|notice| *notice.app.namespace == *"ns-b"));
        assert!(evaluation.decisions.iter().all(|decision| *decision.app.namespace == *"ns-b"));
        world.wait(MINUTE);
    }
    // When the decision can be persisted, the process has ended.
    world.rounds(35, |w| {
        let now = w.clock();
        w.answer("n1", vec![record_of("ns-b", "web", "zmap", now)]);
        w.evaluate();
    });
    world.unwritable.clear();
    assert_eq!(world.blocked(), ["ns-b"]);
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    assert_eq!(world.blocked(), ["ns-a", "ns-b"]);
}

#[test]
fn no_app_is_released_while_its_release_can_not_be_persisted_nor_by_an_operator() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.unwritable.insert("ns-a".to_owned());
    let release = IncidentCommand::Release { app: app("ns-a"), until: crate::common::at(HOUR).wall() };
    world.incidents.execute(&release, "ops", &world.policy, world.now).unwrap();
    assert_eq!(world.blocked(), ["ns-a"], "the operator has to ask again once it can be persisted");
    world.rounds(40, |w| {
        w.answer("n1", vec![]);
        assert_eq!(w.blocked(), ["ns-a"]);
    });
    world.unwritable.clear();
    assert_eq!(kinds(&mut world), [DecisionKind::Released]);
    assert!(world.blocked().is_empty());
}

#[test]
fn an_incident_persisted_as_held_is_held_even_without_a_persisted_brake() {
    let mut world = World::new(&["n1"]);
    world.policy.brake.max_new_tenants = 0;
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.held(), ["ns-a"]);
    for persisted in world.persisted.values_mut() {
        persisted.status.brake = None;
    }
    world.restart();
    world.policy.brake.max_new_tenants = 20;
    assert_eq!(world.held(), ["ns-a"]);
    // The App is held through the end of the incident and a new beginning.
    world.rounds(40, |w| {
        w.answer("n1", vec![]);
        w.evaluate();
    });
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    assert_eq!((world.blocked().len(), world.held()), (0, vec!["ns-a".to_owned()]));
}

#[test]
fn brakes_of_the_version_before_are_read_and_are_written_in_its_terms() {
    let reason = |brake: &str, of: Option<&str>| {
        let mut world = World::new(&["n1"]);
        world.policy.brake.max_new_tenants = 0;
        world.answer("n1", vec![record("ns-a", 0)]);
        world.evaluate();
        let persisted = world.persisted.values_mut().next().unwrap();
        let held_by = serde_json::json!({"since": persisted.status.opened, "brake": brake, "of": of});
        persisted.status.brake = Some(serde_json::from_value(held_by).unwrap());
        world.restart();
        let documents = world.incidents.documents();
        assert_eq!(documents[0].status.brake, world.persisted.values().next().unwrap().status.brake);
        world.evaluate().held[0].reason.clone()
    };
    assert!(reason("NewApps", None).contains("brake.max_new_tenants"));
    assert!(reason("NewApps", Some("ns-a")).contains("brake.max_apps_per_tenant"));
    assert!(reason("NewTenants", None).contains("brake.max_new_tenants"), "a later version may write this");
    assert!(reason("Node", Some("n7")).contains("node n7"));
    assert!(reason("Rule", Some("^xm")).contains("the rule `^xm`"));
    assert!(reason("Rule", Some("")).contains("keyword hits"));
}

#[test]
fn services_that_the_gateway_closes_stay_closed_over_a_change_of_leader_until_they_are_known_anew() {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web", "n1", "web");
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    // An Ingress that appears later is persisted, too.
    let reached = Exposure {
        services: vec!["web-x7k2.ns-a.svc".into()],
        ingresses: vec!["ns-a/web".into()],
        ..Exposure::default()
    };
    world.facts.apps.values_mut().for_each(|fact| fact.exposure = Some(reached.clone()));
    world.evaluate();
    let persisted = world.persisted.values().next().unwrap().status.exposure.clone();
    assert_eq!((&persisted.ingresses[..], persisted.otherwise), (&["ns-a/web".into()][..], Some(Vec::new())));

    // A new leader knows nothing of the cluster yet. It finds one more Service closed.
    let facts = std::mem::take(&mut world.facts);
    world.restart();
    let found = InheritedBlock {
        app: app("ns-a"),
        notified_at: None,
        accused: [Key::new("ns-a", "web", "xmrig")].into(),
        is_guess: false,
        services: vec!["later.ns-a.svc".into(), "web-x7k2.ns-a.svc".into()],
        on_ingresses: OnIngresses::default(),
    };
    assert!(world.incidents.inherit([found], &world.policy, world.now).is_empty());
    world.unwritable.insert("ns-a".to_owned());
    for _ in 0..2 {
        let exposure = world.evaluate().plan.blocks[0].exposure.clone();
        assert_eq!(*exposure.services, ["later.ns-a.svc".into(), "web-x7k2.ns-a.svc".into()]);
        assert_eq!(*exposure.ingresses, ["ns-a/web".into()]);
        assert_eq!(*exposure.otherwise, ["later.ns-a.svc".into()]);
        world.unwritable.clear();
    }
    world.facts = facts;
    assert_eq!(*world.evaluate().plan.blocks[0].exposure, reached, "known anew");
}

#[test]
fn a_new_leader_changes_nothing_that_has_not_changed() {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web", "n1", "web");
    world.answer("n1", vec![record("ns-a", 0)]);
    let reached = Exposure {
        services: vec!["a.ns-a.svc".into(), "b.ns-a.svc".into()],
        ingresses: vec!["ns-a/web".into()],
        otherwise: vec!["b.ns-a.svc".into()],
        ..Exposure::default()
    };
    world.facts.apps.values_mut().for_each(|fact| fact.exposure = Some(reached.clone()));
    let before = world.evaluate().plan.blocks;
    let facts = std::mem::take(&mut world.facts);
    world.restart();
    assert_eq!(world.evaluate().plan.blocks, before, "before anything is known of the cluster");
    assert!(world.incidents.dirty().is_empty());
    world.facts = facts;
    assert_eq!(world.evaluate().plan.blocks, before);
}
