//! Incidents that are changed by hand, by a restored backup, or by another leader.

use std::time::Duration;

use procscan_core::state::incident::{Approval, Release};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::stage::{INCIDENTS, Replica, Setup, body, decisions, name_of};
use crate::state::OperatorCommands;
use crate::state::cluster::fake::{Call, Fault, Server, Store};
use crate::telemetry::logged::Logged;

async fn settle() {
    sleep(Duration::from_secs(3)).await;
}

/// A leader with one App that a brake held and an operator has approved.
async fn blocked() -> (Server, Replica, OperatorCommands) {
    let server = Server::default();
    server.put(INCIDENTS, &name_of("web"), body("web", "Held"));
    let network = Box::new(|_: &mut Store, _: &Call| Fault::None);
    let replica = Replica::start(&server, Setup { is_watched: true, ..Setup::new(3, network) });
    settle().await;
    let operator_commands = OperatorCommands::Cluster(server.objects());
    operator_commands
        .approve(&name_of("web"), Approval { by: Some("alice".into()), reason: None })
        .await
        .unwrap();
    settle().await;
    assert_eq!(replica.blocked(), ["web"]);
    (server, replica, operator_commands)
}

/// The status without the fields that differ in each write.
fn status(server: &Server) -> Value {
    let mut status = server.get(INCIDENTS, &name_of("web")).unwrap()["status"].clone();
    if let Some(fields) = status.as_object_mut() {
        fields.remove("clock");
        fields.remove("written");
        fields.remove("wallClock");
        fields.remove("observed");
    }
    status
}

/// Checks that an operator's release takes effect without a restart, whatever the object's generations are now.
async fn check_release(server: &Server, replica: &Replica, operator_commands: &OperatorCommands) {
    let release = Release { by: Some("bob".into()), ..Release::default() };
    operator_commands.release(&name_of("web"), release).await.unwrap();
    settle().await;
    assert!(replica.blocked().is_empty());
    let now = server.get(INCIDENTS, &name_of("web")).unwrap();
    assert_eq!(decisions(&now).last().unwrap(), "released by bob");
    assert!(now["spec"]["release"].is_null(), "{now:#}");
    assert_eq!(server.store().objects.len(), 1, "no second incident");
}

