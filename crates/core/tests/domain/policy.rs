//! The decisions of the policy, rule by rule.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{HOUR, MINUTE, World, app, exemption, record, record_of};
use procscan_core::decision::{Actor, DecisionKind, Mode};
use procscan_core::exemption::{Exemption, Pattern};
use procscan_core::ledger::Detection;
use procscan_core::names::{App, PodRef};
use procscan_core::plan::NoticePhase;
use procscan_core::policy::{Alert, IncidentCommand, IncidentCommandError, PodState};
use procscan_core::report::Record;

fn kinds(world: &mut World) -> Vec<DecisionKind> {
    world.evaluate().decisions.iter().map(|decision| decision.kind).collect()
}

#[test]
fn a_block_has_a_reason_that_a_person_can_read() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    let evaluation = world.evaluate();
    let decision = &evaluation.decisions[0];
    assert_eq!((decision.kind, &decision.actor), (DecisionKind::Blocked, &Actor::Policy));
    assert_eq!(
        &*decision.reason,
        "process `xmrig` in Pod web matches rule `^xmrig$` on node n1, as of 2025-12-22T10:30:00Z"
    );
    assert!(world.evaluate().decisions.is_empty(), "without a change there is no decision");
}

#[test]
fn the_plan_is_the_same_while_nothing_happens() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    let first = world.evaluate().plan;
    for round in 1..5 {
        world.wait(MINUTE);
        world.answer("n1", vec![record("ns-a", round * 60)]);
        assert_eq!(world.evaluate().plan, first, "fresh evidence of the same is no change");
    }
}

#[test]
fn namespaces_that_are_not_tenants_protected_or_terminating_are_left_alone() {
    let mut world = World::new(&["n1"]);
    let all = ["default", "kube-system", "ns-admin", "ns-dying", "ns-a"];
    world.facts.terminating.insert("ns-dying".into());
    world.answer("n1", all.iter().map(|ns| record(ns, 0)).collect());
    assert_eq!(world.blocked(), ["ns-a"]);
    // A namespace that is protected later is released at once, with the reason.
    world.policy.protected.push("ns-a".into());
    let evaluation = world.evaluate();
    assert!(evaluation.plan.blocks.is_empty() && evaluation.plan.notices.is_empty());
    assert_eq!(evaluation.decisions[0].kind, DecisionKind::Released);
    assert!(evaluation.decisions[0].reason.contains("enforcement.protected_namespaces"));
}

/// A world in which tenants are warned ten minutes before they are blocked.
fn with_grace() -> World {
    let mut world = World::new(&["n1"]);
    world.policy.grace = Duration::from_secs(10 * MINUTE);
    world
}

/// The tenant has been notified of the grace from now on. It is blocked at the end of the grace, and no sooner.
fn is_blocked_after_the_grace(world: &mut World) {
    assert!(world.blocked().is_empty());
    world.wait(10 * MINUTE - 1);
    assert!(world.blocked().is_empty());
    world.wait(1);
    assert_eq!(world.blocked(), ["ns-a"]);
}

/// A round in which the same process is found again.
fn accuse(world: &mut World) {
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
}

#[test]
fn a_tenant_is_warned_first_and_blocked_after_the_grace() {
    let mut world = with_grace();
    accuse(&mut world);
    let evaluation = world.evaluate();
    assert!(evaluation.plan.blocks.is_empty());
    assert!(matches!(evaluation.plan.notices[0].phase, NoticePhase::Grace { .. }));
    assert_eq!(evaluation.decisions[0].kind, DecisionKind::Warned);
    is_blocked_after_the_grace(&mut world);
}

#[test]
fn a_tenant_that_can_not_be_notified_yet_has_the_whole_grace_from_its_notification_on() {
    let mut world = with_grace();
    world.is_mute = true;
    world.rounds(15, |w| {
        accuse(w);
        assert!(w.blocked().is_empty());
    });
    world.is_mute = false;
    is_blocked_after_the_grace(&mut world);
}

#[test]
fn a_tenant_that_prevents_its_notification_is_blocked_an_hour_later() {
    let mut world = with_grace();
    world.is_mute = true;
    accuse(&mut world);
    world.evaluate();
    world.rounds(69, |w| {
        accuse(w);
        assert!(w.blocked().is_empty());
    });
    world.rounds(1, accuse);
    let blocks = world.evaluate().plan.blocks;
    assert!(blocks[0].reason.ends_with("could not be notified before"), "{}", blocks[0].reason);
}

#[test]
fn evidence_that_has_grown_old_during_the_grace_blocks_no_app() {
    let mut world = with_grace();
    world.policy.grace = Duration::from_secs(HOUR);
    accuse(&mut world);
    world.evaluate();
    world.wait(2 * HOUR);
    assert!(world.blocked().is_empty());
}

