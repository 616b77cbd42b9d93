use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::decode::decode_usual;
use super::*;
use crate::names::KeyRef;

#[test]
fn a_record_that_is_renewed_shares_what_has_not_changed() {
    let listed = |timestamp: &str, cmdline: &str| {
        let text = format!(
            r#"[{{"pod":"p","namespace":"ns-a","process":"x","cmdline":"{cmdline}","timestamp":"{timestamp}"}}]"#
        );
        first(&ok(&text))
    };
    let old = listed("2026-01-01T00:00:00Z", "x -a");
    let (same, other) = (listed("2026-01-01T00:01:00Z", "x -a"), listed("2026-01-01T00:01:00Z", "x -b"));
    let renewed = |newer: &Record| {
        let mut record = old.clone();
        record.renew(newer.view());
        assert_eq!(record, *newer);
        record
    };
    assert!(Arc::ptr_eq(&renewed(&same).claim, &old.claim));
    let (status, cmdline) = (renewed(&other).status.clone(), renewed(&other).cmdline.clone());
    assert!(Arc::ptr_eq(&status, &old.status) && !Arc::ptr_eq(&cmdline, &old.cmdline));
}

const GOOD: &str = r#"{"pod":"app-pod-1","namespace":"ns-user1","process":"miner","cmdline":"miner \u003e /dev/null","regex":"^miner$","status":"active","type":"app","name":"app-pod-1","timestamp":"2025-12-22T18:30:00+08:00"}"#;

/// What can be an element of a list, or looks like one.
const ODD: [&str; 20] = [
    GOOD,
    GOOD,
    r#"{"pod":"p","namespace":"ns-a","process":"x","timestamp":"2026-01-01T00:00:00Z","more":{"a":[1,{}]}}"#,
    r#"{"pod":"p","namespace":"ns-a","process":"x","timestamp":"2026-01-01T00:00:00Z","pod":"q"}"#,
    r#"{"pod":"p","namespace":"ns-a","process":"x","timestamp":"2026-01-01T00:00:00Z","more":1e999}"#,
    r#"{"pod":"p","namespace":"ns-a","process":1e999,"timestamp":"2026-01-01T00:00:00Z"}"#,
    r#"["p","ns-a","x","","","","","","2026-01-01T00:00:00Z"]"#,
    r#"{"pod":"\ud800"}"#,
    r#"{"pod":{"a":"\ud800"}}"#,
    "\"\\ud800\"",
    "{}",
    "{\"pod\":7}",
    "null",
    "true",
    "-1",
    "18446744073709551616",
    "1e999",
    "0.5",
    "[[[]]]",
    "{\"pod\" \"p\"}",
];

fn ok(body: &str) -> Answer {
    let (answer, result) = decode(body.as_bytes(), &Limits::default());
    result.unwrap();
    answer
}

fn first(answer: &Answer) -> Record {
    answer.records.get(0).unwrap().into()
}

fn with(field: &str, value: &str) -> String {
    let mut object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(GOOD).unwrap();
    object.insert(field.to_owned(), serde_json::from_str(value).unwrap());
    format!("[{}]", serde_json::Value::Object(object))
}

#[test]
fn trap_7_other_shapes_are_read_and_bad_records_counted() {
    assert_eq!(ok(&format!("[{GOOD}]\n")).records.len(), 1);
    assert_eq!(ok(&format!("{{\"total_count\":1,\"violations\":[{GOOD}],\"x\":{{}}}}")).records.len(), 1);
    for empty in ["[]", "null", "{\"violations\":null}", " [ ] \n"] {
        assert!(ok(empty).records.is_empty());
    }
    // Extra fields are ignored, optional ones may be missing.
    let answer = ok(
        r#"[{"pod":"p","namespace":"ns-a","process":"x","timestamp":"2025-12-22T10:30:00Z","extra":[{}]}]"#,
    );
    assert_eq!(first(&answer).cmdline.as_ref(), "");

    let mixed = format!(
        r#"[{GOOD}, 7, null, "x", [1], {{}}, {{"pod":1}}, {}, {GOOD}]"#,
        GOOD.replace("\"miner\"", "{\"deep\":[[]]}")
    );
    let answer = ok(&mixed);
    assert_eq!(answer.records.len(), 2);
    assert_eq!(answer.rejected.of(Rejection::NotARecord), 4);
    assert_eq!(answer.rejected.of(Rejection::MissingField), 1 + 1);
    assert_eq!(answer.rejected.of(Rejection::WrongType), 1);
    assert_eq!(answer.rejected.total(), 7);
}

