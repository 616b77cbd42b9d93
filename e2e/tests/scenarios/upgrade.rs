//! Objects of earlier versions: a new version takes them over.

use anyhow::ensure;
use kube::ResourceExt;
use kube::api::{ApiResource, DynamicObject, ListParams, PostParams};
use kube::core::GroupVersionKind;
use procscan_e2e::crds::{self, WASM_PLUGINS};
use procscan_e2e::until;
use serde_json::{Value, json};

use crate::world::{Beginning, GATEWAY, LIMIT, ROUNDS, World, decisions, delete, scene};

const NAME: &str = "procscan-violations";

/// An earlier version wrote fields that the kind does not have, so the API server stored an empty object.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_wasm_plugin_of_our_name_is_taken_over() -> anyhow::Result<()> {
    let scene = scene(Beginning::default()).await?;
    let kind = GroupVersionKind::gvk("extensions.higress.io", "v1alpha1", "WasmPlugin");
    let resource = ApiResource::from_gvk(&kind);
    let plugins: kube::Api<DynamicObject> = kube::Api::namespaced_with(scene.0.admin(), GATEWAY, &resource);
    let mut before = DynamicObject::new(NAME, &resource);
    before.data = json!({"spec": {}});
    let before = plugins.create(&PostParams::default(), &before).await?;
    let world = World::around(scene, &json!({})).await?;
    let pod = world.tenant("ns-a", "web", "sim-0000").await?;
    world.accuse(0, &[("ns-a", &pod)]);
    until("the gateway to be closed", LIMIT, async || {
        let plugin = world.wasm_plugins().get(NAME).await?;
        ensure!(plugin.data["spec"]["url"].is_string(), "{:?}", plugin.data);
        Ok(())
    })
    .await?;
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    let now = world.wasm_plugins().get(NAME).await?;
    ensure!(now.uid() == before.uid(), "another object: {now:?}");
    ensure!(now.labels()["app.kubernetes.io/managed-by"] == "procscan-aggregator", "{:?}", now.labels());
    Ok(())
}

/// An earlier version persisted no Incidents, and wrote its objects only.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_without_an_incident_is_inherited_and_notifies_no_tenant_again() -> anyhow::Result<()> {
    let mut world = World::start().await?;
    let pod = world.tenant("ns-a", "web", "sim-0000").await?;
    let b = world.tenant("ns-b", "web", "sim-0001").await?;
    world.accuse(0, &[("ns-a", &pod)]);
    world.accuse(1, &[("ns-b", &b)]);
    world.until_closed(&["web-x7k2.ns-a", "web-x7k2.ns-b"]).await?;
    let mut notifications = Vec::new();
    for namespace in ["ns-a", "ns-b"] {
        notifications.push(world.until_notified(namespace, "there", |_| true).await?);
    }
    for is_accused in [true, false] {
        world.aggregator.kill()?;
        for incident in world.incidents().list(&ListParams::default()).await? {
            delete(&world.incidents(), &incident.name_any()).await?;
        }
        // The earlier version wrote no leader's mark either.
        let unmarked = json!({"metadata": {"annotations": {"procscan-aggregator/writer": null}}});
        world.merge(&world.wasm_plugins(), NAME, unmarked).await?;
        if !is_accused {
            world.accuse(0, &[]);
            world.accuse(1, &[]);
        }
        world.restart(&json!({}))?;
        for namespace in ["ns-a", "ns-b"] {
            let incident = world
                .until_incident(namespace, "blocked", |incident| incident["status"]["state"] == "Blocked")
                .await?;
            let all = decisions(&incident);
            ensure!(all.first() == Some(&("inherited".to_owned(), "policy".to_owned())), "{all:?}");
        }
        world.stays_closed(&["web-x7k2.ns-a", "web-x7k2.ns-b"], ROUNDS).await?;
        for before in &notifications {
            let namespace = before.namespace().unwrap_or_default();
            let now = world.notifications(&namespace).get(&before.name_any()).await?;
            ensure!(now.resource_version() == before.resource_version(), "notified again: {now:?}");
        }
        let logs = world.aggregator.logs();
        let inherited = logs.iter().filter(|entry| entry["decision"] == "inherited").count();
        ensure!(inherited == 2, "the log has {inherited} inherited blocks: expected 2");
        let other = |entry: &&Value| entry.get("decision").is_some_and(|kind| kind != "inherited");
        ensure!(logs.iter().find(other).is_none(), "{:?}", logs.iter().find(other));
    }
    Ok(())
}

/// The API server does not serve WasmPlugins while a leader takes over, for example during an upgrade of their CRD. So this leader
/// can't inherit the gateway's blocks, and no Incident explains them.
#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_a_wasm_plugin_that_was_not_served_at_the_take_over_are_inherited_and_no_app_opens()
-> anyhow::Result<()> {
    let mut world = World::start().await?;
    let a = world.tenant("ns-a", "web", "sim-0000").await?;
    let b = world.tenant("ns-b", "web", "sim-0001").await?;
    world.accuse(0, &[("ns-a", &a)]);
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    world.aggregator.kill()?;
    for incident in world.incidents().list(&ListParams::default()).await? {
        delete(&world.incidents(), &incident.name_any()).await?;
    }
    world.accuse(0, &[]);
    world.accuse(1, &[("ns-b", &b)]);
    crds::set_served(&world.cluster.admin(), WASM_PLUGINS, false).await?;
    world.restart(&json!({}))?;
    world.until_logged(&["list wasmplugins", "is its CRD installed?"]).await?;
    let is_blocked = |incident: &Value| incident["status"]["state"] == "Blocked";
    world.until_incident("ns-b", "blocked", is_blocked).await?;

    crds::set_served(&world.cluster.admin(), WASM_PLUGINS, true).await?;
    world.until_logged(&["serves this kind again", "stops leading"]).await?;
    world.until_incident("ns-a", "inherited", is_blocked).await?;
    world.until_closed(&["web-x7k2.ns-a", "web-x7k2.ns-b"]).await
}
