//! The connection to the cluster, and the texts of its refusals.
//!
//! Every request has a timeout, and an [`Ask`] that describes it. So a refusal names what is missing: the verb, the
//! resource and the namespace of an RBAC rule, or the CRD.

mod kubeconfig;
mod reach;
mod read;
mod server_clock;
mod trim;
mod watch;
mod write_permit;

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use kube::client::ClientBuilder;
use kube::config::KubeConfigOptions;
use kube::{Client, Config};
use procscan_core::Moment;
use procscan_core::names::{self, Text, is_dns_label, is_dns_subdomain};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tower::util::MapResponseLayer;

pub use self::reach::{Lost, Reach};
use self::reach::{Unanswered, chain};
pub use self::read::{Answer, Limit};
use self::server_clock::ServerClock;
pub use self::trim::{Keep, Size, Trim};
pub use self::watch::watch;
pub use self::write_permit::WritePermit;
use crate::config;

/// The variable that has the Pod's own namespace, which is never a tenant's.
const OWN_NAMESPACE: &str = "POD_NAMESPACE";

/// How long a connection may be without data. The API server ends each watch after 290 s, so a working watch never
/// reaches this limit.
const WATCH_IDLE_TIMEOUT: Duration = Duration::from_mins(5);

/// How many characters of an invalid name are shown.
const MAX_SHOWN_CHARS: usize = 120;

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
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("own_namespace", &self.own_namespace).finish_non_exhaustive()
    }
}

/// Describes a request in the terms of an RBAC rule.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// `get`, `list`, `patch`, ….
    pub verb: &'static str,
    /// The resource's plural, with its group: `wasmplugins.extensions.higress.io`.
    pub resource: &'a str,
    /// The namespace; `None` for all of them, or for a resource without one.
    pub namespace: Option<&'a str>,
    /// The object's name; `None` for requests that name none in their path, such as `list` and `create`.
    pub name: Option<&'a str>,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of the failure.
    pub kind: RefusalKind,
    /// The verb and the resource without the namespace, as an RBAC rule has to allow them.
    pub subject: String,
    /// The request and the reason, for people.
    pub text: String,
}

/// The kinds of failures of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// There is no such object.
    NotFound,
    /// The API server does not know the kind, because its CRD is not installed.
    NotServed,
    /// The namespace does not exist, or is being deleted.
    NoNamespace,
    /// RBAC, an admission rule or a quota forbids the request.
    Forbidden,
    /// The API server does not accept our token at the moment. The token has expired, and the client has not read the
    /// new one yet. The client reads the ServiceAccount's token file when its copy is 50 s old. This kind proves
    /// nothing about the requested object.
    Unauthenticated,
    /// Another program has changed the object meanwhile.
    Conflict,
    /// The answer, or the whole list, is larger than the limit.
    TooMuch,
    /// The request itself is invalid.
    Invalid,
    /// The API server can't be reached, or has an error of its own.
    Unavailable,
    /// This replica may not write, or no longer.
    NotLeading,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Refusal {}

impl Cluster {
    /// Reads the settings of the connection. The first request shows whether the cluster can be reached.
    pub async fn connect(settings: &config::Kubernetes) -> anyhow::Result<Self> {
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
            .with_layer(&reach)
            .with_layer(&MapResponseLayer::new(move |response: hyper::Response<_>| {
                noting.note(response.status(), response.headers());
                response
            }))
            .build();
        let pace = Arc::new(Pace::new(settings.requests_per_second));
        let (timeout, reach) = (settings.request_timeout, Some(reach));
        Ok(Self { client, timeout, own_namespace, pace, server_clock, reach })
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
        Self { client, timeout, own_namespace: None, pace, server_clock, reach: None }
    }

