//! Gives a body to the answers of the HTTP parser.
//!
//! The parser of `hyper` refuses a request that is no valid HTTP, and one whose head is too large, before the API sees it. Its
//! answer has no body, and ends the connection. It is the first that is written after the request, and in one piece.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::http::StatusCode;
use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::api::problem::Problem;
use crate::counters::Counters;

/// The longest head of an answer without a body.
const MAX_HEAD: usize = 512;
const NO_BODY: &str = "content-length: 0";

/// A stream that replaces the refusals of the parser by problems.
#[derive(Debug)]
pub(super) struct Explained<S> {
    stream: S,
    counters: Counters,
    /// What is left to write of a replaced answer.
    left: Bytes,
    /// How many bytes it replaces.
    replaces: usize,
}

impl<S> Explained<S> {
    pub(super) fn new(stream: S, counters: Counters) -> Self {
        Self { stream, counters, left: Bytes::new(), replaces: 0 }
    }

    /// Takes the answer if it is a refusal of the parser. Returns whether it is.
    fn replaces(&mut self, answer: &[u8]) -> bool {
        let Some((status, text)) = explained(answer) else { return false };
        self.counters.http_answers.get_or_create(&[("code", u64::from(status.as_u16()))]).inc();
        (self.left, self.replaces) = (text, answer.len());
        true
    }
}

impl<S: AsyncWrite + Unpin> Explained<S> {
    fn write_rest(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        while self.left.has_remaining() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.left))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.left.advance(written);
        }
        Poll::Ready(Ok(self.replaces))
    }
}

/// The status of a refusal of the parser, and what is sent instead.
fn explained(answer: &[u8]) -> Option<(StatusCode, Bytes)> {
    if answer.len() > MAX_HEAD || !answer.starts_with(b"HTTP/1.1 4") {
        return None;
    }
    let head = std::str::from_utf8(answer).ok()?.strip_suffix("\r\n\r\n")?;
    let (status, detail) = match head.get(9..12)? {
        "400" => (StatusCode::BAD_REQUEST, "the request is not valid HTTP/1.1"),
        "414" => (StatusCode::URI_TOO_LONG, super::URI_TOO_LONG),
        "431" => (
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "the head of the request is larger than 16 KiB, or has more than 100 headers",
        ),
        _ => return None,
    };
    let lines: Vec<&str> = head.split("\r\n").filter(|line| *line != NO_BODY).collect();
    if lines.len() == head.split("\r\n").count() {
        return None;
    }
    let body = Problem::new(status, detail).text();
    let (head, length) = (lines.join("\r\n"), body.len());
    let headers = format!("content-type: application/problem+json\r\ncontent-length: {length}");
    Some((status, format!("{head}\r\n{headers}\r\n\r\n{body}").into()))
}

impl<S: AsyncRead + Unpin> AsyncRead for Explained<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Explained<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.left.has_remaining() || self.replaces(bytes) {
            return self.write_rest(context);
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.left.has_remaining() || matches!(pieces, [one] if self.replaces(one)) {
            return self.write_rest(context);
        }
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
