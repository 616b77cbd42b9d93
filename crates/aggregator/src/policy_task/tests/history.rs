//! Incidents that have ended, and whose objects have an open state, because they were edited or restored from a
//! backup.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use procscan_core::names::App;
use procscan_core::state::incident;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::stage::{INCIDENTS, Replica, Setup, body, decisions, name_of, opened};
use crate::state::cluster::fake::{Call, Fault, Network, Server, Store};

async fn settle() {
    sleep(Duration::from_secs(3)).await;
}

fn network() -> Network {
    Box::new(|_: &mut Store, _: &Call| Fault::None)
}

fn leader(server: &Server, term: u64, network: Network) -> Replica {
    Replica::start(server, Setup { is_watched: true, ..Setup::new(term, network) })
}

/// When the last incident of App `web` opened; the first one opened a day before.
fn later() -> Timestamp {
    opened() + SignedDuration::from_hours(24)
}

fn last() -> String {
    incident::name(&App::new("ns-a", "app", "web"), later())
}

/// An Incident as a backup has it: still blocked.
fn blocked() -> Value {
    let mut first = body("web", "Blocked");
    first["status"]["clock"] = json!(opened());
    first["status"]["due"] = json!({"at": opened(), "passed": true});
    first["status"]["approved"] = true.into();
    first
}

/// Puts the same Incident, ended as it should be, and a later one of the same App, ended too.
fn two(server: &Server) {
    let mut first = blocked();
    first["status"]["state"] = "Ended".into();
    first["status"]["evidence"] = json!([]);
    server.put(INCIDENTS, &name_of("web"), first);
    let mut second = body("web", "Ended");
    for field in ["opened", "since", "clock"] {
        second["status"][field] = json!(later());
    }
    second["status"]["evidence"] = json!([]);
    server.put(INCIDENTS, &last(), second);
}

/// The status, and how often it has been written by this leader.
fn written(server: &Server, name: &str) -> (Value, usize) {
    let status = server.get(INCIDENTS, name).unwrap()["status"].clone();
    let is_it = |call: &&Call| call.is_status && call.name.as_deref() == Some(name);
    (status, server.store().writes.iter().filter(is_it).count())
}

/// Checks that this leader has written the first incident once, as ended. Returns its status.
fn written_as_ended(server: &Server) -> Value {
    let (status, writes) = written(server, &name_of("web"));
    assert_eq!((&status["state"], writes), (&json!("Ended"), 1), "{status:#}");
    status
}

/// Checks that `first` writes the first incident as ended within two minutes, and that no leader takes it for open.
async fn check_written_as_ended(server: &Server, first: Replica) {
    sleep(Duration::from_mins(2)).await;
    assert!(first.blocked().is_empty());
    written_as_ended(server);
    drop(first);
    check_nothing_is_blocked(server).await;
}

