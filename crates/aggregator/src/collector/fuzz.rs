//! Laws of asking an agent, for any bytes that come back over the connection.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a broken law stops the run")]

use std::io::{self, Write};
use std::pin::Pin;
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll};
use std::time::Duration;

use procscan_core::report::{self, Limits, Outcome};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::runtime::{Builder, Runtime};

use super::body::{Deadline, RequestContext};
use super::client::{Client, ClientOptions};

/// Small enough to be exceeded by the text of a small answer.
const MAX_READ: usize = 16 << 10;
/// Small enough for many inputs to be decoded in pieces.
const SMALL: usize = 200;
const LIMITS: Limits = Limits { records: 6, bytes: 1200, process: 12, cmdline: 24, field: 40 };

/// Where large answers are decoded.
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads"));

/// Laws of an answer as it comes over the wire, and of one whose body is the input.
///
/// # Panics
/// Panics if a law is broken.
pub fn http(input: &[u8]) {
    let client = Client::new(ClientOptions {
        path: "/".to_owned(),
        connect_timeout: Duration::ZERO,
        timeout: Duration::ZERO,
        max_read: MAX_READ,
        small: SMALL,
        byte_budget: 8 << 20,
        limits: LIMITS,
    });
    however_it_arrives(&client, input);
    framed(&client, input);
}

/// How the network cuts an answer into pieces does not change the result.
fn however_it_arrives(client: &Client, input: &[u8]) {
    let whole = ask(client, input, input.len().max(1), input.len()).1;
    let cut = input.last().map_or(0, |byte| usize::from(*byte) * input.len() / 256);
    for (first, then) in [(cut, input.len().max(1)), (1, 1), (cut, 7)] {
        assert_eq!(ask(client, input, then, first).1, whole, "{first} bytes first, then {then} at a time");
    }
}

/// A body arrives as it was sent, in any coding and framing. A body that breaks off is never taken for whole.
fn framed(client: &Client, body: &[u8]) {
    let way = body.first().copied().unwrap_or(0);
    let parts = body.chunks((body.len() / (1 + usize::from(way % 4))).max(1)).chain([&[][..]]);
    let (coding, sent) = match way % 3 {
        0 => ("identity", body.to_vec()),
        // In several members or frames, empty ones among them, and with zeros behind the last member.
        1 => {
            let mut members: Vec<u8> = parts.clone().flat_map(gzip).collect();
            members.resize(members.len() + usize::from(way % 7), 0);
            ("gzip", members)
        }
        _ => ("zstd", parts.clone().flat_map(|part| zstd::encode_all(part, 1).expect("memory")).collect()),
    };
    let head = format!("HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\n");
    let mut answer = head.clone().into_bytes();
    let ends_by_closing = way % 5 == 0;
    let is_chunked = way % 5 > 2;
    if is_chunked {
        answer.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    } else if !ends_by_closing {
        answer.extend_from_slice(format!("Content-Length: {}\r\n", sent.len()).as_bytes());
    }
    answer.extend_from_slice(b"\r\n");
    if is_chunked {
        for chunk in sent.chunks(usize::from(way).max(1)) {
            answer.extend_from_slice(format!("{:x};a=b\r\n", chunk.len()).as_bytes());
            answer.extend_from_slice(chunk);
            answer.extend_from_slice(b"\r\n");
        }
        answer.extend_from_slice(b"0\r\nt: u\r\n\r\n");
    } else {
        answer.extend_from_slice(&sent);
    }
    let (outcome, text) = ask(client, &answer, answer.len(), answer.len());
    let (expected, result) = report::decode(body, &LIMITS);
    match outcome {
        Some(Outcome::Complete(answer)) => {
            assert_eq!(result, Ok(()));
            assert_eq!((answer.records, answer.rejected), (expected.records, expected.rejected));
        }
        Some(Outcome::Partial(answer, _)) => {
            assert_eq!((answer.records, answer.rejected), (expected.records, expected.rejected));
        }
        _ => assert!(result.is_err() && expected.records.is_empty() || body.len() > MAX_READ, "{text}"),
    }
    // If the framing shows the end, not even the last byte may be missing.
    if !ends_by_closing {
        let last = answer.len() - 1;
        for cut in [last, head.len() + (last - head.len()) / 2] {
            let part = answer.get(..cut).unwrap_or_default();
            let (outcome, text) = ask(client, part, part.len().max(1), part.len());
            assert!(!matches!(outcome, Some(Outcome::Complete(_))), "whole after {cut} bytes: {text}");
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

/// The outcome of an answer that arrives in pieces: `first` bytes, then `then` at a time. As a value, and with its tag as text.
fn ask(client: &Client, answer: &[u8], then: usize, first: usize) -> (Option<Outcome>, String) {
    let stream = tokio::io::join(Pieces { rest: answer, next: first, then }, tokio::io::sink());
    let has_begun = AtomicBool::default();
    let exchange = async {
        let deadline = Deadline::after(Duration::from_mins(5));
        let context = RequestContext { address: "a", is_on_probation: false, deadline };
        client.exchange(stream, b"GET /".to_vec(), Some("\"a\""), context, &has_begun).await
    };
    match RUNTIME.block_on(exchange) {
        Ok(exchange) => {
            let text = format!("{:?} {:?}", exchange.outcome, exchange.etag);
            (Some(exchange.outcome), text)
        }
        Err(failure) => (None, format!("{failure:?}")),
    }
}

struct Pieces<'a> {
    rest: &'a [u8],
    next: usize,
    then: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wanted = if self.next == 0 { self.then } else { self.next };
        let (piece, rest) = self.rest.split_at(wanted.min(buffer.remaining()).min(self.rest.len()));
        buffer.put_slice(piece);
        self.next = wanted - piece.len();
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}
