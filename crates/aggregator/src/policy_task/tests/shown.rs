//! The decisions that a replica shows while it does not lead, and the written notices that a leader persists.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use procscan_core::names::App;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::stage::{INCIDENTS, Replica, Setup, body, name_of, opened};
use crate::state::cluster::fake::{Call, Fault, Network, Server, Store};

async fn settle() {
    sleep(Duration::from_secs(3)).await;
}

fn network() -> Network {
    Box::new(|_: &mut Store, _: &Call| Fault::None)
}

fn watching(server: &Server, network: Network) -> Replica {
    Replica::start(server, Setup { is_watched: true, ..Setup::new(1, network) })
}

/// Nothing is written before the first round is done, so every replica has to know when that is.
#[tokio::test(start_paused = true)]
async fn a_replica_shows_that_the_first_round_is_done_whether_it_leads_or_not() {
    for leads in [true, false] {
        let server = Server::default();
        server.put(INCIDENTS, &name_of("web"), body("web", "Blocked"));
        let setup = Setup { is_watched: true, has_round: false, ..Setup::new(1, network()) };
        let mut replica = Replica::start(&server, setup);
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
        // Later rounds change no decision.
        for _ in 0..3 {
            replica.round_done().await;
            settle().await;
        }
        assert!(!replica.decided.has_changed().unwrap(), "leads: {leads}");
    }
}

/// A leader whose App `web` is blocked, and whose notice about that is not written yet.
async fn with_notice(network: Network) -> (Server, Replica) {
    let server = Server::default();
    let mut blocked = body("web", "Blocked");
    blocked["status"]["told"] = json!({"at": opened(), "what": "Blocked"});
    server.put(INCIDENTS, &name_of("web"), blocked);
    let replica = watching(&server, network);
    settle().await;
    assert_eq!(replica.blocked(), ["web"]);
    (server, replica)
}

fn write_notice(replica: &Replica) {
    let written = BTreeMap::from([(App::new("ns-a", "app", "web"), opened().into())]);
    replica.written.send_replace(Arc::new(written));
}

fn written_at(server: &Server) -> Value {
    server.get(INCIDENTS, &name_of("web")).unwrap()["status"]["told"]["deliveredAt"].clone()
}

/// How often everything was read.
fn reads(server: &Server) -> usize {
    server.store().metadata_lists
}

#[tokio::test(start_paused = true)]
async fn a_written_notice_is_persisted_without_reading_everything_again() {
    let (server, replica) = with_notice(network()).await;
    let (before, epoch) = (reads(&server), replica.lookups.borrow().epoch);
    write_notice(&replica);
    settle().await;
    assert!(written_at(&server).is_string());
    assert_eq!((reads(&server), replica.lookups.borrow().epoch), (before, epoch));
}

/// The Lease has run out, and the election has not announced that yet.
#[tokio::test(start_paused = true)]
async fn a_leader_whose_permit_has_ended_persists_no_written_notice_and_shows_the_persisted_state() {
    let (server, replica) = with_notice(network()).await;
    let before = reads(&server);
    replica.decided.borrow().permit.as_ref().unwrap().give_up();
    write_notice(&replica);
    settle().await;
    assert_eq!((written_at(&server), server.store().writes.len()), (Value::Null, 0));
    assert_eq!(
        (replica.blocked(), replica.decided.borrow().permit.is_some()),
        (vec!["web".to_owned()], false)
    );
    assert_eq!(reads(&server), before);
}

/// Another replica has begun a later term, which this one learns from its mark in the object.
#[tokio::test(start_paused = true)]
async fn a_leader_that_finds_a_later_leaders_mark_when_it_persists_a_written_notice_stops() {
    let network = Box::new(|store: &mut Store, call: &Call| {
        if call.method != hyper::Method::GET && call.plural == INCIDENTS {
            store.edit(INCIDENTS, &name_of("web"), |object| {
                object["status"]["writer"] = "replica-2 in term 2".into();
            });
        }
        Fault::None
    });
    let (server, replica) = with_notice(network).await;
    let before = reads(&server);
    write_notice(&replica);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(written_at(&server), Value::Null);
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

/// Everything is read again each time, so there are pauses in between.
#[tokio::test(start_paused = true)]
async fn an_object_that_another_program_changes_before_every_write_costs_a_few_reads_a_minute() {
    let (server, replica) = with_notice(contending(2000)).await;
    let before = reads(&server);
    write_notice(&replica);
    sleep(Duration::from_mins(2)).await;
    let times = reads(&server) - before;
    assert!((5..=12).contains(&times), "everything was read {times} times");
    assert_eq!(
        (replica.blocked(), replica.decided.borrow().permit.is_some()),
        (vec!["web".to_owned()], true)
    );
}

#[tokio::test(start_paused = true)]
async fn a_write_that_conflicts_with_another_program_succeeds_after_a_read_in_the_same_term() {
    let (server, replica) = with_notice(contending(5)).await;
    let (before, epoch) = (reads(&server), replica.lookups.borrow().epoch);
    write_notice(&replica);
    sleep(Duration::from_secs(10)).await;
    assert!(written_at(&server).is_string());
    assert_eq!(reads(&server), before + 1, "the persisted state was read again");
    assert_eq!((replica.lookups.borrow().epoch, replica.decided.borrow().permit.is_some()), (epoch, true));
}
