//! The list of `GET /api/violations` in each of its forms.

use std::io::Read;
use std::sync::mpsc;
use std::time::Duration;

use axum::http::{HeaderValue, Method};
use futures_util::FutureExt;
use futures_util::future::join_all;
use http_body_util::BodyExt;
use procscan_core::Moment;

use super::*;
use crate::api::list::PlainBody;
use crate::api::negotiation::Encoding;

const GZIP: &[(&str, &str)] = &[("accept-encoding", "gzip")];
const ZSTD: &[(&str, &str)] = &[("accept-encoding", "gzip, zstd")];

/// A list that is worth compressing. `last` makes it another one.
fn large(last: &str) -> String {
    let pods = (0..50).map(|n| format!("p-{n}")).chain([last.to_owned()]);
    let records: Vec<String> =
        pods.map(|pod| RECORD.replace(r#""pod":"p""#, &format!(r#""pod":"{pod}""#))).collect();
    format!("[{}]", records.join(","))
}

fn list(method: Method, headers: &[(&str, &str)]) -> Request<Body> {
    let request = Request::builder().method(method).uri("/api/violations");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.body(Body::empty()).unwrap()
}

impl Stage {
    async fn list(&self, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap, Bytes) {
        self.ask_bytes(list(Method::GET, headers)).await
    }
}

fn decoded(headers: &HeaderMap, body: &[u8]) -> Vec<u8> {
    match headers.get("content-encoding").map(HeaderValue::as_bytes) {
        None => body.to_vec(),
        Some(b"zstd") => zstd::decode_all(body).unwrap(),
        Some(b"gzip") => {
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(body).read_to_end(&mut plain).unwrap();
            plain
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_form_is_the_same_list_under_its_own_tag() {
    let mut stage = Stage::new();
    stage.answer("n1", &large("a"));
    let (_, headers, plain) = stage.list(&[]).await;
    assert!(!headers.contains_key("content-encoding"));
    assert_eq!(json(std::str::from_utf8(&plain).unwrap())["total_count"], 51);
    let mut tags = vec![headers["etag"].clone()];
    for (asked, encoding) in [(GZIP, "gzip"), (ZSTD, "zstd")] {
        let (status, headers, body) = stage.list(asked).await;
        assert_eq!(
            (status, &headers["content-encoding"]),
            (StatusCode::OK, &HeaderValue::from_static(encoding))
        );
        assert_eq!(headers["vary"], "Accept-Encoding, Authorization");
        assert_eq!(headers["content-length"], body.len().to_string());
        assert_eq!(
            (&headers["content-type"], &headers["cache-control"]),
            (&"application/json".parse().unwrap(), &"private, no-cache".parse().unwrap())
        );
        assert_eq!(headers["x-procscan-targets-fresh"], "1");
        assert!(body.len() * 4 < plain.len());
        assert_eq!(decoded(&headers, &body), plain);
        tags.push(headers["etag"].clone());
    }
    let [plain_tag, gzip_tag, zstd_tag] = tags.try_into().unwrap();
    assert!(plain_tag != gzip_tag && gzip_tag != zstd_tag && zstd_tag != plain_tag);
    assert!(plain_tag.to_str().unwrap().starts_with('"'), "strong");
}

#[tokio::test]
async fn no_form_is_sent_again_to_who_has_it() {
    let mut stage = Stage::new();
    for (n, asked) in [&[], GZIP, ZSTD].into_iter().enumerate() {
        stage.answer("n1", &large(&format!("a-{n}")));
        let tag = stage.list(asked).await.1["etag"].clone();
        let polled = [asked, &[("if-none-match", tag.to_str().unwrap())]].concat();
        let (status, headers, body) = stage.list(&polled).await;
        assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0));
        assert_eq!(
            (&headers["etag"], &headers["vary"]),
            (&tag, &"Accept-Encoding, Authorization".parse().unwrap())
        );
        assert!(
            headers.contains_key("x-procscan-targets-fresh") && !headers.contains_key("content-encoding")
        );
        // A client without the header accepts the other forms, and has this one.
        let (status, headers, _) = stage.list(&[("if-none-match", tag.to_str().unwrap())]).await;
        assert_eq!((status, &headers["etag"]), (StatusCode::NOT_MODIFIED, &tag));

        stage.answer("n1", &large(&format!("b-{n}")));
        let (status, headers, _) = stage.list(&polled).await;
        assert_eq!(status, StatusCode::OK);
        assert_ne!(headers["etag"], tag);
    }
    // A client that refuses a form gets the list, although it names the tag of that form.
    let gzip = stage.list(GZIP).await.1["etag"].clone();
    let (status, headers, _) =
        stage.list(&[("accept-encoding", "identity"), ("if-none-match", gzip.to_str().unwrap())]).await;
    assert_eq!((status, headers.contains_key("content-encoding")), (StatusCode::OK, false));
}

#[tokio::test]
async fn a_poll_that_finds_no_change_makes_nothing() {
    let mut stage = Stage::new();
    stage.answer("n1", &large("a"));
    let tag = stage.list(&[]).await.1["etag"].to_str().unwrap().to_owned();
    for known in [tag.as_str(), "*"] {
        let (status, ..) = stage.list(&[("accept-encoding", "gzip, zstd"), ("if-none-match", known)]).await;
        assert_eq!(status, StatusCode::NOT_MODIFIED);
    }
    assert_eq!(stage.lists.whole.compressions(), 0);
}

#[tokio::test]
async fn a_small_list_stays_as_it_is_and_who_refuses_that_gets_it_compressed() {
    let mut stage = Stage::new();
    stage.answer("n1", &format!("[{RECORD}]"));
    let (_, headers, plain) = stage.list(ZSTD).await;
    assert!(!headers.contains_key("content-encoding"));
    assert_eq!(headers["vary"], "Accept-Encoding, Authorization");
    let (_, headers, body) = stage.list(&[("accept-encoding", "zstd, identity;q=0")]).await;
    assert_eq!(
        (headers["content-encoding"].as_bytes(), decoded(&headers, &body)),
        (&b"zstd"[..], plain.to_vec())
    );

    let (status, headers, body) =
        stage.list(&[("accept-encoding", "br"), ("accept-encoding", "*;q=0")]).await;
    assert_eq!(
        (status, &headers["content-type"]),
        (StatusCode::NOT_ACCEPTABLE, &"application/problem+json".parse().unwrap())
    );
    assert_eq!(headers["vary"], "Accept-Encoding, Authorization");
    let problem = json(std::str::from_utf8(&body).unwrap());
    assert_eq!(
        (&problem["parameter"], &problem["value"], &problem["expected"]),
        (&json!("Accept-Encoding"), &json!("br, *;q=0"), &json!("one of zstd, gzip, identity"))
    );
}

#[tokio::test]
async fn the_head_alone_is_that_of_the_whole() {
    let mut stage = Stage::new();
    stage.answer("n1", &large("a"));
    for asked in [&[], GZIP, ZSTD] {
        let (_, whole, body) = stage.list(asked).await;
        let (status, headers, nothing) = stage.ask_bytes(list(Method::HEAD, asked)).await;
        assert_eq!((status, headers, nothing.len()), (StatusCode::OK, whole, 0));
        assert!(!body.is_empty());
        let polled = [asked, &[("if-none-match", "*")]].concat();
        assert_eq!(stage.ask_bytes(list(Method::HEAD, &polled)).await.0, StatusCode::NOT_MODIFIED);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn however_many_ask_at_once_each_form_is_made_once_and_shared() {
    let mut stage = Stage::new();
    for (changes, last) in [(1, "a"), (2, "b")] {
        stage.answer("n1", &large(last));
        for (n, asked) in [&[], GZIP, ZSTD].into_iter().enumerate() {
            let requests = (0..64).map(|_| {
                let (router, request) = (stage.router.clone(), list(Method::GET, asked));
                tokio::spawn(async move {
                    let answer = router.oneshot(request).await.unwrap();
                    answer.into_body().collect().await.unwrap().to_bytes()
                })
            });
            let bodies: Vec<Bytes> = join_all(requests).await.into_iter().map(Result::unwrap).collect();
            // All are held, so equal addresses mean the same allocation.
            assert!(
                bodies
                    .iter()
                    .all(|body| body.as_ptr() == bodies[0].as_ptr() && body.len() == bodies[0].len())
            );
            assert_eq!(stage.lists.whole.compressions(), (changes - 1) * 2 + n);
        }
    }
}

#[tokio::test]
async fn a_list_that_no_request_waits_for_is_not_compressed_and_any_other_is_once() {
    let mut stage = Stage::new();
    stage.answer("n1", &large("a"));
    let lists = stage.lists.clone();
    let hold = lists.whole.hold().await;
    let ask = || tokio::spawn(stage.router.clone().oneshot(list(Method::GET, GZIP)));
    let soon = || tokio::time::sleep(std::time::Duration::from_millis(50));
    // The first goes away while it waits; the second gets what was begun for the first.
    let (gone, stays) = (ask(), ask());
    soon().await;
    gone.abort();
    assert!(gone.await.is_err());
    drop(hold);
    assert_eq!(stays.await.unwrap().unwrap().headers()["content-encoding"], "gzip");
    assert_eq!(stage.lists.whole.compressions(), 1);

    stage.answer("n1", &large("b"));
    let hold = lists.whole.hold().await;
    let gone = tokio::spawn(stage.router.clone().oneshot(list(Method::GET, GZIP)));
    soon().await;
    gone.abort();
    assert!(gone.await.is_err());
    stage.answer("n1", &large("c"));
    stage.list(&[]).await;
    drop(hold);
    let (_, headers, body) = stage.list(GZIP).await;
    assert!(String::from_utf8(decoded(&headers, &body)).unwrap().contains(r#""pod":"c""#));
    assert_eq!(stage.lists.whole.compressions(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_not_compressed_in_time_is_sent_as_it_is() {
    let mut stage = Stage::new();
    stage.answer("n1", &large("a"));
    let lists = stage.lists.clone();
    let hold = lists.whole.hold().await;
    let asked = tokio::time::Instant::now();
    let (status, headers, body) = stage.list(GZIP).await;
    assert_eq!((status, headers.get("content-encoding")), (StatusCode::OK, None));
    assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
    assert_eq!(headers["etag"], stage.list(&[]).await.1["etag"]);
    assert_eq!(json(std::str::from_utf8(&body).unwrap())["total_count"], 51);
    drop(hold);
}

#[tokio::test]
async fn an_earlier_snapshot_does_not_bring_an_old_list_back() {
    let mut stage = Stage::new();
    stage.answer("n1", &large("a"));
    let old = stage.shown();
    stage.answer("n1", &large("b"));
    let new = stage.shown();
    let current = stage.lists.whole.current(&new).list;
    let etag = current.etag(Encoding::Gzip).clone();
    assert!(current.plain().await.is_some());
    let overtaken = stage.lists.whole.current(&old).list;
    assert_eq!(overtaken.etag(Encoding::Gzip), &etag);
    assert!(Arc::ptr_eq(&current, &overtaken));
    // The same list goes on as long as nothing in it changes, with the coverage of its time; and an old one goes.
    stage.answer("n2", "[]");
    let later = stage.shown();
    let shown = stage.lists.whole.current(&later);
    assert!(Arc::ptr_eq(&current, &shown.list));
    assert_eq!(shown.headers[1].1, "2");
    let weak = Arc::downgrade(&current);
    drop((current, overtaken, shown));
    stage.answer("n2", &format!("[{}]", RECORD.replace("ns-a", "ns-b")));
    stage.list(&[]).await;
    assert!(weak.upgrade().is_none());
}

/// Records whose list is sent in pieces if both nodes have them. `last` is the last Pod.
fn long(node: &str, last: &str) -> String {
    let cmdline = "x".repeat(4000);
    let long = RECORD.replace("<b>", &cmdline);
    let pods = (0..599).map(|n| format!("{node}-{n}")).chain([last.to_owned()]);
    let records: Vec<String> =
        pods.map(|pod| long.replace(r#""pod":"p""#, &format!(r#""pod":"{pod}""#))).collect();
    format!("[{}]", records.join(","))
}

#[tokio::test]
async fn a_long_list_is_sent_in_pieces_and_is_the_same_in_every_form() {
    let mut stage = Stage::new();
    for node in ["n1", "n2"] {
        stage.answer(node, &long(node, &format!("{node}-last")));
    }
    let (status, headers, plain) = stage.list(&[]).await;
    assert_eq!((status, &headers["content-length"]), (StatusCode::OK, &HeaderValue::from(plain.len())));
    let shown = json(std::str::from_utf8(&plain).unwrap());
    assert_eq!(shown["total_count"], 1200);
    assert_eq!(shown["violations"].as_array().unwrap().len(), 1200);
    // Its members come in the order of the first README.
    let rest = plain.rsplit(|byte| *byte == b']').next().unwrap();
    let rest = std::str::from_utf8(rest).unwrap();
    assert!(rest.starts_with(r#","update_time":""#) && rest.ends_with(r#"Z","total_count":1200}"#), "{rest}");
    assert_eq!(stage.lists.size(), 0);
    for asked in [GZIP, ZSTD] {
        let (_, headers, body) = stage.list(asked).await;
        assert!(headers.contains_key("content-encoding"));
        assert_eq!(decoded(&headers, &body), plain);
    }
    let etag = headers["etag"].to_str().unwrap();
    assert_eq!(stage.list(&[("if-none-match", etag)]).await.0, StatusCode::NOT_MODIFIED);
    let (_, head, nothing) = stage.ask_bytes(list(Method::HEAD, &[])).await;
    assert_eq!((&head["content-length"], nothing.len()), (&HeaderValue::from(plain.len()), 0));
}

/// The snapshot that `stage` shows, so long after `earlier`.
fn later(stage: &Stage, earlier: &Snapshot, time: Duration) -> Snapshot {
    let mut snapshot = Snapshot::clone(&stage.shown());
    snapshot.at = Moment::new(earlier.at.uptime() + time, earlier.at.wall());
    snapshot
}

#[tokio::test]
async fn a_long_list_is_replaced_once_a_second_at_most() {
    let mut stage = Stage::new();
    stage.answer("n1", &long("n1", "a"));
    stage.answer("n2", &long("n2", "b"));
    let old = stage.shown();
    let current = stage.lists.whole.current(&old).list;
    assert!(current.plain().await.is_some());
    stage.answer("n2", &long("n2", "c"));
    for (millis, is_old) in [(0, true), (999, true), (1000, false)] {
        let new = later(&stage, &old, Duration::from_millis(millis));
        assert_eq!(Arc::ptr_eq(&stage.lists.whole.current(&new).list, &current), is_old, "{millis}");
    }
}

/// Keeps the thread that writes lists busy until the sender is dropped.
fn keep_writer_busy(stage: &Stage) -> mpsc::Sender<()> {
    let (busy, end) = mpsc::channel();
    drop(stage.api.writer.run(move || end.recv()));
    busy
}

#[tokio::test]
async fn a_long_list_that_was_made_is_replaced_although_the_client_that_began_it_hung_up() {
    let mut stage = Stage::new();
    let busy = keep_writer_busy(&stage);
    stage.answer("n1", &long("n1", "a"));
    stage.answer("n2", &long("n2", "b"));
    let old = stage.shown();
    let current = stage.lists.whole.current(&old).list;
    assert!(current.plain().now_or_never().is_none());
    stage.answer("n2", &long("n2", "c"));
    let new = later(&stage, &old, Duration::from_mins(1));
    assert!(Arc::ptr_eq(&stage.lists.whole.current(&new).list, &current), "it is being made");
    drop(busy);
    stage.api.writer.run(|| ()).await.unwrap();
    assert!(!Arc::ptr_eq(&stage.lists.whole.current(&new).list, &current));
}

#[tokio::test]
async fn a_short_list_in_pieces_is_replaced_only_when_it_is_made() {
    let mut stage = Stage::new();
    let busy = keep_writer_busy(&stage);
    let _in_flight = stage.api.budget.count(vec![0; without_cluster().api.max_in_flight]);
    stage.answer("n1", &large("a"));
    let old = stage.shown();
    let current = stage.lists.whole.current(&old).list;
    stage.answer("n1", &large("b"));
    let new = later(&stage, &old, Duration::from_millis(100));
    assert!(Arc::ptr_eq(&stage.lists.whole.current(&new).list, &current));
    drop(busy);
    let Some(PlainBody::Pieces(pieces)) = current.plain().await else { panic!("the budget is used up") };
    assert!(!Arc::ptr_eq(&stage.lists.whole.current(&new).list, &current));
    // It counts as a replaced list: when too many records have changed, its readers are cut off.
    for (seconds, texts, is_cut_off) in [(1, "xx", false), (2, "yy", true)] {
        for node in ["n1", "n2"] {
            stage.answer(node, &long(node, "c").replace("xx", texts));
        }
        let new = later(&stage, &new, Duration::from_secs(seconds));
        stage.lists.whole.current(&new).list.plain().await.unwrap();
        assert_eq!(pieces.iter().any(|piece| piece.is_err()), is_cut_off, "{texts}");
    }
}

#[tokio::test]
async fn a_list_that_escapes_make_long_is_held_in_pieces_and_replaced_once_a_second_at_most() {
    let mut stage = Stage::new();
    let answer = |last| long("n1", last).replace("xx", r"\u0001\u0001");
    stage.answer("n1", &answer("a"));
    let old = stage.shown();
    let current = stage.lists.whole.current(&old).list;
    let Some(plain) = current.plain().await else { panic!("the list can be made") };
    assert!(matches!(plain, PlainBody::Pieces(_)));
    assert_eq!(stage.lists.size(), 0);
    let body = plain.body().collect().await.unwrap().to_bytes();
    assert_eq!(body.len(), plain.len());
    assert_eq!(json(std::str::from_utf8(&body).unwrap())["total_count"], 600);
    stage.answer("n1", &answer("b"));
    for (millis, is_old) in [(999, true), (1000, false)] {
        let new = later(&stage, &old, Duration::from_millis(millis));
        assert_eq!(Arc::ptr_eq(&stage.lists.whole.current(&new).list, &current), is_old, "{millis}");
    }
}

/// A client gets the whole list that it began to read, even if a newer list replaces it meanwhile.
#[tokio::test]
async fn a_reader_of_a_long_list_gets_all_of_it_although_it_is_replaced() {
    let mut stage = Stage::new();
    stage.answer("n1", &long("n1", "a"));
    stage.answer("n2", &long("n2", "b"));
    let (_, _, plain) = stage.list(&[]).await;
    let response = stage.router.clone().oneshot(list(Method::GET, &[])).await.unwrap();
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    stage.answer("n2", &long("n2", "c"));
    stage.lists.whole.current(&later(&stage, &stage.shown(), Duration::from_secs(1)));
    let rest = body.collect().await.unwrap().to_bytes();
    assert_eq!([first, rest].concat(), plain);
}
