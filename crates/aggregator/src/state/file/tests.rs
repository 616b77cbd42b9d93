//! The state file, with rows that another version has written.

use procscan_core::decision::Mode;
use procscan_core::names::App;
use procscan_core::state::incident::{Approval, Release};
use procscan_core::state::{IncidentSpec, IncidentStatus, Match};
use serde_json::Value;

use super::*;
use crate::kubernetes::WritePermit;
use crate::state::{Store, Unreadable};
use crate::telemetry::logged::Logged;

#[tokio::test]
async fn only_commands_that_are_done_are_removed_and_the_next_command_waits_for_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path()).await.unwrap();
    let at = Timestamp::UNIX_EPOCH;
    let status = json!({"state": "Held", "opened": at, "observed": 0});
    let mut status: IncidentStatus = serde_json::from_value(status).unwrap();
    let spec = IncidentSpec::of(&App::new("ns-a", "app", "web"));
    let save = |status: &IncidentStatus| {
        let incident = Incident { name: "a".to_owned(), spec: spec.clone(), status: status.clone() };
        store.save(vec![incident])
    };
    assert!(save(&status).await.is_empty());
    let alice = IncidentRequest::Approve(Approval { by: Some("alice".into()), reason: None });
    let bob = IncidentRequest::Release(Release { by: Some("bob".into()), ..Release::default() });
    assert_eq!(store.submit("a", &alice).await.unwrap(), 1);
    // Bob gives a command after the leader has read the first one, and before it has persisted that it is done.
    assert_eq!(store.submit("a", &bob).await.unwrap(), 2);
    status.observed = 1;
    assert!(save(&status).await.is_empty());
    store.remove_commands("a").await.unwrap();
    let incident = store.shown().borrow().incidents["a"].clone();
    let requested = incident.requested.as_deref().unwrap();
    assert!(requested.release.is_some() && requested.approve.is_some());
    status.observed = 2;
    assert!(save(&status).await.is_empty());
    store.remove_commands("a").await.unwrap();
    let incident = store.shown().borrow().incidents["a"].clone();
    assert!(incident.requested.is_none());
    assert_eq!(store.submit("a", &alice).await.unwrap(), 3);
}

fn row(kind: Kind, name: &str, body: &Value) -> Document {
    Document { kind, name: name.to_owned(), body: body.to_string() }
}

async fn file(directory: &Path, rows: Vec<Document>) {
    let sqlite = Sqlite::open(directory).await.unwrap().0;
    sqlite.commit(&Batch { put: rows, ..Batch::default() }).await.unwrap();
}

fn incident_of(app: &str, state: &str) -> Value {
    json!({
        "spec": {"app": {"namespace": "ns-a", "type": "app", "name": app}}, "generation": 0,
        "status": {"state": state, "opened": "2026-11-01T08:00:00Z"},
    })
}

fn exemption(namespace: &str) -> ExemptionSpec {
    let namespace = Some(Match::exact(namespace));
    ExemptionSpec { namespace, reason: "a contract".to_owned(), ..ExemptionSpec::default() }
}

