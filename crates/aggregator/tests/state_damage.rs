//! A damaged state file: operators' commands are lost with it, so no further App is blocked until an operator resumes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use common::service::{LIMIT, closed, runtime, scene, start};
use common::{PROGRAM, get_json, wait_for};
use procscan_aggregator::state::sqlite::Sqlite;
use procscan_aggregator::state::{FileStore, OperatorCommands};
use procscan_core::decision::Mode;
use procscan_core::state::EnforcementSpec;

fn simulate(directory: &Path) -> Output {
    command(directory, &["simulate", "--config", "config.yaml", "--since", "24h"])
}

fn plan(directory: &Path) -> (Option<i32>, String) {
    let output = command(directory, &["plan", "--config", "config.yaml"]);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

fn command(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).current_dir(directory).output().unwrap()
}

#[test]
fn after_damage_of_the_state_the_service_is_paused_and_blocks_stay() {
    let runtime = runtime();
    let _context = runtime.enter();
    let directory = tempfile::tempdir().unwrap();
    let (fleet, address) = scene(directory.path());
    let running = start(directory.path());
    wait_for("a block", LIMIT, || {
        fleet.scan_now(0);
        (closed(directory.path()).len() == 1).then_some(())
    });
    let before = closed(directory.path());
    assert!(running.terminate(LIMIT).success());
    let state = directory.path().join("state/state.db");
    fs::write(&state, "garbage").unwrap();

    let running = start(directory.path());
    let mode = || {
        let enforcement = common::try_get(address, "/api/v1/enforcement")?;
        let enforcement: serde_json::Value = serde_json::from_str(&enforcement.body).ok()?;
        enforcement["mode"].as_str().map(str::to_owned)
    };
    assert_eq!(wait_for("the mode", LIMIT, mode), "paused");
    let reason = get_json(address, "/api/v1/enforcement")["reason"].as_str().unwrap().to_owned();
    for text in ["what brakes held is lost", "`incidents --state watched`", "may be blocked"] {
        assert!(reason.contains(text), "{reason}");
    }
    // Other Apps offend for ten rounds.
    let rounds = || get_json(address, "/readyz")["rounds"].as_u64().unwrap();
    let last = rounds() + 10;
    wait_for("ten rounds", LIMIT, || {
        (0..5).for_each(|node| fleet.scan_now(node));
        (rounds() >= last).then_some(())
    });
    assert_eq!(closed(directory.path()), before);
    assert!(running.terminate(LIMIT).success());
    // The same holds for a deleted state beside existing objects.
    fs::remove_dir_all(directory.path().join("state")).unwrap();
    let running = start(directory.path());
    // The API starts before the service has read the objects, so the pause comes later.
    wait_for("the pause", LIMIT, || mode().filter(|mode| mode == "paused"));
    let reason = get_json(address, "/api/v1/enforcement")["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("the state file was new"), "{reason}");
    let last = rounds() + 10;
    wait_for("ten rounds", LIMIT, || {
        (0..5).for_each(|node| fleet.scan_now(node));
        (rounds() >= last).then_some(())
    });
    assert_eq!(closed(directory.path()), before);
    assert!(running.terminate(LIMIT).success());
    // Without state and objects it is a first start, which blocks.
    fs::remove_dir_all(directory.path().join("state")).unwrap();
    fs::remove_dir_all(directory.path().join("objects")).unwrap();
    let _running = start(directory.path());
    wait_for("the other blocks", LIMIT, || {
        (0..5).for_each(|node| fleet.scan_now(node));
        (closed(directory.path()).len() >= 5).then_some(())
    });
}

/// The service may be killed after it has found the damage, and before it has persisted the pause.
#[tokio::test]
async fn the_pause_after_damage_survives_a_kill_before_it_is_persisted() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("state.db"), "garbage").unwrap();
    let (killed, damaged) = Sqlite::open(directory.path()).await.unwrap();
    assert_eq!(damaged.len(), 1);
    drop(killed);
    let paused = EnforcementSpec { mode: Some(Mode::Paused), ..EnforcementSpec::default() };
    let mode = async || {
        let store = FileStore::open_with(directory.path(), Some(paused.clone())).await.unwrap();
        store.load().await.unwrap();
        let mode = store.shown().borrow().enforcement.mode;
        (store, mode)
    };
    let (store, first) = mode().await;
    assert_eq!(first, Some(Mode::Paused));
    // An operator resumes, and the next start is not paused.
    OperatorCommands::File(store.clone()).set_enforcement(&EnforcementSpec::default()).await.unwrap();
    drop(store);
    assert_eq!(mode().await.1, None);
}

#[test]
fn simulate_creates_and_changes_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let _context = runtime.enter();
    let _fleet = scene(directory.path());
    let state = directory.path().join("state");
    let nothing = simulate(directory.path());
    assert!(!nothing.status.success() && !state.exists(), "{nothing:?}");
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("state.directory: state"), "{nothing:?}");

    fs::create_dir(&state).unwrap();
    fs::write(state.join("state.db"), "garbage").unwrap();
    let damaged = simulate(directory.path());
    assert!(!damaged.status.success(), "{damaged:?}");
    assert!(String::from_utf8_lossy(&damaged.stderr).contains("damaged"), "{damaged:?}");
    assert_eq!(fs::read(state.join("state.db")).unwrap(), b"garbage");
    assert_eq!(common::listing(&state), ["state.db"]);
}

