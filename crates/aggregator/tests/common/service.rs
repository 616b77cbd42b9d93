//! The whole service with its state in a file, and a fleet that scans only at a call of `scan_now`. [`Outage`] has the checks for
//! a state that can't be written.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use procscan_agent::simulate::{Fleet, FleetOptions};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{PROGRAM, Process, free_port, get_json, try_get, wait_for};

pub const NODES: usize = 20;
pub const LIMIT: Duration = Duration::from_mins(1);

/// The runtime of the fleet.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A fleet whose nodes scan only at a call of `scan_now`, with a file of its targets and a configuration for the aggregator.
pub fn scene(directory: &Path) -> (Fleet, SocketAddr) {
    let options = FleetOptions {
        nodes: NODES,
        port: 0,
        scan_interval: Duration::ZERO,
        offenders_per_node: 1,
        ..FleetOptions::default()
    };
    let fleet = Fleet::start(options, &CancellationToken::new()).unwrap();
    let lines: Vec<String> =
        fleet.targets().iter().map(|(node, address)| format!("{address} node={node}")).collect();
    std::fs::write(directory.join("targets"), lines.join("\n") + "\n").unwrap();
    let port = free_port();
    std::fs::write(
        directory.join("config.yaml"),
        format!(
            "aggregator: {{address: 127.0.0.1, port: {port}, scan_interval: 1s}}\n\
             collector: {{timeout: 1s, connect_timeout: 1s}}\n\
             detection: {{clear_after: 3s, assumed_scan_interval: 1s}}\n\
             discovery: {{mode: file, file: targets}}\n\
             output: {{mode: directory, directory: objects}}\n\
             state: {{directory: state}}\n\
             brake: {{max_new_tenants: 1000, max_tenants_per_rule: 1000}}\n"
        ),
    )
    .unwrap();
    (fleet, ([127, 0, 0, 1], port).into())
}

pub fn start(directory: &Path) -> Process {
    start_by(&[], directory)
}

/// Starts the service through `way`: a program with its arguments that executes the rest of its command line.
pub fn start_by(way: &[&str], directory: &Path) -> Process {
    let whole = [way, &[PROGRAM, "run", "--config", "config.yaml"]].concat();
    Process::start(whole[0], &whole[1..], directory)
}

/// The closed Services, without the sentinel. There are none before the service has written its object.
pub fn closed(directory: &Path) -> BTreeSet<String> {
    // The service replaces the file atomically, so it is complete or does not exist yet.
    let file = directory.join("objects/wasmplugin_higress-system_procscan-violations.yaml");
    let Ok(text) = std::fs::read_to_string(file) else { return BTreeSet::new() };
    let object: Value = serde_saphyr::from_str(&text).unwrap();
    let services = object["spec"]["matchRules"][0]["service"].as_array().unwrap();
    services
        .iter()
        .filter_map(Value::as_str)
        .filter(|name| !name.ends_with(".invalid"))
        .map(str::to_owned)
        .collect()
}

/// A state that can't be written for a time. One App is blocked before. During the outage it becomes clean, and another App
/// offends. Afterwards the service blocks the other App instead.
pub struct Outage {
    fleet: Fleet,
    address: SocketAddr,
    directory: PathBuf,
    before: BTreeSet<String>,
    running: Option<Process>,
}

impl Outage {
    /// Starts the service by `way` and waits until the first App is blocked.
    pub fn after_a_block(way: &[&str], directory: &Path) -> Self {
        let (fleet, address) = scene(directory);
        fleet.scan_now(0);
        let running = Some(start_by(way, directory));
        wait_for("the first block", LIMIT, || (closed(directory).len() == 1).then_some(()));
        let before = closed(directory);
        Self { fleet, address, directory: directory.to_owned(), before, running }
    }

    pub fn pid(&self) -> u32 {
        self.running.as_ref().unwrap().0.id()
    }

    /// Kills the service with SIGKILL.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// Starts the service again, while it can't read its state.
    pub fn start(&mut self, way: &[&str]) {
        self.running = Some(start_by(way, &self.directory));
    }

    /// From now on the first App is clean, and the second one offends.
    pub fn replace_offender(&self) {
        self.fleet.set_offender_count(0, 0);
        (0..2).for_each(|node| self.fleet.scan_now(node));
    }

    /// The body of `/readyz`, once the service is ready.
    fn ready(&self) -> Option<Value> {
        let ready: Value = serde_json::from_str(&try_get(self.address, "/readyz")?.body).ok()?;
        (ready["status"] == "ready").then_some(ready)
    }

    /// Checks that `/readyz` and the log have an error with `text`. Meanwhile no App is blocked or released, and rounds go on.
    pub fn check_error(&self, text: &str) {
        let is_reported =
            |ready: &Value| ready["state"]["error"].as_str().is_some_and(|error| error.contains(text));
        let ready = wait_for("the error in /readyz", LIMIT, || self.ready().filter(is_reported));
        assert_eq!(ready["state"]["ok"], false, "{ready}");
        wait_for("the new violation", LIMIT, || {
            let list = get_json(self.address, "/api/v1/violations");
            let violations = list["violations"].as_array().unwrap();
            violations.iter().any(|violation| violation["namespace"] == "ns-sim-1").then_some(())
        });
        // The wait is three times `clear_after`.
        let rounds = |ready: &Value| ready["rounds"].as_u64().unwrap();
        let begun = rounds(&ready);
        wait_for("ten more rounds", LIMIT, || {
            self.fleet.scan_now(1);
            let ready = self.ready().expect("an answer of /readyz");
            assert_eq!(ready["state"]["ok"], false, "{ready}");
            assert_eq!(closed(&self.directory), self.before);
            (rounds(&ready) >= begun + 10).then_some(())
        });
        let alerts = self.alerts();
        assert!(alerts.iter().any(|alert| alert.contains(text)), "{text}: {alerts:#?}");
        // The service does not repeat the alert in each round.
        assert!(alerts.len() <= 3, "{alerts:#?}");
    }

    /// The alerts about the state in the log.
    fn alerts(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.directory.join("stderr")).unwrap();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .filter(|line| line["alert"] == "state")
            .map(|line| {
                assert_eq!(line["level"], "ERROR", "{line}");
                line.to_string()
            })
            .collect()
    }

    /// Checks that the service recovers by itself, carries out the waiting decisions, and persists them.
    pub fn check_recovery(&self) {
        wait_for("the block of the second App and the release of the first one", LIMIT, || {
            self.fleet.scan_now(1);
            let now = closed(&self.directory);
            (now.len() == 1 && now.is_disjoint(&self.before)).then_some(())
        });
        wait_for("the recovery in /readyz", LIMIT, || {
            self.ready().filter(|ready| ready["state"]["ok"] == true)
        });
        let decisions = get_json(self.address, "/api/v1/decisions");
        let decisions = decisions["decisions"].as_array().unwrap();
        let count = |kind: &str| decisions.iter().filter(|decision| decision["decision"] == kind).count();
        assert_eq!((count("blocked"), count("released")), (2, 1), "{decisions:#?}");
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.directory.join("stderr")).unwrap_or_default();
            let last = log.lines().count().saturating_sub(40);
            let last: Vec<&str> = log.lines().skip(last).collect();
            eprintln!("ready: {:?}\nlog:\n{}", self.ready(), last.join("\n"));
        }
    }
}