#[tokio::test(start_paused = true)]
async fn a_status_that_is_edited_wiped_or_spoilt_is_written_again() {
    let changes: [fn(&mut Value); 4] = [
        |object| object["status"] = json!({}),
        |object| object["status"]["state"] = "Watched".into(),
        |object| object["status"]["state"] = "Quarantined".into(),
        |object| object["status"]["releases"] = json!([{"until": "2099-01-01T00:00:00Z", "by": "bob"}]),
    ];
    for change in changes {
        let (server, replica, operator_commands) = blocked().await;
        let before = status(&server);
        let (logged, _guard) = Logged::start();
        server.edit(INCIDENTS, &name_of("web"), change);
        settle().await;
        assert_eq!(logged.count("was restored from a backup"), 0);
        assert_eq!(status(&server), before);
        assert_eq!(replica.blocked(), ["web"]);
        let writes = server.store().writes.len();
        sleep(Duration::from_mins(1)).await;
        assert_eq!(server.store().writes.len(), writes, "once");
        check_release(&server, &replica, &operator_commands).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_incident_that_is_deleted_is_made_again_and_operator_commands_work_as_before() {
    let (server, replica, operator_commands) = blocked().await;
    let before = status(&server);
    let (logged, _guard) = Logged::start();
    server.remove(INCIDENTS, &name_of("web"));
    settle().await;
    assert_eq!(status(&server), before);
    assert_eq!(logged.count("was restored from a backup"), 0);
    check_release(&server, &replica, &operator_commands).await;
}

/// The first change is compared with the objects that existed when the term began.
#[tokio::test(start_paused = true)]
async fn an_incident_that_is_deleted_as_the_first_change_of_a_term_is_made_again() {
    let server = Server::default();
    server.put(INCIDENTS, &name_of("web"), body("web", "Held"));
    let network = Box::new(|_: &mut Store, _: &Call| Fault::None);
    let replica = Replica::start(&server, Setup { is_watched: true, ..Setup::new(3, network) });
    settle().await;
    assert!(server.store().writes.is_empty(), "nothing has changed");
    let before = status(&server);
    server.remove(INCIDENTS, &name_of("web"));
    settle().await;
    let now = status(&server);
    for part in ["state", "brake", "evidence", "decisions"] {
        assert_eq!(now[part], before[part]);
    }
    let operator_commands = OperatorCommands::Cluster(server.objects());
    operator_commands
        .approve(&name_of("web"), Approval { by: Some("alice".into()), reason: None })
        .await
        .unwrap();
    settle().await;
    assert_eq!(replica.blocked(), ["web"]);
}

#[tokio::test(start_paused = true)]
async fn an_incident_that_is_replaced_by_force_is_written_again_and_the_command_in_its_spec_is_carried_out() {
    let (server, replica, _) = blocked().await;
    let mut object = body("web", "Held");
    object.as_object_mut().unwrap().remove("status");
    object["spec"]["release"] = json!({"by": "bob"});
    let (logged, _guard) = Logged::start();
    server.remove(INCIDENTS, &name_of("web"));
    server.put(INCIDENTS, &name_of("web"), object);
    settle().await;
    assert!(replica.blocked().is_empty());
    assert_eq!(logged.count("was restored from a backup"), 0);
    let now = server.get(INCIDENTS, &name_of("web")).unwrap();
    assert_eq!(decisions(&now).last().unwrap(), "released by bob");
}

#[tokio::test(start_paused = true)]
async fn a_restored_backup_is_overwritten_and_operator_commands_work_without_a_restart() {
    let server = Server::default();
    server.put(INCIDENTS, &name_of("web"), body("web", "Held"));
    let backup = server.backup();
    let network = Box::new(|_: &mut Store, _: &Call| Fault::None);
    let replica = Replica::start(&server, Setup { is_watched: true, ..Setup::new(3, network) });
    settle().await;
    let operator_commands = OperatorCommands::Cluster(server.objects());
    operator_commands
        .approve(&name_of("web"), Approval { by: Some("alice".into()), reason: None })
        .await
        .unwrap();
    settle().await;
    let before = status(&server);
    let (logged, _guard) = Logged::start();
    server.restore(backup);
    assert_eq!(status(&server)["state"], "Held");
    sleep(Duration::from_mins(1)).await;
    let lines: Vec<String> = logged.lines();
    let alerts: Vec<_> = lines.iter().filter(|line| line.contains("was restored from a backup")).collect();
    let [alert] = &alerts[..] else { panic!("{lines:?}") };
    for part in ["ERROR", "alert=\"state\"", "Exemptions", "`kubectl get exemptions,enforcements -n ours`"] {
        assert!(alert.contains(part), "{part}: {alert}");
    }
    assert_eq!(status(&server), before);
    let now = server.get(INCIDENTS, &name_of("web")).unwrap();
    assert!(now["status"]["observed"].as_i64() <= now["metadata"]["generation"].as_i64(), "{now:#}");
    assert_eq!(replica.blocked(), ["web"]);
    check_release(&server, &replica, &operator_commands).await;
}

/// The backup has no Incident of the App, which looks like a deletion. But the resourceVersions go back.
#[tokio::test(start_paused = true)]
async fn a_backup_from_before_an_incident_is_noticed_and_logged_once() {
    let server = Server::default();
    let backup = server.backup();
    for app in ["shop", "web"] {
        server.put(INCIDENTS, &name_of(app), body(app, "Held"));
    }
    let network = Box::new(|_: &mut Store, _: &Call| Fault::None);
    let replica = Replica::start(&server, Setup { is_watched: true, ..Setup::new(3, network) });
    settle().await;
    for app in ["shop", "web"] {
        server.edit(INCIDENTS, &name_of(app), |object| object["spec"]["approve"] = json!({"by": "alice"}));
        settle().await;
    }
    let (logged, _guard) = Logged::start();
    server.restore(backup);
    sleep(Duration::from_mins(1)).await;
    assert_eq!(replica.blocked(), ["shop", "web"]);
    assert_eq!(status(&server)["state"], "Blocked");
    assert_eq!(logged.count("the API server was restored from a backup"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_late_write_of_the_previous_leader_is_overwritten() {
    let (server, replica, _) = blocked().await;
    server.edit(INCIDENTS, &name_of("web"), |object| {
        object["status"]["state"] = "Watched".into();
        object["status"]["writer"] = "replica-2 in term 2".into();
    });
    settle().await;
    let now = status(&server);
    assert_eq!((&now["state"], &now["writer"]), (&json!("Blocked"), &json!("replica-3 in term 3")));
    assert_eq!(replica.blocked(), ["web"]);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_finds_the_mark_of_a_later_leader_stops_and_writes_nothing() {
    for mark in ["replica-4 in term 4", "replica-x in term 3"] {
        let (server, replica, _) = blocked().await;
        let permit = replica.decided.borrow().permit.clone().unwrap();
        server.edit(INCIDENTS, &name_of("web"), |object| {
            object["spec"]["release"] = json!({"by": "bob"});
            object["status"]["writer"] = mark.into();
        });
        let there = server.get(INCIDENTS, &name_of("web"));
        sleep(Duration::from_secs(30)).await;
        assert!(!permit.holds(), "{mark}");
        assert_eq!(server.get(INCIDENTS, &name_of("web")), there);
    }
}

/// An earlier incident of an App is known only from its object. So the object stays as it is, and is removed after
/// its retention.
#[tokio::test(start_paused = true)]
async fn an_earlier_incident_that_is_edited_stays_as_it_is_and_is_removed_after_its_retention() {
    let server = Server::default();
    server.put(INCIDENTS, &name_of("web"), body("web", "Held"));
    server.put(INCIDENTS, "earlier", body("web", "Ended"));
    let day_ago = json!(jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24));
    server.edit(INCIDENTS, "earlier", |object| {
        object["status"]["opened"] = "2025-01-01T00:00:00Z".into();
        object["status"]["since"] = day_ago.clone();
    });
    server.edit(INCIDENTS, &name_of("web"), |object| object["status"]["clock"] = day_ago);
    let network = Box::new(|_: &mut Store, _: &Call| Fault::None);
    let _replica = Replica::start(&server, Setup { is_watched: true, ..Setup::new(3, network) });
    settle().await;
    server.edit(INCIDENTS, "earlier", |object| object["status"]["since"] = "2025-01-02T00:00:00Z".into());
    let edited = server.get(INCIDENTS, "earlier");
    sleep(Duration::from_mins(1)).await;
    assert_eq!(server.get(INCIDENTS, "earlier"), edited);
    assert!(server.store().writes.is_empty());
    // The next clean-up is ten minutes after the first.
    sleep(Duration::from_mins(11)).await;
    server.edit(INCIDENTS, &name_of("web"), |object| object["spec"]["approve"] = json!({"by": "alice"}));
    settle().await;
    assert!(server.get(INCIDENTS, "earlier").is_none());
}