#[test]
fn a_record_keeps_what_the_agent_wrote() {
    let record = first(&ok(&format!("[{GOOD}]")));
    assert_eq!(record.cmdline.as_ref(), "miner > /dev/null");
    assert_eq!(record.timestamp.as_ref(), "2025-12-22T18:30:00+08:00");
    assert_eq!(record.detected_at, "2025-12-22T10:30:00Z".parse().unwrap());
    let value: serde_json::Value = serde_json::from_str(GOOD).unwrap();
    assert_eq!(serde_json::to_value(&record).unwrap(), value);
    let text = serde_json::to_string(&record).unwrap();
    let order = ["pod", "namespace", "process", "cmdline", "regex", "status", "type", "name", "timestamp"];
    let places: Vec<_> = order.iter().map(|f| text.find(&format!("\"{f}\":")).unwrap()).collect();
    assert!(places.is_sorted());
}

#[test]
fn the_rule_is_the_regex_or_else_the_process() {
    assert_eq!(first(&ok(&format!("[{GOOD}]"))).rule().as_ref(), "^miner$");
    assert_eq!(first(&ok(&with("regex", "\"\""))).rule().as_ref(), "miner");
}

#[test]
fn what_is_no_list_is_an_error_that_quotes_nothing() {
    for body in
        ["", "<html>secret</html>", "7", "\"secret\"", "{}", "{\"violations\":{\"violations\":[]}}", "[1] x"]
    {
        let (_, result) = decode(body.as_bytes(), &Limits::default());
        let message = result.unwrap_err().to_string();
        assert!(!message.contains("secret"), "{message}");
    }
}

#[test]
fn a_body_that_breaks_off_keeps_the_whole_records_before_it() {
    let body = format!("[{GOOD},{GOOD},{}", &GOOD[..40]);
    let (answer, result) = decode(body.as_bytes(), &Limits::default());
    assert_eq!(answer.records.len(), 2);
    assert!(result.unwrap_err().to_string().contains("breaks off"));
}