#[test]
fn plan_works_before_the_first_start_beside_the_service_and_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let _context = runtime.enter();
    let (fleet, _) = scene(directory.path());
    fleet.scan_now(0);
    let (code, first) = plan(directory.path());
    assert!(code == Some(3) && first.contains("block ") && first.contains("would change"), "{first}");
    assert!(!directory.path().join("state").exists());
    assert!(!directory.path().join("objects").exists());

    let running = start(directory.path());
    wait_for("the block", LIMIT, || (closed(directory.path()).len() == 1).then_some(()));
    let (code, beside) = plan(directory.path());
    assert!(code == Some(0) && beside.contains("Nothing would change."), "{beside}");
    assert!(running.terminate(LIMIT).success());
    // The reason is the persisted one.
    let (code, after) = plan(directory.path());
    assert!(code == Some(0) && after.contains("matches rule"), "{after}");
}

#[test]
fn damaged_objects_are_restored_from_the_state_and_left_alone_without_it() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let _context = runtime.enter();
    let (fleet, address) = scene(directory.path());
    fleet.scan_now(0);
    let running = start(directory.path());
    wait_for("the block", LIMIT, || (closed(directory.path()).len() == 1).then_some(()));
    let before = closed(directory.path());
    assert!(running.terminate(LIMIT).success());
    let objects = directory.path().join("objects");
    let file = objects.join("wasmplugin_higress-system_procscan-violations.yaml");
    let whole = fs::read_to_string(&file).unwrap();
    let damaged = whole.replace("spec:", "<<<<<<< HEAD\nspec:");
    fs::write(&file, &damaged).unwrap();
    let (code, text) = plan(directory.path());
    assert!(code == Some(3) && text.contains("would change"), "{text}");

    // The agent has not scanned again, so only the persisted state has the block.
    let running = start(directory.path());
    wait_for("the file to be whole again", LIMIT, || {
        (fs::read_to_string(&file).unwrap() != damaged).then_some(())
    });
    assert_eq!(closed(directory.path()), before);
    let copy = objects.join("wasmplugin_higress-system_procscan-violations.yaml.damaged");
    assert_eq!(fs::read_to_string(copy).unwrap(), damaged);
    assert!(running.terminate(LIMIT).success());

    // Without persisted state, only the file has the block, so the service leaves it alone.
    fs::remove_dir_all(directory.path().join("state")).unwrap();
    fs::write(&file, &damaged).unwrap();
    let _running = start(directory.path());
    let error = || {
        let ready: serde_json::Value =
            serde_json::from_str(&common::try_get(address, "/readyz")?.body).ok()?;
        ready["output"]["error"].as_str().map(str::to_owned)
    };
    let error = wait_for("the error in /readyz", LIMIT, error);
    assert!(error.contains("repair or remove it"), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), damaged);
    // The repaired file is read again.
    fs::write(&file, &whole).unwrap();
    wait_for("the block to be found", LIMIT, || {
        let plan = common::try_get(address, "/api/v1/plan")?;
        let plan: serde_json::Value = serde_json::from_str(&plan.body).ok()?;
        (plan["blocks"].as_array()?.len() == 1).then_some(())
    });
    assert_eq!(closed(directory.path()), before);
}

/// A backup of the state is older than the last block, and the file that lists the block is damaged.
#[test]
fn with_damaged_objects_an_older_state_opens_no_app_that_it_does_not_have() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let _context = runtime.enter();
    let (fleet, address) = scene(directory.path());
    let (state, backup) = (directory.path().join("state"), directory.path().join("backup"));
    for blocks in [1, 2] {
        fleet.scan_now(blocks - 1);
        let running = start(directory.path());
        wait_for("the block", LIMIT, || (closed(directory.path()).len() == blocks).then_some(()));
        assert!(running.terminate(LIMIT).success());
        if blocks == 1 {
            fs::create_dir(&backup).unwrap();
            for name in common::listing(&state) {
                fs::copy(state.join(&name), backup.join(&name)).unwrap();
            }
        }
    }
    let before = closed(directory.path());
    fs::remove_dir_all(&state).unwrap();
    fs::rename(&backup, &state).unwrap();
    let name = "wasmplugin_higress-system_procscan-violations.yaml";
    let file = directory.path().join("objects").join(name);
    let whole = fs::read_to_string(&file).unwrap();
    let damaged = whole.replace("spec:", "<<<<<<< HEAD\nspec:");
    fs::write(&file, &damaged).unwrap();

    let _running = start(directory.path());
    let error = || {
        let ready: serde_json::Value =
            serde_json::from_str(&common::try_get(address, "/readyz")?.body).ok()?;
        ready["output"]["error"].as_str().map(str::to_owned)
    };
    let error = wait_for("the error in /readyz", LIMIT, error);
    assert!(error.contains(name) && error.contains("Restore the latest state"), "{error}");
    assert_eq!(
        error.matches("ns-").count(),
        1,
        "expected only the App without a persisted Incident: {error}"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), damaged);
    let refused = command(directory.path(), &["plan", "--config", "config.yaml"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Restore the latest state"), "{refused:?}");
    // The repaired file is read again.
    fs::write(&file, &whole).unwrap();
    wait_for("the blocks to be found", LIMIT, || {
        let plan = common::try_get(address, "/api/v1/plan")?;
        let plan: serde_json::Value = serde_json::from_str(&plan.body).ok()?;
        (plan["blocks"].as_array()?.len() == 2).then_some(())
    });
    assert_eq!(closed(directory.path()), before);
}
