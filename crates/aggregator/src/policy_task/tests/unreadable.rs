//! An object that can't be read or written affects only its own App or exemption.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use procscan_core::names::{App, Key};
use procscan_core::policy::{AppFact, ClusterFacts, InheritedBlock, OnIngresses};
use procscan_core::state::incident::Approval;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::stage::{INCIDENTS, Replica, Setup, body, decisions, name_of};
use crate::kubernetes::WritePermit;
use crate::leader::Leadership;
use crate::state::cluster::Watching;
use crate::state::cluster::fake::{Call, Fault, Server, Store};
use crate::state::sqlite::Sqlite;
use crate::state::{Batch, Document, FileStore, Kind, OperatorCommands, PersistedState};

const EXEMPTIONS: &str = "exemptions";

struct Watch {
    persisted: watch::Receiver<Arc<PersistedState>>,
    error: watch::Receiver<Option<String>>,
    cancel: CancellationToken,
}

fn watching(server: &Server) -> Watch {
    let (persisted_tx, persisted) = watch::channel(Arc::new(PersistedState::default()));
    let (error_tx, error) = watch::channel(None);
    let cancel = CancellationToken::new();
    let watching = Watching::new(server.objects()).0;
    tokio::spawn(watching.run(persisted_tx, error_tx, cancel.clone()));
    Watch { persisted, error, cancel }
}

#[tokio::test(start_paused = true)]
async fn the_last_readable_version_of_an_exemption_counts_whatever_the_mistake() {
    let mistakes = [
        json!({"namespace": {"exact": "ns-a"}, "rule": {"regex": "("}, "reason": "a contract"}),
        json!({"namespace": {"exact": "ns-a", "regex": "b"}, "reason": "a contract"}),
        json!({"namespace": {"exact": "ns-a"}, "reason": "a contract", "until": "tomorrow"}),
        json!({"namespace": "ns-a", "reason": "a contract"}),
        json!({"namespace": {"exact": "^ns-a"}, "reason": "a contract"}),
        json!({"namespace": {"exact": "ns-a"}}),
        json!({"reason": "a contract"}),
    ];
    for mistake in mistakes {
        let server = Server::default();
        let good = json!({"namespace": {"exact": "ns-a"}, "reason": "a contract"});
        server.put(EXEMPTIONS, "one", json!({"metadata": {}, "spec": good}));
        let mut watch = watching(&server);
        watch.persisted.wait_for(|state| state.is_complete).await.unwrap();
        server.edit(EXEMPTIONS, "one", |object| object["spec"] = mistake.clone());
        let error = watch.error.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        assert!(error.contains("Exemption one can't be read: spec"), "{error}");
        assert!(error.contains("the last version that could be read counts"), "{error}");
        let (rules, unread) = watch.persisted.borrow().rules();
        assert!(rules.len() == 1 && unread.is_empty(), "{mistake}: {rules:?}");
        let app = App::new("ns-a", "app", "web");
        assert!(rules[0].may_cover(&app));
        watch.cancel.cancel();

        // After a restart no readable version of it is known.
        let mut watch = watching(&server);
        watch.persisted.wait_for(|state| state.is_complete).await.unwrap();
        let error = watch.error.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        assert!(error.contains("nothing new is blocked that it may cover"), "{error}");
        let (rules, unread) = watch.persisted.borrow().rules();
        assert!(rules.is_empty() && unread.len() == 1, "{mistake}: {rules:?}");
        assert!(unread[0].may_cover(&app), "{mistake}");
        // Once it is mended, it counts again.
        server.edit(EXEMPTIONS, "one", |object| object["spec"] = good);
        watch.error.wait_for(Option::is_none).await.unwrap();
        assert_eq!(watch.persisted.borrow().rules().0.len(), 1);
        // Once it is deleted, it has no effect.
        server.edit(EXEMPTIONS, "one", |object| object["spec"] = mistake);
        watch.error.wait_for(Option::is_some).await.unwrap();
        server.remove(EXEMPTIONS, "one");
        watch.error.wait_for(Option::is_none).await.unwrap();
        let (rules, unread) = watch.persisted.borrow().rules();
        assert!(rules.is_empty() && unread.is_empty());
        watch.cancel.cancel();
    }
}

pub(super) fn found(app: &str) -> InheritedBlock {
    InheritedBlock {
        app: App::new("ns-a", "app", app),
        notified_at: None,
        accused: [Key::new("ns-a", format!("{app}-0"), "xmrig")].into(),
        is_guess: false,
        services: vec![format!("{app}.ns-a.svc").into()],
        on_ingresses: OnIngresses::default(),
    }
}

