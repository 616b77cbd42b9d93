//! The aggregator repairs its own fields of an object, and leaves the reader's fields alone.

use anyhow::ensure;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use procscan_e2e::until;
use procscan_e2e::wait::throughout;
use serde_json::{Value, json};

use crate::world::{Beginning, LIMIT, ROUNDS, World, delete, scene};

const NAME: &str = "procscan-violations";

fn foreign(name: &str) -> DynamicObject {
    let kind = GroupVersionKind::gvk("extensions.higress.io", "v1alpha1", "WasmPlugin");
    let mut object = DynamicObject::new(name, &ApiResource::from_gvk(&kind));
    object.data = json!({"spec": {"url": "oci://example.com/other", "matchRules": [{"ingress": ["a/b"], "configDisable": false, "config": {}}]}});
    object
}

/// Scenario 7.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_wasm_plugin_is_repaired_unless_it_is_suspended() -> anyhow::Result<()> {
    let world = World::start().await?;
    let pod = world.tenant("ns-a", "web", "sim-0000").await?;
    let plugins = world.wasm_plugins();
    let other = plugins.create(&PostParams::default(), &foreign("other")).await?;
    let alike = plugins.create(&PostParams::default(), &foreign("procscan-violations-x")).await?;
    world.accuse(0, &[("ns-a", &pod)]);
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    let wanted = plugins.get(NAME).await?.data["spec"].clone();

    let edits = [
        json!({"spec": {"matchRules": [{"service": ["procscan-sentinel.invalid"], "configDisable": false, "config": {}}]}}),
        // With this additional field no rule has effect.
        json!({"spec": {"pluginConfig": {"block_urls": []}}}),
        json!({"spec": {"defaultConfigDisable": null, "defaultConfig": {"block_urls": ["/"]}}}),
        json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}, "spec": {"failStrategy": "FAIL_CLOSE"}}),
    ];
    for edit in edits {
        world.merge(&plugins, NAME, edit.clone()).await?;
        until(&format!("the repair of {edit}"), LIMIT, async || {
            let now = plugins.get(NAME).await?;
            ensure!(now.data["spec"] == wanted, "{}", now.data["spec"]);
            ensure!(now.labels()["app.kubernetes.io/managed-by"] == "procscan-aggregator");
            Ok(())
        })
        .await?;
    }
    delete(&plugins, NAME).await?;
    world.until_closed(&["web-x7k2.ns-a"]).await?;

    world
        .merge(&plugins, NAME, json!({"metadata": {"annotations": {"procscan-aggregator/suspend": "true"}}}))
        .await?;
    world.merge(&plugins, NAME, json!({"spec": {"priority": 1}})).await?;
    world
        .aggregator
        .wait_for("the suspension", LIMIT, "/readyz", |ready| {
            ready["output"]["suspended"][0] == "WasmPlugin higress-system/procscan-violations"
        })
        .await?;
    throughout("the WasmPlugin has the operator's change", ROUNDS, async || {
        let now = plugins.get(NAME).await?;
        ensure!(now.data["spec"]["priority"] == 1, "{}", now.data["spec"]);
        anyhow::Ok(())
    })
    .await?;
    world
        .merge(&plugins, NAME, json!({"metadata": {"annotations": {"procscan-aggregator/suspend": null}}}))
        .await?;
    until("the repair after the suspension", LIMIT, async || {
        let now = plugins.get(NAME).await?;
        ensure!(now.data["spec"] == wanted, "{}", now.data["spec"]);
        Ok(())
    })
    .await?;

    for before in [other, alike] {
        let now = plugins.get(&before.name_any()).await?;
        ensure!(now.resource_version() == before.resource_version(), "a foreign object was changed: {now:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_object_with_our_name_is_refused_until_it_has_our_label() -> anyhow::Result<()> {
    let (cluster, stage, kubelets, fleet, stop) = scene(Beginning::default()).await?;
    let kind = GroupVersionKind::gvk("extensions.higress.io", "v1alpha1", "WasmPlugin");
    let resource = ApiResource::from_gvk(&kind);
    let plugins: kube::Api<DynamicObject> =
        kube::Api::namespaced_with(cluster.admin(), crate::world::GATEWAY, &resource);
    let before = plugins.create(&PostParams::default(), &foreign(NAME)).await?;
    let world = World::around((cluster, stage, kubelets, fleet, stop), &json!({})).await?;
    world
        .until_logged(&[
            "not written by procscan-aggregator",
            "app.kubernetes.io/managed-by=procscan-aggregator",
        ])
        .await?;
    throughout("the foreign object is unchanged", ROUNDS, async || {
        ensure!(plugins.get(NAME).await?.resource_version() == before.resource_version());
        anyhow::Ok(())
    })
    .await?;
    world
        .merge(
            &plugins,
            NAME,
            json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "procscan-aggregator"}}}),
        )
        .await?;
    until("the object to be taken over", LIMIT, async || {
        let now = plugins.get(NAME).await?;
        ensure!(
            now.data["spec"]["matchRules"][0]["service"] == json!(["procscan-sentinel.invalid"]),
            "{:?}",
            now.data
        );
        Ok(())
    })
    .await
}

/// Replaces all labels, as the Sealos desktop does.
async fn mark_as_read(world: &World, namespace: &str, name: &str) -> anyhow::Result<()> {
    let patch = json!([{"op": "replace", "path": "/metadata/labels", "value": {"isRead": "true"}}]);
    let patch: Patch<Value> = Patch::Json(serde_json::from_value(patch)?);
    world.notifications(namespace).patch(name, &PatchParams::default(), &patch).await?;
    Ok(())
}

