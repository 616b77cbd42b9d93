//! Cases that once led to a wrong release or a wrong block.

use procscan_core::exemption::Pattern;
use procscan_core::ledger::Detection;
use procscan_core::names::{App, Key};
use procscan_core::plan::Exposure;
use procscan_core::policy::{AppFact, IncidentCommand, Incidents, InheritedBlock, OnIngresses};
use procscan_core::report::{Answer, Failure, FailureReason, Limits, Outcome, decode};
use procscan_core::snapshot::State;

use crate::common::agent::{Process, RealAgent};
use crate::common::{HOUR, MINUTE, World, app, at, exemption, record, record_of};

/// A tenant fills its node's places, and its blocked miner changes its name. Each answer lists the miner, but there
/// is no room for the record.
#[test]
fn an_answer_with_records_for_which_there_was_no_room_is_inconclusive_about_their_namespaces() {
    let mut world = World::with(&["n1"], Detection { max_keys_per_node: 4, ..Detection::default() });
    let decoys = |now| ["p1", "p2", "p3"].map(|process| record_of("ns-x", "decoy", process, now));
    world.rounds(3, |world| {
        let now = world.clock();
        let mut listed = vec![record_of("ns-x", "web", "xmrig", now), record_of("ns-y", "web", "xmrig", now)];
        listed.extend(decoys(now).into_iter().take(2));
        world.answer("n1", listed);
    });
    assert_eq!(world.blocked(), ["ns-x", "ns-x", "ns-y"]);
    world.rounds(90, |world| {
        let now = world.clock();
        let mut listed = vec![record_of("ns-x", "web", "renamed", now)];
        listed.extend(decoys(now));
        world.answer("n1", listed);
        world.evaluate();
    });
    // No record of the other tenant was left out.
    assert_eq!(world.blocked(), ["ns-x", "ns-x"]);
}

/// An accusation that may not lead to a new block does not pass a brake either.
#[test]
fn an_accusation_that_is_too_old_for_a_new_block_passes_no_brake() {
    let mut world = World::new(&["n1", "n2"]);
    world.policy.brake.max_tenants_per_node = 1;
    let until = Some(at(4 * HOUR + 50 * MINUTE).wall());
    world.policy.exemptions =
        vec![exemption(|exemption| exemption.namespace = Some(Pattern::Exact("ns-x".into())), until)];
    // The second node scans once an hour, and finds ns-x each time.
    let mut last = 0;
    world.rounds(4 * 60 + 49, |world| {
        let now = world.clock();
        if now % 3600 == 0 {
            last = now;
        }
        let listed = if last > 0 { vec![record("ns-x", last)] } else { vec![] };
        world.answer("n2", listed);
        world.answer("n1", vec![]);
        world.evaluate();
    });
    // The first node has used its place, and then accuses ns-x as well.
    world.wait(MINUTE);
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now), record("ns-b", now)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.wait(MINUTE);
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now), record("ns-b", now), record("ns-x", now)]);
    world.answer("n2", vec![record("ns-x", last)]);
    assert_eq!(world.blocked(), ["ns-a"]);
}

