//! Twenty thousand Apps are blocked at once, with the longest names that Kubernetes allows.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::networking::v1::Ingress;
use kube::ResourceExt;
use kube::api::{DeleteParams, DynamicObject, ListParams};
use procscan_agent::record::Record;
use procscan_e2e::Stage;
use procscan_e2e::wait::until_every;
use serde_json::json;

use crate::world::{Beginning, World, offender, scene};

const TENANTS: usize = 20;
const APPS: usize = 1000;
/// On a small machine it takes minutes to create all objects, and to read them.
const LONG: Duration = Duration::from_mins(8);
/// All WasmPlugins together are some megabytes.
const PAUSE: Duration = Duration::from_secs(2);

fn namespace(tenant: usize) -> String {
    format!("ns-{tenant:060}")
}

fn app(tenant: usize, number: usize) -> String {
    format!("app-{tenant:029}-{number:029}")
}

/// An App with a Pod on the tenant's node, a Service, and a path of the tenant's Ingress.
async fn make(stage: &Stage, tenant: usize) -> anyhow::Result<()> {
    let (namespace, node) = (namespace(tenant), format!("sim-{tenant:04}"));
    stage.namespace(&namespace).await?;
    let numbers = stream::iter(0..APPS).map(Ok);
    numbers
        .try_for_each_concurrent(16, |number| {
            let (namespace, node) = (namespace.clone(), node.clone());
            async move {
                let name = app(tenant, number);
                stage.pod(&namespace, &name, &node, &[("app", &name)]).await?;
                let service = json!({
                    "metadata": {"name": name, "namespace": namespace},
                    // The API server creates a Service without an address faster.
                    "spec": {"clusterIP": "None", "selector": {"app": name}, "ports": [{"port": 80}]},
                });
                stage.make::<Service>(service).await
            }
        })
        .await?;
    let path = |number: usize| {
        let backend = json!({"service": {"name": app(tenant, number), "port": {"number": 80}}});
        json!({"path": format!("/{number}"), "pathType": "Prefix", "backend": backend})
    };
    let ingress = json!({
        "metadata": {"name": "web", "namespace": namespace},
        "spec": {"rules": [{"http": {"paths": (0..APPS).map(path).collect::<Vec<_>>()}}]},
    });
    stage.make::<Ingress>(ingress).await
}

async fn until_so_many(world: &World, apps: usize) -> anyhow::Result<Vec<DynamicObject>> {
    let what = format!("{apps} closed Services");
    let plugins = until_every(PAUSE, &what, LONG, async || {
        let closed = world.closed().await?;
        ensure!(closed.len() == apps, "{}", closed.len());
        world.plugins().await
    });
    plugins.await.with_context(|| world.last_log_entries())
}

/// All Apps of the tenants, in a world without limits that hold them.
async fn with_all_apps() -> anyhow::Result<World> {
    let lifted = 1_000_000;
    let config = json!({
        "aggregator": {"scan_interval": "2s"},
        // With the default, a node has room for 256 of its 1,000 Pods once all nodes together have 10,000.
        "collector": {"timeout": "2s", "max_violations": 2 * TENANTS * APPS},
        "brake": {
            "max_new_tenants": lifted, "max_tenants_per_node": lifted, "max_apps_per_node": lifted, "max_tenants_per_rule": lifted,
            "max_apps_per_tenant": lifted, "max_releases": lifted, "max_gone_tenants": lifted,
        },
        "kubernetes": {"requests_per_second": 2000},
        "notification": {"max_per_round": 5},
    });
    let mut beginning = Beginning { nodes: TENANTS, config, ..Beginning::default() };
    // Kubelets and controllers for as many Pods would prove nothing more.
    beginning.has_kubelets = false;
    beginning.cluster.controllers = false;
    // Otherwise the API server deletes the Pods of a tenant one after the other, which takes minutes.
    beginning.cluster.apiserver_args = vec!["--delete-collection-workers=8".to_owned()];
    // Agents scan every 100 s. Twenty thousand accusations that are renewed each second are more than one machine can look up.
    beginning.scan_interval = Duration::from_secs(20);
    let more = beginning.config.clone();
    let scene = scene(beginning).await?;
    for tenant in 0..TENANTS {
        make(&scene.1, tenant).await?;
    }
    World::around(scene, &more).await
}

