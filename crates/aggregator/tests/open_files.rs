//! Connections and files share one limit, which the shell or the container runtime may set low. The service raises it, so that
//! clients leave enough for agents, probes and the output.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::service::{LIMIT, runtime, scene, start_by};
use common::{try_get, wait_for};

/// Starts the service with a limit of 200 of this kind. Returns its soft limit, its hard limit and its log.
fn limits(kind: &str) -> (u64, u64, String) {
    let (temp, runtime) = (tempfile::tempdir().unwrap(), runtime());
    let _context = runtime.enter();
    let (_fleet, address) = scene(temp.path());
    let process = start_by(&["sh", "-c", "ulimit \"$0\" 200 && exec \"$@\"", kind], temp.path());
    wait_for("the service", LIMIT, || try_get(address, "/livez").filter(|answer| answer.status == 200));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.0.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let mut numbers = line.split_whitespace().filter_map(|column| column.parse().ok());
    let (soft, hard) = (numbers.next().unwrap(), numbers.next().unwrap());
    (soft, hard, std::fs::read_to_string(temp.path().join("stderr")).unwrap())
}

#[test]
fn a_low_soft_limit_is_raised_to_the_hard_one() {
    let (soft, hard, log) = limits("-Sn");
    assert!(hard > 2000, "this test needs a hard limit above 2000: {hard}");
    assert_eq!(soft, hard);
    assert!(!log.contains("files may be open"), "{log}");
}

#[test]
fn a_hard_limit_that_is_too_low_is_logged() {
    let (soft, hard, log) = limits("-n");
    assert_eq!((soft, hard), (200, 200));
    assert!(log.contains("few files may be open") && log.contains("\"allowed\":200"), "{log}");
}
