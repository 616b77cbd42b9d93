//! The connection to the cluster.
//!
//! Every request has a timeout, and an `Ask` that describes it. So a refusal names what is missing: the verb, the
//! resource and the namespace of an RBAC rule, or the CRD.

mod ask;
mod counted;
mod kubeconfig;
mod pace;
mod reach;
mod read;
mod server_clock;
mod trim;
mod watch;
mod write_permit;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use kube::client::ClientBuilder;
use kube::config::KubeConfigOptions;
use kube::{Client, Config};
use procscan_core::Moment;
use procscan_core::names::{self, Text, is_dns_label};
use tokio::time::Instant;
use tower::util::MapResponseLayer;

pub use self::ask::Refusal;
pub(crate) use self::ask::{Ask, RefusalKind};
use self::counted::CountRequests;
use self::pace::Pace;
pub(crate) use self::reach::Reach;
pub(crate) use self::read::{Answer, Limit};
use self::server_clock::ServerClock;
pub(crate) use self::trim::{Keep, Size, Trim};
pub(crate) use self::watch::watch;
pub use self::write_permit::WritePermit;
use crate::config;
use crate::counters::Counters;

/// The variable that has the Pod's own namespace, which is never a tenant's.
const OWN_NAMESPACE: &str = "POD_NAMESPACE";

/// How long a connection may be without data. The API server ends each watch after 290 s, so a working watch never
/// reaches this limit.
const WATCH_IDLE_TIMEOUT: Duration = Duration::from_mins(5);

