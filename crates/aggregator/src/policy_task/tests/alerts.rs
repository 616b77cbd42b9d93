//! What operators are alerted of: when an alert begins, that it is logged once, and when it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::SignedDuration;
use procscan_core::names::{App, Key};
use procscan_core::policy::{InheritedBlock, OnIngresses};
use serde_json::json;
use tokio::time::sleep;

use super::stage::{INCIDENTS, Replica, Wanted, body, name_of};
use crate::state::cluster::fake::{Call, Fault, Network, Server, Store};
use crate::telemetry::logged::Logged;

async fn settle() {
    sleep(Duration::from_secs(3)).await;
}

fn network() -> Network {
    Box::new(|_: &mut Store, _: &Call| Fault::None)
}

fn watching(server: &Server, wanted: Wanted) -> Replica {
    Replica::start(server, Wanted { is_watched: true, ..wanted })
}

/// An operator's act on an App, which is news to decide on.
async fn approve(server: &Server, app: &str) {
    server.edit(INCIDENTS, &name_of(app), |object| object["spec"]["approve"] = json!({"by": "alice"}));
    settle().await;
}

fn says(server: &Server, mode: &str) {
    server.edit("enforcements", "procscan", |object| object["spec"]["mode"] = mode.into());
}

/// How many of `lines` contain each of `texts`.
fn counts<const N: usize>(lines: &[String], texts: [&str; N]) -> [usize; N] {
    texts.map(|text| lines.iter().filter(|line| line.contains(text)).count())
}

#[tokio::test(start_paused = true)]
async fn the_alert_about_clocks_ends_when_they_agree_and_begins_again_when_they_differ_again() {
    let texts = ["differs from the API server's", "agrees with the API server's again"];
    let server = Server::default();
    for app in ["a", "b", "c", "d", "e", "f"] {
        server.put(INCIDENTS, &name_of(app), body(app, "Held"));
    }
    let (logged, _guard) = Logged::start();
    let replica = watching(&server, Wanted::new(1, network()));
    settle().await;
    approve(&server, "a").await;
    assert_eq!(counts(&logged.lines(), texts), [0, 0], "they agree from the beginning");
    let ahead = SignedDuration::from_hours(240);
    for (app, other, server_ahead, expected) in
        [("b", "c", ahead, [1, 0]), ("d", "e", SignedDuration::ZERO, [0, 1]), ("f", "a", -ahead, [1, 0])]
    {
        replica.tell_time(server_ahead);
        approve(&server, app).await;
        assert_eq!(counts(&logged.lines(), texts), expected, "{server_ahead}");
        approve(&server, other).await;
        assert_eq!(counts(&logged.lines(), texts), [0, 0], "it is logged once: {server_ahead}");
    }
}

/// Then releases, exemptions and pauses may be lost, too.
#[tokio::test(start_paused = true)]
async fn a_leader_that_enforces_raises_an_alert_when_it_finds_blocks_of_which_nothing_is_kept() {
    let found = InheritedBlock {
        app: App::new("ns-a", "app", "miner"),
        told: None,
        accused: [Key::new("ns-a", "miner-0", "xmrig")].into(),
        services: vec!["miner.ns-a.svc".into()],
        on_ingresses: OnIngresses::default(),
    };
    for (blocked, kept, mode, alerts, taken_over) in [
        (vec![found.clone()], None, "enforce", 1, "incidents=0 inherited=1"),
        (vec![found.clone()], None, "dry-run", 0, "incidents=0 inherited=1"),
        (vec![found], Some("Held"), "enforce", 1, "incidents=1 inherited=1"),
        (Vec::new(), Some("Held"), "enforce", 0, "incidents=1 inherited=0"),
        (Vec::new(), Some("Ended"), "enforce", 0, ""),
        (Vec::new(), None, "enforce", 0, ""),
    ] {
        let server = Server::default();
        server.put("enforcements", "procscan", json!({"metadata": {}, "spec": {"mode": mode}}));
        if let Some(state) = kept {
            server.put(INCIDENTS, &name_of("web"), body("web", state));
        }
        let story = format!("{blocked:?} {kept:?} {mode}");
        let (logged, _guard) = Logged::start();
        let _replica = watching(&server, Wanted { blocked, ..Wanted::new(1, network()) });
        settle().await;
        let lines = logged.lines();
        let expected = [alerts, usize::from(!taken_over.is_empty())];
        assert_eq!(
            counts(&lines, ["found blocked, and nothing is kept of it", "taken over"]),
            expected,
            "{story}"
        );
        let is_counted = lines.iter().any(|line| line.contains("taken over") && line.contains(taken_over));
        assert!(taken_over.is_empty() || is_counted, "{story}: {lines:?}");
    }
}

