//! Which parts of an incident are persisted, when they are persisted again, and how a restart reads them.

use crate::common::{HOUR, MINUTE, World, app, exemption, namespaces, record, record_of};
use procscan_core::decision::Mode;
use procscan_core::exemption::Pattern;
use procscan_core::policy::{IncidentCommand, Incidents, remembered};
use procscan_core::state::incident::IncidentState;

/// Whether the incident is as it was when it was persisted; some may have been borrowed mutably since.
fn is_persisted(world: &mut World, namespace: &str) -> bool {
    let observed = world.incidents.incident(&app(namespace)).unwrap().observed();
    world.incidents.note_done_up_to(&app(namespace), observed);
    !world.incidents.dirty().contains(&app(namespace))
}

#[test]
fn an_unchanged_incident_is_not_persisted_again_whatever_its_state() {
    // Blocked, and held.
    let mut world = World::new(&["n1"]);
    world.policy.brake.max_new_tenants = 1;
    world.answer("n1", vec![record("ns-a", 0), record("ns-b", 0)]);
    assert_eq!((world.blocked().len(), world.held().len()), (1, 1));
    assert!(is_persisted(&mut world, "ns-a") && is_persisted(&mut world, "ns-b"));
    // Approved.
    world
        .incidents
        .execute(&IncidentCommand::Approve { app: app("ns-b") }, "ops", &world.policy, world.now)
        .unwrap();
    assert_eq!(world.incidents.dirty(), [app("ns-b")]);
    assert_eq!(world.blocked().len(), 2);
    assert!(is_persisted(&mut world, "ns-b"));
    // Released by an operator, and exempted.
    let until = world.now.wall() + jiff::SignedDuration::from_hours(1);
    world
        .incidents
        .execute(&IncidentCommand::Release { app: app("ns-b"), until }, "ops", &world.policy, world.now)
        .unwrap();
    world.policy.exemptions = vec![exemption(|e| e.namespace = Some(Pattern::Exact("ns-a".into())), None)];
    assert!(world.blocked().is_empty());
    assert!(is_persisted(&mut world, "ns-a") && is_persisted(&mut world, "ns-b"));
    // Its release is held; then it has ended.
    let mut world = World::new(&["n1"]);
    world.policy.brake.max_releases = 1;
    world.answer("n1", vec![record("ns-a", 0), record("ns-b", 0)]);
    assert_eq!(world.blocked().len(), 2);
    world.rounds(31, |w| drop(w.answer("n1", vec![])));
    world.evaluate();
    for namespace in ["ns-a", "ns-b"] {
        assert!(is_persisted(&mut world, namespace));
    }
}

#[test]
fn the_time_of_the_last_evidence_is_persisted_once_an_hour() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    let dirty = |world: &mut World| {
        let now = world.clock();
        world.answer("n1", vec![record("ns-a", now)]);
        let snapshot = world.snapshot();
        world.incidents.decide(&snapshot, &world.policy, &world.facts, world.now);
        world.incidents.dirty().len()
    };
    // The scan interval of its agent is persisted with it.
    world.wait(MINUTE);
    dirty(&mut world);
    world.persist();
    world.wait(HOUR - MINUTE - 1);
    assert_eq!(dirty(&mut world), 0);
    world.wait(1);
    assert_eq!(dirty(&mut world), 1);
}

#[test]
fn a_new_decision_does_not_wait_until_the_evidence_of_all_others_is_persisted_anew() {
    let mut world = World::new(&["n1"]);
    let brake = &mut world.policy.brake;
    (brake.max_new_tenants, brake.max_tenants_per_node, brake.max_apps_per_node) = (1000, 1000, 1000);
    brake.max_tenants_per_rule = 1000;
    let decide = |world: &mut World, tenants: usize| {
        let now = world.clock();
        world.answer("n1", (0..tenants).map(|n| record(&format!("ns-{n:03}"), now)).collect());
        let snapshot = world.snapshot();
        world.incidents.decide(&snapshot, &world.policy, &world.facts, world.now);
    };
    decide(&mut world, 120);
    world.persist();
    world.wait(HOUR);
    decide(&mut world, 121);
    let dirty = world.incidents.dirty();
    assert_eq!((&dirty[0], dirty.len()), (&app("ns-120"), 51));
    // The others follow in turn.
    for left in [50, 20, 0] {
        world.persist();
        assert_eq!(world.incidents.dirty().len(), left);
    }
}

