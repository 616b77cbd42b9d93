//! Operator commands and declarations through the API, as the objects show them afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use hyper::Method;
use jiff::SignedDuration;
use procscan_core::decision::Mode;
use procscan_core::state::Match;

use super::*;
use crate::state::cluster::fake::{Call, Fault, NAMESPACE, Network, Server, Store};

const INCIDENTS: &str = "incidents";
const EXEMPTIONS: &str = "exemptions";
const ENFORCEMENTS: &str = "enforcements";

fn exemption() -> ExemptionSpec {
    let namespace = Some(Match::exact("ns-a"));
    ExemptionSpec { namespace, reason: "a contract".to_owned(), ..ExemptionSpec::default() }
}

fn approval() -> Approval {
    Approval { by: Some("alice".into()), reason: Some("seen".into()) }
}

fn commands_over(server: &Server, network: Network) -> OperatorCommands {
    OperatorCommands::Cluster(Objects::new(server.cluster_over(network), NAMESPACE.to_owned()))
}

fn operator_commands(server: &Server) -> OperatorCommands {
    OperatorCommands::Cluster(server.objects())
}

/// A network on which the API server refuses each write of `method` with `code`.
fn refusing(method: Method, code: u16) -> Network {
    Box::new(
        move |_: &mut Store, call: &Call| {
            if call.method == method { Fault::Refused(code) } else { Fault::None }
        },
    )
}

fn held(server: &Server, name: &str) {
    let app = json!({"namespace": "ns-a", "type": "app", "name": name});
    let status = json!({"state": "Held", "opened": "2026-11-01T08:00:00Z", "observed": 1});
    server.put(INCIDENTS, name, json!({"metadata": {}, "spec": {"app": app}, "status": status}));
}

