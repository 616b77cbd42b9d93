//! What a replica that does not lead shows, and when; and what a leader writes of what others tell it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use procscan_core::names::App;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::stage::{INCIDENTS, Replica, Wanted, body, name_of, opened};
use crate::state::cluster::fake::{Call, Fault, Network, Server, Store};

async fn settle() {
    sleep(Duration::from_secs(3)).await;
}

fn network() -> Network {
    Box::new(|_: &mut Store, _: &Call| Fault::None)
}

fn watching(server: &Server, network: Network) -> Replica {
    Replica::start(server, Wanted { is_watched: true, ..Wanted::new(1, network) })
}

/// Nothing is written before the first round is done, so every replica has to know when that is.
#[tokio::test(start_paused = true)]
async fn a_replica_shows_that_the_first_round_is_done_whether_it_leads_or_not() {
    for leads in [true, false] {
        let server = Server::default();
        server.put(INCIDENTS, &name_of("web"), body("web", "Blocked"));
        let wanted = Wanted { is_watched: true, has_round: false, ..Wanted::new(1, network()) };
        let mut replica = Replica::start(&server, wanted);
        if !leads {
            replica.follow();
        }
        settle().await;
        let decided = replica.decided.borrow_and_update().clone();
        assert_eq!((decided.permit.is_some(), decided.rounds), (leads, 0));
        assert_eq!(replica.blocked(), ["web"]);
        replica.round_done().await;
        settle().await;
        assert_eq!(replica.decided.borrow_and_update().rounds, 1, "leads: {leads}");
        // Later rounds change nothing that is shown.
        for _ in 0..3 {
            replica.round_done().await;
            settle().await;
        }
        assert!(!replica.decided.has_changed().unwrap(), "leads: {leads}");
    }
}

/// A leader whose App `web` is blocked and to be told.
async fn telling(network: Network) -> (Server, Replica) {
    let server = Server::default();
    let mut blocked = body("web", "Blocked");
    blocked["status"]["told"] = json!({"at": opened(), "what": "Blocked"});
    server.put(INCIDENTS, &name_of("web"), blocked);
    let replica = watching(&server, network);
    settle().await;
    assert_eq!(replica.blocked(), ["web"]);
    (server, replica)
}

fn deliver(replica: &Replica) {
    let told = BTreeMap::from([(App::new("ns-a", "app", "web"), opened().into())]);
    replica.delivered.send_replace(Arc::new(told));
}

fn delivered_at(server: &Server) -> Value {
    server.get(INCIDENTS, &name_of("web")).unwrap()["status"]["told"]["deliveredAt"].clone()
}

/// How often everything was read.
fn reads(server: &Server) -> usize {
    server.store().metadata_lists
}

#[tokio::test(start_paused = true)]
async fn that_a_tenant_was_told_is_kept_without_reading_everything_again() {
    let (server, replica) = telling(network()).await;
    let (before, epoch) = (reads(&server), replica.questions.borrow().epoch);
    deliver(&replica);
    settle().await;
    assert!(delivered_at(&server).is_string());
    assert_eq!((reads(&server), replica.questions.borrow().epoch), (before, epoch));
}

/// The Lease has run out, and no news of that has come.
#[tokio::test(start_paused = true)]
async fn a_leader_whose_right_to_write_is_over_keeps_no_delivery_and_shows_what_is_kept() {
    let (server, replica) = telling(network()).await;
    let before = reads(&server);
    replica.decided.borrow().permit.as_ref().unwrap().give_up();
    deliver(&replica);
    settle().await;
    assert_eq!((delivered_at(&server), server.store().writes.len()), (Value::Null, 0));
    assert_eq!(
        (replica.blocked(), replica.decided.borrow().permit.is_some()),
        (vec!["web".to_owned()], false)
    );
    assert_eq!(reads(&server), before);
}

/// Another replica has begun a later term, which this one learns from its mark in the object.
#[tokio::test(start_paused = true)]
async fn a_leader_that_meets_a_later_ones_mark_when_it_keeps_a_delivery_stops() {
    let network = Box::new(|store: &mut Store, call: &Call| {
        if call.method != hyper::Method::GET && call.plural == INCIDENTS {
            store.edit(INCIDENTS, &name_of("web"), |object| {
                object["status"]["writer"] = "replica-2 in term 2".into();
            });
        }
        Fault::None
    });
    let (server, replica) = telling(network).await;
    let before = reads(&server);
    deliver(&replica);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(delivered_at(&server), Value::Null);
    assert_eq!(
        (replica.blocked(), replica.decided.borrow().permit.is_some()),
        (vec!["web".to_owned()], false)
    );
    assert_eq!(reads(&server), before);
}

/// Another program changes the object before each of so many writes.
fn contending(mut writes: usize) -> Network {
    Box::new(move |store: &mut Store, call: &Call| {
        if writes > 0 && call.method != hyper::Method::GET && call.plural == INCIDENTS {
            writes -= 1;
            store.edit(INCIDENTS, &name_of("web"), |object| {
                object["metadata"]["labels"] = json!({"n": writes.to_string()});
            });
        }
        Fault::None
    })
}

/// Each time everything is read again, so there are pauses in between.
#[tokio::test(start_paused = true)]
async fn an_object_that_another_program_changes_before_every_write_costs_a_few_reads_a_minute() {
    let (server, replica) = telling(contending(2000)).await;
    let before = reads(&server);
    deliver(&replica);
    sleep(Duration::from_mins(2)).await;
    let times = reads(&server) - before;
    assert!((5..=12).contains(&times), "everything was read {times} times");
    assert_eq!(
        (replica.blocked(), replica.decided.borrow().permit.is_some()),
        (vec!["web".to_owned()], true)
    );
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_kept_because_others_write_too_is_read_again_and_kept_in_the_same_term() {
    let (server, replica) = telling(contending(5)).await;
    let (before, epoch) = (reads(&server), replica.questions.borrow().epoch);
    deliver(&replica);
    sleep(Duration::from_secs(10)).await;
    assert!(delivered_at(&server).is_string());
    assert_eq!(reads(&server), before + 1, "what is there was read again");
    assert_eq!((replica.questions.borrow().epoch, replica.decided.borrow().permit.is_some()), (epoch, true));
}