#[test]
fn blocks_and_releases_are_persisted_before_anything_else() {
    let mut world = World::new(&["n1"]);
    world.policy.grace = std::time::Duration::from_mins(10);
    world.unwritable = namespaces(2).into_iter().chain(["ns-z".to_owned()]).collect();
    world.answer("n1", vec![record("ns-z", 0)]);
    let snapshot = world.snapshot();
    world.incidents.decide(&snapshot, &world.policy, &world.facts, world.now);
    world.policy.grace = std::time::Duration::ZERO;
    world.policy.brake.max_new_tenants = 1;
    for namespace in ["ns-z", "ns-a"] {
        world.wait(1);
        let now = world.clock();
        world.answer("n1", vec![record(namespace, now)]);
    }
    let snapshot = world.snapshot();
    world.incidents.decide(&snapshot, &world.policy, &world.facts, world.now);
    // The first one is held, the other one is blocked.
    assert_eq!(world.incidents.dirty(), [app("ns-z"), app("ns-a")]);
    world.incidents.commit(&[app("ns-z"), app("ns-a")]);
    let until = world.now.wall() + jiff::SignedDuration::from_hours(1);
    world
        .incidents
        .execute(&IncidentCommand::Release { app: app("ns-z"), until }, "ops", &world.policy, world.now)
        .unwrap();
    world.incidents.note_done_up_to(&app("ns-a"), 1);
    assert_eq!(world.incidents.dirty(), [app("ns-z"), app("ns-a")], "the App is to be opened");
}

#[test]
fn of_two_incidents_of_an_app_and_of_two_reports_of_a_node_the_later_one_counts() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.rounds(31, |w| {
        w.answer("n1", vec![]);
        w.evaluate();
    });
    world.wait(30 * HOUR);
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    let mut persisted: Vec<_> = world.persisted.values().cloned().collect();
    assert_eq!(persisted.len(), 2);
    let name = world.incidents.name_of(&app("ns-a"));
    for _ in 0..2 {
        let incidents = Incidents::restore(&persisted, &world.ledger.snapshot(world.now), world.now);
        assert_eq!(incidents.name_of(&app("ns-a")), name);
        let known = remembered(&persisted);
        assert_eq!((known.len(), known[0].fresh_at, known[0].cleared), (1, world.now.wall(), None));
        persisted.reverse();
    }
}

#[test]
fn a_document_has_the_state_and_the_reason_of_the_block_or_of_the_end() {
    let mut world = World::new(&["n1"]);
    world.policy.brake.max_releases = 1;
    world.answer("n1", vec![record("ns-a", 0), record("ns-b", 0)]);
    assert_eq!(world.blocked().len(), 2);
    let state_and_reason = |world: &World, namespace: &str| {
        let status = world.incidents.document(&app(namespace)).unwrap().status;
        (status.state, status.reason.to_string())
    };
    let why = "process `xmrig` in Pod web matches rule";
    for namespace in ["ns-a", "ns-b"] {
        let (state, reason) = state_and_reason(&world, namespace);
        assert!(state == IncidentState::Blocked && reason.starts_with(why), "{state:?} {reason}");
    }
    world.rounds(31, |w| drop(w.answer("n1", vec![])));
    assert_eq!(world.blocked(), ["ns-b"]);
    let (state, reason) = state_and_reason(&world, "ns-b");
    assert!(state == IncidentState::ReleaseHeld && reason.starts_with(why), "{state:?} {reason}");
    let (state, reason) = state_and_reason(&world, "ns-a");
    assert!(
        state == IncidentState::Ended && reason.starts_with("its node has answered"),
        "{state:?} {reason}"
    );
}

