//! A full or read-only disk: the whole service reports it, neither blocks nor releases an App, and recovers by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::service::{LIMIT, Outage, runtime, scene, start};
use common::{try_get, wait_for};
use procscan_aggregator::state::FileStore;

/// The environment variable with the directory for the part of a test that runs in its own mount namespace.
const DIRECTORY: &str = "PROCSCAN_TEST_DIRECTORY";

/// The options of `unshare` for a new mount namespace; `None` where the system allows none.
fn namespace() -> Option<Vec<&'static str>> {
    let ways = [vec!["--mount"], vec!["--user", "--map-root-user", "--mount"]];
    let try_it = ["sh", "-c", "mount -t tmpfs none /tmp"];
    ways.into_iter().find(|way| {
        let tried = Command::new("unshare").args(way).args(try_it).stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    })
}

/// Runs an ignored test of this file in a new mount namespace, where it may mount file systems.
fn succeeds_within(namespace: &[&str], test: &str) {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    command.args(namespace).arg(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    let output = command.env(DIRECTORY, directory.path()).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.contains("1 passed"), "{command:?}: {stdout}\n{stderr}");
}

fn given_directory() -> PathBuf {
    std::env::var_os(DIRECTORY).expect("a part of another test, which runs it").into()
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

#[test]
#[ignore = "a part of `the_service_recovers_from_a_full_disk`, which runs it"]
fn part_with_a_full_disk() {
    let runtime = runtime();
    let _context = runtime.enter();
    let directory = given_directory();
    let state = directory.join("state");
    fs::create_dir(&state).unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=1m", "none", state.to_str().unwrap()]);
    let outage = Outage::after_a_block(&[], &directory);
    let ballast = state.join("ballast");
    let mut file = File::create(&ballast).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    drop(file);
    outage.replace_offender();
    outage.check_error("state.db can't be written: no space left on the device; make room");
    fs::remove_file(&ballast).unwrap();
    outage.check_recovery();
}

/// Needs no mount: a write beyond the limit fails with `EFBIG`, as a write to a full disk fails with `ENOSPC`.
#[test]
fn the_service_recovers_from_a_limit_on_the_size_of_files() {
    let runtime = runtime();
    let _context = runtime.enter();
    let directory = tempfile::tempdir().unwrap();
    // Without the trap, SIGXFSZ would kill the service. Its log goes through a pipe to a process without the limit.
    let first = "trap '' XFSZ; mkfifo log; cat <log >stderr & exec \"$0\" \"$@\" 2>log";
    let outage = Outage::after_a_block(&["sh", "-ec", first], directory.path());
    let limit =
        |limit: &str| run("prlimit", &[&format!("--fsize={limit}:"), "--pid", &outage.pid().to_string()]);
    // Smaller than the state file, and larger than any object of this test.
    limit("8192");
    outage.replace_offender();
    outage.check_error("state.db can't be written: the disk takes no more of it");
    limit("unlimited");
    outage.check_recovery();
}

#[test]
fn the_service_recovers_from_a_full_disk() {
    let Some(namespace) = namespace() else {
        eprintln!("no mount namespaces here: only a limit on the size of files is tested");
        return the_service_recovers_from_a_limit_on_the_size_of_files();
    };
    succeeds_within(&namespace, "part_with_a_full_disk");
}

/// A file system in use can't be made read-only. So the test mounts a read-only copy of the state over it, as if a volume was
/// attached again.
#[test]
#[ignore = "a part of `the_service_recovers_from_a_read_only_disk`, which runs it"]
fn part_with_a_read_only_disk() {
    let runtime = runtime();
    let _context = runtime.enter();
    let directory = given_directory();
    let mut outage = Outage::after_a_block(&[], &directory);
    let (state, other) = (directory.join("state"), directory.join("other"));
    let (at, from) = (state.to_str().unwrap(), other.to_str().unwrap());
    run("cp", &["-a", at, from]);
    run("mount", &["--bind", from, at]);
    run("mount", &["-o", "remount,bind,ro", at]);
    outage.replace_offender();
    let expected = "state.lock can't be locked: the file system is read-only; make it writable";
    outage.check_error(expected);
    outage.kill();
    outage.start(&[]);
    outage.check_error(expected);
    run("mount", &["-o", "remount,bind,rw", at]);
    outage.check_recovery();
}

#[test]
fn the_service_recovers_from_a_read_only_disk() {
    let Some(namespace) = namespace() else {
        eprintln!("no mount namespaces here: only missing permissions are tested");
        return the_service_recovers_from_missing_permissions_on_the_state();
    };
    succeeds_within(&namespace, "part_with_a_read_only_disk");
}

/// The kernel checks permissions when a file is opened, so only the next start fails.
#[test]
fn the_service_recovers_from_missing_permissions_on_the_state() {
    let runtime = runtime();
    let _context = runtime.enter();
    let directory = tempfile::tempdir().unwrap();
    // Root ignores permissions, unless it runs without `CAP_DAC_OVERRIDE`.
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let way: &[&str] = if is_root { &["setpriv", "--bounding-set=-dac_override"] } else { &[] };
    let mut outage = Outage::after_a_block(way, directory.path());
    outage.kill();
    let state = directory.path().join("state");
    let set_modes = |directory, files| {
        let modes =
            [(state.clone(), directory), (state.join("state.db"), files), (state.join("state.lock"), files)];
        for (path, mode) in modes {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
    };
    set_modes(0o555, 0o444);
    outage.start(way);
    outage.replace_offender();
    outage.check_error("state.lock can't be locked: permission denied; make it writable");
    set_modes(0o755, 0o644);
    outage.check_recovery();
}

#[tokio::test]
async fn a_deleted_state_is_an_error_once_and_the_next_load_succeeds() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let store = FileStore::open(&state).await.unwrap();
    fs::remove_dir_all(&state).unwrap();
    let error = store.load().await.unwrap_err();
    assert!(error.to_string().contains("deleted while it was in use"), "{error}");
    assert_eq!(store.load().await.unwrap().incidents, []);
}

/// A dry run writes no Incident, so no write could show that the state has recovered.
#[test]
fn a_dry_run_that_starts_without_its_state_reports_the_recovery() {
    let runtime = runtime();
    let _context = runtime.enter();
    let directory = tempfile::tempdir().unwrap();
    let (_fleet, address) = scene(directory.path());
    let config = File::options().append(true).open(directory.path().join("config.yaml"));
    config.unwrap().write_all(b"enforcement: {mode: dry-run}\n").unwrap();
    let state = directory.path().join("state");
    fs::write(&state, "in the way").unwrap();
    let _running = start(directory.path());
    let is_well = |wanted: bool| {
        let ready: serde_json::Value = serde_json::from_str(&try_get(address, "/readyz")?.body).ok()?;
        (ready["state"]["ok"] == wanted).then_some(())
    };
    wait_for("the error in /readyz", LIMIT, || is_well(false));
    fs::remove_file(&state).unwrap();
    wait_for("the recovery in /readyz", LIMIT, || is_well(true));
}
