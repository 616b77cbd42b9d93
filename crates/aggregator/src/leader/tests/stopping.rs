//! A candidate that stops gives the Lease back.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_leader_that_stops_gives_the_lease_back() {
    let server = Server::default();
    let mut a = Replica::start(&server, "a");
    let permit = a.leads().await;
    let mut b = Replica::start(&server, "b");
    b.follows("a").await;
    sleep(ms(3500)).await;
    a.cancel.cancel();
    let stopped = Instant::now();
    a.steps_down().await;
    assert!(!permit.holds());
    let next = b.leads().await;
    assert!(stopped.elapsed() <= Timing::default().retry, "{:?}", stopped.elapsed());
    assert_eq!(next.term(), 2);
    (&mut a.task).await.unwrap();
    assert!(server.store().overlaps.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_renewal_under_way_does_not_keep_the_lease_from_being_given_back() {
    let start = Instant::now();
    let server = Server::default();
    let mut a = Replica::start(&server, "a");
    a.leads().await;
    a.network.send_replace(Network { there: ms(300), ..Network::default() });
    sleep_until(start + ms(2200)).await;
    // The renewal arrives between the read of the Lease and its release.
    a.network.send_replace(Network { back: ms(150), ..Network::default() });
    let writes = server.store().writes;
    a.cancel.cancel();
    (&mut a.task).await.unwrap();
    assert_eq!(server.store().writes, writes + 2, "the renewal and the release");
    assert_eq!(holder(&server), None);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_does_not_answer_does_not_delay_a_stop() {
    let server = Server::default();
    let mut a = Replica::start(&server, "a");
    let permit = a.leads().await;
    a.network.send_replace(CUT);
    a.cancel.cancel();
    let stopped = Instant::now();
    (&mut a.task).await.unwrap();
    assert!(!permit.holds());
    assert!(stopped.elapsed() <= ms(1001), "{:?}", stopped.elapsed());
    // A candidate that never requested the Lease has nothing to give back.
    let mut b = Replica::start(&server, "b");
    b.network.send_replace(CUT);
    sleep(ms(500)).await;
    b.cancel.cancel();
    let stopped = Instant::now();
    (&mut b.task).await.unwrap();
    assert_eq!(stopped.elapsed(), Duration::ZERO);
}
