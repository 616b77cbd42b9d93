//! Many accused namespaces in a cluster that can be watched: which requests are sent, and what is known when.

use serde_json::json;

use super::fake::{Server, pod, service};
use super::*;
use crate::kubernetes::Cluster;

/// The whole task, with questions from the test.
pub(super) struct Stage {
    pub(super) server: Server,
    pub(super) clock: Clock,
    pub(super) questions: watch::Sender<Arc<Questions>>,
    pub(super) facts: watch::Receiver<Arc<Facts>>,
    pub(super) gone: mpsc::Receiver<PodGone>,
    pub(super) status: watch::Receiver<EvidenceStatus>,
    pub(super) names: Vec<Text>,
}

impl Stage {
    /// Namespaces with one Pod each, of UID 1, on node n1, and a Service.
    pub(super) fn new(namespaces: usize, per_second: u32) -> Self {
        Self::with_entries(namespaces, per_second, 1_000_000)
    }

    pub(super) fn with_entries(namespaces: usize, per_second: u32, max_service_entries: usize) -> Self {
        let server = Server::new();
        let names: Vec<Text> = (0..namespaces).map(|n| format!("ns-{n:05}").into()).collect();
        for name in &names {
            server.put("namespaces", "", name, json!({}));
            server.put("pods", name, "web", pod("1", "web", "n1"));
            server.put("services", name, "web", service("web"));
        }
        let clock = Clock::start();
        let (questions, asked) = watch::channel(Arc::default());
        let (facts_tx, facts) = watch::channel(Arc::default());
        let (gone_tx, gone) = mpsc::channel(1000);
        let (status_tx, status) = watch::channel(EvidenceStatus::default());
        let evidence = Evidence {
            cluster: Cluster::paced(server.client(), per_second),
            interval: ROUND,
            max_service_entries,
            clock,
            large: Semaphore::new(1),
        };
        tokio::spawn(evidence.run(asked, facts_tx, gone_tx, status_tx, CancellationToken::new()));
        Self { server, clock, questions, facts, gone, status, names }
    }

    /// Accuses every Pod now; with `is_accepted`, it was accepted before.
    pub(super) fn accuse(&self, is_accepted: bool) {
        let now = self.clock.now();
        let mut questions = Questions::default();
        for namespace in &self.names {
            let pod = PodRef { namespace: namespace.clone(), pod: "web".into() };
            questions.pods.insert(pod.clone(), Accusers::one(NodeName::new("n1"), now));
            if is_accepted {
                let accused = AccusedPod { pod, which: WhichPod::Uid("1".into()) };
                questions.apps.insert(App::new(namespace.clone(), "app", "web"), vec![accused]);
            }
        }
        self.questions.send_replace(Arc::new(questions));
    }

    pub(super) fn fact(&self, namespace: &str) -> PodFact {
        self.facts.borrow().pods[&PodRef { namespace: namespace.into(), pod: "web".into() }].clone()
    }

    /// Whether the accused Pod has been looked up and is there.
    pub(super) fn knows(&self, namespace: &Text) -> bool {
        let pod = PodRef { namespace: namespace.clone(), pod: "web".into() };
        let facts = self.facts.borrow();
        matches!(facts.pods.get(&pod), Some(PodFact { state: PodState::Present { .. }, .. }))
    }

    /// How many requests were sent while `act` ran.
    pub(super) async fn requests(&self, act: impl Future<Output = ()>) -> usize {
        let before = self.server.store().requests.len();
        act.await;
        let after = self.server.store().requests.len();
        after - before
    }

    /// Accused, judged, accepted and watched.
    pub(super) async fn settled(namespaces: usize) -> Self {
        Self::settled_at(namespaces, 1000).await
    }

    pub(super) async fn settled_at(namespaces: usize, per_second: u32) -> Self {
        let stage = Self::new(namespaces, per_second);
        stage.accuse(false);
        wait(120).await;
        stage.accuse(true);
        wait(120).await;
        let status = stage.status.borrow().clone();
        assert!(status.is_watched && status.waiting == 0, "{status:?}");
        stage
    }

    pub(super) fn services(&self, namespace: &str) -> usize {
        let app = App::new(namespace, "app", "web");
        self.facts.borrow().apps[&app].exposure.as_ref().unwrap().services.len()
    }
}

