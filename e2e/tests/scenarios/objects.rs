//! The objects once they are written: what is ours is kept, what is its reader's is left to its reader.

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
async fn what_somebody_changes_in_the_wasm_plugin_is_put_right_unless_it_is_suspended() -> anyhow::Result<()>
{
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
        // One field too many switches all rules off.
        json!({"spec": {"pluginConfig": {"block_urls": []}}}),
        json!({"spec": {"defaultConfigDisable": null, "defaultConfig": {"block_urls": ["/"]}}}),
        json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}, "spec": {"failStrategy": "FAIL_CLOSE"}}),
    ];
    for edit in edits {
        world.merge(&plugins, NAME, edit.clone()).await?;
        until(&format!("{edit} to be put right"), LIMIT, async || {
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
    throughout("it is left as it is", ROUNDS, async || {
        let now = plugins.get(NAME).await?;
        ensure!(now.data["spec"]["priority"] == 1, "{}", now.data["spec"]);
        anyhow::Ok(())
    })
    .await?;
    world
        .merge(&plugins, NAME, json!({"metadata": {"annotations": {"procscan-aggregator/suspend": null}}}))
        .await?;
    until("it to be put right again", LIMIT, async || {
        let now = plugins.get(NAME).await?;
        ensure!(now.data["spec"] == wanted, "{}", now.data["spec"]);
        Ok(())
    })
    .await?;

    for before in [other, alike] {
        let now = plugins.get(&before.name_any()).await?;
        ensure!(now.resource_version() == before.resource_version(), "somebody else's was touched: {now:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_object_of_our_name_is_refused_until_it_is_handed_over() -> anyhow::Result<()> {
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
    throughout("it is left alone", ROUNDS, async || {
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
    until("it to be taken over", LIMIT, async || {
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

/// As the desktop does it: all labels are replaced.
async fn mark_as_read(world: &World, namespace: &str, name: &str) -> anyhow::Result<()> {
    let patch = json!([{"op": "replace", "path": "/metadata/labels", "value": {"isRead": "true"}}]);
    let patch: Patch<Value> = Patch::Json(serde_json::from_value(patch)?);
    world.notifications(namespace).patch(name, &PatchParams::default(), &patch).await?;
    Ok(())
}

/// Scenario 8.
#[tokio::test(flavor = "multi_thread")]
async fn a_notification_is_its_readers_until_something_new_happens() -> anyhow::Result<()> {
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
    let told = world.until_told("ns-a", "unread", |told| told.labels()["isRead"] == "false").await?;
    let name = told.name_any();
    mark_as_read(&world, "ns-a", &name).await?;
    world.nothing_more_is_written(&["ns-a"], 1, ROUNDS).await?;
    // Its text is ours all the same: it is put right, and stays read.
    world.merge(&world.notifications("ns-a"), &name, json!({"spec": {"title": "You have won"}})).await?;
    let repaired = world
        .until_told("ns-a", "with its own title", |now| {
            now.data["spec"]["title"] == told.data["spec"]["title"]
        })
        .await?;
    ensure!(repaired.labels().len() == 1 && repaired.labels()["isRead"] == "true", "{:?}", repaired.labels());

    recovers().await?;
    offends().await?;
    let again = world.until_told("ns-a", "unread once more", |now| now.labels()["isRead"] == "false").await?;
    ensure!(again.name_any() == name, "the same object for every incident");
    ensure!(again.data["spec"]["timestamp"].as_i64() > told.data["spec"]["timestamp"].as_i64());
    recovers().await?;
    world.until_told("ns-a", "read by recovery", |now| now.labels()["isRead"] == "true").await?;

    offends().await?;
    world.until_told("ns-a", "unread", |now| now.labels()["isRead"] == "false").await?;
    delete(&world.notifications("ns-a"), &name).await?;
    throughout("a deleted one stays deleted", ROUNDS, async || {
        ensure!(world.notifications("ns-a").get_opt(&name).await?.is_none());
        anyhow::Ok(())
    })
    .await?;
    recovers().await?;
    ensure!(world.notifications("ns-a").get_opt(&name).await?.is_none(), "recovery does not bring it back");
    offends().await?;
    world.until_told("ns-a", "there with the next incident", |now| now.labels()["isRead"] == "false").await?;
    Ok(())
}

/// One tenant's namespace refuses what it is told; that is that tenant's matter alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_can_not_be_told_keeps_no_other_waiting() -> anyhow::Result<()> {
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
    // The policy takes a moment until it is in force.
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
    world.until_told("ns-b", "there", |_| true).await?;
    world.until_logged(&["messages can't be written", "ns-a", "not here"]).await?;
    // Drift is put right in every round, whatever else fails.
    world.merge(&world.wasm_plugins(), NAME, json!({"spec": {"matchRules": null}})).await?;
    world.until_closed(&["web-x7k2.ns-a", "web-x7k2.ns-b"]).await?;
    let output = world.cluster.kubectl(&["delete", "validatingadmissionpolicybinding", "refuse"]).await?;
    ensure!(output.status.success(), "{output:?}");
    world.until_told("ns-a", "there once it may be", |_| true).await?;
    Ok(())
}
