//! The demo: a real forbidden process becomes a violation, a block and a Notification, and the rules release its App when
//! the process ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::io::{Read, Seek};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{
    PROGRAM, Process, blocked_services, free_port, get, get_json, listing, objects, try_get, wait_for,
};
use procscan_aggregator::state::FileStore;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

fn sleep_binary() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path).map(|dir| dir.join("sleep")).find(|file| file.is_file()).unwrap()
}

/// Starts a demo with a rule of its own, so that it does not find the processes of other tests on this machine.
fn demo_with_one_rule(directory: &Path, port: u16) -> Process {
    let rules = "detectionRules: {blacklist: {processes: ['^procscan-demo-xmrig$']}}\n";
    std::fs::write(directory.join("rules.yaml"), rules).unwrap();
    let args = ["demo", "--port", &port.to_string(), "--dir", "objects", "--rules", "rules.yaml"];
    Process::start(PROGRAM, &args, directory)
}

/// Starts a process that the rule forbids. Returns its path too.
fn offend(directory: &Path) -> (Process, PathBuf) {
    let binary = directory.join("procscan-demo-xmrig");
    std::fs::copy(sleep_binary(), &binary).unwrap();
    (Process::start(&binary, &["300"], directory), binary)
}

/// Waits until the process is listed with all nine fields. Returns its Pod.
fn pod_of_the_listed_process(address: SocketAddr, binary: &Path) -> String {
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
    violation["pod"].as_str().unwrap().to_owned()
}

/// Waits until the gateway closes the Pod's Service, and until the tenant and the administrators are notified.
fn until_blocked_and_notified(directory: &Path, pod: &str) {
    wait_for("the block", Duration::from_secs(10), || (blocked_services(directory).len() == 2).then_some(()));
    assert_eq!(blocked_services(directory)[1], format!("{pod}.ns-demo.svc.cluster.local"));
    // The gateway is closed first, and then the tenant is notified.
    wait_for("the messages", Duration::from_secs(10), || (objects(directory).len() == 3).then_some(()));
    let all = objects(directory);
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
}

/// Waits until the App is released after its process ended, and not before the clearing time.
fn until_released(directory: &Path, ended: Instant) {
    wait_for("the release", Duration::from_secs(90), || {
        (blocked_services(directory).len() == 1).then_some(())
    });
    // The last evidence is at most one scan (1 s) and one round (2 s) old when the process ends.
    let after = ended.elapsed();
    assert!(after >= Duration::from_secs(27), "released after {after:?}");
    eprintln!("released {after:?} after the process ended");
    wait_for("the objects", Duration::from_secs(10), || (objects(directory).len() == 1).then_some(()));
}

