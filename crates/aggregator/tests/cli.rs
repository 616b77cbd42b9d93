//! The command line: a mistake is reported in one line, and after a signal at any moment the program shuts down.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::{PROGRAM, Process, free_port, get_json, listing, objects, signal, try_get, wait_for};
use procscan_aggregator::state::FileStore;
use procscan_core::names::App;
use procscan_core::state::{Incident, IncidentSpec, incident};
use serde_json::json;

fn output(directory: &Path, args: &[&str]) -> (Option<i32>, String) {
    // With this setting, an error that had a backtrace would print it.
    let Output { status, stderr, .. } =
        Command::new(PROGRAM).args(args).current_dir(directory).env("RUST_BACKTRACE", "1").output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn a_bad_configuration_is_one_clear_line_and_exit_code_2() {
    let temp = tempfile::tempdir().unwrap();
    for (text, place, allowed) in [
        ("aggregator: {prot: 80}\n", "aggregator", "`port`"),
        ("aggregator: {scan_interval: 60}\n", "aggregator.scan_interval: invalid value 60: ", "60s, 5m"),
        ("aggregator: {port: 0}\n", "aggregator.port: invalid value 0: ", "1 to 65535"),
        (
            "discovery: {mode: file, file: no-such-file}\n",
            "discovery.file: invalid value no-such-file: ",
            "a file that can be read",
        ),
        ("aggregator: [\n", "", "YAML"),
    ] {
        std::fs::write(temp.path().join("config.yaml"), text).unwrap();
        for command in ["run", "check-config"] {
            let (code, stderr) = output(temp.path(), &[command]);
            assert_eq!(code, Some(2), "{command} {text}: {stderr}");
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
            assert!(stderr.starts_with(&format!("error: config.yaml: {place}")), "{stderr}");
            assert!(stderr.contains(allowed), "{stderr}");
        }
    }
    let (code, stderr) = output(temp.path(), &["run", "--config", "missing.yaml"]);
    assert_eq!(code, Some(2));
    assert!(stderr.starts_with("error: missing.yaml: can't be read: "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    std::fs::write(temp.path().join("config.yaml"), "aggregator: {port: 8090}\n").unwrap();
    assert_eq!(output(temp.path(), &["check-config"]), (Some(0), String::new()));
}

/// A valid configuration in which two values have no effect.
const WITHOUT_EFFECT: &str = r#"
discovery: {mode: static, targets: [127.0.0.1:9]}
output: {mode: directory}
enforcement:
  exemptions:
  - {namespace: ns-a, reason: over, until: "2020-01-01T00:00:00Z"}
  - {namespace: ns-b, reason: to come, until: "2036-01-01T00:00:00Z"}
gateway: {max_service_entries: 0}
"#;

#[test]
fn a_valid_value_without_effect_is_a_warning_at_the_check_and_at_the_start() {
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join("config.yaml"), WITHOUT_EFFECT).unwrap();
    let (code, stderr) = output(temp.path(), &["check-config"]);
    assert_eq!(code, Some(0), "{stderr}");
    let lines: Vec<&str> = stderr.lines().collect();
    let [exemption, gateway] = lines[..] else { panic!("{stderr}") };
    let place = "warning: config.yaml: enforcement.exemptions[0].until: 2020-01-01T00:00:00Z has passed";
    assert!(exemption.starts_with(place), "{stderr}");
    let place = "warning: config.yaml: gateway.max_service_entries: with 0 the gateway closes no App without an Ingress";
    assert!(gateway.starts_with(place), "{stderr}");

    // The port is taken, so the service ends by itself.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let text = format!("{WITHOUT_EFFECT}aggregator: {{address: 127.0.0.1, port: {port}}}\n");
    std::fs::write(temp.path().join("config.yaml"), text).unwrap();
    let (code, stderr) = output(temp.path(), &["run"]);
    assert_eq!(code, Some(1), "{stderr}");
    let warnings =
        stderr.lines().filter(|line| line.contains("\"level\":\"WARN\"") && line.contains("config.yaml: "));
    assert_eq!(warnings.count(), 2, "{stderr}");
}

/// An incident of `namespace` that has been blocked for an hour.
fn blocked(namespace: &str) -> Incident {
    let at = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(1);
    let app = App::new(namespace, "app", "web");
    let evidence = json!({
        "pod": "web-0", "process": "xmrig", "node": "n1", "regex": "^xmrig$", "type": "app", "name": "web",
        "firstSeen": at, "freshAt": at, "timestamp": at.to_string(), "observations": 1,
    });
    let status = json!({
        "state": "Blocked", "opened": at, "since": at, "reason": "process `xmrig`", "evidence": [evidence],
        "decisions": [{"at": at, "decision": "blocked", "actor": "policy", "reason": "process `xmrig`"}], "decided": 1,
    });
    let status = serde_json::from_value(status).unwrap();
    Incident { name: incident::name(&app, at), spec: IncidentSpec::of(&app), status }
}

#[test]
fn simulate_and_plan_report_an_exemption_that_the_service_would_withhold() {
    let temp = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = FileStore::open(&temp.path().join("procscan-state")).await.unwrap();
        assert!(store.save(["ns-a", "ns-b", "ns-c"].map(blocked).into()).await.is_empty());
    });
    let simulate = |confirm: &str| {
        let text = format!(
            "discovery: {{mode: static, targets: [127.0.0.1:9]}}\noutput: {{mode: directory}}\nbrake: {{max_releases: 2}}\n\
             enforcement: {{exemptions: [{{namespace: {{regex: ^ns-}}, reason: a contract{confirm}}}]}}\n"
        );
        std::fs::write(temp.path().join("config.yaml"), text).unwrap();
        let output = Command::new(PROGRAM)
            .args(["simulate", "--since", "24h"])
            .current_dir(temp.path())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = simulate("");
    assert_eq!(code, Some(0), "{text}");
    let first = text.lines().next().unwrap();
    let warning = "! enforcement.exemptions[0] would open the gateway to 3 tenants at once, more than 2 (brake.max_releases)";
    assert!(first.starts_with(warning) && first.contains("`confirm: 3`"), "{text}");
    assert!(text.ends_with("3 Apps were accused; 3 were blocked, 3 would be. 0 would differ.\n"), "{text}");
    let plan = Command::new(PROGRAM).arg("plan").current_dir(temp.path()).output().unwrap();
    let plan = String::from_utf8(plan.stdout).unwrap();
    assert!(plan.lines().any(|line| line.starts_with(warning)), "{plan}");
    let (code, text) = simulate(", confirm: 3");
    assert_eq!(code, Some(3), "{text}");
    assert!(text.ends_with("3 Apps were accused; 3 were blocked, 0 would be. 3 would differ.\n"), "{text}");
}

#[test]
fn bad_usage_is_exit_code_2_and_help_has_examples() {
    let temp = tempfile::tempdir().unwrap();
    // The program finds mistakes before it opens the port.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = taken.local_addr().unwrap().to_string();
    for args in [
        &["frobnicate"][..],
        &["run", "--no-such"],
        &["demo", "--nodes", "-1"],
        &["demo", "--fault", "hang"],
        &["demo", "--nodes", "2", "--fault", "no-such-fault"],
        &["demo", "--nodes", "1", "--fault", "hang:2"],
        &["agent", "--scan-interval", "0s"],
        &["agent", "--bind", &bind, "--rules", "no-such-file"],
        &["agent", "--bind", &bind, "--simulate", "1", "--script", "no-such-file"],
        &["agent", "--bind", &bind, "--simulate", "1", "--fault", "no-such-fault"],
        &["agent", "--bind", &bind, "--simulate", "1", "--fault", "hang:2"],
        &["agent", "--host-namespace", "default"],
    ] {
        let (code, stderr) = output(temp.path(), args);
        assert_eq!(code, Some(2), "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: "), "{stderr}");
    }
    let help = Command::new(PROGRAM).arg("--help").output().unwrap();
    let begins = "Collects forbidden-process reports from ProcScan agents, blocks the offending apps at the Higress gateway, \
                  and notifies their tenants.\n";
    assert!(String::from_utf8(help.stdout).unwrap().starts_with(begins));
    for command in ["run", "demo", "check-config", "agent"] {
        let help = Command::new(PROGRAM).args([command, "--help"]).output().unwrap();
        assert!(help.status.success());
        assert!(String::from_utf8(help.stdout).unwrap().contains("Example"), "{command}");
    }
}

