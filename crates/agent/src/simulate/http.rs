//! Requests and answers of HTTP/1.1.

use std::{borrow::Cow, time::Duration};

use jiff::Timestamp;

/// The parts of a request that matter.
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    /// Whether the connection may stay open after the answer.
    pub(super) keep: bool,
}

impl Request {
    /// Reads the head of a request.
    pub(super) fn parse(head: &str) -> Self {
        let mut lines = head.lines();
        let mut words = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        // Bodies are not read, so the connection can't be used after a request with a body.
        let ends = |line: &str| {
            let line = line.to_ascii_lowercase();
            let (name, value) = line.split_once(':').unwrap_or_default();
            match name {
                "connection" => value.contains("close"),
                "content-length" => value.trim() != "0",
                "transfer-encoding" => true,
                _ => false,
            }
        };
        let keep = !lines.any(ends) && words.next().as_deref() == Some("HTTP/1.1");
        Self { method, path, keep }
    }
}

/// An answer in pieces, which are made while the client reads, so that the whole answer is never in memory.
pub(super) type Pieces = Box<dyn Iterator<Item = Cow<'static, [u8]>> + Send>;

/// How an answer is sent.
pub(super) enum Play {
    /// All at once; the connection may stay open.
    Whole(Vec<u8>),
    /// All at once, later.
    After(Duration, Vec<u8>),
    /// One byte per interval.
    Drip(Duration, Vec<u8>),
    /// No answer, until the client closes.
    Silence,
    /// A reset instead of an answer.
    Reset,
    /// One piece after the other.
    Pieces(Pieces),
}

/// The header fields of all answers.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) date: Option<Timestamp>,
    pub(super) keep: bool,
}

impl Head {
    pub(super) fn json(&self, body: &[u8]) -> Vec<u8> {
        self.render("200 OK\r\nContent-Type: application/json", body)
    }

    pub(super) fn encoded(&self, encoding: &str, body: &[u8]) -> Vec<u8> {
        let lines = format!("200 OK\r\nContent-Type: application/json\r\nContent-Encoding: {encoding}");
        self.render(&lines, body)
    }

    /// A complete answer. `lines` is a status line without its version, possibly with header lines.
    pub(super) fn render(&self, lines: &str, body: &[u8]) -> Vec<u8> {
        self.assemble(lines, &format!("Content-Length: {}", body.len()), body)
    }

    /// The beginning of an answer whose length the header `framing` gives.
    pub(super) fn unsized_json(&self, framing: &str, start: &[u8]) -> Vec<u8> {
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
