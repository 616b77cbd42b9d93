//! `kill -9` at any moment, and a state that can't be written. The service loses no decision. No decision takes effect
//! before it is persisted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use common::service::{LIMIT, NODES, Outage, closed, runtime, scene, start};
use common::{objects, wait_for};
use procscan_agent::simulate::{Behaviour, Fleet};
use procscan_aggregator::state::FileStore;
use procscan_core::decision::DecisionKind;
use procscan_core::state::{Incident, IncidentState};
use serde_json::Value;

/// How many nodes are clean in the end.
const CLEAN: usize = 5;
const KILLS: u64 = 50;
const SUMMARY: &str = "notification_default_procscan-notification.yaml";

/// The persisted Incidents, while no service runs.
fn persisted(directory: &Path) -> Vec<Incident> {
    let load = async { FileStore::open(&directory.join("state")).await.unwrap().load().await.unwrap() };
    runtime().block_on(load).incidents
}

/// The objects without their timestamps.
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
        // The summary for the administrators is written last. After that, Notifications that are over are deleted.
        let objects = directory.join("objects");
        let summary = std::fs::read_to_string(objects.join(SUMMARY)).unwrap_or_default();
        let is_summed_up = summary.contains(&format!("检测到 {} 个", NODES - CLEAN));
        let names = std::fs::read_dir(&objects).unwrap().map(|entry| entry.unwrap().file_name());
        let notifications = names.filter(|name| name.to_string_lossy().starts_with("notification_")).count();
        let is_whole = notifications == NODES - CLEAN + 1;
        (closed(directory).len() == NODES - CLEAN && is_summed_up && is_whole).then_some(())
    });
}

/// A random number below `below`, by a linear congruential generator.
fn random(state: &mut u64, below: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % below
}

/// The closed Services, each of which must have a persisted Incident with the decision.
fn closed_with_decisions(directory: &Path) -> BTreeSet<String> {
    let persisted = persisted(directory);
    let now = closed(directory);
    for service in &now {
        let incident = persisted.iter().find(|incident| {
            service.starts_with(&format!("{}.{}.svc", incident.spec.app.name, incident.spec.app.namespace))
        });
        let incident =
            incident.unwrap_or_else(|| panic!("{service} is closed, and no incident is persisted"));
        let kinds: Vec<DecisionKind> =
            incident.status.decisions.iter().filter_map(|decision| decision.decision.known()).collect();
        assert!(kinds.contains(&DecisionKind::Blocked), "{service}: {kinds:?}");
    }
    now
}

/// Starts the service fifty times and kills it at random moments, while more and more nodes offend.
fn kill_at_random_moments(fleet: &Fleet, directory: &Path) {
    let mut state: u64 = std::process::id().into();
    println!("seed {state}");
    let mut before: BTreeSet<String> = BTreeSet::new();
    let mut written = 0;
    for kill in 0..KILLS {
        // With every second kill a new node offends, and the others are scanned again.
        for node in 0..NODES.min(usize::try_from(kill / 2).unwrap() + 1) {
            fleet.scan_now(node);
        }
        let running = start(directory);
        std::thread::sleep(Duration::from_millis(random(&mut state, 1500)));
        // SIGKILL.
        drop(running);
        let now = closed_with_decisions(directory);
        written += usize::from(!now.is_subset(&before));
        // No App is released while every node offends.
        assert!(before.is_subset(&now), "kill {kill}: {:?}", before.difference(&now).collect::<Vec<_>>());
        before = now;
    }
    assert!(written > 3, "blocks were written between the kills: {written}");
}

/// One run without a kill: all nodes offend, and then the first ones are clean.
fn run_to_the_end(fleet: &Fleet, directory: &Path) {
    (0..NODES).for_each(|node| fleet.scan_now(node));
    let running = start(directory);
    wait_for("all blocks", LIMIT, || (closed(directory).len() == NODES).then_some(()));
    finish(fleet, directory);
    drop(running);
}

/// Each App with the state of its Incident.
fn states(directory: &Path) -> Vec<(String, IncidentState)> {
    let mut states: Vec<_> = persisted(directory)
        .into_iter()
        .map(|incident| (incident.spec.app.name.to_string(), incident.status.state))
        .collect();
    states.sort();
    states
}

#[test]
fn killed_at_fifty_moments_it_ends_where_an_unbroken_run_ends_and_every_block_has_its_decision() {
    let runtime = runtime();
    let _context = runtime.enter();
    let unbroken = tempfile::tempdir().unwrap();
    let broken = tempfile::tempdir().unwrap();
    let (fleet, _) = scene(broken.path());
    kill_at_random_moments(&fleet, broken.path());
    run_to_the_end(&fleet, broken.path());
    let incidents = persisted(broken.path());
    // One Incident each, with one block each, because no restart has decided anything twice.
    assert_eq!(incidents.len(), NODES);
    for incident in &incidents {
        let blocks = incident.status.decisions.iter().filter(|d| d.decision == DecisionKind::Blocked).count();
        assert_eq!(blocks, 1, "{incident:#?}");
    }

    let (fleet, _) = scene(unbroken.path());
    run_to_the_end(&fleet, unbroken.path());
    assert_eq!(states(broken.path()), states(unbroken.path()));
    assert_eq!(timeless(broken.path()), timeless(unbroken.path()));
}

#[test]
fn without_its_state_nothing_new_is_blocked_or_released_and_everything_else_goes_on() {
    let runtime = runtime();
    let _context = runtime.enter();
    let temp = tempfile::tempdir().unwrap();
    let outage = Outage::after_a_block(&[], temp.path());
    // The state is deleted, and a file in its place prevents a new one.
    let state = temp.path().join("state");
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::write(&state, "in the way").unwrap();
    outage.replace_offender();
    outage.check_error("it is not a directory; move it away");
    std::fs::remove_file(&state).unwrap();
    outage.check_recovery();
}
