//! Which Pod a record is about, and which App that Pod belongs to. Pods that follow one another can have the same
//! name.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::common::{MINUTE, World, always, at, complete, record, record_of};
use jiff::Timestamp;
use procscan_core::decision::DecisionKind;
use procscan_core::names::{App, NodeName, PodRef};
use procscan_core::policy::{AGE_TOLERANCE, Lineage, PodFact, PodIdentity, PodState};
use procscan_core::report::{Answer, Outcome, Record};
use procscan_core::state::Incident;
use proptest::collection::vec;
use proptest::prelude::*;

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

/// An answer of an agent that does not send its time.
fn without_date(records: Vec<Record>) -> Outcome {
    Outcome::Complete(Answer { records: records.into_iter().collect(), ..Answer::default() })
}

fn blocked(world: &mut World) -> Vec<String> {
    world.evaluate().plan.blocks.iter().map(|block| block.app.name.to_string()).collect()
}

#[test]
fn a_record_that_is_older_than_its_pod_does_not_block_it() {
    // The result does not depend on the agent's own clock.
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
        assert!(world.evaluate().decisions.is_empty(), "logged once");
        world.wait(MINUTE);
        world.report("n1", complete(found(61), 3660 + skew));
        assert_eq!(blocked(&mut world), ["shop"], "the new Pod offends itself");
    }
}

#[test]
fn a_record_may_seem_older_than_its_pod_by_the_tolerance_for_clocks() {
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
    // Evidence that was accepted against this Pod stays accepted.
    created(&mut world, None);
    assert_eq!((blocked(&mut world), world.evaluate().unverified), (vec!["web".to_owned()], 0));
    world.wait(MINUTE);
    world.answer("n1", vec![record("ns-a", 3660)]);
    assert_eq!((blocked(&mut world), world.evaluate().unverified), (vec!["web".to_owned()], 1));
}

#[test]
fn an_agent_that_does_not_send_its_time_accuses_only_pods_that_are_older_than_its_answer_before() {
    let mut world = world(60);
    world.pod_on("ns-a", "web", "n1", "web");
    created(&mut world, Some(at(3630)));
    let say = |world: &mut World, second: u64, stamp: i64| {
        world.wait(second - world.now.uptime().as_secs());
        world.report("n1", without_date(vec![record("ns-a", stamp)]));
        let evaluation = world.evaluate();
        (evaluation.plan.blocks.len(), evaluation.disputes.len())
    };
    assert_eq!(say(&mut world, 3600, 10), (0, 0), "the process may have been found at any time");
    // Found between 3600 and 3660, so perhaps before the Pod existed.
    assert_eq!(say(&mut world, 3660, 20), (0, 1));
    assert_eq!(say(&mut world, 3720, 20), (0, 1));
    assert_eq!(say(&mut world, 3780, 30), (1, 0), "after 3720");
}

#[test]
fn a_pods_successor_of_another_app_is_not_accused_for_its_predecessor() {
    let mut world = world(0);
    world.pod_on("ns-a", "web", "n1", "miner");
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(blocked(&mut world), ["miner"]);
    world.wait(10 * MINUTE);
    world.recreate("ns-a", "web", "n1", "shop");
    // Its agent still lists its findings, and the last scan is reported only now.
    for stamp in [0, 590] {
        world.answer("n1", vec![record("ns-a", stamp)]);
        assert_eq!(blocked(&mut world), ["miner"]);
    }
    let snapshot = world.snapshot();
    let requests = world.incidents.lookup_requests(&snapshot, &world.policy);
    let accused = &requests.apps[&App::new("ns-a", "app", "miner")];
    assert_eq!(
        accused.iter().map(|pod| &pod.which).collect::<Vec<_>>(),
        [&PodIdentity::Uid("uid of web".into())]
    );
    // The new Pod begins to do the same.
    world.wait(MINUTE);
    world.answer("n1", vec![record("ns-a", 650)]);
    assert_eq!(blocked(&mut world), ["miner", "shop"]);
}

/// Removes the UIDs, because an earlier version persisted none.
fn forget_uids(world: &mut World) {
    for incident in world.persisted.values_mut() {
        for evidence in &mut incident.status.evidence {
            assert!(evidence.pod_uid.take().is_some());
        }
        let text = serde_json::to_string(&incident.status).unwrap();
        assert!(!text.contains("podUid"));
        incident.status = serde_json::from_str(&text).unwrap();
    }
}

fn uids(persisted: &BTreeMap<String, Incident>) -> Vec<Option<String>> {
    let evidence = persisted.values().flat_map(|incident| &incident.status.evidence);
    evidence.map(|evidence| evidence.pod_uid.as_deref().map(str::to_owned)).collect()
}

