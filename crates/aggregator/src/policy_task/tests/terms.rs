//! A term from its beginning to its end: failed reads and writes, dry-run, ended incidents, and a replica that only
//! shows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hyper::Method;
use jiff::{SignedDuration, Timestamp};
use procscan_core::names::App;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::stage::{INCIDENTS, Replica, Setup, body, decisions, name_of, opened};
use crate::kubernetes::WritePermit;
use crate::leader::Leadership;
use crate::state::cluster::fake::{Call, Fault, Server, Store};
use crate::telemetry::logged::Logged;

async fn settle() {
    sleep(Duration::from_secs(3)).await;
}

fn watching(server: &Server) -> Replica {
    let network = Box::new(|_: &mut Store, _: &Call| Fault::None);
    Replica::start(server, Setup { is_watched: true, ..Setup::new(1, network) })
}

fn web(server: &Server) -> Value {
    server.get(INCIDENTS, &name_of("web")).unwrap()
}

fn approve(server: &Server) {
    server.edit(INCIDENTS, &name_of("web"), |object| object["spec"]["approve"] = json!({"by": "alice"}));
}

#[tokio::test(start_paused = true)]
async fn dry_run_writes_nothing_and_its_decisions_are_made_anew_when_operators_end_it() {
    let server = Server::default();
    server.put(INCIDENTS, &name_of("web"), body("web", "Held"));
    server.put("enforcements", "procscan", json!({"metadata": {}, "spec": {"mode": "dry-run"}}));
    let set_mode = |mode: &'static str| {
        server.edit("enforcements", "procscan", |object| object["spec"]["mode"] = mode.into());
    };
    let replica = watching(&server);
    settle().await;
    approve(&server);
    settle().await;
    assert!(server.store().writes.is_empty(), "{:?}", server.store().writes);
    assert!(server.store().events.is_empty());
    set_mode("enforce");
    settle().await;
    assert_eq!(replica.blocked(), ["web"]);
    let events: Vec<Value> = server.store().events.iter().map(|(_, event)| event["reason"].clone()).collect();
    assert!(events.contains(&json!("Approved")), "{events:?}");
    assert_eq!(
        (&web(&server)["status"]["state"], &web(&server)["spec"]["approve"]),
        (&json!("Blocked"), &json!(null))
    );
    set_mode("dry-run");
    settle().await;
    let writes = server.store().writes.len();
    server.edit(INCIDENTS, &name_of("web"), |object| object["spec"]["release"] = json!({"by": "bob"}));
    settle().await;
    assert_eq!(server.store().writes.len(), writes);
    set_mode("enforce");
    settle().await;
    assert!(replica.blocked().is_empty());
    assert_eq!(decisions(&web(&server)).last().unwrap(), "released by bob");
}

/// Counts the requests that `is_tried` selects within five minutes in which the API server refuses them.
async fn tries(server: &Server, is_tried: fn(&Call) -> bool) -> (Replica, usize, Arc<AtomicBool>) {
    let (count, refuses) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(true)));
    let (seen, flag) = (count.clone(), refuses.clone());
    let network = Box::new(move |_: &mut Store, call: &Call| {
        if !is_tried(call) || !flag.load(Ordering::Relaxed) {
            return Fault::None;
        }
        seen.fetch_add(1, Ordering::Relaxed);
        Fault::Refused(403)
    });
    let replica = Replica::start(server, Setup::new(1, network));
    replica.show_objects(server).await;
    sleep(Duration::from_mins(5)).await;
    let tried = count.load(Ordering::Relaxed);
    (replica, tried, refuses)
}

