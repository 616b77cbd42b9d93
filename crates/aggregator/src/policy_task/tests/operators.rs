//! Operator commands are carried out in any order, and at any delay.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::Method;
use jiff::{SignedDuration, Timestamp};
use procscan_core::state::incident::{Approval, Release};
use serde_json::json;
use tokio::time::sleep;

use super::stage::{INCIDENTS, Replica, Setup, body, decisions, name_of};
use crate::state::OperatorCommands;
use crate::state::cluster::fake::{Call, Fault, Server, Store};

fn approve(store: &mut Store) {
    store.edit(INCIDENTS, &name_of("web"), |object| object["spec"]["approve"] = json!({"by": "alice"}));
}

fn release(store: &mut Store) {
    store.edit(INCIDENTS, &name_of("web"), |object| object["spec"]["release"] = json!({"by": "bob"}));
}

/// One sequence of events. Each operator gives a command before one of the leader's writes, and one write gets no
/// answer. With `sees_at_once` the leader sees each change at once.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    alice: usize,
    bob: usize,
    unanswered: Option<usize>,
    sees_at_once: bool,
}

async fn play(schedule: Schedule) {
    let server = Server::default();
    server.put(INCIDENTS, &name_of("web"), body("web", "Held"));
    let Schedule { alice, bob, unanswered, sees_at_once } = schedule;
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
    let replica = Replica::start(&server, Setup::new(1, network));
    replica.show_objects(&server).await;
    sleep(Duration::from_millis(100)).await;
    for (when, command) in [(alice, approve as fn(&mut Store)), (bob, release)] {
        if when == 0 {
            command(&mut server.store());
            replica.show_objects(&server).await;
            sleep(Duration::from_millis(if sees_at_once { 20 } else { 10_000 })).await;
        }
    }
    for _ in 0..12 {
        sleep(Duration::from_secs(if sees_at_once { 2 } else { 20 })).await;
        replica.show_objects(&server).await;
    }
    // Operators whose turn has not come give their commands at the end.
    let n = *count.lock().unwrap();
    for (when, command) in [(alice, approve as fn(&mut Store)), (bob, release)] {
        if when > n {
            *count.lock().unwrap() += 100;
            command(&mut server.store());
            for _ in 0..8 {
                replica.show_objects(&server).await;
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
    let now = server.get(INCIDENTS, &name_of("web")).unwrap();
    let log = decisions(&now);
    let status = &now["status"];
    assert!(log.iter().any(|entry| entry == "released by bob"), "{schedule:?}: {log:?}");
    assert_eq!(status["releases"][0]["by"], "bob", "{schedule:?}: {now:#}");
    let alices = log.iter().filter(|entry| entry.ends_with("by alice")).count();
    assert!(alices >= 1, "{schedule:?}: {log:?}");
    let last = log.iter().rev().find(|entry| entry.ends_with("by alice") || entry.ends_with("by bob"));
    assert!(bob < alice || last.unwrap() == "released by bob", "{schedule:?}: {log:?}");
    assert_eq!(
        (&now["spec"]["approve"], &now["spec"]["release"]),
        (&json!(null), &json!(null)),
        "{schedule:?}"
    );
    assert!(replica.blocked().is_empty(), "{schedule:?}: {:?}", replica.blocked());
    assert!(replica.error.borrow().is_none(), "{schedule:?}");
}

#[tokio::test(start_paused = true)]
async fn commands_of_two_operators_are_carried_out_in_every_order_and_whichever_answer_is_lost() {
    for alice in 0..5 {
        for bob in 0..5 {
            for unanswered in [None, Some(1), Some(2), Some(3), Some(4), Some(5)] {
                for sees_at_once in [true, false] {
                    play(Schedule { alice, bob, unanswered, sees_at_once }).await;
                }
            }
        }
    }
}

/// The API server's clock decides when a date has passed, however wrong this replica's clock is.
#[tokio::test(start_paused = true)]
async fn a_release_ends_by_the_api_servers_clock() {
    let days = |days: i64| SignedDuration::from_hours(24 * days);
    // How far the API server's clock is ahead, until when the release lasts by this replica's clock, and whether it
    // is refused.
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
        let setup = Setup { is_watched: true, server_ahead, ..Setup::new(1, network) };
        let replica = Replica::start(&server, setup);
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
            // The release still counts an hour later.
            sleep(Duration::from_hours(1)).await;
            assert!(replica.blocked().is_empty());
            let status = server.get(INCIDENTS, &name_of("web")).unwrap()["status"].clone();
            assert_eq!(status["releases"].as_array().unwrap().len(), 1);
        }
    }
}

/// The API writes an operator command after the leader's late write, and before the leader notes that the write was
/// done.
#[tokio::test(start_paused = true)]
async fn a_command_that_comes_while_another_may_be_undone_waits_and_overwrites_nothing() {
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
    // The leader removes the first command while the next one waits.
    let waits = tokio::spawn({
        let (operator_commands, name) = (operator_commands.clone(), name.clone());
        async move { operator_commands.approve(&name, Approval { by: Some("bob".into()), reason: None }).await }
    });
    sleep(Duration::from_millis(10)).await;
    server.edit(INCIDENTS, &name, |object| drop(object["spec"].as_object_mut().unwrap().remove("release")));
    assert_eq!(waits.await.unwrap().unwrap(), 4);
}
