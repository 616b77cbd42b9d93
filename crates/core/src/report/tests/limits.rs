//! The limits of an answer, and how its tenants share them.

use std::collections::BTreeSet;

use super::*;

#[test]
fn fields_are_cut_at_characters_and_records_counted_beyond_their_limit() {
    let limits = Limits { records: 2, process: 8, cmdline: 10, field: 64, ..Limits::default() };
    let long = with("cmdline", "\"ääääääääääää\"");
    let (answer, _) = decode(long.as_bytes(), &limits);
    assert_eq!(first(&answer).cmdline.as_ref(), "äää…");
    assert!(first(&answer).cmdline.len() <= 10);

    let body = format!("[{GOOD},{GOOD},{GOOD},{GOOD}]");
    let (answer, result) = decode(body.as_bytes(), &limits);
    result.unwrap();
    assert_eq!((answer.records.len(), answer.rejected.of(Rejection::OverLimit)), (2, 2));
}

#[test]
fn the_namespaces_of_records_beyond_the_limit_are_known_as_far_as_there_are_not_too_many() {
    let limits = Limits { records: 1, ..Limits::default() };
    let of = |namespaces: &[&str]| {
        let records: Vec<String> = namespaces.iter().map(|namespace| with_namespace(namespace)).collect();
        let (answer, result) = decode(format!("[{}]", records.join(",")).as_bytes(), &limits);
        result.unwrap();
        assert_eq!(answer.records.len(), 1);
        answer.left_out
    };
    assert!(of(&["ns-a"]).is_empty());
    let left_out = of(&["ns-a", "ns-b", "ns-b", "NS", "ns-c"]);
    let concerned = ["ns-a", "ns-b", "ns-c", "ns-d", "NS"].map(|namespace| left_out.concerns(namespace));
    assert_eq!((concerned, left_out.is_empty()), ([false, true, true, false, false], false));
    let names: Vec<String> = (0..LeftOut::MAX_NAMESPACES + 2).map(|n| format!("ns-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let full = of(&names[..=LeftOut::MAX_NAMESPACES]);
    assert!(full.concerns("ns-1") && !full.concerns("ns-0"));
    let overfull = of(&names);
    assert!(overfull.concerns("ns-0") && overfull.concerns("ns-a") && !overfull.is_empty());
}

fn with_namespace(namespace: &str) -> String {
    let list = with("namespace", &format!("\"{namespace}\""));
    list.trim_matches(['[', ']']).to_owned()
}

/// How many records each namespace has in the answer to a list.
fn counted(records: &[Vec<String>], limits: &Limits) -> (Vec<usize>, Answer) {
    let (answer, result) = decode(format!("[{}]", records.concat().join(",")).as_bytes(), limits);
    result.unwrap();
    let counts = ["ns-a", "ns-b", "ns-c"]
        .map(|namespace| answer.records.iter().filter(|record| record.key.namespace == namespace).count());
    (counts.into(), answer)
}

#[test]
fn a_tenant_with_many_records_leaves_room_for_those_of_others() {
    let limits = Limits { records: 100, ..Limits::default() };
    let lists = [records_of("ns-a", 5000, 10), records_of("ns-b", 40, 10), records_of("ns-c", 3, 10)];
    let (counts, answer) = counted(&lists, &limits);
    assert_eq!(counts, [57, 40, 3]);
    assert_eq!(answer.rejected.of(Rejection::OverLimit), 5000 - 57);
    assert_eq!(["ns-a", "ns-b", "ns-c"].map(|of| answer.left_out.concerns(of)), [true, false, false]);
    let first =
        answer.records.iter().filter(|record| record.key.namespace == "ns-a").map(|it| it.key.process);
    assert!(first.eq((0..57).map(|n| format!("p{n}"))), "those that came first");
}

#[test]
fn records_that_can_not_be_shared_evenly_are_for_the_tenants_that_came_first() {
    let of = |namespace, count| records_of(namespace, count, 10);
    let limits = Limits { records: 8, ..Limits::default() };
    let (counts, answer) = counted(&[of("ns-c", 5), of("ns-a", 5), of("ns-b", 5)], &limits);
    assert_eq!((counts, answer.records.len()), (vec![3, 2, 3], 8));
    // The order of namespaces is that of their first records in the answer. Later records and timestamps do not change it.
    let mut late = of("ns-c", 5);
    let first = vec![late.remove(0)];
    let late = late.iter().map(|record| record.replace("2026-01-01", "2026-01-02")).collect();
    let (counts, _) = counted(&[first, of("ns-a", 5), of("ns-b", 5), late], &limits);
    assert_eq!(counts, [3, 2, 3]);
    // The first namespace has room for all its records.
    let (counts, answer) = counted(&[of("ns-a", 2), of("ns-b", 3), of("ns-c", 3), of("ns-d", 1)], &limits);
    assert_eq!((counts, answer.records.len()), (vec![2, 3, 2], 8));
}

#[test]
fn a_tenant_with_long_command_lines_leaves_room_for_those_of_others() {
    let limits = Limits { bytes: 64 << 10, ..Limits::default() };
    let lists = [records_of("ns-a", 70, 62_000), records_of("ns-b", 4, 4000), records_of("ns-c", 1, 10)];
    let (counts, answer) = counted(&lists, &limits);
    assert_eq!((counts[1], counts[2]), (4, 1));
    assert!((8..16).contains(&counts[0]), "{counts:?}");
    assert!(answer.records.bytes() <= limits.bytes);
    assert_eq!(answer.rejected.of(Rejection::OverLimit), 70 - counts[0] as u64);
}

#[test]
fn of_a_tenants_own_records_each_pod_keeps_some_and_those_that_were_found_last() {
    let limits = Limits { records: 10, ..Limits::default() };
    let record = |pod: &str, n: u32| {
        let minute = n % 60;
        format!(
            r#"{{"pod":"{pod}","namespace":"ns-a","process":"p{n}","timestamp":"2026-01-01T00:{minute:02}:00Z"}}"#
        )
    };
    let flood = (0..60).map(|n| record("flood", n * 7));
    let body: Vec<String> = flood.chain([record("web", 0), record("db", 1)]).collect();
    let (answer, _) = decode(format!("[{}]", body.join(",")).as_bytes(), &limits);
    let of = |pod: &str| answer.records.iter().filter(|record| record.key.pod == pod).count();
    assert_eq!((of("flood"), of("web"), of("db")), (8, 1, 1));
    let oldest =
        answer.records.iter().filter(|record| record.key.pod == "flood").map(|it| it.detected_at).min();
    assert_eq!(oldest, Some("2026-01-01T00:52:00Z".parse().unwrap()));
}

#[test]
fn each_of_many_namespaces_has_a_record_if_need_be_without_its_command_line_and_all_stay_within_the_limit() {
    let limits = Limits { bytes: 16 << 10, ..Limits::default() };
    let lists: Vec<Vec<String>> = (0..40).map(|n| records_of(&format!("ns-{n}"), 3, 4000)).collect();
    let (_, answer) = counted(&lists, &limits);
    let namespaces: BTreeSet<_> = answer.records.iter().map(|record| record.key.namespace).collect();
    assert_eq!(namespaces.len(), 40);
    assert!(answer.records.bytes() <= limits.bytes, "{}", answer.records.bytes());
    // If there is no room for one record each, some namespaces have none.
    let (_, answer) = counted(&lists, &Limits { bytes: 1 << 10, ..limits });
    assert!(answer.records.bytes() <= 1 << 10 && answer.rejected.of(Rejection::OverLimit) > 80);
}

#[test]
fn a_share_of_the_bytes_is_used_to_its_last_byte_and_not_exceeded() {
    let list = records_of("ns-a", 2, 100);
    let one = ok(&format!("[{}]", list[0])).records.bytes();
    for (bytes, cmdlines) in [
        (2 * one, &[100, 100][..]),
        (2 * one - 1, &[100]),
        (one, &[100]),
        (one - 1, &[0]),
        (one - 100, &[0]),
        (one - 101, &[]),
    ] {
        let (_, answer) = counted(std::slice::from_ref(&list), &Limits { bytes, ..Limits::default() });
        let lengths: Vec<_> = answer.records.iter().map(|record| record.cmdline.len()).collect();
        assert_eq!(lengths, cmdlines, "{bytes} bytes, where one record takes {one}");
    }
    // The answer is over its limit by so little that the decoder drops nothing before the end of the list.
    let short = records_of("ns-a", 1, 10);
    for (less, count) in [(10, 1), (11, 0)] {
        let bytes = one - 90 - less;
        let (_, answer) = counted(std::slice::from_ref(&short), &Limits { bytes, ..Limits::default() });
        assert_eq!(answer.records.len(), count);
    }
}

#[test]
fn a_record_that_is_too_large_leaves_room_for_smaller_ones_that_were_found_before() {
    let record = |process: &str, minute: u32, cmdline: usize| {
        let cmdline = "x".repeat(cmdline);
        format!(
            r#"{{"pod":"p","namespace":"ns-a","process":"{process}","cmdline":"{cmdline}","timestamp":"2026-01-01T00:{minute:02}:00Z"}}"#
        )
    };
    let of_a = |lists: &[Vec<String>], bytes| -> Vec<(String, usize)> {
        let (_, answer) = counted(lists, &Limits { bytes, ..Limits::default() });
        let of_a = answer.records.iter().filter(|record| record.key.namespace == "ns-a");
        of_a.map(|record| (record.key.process.to_owned(), record.cmdline.len())).collect()
    };
    let expected = |last| [("last".to_owned(), last), ("first".to_owned(), 10)];
    let list = vec![record("last", 3, 10), record("first", 1, 10), record("large", 2, 4000)];
    assert_eq!(of_a(&[list], 2000), expected(10));
    // The record that was found last stays without its command line. The decoder shares out nothing before the end of the
    // list, because there are so many other tenants.
    let mut lists: Vec<_> = (0..8).map(|n| records_of(&format!("ns-x{n}"), 1, 1000)).collect();
    lists.push(vec![record("last", 3, 1000), record("first", 1, 10), record("large", 2, 1000)]);
    assert_eq!(of_a(&lists, 9 * 1100), expected(0));
}

/// The quarter bounds how often the decoder looks at each record, however many come.
#[test]
fn while_an_answer_is_read_a_quarter_more_than_its_limits_is_held() {
    let records = records_of("ns-a", 1000, 1000);
    // How much the decoder holds after each record. The first hundred have shorter names, so they do not count.
    let held = |limits: &Limits| -> Vec<usize> {
        let mut decoder = Decoder::new(limits);
        decoder.push(b"[");
        let held = records[100..].iter().map(|record| {
            decoder.push(format!("{record},").as_bytes());
            decoder.held()
        });
        held.collect()
    };
    let by_number = held(&Limits { records: 100, ..Limits::default() });
    let one = by_number[0];
    assert_eq!(by_number.into_iter().max(), Some((100 + 25 + 16) * one));
    let bytes = 64 << 10;
    let by_bytes = held(&Limits { bytes, ..Limits::default() });
    assert_eq!(by_bytes.into_iter().max(), Some((bytes + bytes / 4) / one * one));
}
