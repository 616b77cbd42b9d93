//! The leader persists its decisions again after a restored backup and after a changed status. With a refused token, the known
//! agents are still asked.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use kube::ResourceExt;
use kube::api::{DynamicObject, Patch, PatchParams};
use procscan_e2e::until;
use procscan_e2e::wait::throughout;
use serde_json::{Value, json};

use crate::world::{LIMIT, ROUNDS, World};

/// How long an API server takes to start again, and its clients to connect again.
const RECOVERY: Duration = Duration::from_mins(2);

fn is_blocked(incident: &Value) -> bool {
    incident["status"]["state"] == "Blocked"
}

/// etcd is restored from a backup that is older than the last decisions. The leader persists them again, and an operator's
/// release of a restored Incident takes effect.
#[tokio::test(flavor = "multi_thread")]
async fn decisions_since_a_restored_backup_are_persisted_again() -> anyhow::Result<()> {
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
    // The release of a restored Incident needs no restart.
    world.merge(&world.incidents(), &again.name_any(), release()).await?;
    until_closed(&world, &[]).await
}

fn release() -> Value {
    json!({"spec": {"release": {"by": "alice", "reason": "a false alarm"}}})
}

/// As [`World::until_closed`], with time for a restart of the API server.
async fn until_closed(world: &World, hosts: &[&str]) -> anyhow::Result<()> {
    let expected: BTreeSet<String> = hosts.iter().map(|host| format!("{host}.svc.cluster.local")).collect();
    until(&format!("the gateway to be closed to {hosts:?} only"), RECOVERY, async || {
        let closed = world.closed().await?;
        ensure!(closed == expected, "closed to {closed:?}");
        Ok(())
    })
    .await
}

/// The leader writes a removed or overwritten status again, and logs it. It opens no App meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_or_overwritten_status_is_repaired_and_releases_no_app() -> anyhow::Result<()> {
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

/// The known agents are still asked while the API server refuses the token, and no App is opened.
#[tokio::test(flavor = "multi_thread")]
async fn known_agents_are_asked_while_the_token_is_refused() -> anyhow::Result<()> {
    let mut world = World::start().await?;
    let pod = world.tenant("ns-a", "web", "sim-0000").await?;
    world.accuse(0, &[("ns-a", &pod)]);
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    // A reader that is known by now may go on reading.
    world.aggregator.wait_for("the nodes", LIMIT, "/api/v1/nodes", |_| true).await?;
    world.cluster.accept_aggregator(false).await?;
    let is_refused = |ready: &Value| ready["discovery"].to_string().contains("401");
    world.aggregator.wait_for("the refusal", RECOVERY, "/readyz", is_refused).await?;
    let before: Vec<u64> = (0..3).map(|node| world.fleet.requests(node)).collect();
    throughout("three agents are known", 4 * ROUNDS, async || {
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
        .wait_for("discovery and the state to recover", RECOVERY, "/readyz", |ready| {
            ready["discovery"]["ok"] == true && ready["state"]["ok"] == true
        })
        .await?;
    world.stays_closed(&["web-x7k2.ns-a"], ROUNDS).await
}
