//! Two hundred nodes with every fault at once: no fault harms another node, and the API shows each with its reason.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use common::{PROGRAM, Process, free_port, get_json, try_get, wait_for};

const NODES: usize = 200;

/// A fault, and the reason that the API must show. It is `None` where the answers are still good.
const FAULTS: [(&str, Option<&str>); 26] = [
    ("hang", Some("timeout")),
    ("reset", Some("disconnected")),
    ("error500", Some("status")),
    ("garbage", Some("malformed")),
    ("endless", Some("too_large")),
    ("slow=5s", Some("timeout")),
    ("drip=200ms", Some("stalled")),
    ("gzip-bomb", Some("too_large")),
    ("zstd-bomb", Some("too_large")),
    ("redirect", Some("status")),
    ("huge-record", None),
    ("mixed-bad", None),
    ("one-at-a-time", None),
    ("wrapped", None),
    ("null", None),
    ("restarted", None),
    ("gzip-members", Some("encoding")),
    ("chunk-extensions", Some("too_large")),
    ("long-cmdline=6MiB", None),
    ("flood=300", None),
    ("flood-long", None),
    ("zero-padding", None),
    ("x-gzip", None),
    ("lone-surrogates", None),
    ("no-date", None),
    ("skewed=1h", None),
];

/// Healthy nodes have the first numbers, and after them comes one node for each fault.
const HEALTHY: usize = NODES - FAULTS.len();

fn configure(directory: &Path, port: u16) {
    std::fs::write(
        directory.join("config.yaml"),
        format!(
            "aggregator: {{address: 127.0.0.1, port: {port}, scan_interval: 5s}}\n\
             collector: {{timeout: 4s, connect_timeout: 1s, max_read: 8MiB}}\n\
             discovery: {{mode: file, file: targets}}\n\
             logger: {{format: text}}\n\
             output: {{mode: directory}}\n\
             brake: {{max_new_tenants: 1000, max_tenants_per_rule: 1000}}\n"
        ),
    )
    .unwrap();
}

/// Starts the simulated fleet, and copies its targets for the aggregator.
fn start_fleet(directory: &Path) -> Process {
    let nodes = NODES.to_string();
    let mut args = vec!["agent", "--simulate", &nodes, "--bind", "127.0.0.1:0"];
    args.extend(["--scan-interval", "1s", "--targets", "targets"]);
    for (fault, _) in FAULTS {
        args.extend(["--fault", fault]);
    }
    let fleet_directory = directory.join("fleet");
    std::fs::create_dir(&fleet_directory).unwrap();
    let fleet = Process::start(PROGRAM, &args, &fleet_directory);
    let targets = fleet_directory.join("targets");
    wait_for("the fleet", Duration::from_secs(20), || targets.is_file().then_some(()));
    std::fs::copy(&targets, directory.join("targets")).unwrap();
    fleet
}

/// Waits until every healthy node's violation is listed, whatever the others do.
fn until_all_healthy_nodes_are_listed(address: SocketAddr) {
    wait_for("the healthy nodes' violations", Duration::from_secs(30), || {
        let nodes = get_json(address, "/api/v1/nodes");
        let nodes = nodes["nodes"].as_array().unwrap();
        let is_healthy = |name: &str| name[4..].parse::<usize>().unwrap() < HEALTHY;
        let listed = nodes
            .iter()
            .filter(|node| is_healthy(node["node"].as_str().unwrap()))
            .filter(|node| {
                node["state"] == "fresh" && node["violations"] == 1 && node["last_failure"].is_null()
            })
            .count();
        (listed == HEALTHY).then_some(())
    });
    assert!(get_json(address, "/api/violations")["total_count"].as_u64().unwrap() >= HEALTHY as u64);
}

/// Each node with the reason of its last failure.
fn reasons(address: SocketAddr) -> BTreeMap<String, Option<String>> {
    let nodes = get_json(address, "/api/v1/nodes");
    let reason = |node: &serde_json::Value| node["last_failure"]["reason"].as_str().map(str::to_owned);
    let name = |node: &serde_json::Value| node["node"].as_str().unwrap().to_owned();
    nodes["nodes"].as_array().unwrap().iter().map(|node| (name(node), reason(node))).collect()
}

fn until_every_fault_has_its_reason(address: SocketAddr) {
    wait_for("the faults' reasons", Duration::from_mins(1), || {
        let shown = reasons(address);
        let wrong: Vec<String> = FAULTS
            .iter()
            .enumerate()
            .map(|(index, (fault, reason))| {
                (fault, reason, shown[&format!("sim-{:04}", HEALTHY + index)].clone())
            })
            .filter(|(_, reason, seen)| seen.as_deref() != **reason)
            .map(|(fault, reason, seen)| format!("{fault}: {seen:?} instead of {reason:?}"))
            .collect();
        wrong.is_empty().then_some(())
    });
}

/// Ten rounds more: memory stays within its bound, and rounds go on.
fn memory_stays_within_its_bound(address: SocketAddr, aggregator: &Process) {
    let rounds = || get_json(address, "/readyz")["rounds"].as_u64().unwrap();
    let before = rounds();
    wait_for("ten more rounds", Duration::from_mins(2), || (rounds() >= before + 10).then_some(()));
    let peak = aggregator.peak_memory_kib();
    eprintln!("peak resident memory of the aggregator: {peak} KiB");
    assert!(peak < 64 * 1024, "{peak} KiB");
    let coverage = get_json(address, "/api/v1/nodes")["coverage"].clone();
    let sum: u64 = ["fresh", "stale", "never_seen"].iter().map(|part| coverage[part].as_u64().unwrap()).sum();
    assert_eq!(sum, NODES as u64);
}

#[test]
fn two_hundred_nodes_with_every_fault_at_once() {
    let temp = tempfile::tempdir().unwrap();
    let port = free_port();
    let address = ([127, 0, 0, 1], port).into();
    configure(temp.path(), port);
    let _fleet = start_fleet(temp.path());
    let aggregator = Process::start(PROGRAM, &["run"], temp.path());
    wait_for("the first round", Duration::from_secs(30), || {
        try_get(address, "/readyz").filter(|answer| answer.status == 200)
    });
    until_all_healthy_nodes_are_listed(address);
    until_every_fault_has_its_reason(address);
    memory_stays_within_its_bound(address, &aggregator);
    assert_eq!(aggregator.terminate(Duration::from_secs(5)).code(), Some(0));
    let log = std::fs::read_to_string(temp.path().join("stderr")).unwrap();
    assert!(!log.contains("panicked") && !log.contains("died"), "{log}");
}
