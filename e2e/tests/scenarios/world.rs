//! The start of most scenarios: a cluster with agents and tenants, and the aggregator with the shipped roles.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Api, ResourceExt};
use procscan_agent::record::Record;
use procscan_agent::simulate::{Fleet, FleetOptions};
use procscan_e2e::aggregator::{self, Aggregator};
use procscan_e2e::cluster::Options;
use procscan_e2e::crds::{self, Crds};
use procscan_e2e::kubelet::Kubelets;
use procscan_e2e::network::FIRST_NODE;
use procscan_e2e::wait::throughout;
use procscan_e2e::{Cluster, Stage, until};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// How long a scenario waits. Rounds take a second, so an expected change comes well within this.
pub const LIMIT: Duration = Duration::from_mins(1);
/// Five rounds.
pub const ROUNDS: Duration = Duration::from_secs(5);
pub const GATEWAY: &str = "higress-system";
/// The aggregator's own namespace.
pub const OWN: &str = "kube-system";
const SENTINEL: &str = "procscan-sentinel.invalid";

/// The shipped roles.
pub const RBAC: &str = include_str!("../../../deploy/manifests/rbac.yaml");

pub struct World {
    pub aggregator: Aggregator,
    pub fleet: Fleet,
    pub stage: Stage,
    pub cluster: Cluster,
    _kubelets: Option<Kubelets>,
    _stop: CancellationToken,
}

/// How a world differs from the default one.
pub struct Beginning {
    pub nodes: usize,
    pub cluster: Options,
    /// Overrides keys of [`config`].
    pub config: Value,
    pub has_kubelets: bool,
    pub crds: Option<Crds>,
    /// How often the agents scan.
    pub scan_interval: Duration,
}

impl Default for Beginning {
    fn default() -> Self {
        let crds = Some(Crds::best());
        let scan_interval = Duration::from_secs(1);
        Self {
            nodes: 3,
            cluster: Options::default(),
            config: json!({}),
            has_kubelets: true,
            crds,
            scan_interval,
        }
    }
}

/// A configuration with seconds in the place of hours, and with the default rules of decisions. `more` overrides its keys.
pub fn config(more: &Value) -> Value {
    let mut config = json!({
        "aggregator": {"scan_interval": "1s"},
        "collector": {"timeout": "1s", "connect_timeout": "1s", "max_backoff_rounds": 1},
        // No violation clears by the clock during a scenario.
        "detection": {"clear_after": "1h"},
        "discovery": {"refresh": "1s"},
        "kubernetes": {"requests_per_second": 200, "request_timeout": "5s"},
        "notification": {"contact": "ops@example.com"},
    });
    merge(&mut config, more);
    config
}

fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (name, value) in more {
                merge(into.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more.clone(),
    }
}

impl World {
    pub async fn start() -> anyhow::Result<Self> {
        Self::begin(Beginning::default()).await
    }

    pub async fn begin(beginning: Beginning) -> anyhow::Result<Self> {
        let config = beginning.config.clone();
        Self::around(scene(beginning).await?, &config).await
    }

    /// Starts the aggregator in a scene, and waits for its first round.
    pub async fn around(scene: Scene, more: &Value) -> anyhow::Result<Self> {
        let kubeconfig = aggregator::Options::kubeconfig(scene.0.kubeconfig_aggregator());
        let aggregator = Aggregator::spawn(&config(more).to_string(), &kubeconfig)?;
        let world = Self::of(aggregator, scene);
        world.aggregator.wait_for("the first round", LIMIT, "/readyz", |_| true).await?;
        Ok(world)
    }

    /// Joins a running aggregator and its scene.
    pub fn of(aggregator: Aggregator, (cluster, stage, kubelets, fleet, stop): Scene) -> Self {
        Self { aggregator, fleet, stage, cluster, _kubelets: kubelets, _stop: stop }
    }

    /// Starts the aggregator again, with a configuration of its own.
    pub fn restart(&mut self, more: &Value) -> anyhow::Result<()> {
        self.aggregator.kill()?;
        // The dead replica still holds the Lease. Without this the new one would wait until the Lease has run out.
        self.cluster.forget_leader()?;
        let kubeconfig = aggregator::Options::kubeconfig(self.cluster.kubeconfig_aggregator());
        self.aggregator = Aggregator::spawn(&config(more).to_string(), &kubeconfig)?;
        Ok(())
    }

