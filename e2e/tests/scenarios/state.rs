//! Decisions that can't be persisted: the leader blocks and releases no App, and everything else goes on.

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kube::ResourceExt;
use kube::api::ListParams;
use procscan_e2e::crds;
use procscan_e2e::wait::throughout;
use serde_json::{Value, json};

use crate::world::{Beginning, LIMIT, OWN, RBAC, ROUNDS, World, delete, scene};

const QUOTA: &str = "count/incidents.procscan.sealos.io";

/// Forbids further Incidents in the aggregator's namespace, by a quota.
async fn forbid_incidents(world: &World) -> anyhow::Result<()> {
    let probe = json!({
        "apiVersion": "procscan.sealos.io/v1alpha1", "kind": "Incident", "metadata": {"name": "probe"},
        "spec": {"app": {"namespace": "ns-probe", "type": "app", "name": "probe"}},
    });
    world.fill(OWN, &world.incidents(), QUOTA, 1, probe).await
}

/// The shipped roles without the right to update the status of Incidents.
fn without_updates() -> String {
    RBAC.replace(
        "resources: [\"incidents/status\"]\n    verbs: [\"update\"]",
        "resources: [\"incidents/status\"]\n    verbs: [\"get\"]",
    )
}

/// Waits until `/readyz` reports one of these errors of the state. Each error is a list of texts.
async fn until_state_names(world: &World, what: &str, errors: &[&[&str]]) -> anyhow::Result<Value> {
    let is_named = |ready: &Value, texts: &[&str]| {
        let error = ready["state"]["error"].as_str().unwrap_or_default();
        ready["state"]["ok"] == false && texts.iter().all(|text| error.contains(text))
    };
    let ready = world
        .aggregator
        .wait_for(what, LIMIT, "/readyz", |ready| errors.iter().any(|texts| is_named(ready, texts)));
    ready.await
}

/// What the API server says without the right to update the status of Incidents.
const NO_UPDATE: &[&str] = &["incidents/status", "cannot update resource"];

/// A world in which ns-a is blocked, and ns-b has a Pod that no agent has accused yet.
async fn with_one_block() -> anyhow::Result<(World, String)> {
    let world = World::start().await?;
    world.stage.namespace("ns-a").await?;
    world.stage.pod("ns-a", "web-0", "sim-0000", &[("app", "web")]).await?;
    world.stage.service("ns-a", "web-x7k2", &[("app", "web")]).await?;
    let b = world.tenant("ns-b", "web", "sim-0001").await?;
    world.accuse(0, &[("ns-a", "web-0")]);
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    world.until_notified("ns-a", "there", |_| true).await?;
    // The Incident is written too, and nothing more has to be written.
    world.nothing_more_is_written(&["ns-a"], 1, ROUNDS).await?;
    Ok((world, b))
}

/// The block of ns-b can't be persisted, so its App stays open and its tenant is not notified.
async fn no_block_without_its_incident(world: &World, b: &str) -> anyhow::Result<()> {
    forbid_incidents(world).await?;
    world.accuse(1, &[("ns-b", b)]);
    let quota = ["create incidents.procscan.sealos.io in namespace kube-system", "exceeded quota: full"];
    let ready = until_state_names(world, "the quota's name", &[&quota]).await?;
    println!("{}", ready["state"]);
    let alert = world.until_logged(&["exceeded quota: full", "\"alert\":\"state\""]).await?;
    ensure!(alert["level"] == "ERROR", "{alert}");
    let serves = |list: &Value| list["total_count"] == 2;
    world.aggregator.wait_for("both violations", LIMIT, "/api/violations", serves).await?;
    world.stays_closed(&["web-x7k2.ns-a"], ROUNDS).await?;
    let notices = world.notifications("ns-b").list(&ListParams::default()).await?;
    ensure!(notices.items.is_empty(), "a tenant is notified of a block that is not decided: {notices:?}");
    Ok(())
}