#[test]
fn an_app_that_an_earlier_version_named_otherwise_is_neither_opened_nor_blocked_twice() {
    let mut world = world(10);
    world.pod_on("ns-a", "web", "n1", "shop");
    world.answer("n1", vec![record("ns-a", 600)]);
    assert_eq!(blocked(&mut world), ["shop"]);
    world.wait(MINUTE);
    forget_uids(&mut world);
    world.restart();
    // By the rules of this version the same Pod belongs to another App.
    world.pod_on("ns-a", "web", "n1", "shop-frontend");
    for _ in 0..60 {
        world.wait(MINUTE);
        let now = world.clock();
        world.answer("n1", vec![record("ns-a", now)]);
        assert_eq!(blocked(&mut world), ["shop"]);
        assert_eq!(
            uids(&world.persisted),
            [Some("uid of web".to_owned())],
            "persisted as soon as it is known"
        );
    }
}

#[test]
fn a_pod_that_is_newer_than_the_evidence_of_an_earlier_version_is_another_one() {
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
    assert!(blocked(&mut world).is_empty(), "only a wall clock knows how old it is");
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    assert_eq!(blocked(&mut world), ["web"], "its grace has ended");
    // Another Pod has come in between, and the persisted evidence is not about it.
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
    let requests = world.incidents.lookup_requests(&snapshot, &world.policy);
    assert_eq!(requests.apps[&App::new("ns-a", "app", "web")][0].which, PodIdentity::Any);
}

#[test]
fn the_node_of_a_pod_is_compared_before_its_age() {
    let mut world = world(60);
    let pod = |node: &str, created| PodState::Present {
        uid: "1".into(),
        created,
        node: NodeName::new(node),
        host_ips: vec!["10.0.0.1".into()],
        app: App::new("ns-a", "app", "web"),
        lineage: Lineage::default(),
    };
    world.answer("n1", vec![record_of("ns-a", "web", "xmrig", 3600)]);
    let is = |state, world: &mut World| {
        world.facts.pods.insert(name("ns-a"), PodFact { asked: always(), state });
        let evaluation = world.evaluate();
        (evaluation.disputes.first().map(|dispute| dispute.reason.clone()), evaluation.unverified)
    };
    assert_eq!(is(pod("n2", None), &mut world), (Some("the Pod runs on node n2".to_owned()), 0));
    assert_eq!(is(pod("n2", Some(at(0))), &mut world), (Some("the Pod runs on node n2".to_owned()), 0));
    assert_eq!(is(pod("n1", None), &mut world).1, 0, "the dispute stays until the age is known");
    assert_eq!(is(pod("n1", Some(at(0))), &mut world), (None, 0));
    assert!(Timestamp::UNIX_EPOCH < world.now.wall());
}

/// An event of the Pods that are named `web-0` and `web-1`.
#[derive(Clone, Debug)]
enum Event {
    Wait(u64),
    /// A scan finds the Pod's process.
    Found(usize),
    /// The agent lists its last finding again, with its own time or without.
    Listed {
        has_date: bool,
    },
    /// Another Pod takes the name and belongs to an App; and whether the ledger knows that the Pod before is gone.
    Recreated(usize, usize, bool),
    Relabelled(usize, usize),
    Restarted,
}

const APPS: [&str; 3] = ["miner", "shop", "blog"];

fn event() -> impl Strategy<Value = Event> {
    let (pod, app) = (0..2_usize, 0..APPS.len());
    prop_oneof![
        4 => prop_oneof![1..90_u64, 1..4000_u64].prop_map(Event::Wait),
        4 => pod.clone().prop_map(Event::Found),
        8 => any::<bool>().prop_map(|has_date| Event::Listed { has_date }),
        3 => (pod.clone(), app.clone(), any::<bool>()).prop_map(|(p, a, is_known)| Event::Recreated(p, a, is_known)),
        2 => (pod, app).prop_map(|(pod, app)| Event::Relabelled(pod, app)),
        1 => Just(Event::Restarted),
    ]
}

/// The events that a Pod really had, whatever the policy decides.
#[derive(Clone, Debug, Default)]
struct Truth {
    /// The Apps that it has belonged to.
    apps: BTreeSet<String>,
    has_offended: bool,
}

struct Story {
    world: World,
    /// By UID.
    truths: BTreeMap<String, Truth>,
    listed: BTreeMap<String, i64>,
}