#[test]
fn an_agent_warns_of_rules_without_processes_and_keywords() {
    let temp = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = taken.local_addr().unwrap().to_string();
    let rules = temp.path().join("rules.yaml");
    for (blacklist, is_empty) in [("processes: [], keywords: []", true), ("keywords: [pool]", false)] {
        std::fs::write(&rules, format!("detectionRules: {{blacklist: {{{blacklist}}}}}")).unwrap();
        let (code, stderr) =
            output(temp.path(), &["agent", "--bind", &bind, "--rules", rules.to_str().unwrap()]);
        assert_eq!(code, Some(1), "the port is taken: {stderr}");
        assert_eq!(stderr.contains("no process will be reported"), is_empty, "{blacklist}: {stderr}");
    }
}

#[test]
fn a_taken_port_is_a_clear_error() {
    let temp = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let (code, stderr) = output(temp.path(), &["demo", "--port", &port.to_string()]);
    assert_eq!(code, Some(1));
    let last = stderr.lines().last().unwrap();
    assert!(last.starts_with(&format!("error: can't listen on 127.0.0.1:{port}: ")), "{stderr}");
}

/// Whether a process has installed its handler for SIGTERM.
fn catches_sigterm(pid: u32) -> bool {
    const SIGTERM: u64 = 1 << 14;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(caught.trim(), 16).unwrap() & SIGTERM != 0
}

