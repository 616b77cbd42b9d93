//! Before it decides, a new leader reads, and writes nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use super::stage::{INCIDENTS, Replica, Setup, body, name_of, opened};
use crate::state::cluster::fake::{Call, Fault, Server, Store};

/// How many Incidents there are: enough for three pages.
const MANY_INCIDENTS: usize = 1200;

#[tokio::test(start_paused = true)]
async fn a_new_leader_reads_page_by_page_and_writes_only_its_own_decisions() {
    let server = Server::default();
    for n in 0..MANY_INCIDENTS {
        let app = format!("web-{n}");
        let state = if n % 100 == 0 { "Held" } else { "Ended" };
        server.put(INCIDENTS, &name_of(&app), body(&app, state));
    }
    let network = Box::new(|_: &mut Store, _: &Call| Fault::None);
    let mut replica = Replica::start(&server, Setup { is_watched: true, ..Setup::new(1, network) });
    let started = std::time::Instant::now();
    replica.decided.wait_for(|decided| decided.permit.is_some()).await.unwrap();
    eprintln!("first decision with {MANY_INCIDENTS} Incidents after {:?}", started.elapsed());
    assert_eq!(replica.decided.borrow().held.len(), MANY_INCIDENTS / 100);
    assert_eq!(server.store().writes.len(), 0, "nothing has changed");
    // The watch has read three pages of Incidents and the two other kinds: each whole object is read once.
    let lists = |store: &Store| (store.lists, store.metadata_lists);
    assert_eq!(lists(&server.store()), (5, 1));
    server.edit(INCIDENTS, &name_of("web-0"), |object| object["spec"]["approve"] = json!({"by": "alice"}));
    sleep(Duration::from_secs(3)).await;
    assert_eq!(replica.blocked(), ["web-0"]);
    let names: Vec<_> = server.store().writes.iter().map(|call| call.name.clone().unwrap()).collect();
    assert!(names.iter().all(|name| *name == name_of("web-0")), "{names:?}");
}

#[tokio::test(start_paused = true)]
async fn an_incident_that_has_changed_since_the_watch_saw_it_is_read_again() {
    let server = Server::default();
    for app in ["same", "released", "deleted", "renewed"] {
        server.put(INCIDENTS, &name_of(app), body(app, "Held"));
    }
    let seen = server.objects().read().await.unwrap();
    server.edit(INCIDENTS, &name_of("released"), |object| object["status"]["state"] = "Ended".into());
    for app in ["deleted", "renewed"] {
        server.remove(INCIDENTS, &name_of(app));
    }
    for app in ["renewed", "new"] {
        server.put(INCIDENTS, &name_of(app), body(app, "Held"));
    }
    server.edit(INCIDENTS, &name_of("same"), |object| object["spec"]["approve"] = json!({"by": "alice"}));

    let network = Box::new(|_: &mut Store, _: &Call| Fault::None);
    let mut replica = Replica::start(&server, Setup::new(1, network));
    replica.persisted.send_replace(Arc::new(seen));
    replica.decided.wait_for(|decided| decided.permit.is_some()).await.unwrap();
    let held: BTreeSet<String> =
        replica.decided.borrow().held.iter().map(|held| held.app.name.to_string()).collect();
    assert_eq!(held, ["new", "renewed", "same"].map(str::to_owned).into());
    // An operator command is carried out, and removed by its exact content.
    replica.show_objects(&server).await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(replica.blocked(), ["same"]);
    replica.show_objects(&server).await;
    sleep(Duration::from_secs(3)).await;
    assert!(server.get(INCIDENTS, &name_of("same")).unwrap()["spec"]["approve"].is_null());
    let released = server.get(INCIDENTS, &name_of("released")).unwrap();
    assert_eq!(released["status"]["state"], "Ended");
}

/// In dry-run the gateway's objects stay as they are. A damaged one is written anew only if all blocks are known.
#[tokio::test(start_paused = true)]
async fn a_new_leader_gives_the_output_its_limits_and_the_ledger_the_persisted_evidence() {
    for (mode, states, took_over) in [
        ("enforce", &["Blocked"][..], (true, true)),
        ("dry-run", &["Blocked"], (false, true)),
        ("enforce", &["Blocked", "Quarantined"], (true, false)),
        ("enforce", &["Quarantined"], (true, false)),
        ("enforce", &[], (true, false)),
    ] {
        let server = Server::default();
        for state in states {
            server.put(INCIDENTS, &name_of(state), body(state, state));
        }
        server.put("enforcements", "procscan", json!({"metadata": {}, "spec": {"mode": mode}}));
        let network = Box::new(|_: &mut Store, _: &Call| Fault::None);
        let replica = Replica::start(&server, Setup { is_watched: true, ..Setup::new(1, network) });
        sleep(Duration::from_secs(3)).await;
        assert_eq!(*replica.took_over.borrow(), Some(took_over), "{mode} {states:?}");
        let readable = states.iter().filter(|state| **state == "Blocked").count();
        assert_eq!(replica.ledger.fresh().await.violations.len(), readable, "{mode} {states:?}");
    }
}

/// As many Incidents as a large cluster has: most have ended, and some Apps are blocked.
#[tokio::test(start_paused = true)]
#[ignore = "for figures: by a release build, `cargo test --release -p procscan-aggregator --lib large -- --ignored --nocapture`"]
async fn a_new_leader_of_a_large_cluster_decides_within_seconds() {
    const MANY: usize = 20_000;
    let server = Server::default();
    for n in 0..MANY {
        let app = format!("web-{n}");
        let state = match n % 10 {
            0 => "Blocked",
            1 => "Held",
            _ => "Ended",
        };
        let mut body = body(&app, state);
        if state == "Blocked" {
            let at = opened();
            body["status"]["told"] = json!({"at": at, "what": "Blocked", "delivered": at});
        }
        server.put(INCIDENTS, &name_of(&app), body);
    }
    let network = Box::new(|_: &mut Store, _: &Call| Fault::None);
    let started = std::time::Instant::now();
    let seen = server.objects().read().await.unwrap();
    let read = started.elapsed();
    let mut replica = Replica::start(&server, Setup::new(1, network));
    // The replica can't begin before it gets the state that the watch has seen, so nothing is decided before
    // `started`.
    let started = std::time::Instant::now();
    replica.persisted.send_replace(Arc::new(seen));
    replica.decided.wait_for(|decided| decided.permit.is_some()).await.unwrap();
    let took = started.elapsed();
    println!("{MANY} Incidents: read in {read:?}, first decision {took:?} later");
    assert_eq!(replica.blocked().len(), MANY / 10);
    assert_eq!(server.store().writes.len(), 0, "nothing has changed");
    assert!(took < Duration::from_secs(5), "{took:?}");
}