#[tokio::test(start_paused = true)]
async fn an_app_whose_incident_can_not_be_read_is_not_touched_until_it_is_mended() {
    let spoil: [fn(&mut serde_json::Value); 4] = [
        |object| object["status"]["state"] = "Quarantined".into(),
        |object| object["status"]["evidence"] = "none".into(),
        |object| object["status"]["brake"] = json!({"since": "2026-11-01T08:00:00Z", "brake": "Moon"}),
        // Wiped, although the API server has a record that it was written.
        |object| {
            object["status"] = json!({});
            object["metadata"]["managedFields"] =
                json!([{"manager": "x", "operation": "Update", "subresource": "status"}]);
        },
    ];
    for spoil in spoil {
        let server = Server::default();
        for app in ["miner", "shop"] {
            server.put(INCIDENTS, &name_of(app), body(app, "Held"));
        }
        server.edit(INCIDENTS, &name_of("miner"), spoil);
        let before = server.get(INCIDENTS, &name_of("miner"));
        let network = Box::new(|_: &mut Store, _: &Call| Fault::None);
        let setup = Setup { is_watched: true, blocked: vec![found("miner")], ..Setup::new(1, network) };
        let replica = Replica::start(&server, setup);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(replica.blocked(), ["miner"], "what is closed stays closed");
        // Decisions about other Apps go on.
        server.edit(INCIDENTS, &name_of("shop"), |object| object["spec"]["approve"] = json!({"by": "alice"}));
        sleep(Duration::from_secs(2)).await;
        assert_eq!(replica.blocked(), ["miner", "shop"]);
        assert_eq!(server.get(INCIDENTS, &name_of("miner")), before);
        assert_eq!(server.store().objects.len(), 2, "no second incident");

        server.edit(INCIDENTS, &name_of("miner"), |object| {
            object["status"] = body("miner", "Held")["status"].clone();
        });
        sleep(Duration::from_secs(2)).await;
        assert_eq!(replica.blocked(), ["shop"], "it was held");
        let entries = decisions(&server.get(INCIDENTS, &name_of("shop")).unwrap());
        assert_eq!(entries.iter().filter(|entry| entry.ends_with("by alice")).count(), 1);
    }
}

/// The same with a row in a file that another version may have written.
#[tokio::test]
async fn an_app_whose_row_in_the_state_file_can_not_be_read_is_not_touched_and_the_row_stays() {
    let directory = tempfile::tempdir().unwrap();
    let row = |app: &str, state: &str| {
        let mut body = body(app, state);
        body["status"]["state"] = state.into();
        body["generation"] = 0.into();
        Document { kind: Kind::Incident, name: name_of(app), body: body.to_string() }
    };
    let odd = row("miner", "Quarantined");
    let put = vec![odd.clone(), row("shop", "Held"), row("web", "Blocked")];
    let sqlite = Sqlite::open(directory.path()).await.unwrap().0;
    sqlite.commit(&Batch { put, ..Batch::default() }).await.unwrap();
    drop(sqlite);

    let store = FileStore::open(directory.path()).await.unwrap();
    let mut replica = Replica::with_file(store.clone(), vec![found("miner"), found("web")], false);
    let leads = replica.decided.wait_for(|decided| decided.permit.is_some());
    timeout(Duration::from_mins(1), leads).await.expect("decisions about other Apps").unwrap();
    assert_eq!(replica.blocked(), ["miner", "web"], "what is closed stays closed");
    assert_eq!(replica.error.borrow().clone(), None);
    let operator_commands = OperatorCommands::File(store.clone());
    let approval = Approval { by: Some("alice".into()), reason: None };
    operator_commands.approve(&name_of("shop"), approval.clone()).await.unwrap();
    replica.decided.wait_for(|decided| decided.plan.blocks.len() == 3).await.unwrap();
    let answer = operator_commands.approve(&name_of("miner"), approval).await.unwrap_err().to_string();
    assert!(
        answer.starts_with(&format!("Incident {} can't be read: status.state: ", name_of("miner"))),
        "{answer}"
    );
    drop(replica);
    // Dropped to end the tasks that use the file.
    drop((operator_commands, store));
    while Sqlite::open(directory.path()).await.is_err() {
        tokio::task::yield_now().await;
    }
    let rows = Sqlite::open(directory.path()).await.unwrap().0.load().await.unwrap();
    assert_eq!(rows.iter().find(|row| row.name == odd.name), Some(&odd));
    assert_eq!(rows.len(), 3, "no second incident of it");
}

#[tokio::test(start_paused = true)]
async fn where_not_even_the_app_can_be_read_nothing_new_is_blocked() {
    let server = Server::default();
    server.put(INCIDENTS, "odd", json!({"metadata": {}, "spec": {}, "status": {"state": "Held"}}));
    let mut grace = body("shop", "Grace");
    grace["status"]["until"] = "2026-11-01T09:00:00Z".into();
    server.put(INCIDENTS, &name_of("shop"), grace);
    let network = Box::new(|_: &mut Store, _: &Call| Fault::None);
    let replica = Replica::start(&server, Setup { is_watched: true, ..Setup::new(1, network) });
    sleep(Duration::from_secs(2)).await;
    assert!(replica.watching.borrow().as_ref().is_some_and(|error| error.contains("Incident odd")));
    assert!(replica.decided.borrow().permit.is_some(), "it still leads");
    server.remove(INCIDENTS, "odd");
    sleep(Duration::from_secs(2)).await;
    assert!(replica.watching.borrow().is_none());
}