    /// The same connection with a shorter timeout.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout: timeout.min(self.timeout), ..self.clone() }
    }

    /// The client, for requests that are passed to [`Self::ask`].
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The moment on our clock when the API server's clock read `at`, such as the creation of an object. Both clocks
    /// are read when an answer arrives, so they need not agree. `None` until an answer has had the API server's time;
    /// `now` if `at` is in the future.
    pub fn moment_of(&self, at: Timestamp, now: Moment) -> Option<Moment> {
        self.server_clock.moment_of(at, now)
    }

    /// The API server's time. `None` until an answer has had it.
    pub fn server_time(&self) -> Option<Timestamp> {
        self.server_clock.time()
    }

    /// Sets the API server's time as if an answer had had it.
    #[cfg(test)]
    pub(crate) fn set_server_time(&self, date: Timestamp) {
        self.server_clock.set(date);
    }

    /// Whether the API server can be reached, and at which address. `None` if a test plays it.
    pub fn reach(&self) -> Option<&Reach> {
        self.reach.as_ref()
    }

    /// The namespace that the service runs in, if it runs in one.
    pub fn own_namespace(&self) -> Option<&str> {
        self.own_namespace.as_deref()
    }

    /// Waits for the answer to one request, for `kubernetes.request_timeout` at most. If Kubernetes does not allow the
    /// namespace or the name, the request is refused and not sent.
    pub async fn ask<T>(
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
    pub async fn write<T>(
        &self,
        permit: &WritePermit,
        ask: Ask<'_>,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Refusal> {
        let answer = permit.while_held(self.ask(ask.clone(), request)).await;
        answer.unwrap_or_else(|| {
            Err(Refusal {
                kind: RefusalKind::NotLeading,
                subject: ask.subject(),
                text: format!("{ask}: the right to write has passed to another replica"),
            })
        })
    }

    /// Sends a request in its turn: all paced requests together stay below `kubernetes.requests_per_second`.
    pub async fn ask_in_turn<T>(
        &self,
        ask: Ask<'_>,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Refusal> {
        self.pace.turn().await;
        self.ask(ask, request).await
    }
}

impl<'a> Ask<'a> {
    /// The same request about the object `name`.
    #[must_use]
    pub fn of(self, name: &'a str) -> Self {
        Self { name: Some(name), ..self }
    }

    /// The verb and the resource, without the namespace.
    pub fn subject(&self) -> String {
        format!("{} {}", self.verb, self.resource)
    }

    /// Refuses names that Kubernetes does not allow. A name becomes a part of the request's path as it is. So `..`,
    /// `/`, `?` or `#` in it would make the request one for another resource.
    fn check(&self) -> Result<(), Refusal> {
        let invalid = |what: &str, given: &str, expected: &str| {
            let given: String = given.chars().take(MAX_SHOWN_CHARS).collect();
            let (kind, subject) = (RefusalKind::Invalid, self.subject());
            let text = format!("{subject}: invalid {what} {given:?}: expected {expected}");
            Err(Refusal { kind, subject, text })
        };
        match (self.namespace, self.name) {
            (Some(namespace), _) if !is_dns_label(namespace) => invalid("namespace", namespace, names::LABEL),
            (_, Some(name)) if !is_dns_subdomain(name) => invalid("name", name, names::SUBDOMAIN),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Ask<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        match self.namespace {
            Some(namespace) => write!(f, " in namespace {namespace}"),
            None => f.write_str(" in all namespaces"),
        }
    }
}

impl Refusal {
    /// The refusal that `error` means.
    pub fn new(ask: &Ask<'_>, error: &kube::Error) -> Self {
        let kube::Error::Api(status) = error else {
            let unanswered = match error {
                kube::Error::Service(error) => error.downcast_ref::<Unanswered>(),
                _ => None,
            };
            let text = match unanswered {
                Some(error) => {
                    format!("{ask}: the API server can't be reached at {}: {error}", error.address)
                }
                None => format!("{ask}: the API server can't be reached: {}", chain(error)),
            };
            return Self { kind: RefusalKind::Unavailable, subject: ask.subject(), text };
        };
        let message = status.message.split_whitespace().collect::<Vec<_>>().join(" ");
        let is_not_found = status.reason == "NotFound";
        let kind = match status.code {
            // Webhooks choose their own codes.
            _ if message.starts_with("admission webhook ") && message.contains(" denied the request") => {
                RefusalKind::Forbidden
            }
            // etcd refuses this object, but the API server reports that as an error of its own.
            500 if message.contains("request is too large")
                || message.contains("message larger than max") =>
            {
                RefusalKind::Invalid
            }
            403 if message.contains("because it is being terminated") => RefusalKind::NoNamespace,
            404 if message.starts_with("namespaces \"") && is_not_found => RefusalKind::NoNamespace,
            404 if message.contains("could not find the requested resource")
                || message.contains("page not found") =>
            {
                RefusalKind::NotServed
            }
            404 if is_not_found => RefusalKind::NotFound,
            401 => RefusalKind::Unauthenticated,
            403 => RefusalKind::Forbidden,
            409 => RefusalKind::Conflict,
            400 | 405 | 413 | 415 | 422 => RefusalKind::Invalid,
            // Includes a 404 of a proxy, because only the API server itself can prove that an object does not exist.
            _ => RefusalKind::Unavailable,
        };
        let text = match kind {
            RefusalKind::NotServed => {
                format!("{ask}: the API server does not know {}: is its CRD installed?", ask.resource)
            }
            RefusalKind::Unauthenticated => {
                format!(
                    "{ask}: the API server does not accept this service's token at the moment: {message} (401)"
                )
            }
            _ => format!("{ask}: {} ({})", message, status.code),
        };
        Self { kind, subject: ask.subject(), text }
    }
}

/// Lets a number of requests through per second, evenly, in the order in which they come.
#[derive(Debug)]
struct Pace {
    gap: Duration,
    next: Mutex<Instant>,
}

impl Pace {
    fn new(per_second: u32) -> Self {
        Self { gap: Duration::from_secs(1) / per_second.max(1), next: Mutex::new(Instant::now()) }
    }

