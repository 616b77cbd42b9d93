//! JSON texts: escapes, surrogates, bytes that are no UTF-8, and bodies in pieces.

use super::super::decode::decode_usual;
use super::*;

/// Elements of a list, and texts that look like elements.
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
fn a_wrong_escape_is_refused_in_known_and_unknown_fields_however_the_body_is_cut() {
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

/// Tokens of JSON, and some that are none.
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

type Decoded = (Records, Rejections, LeftOut, Result<(), DecodeError>);

fn decoded(answer: Answer, result: Result<(), DecodeError>) -> Decoded {
    (answer.records, answer.rejected, answer.left_out, result)
}

/// Decodes a body that arrives in pieces, which end at these places.
fn in_pieces(body: &[u8], ends: &[usize], limits: &Limits) -> Decoded {
    let mut ends: Vec<usize> = ends.iter().map(|end| (*end).min(body.len())).collect();
    ends.extend([0, body.len()]);
    ends.sort_unstable();
    let mut decoder = Decoder::new(limits);
    for piece in ends.windows(2) {
        decoder.push(&body[piece[0]..piece[1]]);
    }
    let (answer, result) = decoder.finish();
    decoded(answer, result)
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
            proptest::prop_assert_eq!(&decoded(answer, result), &whole);
            if let Some(answer) = decode_usual(body.as_bytes(), &limits) {
                proptest::prop_assert_eq!(&decoded(answer, Ok(())), &whole);
            }
        }
    }

    /// The decoder refuses what `serde_json` refuses, except where [`super::json`] says otherwise.
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
