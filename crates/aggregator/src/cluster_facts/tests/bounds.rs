//! Limits of the costs of one namespace.

use std::fmt::Write as _;

use serde_json::json;

use super::super::listing::MAX_OBJECTS;
use super::fake::{Server, pod, service};
use super::*;
use crate::kubernetes::{Cluster, Refusal};

fn task(server: &Server) -> ClusterFactsTask {
    ClusterFactsTask {
        cluster: Cluster::with_client(server.client()),
        interval: ROUND,
        max_service_entries: 500,
        clock: Clock::start(),
        large: Semaphore::new(1),
    }
}

/// One look-up of the namespace `ns-a`, whose Pod `web` is accused.
async fn look_up(server: &Server) -> (State, Result<Vec<(PodRef, Moment)>, Refusal>) {
    let task = task(server);
    let mut state = state(&[("ns-a", "n1", 1)]);
    let result = task.look_up(&state, "ns-a".into(), at(10)).await;
    let outcome = state.apply_lookup(result, ROUND);
    (state, outcome)
}

fn server() -> Server {
    let server = Server::new();
    server.put("namespaces", "", "ns-a", json!({}));
    server.put("pods", "ns-a", "web", pod("1", "web", "n1"));
    server
}

fn exposure(state: &State) -> Option<usize> {
    let app = App::new("ns-a", "app", "web");
    state
        .facts()
        .apps
        .get(&app)
        .and_then(|fact| fact.exposure.as_ref())
        .map(|exposure| exposure.services.len())
}

#[tokio::test(start_paused = true)]
async fn of_large_services_only_relevant_fields_are_held_and_their_pages_stay_small() {
    let server = server();
    for n in 0..300 {
        let mut large = service("web");
        large["metadata"]["annotations"] = json!({"large": "\\\"{[".repeat(16 << 10)});
        server.put("services", "ns-a", &format!("web-{n:03}"), large);
    }
    let (state, outcome) = look_up(&server).await;
    assert!(outcome.is_ok());
    assert_eq!(exposure(&state), Some(300));
    let requests = server.store().requests.clone();
    let pages: Vec<&String> = requests.iter().filter(|request| request.contains("services")).collect();
    assert!(pages.len() == 3 && pages.iter().all(|page| page.contains("limit=100")), "{pages:?}");
}

#[tokio::test(start_paused = true)]
async fn pages_of_usual_objects_become_larger() {
    let server = server();
    for n in 0..600 {
        server.put("services", "ns-a", &format!("web-{n:03}"), service("web"));
    }
    let (state, _) = look_up(&server).await;
    assert_eq!((exposure(&state), server.store().asked_for("services")), (Some(600), 2));
}

#[tokio::test(start_paused = true)]
async fn more_objects_than_the_bound_make_the_namespace_unreadable() {
    let server = server();
    for n in 0..=MAX_OBJECTS {
        server.put("services", "ns-a", &format!("web-{n:04}"), service("web"));
    }
    let (state, outcome) = look_up(&server).await;
    assert!(outcome.is_ok(), "the tenant caused it, so it is no error of the cluster");
    let facts = state.facts();
    let PodState::Unreadable(why) = &facts.pods.values().next().unwrap().state else { panic!() };
    assert!(why.contains("list services in namespace ns-a: there are more than 5000"), "{why}");
    assert_eq!(exposure(&state), None);
    assert_eq!(server.store().asked_for("services"), 1, "the first page says how many there are");
    let status = waiting::ClusterFactsStatus {
        too_large: state.too_large.values().next().cloned(),
        ..Default::default()
    };
    assert_eq!(status.problem().as_deref(), Some(&**why));

    server.remove("services", "ns-a", "web-0000");
    let (state, _) = look_up(&server).await;
    assert_eq!((exposure(&state), state.too_large.len()), (Some(MAX_OBJECTS), 0));
}

#[tokio::test(start_paused = true)]
async fn requested_fields_have_a_bound_of_bytes_too() {
    let server = server();
    let mut labels = String::new();
    for n in 0..40_000 {
        let _ = write!(labels, "{n:06}");
    }
    for n in 0..20 {
        let mut large = pod(&n.to_string(), "web", "n1");
        large["metadata"]["labels"]["large"] = labels.as_str().into();
        server.put("pods", "ns-a", &format!("other-{n}"), large);
    }
    let (state, outcome) = look_up(&server).await;
    assert!(outcome.is_ok());
    let facts = state.facts();
    let PodState::Unreadable(why) = &facts.pods.values().next().unwrap().state else { panic!() };
    assert!(why.contains("list pods in namespace ns-a: the answer is larger than the limit"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_no_list_proves_nothing() {
    let server = server();
    for (code, part) in [(503, "services"), (404, "/pods"), (403, "/pods")] {
        server.store().refused = [(part.to_owned(), code)].into();
        let (state, outcome) = look_up(&server).await;
        assert!(outcome.is_err(), "{code}");
        assert!(matches!(state.facts().pods.values().next().unwrap().state, PodState::Unreadable(_)));
    }
}