/// The connection, which many parts of the service share.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    timeout: Duration,
    own_namespace: Option<Text>,
    pace: Arc<Pace>,
    server_clock: ServerClock,
    /// Whether the API server can be reached; `None` if a test plays it.
    reach: Option<Reach>,
    counters: Counters,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("own_namespace", &self.own_namespace).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Reads the settings of the connection. The first request shows whether the cluster can be reached.
    pub async fn connect(settings: &config::Kubernetes) -> anyhow::Result<Self> {
        Self::connect_counted(settings, Counters::default()).await
    }

    /// The same, with counters for its requests, and for what is written by it.
    pub(crate) async fn connect_counted(
        settings: &config::Kubernetes,
        counters: Counters,
    ) -> anyhow::Result<Self> {
        let options = KubeConfigOptions { context: settings.context.clone(), ..KubeConfigOptions::default() };
        let (mut config, is_inside) = if let Some(path) = &settings.kubeconfig {
            let place = || format!("kubernetes.kubeconfig: {}", path.display());
            let read = kubeconfig::read(Some(path), settings.request_timeout).await;
            let file = read.map_err(anyhow::Error::msg).with_context(place)?;
            (Config::from_custom_kubeconfig(file, &options).await.with_context(place)?, false)
        } else {
            let outside = match kubeconfig::read(None, settings.request_timeout).await {
                Ok(file) => Config::from_custom_kubeconfig(file, &options).await.map_err(|e| e.to_string()),
                Err(problem) => Err(problem),
            };
            match outside {
                Ok(config) => (config, false),
                Err(outside) => match Config::incluster() {
                    Ok(config) => (config, true),
                    Err(inside) => anyhow::bail!(
                        "no cluster is configured: kubeconfig: {outside}; ServiceAccount of the Pod: {inside}. To try \
                         it without a cluster: procscan-aggregator demo"
                    ),
                },
            }
        };
        // The callers decide when to send a request again, because they know its purpose.
        config.default_retry = false;
        // Lists and the start of watches have no timeout of their own. This one counts from the last byte sent, not
        // from when a connection became idle.
        config.read_timeout = Some(WATCH_IDLE_TIMEOUT);
        config.reset_reader_on_write = true;
        config.headers.push((
            hyper::header::USER_AGENT,
            hyper::header::HeaderValue::from_static(concat!(
                "procscan-aggregator/",
                env!("CARGO_PKG_VERSION")
            )),
        ));
        let own_namespace = std::env::var(OWN_NAMESPACE)
            .ok()
            .filter(|name| !name.is_empty())
            .or_else(|| is_inside.then(|| config.default_namespace.clone()))
            .map(Text::from);
        if let Some(name) = own_namespace.as_ref().filter(|name| !is_dns_label(name)) {
            anyhow::bail!("{OWN_NAMESPACE}: invalid value {name:?}: expected {}", names::LABEL);
        }
        let reach = Reach::new(&config.cluster_url);
        let builder = ClientBuilder::try_from(config).context("the cluster's client can't be made")?;
        let server_clock = ServerClock::default();
        let noting = server_clock.clone();
        // A layer below the typed API, which does not return headers.
        let client = builder
            .with_layer(&CountRequests(counters.clone()))
            .with_layer(&reach)
            .with_layer(&MapResponseLayer::new(move |response: hyper::Response<_>| {
                noting.note(response.status(), response.headers());
                response
            }))
            .build();
        let pace = Arc::new(Pace::new(settings.requests_per_second));
        let (timeout, reach) = (settings.request_timeout, Some(reach));
        Ok(Self { client, timeout, own_namespace, pace, server_clock, reach, counters })
    }

    /// A connection by `client`.
    #[cfg(test)]
    pub(crate) fn with_client(client: Client) -> Self {
        Self::of(client, Duration::from_secs(15))
    }

    /// A connection by `client` with this pace.
    #[cfg(test)]
    pub(crate) fn paced(client: Client, per_second: u32) -> Self {
        Self { pace: Arc::new(Pace::new(per_second)), ..Self::with_client(client) }
    }

    #[cfg(test)]
    pub(crate) fn of(client: Client, timeout: Duration) -> Self {
        let (pace, server_clock) = (Arc::new(Pace::new(1000)), ServerClock::default());
        Self {
            client,
            timeout,
            own_namespace: None,
            pace,
            server_clock,
            reach: None,
            counters: Counters::default(),
        }
    }

    /// The same connection with a shorter timeout.
    #[must_use]
    pub(crate) fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout: timeout.min(self.timeout), ..self.clone() }
    }

    /// The counters of its requests, and of what is written by it.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The client, for requests that are passed to [`Self::ask`].
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// The moment on our clock when the API server's clock read `at`, such as the creation of an object. Both clocks
    /// are read when an answer arrives, so they need not agree. `None` until an answer has had the API server's time;
    /// `now` if `at` is in the future.
    pub(crate) fn moment_of(&self, at: Timestamp, now: Moment) -> Option<Moment> {
        self.server_clock.moment_of(at, now)
    }

    /// The API server's time. `None` until an answer has had it.
    pub(crate) fn server_time(&self) -> Option<Timestamp> {
        self.server_clock.time()
    }

    /// Sets the API server's time as if an answer had had it.
    #[cfg(test)]
    pub(crate) fn set_server_time(&self, date: Timestamp) {
        self.server_clock.set(date);
    }

    /// Whether the API server can be reached, and at which address. `None` if a test plays it.
    pub(crate) fn reach(&self) -> Option<&Reach> {
        self.reach.as_ref()
    }

    /// The namespace that the service runs in, if it runs in one.
    pub(crate) fn own_namespace(&self) -> Option<&str> {
        self.own_namespace.as_deref()
    }

    /// Waits for the answer to one request, for `kubernetes.request_timeout` at most. If Kubernetes does not allow the
    /// namespace or the name, the request is refused and not sent.
    pub(crate) async fn ask<T>(
        &self,
        ask: Ask<'_>,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Refusal> {
        ask.check()?;
        let began = Instant::now();
        match tokio::time::timeout(self.timeout, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Refusal::new(&ask, &error)),
            Err(_) => {
                let late = format!("no answer within {}", humantime::format_duration(self.timeout));
                let text = match &self.reach {
                    Some(reach) => format!("{ask}: {late} from the API server at {}", reach.address()),
                    None => format!("{ask}: {late}"),
                };
                if let Some(reach) = &self.reach {
                    reach.failed(began, &late);
                }
                Err(Refusal { kind: RefusalKind::Unavailable, subject: ask.subject(), text })
            }
        }
    }

    /// The same for a write: it is sent only while `permit` holds, and its answer is not waited for after that. A
    /// write without an answer may have been carried out, so each write names the version that was read.
    pub(crate) async fn write<T>(
        &self,
        permit: &WritePermit,
        ask: Ask<'_>,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Refusal> {
        let answer = permit.while_held(self.ask(ask.clone(), request)).await;
        answer.unwrap_or_else(|| Err(Refusal::not_leading(&ask)))
    }

    /// Sends a request in its turn: all paced requests together stay below `kubernetes.requests_per_second`.
    pub(crate) async fn ask_in_turn<T>(
        &self,
        ask: Ask<'_>,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Refusal> {
        self.pace.turn().await;
        self.ask(ask, request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_with_a_name_that_kubernetes_does_not_allow_is_refused_and_not_sent() {
        let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = sent.clone();
        let service = tower::service_fn(move |request: hyper::Request<kube::client::Body>| {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(request.uri().path(), "/api/v1/namespaces/ns-a/pods/web-0.x");
            let answer = hyper::Response::builder().status(404).body(kube::client::Body::from(Vec::new()));
            std::future::ready(Ok::<_, std::convert::Infallible>(answer.unwrap()))
        });
        let cluster = Cluster::with_client(Client::new(service, "default"));
        let get = async |namespace: &str, name: &str| {
            let ask = Ask { verb: "get", resource: "pods", namespace: Some(namespace), name: Some(name) };
            let api: kube::Api<k8s_openapi::api::core::v1::Pod> =
                kube::Api::namespaced(cluster.client(), namespace);
            cluster.ask(ask, api.get(name)).await.unwrap_err()
        };
        for name in
            ["..", "../../../secrets/x", "a/b", "a?dryRun=All", "a#b", "a%2Fb", "A", "a\u{1b}[31m", ""]
        {
            let refusal = get("ns-a", name).await;
            let text = format!("get pods: invalid name {name:?}: expected a Kubernetes name: ");
            assert!(refusal.kind == RefusalKind::Invalid && refusal.text.starts_with(&text), "{refusal}");
        }
        for namespace in ["..", "ns-a/../kube-system", "ns-a?x", "ns.a", ""] {
            let refusal = get(namespace, "web-0").await;
            let text = format!("get pods: invalid namespace {namespace:?}: expected ");
            assert!(refusal.kind == RefusalKind::Invalid && refusal.text.starts_with(&text), "{refusal}");
        }
        assert_eq!(sent.load(std::sync::atomic::Ordering::Relaxed), 0);
        assert_eq!(get("ns-a", "web-0.x").await.kind, RefusalKind::Unavailable);
        assert_eq!(sent.load(std::sync::atomic::Ordering::Relaxed), 1);
    }
}
