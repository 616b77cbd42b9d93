//! `plan` without a cluster asks simulated agents on loopback, prints the changes, and writes no file of the service.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use common::service::{self, LIMIT, closed, runtime, start};
use common::{PROGRAM, Process, get_json, listing, objects, wait_for};
use procscan_agent::simulate::Fleet;

/// A scene with long timeouts, so that no violation clears and no answer is late on a slow machine.
fn scene(directory: &Path) -> (Fleet, SocketAddr) {
    let scene = service::scene(directory);
    let config = directory.join("config.yaml");
    let mut text = fs::read_to_string(&config).unwrap();
    for (usual, longer) in [
        ("scan_interval: 1s}", "scan_interval: 10s}"),
        ("timeout: 1s, connect_timeout: 1s", "timeout: 10s, connect_timeout: 10s"),
        ("clear_after: 3s", "clear_after: 1h"),
    ] {
        assert!(text.contains(usual), "{usual} in {text}");
        text = text.replacen(usual, longer, 1);
    }
    fs::write(config, text).unwrap();
    scene
}

/// Every path below a directory, with its modification time, and the content of a file.
type Tree = BTreeMap<PathBuf, (SystemTime, Option<Vec<u8>>)>;

fn tree(directory: &Path) -> Tree {
    let mut all = Tree::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let content = metadata.is_file().then(|| fs::read(&path).unwrap());
        all.insert(path, (metadata.modified().unwrap(), content));
    }
    all
}

fn spawn(directory: &Path, temporary: &Path) -> Child {
    let mut plan = Command::new(PROGRAM);
    plan.args(["plan", "--config", "config.yaml"]).current_dir(directory).env("TMPDIR", temporary);
    plan.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs `plan`. Returns its exit code, standard output and standard error. Fails unless the temporary directory is empty again.
fn plan(directory: &Path) -> (Option<i32>, String, String) {
    let temporary = tempfile::tempdir().unwrap();
    let ran = ended(spawn(directory, temporary.path()));
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "the copy of the state was not deleted");
    ran
}

/// Whether the directory has no temporary file.
fn written(directory: &Path) -> bool {
    listing(&directory.join("objects")).iter().all(|name| !name.starts_with('.'))
}

fn ended(child: Child) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// Runs the service until it has blocked one App.
fn blocked_once(fleet: &Fleet, directory: &Path) -> Process {
    fleet.scan_now(0);
    let service = start(directory);
    wait_for("the first block", LIMIT, || (closed(directory).len() == 1).then_some(()));
    service
}

#[test]
fn plan_before_the_first_start_creates_no_file() {
    let runtime = runtime();
    let _context = runtime.enter();
    let temp = tempfile::tempdir().unwrap();
    let directory = temp.path();
    let (fleet, _) = scene(directory);
    fleet.scan_now(0);
    let before = tree(directory);
    let (code, stdout, stderr) = plan(directory);
    assert_eq!((code, &*stderr), (Some(3), ""), "{stdout}");
    assert!(stdout.starts_with("20 of 20 agents have answered.\n"), "{stdout}");
    assert!(stdout.contains("\nblock ns-sim-0/") && stdout.ends_with(" objects would change.\n"), "{stdout}");
    assert_eq!(tree(directory), before);
}

#[test]
fn plan_after_a_stopped_service_reads_its_files_and_changes_none() {
    let runtime = runtime();
    let _context = runtime.enter();
    let temp = tempfile::tempdir().unwrap();
    let directory = temp.path();
    let (fleet, _) = scene(directory);
    let service = blocked_once(&fleet, directory);
    assert_eq!(service.terminate(Duration::from_secs(10)).code(), Some(0));
    // A temporary file of a crashed service, and a file of another program.
    fs::write(directory.join("objects/.procscan-left.yaml"), "half").unwrap();
    fs::write(directory.join("objects/mine.yaml"), "kind: Mine\n").unwrap();
    // A second node reports an offender, and the first node still reports its own.
    (0..2).for_each(|node| fleet.scan_now(node));
    let before = tree(directory);
    let (code, stdout, stderr) = plan(directory);
    assert_eq!((code, &*stderr), (Some(3), ""), "{stdout}");
    assert!(stdout.contains("\nblock ns-sim-0/") && stdout.contains("\nblock ns-sim-1/"), "{stdout}");
    let plugin = "\nchange wasmplugin_higress-system_procscan-violations.yaml\n";
    assert!(stdout.contains(plugin) && stdout.contains("\ncreate notification_ns-sim-1_"), "{stdout}");
    assert!(!stdout.contains("notification_ns-sim-0_"), "its tenant was notified before: {stdout}");
    assert_eq!(tree(directory), before);
}

#[test]
fn plan_beside_a_running_service_reads_the_decisions_of_the_service() {
    let runtime = runtime();
    let _context = runtime.enter();
    let temp = tempfile::tempdir().unwrap();
    let directory = temp.path();
    let (fleet, address) = scene(directory);
    let service = blocked_once(&fleet, directory);
    // Wait for the WasmPlugin, the tenant's Notification and the summary.
    wait_for("the messages", LIMIT, || {
        (objects(&directory.join("objects")).len() == 3 && written(directory)).then_some(())
    });
    let before: Vec<PathBuf> = tree(directory).into_keys().collect();
    let (code, stdout, stderr) = plan(directory);
    assert_eq!((code, &*stderr), (Some(0), ""), "{stdout}");
    assert!(stdout.ends_with("\nNothing would change.\n"), "{stdout}");
    assert_eq!(tree(directory).into_keys().collect::<Vec<_>>(), before);
    let ready = get_json(address, "/readyz");
    assert_eq!((&ready["state"]["ok"], &ready["output"]["ok"]), (&true.into(), &true.into()), "{ready}");
    assert_eq!(service.terminate(Duration::from_secs(10)).code(), Some(0));
}

#[test]
fn an_error_of_the_copy_of_the_state_names_the_place_of_the_copy() {
    let runtime = runtime();
    let _context = runtime.enter();
    let temp = tempfile::tempdir().unwrap();
    let directory = temp.path();
    let (fleet, _) = scene(directory);
    let service = blocked_once(&fleet, directory);
    assert_eq!(service.terminate(Duration::from_secs(10)).code(), Some(0));
    let before = tree(directory);
    let missing = directory.join("missing");
    let (code, _, stderr) = ended(spawn(directory, &missing));
    let begins = format!("error: {}/procscan-state-", missing.display());
    assert!(code == Some(1) && stderr.starts_with(&begins), "{stderr}");
    assert!(stderr.contains(" can't be made, where the state is copied to be read: "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert_eq!(tree(directory), before);
}
