//! Hostile clients of the API, in a process of their own.
//!
//! Each client repeats one behaviour. After an answer or a disconnection it waits, and opens another connection.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::TOKEN;
use crate::aggregator::API;
use crate::process::Running;

/// How long a client waits before its next connection.
const PAUSE: Duration = Duration::from_secs(1);
/// The same for a client that reads its answers, as an ordinary one does.
const READER_PAUSE: Duration = Duration::from_millis(200);
/// How often a client that withholds a part of its request sends a byte or another request.
const BEAT: Duration = Duration::from_secs(2);
/// How often a slow reader reads, and how many bytes.
const SLOW: (Duration, usize) = (Duration::from_millis(250), 512);
/// The longest time that a client uses one connection.
const LIFETIME: Duration = Duration::from_mins(1);
/// The receive buffer of a client that does not read, in bytes. A small one fills early, so that the server has to wait.
const SMALL: u32 = 4096;
/// The time within which all clients begin.
const SPREAD: Duration = Duration::from_secs(2);
/// How long the process has to start, or to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// The behaviour of a client.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Announces a body and does not send it, or sends a byte of it every [`BEAT`]. Half of the clients have a token. Two connections
    /// each.
    NoBody,
    /// Repeats a request and reads no answer. Two connections each.
    NoReading,
    /// Reads large answers a few bytes at a time.
    SlowReading,
    /// Sends a head without its end, a byte every [`BEAT`].
    HalfHead,
    /// Sends one request, and leaves the connection open.
    Idle,
    /// HTTP/1.1 with no Host, or with two.
    BadHost,
    /// Asks for lists without a `limit`, one after the other, and reads each answer to its end.
    Lists,
}

/// Each kind with its name, how many of a thousand clients are of it, and how many connections each has.
const KINDS: [(Kind, &str, usize, usize); 7] = [
    (Kind::NoBody, "no body comes", 200, 2),
    (Kind::NoReading, "nothing is read", 200, 2),
    (Kind::SlowReading, "read slowly", 200, 1),
    (Kind::HalfHead, "half a head", 200, 1),
    (Kind::Idle, "open and idle", 100, 1),
    (Kind::BadHost, "no Host, or two", 50, 1),
    (Kind::Lists, "whole lists", 50, 1),
];
/// The sum of these shares.
const OF: usize = 1000;

/// Large answers, asked for without a `limit`.
const LARGE: [&str; 3] = ["/api/v1/violations", "/api/v1/incidents", "/api/violations"];
const WHOLE: [&str; 5] =
    ["/api/v1/incidents", "/api/violations", "/api/v1/nodes", "/api/v1/violations", "/api/v1/decisions"];

#[derive(clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    port: u16,
    #[arg(long)]
    clients: usize,
}

/// The results of the connections of one kind.
#[derive(Default)]
struct Count {
    /// Connections that were made.
    opened: AtomicU64,
    /// Answers by the first digit of their status; those of another one are first.
    answers: [AtomicU64; 6],
    /// Connections that could not be made.
    failed: AtomicU64,
    bytes: AtomicU64,
}

impl Count {
    fn add(to: &AtomicU64, number: u64) {
        to.fetch_add(number, Ordering::Relaxed);
    }

    /// Notes the status of an answer that begins with `bytes`.
    fn answer(&self, bytes: &[u8]) {
        let digit = bytes.strip_prefix(b"HTTP/1.1 ").and_then(|rest| rest.first()).copied().unwrap_or(b'0');
        if let Some(answers) = self.answers.get(usize::from(digit.saturating_sub(b'0'))) {
            Self::add(answers, 1);
        }
    }

    fn row(&self, name: &str) -> String {
        let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let [_, _, ok, _, refused, busy] = &self.answers;
        format!(
            "| {name:<16} | {:>7} | {:>7} | {:>7} | {:>7} | {:>7} | {:>9.1} |",
            number(&self.opened),
            number(ok),
            number(refused),
            number(busy),
            number(&self.failed),
            super::megabytes(number(&self.bytes)),
        )
    }
}

