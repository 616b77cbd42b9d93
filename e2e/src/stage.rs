//! Makes the objects of a scenario: nodes, agents, tenants and their Apps, as in a Sealos cluster.

use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::api::{Api, PostParams};
use kube::{Client, Resource, ResourceExt};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::wait::until;

/// The namespace of the agents and the aggregator.
pub const NAMESPACE: &str = "kube-system";

/// The agents' Service, as the aggregator expects it by default.
pub const SERVICE: &str = "procscan";

/// As many as the real controller puts into one slice.
const ENDPOINTS_PER_SLICE: usize = 100;

/// How many objects are made at the same time.
const CONCURRENCY: usize = 32;

/// Makes objects, as the administrator. An object that exists already is an error.
#[derive(Clone)]
pub struct Stage {
    client: Client,
}

impl Stage {
    /// A stage in the cluster of the client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// The objects of a kind, everywhere.
    pub fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// The objects of a kind in a namespace.
    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// A Node with these addresses, all of them internal.
    pub async fn node(&self, name: &str, addresses: &[IpAddr]) -> anyhow::Result<()> {
        let addresses: Vec<_> =
            addresses.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
        self.make_global::<Node>(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
            "status": {"addresses": addresses, "conditions": [{"type": "Ready", "status": "True"}]},
        }))
        .await
    }

    /// The Nodes of a fleet, by its targets.
    pub async fn nodes(&self, targets: &[(String, SocketAddr)]) -> anyhow::Result<()> {
        many(targets, async |(name, address)| self.node(name, &[address.ip()]).await).await
    }

    /// The agents of a fleet: the headless Service, and a Pod on the host's network of every node.
    ///
    /// With controllers and kubelets, the Service's EndpointSlices follow.
    pub async fn agents(&self, targets: &[(String, SocketAddr)]) -> anyhow::Result<()> {
        let port = targets.first().map_or(9090, |(_, address)| address.port());
        self.agents_service(port).await?;
        many(targets, async |(node, address)| self.agent(node, address.port()).await).await
    }

    /// The agents' headless Service alone.
    pub async fn agents_service(&self, port: u16) -> anyhow::Result<()> {
        self.make::<Service>(json!({
            "metadata": {"name": SERVICE, "namespace": NAMESPACE, "labels": {"app": SERVICE}},
            "spec": {
                "clusterIP": "None",
                "selector": {"app": SERVICE},
                "ports": [{"name": "api", "port": port, "targetPort": port}],
            },
        }))
        .await
    }

    /// One node's agent: its Pod, called `procscan-NODE`.
    pub async fn agent(&self, node: &str, port: u16) -> anyhow::Result<()> {
        self.make::<Pod>(json!({
            "metadata": {"name": format!("{SERVICE}-{node}"), "namespace": NAMESPACE, "labels": {"app": SERVICE}},
            "spec": {
                "nodeName": node,
                "hostNetwork": true,
                "containers": [
                    {"name": "procscan", "image": "procscan", "ports": [{"name": "api", "containerPort": port}]},
                ],
            },
        }))
        .await
    }

    /// The agents' EndpointSlices made by hand: for fleets so large that their Pods would take too long.
    pub async fn endpoint_slices(&self, targets: &[(String, SocketAddr)]) -> anyhow::Result<()> {
        let chunks: Vec<(usize, &[(String, SocketAddr)])> =
            targets.chunks(ENDPOINTS_PER_SLICE).enumerate().collect();
        many(&chunks, async |(number, chunk)| {
            let endpoint = |(node, address): &(String, SocketAddr)| {
                json!({
                    "addresses": [address.ip()],
                    "conditions": {"ready": true, "serving": true, "terminating": false},
                    "nodeName": node,
                })
            };
            let first = chunk.first().context("an empty slice")?.1;
            self.make::<EndpointSlice>(json!({
                "metadata": {
                    "name": format!("{SERVICE}-{number:04}"),
                    "namespace": NAMESPACE,
                    "labels": {
                        "kubernetes.io/service-name": SERVICE,
                        // Not the controller's, which would delete a slice that no Service selects.
                        "endpointslice.kubernetes.io/managed-by": "procscan-e2e",
                    },
                },
                "addressType": if first.is_ipv4() { "IPv4" } else { "IPv6" },
                "ports": [{"name": "api", "port": first.port(), "protocol": "TCP"}],
                "endpoints": chunk.iter().map(endpoint).collect::<Vec<_>>(),
            }))
            .await
        })
        .await
    }

    /// A namespace; one that begins with `ns-` is a tenant's.
    pub async fn namespace(&self, name: &str) -> anyhow::Result<()> {
        let labels =
            name.strip_prefix("ns-").map_or(json!({}), |owner| json!({"user.sealos.io/owner": owner}));
        self.make_global::<Namespace>(json!({"metadata": {"name": name, "labels": labels}})).await
    }

    /// A Pod of its own.
    pub async fn pod(
        &self,
        namespace: &str,
        name: &str,
        node: &str,
        labels: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let metadata = json!({"name": name, "namespace": namespace, "labels": map(labels)});
        self.make::<Pod>(json!({"metadata": metadata, "spec": pod_spec(node)})).await
    }

    /// A Deployment of one Pod. Its Pods, and it itself, have the label `app=NAME` beside those given.
    pub async fn deployment(
        &self,
        namespace: &str,
        name: &str,
        labels: &[(&str, &str)],
        node: &str,
    ) -> anyhow::Result<()> {
        self.make::<Deployment>(workload(namespace, name, labels, node)).await
    }

    /// A StatefulSet of one Pod, `NAME-0`. Labels as those of a [`Stage::deployment`].
    pub async fn statefulset(
        &self,
        namespace: &str,
        name: &str,
        labels: &[(&str, &str)],
        node: &str,
    ) -> anyhow::Result<()> {
        let mut workload = workload(namespace, name, labels, node);
        if let Some(service) = workload.pointer_mut("/spec").and_then(Value::as_object_mut) {
            service.insert("serviceName".to_owned(), name.into());
        }
        self.make::<StatefulSet>(workload).await
    }

    /// A Service with port 80.
    pub async fn service(
        &self,
        namespace: &str,
        name: &str,
        selector: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        self.make::<Service>(json!({
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"selector": map(selector), "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        }))
        .await
    }

    /// An Ingress that sends everything for `host` to port 80 of a Service.
    pub async fn ingress(
        &self,
        namespace: &str,
        name: &str,
        host: &str,
        service: &str,
    ) -> anyhow::Result<()> {
        let backend = json!({"service": {"name": service, "port": {"number": 80}}});
        let path = json!({"path": "/", "pathType": "Prefix", "backend": backend});
        self.make::<Ingress>(json!({
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"rules": [{"host": host, "http": {"paths": [path]}}]},
        }))
        .await
    }

    /// Waits until all Pods of a namespace with these labels run, and there are so many. Gives them.
    pub async fn running(
        &self,
        namespace: &str,
        selector: &str,
        count: usize,
        limit: Duration,
    ) -> anyhow::Result<Vec<Pod>> {
        let pods: Api<Pod> = self.api(namespace);
        let params = kube::api::ListParams::default().labels(selector);
        until(&format!("{count} running Pods {selector} in {namespace}"), limit, async || {
            let found = pods.list(&params).await?.items;
            let running = |pod: &Pod| {
                let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
                phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
            };
            if found.len() == count && found.iter().all(running) {
                return Ok(found);
            }
            let states = found.iter().map(|pod| format!("{} running={}", pod.name_any(), running(pod)));
            anyhow::bail!("{:?}", states.take(10).collect::<Vec<_>>())
        })
        .await
    }

    /// Creates any object with a namespace.
    pub async fn make<K>(&self, object: Value) -> anyhow::Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or("default");
        create(&self.api::<K>(namespace), &object).await
    }

    /// Creates any object without a namespace.
    pub async fn make_global<K>(&self, object: Value) -> anyhow::Result<()>
    where
        K: Resource<DynamicType = (), Scope = ClusterResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        create(&self.all::<K>(), &object).await
    }
}

