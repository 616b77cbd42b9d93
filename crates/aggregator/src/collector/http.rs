//! One HTTP/1.1 exchange: a request and one answer over a connection that is not used again.
//!
//! No client library is used, because most of the CPU time of a round goes into these exchanges. A library's connection is a
//! task with channels of its own, made to be used again, but agents drop idle connections after 10 s. The head is bounded, and
//! forms that were not asked for are refused.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, ready};

use httparse::{Header, Status};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

/// The longest head of an answer, provisional answers (1xx) before it included. No more may be between two pieces of a chunked
/// body, or behind the last.
const MAX_HEAD: usize = 16 << 10;
/// The most headers of an answer.
const MAX_HEADERS: usize = 100;
/// How much is read at a time: an ordinary answer fits.
const BYTES_PER_READ: usize = 16 << 10;

/// Why there is no answer, or not a whole one.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    /// The answer has another form.
    #[error("the answer is not HTTP: {0}")]
    NotHttp(Broken),
    /// The agent has closed the connection.
    #[error("the connection broke off: {0}")]
    BrokeOff(#[from] io::Error),
}

/// The part of the answer that is malformed.
#[derive(Debug)]
pub(super) enum Broken {
    Head(httparse::Error),
    HeadTooLong,
    Length,
    TransferEncoding,
    Chunk,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head(error) => error.fmt(f),
            Self::HeadTooLong => write!(f, "a head longer than {MAX_HEAD} bytes"),
            Self::Length => f.write_str("a Content-Length that is none"),
            Self::TransferEncoding => f.write_str("a Transfer-Encoding other than chunked"),
            Self::Chunk => f.write_str("a chunked body out of form"),
        }
    }
}

impl From<Broken> for HttpError {
    fn from(broken: Broken) -> Self {
        Self::NotHttp(broken)
    }
}

/// The body of an answer, as it arrives.
#[derive(Debug)]
pub(super) struct Incoming<S> {
    stream: S,
    /// Received bytes; those from `at` on are not handed out yet.
    buffer: Vec<u8>,
    at: usize,
    /// How many bytes have been received, the head included.
    received: usize,
    rest: Rest,
}

/// How it is known where the body ends (RFC 9112, section 6.3), and how much of it is still to come.
#[derive(Debug)]
enum Rest {
    Bytes(u64),
    Chunks(Chunks),
    UntilClosed,
}

/// The state of a chunked body (RFC 9112, section 7.1).
#[derive(Debug)]
struct Chunks {
    next: Next,
    /// How many bytes may come before the next piece: sizes, extensions, trailers.
    spare: usize,
}

#[derive(Clone, Copy, Debug)]
enum Next {
    Size,
    Data(u64),
    /// The line end after a chunk.
    DataEnd,
    Trailers,
    Nothing,
}