    /// Creates a tenant with an App: a Deployment of one Pod on a node, and a Service with a name as Sealos makes it. Returns the
    /// Pod's name.
    pub async fn tenant(&self, namespace: &str, app: &str, node: &str) -> anyhow::Result<String> {
        self.stage.namespace(namespace).await?;
        self.stage.deployment(namespace, app, &[], node).await?;
        self.stage.service(namespace, &format!("{app}-x7k2"), &[("app", app)]).await?;
        let pods = self.stage.running(namespace, &format!("app={app}"), 1, LIMIT).await?;
        Ok(pods[0].name_any())
    }

    /// From now on the node's agent lists these Pods only.
    pub fn accuse(&self, node: usize, accused: &[(&str, &str)]) {
        self.fleet
            .set_offenders(node, accused.iter().map(|(namespace, pod)| offender(namespace, pod)).collect());
    }

    /// The hosts that all our WasmPlugins close, without the sentinels.
    pub async fn closed(&self) -> anyhow::Result<BTreeSet<String>> {
        let plugins = self.plugins().await?;
        Ok(plugins.iter().map(hosts).collect::<anyhow::Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// Waits for the WasmPlugin, which the aggregator creates after the first round.
    pub async fn until_installed(&self) -> anyhow::Result<()> {
        let installed = until("the WasmPlugin", LIMIT, async || {
            ensure!(!self.plugins().await?.is_empty(), "none");
            Ok(())
        });
        installed.await.with_context(|| self.last_log_entries())
    }

    pub async fn until_closed(&self, hosts: &[&str]) -> anyhow::Result<()> {
        let expected: BTreeSet<String> =
            hosts.iter().map(|host| format!("{host}.svc.cluster.local")).collect();
        let what = format!("the gateway to be closed to {hosts:?} only");
        let closed = until(&what, LIMIT, async || {
            let closed = self.closed().await?;
            ensure!(closed == expected, "closed to {closed:?}");
            Ok(())
        });
        closed.await.with_context(|| self.last_log_entries())
    }

    pub async fn stays_closed(&self, hosts: &[&str], period: Duration) -> anyhow::Result<()> {
        let expected: BTreeSet<String> =
            hosts.iter().map(|host| format!("{host}.svc.cluster.local")).collect();
        throughout(&format!("the gateway is closed to {hosts:?} only"), period, async || {
            let closed = self.closed().await?;
            ensure!(closed == expected, "closed to {closed:?}");
            Ok(())
        })
        .await
    }

    /// Our WasmPlugins, by their names.
    pub async fn plugins(&self) -> anyhow::Result<Vec<DynamicObject>> {
        let mut all = self.wasm_plugins().list(&ListParams::default()).await?.items;
        all.retain(|plugin| {
            let shard = plugin.name_any().strip_prefix("procscan-violations").map(str::to_owned);
            shard
                .is_some_and(|shard| shard.trim_start_matches('-').parse::<u32>().is_ok() || shard.is_empty())
        });
        Ok(all)
    }

    /// The API of the Incidents.
    pub fn incidents(&self) -> Api<DynamicObject> {
        self.of_state("Incident")
    }

    /// The API of one of the aggregator's own kinds.
    pub fn of_state(&self, kind: &str) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk("procscan.sealos.io", "v1alpha1", kind);
        Api::namespaced_with(self.cluster.admin(), OWN, &ApiResource::from_gvk(&kind))
    }

    /// The one Incident of a tenant.
    pub async fn incident(&self, namespace: &str) -> anyhow::Result<DynamicObject> {
        let mut found = self.incidents().list(&ListParams::default()).await?.items;
        found.retain(|incident| incident.data["spec"]["app"]["namespace"] == namespace);
        ensure!(found.len() == 1, "{} Incidents in {namespace}", found.len());
        found.pop().context("none")
    }

    /// Waits until `is_it` accepts a tenant's Incident, and returns it.
    pub async fn until_incident(
        &self,
        namespace: &str,
        what: &str,
        is_it: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<DynamicObject> {
        let what = format!("the Incident of {namespace}: {what}");
        let found = until(&what, LIMIT, async || {
            let incident = self.incident(namespace).await?;
            ensure!(is_it(&incident.data), "{}", incident.data);
            Ok(incident)
        });
        found.await.with_context(|| self.last_log_entries())
    }

    /// Creates a quota named `full`, and waits until it refuses another object like `probe`.
    pub async fn fill(
        &self,
        namespace: &str,
        api: &Api<DynamicObject>,
        quota: &str,
        used: u32,
        probe: Value,
    ) -> anyhow::Result<()> {
        let quotas = self.stage.api::<ResourceQuota>(namespace);
        let hard = json!({quota: used.to_string()});
        let full = json!({"metadata": {"name": "full"}, "spec": {"hard": hard}});
        quotas.create(&PostParams::default(), &serde_json::from_value(full)?).await?;
        let status = json!({"status": {"hard": hard, "used": hard}});
        quotas.patch_status("full", &PatchParams::default(), &Patch::Merge(status)).await?;
        until("the quota to be in force", LIMIT, async || {
            let dry_run = PostParams { dry_run: true, ..PostParams::default() };
            match api.create(&dry_run, &serde_json::from_value(probe.clone())?).await {
                Err(error) if error.to_string().contains("exceeded quota") => Ok(()),
                other => anyhow::bail!("not yet: {other:?}"),
            }
        })
        .await
    }

    /// Runs kubectl as the administrator, and returns its standard output.
    pub async fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.cluster.kubectl(args).await?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Binds the shipped roles of operators to a user.
    pub async fn allow(&self, person: &str) -> anyhow::Result<()> {
        let (operator, viewer) = ("--clusterrole=procscan-operator", "--clusterrole=procscan-viewer");
        let user = format!("--user={person}");
        self.kubectl(&["create", "rolebinding", "-n", OWN, person, operator, &user]).await?;
        self.kubectl(&["create", "clusterrolebinding", person, viewer, &user]).await?;
        Ok(())
    }

    pub fn wasm_plugins(&self) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk("extensions.higress.io", "v1alpha1", "WasmPlugin");
        Api::namespaced_with(self.cluster.admin(), GATEWAY, &ApiResource::from_gvk(&kind))
    }

    pub fn notifications(&self, namespace: &str) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk("notification.sealos.io", "v1", "Notification");
        Api::namespaced_with(self.cluster.admin(), namespace, &ApiResource::from_gvk(&kind))
    }

