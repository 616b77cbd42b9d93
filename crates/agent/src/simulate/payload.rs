//! The answer of each behaviour.

use serde_json::json;

use super::{
    behaviour::Behaviour,
    http::{Head, Play, Request},
    node::Node,
    stream,
};
use crate::record::{Record, encode};

/// The command line of [`Behaviour::HugeRecord`].
const HUGE: usize = 1024 * 1024;
/// The records of [`Behaviour::FloodLong`], and the bytes of each command line.
const LONG_RECORDS: (u32, usize) = (80, 62 * 1024);
/// The zeros of [`Behaviour::ZeroPadding`].
const PADDING: usize = 1024;

/// Decides how `node` answers `request`. With `keep`, the connection may stay open after the answer.
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
        Behaviour::Endless => Play::Pieces(stream::endless(&closing)),
        Behaviour::GzipBomb => Play::Pieces(stream::gzip_bomb(&closing)),
        Behaviour::ZstdBomb => Play::Pieces(stream::zstd_bomb(&closing)),
        Behaviour::ChunkExtensions => Play::Pieces(stream::chunk_extensions(&closing, &list)),
        Behaviour::GzipMembers => Play::Pieces(stream::gzip_members(&closing, &list)),
        Behaviour::LongCmdline(bytes) => {
            Play::Pieces(stream::long_cmdline(&closing, list, node.beside("long"), bytes))
        }
        Behaviour::Flood(records) => {
            Play::Pieces(stream::flood(&closing, &list, node.beside("flood"), records, 0))
        }
        Behaviour::FloodLong => {
            let (records, cmdline) = LONG_RECORDS;
            Play::Pieces(stream::flood(&closing, &list, node.beside("flood"), records, cmdline))
        }
        Behaviour::ZeroPadding => {
            let mut body = stream::gzip(&encode(&list));
            body.resize(body.len() + PADDING, 0);
            Play::Whole(head.encoded("gzip", &body))
        }
        Behaviour::XGzip => Play::Whole(head.encoded("x-gzip", &stream::gzip(&encode(&list)))),
        Behaviour::LoneSurrogates => whole(&stream::with_lone_surrogates(list)),
    }
}

/// Each kind of malformed element, with the good records in between.
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
