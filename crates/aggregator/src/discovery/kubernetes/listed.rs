//! What EndpointSlices and Endpoints list, and what follows from their changes. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::Endpoints;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use procscan_core::names::NodeName;
use procscan_core::report::Target;

/// Which of an endpoint's ports is the agent's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// This one, whatever the Service says.
    Number(u16),
    /// The one of this name.
    Name(String),
}

/// What one slice, or the Endpoints object, lists: by address, the node.
pub(super) type Listed = BTreeMap<SocketAddr, Option<String>>;

/// A change of what is listed, whichever kind of object lists it.
pub(super) enum Change {
    Begin,
    Put(String, Listed),
    Remove(String),
    Complete,
}

/// What is known so far.
pub(super) struct Known {
    objects: BTreeMap<String, Listed>,
    /// What a new list has brought, until it is complete.
    fresh: Option<BTreeMap<String, Listed>>,
    pub(super) is_complete: bool,
    /// What is wrong with the watch.
    pub(super) watch: Option<String>,
    /// What is wrong with the number of agents that should exist.
    pub(super) desired: Result<Option<usize>, String>,
    /// What may have been meant, where nothing was found.
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
            is_complete: false,
            watch: None,
            desired: Ok(None),
            hint: None,
        }
    }

    pub(super) fn take_in(&mut self, change: Change) {
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

    pub(super) fn is_empty(&self) -> bool {
        self.objects.values().all(BTreeMap::is_empty)
    }

    /// Every address once. While an endpoint moves from one slice to another it is in both; one that names its node wins.
    pub(super) fn targets(&self) -> Vec<Target> {
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
pub(super) fn of_slice(slice: &EndpointSlice, port: &Port) -> Listed {
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

pub(super) fn of_endpoints(endpoints: &Endpoints, port: &Port) -> Listed {
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