#[test]
fn the_scan_interval_is_persisted_in_whole_seconds_and_rounded_up() {
    for (millis, seconds) in [(600_000, 600), (600_001, 601), (600_999, 601)] {
        let mut world = World::new(&["n1"]);
        for n in 0..6_u64 {
            let mut found = record("ns-a", 0);
            found.detected_at += std::time::Duration::from_millis(n * millis);
            found.timestamp = found.detected_at.to_string().into();
            world.answer("n1", vec![found]);
            world.evaluate();
            world.wait(millis / 1000 + 1);
        }
        world.evaluate();
        let status = world.incidents.document(&app("ns-a")).unwrap().status;
        assert_eq!(status.evidence[0].scan_interval, Some(seconds));
    }
}

#[test]
fn eight_processes_are_named_and_each_that_has_cleared_is_remembered() {
    let mut world = World::new(&["n1"]);
    let list = |w: &mut World, n: usize| {
        let now = w.clock();
        w.answer("n1", (0..n).map(|n| record_of("ns-a", "web", &format!("miner{n:02}"), now)).collect());
        w.evaluate();
    };
    list(&mut world, 8);
    world.wait(1);
    list(&mut world, 9);
    let status = |world: &World| world.incidents.document(&app("ns-a")).unwrap().status;
    assert_eq!(status(&world).processes.len(), 8);
    // They end one after the other.
    for n in [3, 2, 1] {
        world.rounds(31, |w| list(w, n));
    }
    let cleared = status(&world).evidence.iter().filter(|evidence| evidence.cleared.is_some()).count();
    assert_eq!((cleared, status(&world).evidence.len()), (8, 9));
    // Paused mode delays none of this.
    world.policy.mode = Mode::Paused;
    assert_eq!(world.blocked(), ["ns-a"]);
}

#[test]
fn a_new_incident_that_can_not_be_persisted_is_still_known() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.rounds(31, |w| drop(w.answer("n1", vec![])));
    assert!(world.blocked().is_empty());
    world.wait(25 * HOUR);
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    world.unwritable.insert("ns-a".to_owned());
    assert!(world.blocked().is_empty());
    // When the incident can be persisted again, the evidence is too old even for an agent that scans seldom. But the
    // report is not lost.
    world.wait(4 * HOUR);
    world.unwritable.clear();
    assert!(world.blocked().is_empty());
    let persisted = world.persisted.values().map(|incident| &incident.status);
    let watched: Vec<_> = persisted.filter(|status| status.state == IncidentState::Watched).collect();
    assert_eq!((world.persisted.len(), watched.len()), (2, 1));
    assert_eq!(watched[0].evidence.len(), 1);
}

