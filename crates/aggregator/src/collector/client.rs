//! Asks one agent: a connection, one exchange over it, and its outcome.
//!
//! An agent drops idle connections after 10 s, so a pool would hold closed connections only. Redirects, cookies and proxies are
//! not supported, because an agent must not cause requests to other hosts.

use std::hash::{BuildHasher, Hasher};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use httparse::Header;
use jiff::Timestamp;
use procscan_core::names::is_dns_label;
use procscan_core::report::{Failure, FailureReason, LeftOut, Limits, Outcome};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::body::{self, Body, Deadline, Reader};
use super::budget::{Budget, Share};
use super::connection;
use super::http::{self, HttpError};
use super::unpack::Encoding;

/// The limits of requests and answers.
#[derive(Clone, Debug)]
pub(crate) struct ClientOptions {
    /// The path that lists violations.
    pub(crate) path: String,
    /// How long a connection may take to be made.
    pub(crate) connect_timeout: Duration,
    /// How long everything together may take, a retry included.
    pub(crate) timeout: Duration,
    /// The most that is read of one answer, in bytes, counted on either side of decompression.
    pub(crate) max_read: usize,
    /// The most bytes, on either side of decompression, of an answer that is decoded in the task that waits for it.
    pub(crate) small: usize,
    /// The most bytes that all bodies in flight take together.
    pub(crate) byte_budget: usize,
    /// How much of one answer is used.
    pub(crate) limits: Limits,
}

/// The header in which the reference agent names the namespaces of which it has left something out of its list, or all.
const LEFT_OUT: &str = "procscan-left-out-namespaces";
const LEFT_OUT_ALL: &str = "*";
/// The longest `ETag` that is held and sent back.
const MAX_ETAG: usize = 256;
/// The longest pause before a retry; the shortest is half of it.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Asks agents. Cheap to clone; clones share one byte budget.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    options: Arc<ClientOptions>,
    budget: Budget,
    reader: Reader,
}

/// The head of an answer, as far as it matters.
struct Head {
    status: u16,
    /// `None` if it is a coding that was not asked for.
    encoding: Option<Encoding>,
    etag: Option<String>,
    /// The agent's own clock.
    date: Option<Timestamp>,
    /// The namespaces of which the agent has left something out of its list.
    left_out: LeftOut,
}

/// An outcome, and the answer's tag for the next request.
pub(super) struct Exchange {
    pub(super) outcome: Outcome,
    pub(super) etag: Option<String>,
    pub(super) share: Share,
}

impl Exchange {
    /// An exchange without records.
    fn bare(outcome: Outcome, etag: Option<String>) -> Self {
        Self { outcome, etag, share: Share::default() }
    }
}

impl Client {
    /// A client with a budget of its own.
    pub(crate) fn new(options: ClientOptions) -> Self {
        let budget = Budget::new(options.byte_budget);
        let reader = Reader::new(options.limits, options.small, options.max_read, options.timeout);
        Self { options: Arc::new(options), budget, reader }
    }

    /// Begins a round. For the address of a target, `asked` returns `None` if the round does not ask it, and otherwise whether it is on
    /// probation.
    pub(super) fn begin_round(&self, asked: impl Fn(&str) -> Option<bool>) {
        self.reader.begin_round(asked);
    }

    /// Asks `address` once, and once more after a failure that costs no time.
    ///
    /// A target on probation, whose last answer failed, has no second try and a smaller budget.
    pub(super) async fn ask(&self, address: &str, etag: Option<&str>, is_on_probation: bool) -> Exchange {
        let timeout = self.options.timeout;
        let (has_begun, deadline) = (AtomicBool::new(false), Deadline::after(timeout));
        let context = body::RequestContext { address, is_on_probation, deadline };
        let attempt = || self.attempt(context, etag, &has_begun);
        let attempts = async {
            match attempt().await {
                Err(failure) if !is_on_probation && is_worth_a_retry(&failure) => {
                    tokio::time::sleep(jitter(RETRY_PAUSE)).await;
                    attempt().await
                }
                result => result,
            }
        };
        let result = tokio::time::timeout(timeout, attempts).await.unwrap_or_else(|_| {
            // An answer that has begun is a sign of life.
            let has_begun = has_begun.load(Ordering::Relaxed);
            Err(deadline.failure(if has_begun { FailureReason::Stalled } else { FailureReason::Timeout }))
        });
        result.unwrap_or_else(|failure| Exchange::bare(Outcome::Failed(failure), None))
    }

