//! Apps that the gateway can't close: the decision, the plan and the incident have a remark about it.

use crate::common::{World, record};
use procscan_core::decision::DecisionKind;
use procscan_core::names::App;
use procscan_core::policy::IncidentCommand;
use procscan_core::state::IncidentState;

fn world() -> World {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web", "n1", "web");
    world
}

/// Accuses the App. Returns the reason of its block.
fn blocked_because(world: &mut World) -> String {
    world.answer("n1", vec![record("ns-a", 0)]);
    let evaluation = world.evaluate();
    let decision = evaluation.decisions.iter().find(|it| it.kind == DecisionKind::Blocked).unwrap();
    assert_eq!(evaluation.plan.blocks[0].reason, decision.reason);
    let persisted = world.persisted.values().next().unwrap();
    assert_eq!(
        (persisted.status.state, &persisted.status.reason),
        (IncidentState::Blocked, &decision.reason)
    );
    decision.reason.to_string()
}

const NO_SERVICE: &str = "; nothing is closed at the gateway: no Service of its namespace exposes it";

#[test]
fn a_block_of_an_app_without_a_service_says_that_nothing_is_closed() {
    let mut world = world();
    let app = App::new("ns-a", "app", "web");
    world.facts.apps.entry(app).or_default().exposure = Some(procscan_core::plan::Exposure::default());
    let reason = blocked_because(&mut world);
    assert!(reason.ends_with(NO_SERVICE), "{reason}");
}

#[test]
fn an_approved_block_has_the_remark_too_and_only_while_nothing_is_closed() {
    let mut world = world();
    let app = App::new("ns-a", "app", "web");
    world.facts.apps.entry(app.clone()).or_default().exposure =
        Some(procscan_core::plan::Exposure::default());
    world.policy.brake.max_new_tenants = 0;
    world.answer("n1", vec![record("ns-a", 0)]);
    world.evaluate();
    world.incidents.execute(&IncidentCommand::Approve { app }, "ops", &world.policy, world.now).unwrap();
    let reason_of = |world: &mut World| {
        let block = world.evaluate().plan.blocks[0].clone();
        let persisted = &world.persisted.values().next().unwrap().status;
        assert_eq!((persisted.state, &persisted.reason), (IncidentState::Blocked, &block.reason));
        block.reason.to_string()
    };
    for _ in 0..2 {
        let reason = reason_of(&mut world);
        assert!(
            reason.starts_with("the block that a brake held is approved") && reason.ends_with(NO_SERVICE),
            "{reason}"
        );
        assert_eq!(reason.matches("nothing is closed").count(), 1, "{reason}");
        world.restart();
    }
    world.service("ns-a", "web", &["web"]);
    let reason = reason_of(&mut world);
    assert!(!reason.contains("nothing is closed"), "{reason}");
}

#[test]
fn a_block_that_closes_a_service_has_no_remark_that_nothing_is_closed() {
    let mut world = world();
    world.service("ns-a", "web", &["web"]);
    let reason = blocked_because(&mut world);
    assert!(!reason.contains("nothing is closed"), "{reason}");
}

#[test]
fn without_a_plain_list_a_block_of_an_app_without_an_ingress_says_that_nothing_is_closed() {
    let mut world = world();
    world.policy.has_plain_list = false;
    world.service("ns-a", "web", &["web"]);
    let reason = blocked_because(&mut world);
    let why = "no Ingress is known to lead to its Services, and gateway.max_service_entries is 0";
    assert!(reason.ends_with(&format!("; nothing is closed at the gateway: {why}")), "{reason}");
    let blocks = world.evaluate().plan.blocks;
    assert_eq!(blocks[0].exposure.nothing_closed.as_deref(), Some(why));
    let persisted = |world: &World| world.persisted.values().next().unwrap().status.exposure.clone();
    assert_eq!(persisted(&world).nothing_closed.as_deref(), Some(why));
    world.restart();
    assert_eq!(world.incidents.documents()[0].status.exposure, persisted(&world), "it outlasts a restart");

    // As soon as an Ingress leads to the App, it is closed.
    let fact = world.facts.apps.get_mut(&App::new("ns-a", "app", "web")).unwrap();
    fact.exposure.as_mut().unwrap().ingresses = vec!["ns-a/in".into()];
    let blocks = world.evaluate().plan.blocks;
    assert_eq!(blocks[0].exposure.nothing_closed, None);
    assert_eq!(persisted(&world).nothing_closed, None);
}
