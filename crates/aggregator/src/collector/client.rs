//! One HTTP exchange with one agent.
//!
//! hyper's connection is used directly: an agent drops idle connections after 10 s, so a pool would hold nothing but closed
//! ones, and redirects, cookies and proxies are nothing that a node's agent should be able to ask for.

use std::hash::{BuildHasher, Hasher};
use std::io;
use std::time::Duration;

use http_body_util::Empty;
use hyper::header::{self, HeaderMap};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use procscan_core::report::{self, Failure, FailureReason, Limits, Outcome, Rejection};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::body::{self, Budget, Encoding};

/// What answers may cost.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// The path that lists violations.
    pub path: String,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long everything together may take, a retry included.
    pub timeout: Duration,
    /// The largest body, in bytes, counted decompressed.
    pub max_body: usize,
    /// What all bodies in flight may take together, in bytes.
    pub byte_budget: usize,
    /// How much of one answer is kept.
    pub limits: Limits,
}

/// The longest head of an answer. hyper refuses what is longer.
const MAX_HEAD: usize = 16 << 10;
/// The longest `ETag` that is kept and sent back.
const MAX_ETAG: usize = 256;
/// The longest pause before a retry; the shortest is half of it.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Asks agents. Cheap to clone; clones share one byte budget.
#[derive(Clone, Debug)]
pub struct Client {
    options: std::sync::Arc<ClientOptions>,
    budget: Budget,
}

/// An outcome, and the answer's tag for the next request.
pub(super) struct Exchange {
    pub(super) outcome: Outcome,
    pub(super) etag: Option<String>,
}

impl Client {
    /// A client with a budget of its own.
    pub fn new(options: ClientOptions) -> Self {
        let budget = Budget::new(options.byte_budget);
        Self { options: std::sync::Arc::new(options), budget }
    }

    /// Asks `address` once, and once more after a failure that costs no time.
    ///
    /// A target on probation, whose last answer failed, has no second try and a smaller budget.
    pub(super) async fn ask(&self, address: &str, etag: Option<&str>, is_on_probation: bool) -> Exchange {
        let timeout = self.options.timeout;
        let attempts = async {
            match self.attempt(address, etag, is_on_probation).await {
                Err(failure) if !is_on_probation && is_worth_a_retry(&failure) => {
                    tokio::time::sleep(jitter(RETRY_PAUSE)).await;
                    self.attempt(address, etag, is_on_probation).await
                }
                result => result,
            }
        };
        let result = tokio::time::timeout(timeout, attempts).await.unwrap_or_else(|_| {
            let detail =
                format!("no whole answer within {} (collector.timeout)", humantime::format_duration(timeout));
            Err(Failure { reason: FailureReason::Timeout, detail })
        });
        result.unwrap_or_else(|failure| Exchange { outcome: Outcome::Failed(failure), etag: None })
    }