    async fn attempt(
        &self,
        context: body::RequestContext<'_>,
        etag: Option<&str>,
        has_begun: &AtomicBool,
    ) -> Result<Exchange, Failure> {
        let stream = self.connect(context.address).await?;
        let request = self.request(context.address, etag)?;
        self.exchange(stream, request, etag, context, has_begun).await
    }

    /// One exchange over a connection. Notes when an answer has begun.
    pub(super) async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        request: Vec<u8>,
        etag: Option<&str>,
        context: body::RequestContext<'_>,
        has_begun: &AtomicBool,
    ) -> Result<Exchange, Failure> {
        let exchange = http::exchange(stream, request, Head::of, has_begun).await;
        let (head, mut incoming) = exchange.map_err(|error| http_failure(&error, has_begun))?;
        match head.status {
            304 if etag.is_some() => {
                return Ok(Exchange::bare(Outcome::Unchanged, etag.map(str::to_owned)));
            }
            200 => {}
            status => {
                let detail = format!("HTTP {status} instead of 200");
                return Err(Failure { reason: FailureReason::Status, detail });
            }
        }
        let encoding = head.encoding.ok_or_else(|| Failure {
            reason: FailureReason::Encoding,
            detail: "a Content-Encoding other than gzip and zstd".to_owned(),
        })?;
        let lease = self.budget.lease(context.is_on_probation);
        let body = self.reader.read(&mut incoming, encoding, context, lease).await;
        Ok(judge(body, head))
    }

    fn request(&self, address: &str, etag: Option<&str>) -> Result<Vec<u8>, Failure> {
        const AGENT: &str = concat!("procscan-aggregator/", env!("CARGO_PKG_VERSION"));
        let path = &self.options.path;
        // The path is checked with the configuration, and the tag when it is received.
        if !address.bytes().all(|byte| byte.is_ascii_graphic()) {
            let detail = format!("the request can't be made for {address:?}");
            return Err(Failure { reason: FailureReason::Protocol, detail });
        }
        let (name, tag, end) = etag.map_or(("", "", ""), |etag| ("If-None-Match: ", etag, "\r\n"));
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: application/json\r\nAccept-Encoding: gzip, zstd\r\n\
             User-Agent: {AGENT}\r\n{name}{tag}{end}\r\n"
        );
        Ok(request.into_bytes())
    }

    async fn connect(&self, address: &str) -> Result<TcpStream, Failure> {
        let limit = self.options.connect_timeout;
        let connect = async {
            let resolve = |e: io::Error| Failure {
                reason: FailureReason::Resolve,
                detail: format!("the host has no address: {e}"),
            };
            let mut last = None;
            for resolved in tokio::net::lookup_host(address).await.map_err(resolve)? {
                match connection::connect(resolved).await {
                    Ok(stream) => return Ok(stream),
                    Err(e) => last = Some(e),
                }
            }
            Err(match last {
                Some(e) if e.kind() == io::ErrorKind::ConnectionRefused => Failure {
                    reason: FailureReason::Refused,
                    detail: "the connection was refused".to_owned(),
                },
                Some(e) => Failure { reason: FailureReason::Connect, detail: format!("no connection: {e}") },
                None => {
                    Failure { reason: FailureReason::Resolve, detail: "the host has no address".to_owned() }
                }
            })
        };
        tokio::time::timeout(limit, connect).await.unwrap_or_else(|_| {
            let shown = humantime::format_duration(limit);
            let detail = format!("no connection within {shown} (collector.connect_timeout)");
            Err(Failure { reason: FailureReason::ConnectTimeout, detail })
        })
    }
}

