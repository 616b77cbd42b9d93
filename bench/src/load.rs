//! Requests one URL over persistent connections, from one thread. Each measured server gets the same load.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

/// How much is read at once: it fits into a core's cache.
const BUFFER: usize = 256 << 10;
/// The longest head of an answer.
const MAX_HEAD: usize = 16 << 10;
const PATIENCE: Duration = Duration::from_secs(10);

/// The request, and how many connections send it.
pub(crate) struct Load<'a> {
    pub(crate) port: u16,
    pub(crate) path: &'a str,
    /// Further headers, each with its end of line.
    pub(crate) headers: &'a str,
    pub(crate) status: u16,
    /// The length of each body; `None` accepts any.
    pub(crate) length: Option<usize>,
    pub(crate) connections: usize,
    /// Requests per second on a schedule, which late answers do not delay. `None`: each request follows the answer before it.
    pub(crate) per_second: Option<u32>,
}

/// The answers of a load.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) took: Duration,
    pub(crate) bytes: u64,
    /// The times from when a request was due to the last byte of its answer, ordered.
    pub(crate) latencies: Vec<Duration>,
}

/// One answer as a whole.
pub(crate) struct Answer {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
}

impl Load<'_> {
    fn request(&self) -> String {
        let Self { path, headers, .. } = self;
        format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n{headers}\r\n")
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Asks once, and returns the whole answer.
    pub(crate) fn once(&self) -> anyhow::Result<Answer> {
        let mut stream = std::net::TcpStream::connect(self.address())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(self.request().as_bytes())?;
        let (mut bytes, mut buffer) = (Vec::new(), vec![0; BUFFER]);
        let end = loop {
            if let Some(end) = end_of_head(&bytes) {
                break end;
            }
            let n = stream.read(&mut buffer)?;
            anyhow::ensure!(n > 0, "the connection is closed");
            bytes.extend_from_slice(buffer.get(..n).unwrap_or_default());
        };
        let mut body = bytes.split_off(end);
        let head = String::from_utf8(bytes)?;
        let Head { status, length } = Head::of(&head)?;
        anyhow::ensure!(status == self.status, "{status} instead of {}:\n{head}", self.status);
        let missing = length.saturating_sub(body.len());
        stream.take(u64::try_from(missing)?).read_to_end(&mut body)?;
        anyhow::ensure!(body.len() == length, "{} bytes instead of {length}", body.len());
        Ok(Answer { head, body })
    }

    /// Asks for `duration`, or until `stop` is set.
    pub(crate) fn run(&self, duration: Duration, stop: &AtomicBool) -> anyhow::Result<Outcome> {
        let request = self.request();
        let mut poll = Poll::new()?;
        let mut events = Events::with_capacity(self.connections);
        let mut all = Vec::new();
        for token in 0..self.connections {
            // The figures do not include the time of the connection, which is short over loopback.
            let stream = std::net::TcpStream::connect(self.address())?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(token), Interest::READABLE)?;
            all.push(Connection { stream, reading: Reading::Nothing, due: Instant::now() });
        }
        let mut buffer = vec![0; BUFFER];
        let mut outcome = Outcome::default();
        let started = Instant::now();
        let mut idle: VecDeque<usize> = (0..self.connections).collect();
        let mut asked: u32 = 0;
        while started.elapsed() < duration && !stop.load(Ordering::Relaxed) {
            let mut wait = PATIENCE;
            while let Some(token) = idle.front().copied() {
                let due = match self.per_second {
                    None => Instant::now(),
                    Some(rate) => started + Duration::from_secs(1) * asked / rate,
                };
                wait = due.saturating_duration_since(Instant::now());
                if !wait.is_zero() {
                    break;
                }
                wait = PATIENCE;
                idle.pop_front();
                all.get_mut(token).context("a connection")?.ask(&request, due)?;
                asked += 1;
            }
            poll.poll(&mut events, Some(wait.min(duration.saturating_sub(started.elapsed()))))?;
            for event in &events {
                let Token(token) = event.token();
                let Some(connection) = all.get_mut(token) else { continue };
                if connection.read(self, &mut buffer, &mut outcome)? {
                    if self.per_second.is_none() {
                        connection.ask(&request, Instant::now())?;
                        asked += 1;
                    } else {
                        idle.push_back(token);
                    }
                }
            }
        }
        outcome.took = started.elapsed();
        outcome.latencies.sort_unstable();
        anyhow::ensure!(!outcome.latencies.is_empty(), "no answer in {:?}", outcome.took);
        Ok(outcome)
    }
}

struct Connection {
    stream: TcpStream,
    reading: Reading,
    due: Instant,
}

enum Reading {
    Nothing,
    /// The received part of the head.
    Head(Vec<u8>),
    /// How much of the body is missing.
    Body(usize),
}

