//! Alerts to operators: when an alert begins, that it is logged once, and when it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::SignedDuration;
use procscan_core::names::{App, Key};
use procscan_core::policy::{InheritedBlock, OnIngresses};
use serde_json::json;
use tokio::time::sleep;

use super::stage::{INCIDENTS, Replica, Setup, body, name_of};
use crate::state::cluster::fake::{Call, Fault, Network, Server, Store};
use crate::telemetry::logged::Logged;

async fn settle() {
    sleep(Duration::from_secs(3)).await;
}

fn network() -> Network {
    Box::new(|_: &mut Store, _: &Call| Fault::None)
}

fn watching(server: &Server, setup: Setup) -> Replica {
    Replica::start(server, Setup { is_watched: true, ..setup })
}

/// An operator's approval of an App, which causes an evaluation.
async fn approve(server: &Server, app: &str) {
    server.edit(INCIDENTS, &name_of(app), |object| object["spec"]["approve"] = json!({"by": "alice"}));
    settle().await;
}

fn set_mode(server: &Server, mode: &str) {
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
    let replica = watching(&server, Setup::new(1, network()));
    settle().await;
    approve(&server, "a").await;
    assert_eq!(counts(&logged.lines(), texts), [0, 0], "they agree from the beginning");
    let ahead = SignedDuration::from_hours(240);
    for (app, other, server_ahead, expected) in
        [("b", "c", ahead, [1, 0]), ("d", "e", SignedDuration::ZERO, [0, 1]), ("f", "a", -ahead, [1, 0])]
    {
        replica.set_server_time(server_ahead);
        approve(&server, app).await;
        assert_eq!(counts(&logged.lines(), texts), expected, "{server_ahead}");
        approve(&server, other).await;
        assert_eq!(counts(&logged.lines(), texts), [0, 0], "it is logged once: {server_ahead}");
    }
}

/// Operators' releases, exemptions and pauses may be lost then.
#[tokio::test(start_paused = true)]
async fn a_leader_that_enforces_raises_an_alert_when_it_finds_blocks_of_which_nothing_is_persisted() {
    let found = InheritedBlock {
        app: App::new("ns-a", "app", "miner"),
        notified_at: None,
        accused: [Key::new("ns-a", "miner-0", "xmrig")].into(),
        is_guess: false,
        services: vec!["miner.ns-a.svc".into()],
        on_ingresses: OnIngresses::default(),
    };
    for (blocked, persisted, mode, alerts, taken_over) in [
        (vec![found.clone()], None, "enforce", 1, "incidents=0 inherited=1"),
        (vec![found.clone()], None, "dry-run", 0, "incidents=0 inherited=1"),
        (vec![found], Some("Held"), "enforce", 1, "incidents=1 inherited=1"),
        (Vec::new(), Some("Held"), "enforce", 0, "incidents=1 inherited=0"),
        (Vec::new(), Some("Ended"), "enforce", 0, ""),
        (Vec::new(), None, "enforce", 0, ""),
    ] {
        let server = Server::default();
        server.put("enforcements", "procscan", json!({"metadata": {}, "spec": {"mode": mode}}));
        if let Some(state) = persisted {
            server.put(INCIDENTS, &name_of("web"), body("web", state));
        }
        let case = format!("{blocked:?} {persisted:?} {mode}");
        let (logged, _guard) = Logged::start();
        let _replica = watching(&server, Setup { blocked, ..Setup::new(1, network()) });
        settle().await;
        let lines = logged.lines();
        let expected = [alerts, usize::from(!taken_over.is_empty())];
        assert_eq!(
            counts(&lines, ["Apps are blocked, and nothing is persisted of them", "were taken over"]),
            expected,
            "{case}"
        );
        let is_counted =
            lines.iter().any(|line| line.contains("were taken over") && line.contains(taken_over));
        assert!(taken_over.is_empty() || is_counted, "{case}: {lines:?}");
    }
}

