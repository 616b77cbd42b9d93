//! Looks up one namespace. Consistent reads only, because a cache that lags behind proves no absence.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1::Ingress;
use kube::core::{DynamicObject, GroupVersionKind};
use kube::discovery::ApiResource;
use kube::{Api, ResourceExt};
use procscan_core::Moment;
use procscan_core::identity::{self, Labels, Marks, Owner};
use procscan_core::names::{App, Text, is_dns_subdomain};
use procscan_core::policy::Lineage;
use serde::Deserialize;

use super::fields::{HTTP_ROUTES, INGRESSES, PODS, SERVICES};
use super::listing::NamespaceReader;
use crate::clock::Clock;
use crate::kubernetes::{Refusal, RefusalKind};

/// How many Pods of a namespace are looked up one by one in one pass. More wait for the next: an agent may name any number of
/// Pods that do not exist.
const MAX_DIRECT: usize = 100;

/// The contents of a namespace, as far as they matter.
#[derive(Clone, Debug, Default)]
pub(super) struct NamespaceContents {
    /// It is being deleted.
    pub(super) is_terminating: bool,
    /// Its Pods, ended ones included.
    pub(super) pods: BTreeMap<Text, Pod>,
    /// Pods that were asked for directly, and are not there.
    pub(super) absent: BTreeSet<Text>,
    /// Its Services.
    pub(super) services: Vec<identity::Service>,
    /// Its routes, if they were asked for and could be read.
    pub(super) routes: Option<Routes>,
}

/// One Pod.
#[derive(Clone, Debug)]
pub(super) struct Pod {
    pub(super) uid: Text,
    /// When it was created, by our clock; `None` if the API server's clock is not known.
    pub(super) created: Option<Moment>,
    pub(super) node: Option<String>,
    pub(super) host_ips: Vec<Text>,
    pub(super) labels: Labels,
    pub(super) app: App,
    pub(super) lineage: Lineage,
    /// It has succeeded or failed: nothing runs in it any more.
    pub(super) has_ended: bool,
    /// None of its containers has started yet, so no traffic reaches it.
    pub(super) is_pending: bool,
}

/// Which ways lead to which Services. Names are those of Services and Ingresses in the one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Routes {
    /// The Ingresses with a path to a Service.
    pub(super) ingresses: BTreeMap<Text, BTreeSet<Text>>,
    /// Services that are reached in other ways.
    pub(super) otherwise: BTreeSet<Text>,
}

/// The few fields of a Pod that matter: the rest is skipped while it is read.
pub(super) type PodObject = kube::core::Object<PodSpec, PodStatus>;

#[derive(Clone, Debug, Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodSpec {
    node_name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodStatus {
    phase: String,
    #[serde(rename = "hostIP")]
    host_ip: Option<String>,
    #[serde(rename = "hostIPs")]
    host_ips: Vec<HostIp>,
}

#[derive(Clone, Debug, Deserialize, serde::Serialize)]
struct HostIp {
    ip: String,
}

/// Looks up a namespace. The Pods in `requested` have to be known for certain, the most urgent first. `None` if the
/// namespace does not exist.
pub(super) async fn look_up(
    mut reader: NamespaceReader<'_>,
    clock: Clock,
    requested: &[Text],
    with_routes: bool,
) -> Result<Option<NamespaceContents>, Refusal> {
    let mut seen = NamespaceContents::default();
    let namespaces: Api<core::Namespace> = Api::all(reader.cluster.client());
    let ask = reader.ask("get", "namespaces").of(reader.namespace);
    match reader.cluster.ask_in_turn(ask, namespaces.get_metadata(reader.namespace)).await {
        Ok(found) => seen.is_terminating = found.metadata.deletion_timestamp.is_some(),
        Err(refusal) if matches!(refusal.kind, RefusalKind::NotFound | RefusalKind::NoNamespace) => {
            return Ok(None);
        }
        Err(refusal) => return Err(refusal),
    }
    pods(&mut reader, clock, requested, &mut seen).await?;
    // Without a Pod there are no labels that a Service could select.
    if seen.pods.values().all(|pod| pod.has_ended) {
        return Ok(Some(seen));
    }
    let api: Api<core::Service> = Api::namespaced(reader.cluster.client(), reader.namespace);
    let read = |service| seen.services.push(service_of(service));
    reader.list(&api, "services", &SERVICES, read).await?;
    if with_routes {
        seen.routes = Some(routes(&mut reader).await?);
    }
    Ok(Some(seen))
}

