//! Operators' acts are done, in whatever order they come and however late.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::Method;
use jiff::{SignedDuration, Timestamp};
use procscan_core::state::incident::{Approval, Release};
use serde_json::json;
use tokio::time::sleep;

use super::stage::{INCIDENTS, Replica, Wanted, body, decisions, name_of};
use crate::state::OperatorCommands;
use crate::state::cluster::fake::{Call, Fault, Server, Store};

fn approve(store: &mut Store) {
    store.edit(INCIDENTS, &name_of("web"), |object| object["spec"]["approve"] = json!({"by": "alice"}));
}

fn release(store: &mut Store) {
    store.edit(INCIDENTS, &name_of("web"), |object| object["spec"]["release"] = json!({"by": "bob"}));
}

/// One course of events: before which of the leader's writes each operator acts, which write has no answer, and whether
/// the leader sees each change at once.
#[derive(Clone, Copy, Debug)]
struct Story {
    alice: usize,
    bob: usize,
    unanswered: Option<usize>,
    sees_at_once: bool,
}

async fn play(story: Story) {
    let server = Server::default();
    server.put(INCIDENTS, &name_of("web"), body("web", "Held"));
    let Story { alice, bob, unanswered, sees_at_once } = story;
    let count = Arc::new(Mutex::new(0_usize));
    let seen = count.clone();
    let network = Box::new(move |store: &mut Store, call: &crate::state::cluster::fake::Call| {
        if call.plural != INCIDENTS || call.method == Method::GET {
            return Fault::None;
        }
        let mut n = seen.lock().unwrap();
        *n += 1;
        if *n == alice {
            approve(store);
        }
        if *n == bob {
            release(store);
        }
        if Some(*n) == unanswered { Fault::Unanswered } else { Fault::None }
    });
    let replica = Replica::start(&server, Wanted::new(1, network));
    replica.look(&server).await;
    sleep(Duration::from_millis(100)).await;
    for (when, act) in [(alice, approve as fn(&mut Store)), (bob, release)] {
        if when == 0 {
            act(&mut server.store());
            replica.look(&server).await;
            sleep(Duration::from_millis(if sees_at_once { 20 } else { 10_000 })).await;
        }
    }
    for _ in 0..12 {
        sleep(Duration::from_secs(if sees_at_once { 2 } else { 20 })).await;
        replica.look(&server).await;
    }
    // Operators whose turn has not come act at the end.
    let n = *count.lock().unwrap();
    for (when, act) in [(alice, approve as fn(&mut Store)), (bob, release)] {
        if when > n {
            *count.lock().unwrap() += 100;
            act(&mut server.store());
            for _ in 0..8 {
                replica.look(&server).await;
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
    let now = server.get(INCIDENTS, &name_of("web")).unwrap();
    let log = decisions(&now);
    let status = &now["status"];
    assert!(log.iter().any(|entry| entry == "released by bob"), "{story:?}: {log:?}");
    assert_eq!(status["releases"][0]["by"], "bob", "{story:?}: {now:#}");
    let alices = log.iter().filter(|entry| entry.ends_with("by alice")).count();
    assert!(alices >= 1, "{story:?}: {log:?}");
    let last = log.iter().rev().find(|entry| entry.ends_with("by alice") || entry.ends_with("by bob"));
    assert!(bob < alice || last.unwrap() == "released by bob", "{story:?}: {log:?}");
    assert_eq!((&now["spec"]["approve"], &now["spec"]["release"]), (&json!(null), &json!(null)), "{story:?}");
    assert!(replica.blocked().is_empty(), "{story:?}: {:?}", replica.blocked());
    assert!(replica.trouble.borrow().is_none(), "{story:?}");
}

#[tokio::test(start_paused = true)]
async fn what_two_operators_want_is_done_in_every_order_and_whichever_answer_is_lost() {
    for alice in 0..5 {
        for bob in 0..5 {
            for unanswered in [None, Some(1), Some(2), Some(3), Some(4), Some(5)] {
                for sees_at_once in [true, false] {
                    play(Story { alice, bob, unanswered, sees_at_once }).await;
                }
            }
        }
    }
}

/// The API server's clock decides when a date has passed, however wrong this replica's clock is.
#[tokio::test(start_paused = true)]
async fn an_until_is_over_when_the_api_servers_clock_says_so() {
    let days = |days: i64| SignedDuration::from_hours(24 * days);
    // How far the API server's clock is ahead, until when the release lasts by this replica's clock, and whether it is
    // refused.
    for (server_ahead, until, is_refused) in [
        (days(-10), days(-5), false),
        (days(-10), days(-11), true),
        (days(10), days(5), true),
        (days(10), days(11), false),
        (days(0), days(1), false),
        (days(0), days(-1), true),
    ] {
        let server = Server::default();
        server.put(INCIDENTS, &name_of("web"), body("web", "Blocked"));
        let network = Box::new(|_: &mut Store, _: &Call| Fault::None);
        let wanted = Wanted { is_watched: true, server_ahead, ..Wanted::new(1, network) };
        let replica = Replica::start(&server, wanted);
        sleep(Duration::from_secs(3)).await;
        let until = Timestamp::now() + until;
        server.edit(INCIDENTS, &name_of("web"), |object| {
            object["spec"]["release"] = json!({"by": "bob", "until": until});
        });
        sleep(Duration::from_secs(3)).await;
        let now = server.get(INCIDENTS, &name_of("web")).unwrap();
        let entry = if is_refused { "refused by bob" } else { "released by bob" };
        assert_eq!(decisions(&now).last().unwrap(), entry, "{server_ahead} {until}: {now:#}");
        assert_eq!(replica.blocked().is_empty(), !is_refused);
        assert!(now["spec"]["release"].is_null());
        if !is_refused {
            // That does not change later.
            sleep(Duration::from_hours(1)).await;
            assert!(replica.blocked().is_empty());
            let status = server.get(INCIDENTS, &name_of("web")).unwrap()["status"].clone();
            assert_eq!(status["releases"].as_array().unwrap().len(), 1);
        }
    }
}

/// The API writes an operator's act between the leader's late write and its note that the write was done.
#[tokio::test(start_paused = true)]
async fn an_act_that_comes_while_another_may_be_undone_waits_and_wipes_nothing() {
    let server = Server::default();
    let name = name_of("web");
    server.put(INCIDENTS, &name, body("web", "Held"));
    // The leader has written that alice's release is done, but does not know that itself.
    server.edit(INCIDENTS, &name, |object| {
        object["spec"]["release"] = json!({"by": "alice"});
        object["status"]["observed"] = 2.into();
    });
    let operator_commands = OperatorCommands::Cluster(server.objects());
    let answer = operator_commands.approve(&name, Approval { by: Some("bob".into()), reason: None }).await;
    assert!(answer.is_err(), "{answer:?}");
    let answer =
        operator_commands.release(&name, Release { by: Some("bob".into()), ..Release::default() }).await;
    assert!(answer.is_err(), "{answer:?}");
    assert_eq!(server.get(INCIDENTS, &name).unwrap()["spec"]["release"]["by"], "alice");
    // The leader clears it away while the next act waits.
    let waits = tokio::spawn({
        let (operator_commands, name) = (operator_commands.clone(), name.clone());
        async move { operator_commands.approve(&name, Approval { by: Some("bob".into()), reason: None }).await }
    });
    sleep(Duration::from_millis(10)).await;
    server.edit(INCIDENTS, &name, |object| drop(object["spec"].as_object_mut().unwrap().remove("release")));
    assert_eq!(waits.await.unwrap().unwrap(), 4);
}
