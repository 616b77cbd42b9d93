//! The output handles a kind of the tests in the same way as the product's own kinds. It needs only the rights that the kind
//! names, and a late write of an earlier leader is refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::{Client, ResourceExt};
use procscan_aggregator::config::Config;
use procscan_aggregator::kubernetes::Cluster as Connection;
use procscan_aggregator::kubernetes::WritePermit;
use procscan_aggregator::leader::{Election, Leadership, Timing};
use procscan_aggregator::output::Outcome;
use procscan_aggregator::output::cluster::{ClusterOutput, Opened, SUSPEND, WRITER};
use procscan_core::decision::Mode;
use procscan_core::names::App;
use procscan_core::plan::{Block, Exposure, Plan};
use procscan_core::policy::InheritedBlock;
use procscan_core::resources::{Kind, Settings};
use procscan_e2e::Cluster;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::world::{Beginning, LIMIT, OWN, delete, scene};

#[path = "../../../crates/aggregator/tests/common/app_policies.rs"]
mod app_policies;
use app_policies::{IN_ONE_NAMESPACE, IN_TENANTS_NAMESPACES, KINDS, KINDS_IN_TENANTS, NAMESPACE, place};

const TENANT: &str = "ns-a";

fn app(name: &str) -> App {
    App::new(TENANT, "app", name)
}

fn plan(names: &[&str]) -> Plan {
    let block = |name: &&str| Block {
        app: app(name),
        since: Timestamp::UNIX_EPOCH,
        grounds: Box::default(),
        left: Box::default(),
        exposure: Arc::new(Exposure::plain([format!("{name}.{TENANT}.svc").into()])),
        reason: "".into(),
    };
    let blocks = names.iter().map(block).map(Arc::new).collect();
    Plan { blocks, ..Plan::empty(Mode::Enforce, Timestamp::UNIX_EPOCH) }
}

/// The Roles and bindings for the rules of a kind.
fn roles(kind: Kind, settings: &Settings) -> String {
    let account = json!([{"kind": "ServiceAccount", "name": "procscan-aggregator", "namespace": OWN}]);
    let roles = kind.rules(settings).into_iter().enumerate().flat_map(|(index, rule)| {
        let name = format!("procscan-policies-{index}");
        let (role, metadata) = match &rule.namespace {
            Some(namespace) => ("Role", json!({"name": name, "namespace": namespace})),
            None => ("ClusterRole", json!({"name": name})),
        };
        let group = "rbac.authorization.k8s.io";
        let mut allowed = json!({"apiGroups": [kind.group()], "resources": [kind.plural()], "verbs": rule.verbs});
        if !rule.names.is_empty() {
            allowed["resourceNames"] = json!(rule.names);
        }
        let version = format!("{group}/v1");
        [
            json!({"apiVersion": version, "kind": role, "metadata": metadata, "rules": [allowed]}),
            json!({
                "apiVersion": version, "kind": format!("{role}Binding"), "metadata": metadata, "subjects": account,
                "roleRef": {"apiGroup": group, "kind": role, "name": name},
            }),
        ]
    });
    // YAML reads JSON.
    roles.map(|role| role.to_string()).collect::<Vec<_>>().join("\n---\n")
}

/// A replica: an output and an election.
struct Replica {
    output: ClusterOutput,
    leadership: watch::Receiver<Leadership>,
    stop: CancellationToken,
    election: tokio::task::JoinHandle<()>,
}