    /// Waits until `is_it` accepts the one Notification of a tenant, and returns it.
    pub async fn until_notified(
        &self,
        namespace: &str,
        what: &str,
        is_it: impl Fn(&DynamicObject) -> bool,
    ) -> anyhow::Result<DynamicObject> {
        let api = self.notifications(namespace);
        let what = format!("the Notification in {namespace}: {what}");
        let notified = until(&what, LIMIT, async || {
            let found = api.list(&ListParams::default()).await?.items;
            let [one] = &found[..] else { anyhow::bail!("there are {}", found.len()) };
            ensure!(is_it(one), "{}", serde_json::to_string(one)?);
            Ok(one.clone())
        });
        notified.await.with_context(|| self.last_log_entries())
    }

    /// The names and resourceVersions of the WasmPlugins and Notifications that the aggregator writes.
    pub async fn versions(&self, namespaces: &[&str]) -> anyhow::Result<BTreeSet<String>> {
        let mut all = self.plugins().await?;
        for namespace in namespaces.iter().chain(&["default"]) {
            all.extend(self.notifications(namespace).list(&ListParams::default()).await?.items);
        }
        let version = |object: &DynamicObject| {
            format!("{}@{}", object.name_any(), object.resource_version().unwrap_or_default())
        };
        Ok(all.iter().map(version).collect())
    }

    /// Waits until the summary, which is written last, counts this many Apps.
    pub async fn until_summed_up(&self, apps: usize) -> anyhow::Result<()> {
        let message = format!("检测到 {apps} 个不合规应用");
        let is_it = |summary: &DynamicObject| {
            summary.name_any() == "procscan-notification"
                && summary.data["spec"]["message"] == message.as_str()
        };
        self.until_notified("default", "the summary", is_it).await.map(drop)
    }

