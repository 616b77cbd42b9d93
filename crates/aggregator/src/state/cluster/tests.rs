//! The leader's writes, as the API server answers them: conflicts, deletions, refusals, and writes of others in
//! between.

mod watched;

use std::time::Duration;

use hyper::Method;
use procscan_core::decision::{Actor, DecisionKind};
use serde_json::json;
use tokio::time::sleep;

use super::fake::{Call, Fault, NAMESPACE, Network, Server, Store};
use super::*;
use crate::telemetry::logged::Logged;

const INCIDENTS: &str = "incidents";

fn store_over(server: &Server, network: Network) -> ClusterStore {
    ClusterStore::new(Objects::new(server.cluster_over(network), NAMESPACE.to_owned()), None)
}

fn object(name: &str, state: &str) -> Value {
    let at = "2026-11-01T08:00:00Z";
    json!({
        "metadata": {},
        "spec": {"app": {"namespace": "ns-a", "type": "app", "name": name}},
        "status": {"state": state, "opened": at, "since": at, "observed": 1, "writer": "old in term 1"},
    })
}

fn incident(name: &str, state: &str) -> Incident {
    let object = object(name, state);
    let read = |part: &str| object[part].clone();
    Incident {
        name: name.to_owned(),
        spec: serde_json::from_value(read("spec")).unwrap(),
        status: serde_json::from_value(read("status")).unwrap(),
    }
}

/// A leader that has read all incidents, over `network`.
async fn leader(server: &Server, permit: &WritePermit, network: Network) -> ClusterStore {
    let mut store = store_over(server, network);
    store.load(permit, &PersistedState::default()).await.unwrap();
    store
}

fn good() -> Network {
    Box::new(|_: &mut Store, _: &Call| Fault::None)
}

fn refusing(method: Method, code: u16) -> Network {
    Box::new(
        move |_: &mut Store, call: &Call| {
            if call.method == method { Fault::Refused(code) } else { Fault::None }
        },
    )
}

fn names(server: &Server) -> Vec<String> {
    server.store().objects.keys().map(|(_, name)| name.clone()).collect()
}

#[tokio::test]
async fn ended_incidents_are_removed_only_in_the_version_that_the_leader_knows() {
    let server = Server::default();
    for name in ["requested", "gone", "over", "stays"] {
        server.put(INCIDENTS, name, object(name, "Ended"));
    }
    let permit = WritePermit::of_term(2, "a");
    let mut store = leader(&server, &permit, good()).await;
    // An operator has given a command since, and another incident is removed already.
    server.edit(INCIDENTS, "requested", |object| object["spec"]["release"] = json!({"by": "bob"}));
    server.remove(INCIDENTS, "gone");
    let over = ["requested", "gone", "over"].map(str::to_owned);
    store.remove(&permit, &over).await.unwrap();
    assert_eq!(names(&server), ["requested", "stays"]);

    let mut store = leader(&server, &permit, refusing(Method::DELETE, 403)).await;
    let error = store.remove(&permit, &["stays".to_owned()]).await.unwrap_err();
    assert!(error.to_string().ends_with("not today (403)"), "{error}");
    let mut store = leader(&server, &permit, good()).await;
    permit.give_up();
    assert!(store.remove(&permit, &["stays".to_owned()]).await.unwrap_err().is_lost());
    assert_eq!(names(&server), ["requested", "stays"]);
}

