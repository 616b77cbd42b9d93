//! A new leader takes over a list that names Ingresses. It opens no Ingress, and writes only changed objects.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};
use futures_util::TryStreamExt;
use k8s_openapi::api::networking::v1::Ingress;
use kube::api::{DynamicObject, ListParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, ResourceExt};
use procscan_e2e::until;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::world::{Beginning, LIMIT, ROUNDS, World, delete};

/// More tenants than one group of look-ups has.
const TENANTS: usize = 12;

fn texts<'a>(rule: &'a Value, list: &str) -> BTreeSet<&'a str> {
    rule[list].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Whether one of our WasmPlugins closes that Service on that Ingress.
fn closes(plugin: &DynamicObject, service: &str, ingress: &str) -> bool {
    let rules = plugin.data["spec"]["matchRules"].as_array().into_iter().flatten();
    let has_both = |rule: &Value| {
        texts(rule, "service").contains(service)
            && (rule.get("ingress").is_none() || texts(rule, "ingress").contains(ingress))
    };
    rules.into_iter().any(has_both)
}

fn service(tenant: usize) -> String {
    format!("web-x7k2.ns-{tenant:02}.svc.cluster.local")
}

/// Every Ingress that our WasmPlugins name.
fn ingresses(plugins: &[DynamicObject]) -> BTreeSet<String> {
    let rules =
        plugins.iter().flat_map(|plugin| plugin.data["spec"]["matchRules"].as_array().into_iter().flatten());
    rules.flat_map(|rule| texts(rule, "ingress")).map(str::to_owned).collect()
}

/// The Ingresses of all tenants. Each tenant has one from before its block, and one that it adds later.
fn all() -> BTreeSet<String> {
    (0..TENANTS).flat_map(|n| ["first", "later"].map(|name| format!("ns-{n:02}/{name}"))).collect()
}

async fn until_named(world: &World, expected: &BTreeSet<String>) -> anyhow::Result<()> {
    let what = format!("{} Ingresses to be named", expected.len());
    let named = until(&what, LIMIT, async || {
        let named = ingresses(&world.plugins().await?);
        ensure!(named == *expected, "{:?}", named.symmetric_difference(expected));
        Ok(())
    });
    named.await.with_context(|| world.last_log_entries())
}

/// How many times the `spec` of each of our WasmPlugins has changed.
async fn generations(world: &World) -> anyhow::Result<BTreeMap<String, i64>> {
    let plugins = world.plugins().await?;
    Ok(plugins.iter().map(|plugin| (plugin.name_any(), plugin.metadata.generation.unwrap_or(0))).collect())
}

/// Fails when a Service is opened on one of these Ingresses. It sees every version of the WasmPlugin.
fn until_opened(world: &World, names: &'static [&'static str]) -> JoinHandle<anyhow::Result<()>> {
    let only = watcher::Config::default().fields("metadata.name=procscan-violations");
    let versions = watcher(world.wasm_plugins(), only);
    tokio::spawn(async move {
        let mut versions = std::pin::pin!(versions.default_backoff().touched_objects());
        while let Some(version) = versions.try_next().await? {
            for n in 0..TENANTS {
                for name in names {
                    let ingress = format!("ns-{n:02}/{name}");
                    ensure!(
                        closes(&version, &service(n), &ingress),
                        "{ingress} was opened: {:?}",
                        version.data["spec"]
                    );
                }
            }
        }
        bail!("the watch has ended")
    })
}

async fn restart(world: &mut World, config: &Value) -> anyhow::Result<()> {
    world.restart(config)?;
    let leads = |ready: &Value| ready["leader"]["leading"] == true && ready["output"]["ok"] == true;
    world.aggregator.wait_for("the restarted replica to lead", LIMIT, "/readyz", leads).await?;
    let hosts: Vec<String> = (0..TENANTS).map(|n| format!("web-x7k2.ns-{n:02}")).collect();
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    world.stays_closed(&hosts, 2 * ROUNDS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_opens_no_ingress_that_was_added_after_the_block() -> anyhow::Result<()> {
    // All tenants offend within minutes, by the same rule, and the brakes must not hold them here.
    let brake = json!({"max_new_tenants": 1000, "max_tenants_per_node": 1000, "max_apps_per_node": 1000, "max_tenants_per_rule": 1000});
    let config = json!({"gateway": {"max_service_entries": 1}, "brake": brake});
    let mut world = World::begin(Beginning { config: config.clone(), ..Beginning::default() }).await?;
    let mut pods = Vec::new();
    for n in 0..TENANTS {
        let namespace = format!("ns-{n:02}");
        world.stage.namespace(&namespace).await?;
        world.stage.pod(&namespace, "web-0", "sim-0000", &[("app", "web")]).await?;
        world.stage.service(&namespace, "web-x7k2", &[("app", "web")]).await?;
        world.stage.ingress(&namespace, "first", &format!("first-{n}.example.com"), "web-x7k2").await?;
        pods.push((namespace, "web-0"));
    }
    let accused: Vec<(&str, &str)> = pods.iter().map(|(namespace, pod)| (&**namespace, *pod)).collect();
    world.accuse(0, &accused);
    until_named(&world, &all().into_iter().filter(|name| name.ends_with("/first")).collect()).await?;
    for (n, (namespace, _)) in pods.iter().enumerate() {
        world.stage.ingress(namespace, "later", &format!("later-{n}.example.com"), "web-x7k2").await?;
    }
    until_named(&world, &all()).await?;

    let opened = until_opened(&world, &["first", "later"]);
    for _ in 0..3 {
        let before = generations(&world).await?;
        restart(&mut world, &config).await?;
        let after = generations(&world).await?;
        ensure!(!opened.is_finished(), "{:?}", opened.await);
        ensure!(before == after, "an unchanged object was written: {before:?}, then {after:?}");
    }
    opened.abort();

    // While no replica leads, every tenant replaces an Ingress. The new leader opens the deleted ones at once, after it has
    // looked up all tenants.
    let opened = until_opened(&world, &["later"]);
    let before = generations(&world).await?;
    world.aggregator.kill()?;
    for (n, (namespace, _)) in pods.iter().enumerate() {
        let ingresses: Api<Ingress> = world.stage.api(namespace);
        delete(&ingresses, "first").await?;
        world.stage.ingress(namespace, "third", &format!("third-{n}.example.com"), "web-x7k2").await?;
    }
    restart(&mut world, &config).await?;
    until_named(&world, &all().into_iter().map(|name| name.replace("/first", "/third")).collect()).await?;
    let after = generations(&world).await?;
    ensure!(!opened.is_finished(), "{:?}", opened.await);
    let writes: i64 = after.values().sum::<i64>() - before.values().sum::<i64>();
    // One write for each group of look-ups closes new Ingresses, and one write opens the deleted ones.
    ensure!((1..=4).contains(&writes), "{writes} writes");
    let incidents = world.incidents().list(&ListParams::default()).await?.items;
    ensure!(incidents.len() == TENANTS, "{} Incidents", incidents.len());
    Ok(())
}
