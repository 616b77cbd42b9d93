//! More than anybody hopes to block: twenty thousand Apps at once, with the longest names there are.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::networking::v1::Ingress;
use kube::ResourceExt;
use kube::api::{DeleteParams, DynamicObject, ListParams};
use procscan_e2e::Stage;
use procscan_e2e::wait::until_every;
use serde_json::json;

use crate::world::{Beginning, World, offender, scene};

const TENANTS: usize = 20;
const APPS: usize = 1000;
/// Everything that is made here takes a while on a small machine, and so does looking at all of it.
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
                    // Without an address of its own it is made faster.
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
    plugins.await.with_context(|| world.last_words())
}

/// Scenario 10.
#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_apps_are_blocked_one_changes_one_shard_and_none_leaves_sentinels()
-> anyhow::Result<()> {
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
    // What these would do for as many Pods proves nothing more.
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
    let world = World::around(scene, &more).await?;
    let all = |tenant: usize, apps: usize| {
        (0..apps).map(|number| offender(&namespace(tenant), &app(tenant, number))).collect()
    };
    for tenant in 0..TENANTS {
        world.fleet.set_offenders(tenant, all(tenant, APPS));
    }
    let plugins = until_so_many(&world, TENANTS * APPS).await?;
    ensure!(plugins.len() > 3, "{}", plugins.len());
    for plugin in &plugins {
        let size = serde_json::to_vec(
            &json!({"metadata": {"name": plugin.name_any()}, "spec": plugin.data["spec"]}),
        )?
        .len();
        ensure!(size <= 512 << 10, "{} has {size} bytes", plugin.name_any());
    }
    // It becomes the long form once every route is known: Ingresses are looked up by hash, and nothing stays plain.
    let plugins = until_every(PAUSE, "the long form everywhere", LONG, async || {
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
    .await?;

    // One App less. Its Pod is gone, and its node says nothing more of it.
    world.fleet.set_offenders(0, all(0, APPS - 1));
    let now = DeleteParams::default().grace_period(0);
    world.stage.api::<Pod>(&namespace(0)).delete(&app(0, APPS - 1), &now).await?;
    let fewer = until_so_many(&world, TENANTS * APPS - 1).await?;
    let version = |plugins: &[DynamicObject]| -> Vec<String> {
        plugins.iter().map(|plugin| plugin.resource_version().unwrap_or_default()).collect()
    };
    let rewritten = version(&plugins).iter().zip(version(&fewer)).filter(|(a, b)| **a != *b).count();
    ensure!(fewer.len() == plugins.len() && rewritten == 1, "{rewritten} of {} were rewritten", fewer.len());

    for tenant in 0..TENANTS {
        world.fleet.set_offenders(tenant, Vec::new());
    }
    let tenants = stream::iter(0..TENANTS).map(Ok);
    tenants
        .try_for_each_concurrent(4, async |tenant| {
            let pods = world.stage.api::<Pod>(&namespace(tenant));
            pods.delete_collection(&now, &ListParams::default()).await.map(drop)
        })
        .await?;
    let none = until_so_many(&world, 0).await?;
    ensure!(none.len() == plugins.len(), "shards are never deleted");
    Ok(())
}