#[tokio::test]
async fn a_command_is_removed_only_if_it_is_still_the_one_that_was_carried_out() {
    let server = Server::default();
    let permit = WritePermit::of_term(2, "a");
    let release = |by: &'static str| move |object: &mut Value| object["spec"]["release"] = json!({"by": by});
    for name in ["cleared", "changed", "gone", "refused"] {
        server.put(INCIDENTS, name, object(name, "Blocked"));
        server.edit(INCIDENTS, name, release("alice"));
        server.edit(INCIDENTS, name, |object| object["status"]["observed"] = 2.into());
    }
    let mut store = leader(&server, &permit, good()).await;
    server.edit(INCIDENTS, "changed", release("bob"));
    server.remove(INCIDENTS, "gone");
    for name in ["cleared", "changed", "gone", "missing"] {
        store.remove_commands(&permit, name).await.unwrap();
    }
    assert!(server.get(INCIDENTS, "cleared").unwrap()["spec"]["release"].is_null());
    assert_eq!(server.get(INCIDENTS, "changed").unwrap()["spec"]["release"]["by"], "bob");
    let mut store = leader(&server, &permit, refusing(Method::PATCH, 403)).await;
    let error = store.remove_commands(&permit, "refused").await.unwrap_err();
    assert!(error.to_string().ends_with("not today (403)"), "{error}");
    assert_eq!(server.get(INCIDENTS, "refused").unwrap()["spec"]["release"]["by"], "alice");
}

/// The object exists, and the leader does not know it. Its program crashed before the first status, or a previous
/// leader made it.
#[tokio::test]
async fn an_incident_that_another_program_has_made_meanwhile_is_overwritten_unless_by_a_later_leader() {
    let server = Server::default();
    let permit = WritePermit::of_term(2, "a");
    let mut store = leader(&server, &permit, good()).await;
    for (name, writer) in [("earlier", "b in term 1"), ("own", "a in term 2"), ("later", "b in term 3")] {
        server.put(INCIDENTS, name, object(name, "Watched"));
        server.edit(INCIDENTS, name, |object| object["status"]["writer"] = writer.into());
    }
    let failed = store.save(&permit, vec![incident("earlier", "Blocked"), incident("own", "Blocked")]).await;
    assert!(failed.is_empty(), "{failed:?}");
    for name in ["earlier", "own"] {
        let status = server.get(INCIDENTS, name).unwrap()["status"].clone();
        assert_eq!((&status["state"], &status["writer"]), (&json!("Blocked"), &json!("a in term 2")));
    }
    assert!(permit.holds());
    let failed = store.save(&permit, vec![incident("later", "Blocked")]).await;
    let [(name, error)] = &failed[..] else { panic!("{failed:?}") };
    assert_eq!(name, "later");
    let text = "Incident later was written by b in term 3, a later leader: this replica stops leading";
    assert!(error.is_lost() && error.to_string() == text, "{error}");
    assert!(!permit.holds());
    assert_eq!(server.get(INCIDENTS, "later").unwrap()["status"]["state"], "Watched");
}

#[tokio::test]
async fn an_incident_that_can_not_be_made_is_refused_with_the_reason_and_the_others_are_persisted() {
    let server = Server::default();
    let permit = WritePermit::of_term(2, "a");
    let network = Box::new(|_: &mut Store, call: &Call| match call.method {
        Method::POST => Fault::Refused(403),
        _ => Fault::None,
    });
    server.put(INCIDENTS, "known", object("known", "Held"));
    let mut store = leader(&server, &permit, network).await;
    let failed = store.save(&permit, vec![incident("new", "Held"), incident("known", "Blocked")]).await;
    let [(name, error)] = &failed[..] else { panic!("{failed:?}") };
    assert!(name == "new" && error.to_string().ends_with("not today (403)"), "{error}");
    assert!(!error.is_lost() && !error.is_outdated());
    assert_eq!(server.get(INCIDENTS, "known").unwrap()["status"]["state"], "Blocked");
}

/// Another program that writes the same object again and again.
#[tokio::test]
async fn an_incident_that_changes_before_each_write_is_contended_and_everything_is_read_again() {
    let server = Server::default();
    server.put(INCIDENTS, "web", object("web", "Held"));
    let permit = WritePermit::of_term(2, "a");
    let network = Box::new(|store: &mut Store, call: &Call| {
        if call.method == Method::PUT && call.is_status {
            store.edit(INCIDENTS, "web", |object| object["metadata"]["annotations"] = json!({"x": "y"}));
        }
        Fault::None
    });
    let mut store = leader(&server, &permit, network).await;
    let failed = store.save(&permit, vec![incident("web", "Blocked")]).await;
    let [(_, error)] = &failed[..] else { panic!("{failed:?}") };
    assert!(error.is_outdated() && !error.is_lost(), "{error}");
    assert_eq!(error.to_string(), "Incident web is being written by another replica");
}