    async fn turn(&self) {
        let mut next = self.next.lock().await;
        let at = (*next).max(Instant::now());
        *next = at + self.gap;
        drop(next);
        tokio::time::sleep_until(at).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: u16, message: &str) -> Refusal {
        let ask = Ask {
            verb: "patch",
            resource: "wasmplugins.extensions.higress.io",
            namespace: Some("gw"),
            name: None,
        };
        let reason = if code == 404 { "NotFound" } else { "" }.to_owned();
        let status =
            kube::core::Status { code, reason, message: message.to_owned(), ..kube::core::Status::default() };
        Refusal::new(&ask, &kube::Error::Api(Box::new(status)))
    }

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

    #[test]
    fn refusals_name_the_request_and_what_is_missing() {
        let missing = refusal(404, "the server could not find the requested resource");
        assert_eq!(missing.kind, RefusalKind::NotServed);
        assert_eq!(
            missing.text,
            "patch wasmplugins.extensions.higress.io in namespace gw: the API server does not know \
             wasmplugins.extensions.higress.io: is its CRD installed?"
        );
        assert_eq!(
            refusal(404, "wasmplugins.extensions.higress.io \"x\" not found").kind,
            RefusalKind::NotFound
        );
        assert_eq!(refusal(404, "namespaces \"gw\" not found").kind, RefusalKind::NoNamespace);
        // A proxy's 404 page proves no absence.
        let page = kube::core::Status {
            code: 404,
            reason: "Failed to parse error data".to_owned(),
            message: "<html>404 Not Found</html>".to_owned(),
            ..kube::core::Status::default()
        };
        let ask = Ask { verb: "get", resource: "pods", namespace: Some("ns-a"), name: None };
        let refused = Refusal::new(&ask, &kube::Error::Api(Box::new(page)));
        assert_eq!(refused.kind, RefusalKind::Unavailable);
        let ending = "unable to create new content in namespace gw because it is being terminated";
        assert_eq!(refusal(403, ending).kind, RefusalKind::NoNamespace);
        // A namespace that is forbidden may exist.
        let hidden = "namespaces \"gw\" is forbidden: User \"x\" cannot get resource \"namespaces\"";
        assert_eq!(refusal(403, hidden).kind, RefusalKind::Forbidden);
        // These refusals concern one object only, whatever their codes.
        for (code, message, kind) in [
            (500, "etcdserver: request is too large", RefusalKind::Invalid),
            (
                500,
                "rpc error: code = ResourceExhausted desc = trying to send message larger than max (2 vs. 1)",
                RefusalKind::Invalid,
            ),
            (404, "admission webhook \"x.y\" denied the request: not here", RefusalKind::Forbidden),
            (500, "admission webhook \"x.y\" denied the request: not here", RefusalKind::Forbidden),
            (500, "etcdserver: leader changed", RefusalKind::Unavailable),
            (
                500,
                "Internal error occurred: failed calling webhook \"x.y\": timed out",
                RefusalKind::Unavailable,
            ),
        ] {
            assert_eq!(refusal(code, message).kind, kind, "{message}");
        }
        assert_eq!(refusal(401, "Unauthorized").kind, RefusalKind::Unauthenticated);
        assert_eq!(refusal(503, "shutting down").kind, RefusalKind::Unavailable);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_let_through_at_their_pace_and_idle_time_is_not_saved_up() {
        let pace = Pace::new(10);
        tokio::time::sleep(Duration::from_mins(1)).await;
        let start = Instant::now();
        for _ in 0..21 {
            pace.turn().await;
        }
        assert_eq!(start.elapsed(), Duration::from_secs(2));
    }
}
