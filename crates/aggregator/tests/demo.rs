//! The main job, with one command: a real forbidden process becomes a violation, a block and a notification, and is released
//! by the rules when it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{
    PROGRAM, Process, blocked_services, free_port, get, get_json, listing, objects, try_get, wait_for,
};
use serde_json::Value;

fn sleep_binary() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path).map(|dir| dir.join("sleep")).find(|file| file.is_file()).unwrap()
}

#[test]
fn a_real_forbidden_process_is_listed_blocked_told_and_released_by_the_rules() {
    let temp = tempfile::tempdir().unwrap();
    let port = free_port();
    let address = ([127, 0, 0, 1], port).into();
    let directory = temp.path().join("objects");
    // A rule of its own, so that other tests' processes on this machine are not what is found.
    std::fs::write(
        temp.path().join("rules.yaml"),
        "detectionRules: {blacklist: {processes: ['^procscan-demo-xmrig$']}}\n",
    )
    .unwrap();
    let demo = Process::start(
        PROGRAM,
        &["demo", "--port", &port.to_string(), "--dir", "objects", "--rules", "rules.yaml"],
        temp.path(),
    );
    wait_for("the first round", Duration::from_secs(20), || {
        try_get(address, "/readyz").filter(|answer| answer.status == 200)
    });
    assert_eq!(get_json(address, "/api/violations")["total_count"], 0);

    let binary = temp.path().join("procscan-demo-xmrig");
    std::fs::copy(sleep_binary(), &binary).unwrap();
    let offender = Process::start(&binary, &["300"], temp.path());
    let violation = wait_for("the violation", Duration::from_secs(10), || {
        let list = get_json(address, "/api/violations");
        (list["total_count"] == 1).then(|| list["violations"][0].clone())
    });
    let fields: Vec<&String> = violation.as_object().unwrap().keys().collect();
    assert_eq!(fields.len(), 9, "{fields:?}");
    assert_eq!(violation["namespace"], "ns-demo");
    assert_eq!(violation["process"], "procscan-demo-xmrig");
    assert_eq!(violation["cmdline"], format!("{} 300", binary.display()));
    assert_eq!(violation["regex"], "^procscan-demo-xmrig$");
    assert_eq!((&violation["status"], &violation["type"]), (&"active".into(), &"app".into()));
    let pod = violation["pod"].as_str().unwrap().to_owned();

    wait_for("the block", Duration::from_secs(10), || {
        (blocked_services(&directory).len() == 2).then_some(())
    });
    assert_eq!(blocked_services(&directory)[1], format!("{pod}.ns-demo.svc.cluster.local"));
    // The gateway is closed first, and then the tenant is told.
    wait_for("the messages", Duration::from_secs(10), || (objects(&directory).len() == 3).then_some(()));
    let all = objects(&directory);
    let of = |kind: &str, namespace: &str| -> &Value {
        let mut found = all.iter().filter(|o| o["kind"] == kind && o["metadata"]["namespace"] == namespace);
        let object = found.next().unwrap_or_else(|| panic!("no {kind} in {namespace}"));
        assert!(found.next().is_none());
        object
    };
    assert_eq!(all.len(), 3);
    of("WasmPlugin", "higress-system");
    of("Notification", "ns-demo");
    assert_eq!(of("Notification", "default")["spec"]["message"], "检测到 1 个不合规应用");
    if let Some(crds) = common::crd::contracts() {
        for object in &all {
            assert_eq!(common::crd::problems(&crds, object), Vec::<String>::new(), "{object:#}");
        }
    }

    let running = get_json(address, "/api/v1/plan");
    assert_eq!(running["blocks"][0]["app"]["name"], pod);
    let ended = Instant::now();
    drop(offender);
    wait_for("the release", Duration::from_secs(90), || {
        (blocked_services(&directory).len() == 1).then_some(())
    });
    // Not before the clearing time: the last evidence is at most one scan (1 s) and one round (2 s) old when it ends.
    let after = ended.elapsed();
    assert!(after >= Duration::from_secs(27), "released after {after:?}");
    eprintln!("released {after:?} after the process ended");
    wait_for("the objects", Duration::from_secs(10), || (objects(&directory).len() == 1).then_some(()));
    assert_eq!(get_json(address, "/api/violations")["violations"], Value::Array(vec![]));
    assert_eq!(get(address, "/health").body, r#"{"status":"ok"}"#);

    assert_eq!(demo.terminate(Duration::from_secs(5)).code(), Some(0));
    assert_eq!(listing(&directory).len(), 1);
}
