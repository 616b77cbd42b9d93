//! A client that returns answers as bytes.

use std::{io, net::SocketAddr, time::Duration};

use flate2::read::GzDecoder;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use crate::record::Record;

/// The longest time for an answer in a test.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct Answer {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a complete head");
        Self { head: String::from_utf8(bytes[..end].to_vec()).unwrap(), body: bytes[end + 4..].to_vec() }
    }

    pub(crate) fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn records(&self) -> Vec<Record> {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn unzipped(&self) -> Vec<u8> {
        let mut plain = Vec::new();
        io::Read::read_to_end(&mut GzDecoder::new(self.body.as_slice()), &mut plain).unwrap();
        plain
    }
}

/// Opens a connection and sends a request with extra header lines, each ended by CRLF.
pub(crate) async fn open(to: SocketAddr, request: &str, headers: &str) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let head = format!("{request} HTTP/1.1\r\nHost: node\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// Sends a request and reads until the server closes.
pub(crate) async fn ask_raw(to: SocketAddr, request: &str, headers: &str) -> io::Result<Vec<u8>> {
    let mut stream = open(to, request, &format!("Connection: close\r\n{headers}")).await;
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("an answer in time")?;
    Ok(bytes)
}

pub(crate) async fn ask(to: SocketAddr, request: &str, headers: &str) -> Answer {
    Answer::parse(&ask_raw(to, request, headers).await.unwrap())
}

pub(crate) async fn violations(of: SocketAddr) -> Answer {
    ask(of, "GET /api/violations", "").await
}

/// Reads until the server closes. Returns how many seconds that took, for tests whose clock is paused: it jumps to the
/// server's deadline.
pub(crate) async fn seconds_until_closed(mut stream: TcpStream) -> u64 {
    let start = Instant::now();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await.ok();
    assert_eq!(received, b"");
    start.elapsed().as_secs()
}
