//! Slow namespaces beside others.

use super::due::SLOW_LOOKUP;
use super::stage::{Stage, wait};
use super::*;

/// How many of 40 accused namespaces are judged after a time, if the Pods of `slow` of them take 14 s.
async fn judged(slow: usize, after: Duration) -> usize {
    let stage = Stage::new(40, 1000);
    let delays = (0..slow).map(|n| (format!("/ns-{n:05}/pods"), Duration::from_secs(14)));
    stage.server.store().slow = delays.collect();
    stage.accuse(false);
    tokio::time::sleep(after).await;
    stage.names[slow..].iter().filter(|namespace| stage.knows(namespace)).count()
}

#[tokio::test(start_paused = true)]
async fn a_slow_namespace_delays_no_other() {
    assert_eq!(judged(3, Duration::from_secs(1)).await, 37);
}

#[tokio::test(start_paused = true)]
async fn more_slow_namespaces_than_there_are_places_delay_the_others_for_some_seconds_only() {
    assert_eq!(judged(12, 2 * SLOW_LOOKUP).await, 28);
}

#[tokio::test(start_paused = true)]
async fn a_failed_lookup_is_reported_until_it_succeeds() {
    let stage = Stage::new(3, 1000);
    stage.server.store().refused = [("/ns-00001/pods".to_owned(), 503)].into();
    stage.accuse(false);
    wait(5).await;
    let error = || stage.status.borrow().error.clone();
    assert!(error().unwrap().contains("list pods in namespace ns-00001"), "{:?}", error());
    assert!(stage.knows(&"ns-00002".into()), "the others are known");
    stage.server.store().refused.clear();
    wait(70).await;
    assert_eq!(error(), None);
}
