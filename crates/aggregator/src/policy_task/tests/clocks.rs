//! Starts under wall clocks that differ, and the leader clock over stops and dry-run.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use procscan_core::state::incident::Approval;
use serde_json::json;
use tokio::time::sleep;

use super::stage::{INCIDENTS, Replica, Setup, body, name_of};
use crate::state::OperatorCommands;
use crate::state::cluster::fake::{Call, Fault, Server, Store};

#[tokio::test(start_paused = true)]
async fn an_exemption_lasts_through_starts_under_clocks_that_are_a_month_ahead() {
    // How many days the clock of each start is ahead.
    for starts in [[0, 31, 31, 0], [0, -3650, 3650, 3650], [0, 31, 31, 31]] {
        let server = Server::default();
        server.put(INCIDENTS, &name_of("web"), body("web", "Held"));
        let until = Timestamp::now() + SignedDuration::from_hours(2);
        let spec = json!({"app": {"exact": "web"}, "reason": "a contract", "until": until});
        server.put("exemptions", "one", json!({"metadata": {}, "spec": spec}));
        let operator_commands = OperatorCommands::Cluster(server.objects());
        for (term, days) in (1..).zip(starts) {
            let other = format!("other{term}");
            server.put(INCIDENTS, &name_of(&other), body(&other, "Held"));
            let network = Box::new(|_: &mut Store, _: &Call| Fault::None);
            let server_ahead = SignedDuration::from_hours(24 * days);
            let setup = Setup { is_watched: true, server_ahead, ..Setup::new(term, network) };
            let replica = Replica::start(&server, setup);
            sleep(Duration::from_secs(3)).await;
            // The writes of this leader have the time of its clock.
            operator_commands
                .approve(&name_of(&other), Approval { by: Some("alice".into()), reason: None })
                .await
                .unwrap();
            sleep(Duration::from_secs(3)).await;
            assert!(replica.blocked().contains(&other), "{:?}", replica.blocked());
            let web = server.get(INCIDENTS, &name_of("web")).unwrap();
            assert_eq!(web["status"]["state"], "Watched", "{starts:?} {term}: {web:#}");
        }
    }
}

/// The reading of the leader clock in the Incident of App `web`.
fn reading(server: &Server) -> Timestamp {
    let web = server.get(INCIDENTS, &name_of("web")).unwrap();
    web["status"]["clock"].as_str().unwrap_or_else(|| panic!("{web:#}")).parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_stop_and_dry_run_lose_none_of_the_time_that_the_leader_has_measured() {
    let server = Server::default();
    server.put(INCIDENTS, &name_of("web"), body("web", "Held"));
    server.put("enforcements", "procscan", json!({"metadata": {}, "spec": {"mode": "enforce"}}));
    let network = Box::new(|_: &mut Store, _: &Call| Fault::None);
    let replica = Replica::start(&server, Setup { is_watched: true, ..Setup::new(1, network) });
    let approve = || {
        server.edit(INCIDENTS, &name_of("web"), |object| object["spec"]["approve"] = json!({"by": "alice"}));
    };
    sleep(Duration::from_secs(3)).await;
    approve();
    sleep(Duration::from_secs(3)).await;
    let first = reading(&server);
    let set_mode = |mode: &'static str| {
        server.edit("enforcements", "procscan", |object| object["spec"]["mode"] = mode.into());
    };
    set_mode("dry-run");
    sleep(Duration::from_mins(20)).await;
    assert_eq!(reading(&server), first, "dry-run writes nothing");
    set_mode("enforce");
    sleep(Duration::from_secs(3)).await;
    approve();
    sleep(Duration::from_secs(3)).await;
    let measured = reading(&server).duration_since(first).as_secs();
    assert!((20 * 60..20 * 60 + 12).contains(&measured), "{measured} s over dry-run");
    let before = reading(&server);
    sleep(Duration::from_mins(7)).await;
    assert_eq!(reading(&server), before);
    replica.end().await;
    let measured = reading(&server).duration_since(before).as_secs();
    assert!((7 * 60..7 * 60 + 6).contains(&measured), "{measured} s until the stop");
}