impl Connection {
    fn ask(&mut self, request: &str, due: Instant) -> anyhow::Result<()> {
        // A request is far smaller than the kernel's send buffer.
        self.stream.write_all(request.as_bytes())?;
        (self.reading, self.due) = (Reading::Head(Vec::new()), due);
        Ok(())
    }

    /// Reads the bytes that have arrived. Returns whether the answer is whole now.
    fn read(&mut self, load: &Load<'_>, buffer: &mut [u8], outcome: &mut Outcome) -> anyhow::Result<bool> {
        loop {
            let n = match self.stream.read(buffer) {
                Ok(0) => anyhow::bail!("the connection is closed"),
                Ok(n) => n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            let is_all = n < buffer.len();
            let bytes = buffer.get(..n).unwrap_or_default();
            if self.take(bytes, load, outcome)? {
                outcome.latencies.push(self.due.elapsed());
                self.reading = Reading::Nothing;
                return Ok(true);
            }
            // The next event comes with more bytes.
            if is_all {
                return Ok(false);
            }
        }
    }

    /// Whether these bytes end the answer.
    fn take(&mut self, bytes: &[u8], load: &Load<'_>, outcome: &mut Outcome) -> anyhow::Result<bool> {
        let (missing, body) = match &mut self.reading {
            Reading::Nothing => anyhow::bail!("an answer without a request"),
            Reading::Body(missing) => (*missing, bytes.len()),
            Reading::Head(head) => {
                head.extend_from_slice(bytes.get(..bytes.len().min(MAX_HEAD)).unwrap_or_default());
                let Some(end) = end_of_head(head) else {
                    anyhow::ensure!(head.len() < MAX_HEAD, "a head without end");
                    return Ok(false);
                };
                let before = head.len() - bytes.len().min(MAX_HEAD);
                let text = std::str::from_utf8(head.get(..end).unwrap_or_default())?;
                let Head { status, length } = Head::of(text)?;
                anyhow::ensure!(status == load.status, "{status} instead of {}:\n{text}", load.status);
                let is_right = load.length.is_none_or(|wanted| wanted == length);
                anyhow::ensure!(is_right, "a body of {length} bytes instead of {:?}", load.length);
                (length, bytes.len() - (end - before))
            }
        };
        anyhow::ensure!(body <= missing, "a body longer than its Content-Length");
        outcome.bytes += u64::try_from(body)?;
        self.reading = Reading::Body(missing - body);
        Ok(body == missing)
    }
}

/// The head of an answer, as far as it matters.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    length: usize,
}

impl Head {
    fn of(head: &str) -> anyhow::Result<Self> {
        let status: u16 = head
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .context("not an answer")?;
        let length = match (status, header(head, "content-length")) {
            // A 304 may name the length of a body that it does not send.
            (304, _) => 0,
            (_, Some(length)) => length.parse()?,
            (_, None) => anyhow::bail!("a body of unknown length:\n{head}"),
        };
        Ok(Self { status, length })
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let named = |line: &'a str| line.split_once(':').filter(|(key, _)| key.eq_ignore_ascii_case(name));
    head.lines().find_map(named).map(|(_, value)| value.trim())
}

/// Where the body begins.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Load<'static> = Load {
        port: 0,
        path: "/",
        headers: "",
        status: 200,
        length: Some(5),
        connections: 1,
        per_second: None,
    };

    /// Whether an answer that comes in these pieces is whole, and how long its body is.
    fn take(pieces: &[&str]) -> anyhow::Result<(bool, u64)> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        let reading = Reading::Head(Vec::new());
        let mut connection = Connection { stream, reading, due: Instant::now() };
        let (mut outcome, mut is_whole) = (Outcome::default(), false);
        for piece in pieces {
            is_whole = connection.take(piece.as_bytes(), &LOAD, &mut outcome)?;
        }
        Ok((is_whole, outcome.bytes))
    }

    #[test]
    fn an_answer_in_any_pieces_is_complete_with_its_last_byte() {
        let whole = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
        for cut in 1..whole.len() {
            let (a, b) = whole.split_at(cut);
            assert!(!take(&[a]).unwrap().0, "{cut}");
            assert_eq!(take(&[a, b]).unwrap(), (true, 5), "{cut}");
        }
    }

    #[test]
    fn a_wrong_answer_is_an_error() {
        for bad in [
            "HTTP/1.1 500 Oh\r\ncontent-length: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello!",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "SSH-2.0-x\r\n\r\n",
        ] {
            assert!(take(&[bad]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn not_modified_has_no_body_despite_a_content_length() {
        let head = Head::of("HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n").unwrap();
        assert_eq!(head, Head { status: 304, length: 0 });
    }
}