    async fn attempt(
        &self,
        address: &str,
        etag: Option<&str>,
        is_on_probation: bool,
    ) -> Result<Exchange, Failure> {
        let stream = self.connect(address).await?;
        let http = |e: hyper::Error| http_failure(&e);
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(http)?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));

        let mut request = Request::get(&self.options.path)
            .header(header::HOST, address)
            .header(header::ACCEPT, "application/json")
            .header(header::ACCEPT_ENCODING, "gzip, zstd")
            .header(header::CONNECTION, "close")
            .header(header::USER_AGENT, concat!("procscan-aggregator/", env!("CARGO_PKG_VERSION")));
        if let Some(etag) = etag {
            request = request.header(header::IF_NONE_MATCH, etag);
        }
        let request = request.body(Empty::<bytes::Bytes>::new()).map_err(|e| Failure {
            reason: FailureReason::Protocol,
            detail: format!("the request can't be made: {e}"),
        })?;
        let response = sender.send_request(request).await.map_err(http)?;
        let (head, incoming) = response.into_parts();
        match head.status {
            StatusCode::NOT_MODIFIED if etag.is_some() => {
                return Ok(Exchange { outcome: Outcome::Unchanged, etag: etag.map(str::to_owned) });
            }
            StatusCode::OK => {}
            status => {
                let detail = format!("HTTP {} instead of 200", status.as_u16());
                return Err(Failure { reason: FailureReason::Status, detail });
            }
        }
        let encoding = encoding(&head.headers)?;
        let body = {
            let lease = self.budget.lease(is_on_probation);
            body::read(incoming, encoding, self.options.max_body, lease).await
        };
        Ok(self.judge(&body, &head.headers))
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
                match TcpStream::connect(resolved).await {
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

    /// From bytes to an outcome: whole, in part, or nothing.
    fn judge(&self, body: &body::Body, headers: &HeaderMap) -> Exchange {
        let (mut answer, decoded) = report::decode(&body.bytes, &self.options.limits);
        answer.date = date(headers);
        let malformed =
            |e: report::DecodeError| Failure { reason: FailureReason::Malformed, detail: e.to_string() };
        let left_out = answer.rejected.of(Rejection::OverLimit);
        let trouble = body.trouble.clone().or(decoded.map_err(malformed).err()).or_else(|| {
            (left_out > 0).then(|| Failure {
                reason: FailureReason::TooManyRecords,
                detail: format!(
                    "{left_out} records beyond {} (collector.max_records)",
                    self.options.limits.records
                ),
            })
        });
        match trouble {
            Some(failure) if answer.records.is_empty() && answer.rejected.total() == 0 => {
                Exchange { outcome: Outcome::Failed(failure), etag: None }
            }
            Some(failure) => Exchange { outcome: Outcome::Partial(answer, failure), etag: None },
            None => {
                let etag = headers.get(header::ETAG).and_then(|tag| tag.to_str().ok());
                let etag = etag.filter(|tag| tag.len() <= MAX_ETAG).map(str::to_owned);
                Exchange { outcome: Outcome::Complete(answer), etag }
            }
        }
    }
}

/// The agent's own clock. An HTTP date is an RFC 2822 date in GMT.
fn date(headers: &HeaderMap) -> Option<Timestamp> {
    let text = headers.get(header::DATE)?.to_str().ok()?;
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

fn encoding(headers: &HeaderMap) -> Result<Encoding, Failure> {
    let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
    match (values.next().map(|value| value.to_str().map(str::to_ascii_lowercase)), values.next()) {
        (None, _) => Ok(Encoding::Identity),
        (Some(Ok(name)), None) if name == "identity" => Ok(Encoding::Identity),
        (Some(Ok(name)), None) if name == "gzip" => Ok(Encoding::Gzip),
        (Some(Ok(name)), None) if name == "zstd" => Ok(Encoding::Zstd),
        _ => Err(Failure {
            reason: FailureReason::Encoding,
            detail: "a Content-Encoding other than gzip and zstd".to_owned(),
        }),
    }
}

/// Only failures that cost no time are worth a second try in the same round; what has timed out once has had its time.
fn is_worth_a_retry(failure: &Failure) -> bool {
    use FailureReason as Reason;
    matches!(failure.reason, Reason::Refused | Reason::Connect | Reason::Disconnected | Reason::Status)
}

/// Between half of `longest` and `longest`, different each time.
fn jitter(longest: Duration) -> Duration {
    // The standard library's hasher is seeded by the operating system: randomness enough to spread retries.
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    let half = longest / 2;
    half + half.mul_f64(f64::from(u32::try_from(random & 0xffff).unwrap_or(0)) / 65_536.0)
}

fn http_failure(error: &hyper::Error) -> Failure {
    let reason = if error.is_parse() || error.is_parse_status() {
        FailureReason::Protocol
    } else {
        FailureReason::Disconnected
    };
    let what =
        if reason == FailureReason::Protocol { "the answer is not HTTP" } else { "the connection broke off" };
    let cause = std::error::Error::source(error).map(|cause| format!(" ({cause})")).unwrap_or_default();
    Failure { reason, detail: format!("{what}: {error}{cause}") }
}
