//! Watches the objects of accused namespaces in the whole cluster, and notes changes.
//!
//! One watch per kind for the whole cluster, because there may be thousands of accused namespaces. While an event
//! arrives a fingerprint is made of the fields that `lookup` reads, and only that is held. So a watch is no copy of the
//! cluster: it only shows whether a namespace has changed since it was looked up. And no object is too large for it.
//!
//! **Up to when everything was reported.** A bookmark shows only that the API server's cache has reported everything up
//! to the bookmark's version. That version may be old: a cache that gets no updates from etcd repeats its version, and
//! one that lags behind sends old ones. So we read a list, which is consistent: it gives the version that the cluster
//! had at a moment of our clock. When a bookmark has reached that version, everything up to that moment was reported.
//! Then the next list is read.
//!
//! A watch begins with the version of a list of one object, and is resumed where it broke off. If that is no longer
//! possible (410), it starts anew, and every accused namespace is looked up again. Refused watches (403) are tried
//! again every ten minutes. As long as one is refused or silent, the accused namespaces are looked up every round, as
//! without watches.

mod event;

use std::collections::BTreeMap;
use std::hash::RandomState;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::header::{ACCEPT, HeaderValue};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::networking::v1::Ingress;
use kube::Resource;
use kube::api::{ListParams, WatchParams};
use kube::core::{DynamicObject, GroupVersionKind, ListMeta, Request};
use kube::discovery::ApiResource;
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::changes::{Changes, Kind, MAX_SILENCE};
use super::fields;
use crate::clock::Clock;
use crate::kubernetes::{Ask, Cluster, Keep, Limit, Refusal, RefusalKind, Trim};

/// How many bytes of one event are held: its names and its version. No object has such long ones.
const MAX_EVENT: usize = 64 << 10;
/// The limit for the list that gives the version. Its one object may be large, but nothing of it is held.
const MAX_LIST: Limit = Limit { read: 64 << 20, wanted: 64 << 10 };
/// Asks for the metadata of the listed object only.
const METADATA: HeaderValue = HeaderValue::from_static(
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1, application/json",
);
/// Changes within this time are looked up together.
const SETTLE: Duration = Duration::from_millis(200);
/// The pause after a watch has ended or failed; it doubles with each failure in a row, up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// The pause before a refused watch, or one whose kind the cluster does not have, is tried again.
const REFUSED_PAUSE: Duration = Duration::from_mins(10);
/// The pause after a failed list, before the next one.
const LIST_PAUSE: Duration = Duration::from_secs(10);
/// The namespace that these lists read if our own is not known. Tenants create no objects in it.
const DEFAULT_NAMESPACE: &str = "default";

/// The reports of the watches, and their errors. Cheap to clone; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct WatchStates {
    changes: Arc<Mutex<Changes>>,
    /// Wakes the task when something has changed.
    changed: Arc<Notify>,
    refused: Arc<Mutex<BTreeMap<Kind, Refusal>>>,
}

/// The running watches; dropping this ends them.
#[derive(Debug)]
pub(super) struct Watches {
    _tasks: JoinSet<()>,
}

impl WatchStates {
    /// The reports. Locked for a moment only.
    pub(super) fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something has changed, and for further changes soon after.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
        tokio::time::sleep(SETTLE).await;
    }

    /// Logs once that a watch fails, and once that it works again.
    fn set_refusal(&self, kind: Kind, refusal: Option<Refusal>) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match &refusal {
            Some(refusal) => refused.insert(kind, refusal.clone()),
            None => refused.remove(&kind),
        };
        match (before, refusal) {
            (None, Some(refusal)) => tracing::warn!(
                error = refusal.text,
                "accused namespaces are looked up each round, until they can be watched"
            ),
            (Some(before), None) => {
                tracing::info!(watch = before.subject, "accused namespaces can be watched again");
            }
            _ => {}
        }
    }
}