/// The relevant fields of a Service.
pub(super) fn service_of(mut service: core::Service) -> identity::Service {
    identity::Service {
        name: service.name_any().into(),
        labels: std::mem::take(service.labels_mut()),
        selector: service.spec.and_then(|spec| spec.selector).unwrap_or_default(),
    }
}

/// Lists all Pods, and looks up those of `requested` that are not listed.
async fn pods(
    reader: &mut NamespaceReader<'_>,
    clock: Clock,
    requested: &[Text],
    seen: &mut NamespaceContents,
) -> Result<(), Refusal> {
    let namespace = reader.namespace;
    let kind = ApiResource::erase::<core::Pod>(&());
    let api: Api<PodObject> = Api::namespaced_with(reader.cluster.client(), namespace, &kind);
    let cluster = reader.cluster;
    let read = |pod| Pod::read(namespace, pod, |at| cluster.moment_of(at, clock.now()));
    let take_in = |pod: PodObject| drop(seen.pods.insert(pod.name_any().into(), read(pod)));
    reader.list(&api, "pods", &PODS, take_in).await?;
    let missing = requested.iter().filter(|name| !seen.pods.contains_key(*name));
    let missing: Vec<Text> = missing.take(MAX_DIRECT).cloned().collect();
    for name in missing {
        // The name comes from a persisted object, which may be edited. Kubernetes has no Pod of such a name, and refuses to
        // look for it.
        if !is_dns_subdomain(&name) {
            seen.absent.insert(name);
            continue;
        }
        match reader.cluster.ask_in_turn(reader.ask("get", "pods").of(&name), api.get(&name)).await {
            Ok(pod) => drop(seen.pods.insert(name, read(pod))),
            Err(refusal) if refusal.kind == RefusalKind::NotFound => drop(seen.absent.insert(name)),
            Err(refusal) => return Err(refusal),
        }
    }
    Ok(())
}

async fn routes(reader: &mut NamespaceReader<'_>) -> Result<Routes, Refusal> {
    let (client, namespace) = (reader.cluster.client(), reader.namespace);
    let mut routes = Routes::default();
    let api: Api<Ingress> = Api::namespaced(client.clone(), namespace);
    let read = |ingress| routes.take_in(ingress, namespace);
    reader.list(&api, "ingresses.networking.k8s.io", &INGRESSES, read).await?;
    let kind = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "HTTPRoute");
    let api: Api<DynamicObject> = Api::namespaced_with(client, namespace, &ApiResource::from_gvk(&kind));
    let read = |route: DynamicObject| routes.take_in_route(&route, namespace);
    match reader.list(&api, "httproutes.gateway.networking.k8s.io", &HTTP_ROUTES, read).await {
        // Most clusters have no Gateway API: then nothing is routed by it.
        Err(refusal) if refusal.kind == RefusalKind::NotServed => {}
        listed => listed?,
    }
    Ok(routes)
}

impl Pod {
    /// `moment_of` converts the API server's time to a moment of our clock.
    pub(super) fn read(
        namespace: &str,
        mut pod: PodObject,
        moment_of: impl Fn(Timestamp) -> Option<Moment>,
    ) -> Self {
        let owners = pod.metadata.owner_references.take().unwrap_or_default();
        let owner = owners.iter().find(|owner| owner.controller == Some(true)).or(owners.first());
        let owner = owner.map(|owner| Owner { kind: &owner.kind, name: &owner.name });
        let labels = pod.metadata.labels.take().unwrap_or_default();
        let created = pod.metadata.creation_timestamp.as_ref().map(|at| at.0);
        let marks = Marks { labels: &labels, owner, created };
        let status = pod.status.take().unwrap_or_default();
        let name = pod.name_any();
        let lineage = Lineage {
            origin: Some(identity::origin_of(&name, marks)),
            earlier: identity::earlier_app_of(namespace, &name, marks),
        };
        let host_ips = status.host_ips.into_iter().map(|host| host.ip).chain(status.host_ip);
        Self {
            app: identity::app_of(namespace, &name, marks),
            lineage,
            uid: pod.metadata.uid.take().unwrap_or_default().into(),
            created: created.and_then(moment_of),
            node: pod.spec.node_name.take(),
            host_ips: host_ips.map(Text::from).collect(),
            labels,
            has_ended: matches!(&*status.phase, "Succeeded" | "Failed"),
            is_pending: status.phase == "Pending",
        }
    }
}

