//! A disk that is full or can't be written, under the whole service: it says so, keeps what is blocked as it is, and goes on by
//! itself.
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

/// Where the part of a test that runs in a mount namespace of its own finds its directory.
const DIRECTORY: &str = "PROCSCAN_TEST_DIRECTORY";

/// How to get a mount namespace of one's own; `None` where that is not allowed.
fn namespace() -> Option<Vec<&'static str>> {
    let ways = [vec!["--mount"], vec!["--user", "--map-root-user", "--mount"]];
    let try_it = ["sh", "-c", "mount -t tmpfs none /tmp"];
    ways.into_iter().find(|way| {
        let tried = Command::new("unshare").args(way).args(try_it).stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    })
}

/// Runs a test of this file, which is ignored otherwise, where it may mount.
fn succeeds_within(namespace: &[&str], test: &str) {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    command.args(namespace).arg(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    let output = command.env(DIRECTORY, directory.path()).output().unwrap();
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{command:?}: {said}\n{complained}");
}

fn given_directory() -> PathBuf {
    std::env::var_os(DIRECTORY).expect("a part of another test, which runs it").into()
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

#[test]
#[ignore = "a part of `a_full_disk_is_waited_out_by_the_service`, which runs it"]
fn has_no_room() {
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
    outage.offends();
    outage.lasts("state.db can't be written: no space left on the device; make room");
    fs::remove_file(&ballast).unwrap();
    outage.is_over();
}

/// Wherever this test runs, the limit works; `EFBIG` is then what a full disk is elsewhere.
#[test]
fn files_that_may_not_grow_are_waited_out_by_the_service() {
    let runtime = runtime();
    let _context = runtime.enter();
    let directory = tempfile::tempdir().unwrap();
    // Whoever exceeds the limit is killed otherwise. What is told goes through a pipe, to a file of a process without limit.
    let first = "trap '' XFSZ; mkfifo told; cat <told >stderr & exec \"$0\" \"$@\" 2>told";
    let outage = Outage::after_a_block(&["sh", "-ec", first], directory.path());
    let limit =
        |limit: &str| run("prlimit", &[&format!("--fsize={limit}:"), "--pid", &outage.pid().to_string()]);
    // Less than the state, more than any object of a handful of Apps.
    limit("8192");
    outage.offends();
    outage.lasts("state.db can't be written: the disk takes no more of it");
    limit("unlimited");
    outage.is_over();
}

#[test]
fn a_full_disk_is_waited_out_by_the_service() {
    let Some(namespace) = namespace() else {
        eprintln!("no mount namespaces here: a full disk is tried as a limit on the size of files only");
        return files_that_may_not_grow_are_waited_out_by_the_service();
    };
    succeeds_within(&namespace, "has_no_room");
}

/// A file system that is used can't be made read-only, so the service sees another one with the same in it: as when a volume
/// is attached again.
#[test]
#[ignore = "a part of `a_read_only_disk_is_waited_out_by_the_service`, which runs it"]
fn is_read_only() {
    let runtime = runtime();
    let _context = runtime.enter();
    let directory = given_directory();
    let mut outage = Outage::after_a_block(&[], &directory);
    let (state, other) = (directory.join("state"), directory.join("other"));
    let (at, from) = (state.to_str().unwrap(), other.to_str().unwrap());
    run("cp", &["-a", at, from]);
    run("mount", &["--bind", from, at]);
    run("mount", &["-o", "remount,bind,ro", at]);
    outage.offends();
    let says = "state.lock can't be locked: the file system is read-only; make it writable";
    outage.lasts(says);
    outage.kill();
    outage.start(&[]);
    outage.lasts(says);
    run("mount", &["-o", "remount,bind,rw", at]);
    outage.is_over();
}

#[test]
fn a_read_only_disk_is_waited_out_by_the_service() {
    let Some(namespace) = namespace() else {
        eprintln!("no mount namespaces here: what can't be written is tried by permissions only");
        return a_state_that_may_not_be_written_is_waited_out_by_the_service();
    };
    succeeds_within(&namespace, "is_read_only");
}

/// Permissions are looked at when a file is opened, so it is the next start that may not write.
#[test]
fn a_state_that_may_not_be_written_is_waited_out_by_the_service() {
    let runtime = runtime();
    let _context = runtime.enter();
    let directory = tempfile::tempdir().unwrap();
    // Permissions don't hold for root, unless it is without the right to pass over them.
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let way: &[&str] = if is_root { &["setpriv", "--bounding-set=-dac_override"] } else { &[] };
    let mut outage = Outage::after_a_block(way, directory.path());
    outage.kill();
    let state = directory.path().join("state");
    let may = |directory, files| {
        let modes =
            [(state.clone(), directory), (state.join("state.db"), files), (state.join("state.lock"), files)];
        for (path, mode) in modes {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
    };
    may(0o555, 0o444);
    outage.start(way);
    outage.offends();
    outage.lasts("state.lock can't be locked: permission denied; make it writable");
    may(0o755, 0o644);
    outage.is_over();
}

#[tokio::test]
async fn what_could_not_be_read_once_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let store = FileStore::open(&state).await.unwrap();
    fs::remove_dir_all(&state).unwrap();
    let error = store.load().await.unwrap_err();
    assert!(error.to_string().contains("deleted while it was in use"), "{error}");
    assert_eq!(store.load().await.unwrap().incidents, []);
}

/// Nothing is ever kept then, which would show that the state is well again.
#[test]
fn a_dry_run_that_begins_without_its_state_says_when_it_is_there() {
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
    wait_for("the trouble to be told", LIMIT, || is_well(false));
    fs::remove_file(&state).unwrap();
    wait_for("its end to be told", LIMIT, || is_well(true));
}