#[tokio::test]
async fn rows_that_can_not_be_read_are_reported_and_stay_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let odd = [
        row(Kind::Exemption, "later", &json!({"namespace": {"glob": "ns-*"}, "reason": 5})),
        row(Kind::Incident, "later", &incident_of("web", "Quarantined")),
        row(Kind::Incident, "unknown", &json!({"of": "another shape"})),
    ];
    let good = [
        row(Kind::Exemption, "good", &json!(exemption("ns-b"))),
        row(Kind::Incident, "good", &incident_of("shop", "Held")),
    ];
    file(directory.path(), odd.iter().chain(&good).cloned().collect()).await;
    let store = FileStore::open(directory.path()).await.unwrap();
    let Loaded { incidents, unreadable } = store.load().await.unwrap();
    assert_eq!(incidents.iter().map(|it| &*it.name).collect::<Vec<_>>(), ["good"]);
    let apps = unreadable.iter().map(|(name, Unreadable { app, .. })| (&**name, app.clone()));
    assert_eq!(
        apps.collect::<Vec<_>>(),
        [("later", Some(App::new("ns-a", "app", "web"))), ("unknown", None)]
    );
    assert!(unreadable["later"].error.starts_with("status.state: unknown variant"), "{unreadable:?}");
    let state = store.shown().borrow().clone();
    assert!(state.is_complete && state.exemptions.len() == 1);
    assert_eq!(state.rules().1.len(), 1, "nothing new is blocked that it may cover");
    assert_eq!(state.unreadable().len(), 3);

    // Nothing overwrites them or takes their names.
    let written = incidents[0].clone();
    let over = Incident { name: "later".to_owned(), ..written.clone() };
    let failed = store.save(vec![over, written]).await;
    assert!(matches!(&failed[..], [(name, StateError::Unreadable(..))] if name == "later"), "{failed:?}");
    assert!(matches!(
        store.add_exemption("later", &exemption("ns-c")).await,
        Err(OperatorCommandError::Exists(..))
    ));
    let paused = EnforcementSpec { mode: Some(Mode::Paused), ..EnforcementSpec::default() };
    store.set_enforcement(&paused).await.unwrap();
    let rows = store.0.inner.lock().await.sqlite.clone().unwrap().load().await.unwrap();
    assert!(odd.iter().all(|row| rows.contains(row)), "{rows:?}");

    // They are also in the file that replaces a deleted one.
    std::fs::remove_file(directory.path().join("state.db")).unwrap();
    while store.set_enforcement(&paused).await.is_err() {}
    let rows = store.0.inner.lock().await.sqlite.clone().unwrap().load().await.unwrap();
    assert!(odd.iter().all(|row| rows.contains(row)), "{rows:?}");

    // An exemption can be removed by its name.
    store.remove_exemption("later", "alice").await.unwrap();
    let rows = store.0.inner.lock().await.sqlite.clone().unwrap().load().await.unwrap();
    assert!(!rows.contains(&odd[0]) && rows.contains(&odd[1]));
    assert!(store.shown().borrow().rules().1.is_empty());
}

#[tokio::test]
async fn while_the_mode_can_not_be_read_nothing_is_decided_until_operators_set_it_again() {
    let directory = tempfile::tempdir().unwrap();
    let odd = row(Kind::Enforcement, "procscan", &json!({"mode": "half"}));
    file(directory.path(), vec![odd, row(Kind::Incident, "good", &incident_of("shop", "Held"))]).await;
    let store = FileStore::open(directory.path()).await.unwrap();
    let error = store.load().await.unwrap_err().to_string();
    assert!(error.starts_with("Enforcement procscan can't be read: mode: unknown variant `half`"), "{error}");
    let state = store.shown().borrow().clone();
    assert!(!state.is_complete && !store.is_known() && state.incidents.len() == 1);
    // Another command of operators does not hide the error.
    store.add_exemption("other", &exemption("ns-b")).await.unwrap();
    assert!(!store.is_known());
    store
        .set_enforcement(&EnforcementSpec { mode: Some(Mode::Paused), ..EnforcementSpec::default() })
        .await
        .unwrap();
    assert!(store.is_known());
    assert_eq!(store.load().await.unwrap().incidents.len(), 1);
    assert_eq!(store.shown().borrow().enforcement.mode, Some(Mode::Paused));
}

/// The names of the incidents that the file has.
async fn names(directory: &Path) -> Vec<String> {
    let rows = Sqlite::open(directory).await.unwrap().0.load().await.unwrap();
    rows.into_iter().filter(|row| row.kind == Kind::Incident).map(|row| row.name).collect()
}

