//! What each behaviour puts on the wire.

use std::{sync::LazyLock, time::Duration};

use flate2::{Compress, Compression, Crc, FlushCompress};
use jiff::Timestamp;
use serde_json::json;

use super::{behaviour::Behaviour, node::Node, wire::Request};
use crate::record::{Record, encode};

/// The command line of [`Behaviour::HugeRecord`].
const HUGE: usize = 1024 * 1024;
/// The bomb's spaces come in this many blocks of [`BLOCK`].
const BLOCKS: u32 = 1024;
const BLOCK: usize = 1024 * 1024;

/// How an answer is played out on the socket.
pub(super) enum Play {
    /// All at once; the connection may live on.
    Whole(Vec<u8>),
    /// All at once, later.
    After(Duration, Vec<u8>),
    /// One byte per interval.
    Drip(Duration, Vec<u8>),
    /// Nothing, until the peer gives up.
    Silence,
    /// A reset instead of an answer.
    Reset,
    /// An opening, then the same block over and over, then an end.
    Repeat { opening: Vec<u8>, block: &'static [u8], times: u64, ending: Vec<u8> },
}

/// Decides how `node` answers `request`. `keep` says whether the connection may live on.
pub(super) fn play(node: &mut Node, request: &Request, keep: bool) -> Play {
    node.requests += 1;
    let head = Head { date: Some(node.clock()), keep };
    let status =
        |line: &str, extra: &str, text: &str| {
            Play::Whole(head.render(
                &format!("{line}\r\nContent-Type: text/plain; charset=utf-8{extra}"),
                text.as_bytes(),
            ))
        };
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/health") => Play::Whole(head.json(b"{\"status\":\"ok\"}\n")),
        ("GET", "/api/violations") => violations(node, &head),
        (_, "/health" | "/api/violations") => {
            status("405 Method Not Allowed", "\r\nAllow: GET", "Method not allowed\n")
        }
        _ => status("404 Not Found", "", "404 page not found\n"),
    }
}

fn violations(node: &Node, head: &Head) -> Play {
    let list = node.list();
    let closing = Head { keep: false, ..*head };
    let whole = |body: &[u8]| Play::Whole(head.json(body));
    match node.behaviour {
        Behaviour::Healthy
        | Behaviour::StaleTimestamps
        | Behaviour::OneAtATime
        | Behaviour::Restarted
        | Behaviour::Skewed(_) => whole(&encode(&list)),
        Behaviour::NoDate => Play::Whole(Head { date: None, ..*head }.json(&encode(&list))),
        Behaviour::Slow(delay) => Play::After(delay, closing.json(&encode(&list))),
        Behaviour::Drip(pause) => Play::Drip(pause, closing.json(&encode(&list))),
        Behaviour::Hang => Play::Silence,
        Behaviour::Reset => Play::Reset,
        Behaviour::Error500 => Play::Whole(head.render(
            "500 Internal Server Error\r\nContent-Type: text/plain; charset=utf-8",
            b"scan state unavailable\n",
        )),
        Behaviour::Garbage => whole(b"<html>\xff\xfe\x80 [{\"pod\": \x00 not json"),
        Behaviour::Null => whole(b"null\n"),
        Behaviour::Wrapped => {
            let list = encode(&list);
            whole(&[b"{\"violations\":".as_slice(), list.trim_ascii_end(), b"}\n"].concat())
        }
        Behaviour::MixedBad => whole(&mixed(&list)),
        Behaviour::HugeRecord => whole(&encode(&with_huge(list))),
        Behaviour::Redirect => Play::Whole(head.render("302 Found\r\nLocation: /elsewhere", b"")),
        Behaviour::Endless => Play::Repeat {
            opening: closing.unsized_json("Transfer-Encoding: chunked", b"1\r\n[\r\n"),
            block: &ENDLESS,
            times: u64::MAX,
            ending: Vec::new(),
        },
        Behaviour::GzipBomb => bomb(&closing),
        Behaviour::ZstdBomb => zstd_bomb(&closing),
    }
}

/// What all answers have in common.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) date: Option<Timestamp>,
    pub(super) keep: bool,
}

impl Head {
    fn json(&self, body: &[u8]) -> Vec<u8> {
        self.render("200 OK\r\nContent-Type: application/json", body)
    }

    /// A status line without its version, possibly followed by header lines, made into a whole answer.
    pub(super) fn render(&self, lines: &str, body: &[u8]) -> Vec<u8> {
        self.assemble(lines, &format!("Content-Length: {}", body.len()), body)
    }

    /// The beginning of an answer whose length is told by `framing`.
    fn unsized_json(&self, framing: &str, start: &[u8]) -> Vec<u8> {
        self.assemble("200 OK\r\nContent-Type: application/json", framing, start)
    }

