//! Watches the objects of accused namespaces in the whole cluster, and notes changes.
//!
//! One watch per kind for the whole cluster, because there may be thousands of accused namespaces. Each event is
//! trimmed to the fields that `lookup` reads while it arrives, and only their fingerprint is kept. So a watch is no
//! copy of the cluster: it only shows whether a namespace has changed since it was looked at.
//!
//! A watch begins with the version of a list of one object, and is resumed where it broke off. If that is no longer
//! possible (410), it starts anew, and every accused namespace is looked at again. Refused watches (403) are tried
//! again every ten minutes. As long as one is refused or silent, the accused namespaces are looked at every round, as
//! without watches.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::header::{ACCEPT, HeaderValue};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::networking::v1::Ingress;
use kube::Resource;
use kube::api::{ListParams, WatchParams};
use kube::core::{GroupVersionKind, ListMeta, Request};
use kube::discovery::ApiResource;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::changes::{Changes, Kind, SILENCE};
use super::fields;
use crate::clock::Clock;
use crate::kubernetes::{Ask, Cluster, Keep, Limit, Refusal, RefusalKind, Trim};

/// How many bytes of one event are held. No object is so large.
const MAX_EVENT: usize = 4 << 20;
/// The limit for the list that gives the version. Its one object may be large, but nothing of it is kept.
const MAX_LIST: Limit = Limit { read: 64 << 20, kept: 64 << 10 };
/// Asks for the metadata of the listed object only.
const METADATA: HeaderValue = HeaderValue::from_static(
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1, application/json",
);
/// Changes within this time are looked at together.
const SETTLE: Duration = Duration::from_millis(200);
/// The pause after a watch has ended or failed; it doubles with each failure in a row, up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// The pause before a watch is tried again that was refused, or whose kind the cluster does not have.
const REFUSED_PAUSE: Duration = Duration::from_mins(10);

/// The reports of the watches, and their errors. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    changes: Arc<Mutex<Changes>>,
    /// Wakes the task that looks.
    news: Arc<Notify>,
    refused: Arc<Mutex<BTreeMap<Kind, Refusal>>>,
}

/// The running watches; dropping this ends them.
#[derive(Debug)]
pub(super) struct Watches {
    /// Dropping it ends the tasks.
    _tasks: JoinSet<()>,
}

impl Told {
    /// The reports. Locked for a moment only.
    pub(super) fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something has changed, and for further changes soon after.
    pub(super) async fn news(&self) {
        self.news.notified().await;
        tokio::time::sleep(SETTLE).await;
    }

    /// Logs once that a watch fails, and once that it works again.
    fn tell(&self, kind: Kind, refusal: Option<Refusal>) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match &refusal {
            Some(refusal) => refused.insert(kind, refusal.clone()),
            None => refused.remove(&kind),
        };
        match (before, refusal) {
            (None, Some(refusal)) => tracing::warn!(
                error = refusal.text,
                "accused namespaces are looked at each round, until they can be watched"
            ),
            (Some(before), None) => {
                tracing::info!(watch = before.subject, "accused namespaces can be watched again");
            }
            _ => {}
        }
    }
}

impl Watches {
    /// Starts the watches.
    pub(super) fn start(cluster: &Cluster, clock: Clock, told: &Told) -> Self {
        let mut tasks = JoinSet::new();
        for kind in Kind::ALL {
            let watch = Watch::of(kind, cluster.clone(), clock, told.clone());
            tasks.spawn(watch.follow());
        }
        Self { _tasks: tasks }
    }
}

/// One watch.
struct Watch {
    kind: Kind,
    resource: &'static str,
    request: Request,
    keep: &'static Keep,
    cluster: Cluster,
    clock: Clock,
    told: Told,
    /// The secret of the fingerprints: with known keys a tenant could make a change that keeps the fingerprint.
    secret: RandomState,
}

/// How a stream of events ends.
enum End {
    /// It can be resumed where it ended.
    Over,
    /// It has to start anew.
    Gone,
}

#[derive(Deserialize)]
struct Head {
    metadata: ListMeta,
}

#[derive(Deserialize)]
struct Event {
    r#type: String,
    object: Value,
}

