//! The endpoints of the agents' Service, watched in the cluster.
//!
//! EndpointSlices of both IP families; Endpoints only where the cluster refuses slices. A watch that is lost is taken up again
//! with backoff, and the last set is kept and said to be old meanwhile.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use procscan_core::names::NodeName;
use procscan_core::report::Target;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::TargetSet;
use crate::kubernetes::{Ask, Cluster, Refusal, RefusalKind};

/// Changes within it are one new set: a rollout changes many slices at once.
const SETTLE: Duration = Duration::from_millis(50);
/// How often a cluster that refuses EndpointSlices is asked whether it has thought better of it, and an empty Service's
/// namespace is searched for what may have been meant.
const SECOND_LOOK: Duration = Duration::from_mins(1);

const SLICES: &str = "endpointslices.discovery.k8s.io";
const ENDPOINTS: &str = "endpoints";

/// A Service whose endpoints are the agents.
#[derive(Debug)]
pub struct Kubernetes {
    /// The connection.
    pub cluster: Cluster,
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub service: String,
    /// Which port.
    pub port: Port,
}

/// Which of an endpoint's ports is the agent's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// This one, whatever the Service says.
    Number(u16),
    /// The one of this name.
    Name(String),
}

/// What one slice, or the Endpoints object, lists: by address, the node.
type Listed = BTreeMap<SocketAddr, Option<String>>;

/// A change of what is listed, whichever kind of object lists it.
enum Change {
    Begin,
    Put(String, Listed),
    Remove(String),
    Complete,
}

type Changes = BoxStream<'static, Result<Change, watcher::Error>>;