/// An agent that lists one of several lists a record that can't be used. The list is not empty, and hides another
/// process.
#[test]
fn an_answer_whose_only_record_can_not_be_used_is_inconclusive_about_others() {
    let mut world = World::new(&["n1"]);
    world.rounds(60, |world| {
        let now = world.clock();
        world.answer("n1", vec![record("ns-j", now)]);
        world.evaluate();
    });
    world.rounds(300, |world| {
        let now = world.now.wall();
        let body = format!(r#"[{{"pod":"p","namespace":"ns-k","process":"","timestamp":"{now}"}}]"#);
        let (mut answer, rest) = decode(body.as_bytes(), &Limits::default());
        rest.unwrap();
        answer.date = Some(now);
        world.report("n1", Outcome::Complete(answer));
        assert_ne!(world.state("ns-j"), State::Cleared);
    });
}

/// A part of an answer comes between two answers without a change. The list that these repeat is still inconclusive
/// about records without room, and about others than an unusable record.
#[test]
fn after_a_part_of_an_answer_an_unchanged_list_is_still_inconclusive_about_omitted_records() {
    let cut = || {
        let failure = Failure { reason: FailureReason::Deferred, detail: "by the test".into() };
        Outcome::Partial(Answer::default(), failure)
    };
    for is_cut in [false, true] {
        let mut unclear = World::new(&["n1"]);
        let mut crowded = World::with(&["n1"], Detection { max_keys_per_node: 2, ..Detection::default() });
        for world in [&mut unclear, &mut crowded] {
            world.rounds(60, |world| {
                let now = world.clock();
                world.answer("n1", vec![record("ns-j", now)]);
            });
        }
        // An agent that lists one of several lists a record that can't be used.
        let (mut answer, _) = decode(br#"[{"pod":"p"}]"#, &Limits::default());
        answer.date = Some(unclear.now.wall());
        unclear.report("n1", Outcome::Complete(answer));
        // A process of the same namespace has a new name, for which there is no room.
        let now = crowded.clock();
        let decoys = ["p1", "p2", "p3"].map(|process| record_of("ns-j", "decoy", process, now));
        crowded.answer("n1", decoys.into());
        for (name, world) in [("unclear", &mut unclear), ("crowded", &mut crowded)] {
            world.rounds(300, |world| {
                world.report("n1", Outcome::Unchanged);
                if is_cut {
                    world.report("n1", cut());
                }
                let violations = world.snapshot().violations;
                let known = violations.iter().find(|violation| violation.key == record("ns-j", 0).key);
                assert_ne!(known.expect("it is known").state, State::Cleared, "{name}, cut: {is_cut}");
            });
        }
    }
}

/// A slow decoy makes rounds fall between two results of one scan. Then the agent restarts just before its next scan.
#[test]
fn a_tenant_can_not_make_an_agents_scan_interval_seem_short() {
    for has_decoy in [false, true] {
        let mut world = World::new(&["n1"]);
        let mut agent = RealAgent::new(1000, 0);
        agent.pace = 5;
        agent.run(1000, Process::of("ns-j"));
        let ask = |world: &mut World, agent: &mut RealAgent| {
            let outcome = agent.outcome(world.now.uptime().as_secs());
            world.report("n1", outcome);
            world.evaluate();
        };
        world.rounds(45, |world| ask(world, &mut agent));
        if has_decoy {
            agent.run(999, Process { is_slow: true, ..Process::of("ns-j2") });
        }
        world.rounds(10, |world| ask(world, &mut agent));
        agent.end(999);
        world.rounds(28, |world| ask(world, &mut agent));
        agent.restart(u64::try_from(world.clock()).unwrap());
        world.rounds(40, |world| {
            ask(world, &mut agent);
            assert_ne!(world.state("ns-j"), State::Cleared, "decoy: {has_decoy}");
        });
    }
}

/// The persisted evidence of an incident is bounded. After a restart the nodes of omitted evidence are not known.
#[test]
fn a_release_waits_on_every_node_for_accusations_that_were_not_persisted() {
    for many in [10, 70] {
        let mut world = World::new(&["n1", "n2"]);
        world.rounds(3, |world| {
            let now = world.clock();
            world.answer("n1", vec![]);
            world.answer("n2", vec![record_of("ns-x", "web-1", "xmrig", now)]);
            world.evaluate();
        });
        // The second node does not answer from now on. The first one lists many more processes of the same App.
        world.wait(MINUTE);
        let now = world.clock();
        world.answer("n1", (0..many).map(|n| record_of("ns-x", "web-1", &format!("p{n}"), now)).collect());
        world.fail("n2");
        assert_eq!(world.blocked().len(), 1);
        world.restart();
        world.rounds(300, |world| {
            world.answer("n1", vec![]);
            world.fail("n2");
            assert_eq!(world.blocked().len(), 1, "{many}");
        });
    }
}

/// Of two Apps with a shared Service, the incident of one can't be read, and the incident of the other has ended.
#[test]
fn services_of_an_ended_incident_stay_closed_for_an_unreadable_app() {
    let mut world = World::new(&["n1"]);
    let of = |name: &str| App::new("ns-x", "app", name);
    for name in ["a", "c"] {
        let exposure = Exposure::plain([format!("{name}.ns-x.svc").into(), "all.ns-x.svc".into()]);
        let fact = AppFact { exposure: Some(exposure), ..AppFact::default() };
        world.facts.apps.insert(of(name), fact);
    }
    let accuse = |world: &mut World, names: &[&str]| {
        let now = world.clock();
        world.answer("n1", names.iter().map(|name| record_of("ns-x", name, "xmrig", now)).collect());
        world.evaluate();
    };
    world.rounds(3, |world| accuse(world, &["a", "c"]));
    world.rounds(60, |world| accuse(world, &["a"]));
    assert_eq!(world.evaluate().plan.blocks.len(), 1);
    let ended: Vec<_> = world.persisted.values().filter(|it| &*it.spec.app.name == "c").cloned().collect();
    let snapshot = world.snapshot();
    let mut incidents = Incidents::restore(&ended, &snapshot, world.now);
    incidents.mark_unreadable([of("a")]);
    let services = vec!["a.ns-x.svc".into(), "all.ns-x.svc".into()];
    let accused = [Key::new("ns-x", "a", "xmrig")].into();
    let found = InheritedBlock {
        app: of("a"),
        notified_at: None,
        is_guess: false,
        accused,
        services,
        on_ingresses: OnIngresses::default(),
    };
    incidents.inherit([found], &world.policy, world.now);
    let plan = incidents.evaluate(&snapshot, &world.policy, &world.facts, world.now).plan;
    let closed: Vec<&str> =
        plan.blocks.iter().flat_map(|block| block.exposure.services.iter().map(|text| &**text)).collect();
    assert_eq!(closed, ["a.ns-x.svc", "all.ns-x.svc"]);
}

#[test]
fn an_approval_from_before_an_exemption_does_not_count_after_it() {
    let mut world = World::new(&["n1"]);
    world.policy.brake.max_new_tenants = 0;
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.held(), ["ns-a"]);
    world
        .incidents
        .execute(&IncidentCommand::Approve { app: app("ns-a") }, "ops", &world.policy, world.now)
        .unwrap();
    assert_eq!(world.blocked(), ["ns-a"]);
    let covers =
        |e: &mut procscan_core::exemption::Exemption| e.namespace = Some(Pattern::Exact("ns-a".into()));
    world.policy.exemptions = vec![exemption(covers, None)];
    assert!(world.blocked().is_empty());
    world.policy.exemptions.clear();
    world.wait(MINUTE);
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    let evaluation = world.evaluate();
    assert_eq!((evaluation.plan.blocks.len(), evaluation.held.len()), (0, 1));
}

#[test]
fn a_release_that_could_not_be_written_waits_again_for_the_nodes_that_are_not_known() {
    let mut world = World::new(&["n1", "n2"]);
    world.answer("n2", vec![]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    for incident in world.persisted.values_mut() {
        incident.status.evidence_omitted = 3;
    }
    world.restart();
    world.unwritable.insert("ns-a".into());
    world.rounds(200, |world| {
        for node in ["n1", "n2"] {
            world.answer(node, vec![]);
        }
        world.evaluate();
    });
    assert_eq!(world.blocked(), ["ns-a"], "its release can't be written");
    // A node has not answered since, and may be one of those that are not known.
    world.unwritable.clear();
    world.fail("n2");
    world.rounds(20, |world| drop((world.answer("n1", vec![]), world.fail("n2"))));
    let incident = world.incidents.document(&app("ns-a")).unwrap();
    assert_eq!(incident.status.evidence_omitted, 3, "{:?}", incident.status);
}
