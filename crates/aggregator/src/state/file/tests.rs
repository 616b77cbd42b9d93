//! The state file, with rows that another version has written.

use procscan_core::names::App;
use procscan_core::policy::Mode;
use procscan_core::state::incident::{Approval, Release};
use procscan_core::state::{IncidentSpec, IncidentStatus, Match};
use serde_json::Value;

use super::*;
use crate::state::Unreadable;

#[tokio::test]
async fn only_what_has_been_done_is_cleared_away_and_the_next_word_waits_for_nothing() {
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
    let alice = Want::Approve(Approval { by: Some("alice".into()), reason: None });
    let bob = Want::Release(Release { by: Some("bob".into()), ..Release::default() });
    assert_eq!(store.want("a", &alice).await.unwrap(), 1);
    // Bob acts after the leader has looked, and before it has kept what it did.
    assert_eq!(store.want("a", &bob).await.unwrap(), 2);
    status.observed = 1;
    assert!(save(&status).await.is_empty());
    store.clear_orders("a").await.unwrap();
    let kept = store.shown().borrow().incidents["a"].clone();
    assert!(kept.release.is_some() && kept.approve.is_some());
    status.observed = 2;
    assert!(save(&status).await.is_empty());
    store.clear_orders("a").await.unwrap();
    let kept = store.shown().borrow().incidents["a"].clone();
    assert!(kept.release.is_none() && kept.approve.is_none());
    assert_eq!(store.want("a", &alice).await.unwrap(), 3);
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
async fn rows_that_can_not_be_read_are_set_aside_and_stay_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let odd = [
        row(Kind::Exemption, "later", &json!({"namespace": {"glob": "ns-*"}, "reason": 5})),
        row(Kind::Incident, "later", &incident_of("web", "Quarantined")),
        row(Kind::Incident, "nobody's", &json!({"of": "another shape"})),
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
        [("later", Some(App::new("ns-a", "app", "web"))), ("nobody's", None)]
    );
    assert!(unreadable["later"].error.starts_with("status.state: unknown variant"), "{unreadable:?}");
    let kept = store.shown().borrow().clone();
    assert!(kept.is_complete && kept.exemptions.len() == 1);
    assert_eq!(kept.rules().1.len(), 1, "nothing new is blocked that it may cover");
    assert_eq!(kept.unreadable().len(), 3);

    // Nothing overwrites them or takes their names.
    let written = incidents[0].clone();
    let over = Incident { name: "later".to_owned(), ..written.clone() };
    let failed = store.save(vec![over, written]).await;
    assert!(matches!(&failed[..], [(name, StateError::Unreadable(..))] if name == "later"), "{failed:?}");
    assert!(matches!(store.exempt("later", &exemption("ns-c")).await, Err(DeskError::Exists(..))));
    let paused = EnforcementSpec { mode: Some(Mode::Paused), ..EnforcementSpec::default() };
    store.enforce(&paused).await.unwrap();
    let rows = store.0.inner.lock().await.sqlite.clone().unwrap().load().await.unwrap();
    assert!(odd.iter().all(|row| rows.contains(row)), "{rows:?}");

    // They are also in the file that replaces a deleted one.
    std::fs::remove_file(directory.path().join("state.db")).unwrap();
    while store.enforce(&paused).await.is_err() {}
    let rows = store.0.inner.lock().await.sqlite.clone().unwrap().load().await.unwrap();
    assert!(odd.iter().all(|row| rows.contains(row)), "{rows:?}");

    // An exemption can be removed by its name.
    store.withdraw("later").await.unwrap();
    let rows = store.0.inner.lock().await.sqlite.clone().unwrap().load().await.unwrap();
    assert!(!rows.contains(&odd[0]) && rows.contains(&odd[1]));
    assert!(store.shown().borrow().rules().1.is_empty());
}

#[tokio::test]
async fn while_it_can_not_be_read_what_operators_say_of_all_decisions_nothing_is_decided_until_they_say_it_anew()
 {
    let directory = tempfile::tempdir().unwrap();
    let odd = row(Kind::Enforcement, "procscan", &json!({"mode": "half"}));
    file(directory.path(), vec![odd, row(Kind::Incident, "good", &incident_of("shop", "Held"))]).await;
    let store = FileStore::open(directory.path()).await.unwrap();
    let error = store.load().await.unwrap_err().to_string();
    assert!(error.starts_with("Enforcement procscan can't be read: mode: unknown variant `half`"), "{error}");
    let kept = store.shown().borrow().clone();
    assert!(!kept.is_complete && !store.is_known() && kept.incidents.len() == 1);
    // Another act of operators does not hide the error.
    store.exempt("other", &exemption("ns-b")).await.unwrap();
    assert!(!store.is_known());
    store.enforce(&EnforcementSpec { mode: Some(Mode::Paused), ..EnforcementSpec::default() }).await.unwrap();
    assert!(store.is_known());
    assert_eq!(store.load().await.unwrap().incidents.len(), 1);
    assert_eq!(store.shown().borrow().enforcement.mode, Some(Mode::Paused));
}
