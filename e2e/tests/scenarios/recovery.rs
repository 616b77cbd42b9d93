//! What is stored is not what was decided: after a restored backup, with a wiped status, with an expired token.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use kube::ResourceExt;
use kube::api::{DynamicObject, Patch, PatchParams};
use procscan_e2e::until;
use procscan_e2e::wait::throughout;
use serde_json::{Value, json};

use crate::world::{ROUNDS, World};

/// How long an API server takes to start again, and its clients to connect again.
const RECOVERY: Duration = Duration::from_mins(2);

fn is_blocked(incident: &Value) -> bool {
    incident["status"]["state"] == "Blocked"
}

/// etcd is restored from a backup that is older than the last decisions. They are put into effect again, and operators'
/// acts still take effect.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_restored_backup_what_was_decided_since_is_persisted_again() -> anyhow::Result<()> {
    let mut world = World::start().await?;
    let a = world.tenant("ns-a", "web", "sim-0000").await?;
    let b = world.tenant("ns-b", "web", "sim-0001").await?;
    world.accuse(0, &[("ns-a", &a)]);
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    world.until_incident("ns-a", "blocked", is_blocked).await?;
    let backup = world.cluster.back_up().await?;

    // An operator releases one App, and the other one is blocked.
    let released = world.incident("ns-a").await?.name_any();
    world.merge(&world.incidents(), &released, release()).await?;
    world.accuse(1, &[("ns-b", &b)]);
    until_closed(&world, &["web-x7k2.ns-b"]).await?;
    world.until_incident("ns-b", "blocked", is_blocked).await?;

    world.cluster.restore(&backup).await?;
    until_closed(&world, &["web-x7k2.ns-b"]).await?;
    let again = until("both Incidents as they were decided", RECOVERY, async || {
        let (a, b) = (world.incident("ns-a").await?, world.incident("ns-b").await?);
        ensure!(a.data["status"]["state"] == "Watched" && is_blocked(&b.data), "{} {}", a.data, b.data);
        Ok(b)
    })
    .await?;
    // An operator's act on a restored object is done without a restart.
    world.merge(&world.incidents(), &again.name_any(), release()).await?;
    until_closed(&world, &[]).await
}

fn release() -> Value {
    json!({"spec": {"release": {"by": "alice", "reason": "a false alarm"}}})
}

/// As [`World::until_closed`], with enough time for an API server to start again.
async fn until_closed(world: &World, hosts: &[&str]) -> anyhow::Result<()> {
    let expected: BTreeSet<String> = hosts.iter().map(|host| format!("{host}.svc.cluster.local")).collect();
    until(&format!("the gateway to be closed to {hosts:?} only"), RECOVERY, async || {
        let closed = world.closed().await?;
        ensure!(closed == expected, "closed to {closed:?}");
        Ok(())
    })
    .await
}

/// A status that is removed or overwritten is written again, and logged; nothing is opened meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_was_wiped_or_forced_is_repaired_and_releases_no_app() -> anyhow::Result<()> {
    let world = World::start().await?;
    let pod = world.tenant("ns-a", "web", "sim-0000").await?;
    world.accuse(0, &[("ns-a", &pod)]);
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    let incident = world.until_incident("ns-a", "blocked", is_blocked).await?;
    let name = incident.name_any();
    let ended = json!([{"op": "replace", "path": "/status/state", "value": "Ended"}]);
    let wiped = json!([{"op": "remove", "path": "/status"}]);
    for patch in [ended, wiped] {
        let patch = Patch::Json::<DynamicObject>(serde_json::from_value(patch)?);
        world.incidents().patch_status(&name, &PatchParams::default(), &patch).await?;
        let repaired = world.until_incident("ns-a", "as it was decided", is_blocked).await?;
        ensure!(repaired.name_any() == name, "another Incident: {}", repaired.name_any());
        ensure!(repaired.data["status"]["opened"] == incident.data["status"]["opened"], "{}", repaired.data);
        world.stays_closed(&["web-x7k2.ns-a"], ROUNDS).await?;
    }
    world.until_logged(&[&name, "is not what was written"]).await?;
    Ok(())
}

/// An expired token is no answer: the known agents are still asked, and nothing is opened.
#[tokio::test(flavor = "multi_thread")]
async fn while_its_token_is_refused_the_known_agents_are_asked_on() -> anyhow::Result<()> {
    let mut world = World::start().await?;
    let pod = world.tenant("ns-a", "web", "sim-0000").await?;
    world.accuse(0, &[("ns-a", &pod)]);
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    world.cluster.accept_aggregator(false).await?;
    let is_refused = |ready: &Value| ready["discovery"].to_string().contains("401");
    world.aggregator.wait_for("the refusal", RECOVERY, "/readyz", is_refused).await?;
    let before: Vec<u64> = (0..3).map(|node| world.fleet.requests(node)).collect();
    throughout("the agents are known", 4 * ROUNDS, async || {
        let (status, nodes) = world.aggregator.get("/api/v1/nodes").await?;
        let known = nodes["nodes"].as_array().map_or(0, Vec::len);
        ensure!(status == 200 && known == 3, "{nodes}");
        Ok::<(), anyhow::Error>(())
    })
    .await?;
    for (node, before) in before.into_iter().enumerate() {
        let asked = world.fleet.requests(node) - before;
        ensure!(asked >= 10, "node {node} was asked {asked} times in twenty rounds");
    }
    world.cluster.accept_aggregator(true).await?;
    world
        .aggregator
        .wait_for("all to be well", RECOVERY, "/readyz", |ready| {
            ready["discovery"]["ok"] == true && ready["state"]["ok"] == true
        })
        .await?;
    world.stays_closed(&["web-x7k2.ns-a"], ROUNDS).await
}