/// Sends `request` and reads the head of the answer. Calls `head` with its status and headers, and returns the result.
/// Sets `has_begun` when an answer has begun.
pub(super) async fn exchange<S: AsyncRead + AsyncWrite + Unpin, T>(
    mut stream: S,
    request: Vec<u8>,
    head: impl Fn(u16, &[Header<'_>]) -> T,
    has_begun: &AtomicBool,
) -> Result<(T, Incoming<S>), HttpError> {
    stream.write_all(&request).await?;
    // Hundreds of requests wait for their answers at once, so each gives its memory back before.
    drop(request);
    let mut buffer = Vec::new();
    let mut start = 0;
    // The head is not parsed again for every byte that arrives, but an answer that is not HTTP is noticed at once.
    let mut parsed = 0;
    loop {
        let before = buffer.len();
        let n = receive(&mut stream, &mut buffer).await?;
        if n > 0 {
            has_begun.store(true, Ordering::Relaxed);
        }
        if n > 0 && buffer.len() < 2 * parsed && buffer.len() < MAX_HEAD && !ends_a_head(&buffer, before) {
            continue;
        }
        parsed = buffer.len();
        // Provisional answers come before the final one.
        loop {
            let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
            let mut response = httparse::Response::new(&mut []);
            let unread = buffer.get(start..).unwrap_or_default();
            let parser = httparse::ParserConfig::default();
            let result = parser.parse_response_with_uninit_headers(&mut response, unread, &mut headers);
            match result.map_err(Broken::Head)? {
                Status::Complete(length) => {
                    start += length;
                    let code = response.code.unwrap_or(0);
                    if (100..200).contains(&code) && code != 101 {
                        continue;
                    }
                    let rest = rest(code, response.headers)?;
                    let result = head(code, response.headers);
                    let received = buffer.len();
                    return Ok((result, Incoming { stream, buffer, at: start, received, rest }));
                }
                Status::Partial => break,
            }
        }
        if buffer.len() >= MAX_HEAD {
            return Err(Broken::HeadTooLong.into());
        }
        if n == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// Appends the bytes that have arrived to `buffer`, and returns how many they are. `buffer` grows only when bytes arrive,
/// because hundreds of waiting requests would otherwise allocate and free memory in every slot of a round.
async fn receive(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> io::Result<usize> {
    poll_fn(|cx| {
        let mut room = [const { MaybeUninit::uninit() }; BYTES_PER_READ];
        let mut read = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut *stream).poll_read(cx, &mut read))?;
        buffer.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    })
    .await
}

/// Whether an empty line ends in the bytes that were received after `before`.
fn ends_a_head(buffer: &[u8], before: usize) -> bool {
    let fresh = buffer.get(before.saturating_sub(3)..).unwrap_or_default();
    fresh.windows(2).any(|two| two == b"\n\n") || fresh.windows(4).any(|four| four == b"\r\n\r\n")
}

fn rest(code: u16, headers: &[Header<'_>]) -> Result<Rest, Broken> {
    let all = |name: &'static str| {
        headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    };
    if matches!(code, 204 | 304) {
        return Ok(Rest::Bytes(0));
    }
    let mut codings = all("transfer-encoding");
    if let Some(coding) = codings.next() {
        // No other coding has been asked for.
        if codings.next().is_some() || !coding.trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return Err(Broken::TransferEncoding);
        }
        return Ok(Rest::Chunks(Chunks { next: Next::Size, spare: MAX_HEAD }));
    }
    let mut length = None;
    for value in all("content-length") {
        let text = value.trim_ascii();
        // `parse` would take a sign.
        let digits = std::str::from_utf8(text).ok().filter(|_| text.iter().all(u8::is_ascii_digit));
        let value: u64 = digits.and_then(|digits| digits.parse().ok()).ok_or(Broken::Length)?;
        if length.replace(value).is_some_and(|other| other != value) {
            return Err(Broken::Length);
        }
    }
    Ok(length.map_or(Rest::UntilClosed, Rest::Bytes))
}

impl<S: AsyncRead + Unpin> Incoming<S> {
    /// How many bytes of the answer have been received: its head, its body, and the framing of the pieces of the body.
    /// Between two pieces it grows by at most [`MAX_HEAD`] and [`BYTES_PER_READ`].
    pub(super) fn received(&self) -> usize {
        self.received
    }

    /// The next piece of the body; nothing when it is whole.
    pub(super) async fn next(&mut self) -> Result<Option<&[u8]>, HttpError> {
        loop {
            let wanted = match &mut self.rest {
                Rest::Bytes(left) => *left,
                Rest::Chunks(chunks) => {
                    let unread = self.buffer.get(self.at..).unwrap_or_default();
                    self.at += chunks.advance(unread)?;
                    match chunks.next {
                        Next::Data(left) => left,
                        Next::Nothing => 0,
                        // A size, line end or trailer has arrived in part.
                        _ => {
                            self.receive().await?;
                            continue;
                        }
                    }
                }
                Rest::UntilClosed => u64::MAX,
            };
            if wanted == 0 {
                return Ok(None);
            }
            let unread = self.buffer.len() - self.at;
            if unread == 0 {
                match self.receive().await {
                    Err(HttpError::BrokeOff(error))
                        if matches!(self.rest, Rest::UntilClosed)
                            && error.kind() == io::ErrorKind::UnexpectedEof =>
                    {
                        return Ok(None);
                    }
                    received => received?,
                }
                continue;
            }
            let piece = usize::try_from(wanted).unwrap_or(usize::MAX).min(unread);
            match &mut self.rest {
                Rest::Bytes(left) => *left -= piece as u64,
                Rest::Chunks(chunks) => chunks.took(piece as u64),
                Rest::UntilClosed => {}
            }
            let from = self.at;
            self.at += piece;
            return Ok(self.buffer.get(from..self.at));
        }
    }

    /// Reads more bytes, and appends them to those that are not handed out yet.
    async fn receive(&mut self) -> Result<(), HttpError> {
        self.buffer.drain(..self.at);
        self.at = 0;
        let received = receive(&mut self.stream, &mut self.buffer).await?;
        if received == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.received = self.received.saturating_add(received);
        Ok(())
    }
}

impl Chunks {
    /// Skips the bytes between two pieces of the body, as far as they have arrived. Returns how many they are.
    fn advance(&mut self, unread: &[u8]) -> Result<usize, Broken> {
        let mut taken = 0;
        loop {
            let left = unread.get(taken..).unwrap_or_default();
            let (bytes, next) = match self.next {
                Next::Data(0) => (0, Next::DataEnd),
                Next::Data(_) | Next::Nothing => return Ok(taken),
                // The parser reads a size without digits as zero.
                Next::Size if !left.first().is_none_or(u8::is_ascii_hexdigit) => return Err(Broken::Chunk),
                Next::Size => match httparse::parse_chunk_size(left).map_err(|_| Broken::Chunk)? {
                    Status::Complete((bytes, 0)) => (bytes, Next::Trailers),
                    Status::Complete((bytes, size)) => (bytes, Next::Data(size)),
                    Status::Partial => return self.wait_for_more(left, taken),
                },
                Next::DataEnd => match left {
                    [b'\r', b'\n', ..] => (2, Next::Size),
                    [] | [b'\r'] => return self.wait_for_more(left, taken),
                    _ => return Err(Broken::Chunk),
                },
                // Trailers are not needed.
                Next::Trailers => match left.iter().position(|byte| *byte == b'\n') {
                    Some(end) if matches!(left.get(..end), Some([] | [b'\r'])) => (end + 1, Next::Nothing),
                    Some(end) => (end + 1, Next::Trailers),
                    None => return self.wait_for_more(left, taken),
                },
            };
            taken += bytes;
            self.spare = self.spare.checked_sub(bytes).ok_or(Broken::Chunk)?;
            if let Next::Data(_) = next {
                self.spare = MAX_HEAD;
            }
            self.next = next;
        }
    }

    /// Waits for the rest of a line, unless it is longer than the limit.
    fn wait_for_more(&self, line: &[u8], taken: usize) -> Result<usize, Broken> {
        if line.len() > self.spare { Err(Broken::Chunk) } else { Ok(taken) }
    }

    fn took(&mut self, bytes: u64) {
        if let Next::Data(left) = &mut self.next {
            *left -= bytes;
        }
    }
}

#[cfg(test)]
mod tests;
