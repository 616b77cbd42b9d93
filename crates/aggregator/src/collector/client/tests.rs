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

/// A node is silent only if no byte of an answer came.
#[tokio::test]
async fn an_answer_that_breaks_off_has_another_failure_than_a_missing_answer() {
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

/// All of the answer is there at once, so the client waits for nothing.
#[tokio::test]
async fn after_the_deadline_nothing_is_read_or_decoded_and_decoded_records_are_used() {
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
        let Outcome::Partial(answer, failure) = exchange.outcome else { panic!("{:?}", exchange.outcome) };
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
        let context = body::RequestContext { deadline: Deadline::after(Duration::from_mins(1)), ..context() };
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
    all.cover(1 << 30).await;
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

/// A slow answer is ended also while it is decoded in parts: it asks for no more memory before it ends.
#[tokio::test]
async fn a_slow_answer_that_holds_memory_ends_for_one_that_waits_for_memory() {
    let record = r#"{"pod":"p","namespace":"ns-a","process":"xmrig","timestamp":"2026-01-01T00:00:00Z"}"#;
    let record = format!("{record}{}", " ".repeat(100));
    // How many records the body has, and how much of the budget its answer has taken when only the last byte is
    // missing.
    for (records, share) in [(200, 20 << 10), (500, 688 << 10)] {
        let client = client();
        let body = format!("[{}]", vec![&*record; records].join(","));
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let (stream, mut agent) = tokio::io::duplex(answer.len());
        // The agent does not send the last byte yet.
        agent.write_all(&answer.as_bytes()[..answer.len() - 1]).await.unwrap();
        let request = b"GET / HTTP/1.1\r\n\r\n".to_vec();
        let has_begun = AtomicBool::default();
        let slow = client.exchange(stream, request, None, context(), &has_begun);
        let waiting = async {
            // The slow answer has its share, and the rest is taken.
            while client.budget.left() > (6 << 20) - share {
                tokio::task::yield_now().await;
            }
            let (mut rest, mut overdrawn) = (client.budget.lease(false), client.budget.lease(false));
            rest.cover(client.budget.left() + (16 << 10)).await;
            overdrawn.cover(1 << 20).await;
            assert!(!client.budget.has_overdraft());
            let mut waiting = client.budget.lease(false);
            waiting.cover(32 << 10).await;
            assert!(waiting.ends_at().is_none());
        };
        let slow = async { slow.await.unwrap().outcome };
        let both = async { tokio::join!(slow, waiting) };
        let (outcome, ()) = tokio::time::timeout(Duration::from_secs(20), both).await.expect("both end");
        let Outcome::Partial(answer, failure) = outcome else { panic!("{outcome:?}") };
        assert_eq!(failure.reason, FailureReason::Stalled);
        assert!(answer.records.len() >= 200, "{} of {records}", answer.records.len());
    }
}

#[tokio::test]
async fn only_an_answer_that_was_read_to_its_end_lowers_the_expected_length_of_the_next_one() {
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
async fn an_answer_with_more_records_than_the_limit_is_whole_and_has_no_tag() {
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
        // An answer without records holds nothing.
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

/// The outcome of an answer with these header lines and this body.
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
async fn an_answer_is_read_up_to_a_limit_and_the_records_before_it_are_used() {
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
        let failure = exchange.outcome.failure().expect("longer than the limit of bytes read");
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
async fn an_answer_is_inconclusive_about_the_namespaces_of_which_the_agent_left_something_out() {
    let client = client();
    let body = format!("[{}]", record("ns-a", "web", "x"));
    for (named, a, b) in
        [("ns-b, ns-c", false, true), ("*", true, true), ("NS?", true, true), ("", false, false)]
    {
        let headers = format!("ETag: \"a\"\r\nprocscan-left-out-namespaces: {named}\r\n");
        let exchange = exchange(&client, &headers, body.as_bytes()).await;
        let Outcome::Complete(answer) = exchange.outcome else { panic!("{:?}", exchange.outcome) };
        assert_eq!((answer.left_out.concerns("ns-a"), answer.left_out.concerns("ns-b")), (a, b), "{named}");
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
        let read = answer.date.map(|date| date.to_string());
        assert_eq!(read.as_deref(), Some("1994-11-06T08:49:37Z"), "{date}");
    }
}