impl Routes {
    pub(super) fn take_in(&mut self, ingress: Ingress, namespace: &str) {
        let name: Text = ingress.name_any().into();
        // Higress's own: one or more `[weight%] service.namespace.svc.…[:port] [version]`, one per line.
        if let Some(destinations) = ingress.annotations().get("higress.io/destination") {
            let words = destinations.split_whitespace().filter_map(|word| word.split_once('.'));
            self.otherwise.extend(
                words
                    .filter(|(_, rest)| rest.split('.').next() == Some(namespace))
                    .map(|(service, _)| Text::from(service)),
            );
        }
        let Some(spec) = ingress.spec else { return };
        let service = |backend: k8s_openapi::api::networking::v1::IngressBackend| Some(backend.service?.name);
        if let Some(service) = spec.default_backend.and_then(service) {
            self.otherwise.insert(service.into());
        }
        let paths = spec.rules.into_iter().flatten().filter_map(|rule| rule.http).flat_map(|http| http.paths);
        for service in paths.filter_map(|path| service(path.backend)) {
            self.ingresses.entry(service.into()).or_default().insert(name.clone());
        }
    }

    pub(super) fn take_in_route(&mut self, route: &DynamicObject, namespace: &str) {
        let list = |value: &serde_json::Value, name: &str| -> Vec<serde_json::Value> {
            value.get(name).and_then(serde_json::Value::as_array).cloned().unwrap_or_default()
        };
        let spec = route.data.get("spec").cloned().unwrap_or_default();
        for backend in list(&spec, "rules").iter().flat_map(|rule| list(rule, "backendRefs")) {
            let part = |name| backend.get(name).and_then(serde_json::Value::as_str);
            if part("namespace").is_none_or(|other| other == namespace)
                && let Some(name) = part("name")
            {
                self.otherwise.insert(name.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ingress_paths_are_listed_apart_from_other_ways_to_a_service() {
        let mut routes = Routes::default();
        let ingress = |text: &str| -> Ingress { serde_saphyr::from_str(text).unwrap() };
        let path = |service: &str| {
            format!("{{pathType: Prefix, path: /, backend: {{service: {{name: {service}}}}}}}")
        };
        let web = format!(
            "{{metadata: {{name: web}}, spec: {{rules: [{{http: {{paths: [{}, {}]}}}}, {{host: x}}]}}}}",
            path("a"),
            path("b")
        );
        routes.take_in(ingress(&web), "ns-a");
        routes.take_in(
            ingress("{metadata: {name: all}, spec: {defaultBackend: {service: {name: c}}}}"),
            "ns-a",
        );
        routes.take_in(ingress("{metadata: {name: own, annotations: {higress.io/destination: \"80% d.ns-a.svc.cluster.local:80\\n20% e.ns-b.svc.cluster.local\"}}}"), "ns-a");
        let route =
            "{metadata: {name: r}, spec: {rules: [{backendRefs: [{name: f}, {name: g, namespace: ns-b}]}]}}";
        routes.take_in_route(&serde_saphyr::from_str(route).unwrap(), "ns-a");
        let to = |name: &str| {
            routes.ingresses.get(name).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!((to("a"), to("b"), to("c")), (Some(vec!["web".into()]), Some(vec!["web".into()]), None));
        let otherwise: Vec<&str> = routes.otherwise.iter().map(AsRef::as_ref).collect();
        assert_eq!(otherwise, ["c", "d", "f"]);
    }
}
