//! Names are not Pods: which Pod a record is of, and which App that is.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::common::{MINUTE, World, always, at, complete, record, record_of};
use jiff::Timestamp;
use procscan_core::names::{App, NodeName, PodRef};
use procscan_core::policy::{AGE_TOLERANCE, DecisionKind, PodFact, PodState, WhichPod};
use procscan_core::report::{Answer, Outcome, Record};
use procscan_core::state::Incident;

/// A world that verifies Pods, `minutes` after its start.
fn world(minutes: u64) -> World {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    world.wait(minutes * MINUTE);
    world
}

fn name(namespace: &str) -> PodRef {
    PodRef { namespace: namespace.into(), pod: "web".into() }
}

/// Sets when the Pod was created.
fn created(world: &mut World, moment: Option<procscan_core::Moment>) {
    let Some(PodFact { state: PodState::Present { created, .. }, .. }) =
        world.facts.pods.get_mut(&name("ns-a"))
    else {
        panic!("there is no Pod")
    };
    *created = moment;
}

/// What an agent says that does not tell its time.
fn without_date(records: Vec<Record>) -> Outcome {
    Outcome::Complete(Answer { records: records.into_iter().collect(), ..Answer::default() })
}

fn blocked(world: &mut World) -> Vec<String> {
    world.evaluate().plan.blocks.iter().map(|block| block.app.name.to_string()).collect()
}

#[test]
fn a_record_that_is_older_than_its_pod_does_not_block_it() {
    // Whatever the agent's own clock shows.
    for skew in [0, 7200, -7200] {
        let mut world = world(60);
        world.pod_on("ns-a", "web", "n1", "shop");
        created(&mut world, Some(at(55 * MINUTE)));
        let found = |minute: i64| vec![record("ns-a", minute * 60 + skew)];
        world.report("n1", complete(found(40), 3600 + skew));
        let evaluation = world.evaluate();
        assert!(evaluation.plan.blocks.is_empty(), "a record of 20 minutes of a Pod of 5");
        assert_eq!(evaluation.decisions[0].kind, DecisionKind::Disputed);
        assert_eq!(evaluation.disputes[0].reason, "the record is 15m older than the Pod");
        world.report("n1", complete(found(40), 3600 + skew));
        assert!(world.evaluate().decisions.is_empty(), "said once");
        world.wait(MINUTE);
        world.report("n1", complete(found(61), 3660 + skew));
        assert_eq!(blocked(&mut world), ["shop"], "it offends itself");
    }
}

#[test]
fn a_record_may_seem_older_than_its_pod_by_what_clocks_tell_wrongly() {
    let tolerance = i64::try_from(AGE_TOLERANCE.as_secs()).unwrap();
    for (older_by, is_believed) in [(-10, true), (0, true), (tolerance, true), (tolerance + 1, false)] {
        let mut world = world(60);
        world.pod_on("ns-a", "web", "n1", "web");
        created(&mut world, Some(at(3590)));
        world.answer("n1", vec![record("ns-a", 3590 - older_by)]);
        assert_eq!(blocked(&mut world).len(), usize::from(is_believed), "{older_by}");
    }
}

#[test]
fn nothing_new_is_believed_of_a_pod_of_unknown_age() {
    let mut world = world(60);
    world.pod_on("ns-a", "web", "n1", "web");
    created(&mut world, None);
    world.answer("n1", vec![record("ns-a", 3600)]);
    let evaluation = world.evaluate();
    assert_eq!((evaluation.plan.blocks.len(), evaluation.disputes.len(), evaluation.unverified), (0, 0, 1));
    created(&mut world, Some(at(0)));
    assert_eq!(blocked(&mut world), ["web"]);
    // What was accepted against this very Pod stands.
    created(&mut world, None);
    assert_eq!((blocked(&mut world), world.evaluate().unverified), (vec!["web".to_owned()], 0));
    world.wait(MINUTE);
    world.answer("n1", vec![record("ns-a", 3660)]);
    assert_eq!((blocked(&mut world), world.evaluate().unverified), (vec!["web".to_owned()], 1));
}

#[test]
fn an_agent_that_does_not_tell_its_time_accuses_pods_that_are_older_than_its_answer_before() {
    let mut world = world(60);
    world.pod_on("ns-a", "web", "n1", "web");
    created(&mut world, Some(at(3630)));
    let say = |world: &mut World, second: u64, stamp: i64| {
        world.wait(second - world.now.uptime().as_secs());
        world.report("n1", without_date(vec![record("ns-a", stamp)]));
        let evaluation = world.evaluate();
        (evaluation.plan.blocks.len(), evaluation.disputes.len())
    };
    assert_eq!(say(&mut world, 3600, 10), (0, 0), "it may have been found at any time");
    // Between 3600 and 3660, so perhaps before the Pod was there.
    assert_eq!(say(&mut world, 3660, 20), (0, 1));
    assert_eq!(say(&mut world, 3720, 20), (0, 1));
    assert_eq!(say(&mut world, 3780, 30), (1, 0), "after 3720");
}