pub(super) async fn wait(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_quiet_minute_with_thousands_of_accused_namespaces_costs_less_than_a_request_a_second() {
    let stage = Stage::settled_at(5000, 20).await;
    let minutes = 10;
    let requests = stage
        .requests(async {
            for _ in 0..minutes {
                // Each scan renews all evidence.
                stage.accuse(true);
                wait(60).await;
            }
        })
        .await;
    assert!(requests < minutes * 60 / 10, "{requests}");
}

#[tokio::test(start_paused = true)]
async fn renewed_evidence_of_what_was_accepted_is_judged_by_the_watches() {
    let stage = Stage::settled(20).await;
    let accused = stage.clock.now();
    stage.accuse(true);
    let requests = stage.requests(wait(80)).await;
    assert!(requests < 10, "{requests}");
    let fact = stage.fact("ns-00003");
    assert!(fact.asked.uptime() >= accused.uptime() && fact.asked.uptime() < stage.clock.now().uptime());
    assert_eq!(stage.status.borrow().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_new_accusation_is_judged_within_two_seconds_by_a_direct_read() {
    let mut stage = Stage::settled(20).await;
    // A Pod that was looked at before is accused for the first time, and one in a new namespace.
    for (namespace, name) in [("ns-00004", "other"), ("ns-new", "web")] {
        stage.server.put("namespaces", "", namespace, json!({}));
        stage.server.put("pods", namespace, name, pod("7", "other", "n1"));
        stage.server.put("services", namespace, "other", service("other"));
        wait(30).await;
        let mut questions = Questions::clone(&stage.questions.borrow());
        let pod = PodRef { namespace: namespace.into(), pod: name.into() };
        questions.pods.insert(pod.clone(), Accusers::one(NodeName::new("n1"), stage.clock.now()));
        let accused = stage.clock.now();
        stage.questions.send_replace(Arc::new(questions));
        stage.facts.mark_unchanged();
        tokio::time::timeout(
            Duration::from_secs(2),
            stage.facts.wait_for(|facts| {
                facts.pods.get(&pod).is_some_and(|fact| fact.asked.uptime() >= accused.uptime())
            }),
        )
        .await
        .unwrap()
        .unwrap();
        assert!(stage.facts.borrow().apps[&App::new(namespace, "app", "other")].exposure.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn an_accusation_of_what_has_no_open_incident_is_never_judged_by_a_watch() {
    let stage = Stage::settled(20).await;
    // Its incident has ended.
    stage.accuse(false);
    let accused = stage.clock.now();
    let requests = stage.requests(wait(5)).await;
    assert!(requests >= 60, "{requests}");
    assert!(stage.fact("ns-00000").asked.uptime() >= accused.uptime());
    // Nothing can be read, but the watches go on.
    stage.server.store().refused = [("/pods?&limit=100".to_owned(), 503)].into();
    stage.accuse(false);
    wait(100).await;
    assert!(matches!(stage.fact("ns-00000").state, PodState::Unreadable(_)));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_replaced_is_looked_at_again_at_once() {
    let mut stage = Stage::settled(20).await;
    stage.accuse(true);
    wait(80).await;
    let confirmed = stage.fact("ns-00002").asked;
    wait(20).await;
    stage.server.remove("pods", "ns-00002", "web");
    stage.server.put("pods", "ns-00002", "web", pod("2", "web", "n2"));
    wait(2).await;
    let fact = stage.fact("ns-00002");
    assert!(matches!(&fact.state, PodState::Present { uid, .. } if &**uid == "2"), "{fact:?}");
    let gone = stage.gone.recv().await.unwrap();
    assert_eq!((&*gone.pod.namespace, gone.until.uptime()), ("ns-00002", confirmed.uptime()));
}

#[tokio::test(start_paused = true)]
async fn services_that_are_made_later_are_known_at_once_and_what_does_not_matter_asks_nothing() {
    let stage = Stage::settled(20).await;
    stage.server.put("services", "ns-00001", "web-2", service("web"));
    wait(2).await;
    assert_eq!((stage.services("ns-00001"), stage.services("ns-00002")), (2, 1));
    let mut restarted = pod("1", "web", "n1");
    let requests = stage
        .requests(async {
            for n in 0..100 {
                restarted["status"]["containerStatuses"] = json!([{"restartCount": n}]);
                restarted["metadata"]["annotations"] = json!({"n": n.to_string()});
                stage.server.put("pods", "ns-00001", "web", restarted.clone());
                // In a namespace that is not accused.
                stage.server.put("pods", "ns-other", "web", pod(&n.to_string(), "web", "n1"));
                wait(1).await;
            }
        })
        .await;
    assert!(requests < 15, "{requests}");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_tells_nothing_is_no_proof_and_everything_is_looked_at_each_round() {
    let stage = Stage::settled(20).await;
    stage.server.store().is_stuck = true;
    let silent = stage.clock.now();
    wait(60).await;
    stage.accuse(true);
    wait(60).await;
    let fact = stage.fact("ns-00000");
    assert!(fact.asked.uptime() <= silent.uptime(), "nothing was told since");
    wait(120).await;
    assert!(!stage.status.borrow().is_watched);
    assert!(stage.fact("ns-00000").asked.uptime() > silent.uptime(), "looked at");
    let requests = stage.requests(wait(120)).await;
    assert!(requests >= 2 * 20 * 3, "{requests}");
    stage.server.store().is_stuck = false;
    stage.server.cut(false);
    wait(180).await;
    assert!(stage.status.borrow().is_watched);
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_where_it_broke_off_and_begins_anew_where_it_can_not() {
    let stage = Stage::settled(20).await;
    let requests = stage
        .requests(async {
            for _ in 0..5 {
                stage.server.cut(false);
                wait(10).await;
            }
        })
        .await;
    assert!((25..=40).contains(&requests), "{requests}");
    // What happened meanwhile is reported.
    stage.server.cut(false);
    stage.server.put("services", "ns-00005", "web-2", service("web"));
    wait(5).await;
    assert_eq!(stage.services("ns-00005"), 2);
    // What happened before a watch starts anew is not.
    stage.server.cut(true);
    let requests = stage.requests(wait(30)).await;
    assert!(requests >= 20 * 3, "{requests}");
    assert!(stage.status.borrow().is_watched);
}

#[tokio::test(start_paused = true)]
async fn where_watches_are_refused_everything_is_looked_at_each_round() {
    let stage = Stage::new(20, 1000);
    stage.server.store().refused = [("/api/v1/pods?".to_owned(), 403)].into();
    stage.accuse(true);
    wait(60).await;
    assert!(!stage.status.borrow().is_watched);
    let requests = stage.requests(wait(300)).await;
    assert!((5 * 20 * 3..7 * 20 * 3).contains(&requests), "{requests}");
    stage.server.store().refused.clear();
    wait(600).await;
    assert!(stage.status.borrow().is_watched);
}

#[tokio::test(start_paused = true)]
async fn a_cluster_without_the_gateway_api_is_watched_all_the_same() {
    let stage = Stage::new(20, 1000);
    stage.server.store().refused = [("httproutes".to_owned(), 404)].into();
    stage.accuse(true);
    wait(90).await;
    assert!(stage.status.borrow().is_watched);
}

#[tokio::test(start_paused = true)]
async fn a_few_accused_namespaces_are_not_watched() {
    let stage = Stage::new(FEW, 1000);
    stage.accuse(true);
    let requests = stage.requests(wait(300)).await;
    assert_eq!(stage.server.store().asked_for("watch="), 0);
    assert!(requests <= 6 * FEW * 3, "{requests}");
}

#[tokio::test(start_paused = true)]
async fn an_app_whose_pods_have_gone_is_proven_gone_after_another_look() {
    let mut stage = Stage::settled(20).await;
    stage.server.remove("pods", "ns-00002", "web");
    wait(5).await;
    assert_eq!(&*stage.gone.recv().await.unwrap().pod.namespace, "ns-00002");
    let app = App::new("ns-00002", "app", "web");
    assert!(!stage.facts.borrow().apps[&app].gone, "it may be coming back");
    wait(70).await;
    assert!(stage.facts.borrow().apps[&app].gone);
    assert!(!stage.facts.borrow().apps[&App::new("ns-00003", "app", "web")].gone);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_believed_is_not_looked_up_again_with_each_scan() {
    let stage = Stage::settled(20).await;
    let accuse = |node: &str, pod: &str| {
        let accusation = |namespace: &Text| {
            let pod = PodRef { namespace: namespace.clone(), pod: pod.into() };
            (pod, Accusers::one(NodeName::new(node), stage.clock.now()))
        };
        let pods = stage.names.iter().map(accusation).collect();
        stage.questions.send_replace(Arc::new(Questions { pods, ..Questions::default() }));
    };
    // Pods that run on another node, then Pods that do not exist.
    for (node, pod) in [("n9", "web"), ("n1", "made-up")] {
        accuse(node, pod);
        wait(60).await;
        let accused = stage.clock.now();
        accuse(node, pod);
        let requests = stage.requests(wait(80)).await;
        assert!(requests < 10, "{pod}: {requests}");
        let pod = PodRef { namespace: "ns-00000".into(), pod: pod.into() };
        assert!(stage.facts.borrow().pods[&pod].asked.uptime() >= accused.uptime());
    }
    // Until such a Pod exists.
    stage.server.put("pods", "ns-00000", "made-up", pod("9", "x", "n1"));
    wait(2).await;
    let made_up = PodRef { namespace: "ns-00000".into(), pod: "made-up".into() };
    assert!(matches!(stage.facts.borrow().pods[&made_up].state, PodState::Present { .. }));
}

#[tokio::test(start_paused = true)]
async fn once_routes_matter_those_of_all_are_looked_at() {
    let stage = Stage::with_entries(20, 1000, 100);
    let path = json!({"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "web"}}});
    let ingress = json!({"metadata": {}, "spec": {"rules": [{"http": {"paths": [path]}}]}});
    stage.server.put("ingresses", "ns-00000", "in", ingress);
    stage.accuse(true);
    wait(30).await;
    let ingresses = || {
        let facts = stage.facts.borrow();
        facts.apps[&App::new("ns-00000", "app", "web")].exposure.as_ref().unwrap().ingresses.len()
    };
    assert_eq!(ingresses(), 0);
    for n in 0..60 {
        stage.server.put("services", "ns-00001", &format!("web-{n}"), service("web"));
    }
    wait(30).await;
    assert_eq!(ingresses(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_from_its_last_bookmark() {
    let stage = Stage::settled(20).await;
    stage.server.put("pods", "ns-other", "web", pod("1", "web", "n1"));
    wait(70).await;
    stage.server.compact();
    stage.server.cut(false);
    let requests = stage.requests(wait(20)).await;
    assert!(requests <= 5, "{requests}");
}

/// Watched, looked at at 10 s, and accepted with that UID.
fn watched(uid: &str) -> (State, Told, Text) {
    let namespace = Text::from("ns-a");
    let told = Told::default();
    let mut state = state(&[("ns-a", "n1", 5)]);
    state.told = Some(told.clone());
    {
        let mut changes = told.changes();
        changes.note_in([&namespace].into_iter());
        for kind in changes::Kind::ALL {
            changes.begin(kind, at(8));
        }
        changes.look_at(&namespace);
    }
    let found = Seen {
        pods: [("web".into(), Pod { node: Some("n1".into()), ..seen_pod() })].into(),
        ..Seen::default()
    };
    state.see(&namespace, Ok(Some(found)), at(10), ROUND).unwrap();
    let pod = PodRef { namespace: namespace.clone(), pod: "web".into() };
    let pods = [(pod.clone(), Accusers::one(NodeName::new("n1"), at(20)))].into();
    let apps =
        [(App::new("ns-a", "app", "web"), vec![AccusedPod { pod, which: WhichPod::Uid(uid.into()) }])].into();
    state.ask(&Questions { pods, apps, ..Questions::default() }, at(20));
    for kind in changes::Kind::ALL {
        told.changes().tell_until(kind, at(30));
    }
    (state, told, namespace)
}

fn seen_pod() -> Pod {
    seen(&"ns-a".into()).pods.remove("web").unwrap()
}

fn asked(state: &State) -> u64 {
    state.facts().pods.values().next().unwrap().asked.uptime().as_secs()
}

#[test]
fn a_fact_is_as_new_as_the_last_moment_up_to_which_everything_was_told() {
    let (mut state, ..) = watched("1");
    assert!(state.confirm(at(31)));
    assert_eq!(asked(&state), 30 - changes::LAG.as_secs());
    assert_eq!(due(&mut state, 31), Vec::<String>::new());
    // Silent for too long.
    assert!(!state.confirm(at(1000)));
    assert_eq!(due(&mut state, 1000), ["ns-a"]);
}

#[test]
fn where_something_has_changed_nothing_is_judged_before_another_look() {
    let (mut state, told, _) = watched("1");
    told.changes().note(changes::Kind::Pods, "ns-a", "web", None);
    assert!(!state.confirm(at(31)));
    assert_eq!((asked(&state), due(&mut state, 31)), (10, vec!["ns-a".to_owned()]));
}

#[test]
fn another_pod_of_the_name_that_was_accepted_needs_a_direct_read() {
    let (mut state, ..) = watched("0");
    assert!(!state.confirm(at(31)));
    assert_eq!((asked(&state), due(&mut state, 31)), (10, vec!["ns-a".to_owned()]));
    let (mut state, ..) = watched("1");
    assert!(due(&mut state, 31).is_empty(), "it is known by its UID");
}