#[test]
fn lone_surrogates_and_deep_nesting_cost_their_own_record_only() {
    let deep = format!("{{\"pod\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
    let body = format!(r#"[{{"pod":"\ud800"}},{deep},{GOOD}]"#);
    let answer = ok(&body);
    assert_eq!((answer.records.len(), answer.rejected.total()), (1, 2));
}

#[test]
fn bytes_that_are_not_utf_8_become_the_replacement_character() {
    let body = format!("[{GOOD}]").replace("miner \\u003e", "\u{1}\u{1}").into_bytes();
    let body: Vec<u8> = body.iter().map(|b| if *b == 1 { 0xff } else { *b }).collect();
    let (answer, result) = decode(&body, &Limits::default());
    result.unwrap();
    assert!(first(&answer).cmdline.contains('\u{fffd}'));
}

#[test]
fn trap_5_tenant_controlled_names_are_data_or_refused() {
    for bad in ["\"NS\"", "\"ns a\"", "\"ns-a\\n\"", "\"../..\"", "\"ns-\\u202e\""] {
        assert_eq!(ok(&with("namespace", bad)).rejected.of(Rejection::InvalidNamespace), 1, "{bad}");
    }
    for bad in ["\"a/b\"", "\"..\"", "\"A\"", "\"a: b\""] {
        assert_eq!(ok(&with("pod", bad)).rejected.of(Rejection::InvalidPod), 1, "{bad}");
    }
    for odd in ["\\u001b[2J", "a: b\\n- c", "<script>", "\u{1f4a3}", "\\u202e"] {
        let answer = ok(&with("process", &format!("\"{odd}\"")));
        assert_eq!(answer.records.len(), 1, "{odd}");
    }
    for bad in ["\"yesterday\"", "\"2025-12-22T10:30:00\"", "\"\""] {
        assert_eq!(ok(&with("timestamp", bad)).records.len(), 0, "{bad}");
    }
}

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

#[test]
fn age_is_judged_by_the_agents_own_clock() {
    let record = first(&ok(&format!("[{GOOD}]")));
    let date = |text: &str| Some(text.parse().unwrap());
    assert_eq!(age_by_own_clock(record.detected_at, None), None);
    assert_eq!(
        age_by_own_clock(record.detected_at, date("2025-12-22T10:31:00Z")),
        Some(Duration::from_mins(1))
    );
    assert_eq!(age_by_own_clock(record.detected_at, date("2025-12-22T10:29:57Z")), Some(Duration::ZERO));
    assert_eq!(
        age_by_own_clock(record.detected_at, date("2025-12-22T09:30:00Z")),
        None,
        "from the future: no evidence of age"
    );
}

#[test]
fn the_agents_sample_answer_is_read_where_it_is_present() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/contracts/agent-samples.json");
    let Ok(body) = std::fs::read(path) else {
        eprintln!("no contract files here: nothing to compare with");
        return;
    };
    let (answer, result) = decode(&body, &Limits::default());
    result.unwrap();
    assert_eq!((answer.records.len(), answer.rejected.total()), (2, 0));
    assert_eq!(
        first(&answer).cmdline.as_ref(),
        "/usr/bin/miner --pool stratum+tcp://pool.example.com > /dev/null 2>&1"
    );
}

/// `count` records of a namespace, each with a command line of so many bytes.
fn records_of(namespace: &str, count: usize, cmdline: usize) -> Vec<String> {
    let cmdline = "x".repeat(cmdline);
    let record = |n| {
        format!(
            r#"{{"pod":"p","namespace":"{namespace}","process":"p{n}","cmdline":"{cmdline}","timestamp":"2026-01-01T00:00:00Z"}}"#
        )
    };
    (0..count).map(record).collect()
}

/// How many records each namespace has kept of a list.
fn kept(records: &[Vec<String>], limits: &Limits) -> (Vec<usize>, Answer) {
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
    let (counts, answer) = kept(&lists, &limits);
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
    let (counts, answer) = kept(&[of("ns-c", 5), of("ns-a", 5), of("ns-b", 5)], &limits);
    assert_eq!((counts, answer.records.len()), (vec![3, 2, 3], 8));
    // The order of namespaces is that of their first records in the answer. Later records and timestamps do not change it.
    let mut late = of("ns-c", 5);
    let first = vec![late.remove(0)];
    let late = late.iter().map(|record| record.replace("2026-01-01", "2026-01-02")).collect();
    let (counts, _) = kept(&[first, of("ns-a", 5), of("ns-b", 5), late], &limits);
    assert_eq!(counts, [3, 2, 3]);
    // The first one has all that it wants.
    let (counts, answer) = kept(&[of("ns-a", 2), of("ns-b", 3), of("ns-c", 3), of("ns-d", 1)], &limits);
    assert_eq!((counts, answer.records.len()), (vec![2, 3, 2], 8));
}

#[test]
fn a_tenant_with_long_command_lines_leaves_room_for_those_of_others() {
    let limits = Limits { bytes: 64 << 10, ..Limits::default() };
    let lists = [records_of("ns-a", 70, 62_000), records_of("ns-b", 4, 4000), records_of("ns-c", 1, 10)];
    let (counts, answer) = kept(&lists, &limits);
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
    let (_, answer) = kept(&lists, &limits);
    let namespaces: BTreeSet<_> = answer.records.iter().map(|record| record.key.namespace).collect();
    assert_eq!(namespaces.len(), 40);
    assert!(answer.records.bytes() <= limits.bytes, "{}", answer.records.bytes());
    // Where even that is too much, some have none.
    let (_, answer) = kept(&lists, &Limits { bytes: 1 << 10, ..limits });
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
        let (_, answer) = kept(std::slice::from_ref(&list), &Limits { bytes, ..Limits::default() });
        let kept: Vec<_> = answer.records.iter().map(|record| record.cmdline.len()).collect();
        assert_eq!(kept, cmdlines, "{bytes} bytes, where one record takes {one}");
    }
    // The answer is over its limit by so little that the decoder drops nothing before the end of the list.
    let short = records_of("ns-a", 1, 10);
    for (less, count) in [(10, 1), (11, 0)] {
        let bytes = one - 90 - less;
        let (_, answer) = kept(std::slice::from_ref(&short), &Limits { bytes, ..Limits::default() });
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
        let (_, answer) = kept(lists, &Limits { bytes, ..Limits::default() });
        let of_a = answer.records.iter().filter(|record| record.key.namespace == "ns-a");
        of_a.map(|record| (record.key.process.to_owned(), record.cmdline.len())).collect()
    };
    let kept_of = |last| [("last".to_owned(), last), ("first".to_owned(), 10)];
    let list = vec![record("last", 3, 10), record("first", 1, 10), record("large", 2, 4000)];
    assert_eq!(of_a(&[list], 2000), kept_of(10));
    // The one that was found last stays without its command line. Nothing is shared out before the end of the list, because there
    // are so many other tenants.
    let mut lists: Vec<_> = (0..8).map(|n| records_of(&format!("ns-x{n}"), 1, 1000)).collect();
    lists.push(vec![record("last", 3, 1000), record("first", 1, 10), record("large", 2, 1000)]);
    assert_eq!(of_a(&lists, 9 * 1100), kept_of(0));
}