/// An operator's mode outlives restarts, and the configuration alone does not show it.
#[tokio::test(start_paused = true)]
async fn each_leader_logs_the_mode_in_force_once_at_its_start() {
    let texts = ["WARN the mode of enforcement was declared at run time", "mode=\"paused\" actor=\"alice\""];
    let server = Server::default();
    let spec = json!({"mode": "paused", "by": "alice"});
    server.put("enforcements", "procscan", json!({"metadata": {}, "spec": spec}));
    for term in [1, 2] {
        let (logged, _guard) = Logged::start();
        let _replica = watching(&server, Setup::new(term, network()));
        settle().await;
        assert_eq!(counts(&logged.lines(), texts), [1, 1], "term {term}");
        // When dry-run ends, the persisted state is read again. That is no start.
        set_mode(&server, "dry-run");
        settle().await;
        set_mode(&server, "paused");
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
    let _replica = watching(&server, Setup::new(1, network()));
    let texts = ["its App is neither blocked nor released", "Quarantined", "Banished"];
    settle().await;
    let unreadable = |lines: &[String]| {
        let lines: Vec<String> = lines.iter().filter(|line| line.contains(texts[0])).cloned().collect();
        counts(&lines, texts)
    };
    assert_eq!(unreadable(&logged.lines()), [1, 1, 0]);
    // The decisions of dry-run had no effect, so everything is read again when it ends.
    for (state, expected) in [("Quarantined", [0, 0, 0]), ("Banished", [1, 0, 1])] {
        set_mode(&server, "dry-run");
        settle().await;
        spoil(state);
        settle().await;
        let lists = server.store().metadata_lists;
        set_mode(&server, "enforce");
        settle().await;
        assert!(server.store().metadata_lists > lists, "it is read again");
        assert_eq!(unreadable(&logged.lines()), expected, "{state}");
    }
}

/// Each evaluation finds that tenants wait, and only the first one logs it.
#[tokio::test(start_paused = true)]
async fn waiting_tenants_are_logged_once_and_the_next_round_notifies_them() {
    let texts = ["more Apps need a first notice", "every tenant has been notified"];
    let server = Server::default();
    let apps = ["a", "b", "c"];
    for app in apps.into_iter().chain(["other"]) {
        server.put(INCIDENTS, &name_of(app), body(app, "Held"));
    }
    let notified = || {
        let is_notified =
            |app: &&str| server.get(INCIDENTS, &name_of(app)).unwrap()["status"]["told"]["at"].is_string();
        apps.iter().filter(|app| is_notified(app)).count()
    };
    let (logged, _guard) = Logged::start();
    let replica = watching(&server, Setup { max_notices: 1, ..Setup::new(1, network()) });
    settle().await;
    assert_eq!(counts(&logged.lines(), texts), [0, 0]);
    for app in apps {
        approve(&server, app).await;
    }
    assert_eq!((notified(), counts(&logged.lines(), texts)), (1, [1, 0]));
    for (number, logs) in [(2, [0, 0]), (3, [0, 1])] {
        // A minute within one round notifies no other tenant.
        sleep(Duration::from_mins(1)).await;
        assert_eq!((notified(), counts(&logged.lines(), texts)), (number - 1, [0, 0]));
        replica.round_done().await;
        settle().await;
        assert_eq!((notified(), counts(&logged.lines(), texts)), (number, logs));
    }
    // A tenant that is notified at once never waits.
    replica.round_done().await;
    settle().await;
    approve(&server, "other").await;
    assert_eq!(counts(&logged.lines(), texts), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_to_persist_decisions_is_logged_once_for_each_error_and_so_is_its_end() {
    let texts = ["some decisions can't be persisted", "decisions can be persisted again"];
    let server = Server::default();
    server.put(INCIDENTS, &name_of("web"), body("web", "Held"));
    server.put(INCIDENTS, &name_of("shop"), body("shop", "Held"));
    let refuses = Arc::new(AtomicBool::new(true));
    let flag = refuses.clone();
    let network = Box::new(move |_: &mut Store, call: &Call| {
        if call.is_status && flag.load(Ordering::Relaxed) { Fault::Refused(403) } else { Fault::None }
    });
    let (logged, _guard) = Logged::start();
    let mut replica = watching(&server, Setup::new(1, network));
    settle().await;
    assert_eq!(counts(&logged.lines(), texts), [0, 0]);
    approve(&server, "web").await;
    replica.error.mark_unchanged();
    sleep(Duration::from_mins(5)).await;
    assert_eq!(counts(&logged.lines(), texts), [1, 0]);
    assert!(!replica.error.has_changed().unwrap(), "the same error is no change");
    refuses.store(false, Ordering::Relaxed);
    sleep(Duration::from_secs(20)).await;
    assert_eq!((replica.blocked(), counts(&logged.lines(), texts)), (vec!["web".to_owned()], [0, 1]));
    approve(&server, "shop").await;
    assert_eq!((replica.blocked().len(), counts(&logged.lines(), texts)), (2, [0, 0]));
}
