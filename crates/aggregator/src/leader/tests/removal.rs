use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::fake::{Network, Replica, Server};
use crate::kubernetes::Cluster;
use crate::leader::removal::{RemovalError, Unheld, exists};

fn cluster(server: &Server) -> Cluster {
    let (_, network) = watch::channel(Network::default());
    Cluster::of(server.client(network), Duration::from_secs(15))
}

async fn find(server: &Server) -> Result<Option<Unheld>, RemovalError> {
    Unheld::find(&cluster(server), "ours", "procscan-aggregator").await
}

#[tokio::test(start_paused = true)]
async fn the_lease_of_a_running_leader_is_not_removed() {
    let server = Server::default();
    assert!(find(&server).await.unwrap().is_none(), "there is none");
    let mut replica = Replica::start(&server, "a");
    replica.leads().await;
    let error = find(&server).await.unwrap_err().to_string();
    assert!(error.starts_with("a leads, ") && error.contains("Stop the service before"), "{error}");
    assert!(server.lease().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_given_back_is_removed_at_once_and_that_of_a_dead_leader_once_it_has_run_out() {
    let server = Server::default();
    let mut replica = Replica::start(&server, "a");
    replica.leads().await;
    replica.cancel.cancel();
    (&mut replica.task).await.unwrap();
    let start = Instant::now();
    find(&server).await.unwrap().unwrap().remove().await.unwrap();
    assert_eq!((start.elapsed(), server.lease().is_none()), (Duration::ZERO, true));

    let server = Server::default();
    let mut replica = Replica::start(&server, "a");
    replica.leads().await;
    replica.freeze();
    // The last renewal, which was on its way, arrives.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = Instant::now();
    find(&server).await.unwrap().unwrap().remove().await.unwrap();
    let lasts = Duration::from_secs(10);
    assert!((lasts..lasts * 2).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert!(server.lease().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_has_taken_the_lease_meanwhile_keeps_it() {
    let server = Server::default();
    server.edit(|_| {});
    let unheld = find(&server).await.unwrap().unwrap();
    let mut replica = Replica::start(&server, "b");
    replica.leads().await;
    let error = unheld.remove().await.unwrap_err();
    assert!(matches!(error, RemovalError::Led(_)), "{error}");
    assert!(server.lease().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_lease_exists_whether_it_is_held_or_not_and_a_missing_answer_is_no_absence() {
    let server = Server::default();
    let is_there = async || exists(&cluster(&server), "ours", "procscan-aggregator").await.unwrap();
    assert!(!is_there().await);
    server.edit(|_| {});
    assert!(is_there().await);
    let (_network, cut) = watch::channel(Network { loses_requests: true, ..Network::default() });
    let cut = Cluster::of(server.client(cut), Duration::from_secs(15));
    assert!(exists(&cut, "ours", "procscan-aggregator").await.is_err());
    assert!(matches!(Unheld::find(&cut, "ours", "procscan-aggregator").await, Err(RemovalError::Refused(_))));
}