#[test]
fn dry_run_decides_and_enforcing_later_applies_the_brakes_again() {
    let mut world = World::new(&["n1", "n2"]);
    world.policy.mode = Mode::DryRun;
    world.policy.brake.max_new_tenants = 3;
    for round in 0..3 {
        world.wait(HOUR);
        let now = world.clock();
        let listed = (0..2).map(|i| record(&format!("ns-{round}-{i}"), now)).collect();
        world.answer("n1", listed);
        let evaluation = world.evaluate();
        assert_eq!(evaluation.plan.mode, Mode::DryRun);
        assert!(evaluation.decisions.iter().all(|decision| decision.dry_run));
    }
    let now = world.clock();
    world.answer(
        "n2",
        (0..3).flat_map(|r| (0..2).map(move |i| record(&format!("ns-{r}-{i}"), now))).collect(),
    );
    assert_eq!(world.blocked().len(), 6, "the plan shows the would-be blocks");
    world.wait(HOUR);
    let now = world.clock();
    world.answer(
        "n2",
        (0..3).flat_map(|r| (0..2).map(move |i| record(&format!("ns-{r}-{i}"), now))).collect(),
    );
    world.policy.mode = Mode::Enforce;
    let evaluation = world.evaluate();
    assert_eq!(evaluation.plan.blocks.len(), 3);
    assert_eq!(evaluation.held.len(), 3);
}

#[test]
fn while_paused_blocks_stay_and_only_operators_decide() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    world.evaluate();
    world.policy.mode = Mode::Paused;
    world.answer("n1", vec![record("ns-a", 0), record("ns-b", 0)]);
    world.rounds(40, |w| drop(w.answer("n1", vec![])));
    assert_eq!(world.blocked(), ["ns-a"], "neither the rules nor a new accusation changes it");
    let until = world.now.wall() + jiff::SignedDuration::from_hours(24);
    world.policy.mode = Mode::Paused;
    world
        .policy
        .exemptions
        .push(exemption(|e| e.namespace = Some(Pattern::Exact("ns-a".into())), Some(until)));
    let mut operator = World::new(&["n1"]);
    operator.answer("n1", vec![record("ns-a", 0)]);
    operator.evaluate();
    operator.policy.mode = Mode::Paused;
    operator.policy.exemptions = world.policy.exemptions.clone();
    assert!(operator.blocked().is_empty(), "an operator's exemption takes effect");
    world.policy.mode = Mode::Enforce;
    assert!(world.blocked().is_empty(), "and the release by the rules follows when they apply again");
}

