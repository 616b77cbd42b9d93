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
use procscan_core::names::is_dns_label;
use procscan_core::report::{Failure, FailureReason, LeftOut, Limits, Outcome};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::body::{self, Body, Budget, Deadline, Reader, Share};
use super::http::{self, HttpError};
use super::sockets::Sockets;
use super::unpack::Encoding;

/// What answers may cost.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// The path that lists violations.
    pub path: String,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long everything together may take, a retry included.
    pub timeout: Duration,
    /// The most that is read of one answer, in bytes, counted on either side of decompression.
    pub max_read: usize,
    /// The most bytes, on either side of decompression, of an answer that is decoded where it is waited for.
    pub small: usize,
    /// What all bodies in flight may take together, in bytes.
    pub byte_budget: usize,
    /// How much of one answer is kept.
    pub limits: Limits,
}

/// The header in which the reference agent names the namespaces of which it has left something out of its list, or all.
const LEFT_OUT: &str = "procscan-left-out-namespaces";
const LEFT_OUT_ALL: &str = "*";
/// The longest `ETag` that is kept and sent back.
const MAX_ETAG: usize = 256;
/// The longest pause before a retry; the shortest is half of it.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Asks agents. Cheap to clone; clones share one byte budget.
#[derive(Clone, Debug)]
pub struct Client {
    options: Arc<ClientOptions>,
    budget: Budget,
    reader: Reader,
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
    /// One without records.
    fn bare(outcome: Outcome, etag: Option<String>) -> Self {
        Self { outcome, etag, share: Share::default() }
    }
}