/// Prints `ready` when all have begun. When its input ends, prints a table and ends.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn run(options: &Options) -> anyhow::Result<()> {
    // Each connection is a descriptor, and the usual limit is 1,024.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, options.port));
    let counts = KINDS.map(|_| Arc::new(Count::default()));
    let kinds = KINDS.iter().zip(&counts);
    let all: Vec<_> = kinds
        .flat_map(|((kind, _, share, connections), count)| {
            let number = options.clients * share / OF * connections;
            (0..number).map(move |at| Client { kind: *kind, number: at, address, count: count.clone() })
        })
        .collect();
    let pause = SPREAD / u32::try_from(all.len().max(1))?;
    for client in all {
        let cancel = cancel.clone();
        tasks.spawn(async move { cancel.run_until_cancelled(client.run()).await });
        sleep(pause).await;
    }
    println!("ready");
    // Ends with the process that has started it.
    tokio::task::spawn_blocking(|| io::stdin().lock().lines().map_while(Result::ok).count()).await?;
    cancel.cancel();
    tasks.close();
    tasks.wait().await;
    println!("| hostile clients  |  opened |     2xx |     4xx |     5xx |  failed |   MB read |");
    for ((_, name, ..), count) in KINDS.iter().zip(&counts) {
        println!("{}", count.row(name));
    }
    Ok(())
}

struct Client {
    kind: Kind,
    /// Its number among the clients of its kind.
    number: usize,
    address: SocketAddr,
    count: Arc<Count>,
}

impl Client {
    async fn run(self) {
        let pause = if self.kind == Kind::Lists { READER_PAUSE } else { PAUSE };
        for turn in self.number.. {
            // The server disconnects most clients, which is no error here.
            let _ = timeout(LIFETIME, self.act(turn)).await;
            sleep(pause).await;
        }
    }

    async fn act(&self, turn: usize) -> io::Result<()> {
        let is_even = turn.is_multiple_of(2);
        match self.kind {
            Kind::NoBody => self.withhold_body(turn).await,
            Kind::NoReading => self.ignore().await,
            Kind::SlowReading => self.read_slowly(pick(&LARGE, turn)).await,
            Kind::HalfHead => self.withhold_end().await,
            Kind::Idle => self.idle().await,
            Kind::BadHost => {
                let hosts = if is_even { "" } else { "Host: a\r\nHost: b\r\n" };
                let request = format!("GET /livez HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
                self.ask(&request).await
            }
            Kind::Lists => self.ask(&self.get(pick(&WHOLE, turn), "Connection: close\r\n")).await,
        }
    }

    fn get(&self, path: &str, headers: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", self.address)
    }

    async fn connect(&self, buffer: Option<u32>) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        if let Some(bytes) = buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let connected = socket.connect(self.address).await;
        Count::add(if connected.is_ok() { &self.count.opened } else { &self.count.failed }, 1);
        connected
    }

    /// Reads to the end, as fast as the bytes arrive.
    async fn drain(&self, stream: &mut TcpStream) -> io::Result<()> {
        let (mut buffer, mut is_first) = (vec![0; 64 << 10], true);
        loop {
            let n = stream.read(&mut buffer).await?;
            if n == 0 {
                return Ok(());
            }
            if std::mem::take(&mut is_first) {
                self.count.answer(buffer.get(..n).unwrap_or_default());
            }
            Count::add(&self.count.bytes, n as u64);
        }
    }

    async fn ask(&self, request: &str) -> io::Result<()> {
        let mut stream = self.connect(None).await?;
        stream.write_all(request.as_bytes()).await?;
        self.drain(&mut stream).await
    }

    async fn withhold_body(&self, turn: usize) -> io::Result<()> {
        let mut stream = self.connect(None).await?;
        let token =
            if turn.is_multiple_of(2) { format!("Authorization: Bearer {TOKEN}\r\n") } else { String::new() };
        let request = format!(
            "POST /api/v1/exemptions HTTP/1.1\r\nHost: {}\r\n{token}Content-Type: application/json\r\nContent-Length: 60000\r\n\r\n",
            self.address
        );
        stream.write_all(request.as_bytes()).await?;
        // Half of the clients with a token send a byte every [`BEAT`], and so do half of the others.
        let drips = turn & 2 == 0;
        self.beat(&mut stream, if drips { b" " } else { b"" }).await
    }

    async fn withhold_end(&self) -> io::Result<()> {
        let mut stream = self.connect(None).await?;
        let head = format!("GET /livez HTTP/1.1\r\nHost: {}\r\nX-Padding: ", self.address);
        stream.write_all(head.as_bytes()).await?;
        self.beat(&mut stream, b"x").await
    }