#[tokio::test(start_paused = true)]
async fn one_incident_that_can_not_be_written_stops_no_new_leader() {
    let server = Server::default();
    for app in ["odd", "shop"] {
        server.put(INCIDENTS, &name_of(app), body(app, "Held"));
    }
    let network = Box::new(|_: &mut Store, call: &Call| {
        let is_odd = call.name.as_deref() == Some(&*name_of("odd")) && call.is_status;
        if is_odd { Fault::Refused(422) } else { Fault::None }
    });
    let replica = Replica::start(&server, Setup { is_watched: true, ..Setup::new(1, network) });
    for app in ["odd", "shop"] {
        server.edit(INCIDENTS, &name_of(app), |object| object["spec"]["approve"] = json!({"by": "alice"}));
    }
    sleep(Duration::from_secs(30)).await;
    assert_eq!(replica.blocked(), ["shop"], "no block follows from a decision that can't be persisted");
    assert!(replica.error.borrow().is_some());
    let odd = server.get(INCIDENTS, &name_of("odd")).unwrap();
    assert_eq!(odd["spec"]["approve"]["by"], "alice", "it is carried out as soon as it can be persisted");
}

/// An incident whose status was missing before the term is no change. Otherwise each change by others would read
/// everything again, and start all clearing clocks anew.
#[tokio::test(start_paused = true)]
async fn while_a_status_is_missing_other_changes_do_not_read_everything_again() {
    let server = Server::default();
    for app in ["miner", "shop"] {
        server.put(INCIDENTS, &name_of(app), body(app, "Held"));
    }
    server.edit(INCIDENTS, &name_of("miner"), |object| {
        object["status"] = json!({});
        object["metadata"]["managedFields"] =
            json!([{"manager": "x", "operation": "Update", "subresource": "status"}]);
    });
    let network = Box::new(|_: &mut Store, _: &Call| Fault::None);
    let setup = Setup { is_watched: true, blocked: vec![found("miner")], ..Setup::new(1, network) };
    let _replica = Replica::start(&server, setup);
    sleep(Duration::from_secs(2)).await;
    let before = server.store().lists;
    for n in 0..20 {
        server.edit(INCIDENTS, &name_of("shop"), |object| {
            object["metadata"]["annotations"] = json!({"n": n.to_string()});
        });
        sleep(Duration::from_secs(2)).await;
    }
    let lists = server.store().lists - before;
    assert!(lists <= 2, "everything was read {lists} times");
}

/// A command that is done does not overwrite a status that another version has written and this one can't read.
#[tokio::test(start_paused = true)]
async fn a_command_on_an_incident_that_can_not_be_read_overwrites_nothing() {
    let server = Server::default();
    for app in ["miner", "shop"] {
        server.put(INCIDENTS, &name_of(app), body(app, "Held"));
    }
    // The command can't be persisted for a moment. Then the status becomes one that only another version understands.
    let refuses = Arc::new(AtomicBool::new(true));
    let flag = refuses.clone();
    let network = Box::new(move |_: &mut Store, call: &Call| {
        let is_miner = call.name.as_deref() == Some(&*name_of("miner")) && call.is_status;
        if is_miner && flag.load(Ordering::Relaxed) { Fault::Refused(422) } else { Fault::None }
    });
    let setup = Setup { is_watched: true, blocked: vec![found("miner")], ..Setup::new(1, network) };
    let replica = Replica::start(&server, setup);
    sleep(Duration::from_secs(2)).await;
    server.edit(INCIDENTS, &name_of("miner"), |object| object["spec"]["release"] = json!({"by": "alice"}));
    sleep(Duration::from_secs(2)).await;
    drop(replica.leadership.send(Leadership::Following { leader: None }));
    sleep(Duration::from_secs(1)).await;
    server.edit(INCIDENTS, &name_of("miner"), |object| {
        object["status"]["state"] = "Quarantined".into();
        object["status"]["observed"] = 2.into();
        object["status"]["writer"] = "other in term 2".into();
    });
    refuses.store(false, Ordering::Relaxed);
    sleep(Duration::from_secs(1)).await;
    drop(replica.leadership.send(Leadership::Leading(WritePermit::of_term(3, "replica-3"))));
    sleep(Duration::from_secs(30)).await;
    let status = server.get(INCIDENTS, &name_of("miner")).unwrap()["status"].clone();
    assert_eq!(status["state"], "Quarantined");
}

/// An App that was gone in an earlier term may exist again, and another leader may have blocked it since.
#[tokio::test(start_paused = true)]
async fn cluster_facts_of_an_earlier_term_release_no_app() {
    let server = Server::default();
    server.put(INCIDENTS, &name_of("miner"), body("miner", "Blocked"));
    let network = Box::new(|_: &mut Store, _: &Call| Fault::None);
    let mut facts = ClusterFacts::default();
    let gone = AppFact { gone: true, ..AppFact::default() };
    facts.apps.insert(App::new("ns-a", "app", "miner"), gone);
    let replica = Replica::start(&server, Setup { is_watched: true, facts, ..Setup::new(1, network) });
    sleep(Duration::from_secs(5)).await;
    assert_eq!(replica.blocked(), ["miner"]);
}