    /// Waits until the summary counts `apps`. From then on, the aggregator writes nothing for `period`.
    pub async fn nothing_more_is_written(
        &self,
        namespaces: &[&str],
        apps: usize,
        period: Duration,
    ) -> anyhow::Result<()> {
        self.until_summed_up(apps).await?;
        let before = self.versions(namespaces).await?;
        throughout("nothing is written", period, async || {
            let now = self.versions(namespaces).await?;
            ensure!(now == before, "{:?}", now.difference(&before).collect::<Vec<_>>());
            Ok(())
        })
        .await
    }

    pub async fn merge(&self, api: &Api<DynamicObject>, name: &str, patch: Value) -> anyhow::Result<()> {
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Waits for a log entry that has all of these texts.
    pub async fn until_logged(&self, texts: &[&str]) -> anyhow::Result<Value> {
        self.aggregator
            .wait_for_log(&format!("{texts:?}"), LIMIT, |entry| {
                let entry = entry.to_string();
                texts.iter().all(|text| entry.contains(text))
            })
            .await
    }

    /// The last 15 entries of the aggregator's log.
    pub fn last_log_entries(&self) -> String {
        let logs = self.aggregator.logs();
        let last: Vec<String> = logs.iter().rev().take(15).rev().map(ToString::to_string).collect();
        last.join("\n")
    }
}

pub type Scene = (Cluster, Stage, Option<Kubelets>, Fleet, CancellationToken);

/// The hosts that one of our WasmPlugins closes, without its sentinel.
pub fn hosts(plugin: &DynamicObject) -> anyhow::Result<BTreeSet<String>> {
    let rules = plugin.data["spec"]["matchRules"].as_array().context("no rules")?;
    let first = rules.first().and_then(|rule| rule["service"][0].as_str());
    ensure!(first == Some(SENTINEL), "no sentinel: {rules:?}");
    let hosts = rules.iter().flat_map(|rule| rule["service"].as_array().into_iter().flatten());
    let mut hosts: BTreeSet<String> = hosts.filter_map(|host| Some(host.as_str()?.to_owned())).collect();
    hosts.remove(SENTINEL);
    Ok(hosts)
}

/// The decisions in an Incident's status, in order: the kind and the actor of each.
pub fn decisions(incident: &DynamicObject) -> Vec<(String, String)> {
    let all = incident.data["status"]["decisions"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    all.iter().map(|decision| (text(&decision["decision"]), text(&decision["actor"]))).collect()
}

pub async fn delete<K>(api: &Api<K>, name: &str) -> anyhow::Result<()>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    api.delete(name, &DeleteParams::default()).await?;
    Ok(())
}

/// Starts a cluster with its stage, kubelets and fleet, without the aggregator.
pub async fn scene(beginning: Beginning) -> anyhow::Result<Scene> {
    let cluster = Cluster::start(beginning.cluster).await?;
    let stop = CancellationToken::new();
    let options = FleetOptions {
        nodes: beginning.nodes,
        base: FIRST_NODE,
        scan_interval: beginning.scan_interval,
        offenders_per_node: 0,
        ..FleetOptions::default()
    };
    let fleet = Fleet::start(options, &stop)?;
    let stage = Stage::new(cluster.admin());
    let kubelets = beginning.has_kubelets.then(|| Kubelets::start(cluster.admin()));
    stage.namespace(GATEWAY).await?;
    cluster.apply(RBAC).await?;
    if let Some(which) = beginning.crds {
        crds::install(&cluster.admin(), which).await?;
    }
    stage.nodes(&fleet.targets()).await?;
    if beginning.has_kubelets {
        stage.agents(&fleet.targets()).await?;
    } else {
        stage.endpoint_slices(&fleet.targets()).await?;
    }
    Ok((cluster, stage, kubelets, fleet, stop))
}

/// A record as the real agent makes it: in the place of the App's name it has the Pod's.
pub fn offender(namespace: &str, pod: &str) -> Record {
    Record {
        pod: pod.to_owned(),
        namespace: namespace.to_owned(),
        process: "xmrig".to_owned(),
        cmdline: "./xmrig -o stratum+tcp://pool.example.com:3333".to_owned(),
        regex: "^xmrig$".to_owned(),
        status: "active".to_owned(),
        kind: "app".to_owned(),
        name: pod.to_owned(),
        timestamp: String::new(),
    }
}
