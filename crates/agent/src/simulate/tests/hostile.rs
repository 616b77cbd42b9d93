//! Answers by which a tenant hides others, or a node costs too much.

use std::borrow::Cow;

use super::*;
use crate::simulate::http::Head;
use crate::simulate::stream;

/// The data of a chunked body up to its last whole chunk, and whether the body is whole.
fn unchunked(mut body: &[u8]) -> (Vec<u8>, bool) {
    let mut data = Vec::new();
    while let Some(end) = body.windows(2).position(|two| two == b"\r\n") {
        let line = std::str::from_utf8(&body[..end]).unwrap();
        let size = usize::from_str_radix(line.split(';').next().unwrap(), 16).unwrap();
        if size == 0 {
            return (data, body == b"0\r\n\r\n");
        }
        let Some(chunk) = body.get(end + 2..end + 2 + size + 2) else { break };
        data.extend_from_slice(chunk.strip_suffix(b"\r\n").unwrap());
        body = &body[end + 2 + size + 2..];
    }
    (data, false)
}

async fn chunked(fleet: &Fleet, behaviour: Behaviour) -> (Vec<Record>, usize) {
    let answer = answer(fleet, behaviour).await;
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
    let (data, is_whole) = unchunked(&answer.body);
    assert!(is_whole);
    (serde_json::from_slice(&data).unwrap(), data.len())
}

#[tokio::test]
async fn a_long_command_line_comes_before_its_timestamp_and_before_other_tenants() {
    let fleet = fleet(1, 2);
    assert_eq!(fleet.neighbour(0), None);
    let others = pods(&fleet.offenders(0));
    let (records, bytes) = chunked(&fleet, Behaviour::LongCmdline(100_000)).await;
    let neighbour = fleet.neighbour(0).unwrap();
    assert_eq!(pods(&records), [&others[0], &neighbour.pod, &others[1]].map(Clone::clone));
    assert_eq!((neighbour.pod.as_str(), neighbour.namespace.as_str()), ("long-0", "ns-long-0"));
    assert_eq!(records[1].cmdline, format!("xmrig {}", "<".repeat(3 * 8192)));
    assert!((100_000..200_000).contains(&bytes), "{bytes}");
    assert_eq!(time_of(&records[1]), time_of(&records[2]));
}

#[tokio::test]
async fn a_flood_is_one_pod_with_many_names_before_other_tenants() {
    let fleet = fleet(1, 3);
    let others = pods(&fleet.offenders(0));
    for (behaviour, count, least) in [
        (Behaviour::Flood(1000), 1000, 150_000),
        (Behaviour::Flood(1), 1, 500),
        (Behaviour::FloodLong, 80, 4 << 20),
    ] {
        let (records, bytes) = chunked(&fleet, behaviour).await;
        assert_eq!(records.len(), count + 3);
        let (flood, after) = records[1..].split_at(count);
        assert_eq!([pods(&records[..1]), pods(after)].concat(), others);
        let neighbour = fleet.neighbour(0).unwrap();
        assert!(flood.iter().all(|record| record.pod == neighbour.pod && record.namespace == "ns-flood-0"));
        let names: std::collections::BTreeSet<_> = flood.iter().map(|record| &record.process).collect();
        assert_eq!(names.len(), count);
        assert!(bytes > least, "{bytes}");
    }
    fleet.set_offender_count(0, 0);
    fleet.scan_now(0);
    assert_eq!(chunked(&fleet, Behaviour::Flood(100)).await.0.len(), 100);
}

#[test]
fn no_piece_of_a_long_answer_is_long() {
    let head = Head { date: None, keep: false };
    let record = crate::simulate::node::offender(0, 0, 0, 1);
    let list = vec![record.clone(); 3];
    for (pieces, least) in [
        (stream::long_cmdline(&head, list.clone(), record.clone(), 48 << 20), 48 << 20),
        (stream::flood(&head, &list, record, 50_000, 0), 10 << 20),
        (stream::gzip_members(&head, &list), 40_000_000),
    ] {
        let lengths: Vec<usize> = pieces.map(|piece: Cow<'_, [u8]>| piece.len()).collect();
        assert!(lengths.iter().sum::<usize>() > least);
        assert!(lengths.iter().all(|length| *length <= 80_000), "{:?}", lengths.iter().max());
    }
}

#[tokio::test]
async fn chunk_extensions_are_large_and_their_data_is_small() {
    let fleet = fleet(1, 2);
    fleet.set_behaviour(0, Behaviour::ChunkExtensions);
    let stream = open(at(&fleet, 0), "GET /api/violations", "").await;
    let mut bytes = Vec::new();
    timeout(Duration::from_secs(5), stream.take(1 << 20).read_to_end(&mut bytes)).await.unwrap().unwrap();
    let beginning = Answer::parse(&bytes);
    assert_eq!(beginning.header("transfer-encoding"), Some("chunked"));
    let (data, is_whole) = unchunked(&beginning.body);
    assert!(!is_whole && data.len() < 2000, "{}", data.len());
    let longest = beginning.body.split(|byte| *byte == b'\n').map(<[u8]>::len).max();
    assert_eq!(longest, Some((16 << 10) - 4));
    let records: Vec<Record> = serde_json::from_slice(&[data.as_slice(), b"]"].concat()).unwrap();
    assert_eq!(pods(&records), pods(&fleet.offenders(0)));
}

#[tokio::test]
async fn empty_gzip_members_follow_the_list() {
    let fleet = fleet(1, 2);
    let answer = answer(&fleet, Behaviour::GzipMembers).await;
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    assert_eq!(answer.header("content-length").unwrap().parse(), Ok(answer.body.len()));
    assert_eq!(serde_json::from_slice::<Vec<Record>>(&answer.unzipped()).unwrap().len(), 2);
    let empty = stream::gzip(b"");
    let members = answer.body.rchunks_exact(empty.len()).take_while(|member| *member == empty);
    assert_eq!((members.count(), empty.len()), (2_000_000, 20));
}

#[tokio::test]
async fn gzip_may_be_padded_or_have_its_old_name() {
    let fleet = fleet(1, 2);
    let padded = answer(&fleet, Behaviour::ZeroPadding).await;
    assert_eq!(padded.header("content-encoding"), Some("gzip"));
    assert!(padded.body.ends_with(&[0; 1024]));
    let old = answer(&fleet, Behaviour::XGzip).await;
    assert_eq!(old.header("content-encoding"), Some("x-gzip"));
    for answer in [padded, old] {
        let records: Vec<Record> = serde_json::from_slice(&answer.unzipped()).unwrap();
        assert_eq!(pods(&records), pods(&fleet.offenders(0)));
    }
}

#[tokio::test]
async fn lone_surrogates_are_in_each_command_line() {
    let fleet = fleet(1, 2);
    let answer = answer(&fleet, Behaviour::LoneSurrogates).await;
    let text = answer.text();
    assert_eq!(text.matches("\\udcff\",\"regex\"").count(), 2);
    assert!(serde_json::from_str::<serde_json::Value>(text).is_err(), "half of a pair is no character");
    let records: Vec<Record> = serde_json::from_str(&text.replace("\\udcff", "")).unwrap();
    assert_eq!(pods(&records), pods(&fleet.offenders(0)));
}