/// An operator's mode outlives restarts, so an operator who looks at the configuration alone would not know of it.
#[tokio::test(start_paused = true)]
async fn each_leader_logs_the_mode_in_force_once_at_its_start() {
    let texts = ["WARN the mode of enforcement was declared at run time", "mode=\"paused\" actor=\"alice\""];
    let server = Server::default();
    let spec = json!({"mode": "paused", "by": "alice"});
    server.put("enforcements", "procscan", json!({"metadata": {}, "spec": spec}));
    for term in [1, 2] {
        let (logged, _guard) = Logged::start();
        let _replica = watching(&server, Wanted::new(term, network()));
        settle().await;
        assert_eq!(counts(&logged.lines(), texts), [1, 1], "term {term}");
        // What is kept is read again when dry-run ends; that is no start.
        says(&server, "dry-run");
        settle().await;
        says(&server, "paused");
        settle().await;
        assert_eq!(counts(&logged.lines(), texts), [0, 0], "term {term}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_incident_that_can_not_be_read_is_logged_once_for_each_mistake_however_often_it_is_read() {
    let server = Server::default();
    server.put("enforcements", "procscan", json!({"metadata": {}, "spec": {"mode": "enforce"}}));
    server.put(INCIDENTS, &name_of("miner"), body("miner", "Held"));
    let spoil = |state: &'static str| {
        server.edit(INCIDENTS, &name_of("miner"), |object| object["status"]["state"] = state.into());
    };
    spoil("Quarantined");
    let (logged, _guard) = Logged::start();
    let _replica = watching(&server, Wanted::new(1, network()));
    let texts = ["its App is neither blocked nor released nor told", "Quarantined", "Banished"];
    settle().await;
    let aside = |lines: &[String]| {
        let lines: Vec<String> = lines.iter().filter(|line| line.contains(texts[0])).cloned().collect();
        counts(&lines, texts)
    };
    assert_eq!(aside(&logged.lines()), [1, 1, 0]);
    // What dry-run has decided had no effect, so everything is read again when it ends.
    for (state, expected) in [("Quarantined", [0, 0, 0]), ("Banished", [1, 0, 1])] {
        says(&server, "dry-run");
        settle().await;
        spoil(state);
        settle().await;
        let lists = server.store().metadata_lists;
        says(&server, "enforce");
        settle().await;
        assert!(server.store().metadata_lists > lists, "it is read again");
        assert_eq!(aside(&logged.lines()), expected, "{state}");
    }
}

/// Each evaluation finds that tenants wait, and only the first one logs it.
#[tokio::test(start_paused = true)]
async fn that_tenants_wait_to_be_told_is_logged_once_and_the_next_round_tells_them() {
    let texts = ["more tenants are to be told", "every tenant has been told"];
    let server = Server::default();
    let apps = ["a", "b", "c"];
    for app in apps.into_iter().chain(["other"]) {
        server.put(INCIDENTS, &name_of(app), body(app, "Held"));
    }
    let told = || {
        let is_told =
            |app: &&str| server.get(INCIDENTS, &name_of(app)).unwrap()["status"]["told"]["at"].is_string();
        apps.iter().filter(|app| is_told(app)).count()
    };
    let (logged, _guard) = Logged::start();
    let replica = watching(&server, Wanted { max_notices: 1, ..Wanted::new(1, network()) });
    settle().await;
    assert_eq!(counts(&logged.lines(), texts), [0, 0]);
    for app in apps {
        approve(&server, app).await;
    }
    assert_eq!((told(), counts(&logged.lines(), texts)), (1, [1, 0]));
    for (number, logs) in [(2, [0, 0]), (3, [0, 1])] {
        // A minute within one round tells no other.
        sleep(Duration::from_mins(1)).await;
        assert_eq!((told(), counts(&logged.lines(), texts)), (number - 1, [0, 0]));
        replica.round_done().await;
        settle().await;
        assert_eq!((told(), counts(&logged.lines(), texts)), (number, logs));
    }
    // A tenant that is told at once never waited.
    replica.round_done().await;
    settle().await;
    approve(&server, "other").await;
    assert_eq!(counts(&logged.lines(), texts), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn that_decisions_can_not_be_kept_is_logged_once_for_each_error_and_so_is_its_end() {
    let texts = ["some decisions can't be kept", "decisions can be kept again"];
    let server = Server::default();
    server.put(INCIDENTS, &name_of("web"), body("web", "Held"));
    server.put(INCIDENTS, &name_of("shop"), body("shop", "Held"));
    let refuses = Arc::new(AtomicBool::new(true));
    let flag = refuses.clone();
    let network = Box::new(move |_: &mut Store, call: &Call| {
        if call.is_status && flag.load(Ordering::Relaxed) { Fault::Refused(403) } else { Fault::None }
    });
    let (logged, _guard) = Logged::start();
    let mut replica = watching(&server, Wanted::new(1, network));
    settle().await;
    assert_eq!(counts(&logged.lines(), texts), [0, 0]);
    approve(&server, "web").await;
    replica.trouble.mark_unchanged();
    sleep(Duration::from_mins(5)).await;
    assert_eq!(counts(&logged.lines(), texts), [1, 0]);
    assert!(!replica.trouble.has_changed().unwrap(), "the same error is no news");
    refuses.store(false, Ordering::Relaxed);
    sleep(Duration::from_secs(20)).await;
    assert_eq!((replica.blocked(), counts(&logged.lines(), texts)), (vec!["web".to_owned()], [0, 1]));
    approve(&server, "shop").await;
    assert_eq!((replica.blocked().len(), counts(&logged.lines(), texts)), (2, [0, 0]));
}