/// The quarter bounds how often the decoder looks at each record, however many come.
#[test]
fn while_an_answer_is_read_a_quarter_more_than_its_limits_is_held() {
    let records = records_of("ns-a", 1000, 1000);
    // How much is held after each record, of those whose names are of the same length.
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

#[test]
fn a_text_of_any_length_is_read_past() {
    let limits = Limits::default();
    let [before, after] = ["ns-a", "ns-c"].map(|namespace| records_of(namespace, 1, 10).concat());
    let mut decoder = Decoder::new(&limits);
    decoder.push(format!("[{before},{}", &GOOD[..GOOD.len() / 2]).as_bytes());
    for _ in 0..1000 {
        decoder.push("\\u003c".repeat(1000).as_bytes());
        assert!(decoder.held() < 4096);
    }
    decoder.push(format!("{},{after}]", &GOOD[GOOD.len() / 2..]).as_bytes());
    let (answer, result) = decoder.finish();
    result.unwrap();
    let namespaces: Vec<_> = answer.records.iter().map(|record| record.key.namespace).collect();
    assert_eq!(namespaces, ["ns-a", "ns-user1", "ns-c"]);
    assert!(answer.records.bytes() < 3 * limits.cmdline);
}

#[test]
fn half_a_surrogate_pair_is_a_replacement_character_and_a_pair_is_one_character() {
    for (cmdline, expected) in [
        (r"\udcff", "\u{fffd}"),
        (r"a\ud83d\ude00b", "a\u{1f600}b"),
        (r"\ud83d", "\u{fffd}"),
        (r"\ud83dx", "\u{fffd}x"),
        (r"\ud83d\n", "\u{fffd}\n"),
        (r"\ud83d\u0041", "\u{fffd}A"),
        (r"\ud83d\ud83d\ude00", "\u{fffd}\u{1f600}"),
        (r"\ude00\ud83d", "\u{fffd}\u{fffd}"),
        (r#"\u00e9\/\b\f\r\t\\\""#, "é/\u{8}\u{c}\r\t\\\""),
    ] {
        let body = format!("[{}]", GOOD.replace(r"miner \u003e /dev/null", cmdline));
        assert_eq!(first(&ok(&body)).cmdline.as_ref(), expected, "{cmdline}");
    }
}

#[test]
fn a_wrong_escape_is_seen_whether_its_text_is_kept_or_not_and_however_it_is_cut() {
    let good = ["", r#"a\"b\\"#, r"\\", r"\u0022", r"\u00e9x", r"\u00E9", r"\b\f\n\r\t\/", r"x\u005c\\"];
    let bad = [
        r"\u00g0", r"\u00_0", r"\uzzzz", r"\u12", r"\u", r"\x", r"\'", r"\0", r"\u005", r"\u00/0", r"\u00:0",
    ];
    for (text, is_good) in good.map(|text| (text, true)).into_iter().chain(bad.map(|text| (text, false))) {
        for member in ["more", "cmdline"] {
            let body = format!(r#"[{{"{member}":"{text}"}},{GOOD}]"#);
            assert_eq!(serde_json::from_str::<serde::de::IgnoredAny>(&body).is_ok(), is_good, "{body}");
            for cut in 0..body.len() - GOOD.len() {
                let (records, .., result) = in_pieces(body.as_bytes(), &[cut], &Limits::default());
                assert_eq!(
                    (records.len(), result.is_ok()),
                    (usize::from(is_good), is_good),
                    "{body} cut at {cut}"
                );
            }
        }
    }
}

/// Of what JSON is made, and of what it is not.
const TOKENS: [&str; 32] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"a\"",
    "\"\"",
    "\"\\u00e9\\n\"",
    "\"\\x\"",
    "\"\\u12g4\"",
    "\"",
    "\\",
    " ",
    "\n",
    "null",
    "true",
    "false",
    "nul",
    "0",
    "-",
    "1",
    "12",
    ".",
    "5",
    "e",
    "E",
    "+",
    "[1]",
    "{\"a\":1}",
    "-0.5e+7",
    "\u{c}",
];

type Told = (Records, Rejections, LeftOut, Result<(), DecodeError>);

fn told(answer: Answer, result: Result<(), DecodeError>) -> Told {
    (answer.records, answer.rejected, answer.left_out, result)
}

/// What a decoder makes of a body that arrives in pieces, which end at these places.
fn in_pieces(body: &[u8], ends: &[usize], limits: &Limits) -> Told {
    let mut ends: Vec<usize> = ends.iter().map(|end| (*end).min(body.len())).collect();
    ends.extend([0, body.len()]);
    ends.sort_unstable();
    let mut decoder = Decoder::new(limits);
    for piece in ends.windows(2) {
        decoder.push(&body[piece[0]..piece[1]]);
    }
    let (answer, result) = decoder.finish();
    told(answer, result)
}

proptest::proptest! {
    #[test]
    fn both_ways_of_reading_come_to_the_same_however_a_body_is_cut(
        elements in proptest::collection::vec(0..ODD.len(), 0..6),
        end in 0..200_usize,
        cuts in proptest::collection::vec(0..400_usize, 0..8),
    ) {
        let list = elements.iter().map(|index| ODD[*index]).collect::<Vec<_>>().join(",");
        for mut body in [format!("[{list}]"), format!("{{\"violations\":[{list}],\"violations\":[{GOOD}]}}")] {
            body.truncate(body.floor_char_boundary(body.len().saturating_sub(end.saturating_sub(100))));
            let limits = Limits { records: 4, process: 8, cmdline: 9, ..Limits::default() };
            let whole = in_pieces(body.as_bytes(), &[], &limits);
            proptest::prop_assert_eq!(&in_pieces(body.as_bytes(), &cuts, &limits), &whole);
            let (answer, result) = decode(body.as_bytes(), &limits);
            proptest::prop_assert_eq!(&told(answer, result), &whole);
            if let Some(answer) = decode_usual(body.as_bytes(), &limits) {
                proptest::prop_assert_eq!(&told(answer, Ok(())), &whole);
            }
        }
    }

    /// What is no JSON to `serde_json` is none here, but for what is taken on purpose: see [`super::json`].
    #[test]
    fn the_grammar_is_that_of_json(
        tokens in proptest::collection::vec(0..TOKENS.len(), 0..12), cut in 0..40_usize,
    ) {
        let mut text: String = tokens.iter().map(|token| TOKENS[*token]).collect();
        text.truncate(text.len().saturating_sub(cut.saturating_sub(36)));
        let body = format!("[{{\"more\":{text}}}]");
        let (.., result) = in_pieces(body.as_bytes(), &[body.len() / 2], &Limits::default());
        let read = serde_json::from_str::<serde::de::IgnoredAny>(&body);
        // A token may be inside a string. The decoder accepts control characters there, and serde_json does not.
        let is_control = |error: &serde_json::Error| error.to_string().starts_with("control character");
        if !read.as_ref().is_err_and(is_control) {
            proptest::prop_assert_eq!(result.is_ok(), read.is_ok(), "{}: {:?}", body, result);
        }
    }

    #[test]
    fn records_are_given_back_as_they_were_put_in(texts in proptest::collection::vec(proptest::array::uniform9(".{0,4}"), 0..6)) {
        let records: Vec<Record> = (0..).zip(&texts).map(|(second, texts)| {
            let [namespace, pod, process, cmdline, regex, status, kind, name, timestamp] = texts.each_ref().map(String::as_str);
            let detected_at = Timestamp::from_second(second).unwrap();
            let key = KeyRef { namespace, pod, process };
            RecordRef { key, cmdline, regex, status, kind, name, timestamp, detected_at }.into()
        }).collect();
        let all: Records = records.iter().cloned().collect();
        proptest::prop_assert_eq!(all.iter().map(Record::from).collect::<Vec<_>>(), records);
        proptest::prop_assert!(all.get(texts.len()).is_none());
    }

    #[test]
    fn decoding_never_panics_and_never_exceeds_its_limits(body in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
        let _ = decode(&body, &Limits::default());
    }

    #[test]
    fn any_text_in_tenant_fields_survives(process in "\\PC{1,40}", cmdline in "(?s).{0,200}") {
        let body = serde_json::json!([{
            "pod": "p", "namespace": "ns-a", "process": process, "cmdline": cmdline, "regex": "", "status": "active",
            "type": "app", "name": "p", "timestamp": "2025-12-22T10:30:00Z"
        }]).to_string();
        let answer = ok(&body);
        let record = answer.records.get(0).unwrap();
        proptest::prop_assert_eq!((record.key.process, record.cmdline), (process.as_str(), cmdline.as_str()));
    }
}