/// Scenario 8.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_notification_stays_read_until_the_next_incident() -> anyhow::Result<()> {
    let world = World::start().await?;
    world.stage.namespace("ns-a").await?;
    world.stage.service("ns-a", "web-x7k2", &[("app", "web")]).await?;
    let offends = async || -> anyhow::Result<()> {
        world.stage.pod("ns-a", "web-0", "sim-0000", &[("app", "web")]).await?;
        world.accuse(0, &[("ns-a", "web-0")]);
        world.until_closed(&["web-x7k2.ns-a"]).await
    };
    let recovers = async || -> anyhow::Result<()> {
        world.accuse(0, &[]);
        delete(&world.stage.api::<Pod>("ns-a"), "web-0").await?;
        world.until_closed(&[]).await?;
        let gone = until("the Pod to be gone", LIMIT, async || {
            ensure!(world.stage.api::<Pod>("ns-a").get_opt("web-0").await?.is_none(), "still there");
            Ok(())
        });
        gone.await
    };
    offends().await?;
    let first = world.until_notified("ns-a", "unread", |it| it.labels()["isRead"] == "false").await?;
    let name = first.name_any();
    mark_as_read(&world, "ns-a", &name).await?;
    world.nothing_more_is_written(&["ns-a"], 1, ROUNDS).await?;
    // The aggregator repairs the text, and the Notification stays read.
    world.merge(&world.notifications("ns-a"), &name, json!({"spec": {"title": "You have won"}})).await?;
    let repaired = world
        .until_notified("ns-a", "with its own title", |now| {
            now.data["spec"]["title"] == first.data["spec"]["title"]
        })
        .await?;
    ensure!(repaired.labels().len() == 1 && repaired.labels()["isRead"] == "true", "{:?}", repaired.labels());

    recovers().await?;
    offends().await?;
    let again =
        world.until_notified("ns-a", "unread once more", |now| now.labels()["isRead"] == "false").await?;
    ensure!(again.name_any() == name, "the second incident has another object: {again:?}");
    ensure!(again.data["spec"]["timestamp"].as_i64() > first.data["spec"]["timestamp"].as_i64());
    recovers().await?;
    world
        .until_notified("ns-a", "marked as read by the recovery", |now| now.labels()["isRead"] == "true")
        .await?;

    offends().await?;
    world.until_notified("ns-a", "unread", |now| now.labels()["isRead"] == "false").await?;
    delete(&world.notifications("ns-a"), &name).await?;
    throughout("a deleted Notification stays deleted", ROUNDS, async || {
        ensure!(world.notifications("ns-a").get_opt(&name).await?.is_none());
        anyhow::Ok(())
    })
    .await?;
    recovers().await?;
    ensure!(
        world.notifications("ns-a").get_opt(&name).await?.is_none(),
        "the recovery has created the Notification again"
    );
    offends().await?;
    world
        .until_notified("ns-a", "there with the next incident", |now| now.labels()["isRead"] == "false")
        .await?;
    Ok(())
}

/// A policy of the API server refuses the Notification of one tenant only.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_notification_delays_no_other_tenant() -> anyhow::Result<()> {
    let world = World::start().await?;
    let refuse = "
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: refuse}
spec:
  matchConstraints:
    resourceRules:
    - {apiGroups: [notification.sealos.io], apiVersions: ['*'], operations: [CREATE], resources: [notifications]}
  validations: [{expression: \"object.metadata.namespace != 'ns-a'\", message: not here}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: refuse}
spec: {policyName: refuse, validationActions: [Deny]}
";
    world.cluster.apply(refuse).await?;
    let a = world.tenant("ns-a", "web", "sim-0000").await?;
    let b = world.tenant("ns-b", "web", "sim-0001").await?;
    until("the policy to be in force", LIMIT, async || {
        let api = world.notifications("ns-a");
        let kind = GroupVersionKind::gvk("notification.sealos.io", "v1", "Notification");
        let mut probe = DynamicObject::new("probe", &ApiResource::from_gvk(&kind));
        probe.data = json!({"spec": {"title": "t", "message": "m", "timestamp": 1}});
        let refused = api.create(&PostParams { dry_run: true, ..PostParams::default() }, &probe).await;
        ensure!(refused.is_err(), "not yet");
        Ok(())
    })
    .await?;
    world.accuse(0, &[("ns-a", &a)]);
    world.accuse(1, &[("ns-b", &b)]);
    world.until_closed(&["web-x7k2.ns-a", "web-x7k2.ns-b"]).await?;
    world.until_notified("ns-b", "there", |_| true).await?;
    world.until_logged(&["messages can't be written", "ns-a", "not here"]).await?;
    // Every round repairs changed objects, also while a Notification is refused.
    world.merge(&world.wasm_plugins(), NAME, json!({"spec": {"matchRules": null}})).await?;
    world.until_closed(&["web-x7k2.ns-a", "web-x7k2.ns-b"]).await?;
    let output = world.cluster.kubectl(&["delete", "validatingadmissionpolicybinding", "refuse"]).await?;
    ensure!(output.status.success(), "{output:?}");
    world.until_notified("ns-a", "there after the policy is deleted", |_| true).await?;
    Ok(())
}
