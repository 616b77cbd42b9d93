//! Names that hostile tenants may choose.

use anyhow::ensure;
use procscan_agent::record::Record;
use serde_json::Value;

use crate::world::{LIMIT, ROUNDS, World, offender};

/// Names of processes. A tenant chooses them freely.
const NAMES: &[&str] = &[
    "it's \"quoted\" \\ and `ticked`",
    "a: b\n- c: {d: [e, f]}\n---\nkind: Secret",
    "{{ .Values.x }} ${HOME} $(id) {app} %s",
    "⛏️ 挖矿 🚀",
    "\u{202e}gpj.exe\u{202c}\u{200b}",
    "\u{1b}[2J\u{7}",
    "null",
    "<script>alert(1)</script>",
];

/// Scenario 12, first half.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_names_are_data_or_are_refused_and_counted() -> anyhow::Result<()> {
    let world = World::start().await?;
    let pod = world.tenant("ns-a", "web", "sim-0000").await?;
    let named = |process: &str| Record { process: process.to_owned(), ..offender("ns-a", &pod) };
    let mut records: Vec<Record> = NAMES.iter().map(|name| named(name)).collect();
    records.push(Record { cmdline: "x".repeat(1 << 20), ..named("huge") });
    // No Pod and no namespace can have these names.
    records.push(Record { namespace: "ns-a/../kube-system".to_owned(), ..named("a") });
    records.push(Record { namespace: "NS-A\n".to_owned(), ..named("b") });
    records.push(Record { pod: "../../default/pods/x".to_owned(), ..named("c") });
    records.push(Record { pod: String::new(), ..named("d") });
    world.fleet.set_offenders(0, records);
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    let good = NAMES.len() + 1;
    let list = world
        .aggregator
        .wait_for("all valid records", LIMIT, "/api/violations", |list| list["total_count"] == good)
        .await?;
    let processes: Vec<&str> =
        list["violations"].as_array().into_iter().flatten().filter_map(|v| v["process"].as_str()).collect();
    for name in NAMES {
        ensure!(processes.contains(name), "{name:?} is not in {processes:?}");
    }
    let longest = list["violations"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| v["cmdline"].as_str())
        .map(str::len)
        .max();
    ensure!(longest.is_some_and(|bytes| bytes <= 4096), "{longest:?}");
    let (_, nodes) = world.aggregator.get("/api/v1/nodes").await?;
    let rejected: u64 = nodes["nodes"][0]["rejected_records"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(_, n)| n.as_u64())
        .sum();
    ensure!(rejected >= 4, "{}", nodes["nodes"][0]);

    // Fields for programs have the names unchanged. Texts for people have no control characters.
    let plugin = world.plugins().await?.remove(0);
    let inert = &plugin.data["spec"]["defaultConfig"]["violations"];
    let listed: Vec<&str> =
        inert.as_array().into_iter().flatten().filter_map(|v| v["process"].as_str()).collect();
    ensure!(NAMES.iter().all(|name| listed.contains(name)), "{listed:?}");
    let notification = world.until_notified("ns-a", "there", |_| true).await?;
    let text = notification.data["spec"]["message"].as_str().unwrap_or_default();
    ensure!(!text.chars().any(|c| c.is_control() || c == '\u{202e}'), "{text:?}");
    ensure!(notification.data["spec"].as_object().is_some_and(|spec| spec.keys().all(|key| key != "kind")));
    world.nothing_more_is_written(&["ns-a"], 1, ROUNDS).await?;
    let written: Vec<Value> = world.cluster.audit_of_aggregator()?;
    let writes = ["create", "patch", "update", "delete"];
    for event in written.iter().filter(|event| event["verb"].as_str().is_some_and(|v| writes.contains(&v))) {
        let place = event["objectRef"]["namespace"].as_str().unwrap_or_default();
        // The aggregator's own objects are in kube-system.
        ensure!(["ns-a", "default", "higress-system", "kube-system"].contains(&place), "{event}");
    }
    // Every line of the log is one entry.
    ensure!(world.aggregator.logs().iter().all(Value::is_object), "{}", world.last_log_entries());
    Ok(())
}
