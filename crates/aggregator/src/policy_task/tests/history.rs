//! Incidents that have ended, and whose objects say otherwise: edited, or restored from a backup.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use procscan_core::names::App;
use procscan_core::state::incident;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::stage::{INCIDENTS, Replica, Wanted, body, decisions, name_of, opened};
use crate::state::cluster::fake::{Call, Fault, Network, Server, Store};

async fn settle() {
    sleep(Duration::from_secs(3)).await;
}

fn network() -> Network {
    Box::new(|_: &mut Store, _: &Call| Fault::None)
}

fn leader(server: &Server, term: u64, network: Network) -> Replica {
    Replica::start(server, Wanted { is_watched: true, ..Wanted::new(term, network) })
}

/// When the last incident of App `web` opened; the first one opened a day before.
fn later() -> Timestamp {
    opened() + SignedDuration::from_hours(24)
}

fn last() -> String {
    incident::name(&App::new("ns-a", "app", "web"), later())
}

/// An Incident as a backup has it: blocked still.
fn blocked() -> Value {
    let mut first = body("web", "Blocked");
    first["status"]["clock"] = json!(opened());
    first["status"]["due"] = json!({"at": opened(), "passed": true});
    first["status"]["approved"] = true.into();
    first
}

/// The same, ended as it should be, and a later one of the same App, ended too.
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

/// The status of the first incident, which this leader has written once: as ended.
fn written_as_ended(server: &Server) -> Value {
    let (status, writes) = written(server, &name_of("web"));
    assert_eq!((&status["state"], writes), (&json!("Ended"), 1), "{status:#}");
    status
}

/// Within two minutes `first` writes the first incident as ended, and no leader believes that it is open.
async fn writes_as_ended(server: &Server, first: Replica) {
    sleep(Duration::from_mins(2)).await;
    assert!(first.blocked().is_empty());
    written_as_ended(server);
    drop(first);
    believes_nothing(server).await;
}

/// The next leader takes nothing for blocked, even where the later incident is kept no longer.
async fn believes_nothing(server: &Server) {
    server.remove(INCIDENTS, &last());
    let next = leader(server, 4, network());
    settle().await;
    assert!(next.blocked().is_empty());
}

#[tokio::test(start_paused = true)]
async fn history_that_is_open_again_is_written_as_ended_and_no_leader_believes_it() {
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
    // It does not become the App's last one by that.
    assert_eq!(status["clock"], blocked()["status"]["clock"]);
    let all = decisions(&server.get(INCIDENTS, &name_of("web")).unwrap());
    assert_eq!(all, ["held by policy", "closed by policy"]);
    drop(first);
    believes_nothing(&server).await;
}

/// It had been kept no longer, and is back.
#[tokio::test(start_paused = true)]
async fn an_open_incident_that_no_leader_has_written_is_written_as_ended() {
    let server = Server::default();
    let first = leader(&server, 3, network());
    settle().await;
    server.put(INCIDENTS, &name_of("web"), blocked());
    writes_as_ended(&server, first).await;
}

/// The next leader finds it open beside a later one.
#[tokio::test(start_paused = true)]
async fn history_that_is_open_when_a_term_begins_is_written_as_ended() {
    let server = Server::default();
    two(&server);
    server.edit(INCIDENTS, &name_of("web"), |object| object["status"] = blocked()["status"].clone());
    let first = leader(&server, 3, network());
    writes_as_ended(&server, first).await;
}

#[tokio::test(start_paused = true)]
async fn history_that_can_not_be_written_is_tried_again_and_an_act_in_it_is_answered() {
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

/// Which App an unreadable Incident is about, and what of it, is not known: its App is not touched.
#[tokio::test(start_paused = true)]
async fn an_older_incident_of_an_app_whose_last_one_can_not_be_read_is_left_alone() {
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

/// A blocked App's Incident is kept under another name only. The next evaluation changes nothing of it: its tenant was told.
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
async fn what_is_kept_under_another_name_is_written_under_its_own_and_outlasts_a_restart() {
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
async fn an_object_of_another_name_is_ended_only_after_the_apps_own_one_is_written() {
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
