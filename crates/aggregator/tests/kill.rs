//! kill -9 at any moment, and a state that can't be written: nothing is lost, and nothing follows from what is not kept.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use common::{PROGRAM, Process, free_port, get_json, objects, try_get, wait_for};
use procscan_agent::simulate::{Behaviour, Fleet, FleetOptions};
use procscan_aggregator::state::FileStore;
use procscan_core::policy::DecisionKind;
use procscan_core::state::{Incident, IncidentState};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

const NODES: usize = 20;
/// So many of them are clean in the end.
const CLEAN: usize = 5;
const KILLS: u64 = 50;
const LIMIT: Duration = Duration::from_mins(1);

/// What the fleet runs on.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A fleet whose nodes scan only when they are told to, and the files by which an aggregator finds it.
fn scene(directory: &Path, more: &str) -> (Fleet, std::net::SocketAddr) {
    let options = FleetOptions {
        nodes: NODES,
        port: 0,
        scan_interval: Duration::ZERO,
        offenders_per_node: 1,
        ..FleetOptions::default()
    };
    let fleet = Fleet::start(options, &CancellationToken::new()).unwrap();
    let lines: Vec<String> =
        fleet.targets().iter().map(|(node, address)| format!("{address} node={node}")).collect();
    std::fs::write(directory.join("targets"), lines.join("\n")).unwrap();
    let port = free_port();
    std::fs::write(
        directory.join("config.yaml"),
        format!(
            "aggregator: {{address: 127.0.0.1, port: {port}, scan_interval: 1s}}\n\
             collector: {{timeout: 1s, connect_timeout: 1s}}\n\
             detection: {{clear_after: 3s}}\n\
             discovery: {{mode: file, file: targets}}\n\
             output: {{mode: directory, directory: objects}}\n\
             state: {{directory: state}}\n\
             brake: {{max_new_apps: 1000, max_namespaces_per_rule: 1000}}\n{more}"
        ),
    )
    .unwrap();
    (fleet, ([127, 0, 0, 1], port).into())
}

fn start(directory: &Path) -> Process {
    Process::start(PROGRAM, &["run", "--config", "config.yaml"], directory)
}

/// What is kept, while nobody runs.
fn kept(directory: &Path) -> Vec<Incident> {
    runtime()
        .block_on(async { FileStore::open(&directory.join("state")).await.unwrap().load().await.unwrap() })
}

/// The Services that are closed, without the sentinel; none if nothing has been written yet.
fn closed(directory: &Path) -> BTreeSet<String> {
    // Replaced as a whole while somebody runs, so it is there and whole, or not there yet.
    let file = directory.join("objects/wasmplugin_higress-system_procscan-violations.yaml");
    let Ok(text) = std::fs::read_to_string(file) else { return BTreeSet::new() };
    let object: Value = serde_saphyr::from_str(&text).unwrap();
    let services = object["spec"]["matchRules"][0]["service"].as_array().unwrap();
    services
        .iter()
        .filter_map(Value::as_str)
        .filter(|name| !name.ends_with(".invalid"))
        .map(str::to_owned)
        .collect()
}

/// The objects without what tells when something happened.
fn timeless(directory: &Path) -> Vec<Value> {
    let mut all = objects(&directory.join("objects"));
    for object in &mut all {
        object["metadata"]["annotations"]["procscan-aggregator/incident"].take();
        object["spec"]["timestamp"].take();
    }
    all
}

/// The end of the story: the last nodes offend, the first ones are clean.
fn finish(fleet: &Fleet, directory: &Path) {
    for node in 0..CLEAN {
        fleet.set_offender_count(node, 0);
        fleet.set_behaviour(node, Behaviour::Healthy);
        fleet.scan_now(node);
    }
    wait_for("the last blocks and releases", LIMIT, || {
        (CLEAN..NODES).for_each(|node| fleet.scan_now(node));
        (closed(directory).len() == NODES - CLEAN).then_some(())
    });
}