#[tokio::test]
async fn a_new_leader_skips_an_incident_that_is_deleted_meanwhile_and_any_other_refusal_is_an_error() {
    let server = Server::default();
    for name in ["a", "b"] {
        server.put(INCIDENTS, name, object(name, "Held"));
    }
    let permit = WritePermit::of_term(2, "a");
    let network = Box::new(|store: &mut Store, call: &Call| {
        if call.name.as_deref() == Some("a") {
            store.remove(INCIDENTS, "a");
        }
        Fault::None
    });
    let loaded = store_over(&server, network).load(&permit, &PersistedState::default()).await.unwrap();
    assert_eq!(loaded.incidents.iter().map(|it| &*it.name).collect::<Vec<_>>(), ["b"]);
    let network = Box::new(|_: &mut Store, call: &Call| match call.name.as_deref() {
        Some("b") => Fault::Refused(403),
        _ => Fault::None,
    });
    let error = store_over(&server, network).load(&permit, &PersistedState::default()).await.unwrap_err();
    assert!(error.to_string().ends_with("not today (403)"), "{error}");
}

/// The program that made the first one ended before it decided anything; the status of the second one was wiped.
#[tokio::test]
async fn an_incident_without_a_status_is_skipped_unless_the_api_server_knows_that_it_had_one() {
    let server = Server::default();
    for name in ["begun", "wiped"] {
        let mut object = object(name, "Held");
        object.as_object_mut().unwrap().remove("status");
        server.put(INCIDENTS, name, object);
    }
    server.edit(INCIDENTS, "wiped", |object| {
        object["metadata"]["managedFields"] =
            json!([{"manager": "x", "operation": "Update", "subresource": "status"}]);
    });
    let loaded = store_over(&server, good())
        .load(&WritePermit::of_term(2, "a"), &PersistedState::default())
        .await
        .unwrap();
    assert!(loaded.incidents.is_empty());
    let unreadable: Vec<_> = loaded.unreadable.iter().map(|(name, it)| (&**name, &*it.error)).collect();
    assert_eq!(unreadable, [("wiped", "its status was written, and is gone")]);
}

/// `kubectl get -o yaml --show-managed-fields` distinguishes the leader's writes from those of others.
#[tokio::test(start_paused = true)]
async fn the_api_server_records_that_the_leader_has_written() {
    let server = Server::default();
    let permit = WritePermit::of_term(2, "a");
    let mut store = leader(&server, &permit, good()).await;
    store.save(&permit, vec![incident("web", "Held")]).await;
    server.edit(INCIDENTS, "web", |object| object["spec"]["approve"] = json!({"by": "alice"}));
    let mut done = incident("web", "Blocked");
    done.status.observed = 2;
    store.save(&permit, vec![done]).await;
    store.remove_commands(&permit, "web").await.unwrap();
    store.announce(&permit, &[("web".to_owned(), decision(DecisionKind::Blocked, "too many"))]);
    sleep(Duration::from_secs(1)).await;
    let store = server.store();
    let kinds: Vec<_> = store.writes.iter().map(|call| (call.method.as_str(), call.is_status)).collect();
    assert_eq!(kinds, [("POST", false), ("PUT", true), ("PUT", true), ("PATCH", false)]);
    let managers = store.writes.iter().map(|call| &call.manager).chain(store.events.iter().map(|(by, _)| by));
    assert!(managers.clone().all(|by| by.as_deref() == Some("procscan-aggregator")));
    assert_eq!(managers.count(), 5);
}

fn decision(kind: DecisionKind, reason: &str) -> Decision {
    Decision {
        at: "2026-11-01T08:00:00.5Z".parse().unwrap(),
        app: procscan_core::names::App::new("ns-a", "app", "web"),
        kind,
        actor: Actor::Policy,
        reason: reason.into(),
        dry_run: false,
    }
}

