//! Many accused namespaces in a cluster that can be watched: which requests are sent, and how old the facts are.

use serde_json::json;

use super::fake::{pod, service};
use super::stage::{Stage, wait};
use super::*;

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
async fn renewed_accepted_evidence_is_judged_by_the_watches() {
    let stage = Stage::settled(20).await;
    let accused = stage.clock.now();
    stage.accuse(true);
    let requests = stage.requests(wait(140)).await;
    assert!(requests <= 15, "{requests}");
    let fact = stage.fact("ns-00003");
    assert!(fact.asked.uptime() >= accused.uptime() && fact.asked.uptime() < stage.clock.now().uptime());
    assert_eq!(stage.status.borrow().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_new_accusation_is_judged_within_two_seconds_by_a_direct_read() {
    let mut stage = Stage::settled(20).await;
    // A Pod that was looked up before is accused for the first time, and one in a new namespace.
    for (namespace, name) in [("ns-00004", "other"), ("ns-new", "web")] {
        stage.server.put("namespaces", "", namespace, json!({}));
        stage.server.put("pods", namespace, name, pod("7", "other", "n1"));
        stage.server.put("services", namespace, "other", service("other"));
        wait(30).await;
        let mut requests = LookupRequests::clone(&stage.requests.borrow());
        let pod = PodRef { namespace: namespace.into(), pod: name.into() };
        requests.pods.insert(pod.clone(), AccusingNodes::one(NodeName::new("n1"), stage.clock.now()));
        let accused = stage.clock.now();
        stage.requests.send_replace(Arc::new(requests));
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
async fn an_accusation_without_an_open_incident_is_never_judged_by_a_watch() {
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
async fn a_pod_that_is_replaced_is_looked_up_again_at_once() {
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
async fn services_that_are_made_later_are_known_at_once_and_irrelevant_changes_send_no_request() {
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
async fn a_silent_watch_is_no_proof_and_everything_is_looked_up_each_round() {
    let stage = Stage::settled(20).await;
    stage.server.store().is_stuck = true;
    let silent = stage.clock.now();
    wait(20).await;
    stage.accuse(true);
    wait(30).await;
    let fact = stage.fact("ns-00000");
    assert!(fact.asked.uptime() <= silent.uptime(), "nothing was reported since");
    wait(190).await;
    assert!(!stage.status.borrow().is_watched);
    assert!(stage.fact("ns-00000").asked.uptime() > silent.uptime(), "looked up");
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
    // Changes in the meantime are reported.
    stage.server.cut(false);
    stage.server.put("services", "ns-00005", "web-2", service("web"));
    wait(5).await;
    assert_eq!(stage.services("ns-00005"), 2);
    // Changes before a watch starts anew are not.
    stage.server.cut(true);
    let requests = stage.requests(wait(30)).await;
    assert!(requests >= 20 * 3, "{requests}");
    assert!(stage.status.borrow().is_watched);
}

#[tokio::test(start_paused = true)]
async fn where_watches_are_refused_everything_is_looked_up_each_round() {
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
    let stage = Stage::new(MAX_POLLED_NAMESPACES, 1000);
    stage.accuse(true);
    let requests = stage.requests(wait(300)).await;
    assert_eq!(stage.server.store().asked_for("watch="), 0);
    assert!(requests <= 6 * MAX_POLLED_NAMESPACES * 3, "{requests}");
}

#[tokio::test(start_paused = true)]
async fn an_app_whose_pods_have_gone_is_proven_gone_after_another_lookup() {
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
async fn an_accusation_that_is_not_believed_is_not_looked_up_again_with_each_scan() {
    let stage = Stage::settled(20).await;
    let accuse = |node: &str, pod: &str| {
        let accusation = |namespace: &Text| {
            let pod = PodRef { namespace: namespace.clone(), pod: pod.into() };
            (pod, AccusingNodes::one(NodeName::new(node), stage.clock.now()))
        };
        let pods = stage.names.iter().map(accusation).collect();
        stage.requests.send_replace(Arc::new(LookupRequests { pods, ..LookupRequests::default() }));
    };
    // Pods that run on another node, which may have dots in its name or be known by its address; then Pods that do not
    // exist.
    let elsewhere =
        ["n9", "ip-10-0-0-9.ec2.internal", "10.0.0.9:9090", "[::9]:9090"].map(|node| (node, "web"));
    for (node, pod) in elsewhere.into_iter().chain([("n1", "made-up")]) {
        accuse(node, pod);
        wait(60).await;
        let accused = stage.clock.now();
        accuse(node, pod);
        let requests = stage.requests(wait(140)).await;
        assert!(requests <= 15, "{pod}: {requests}");
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
async fn once_routes_matter_the_routes_of_all_namespaces_are_looked_up() {
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

#[tokio::test(start_paused = true)]
async fn an_accusation_by_the_address_of_the_pods_own_node_needs_a_direct_read() {
    let stage = Stage::settled(20).await;
    for _ in 0..2 {
        let accusation = |namespace: &Text| {
            let pod = PodRef { namespace: namespace.clone(), pod: "web".into() };
            (pod, AccusingNodes::one(NodeName::new("10.0.0.1:9090"), stage.clock.now()))
        };
        let pods = stage.names.iter().map(accusation).collect();
        stage.requests.send_replace(Arc::new(LookupRequests { pods, ..LookupRequests::default() }));
        let requests = stage.requests(wait(5)).await;
        assert!(requests >= 60, "{requests}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_pod_of_a_new_block_is_read_directly_whatever_the_watches_report() {
    let mut stage = Stage::settled(20).await;
    stage.accuse(true);
    wait(140).await;
    let pod = PodRef { namespace: "ns-00003".into(), pod: "web".into() };
    let fact = stage.fact("ns-00003");
    let read = stage.facts.borrow().carried[&pod];
    assert!(read.uptime() < fact.asked.uptime(), "reported, not read");
    let mut requests = LookupRequests::clone(&stage.requests.borrow());
    let since = stage.clock.now();
    requests.direct.insert(pod.clone(), since);
    stage.requests.send_replace(Arc::new(requests.clone()));
    let is_read = |facts: &Arc<ClusterFacts>| {
        !facts.carried.contains_key(&pod) && facts.pods[&pod].asked.uptime() >= since.uptime()
    };
    tokio::time::timeout(Duration::from_secs(2), stage.facts.wait_for(is_read)).await.unwrap().unwrap();
    // It is read once, although it is asked for until the policy has decided.
    let requests = stage.requests(wait(30)).await;
    assert!(requests <= 5, "{requests}");
    assert_eq!(stage.status.borrow().waiting, 0);
}