#[tokio::test]
async fn removed_incidents_are_gone_from_the_published_state_and_from_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let rows = ["a", "b", "c"].map(|name| row(Kind::Incident, name, &incident_of(name, "Ended")));
    file(directory.path(), rows.to_vec()).await;
    let store = FileStore::open(directory.path()).await.unwrap();
    assert!(!store.has_set_aside().await);
    store.remove(&["a".to_owned(), "c".to_owned(), "missing".to_owned()]).await.unwrap();
    assert_eq!(store.shown().borrow().incidents.keys().map(|name| &**name).collect::<Vec<_>>(), ["b"]);
    drop(store);
    assert_eq!(names(directory.path()).await, ["b"]);
}

fn paused() -> EnforcementSpec {
    EnforcementSpec { mode: Some(Mode::Paused), ..EnforcementSpec::default() }
}

/// Operators' pauses and releases are lost with a damaged file, so the service goes on paused until an operator sets
/// the mode. The same holds if the start that found the damage was killed before it could persist the pause.
#[tokio::test]
async fn after_damage_the_configured_mode_counts_until_operators_set_another() {
    for is_killed_first in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        file(path, vec![row(Kind::Incident, "a", &incident_of("a", "Held"))]).await;
        std::fs::write(path.join("state.db"), "not a database".repeat(1000)).unwrap();
        if is_killed_first {
            drop(Sqlite::open(path).await.unwrap());
        }
        let (logged, guard) = Logged::start();
        let store = FileStore::open_with(path, Some(paused())).await.unwrap();
        drop(guard);
        let lines = logged.lines();
        let alerts: Vec<_> = lines.iter().filter(|line| line.contains("mode=\"paused\"")).collect();
        assert_eq!(alerts.len(), 1, "{lines:?}");
        for part in ["what brakes held", "their window", "`incidents --state watched`", "Release or exempt"] {
            assert!(alerts[0].contains(part), "{alerts:?}");
        }
        assert_eq!(store.has_set_aside().await, !is_killed_first);
        assert_eq!(store.shown().borrow().enforcement, paused());
        drop(store);
        // It is in the file.
        let store = FileStore::open(path).await.unwrap();
        assert_eq!(store.shown().borrow().enforcement, paused());
        let resumed = EnforcementSpec { mode: Some(Mode::Enforce), ..EnforcementSpec::default() };
        store.set_enforcement(&resumed).await.unwrap();
        drop(store);
        let store = FileStore::open_with(path, Some(paused())).await.unwrap();
        assert_eq!(store.shown().borrow().enforcement, resumed, "an operator has set the mode");
    }
    // Without damage it never counts.
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open_with(directory.path(), Some(paused())).await.unwrap();
    assert_eq!(store.shown().borrow().enforcement, EnforcementSpec::default());
}

#[tokio::test]
async fn a_locked_or_newer_file_ends_the_start_and_any_other_error_is_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let first = FileStore::open(path).await.unwrap();
    let error = FileStore::open(path).await.unwrap_err().to_string();
    assert!(error.contains("it is in use by another process"), "{error}");
    drop(first);
    let database = path.join("state.db");
    rusqlite::Connection::open(&database).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
    let error = FileStore::open(path).await.unwrap_err().to_string();
    assert!(error.contains("a newer version of procscan-aggregator has written it"), "{error}");

    // A directory in its place, which an operator moves away.
    std::fs::remove_file(&database).unwrap();
    std::fs::create_dir(&database).unwrap();
    let store = FileStore::open(path).await.unwrap();
    assert!(!store.is_known() && !store.shown().borrow().is_complete);
    assert!(matches!(store.set_enforcement(&paused()).await, Err(OperatorCommandError::NotPersisted(_))));
    store.load().await.unwrap_err();
    std::fs::remove_dir(&database).unwrap();
    assert!(store.load().await.unwrap().incidents.is_empty());
    assert!(store.is_known());
    store.set_enforcement(&paused()).await.unwrap();
}

