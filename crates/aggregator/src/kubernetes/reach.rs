//! Tracks whether the API server can be reached, and since when it can't.
//!
//! Every request counts, whatever it is for. Each part of the service knows only its own last request. So a part that
//! sends no request at the moment would still report that all is well.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::{Request, Uri};
use jiff::Timestamp;
use kube::client::{AuthError, Body};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::{BoxError, Layer, Service};

use super::ask::{Unanswered, chain};
use super::{Ask, Cluster};

/// The time without an answer after which the API server is asked for its version, only to see whether it answers.
const CHECK_AFTER_IDLE: Duration = Duration::from_secs(10);

/// Whether one API server can be reached. Clones share the state.
#[derive(Clone, Debug)]
pub(crate) struct Reach(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    address: Box<str>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// The time of the last answer of any kind.
    answered: Option<Instant>,
    lost: Option<Lost>,
}

/// A time in which no request is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    /// When the first request failed.
    pub(crate) since: Timestamp,
    /// How the last one failed.
    pub(crate) error: String,
}

impl Reach {
    /// The reach of the API server at `url`.
    pub(super) fn new(url: &Uri) -> Self {
        let host = url.host().unwrap_or_default();
        let is_plain = url.scheme_str() == Some("http");
        let port = url.port_u16().unwrap_or(if is_plain { 80 } else { 443 });
        Self(Arc::new(Shared { address: format!("{host}:{port}").into(), seen: Mutex::default() }))
    }

    /// The address of the API server, as `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.0.address
    }

    /// Since when the API server can't be reached, and why. `None` if it can, or if no request was sent yet.
    pub(crate) fn lost(&self) -> Option<Lost> {
        self.seen().lost.clone()
    }

    /// One line with the address, since when it can't be reached, and why; `None` if it can.
    pub(crate) fn trouble(&self) -> Option<String> {
        let Lost { since, error } = self.lost()?;
        let since = Timestamp::from_second(since.as_second()).unwrap_or(since);
        Some(format!("the API server at {} can't be reached since {since}: {error}", self.address()))
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an answer.
    fn answered(&self) {
        let lost = {
            let mut seen = self.seen();
            seen.answered = Some(Instant::now());
            seen.lost.take()
        };
        if let Some(Lost { since, .. }) = lost {
            tracing::info!(address = self.address(), %since, "the API server can be reached again");
        }
    }

    /// Notes that a request that began at `began` was not answered. If another request was answered since, this
    /// failure proves nothing about the API server.
    pub(super) fn failed(&self, began: Instant, error: &str) {
        let is_first = {
            let mut seen = self.seen();
            if seen.answered.is_some_and(|at| at >= began) {
                return;
            }
            let since = seen.lost.as_ref().map(|lost| lost.since);
            seen.lost = Some(Lost { since: since.unwrap_or_else(Timestamp::now), error: error.to_owned() });
            since.is_none()
        };
        if is_first {
            let address = self.address();
            tracing::error!(alert = "api_server", address, error, "the API server can't be reached");
        }
    }

    fn is_idle(&self) -> bool {
        self.seen().answered.is_none_or(|at| at.elapsed() >= CHECK_AFTER_IDLE)
    }
}

impl Cluster {
    /// Asks the API server for its version while no other request is sent, until cancelled. So [`Self::reach`] knows
    /// whether it can be reached.
    pub(crate) async fn check_while_idle(self, cancel: CancellationToken) {
        let mut timer = tokio::time::interval(CHECK_AFTER_IDLE);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = timer.tick() => {}
            }
            if self.reach().is_none_or(Reach::is_idle) {
                let ask = Ask { verb: "get", resource: "version", namespace: None, name: None };
                let client = self.client();
                tokio::select! {
                    () = cancel.cancelled() => return,
                    // The layer below the client notes the result.
                    _ = self.ask(ask, client.apiserver_version()) => {}
                }
            }
        }
    }
}

/// Notes the result of each request, and adds the address to the error of a request that was not answered.
impl<S> Layer<S> for Reach {
    type Service = Noting<S>;

    fn layer(&self, inner: S) -> Noting<S> {
        Noting { inner, reach: self.clone() }
    }
}

/// The service that [`Reach`] makes as a layer.
#[derive(Clone, Debug)]
pub(crate) struct Noting<S> {
    inner: S,
    reach: Reach,
}

impl<S> Service<Request<Body>> for Noting<S>
where
    S: Service<Request<Body>, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (began, reach) = (Instant::now(), self.reach.clone());
        let answer = self.inner.call(request);
        Box::pin(async move {
            match answer.await {
                Ok(answer) => {
                    reach.answered();
                    Ok(answer)
                }
                // The client could not get a token, so it has sent no request.
                Err(error) if error.is::<AuthError>() || error.is::<kube::Error>() => Err(error),
                Err(error) => {
                    reach.failed(began, &chain(&*error));
                    Err(Box::new(Unanswered { address: reach.address().into(), source: error }) as BoxError)
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::logged::Logged;

    fn reach(url: &'static str) -> Reach {
        Reach::new(&Uri::from_static(url))
    }

    #[test]
    fn the_address_has_the_port_of_the_url_or_of_its_scheme() {
        for (url, address) in [
            ("https://10.0.0.1:6443", "10.0.0.1:6443"),
            ("https://api.example/k8s/c-1", "api.example:443"),
            ("http://127.0.0.1", "127.0.0.1:80"),
            ("https://[fd00::1]:6443/", "[fd00::1]:6443"),
        ] {
            assert_eq!(reach(url).address(), address);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_logged_once_and_a_failure_counts_only_if_nothing_was_answered_since() {
        let (logged, _guard) = Logged::start();
        let reach = reach("https://10.0.0.1:6443");
        assert_eq!((reach.trouble(), reach.is_idle()), (None, true));
        let slow = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        reach.answered();
        reach.failed(slow, "no answer within 15s");
        assert!(reach.trouble().is_none() && !reach.is_idle());
        assert!(logged.lines().is_empty());

        tokio::time::advance(CHECK_AFTER_IDLE).await;
        assert!(reach.is_idle());
        let before = Timestamp::now().as_second();
        reach.failed(Instant::now(), "refused");
        let first = reach.lost().unwrap();
        reach.failed(Instant::now(), "timeout");
        let last = reach.lost().unwrap();
        assert_eq!((last.since, &*last.error), (first.since, "timeout"));
        assert!((before..=before + 60).contains(&last.since.as_second()));
        let trouble = reach.trouble().unwrap();
        assert!(
            trouble.starts_with("the API server at 10.0.0.1:6443 can't be reached since 20"),
            "{trouble}"
        );
        assert!(trouble.ends_with("Z: timeout"), "{trouble}");
        let lines = logged.lines();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with("ERROR") && lines[0].contains("address=\"10.0.0.1:6443\""), "{lines:?}");
        reach.answered();
        reach.answered();
        assert_eq!(reach.trouble(), None);
        let lines = logged.lines();
        assert!(lines.len() == 1 && lines[0].contains("can be reached again"), "{lines:?}");
    }
}
