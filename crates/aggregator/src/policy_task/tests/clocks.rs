//! Starts under wall clocks that differ.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use procscan_core::state::incident::Approval;
use serde_json::json;
use tokio::time::sleep;

use super::stage::{INCIDENTS, Replica, Wanted, body, name_of};
use crate::state::Desk;
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
        let desk = Desk::Cluster(server.objects());
        for (term, days) in (1..).zip(starts) {
            let other = format!("other{term}");
            server.put(INCIDENTS, &name_of(&other), body(&other, "Held"));
            let network = Box::new(|_: &mut Store, _: &Call| Fault::None);
            let server_ahead = SignedDuration::from_hours(24 * days);
            let wanted = Wanted { is_watched: true, server_ahead, ..Wanted::new(term, network) };
            let replica = Replica::start(&server, wanted);
            sleep(Duration::from_secs(3)).await;
            // What this leader writes has the time of its clock.
            desk.approve(&name_of(&other), Approval { by: Some("alice".into()), reason: None })
                .await
                .unwrap();
            sleep(Duration::from_secs(3)).await;
            assert!(replica.blocked().contains(&other), "{:?}", replica.blocked());
            let web = server.get(INCIDENTS, &name_of("web")).unwrap();
            assert_eq!(web["status"]["state"], "Watched", "{starts:?} {term}: {web:#}");
        }
    }
}
