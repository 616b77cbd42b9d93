//! A write to the cluster is sent only while its permit holds.

use std::cell::Cell;
use std::future::{pending, poll_fn, ready};
use std::pin::pin;
use std::task::Poll;

use super::*;
use crate::kubernetes::{Ask, RefusalKind};

const TERM: Duration = Duration::from_secs(8);

fn cluster() -> Cluster {
    let (_, network) = watch::channel(CUT);
    Cluster::of(Server::default().client(network), Duration::from_secs(5))
}

fn ask() -> Ask<'static> {
    Ask { verb: "patch", resource: "wasmplugins.extensions.higress.io", namespace: Some("gw"), name: None }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_without_a_permit() {
    let cluster = cluster();
    let permit = WritePermit::begin(1, "a", Instant::now(), TERM);
    assert_eq!(cluster.write(&permit, ask(), ready(Ok(7))).await, Ok(7));
    let is_sent = Cell::new(false);
    let request = async {
        is_sent.set(true);
        Ok(8)
    };
    let write = cluster.write(&permit, ask(), request);
    sleep(TERM).await;
    let refusal = write.await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::NotLeading);
    assert_eq!(
        refusal.text,
        "patch wasmplugins.extensions.higress.io in namespace gw: this replica has no right to write any more"
    );
    assert!(!is_sent.get());
}

#[tokio::test(start_paused = true)]
async fn a_request_does_not_wait_beyond_the_end_of_the_term() {
    let start = Instant::now();
    let cluster = cluster();
    let permit = WritePermit::begin(1, "a", start, TERM);
    let refusal = cluster.write::<()>(&permit, ask(), pending()).await.unwrap_err();
    assert_eq!((refusal.kind, start.elapsed()), (RefusalKind::Unavailable, ms(5000)));
    let refusal = cluster.write::<()>(&permit, ask(), pending()).await.unwrap_err();
    assert_eq!((refusal.kind, start.elapsed()), (RefusalKind::NotLeading, TERM));
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_frozen_before_it_was_sent_does_not_go_on() {
    let cluster = cluster();
    let permit = WritePermit::begin(1, "a", Instant::now(), TERM);
    let polls = Cell::new(0);
    // The request waits once, for example for its connection.
    let request = poll_fn(|_| {
        polls.set(polls.get() + 1);
        if polls.get() == 1 { Poll::Pending } else { Poll::Ready(Ok(())) }
    });
    let mut write = pin!(cluster.write(&permit, ask(), request));
    assert!(write.as_mut().now_or_never().is_none());
    assert!(advance(TERM).now_or_never().is_none());
    assert_eq!(write.await.unwrap_err().kind, RefusalKind::NotLeading);
    assert_eq!(polls.get(), 1);
}