impl Replica {
    /// Takes over as soon as the API server serves all kinds. It answers 429 for some moments after their definitions are created.
    async fn take_over_when_served(
        &mut self,
        settings: &Settings,
        permit: &WritePermit,
    ) -> anyhow::Result<Vec<InheritedBlock>> {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.output.take_over(settings, permit, true).await {
                Err(_) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(200)).await,
                taken => return Ok(taken?),
            }
        }
    }

    fn start(identity: &str, connection: &Connection) -> Self {
        let (leading, leadership) = watch::channel(Leadership::Following { leader: None });
        let election = Election {
            cluster: connection.clone(),
            namespace: OWN.to_owned(),
            name: "procscan-aggregator".to_owned(),
            identity: identity.to_owned(),
            lease: Timing::default(),
        };
        let stop = CancellationToken::new();
        let election = tokio::spawn(election.run(leading, watch::channel(None).0, stop.clone()));
        Self { output: ClusterOutput::new(connection.clone()), leadership, stop, election }
    }

    async fn permit(&mut self) -> anyhow::Result<WritePermit> {
        let leads = self.leadership.wait_for(|leadership| leadership.permit().is_some());
        let leads = tokio::time::timeout(LIMIT, leads).await.context("no replica leads")??;
        leads.permit().cloned().context("no permit")
    }

    /// Gives the Lease back.
    async fn retire(&mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        tokio::time::timeout(LIMIT, &mut self.election).await??;
        Ok(())
    }

    async fn write(&mut self, names: &[&str], settings: &Settings, permit: &WritePermit) -> Outcome {
        self.output.write(&plan(names), settings, permit, || true).await
    }
}

/// The API of the policies, with the administrator's rights.
struct Policies {
    client: Client,
    home: Option<&'static str>,
}

impl Policies {
    fn api(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), self.home.unwrap_or(TENANT))
    }

    fn name(&self, of: &str) -> String {
        place(&app(of), self.home).1
    }

    async fn get(&self, of: &str) -> anyhow::Result<ConfigMap> {
        Ok(self.api().get(&self.name(of)).await?)
    }

    /// The names of the blocked Apps, ordered.
    async fn closed(&self) -> anyhow::Result<Vec<String>> {
        let all = self.api().list(&ListParams::default()).await?.items;
        let closed = all
            .into_iter()
            .filter_map(|policy| policy.data)
            .filter(|data| data.get("state").is_some_and(|state| state == "closed"));
        let mut names: Vec<String> = closed.filter_map(|mut data| data.remove("name")).collect();
        names.sort();
        Ok(names)
    }

    async fn merge(&self, of: &str, patch: Value) -> anyhow::Result<()> {
        self.api().patch(&self.name(of), &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }
}

async fn connect(cluster: &Cluster, as_admin: bool) -> anyhow::Result<Connection> {
    let path = if as_admin { cluster.kubeconfig_admin() } else { cluster.kubeconfig_aggregator() };
    let config = Config::parse("", "config", [], jiff::Timestamp::UNIX_EPOCH)?;
    let mut settings = config.kubernetes;
    settings.kubeconfig = Some(path);
    Connection::connect(&settings).await
}

