//! Connections and files share one limit. If the shell or the container runtime sets a low one, clients must not take what the
//! agents, the probes and the output need.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::service::{LIMIT, runtime, scene, start_by};
use common::{try_get, wait_for};

/// The soft and the hard limit of a service that was started with 200 of that kind, and its log.
fn limits(kind: &str) -> (u64, u64, String) {
    let (temp, runtime) = (tempfile::tempdir().unwrap(), runtime());
    let _context = runtime.enter();
    let (_fleet, address) = scene(temp.path());
    let process = start_by(&["sh", "-c", "ulimit \"$0\" 200 && exec \"$@\"", kind], temp.path());
    wait_for("the service", LIMIT, || try_get(address, "/livez").filter(|answer| answer.status == 200));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.0.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
    let (soft, hard) = (numbers.next().unwrap(), numbers.next().unwrap());
    (soft, hard, std::fs::read_to_string(temp.path().join("stderr")).unwrap())
}

#[test]
fn a_low_soft_limit_is_raised_to_the_hard_one() {
    let (soft, hard, log) = limits("-Sn");
    assert!(hard > 2000, "this test needs a hard limit above that: {hard}");
    assert_eq!(soft, hard);
    assert!(!log.contains("files may be open"), "{log}");
}

#[test]
fn a_hard_limit_that_is_too_low_is_said() {
    let (soft, hard, log) = limits("-n");
    assert_eq!((soft, hard), (200, 200));
    assert!(log.contains("few files may be open") && log.contains("\"allowed\":200"), "{log}");
}