/// What is known so far.
struct Known {
    objects: BTreeMap<String, Listed>,
    /// What a new list has brought, until it is complete.
    fresh: Option<BTreeMap<String, Listed>>,
    is_complete: bool,
    /// What is wrong with the watch.
    watch: Option<String>,
    /// What is wrong with the number of agents that should exist.
    desired: Result<Option<usize>, String>,
    /// What may have been meant, where nothing was found.
    hint: Option<String>,
}

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
        let mut second_look = tokio::time::interval(SECOND_LOOK);
        second_look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                change = changes.next() => match settled(change, &mut changes, &mut known).await {
                    Settled::Changed => {}
                    Settled::Lost(error) => {
                        let refusal = self.lost(falls_back, &error);
                        let is_refused = matches!(
                            refusal.kind,
                            RefusalKind::Forbidden
                                | RefusalKind::NotServed
                                | RefusalKind::NotFound
                                | RefusalKind::Invalid
                        );
                        if is_refused && !falls_back {
                            let error = &refusal.text;
                            tracing::warn!(error, "EndpointSlices are refused; asking for Endpoints instead");
                            falls_back = true;
                            changes = self.endpoints();
                        }
                        known.watch = Some(refusal.text);
                    }
                    // The stream of a watch has no end; if it has, begin again.
                    Settled::Ended => changes = if falls_back { self.endpoints() } else { self.slices() },
                },
                _ = timer.tick() => known.desired = self.desired().await.map_err(|refusal| refusal.text),
                _ = second_look.tick() => {
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

    /// Publishes what is known, if it is news.
    async fn publish(&self, known: &mut Known, targets: &watch::Sender<Arc<TargetSet>>) {
        if !known.is_complete && known.watch.is_none() {
            // Nothing has been listed yet: silence is not an empty set.
            return;
        }
        if known.is_complete && known.is_empty() && known.hint.is_none() {
            known.hint = self.similar().await;
        }
        let before = targets.borrow().clone();
        let found = known.targets();
        let desired = known.desired.clone();
        let errors =
            [known.watch.clone(), desired.clone().err(), known.hint.clone().filter(|_| found.is_empty())];
        let errors: Vec<String> = errors.into_iter().flatten().collect();
        let unlisted = match desired {
            Ok(desired) => desired.unwrap_or(0).saturating_sub(found.len()),
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
            tracing::warn!(source = now.source, error = now.error, kept = now.targets.len(), "discovery");
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
        watcher(api, wanted)
            .default_backoff()
            .map(move |event| event.map(|e| change(e, |s| of_slice(s, &port))))
            .boxed()
    }

    fn endpoints(&self) -> Changes {
        let api: Api<Endpoints> = Api::namespaced(self.cluster.client(), &self.namespace);
        let wanted = watcher::Config::default().fields(&format!("metadata.name={}", self.service));
        let port = self.port.clone();
        watcher(api, wanted)
            .default_backoff()
            .map(move |event| event.map(|e| change(e, |s| of_endpoints(s, &port))))
            .boxed()
    }

    fn ask<'a>(&'a self, verb: &'static str, resource: &'static str) -> Ask<'a> {
        Ask { verb, resource, namespace: Some(&self.namespace) }
    }

    /// Why the watch was lost.
    fn lost(&self, falls_back: bool, error: &watcher::Error) -> Refusal {
        let resource = if falls_back { ENDPOINTS } else { SLICES };
        match error {
            watcher::Error::InitialListFailed(e) => Refusal::new(&self.ask("list", resource), e),
            watcher::Error::WatchStartFailed(e) | watcher::Error::WatchFailed(e) => {
                Refusal::new(&self.ask("watch", resource), e)
            }
            watcher::Error::WatchError(status) => {
                Refusal::new(&self.ask("watch", resource), &kube::Error::Api(status.clone()))
            }
            watcher::Error::NoResourceVersion => {
                let status =
                    kube::core::Status { message: error.to_string(), ..kube::core::Status::default() };
                Refusal::new(&self.ask("watch", resource), &kube::Error::Api(Box::new(status)))
            }
        }
    }

    async fn slices_are_served(&self) -> bool {
        let api: Api<EndpointSlice> = Api::namespaced(self.cluster.client(), &self.namespace);
        let one = ListParams::default().limit(1);
        self.cluster.ask(self.ask("list", SLICES), api.list(&one)).await.is_ok()
    }

    /// How many agents should exist: what the DaemonSets want whose Pods the Service selects. `None` if none does.
    async fn desired(&self) -> Result<Option<usize>, Refusal> {
        let services: Api<Service> = Api::namespaced(self.cluster.client(), &self.namespace);
        let service = self.cluster.ask(self.ask("get", "services"), services.get_opt(&self.service)).await?;
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

    /// What was looked for, and which Services are called alike.
    async fn similar(&self) -> Option<String> {
        let nothing = format!("the Service {}/{} has no endpoints", self.namespace, self.service);
        let services: Api<Service> = Api::all(self.cluster.client());
        let ask = Ask { verb: "list", resource: "services", namespace: None };
        let all = ListParams::default().limit(5000);
        let alike: Vec<String> = match self.cluster.ask(ask, services.list_metadata(&all)).await {
            Ok(found) => found
                .items
                .iter()
                .map(|service| (service.namespace().unwrap_or_default(), service.name_any()))
                .filter(|(namespace, name)| {
                    name.contains("procscan") && (*namespace != self.namespace || *name != self.service)
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

enum Settled {
    Changed,
    Lost(watcher::Error),
    Ended,
}

/// Takes in a change, and whatever else comes at once: it belongs to the same set.
async fn settled(
    first: Option<Result<Change, watcher::Error>>,
    changes: &mut Changes,
    known: &mut Known,
) -> Settled {
    let settled = tokio::time::sleep(SETTLE);
    tokio::pin!(settled);
    let mut next = first;
    loop {
        match next {
            Some(Ok(change)) => known.take_in(change),
            Some(Err(error)) => return Settled::Lost(error),
            None => return Settled::Ended,
        }
        next = tokio::select! {
            () = &mut settled => return Settled::Changed,
            next = changes.next() => next,
        };
    }
}

fn change<K: kube::Resource>(event: watcher::Event<K>, listed: impl Fn(&K) -> Listed) -> Change {
    match event {
        watcher::Event::Init => Change::Begin,
        watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
            Change::Put(object.meta().name.clone().unwrap_or_default(), listed(&object))
        }
        watcher::Event::Delete(object) => Change::Remove(object.meta().name.clone().unwrap_or_default()),
        watcher::Event::InitDone => Change::Complete,
    }
}

impl Known {
    fn nothing() -> Self {
        Self {
            objects: BTreeMap::new(),
            fresh: None,
            is_complete: false,
            watch: None,
            desired: Ok(None),
            hint: None,
        }
    }

    fn take_in(&mut self, change: Change) {
        match change {
            Change::Begin => self.fresh = Some(BTreeMap::new()),
            Change::Put(name, listed) => {
                self.fresh.as_mut().unwrap_or(&mut self.objects).insert(name, listed);
            }
            Change::Remove(name) => {
                self.fresh.as_mut().unwrap_or(&mut self.objects).remove(&name);
            }
            Change::Complete => {
                if let Some(fresh) = self.fresh.take() {
                    self.objects = fresh;
                }
                self.is_complete = true;
                self.watch = None;
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.objects.values().all(BTreeMap::is_empty)
    }

    /// Every address once. While an endpoint moves from one slice to another it is in both; one that names its node wins.
    fn targets(&self) -> Vec<Target> {
        let mut all: BTreeMap<SocketAddr, Option<&str>> = BTreeMap::new();
        for (address, node) in self.objects.values().flatten() {
            let slot = all.entry(*address).or_default();
            *slot = slot.or(node.as_deref());
        }
        all.into_iter()
            .map(|(address, node)| {
                let address = address.to_string();
                let node = NodeName::new(node.unwrap_or(&address));
                Target { address: address.into(), node }
            })
            .collect()
    }
}

/// Every endpoint, ready or not: an agent that is not ready is expected all the same.
fn of_slice(slice: &EndpointSlice, port: &Port) -> Listed {
    let named = |name: &String| {
        let ports = slice.ports.iter().flatten();
        ports.filter(|p| p.name.as_ref() == Some(name)).find_map(|p| p.port)
    };
    let Some(port) = port.number(named) else { return Listed::new() };
    let mut listed = Listed::new();
    for endpoint in &slice.endpoints {
        for address in &endpoint.addresses {
            // A slice of names instead of addresses has none that parse.
            if let Ok(address) = address.parse::<IpAddr>() {
                listed.insert(SocketAddr::new(address, port), endpoint.node_name.clone());
            }
        }
    }
    listed
}

fn of_endpoints(endpoints: &Endpoints, port: &Port) -> Listed {
    let mut listed = Listed::new();
    for subset in endpoints.subsets.iter().flatten() {
        let named = |name: &String| {
            let ports = subset.ports.iter().flatten();
            ports.filter(|p| p.name.as_ref() == Some(name)).map(|p| p.port).next()
        };
        let Some(port) = port.number(named) else { continue };
        let addresses = subset.addresses.iter().chain(&subset.not_ready_addresses).flatten();
        for address in addresses {
            if let Ok(ip) = address.ip.parse::<IpAddr>() {
                listed.insert(SocketAddr::new(ip, port), address.node_name.clone());
            }
        }
    }
    listed
}

impl Port {
    fn number(&self, named: impl Fn(&String) -> Option<i32>) -> Option<u16> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Name(name) => u16::try_from(named(name)?).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(text: &str) -> EndpointSlice {
        serde_saphyr::from_str(text).unwrap()
    }

    const BOTH: &str = "
addressType: IPv4
metadata: {name: a}
ports: [{name: api, port: 9191}, {name: other, port: 1}]
endpoints:
- {addresses: [10.0.0.1], nodeName: n1, conditions: {ready: true}}
- {addresses: [10.0.0.2], conditions: {ready: false}}
";

    #[test]
    fn ports_go_by_number_or_by_name_and_endpoints_that_are_not_ready_count() {
        let slice = slice(BOTH);
        let shown =
            |port: &Port| -> Vec<String> { of_slice(&slice, port).keys().map(ToString::to_string).collect() };
        assert_eq!(shown(&Port::Number(9090)), ["10.0.0.1:9090", "10.0.0.2:9090"]);
        assert_eq!(shown(&Port::Name("api".into())), ["10.0.0.1:9191", "10.0.0.2:9191"]);
        assert!(shown(&Port::Name("none".into())).is_empty());
    }

    #[test]
    fn a_node_in_two_slices_is_one_target_and_a_new_list_replaces_the_old_one_only_when_complete() {
        let mut known = Known::nothing();
        let port = Port::Number(9090);
        let put = |name: &str, text: &str| Change::Put(name.into(), of_slice(&slice(text), &port));
        let moved = "{addressType: IPv4, metadata: {}, endpoints: [{addresses: [10.0.0.2], nodeName: n2}]}";
        let six = "{addressType: IPv6, metadata: {}, endpoints: [{addresses: ['fd00::1'], nodeName: n3}]}";
        let names = "{addressType: FQDN, metadata: {}, endpoints: [{addresses: [agent.example]}]}";
        for change in
            [Change::Begin, put("a", BOTH), put("b", moved), put("c", six), put("d", names), Change::Complete]
        {
            known.take_in(change);
        }
        let shown = |known: &Known| -> Vec<String> {
            known.targets().iter().map(|t| format!("{}={}", t.address, t.node)).collect()
        };
        let all = ["10.0.0.1:9090=n1", "10.0.0.2:9090=n2", "[fd00::1]:9090=n3"];
        assert_eq!(shown(&known), all);
        known.take_in(Change::Begin);
        assert_eq!(shown(&known), all, "a list that is not complete says nothing");
        known.take_in(put("c", six));
        known.take_in(Change::Complete);
        assert_eq!(shown(&known), all[2..]);
        known.take_in(Change::Remove("c".into()));
        assert!(known.is_empty());
    }
}