#[tokio::test(start_paused = true)]
async fn a_failed_read_is_tried_again_less_and_less_often_and_nothing_is_decided_before() {
    let server = Server::default();
    server.put(INCIDENTS, &name_of("web"), body("web", "Held"));
    approve(&server);
    let (replica, tried, refuses) = tries(&server, |call| call.method == Method::GET).await;
    assert!((15..=30).contains(&tried), "{tried} times in five minutes");
    let error = replica.error.borrow().clone().unwrap();
    assert!(error.ends_with("not today (403)"), "{error}");
    assert!(replica.decided.borrow().permit.is_none() && server.store().writes.is_empty());
    refuses.store(false, Ordering::Relaxed);
    sleep(Duration::from_secs(20)).await;
    assert_eq!((replica.blocked(), replica.error.borrow().clone()), (vec!["web".to_owned()], None));
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_is_tried_again_less_and_less_often_and_the_decision_has_no_effect_before() {
    let server = Server::default();
    server.put(INCIDENTS, &name_of("web"), body("web", "Held"));
    approve(&server);
    server.put(INCIDENTS, &name_of("shop"), body("shop", "Held"));
    let of_web = |call: &Call| call.is_status && call.name.as_deref() == Some(&*name_of("web"));
    let (replica, tried, refuses) = tries(&server, of_web).await;
    assert!((15..=40).contains(&tried), "{tried} times in five minutes");
    let error = replica.error.borrow().clone().unwrap();
    assert!(error.ends_with("not today (403)"), "{error}");
    assert!(replica.decided.borrow().permit.is_some() && replica.blocked().is_empty());
    // Other incidents do not wait for the next try.
    server.edit(INCIDENTS, &name_of("shop"), |object| object["spec"]["approve"] = json!({"by": "alice"}));
    replica.show_objects(&server).await;
    settle().await;
    assert_eq!(replica.blocked(), ["shop"]);
    refuses.store(false, Ordering::Relaxed);
    sleep(Duration::from_secs(20)).await;
    let both = vec!["shop".to_owned(), "web".to_owned()];
    assert_eq!((replica.blocked(), replica.error.borrow().clone()), (both, None));
}

#[tokio::test(start_paused = true)]
async fn a_term_that_ends_while_nothing_can_be_read_leaves_no_error_behind() {
    let server = Server::default();
    let network = Box::new(|_: &mut Store, _: &Call| Fault::Refused(403));
    let replica = Replica::start(&server, Setup::new(1, network));
    replica.show_objects(&server).await;
    sleep(Duration::from_mins(1)).await;
    assert!(replica.error.borrow().is_some());
    replica.leadership.send_modify(|leadership| {
        if let Leadership::Leading(permit) = leadership {
            permit.give_up();
        }
        *leadership = Leadership::Following { leader: Some("another".to_owned()) };
    });
    settle().await;
    assert_eq!(replica.error.borrow().clone(), None, "another replica's errors are its own");
}

#[tokio::test(start_paused = true)]
async fn a_command_on_an_ended_incident_is_refused_in_its_log_and_removed() {
    let server = Server::default();
    server.put(INCIDENTS, &name_of("web"), body("web", "Ended"));
    let replica = watching(&server);
    settle().await;
    assert!(server.store().writes.is_empty());
    server.edit(INCIDENTS, &name_of("web"), |object| object["spec"]["release"] = json!({"by": "bob"}));
    sleep(Duration::from_secs(10)).await;
    let now = web(&server);
    assert_eq!(decisions(&now), ["held by policy", "refused by bob"]);
    assert_eq!(now["status"]["decisions"][1]["reason"], "ns-a/app/web has no open incident");
    assert_eq!((&now["status"]["decided"], &now["status"]["observed"]), (&json!(2), &json!(2)));
    assert_eq!((&now["status"]["state"], &now["spec"]["release"]), (&json!("Ended"), &json!(null)));
    assert!(replica.blocked().is_empty());
    // It is written once.
    let writes = server.store().writes.len();
    sleep(Duration::from_mins(1)).await;
    assert_eq!(server.store().writes.len(), writes);
}

#[tokio::test(start_paused = true)]
async fn a_command_on_an_earlier_incident_of_an_app_is_refused_there_and_changes_nothing_of_the_current_one()
{
    let server = Server::default();
    server.put(INCIDENTS, &name_of("web"), body("web", "Blocked"));
    server.put(INCIDENTS, "earlier", body("web", "Ended"));
    server.edit(INCIDENTS, "earlier", |object| object["status"]["opened"] = "2026-10-01T08:00:00Z".into());
    let replica = watching(&server);
    settle().await;
    let before = web(&server)["status"].clone();
    server.edit(INCIDENTS, "earlier", |object| object["spec"]["release"] = json!({"by": "bob"}));
    sleep(Duration::from_secs(10)).await;
    let now = server.get(INCIDENTS, "earlier").unwrap();
    assert_eq!(decisions(&now), ["held by policy", "refused by bob"]);
    assert_eq!((&now["status"]["decided"], &now["status"]["observed"]), (&json!(2), &json!(2)));
    assert_eq!((&now["status"]["state"], &now["spec"]["release"]), (&json!("Ended"), &json!(null)));
    assert_eq!((replica.blocked(), web(&server)["status"].clone()), (vec!["web".to_owned()], before));
}

/// An operator gives both commands in one `kubectl edit`.
#[tokio::test(start_paused = true)]
async fn an_approval_and_a_release_in_one_edit_are_both_done_and_the_release_prevails() {
    let server = Server::default();
    server.put(INCIDENTS, &name_of("web"), body("web", "Held"));
    let replica = watching(&server);
    settle().await;
    server.edit(INCIDENTS, &name_of("web"), |object| {
        object["spec"]["approve"] = json!({"by": "alice"});
        object["spec"]["release"] = json!({"by": "bob"});
    });
    settle().await;
    let now = web(&server);
    let of_operators: Vec<_> = decisions(&now).into_iter().filter(|it| !it.ends_with("by policy")).collect();
    assert_eq!(of_operators.last().unwrap(), "released by bob", "{of_operators:?}");
    assert!(of_operators.iter().any(|it| it.ends_with("by alice")), "{of_operators:?}");
    assert_eq!((&now["spec"]["approve"], &now["spec"]["release"]), (&json!(null), &json!(null)));
    assert!(replica.blocked().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_incident_that_ended_longer_than_the_retention_ago_is_removed_unless_a_release_still_covers_it() {
    let server = Server::default();
    let old = |object: &mut Value| {
        for field in ["opened", "since"] {
            object["status"][field] = "2025-01-01T00:00:00Z".into();
        }
    };
    for (app, state) in [("held", "Held"), ("old", "Ended"), ("recent", "Ended"), ("released", "Ended")] {
        server.put(INCIDENTS, &name_of(app), body(app, state));
    }
    let hours_ago = |hours| json!(Timestamp::now() - SignedDuration::from_hours(hours));
    server.edit(INCIDENTS, &name_of("held"), |object| {
        object["status"]["clock"] = hours_ago(1);
        object["status"]["written"] = hours_ago(1);
    });
    server.edit(INCIDENTS, &name_of("recent"), |object| object["status"]["since"] = hours_ago(24));
    server.edit(INCIDENTS, &name_of("old"), old);
    server.edit(INCIDENTS, &name_of("released"), |object| {
        old(object);
        object["status"]["releases"] = json!([{"until": "2099-01-01T00:00:00Z", "by": "alice"}]);
    });
    let _replica = watching(&server);
    settle().await;
    let mut left: Vec<_> = ["held", "old", "recent", "released"].to_vec();
    left.retain(|app| server.get(INCIDENTS, &name_of(app)).is_some());
    assert_eq!(left, ["held", "recent", "released"]);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_does_not_lead_shows_the_persisted_state_and_requests_and_writes_nothing() {
    let server = Server::default();
    server.put(INCIDENTS, &name_of("web"), body("web", "Blocked"));
    server.put(INCIDENTS, &name_of("shop"), body("shop", "Held"));
    let replica = watching(&server);
    replica.follow();
    settle().await;
    let shown = || (replica.blocked(), replica.decided.borrow().permit.is_some());
    assert_eq!(shown(), (vec!["web".to_owned()], false));
    let held: Vec<_> = replica.decided.borrow().held.iter().map(|held| held.app.name.to_string()).collect();
    assert_eq!(held, ["shop"]);
    assert!(replica.lookups.borrow().apps.is_empty());
    assert_eq!(replica.lookups.borrow().epoch, 1, "nothing was requested before");
    server.edit(INCIDENTS, &name_of("web"), |object| object["status"]["state"] = "Ended".into());
    settle().await;
    assert_eq!(shown(), (Vec::new(), false));
    server.edit(INCIDENTS, &name_of("web"), |object| object["status"]["state"] = "Blocked".into());
    assert!(server.store().writes.is_empty());

    // A leader requests look-ups of the Apps with an incident. Answers of an earlier term do not count.
    let epoch = replica.lookups.borrow().epoch;
    let leads =
        |term| drop(replica.leadership.send(Leadership::Leading(WritePermit::of_term(term, "replica"))));
    leads(2);
    settle().await;
    assert_eq!(shown(), (vec!["web".to_owned()], true));
    let requests = replica.lookups.borrow().clone();
    assert!(requests.apps.contains_key(&App::new("ns-a", "app", "web")), "{requests:?}");
    assert_eq!(requests.epoch, epoch);
    replica.follow();
    settle().await;
    assert!(replica.lookups.borrow().apps.is_empty());
    assert_eq!(replica.lookups.borrow().epoch, epoch + 1);
    leads(3);
    settle().await;
    assert_eq!(replica.lookups.borrow().epoch, epoch + 1);
}

#[tokio::test(start_paused = true)]
async fn a_written_notice_is_persisted_once_and_not_in_dry_run() {
    for (mode, is_persisted) in [("enforce", true), ("dry-run", false)] {
        let server = Server::default();
        let mut blocked = body("web", "Blocked");
        blocked["status"]["told"] = json!({"at": opened(), "what": "Blocked"});
        server.put(INCIDENTS, &name_of("web"), blocked);
        server.put("enforcements", "procscan", json!({"metadata": {}, "spec": {"mode": mode}}));
        let replica = watching(&server);
        settle().await;
        assert!(server.store().writes.is_empty(), "{:?}", server.store().writes);
        let written = BTreeMap::from([(App::new("ns-a", "app", "web"), opened().into())]);
        replica.written.send_replace(Arc::new(written));
        settle().await;
        assert_eq!(
            !web(&server)["status"]["told"]["deliveredAt"].is_null(),
            is_persisted,
            "{:#}",
            web(&server)
        );
        let writes = server.store().writes.len();
        assert_eq!(writes, usize::from(is_persisted));
        sleep(Duration::from_mins(1)).await;
        assert_eq!(server.store().writes.len(), writes);
    }
}

/// An operator uses `kubectl edit` and gives no `by`.
#[tokio::test(start_paused = true)]
async fn a_command_without_an_operators_name_is_attributed_to_the_program_that_wrote_it() {
    let server = Server::default();
    server.put(INCIDENTS, &name_of("web"), body("web", "Held"));
    let _replica = watching(&server);
    settle().await;
    let entry = |manager: &str, minute: u32, subresource: &str, fields: Value| {
        json!({"manager": manager, "operation": "Update", "time": format!("2026-11-01T09:{minute:02}:00Z"),
               "subresource": subresource, "fieldsType": "FieldsV1", "fieldsV1": fields})
    };
    server.edit(INCIDENTS, &name_of("web"), |object| {
        object["spec"]["release"] = json!({});
        object["metadata"]["managedFields"] = json!([
            entry("argo", 1, "", json!({"f:spec": {"f:approve": {}}})),
            entry("kubectl-edit", 2, "", json!({"f:spec": {"f:release": {}}})),
            entry("kubectl-label", 3, "", json!({"f:metadata": {}})),
            entry("kubectl-apply", 4, "", json!({"f:spec": {"f:app": {}}})),
            entry("other", 5, "status", json!({"f:spec": {"f:release": {}}})),
        ]);
    });
    settle().await;
    assert_eq!(decisions(&web(&server)).last().unwrap(), "released by unknown (kubectl-edit)");
}

/// Operators have to know that the dates in incidents are not those of this replica's clock.
#[tokio::test(start_paused = true)]
async fn a_clock_that_differs_from_the_api_servers_raises_one_alert() {
    for (hours, is_wrong) in [(-240, true), (0, false), (240, true)] {
        let server = Server::default();
        server.put(INCIDENTS, &name_of("web"), body("web", "Held"));
        let network = Box::new(|_: &mut Store, _: &Call| Fault::None);
        let server_ahead = SignedDuration::from_hours(hours);
        let (logged, _guard) = Logged::start();
        let replica =
            Replica::start(&server, Setup { is_watched: true, server_ahead, ..Setup::new(1, network) });
        settle().await;
        approve(&server);
        settle().await;
        assert_eq!(replica.blocked(), ["web"]);
        assert_eq!(logged.count("differs from the API server's"), usize::from(is_wrong), "{hours}");
    }
}

#[tokio::test(start_paused = true)]
async fn other_rules_of_the_configuration_count_at_once_and_without_another_term() {
    let server = Server::default();
    server.put(INCIDENTS, &name_of("web"), body("web", "Blocked"));
    let replica = watching(&server);
    settle().await;
    assert_eq!(replica.blocked(), ["web"]);
    let writers = || web(&server)["status"]["writer"].clone();
    let before = writers();
    // The App's namespace may not be blocked any more.
    replica.policy.send_modify(|policy| Arc::make_mut(policy).protected.push("ns-a".to_owned()));
    settle().await;
    assert_eq!(replica.blocked(), Vec::<String>::new());
    assert_eq!(writers(), before);
}
