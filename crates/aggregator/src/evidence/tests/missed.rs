//! Changes that a watch has not reported: nothing may be judged as if they had not happened.

use super::fake::pod;
use super::watching::{Stage, wait};
use super::*;

#[tokio::test(start_paused = true)]
async fn a_change_that_no_watch_reports_is_found_within_an_hour_without_a_burst_of_requests() {
    let stage = Stage::settled(500).await;
    // The watches miss it.
    stage.server.store().omit("pods", "ns-00007", "web", pod("2", "web", "n1"));
    let requests = stage.requests(wait(3700)).await;
    let fact = stage.fact("ns-00007");
    assert!(matches!(&fact.state, PodState::Present { uid, .. } if **uid == *"2"), "{fact:?}");
    assert!(requests < 60, "{requests}");
}