/// The Events that `kubectl describe` shows of an Incident, and that alerting reads.
#[tokio::test(start_paused = true)]
async fn each_decision_is_an_event_of_its_incident_until_the_permit_is_lost() {
    let server = Server::default();
    server.put(INCIDENTS, "web", object("web", "Held"));
    let permit = WritePermit::of_term(2, "a");
    let store = leader(&server, &permit, good()).await;
    let announce =
        |name: &str, kind| store.announce(&permit, &[(name.to_owned(), decision(kind, "too many"))]);
    for kind in [DecisionKind::Blocked, DecisionKind::ReleaseHeld, DecisionKind::Released] {
        announce("web", kind);
    }
    announce("unknown", DecisionKind::Blocked);
    sleep(Duration::from_secs(1)).await;
    let events: Vec<Value> = server.store().events.iter().map(|(_, event)| event.clone()).collect();
    let kinds: Vec<_> = events.iter().map(|event| (&event["reason"], &event["type"])).collect();
    let (warning, normal) = (json!("Warning"), json!("Normal"));
    assert_eq!(
        kinds,
        [(&json!("Blocked"), &warning), (&json!("ReleaseHeld"), &warning), (&json!("Released"), &normal)]
    );
    let of = json!({"apiVersion": "procscan.sealos.io/v1alpha1", "kind": "Incident", "name": "web",
                    "namespace": NAMESPACE, "uid": "uid-1"});
    assert_eq!(events[0]["regarding"], of);
    assert_eq!(events[0]["note"], "policy: too many");
    let fields =
        ["action", "reportingController", "eventTime"].map(|field| events[1][field].as_str().unwrap());
    assert_eq!(fields, ["ReleaseHeld", "procscan.sealos.io/aggregator", "2026-11-01T08:00:00.500000Z"]);
    assert_eq!(events[0]["metadata"]["namespace"], NAMESPACE);
    assert!(events[0]["metadata"]["name"].as_str().unwrap().starts_with("web."));
    assert_eq!(events[0]["reportingInstance"], "a");

    // Events that wait when the permit is lost are not written.
    announce("web", DecisionKind::Blocked);
    permit.give_up();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(server.store().events.len(), 3);
}

/// No write waits for Events, because the decision itself is persisted in the Incident.
#[tokio::test(start_paused = true)]
async fn events_that_are_refused_or_too_many_are_lost_and_later_ones_are_written() {
    let server = Server::default();
    server.put(INCIDENTS, "web", object("web", "Held"));
    let permit = WritePermit::of_term(2, "a");
    let mut left = 3;
    let network = Box::new(move |_: &mut Store, call: &Call| {
        let is_refused = call.plural == "events" && left > 0;
        left -= usize::from(is_refused);
        if is_refused { Fault::Refused(403) } else { Fault::None }
    });
    let (logged, _guard) = Logged::start();
    let store = leader(&server, &permit, network).await;
    let one = |n: usize| ("web".to_owned(), decision(DecisionKind::Blocked, &format!("{n}")));
    let many: Vec<_> = (0..1000).map(one).collect();
    store.announce(&permit, &many);
    sleep(Duration::from_mins(1)).await;
    let written = server.store().events.len();
    assert!((100..1000).contains(&written), "{written}");
    let lines = logged.lines();
    let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    assert_eq!(count("Events of decisions can't be written; the decisions are persisted nevertheless"), 1);
    assert_eq!(count("Events of decisions can be written again"), 1);
    assert_eq!(
        count(&format!(
            "too many decisions at once for Events; they are persisted in their Incidents lost={}",
            1000 - 3 - written
        )),
        1
    );
    store.announce(&permit, &[one(1000)]);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(server.store().events.last().unwrap().1["note"], "policy: 1000");
    // A lost permit is no error of the Events.
    store.announce(&permit, &[one(1001)]);
    permit.give_up();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(logged.count("Events"), 0);
}
