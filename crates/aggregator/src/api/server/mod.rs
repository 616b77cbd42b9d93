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

mod explained;
mod host;
mod pace;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use self::explained::Explained;
use self::host::Checked;
use self::pace::{Pace, Paced};
use crate::counters::{Counters, count};

/// How many connections are served at the same time. As many more are answered if they ask for a probe.
pub(crate) const MAX_CONNECTIONS: usize = 192;
/// The largest head of a request.
const MAX_HEAD: usize = 16 << 10;
/// The longest URI of a request.
const MAX_URI: usize = 8 << 10;
const URI_TOO_LONG: &str = "the URI is longer than 8 KiB";
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
    /// On the connections of clients without a certificate, where one is needed: the same.
    pub(crate) uncertified: Router,
}

/// Where the API listens, and how.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) listener: TcpListener,
    /// The configuration of TLS for new connections; `None` without TLS.
    pub(crate) tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    /// Whether a client needs a certificate for everything but probes.
    pub(crate) needs_client_certificate: bool,
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
pub(crate) async fn serve(
    endpoint: Endpoint,
    routers: Routers,
    counters: Counters,
    cancel: CancellationToken,
) {
    serve_within(BOUNDS, endpoint, routers, counters, cancel).await;
}

async fn serve_within(
    bounds: Bounds,
    endpoint: Endpoint,
    routers: Routers,
    counters: Counters,
    cancel: CancellationToken,
) {
    let Endpoint { listener, tls, needs_client_certificate } = endpoint;
    let serving = Arc::new(Serving { bounds, routers, counters, tls, needs_client_certificate });
    let places = Arc::new(Semaphore::new(bounds.connections));
    let mut reserve = Reserve { most: bounds.reserve, oldest_first: VecDeque::new() };
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => paced(stream, bounds.pace),
            Err(error) => {
                // Out of file descriptors, for example: a pause lets others give some back.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let serving = serving.clone();
        let Ok(place) = places.clone().try_acquire_owned() else {
            serving.counters.connections_beyond.inc();
            let connection = async move { serving.serve_reserve(stream).await };
            reserve.add(tokio::time::timeout(bounds.reserve_life, connection));
            continue;
        };
        let watcher = graceful.watcher();
        tokio::spawn(async move { serving.serve_connection(stream, watcher, Place::new(place)).await });
    }
    drop((listener, reserve));
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, graceful.shutdown()).await;
}

/// The place of a connection. A stream gives it back, because it has one of its own among the streams.
#[derive(Debug)]
pub(super) struct Place {
    permit: Mutex<Option<OwnedSemaphorePermit>>,
    is_stream: AtomicBool,
}

impl Place {
    fn new(permit: OwnedSemaphorePermit) -> Arc<Self> {
        Arc::new(Self { permit: Mutex::new(Some(permit)), is_stream: AtomicBool::new(false) })
    }

    /// Gives the place back: the connection carries a stream from now on, and ends with it.
    pub(super) fn become_stream(&self) {
        self.is_stream.store(true, Ordering::Relaxed);
        drop(self.permit.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn is_stream(&self) -> bool {
        self.is_stream.load(Ordering::Relaxed)
    }
}

/// Whether a connection was cut off because its client took nothing.
fn is_stalled(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    source.is_some_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
}

/// What serves every connection.
#[derive(Debug)]
struct Serving {
    bounds: Bounds,
    routers: Routers,
    counters: Counters,
    tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    needs_client_certificate: bool,
}

impl Serving {
    /// A connection that has a place.
    async fn serve_connection(&self, stream: Paced<TcpStream>, watcher: Watcher, place: Arc<Place>) {
        let Some(config) = self.tls.as_ref().map(|tls| tls.borrow().clone()) else {
            return self.serve_http(stream, &self.routers.all, watcher, place).await;
        };
        let Some(stream) = self.shake_hands(stream, config).await else { return };
        let is_certified = !self.needs_client_certificate || stream.get_ref().1.peer_certificates().is_some();
        let router = if is_certified { &self.routers.all } else { &self.routers.uncertified };
        self.serve_http(stream, router, watcher, place).await;
    }

    async fn serve_http(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
        router: &Router,
        watcher: Watcher,
        place: Arc<Place>,
    ) {
        let (router, counters) = (router.clone(), self.counters.clone());
        let service = Checked { router, counters, place: Some(place.clone()) };
        let stream = TokioIo::new(Explained::new(stream, self.counters.clone()));
        let connection = http(self.bounds.head).serve_connection(stream, service);
        if let Err(error) = watcher.watch(connection).await {
            if place.is_stream() && is_stalled(&error) {
                count(&self.counters.stream_cut, "reason", "stalled");
            }
            tracing::debug!(%error, "a connection ended badly");
        }
    }

    /// A connection of the reserve, which ends after one answer.
    async fn serve_reserve(&self, stream: Paced<TcpStream>) {
        match self.tls.as_ref().map(|tls| tls.borrow().clone()) {
            None => self.answer_once(stream).await,
            Some(config) => {
                if let Some(stream) = self.shake_hands(stream, config).await {
                    self.answer_once(stream).await;
                }
            }
        }
    }

    async fn answer_once(&self, stream: impl AsyncRead + AsyncWrite + Unpin + 'static) {
        let (router, counters) = (self.routers.reserve.clone(), self.counters.clone());
        let service = Checked { router, counters, place: None };
        let mut http = http(self.bounds.reserve_life);
        let stream = TokioIo::new(Explained::new(stream, self.counters.clone()));
        let _ = http.keep_alive(false).serve_connection(stream, service).await;
    }

    /// Begins TLS, within the time that a client has for the head of a request.
    async fn shake_hands(
        &self,
        stream: Paced<TcpStream>,
        config: Arc<ServerConfig>,
    ) -> Option<TlsStream<Paced<TcpStream>>> {
        let accepted = TlsAcceptor::from(config).accept(stream);
        match tokio::time::timeout(self.bounds.head, accepted).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => tracing::debug!(%error, "a TLS connection was not established"),
            Err(_) => tracing::debug!("a TLS connection was not established in time"),
        }
        self.counters.tls_failures.inc();
        None
    }
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
