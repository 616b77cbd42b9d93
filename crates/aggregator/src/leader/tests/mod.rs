//! Tests the behaviour of candidates while the API server, their networks and their processes fail.

mod fake;
mod gate;
mod permit;
mod removal;
mod schedules;
mod stopping;

use futures_util::FutureExt;
use jiff::{Span, Timestamp};
use serde_json::{Value, json};
use tokio::time::{Instant, advance, sleep, sleep_until};

use self::fake::{Network, Replica, Server};
use super::*;

const CUT: Network = Network {
    there: Duration::ZERO,
    back: Duration::ZERO,
    loses_requests: true,
    loses_answers: false,
    refuses_writes: None,
};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn held_by(holder: &str) -> impl Fn(&mut Value) {
    move |lease| lease["spec"]["holderIdentity"] = holder.into()
}

fn holder(server: &Server) -> Option<String> {
    server.lease().unwrap().spec.unwrap().holder_identity
}

#[tokio::test(start_paused = true)]
async fn the_first_candidate_takes_the_lease_and_holds_it_by_renewing_it() {
    let start = Instant::now();
    let server = Server::default();
    let mut a = Replica::start(&server, "a");
    let permit = a.leads().await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!((permit.term(), permit.identity()), (1, "a"));
    let spec = server.lease().unwrap().spec.unwrap();
    assert_eq!(spec.holder_identity.as_deref(), Some("a"));
    assert_eq!((spec.lease_transitions, spec.lease_duration_seconds), (Some(1), Some(10)));
    assert!(spec.acquire_time.is_some() && spec.acquire_time == spec.renew_time);

    let mut b = Replica::start(&server, "b");
    sleep(ms(500)).await;
    for _ in 0..600 {
        sleep(ms(1000)).await;
        assert!(permit.holds());
        assert!(b.leadership.borrow().permit().is_none());
    }
    b.follows("a").await;
    // One to take it, and one each 2 s.
    assert_eq!(server.store().writes, 301);
    let now = server.lease().unwrap().spec.unwrap();
    assert_eq!((now.lease_transitions, &now.acquire_time), (Some(1), &spec.acquire_time));
    assert!(a.error.borrow().is_none() && b.error.borrow().is_none());
}

#[tokio::test(start_paused = true)]
async fn another_takes_over_when_it_has_seen_no_change_for_the_duration_of_the_lease() {
    let start = Instant::now();
    let server = Server::default();
    let mut a = Replica::start(&server, "a");
    let permit = a.leads().await;
    sleep(ms(300)).await;
    let mut b = Replica::start(&server, "b");
    // Renewed at 4 s; seen at 4.3 s.
    sleep_until(start + ms(4500)).await;
    a.network.send_replace(CUT);

    sleep_until(start + ms(12_000) - ms(1)).await;
    assert!(permit.holds(), "8 s from the last renewal");
    sleep(ms(1)).await;
    assert!(!permit.holds());
    a.steps_down().await;
    assert!(start.elapsed() <= ms(12_001), "{:?}", start.elapsed());
    assert!(a.error.borrow().as_ref().is_some_and(|error| error.contains("no answer within 2s")));

    let next = b.leads().await;
    assert_eq!(start.elapsed(), ms(14_300));
    assert_eq!((next.term(), next.identity()), (2, "b"));
    assert!(server.store().overlaps.is_empty());
    a.network.send_replace(Network::default());
    a.follows("b").await;
    assert!(a.error.borrow().is_none());
    sleep(ms(60_000)).await;
    assert!(next.holds());
}

#[tokio::test(start_paused = true)]
async fn each_candidate_counts_the_time_that_an_answer_takes_against_itself() {
    let start = Instant::now();
    let server = Server::default();
    let mut a = Replica::start(&server, "a");
    a.network.send_replace(Network { back: ms(1500), ..Network::default() });
    // Requested at 1.5 s, answered at 3 s.
    let first = a.leads().await;
    assert_eq!(start.elapsed(), ms(3000));
    let mut b = Replica::start(&server, "b");
    b.network.send_replace(Network { back: ms(70), ..Network::default() });
    b.follows("a").await;
    assert_eq!(start.elapsed(), ms(3070));
    a.network.send_replace(CUT);
    sleep_until(start + ms(9500) - ms(1)).await;
    assert!(first.holds());
    // In the middle of a request.
    a.steps_down().await;
    assert!(!first.holds());
    assert!(start.elapsed() <= ms(9501), "{:?}", start.elapsed());
    b.network.send_replace(Network::default());
    b.leads().await;
    assert_eq!(start.elapsed(), ms(13_070), "not at its next read, but as soon as it may");

    let next = b.leads().await;
    // Renewed at 15.07 s, answered at 16.57 s.
    b.network.send_replace(Network { back: ms(1500), ..Network::default() });
    sleep_until(start + ms(16_600)).await;
    b.network.send_replace(CUT);
    sleep_until(start + ms(23_069)).await;
    assert!(next.holds());
    sleep(ms(1)).await;
    assert!(!next.holds());
}

