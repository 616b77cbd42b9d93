//! When the routes of an App have to be looked up.

use procscan_core::plan::Exposure;
use procscan_core::policy::AppFact;
use serde_json::json;

use super::fake::{Server, pod, service};
use super::*;
use crate::kubernetes::Cluster;

fn server() -> Server {
    let server = Server::new();
    server.put("namespaces", "", "ns-a", json!({}));
    server.put("pods", "ns-a", "web", pod("1", "web", "n1"));
    server.put("services", "ns-a", "web", service("web"));
    let path = json!({"pathType": "Prefix", "path": "/", "backend": {"service": {"name": "web"}}});
    server.put(
        "ingresses",
        "ns-a",
        "in",
        json!({"metadata": {}, "spec": {"rules": [{"http": {"paths": [path]}}]}}),
    );
    server
}

/// The first look-up of the App `web` while `closed` Services are known to be closed.
async fn first_lookup(closed: usize, max_service_entries: usize) -> Exposure {
    first_fact(&server(), closed, max_service_entries).await.exposure.unwrap()
}

async fn first_fact(server: &Server, closed: usize, max_service_entries: usize) -> AppFact {
    let evidence = ClusterFactsTask {
        cluster: Cluster::with_client(server.client()),
        interval: ROUND,
        max_service_entries,
        clock: Clock::start(),
        large: Semaphore::new(1),
    };
    let app = App::new("ns-a", "app", "web");
    let asked = LookupRequests {
        apps: [(app.clone(), Vec::new())].into(),
        services: closed,
        ..LookupRequests::default()
    };
    let (_questions, asked) = watch::channel(Arc::new(asked));
    let (facts_tx, mut facts) = watch::channel(Arc::default());
    let (gone, _listening) = mpsc::channel(8);
    let cancel = CancellationToken::new();
    let status = watch::channel(ClusterFactsStatus::default()).0;
    let running = tokio::spawn(evidence.run(asked, facts_tx, gone, status, cancel.clone()));
    let known =
        |facts: &Arc<ClusterFacts>| facts.apps.get(&app).filter(|fact| fact.exposure.is_some()).cloned();
    let fact = known(&facts.wait_for(|facts| known(facts).is_some()).await.unwrap()).unwrap();
    cancel.cancel();
    running.await.unwrap();
    fact
}

#[tokio::test(start_paused = true)]
async fn where_many_services_are_closed_the_first_lookup_of_a_term_asks_by_which_routes() {
    let named = Exposure {
        services: vec!["web.ns-a.svc".into()],
        ingresses: vec!["ns-a/in".into()],
        ..Exposure::default()
    };
    let plain = Exposure::plain(["web.ns-a.svc".into()]);
    assert_eq!(first_lookup(0, 500).await, plain);
    assert_eq!(first_lookup(299, 500).await, plain);
    assert_eq!(first_lookup(300, 500).await, named);
    assert_eq!(first_lookup(0, 0).await, named, "there is no plain list");
}

/// The tenant lets a Service select a Pod that can't start, and routes its traffic elsewhere by endpoints of its own.
#[tokio::test(start_paused = true)]
async fn a_service_of_a_pod_that_has_not_started_selects_no_running_pod() {
    let server = server();
    server.put("services", "ns-a", "blog", service("blog"));
    for (phase, selecting_none) in [("Pending", vec!["blog.ns-a.svc"]), ("Running", vec![])] {
        let mut blog = pod("2", "blog", "n1");
        blog["status"]["phase"] = phase.into();
        server.put("pods", "ns-a", "blog", blog);
        let fact = first_fact(&server, 0, 500).await;
        let hosts: Vec<&str> = fact.selecting_none.iter().map(AsRef::as_ref).collect();
        assert_eq!(hosts, selecting_none, "{phase}");
    }
}