/// In the path of a request, each of these names leads to another object or another request.
#[tokio::test]
async fn a_name_that_leads_elsewhere_is_refused_and_the_api_server_is_not_asked() {
    let server = Server::default();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let network: Network = Box::new(move |_: &mut Store, _: &Call| {
        counted.fetch_add(1, Ordering::Relaxed);
        Fault::None
    });
    let operator_commands = commands_over(&server, network);
    held(&server, "web");
    for name in ["../incidents/web", "web?dryRun=All", "web#", "..", "web/status"] {
        for error in [
            operator_commands.approve(name, approval()).await.unwrap_err(),
            operator_commands
                .release(name, Release { by: None, reason: None, until: None })
                .await
                .unwrap_err(),
            operator_commands.remove_exemption(name, "alice", None).await.unwrap_err(),
        ] {
            let part = format!("invalid name {name:?}: expected a Kubernetes name");
            assert!(matches!(&error, OperatorCommandError::Invalid(text) if text.contains(&part)), "{error}");
        }
    }
    assert_eq!(calls.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn an_exemption_is_declared_once_and_removed_by_its_name() {
    let server = Server::default();
    let operator_commands = operator_commands(&server);
    operator_commands.add_exemption("vendor", &exemption()).await.unwrap();
    let spec = json!({"namespace": {"exact": "ns-a"}, "reason": "a contract"});
    assert_eq!(server.get(EXEMPTIONS, "vendor").unwrap()["spec"], spec);
    let other = ExemptionSpec { reason: "another".to_owned(), ..exemption() };
    let error = operator_commands.add_exemption("vendor", &other).await.unwrap_err();
    assert_eq!(error.to_string(), "the exemption vendor exists already");
    assert!(matches!(error, OperatorCommandError::Exists(..)));
    assert_eq!(server.get(EXEMPTIONS, "vendor").unwrap()["spec"], spec);
    operator_commands.remove_exemption("vendor", "alice", None).await.unwrap();
    assert!(server.get(EXEMPTIONS, "vendor").is_none());
    let error = operator_commands.remove_exemption("vendor", "alice", None).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no exemption vendor");
    assert!(matches!(error, OperatorCommandError::Unknown(..)));
}

#[tokio::test]
async fn the_mode_is_written_to_one_object_and_absent_fields_are_removed_from_it() {
    let server = Server::default();
    let operator_commands = operator_commands(&server);
    let paused = EnforcementSpec {
        mode: Some(Mode::Paused),
        reason: Some("a migration".to_owned()),
        by: Some("alice".to_owned()),
    };
    operator_commands.set_enforcement(&paused).await.unwrap();
    let spec = json!({"mode": "paused", "reason": "a migration", "by": "alice"});
    assert_eq!(server.get(ENFORCEMENTS, "procscan").unwrap()["spec"], spec);
    let resumed = EnforcementSpec { by: Some("bob".to_owned()), ..EnforcementSpec::default() };
    operator_commands.set_enforcement(&resumed).await.unwrap();
    assert_eq!(server.get(ENFORCEMENTS, "procscan").unwrap()["spec"], json!({"by": "bob"}));
    assert_eq!(server.store().objects.len(), 1);
}

/// `kubectl get -o yaml --show-managed-fields` distinguishes changes through the API from changes by hand.
#[tokio::test]
async fn the_api_server_records_our_manager_with_each_command() {
    let server = Server::default();
    let operator_commands = operator_commands(&server);
    held(&server, "web");
    operator_commands.add_exemption("vendor", &exemption()).await.unwrap();
    operator_commands.set_enforcement(&EnforcementSpec::default()).await.unwrap();
    operator_commands
        .set_enforcement(&EnforcementSpec { mode: Some(Mode::Enforce), ..EnforcementSpec::default() })
        .await
        .unwrap();
    operator_commands.approve("web", approval()).await.unwrap();
    let writes = server.store().writes.clone();
    let by = |manager: &str| writes.iter().filter(|call| call.manager.as_deref() == Some(manager)).count();
    // One write for each of the four commands, and one for the Enforcement, which the first entry of the log needs.
    assert_eq!(by("procscan-aggregator"), 4 + 1, "{writes:?}");
    // With each entry, the API server notes the time for its manager, which must not be the manager of the mode.
    assert_eq!(by("procscan-aggregator-log"), writes.len() - 5, "{writes:?}");
}

/// If the API server refuses a command, the answer must not read as if the command were done.
#[tokio::test]
async fn a_command_that_the_api_server_refuses_is_not_persisted_and_the_operator_gets_the_reason() {
    let server = Server::default();
    held(&server, "web");
    let enforce = EnforcementSpec { mode: Some(Mode::Paused), ..EnforcementSpec::default() };
    let send = async |method: Method, code: u16| {
        let operator_commands = commands_over(&server, refusing(method.clone(), code));
        match method {
            Method::POST => {
                vec![
                    operator_commands.add_exemption("x", &exemption()).await,
                    operator_commands.set_enforcement(&enforce).await,
                ]
            }
            Method::PATCH => {
                vec![
                    operator_commands.set_enforcement(&enforce).await,
                    operator_commands.approve("web", approval()).await.map(drop),
                ]
            }
            Method::DELETE => vec![operator_commands.remove_exemption("x", "alice", None).await],
            _ => vec![operator_commands.approve("web", approval()).await.map(drop)],
        }
    };
    for method in [Method::POST, Method::PATCH, Method::DELETE, Method::GET] {
        for answer in send(method.clone(), 403).await {
            let error = answer.unwrap_err();
            assert!(matches!(error, OperatorCommandError::NotPersisted(_)), "{method}: {error:?}");
            assert!(error.to_string().ends_with("not today (403)"), "{method}: {error}");
        }
        for answer in send(method.clone(), 422).await {
            assert!(matches!(answer.unwrap_err(), OperatorCommandError::Invalid(_)), "{method}");
        }
    }
    assert!(server.store().writes.is_empty());
    let error = operator_commands(&server).approve("missing", approval()).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no incident missing");
}

/// A network on which another program writes each time between our read and our write.
fn busy(times: usize) -> (Network, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    let network = Box::new(move |store: &mut Store, call: &Call| {
        if call.method == Method::PATCH && seen.fetch_add(1, Ordering::Relaxed) < times {
            store.edit(INCIDENTS, "web", |object| object["metadata"]["annotations"] = json!({"x": "y"}));
        }
        Fault::None
    });
    (network, count)
}

#[tokio::test]
async fn a_command_is_tried_again_after_conflicts_with_another_program_but_not_for_ever() {
    let server = Server::default();
    held(&server, "web");
    let (network, patches) = busy(50);
    let error = commands_over(&server, network).approve("web", approval()).await.unwrap_err();
    assert!(matches!(error, OperatorCommandError::Busy(_)), "{error:?}");
    assert_eq!(patches.load(Ordering::Relaxed), MAX_RETRIES + 1);
    assert!(server.get(INCIDENTS, "web").unwrap()["spec"]["approve"].is_null());
    let (network, patches) = busy(MAX_RETRIES);
    // The number of the command: the generation.
    assert_eq!(commands_over(&server, network).approve("web", approval()).await.unwrap(), 2);
    assert_eq!(patches.load(Ordering::Relaxed), MAX_RETRIES + 1);
    let approve = json!({"by": "alice", "reason": "seen"});
    assert_eq!(server.get(INCIDENTS, "web").unwrap()["spec"]["approve"], approve);
}

#[tokio::test]
async fn a_second_command_of_the_same_kind_is_refused_until_the_first_is_done_and_one_of_another_kind_is_not()
{
    let server = Server::default();
    held(&server, "web");
    let operator_commands = operator_commands(&server);
    assert_eq!(operator_commands.approve("web", approval()).await.unwrap(), 2);
    let error = operator_commands
        .approve("web", Approval { by: Some("bob".into()), reason: None })
        .await
        .unwrap_err();
    assert!(matches!(error, OperatorCommandError::Busy(_)), "{error:?}");
    assert_eq!(
        operator_commands
            .release("web", Release { by: Some("bob".into()), ..Release::default() })
            .await
            .unwrap(),
        3
    );
    let error = operator_commands.release("web", Release::default()).await.unwrap_err();
    assert!(matches!(error, OperatorCommandError::Busy(_)), "{error:?}");
    let spec = server.get(INCIDENTS, "web").unwrap()["spec"].clone();
    assert_eq!((&spec["approve"]["by"], &spec["release"]["by"]), (&json!("alice"), &json!("bob")));
}

/// The API server's clock decides whether a date is too far ahead, because operators and all replicas mean the same
/// time by a date.
#[tokio::test]
async fn an_exemption_for_more_than_ten_years_by_the_api_servers_clock_is_refused() {
    let server = Server::default();
    let objects = server.objects();
    let days = |days: i64| SignedDuration::from_hours(24 * days);
    let server_time = Timestamp::now() - days(3650);
    objects.cluster.set_server_time(server_time);
    let operator_commands = OperatorCommands::Cluster(objects);
    assert!(operator_commands.wall_time().duration_since(server_time).abs() < days(1));
    let lasts = |time| ExemptionSpec { until: Some(server_time + time), ..exemption() };
    // By this replica's own clock it would be for two years.
    let error = operator_commands.add_exemption("long", &lasts(days(12 * 365))).await.unwrap_err();
    assert!(matches!(error, OperatorCommandError::Invalid(_)), "{error:?}");
    operator_commands.add_exemption("a-year", &lasts(days(365))).await.unwrap();
    assert!(server.get(EXEMPTIONS, "a-year").is_some() && server.get(EXEMPTIONS, "long").is_none());
}

#[tokio::test]
async fn a_process_that_persists_no_decisions_takes_no_commands() {
    let operator_commands = OperatorCommands::Unavailable;
    let answers = [
        operator_commands.approve("web", approval()).await.map(drop),
        operator_commands.release("web", Release::default()).await.map(drop),
        operator_commands.add_exemption("x", &exemption()).await,
        operator_commands.remove_exemption("x", "alice", None).await,
        operator_commands.set_enforcement(&EnforcementSpec::default()).await,
    ];
    for answer in answers {
        assert_eq!(answer.unwrap_err().to_string(), "this process takes no requests of operators");
    }
}

/// The log in the Enforcement: kind, exemption, actor.
fn log(server: &Server) -> Vec<[String; 3]> {
    let live = server.get(ENFORCEMENTS, "procscan").unwrap();
    let text = live["metadata"]["annotations"][LOG].as_str().unwrap();
    let entries: Vec<Value> = serde_json::from_str(text).unwrap();
    let text = |entry: &Value, member: &str| entry[member].as_str().unwrap_or_default().to_owned();
    entries.iter().map(|entry| ["decision", "exemption", "actor"].map(|member| text(entry, member))).collect()
}

fn paused() -> EnforcementSpec {
    let (reason, by) = (Some("a bad rule".to_owned()), Some("alice".to_owned()));
    EnforcementSpec { mode: Some(Mode::Paused), reason, by }
}

#[tokio::test]
async fn declarations_are_entered_into_the_log_of_the_enforcement() {
    let server = Server::default();
    let operator_commands = operator_commands(&server);
    let by_bob = ExemptionSpec { by: Some("bob".to_owned()), ..exemption() };
    // There is no Enforcement yet, and it has no mode when it is made for the log.
    operator_commands.add_exemption("vendor", &by_bob).await.unwrap();
    assert_eq!(server.get(ENFORCEMENTS, "procscan").unwrap()["spec"], json!({}));
    operator_commands.set_enforcement(&paused()).await.unwrap();
    operator_commands.remove_exemption("vendor", "alice", None).await.unwrap();
    operator_commands
        .set_enforcement(&EnforcementSpec { by: Some("bob".to_owned()), ..EnforcementSpec::default() })
        .await
        .unwrap();
    let expected = [
        ["exemption_made", "vendor", "bob"],
        ["paused", "", "alice"],
        ["exemption_removed", "vendor", "alice"],
        ["resumed", "", "bob"],
    ];
    assert_eq!(log(&server), expected.map(|entry| entry.map(str::to_owned)));
    assert!(server.get(ENFORCEMENTS, "procscan").unwrap()["spec"].get("mode").is_none());
}

#[tokio::test]
async fn the_log_has_a_bound_and_the_oldest_entries_are_removed() {
    let server = Server::default();
    let operator_commands = operator_commands(&server);
    let name = |n: usize| EnforcementSpec { by: Some(format!("alice-{n}")), ..paused() };
    for n in 0..MAX_LOG_ENTRIES + 2 {
        operator_commands.set_enforcement(&name(n)).await.unwrap();
    }
    let actors: Vec<String> = log(&server).into_iter().map(|[_, _, actor]| actor).collect();
    assert_eq!((actors.len(), &*actors[0]), (MAX_LOG_ENTRIES, "alice-2"));
    let long = Declaration::of_mode(
        &EnforcementSpec { reason: Some("x".repeat(MAX_LOG_BYTES / 3)), ..paused() },
        Timestamp::now(),
    );
    let text = with_entry(vec![long.clone(), long.clone(), long.clone()], &long);
    assert_eq!(serde_json::from_str::<Vec<Value>>(&text).unwrap().len(), 2);
}

#[test]
fn an_entry_that_comes_late_has_the_place_of_its_command() {
    let at = |second| Timestamp::from_second(second).unwrap();
    let (first, second) = (Declaration::of_mode(&paused(), at(1)), Declaration::of_mode(&paused(), at(2)));
    let text = with_entry(vec![second.clone()], &first);
    assert_eq!(serde_json::from_str::<Vec<Declaration>>(&text).unwrap(), [first, second]);
}

#[tokio::test]
async fn the_entry_of_the_mode_stays_in_the_log_whatever_follows() {
    let server = Server::default();
    let operator_commands = operator_commands(&server);
    operator_commands
        .set_enforcement(&EnforcementSpec { by: Some("bob".to_owned()), ..paused() })
        .await
        .unwrap();
    operator_commands.set_enforcement(&paused()).await.unwrap();
    for n in 0..MAX_LOG_ENTRIES + 2 {
        operator_commands.add_exemption(&format!("vendor-{n}"), &exemption()).await.unwrap();
    }
    let log = log(&server);
    let modes: Vec<&[String; 3]> = log.iter().filter(|[decision, ..]| decision == "paused").collect();
    assert_eq!((log.len(), modes), (MAX_LOG_ENTRIES, vec![&["paused", "", "alice"].map(str::to_owned)]));
    assert_eq!(log[MAX_LOG_ENTRIES - 1][1], format!("vendor-{}", MAX_LOG_ENTRIES + 1));
}

/// The server carries out the request, and the client disconnects before it gets the answer.
#[tokio::test]
async fn a_command_whose_client_has_disconnected_is_carried_out_and_logged() {
    let server = Server::default();
    server.put(EXEMPTIONS, "vendor", json!({"metadata": {}, "spec": exemption()}));
    let (sender, deleted) = tokio::sync::oneshot::channel();
    let mut sender = Some(sender);
    let network: Network = Box::new(move |_: &mut Store, call: &Call| {
        if call.method == Method::DELETE {
            sender.take().unwrap().send(()).unwrap();
        }
        Fault::None
    });
    let operator_commands = commands_over(&server, network);
    tokio::select! {
        biased;
        received = deleted => received.unwrap(),
        _ = operator_commands.remove_exemption("vendor", "alice", None) => panic!("the client waits"),
    }
    assert!(server.get(EXEMPTIONS, "vendor").is_none());
    let is_logged =
        || server.get(ENFORCEMENTS, "procscan").is_some_and(|it| it["metadata"]["annotations"].is_object());
    for _ in 0..10_000 {
        if is_logged() {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(log(&server), [["exemption_removed", "vendor", "alice"].map(str::to_owned)]);
}

#[tokio::test]
async fn a_command_whose_client_has_disconnected_is_carried_out_in_a_file_too() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path()).await.unwrap();
    let operator_commands = OperatorCommands::File(store.clone());
    let held = store.hold().await;
    assert!(operator_commands.add_exemption("vendor", &exemption()).now_or_never().is_none());
    drop(held);
    operator_commands.remove_exemption("vendor", "alice", None).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_command_is_answered_although_its_entry_can_not_be_made_in_time() {
    let server = Server::default();
    server.put(ENFORCEMENTS, "procscan", json!({"metadata": {}, "spec": {}}));
    let mut patches = 0;
    let network: Network = Box::new(move |_: &mut Store, call: &Call| {
        patches += usize::from(call.method == Method::PATCH);
        if patches > 1 { Fault::Lost } else { Fault::None }
    });
    let begun = tokio::time::Instant::now();
    commands_over(&server, network).set_enforcement(&paused()).await.unwrap();
    assert!(begun.elapsed() <= std::time::Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(server.get(ENFORCEMENTS, "procscan").unwrap()["spec"]["mode"], "paused");
}

#[tokio::test]
async fn an_entry_waits_for_other_writers_and_its_loss_undoes_nothing() {
    let server = Server::default();
    let mut others = 0;
    let network: Network = Box::new(move |store: &mut Store, call: &Call| {
        // Another replica enters something between the read and the write.
        if call.method == Method::PATCH && call.plural == ENFORCEMENTS && others < 2 {
            others += 1;
            if others == 2 {
                store.edit(ENFORCEMENTS, "procscan", |object| {
                    object["metadata"]["labels"] = json!({"a": "b"});
                });
            }
        }
        Fault::None
    });
    server.put(ENFORCEMENTS, "procscan", json!({"metadata": {}, "spec": {}}));
    commands_over(&server, network).add_exemption("vendor", &exemption()).await.unwrap();
    assert_eq!(log(&server).len(), 1);

    commands_over(&server, refusing(Method::PATCH, 403)).add_exemption("other", &exemption()).await.unwrap();
    assert!(server.get(EXEMPTIONS, "other").is_some());
    assert_eq!(log(&server).len(), 1, "the exemption counts, and its entry is lost");
}