    /// Sends `bytes` every [`BEAT`], until there is an answer or the connection ends.
    async fn beat(&self, stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
        loop {
            match timeout(BEAT, stream.readable()).await {
                Ok(_) => return self.drain(stream).await,
                Err(_) => stream.write_all(bytes).await?,
            }
        }
    }

    /// Writes requests without reading an answer, until the connection ends.
    async fn ignore(&self) -> io::Result<()> {
        let mut stream = self.connect(Some(SMALL)).await?;
        let request = self.get("/api/violations", "");
        loop {
            stream.write_all(request.as_bytes()).await?;
            sleep(BEAT).await;
        }
    }

    async fn read_slowly(&self, path: &str) -> io::Result<()> {
        let mut stream = self.connect(Some(SMALL)).await?;
        stream.write_all(self.get(path, "Connection: close\r\n").as_bytes()).await?;
        let (pause, bytes) = SLOW;
        let (mut buffer, mut is_first) = (vec![0; bytes], true);
        loop {
            let n = stream.read(&mut buffer).await?;
            if n == 0 {
                return Ok(());
            }
            if std::mem::take(&mut is_first) {
                self.count.answer(buffer.get(..n).unwrap_or_default());
            }
            Count::add(&self.count.bytes, n as u64);
            sleep(pause).await;
        }
    }

    async fn idle(&self) -> io::Result<()> {
        let mut stream = self.connect(None).await?;
        stream.write_all(self.get("/livez", "").as_bytes()).await?;
        self.drain(&mut stream).await
    }
}

fn pick(paths: &[&'static str], turn: usize) -> &'static str {
    paths.get(turn % paths.len().max(1)).copied().unwrap_or("/")
}

/// The process of the clients.
pub(super) struct Clients {
    process: Running,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Clients {
    /// Starts it; returns when all clients have begun.
    pub(super) fn start(clients: usize) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("clients").stdin(Stdio::piped()).stdout(Stdio::piped());
        command.args(["--port", &API.to_string(), "--clients", &clients.to_string()]);
        let mut process = Running::start(&mut command)?;
        let input = process.child().stdin.take().context("a pipe")?;
        let output = process.child().stdout.take().context("a pipe")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let ready = lines.recv_timeout(PATIENCE).context("the clients do not start")?;
        anyhow::ensure!(ready == "ready", "invalid report of the clients: {ready}");
        Ok(Self { process, input, lines })
    }

    /// Ends it; returns its table.
    pub(super) fn stop(self) -> anyhow::Result<String> {
        let Self { process, input, lines } = self;
        drop(input);
        let mut table = String::new();
        for _ in 0..=KINDS.len() {
            let line = lines.recv_timeout(PATIENCE).context("the clients do not end")?;
            writeln!(table, "{line}")?;
        }
        drop(process);
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_clients_have_the_shares_of_their_kinds() {
        let shares = KINDS.map(|(_, _, share, _)| share);
        assert_eq!(shares.iter().sum::<usize>(), OF);
        let connections: usize = KINDS.iter().map(|(_, _, share, connections)| share * connections).sum();
        assert!(connections > 1024, "more than the aggregator serves at the same time");
    }

    #[test]
    fn answers_are_counted_by_status() {
        let count = Count::default();
        for answer in
            ["HTTP/1.1 200 OK", "HTTP/1.1 400 Bad Request", "HTTP/1.1 401 No", "HTTP/1.1 503 Busy", "?"]
        {
            count.answer(answer.as_bytes());
        }
        let row = count.row("x");
        let figures: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(figures[2..6], ["0", "1", "2", "1"]);
    }

    #[tokio::test]
    async fn a_client_announces_a_body_and_sends_none() {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let count = Arc::new(Count::default());
        let client = Client { kind: Kind::NoBody, number: 2, address, count: count.clone() };
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                assert!(stream.read_buf(&mut head).await.unwrap() > 0);
            }
            stream.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
            String::from_utf8(head).unwrap()
        };
        let (done, head) = tokio::join!(client.act(2), serve);
        done.unwrap();
        assert!(head.contains("Content-Length: 60000") && head.contains(TOKEN), "{head}");
        assert_eq!(count.answers[4].load(Ordering::Relaxed), 1);
    }
}