impl Watches {
    pub(super) fn start(cluster: &Cluster, clock: Clock, states: &WatchStates) -> Self {
        let mut tasks = JoinSet::new();
        for kind in Kind::ALL {
            let watch = Watch::of(kind, cluster.clone(), clock, states.clone());
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
    /// The request for the lists that give versions: of one namespace, so that they are cheap.
    few: Request,
    keep: &'static Keep,
    cluster: Cluster,
    clock: Clock,
    states: WatchStates,
    /// Wakes the task that lists: bookmarks have reached the last version.
    reached: Notify,
    /// The secret of the fingerprints: with a known key a tenant could make a change that leaves the fingerprint as it
    /// is.
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

impl Watch {
    fn of(kind: Kind, cluster: Cluster, clock: Clock, states: WatchStates) -> Self {
        let (resource, keep) = match kind {
            Kind::Namespaces => ("namespaces", &fields::NAMESPACE_EVENT),
            Kind::Pods => ("pods", &fields::POD_EVENT),
            Kind::Services => ("services", &fields::SERVICE_EVENT),
            Kind::Ingresses => ("ingresses.networking.k8s.io", &fields::INGRESS_EVENT),
            Kind::HttpRoutes => ("httproutes.gateway.networking.k8s.io", &fields::HTTP_ROUTE_EVENT),
        };
        let path = |namespace: Option<&str>| match kind {
            Kind::Namespaces => Namespace::url_path(&(), None),
            Kind::Pods => Pod::url_path(&(), namespace),
            Kind::Services => Service::url_path(&(), namespace),
            Kind::Ingresses => Ingress::url_path(&(), namespace),
            Kind::HttpRoutes => {
                let kind = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "HTTPRoute");
                DynamicObject::url_path(&ApiResource::from_gvk(&kind), namespace)
            }
        };
        let few = Request::new(path(Some(cluster.own_namespace().unwrap_or(DEFAULT_NAMESPACE))));
        let (request, reached, secret) = (Request::new(path(None)), Notify::new(), RandomState::new());
        Self { kind, resource, request, few, keep, cluster, clock, states, reached, secret }
    }

    fn ask(&self, verb: &'static str) -> Ask<'_> {
        Ask { verb, resource: self.resource, namespace: None, name: None }
    }

    async fn follow(self) {
        let mut pause = MIN_PAUSE;
        loop {
            // Everything after the request began is reported.
            let begun = self.clock.now();
            match self.version(&self.request).await {
                Ok(mut version) => {
                    self.states.changes().begin(self.kind, begun);
                    self.states.changed.notify_one();
                    tokio::select! {
                        () = self.stream(&mut version, &mut pause) => {}
                        () = self.list() => {}
                    }
                    self.states.changes().end(self.kind);
                    // Events reset it to the minimum.
                    pause = (pause * 2).clamp(MIN_PAUSE, MAX_PAUSE.max(pause));
                }
                Err(refusal) if refusal.kind == RefusalKind::NotServed && self.kind == Kind::HttpRoutes => {
                    self.states.changes().is_absent(self.kind);
                    self.states.set_refusal(self.kind, None);
                    self.states.changed.notify_one();
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
            self.states.changes().end(self.kind);
        }
        self.states.set_refusal(self.kind, Some(refusal));
    }

    /// Reads a list whenever a bookmark has reached the version of the last one. Returns when the versions have gone
    /// back, such as after a restored backup.
    async fn list(&self) {
        loop {
            self.reached.notified().await;
            while !self.states.changes().has_goal(self.kind) {
                let asked = self.clock.now();
                match self.version(&self.few).await {
                    Ok(version) => {
                        if !self.states.changes().expect(self.kind, version, asked) {
                            return;
                        }
                    }
                    Err(_) => tokio::time::sleep(LIST_PAUSE).await,
                }
            }
        }
    }

    /// The version of a list of one object: that of the cluster when the request began, or a later one.
    async fn version(&self, request: &Request) -> Result<String, Refusal> {
        let request = request.list(&ListParams::default().limit(1)).map(|mut request| {
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
        let mut line = Trim::printing(self.keep, &self.secret);
        loop {
            let Ok(frame) = tokio::time::timeout(MAX_SILENCE, body.frame()).await else {
                return Ok(End::Over);
            };
            let Some(frame) = frame else { return Ok(End::Over) };
            let frame = frame.map_err(|error| Refusal::new(&ask, &error))?;
            let Ok(piece) = frame.into_data() else { continue };
            let mut pieces = piece.split(|byte| *byte == b'\n');
            let first = pieces.next().unwrap_or_default();
            line.take_in(first);
            for next in pieces {
                let whole = std::mem::replace(&mut line, Trim::printing(self.keep, &self.secret));
                if let Some(end) = self.take_in(whole, version)? {
                    return Ok(end);
                }
                *pause = MIN_PAUSE;
                line.take_in(next);
            }
            if line.held() > MAX_EVENT {
                // It is not known which object it is about, so everything that is watched has to be looked up again.
                return Ok(End::Gone);
            }
        }
    }
}