#[test]
fn a_real_forbidden_process_is_listed_and_blocked_and_released_by_the_rules() {
    let temp = tempfile::tempdir().unwrap();
    let port = free_port();
    let address = ([127, 0, 0, 1], port).into();
    let directory = temp.path().join("objects");
    let demo = demo_with_one_rule(temp.path(), port);
    wait_for("the first round", Duration::from_secs(20), || {
        try_get(address, "/readyz").filter(|answer| answer.status == 200)
    });
    assert_eq!(get_json(address, "/api/violations")["total_count"], 0);

    let (offender, binary) = offend(temp.path());
    let pod = pod_of_the_listed_process(address, &binary);
    until_blocked_and_notified(&directory, &pod);
    let running = get_json(address, "/api/v1/plan");
    assert_eq!(running["blocks"][0]["app"]["name"], pod);

    let ended = Instant::now();
    drop(offender);
    until_released(&directory, ended);
    assert_eq!(get_json(address, "/api/violations")["violations"], Value::Array(vec![]));
    assert_eq!(get(address, "/health").body, r#"{"status":"ok"}"#);

    assert_eq!(demo.terminate(Duration::from_secs(5)).code(), Some(0));
    assert_eq!(listing(&directory).len(), 1);
}

/// A demo in a directory, with its address once it answers. Its rule matches no process on this machine.
fn demo(directory: &Path, args: &[&str]) -> (Process, SocketAddr) {
    let rules = "detectionRules: {blacklist: {processes: ['^procscan-demo-nothing$']}}\n";
    std::fs::write(directory.join("rules.yaml"), rules).unwrap();
    let port = free_port();
    let address = ([127, 0, 0, 1], port).into();
    let port = port.to_string();
    let args = [&["demo", "--port", &port, "--dir", "objects", "--rules", "rules.yaml"], args].concat();
    let demo = Process::start(PROGRAM, &args, directory);
    wait_for("the API", Duration::from_secs(10), || try_get(address, "/health"));
    (demo, address)
}

/// The last line of a demo that refuses to start.
fn refused(directory: &Path) -> String {
    refused_with(directory, &[])
}

fn refused_with(directory: &Path, args: &[&str]) -> String {
    let port = free_port().to_string();
    let args = [&["demo", "--port", &port, "--dir", "objects"], args].concat();
    let log = tempfile::tempfile().unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(args).current_dir(directory).stdout(Stdio::null()).stderr(log.try_clone().unwrap());
    let mut demo = Process(command.spawn().unwrap());
    let status = wait_for("the refusal", LIMIT, || demo.0.try_wait().unwrap());
    let mut text = String::new();
    (&log).rewind().unwrap();
    (&log).read_to_string(&mut text).unwrap();
    assert_eq!(status.code(), Some(1), "{text}");
    text.lines().last().unwrap().to_owned()
}

/// Plays a demo until the offender of a simulated node is blocked.
fn play(directory: &Path) {
    let (demo, _) = demo(directory, &["--nodes", "10"]);
    wait_for("the block", LIMIT, || (blocked_services(&directory.join("objects")).len() == 2).then_some(()));
    assert_eq!(demo.terminate(Duration::from_secs(5)).code(), Some(0));
}

/// The blocked Apps once the demo has done `rounds` rounds.
fn blocks_after(address: SocketAddr, rounds: u64) -> usize {
    wait_for("the rounds", LIMIT, || {
        let ready: Value = serde_json::from_str(&try_get(address, "/readyz")?.body).ok()?;
        (ready["rounds"].as_u64()? >= rounds).then_some(())
    });
    get_json(address, "/api/v1/plan")["blocks"].as_array().unwrap().len()
}

#[test]
fn a_demo_removes_the_state_of_the_one_before_and_goes_on_from_it_with_keep() {
    let temp = tempfile::tempdir().unwrap();
    let directory = temp.path();
    play(directory);
    // No demo has written these files.
    let others =
        ["objects/mine.yaml", "objects/empty.yaml", "objects-state/notes"].map(|it| directory.join(it));
    std::fs::write(&others[0], "kind: Mine\n").unwrap();
    std::fs::write(&others[1], "").unwrap();
    std::fs::write(&others[2], "mine").unwrap();

    let (again, address) = demo(directory, &["--keep"]);
    assert_eq!(blocks_after(address, 3), 1);
    assert_eq!(again.terminate(Duration::from_secs(5)).code(), Some(0));

    let (anew, address) = demo(directory, &[]);
    assert_eq!(blocks_after(address, 3), 0);
    assert_eq!(get_json(address, "/api/v1/incidents")["total"], 0);
    assert_eq!(get_json(address, "/api/v1/enforcement")["mode"], "enforce");
    let log = std::fs::read_to_string(directory.join("stderr")).unwrap();
    assert!(log.contains("the objects and the state of the earlier demo are removed"), "{log}");
    assert_eq!(anew.terminate(Duration::from_secs(5)).code(), Some(0));
    assert_eq!(blocked_services(&directory.join("objects")).len(), 1, "the sentinel");
    let left = others.map(|it| std::fs::read_to_string(it).unwrap());
    assert_eq!(left, ["kind: Mine\n", "", "mine"]);
}

#[test]
fn a_demo_does_not_remove_files_that_no_demo_has_made() {
    let temp = tempfile::tempdir().unwrap();
    let (objects, state) = (temp.path().join("objects"), temp.path().join("objects-state"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    drop(runtime.block_on(FileStore::open(&state)).unwrap());
    let before = listing(&state);
    let error = refused(temp.path());
    assert!(
        error.starts_with("error: --dir: objects-state is not empty, and objects-state/made-by-demo "),
        "{error}"
    );
    assert!(error.contains("--keep") && !error.contains('\n'), "{error}");
    assert_eq!(listing(&state), before);
    assert!(!objects.exists());

    std::fs::remove_dir_all(&state).unwrap();
    std::fs::create_dir(&objects).unwrap();
    let object = "# Written by procscan-aggregator; changes are overwritten.\nkind: WasmPlugin\n";
    std::fs::write(objects.join("wasmplugin_higress-system_procscan-violations.yaml"), object).unwrap();
    let error = refused(temp.path());
    assert!(error.starts_with("error: --dir: objects is not empty, "), "{error}");
    assert_eq!(listing(&objects).len(), 1);
    assert!(!state.exists());
}

/// The service uses both directories of a demo, or only the directory of the objects.
#[test]
fn a_demo_does_not_remove_directories_that_a_service_has_used_since() {
    for state in ["objects-state", "elsewhere"] {
        let temp = tempfile::tempdir().unwrap();
        let directory = temp.path();
        play(directory);
        let mark = directory.join("objects-state/made-by-demo");
        assert!(mark.is_file());
        let port = free_port();
        let config = format!(
            "aggregator: {{address: 127.0.0.1, port: {port}}}\n\
             discovery: {{mode: static, targets: ['127.0.0.1:1']}}\n\
             output: {{mode: directory, directory: ./objects/}}\nstate: {{mode: file, directory: {state}}}\n"
        );
        std::fs::write(directory.join("config.yaml"), config).unwrap();
        let service = Process::start(PROGRAM, &["run", "--config", "config.yaml"], directory);
        wait_for("the API", LIMIT, || try_get(([127, 0, 0, 1], port).into(), "/health"));
        wait_for("the end of the mark", LIMIT, || (!mark.exists()).then_some(()));
        assert_eq!(service.terminate(Duration::from_secs(5)).code(), Some(0));
        let error = refused(directory);
        assert!(error.starts_with("error: --dir: objects is not empty, "), "{error}");
        assert_eq!(blocked_services(&directory.join("objects")).len(), 2, "{state}");
    }
}

#[test]
fn a_demo_refuses_a_directory_that_belongs_to_a_lease() {
    let temp = tempfile::tempdir().unwrap();
    play(temp.path());
    let marker = temp.path().join("objects/.procscan.lease");
    std::fs::write(&marker, "kube-system/procscan-aggregator\n").unwrap();
    for args in [&[][..], &["--keep"]] {
        let error = refused_with(temp.path(), args);
        let expected = "error: --dir: objects belongs to a Lease, as objects/.procscan.lease shows: give another directory, ";
        assert!(error.starts_with(expected), "{error}");
        assert_eq!(blocked_services(&temp.path().join("objects")).len(), 2);
    }
}

#[test]
fn a_demo_does_not_remove_files_that_another_running_demo_uses() {
    let temp = tempfile::tempdir().unwrap();
    let objects = temp.path().join("objects");
    let (running, address) = demo(temp.path(), &["--nodes", "10"]);
    wait_for("the block", LIMIT, || (blocked_services(&objects).len() == 2).then_some(()));
    let error = refused(temp.path());
    let begins =
        "error: what the earlier demo has left can't be removed: objects: another process writes there";
    assert!(error.starts_with(begins), "{error}");
    assert_eq!(blocked_services(&objects).len(), 2);
    assert_eq!(get_json(address, "/readyz")["state"]["ok"], true);
    assert_eq!(running.terminate(Duration::from_secs(5)).code(), Some(0));
}
