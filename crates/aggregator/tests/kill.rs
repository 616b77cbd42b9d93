//! kill -9 at any moment, and a state that can't be written: nothing is lost, and nothing follows from what is not kept.
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

/// So many of them are clean in the end.
const CLEAN: usize = 5;
const KILLS: u64 = 50;
const SUMMARY: &str = "notification_default_procscan-notification.yaml";

/// What is kept, while nobody runs.
fn kept(directory: &Path) -> Vec<Incident> {
    let load = async { FileStore::open(&directory.join("state")).await.unwrap().load().await.unwrap() };
    runtime().block_on(load).incidents
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
        // The administrators are told last; after that goes what is over.
        let objects = directory.join("objects");
        let summary = std::fs::read_to_string(objects.join(SUMMARY)).unwrap_or_default();
        let is_told = summary.contains(&format!("检测到 {} 个", NODES - CLEAN));
        let names = std::fs::read_dir(&objects).unwrap().map(|entry| entry.unwrap().file_name());
        let notifications = names.filter(|name| name.to_string_lossy().starts_with("notification_")).count();
        let is_whole = notifications == NODES - CLEAN + 1;
        (closed(directory).len() == NODES - CLEAN && is_told && is_whole).then_some(())
    });
}

#[test]
fn killed_at_fifty_moments_it_ends_where_an_unbroken_run_ends_and_every_block_has_its_decision() {
    let runtime = runtime();
    let _context = runtime.enter();
    let unbroken = tempfile::tempdir().unwrap();
    let broken = tempfile::tempdir().unwrap();
    let (fleet, _) = scene(broken.path());
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
                incident.status.decisions.iter().filter_map(|decision| decision.decision.known()).collect();
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

    let (fleet, _) = scene(unbroken.path());
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
    let outage = Outage::after_a_block(&[], temp.path());
    // Deleted, and nothing can be made in its place.
    let state = temp.path().join("state");
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::write(&state, "in the way").unwrap();
    outage.offends();
    outage.lasts("it is not a directory; move it away");
    std::fs::remove_file(&state).unwrap();
    outage.is_over();
}
