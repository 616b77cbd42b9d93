//! Inherited blocks, persisted incidents, and decisions that can't be persisted.

use crate::common::{HOUR, MINUTE, World, app, exemption, many_blocked, namespaces, record, record_of};
use procscan_core::decision::{DecisionKind, Mode};
use procscan_core::exemption::{Exemption, Pattern};
use procscan_core::names::Key;
use procscan_core::policy::{
    Alert, IncidentCommand, IncidentCommandError, Incidents, InheritedBlock, OnIngresses, Policy,
};

fn kinds(world: &mut World) -> Vec<DecisionKind> {
    world.evaluate().decisions.iter().map(|decision| decision.kind).collect()
}

fn inherited_block(namespace: &str, services: &[&str]) -> InheritedBlock {
    InheritedBlock {
        app: app(namespace),
        notified_at: None,
        accused: [Key::new(namespace, "web", "xmrig")].into(),
        is_guess: false,
        services: services.iter().map(|name| (*name).into()).collect(),
        on_ingresses: OnIngresses::default(),
    }
}

#[test]
fn an_inherited_block_is_released_only_after_every_node_has_answered_long_enough() {
    let inherited = |names: &[&str], policy: &Policy| {
        let of = |name: &&str| inherited_block(name, &[&format!("old.{name}.svc")]);
        let mut incidents = Incidents::default();
        incidents.inherit(names.iter().map(of).collect::<Vec<_>>(), policy, crate::common::at(0));
        incidents
    };
    let mut world = World::new(&["n1", "n2"]);
    world.incidents = inherited(&["ns-a", "ns-b"], &world.policy);
    assert_eq!(world.blocked(), ["ns-a", "ns-b"]);
    // No node answers, or only one of two: a node that does not answer proves no absence.
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

    // No release follows while paused or without any target. No more Apps are released at once than the brake allows.
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
    let inherited = inherited_block("ns-a", &["old.ns-a.svc"]);
    world.incidents.inherit([inherited], &world.policy, crate::common::at(0));
    world.ledger.expect([crate::common::target("n1")], 1);
    world.policy.verify_pods = true;
    world.rounds(24 * 60 - 1, |w| drop(w.answer("n1", vec![])));
    let evaluation = world.evaluate();
    // Services stay closed while they are not known.
    assert_eq!(&*evaluation.plan.blocks[0].exposure.services[0], "old.ns-a.svc");
    world.rounds(2, |w| drop(w.answer("n1", vec![])));
    assert_eq!(kinds(&mut world), [DecisionKind::Released]);
}

