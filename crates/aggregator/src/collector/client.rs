//! Asks one agent: a connection, one exchange over it, and what came of it.
//!
//! An agent drops idle connections after 10 s, so a pool would hold nothing but closed ones; and redirects, cookies and proxies
//! are nothing that a node's agent should be able to ask for.

use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use httparse::Header;
use jiff::Timestamp;
use procscan_core::report::{self, Failure, FailureReason, Limits, Outcome};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::body::{self, Body, Budget, Encoding, Share};
use super::http::{self, HttpError};
use super::sockets::Sockets;

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

/// The longest `ETag` that is kept and sent back.
const MAX_ETAG: usize = 256;
/// The longest pause before a retry; the shortest is half of it.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Asks agents. Cheap to clone; clones share one byte budget.
#[derive(Clone, Debug)]
pub struct Client {
    options: Arc<ClientOptions>,
    budget: Budget,
    sockets: Arc<Sockets>,
}

/// What the head of an answer says.
struct Head {
    status: u16,
    /// Nothing if it is one that was not asked for.
    encoding: Option<Encoding>,
    etag: Option<String>,
    /// The agent's own clock.
    date: Option<Timestamp>,
}

/// An outcome, and the answer's tag for the next request.
pub(super) struct Exchange {
    pub(super) outcome: Outcome,
    pub(super) etag: Option<String>,
    pub(super) share: Share,
}

impl Exchange {
    /// One without records.
    fn bare(outcome: Outcome, etag: Option<String>) -> Self {
        Self { outcome, etag, share: Share::default() }
    }
}

impl Client {
    /// A client with a budget of its own.
    pub fn new(options: ClientOptions) -> Self {
        let budget = Budget::new(options.byte_budget);
        Self { options: Arc::new(options), budget, sockets: Arc::default() }
    }

    /// Asks `address` once, and once more after a failure that costs no time.
    ///
    /// A target on probation, whose last answer failed, has no second try and a smaller budget.
    pub(super) async fn ask(&self, address: &str, etag: Option<&str>, is_on_probation: bool) -> Exchange {
        let timeout = self.options.timeout;
        let has_begun = AtomicBool::new(false);
        let attempts = async {
            match self.attempt(address, etag, is_on_probation, &has_begun).await {
                Err(failure) if !is_on_probation && is_worth_a_retry(&failure) => {
                    tokio::time::sleep(jitter(RETRY_PAUSE)).await;
                    self.attempt(address, etag, is_on_probation, &has_begun).await
                }
                result => result,
            }
        };
        let result = tokio::time::timeout(timeout, attempts).await.unwrap_or_else(|_| {
            let limit = humantime::format_duration(timeout);
            let detail = format!("no whole answer within {limit} (collector.timeout)");
            // An answer that has begun is a sign of life.
            let has_begun = has_begun.load(Ordering::Relaxed);
            let reason = if has_begun { FailureReason::Stalled } else { FailureReason::Timeout };
            Err(Failure { reason, detail })
        });
        result.unwrap_or_else(|failure| Exchange::bare(Outcome::Failed(failure), None))
    }

    async fn attempt(
        &self,
        address: &str,
        etag: Option<&str>,
        is_on_probation: bool,
        has_begun: &AtomicBool,
    ) -> Result<Exchange, Failure> {
        let (mut stream, peer) = self.connect(address).await?;
        let request = self.request(address, etag)?;
        let exchange = self.exchange(&mut stream, request, etag, is_on_probation, has_begun).await?;
        self.sockets.part(stream, peer);
        Ok(exchange)
    }

