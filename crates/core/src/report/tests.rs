//! Decoding of answers.

mod limits;
mod text;

use std::sync::Arc;
use std::time::Duration;

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
    // The decoder ignores extra fields, and optional fields may be missing.
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
fn an_answer_without_a_list_is_an_error_that_quotes_nothing() {
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

proptest::proptest! {
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
}
