//! A new leader applies the current commands and declarations of operators, even if its watches hang or fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::stage::{INCIDENTS, Replica, Setup, body, decisions, name_of};
use crate::kubernetes::WritePermit;
use crate::leader::Leadership;
use crate::state::cluster::fake::{Call, Fault, Server, Store};

const ENFORCEMENTS: &str = "enforcements";
const EXEMPTIONS: &str = "exemptions";
/// Stands for a request without an answer.
const NO_ANSWER: u16 = 1;

/// Declarations of operators that leave an App open: the plural, the name and the spec.
fn declared() -> [(&'static str, &'static str, Value); 2] {
    [
        (ENFORCEMENTS, "procscan", json!({"mode": "paused", "by": "alice"})),
        (EXEMPTIONS, "one", json!({"namespace": {"exact": "ns-a"}, "reason": "a contract", "by": "alice"})),
    ]
}

fn declare(server: &Server, (plural, name, spec): &(&str, &str, Value)) {
    server.put(plural, name, json!({"metadata": {}, "spec": spec}));
}

/// A replica that follows, has seen everything, and has a new accusation that leads to a block. Lists of Exemptions and
/// Enforcements are refused with `refusal`, unless it is zero.
async fn follower(server: &Server, refusal: &Arc<AtomicU16>) -> Replica {
    let refusal = refusal.clone();
    let network = Box::new(move |_: &mut Store, call: &Call| {
        let is_declared = [ENFORCEMENTS, EXEMPTIONS].contains(&&*call.plural);
        match refusal.load(Ordering::Relaxed) {
            NO_ANSWER if is_declared => Fault::Lost,
            code if code > 0 && is_declared => Fault::Refused(code),
            _ => Fault::None,
        }
    });
    let setup = Setup { is_watched: true, has_agent: true, ..Setup::new(1, network) };
    let replica = Replica::start(server, setup);
    replica.follow();
    replica.accuse("miner").await;
    sleep(Duration::from_secs(5)).await;
    assert!(replica.persisted.borrow().is_complete && replica.decided.borrow().permit.is_none());
    replica
}

fn lead(replica: &Replica) {
    replica.leadership.send_replace(Leadership::Leading(WritePermit::of_term(2, "replica-2")));
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_applies_declarations_that_were_made_while_its_watch_hung() {
    let server = Server::default();
    let replica = follower(&server, &Arc::default()).await;
    lead(&replica);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(replica.blocked(), ["miner"], "unless something is declared");
    for declaration in declared() {
        let server = Server::default();
        let replica = follower(&server, &Arc::default()).await;
        server.hang(declaration.0);
        declare(&server, &declaration);
        sleep(Duration::from_secs(5)).await;
        lead(&replica);
        sleep(Duration::from_secs(5)).await;
        assert!(replica.decided.borrow().permit.is_some(), "{declaration:?}");
        assert_eq!(replica.blocked(), [""; 0], "{declaration:?}");
        // A deleted declaration takes effect too.
        server.remove(declaration.0, declaration.1);
        sleep(Duration::from_secs(5)).await;
        assert_eq!(replica.blocked(), ["miner"], "{declaration:?}");
    }
}

/// A hanging watch does not show the current declarations, and a late block is better than a wrong one.
#[tokio::test(start_paused = true)]
async fn a_new_leader_that_can_not_list_the_declarations_decides_nothing_until_it_can() {
    for (declaration, code) in declared().into_iter().zip([503, 403]) {
        let (server, refusal) = (Server::default(), Arc::new(AtomicU16::new(0)));
        let replica = follower(&server, &refusal).await;
        server.hang(declaration.0);
        declare(&server, &declaration);
        refusal.store(code, Ordering::Relaxed);
        lead(&replica);
        sleep(Duration::from_mins(10)).await;
        assert!(replica.decided.borrow().permit.is_none(), "{declaration:?}");
        let error = replica.error.borrow().clone().unwrap();
        assert!(error.starts_with("Exemptions and Enforcements were not listed within"), "{error}");
        let watching = replica.watching.borrow().clone().unwrap();
        assert!(watching.ends_with(&format!("not today ({code})")), "{watching}");
        refusal.store(0, Ordering::Relaxed);
        sleep(Duration::from_mins(1)).await;
        assert!(replica.decided.borrow().permit.is_some(), "{declaration:?}");
        assert_eq!(replica.blocked(), [""; 0], "{declaration:?}");
        assert_eq!(replica.error.borrow().clone(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_hangs_is_requested_again() {
    let (server, refusal) = (Server::default(), Arc::new(AtomicU16::new(0)));
    let replica = follower(&server, &refusal).await;
    server.hang(ENFORCEMENTS);
    declare(&server, &declared()[0]);
    refusal.store(NO_ANSWER, Ordering::Relaxed);
    lead(&replica);
    sleep(Duration::from_secs(10)).await;
    refusal.store(0, Ordering::Relaxed);
    assert!(replica.decided.borrow().permit.is_none());
    sleep(Duration::from_secs(10)).await;
    assert!(replica.decided.borrow().permit.is_some());
    assert_eq!(replica.blocked(), [""; 0]);
}

/// The previous leader ended before it carried out the command.
#[tokio::test(start_paused = true)]
async fn a_new_leader_carries_out_commands_that_were_given_while_its_watch_hung() {
    let (server, refusal) = (Server::default(), Arc::default());
    server.put(INCIDENTS, &name_of("miner"), body("miner", "Watched"));
    let replica = follower(&server, &refusal).await;
    server.hang(INCIDENTS);
    server.edit(INCIDENTS, &name_of("miner"), |object| object["spec"]["release"] = json!({"by": "alice"}));
    sleep(Duration::from_secs(5)).await;
    lead(&replica);
    sleep(Duration::from_secs(30)).await;
    assert!(replica.decided.borrow().permit.is_some());
    let miner = server.get(INCIDENTS, &name_of("miner")).unwrap();
    assert_eq!(decisions(&miner), ["held by policy", "released by alice"]);
    assert_eq!(replica.blocked(), [""; 0]);
}

/// The leader does not wait for an incident that was deleted after it had been read.
#[tokio::test(start_paused = true)]
async fn a_new_leader_does_not_wait_for_its_watch_to_show_a_deleted_incident() {
    let server = Server::default();
    let replica = follower(&server, &Arc::default()).await;
    server.hang(INCIDENTS);
    for app in ["shop", "web"] {
        server.put(INCIDENTS, &name_of(app), body(app, "Ended"));
    }
    lead(&replica);
    sleep(Duration::from_secs(1)).await;
    server.remove(INCIDENTS, &name_of("shop"));
    sleep(Duration::from_secs(30)).await;
    assert_eq!(replica.blocked(), ["miner"]);
    assert!(replica.persisted.borrow().incidents.contains_key(&*name_of("web")));
}
