//! A start on a new state file: the first start ever, or one after the loss of the persisted state.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use procscan_core::decision::Mode;
use procscan_core::state::{EnforcementSpec, ExemptionSpec, IncidentState};
use serde_json::json;
use tokio::time::timeout;

use super::stage::{Replica, body, name_of};
use super::unreadable::found;
use crate::state::sqlite::Sqlite;
use crate::state::{Batch, Document, FileStore, Kind, OperatorCommands, PersistedState};
use crate::telemetry::logged::Logged;

const LIMIT: Duration = Duration::from_mins(1);

fn after_loss() -> EnforcementSpec {
    EnforcementSpec { mode: Some(Mode::Paused), by: Some("procscan-aggregator".into()), reason: None }
}

async fn open(directory: &Path) -> FileStore {
    FileStore::open_with(directory, Some(after_loss())).await.unwrap()
}

fn row(kind: Kind, name: &str, body: &serde_json::Value) -> Document {
    Document { kind, name: name.to_owned(), body: body.to_string() }
}

/// A state file with these rows, that an earlier start has written.
async fn file(directory: &Path, put: Vec<Document>) {
    let sqlite = Sqlite::open(directory).await.unwrap().0;
    sqlite.commit(&Batch { put, ..Batch::default() }).await.unwrap();
}

async fn leads(replica: &mut Replica) {
    let leads = replica.decided.wait_for(|decided| decided.permit.is_some());
    timeout(LIMIT, leads).await.expect("it leads").unwrap();
}

/// Accuses App `miner`. Returns the state of its incident once that is persisted.
async fn accused(replica: &Replica, store: &FileStore) -> IncidentState {
    replica.accuse("miner").await;
    let state = |persisted: &Arc<PersistedState>| {
        let miner = persisted.incidents.values().find(|incident| &*incident.app.name == "miner")?;
        Some(miner.summary()?.state)
    };
    let mut shown = store.shown();
    let is_there = shown.wait_for(|persisted| state(persisted).is_some());
    let persisted = timeout(LIMIT, is_there).await.expect("an incident").unwrap();
    state(&persisted).unwrap()
}

/// Operators' releases, exemptions and pauses, and the Apps that a brake held, are lost with the file.
#[tokio::test]
async fn where_apps_are_blocked_and_the_state_file_is_new_nothing_new_is_blocked_until_resume() {
    let directory = tempfile::tempdir().unwrap();
    let (logged, _guard) = Logged::start();
    let store = open(directory.path()).await;
    let mut replica = Replica::with_file(store.clone(), vec![found("web")], true);
    leads(&mut replica).await;
    let enforcement = store.shown().borrow().enforcement.clone();
    assert_eq!((enforcement.mode, enforcement.by), (Some(Mode::Paused), after_loss().by));
    let reason = enforcement.reason.unwrap();
    assert!(reason.contains("`incidents --state watched`"), "{reason}");
    let lines = logged.lines();
    let alerts: Vec<_> = lines.iter().filter(|line| line.starts_with("ERROR")).collect();
    assert_eq!(alerts.len(), 1, "{lines:?}");
    for part in
        ["mode=\"paused\"", "alert=\"state\"", "`incidents --state watched`", "Release or exempt", "`resume`"]
    {
        assert!(alerts[0].contains(part), "{part}: {alerts:?}");
    }
    assert_eq!(accused(&replica, &store).await, IncidentState::Watched);
    assert_eq!(replica.blocked(), ["web"], "existing blocks stay");
    assert_eq!(replica.decided.borrow().plan.mode, Mode::Paused);

    let resumed = EnforcementSpec { mode: None, by: Some("alice".into()), reason: None };
    OperatorCommands::File(store.clone()).set_enforcement(&resumed).await.unwrap();
    let both = replica.decided.wait_for(|decided| decided.plan.blocks.len() == 2);
    timeout(LIMIT, both).await.expect("it enforces again").unwrap();
    assert_eq!(replica.blocked(), ["miner", "web"]);

    // An operator has set the mode since, so a later start goes on from there.
    drop((replica, store));
    let (reopened, mut replica) = again(directory.path()).await;
    leads(&mut replica).await;
    assert_eq!(reopened.shown().borrow().enforcement, resumed);
}

/// Opens the state in the same directory again, once the tasks that use it have ended.
async fn again(directory: &Path) -> (FileStore, Replica) {
    let opened = async {
        loop {
            match FileStore::open_with(directory, Some(after_loss())).await {
                Ok(store) => return store,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let store = timeout(LIMIT, opened).await.expect("the file is free");
    let replica = Replica::with_file(store.clone(), vec![found("web")], true);
    (store, replica)
}

/// The start on the new file may be killed before it can persist the pause, and an operator may have exempted then.
#[tokio::test]
async fn a_state_file_in_which_nothing_was_decided_yet_counts_as_new() {
    let exemption = ExemptionSpec { reason: "a contract".into(), ..ExemptionSpec::default() };
    for rows in [Vec::new(), vec![row(Kind::Exemption, "shop", &json!(exemption))]] {
        let directory = tempfile::tempdir().unwrap();
        file(directory.path(), rows).await;
        let store = open(directory.path()).await;
        let mut replica = Replica::with_file(store.clone(), vec![found("web")], true);
        leads(&mut replica).await;
        assert_eq!(store.shown().borrow().enforcement.mode, Some(Mode::Paused));
    }
}

#[tokio::test]
async fn a_first_start_where_no_app_is_blocked_enforces() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let mut replica = Replica::with_file(store.clone(), Vec::new(), true);
    leads(&mut replica).await;
    assert_eq!(store.shown().borrow().enforcement, EnforcementSpec::default());
    assert_eq!(accused(&replica, &store).await, IncidentState::Blocked);
}

#[tokio::test]
async fn a_state_file_with_decisions_or_a_declared_mode_goes_on_as_before() {
    let mut ended = body("shop", "Ended");
    ended["generation"] = 0.into();
    let incident = row(Kind::Incident, &name_of("shop"), &ended);
    let enforcement = row(Kind::Enforcement, "procscan", &json!({"by": "alice"}));
    for rows in [vec![incident], vec![enforcement]] {
        let directory = tempfile::tempdir().unwrap();
        file(directory.path(), rows.clone()).await;
        let store = open(directory.path()).await;
        let mut replica = Replica::with_file(store.clone(), vec![found("web")], true);
        leads(&mut replica).await;
        assert_eq!(store.shown().borrow().enforcement.mode, None, "{rows:?}");
        assert_eq!(accused(&replica, &store).await, IncidentState::Blocked, "{rows:?}");
    }
}