    /// One exchange over a connection. Notes when an answer has begun.
    pub(super) async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        request: Vec<u8>,
        etag: Option<&str>,
        is_on_probation: bool,
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
        let lease = self.budget.lease(is_on_probation);
        let body = body::read(&mut incoming, encoding, self.options.max_body, lease).await;
        Ok(self.judge(body, head))
    }

    fn request(&self, address: &str, etag: Option<&str>) -> Result<Vec<u8>, Failure> {
        const AGENT: &str = concat!("procscan-aggregator/", env!("CARGO_PKG_VERSION"));
        let path = &self.options.path;
        // The path is checked with the configuration, the tag where it is kept.
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

    async fn connect(&self, address: &str) -> Result<(TcpStream, SocketAddr), Failure> {
        let limit = self.options.connect_timeout;
        let connect = async {
            let resolve = |e: io::Error| Failure {
                reason: FailureReason::Resolve,
                detail: format!("the host has no address: {e}"),
            };
            let mut last = None;
            for resolved in tokio::net::lookup_host(address).await.map_err(resolve)? {
                match self.sockets.connect(resolved).await {
                    Ok(stream) => return Ok((stream, resolved)),
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
    fn judge(&self, body: Body, head: Head) -> Exchange {
        let Body { bytes, trouble, share } = body;
        let (mut answer, decoded) = report::decode(&bytes, &self.options.limits);
        answer.date = head.date;
        let malformed =
            |e: report::DecodeError| Failure { reason: FailureReason::Malformed, detail: e.to_string() };
        let trouble = trouble.or(decoded.map_err(malformed).err());
        match trouble {
            Some(failure) if answer.records.is_empty() && answer.rejected.total() == 0 => {
                Exchange::bare(Outcome::Failed(failure), None)
            }
            Some(failure) => Exchange { outcome: Outcome::Partial(answer, failure), etag: None, share },
            None => {
                // With the tag the next answer could be a 304, which does not say of which namespaces records were left
                // out.
                let etag = head.etag.filter(|_| answer.left_out.is_empty());
                Exchange { outcome: Outcome::Complete(answer), etag, share }
            }
        }
    }
}

impl Head {
    fn of(status: u16, headers: &[Header<'_>]) -> Self {
        let mut head = Self { status, encoding: Some(Encoding::Identity), etag: None, date: None };
        let mut is_encoded = false;
        for Header { name, value } in headers {
            let text = std::str::from_utf8(value).ok().map(str::trim);
            if name.eq_ignore_ascii_case("content-encoding") {
                // One that is given twice has been applied twice.
                head.encoding = text.filter(|_| !is_encoded).and_then(Encoding::named);
                is_encoded = true;
            } else if name.eq_ignore_ascii_case("etag") {
                let is_sound =
                    |tag: &&str| tag.len() <= MAX_ETAG && tag.bytes().all(|byte| byte.is_ascii_graphic());
                head.etag = text.filter(is_sound).map(str::to_owned);
            } else if name.eq_ignore_ascii_case("date") {
                // An HTTP date is an RFC 2822 date in GMT.
                let parser = jiff::fmt::rfc2822::DateTimeParser::new();
                head.date = text.and_then(|text| parser.parse_timestamp(text).ok());
            }
        }
        head
    }
}

/// Only failures that cost no time are worth a second try in the same round; what has timed out once has had its time.
fn is_worth_a_retry(failure: &Failure) -> bool {
    use FailureReason as Reason;
    matches!(
        failure.reason,
        Reason::Refused | Reason::Connect | Reason::Disconnected | Reason::CutOff | Reason::Status
    )
}

/// Between half of `longest` and `longest`, different each time.
fn jitter(longest: Duration) -> Duration {
    // The standard library's hasher is seeded by the operating system: randomness enough to spread retries.
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
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn client() -> Client {
        Client::new(ClientOptions {
            path: "/".to_owned(),
            connect_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(10),
            max_body: 1 << 18,
            byte_budget: 1 << 20,
            limits: Limits::default(),
        })
    }

    #[tokio::test]
    async fn a_connection_ends_with_a_reset_and_leaves_nothing_behind() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let agent = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1 << 10];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]").await.unwrap();
            stream.read(&mut request).await.unwrap_err().kind()
        };
        let client = client();
        let (exchange, end) = tokio::join!(client.ask(&address, None, false), agent);
        assert!(matches!(exchange.outcome, Outcome::Complete(_)), "{:?}", exchange.outcome);
        assert_eq!(end, io::ErrorKind::ConnectionReset);
    }

    /// Only if nothing came at all is the node silent.
    #[tokio::test]
    async fn an_answer_that_has_begun_is_told_apart_from_none() {
        let begun = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n";
        let listed = format!("{begun}\r\n[");
        let table = [
            ("", true, FailureReason::Timeout),
            ("", false, FailureReason::Disconnected),
            ("H", true, FailureReason::Stalled),
            (begun, true, FailureReason::Stalled),
            (begun, false, FailureReason::CutOff),
            (&listed, true, FailureReason::Stalled),
            (&listed, false, FailureReason::CutOff),
        ];
        for (sent, is_held_open, expected) in table {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let agent = async {
                let mut open = Vec::new();
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    assert!(stream.read(&mut [0; 1 << 10]).await.unwrap() > 0);
                    stream.write_all(sent.as_bytes()).await.unwrap();
                    open.extend(is_held_open.then_some(stream));
                }
            };
            let options = ClientOptions { timeout: Duration::from_secs(1), ..(*client().options).clone() };
            let client = Client::new(options);
            let exchange = tokio::select! {
                exchange = client.ask(&address, None, false) => exchange,
                () = agent => unreachable!("it never ends"),
            };
            let reason = exchange.outcome.failure().map(|failure| failure.reason);
            assert_eq!(reason, Some(expected), "{sent:?}, held open: {is_held_open}");
        }
    }

    #[tokio::test]
    async fn an_answer_with_more_records_than_are_kept_is_whole_and_has_no_tag() {
        let limits = Limits { records: 1, ..Limits::default() };
        let client = Client::new(ClientOptions { limits, ..(*client().options).clone() });
        let record = |namespace: &str| {
            format!(
                r#"{{"pod":"p","namespace":"{namespace}","process":"xmrig","timestamp":"2026-01-01T00:00:00Z"}}"#
            )
        };
        for (namespaces, has_tag) in [(&["ns-a"][..], true), (&["ns-a", "ns-b"], false)] {
            let body = format!("[{}]", namespaces.iter().map(|n| record(n)).collect::<Vec<_>>().join(","));
            let answer =
                format!("HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let (stream, mut agent) = tokio::io::duplex(answer.len());
            agent.write_all(answer.as_bytes()).await.unwrap();
            let request = b"GET / HTTP/1.1\r\n\r\n".to_vec();
            let exchange =
                client.exchange(stream, request, None, false, &AtomicBool::default()).await.unwrap();
            let Outcome::Complete(answer) = exchange.outcome else { panic!("{:?}", exchange.outcome) };
            assert_eq!((answer.left_out.concerns("ns-b"), exchange.etag.is_some()), (!has_tag, has_tag));
        }
    }

    #[tokio::test]
    async fn a_large_answer_holds_its_share_of_the_budget_for_as_long_as_its_records_wait() {
        let (client, size) = (client(), 1 << 17);
        let all = client.budget.left();
        let record = r#"{"pod":"p","namespace":"ns-a","process":"xmrig","timestamp":"2026-01-01T00:00:00Z"}"#;
        let padding = " ".repeat(size);
        for (body, is_whole) in [(format!("[{record}{padding}]"), true), (format!("[{padding}"), false)] {
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let request = b"GET / HTTP/1.1\r\n\r\n".to_vec();
            let (stream, mut agent) = tokio::io::duplex(answer.len());
            agent.write_all(answer.as_bytes()).await.unwrap();
            let has_begun = AtomicBool::default();
            let exchange = client.exchange(stream, request, None, false, &has_begun).await.unwrap();
            assert_eq!(matches!(exchange.outcome, Outcome::Complete(_)), is_whole, "{:?}", exchange.outcome);
            let held = all - client.budget.left();
            // Where there is nothing to take in, nothing is held.
            assert_eq!(held > size / 2, is_whole, "{held}");
            drop(exchange);
            assert_eq!(client.budget.left(), all);
        }
    }
}
