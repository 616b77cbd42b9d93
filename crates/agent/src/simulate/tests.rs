use std::io::Read;

use flate2::read::MultiGzDecoder;
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

use super::*;
use crate::testing::{Answer, ask, ask_raw, open, seconds_until_closed, violations};

mod hostile;

/// A fleet that scans only on command and has scanned once.
fn fleet(nodes: usize, offenders_per_node: usize) -> Fleet {
    let scan_interval = Duration::ZERO;
    let options =
        FleetOptions { nodes, offenders_per_node, scan_interval, port: 0, ..FleetOptions::default() };
    let fleet = Fleet::start(options, &CancellationToken::new()).unwrap();
    (0..nodes).for_each(|node| fleet.scan_now(node));
    fleet
}

fn at(fleet: &Fleet, node: usize) -> SocketAddr {
    fleet.targets()[node].1
}

async fn answer(fleet: &Fleet, behaviour: Behaviour) -> Answer {
    fleet.set_behaviour(0, behaviour);
    violations(at(fleet, 0)).await
}

fn pods(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| record.pod.clone()).collect()
}

fn time_of(record: &Record) -> jiff::Timestamp {
    record.timestamp.parse().unwrap()
}

fn date_of(answer: &Answer) -> jiff::Timestamp {
    jiff::fmt::rfc2822::parse(answer.header("date").unwrap()).unwrap().timestamp()
}

#[tokio::test]
async fn each_address_is_a_node_of_its_own() {
    let fleet = fleet(300, 2);
    let targets = fleet.targets();
    assert_eq!(targets[0].0, "sim-0000");
    assert_eq!(targets[299].1.ip().to_string(), "127.64.1.44");
    for node in [0, 299] {
        let healthy = violations(at(&fleet, node)).await;
        assert_eq!((healthy.status(), healthy.header("content-type")), (200, Some("application/json")));
        let list = healthy.records();
        assert_eq!(pods(&list), pods(&fleet.offenders(node)));
        assert!(list[0].pod.starts_with(&format!("web-{node}-0-")), "{}", list[0].pod);
        assert_eq!(list[0].namespace, format!("ns-sim-{}", node % 100));
        assert!(list[0].timestamp.ends_with("+08:00"));
        assert_eq!(fleet.requests(node), 1);
    }
    assert_eq!(fleet.requests(1), 0);

    let outside = SocketAddr::from(([127, 64, 1, 45], targets[0].1.port()));
    let dropped = ask_raw(outside, "GET /health", "").await;
    assert!(dropped.map_or(true, |bytes| bytes.is_empty()), "no node has this address");
}

#[tokio::test]
async fn connections_persist_and_other_requests_are_answered() {
    let fleet = fleet(1, 1);
    let node = at(&fleet, 0);
    let mut stream = open(node, "GET /health", "").await;
    let mut first = [0; 512];
    let length = timeout(Duration::from_secs(5), stream.read(&mut first)).await.unwrap().unwrap();
    assert_eq!(Answer::parse(&first[..length]).text(), "{\"status\":\"ok\"}\n");
    let second = b"GET /api/violations HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, second).await.unwrap();
    let mut rest = Vec::new();
    timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert_eq!(Answer::parse(&rest).records().len(), 1);

    let refused = ask(node, "POST /api/violations", "").await;
    assert_eq!((refused.status(), refused.text()), (405, "Method not allowed\n"));
    assert_eq!(ask(node, "GET /", "").await.status(), 404);
    let long = format!("X: {}\r\n", "x".repeat(9000));
    assert_eq!(ask(node, "GET /health", &long).await.status(), 431);
}

#[tokio::test]
async fn correct_nodes_list_exactly_the_running_offenders_with_advancing_timestamps() {
    let fleet = fleet(1, 3);
    let before = answer(&fleet, Behaviour::Healthy).await.records();
    fleet.set_offender_count(0, 2);
    assert_eq!(violations(at(&fleet, 0)).await.records(), before, "the list changed without a scan");
    fleet.scan_now(0);
    let after = violations(at(&fleet, 0)).await.records();
    assert_eq!(pods(&after), pods(&before)[..2]);
    assert!(time_of(&after[0]) > time_of(&before[0]));
    fleet.set_offenders(0, Vec::new());
    fleet.scan_now(0);
    assert_eq!(violations(at(&fleet, 0)).await.text(), "[]\n");
}