    fn assemble(&self, lines: &str, framing: &str, start: &[u8]) -> Vec<u8> {
        let mut answer = format!("HTTP/1.1 {lines}\r\n{framing}\r\n");
        if let Some(date) = self.date {
            answer.push_str(&date.strftime("Date: %a, %d %b %Y %H:%M:%S GMT\r\n").to_string());
        }
        if !self.keep {
            answer.push_str("Connection: close\r\n");
        }
        answer.push_str("\r\n");
        let mut answer = answer.into_bytes();
        answer.extend_from_slice(start);
        answer
    }
}

/// Each kind of malformed element, with the good ones in between.
fn mixed(list: &[Record]) -> Vec<u8> {
    let bad = [
        json!(42),
        json!({"pod": "only-a-pod"}),
        json!({"pod": 7, "namespace": ["ns-a"], "process": {}, "timestamp": true}),
        json!(null),
        json!("a text"),
        json!([]),
    ];
    let mut elements: Vec<String> = Vec::new();
    for at in 0..bad.len().max(list.len()) {
        elements.extend(bad.get(at).map(ToString::to_string));
        let good = list.get(at).map(|record| encode(std::slice::from_ref(record)));
        elements.extend(
            good.map(|array| String::from_utf8_lossy(&array).trim().trim_matches(['[', ']']).to_owned()),
        );
    }
    format!("[{}]\n", elements.join(",")).into_bytes()
}

fn with_huge(mut list: Vec<Record>) -> Vec<Record> {
    let normal = list.first().cloned().unwrap_or_default();
    let pod = format!("{}-huge", normal.pod);
    list.push(Record { name: pod.clone(), pod, cmdline: "A".repeat(HUGE), ..normal });
    list
}

/// One chunk of records without end.
static ENDLESS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let record = super::node::offender(0, 0, 0, 1);
    let array = encode(&vec![record; 128]);
    let records = array.trim_ascii_end();
    let records = records.strip_prefix(b"[").and_then(|r| r.strip_suffix(b"]")).unwrap_or_default();
    let mut chunk = format!("{:x}\r\n", records.len() + 1).into_bytes();
    chunk.extend_from_slice(records);
    chunk.extend_from_slice(b",\r\n");
    chunk
});

/// One deflate block of spaces that ends on a byte and refers to nothing before it, so that it can be repeated.
static SPACES: LazyLock<(Vec<u8>, Crc)> = LazyLock::new(|| {
    let spaces = vec![b' '; BLOCK];
    let mut block = Vec::with_capacity(BLOCK / 256);
    let done =
        Compress::new(Compression::best(), false).compress_vec(&spaces, &mut block, FlushCompress::Full);
    debug_assert!(done.is_ok(), "memory can be compressed");
    let mut crc = Crc::new();
    crc.update(&spaces);
    (block, crc)
});

/// A MiB of spaces: 8 blocks that each say "128 KiB of this byte" (RFC 8878, section 3.1.1.2).
static ZSTD_SPACES: LazyLock<Vec<u8>> = LazyLock::new(|| b"\x02\x00\x10 ".repeat(8));

/// The same gigabyte of spaces in one zstd frame: four bytes for every 128 KiB.
fn zstd_bomb(head: &Head) -> Play {
    // The magic number, no checksum and no length, a window of 128 KiB; then both brackets as raw blocks of one byte.
    let start = b"\x28\xb5\x2f\xfd\x00\x38\x08\x00\x00[";
    let ending = b"\x09\x00\x00]".to_vec();
    let block: &'static [u8] = &ZSTD_SPACES;
    let length = start.len() + block.len() * BLOCKS as usize + ending.len();
    let framing = format!("Content-Encoding: zstd\r\nContent-Length: {length}");
    Play::Repeat { opening: head.unsized_json(&framing, start), block, times: BLOCKS.into(), ending }
}

/// `[`, a gigabyte of spaces, `]`: valid JSON, so that only a limit on what is decompressed can refuse it.
fn bomb(head: &Head) -> Play {
    let (block, spaces) = &*SPACES;
    let mut crc = Crc::new();
    crc.update(b"[");
    for _ in 0..BLOCKS {
        crc.combine(spaces);
    }
    crc.update(b"]");

    // The gzip header, and both brackets as stored blocks of one byte.
    let start = b"\x1f\x8b\x08\0\0\0\0\0\0\xff\0\x01\0\xfe\xff[";
    let mut ending = b"\x01\x01\0\xfe\xff]".to_vec();
    ending.extend_from_slice(&crc.sum().to_le_bytes());
    ending.extend_from_slice(&crc.amount().to_le_bytes());
    let length = start.len() + block.len() * BLOCKS as usize + ending.len();
    let framing = format!("Content-Encoding: gzip\r\nContent-Length: {length}");
    Play::Repeat { opening: head.unsized_json(&framing, start), block, times: BLOCKS.into(), ending }
}
