use std::sync::Arc;
use std::time::Duration;

use super::decode::{Care, read};
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
    let limits = Limits { records: 2, process: 8, cmdline: 10, field: 64 };
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

proptest::proptest! {
    #[test]
    fn reading_with_little_care_comes_to_the_same_wherever_it_is_enough(
        elements in proptest::collection::vec(0..ODD.len(), 0..6), cut in 0..200_usize,
    ) {
        let list = elements.iter().map(|index| ODD[*index]).collect::<Vec<_>>().join(",");
        for mut body in [format!("[{list}]"), format!("{{\"violations\":[{list}],\"violations\":[{GOOD}]}}")] {
            body.truncate(body.floor_char_boundary(body.len().saturating_sub(cut.saturating_sub(100))));
            let limits = Limits { records: 4, ..Limits::default() };
            let (careful, result) = read(&body, &limits, Care::Much);
            let (answer, same) = decode(body.as_bytes(), &limits);
            proptest::prop_assert_eq!((answer.records, answer.rejected, same), (careful.records, careful.rejected, result));
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