#[test]
fn killed_at_fifty_moments_it_ends_where_an_unbroken_run_ends_and_every_block_has_its_decision() {
    let runtime = runtime();
    let _context = runtime.enter();
    let unbroken = tempfile::tempdir().unwrap();
    let broken = tempfile::tempdir().unwrap();
    let (fleet, _) = scene(broken.path(), "");
    let seed = std::process::id().into();
    println!("seed {seed}");
    let mut random: u64 = seed;
    let mut next = move |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let mut told: BTreeSet<String> = BTreeSet::new();
    let mut written = 0;
    for kill in 0..KILLS {
        // A new offender every now and then, and the old ones scanned again.
        for node in 0..NODES.min(usize::try_from(kill / 2).unwrap() + 1) {
            fleet.scan_now(node);
        }
        let running = start(broken.path());
        std::thread::sleep(Duration::from_millis(next(1500)));
        // SIGKILL.
        drop(running);
        let kept = kept(broken.path());
        let now = closed(broken.path());
        written += usize::from(!now.is_subset(&told));
        for service in &now {
            let incident = kept.iter().find(|incident| {
                service
                    .starts_with(&format!("{}.{}.svc", incident.spec.app.name, incident.spec.app.namespace))
            });
            let incident = incident.unwrap_or_else(|| panic!("{service} is closed, and no incident is kept"));
            let kinds: Vec<DecisionKind> =
                incident.status.decisions.iter().map(|decision| decision.decision).collect();
            assert!(kinds.contains(&DecisionKind::Blocked), "{service}: {kinds:?}");
        }
        // Nobody is released while everybody offends.
        assert!(told.is_subset(&now), "kill {kill}: {:?}", told.difference(&now).collect::<Vec<_>>());
        told = now;
    }
    assert!(written > 3, "blocks were written between the kills: {written}");
    (0..NODES).for_each(|node| fleet.scan_now(node));
    let running = start(broken.path());
    wait_for("all blocks", LIMIT, || (closed(broken.path()).len() == NODES).then_some(()));
    finish(&fleet, broken.path());
    drop(running);
    let incidents = kept(broken.path());
    // One incident each, with one block each: no restart has decided anything twice.
    assert_eq!(incidents.len(), NODES);
    for incident in &incidents {
        let blocks = incident.status.decisions.iter().filter(|d| d.decision == DecisionKind::Blocked).count();
        assert_eq!(blocks, 1, "{incident:#?}");
    }

    let (fleet, _) = scene(unbroken.path(), "");
    (0..NODES).for_each(|node| fleet.scan_now(node));
    let running = start(unbroken.path());
    wait_for("all blocks", LIMIT, || (closed(unbroken.path()).len() == NODES).then_some(()));
    finish(&fleet, unbroken.path());
    drop(running);
    let states = |directory: &Path| -> Vec<(String, IncidentState)> {
        let mut states: Vec<_> = kept(directory)
            .into_iter()
            .map(|incident| (incident.spec.app.name.to_string(), incident.status.state))
            .collect();
        states.sort();
        states
    };
    assert_eq!(states(broken.path()), states(unbroken.path()));
    assert_eq!(timeless(broken.path()), timeless(unbroken.path()));
}

#[test]
fn without_its_state_nothing_new_is_blocked_or_released_and_everything_else_goes_on() {
    let runtime = runtime();
    let _context = runtime.enter();
    let temp = tempfile::tempdir().unwrap();
    let (fleet, address) = scene(temp.path(), "");
    fleet.scan_now(0);
    let _running = start(temp.path());
    wait_for("the first block", LIMIT, || (closed(temp.path()).len() == 1).then_some(()));
    let ready = |part: &str| {
        let answer = try_get(address, "/readyz")?;
        serde_json::from_str::<Value>(&answer.body).ok().map(|ready| ready[part].clone())
    };
    let before = closed(temp.path());

    // Deleted, and nothing can be made in its place.
    let state = temp.path().join("state");
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::write(&state, "in the way").unwrap();
    fleet.set_offender_count(0, 0);
    (0..2).for_each(|node| fleet.scan_now(node));
    let told =
        wait_for("the trouble to be told", LIMIT, || ready("state").filter(|part| part["ok"] == false));
    assert!(told["error"].as_str().unwrap().contains("state"), "{told}");
    wait_for("the new violation", LIMIT, || {
        let list = get_json(address, "/api/violations");
        list["violations"].as_array().unwrap().iter().any(|v| v["namespace"] == "ns-sim-1").then_some(())
    });
    // Twice the clearing time, in answers.
    let rounds = get_json(address, "/readyz")["rounds"].as_u64().unwrap();
    wait_for("ten more rounds", LIMIT, || {
        fleet.scan_now(1);
        let now = get_json(address, "/readyz")["rounds"].as_u64()?;
        assert_eq!(closed(temp.path()), before);
        (now >= rounds + 10).then_some(())
    });
    let log = std::fs::read_to_string(temp.path().join("stderr")).unwrap();
    assert!(log.contains("\"alert\":\"state\""), "{log}");

    // It recovers by itself, and everything that was known is kept again.
    std::fs::remove_file(&state).unwrap();
    wait_for("the block of the new one and the release of the old one", LIMIT, || {
        fleet.scan_now(1);
        let now = closed(temp.path());
        (now.len() == 1 && now.is_disjoint(&before)).then_some(())
    });
    wait_for("the state to be well", LIMIT, || ready("state").filter(|part| part["ok"] == true));
    let decisions = get_json(address, "/api/v1/decisions");
    let kinds: Vec<&str> =
        decisions["decisions"].as_array().unwrap().iter().map(|d| d["decision"].as_str().unwrap()).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "blocked").count(), 2, "{kinds:?}");
    assert_eq!(kinds.iter().filter(|kind| **kind == "released").count(), 1, "{kinds:?}");
}
