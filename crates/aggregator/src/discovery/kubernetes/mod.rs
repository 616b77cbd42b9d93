//! Watches the endpoints of the agents' Service in the cluster.
//!
//! Reads EndpointSlices of both IP families, and Endpoints only if the cluster refuses slices. A lost watch begins
//! again with backoff. Meanwhile the last set stays, and is reported as old. The same happens when a new list has no
//! agents although the DaemonSets want some.

mod listed;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use self::listed::Port;
use self::listed::{Change, Known, change, missing, of_endpoints, of_slice};
use super::TargetSet;
use crate::kubernetes::{Ask, Cluster, Refusal, RefusalKind, watch as watch_objects};

/// Changes within this time become one new set, because a rollout changes many slices at once.
const SETTLE_TIME: Duration = Duration::from_millis(50);
/// How often EndpointSlices are requested again if the cluster refuses them. Also how often Services with a similar
/// name are searched if the Service is empty.
const RECHECK_PERIOD: Duration = Duration::from_mins(1);

const SLICES: &str = "endpointslices.discovery.k8s.io";
const ENDPOINTS: &str = "endpoints";

/// A Service whose endpoints are the agents.
#[derive(Debug)]
pub(crate) struct Kubernetes {
    /// The connection.
    pub(crate) cluster: Cluster,
    /// The Service's namespace.
    pub(crate) namespace: String,
    /// The Service's name.
    pub(crate) service: String,
    /// The port of the agents.
    pub(crate) port: Port,
}

type Changes = BoxStream<'static, Result<Change, watcher::Error>>;

impl Kubernetes {
    pub(super) fn name(&self) -> String {
        format!("the endpoints of the Service {}/{}", self.namespace, self.service)
    }