impl Watch {
    fn of(kind: Kind, cluster: Cluster, clock: Clock, told: Told) -> Self {
        let http_route = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "HTTPRoute");
        let (resource, path, keep) = match kind {
            Kind::Namespaces => ("namespaces", Namespace::url_path(&(), None), &fields::NAMESPACE_EVENT),
            Kind::Pods => ("pods", Pod::url_path(&(), None), &fields::POD_EVENT),
            Kind::Services => ("services", Service::url_path(&(), None), &fields::SERVICE_EVENT),
            Kind::Ingresses => {
                ("ingresses.networking.k8s.io", Ingress::url_path(&(), None), &fields::INGRESS_EVENT)
            }
            Kind::HttpRoutes => (
                "httproutes.gateway.networking.k8s.io",
                kube::core::DynamicObject::url_path(&ApiResource::from_gvk(&http_route), None),
                &fields::HTTP_ROUTE_EVENT,
            ),
        };
        let secret = RandomState::new();
        Self { kind, resource, request: Request::new(path), keep, cluster, clock, told, secret }
    }

    fn ask(&self, verb: &'static str) -> Ask<'_> {
        Ask { verb, resource: self.resource, namespace: None }
    }

    async fn follow(self) {
        let mut pause = MIN_PAUSE;
        loop {
            // Everything after the request began is reported.
            let begun = self.clock.now();
            match self.version().await {
                Ok(mut version) => {
                    self.told.changes().begin(self.kind, begun);
                    self.told.news.notify_one();
                    self.stream(&mut version, &mut pause).await;
                    self.told.changes().end(self.kind);
                    // Events reset it to the minimum.
                    pause = (pause * 2).clamp(MIN_PAUSE, MAX_PAUSE.max(pause));
                }
                Err(refusal) if refusal.kind == RefusalKind::NotServed && self.kind == Kind::HttpRoutes => {
                    self.told.changes().is_absent(self.kind);
                    self.told.tell(self.kind, None);
                    self.told.news.notify_one();
                    pause = REFUSED_PAUSE;
                }
                Err(refusal) => self.fail(refusal, &mut pause),
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Logs why a kind can't be watched; it is tried again later.
    fn fail(&self, refusal: Refusal, pause: &mut Duration) {
        let is_refused = matches!(refusal.kind, RefusalKind::Forbidden | RefusalKind::NotServed);
        *pause = if is_refused { REFUSED_PAUSE } else { (*pause * 2).clamp(MIN_PAUSE, MAX_PAUSE) };
        if is_refused {
            self.told.changes().end(self.kind);
        }
        self.told.tell(self.kind, Some(refusal));
    }

    /// The version with which a watch can begin.
    async fn version(&self) -> Result<String, Refusal> {
        let request = self.request.list(&ListParams::default().limit(1)).map(|mut request| {
            request.headers_mut().insert(ACCEPT, METADATA);
            request
        });
        let answer = self.cluster.read_in_turn(self.ask("list"), request, &fields::LIST, MAX_LIST).await?;
        let Head { metadata } = answer.value;
        metadata.resource_version.filter(|version| !version.is_empty()).ok_or_else(|| {
            Refusal::new(
                &self.ask("list"),
                &kube::Error::Api(Box::new(kube::core::Status {
                    message: "the list has no resourceVersion".to_owned(),
                    ..kube::core::Status::default()
                })),
            )
        })
    }

    /// Takes events until the watch has to start anew.
    async fn stream(&self, version: &mut String, pause: &mut Duration) {
        loop {
            match self.events(version, pause).await {
                Ok(End::Over) => {}
                Ok(End::Gone) => return,
                Err(refusal) => {
                    let is_refused = matches!(refusal.kind, RefusalKind::Forbidden | RefusalKind::NotServed);
                    self.fail(refusal, pause);
                    if is_refused {
                        return;
                    }
                }
            }
            tokio::time::sleep(*pause).await;
        }
    }

    /// Takes the events from `version` on, until the stream ends.
    async fn events(&self, version: &mut String, pause: &mut Duration) -> Result<End, Refusal> {
        let ask = self.ask("watch");
        let request = self.request.watch(&WatchParams::default(), version);
        // Too old to resume.
        let Some(mut body) = self.cluster.open(ask.clone(), request).await? else { return Ok(End::Gone) };
        let mut line = Trim::new(self.keep);
        loop {
            let Ok(frame) = tokio::time::timeout(SILENCE, body.frame()).await else { return Ok(End::Over) };
            let Some(frame) = frame else { return Ok(End::Over) };
            let frame = frame.map_err(|error| Refusal::new(&ask, &error))?;
            let Ok(piece) = frame.into_data() else { continue };
            let mut pieces = piece.split(|byte| *byte == b'\n');
            let first = pieces.next().unwrap_or_default();
            line.take_in(first);
            for next in pieces {
                let whole = std::mem::replace(&mut line, Trim::new(self.keep));
                if let Some(end) = self.take_in(&whole.into_kept(), version)? {
                    return Ok(end);
                }
                *pause = MIN_PAUSE;
                line.take_in(next);
            }
            if line.held() > MAX_EVENT {
                // It is not known which object it is about, so everything that is watched has to be looked at again.
                return Ok(End::Gone);
            }
        }
    }

    /// Takes one event.
    fn take_in(&self, line: &[u8], version: &mut String) -> Result<Option<End>, Refusal> {
        if line.is_empty() {
            return Ok(None);
        }
        let ask = self.ask("watch");
        let read: Result<Event, _> = serde_json::from_slice(line);
        let Event { r#type, mut object } =
            read.map_err(|e| Refusal::new(&ask, &kube::Error::SerdeError(e)))?;
        if r#type == "ERROR" {
            let code = object.get("code").and_then(Value::as_u64).unwrap_or(0);
            if code == 410 {
                return Ok(Some(End::Gone));
            }
            let message = object.get("message").and_then(Value::as_str).unwrap_or_default();
            let status = kube::core::Status::failure(message, "");
            let status = status.with_code(u16::try_from(code).unwrap_or(0));
            return Err(Refusal::new(&ask, &kube::Error::Api(Box::new(status))));
        }
        let text = |object: &Value, field: &str| {
            object.pointer(field).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let new = text(&object, "/metadata/resourceVersion");
        let is_bookmark = r#type == "BOOKMARK";
        // Everything up to its version has been reported, and nothing is known to be newer.
        let is_told = is_bookmark && reaches(&new, version);
        if is_told || !is_bookmark && !new.is_empty() {
            *version = new;
        }
        let (namespace, name) = (text(&object, "/metadata/namespace"), text(&object, "/metadata/name"));
        let namespace = if self.kind == Kind::Namespaces { &name } else { &namespace };
        let mut is_news = false;
        {
            let mut changes = self.told.changes();
            if !is_bookmark {
                let print = (r#type != "DELETED").then(|| fingerprint(&mut object, &self.secret));
                is_news = changes.note(self.kind, namespace, &name, print);
            }
            if is_told {
                changes.tell_until(self.kind, self.clock.now());
            }
        }
        self.told.tell(self.kind, None);
        if is_news {
            self.told.news.notify_one();
        }
        Ok(None)
    }
}

/// Whether a version is the other one or a later one. Versions are numbers; others can't be compared.
fn reaches(version: &str, other: &str) -> bool {
    let later = || Some(version.parse::<u64>().ok()? >= other.parse::<u64>().ok()?);
    !version.is_empty() && (version == other || later().unwrap_or(false))
}

/// A fingerprint of an object without its version.
fn fingerprint(object: &mut Value, secret: &RandomState) -> u64 {
    if let Some(metadata) = object.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    secret.hash_one(object.to_string())
}

#[cfg(test)]
mod tests {
    use procscan_core::Moment;
    use serde_json::json;

    use super::super::tests::fake::Server;
    use super::*;

    #[test]
    fn fingerprints_show_changes_and_can_not_be_computed_without_the_secret() {
        let secret = RandomState::new();
        let print = |version: &str, uid: &str, secret: &RandomState| {
            fingerprint(&mut json!({"metadata": {"resourceVersion": version, "uid": uid}}), secret)
        };
        assert_eq!(print("1", "a", &secret), print("2", "a", &secret));
        assert_ne!(print("1", "a", &secret), print("1", "b", &secret));
        assert_ne!(print("1", "a", &secret), print("1", "a", &RandomState::new()));
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_bookmark_that_does_not_go_back_tells_that_everything_was_told() {
        let (clock, told) = (Clock::start(), Told::default());
        let cluster = Cluster::paced(Server::new().client(), 20);
        let watch = Watch::of(Kind::Pods, cluster, clock, told.clone());
        for kind in Kind::ALL {
            told.changes().is_absent(kind);
        }
        told.changes().begin(Kind::Pods, clock.now());
        let mut version = "9".to_owned();
        let mut lines = vec![("MODIFIED", "10", false), ("BOOKMARK", "9", false), ("BOOKMARK", "x", false)];
        lines.extend([("BOOKMARK", "10", true), ("BOOKMARK", "11", true), ("BOOKMARK", "10", false)]);
        for (r#type, newest, is_told) in lines {
            tokio::time::advance(Duration::from_secs(10)).await;
            let before = told.changes().told_until(clock.now());
            let line = json!({"type": r#type, "object": {"metadata": {"resourceVersion": newest}}});
            assert!(watch.take_in(line.to_string().as_bytes(), &mut version).unwrap().is_none());
            let after = told.changes().told_until(clock.now());
            assert_eq!(after.map(Moment::uptime) > before.map(Moment::uptime), is_told, "{line}");
        }
        assert_eq!(version, "11");
    }
}