/// The outcome of a body: complete, partial or failed.
fn judge(body: Body, head: Head) -> Exchange {
    let Body { mut answer, failure, share } = body;
    answer.date = head.date;
    answer.left_out.add(&head.left_out);
    match failure {
        Some(failure) if answer.records.is_empty() && answer.rejected.total() == 0 => {
            Exchange::bare(Outcome::Failed(failure), None)
        }
        Some(failure) => Exchange { outcome: Outcome::Partial(answer, failure), etag: None, share },
        None => {
            // With the tag the next answer could be a 304, which does not name the namespaces of which records were
            // left out.
            let etag = head.etag.filter(|_| answer.left_out.is_empty());
            Exchange { outcome: Outcome::Complete(answer), etag, share }
        }
    }
}

impl Head {
    fn of(status: u16, headers: &[Header<'_>]) -> Self {
        let left_out = LeftOut::default();
        let mut head = Self { status, encoding: Some(Encoding::Identity), etag: None, date: None, left_out };
        let mut is_encoded = false;
        for Header { name, value } in headers {
            let text = std::str::from_utf8(value).ok().map(str::trim);
            if name.eq_ignore_ascii_case("content-encoding") {
                // A coding that is given twice has been applied twice.
                head.encoding = text.filter(|_| !is_encoded).and_then(Encoding::named);
                is_encoded = true;
            } else if name.eq_ignore_ascii_case("etag") {
                let is_sound =
                    |tag: &&str| tag.len() <= MAX_ETAG && tag.bytes().all(|byte| byte.is_ascii_graphic());
                head.etag = text.filter(is_sound).map(str::to_owned);
            } else if name.eq_ignore_ascii_case("date") {
                head.date = text.and_then(date);
            } else if name.eq_ignore_ascii_case(LEFT_OUT) {
                head.note_left_out(text.unwrap_or(LEFT_OUT_ALL));
            }
        }
        head
    }

    fn note_left_out(&mut self, namespaces: &str) {
        for namespace in namespaces.split(',').map(str::trim).filter(|namespace| !namespace.is_empty()) {
            // An invalid name may stand for any namespace.
            if is_dns_label(namespace) { self.left_out.note(namespace) } else { self.left_out.note_all() }
        }
    }
}

/// The time that a `Date` header names, in one of the three forms of RFC 9110, section 5.6.7. The form of RFC 2822, which allows more
/// zones, is read too.
fn date(text: &str) -> Option<Timestamp> {
    let parser = jiff::fmt::rfc2822::DateTimeParser::new();
    let usual = parser.parse_timestamp(text).ok();
    usual.or_else(|| Timestamp::try_from(httpdate::parse_http_date(text).ok()?).ok())
}

/// Whether the collector repeats the request in the same round after this failure. It does not repeat a request that timed out,
/// because no time is left.
fn is_worth_a_retry(failure: &Failure) -> bool {
    use FailureReason as Reason;
    matches!(
        failure.reason,
        Reason::Refused | Reason::Connect | Reason::Disconnected | Reason::CutOff | Reason::Status
    )
}

/// Between half of `longest` and `longest`, different each time.
fn jitter(longest: Duration) -> Duration {
    // The operating system seeds the standard library's hasher, which is random enough to spread retries.
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    let half = longest / 2;
    half + half.mul_f64(f64::from(u32::try_from(random & 0xffff).unwrap_or(0)) / 65_536.0)
}

fn http_failure(error: &HttpError, has_begun: &AtomicBool) -> Failure {
    let reason = match error {
        HttpError::NotHttp(_) => FailureReason::Protocol,
        HttpError::BrokeOff(_) if has_begun.load(Ordering::Relaxed) => FailureReason::CutOff,
        HttpError::BrokeOff(_) => FailureReason::Disconnected,
    };
    Failure { reason, detail: error.to_string() }
}

#[cfg(test)]
mod tests;
