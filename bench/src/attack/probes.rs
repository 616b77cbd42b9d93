//! Probes as a kubelet sends them: a new connection each time, and only the time of the answer counts.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;

/// How often each path is asked for.
const PERIOD: Duration = Duration::from_millis(200);
/// A probe without an answer by then counts as unanswered.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer.
const MAX_ANSWER: usize = 64 << 10;

/// The answers of one path.
pub(super) struct Latencies {
    pub(super) name: &'static str,
    /// Whether the bar applies to it.
    pub(super) is_judged: bool,
    /// The times from when a probe was due to the end of its answer, ordered.
    pub(super) answered: Vec<Duration>,
    /// Probes without an answer, or with a wrong one.
    pub(super) failed: usize,
}

/// Sends probes until it is stopped. A bare socket in this process answers the same probes, because its delays show how much of
/// each delay the machine causes.
pub(super) fn run(port: u16, stop: &AtomicBool) -> anyhow::Result<Vec<Latencies>> {
    let bare = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let bare_port = bare.local_addr()?.port();
    let bare_thread = std::thread::spawn(move || answer_all(&bare));
    let probes = [
        ("GET /livez", port, "/livez", true),
        ("GET /readyz", port, "/readyz", true),
        ("a bare socket, likewise", bare_port, "/", false),
    ];
    let result = std::thread::scope(|scope| {
        let threads = probes.map(|(name, port, path, is_judged)| {
            let probe = move || {
                let (answered, failed) = probe(port, path, stop);
                Latencies { name, is_judged, answered, failed }
            };
            scope.spawn(probe)
        });
        let joined = threads.into_iter().map(|thread| thread.join().ok());
        joined.collect::<Option<Vec<_>>>().context("a probe has panicked")
    })?;
    // An empty connection ends it.
    drop(TcpStream::connect((Ipv4Addr::LOCALHOST, bare_port))?);
    let _ = bare_thread.join();
    Ok(result)
}

fn probe(port: u16, path: &str, stop: &AtomicBool) -> (Vec<Duration>, usize) {
    let (mut answered, mut failed) = (Vec::new(), 0);
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        match ask(port, path) {
            Ok(()) => answered.push(due.elapsed()),
            Err(_) => failed += 1,
        }
        // Probes that were due while this one waited for its answer are left out.
        while due <= Instant::now() {
            due += PERIOD;
        }
    }
    answered.sort_unstable();
    (answered, failed)
}

fn ask(port: u16, path: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        anyhow::ensure!(!left.is_zero() && answer.len() < MAX_ANSWER, "no end of the answer");
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer)? {
            0 => break,
            n => answer.extend_from_slice(buffer.get(..n).unwrap_or_default()),
        }
    }
    anyhow::ensure!(answer.starts_with(b"HTTP/1.1 200 "), "not ready");
    Ok(())
}

/// Answers until a connection without a request comes.
fn answer_all(listener: &TcpListener) {
    for mut stream in listener.incoming().map_while(Result::ok) {
        let mut request = [0; 1024];
        if !matches!(stream.read(&mut request), Ok(1..)) {
            return;
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_only_with_its_status() {
        let bare = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = bare.local_addr().unwrap().port();
        let thread = std::thread::spawn(move || answer_all(&bare));
        ask(port, "/").unwrap();
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap());
        thread.join().unwrap();
        assert!(ask(port, "/").is_err(), "the port is closed");

        let bad = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = bad.local_addr().unwrap().port();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = bad.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").unwrap();
        });
        assert!(ask(port, "/").is_err());
        thread.join().unwrap();
    }
}