/// The tenant's first Apps, as its node's agent lists them.
fn offenders(tenant: usize, apps: usize) -> Vec<Record> {
    (0..apps).map(|number| offender(&namespace(tenant), &app(tenant, number))).collect()
}

fn check_shard_sizes(plugins: &[DynamicObject]) -> anyhow::Result<()> {
    ensure!(plugins.len() > 3, "{}", plugins.len());
    for plugin in plugins {
        let size = serde_json::to_vec(
            &json!({"metadata": {"name": plugin.name_any()}, "spec": plugin.data["spec"]}),
        )?
        .len();
        ensure!(size <= 512 << 10, "{} has {size} bytes", plugin.name_any());
    }
    Ok(())
}

/// Once every route is known, all lists have the long form. Then the gateway looks up Ingresses by hash, and no Service stays
/// in the plain list.
async fn until_all_have_the_long_form(world: &World) -> anyhow::Result<Vec<DynamicObject>> {
    until_every(PAUSE, "the long form everywhere", LONG, async || {
        let plugins = world.plugins().await?;
        for plugin in &plugins {
            let rules = &plugin.data["spec"]["matchRules"];
            ensure!(
                rules[0]["service"].as_array().is_some_and(|plain| plain.len() == 1),
                "plain: {}",
                plugin.name_any()
            );
            ensure!(rules[1]["ingress"].as_array().is_some_and(|ingresses| ingresses.len() == TENANTS));
        }
        Ok(plugins)
    })
    .await
}

/// Ends one App: its Pod is deleted, and its agent does not list it any more.
async fn check_that_a_release_rewrites_one_shard(
    world: &World,
    plugins: &[DynamicObject],
) -> anyhow::Result<()> {
    world.fleet.set_offenders(0, offenders(0, APPS - 1));
    world.stage.api::<Pod>(&namespace(0)).delete(&app(0, APPS - 1), &at_once()).await?;
    let fewer = until_so_many(world, TENANTS * APPS - 1).await?;
    let version = |plugins: &[DynamicObject]| -> Vec<String> {
        plugins.iter().map(|plugin| plugin.resource_version().unwrap_or_default()).collect()
    };
    let rewritten = version(plugins).iter().zip(version(&fewer)).filter(|(a, b)| **a != *b).count();
    ensure!(fewer.len() == plugins.len() && rewritten == 1, "{rewritten} of {} were rewritten", fewer.len());
    Ok(())
}

async fn check_that_empty_shards_stay(world: &World, plugins: &[DynamicObject]) -> anyhow::Result<()> {
    for tenant in 0..TENANTS {
        world.fleet.set_offenders(tenant, Vec::new());
    }
    let tenants = stream::iter(0..TENANTS).map(Ok);
    tenants
        .try_for_each_concurrent(4, async |tenant| {
            let pods = world.stage.api::<Pod>(&namespace(tenant));
            pods.delete_collection(&at_once(), &ListParams::default()).await.map(drop)
        })
        .await?;
    let none = until_so_many(world, 0).await?;
    ensure!(none.len() == plugins.len(), "shards are never deleted");
    Ok(())
}

fn at_once() -> DeleteParams {
    DeleteParams::default().grace_period(0)
}

/// Scenario 10.
#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_apps_are_blocked_one_changes_one_shard_and_none_leaves_sentinels()
-> anyhow::Result<()> {
    let world = with_all_apps().await?;
    for tenant in 0..TENANTS {
        world.fleet.set_offenders(tenant, offenders(tenant, APPS));
    }
    let plugins = until_so_many(&world, TENANTS * APPS).await?;
    check_shard_sizes(&plugins)?;
    let plugins = until_all_have_the_long_form(&world).await?;
    check_that_a_release_rewrites_one_shard(&world, &plugins).await?;
    check_that_empty_shards_stay(&world, &plugins).await
}