#[test]
fn a_signal_at_any_moment_ends_in_order_with_whole_files() {
    let temp = tempfile::tempdir().unwrap();
    // Delays after the handler is installed: at once, during the first round, and after it.
    for delay in [0, 10, 30, 60, 120, 250, 500, 900, 1400, 2100] {
        let directory = temp.path().join(delay.to_string());
        std::fs::create_dir(&directory).unwrap();
        let port = free_port().to_string();
        let args = [
            "demo", "--port", &port, "--dir", "objects", "--nodes", "40", "--fault", "hang:5", "--fault",
            "endless",
        ];
        let demo = Process::start(PROGRAM, &args, &directory);
        wait_for("the signal handler", Duration::from_secs(10), || {
            catches_sigterm(demo.0.id()).then_some(())
        });
        // The test is about this delay, so there is no condition to wait for.
        std::thread::sleep(Duration::from_millis(delay));
        let status = demo.terminate(Duration::from_secs(5));
        assert_eq!(status.code(), Some(0), "after {delay} ms: {status}");
        objects(&directory.join("objects"));
        let files = listing(&directory.join("objects"));
        assert!(files.iter().all(|name| !name.starts_with('.')), "{files:?}");
    }
}

#[test]
fn a_hang_up_does_not_end_the_service_and_has_the_configuration_read_again_each_time() {
    let temp = tempfile::tempdir().unwrap();
    let port = free_port();
    let text = format!(
        "discovery: {{mode: static, targets: [127.0.0.1:9]}}\noutput: {{mode: directory}}\n\
         aggregator: {{address: 127.0.0.1, port: {port}}}\n"
    );
    std::fs::write(temp.path().join("config.yaml"), text).unwrap();
    let service = Process::start(PROGRAM, &["run"], temp.path());
    let address = ([127, 0, 0, 1], port).into();
    wait_for("the API", Duration::from_secs(10), || try_get(address, "/health"));
    for times in 1..=2 {
        signal(service.0.id(), "HUP");
        wait_for("the log entry", Duration::from_secs(10), || {
            let log = std::fs::read_to_string(temp.path().join("stderr")).unwrap();
            let entries =
                log.lines().filter(|line| line.contains("the configuration has not changed")).count();
            assert!(entries <= times, "{log}");
            (entries == times).then_some(())
        });
        assert_eq!(try_get(address, "/health").unwrap().status, 200);
    }
    assert_eq!(service.terminate(Duration::from_secs(5)).code(), Some(0));
}

/// A closed terminal sends SIGHUP. After that every write to standard error fails.
#[test]
fn a_closed_terminal_does_not_end_the_service() {
    let temp = tempfile::tempdir().unwrap();
    let port = free_port();
    let text = format!(
        "discovery: {{mode: static, targets: [127.0.0.1:9]}}\noutput: {{mode: directory}}\n\
         aggregator: {{address: 127.0.0.1, port: {port}, scan_interval: 1s}}\ncollector: {{timeout: 1s, connect_timeout: 1s}}\n"
    );
    std::fs::write(temp.path().join("config.yaml"), text).unwrap();
    let mut run = Command::new(PROGRAM);
    run.arg("run").current_dir(temp.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut service = Process(run.spawn().unwrap());
    let address = ([127, 0, 0, 1], port).into();
    wait_for("the API", Duration::from_secs(10), || try_get(address, "/health"));
    drop(service.0.stderr.take());
    signal(service.0.id(), "HUP");
    let rounds = || get_json(address, "/readyz")["rounds"].as_u64();
    let first = rounds();
    wait_for("another round", Duration::from_secs(10), || (rounds() > first).then_some(()));
    assert_eq!(service.0.try_wait().unwrap(), None);
    assert_eq!(service.terminate(Duration::from_secs(5)).code(), Some(0));
}

#[test]
fn a_hang_up_ends_the_demo_in_order() {
    let temp = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut demo =
        Process::start(PROGRAM, &["demo", "--port", &port.to_string(), "--dir", "objects"], temp.path());
    wait_for("the API", Duration::from_secs(10), || try_get(([127, 0, 0, 1], port).into(), "/health"));
    signal(demo.0.id(), "HUP");
    let status = wait_for("the end", Duration::from_secs(5), || demo.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

#[test]
fn an_idle_client_does_not_delay_the_end() {
    let temp = tempfile::tempdir().unwrap();
    let port = free_port();
    let demo =
        Process::start(PROGRAM, &["demo", "--port", &port.to_string(), "--dir", "objects"], temp.path());
    let address = ([127, 0, 0, 1], port).into();
    wait_for("the API", Duration::from_secs(10), || try_get(address, "/health"));
    let _idle: Vec<_> = (0..20).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
    assert_eq!(demo.terminate(Duration::from_secs(5)).code(), Some(0));
}
