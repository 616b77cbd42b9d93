//! Exemptions and incidents that can't be read are neither guessed nor forgotten.

use crate::common::{HOUR, MINUTE, World, app, record};
use procscan_core::decision::DecisionKind;
use procscan_core::names::Key;
use procscan_core::policy::{Incidents, InheritedBlock, OnIngresses};
use procscan_core::state::exemption;
use procscan_core::state::incident::IncidentDecision;
use serde_json::json;

#[test]
fn an_unreadable_exemption_delays_only_new_blocks_that_it_may_cover() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    // Its rule can't be read, but its namespace can.
    let broken = json!({"namespace": {"exact": "ns-b"}, "rule": {"regex": "("}, "reason": "a contract"});
    world.policy.unread_exemptions = vec![exemption::readable(&broken)];
    world.rounds(1, |w| {
        let now = w.clock();
        w.answer("n1", ["ns-a", "ns-b", "ns-c"].map(|namespace| record(namespace, now)).into());
    });
    assert_eq!(world.blocked(), ["ns-a", "ns-c"], "existing blocks stay, and others begin");
    // Its tenant is not warned either.
    world.policy.grace = std::time::Duration::from_mins(1);
    assert!(world.evaluate().decisions.is_empty());
    world.policy.grace = std::time::Duration::ZERO;
    world.policy.unread_exemptions.clear();
    assert_eq!(world.blocked(), ["ns-a", "ns-b", "ns-c"]);

    // If its namespace can't be read, it may cover any App.
    let mut world = World::new(&["n1"]);
    world.policy.unread_exemptions = vec![exemption::readable(&json!({"namespace": {"regex": "("}}))];
    world.answer("n1", vec![record("ns-a", 0)]);
    assert!(world.blocked().is_empty());
    // An exemption that has ended covers nothing, whatever its parts.
    let over = json!({"namespace": {"regex": "("}, "until": world.now.wall()});
    world.policy.unread_exemptions = vec![exemption::readable(&over)];
    assert_eq!(world.blocked(), ["ns-a"]);
    // Blocks are released by the rules as usual.
    world.policy.unread_exemptions = vec![exemption::readable(&json!({}))];
    world.rounds(40, |w| drop(w.answer("n1", vec![])));
    assert!(world.blocked().is_empty());
}

#[test]
fn an_app_with_an_unreadable_incident_is_not_touched_and_its_closed_services_stay_closed() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0), record("ns-b", 0), record("ns-c", 0)]);
    assert_eq!(world.blocked(), ["ns-a", "ns-b", "ns-c"]);
    // A restart that can't read two of the incidents: one App was blocked, one was released.
    let mut persisted: Vec<_> = world.persisted.values().cloned().collect();
    persisted.retain(|incident| *incident.spec.app.namespace == *"ns-c");
    world.incidents = Incidents::restore(&persisted, &world.ledger.snapshot(world.now), world.now);
    world.incidents.mark_unreadable([app("ns-a"), app("ns-b")]);
    let found = InheritedBlock {
        app: app("ns-a"),
        notified_at: None,
        accused: [Key::new("ns-a", "web", "xmrig")].into(),
        is_guess: false,
        services: vec!["web.ns-a.svc".into()],
        on_ingresses: OnIngresses::default(),
    };
    let inherited = world.incidents.inherit([found], &world.policy, world.now);
    assert!(inherited.is_empty(), "{inherited:?}");
    for _ in 0..3 {
        world.wait(MINUTE);
        let now = world.clock();
        world.answer("n1", vec![record("ns-a", now), record("ns-b", now), record("ns-c", now)]);
        let evaluation = world.evaluate();
        let of = |namespace: &str| namespace != "ns-c";
        assert!(evaluation.decisions.iter().all(|decision| !of(&decision.app.namespace)));
        assert!(evaluation.plan.notices.iter().all(|notice| !of(&notice.app.namespace)));
        assert_eq!(evaluation.plan.summary.blocked, 2);
    }
    world.wait(48 * HOUR);
    world.rounds(40, |w| drop(w.answer("n1", vec![])));
    let evaluation = world.evaluate();
    assert_eq!(evaluation.plan.blocks.len(), 1);
    assert_eq!(*evaluation.plan.blocks[0].app, *app("ns-a"));
    assert_eq!(*evaluation.plan.blocks[0].exposure.services, ["web.ns-a.svc".into()]);
    assert_eq!(world.incidents.current_plan(&world.policy, world.now).blocks.len(), 1);
}

#[test]
fn an_entry_of_the_log_that_only_another_version_knows_is_persisted_in_its_place() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    let at = world.now.wall();
    let entry =
        json!({"at": at, "decision": "quarantined", "actor": "policy", "reason": "by a newer version"});
    let entry: IncidentDecision = serde_json::from_value(entry).unwrap();
    for incident in world.persisted.values_mut() {
        incident.status.decisions.push(entry.clone());
    }
    world.restart();
    world.rounds(60, |w| drop(w.answer("n1", vec![])));
    assert!(world.blocked().is_empty());
    let log = &world.persisted.values().next().unwrap().status.decisions;
    let kinds: Vec<&str> = log.iter().map(|entry| entry.decision.as_str()).collect();
    assert!(kinds.contains(&"quarantined"), "{kinds:?}");
    assert_eq!(log.last().unwrap().decision, DecisionKind::Released);
    assert_eq!(serde_json::to_value(&entry).unwrap()["decision"], "quarantined");
}
