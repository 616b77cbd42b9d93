//! Serves the routers within bounds, so that no client delays the answers of others for long.
//!
//! A client can hold a place, but not for ever. The head of a request, the time between two requests and a request's body
//! ([`super::body`]) have limits. A client that does not take an answer is cut off ([`pace`]). But any number of clients may
//! come back, so there are places for probes. A connection beyond [`Bounds::connections`] is accepted into a reserve. There
//! only probes are answered, any other request is refused with 503, and the connection ends after one answer. If the reserve
//! is full, its oldest connection makes room. A probe needs its place for one round trip, so it would take more than
//! [`Bounds::reserve`] new connections within that time to drive it out.
//!
//! Connections are not counted per peer: behind a proxy, a Service or a forwarded port many clients have one address, the
//! probes among them.

mod host;
mod pace;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use self::host::Checked;
use self::pace::{Pace, Paced};

/// How many connections are served at the same time. As many more are answered if they ask for a probe.
pub(crate) const MAX_CONNECTIONS: usize = 192;
/// The largest head of a request.
const MAX_HEAD: usize = 16 << 10;
/// How much of an answer waits in the kernel unsent. What its buffers hold of slow clients counts as the service's memory, too.
const MAX_UNSENT: u32 = 256 << 10;
/// How long connections have to finish after the stop.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What is served.
#[derive(Clone, Debug)]
pub(crate) struct Routers {
    /// On the connections that have a place.
    pub(crate) all: Router,
    /// On the connections of the reserve: probes, and a refusal of anything else.
    pub(crate) reserve: Router,
}

/// What clients may take.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// How many connections are served.
    connections: usize,
    /// How many more connections are in the reserve.
    reserve: usize,
    /// How long a client may take to send a request's head, idle time between two requests included.
    head: Duration,
    /// How long a connection in the reserve lasts.
    reserve_life: Duration,
    pace: Pace,
}

const BOUNDS: Bounds = Bounds {
    connections: MAX_CONNECTIONS,
    reserve: 192,
    head: Duration::from_secs(10),
    reserve_life: Duration::from_secs(2),
    pace: Pace { stall: Duration::from_secs(10), least: 32 << 10 },
};

/// Serves until cancelled, then lets open requests finish for a moment.
pub(crate) async fn serve(listener: TcpListener, routers: Routers, cancel: CancellationToken) {
    serve_within(BOUNDS, listener, routers, cancel).await;
}

async fn serve_within(bounds: Bounds, listener: TcpListener, routers: Routers, cancel: CancellationToken) {
    let places = Arc::new(Semaphore::new(bounds.connections));
    let mut reserve = Reserve { most: bounds.reserve, oldest_first: VecDeque::new() };
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, for example: a pause lets others give some back.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            let mut http = http(bounds.reserve_life);
            let connection = http
                .keep_alive(false)
                .serve_connection(TokioIo::new(paced(stream, bounds.pace)), Checked(routers.reserve.clone()));
            reserve.add(tokio::time::timeout(bounds.reserve_life, connection));
            continue;
        };
        let connection = http(bounds.head)
            .serve_connection(TokioIo::new(paced(stream, bounds.pace)), Checked(routers.all.clone()));
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended badly");
            }
            drop(place);
        });
    }
    drop((listener, reserve));
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, graceful.shutdown()).await;
}

fn http(head: Duration) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(head).max_buf_size(MAX_HEAD);
    http
}

fn paced(stream: TcpStream, pace: Pace) -> Paced<TcpStream> {
    let socket = socket2::SockRef::from(&stream);
    // Without them it is served all the same.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_notsent_lowat(MAX_UNSENT);
    Paced::new(stream, pace)
}

/// The connections beyond those that have a place.
struct Reserve {
    most: usize,
    oldest_first: VecDeque<AbortHandle>,
}

impl Reserve {
    fn add(&mut self, connection: impl Future<Output: Send> + Send + 'static) {
        self.oldest_first.retain(|connection| !connection.is_finished());
        if self.oldest_first.len() >= self.most
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            oldest.abort();
        }
        self.oldest_first.push_back(tokio::spawn(connection).abort_handle());
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        self.oldest_first.iter().for_each(AbortHandle::abort);
    }
}