impl Story {
    fn uid(&self, pod: &str) -> String {
        let pod = PodRef { namespace: "ns-a".into(), pod: pod.into() };
        let PodState::Present { uid, .. } = &self.world.facts.pods[&pod].state else { panic!("no Pod") };
        uid.to_string()
    }

    fn note(&mut self, pod: &str, app: &str) {
        let uid = self.uid(pod);
        self.truths.entry(uid).or_default().apps.insert(app.to_owned());
    }

    fn take(&mut self, event: &Event) {
        let name = |pod: &usize| format!("web-{pod}");
        match event {
            Event::Wait(seconds) => drop(self.world.wait(*seconds)),
            Event::Found(pod) => {
                let now = self.world.clock();
                self.listed.insert(name(pod), now);
                let uid = self.uid(&name(pod));
                self.truths.get_mut(&uid).unwrap().has_offended = true;
            }
            Event::Listed { has_date } => {
                let now = self.world.clock();
                let listed = self.listed.iter();
                let records = listed.map(|(pod, at)| record_of("ns-a", pod, "xmrig", *at)).collect();
                let outcome = if *has_date { complete(records, now) } else { without_date(records) };
                self.world.report("n1", outcome);
            }
            Event::Recreated(pod, app, is_known) => {
                let before = self.world.now;
                // Any shorter time is within the tolerance for clocks.
                self.world.wait(AGE_TOLERANCE.as_secs() + 1);
                self.world.recreate("ns-a", &name(pod), "n1", APPS[*app]);
                if *is_known {
                    let pod = PodRef { namespace: "ns-a".into(), pod: name(pod).into() };
                    self.world.ledger.pod_gone(&pod, before);
                }
                self.note(&name(pod), APPS[*app]);
            }
            Event::Relabelled(pod, app) => {
                let pod_ref = PodRef { namespace: "ns-a".into(), pod: name(pod).into() };
                let fact = self.world.facts.pods.get_mut(&pod_ref).unwrap();
                let PodState::Present { app: of, .. } = &mut fact.state else { panic!("no Pod") };
                *of = App::new("ns-a", "app", APPS[*app]);
                self.note(&name(pod), APPS[*app]);
            }
            Event::Restarted => self.world.restart(),
        }
    }
}

proptest! {
    /// Only Apps are blocked one of whose Pods has offended, and only such Pods decide how an App is reached. Pods of
    /// the same names may come and go.
    #[test]
    fn no_app_is_blocked_for_a_process_of_another_pod_of_the_same_name(events in vec(event(), 1..120)) {
        let mut story = Story { world: world(60), truths: BTreeMap::new(), listed: BTreeMap::new() };
        for pod in ["web-0", "web-1"] {
            story.world.pod_on("ns-a", pod, "n1", "blog");
            story.note(pod, "blog");
        }
        for event in &events {
            story.take(event);
            let evaluation = story.world.evaluate();
            let guilty = || story.truths.values().filter(|truth| truth.has_offended);
            for block in &evaluation.plan.blocks {
                prop_assert!(
                    guilty().any(|truth| truth.apps.contains(&*block.app.name)),
                    "{} is blocked after {event:?}, and none of its Pods has offended", block.app
                );
            }
            let snapshot = story.world.snapshot();
            let requests = story.world.incidents.lookup_requests(&snapshot, &story.world.policy);
            for accused in requests.apps.values().flatten() {
                let PodIdentity::Uid(uid) = &accused.which else { panic!("{accused:?}") };
                prop_assert!(story.truths[&**uid].has_offended, "{uid} has not");
            }
        }
    }

    /// Conversely, a Pod that is found again and again is blocked, whatever Pods had its name before.
    #[test]
    fn a_pod_that_goes_on_offending_is_blocked(events in vec(event(), 1..60), has_date in any::<bool>()) {
        let mut story = Story { world: world(60), truths: BTreeMap::new(), listed: BTreeMap::new() };
        for pod in ["web-0", "web-1"] {
            story.world.pod_on("ns-a", pod, "n1", "blog");
            story.note(pod, "blog");
        }
        for event in &events {
            story.take(event);
            story.world.evaluate();
        }
        for _ in 0..3 {
            for event in [Event::Wait(MINUTE), Event::Found(0), Event::Listed { has_date }] {
                story.take(&event);
            }
            story.world.evaluate();
        }
        let uid = story.uid("web-0");
        let apps = blocked(&mut story.world);
        let is_its = |app: &String| story.truths[&uid].apps.contains(app);
        prop_assert!(apps.iter().any(is_its), "{apps:?} of {:?}", story.truths[&uid]);
    }
}