#[test]
fn a_block_without_accepted_evidence_can_be_exempted_and_released_for_good() {
    let blocked = || {
        let mut world = World::new(&["n1"]);
        let inherited = inherited_block("ns-a", &["web.ns-a.svc"]);
        world.incidents.inherit([inherited], &world.policy, crate::common::at(0));
        assert_eq!(world.blocked(), ["ns-a"]);
        world
    };
    let mut world = blocked();
    let namespace = Some(Pattern::Exact("ns-a".to_owned()));
    world.policy.exemptions = vec![exemption(|e| e.namespace.clone_from(&namespace), None)];
    assert!(world.blocked().is_empty());
    let mut world = blocked();
    let release = IncidentCommand::Release { app: app("ns-a"), until: crate::common::at(2 * HOUR).wall() };
    world.incidents.execute(&release, "ops", &world.policy, world.now).unwrap();
    world.wait(MINUTE);
    world.answer("n1", vec![record("ns-a", 60)]);
    assert!(world.blocked().is_empty());
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
fn an_inherited_block_stays_while_it_can_not_be_persisted_and_after_its_object_was_deleted() {
    let mut world = World::new(&["n1"]);
    let accused = [Key::new("ns-a", "web", "xmrig")].into();
    let services = vec!["web.ns-a.svc".into()];
    let inherited = InheritedBlock {
        app: app("ns-a"),
        notified_at: None,
        is_guess: false,
        accused,
        services,
        on_ingresses: OnIngresses::default(),
    };
    world.incidents.inherit([inherited], &world.policy, crate::common::at(0));
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

fn release(world: &mut World, name: &str) {
    let until = world.now.wall() + jiff::SignedDuration::from_hours(24 * 30);
    world
        .incidents
        .execute(&IncidentCommand::Release { app: app(name), until }, "ops", &world.policy, world.now)
        .unwrap();
}

/// An App that an operator has released, and whose incident ended more than a day ago.
fn released_long_ago() -> World {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    release(&mut world, "ns-a");
    world.rounds(40, |w| {
        w.answer("n1", vec![]);
        w.evaluate();
    });
    world.wait(25 * HOUR);
    world.evaluate();
    world
}

#[test]
fn a_release_covers_the_process_and_the_rule_that_it_was_given_for_and_nothing_else() {
    let by_rule = |rule: &str, now| {
        let mut record = record("ns-a", now);
        std::sync::Arc::make_mut(&mut record.claim).regex = rule.into();
        record
    };
    for restarts in [false, true] {
        let mut world = World::new(&["n1"]);
        world.answer("n1", vec![record("ns-a", 0)]);
        assert_eq!(world.blocked(), ["ns-a"]);
        release(&mut world, "ns-a");
        assert!(world.blocked().is_empty());
        if restarts {
            world.restart();
        }
        world.wait(MINUTE);
        world.answer("n1", vec![record("ns-a", 60)]);
        assert!(world.blocked().is_empty());
        world.wait(MINUTE);
        world.answer("n1", vec![by_rule("^xm", 120)]);
        assert_eq!(world.blocked(), ["ns-a"], "the same process by another rule");
    }
}

#[test]
fn a_new_incident_of_an_app_has_the_releases_of_the_one_before() {
    let mut world = released_long_ago();
    let before = world.incidents.incident(&app("ns-a")).map(procscan_core::policy::Incident::opened);
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    assert!(world.blocked().is_empty());
    assert_ne!(world.incidents.incident(&app("ns-a")).map(procscan_core::policy::Incident::opened), before);
}

#[test]
fn a_new_incident_that_can_not_be_persisted_loses_no_release_either() {
    let mut world = released_long_ago();
    world.unwritable.insert("ns-a".to_owned());
    for _ in 0..3 {
        world.wait(MINUTE);
        let now = world.clock();
        world.answer("n1", vec![record("ns-a", now)]);
        assert!(world.blocked().is_empty());
    }
    world.unwritable.clear();
    world.wait(MINUTE);
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
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

/// Evidence that has cleared is no accusation that an agent may report again.
#[test]
fn a_release_after_a_restart_covers_what_is_accused_and_not_the_app_because_much_has_cleared() {
    let mut world = World::new(&["n1"]);
    let lists = |w: &mut World, processes: std::ops::Range<usize>| {
        let now = w.clock();
        let records = processes.map(|n| record_of("ns-a", "web", &format!("miner-{n}"), now));
        w.answer("n1", records.collect());
        w.evaluate();
    };
    lists(&mut world, 10..70);
    world.rounds(40, |w| lists(w, 0..10));
    let persisted = world.persisted.values().next().unwrap().status.clone();
    assert_eq!((persisted.evidence.len(), persisted.evidence_omitted), (64, 0));
    world.restart();
    world.rounds(2, |w| lists(w, 0..10));
    let release = IncidentCommand::Release { app: app("ns-a"), until: crate::common::at(24 * HOUR).wall() };
    world.incidents.execute(&release, "ops", &world.policy, world.now).unwrap();
    world.rounds(2, |w| lists(w, 0..10));
    assert!(world.blocked().is_empty());
    world.rounds(2, |w| lists(w, 200..201));
    assert_eq!(world.blocked(), ["ns-a"], "another process");
}

#[test]
fn a_release_of_more_accusations_than_are_persisted_covers_those_reported_again_after_a_restart() {
    let mut world = World::new(&["n1"]);
    let mine = |w: &mut World| {
        let now = w.clock();
        let records = (0..100).map(|n| record_of("ns-a", "web", &format!("miner-{n}"), now));
        w.answer("n1", records.collect());
    };
    mine(&mut world);
    assert_eq!(world.blocked(), ["ns-a"]);
    let persisted = world.persisted.values().next().unwrap().status.clone();
    assert_eq!((persisted.evidence.len(), persisted.evidence_omitted), (64, 36));
    // The second restart knows as much as the first.
    for _ in 0..2 {
        world.restart();
        world.wait(MINUTE);
        assert_eq!(world.blocked(), ["ns-a"]);
        world.incidents.mark_deleted(|_| true);
        world.evaluate();
        assert_eq!(world.persisted.values().next().unwrap().status.evidence_omitted, 36);
    }
    let release = IncidentCommand::Release { app: app("ns-a"), until: crate::common::at(24 * HOUR).wall() };
    world.incidents.execute(&release, "ops", &world.policy, world.now).unwrap();
    world.rounds(5, |w| {
        mine(w);
        assert!(w.blocked().is_empty());
    });
    world.restart();
    world.rounds(5, |w| {
        mine(w);
        assert!(w.blocked().is_empty());
    });
}

#[test]
fn a_release_covers_the_accusations_of_the_app_and_no_other_rule() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.restart();
    let release = IncidentCommand::Release { app: app("ns-a"), until: crate::common::at(24 * HOUR).wall() };
    world.incidents.execute(&release, "ops", &world.policy, world.now).unwrap();
    world.rounds(1, |w| {
        let now = w.clock();
        w.answer("n1", vec![record("ns-a", now)]);
    });
    assert!(world.blocked().is_empty());
    world.rounds(1, |w| {
        let now = w.clock();
        w.answer("n1", vec![record("ns-a", now), record_of("ns-a", "web", "zmap", now)]);
    });
    assert_eq!(world.blocked(), ["ns-a"]);
}

#[test]
fn a_release_until_a_time_that_is_over_is_refused_and_the_refusal_is_logged() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    for until in [world.now.wall(), crate::common::at(0).wall()] {
        let release = IncidentCommand::Release { app: app("ns-a"), until };
        let refused = world.incidents.execute(&release, "ops", &world.policy, world.now).unwrap_err();
        assert!(refused.to_string().contains("is over already"), "{refused}");
        assert_eq!(world.blocked(), ["ns-a"]);
    }
    let log = &world.persisted.values().next().unwrap().status.decisions;
    let kinds: Vec<&str> = log.iter().map(|entry| entry.decision.as_str()).collect();
    assert_eq!(kinds, ["blocked", "refused", "refused"]);
    assert!(log[1].reason.contains("is over already"), "{}", log[1].reason);
    assert!(world.persisted.values().next().unwrap().status.releases.is_empty());
}

#[test]
fn services_that_the_gateway_closes_stay_closed_over_a_change_of_leader_until_they_are_known_anew() {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web", "n1", "web");
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    // An Ingress that appears later is persisted, too.
    let reached = procscan_core::plan::Exposure {
        services: vec!["web-x7k2.ns-a.svc".into()],
        ingresses: vec!["ns-a/web".into()],
        ..procscan_core::plan::Exposure::default()
    };
    world.facts.apps.values_mut().for_each(|fact| fact.exposure = Some(reached.clone()));
    world.evaluate();
    let persisted = world.persisted.values().next().unwrap().status.exposure.clone();
    assert_eq!((&persisted.ingresses[..], persisted.otherwise), (&["ns-a/web".into()][..], Some(Vec::new())));

    // A new leader knows nothing of the cluster yet. It finds one more Service closed, and one of another App.
    let facts = std::mem::take(&mut world.facts);
    world.restart();
    let found = inherited_block("ns-a", &["later.ns-a.svc", "web-x7k2.ns-a.svc"]);
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
    let reached = procscan_core::plan::Exposure {
        services: vec!["a.ns-a.svc".into(), "b.ns-a.svc".into()],
        ingresses: vec!["ns-a/web".into()],
        otherwise: vec!["b.ns-a.svc".into()],
        ..procscan_core::plan::Exposure::default()
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

fn all_tenants(confirm: Option<usize>) -> Exemption {
    let any = Pattern::Regex(regex::Regex::new(".*").unwrap());
    Exemption { confirm, ..exemption(|e| e.namespace = Some(any.clone()), None) }
}

#[test]
fn an_exemption_that_would_open_many_tenants_has_no_effect_until_it_is_confirmed_with_their_number() {
    let mut world = many_blocked();
    assert_eq!(all_tenants(None).opens(&world.evaluate().plan), 25);
    world.policy.exemptions = vec![all_tenants(None)];
    let evaluation = world.evaluate();
    assert_eq!(evaluation.plan.blocks.len(), 25);
    let [Alert::Exemption { message }] = &evaluation.alerts[..] else { panic!("{:?}", evaluation.alerts) };
    assert!(message.contains("Exemption a would open the gateway to 25 tenants"), "{message}");
    assert!(message.contains("`confirm: 25`"), "{message}");
    let withheld = world.incidents.withheld();
    assert_eq!(withheld.len(), 1);
    assert_eq!((&*withheld[0].place, &withheld[0].reason), ("Exemption a", message));
    // The alert is raised once. Neither a smaller number nor a falling number of tenants confirms the exemption.
    world.policy.exemptions = vec![all_tenants(Some(24))];
    let evaluation = world.evaluate();
    assert_eq!((evaluation.plan.blocks.len(), evaluation.alerts.len()), (25, 1));
    let evaluation = world.evaluate();
    assert_eq!((evaluation.plan.blocks.len(), evaluation.alerts.len()), (25, 0));
    for namespace in &namespaces(20) {
        world.facts.apps.entry(app(namespace)).or_default().gone = true;
    }
    assert_eq!(world.blocked().len(), 5);
    world.wait(MINUTE);
    let now = world.clock();
    world.answer("n1", vec![record("ns-new", now)]);
    for _ in 0..3 {
        assert_eq!(world.blocked().len(), 6, "it covers nothing at all");
    }
    assert_eq!(world.incidents.withheld().len(), 1, "it is shown for as long as it is so");
    world.policy.exemptions = vec![all_tenants(Some(6))];
    assert!(world.blocked().is_empty());
    assert!(world.incidents.withheld().is_empty());

    // With the number it takes effect at once; for few tenants it needs none.
    let mut world = many_blocked();
    world.policy.exemptions = vec![all_tenants(Some(25))];
    assert!(world.blocked().is_empty());
    let mut world = many_blocked();
    let some = Pattern::Regex(regex::Regex::new("^ns-00|^ns-01").unwrap());
    world.policy.exemptions = vec![exemption(|e| e.namespace = Some(some.clone()), None)];
    assert_eq!(world.blocked().len(), 5);
}

#[test]
fn blocks_that_two_exemptions_open_only_together_count_for_the_second() {
    let mut world = many_blocked();
    world.wait(MINUTE);
    let both = namespaces(25)
        .into_iter()
        .flat_map(|name| [record_of(&name, "web", "xmrig", 60), record_of(&name, "web", "zmap", 60)]);
    world.answer("n1", both.collect());
    let of = |process: &str| exemption(|e| e.process = Some(Pattern::Exact(process.into())), None);
    world.policy.exemptions = vec![of("xmrig")];
    let evaluation = world.evaluate();
    assert_eq!((evaluation.plan.blocks.len(), evaluation.alerts.len()), (25, 0));
    world.policy.exemptions.push(of("zmap"));
    let evaluation = world.evaluate();
    assert_eq!((evaluation.plan.blocks.len(), evaluation.alerts.len()), (25, 1));
    // The first one stays in effect.
    world.answer("n1", vec![record_of("ns-other", "web", "xmrig", 60)]);
    assert_eq!(world.blocked().len(), 25);
}

#[test]
fn blocks_that_another_exemption_opens_do_not_count_for_the_next() {
    let mut world = many_blocked();
    let of = |text: &str| {
        let namespace = Some(Pattern::Regex(regex::Regex::new(text).unwrap()));
        exemption(|e| e.namespace.clone_from(&namespace), None)
    };
    world.policy.exemptions = vec![of("^ns-01"), of("^ns-0[12]")];
    let evaluation = world.evaluate();
    assert_eq!((evaluation.plan.blocks.len(), evaluation.alerts.len()), (10, 0));
    let mut world = many_blocked();
    world.policy.brake.max_releases = 10;
    world.policy.exemptions = vec![of("^ns-01"), of("^ns-0[12]")];
    let evaluation = world.evaluate();
    assert_eq!(
        (evaluation.plan.blocks.len(), evaluation.alerts.len()),
        (10, 0),
        "ten by one, five by the other"
    );
}

#[test]
fn one_tenant_may_be_opened_whatever_the_brake_on_releases_says() {
    let mut world = World::new(&["n1"]);
    world.policy.brake.max_releases = 0;
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.policy.exemptions = vec![all_tenants(None)];
    assert!(world.blocked().is_empty());
}

#[test]
fn a_release_for_more_than_ten_years_is_refused() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    let until = world.now.wall() + jiff::SignedDuration::from_hours(24 * 366 * 11);
    let refused = world.incidents.execute(
        &IncidentCommand::Release { app: app("ns-a"), until },
        "ops",
        &world.policy,
        world.now,
    );
    assert_eq!(refused, Err(IncidentCommandError::TooFar(until)));
    assert_eq!(world.blocked(), ["ns-a"]);
    let log = &world.incidents.documents()[0].status.decisions;
    assert!(log.last().unwrap().reason.contains("at most ten years ahead"), "{log:?}");
}
