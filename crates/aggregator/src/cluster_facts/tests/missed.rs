//! Changes that a watch has not reported. No accusation may be judged as if they had not happened.

use serde_json::json;

use super::fake::pod;
use super::stage::{Stage, wait};
use super::*;

#[tokio::test(start_paused = true)]
async fn a_change_that_no_watch_reports_is_found_within_an_hour_without_a_burst_of_requests() {
    let stage = Stage::settled(500).await;
    // The watches miss it.
    stage.server.store().omit("pods", "ns-00007", "web", pod("2", "web", "n1"));
    let requests = stage.requests(wait(3700)).await;
    // One list of each kind a minute shows that the watches go on.
    let requests = requests - 5 * 3700 / 60;
    let fact = stage.fact("ns-00007");
    assert!(matches!(&fact.state, PodState::Present { uid, .. } if **uid == *"2"), "{fact:?}");
    assert!(requests < 60, "{requests}");
}

#[tokio::test(start_paused = true)]
async fn a_change_while_a_namespace_is_not_requested_during_a_lookup_is_not_missed() {
    let stage = Stage::settled(20).await;
    let ask = |with: bool| {
        let now = stage.clock.now();
        let mut requests = LookupRequests::default();
        for namespace in
            stage.names.iter().chain([&Text::from("ns-late")]).filter(|n| with || ***n != *"ns-late")
        {
            let pod = PodRef { namespace: namespace.clone(), pod: "web".into() };
            // A Pod that is not believed to be on n2 is disputed.
            requests.pods.insert(pod, AccusingNodes::one(NodeName::new("n2"), now));
        }
        stage.requests.send_replace(Arc::new(requests));
    };
    stage.server.put("namespaces", "", "ns-late", json!({}));
    stage.server.put("pods", "ns-late", "web", pod("1", "web", "n1"));
    stage.server.store().slow.insert("/ns-late/services".into(), Duration::from_secs(12));
    ask(true);
    wait(5).await;
    stage.server.store().slow.clear();
    ask(false);
    wait(1).await;
    // Now it runs where it is accused.
    stage.server.put("pods", "ns-late", "web", pod("2", "web", "n2"));
    wait(1).await;
    ask(true);
    for _ in 0..20 {
        wait(30).await;
        ask(true);
    }
    wait(120).await;
    let fact = stage.fact("ns-late");
    assert!(matches!(&fact.state, PodState::Present { uid, .. } if **uid == *"2"), "{fact:?}");
}

#[tokio::test(start_paused = true)]
async fn events_are_no_proof_that_everything_was_reported() {
    let stage = Stage::settled(20).await;
    stage.server.store().has_no_bookmarks = true;
    let last = stage.clock.now();
    wait(5).await;
    stage.accuse(true);
    // More events arrive, as of a backlog.
    for n in 0..40 {
        for kind in ["pods", "services", "ingresses", "httproutes"] {
            stage.server.put(kind, "ns-other", "web", json!({"metadata": {"uid": n.to_string()}}));
        }
        stage.server.put("namespaces", "", "ns-other", json!({"metadata": {"uid": n.to_string()}}));
        wait(1).await;
    }
    let fact = stage.fact("ns-00003");
    assert!(fact.asked.uptime() <= last.uptime(), "{fact:?} {last:?}");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_repeats_a_bookmark_is_no_proof() {
    let stage = Stage::settled(20).await;
    stage.server.store().stall();
    let stalled = stage.clock.now();
    // Another Pod of that name, which the watch does not report.
    stage.server.put("pods", "ns-00007", "web", pod("2", "web", "n2"));
    stage.accuse(true);
    for _ in 0..17 {
        wait(10).await;
        let fact = stage.fact("ns-00007");
        let is_old = matches!(&fact.state, PodState::Present { uid, .. } if **uid == *"1");
        assert!(!is_old || fact.asked.uptime() <= stalled.uptime(), "{fact:?} {stalled:?}");
    }
    wait(200).await;
    let fact = stage.fact("ns-00007");
    assert!(matches!(&fact.state, PodState::Present { uid, .. } if **uid == *"2"), "looked up: {fact:?}");
    assert!(!stage.status.borrow().is_watched);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_late_reports_only_earlier_states() {
    let stage = Stage::settled(20).await;
    stage.server.store().lag = Duration::from_secs(40);
    for minute in 0..6 {
        wait(17).await;
        let app = format!("web-{minute}");
        stage.server.put("pods", "ns-00007", "web", pod("1", &app, "n1"));
        let changed = stage.clock.now();
        for _ in 0..8 {
            stage.accuse(true);
            wait(10).await;
            let fact = stage.fact("ns-00007");
            let is_old = !matches!(&fact.state, PodState::Present { app: known, .. } if *known.name == *app);
            assert!(!is_old || fact.asked.uptime() <= changed.uptime(), "{fact:?} {changed:?}");
        }
    }
    assert!(stage.status.borrow().is_watched, "late, but not for long");
}