#[test]
fn tombstones_and_accepted_evidence_are_the_same_after_a_restart() {
    // Two processes of one Pod, of which one ends; then the Pod is gone, which does not end the block.
    let mut world = World::new(&["n1"]);
    let list = |w: &mut World, names: &[&str]| {
        let now = w.clock();
        w.answer("n1", names.iter().map(|name| record_of("ns-a", "web", name, now)).collect());
        w.evaluate();
    };
    list(&mut world, &["xmrig", "zmap"]);
    world.rounds(40, |w| list(w, &["zmap"]));
    world.wait(1);
    world.ledger.pod_gone(&record_of("ns-a", "web", "zmap", 0).key.pod_ref(), world.now);
    let evidence = |world: &mut World| {
        let accusations = world.evaluate().plan.blocks[0].grounds.len();
        let status = world.incidents.document(&app("ns-a")).unwrap().status;
        let cleared = |cleared: &procscan_core::state::incident::ClearedEvidence| (cleared.by, cleared.ended);
        let of = status.evidence.iter().map(|it| (it.process.to_string(), it.cleared.as_ref().map(cleared)));
        (accusations, of.collect::<Vec<_>>())
    };
    let before = evidence(&mut world);
    let by = |by, ended| Some((by, ended));
    let expected = [
        ("zmap".to_owned(), by(procscan_core::state::incident::ClearedBy::PodGone, false)),
        ("xmrig".to_owned(), by(procscan_core::state::incident::ClearedBy::Clock, true)),
    ];
    assert_eq!(before, (1, expected.to_vec()));
    world.restart();
    let status = world.incidents.document(&app("ns-a")).unwrap().status;
    assert!(status.evidence.iter().all(|it| it.cleared.is_some()), "before any report");
    assert_eq!(evidence(&mut world), before);
    // The incident is restored from a backup after it has ended.
    let (mut again, at) = (status.clone(), world.now.wall());
    again.end_again(at);
    assert_eq!(
        (again.state, again.since, again.decided),
        (IncidentState::Ended, Some(at), status.decided + 1)
    );
    assert!(again.evidence.iter().all(|it| it.cleared.as_ref().unwrap().ended));
    assert_eq!(again.evidence[1], status.evidence[1], "the tombstone has its time");
    assert!(again.decisions.last().unwrap().decision == procscan_core::decision::DecisionKind::Closed);
}

#[test]
fn the_longest_time_for_which_a_process_was_unseen_is_persisted() {
    let mut world = World::new(&["n1"]);
    let list = |w: &mut World, namespace: &str| {
        let now = w.clock();
        w.answer("n1", vec![record(namespace, now)]);
        w.evaluate();
    };
    let interval = |world: &World| {
        let status = world.incidents.document(&app("ns-a")).unwrap().status;
        status.evidence[0].scan_interval
    };
    list(&mut world, "ns-a");
    assert_eq!(interval(&world), None);
    world.rounds(25, |w| list(w, "ns-b"));
    world.rounds(1, |w| list(w, "ns-a"));
    assert!(interval(&world).unwrap() >= 25 * MINUTE, "{:?}", interval(&world));
    // The process is found more often now. That is no sign that it can't be unseen for so long once more.
    world.rounds(5, |w| list(w, "ns-a"));
    assert!(interval(&world).unwrap() >= 20 * MINUTE, "{:?}", interval(&world));
}

#[test]
fn a_persisted_scan_interval_counts_after_a_restart_for_later_violations_too() {
    let mut world = World::new(&["n1"]);
    let list = |w: &mut World| {
        let (now, scan) = (w.clock(), w.clock() / 3600 * 3600);
        let namespace = if now < 6 * 3600 { "ns-a" } else { "ns-b" };
        w.answer("n1", vec![record(namespace, scan)]);
        w.evaluate();
    };
    world.rounds(5 * 60 + 59, list);
    world.restart();
    // The agent finds another process now. Its answers until the next scan are no sign of its absence.
    world.rounds(50, list);
    assert!(world.blocked().contains(&"ns-b".to_owned()));
    world.wait(MINUTE);
    let now = world.clock();
    world.answer("n1", vec![record("ns-c", now)]);
    world.rounds(59, |w| drop(w.answer("n1", vec![record("ns-c", now)])));
    assert!(world.blocked().contains(&"ns-b".to_owned()));
}

#[test]
fn evidence_that_is_found_anew_after_it_has_cleared_is_persisted_once() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.rounds(31, |w| drop(w.answer("n1", vec![])));
    assert!(world.blocked().is_empty());
    world.wait(MINUTE);
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    let status = world.incidents.document(&app("ns-a")).unwrap().status;
    let [evidence] = &status.evidence[..] else { panic!("{:?}", status.evidence) };
    assert!(evidence.cleared.is_none());
}