#[tokio::test]
async fn upstream_nodes_list_one_offender_in_turn_and_never_clear_the_last() {
    let fleet = fleet(1, 3);
    let offenders = pods(&fleet.offenders(0));
    fleet.set_mode(0, Mode::Upstream);
    let mut seen = Vec::new();
    for _ in 0..4 {
        fleet.scan_now(0);
        let list = violations(at(&fleet, 0)).await.records();
        assert_eq!(list.len(), 1);
        seen.extend(list);
    }
    assert_eq!(pods(&seen), [0, 1, 2, 0].map(|turn: usize| offenders[turn].clone()));
    assert!(seen.is_sorted_by(|a, b| time_of(a) < time_of(b)));

    fleet.set_offender_count(0, 0);
    fleet.scan_now(0);
    assert_eq!(violations(at(&fleet, 0)).await.records(), seen[3..], "the last record has changed");
    fleet.restart(0);
    assert_eq!(violations(at(&fleet, 0)).await.text(), "[]\n");
    fleet.set_offender_count(0, 1);
    fleet.scan_now(0);
    assert_eq!(violations(at(&fleet, 0)).await.records().len(), 1);
}

#[tokio::test]
async fn behaviours_that_lie_about_the_list() {
    let fleet = fleet(1, 2);
    assert_eq!(answer(&fleet, Behaviour::Restarted).await.text(), "[]\n");
    let stale = answer(&fleet, Behaviour::StaleTimestamps).await;
    let age = date_of(&stale).duration_since(time_of(&stale.records()[0]));
    assert!(age.as_hours() >= 5, "{age}");
    fleet.scan_now(0);
    assert_eq!(answer(&fleet, Behaviour::StaleTimestamps).await.records(), stale.records());

    fleet.set_behaviour(0, Behaviour::OneAtATime);
    fleet.scan_now(0);
    assert_eq!(violations(at(&fleet, 0)).await.records().len(), 1);

    let before = jiff::Timestamp::now();
    let skewed = answer(&fleet, Behaviour::Skewed(-7200)).await;
    for shown in [date_of(&skewed), time_of(&skewed.records()[0])] {
        let behind = before.duration_since(shown).as_secs();
        assert!((7190..7260).contains(&behind), "{behind}");
    }
    assert_eq!(answer(&fleet, Behaviour::NoDate).await.header("date"), None);
}

#[tokio::test]
async fn behaviours_that_break_the_body() {
    let fleet = fleet(1, 2);
    let error = answer(&fleet, Behaviour::Error500).await;
    assert_eq!(error.status(), 500);
    let garbage = answer(&fleet, Behaviour::Garbage).await;
    assert_eq!(garbage.status(), 200);
    assert!(std::str::from_utf8(&garbage.body).is_err());
    assert_eq!(answer(&fleet, Behaviour::Null).await.text(), "null\n");
    let wrapped: serde_json::Value =
        serde_json::from_slice(&answer(&fleet, Behaviour::Wrapped).await.body).unwrap();
    assert_eq!(wrapped["violations"].as_array().unwrap().len(), 2);

    let mixed: Vec<serde_json::Value> =
        serde_json::from_slice(&answer(&fleet, Behaviour::MixedBad).await.body).unwrap();
    let good = mixed.iter().filter(|element| serde_json::from_value::<Record>((*element).clone()).is_ok());
    assert_eq!((mixed.len(), good.count()), (8, 2));

    let huge = answer(&fleet, Behaviour::HugeRecord).await.records();
    assert_eq!(huge.iter().map(|record| record.cmdline.len() >> 20).collect::<Vec<_>>(), [0, 0, 1]);
    let redirect = answer(&fleet, Behaviour::Redirect).await;
    assert_eq!((redirect.status(), redirect.header("location")), (302, Some("/elsewhere")));
}

