//! Decisions that can't be kept: then nobody is blocked and nobody is released, and everything else goes on.

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kube::ResourceExt;
use kube::api::ListParams;
use procscan_e2e::crds;
use procscan_e2e::wait::throughout;
use serde_json::{Value, json};

use crate::world::{Beginning, LIMIT, OWN, RBAC, ROUNDS, World, delete, scene};

const QUOTA: &str = "count/incidents.procscan.sealos.io";

/// No further Incidents in the aggregator's namespace. What a controller would count is written by hand.
async fn forbid_incidents(world: &World) -> anyhow::Result<()> {
    let probe = json!({
        "apiVersion": "procscan.sealos.io/v1alpha1", "kind": "Incident", "metadata": {"name": "probe"},
        "spec": {"app": {"namespace": "ns-probe", "type": "app", "name": "probe"}},
    });
    world.fill(OWN, &world.incidents(), QUOTA, 1, probe).await
}

/// The shipped roles without the right to change what Incidents say.
fn without_updates() -> String {
    RBAC.replace(
        "resources: [\"incidents/status\"]\n    verbs: [\"update\"]",
        "resources: [\"incidents/status\"]\n    verbs: [\"get\"]",
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_kept_is_not_done_and_is_done_as_soon_as_it_can() -> anyhow::Result<()> {
    let world = World::start().await?;
    world.stage.namespace("ns-a").await?;
    world.stage.pod("ns-a", "web-0", "sim-0000", &[("app", "web")]).await?;
    world.stage.service("ns-a", "web-x7k2", &[("app", "web")]).await?;
    let b = world.tenant("ns-b", "web", "sim-0001").await?;
    world.accuse(0, &[("ns-a", "web-0")]);
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    world.until_told("ns-a", "there", |_| true).await?;
    // Its Incident says so too, and nothing more is to be written.
    world.nothing_more_is_written(&["ns-a"], 1, ROUNDS).await?;

    forbid_incidents(&world).await?;
    world.accuse(1, &[("ns-b", &b)]);
    let is_refused = |ready: &Value, words: &[&str]| {
        let error = ready["state"]["error"].as_str().unwrap_or_default();
        ready["state"]["ok"] == false && words.iter().all(|word| error.contains(word))
    };
    let ready = world
        .aggregator
        .wait_for("the quota's name", LIMIT, "/readyz", |ready| {
            is_refused(
                ready,
                &["create incidents.procscan.sealos.io in namespace kube-system", "exceeded quota: full"],
            )
        })
        .await?;
    println!("{}", ready["state"]);
    let alert = world.until_logged(&["exceeded quota: full", "\"alert\":\"state\""]).await?;
    ensure!(alert["level"] == "ERROR", "{alert}");
    let serves = |list: &Value| list["total_count"] == 2;
    world.aggregator.wait_for("both violations", LIMIT, "/api/violations", serves).await?;
    world.stays_closed(&["web-x7k2.ns-a"], ROUNDS).await?;
    let told = world.notifications("ns-b").list(&ListParams::default()).await?;
    ensure!(told.items.is_empty(), "nobody is told of what is not decided: {told:?}");

    // Nor can be said that somebody is free again.
    world.cluster.apply(&without_updates()).await?;
    world.accuse(0, &[]);
    delete(&world.stage.api::<Pod>("ns-a"), "web-0").await?;
    world
        .aggregator
        .wait_for("the refused verb", LIMIT, "/readyz", |ready| {
            is_refused(ready, &["incidents/status", "cannot update resource"])
                || is_refused(ready, &["exceeded quota"])
        })
        .await?;
    throughout("neither block nor release", ROUNDS * 2, async || {
        let closed = world.closed().await?;
        ensure!(closed == ["web-x7k2.ns-a.svc.cluster.local".to_owned()].into(), "{closed:?}");
        let told = world.notifications("ns-a").list(&ListParams::default()).await?.items;
        ensure!(told.iter().all(|told| told.labels()["isRead"] == "false"), "{told:?}");
        anyhow::Ok(())
    })
    .await?;
    // The lists go on.
    let (status, list) = world.aggregator.get("/api/violations").await?;
    ensure!(status == 200 && list["violations"].to_string().contains("ns-b"), "{status} {list}");

    delete(&world.stage.api::<ResourceQuota>(OWN), "full").await?;
    // Now it is the other right that is named.
    world
        .aggregator
        .wait_for("the refused verb", LIMIT, "/readyz", |ready| {
            is_refused(ready, &["incidents/status", "cannot update resource"])
        })
        .await?;
    world.stays_closed(&["web-x7k2.ns-a"], ROUNDS).await?;
    world.cluster.apply(RBAC).await?;
    world.until_closed(&["web-x7k2.ns-b"]).await?;
    world.until_told("ns-a", "read", |told| told.labels()["isRead"] == "true").await?;
    world.until_told("ns-b", "there", |_| true).await?;
    world
        .aggregator
        .wait_for("all to be well", LIMIT, "/readyz", |ready| ready["state"]["ok"] == true)
        .await?;
    world.until_logged(&["decisions can be persisted again"]).await?;
    // Decided once, however often it was tried.
    for (namespace, decision) in [("ns-a", "released"), ("ns-b", "blocked")] {
        let logs = world.aggregator.logs();
        let is_it = |entry: &&Value| {
            entry["decision"] == decision
                && entry["app"].as_str().is_some_and(|app| app.starts_with(namespace))
        };
        let count = logs.iter().filter(is_it).count();
        ensure!(count == 1, "{namespace} is {decision} {count} times in the log");
    }
    Ok(())
}

/// What an operator is told is true at the gateway.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_has_no_effect_yet_is_not_said_to_be_done() -> anyhow::Result<()> {
    let world = World::start().await?;
    world.allow("alice").await?;
    let a = world.tenant("ns-a", "web", "sim-0000").await?;
    let b = world.tenant("ns-b", "web", "sim-0001").await?;
    world.accuse(0, &[("ns-a", &a)]);
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    forbid_incidents(&world).await?;
    world.accuse(1, &[("ns-b", &b)]);
    world.until_logged(&["exceeded quota: full"]).await?;
    let name = world.incident("ns-a").await?.name_any();
    let bearer = format!("Bearer {}", world.cluster.token_of_alice());
    let headers = [("authorization", bearer.as_str())];
    let path = format!("/api/v1/incidents/{name}/release");
    let answer = world.aggregator.send("POST", &path, &headers, Some(&json!({}))).await?;
    println!("{} {}", answer.status, answer.json());
    // Either it is done, whatever else can't be kept, or the answer says that it is yet to be done.
    if answer.status == 200 {
        world.until_closed(&[]).await?;
    } else {
        ensure!(answer.status == 202, "{answer:?}");
    }
    delete(&world.stage.api::<ResourceQuota>(OWN), "full").await?;
    world.until_closed(&["web-x7k2.ns-b"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_own_kinds_it_serves_and_says_what_to_install() -> anyhow::Result<()> {
    let scene = scene(Beginning::default()).await?;
    let admin = scene.0.admin();
    for kind in ["incidents", "exemptions", "enforcements"] {
        crds::remove(&admin, &format!("{kind}.procscan.sealos.io")).await?;
    }
    let world = World::around(scene, &json!({})).await?;
    let pod = world.tenant("ns-a", "web", "sim-0000").await?;
    world.accuse(0, &[("ns-a", &pod)]);
    let missing = "the API server does not know incidents.procscan.sealos.io: is its CRD installed?";
    let ready = world
        .aggregator
        .wait_for("the missing kind", LIMIT, "/readyz", |ready| {
            ready["state"]["ok"] == false && ready["state"]["error"].to_string().contains(missing)
        })
        .await?;
    println!("{}", ready["state"]);
    // The log names the kind that was missed first; it is one trouble, and said once.
    world.until_logged(&["procscan.sealos.io: is its CRD installed?", "\"alert\":\"state\""]).await?;
    let serves = |list: &Value| list["total_count"] == 1;
    world.aggregator.wait_for("the violation", LIMIT, "/api/violations", serves).await?;
    throughout("nobody is blocked", ROUNDS, async || {
        // The WasmPlugin itself need not be there.
        ensure!(world.closed().await.context("closed")?.is_empty());
        anyhow::Ok(())
    })
    .await?;
    world.cluster.apply(RBAC).await?;
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    world.until_incident("ns-a", "blocked", |incident| incident["status"]["state"] == "Blocked").await?;
    world
        .aggregator
        .wait_for("all to be well", LIMIT, "/readyz", |ready| ready["state"]["ok"] == true)
        .await?;
    Ok(())
}

/// Somebody tidies up too much: what is blocked stays blocked, and is kept again.
#[tokio::test(flavor = "multi_thread")]
async fn an_incident_that_somebody_deletes_releases_nobody() -> anyhow::Result<()> {
    let mut world = World::start().await?;
    let pod = world.tenant("ns-a", "web", "sim-0000").await?;
    world.accuse(0, &[("ns-a", &pod)]);
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    let told = world.until_told("ns-a", "there", |_| true).await?;
    for is_restarted in [false, true] {
        for incident in world.incidents().list(&ListParams::default()).await? {
            delete(&world.incidents(), &incident.name_any()).await?;
        }
        if is_restarted {
            world.restart(&json!({}))?;
        }
        let is_blocked = |incident: &Value| incident["status"]["state"] == "Blocked";
        world.until_incident("ns-a", "blocked", is_blocked).await?;
        world.stays_closed(&["web-x7k2.ns-a"], ROUNDS).await?;
        let now = world.notifications("ns-a").get(&told.name_any()).await?;
        ensure!(now.resource_version() == told.resource_version(), "told again: {now:?}");
    }
    Ok(())
}
