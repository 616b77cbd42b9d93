//! Operator commands with a real service: their output, and their entries in the log of decisions, also after a restart.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::service::{LIMIT, closed, runtime, scene, start};
use common::{PROGRAM, Process, TOKEN, get_json, try_get, wait_for};
use serde_json::Value;

/// A service with an operator's token, one blocked App, and one App that a brake holds.
fn stage(directory: &Path) -> (procscan_agent::simulate::Fleet, SocketAddr, Process) {
    let (fleet, address) = scene(directory);
    let config = std::fs::read_to_string(directory.join("config.yaml")).unwrap();
    let config = config.replace("max_new_tenants: 1000", "max_new_tenants: 1");
    std::fs::write(directory.join("config.yaml"), format!("{config}api: {{token_file: tokens}}\n")).unwrap();
    std::fs::write(directory.join("tokens"), format!("alice {TOKEN}\n")).unwrap();
    fleet.scan_now(0);
    let service = start(directory);
    wait_for("the block", LIMIT, || (closed(directory).len() == 1).then_some(()));
    fleet.scan_now(1);
    wait_for("the hold", LIMIT, || {
        let held = get_json(address, "/api/v1/incidents?state=held");
        (held["total"] == 1).then_some(())
    });
    (fleet, address, service)
}

/// The exit code of a command, and all that it prints.
fn operate(address: SocketAddr, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(PROGRAM);
    command.args(args).env("PROCSCAN_URL", format!("http://{address}")).env("PROCSCAN_TOKEN", TOKEN);
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.code(), text)
}

fn done(address: SocketAddr, args: &[&str]) -> String {
    let (code, text) = operate(address, args);
    assert_eq!(code, Some(0), "{args:?}: {text}");
    text
}

#[test]
fn a_release_prints_what_it_has_changed_and_until_when() {
    let runtime = runtime();
    let _context = runtime.enter();
    let temp = tempfile::tempdir().unwrap();
    let (_fleet, address, service) = stage(temp.path());
    let app = |state: &str| {
        let all = get_json(address, &format!("/api/v1/incidents?state={state}"));
        let app = &all["incidents"][0]["app"];
        format!("{}/{}/{}", app["namespace"], app["type"], app["name"]).replace('"', "")
    };
    let (blocked, held) = (app("blocked"), app("held"));
    let until = "2035-01-01T00:00:00Z";
    let release = |app: &str| done(address, &["release", app, "--until", until, "--reason", "a false alarm"]);
    for (app, what) in [
        (&blocked, "it was blocked, and the gateway opens to it again"),
        (&held, "a brake held its block; it is not blocked"),
        // A second release of the same App only prolongs the first one.
        (&blocked, "it was not blocked, and is not blocked for these accusations"),
    ] {
        let text = release(app);
        let begins = format!("released: {app} until {until}; {what} (incident {}", &app[..8]);
        assert!(text.starts_with(&begins) && text.lines().count() == 1, "{text}");
    }
    // Without a date it lasts for 30 days.
    let text = done(address, &["release", &held]);
    assert!(text.starts_with(&format!("released: {held} until 20")), "{text}");
    let (code, text) = operate(address, &["release", "ns-sim-9/web"]);
    assert_eq!(code, Some(1));
    assert!(text.starts_with("error: there is no open incident of ns-sim-9/web"), "{text}");
    assert_eq!(service.terminate(Duration::from_secs(10)).code(), Some(0));
}

/// The entries of the log of decisions without an App, latest first: kind, exemption, actor, reason.
fn declared(address: SocketAddr) -> Vec<[String; 4]> {
    let log = get_json(address, "/api/v1/decisions?limit=1000");
    let entries = log["decisions"].as_array().unwrap().iter().filter(|entry| entry.get("app").is_none());
    let text = |entry: &Value, member: &str| entry[member].as_str().unwrap_or_default().to_owned();
    entries
        .map(|entry| ["decision", "exemption", "actor", "reason"].map(|member| text(entry, member)))
        .collect()
}

#[test]
fn the_mode_and_exemptions_are_in_the_log_of_decisions_and_outlast_a_kill() {
    let runtime = runtime();
    let _context = runtime.enter();
    let temp = tempfile::tempdir().unwrap();
    let (_fleet, address, service) = stage(temp.path());
    assert_eq!(declared(address), Vec::<[String; 4]>::new());
    done(address, &["pause", "--reason", "a bad rule"]);
    done(address, &["mode", "dry-run"]);
    done(address, &["resume", "--reason", "mended"]);
    let exempt =
        ["exempt", "--namespace", "ns-a", "--process", "/^nmap/", "--reason", "tests", "--id", "red"];
    done(address, &exempt);
    done(address, &["exempt", "--remove", "red"]);
    let expected = [
        [
            "exemption_removed",
            "red",
            "Exemption red is removed; it was namespace=ns-a process=/^nmap/, for ever",
        ],
        ["exemption_made", "red", "Exemption red: namespace=ns-a process=/^nmap/, for ever («tests»)"],
        ["resumed", "", "the mode of the configuration counts («mended»)"],
        ["mode_changed", "", "everything is decided, nothing is touched"],
        ["paused", "", "existing blocks stay, nothing new is blocked («a bad rule»)"],
    ];
    let expected =
        expected.map(|[kind, exemption, reason]| [kind, exemption, "alice", reason].map(str::to_owned));
    assert_eq!(declared(address), expected);
    let table = done(address, &["decisions", "--decision", "paused"]);
    let row = table.lines().nth(1).unwrap();
    assert!(row.contains("(all)") && row.contains("paused") && row.contains("alice"), "{table}");
    let of_exemption = done(address, &["decisions", "--decision", "exemption_made"]);
    assert!(of_exemption.contains("(exemption red)"), "{of_exemption}");
    // The log of a tenant has none of these entries.
    let of_tenant = get_json(address, "/api/v1/decisions?namespace=ns-sim-0");
    assert!(
        of_tenant["decisions"]
            .as_array()
            .unwrap()
            .iter()
            .all(|entry| entry["app"]["namespace"] == "ns-sim-0")
    );

    // Dropping the process sends SIGKILL.
    drop(service);
    let service = start(temp.path());
    wait_for("the API", LIMIT, || try_get(address, "/health"));
    assert_eq!(declared(address), expected);
    assert_eq!(service.terminate(Duration::from_secs(10)).code(), Some(0));
}