#[test]
fn exemptions_cover_by_each_of_their_parts_until_their_date_and_release_at_once() {
    let regex = |text| Some(Pattern::Regex(regex::Regex::new(text).unwrap()));
    let exact = |text: &str| Some(Pattern::Exact(text.to_owned()));
    let parts: [&dyn Fn(&mut Exemption); 5] = [
        &|e| e.namespace = exact("ns-a"),
        &|e| e.app = exact("web"),
        &|e| e.process = regex("^xm"),
        &|e| e.rule = exact("^xmrig$"),
        &|e| (e.namespace, e.process) = (regex("a$"), exact("xmrig")),
    ];
    for set in parts {
        let mut world = World::new(&["n1"]);
        world.answer("n1", vec![record("ns-a", 0)]);
        assert_eq!(world.blocked(), ["ns-a"]);
        world.policy.exemptions = vec![exemption(set, Some(crate::common::at(HOUR).wall()))];
        let evaluation = world.evaluate();
        assert!(evaluation.plan.blocks.is_empty());
        assert_eq!(evaluation.decisions[0].kind, DecisionKind::Released);
        assert_eq!(&*evaluation.decisions[0].reason, "exempted: a contract");
        assert_eq!(kinds(&mut world), [], "logged once");
        world.wait(HOUR);
        world.answer("n1", vec![record("ns-a", 3600)]);
        assert_eq!(world.blocked(), ["ns-a"], "it has run out");
    }
    // Both parts must match, and an exemption without parts covers nothing.
    for set in [&|e: &mut Exemption| (e.namespace, e.process) = (exact("ns-a"), exact("zmap")), parts[0]] {
        let mut world = World::new(&["n1"]);
        world.policy.exemptions = vec![exemption(set, None), exemption(|_| (), None)];
        world.answer("n1", vec![record("ns-b", 0)]);
        assert_eq!(world.blocked(), ["ns-b"]);
    }
    // An App of which only one process is exempt stays blocked for the other.
    let mut world = World::new(&["n1"]);
    world.policy.exemptions = vec![exemption(|e| e.process = exact("xmrig"), None)];
    world.answer("n1", vec![record("ns-a", 0), record_of("ns-a", "web", "zmap", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
}

#[test]
fn an_operators_release_covers_app_process_and_rule_until_its_date() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    world.evaluate();
    let until = crate::common::at(2 * HOUR).wall();
    let command = IncidentCommand::Release { app: app("ns-a"), until };
    assert_eq!(
        world.incidents.execute(&command, "ops", &world.policy, world.now).unwrap().kind,
        DecisionKind::Released
    );
    assert!(world.blocked().is_empty());
    world.wait(HOUR);
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    assert!(world.blocked().is_empty(), "the same accusation");
    world.answer("n1", vec![record("ns-a", now), record_of("ns-a", "web", "zmap", now)]);
    assert_eq!(world.blocked(), ["ns-a"], "another process is another accusation");
    let unknown = IncidentCommand::Release { app: App::new("ns-x", "app", "web"), until };
    assert!(matches!(
        world.incidents.execute(&unknown, "ops", &world.policy, world.now),
        Err(IncidentCommandError::NoIncident(_))
    ));
}

#[test]
fn an_unreadable_pod_means_no_new_block_and_no_release() {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web", "n1", "web");
    world.answer("n1", vec![record("ns-a", 0), record("ns-b", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.facts.pods.clear();
    world.pod_is("ns-a", "web", PodState::Unreadable("the API server does not answer".into()));
    world.rounds(5, |w| {
        let now = w.clock();
        w.answer("n1", vec![record("ns-a", now), record("ns-b", now)]);
    });
    let evaluation = world.evaluate();
    assert_eq!(evaluation.plan.blocks.len(), 1);
    assert_eq!(evaluation.unverified, 2);
}

#[test]
fn an_incident_is_one_app_and_continues_within_a_day() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    world.answer("n1", vec![record("ns-a", 60)]);
    let opened = |w: &World| w.incidents.incidents().next().unwrap().1.opened();
    let notice = |w: &mut World| w.evaluate().plan.notices.pop().map(|notice| (notice.phase, notice.sent_at));
    let sent = notice(&mut world).unwrap();
    let first = opened(&world);
    assert_eq!(sent, (NoticePhase::Blocked, first.wall()));
    world.rounds(40, |w| drop(w.answer("n1", vec![])));
    assert_eq!(notice(&mut world), Some((NoticePhase::Recovered, sent.1)));
    // Its node still answers. A process that comes back after so long has begun anew.
    world.rounds(10 * 60, |w| drop(w.answer("n1", vec![])));
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    assert_eq!(
        notice(&mut world),
        Some((NoticePhase::Blocked, world.now.wall())),
        "its tenant is notified again"
    );
    assert_eq!(opened(&world), first, "the same incident goes on");
    world.rounds(40, |w| drop(w.answer("n1", vec![])));
    world.evaluate();
    world.wait(25 * HOUR);
    assert_eq!(notice(&mut world), None, "an incident that ended a day ago is forgotten");
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    world.evaluate();
    assert!(opened(&world) > first, "a day later it is another one");
}

#[test]
fn a_limited_number_of_tenants_is_newly_notified_per_round_and_the_rest_in_the_next() {
    let mut world = World::new(&["n1"]);
    world.policy.max_notices_per_round = 2;
    world.answer("n1", (0..5).map(|i| record(&format!("ns-{i}"), 0)).collect());
    let evaluation = world.evaluate();
    assert_eq!((evaluation.plan.blocks.len(), evaluation.plan.notices.len()), (5, 2));
    assert!(matches!(evaluation.alerts[..], [Alert::Notices { waiting: 3 }]));
    assert_eq!(world.evaluate().plan.notices.len(), 2, "the same round");
    for expected in [4, 5] {
        world.ledger.round_done();
        assert_eq!(world.evaluate().plan.notices.len(), expected);
    }
}

#[test]
fn a_pods_new_labels_do_not_move_its_accusations() {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "web", "n1", "guilty");
    world.answer("n1", vec![record("ns-a", 0)]);
    world.evaluate();
    world.pod_on("ns-a", "web", "n1", "innocent");
    let names = |w: &mut World| -> Vec<String> {
        w.evaluate().plan.blocks.iter().map(|block| block.app.name.to_string()).collect()
    };
    assert_eq!(names(&mut world), ["guilty"]);
    world.wait(MINUTE);
    world.answer("n1", vec![record("ns-a", 60)]);
    assert_eq!(names(&mut world), ["guilty"], "the Pod is the same, and one offence is one block");
    // Once that is over, the Pod is accused as the App that it belongs to then.
    world.rounds(31, |w| drop(w.answer("n1", vec![])));
    assert!(names(&mut world).is_empty());
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    assert_eq!(names(&mut world), ["innocent"]);
}

#[test]
fn a_node_that_accuses_ever_new_apps_does_not_fill_the_memory() {
    let nodes: Vec<String> = (0..25).map(|i| format!("liar-{i}")).collect();
    let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
    // The ledger has room for all of them, so that only the limit of the incidents applies.
    let mut world = World::with(&names, Detection { max_keys: 25_000, ..Detection::default() });
    for (i, node) in nodes.iter().enumerate() {
        let lies = (0..1000).map(|app| record_of("ns-a", &format!("p-{i}-{app}"), "x", 0)).collect();
        world.answer(node, lies);
    }
    assert!(world.held().len() > 24_900);
    world.wait(24 * HOUR);
    world.evaluate();
    let remembered = world.incidents.incidents().count();
    assert!(remembered <= 200 + 50, "{remembered} of one namespace");
}

#[test]
fn an_accusation_in_a_namespace_that_may_not_be_touched_is_in_the_log_once() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("kube-system", 0)]);
    let decisions = world.evaluate().decisions;
    assert_eq!(decisions[0].kind, DecisionKind::Exempted);
    assert!(decisions[0].reason.contains("enforcement.protected_namespaces"));
    world.answer("n1", vec![record("kube-system", 60)]);
    assert_eq!(world.evaluate().decisions, []);
}