/// The leader's use of a file through [`Store`], from a start at which the disk was not ready.
#[tokio::test]
async fn a_store_reads_declarations_once_the_file_is_there_and_removes_old_entries() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let database = path.join("state.db");
    std::fs::create_dir(&database).unwrap();
    let file_store = FileStore::open(path).await.unwrap();
    let mut store = Store::File(file_store.clone());
    store.read_declarations().await.unwrap_err();
    assert!(!file_store.is_known());
    std::fs::remove_dir(&database).unwrap();
    store.read_declarations().await.unwrap();
    assert!(file_store.is_known());

    let permit = WritePermit::always();
    let at = |day: i64| Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_hours(24 * day);
    let decided = |day| json!({"at": at(day), "decision": "held", "actor": "policy", "reason": "too many"});
    let incidents = ["a", "b"].map(|name| {
        let status =
            json!({"state": "Ended", "opened": at(1), "decisions": [decided(1), decided(3)], "decided": 2});
        let spec = IncidentSpec::of(&App::new("ns-a", "app", name));
        Incident { name: name.to_owned(), spec, status: serde_json::from_value(status).unwrap() }
    });
    assert!(store.save(&permit, incidents.to_vec()).await.is_empty());
    assert_eq!(store.retain(at(2)).await.unwrap(), 2, "one entry of each");
    let filter = DecisionFilter { namespace: None, since: None, before: None, skip: 0, limit: 10 };
    let operator_commands = crate::state::OperatorCommands::File(file_store.clone());
    assert_eq!(operator_commands.logged(filter).await.unwrap().len(), 2);
    store.remove(&permit, &["a".to_owned()]).await.unwrap();
    let loaded = store.load(&permit, &PersistedState::default()).await.unwrap();
    assert_eq!(loaded.incidents, incidents[1..]);
    assert!(store.server_time().is_none() && store.next_look().is_none());
    // Declarations that are known already are not read from the file again.
    std::fs::remove_file(&database).unwrap();
    store.read_declarations().await.unwrap();

    // A copy has the same incidents, and never persists them.
    let mut copy = Store::Copy(incidents.to_vec());
    assert!(copy.save(&permit, Vec::new()).await.is_empty());
    assert_eq!(copy.load(&permit, &PersistedState::default()).await.unwrap().incidents, incidents);
    assert_eq!(copy.retain(at(9)).await.unwrap(), 0);
}

#[tokio::test]
async fn in_a_file_too_a_second_command_of_the_same_kind_is_refused_until_the_first_is_done() {
    let directory = tempfile::tempdir().unwrap();
    file(directory.path(), vec![row(Kind::Incident, "a", &incident_of("web", "Held"))]).await;
    let store = FileStore::open(directory.path()).await.unwrap();
    let approve = IncidentRequest::Approve(Approval { by: Some("alice".into()), reason: None });
    let release = IncidentRequest::Release(Release { by: Some("bob".into()), ..Release::default() });
    for (request, number) in [(&approve, 1), (&release, 2)] {
        assert_eq!(store.submit("a", request).await.unwrap(), number);
        assert!(matches!(store.submit("a", request).await, Err(OperatorCommandError::Busy(_))));
    }
    assert!(matches!(store.submit("missing", &approve).await, Err(OperatorCommandError::Unknown(..))));
    assert!(matches!(
        store.remove_exemption("missing", "alice").await,
        Err(OperatorCommandError::Unknown(..))
    ));
    store.add_exemption("vendor", &exemption("ns-a")).await.unwrap();
    assert!(matches!(
        store.add_exemption("vendor", &exemption("ns-b")).await,
        Err(OperatorCommandError::Exists(..))
    ));
    drop(store);
    let store = FileStore::open(directory.path()).await.unwrap();
    let state = store.shown().borrow().clone();
    let incident = &state.incidents["a"];
    let requested = incident.requested.as_deref().unwrap();
    assert_eq!(
        (incident.generation, requested.approve.is_some(), requested.release.is_some()),
        (2, true, true)
    );
    assert_eq!(state.exemptions["vendor"], exemption("ns-a"));
}
