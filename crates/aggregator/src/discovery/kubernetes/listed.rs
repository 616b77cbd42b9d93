//! Reads the lists of EndpointSlices and Endpoints, and applies their changes. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Endpoints;
use k8s_openapi::api::discovery::v1::{EndpointConditions, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher;
use procscan_core::names::NodeName;
use procscan_core::report::Target;

/// Which of an endpoint's ports is the agent's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// This number, whatever the Service declares.
    Number(u16),
    /// The port of this name.
    Name(String),
}

/// The addresses in one EndpointSlice, or in the Endpoints object.
pub(super) type Listed = BTreeMap<SocketAddr, Claim>;

/// The claim of one endpoint to its address. Several endpoints can have one address, for example when a node is gone
/// and another one has its address now. The greatest claim counts, so the fields are ordered by their weight.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    /// Ready and serving. With `publishNotReadyAddresses` every endpoint is marked ready, and only `serving` is
    /// reliable.
    is_ready: bool,
    /// Serving, perhaps while it terminates.
    is_serving: bool,
    /// It names its node.
    is_named: bool,
    /// When its slice was created. Endpoints have no age of their own, and the resourceVersion of a slice changes with
    /// each of its endpoints, so that two nodes would alternate.
    created: Option<Timestamp>,
    /// Between equal claims the first name counts.
    node: Reverse<Option<String>>,
}

/// A change of the list, whichever kind of object has it.
pub(super) enum Change {
    Begin,
    Put(String, Listed),
    Remove(String),
    Complete,
}

/// The lists that have arrived so far.
pub(super) struct Known {
    objects: BTreeMap<String, Listed>,
    /// The objects of a new list, until it is complete.
    fresh: Option<BTreeMap<String, Listed>>,
    /// The list before a new one without agents, until the new one is confirmed or lists agents again.
    before: Option<BTreeMap<String, Listed>>,
    pub(super) is_complete: bool,
    /// The error of the watch.
    pub(super) watch: Option<String>,
    /// How many agents should exist, or why that is not known.
    pub(super) desired: Result<Option<usize>, String>,
    /// A hint at similar Services, if there are no agents.
    pub(super) hint: Option<String>,
}

pub(super) fn change<K: kube::Resource>(event: watcher::Event<K>, listed: impl Fn(&K) -> Listed) -> Change {
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
    pub(super) fn nothing() -> Self {
        Self {
            objects: BTreeMap::new(),
            fresh: None,
            before: None,
            is_complete: false,
            watch: None,
            desired: Ok(None),
            hint: None,
        }
    }

    pub(super) fn apply(&mut self, change: Change) {
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
                    let before = std::mem::replace(&mut self.objects, fresh);
                    if self.before.is_none() && lists_agents(&before) {
                        self.before = Some(before);
                    }
                }
                self.is_complete = true;
                self.watch = None;
            }
        }
        if lists_agents(&self.objects) {
            self.before = None;
        }
    }

    /// Whether a new list has no agents although the one before it had some, and nothing has confirmed that.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.before.is_some()
    }

    /// Confirms a list without agents.
    pub(super) fn confirm_empty(&mut self) {
        self.before = None;
    }

    /// Why agents are still targets although they are no longer listed.
    pub(super) fn doubt(&self, namespace: &str, service: &str) -> Option<String> {
        self.is_in_doubt().then(|| {
            format!(
                "the Service {namespace}/{service} has no endpoints any more, although its DaemonSet wants agents or could not \
                 be asked"
            )
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.is_in_doubt() && !lists_agents(&self.objects)
    }

    /// The targets, each address once, whatever the order of the slices. While an endpoint moves from one slice to
    /// another it is in both.
    pub(super) fn targets(&self) -> Vec<Target> {
        let mut all: BTreeMap<SocketAddr, &Claim> = BTreeMap::new();
        for (address, claim) in self.before.as_ref().unwrap_or(&self.objects).values().flatten() {
            let greatest = all.entry(*address).or_insert(claim);
            *greatest = claim.max(greatest);
        }
        all.into_iter()
            .map(|(address, claim)| {
                let address = address.to_string();
                let node = NodeName::new(claim.node.0.as_deref().unwrap_or(&address));
                Target { address: address.into(), node }
            })
            .collect()
    }
}

fn lists_agents(objects: &BTreeMap<String, Listed>) -> bool {
    objects.values().any(|listed| !listed.is_empty())
}

/// How many agents are missing if `desired` should run, one on each node. A node with two addresses counts once; a
/// target whose endpoint names no node counts by its address.
pub(super) fn missing(desired: usize, targets: &[Target]) -> usize {
    let nodes: BTreeSet<&NodeName> = targets.iter().map(|target| &target.node).collect();
    desired.saturating_sub(nodes.len())
}

impl Claim {
    /// A missing `ready` means ready, and a missing `serving` is the same as `ready`, as the API defines them.
    fn new(conditions: Option<&EndpointConditions>, node: Option<&str>, object: &ObjectMeta) -> Self {
        let is_ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
        let is_serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(is_ready);
        Self {
            is_ready: is_ready && is_serving,
            is_serving,
            is_named: node.is_some(),
            created: object.creation_timestamp.as_ref().map(|time| time.0),
            node: Reverse(node.map(str::to_owned)),
        }
    }

    /// Adds the claim to `listed` unless a greater one of the same address is there.
    fn list(self, address: SocketAddr, listed: &mut Listed) {
        match listed.get_mut(&address) {
            Some(other) if *other >= self => {}
            Some(other) => *other = self,
            None => drop(listed.insert(address, self)),
        }
    }
}

/// Every endpoint, ready or not, because an agent that is not ready is still expected.
pub(super) fn of_slice(slice: &EndpointSlice, port: &Port) -> Listed {
    let named = |name: &String| {
        let ports = slice.ports.iter().flatten();
        ports.filter(|p| p.name.as_ref() == Some(name)).find_map(|p| p.port)
    };
    let Some(port) = port.number(named) else { return Listed::new() };
    let mut listed = Listed::new();
    for endpoint in &slice.endpoints {
        for address in &endpoint.addresses {
            // A slice of the type FQDN has names, which do not parse.
            if let Ok(address) = address.parse::<IpAddr>() {
                let node = endpoint.node_name.as_deref();
                let claim = Claim::new(endpoint.conditions.as_ref(), node, &slice.metadata);
                claim.list(SocketAddr::new(address, port), &mut listed);
            }
        }
    }
    listed
}

pub(super) fn of_endpoints(endpoints: &Endpoints, port: &Port) -> Listed {
    let mut listed = Listed::new();
    for subset in endpoints.subsets.iter().flatten() {
        let named = |name: &String| {
            let ports = subset.ports.iter().flatten();
            ports.filter(|p| p.name.as_ref() == Some(name)).map(|p| p.port).next()
        };
        let Some(port) = port.number(named) else { continue };
        let all = [(true, &subset.addresses), (false, &subset.not_ready_addresses)];
        for (is_ready, address) in all
            .iter()
            .flat_map(|(is_ready, some)| some.iter().flatten().map(move |address| (*is_ready, address)))
        {
            if let Ok(ip) = address.ip.parse::<IpAddr>() {
                let conditions =
                    EndpointConditions { ready: Some(is_ready), ..EndpointConditions::default() };
                let claim = Claim::new(Some(&conditions), address.node_name.as_deref(), &endpoints.metadata);
                claim.list(SocketAddr::new(ip, port), &mut listed);
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
mod tests;
