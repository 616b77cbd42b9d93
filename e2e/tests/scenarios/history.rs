//! Many Incidents, nearly all ended: a new leader decides within seconds and writes none of them. At SIGTERM it gives the Lease
//! back within a second.
//!
//! With `PROCSCAN_E2E_FULL` there are 20,000, which takes some minutes; without it 2,000.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use procscan_e2e::aggregator::{self, Aggregator};
use procscan_e2e::until;
use serde_json::{Value, json};

use crate::world::{LIMIT, OWN, World, config};

/// The longest time from the beginning of a term until the new leader decides.
const DECIDES: Duration = Duration::from_secs(5);
/// The longest time from SIGTERM until another replica may lead.
const HANDS_OVER: Duration = Duration::from_secs(1);

/// Creates an Incident that ended at `at`, with the usual fields.
async fn make(api: &Api<DynamicObject>, number: usize, at: Timestamp) -> anyhow::Result<()> {
    let (name, namespace) = (format!("history-{number:05}"), format!("past-{:03}", number % 1000));
    let app = json!({"namespace": namespace, "type": "app", "name": format!("web-{number}")});
    let object = json!({
        "apiVersion": "procscan.sealos.io/v1alpha1", "kind": "Incident",
        "metadata": {"name": name, "namespace": OWN}, "spec": {"app": app},
    });
    let reason = "process `xmrig` on node sim-0000";
    let decision = |what: &str| json!({"at": at, "decision": what, "actor": "policy", "reason": reason});
    let status = json!({
        "state": "Ended", "opened": at, "since": at, "clock": at, "written": at, "reason": "over", "approved": false,
        "evidence": [{
            "pod": "web-0", "process": "xmrig", "node": "sim-0000", "regex": "^xmrig$", "type": "app", "name": "web",
            "firstSeen": at, "freshAt": at, "timestamp": at, "observations": 7,
            "cleared": {"at": at, "by": "Clock", "ended": true},
        }],
        "processes": ["xmrig"], "exposure": {"services": [format!("web.{namespace}.svc")], "ingresses": []},
        "told": {"at": at, "what": "Recovered", "deliveredAt": at},
        "decisions": [decision("warned"), decision("blocked"), decision("released")],
        "decided": 3, "observed": 1, "writer": "replica in term 0",
    });
    api.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    let status = Patch::Merge(json!({"status": status}));
    api.patch_status(&name, &PatchParams::default(), &status).await?;
    Ok(())
}

fn spawn(world: &World) -> anyhow::Result<Aggregator> {
    let kubeconfig = aggregator::Options::kubeconfig(world.cluster.kubeconfig_aggregator());
    Aggregator::spawn(&config(&json!({})).to_string(), &kubeconfig)
}

fn leads(ready: &Value) -> bool {
    ready["leader"]["leading"] == true
}

/// Waits for a log entry, and returns its timestamp.
async fn logged(
    replica: &Aggregator,
    what: &str,
    is_it: impl Fn(&Value) -> bool,
) -> anyhow::Result<Timestamp> {
    let entry = replica.wait_for_log(what, LIMIT, is_it).await?;
    Ok(entry["timestamp"].as_str().context("no timestamp")?.parse()?)
}

/// Two times since the beginning of a replica's term: until it had read the persisted state, and until it decided to block the
/// tenant's App.
async fn first_decision(replica: &Aggregator, tenant: &str) -> anyhow::Result<(Duration, Duration)> {
    let began = logged(replica, "the beginning of the term", |entry| entry["message"] == "leading").await?;
    let is_read = |entry: &Value| entry["message"] == "incidents and inherited blocks were taken over";
    let read = logged(replica, "the read of the persisted state", is_read).await?;
    let is_decided = |entry: &Value| entry["decision"] == "blocked" && entry.to_string().contains(tenant);
    let decided = logged(replica, "the block", is_decided).await?;
    Ok(((read.duration_since(began)).try_into()?, (decided.duration_since(began)).try_into()?))
}

/// The writes to ended Incidents, by the audit log.
fn writes(world: &World) -> anyhow::Result<Vec<Value>> {
    let mut events = world.cluster.audit_of_aggregator()?;
    events.retain(|event| {
        let is_read = ["get", "list", "watch"].iter().any(|verb| event["verb"] == *verb);
        let name = event["objectRef"]["name"].as_str().unwrap_or_default();
        !is_read && name.starts_with("history-")
    });
    Ok(events)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_many_incidents_a_new_leader_decides_within_seconds_and_writes_none_of_them()
-> anyhow::Result<()> {
    let count = if std::env::var_os("PROCSCAN_E2E_FULL").is_some() { 20_000 } else { 2000 };
    let mut world = World::start().await?;
    let mut pods = Vec::new();
    for (tenant, node) in [("ns-a", "sim-0000"), ("ns-b", "sim-0001"), ("ns-c", "sim-0002")] {
        pods.push(world.tenant(tenant, "web", node).await?);
    }
    world.accuse(0, &[("ns-a", &pods[0])]);
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    world.aggregator.kill()?;
    let (api, at) = (world.incidents(), Timestamp::now() - SignedDuration::from_hours(48));
    let made = stream::iter(0..count).map(|number| make(&api, number, at)).buffer_unordered(32);
    made.try_collect::<Vec<()>>().await?;

    // The killed leader's Lease still runs, so the new replica waits for its end. Meanwhile it reads all Incidents.
    world.accuse(1, &[("ns-b", &pods[1])]);
    world.aggregator = spawn(&world)?;
    let decided = first_decision(&world.aggregator, "ns-b").await;
    let (read, decided) = decided.with_context(|| world.last_log_entries())?;
    println!(
        "{count} Incidents: a new replica has read them {read:?} after its term began, and blocks after {decided:?}"
    );
    ensure!(decided < DECIDES, "{decided:?}");
    world.until_closed(&["web-x7k2.ns-a", "web-x7k2.ns-b"]).await?;

    // Another replica, which has read all Incidents, takes over.
    let standby = spawn(&world)?;
    standby.wait_for("the first round", LIMIT, "/readyz", |ready| !leads(ready)).await?;
    let path = format!("/api/v1/incidents?name=web-{}", count - 1);
    standby.wait_for("all Incidents", LIMIT, &path, |body| body["total"] == 1).await?;
    let leases: Api<Lease> = Api::namespaced(world.cluster.admin(), OWN);
    let holder = async || {
        let lease = leases.get("procscan-aggregator").await?;
        anyhow::Ok(lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default())
    };
    let first = holder().await?;
    let stopped = Instant::now();
    world.aggregator.signal("TERM")?;
    until("the Lease to be given back", LIMIT, async || {
        ensure!(holder().await? != first, "the first replica holds the Lease");
        Ok(())
    })
    .await?;
    let handed_over = stopped.elapsed();
    world.accuse(2, &[("ns-c", &pods[2])]);
    let (read, decided) = first_decision(&standby, "ns-c").await?;
    println!(
        "the Lease is given back after {handed_over:?}; the other replica has read them {read:?} after its term began, and blocks after {decided:?}"
    );
    ensure!(handed_over < HANDS_OVER, "{handed_over:?}");
    ensure!(decided < DECIDES, "{decided:?}");
    world.until_closed(&["web-x7k2.ns-a", "web-x7k2.ns-b", "web-x7k2.ns-c"]).await?;
    let writes = writes(&world)?;
    ensure!(writes.is_empty(), "{} writes to ended Incidents: {}", writes.len(), writes[0]);
    Ok(())
}