/// Checks that the next leader finds no App blocked, even after the later incident was removed.
async fn check_nothing_is_blocked(server: &Server) {
    server.remove(INCIDENTS, &last());
    let next = leader(server, 4, network());
    settle().await;
    assert!(next.blocked().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_ended_incident_with_an_open_state_is_written_as_ended_and_blocks_nothing() {
    let server = Server::default();
    two(&server);
    let first = leader(&server, 3, network());
    settle().await;
    assert!(server.store().writes.is_empty(), "nothing has changed");
    server.edit(INCIDENTS, &name_of("web"), |object| object["status"] = blocked()["status"].clone());
    sleep(Duration::from_mins(2)).await;
    assert!(first.blocked().is_empty());
    let status = written_as_ended(&server);
    assert_eq!(status["evidence"][0]["cleared"]["ended"], true);
    assert_eq!(status["approved"], false);
    // By that it does not become the App's last incident.
    assert_eq!(status["clock"], blocked()["status"]["clock"]);
    let all = decisions(&server.get(INCIDENTS, &name_of("web")).unwrap());
    assert_eq!(all, ["held by policy", "closed by policy"]);
    drop(first);
    check_nothing_is_blocked(&server).await;
}

/// The incident had been removed after its retention, and a backup has restored it.
#[tokio::test(start_paused = true)]
async fn an_open_incident_that_no_leader_has_written_is_written_as_ended() {
    let server = Server::default();
    let first = leader(&server, 3, network());
    settle().await;
    server.put(INCIDENTS, &name_of("web"), blocked());
    check_written_as_ended(&server, first).await;
}

/// The next leader finds the incident open beside a later one.
#[tokio::test(start_paused = true)]
async fn an_ended_incident_with_an_open_state_at_the_beginning_of_a_term_is_written_as_ended() {
    let server = Server::default();
    two(&server);
    server.edit(INCIDENTS, &name_of("web"), |object| object["status"] = blocked()["status"].clone());
    let first = leader(&server, 3, network());
    check_written_as_ended(&server, first).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_of_an_ended_incident_is_tried_again_and_a_command_in_it_is_refused() {
    let server = Server::default();
    two(&server);
    let is_full = Arc::new(AtomicBool::new(true));
    let flag = is_full.clone();
    let network = move |_: &mut Store, call: &Call| {
        if call.is_status && flag.load(Ordering::Relaxed) { Fault::Refused(500) } else { Fault::None }
    };
    let first = leader(&server, 3, Box::new(network));
    settle().await;
    server.edit(INCIDENTS, &name_of("web"), |object| {
        object["status"] = blocked()["status"].clone();
        object["spec"]["release"] = json!({"by": "bob"});
    });
    sleep(Duration::from_mins(1)).await;
    assert_eq!(written(&server, &name_of("web")).0["state"], "Blocked");
    is_full.store(false, Ordering::Relaxed);
    sleep(Duration::from_mins(5)).await;
    assert!(first.blocked().is_empty());
    let now = server.get(INCIDENTS, &name_of("web")).unwrap();
    assert_eq!(now["status"]["state"], "Ended");
    assert_eq!(decisions(&now), ["held by policy", "refused by bob", "closed by policy"]);
    assert!(now["spec"]["release"].is_null(), "{now:#}");
}

/// The decisions in the unreadable Incident are not known, so no Incident of its App is written.
#[tokio::test(start_paused = true)]
async fn an_older_incident_of_an_app_whose_last_one_can_not_be_read_is_not_written() {
    let server = Server::default();
    two(&server);
    server.edit(INCIDENTS, &last(), |object| object["status"]["state"] = "Quarantined".into());
    let first = leader(&server, 3, network());
    settle().await;
    server.edit(INCIDENTS, &name_of("web"), |object| object["status"] = blocked()["status"].clone());
    sleep(Duration::from_mins(2)).await;
    assert_eq!(written(&server, &name_of("web")), (blocked()["status"].clone(), 0));
    drop(first);
}

/// Puts the Incident of a blocked App under another name only. The next evaluation changes nothing of it, because its
/// tenant was notified.
fn misnamed(server: &Server) {
    let mut copy = blocked();
    copy["status"]["told"] = json!({"at": opened(), "what": "Blocked", "delivered": opened()});
    server.put(INCIDENTS, BY_HAND, copy);
}

const BY_HAND: &str = "made-by-hand";

fn state(server: &Server, name: &str) -> Option<Value> {
    server.get(INCIDENTS, name).map(|object| object["status"]["state"].clone())
}

#[tokio::test(start_paused = true)]
async fn an_incident_under_another_name_is_written_under_its_own_name_and_outlasts_a_restart() {
    let server = Server::default();
    misnamed(&server);
    let first = leader(&server, 3, network());
    sleep(Duration::from_mins(1)).await;
    assert_eq!(first.blocked(), ["web"]);
    assert_eq!(state(&server, BY_HAND), Some("Ended".into()));
    assert_eq!(state(&server, &name_of("web")), Some("Blocked".into()));
    drop(first);
    let next = leader(&server, 4, network());
    settle().await;
    assert_eq!(next.blocked(), ["web"]);
}

#[tokio::test(start_paused = true)]
async fn an_incident_under_another_name_is_ended_only_after_the_one_under_the_own_name_is_written() {
    let server = Server::default();
    misnamed(&server);
    let is_full = Arc::new(AtomicBool::new(true));
    let flag = is_full.clone();
    let network = move |_: &mut Store, call: &Call| {
        let is_other = call.method != hyper::Method::GET && call.name.as_deref() != Some(BY_HAND);
        if is_other && flag.load(Ordering::Relaxed) { Fault::Refused(500) } else { Fault::None }
    };
    let first = leader(&server, 3, Box::new(network));
    sleep(Duration::from_mins(2)).await;
    assert_eq!(first.blocked(), ["web"]);
    assert_eq!((state(&server, BY_HAND), state(&server, &name_of("web"))), (Some("Blocked".into()), None));
    is_full.store(false, Ordering::Relaxed);
    sleep(Duration::from_mins(2)).await;
    assert_eq!(first.blocked(), ["web"]);
    assert_eq!(state(&server, BY_HAND), Some("Ended".into()));
    assert_eq!(state(&server, &name_of("web")), Some("Blocked".into()));
}