/// A tenant can give its process the text of a rule as a name.
#[test]
fn an_exemption_by_rule_covers_no_keyword_hit() {
    let hit = |process: &str, rule: &str| {
        let mut record = record_of("ns-a", "web", process, 0);
        Arc::make_mut(&mut record.claim).regex = rule.into();
        record
    };
    let covers = |exemption: Exemption, record: &Record| exemption.covers(&app("ns-a"), record);
    let by_rule = || exemption(|it| it.rule = Some(Pattern::Exact("^xmrig$".into())), None);
    assert!(covers(by_rule(), &hit("xmrig", "^xmrig$")));
    assert!(!covers(by_rule(), &hit("^xmrig$", "")));
    let by_process = exemption(|it| it.process = Some(Pattern::Exact("^xmrig$".into())), None);
    assert!(covers(by_process, &hit("^xmrig$", "")));
    // It does not count as one that opens the App either.
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![hit("xmrig", "")]);
    let plan = world.evaluate().plan;
    let exact = || Some(Pattern::Exact("xmrig".into()));
    assert_eq!(exemption(|it| it.rule = exact(), None).opens(&plan), 0);
    assert_eq!(exemption(|it| it.process = exact(), None).opens(&plan), 1);
}

#[test]
fn an_exempt_accusation_is_no_reason_for_a_block_that_another_one_has_announced() {
    let exact = |text: &str| Some(Pattern::Exact(text.to_owned()));
    let mut world = World::new(&["n1"]);
    world.policy.grace = Duration::from_secs(10 * MINUTE);
    world.policy.exemptions = vec![exemption(|e| e.process = exact("exporter"), None)];
    world.answer("n1", vec![record_of("ns-a", "bad", "xmrig", 0), record_of("ns-a", "good", "exporter", 0)]);
    // Pods of one App, as their labels say.
    world.policy.verify_pods = true;
    world.pod_on("ns-a", "bad", "n1", "web");
    world.pod_on("ns-a", "good", "n1", "web");
    assert_eq!(kinds(&mut world), [DecisionKind::Warned]);
    let bad = PodRef { namespace: "ns-a".into(), pod: "bad".into() };
    world.wait(2 * MINUTE);
    world.ledger.pod_gone(&bad, world.now);
    for _ in 0..20 {
        world.wait(MINUTE);
        let now = world.clock();
        world.answer(
            "n1",
            vec![record_of("ns-a", "bad", "xmrig", 0), record_of("ns-a", "good", "exporter", now)],
        );
        assert!(world.blocked().is_empty());
    }
}

#[test]
fn a_wall_clock_that_is_wrong_for_a_while_undoes_no_release_by_hand() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    let until = world.now.wall() + jiff::SignedDuration::from_hours(24);
    world
        .incidents
        .execute(&IncidentCommand::Release { app: app("ns-a"), until }, "ops", &world.policy, world.now)
        .unwrap();
    world.policy.mode = Mode::Paused;
    let right = world.now;
    world.now =
        procscan_core::Moment::new(world.now.uptime(), right.wall() + jiff::SignedDuration::from_hours(48));
    world.evaluate();
    world.now = right;
    world.policy.mode = Mode::Enforce;
    world.wait(MINUTE);
    world.answer("n1", vec![record("ns-a", 60)]);
    assert!(world.blocked().is_empty());
}