#[tokio::test]
async fn behaviours_that_break_the_connection() {
    let fleet = fleet(1, 1);
    fleet.set_behaviour(0, Behaviour::Reset);
    let reset = ask_raw(at(&fleet, 0), "GET /api/violations", "").await.unwrap_err();
    assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(ask(at(&fleet, 0), "GET /health", "").await.status(), 200);

    let delay = Duration::from_millis(50);
    let asked = std::time::Instant::now();
    assert_eq!(answer(&fleet, Behaviour::Slow(delay)).await.records().len(), 1);
    assert!(asked.elapsed() >= delay);

    fleet.set_behaviour(0, Behaviour::Hang);
    let mut hanging = open(at(&fleet, 0), "GET /api/violations", "").await;
    assert_silent(&mut hanging).await;
    let taken = async {
        while fleet.requests(0) < 4 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(5), taken).await.expect("the request was received");

    fleet.set_behaviour(0, Behaviour::Drip(Duration::from_mins(1)));
    let mut dripping = open(at(&fleet, 0), "GET /api/violations", "").await;
    let mut bytes = [0; 16];
    let length = timeout(Duration::from_secs(5), dripping.read(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(&bytes[..length], b"H");
    assert_silent(&mut dripping).await;

    drop(fleet);
    let ended = timeout(Duration::from_secs(5), hanging.read(&mut bytes)).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "a dropped fleet has closed its connections");
}

async fn assert_silent(stream: &mut TcpStream) {
    let read = timeout(Duration::from_millis(50), stream.read_u8()).await;
    assert!(read.is_err(), "{read:?}");
}

#[tokio::test]
async fn an_endless_answer_is_a_valid_beginning_of_any_length() {
    let fleet = fleet(1, 0);
    fleet.set_behaviour(0, Behaviour::Endless);
    let stream = open(at(&fleet, 0), "GET /api/violations", "").await;
    let mut bytes = Vec::new();
    timeout(Duration::from_secs(5), stream.take(4 << 20).read_to_end(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(bytes.len(), 4 << 20);
    let beginning = Answer::parse(&bytes);
    assert_eq!(beginning.header("transfer-encoding"), Some("chunked"));
    let (size, chunk) = beginning.body.strip_prefix(b"1\r\n[\r\n").unwrap().split_at(4);
    let size = usize::from_str_radix(std::str::from_utf8(size).unwrap(), 16).unwrap();
    let records = chunk.strip_prefix(b"\r\n").unwrap()[..size].strip_suffix(b",").unwrap();
    let records: Vec<Record> = serde_json::from_slice(&[b"[", records, b"]"].concat()).unwrap();
    assert_eq!(records.len(), 128);
}

#[tokio::test]
async fn the_bombs_are_small_on_the_wire_and_valid_to_the_last_byte() {
    let fleet = fleet(1, 0);
    for (behaviour, encoding) in [(Behaviour::GzipBomb, "gzip"), (Behaviour::ZstdBomb, "zstd")] {
        let bomb = answer(&fleet, behaviour).await;
        assert_eq!(bomb.header("content-encoding"), Some(encoding));
        assert_eq!(bomb.header("content-length").unwrap().parse(), Ok(bomb.body.len()));
        assert!(bomb.body.len() < 2 << 20, "{}", bomb.body.len());
        let mut decoder: Box<dyn Read> = match encoding {
            "gzip" => Box::new(MultiGzDecoder::new(bomb.body.as_slice())),
            _ => Box::new(zstd::stream::read::Decoder::with_buffer(bomb.body.as_slice()).unwrap()),
        };
        let mut buffer = vec![0; 1 << 20];
        let (mut total, mut brackets) = (0, Vec::<u8>::new());
        loop {
            // At the end the decoder checks that the body is complete.
            let read = decoder.read(&mut buffer).unwrap();
            if read == 0 {
                break;
            }
            total += read;
            brackets.extend(buffer[..read].iter().filter(|byte| **byte != b' '));
        }
        assert_eq!(total, (1 << 30) + 2, "{encoding}");
        assert_eq!(brackets, b"[]", "{encoding}");
    }
}

#[tokio::test]
async fn faults_are_injected_from_the_end() {
    let fleet = fleet(3, 1);
    fleet.inject(&["null".parse().unwrap(), "error500".parse().unwrap()]).unwrap();
    let mut statuses = Vec::new();
    for node in 0..3 {
        let answer = violations(at(&fleet, node)).await;
        statuses.push((answer.status(), answer.body == b"null\n"));
    }
    assert_eq!(statuses, [(200, false), (200, true), (500, false)]);
    assert!(fleet.inject(&["null:4".parse().unwrap()]).is_err());
}

#[tokio::test(start_paused = true)]
async fn silent_connections_are_closed_after_10_s_and_hanging_ones_after_120_s() {
    let fleet = fleet(1, 0);
    fleet.set_behaviour(0, Behaviour::Hang);
    assert_eq!(seconds_until_closed(TcpStream::connect(at(&fleet, 0)).await.unwrap()).await, 10);
    assert_eq!(seconds_until_closed(open(at(&fleet, 0), "GET /api/violations", "").await).await, 120);
}

#[tokio::test(start_paused = true)]
async fn a_script_is_played_on_time() {
    let fleet = fleet(3, 1);
    let script = "steps:\n- {at: 1h, nodes: 1-2, behaviour: hang}\n- {at: 2h, nodes: 0, offenders: 5}";
    let script = Script::from_yaml(script).unwrap();
    let (cancel, start) = (CancellationToken::new(), tokio::time::Instant::now());
    let behaviours = || (0..3).map(|n| fleet.with(n, |node| node.behaviour).unwrap()).collect::<Vec<_>>();
    let watch = async {
        sleep(Duration::from_secs(3599)).await;
        assert_eq!(behaviours(), [Behaviour::Healthy; 3]);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(behaviours(), [Behaviour::Healthy, Behaviour::Hang, Behaviour::Hang]);
    };
    let (played, ()) = tokio::join!(fleet.play(script.clone(), cancel.clone()), watch);
    played.unwrap();
    assert_eq!((start.elapsed().as_secs() / 3600, fleet.offenders(0).len()), (2, 5));

    cancel.cancel();
    fleet.set_offender_count(0, 0);
    fleet.play(script, cancel.clone()).await.unwrap();
    assert_eq!(fleet.offenders(0).len(), 0, "cancelled before its first step");
    let missing = Script::from_yaml("steps: [{at: 0s, nodes: 3, restart: true}]").unwrap();
    assert!(fleet.play(missing, cancel).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn nodes_with_an_interval_scan_by_themselves() {
    let scan_interval = Duration::from_mins(1);
    let options = FleetOptions { nodes: 100, scan_interval, port: 0, ..FleetOptions::default() };
    let upstream = FleetOptions { mode: Mode::Upstream, ..options.clone() };
    let correct = Fleet::start(options, &CancellationToken::new()).unwrap();
    let upstream = Fleet::start(upstream, &CancellationToken::new()).unwrap();
    let listing =
        |fleet: &Fleet| (0..100).filter(|n| fleet.with(*n, |node| !node.list().is_empty()).unwrap()).count();
    assert_eq!((listing(&correct), listing(&upstream)), (100, 0));
    correct.restart(7);
    assert_eq!(listing(&correct), 99);
    sleep(Duration::from_secs(59)).await;
    assert_eq!((listing(&correct), listing(&upstream)), (99, 0));
    sleep(Duration::from_secs(62)).await;
    assert_eq!((listing(&correct), listing(&upstream)), (100, 100));
}

#[tokio::test]
async fn impossible_fleets_are_refused() {
    for (nodes, base) in [(0, [127, 64, 0, 1]), (2, [255, 255, 255, 255])] {
        let options = FleetOptions { nodes, base: base.into(), port: 0, ..FleetOptions::default() };
        let error = Fleet::start(options, &CancellationToken::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
