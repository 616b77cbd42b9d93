//! Shared parts of the tests of the whole program: an HTTP client, waits for a condition, and processes that end with their test.
#![allow(dead_code, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub mod crd;
pub mod service;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The program under test. `TEST_PROGRAM` may name another build of it when the tests are compiled.
pub const PROGRAM: &str = match option_env!("TEST_PROGRAM") {
    Some(program) => program,
    None => env!("CARGO_BIN_EXE_procscan-aggregator"),
};

/// An answer: status, head, body.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// The token of an account that may do everything, where a test has a token file.
pub const TOKEN: &str = "a-token-for-all-of-the-tests";

/// Requests `GET path` with [`TOKEN`]; `None` if there is no answer.
pub fn try_get(address: SocketAddr, path: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

pub fn get(address: SocketAddr, path: &str) -> Answer {
    try_get(address, path).unwrap_or_else(|| panic!("no answer from {address}{path}"))
}

pub fn get_json(address: SocketAddr, path: &str) -> Value {
    let answer = get(address, path);
    serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{path}: {e}: {}", answer.body))
}

/// Waits until `check` returns a value. After `limit` it panics with `what`.
pub fn wait_for<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A port of 127.0.0.1 on which no process listens at the moment.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A child process that is killed at the end of its test.
pub struct Process(pub Child);

impl Process {
    pub fn start(program: impl AsRef<Path>, args: &[&str], directory: &Path) -> Self {
        let mut command = Command::new(program.as_ref());
        command.args(args).current_dir(directory).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(std::fs::File::create(directory.join("stderr")).unwrap());
        Self(command.spawn().unwrap_or_else(|e| panic!("{}: {e}", program.as_ref().display())))
    }

    /// Sends SIGTERM, and waits for the exit status.
    pub fn terminate(mut self, limit: Duration) -> ExitStatus {
        signal(self.0.id(), "TERM");
        wait_for("the process to end", limit, || self.0.try_wait().unwrap())
    }

    /// Peak resident memory, in KiB.
    pub fn peak_memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a signal to a process that the test has started.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().unwrap();
    assert!(status.success());
}

/// The names of the files in a directory, ordered, without the lock file of the output.
pub fn listing(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != ".procscan.lock");
    names.sort();
    names
}

/// The objects of a directory. Panics if a file is not valid YAML.
pub fn objects(directory: &Path) -> Vec<Value> {
    let read = |name: String| {
        let text = match std::fs::read_to_string(directory.join(&name)) {
            // The output has deleted it since it was listed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            text => text.unwrap(),
        };
        Some(serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{name} is no valid YAML: {e}")))
    };
    listing(directory).into_iter().filter(|name| !name.starts_with('.')).filter_map(read).collect()
}

/// The Services in the rule of the WasmPlugin of a directory.
pub fn blocked_services(directory: &Path) -> Vec<String> {
    objects(directory)
        .iter()
        .filter(|object| object["kind"] == "WasmPlugin")
        .flat_map(|object| object["spec"]["matchRules"][0]["service"].as_array().unwrap().clone())
        .map(|service| service.as_str().unwrap().to_owned())
        .collect()
}
