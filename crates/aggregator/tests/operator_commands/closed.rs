//! Every command with a closed standard output, and with one on a full device.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::fake_api::{Api, carried_out, command, incident, incidents, reply};

/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(30);

/// A pipe whose other end is closed.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

/// A fake of the operators' API and of the API server in one.
fn api() -> Api {
    let one = incident("i-1", ("app", "web"), "held");
    let nothing =
        json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []});
    let missing = json!({"kind": "Status", "status": "Failure", "message": "not found", "reason": "NotFound", "code": 404});
    Api::new(vec![
        reply("GET /api/v1/incidents", 200, incidents(std::slice::from_ref(&one))),
        reply("POST /api/v1/incidents", 200, carried_out(one, "approved")),
        reply("GET /api/v1/decisions", 200, json!({"decisions": [], "more": 0})),
        reply("GET /api/v1/exemptions", 200, json!({"exemptions": [{"name": "a"}], "withheld": []})),
        reply("POST /api/v1/exemptions", 200, json!({"name": "a", "exemption": {"reason": "x"}})),
        reply("GET /api/v1/enforcement", 200, json!({"mode": "enforce", "operators": null})),
        reply(
            "PUT /api/v1/enforcement",
            200,
            json!({"mode": "paused", "in_force": "paused", "reason": null, "by": "alice"}),
        ),
        reply("GET /readyz", 200, json!({"status": "ready"})),
        reply("GET /apis/coordination.k8s.io", 404, missing),
        reply("GET /api", 200, nothing),
    ])
}

/// Writes a configuration without a cluster, one with a cluster, and its kubeconfig.
fn files(directory: &Path, api: &Api) {
    let write = |name: &str, text: String| std::fs::write(directory.join(name), text).unwrap();
    let alone = "aggregator: {address: 127.0.0.1, scan_interval: 1s}\ncollector: {timeout: 1s, connect_timeout: 1s}\n\
                 discovery: {mode: static, targets: [127.0.0.1:9]}\noutput: {mode: directory}\n";
    write("config.yaml", alone.to_owned());
    write("cluster.yaml", "kubernetes: {kubeconfig: kubeconfig}\n".to_owned());
    let cluster = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": api.url()}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
    });
    write("kubeconfig", cluster.to_string());
}

/// Creates a state, because `simulate` needs one.
fn state(directory: &Path) {
    let directory = directory.join("procscan-state");
    let store = procscan_aggregator::state::FileStore::open(&directory);
    let _ = tokio::runtime::Runtime::new().unwrap().block_on(store).unwrap();
}

/// The commands that end by themselves, each with arguments for which it prints a text.
const ONE_SHOT: [(&str, &[&str]); 17] = [
    ("plan", &["--config", "config.yaml"]),
    ("check-config", &["--config", "config.yaml"]),
    ("simulate", &["--config", "config.yaml"]),
    ("crds", &[]),
    ("unblock-all", &["--config", "cluster.yaml"]),
    ("uninstall", &["--config", "cluster.yaml"]),
    ("decisions", &["-o", "json"]),
    ("incidents", &[]),
    ("approve", &["i-1"]),
    ("release", &["i-1"]),
    ("exempt", &["--list"]),
    ("exempt", &["--app", "web", "--reason", "x"]),
    ("pause", &[]),
    ("resume", &[]),
    ("mode", &[]),
    ("status", &[]),
    ("help", &[]),
];

/// The commands that run until they are stopped.
const SERVICES: [&str; 3] = ["run", "demo", "agent"];