#[test]
fn a_pods_successor_of_another_app_is_not_accused_of_what_its_predecessor_did() {
    let mut world = world(0);
    world.pod_on("ns-a", "web", "n1", "miner");
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(blocked(&mut world), ["miner"]);
    world.wait(10 * MINUTE);
    world.recreate("ns-a", "web", "n1", "shop");
    // Its agent goes on listing what it has found, and a last scan that nobody had seen.
    for stamp in [0, 590] {
        world.answer("n1", vec![record("ns-a", stamp)]);
        assert_eq!(blocked(&mut world), ["miner"]);
    }
    let snapshot = world.snapshot();
    let questions = world.book.questions(&snapshot, &world.policy);
    let accused = &questions.apps[&App::new("ns-a", "app", "miner")];
    assert_eq!(
        accused.iter().map(|pod| &pod.which).collect::<Vec<_>>(),
        [&WhichPod::Uid("uid of web".into())]
    );
    // It begins to do the same.
    world.wait(MINUTE);
    world.answer("n1", vec![record("ns-a", 650)]);
    assert_eq!(blocked(&mut world), ["miner", "shop"]);
}

/// As an earlier version has kept it.
fn forget_uids(world: &mut World) {
    for incident in world.kept.values_mut() {
        for evidence in &mut incident.status.evidence {
            assert!(evidence.pod_uid.take().is_some());
        }
        let text = serde_json::to_string(&incident.status).unwrap();
        assert!(!text.contains("podUid"));
        incident.status = serde_json::from_str(&text).unwrap();
    }
}

fn uids(kept: &BTreeMap<String, Incident>) -> Vec<Option<String>> {
    let evidence = kept.values().flat_map(|incident| &incident.status.evidence);
    evidence.map(|evidence| evidence.pod_uid.as_deref().map(str::to_owned)).collect()
}

#[test]
fn what_an_earlier_version_called_otherwise_is_neither_opened_nor_blocked_twice() {
    let mut world = world(10);
    world.pod_on("ns-a", "web", "n1", "shop");
    world.answer("n1", vec![record("ns-a", 600)]);
    assert_eq!(blocked(&mut world), ["shop"]);
    world.wait(MINUTE);
    forget_uids(&mut world);
    world.restart();
    // The same Pod is of another App by the rules of this version.
    world.pod_on("ns-a", "web", "n1", "shop-frontend");
    world.rounds(60, |world| {
        let now = world.clock();
        world.answer("n1", vec![record("ns-a", now)]);
        assert_eq!(blocked(world), ["shop"]);
    });
    assert_eq!(uids(&world.kept), [Some("uid of web".to_owned())], "kept as soon as it is known");
}

#[test]
fn a_pod_that_came_after_what_an_earlier_version_has_kept_is_another_one() {
    let mut world = world(10);
    world.pod_on("ns-a", "web", "n1", "miner");
    world.answer("n1", vec![record("ns-a", 600)]);
    assert_eq!(blocked(&mut world), ["miner"]);
    world.wait(MINUTE);
    forget_uids(&mut world);
    world.restart();
    world.recreate("ns-a", "web", "n1", "shop");
    world.wait(MINUTE);
    world.answer("n1", vec![record("ns-a", 600)]);
    assert_eq!(blocked(&mut world), ["miner"]);
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    assert_eq!(blocked(&mut world), ["miner", "shop"]);
}

#[test]
fn a_restart_does_not_make_accepted_evidence_doubtful() {
    let mut world = world(10);
    world.policy.grace = Duration::from_secs(5 * MINUTE);
    world.pod_on("ns-a", "web", "n1", "web");
    world.answer("n1", vec![record("ns-a", 600)]);
    assert!(blocked(&mut world).is_empty());
    world.wait(MINUTE);
    world.restart();
    world.wait(5 * MINUTE);
    assert!(blocked(&mut world).is_empty(), "how old it is, only a wall clock knows");
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    assert_eq!(blocked(&mut world), ["web"], "its grace has ended");
    // Another Pod has come in between: what is kept is not of it.
    world.recreate("ns-a", "web", "n1", "shop");
    world.restart();
    assert_eq!((blocked(&mut world), world.evaluate().unverified), (vec!["web".to_owned()], 0));
}

#[test]
fn without_a_cluster_ages_do_not_matter() {
    let mut world = world(60);
    world.policy.verify_pods = false;
    world.report("n1", without_date(vec![record("ns-a", 10)]));
    world.wait(MINUTE);
    world.report("n1", without_date(vec![record("ns-a", 20)]));
    assert_eq!(blocked(&mut world), ["web"]);
    let snapshot = world.snapshot();
    let questions = world.book.questions(&snapshot, &world.policy);
    assert_eq!(questions.apps[&App::new("ns-a", "app", "web")][0].which, WhichPod::Any);
}

#[test]
fn a_node_is_asked_for_its_word_before_ages_are() {
    let mut world = world(60);
    let pod = |node: &str, created| PodState::Present {
        uid: "1".into(),
        created,
        node: NodeName::new(node),
        host_ips: vec!["10.0.0.1".into()],
        app: App::new("ns-a", "app", "web"),
    };
    world.answer("n1", vec![record_of("ns-a", "web", "xmrig", 3600)]);
    let is = |state, world: &mut World| {
        world.facts.pods.insert(name("ns-a"), PodFact { asked: always(), state });
        let evaluation = world.evaluate();
        (evaluation.disputes.first().map(|dispute| dispute.reason.clone()), evaluation.unverified)
    };
    assert_eq!(is(pod("n2", None), &mut world), (Some("the Pod runs on node n2".to_owned()), 0));
    assert_eq!(is(pod("n2", Some(at(0))), &mut world), (Some("the Pod runs on node n2".to_owned()), 0));
    assert_eq!(is(pod("n1", None), &mut world).1, 0, "the dispute stands until it is known");
    assert_eq!(is(pod("n1", Some(at(0))), &mut world), (None, 0));
    assert!(Timestamp::UNIX_EPOCH < world.now.wall());
}