#[tokio::test(start_paused = true)]
async fn being_the_slower_candidate_is_no_error() {
    let server = Server::default();
    let mut a = Replica::start(&server, "a");
    let mut b = Replica::start(&server, "b");
    let (first, other) =
        tokio::select! { permit = a.leads() => (permit, &mut b), permit = b.leads() => (permit, &mut a) };
    other.follows(first.identity()).await;
    assert!(first.holds());
    assert!(!a.error.has_changed().unwrap() && !b.error.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_gets_no_answers_ends_before_another_can_begin() {
    for answers in [false, true] {
        let server = Server::default();
        let mut a = Replica::start(&server, "a");
        let permit = a.leads().await;
        let b = Replica::start(&server, "b");
        sleep(ms(3000)).await;
        // A renewal whose answer is lost makes the other wait, and does not extend the permit of the first.
        a.network.send_replace(Network {
            loses_answers: answers,
            loses_requests: !answers,
            ..Network::default()
        });
        let (mut ended, mut began) = (None, None);
        while began.is_none() {
            if !permit.holds() {
                ended.get_or_insert_with(Instant::now);
            }
            if b.leadership.borrow().permit().is_some() {
                began = Some(Instant::now());
            }
            sleep(ms(10)).await;
        }
        let gap = began.unwrap() - ended.unwrap();
        assert!(gap >= Timing::default().margin, "{gap:?}");
        assert!(server.store().overlaps.is_empty(), "{:?}", server.store().overlaps);
    }
}

#[tokio::test(start_paused = true)]
async fn a_term_that_has_ended_is_followed_by_a_new_one_even_of_the_same_candidate() {
    let server = Server::default();
    let mut a = Replica::start(&server, "a");
    let first = a.leads().await;
    a.network.send_replace(CUT);
    a.steps_down().await;
    sleep(ms(30_000)).await;
    assert_eq!(holder(&server).as_deref(), Some("a"));
    a.network.send_replace(Network::default());
    let again = Instant::now();
    let second = a.leads().await;
    assert!(again.elapsed() <= ms(2000), "{:?}: the request under way times out first", again.elapsed());
    assert_eq!((second.term(), second.holds(), first.holds()), (2, true, false));
}

#[tokio::test(start_paused = true)]
async fn a_term_whose_renewal_conflicts_goes_on_if_the_lease_is_still_ours_and_ends_at_once_otherwise() {
    let start = Instant::now();
    let server = Server::default();
    let mut a = Replica::start(&server, "a");
    let permit = a.leads().await;
    for _ in 0..10 {
        server.edit(|lease| lease["metadata"]["labels"] = json!({ "looked-at": "by-a-program" }));
        sleep(ms(2500)).await;
        assert!(permit.holds());
    }
    assert_eq!(server.lease().unwrap().metadata.labels.unwrap()["looked-at"], "by-a-program");

    sleep_until(start + ms(30_500)).await;
    server.edit(held_by("b"));
    let edited = Instant::now();
    a.steps_down().await;
    assert!(!permit.holds());
    assert!(edited.elapsed() <= Timing::default().renew, "{:?}", edited.elapsed());
    a.follows("b").await;
    let seen = Instant::now();
    let next = a.leads().await;
    assert_eq!((seen.elapsed(), next.term()), (ms(10_000), 2));
}

#[tokio::test(start_paused = true)]
async fn only_the_duration_of_a_lease_counts_and_its_times_do_not() {
    for (seconds, waits) in
        [(json!(10), 10), (json!(5), 5), (json!(-3), 1), (json!(100_000), 300), (Value::Null, 10)]
    {
        for years in [-50, 0, 50] {
            let server = Server::default();
            let renewed = Timestamp::now() + Span::new().hours(years * 365 * 24);
            server.edit(|lease| {
                held_by("gone")(lease);
                lease["spec"]["renewTime"] = format!("{renewed:.6}").into();
                lease["spec"]["leaseDurationSeconds"] = seconds.clone();
                lease["spec"]["leaseTransitions"] = 7.into();
            });
            let start = Instant::now();
            let mut a = Replica::start(&server, "a");
            let permit = a.leads().await;
            assert_eq!(
                (start.elapsed(), permit.term()),
                (Duration::from_secs(waits), 8),
                "{seconds} {years}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_given_back_is_taken_at_once() {
    let server = Server::default();
    server.edit(held_by(""));
    let start = Instant::now();
    let mut a = Replica::start(&server, "a");
    a.leads().await;
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_frozen_leader_has_lost_its_permit_before_any_task_runs() {
    let server = Server::default();
    let mut a = Replica::start(&server, "a");
    let permit = a.leads().await;
    let mut b = Replica::start(&server, "b");
    b.follows("a").await;
    // One poll moves the clock, and no task has run.
    assert!(advance(ms(7999)).now_or_never().is_none());
    assert!(permit.holds());
    assert!(advance(ms(1)).now_or_never().is_none());
    assert!(!permit.holds());
    assert!(a.leadership.borrow().permit().is_some());

    a.freeze();
    let next = b.leads().await;
    sleep(ms(60_000)).await;
    a.thaw();
    a.follows("b").await;
    assert!(next.holds() && !permit.holds());
    assert!(server.store().overlaps.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_answer_is_lost_may_have_been_granted() {
    for stops in [false, true] {
        let start = Instant::now();
        let server = Server::default();
        let mut a = Replica::start(&server, "a");
        a.network.send_replace(Network { there: ms(100), ..Network::default() });
        // Requested at 100 ms, and granted; the answer is lost.
        sleep_until(start + ms(50)).await;
        a.network.send_replace(Network { loses_answers: true, ..Network::default() });
        sleep_until(start + ms(1500)).await;
        a.network.send_replace(Network::default());
        assert_eq!(holder(&server).as_deref(), Some("a"));
        assert!(a.leadership.borrow().permit().is_none());
        if stops {
            a.cancel.cancel();
            (&mut a.task).await.unwrap();
            assert_eq!(holder(&server), None);
        } else {
            let permit = a.leads().await;
            assert_eq!((start.elapsed(), permit.term()), (ms(2100), 2));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_removed_lease_is_made_again_when_its_holder_must_have_noticed() {
    let start = Instant::now();
    let server = Server::default();
    let mut a = Replica::start(&server, "a");
    let permit = a.leads().await;
    let mut b = Replica::start(&server, "b");
    b.follows("a").await;
    a.freeze();
    sleep_until(start + ms(1500)).await;
    server.remove();
    let next = b.leads().await;
    // The holder misses it at 2 s.
    assert_eq!((start.elapsed(), next.term()), (ms(12_000), 2));
    assert!(server.store().overlaps.is_empty());

    a.thaw();
    a.follows("b").await;
    server.remove();
    b.steps_down().await;
    assert!(!permit.holds() && !next.holds());
    let (a, b) = (a.leads(), b.leads());
    let third = tokio::select! { permit = a => permit, permit = b => permit };
    assert_eq!(third.term(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_error_is_shown_until_the_lease_can_be_written_again() {
    let server = Server::default();
    let mut a = Replica::start(&server, "a");
    a.network.send_replace(Network { refuses_writes: Some(403), ..Network::default() });
    let error = a.error.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!(error, "create leases.coordination.k8s.io in namespace ours: not today (403)");
    // A successful read is no change as long as the Lease can't be written.
    a.error.mark_unchanged();
    sleep(ms(60_000)).await;
    assert!(!a.error.has_changed().unwrap());
    a.network.send_replace(Network::default());
    let permit = a.leads().await;
    assert!(a.error.borrow_and_update().is_none());

    a.network.send_replace(Network { refuses_writes: Some(503), ..Network::default() });
    let error = a.error.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!(error, "update leases.coordination.k8s.io in namespace ours: not today (503)");
    a.network.send_replace(Network::default());
    a.error.wait_for(Option::is_none).await.unwrap();
    assert!(permit.holds(), "the term went on all the time");
}

#[test]
fn no_two_processes_have_the_same_identity() {
    let name = |pod: Option<&str>, host: Option<&str>| {
        let identity = identity_of(pod.map(str::to_owned), || host.map(str::to_owned));
        let (name, process) = identity.rsplit_once('_').unwrap();
        assert_eq!(process.len(), 16);
        name.to_owned()
    };
    assert_eq!(name(Some("aggregator-7d9-x2"), Some("node-1\n")), "aggregator-7d9-x2");
    assert_eq!(name(Some(""), Some("node-1\n")), "node-1");
    assert_eq!(name(None, None), "procscan-aggregator");
    assert_ne!(identity(), identity());
}

#[tokio::test(start_paused = true)]
async fn a_process_that_needs_no_lease_leads_for_ever() {
    let leadership = alone();
    sleep(Duration::from_hours(24 * 365)).await;
    assert!(leadership.borrow().permit().is_some_and(WritePermit::holds));
}