async fn create<K>(api: &Api<K>, object: &Value) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let what =
        || format!("creating {} {}", K::kind(&()), object.pointer("/metadata").unwrap_or(&Value::Null));
    let typed: K = serde_json::from_value(object.clone()).with_context(what)?;
    api.create(&PostParams::default(), &typed).await.map(drop).with_context(what)
}

/// Does something for each of many, several at a time, and stops at the first failure.
async fn many<T>(of: &[T], each: impl AsyncFn(&T) -> anyhow::Result<()>) -> anyhow::Result<()> {
    stream::iter(of).map(Ok).try_for_each_concurrent(CONCURRENCY, |one| each(one)).await
}

fn map(pairs: &[(&str, &str)]) -> Map<String, Value> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect()
}

/// Bound to its node from the start: there is no scheduler. The namespace controller waits for as long as Pods may take to end.
fn pod_spec(node: &str) -> Value {
    json!({
        "nodeName": node,
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "main", "image": "anything"}],
    })
}

fn workload(namespace: &str, name: &str, labels: &[(&str, &str)], node: &str) -> Value {
    let mut all = map(labels);
    all.insert("app".to_owned(), name.into());
    json!({
        "metadata": {"name": name, "namespace": namespace, "labels": all},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": all}, "spec": pod_spec(node)},
        },
    })
}