fn output(directory: &Path, api: &Api, args: &[&str], stdout: Stdio) -> (Option<i32>, String) {
    let mut command = command(args);
    command.current_dir(directory).env("PROCSCAN_URL", api.url()).stdin(Stdio::null());
    let Output { status, stderr, .. } = command.stdout(stdout).stderr(Stdio::piped()).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn the_lists_of_this_test_have_every_command() {
    let Output { stdout, .. } = command(&["--help"]).output().unwrap();
    let help = String::from_utf8(stdout).unwrap();
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = commands.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    for name in names.map(|line| line.split_whitespace().next().unwrap()) {
        let is_known = ONE_SHOT.iter().any(|(known, _)| *known == name) || SERVICES.contains(&name);
        assert!(is_known, "{name} is in no list of this test");
    }
}

#[test]
fn a_closed_output_changes_no_exit_code_and_a_full_device_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let (directory, api) = (directory.path(), api());
    files(directory, &api);
    state(directory);
    let helps: Vec<Vec<&str>> = ONE_SHOT.iter().map(|(name, _)| vec![*name, "--help"]).collect();
    let all = ONE_SHOT.iter().map(|(name, args)| [&[*name], *args].concat()).chain(helps);
    for args in all.chain([vec!["--help"], vec!["--version"]]) {
        if args == ["help", "--help"] {
            continue;
        }
        let read = output(directory, &api, &args, Stdio::null());
        // With changes, `plan` has exit code 3.
        let code = if args == ["plan", "--config", "config.yaml"] { 3 } else { 0 };
        assert_eq!(read.0, Some(code), "{args:?}: {}", read.1);
        assert_eq!(output(directory, &api, &args, closed()), read, "{args:?}");
        let (code, stderr) = output(directory, &api, &args, full());
        let error = "error: standard output can't be written: No space left on device (os error 28)\n";
        assert!(code == Some(1) && stderr.ends_with(error), "{args:?}: {code:?}: {stderr}");
    }
}

#[test]
fn a_mistake_has_its_exit_code_if_standard_error_is_closed_too() {
    let directory = tempfile::tempdir().unwrap();
    for args in [&["frobnicate"][..], &["check-config", "--config", "missing.yaml"], &[]] {
        for stderr in [closed(), full()] {
            let mut command = command(args);
            let status = command.current_dir(directory.path()).stdout(closed()).stderr(stderr).status();
            assert_eq!(status.unwrap().code(), Some(2), "{args:?}");
        }
    }
}

/// A child process that is killed at the end of its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Waits for the exit code.
    fn end(&mut self) -> Option<i32> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the process has not ended");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Waits until `/health` of this port answers 200.
fn wait_for_answer(port: u16, child: &mut Running) {
    let deadline = Instant::now() + LIMIT;
    let ask = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200 ").then_some(())
    };
    while ask().is_none() {
        assert_eq!(
            child.0.try_wait().unwrap().and_then(|status| status.code()),
            None,
            "the process has ended"
        );
        assert!(Instant::now() < deadline, "no answer");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn services_run_with_a_closed_output_and_do_not_start_on_a_full_device() {
    let directory = tempfile::tempdir().unwrap();
    let (directory, api) = (directory.path(), api());
    files(directory, &api);
    for name in SERVICES {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (bind, given) = (format!("127.0.0.1:{port}"), port.to_string());
        let args = match name {
            "agent" => vec!["agent", "--bind", &bind, "--host-namespace", "ns-demo"],
            "demo" => vec!["demo", "--port", &given],
            _ => vec![name],
        };
        let start = |stdout: Stdio| {
            let mut command = command(&args);
            command.current_dir(directory).env("PROCSCAN_AGGREGATOR__PORT", &given).stdin(Stdio::null());
            let log = File::create(directory.join("stderr")).unwrap();
            Running(command.stdout(stdout).stderr(log).spawn().unwrap())
        };
        let log = || std::fs::read_to_string(directory.join("stderr")).unwrap();
        let mut running = start(closed());
        wait_for_answer(port, &mut running);
        let killed = Command::new("kill").arg(running.0.id().to_string()).status().unwrap();
        assert!(killed.success());
        assert_eq!(running.end(), Some(0), "{name}: {}", log());
        assert!(!log().contains("panicked"), "{name}: {}", log());
        // `run` prints nothing to standard output.
        if name != "run" {
            assert_eq!(start(full()).end(), Some(1), "{name}: {}", log());
            assert!(log().contains("standard output can't be written"), "{name}: {}", log());
        }
    }
}