/// The release of ns-a can't be persisted either, so its App stays closed.
async fn no_release_without_its_incident(world: &World) -> anyhow::Result<()> {
    world.cluster.apply(&without_updates()).await?;
    world.accuse(0, &[]);
    delete(&world.stage.api::<Pod>("ns-a"), "web-0").await?;
    until_state_names(world, "the refused verb", &[NO_UPDATE, &["exceeded quota"]]).await?;
    throughout("neither block nor release", ROUNDS * 2, async || {
        let closed = world.closed().await?;
        ensure!(closed == ["web-x7k2.ns-a.svc.cluster.local".to_owned()].into(), "{closed:?}");
        let notices = world.notifications("ns-a").list(&ListParams::default()).await?.items;
        ensure!(notices.iter().all(|notice| notice.labels()["isRead"] == "false"), "{notices:?}");
        anyhow::Ok(())
    })
    .await?;
    // The lists go on.
    let (status, list) = world.aggregator.get("/api/violations").await?;
    ensure!(status == 200 && list["violations"].to_string().contains("ns-b"), "{status} {list}");
    Ok(())
}

/// Both decisions take effect once the quota is gone and the right is there again.
async fn both_take_effect(world: &World) -> anyhow::Result<()> {
    delete(&world.stage.api::<ResourceQuota>(OWN), "full").await?;
    // Now `/readyz` names the missing right.
    until_state_names(world, "the refused verb", &[NO_UPDATE]).await?;
    world.stays_closed(&["web-x7k2.ns-a"], ROUNDS).await?;
    world.cluster.apply(RBAC).await?;
    world.until_closed(&["web-x7k2.ns-b"]).await?;
    world.until_notified("ns-a", "read", |message| message.labels()["isRead"] == "true").await?;
    world.until_notified("ns-b", "there", |_| true).await?;
    world
        .aggregator
        .wait_for("all to be well", LIMIT, "/readyz", |ready| ready["state"]["ok"] == true)
        .await?;
    world.until_logged(&["decisions can be persisted again"]).await?;
    Ok(())
}

/// The log has each decision once, however often the leader tried to persist it.
fn each_is_logged_once(world: &World) -> anyhow::Result<()> {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_has_no_effect_before_it_can_be_persisted() -> anyhow::Result<()> {
    let (world, b) = with_one_block().await?;
    no_block_without_its_incident(&world, &b).await?;
    no_release_without_its_incident(&world).await?;
    both_take_effect(&world).await?;
    each_is_logged_once(&world)
}

/// The answer to an operator agrees with the state of the gateway.
#[tokio::test(flavor = "multi_thread")]
async fn the_answer_to_a_release_without_effect_does_not_say_that_it_is_done() -> anyhow::Result<()> {
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
    // Either the release is done, although other decisions can't be persisted, or the answer says that it is not yet done.
    if answer.status == 200 {
        world.until_closed(&[]).await?;
    } else {
        ensure!(answer.status == 202, "{answer:?}");
    }
    delete(&world.stage.api::<ResourceQuota>(OWN), "full").await?;
    world.until_closed(&["web-x7k2.ns-b"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_own_kinds_the_service_answers_and_says_what_to_install() -> anyhow::Result<()> {
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
    // The log names the kind that was missed first, and names this problem once.
    world.until_logged(&["procscan.sealos.io: is its CRD installed?", "\"alert\":\"state\""]).await?;
    let serves = |list: &Value| list["total_count"] == 1;
    world.aggregator.wait_for("the violation", LIMIT, "/api/violations", serves).await?;
    throughout("no App is blocked", ROUNDS, async || {
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

/// An operator deletes Incidents by mistake: the blocks stay, and are persisted again.
#[tokio::test(flavor = "multi_thread")]
async fn the_deletion_of_an_incident_releases_no_app() -> anyhow::Result<()> {
    let mut world = World::start().await?;
    let pod = world.tenant("ns-a", "web", "sim-0000").await?;
    world.accuse(0, &[("ns-a", &pod)]);
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    let notice = world.until_notified("ns-a", "there", |_| true).await?;
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
        let now = world.notifications("ns-a").get(&notice.name_any()).await?;
        ensure!(now.resource_version() == notice.resource_version(), "notified again: {now:?}");
    }
    Ok(())
}