    /// Keeps `targets` up to date until cancelled.
    pub(super) async fn run(
        self,
        refresh: Duration,
        targets: watch::Sender<Arc<TargetSet>>,
        cancel: CancellationToken,
    ) {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = self.follow(refresh, &targets) => {}
        }
    }

    async fn follow(&self, refresh: Duration, targets: &watch::Sender<Arc<TargetSet>>) {
        let mut known = Known::nothing();
        let mut changes = self.slices();
        let mut falls_back = false;
        let mut timer = tokio::time::interval(refresh);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut recheck = tokio::time::interval(RECHECK_PERIOD);
        recheck.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                change = changes.next() => match settled(change, &mut changes, &mut known).await {
                    Settled::Changed if known.is_in_doubt() => self.confirm(&mut known).await,
                    Settled::Changed => {}
                    Settled::Lost(error) => {
                        let resource = if falls_back { ENDPOINTS } else { SLICES };
                        let refusal = Refusal::of_watch(resource, Some(&self.namespace), &error);
                        if is_refused(&refusal) && !falls_back {
                            let error = &refusal.text;
                            tracing::warn!(error, "EndpointSlices are refused; asking for Endpoints instead");
                            falls_back = true;
                            changes = self.endpoints();
                        }
                        known.watch = Some(refusal.text);
                    }
                    // The stream of a watch has no end. If it ends, the watch begins again.
                    Settled::Ended => changes = if falls_back { self.endpoints() } else { self.slices() },
                },
                _ = timer.tick() => self.confirm(&mut known).await,
                _ = recheck.tick() => {
                    if falls_back && self.slices_are_served().await {
                        tracing::info!("EndpointSlices are served now");
                        falls_back = false;
                        changes = self.slices();
                    }
                    known.hint = if known.is_complete && known.is_empty() { self.similar().await } else { None };
                }
            }
            self.publish(&mut known, targets).await;
        }
    }

    /// Asks how many agents should exist, and confirms a list without agents if none should.
    async fn confirm(&self, known: &mut Known) {
        known.desired = self.desired().await.map_err(|refusal| refusal.text);
        if matches!(known.desired, Ok(None | Some(0))) {
            known.confirm_empty();
        }
    }

    /// Publishes the current set, if it has changed.
    async fn publish(&self, known: &mut Known, targets: &watch::Sender<Arc<TargetSet>>) {
        if !known.is_complete && known.watch.is_none() {
            // Nothing has been listed yet, which is not the same as an empty set.
            return;
        }
        if known.is_complete && known.is_empty() && known.hint.is_none() {
            known.hint = self.similar().await;
        }
        let before = targets.borrow().clone();
        let found = known.targets();
        let desired = known.desired.clone();
        let errors = [
            known.watch.clone(),
            desired.clone().err(),
            known.doubt(&self.namespace, &self.service),
            known.hint.clone().filter(|_| found.is_empty()),
        ];
        let errors: Vec<String> = errors.into_iter().flatten().collect();
        let unlisted = match desired {
            Ok(desired) => missing(desired.unwrap_or(0), &found),
            Err(_) => before.unlisted,
        };
        let now = TargetSet {
            unlisted,
            targets: found,
            error: (!errors.is_empty()).then(|| errors.join("; ")),
            source: self.name(),
        };
        if *before == now {
            return;
        }
        if now.error.is_some() && now.error != before.error {
            tracing::warn!(
                alert = "discovery",
                source = now.source,
                error = now.error,
                targets = now.targets.len(),
                "targets can't be found; the last ones stay"
            );
        } else if now.targets != before.targets || now.error != before.error {
            tracing::info!(source = now.source, targets = now.targets.len(), unlisted, "targets found");
        }
        targets.send_replace(Arc::new(now));
    }

    fn slices(&self) -> Changes {
        let api: Api<EndpointSlice> = Api::namespaced(self.cluster.client(), &self.namespace);
        let wanted =
            watcher::Config::default().labels(&format!("kubernetes.io/service-name={}", self.service));
        let port = self.port.clone();
        watch_objects(api, wanted).map(move |event| event.map(|e| change(e, |s| of_slice(s, &port)))).boxed()
    }

    fn endpoints(&self) -> Changes {
        let api: Api<Endpoints> = Api::namespaced(self.cluster.client(), &self.namespace);
        let wanted = watcher::Config::default().fields(&format!("metadata.name={}", self.service));
        let port = self.port.clone();
        watch_objects(api, wanted)
            .map(move |event| event.map(|e| change(e, |s| of_endpoints(s, &port))))
            .boxed()
    }

    fn ask<'a>(&'a self, verb: &'static str, resource: &'static str) -> Ask<'a> {
        Ask { verb, resource, namespace: Some(&self.namespace), name: None }
    }

    async fn slices_are_served(&self) -> bool {
        let api: Api<EndpointSlice> = Api::namespaced(self.cluster.client(), &self.namespace);
        let one = ListParams::default().limit(1);
        self.cluster.ask(self.ask("list", SLICES), api.list(&one)).await.is_ok()
    }

    /// How many agents should exist: the desired number of the DaemonSets whose Pods the Service selects. `None` if
    /// there is no such DaemonSet.
    async fn desired(&self) -> Result<Option<usize>, Refusal> {
        let services: Api<Service> = Api::namespaced(self.cluster.client(), &self.namespace);
        let service = self
            .cluster
            .ask(self.ask("get", "services").of(&self.service), services.get_opt(&self.service))
            .await?;
        let Some(selector) = service.and_then(|service| service.spec?.selector).filter(|s| !s.is_empty())
        else {
            return Ok(None);
        };
        let sets: Api<DaemonSet> = Api::namespaced(self.cluster.client(), &self.namespace);
        let all = ListParams::default();
        let sets = self.cluster.ask(self.ask("list", "daemonsets.apps"), sets.list(&all)).await?;
        let is_selected = |set: &&DaemonSet| {
            let labels = set.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref()?.labels.as_ref());
            labels.is_some_and(|labels| selector.iter().all(|(name, value)| labels.get(name) == Some(value)))
        };
        let wanted = sets.items.iter().filter(is_selected).filter_map(|set| {
            let desired = set.status.as_ref().map_or(0, |status| status.desired_number_scheduled);
            usize::try_from(desired).ok()
        });
        Ok(wanted.reduce(|a, b| a + b))
    }

    /// A hint for a Service without endpoints: its name, and the names of similar Services.
    async fn similar(&self) -> Option<String> {
        let nothing = format!("the Service {}/{} has no endpoints", self.namespace, self.service);
        let services: Api<Service> = Api::all(self.cluster.client());
        let ask = Ask { verb: "list", resource: "services", namespace: None, name: None };
        let all = ListParams::default().limit(5000);
        let alike: Vec<String> = match self.cluster.ask(ask, services.list_metadata(&all)).await {
            Ok(found) => found
                .items
                .iter()
                .map(|service| (service.namespace().unwrap_or_default(), service.name_any()))
                .filter(|(namespace, name)| {
                    let is_asked = *namespace == self.namespace && *name == self.service;
                    // Our own Service has a similar name, but it is no Service of agents.
                    name.contains("procscan") && !name.contains("aggregator") && !is_asked
                })
                .map(|(namespace, name)| format!("{namespace}/{name}"))
                .take(5)
                .collect(),
            Err(_) => Vec::new(),
        };
        Some(if alike.is_empty() {
            format!("{nothing} (daemonset.namespace, daemonset.service_name)")
        } else {
            format!("{nothing}; there is {} (daemonset.namespace, daemonset.service_name)", alike.join(", "))
        })
    }
}

/// Whether the API server does not serve the resource to us. Only then Endpoints are read instead. After any other
/// error (an expired token, too many requests, an outage), its earlier answers still count.
fn is_refused(refusal: &Refusal) -> bool {
    matches!(refusal.kind, RefusalKind::Forbidden | RefusalKind::NotServed | RefusalKind::NotFound)
}

enum Settled {
    Changed,
    Lost(watcher::Error),
    Ended,
}

/// Applies a change and the changes that follow at once, because they belong to the same set.
async fn settled(
    first: Option<Result<Change, watcher::Error>>,
    changes: &mut Changes,
    known: &mut Known,
) -> Settled {
    let settled = tokio::time::sleep(SETTLE_TIME);
    tokio::pin!(settled);
    let mut next = first;
    loop {
        match next {
            Some(Ok(change)) => known.apply(change),
            Some(Err(error)) => return Settled::Lost(error),
            None => return Settled::Ended,
        }
        next = tokio::select! {
            () = &mut settled => return Settled::Changed,
            next = changes.next() => next,
        };
    }
}