impl Client {
    /// A client with a budget of its own.
    pub fn new(options: ClientOptions) -> Self {
        let budget = Budget::new(options.byte_budget);
        let reader = Reader::new(options.limits, options.small, options.max_read, options.timeout);
        Self { options: Arc::new(options), budget, reader, sockets: Arc::default() }
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
        let (mut stream, peer) = self.connect(context.address).await?;
        let request = self.request(context.address, etag)?;
        let exchange = self.exchange(&mut stream, request, etag, context, has_begun).await?;
        self.sockets.part(stream, peer);
        Ok(exchange)
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
}

/// From a body to an outcome: whole, in part, or nothing.
fn judge(body: Body, head: Head) -> Exchange {
    let Body { mut answer, trouble, share } = body;
    answer.date = head.date;
    answer.left_out.add(&head.left_out);
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

impl Head {
    fn of(status: u16, headers: &[Header<'_>]) -> Self {
        let left_out = LeftOut::default();
        let mut head = Self { status, encoding: Some(Encoding::Identity), etag: None, date: None, left_out };
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
                head.date = text.and_then(date);
            } else if name.eq_ignore_ascii_case(LEFT_OUT) {
                head.note_left_out(text.unwrap_or(LEFT_OUT_ALL));
            }
        }
        head
    }

    fn note_left_out(&mut self, namespaces: &str) {
        for namespace in namespaces.split(',').map(str::trim).filter(|namespace| !namespace.is_empty()) {
            // Anything that is no namespace's name may stand for any of them.
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

    fn context() -> body::RequestContext<'static> {
        let deadline = Deadline::after(Duration::from_mins(5));
        body::RequestContext { address: "a", is_on_probation: false, deadline }
    }

    fn client() -> Client {
        Client::new(ClientOptions {
            path: "/".to_owned(),
            connect_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(10),
            max_read: 8 << 20,
            small: 64 << 10,
            byte_budget: 8 << 20,
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

    /// There is nothing to wait for: all of the answer is there at once.
    #[tokio::test]
    async fn after_the_deadline_no_more_is_read_or_decoded_and_what_was_decoded_is_used() {
        let record = r#"{"pod":"p","namespace":"ns-a","process":"xmrig","timestamp":"2026-01-01T00:00:00Z"}"#;
        let body = format!("[{record},{}{record}]", " ".repeat(4 << 20)).into_bytes();
        let compressed = zstd::encode_all(&body[..], 1).unwrap();
        assert!(compressed.len() < 64 << 10);
        for (encoding, body) in [("", body), ("Content-Encoding: zstd\r\n", compressed)] {
            let length = body.len();
            let head = format!("HTTP/1.1 200 OK\r\n{encoding}Content-Length: {length}\r\n\r\n");
            let answer = [head.as_bytes(), &body].concat();
            let stream = tokio::io::join(&answer[..], tokio::io::sink());
            let context = body::RequestContext { deadline: Deadline::after(Duration::ZERO), ..context() };
            let request = b"GET / HTTP/1.1\r\n\r\n".to_vec();
            let exchange =
                client().exchange(stream, request, None, context, &AtomicBool::default()).await.unwrap();
            let Outcome::Partial(answer, failure) = exchange.outcome else {
                panic!("{:?}", exchange.outcome)
            };
            assert_eq!((answer.records.len(), failure.reason), (1, FailureReason::Deferred), "{encoding}");
        }
    }

    #[tokio::test]
    async fn answers_that_together_need_more_than_the_budget_are_all_read_whole() {
        let client = client();
        let record = |number: usize| {
            let cmdline = "x".repeat(4000);
            format!(
                r#"{{"pod":"p-{number}","namespace":"ns-a","process":"xmrig","cmdline":"{cmdline}","timestamp":"2026-01-01T00:00:00Z"}}"#
            )
        };
        // Each takes 2 MiB, and the part of the budget is 6 MiB.
        let body = format!("[{}]", (0..500).map(record).collect::<Vec<_>>().join(","));
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let ask = async || {
            // In pieces, so that all of them are read at the same time.
            let (stream, mut agent) = tokio::io::duplex(16 << 10);
            let context =
                body::RequestContext { deadline: Deadline::after(Duration::from_mins(1)), ..context() };
            let request = b"GET / HTTP/1.1\r\n\r\n".to_vec();
            let has_begun = AtomicBool::default();
            let exchange = client.exchange(stream, request, None, context, &has_begun);
            let (exchange, _) = tokio::join!(exchange, agent.write_all(answer.as_bytes()));
            exchange.unwrap().outcome
        };
        for outcome in futures_util::future::join_all((0..12).map(|_| ask())).await {
            assert!(matches!(outcome, Outcome::Complete(_)), "{:?}", outcome.failure());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_exceeds_the_budget_for_half_a_second_at_most_and_until_its_records_are_taken_in() {
        let client = client();
        let mut all = client.budget.lease(false);
        all.cover(1 << 30).await.unwrap();
        let record = r#"{"pod":"p","namespace":"ns-a","process":"xmrig","timestamp":"2026-01-01T00:00:00Z"}"#;
        let body = format!("[{record}{}]", " ".repeat(40 << 10));
        let ask = async |missing: usize| {
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let (stream, mut agent) = tokio::io::duplex(answer.len());
            agent.write_all(&answer.as_bytes()[..answer.len() - missing]).await.unwrap();
            let begun = tokio::time::Instant::now();
            let request = b"GET / HTTP/1.1\r\n\r\n".to_vec();
            let exchange =
                client.exchange(stream, request, None, context(), &AtomicBool::default()).await.unwrap();
            (exchange, begun.elapsed())
        };
        let (whole, _) = ask(0).await;
        assert!(matches!(whole.outcome, Outcome::Complete(_)) && !client.budget.has_overdraft());
        drop(whole.share);
        assert!(client.budget.has_overdraft());
        // The agent sends the last byte only after a while, and has minutes for it.
        let (late, took) = ask(1).await;
        let Outcome::Partial(answer, failure) = late.outcome else { panic!("{:?}", late.outcome) };
        assert_eq!((answer.records.len(), failure.reason), (1, FailureReason::Deferred));
        assert!((500..600).contains(&took.as_millis()), "{took:?}");
    }

    #[tokio::test]
    async fn only_an_answer_that_was_read_to_its_end_lowers_what_is_expected_of_the_next_one() {
        const MIB: usize = 1 << 20;
        /// In KiB, so that the length of the heads makes no difference.
        const EXPECTED: [usize; 3] = [5 << 10, 15 << 8, 15 << 7];
        let client = client();
        let ask = async |announced: usize, sent: usize, end: &str| {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {announced}\r\n\r\n[");
            let answer = format!("{head}{}{end}", " ".repeat(sent - 1 - end.len()));
            let stream = tokio::io::join(answer.as_bytes(), tokio::io::sink());
            let request = b"GET / HTTP/1.1\r\n\r\n".to_vec();
            let exchange =
                client.exchange(stream, request, None, context(), &AtomicBool::default()).await.unwrap();
            let reason = exchange.outcome.failure().map(|failure| failure.reason);
            (reason, client.reader.reading().expected("a").unwrap() >> 10)
        };
        let cut_off = Some(FailureReason::CutOff);
        assert_eq!(ask(4 * MIB, 4 * MIB, "]").await, (None, EXPECTED[0]));
        assert_eq!(ask(4 * MIB, 3 * MIB, "").await, (cut_off, EXPECTED[0]));
        assert_eq!(ask(2, 1, "").await, (cut_off, EXPECTED[0]));
        assert_eq!(ask(3 * MIB, 3 * MIB, "]").await, (None, EXPECTED[1]));
        assert_eq!(ask(2, 2, "]").await, (None, EXPECTED[2]));
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
                client.exchange(stream, request, None, context(), &AtomicBool::default()).await.unwrap();
            let Outcome::Complete(answer) = exchange.outcome else { panic!("{:?}", exchange.outcome) };
            assert_eq!((answer.left_out.concerns("ns-b"), exchange.etag.is_some()), (!has_tag, has_tag));
        }
    }

    #[tokio::test]
    async fn a_large_answer_holds_its_share_of_the_budget_for_as_long_as_its_records_wait() {
        let client = client();
        let all = client.budget.left();
        let records: Vec<String> = (0..1000).map(|n| record("ns-a", &format!("web-{n}"), "")).collect();
        let listed = format!("[{}]", records.join(","));
        for (body, is_whole) in [(listed, true), (format!("[{}", " ".repeat(1 << 18)), false)] {
            let exchange = exchange(&client, "", body.as_bytes()).await;
            assert_eq!(matches!(exchange.outcome, Outcome::Complete(_)), is_whole, "{:?}", exchange.outcome);
            let held = all - client.budget.left();
            // Where there is nothing to take in, nothing is held.
            assert_eq!(held > 1 << 16, is_whole, "{held}");
            drop(exchange);
            assert_eq!(client.budget.left(), all);
        }
    }

    fn record(namespace: &str, pod: &str, cmdline: &str) -> String {
        format!(
            r#"{{"pod":"{pod}","namespace":"{namespace}","process":"xmrig","cmdline":"{cmdline}","timestamp":"2026-01-01T00:00:00Z"}}"#
        )
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// What comes of an answer with these header lines and this body.
    async fn exchange(client: &Client, headers: &str, body: &[u8]) -> Exchange {
        let head = format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
        exchange_raw(client, &[head.as_bytes(), body].concat()).await
    }

    async fn exchange_raw(client: &Client, answer: &[u8]) -> Exchange {
        let (stream, mut agent) = tokio::io::duplex(16 << 10);
        let has_begun = AtomicBool::default();
        let request = b"GET / HTTP/1.1\r\n\r\n".to_vec();
        let send = async {
            // It may be refused before all of it is sent.
            let _ = agent.write_all(answer).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            exchange = client.exchange(stream, request, None, context(), &has_begun) => exchange.unwrap(),
            () = send => unreachable!("it never ends"),
        }
    }

    fn namespaces(exchange: &Exchange) -> Vec<String> {
        match &exchange.outcome {
            Outcome::Complete(answer) | Outcome::Partial(answer, _) => {
                answer.records.iter().map(|record| record.key.namespace.to_owned()).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    /// As the real agent writes it: `<` takes six bytes, and the record's time comes after it.
    #[tokio::test]
    async fn a_command_line_of_any_length_hides_no_record() {
        let client = client();
        let all = client.budget.left();
        let long = record("ns-b", "web", &"\\u003c".repeat(720_000));
        let body = format!("[{},{long},{}]", record("ns-a", "web", "x"), record("ns-c", "web", "x"));
        assert!(body.len() > 4 << 20);
        let zstd = zstd::encode_all(body.as_bytes(), 1).unwrap();
        for (coding, body) in
            [("identity", body.clone().into_bytes()), ("gzip", gzip(body.as_bytes())), ("zstd", zstd)]
        {
            let exchange = exchange(&client, &format!("Content-Encoding: {coding}\r\n"), &body).await;
            assert!(
                matches!(exchange.outcome, Outcome::Complete(_)),
                "{coding}: {:?}",
                exchange.outcome.failure()
            );
            assert_eq!(namespaces(&exchange), ["ns-a", "ns-b", "ns-c"], "{coding}");
            let held = all - client.budget.left();
            assert!(held <= 2 << 20, "{coding}: {held} bytes of the budget");
        }
    }

    #[tokio::test]
    async fn what_is_read_of_an_answer_has_a_limit_and_what_came_before_it_is_used() {
        let options = ClientOptions { max_read: 1 << 19, ..(*client().options).clone() };
        let client = Client::new(options);
        let first = record("ns-a", "web", "x");
        let long = format!("[{first},{}]", record("ns-b", "web", &"x".repeat(1 << 20)));
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        // Each byte of the body has an extension of 16 KiB around it.
        let extension = format!("1;{}\r\n \r\n", "x".repeat(16_000)).repeat(64);
        let chunked = format!("{head}{:x}\r\n[{first},\r\n{extension}", first.len() + 2);
        let whole = |body: &[u8], headers: &str| {
            let head = format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
            [head.as_bytes(), body].concat()
        };
        let answers = [
            whole(long.as_bytes(), ""),
            whole(&gzip(long.as_bytes()), "Content-Encoding: gzip\r\n"),
            chunked.into_bytes(),
        ];
        for answer in answers {
            let exchange = exchange_raw(&client, &answer).await;
            let failure = exchange.outcome.failure().expect("more than is read");
            assert_eq!(failure.reason, FailureReason::TooLarge, "{failure:?}");
            assert_eq!(namespaces(&exchange), ["ns-a"]);
        }
        // Empty gzip members cost time for nothing.
        let members = gzip(b"").repeat(20_000);
        let exchange = exchange_raw(&client, &whole(&members, "Content-Encoding: gzip\r\n")).await;
        let failure = exchange.outcome.failure().expect("too many members");
        assert!(failure.detail.contains("256 parts"), "{failure:?}");
    }

    #[tokio::test]
    async fn an_agent_that_leaves_something_out_says_nothing_of_those_namespaces() {
        let client = client();
        let body = format!("[{}]", record("ns-a", "web", "x"));
        for (named, a, b) in
            [("ns-b, ns-c", false, true), ("*", true, true), ("NS?", true, true), ("", false, false)]
        {
            let headers = format!("ETag: \"a\"\r\nprocscan-left-out-namespaces: {named}\r\n");
            let exchange = exchange(&client, &headers, body.as_bytes()).await;
            let Outcome::Complete(answer) = exchange.outcome else { panic!("{:?}", exchange.outcome) };
            assert_eq!(
                (answer.left_out.concerns("ns-a"), answer.left_out.concerns("ns-b")),
                (a, b),
                "{named}"
            );
            assert_eq!(exchange.etag.is_some(), !a && !b, "{named}");
        }
    }

    #[tokio::test]
    async fn other_names_of_a_coding_and_all_forms_of_a_date_are_read() {
        let client = client();
        let body = format!("[{}]", record("ns-a", "web", "x"));
        let padded = [gzip(body.as_bytes()), vec![0; 512]].concat();
        for (coding, body) in
            [("", body.clone().into_bytes()), ("x-gzip", gzip(body.as_bytes())), ("gzip", padded)]
        {
            let exchange = exchange(&client, &format!("Content-Encoding: {coding}\r\n"), &body).await;
            assert!(matches!(exchange.outcome, Outcome::Complete(_)), "{coding:?}: {:?}", exchange.outcome);
        }
        for date in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Sun, 6 Nov 1994 09:49:37 +0100",
        ] {
            let exchange = exchange(&client, &format!("Date: {date}\r\n"), body.as_bytes()).await;
            let Outcome::Complete(answer) = exchange.outcome else { panic!("{:?}", exchange.outcome) };
            let told = answer.date.map(|date| date.to_string());
            assert_eq!(told.as_deref(), Some("1994-11-06T08:49:37Z"), "{date}");
        }
    }
}
