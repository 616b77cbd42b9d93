//! An unreachable API server: `/readyz` and the log report it with its address. They report its recovery too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use common::{PROGRAM, Process, free_port, try_get, wait_for};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_mins(1);

/// Writes the configuration of a service with static targets, whose API server is at port `api`.
fn configure(directory: &Path, port: u16, api: u16) {
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://127.0.0.1:{api}")}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
    });
    std::fs::write(directory.join("kubeconfig"), kubeconfig.to_string()).unwrap();
    let config = format!(
        "aggregator: {{address: 127.0.0.1, port: {port}, scan_interval: 1s}}\n\
         collector: {{timeout: 1s, connect_timeout: 1s}}\n\
         discovery: {{mode: static, targets: [127.0.0.1:9]}}\n\
         kubernetes: {{kubeconfig: kubeconfig, request_timeout: 1s}}\n\
         api: {{auth: none}}\n"
    );
    std::fs::write(directory.join("config.yaml"), config).unwrap();
}

/// Answers every request with 404.
fn answer(listener: TcpListener) {
    let body =
        json!({"kind": "Status", "status": "Failure", "message": "no", "reason": "NotFound", "code": 404});
    let body = body.to_string();
    let head =
        "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length:";
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            // A client may close the connection before its request is complete.
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let _ = write!(stream, "{head} {}\r\n\r\n{body}", body.len());
        }
    });
}

#[test]
fn an_unreachable_api_server_is_reported_with_its_address_and_since_when() {
    let temp = tempfile::tempdir().unwrap();
    let (port, api) = (free_port(), free_port());
    configure(temp.path(), port, api);
    let service = Process::start(PROGRAM, &["run"], temp.path());
    let address = ([127, 0, 0, 1], port).into();
    let ready = || {
        let ready: Value = serde_json::from_str(&try_get(address, "/readyz")?.body).ok()?;
        (ready["status"] == "ready").then_some(ready)
    };
    let log = || std::fs::read_to_string(temp.path().join("stderr")).unwrap();
    let ready_after = |is: bool| {
        wait_for("the API server's state in /readyz", LIMIT, || {
            ready().filter(|it| it["api_server"]["ok"] == is)
        })
    };

    let lost = ready_after(false);
    let at = format!("127.0.0.1:{api}");
    assert_eq!(lost["api_server"]["address"], *at, "{lost}");
    let since: jiff::Timestamp = lost["api_server"]["since"].as_str().unwrap().parse().unwrap();
    assert!(since <= jiff::Timestamp::now());
    let begins = format!("the API server at {at} can't be reached since ");
    for part in ["api_server", "evidence", "output"] {
        assert_eq!(lost[part]["ok"], false, "{part}: {lost}");
        let error = lost[part]["error"].as_str().unwrap();
        assert!(error.starts_with(&begins) && error.contains("Connection refused"), "{part}: {error}");
    }
    // The parts that have sent requests name the address too.
    for part in ["state", "leader"] {
        let error = lost[part]["error"].as_str().unwrap();
        assert!(error.contains(&format!("the API server can't be reached at {at}: ")), "{part}: {error}");
    }

    answer(TcpListener::bind(("127.0.0.1", api)).unwrap());
    let back = ready_after(true);
    assert_eq!(back["api_server"], json!({"ok": true, "address": at}));
    assert_eq!(back["evidence"]["ok"], true, "{back}");
    wait_for("the log entry", LIMIT, || log().contains("the API server can be reached again").then_some(()));
    let lines = |text: &str| log().lines().filter(|line| line.contains(text)).count();
    assert_eq!(lines(r#""alert":"api_server""#), 1, "{}", log());
    assert_eq!(lines("the API server can be reached again"), 1, "{}", log());
    assert_eq!(service.terminate(Duration::from_secs(10)).code(), Some(0));
}