/// Creates, repairs, hands over, opens and removes the objects of a kind.
async fn full_cycle(
    cluster: &Cluster,
    kinds: &'static [Kind],
    kind: Kind,
    home: Option<&'static str>,
) -> anyhow::Result<()> {
    let settings =
        Settings { kinds, ..Config::parse("", "config", [], jiff::Timestamp::UNIX_EPOCH)?.settings() };
    cluster.apply(&roles(kind, &settings)).await?;
    let policies = Policies { client: cluster.admin(), home };
    let connection = connect(cluster, false).await?;

    let mut first = Replica::start("first", &connection);
    let permit = first.permit().await?;
    ensure!(first.take_over_when_served(&settings, &permit).await?.is_empty());
    let outcome = first.write(&["blog", "web"], &settings, &permit).await;
    ensure!(outcome.problems.is_empty(), "{outcome:?}");
    ensure!(policies.closed().await? == ["blog", "web"]);
    ensure!(first.write(&["blog", "web"], &settings, &permit).await.written == 0);
    // A changed object is repaired, and a deleted one is created again.
    policies.merge("web", json!({"data": {"state": "open", "more": "x"}})).await?;
    delete(&policies.api(), &policies.name("blog")).await?;
    ensure!(first.write(&["blog", "web"], &settings, &permit).await.problems.is_empty());
    ensure!(policies.closed().await? == ["blog", "web"]);
    ensure!(policies.get("web").await?.data.is_some_and(|data| !data.contains_key("more")));
    // The object of a released App is deleted.
    let outcome = first.write(&["web"], &settings, &permit).await;
    ensure!(outcome.removed == 1 && outcome.problems.is_empty(), "{outcome:?}");
    ensure!(policies.api().get_opt(&policies.name("blog")).await?.is_none());

    // Another replica leads. The API server refuses late writes of the first one.
    let read = policies.get("web").await?;
    first.retire().await?;
    let mut second = Replica::start("second", &connection);
    let later = second.permit().await?;
    let inherited = second.output.take_over(&settings, &later, true).await?;
    ensure!(inherited.len() == 1 && inherited[0].app == app("web"), "{inherited:?}");
    ensure!(policies.get("web").await?.annotations().get(WRITER) == Some(&later.mark()));
    let by_first: Api<ConfigMap> = Api::namespaced(cluster.aggregator().await?, home.unwrap_or(TENANT));
    let late_write =
        json!({"metadata": {"resourceVersion": read.resource_version()}, "data": {"state": "open"}});
    let refused =
        by_first.patch(&policies.name("web"), &PatchParams::default(), &Patch::Merge(late_write)).await;
    ensure!(is_conflict(&refused), "{refused:?}");
    let as_read = Preconditions { uid: read.uid(), resource_version: read.resource_version() };
    let params = DeleteParams { preconditions: Some(as_read), ..DeleteParams::default() };
    let refused = by_first.delete(&policies.name("web"), &params).await;
    ensure!(is_conflict(&refused), "{refused:?}");
    // The first permit has ended. With a permit that never ends, the first replica finds the mark of the second one.
    ensure!(!permit.holds() && first.write(&[], &settings, &permit).await.removed == 0);
    first.write(&[], &settings, &WritePermit::always()).await;
    ensure!(policies.closed().await? == ["web"]);

    by_hand(cluster, &settings, &policies, &mut second, &later).await?;
    second.retire().await
}

fn is_conflict<T>(answer: &kube::Result<T>) -> bool {
    matches!(answer, Err(kube::Error::Api(status)) if status.code == 409)
}

/// `unblock-all` and `uninstall`, by the administrator.
async fn by_hand(
    cluster: &Cluster,
    settings: &Settings,
    policies: &Policies,
    leader: &mut Replica,
    permit: &WritePermit,
) -> anyhow::Result<()> {
    let admin = ClusterOutput::new(connect(cluster, true).await?);
    let Opened { objects, refused } = admin.unblock_all(settings).await;
    ensure!(objects.len() == 2 && refused.is_empty(), "{objects:?} {refused:?}");
    for names in [&["web"][..], &["blog", "web"], &[]] {
        let outcome = leader.write(names, settings, permit).await;
        ensure!(outcome.removed == 0 && outcome.problems.is_empty(), "{outcome:?}");
        ensure!(policies.closed().await?.is_empty(), "{names:?}");
    }
    ensure!(policies.get("web").await?.annotations().get(SUSPEND).is_some_and(|value| value == "true"));
    policies.merge("web", json!({"metadata": {"annotations": {SUSPEND: null}}})).await?;
    leader.write(&["web"], settings, permit).await;
    ensure!(policies.closed().await? == ["web"]);

    let removed = admin.uninstall(settings, false).await?;
    let kinds: Vec<&str> = removed.iter().filter_map(|object| object.split(' ').next()).collect();
    ensure!(kinds == ["ConfigMap", "WasmPlugin"], "{removed:?}");
    ensure!(policies.closed().await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_with_an_object_for_each_app_needs_only_its_own_rights() -> anyhow::Result<()> {
    let beginning = Beginning { nodes: 1, has_kubelets: false, ..Beginning::default() };
    let (cluster, stage, ..) = scene(beginning).await?;
    stage.namespace(NAMESPACE).await?;
    stage.namespace(TENANT).await?;
    full_cycle(&cluster, KINDS, IN_ONE_NAMESPACE, Some(NAMESPACE)).await?;
    // The next election starts after the Lease has been given back.
    tokio::time::sleep(Duration::from_secs(1)).await;
    full_cycle(&cluster, KINDS_IN_TENANTS, IN_TENANTS_NAMESPACES, None).await
}
