//! The kubelets of all simulated nodes: a Pod that is bound to a node runs, and a Pod that is deleted ends.
//!
//! Without them no Pod would ever be ready, no EndpointSlice would name one, and no Pod would ever go away.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::watcher::{self, watcher};
use kube::runtime::{WatchStreamExt, utils::StreamBackoff};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::network::FIRST_POD;

/// How often failed work is tried again, and how long an event waits for further ones.
const STEP: Duration = Duration::from_millis(50);

/// How many Pods are updated at the same time.
const CONCURRENCY: usize = 16;

/// Running kubelets. They stop when dropped.
#[derive(Debug)]
pub struct Kubelets {
    _stop: DropGuard,
}

impl Kubelets {
    /// Starts them for all nodes of the cluster, those included that come later. A node's addresses are those of its Node object.
    pub fn start(client: Client) -> Self {
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        tokio::spawn(async move { stop.run_until_cancelled(run(client)).await });
        Self { _stop: guard }
    }
}

struct Nodes {
    client: Client,
    /// The addresses of a Node never change here.
    addresses: Mutex<HashMap<String, Vec<String>>>,
    pods: AtomicU32,
}

async fn run(client: Client) {
    let nodes = Nodes { client: client.clone(), addresses: Mutex::default(), pods: AtomicU32::new(0) };
    let pods = watcher(Api::<Pod>::all(client), watcher::Config::default());
    // A stopped API server is waited for, but not for long: tests do that too.
    let pods = StreamBackoff::new(pods, Steady).applied_objects();
    let mut pods = std::pin::pin!(pods);
    let mut ticks = interval(STEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // By namespace and name: a newer state replaces an older one.
    let mut waiting: BTreeMap<(Option<String>, String), Pod> = BTreeMap::new();
    loop {
        tokio::select! {
            next = pods.next() => match next {
                Some(Ok(pod)) => {
                    let name = (pod.namespace(), pod.name_any());
                    if duty(&pod) == Duty::None { waiting.remove(&name); } else { waiting.insert(name, pod); }
                }
                Some(Err(_)) => {}
                None => return,
            },
            _ = ticks.tick(), if !waiting.is_empty() => {
                let tries = stream::iter(std::mem::take(&mut waiting)).map(async |(name, pod)| {
                    let done = nodes.see_to(&pod).await;
                    (name, pod, done)
                });
                let failed = tries.buffer_unordered(CONCURRENCY).filter_map(async |(name, pod, done)| {
                    done.is_err().then_some((name, pod))
                });
                // A Node that is not there yet, a Pod that changed in between: the next try or the next event.
                waiting = failed.collect().await;
            }
        }
    }
}

/// The same pause between any two tries.
struct Steady;

impl Iterator for Steady {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(200))
    }
}

impl kube::runtime::utils::Backoff for Steady {
    fn reset(&mut self) {}
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Duty {
    None,
    Run,
    End,
}

/// The kubelet's work for a Pod. A running Pod is not changed, so that tests can set its status.
fn duty(pod: &Pod) -> Duty {
    let is_bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if !is_bound {
        Duty::None
    } else if pod.metadata.deletion_timestamp.is_some() {
        // Otherwise it waits for its finalizers, which the kubelet does not remove.
        let has_ended = pod.metadata.deletion_grace_period_seconds == Some(0);
        if has_ended { Duty::None } else { Duty::End }
    } else if matches!(phase, None | Some("Pending")) {
        Duty::Run
    } else {
        Duty::None
    }
}

impl Nodes {
    async fn see_to(&self, pod: &Pod) -> anyhow::Result<()> {
        let namespace = pod.namespace().context("a Pod without a namespace")?;
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let result = match duty(pod) {
            Duty::None => return Ok(()),
            Duty::Run => {
                let status = json!({"metadata": {"uid": pod.uid()}, "status": self.running(pod).await?});
                let patch = Patch::Merge(status);
                api.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await.map(drop)
            }
            Duty::End => {
                let same = Preconditions { uid: pod.uid(), resource_version: None };
                let now = DeleteParams::default().grace_period(0).preconditions(same);
                api.delete(&pod.name_any(), &now).await.map(drop)
            }
        };
        match result {
            // Gone, or another Pod of the same name, which has events of its own.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => Ok(()),
            other => Ok(other?),
        }
    }

    /// The status of a Pod whose containers have all started.
    async fn running(&self, pod: &Pod) -> anyhow::Result<Value> {
        let spec = pod.spec.as_ref().context("a Pod without a spec")?;
        let hosts = self.addresses(spec.node_name.as_deref().unwrap_or_default()).await?;
        let own = if spec.host_network == Some(true) {
            hosts.clone()
        } else {
            let number = self.pods.fetch_add(1, Ordering::Relaxed);
            vec![Ipv4Addr::from(u32::from(FIRST_POD) + number).to_string()]
        };
        let now = Timestamp::now().to_string();
        let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
            .map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": now}));
        let ips = |ips: &[String]| ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>();
        let containers = spec.containers.iter().map(|container| {
            json!({
                "name": container.name, "image": container.image, "imageID": "", "ready": true, "started": true,
                "restartCount": 0, "state": {"running": {"startedAt": now}},
            })
        });
        Ok(json!({
            "phase": "Running",
            "startTime": now,
            "conditions": conditions,
            "hostIP": hosts.first(), "hostIPs": ips(&hosts),
            "podIP": own.first(), "podIPs": ips(&own),
            "containerStatuses": containers.collect::<Vec<_>>(),
        }))
    }

    async fn addresses(&self, node: &str) -> anyhow::Result<Vec<String>> {
        let known = |addresses: &Mutex<HashMap<String, Vec<String>>>| {
            addresses.lock().ok().and_then(|known| known.get(node).cloned())
        };
        if let Some(addresses) = known(&self.addresses) {
            return Ok(addresses);
        }
        let object = Api::<Node>::all(self.client.clone()).get(node).await?;
        let all = object.status.and_then(|status| status.addresses).unwrap_or_default();
        let internal = all.into_iter().filter(|address| address.type_ == "InternalIP");
        let addresses: Vec<String> = internal.map(|address| address.address).collect();
        if addresses.is_empty() {
            bail!("the Node {node} has no InternalIP");
        }
        if let Ok(mut known) = self.addresses.lock() {
            known.insert(node.to_owned(), addresses.clone());
        }
        Ok(addresses)
    }
}
