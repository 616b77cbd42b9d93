//! The wire record, with the same bytes as the real agent writes.
//!
//! The real agent is a Go program whose encoder escapes for HTML. This encoder escapes too, because a reader must not depend on
//! the unescaped form.

use std::io;

use jiff::Zoned;
use serde::{Deserialize, Serialize};
use serde_json::ser::Formatter;

/// One process that broke a rule, as it is listed on the wire: nine strings, none of which a reader may trust.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Name of the pod the process runs in.
    pub pod: String,
    /// Namespace of that pod, `ns-…`.
    pub namespace: String,
    /// The name of the process that broke the rule: from its command line, its program or the kernel.
    pub process: String,
    /// The command line, with its arguments separated by spaces; the real agent sends all of it.
    pub cmdline: String,
    /// The process rule that matched; empty when a keyword of the command line did.
    pub regex: String,
    /// Always `active`.
    pub status: String,
    /// The kind of application that the pod belongs to; in practice always `app`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The application's name; in practice always the pod's.
    pub name: String,
    /// When the process was last seen: RFC 3339 in the node's own zone, see `stamp`.
    pub timestamp: String,
}

/// Encodes `records` as the body of `/api/violations`: a JSON array and a newline, escaped as Go's encoder does.
pub(crate) fn encode(records: &[Record]) -> Vec<u8> {
    let mut body = Vec::with_capacity(records.len() * 384 + 3);
    let written = records.serialize(&mut serde_json::Serializer::with_formatter(&mut body, GoEscapes));
    debug_assert!(written.is_ok(), "strings are always written into memory");
    body.push(b'\n');
    body
}

/// Writes a point in time as records carry it. Milliseconds, so that two scans within a second still differ.
pub(crate) fn stamp(at: &Zoned) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string()
}

/// The most bytes of a process name in a body. Aggregators refuse a longer one by default.
pub(crate) const MOST_PROCESS: usize = 256;
/// The most bytes of a command line in a body; an aggregator stores as many by default.
pub(crate) const MOST_CMDLINE: usize = 4096;
/// The most bytes of a pattern in a body.
pub(crate) const MOST_REGEX: usize = 512;
/// Replaces the part that is cut out of a command line.
const GAP: &str = " \u{2026} ";
/// How many bytes before a match a shortened command line contains.
const BEFORE_MATCH: usize = 64;

/// The beginning of `text` that takes up to `most` bytes in a body.
pub(crate) fn cut(text: &str, most: usize) -> &str {
    let mut rest = most;
    let end = text.char_indices().find_map(|(at, sign)| match rest.checked_sub(width(sign)) {
        None => Some(at),
        Some(less) => {
            rest = less;
            None
        }
    });
    end.and_then(|end| text.get(..end)).unwrap_or(text)
}

/// `text` shortened to at most `most` bytes in a body: its beginning, and if that does not reach byte `at`, the text around
/// `at`.
pub(crate) fn excerpt(text: &str, at: usize, most: usize) -> String {
    let beginning = cut(text, most);
    if beginning.len() == text.len() || at + BEFORE_MATCH < beginning.len() {
        return beginning.to_owned();
    }
    let beginning = cut(text, most / 4);
    let from = text.floor_char_boundary(at.saturating_sub(BEFORE_MATCH).max(beginning.len()));
    let rest = cut(text.get(from..).unwrap_or_default(), most - most / 4 - GAP.len());
    format!("{beginning}{GAP}{rest}")
}

/// The bytes that `sign` takes in a body.
fn width(sign: char) -> usize {
    match sign {
        '"' | '\\' | '\u{8}' | '\u{c}' | '\n' | '\r' | '\t' => 2,
        '\0'..'\u{20}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => 6,
        _ => sign.len_utf8(),
    }
}

struct GoEscapes;

impl Formatter for GoEscapes {
    fn write_string_fragment<W: io::Write + ?Sized>(&mut self, to: &mut W, fragment: &str) -> io::Result<()> {
        let mut plain = fragment;
        while let Some(at) = plain.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            let (before, rest) = plain.split_at(at);
            to.write_all(before.as_bytes())?;
            let mut rest = rest.chars();
            if let Some(special) = rest.next() {
                write!(to, "\\u{:04x}", u32::from(special))?;
            }
            plain = rest.as_str();
        }
        to.write_all(plain.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_without_records_is_an_empty_array() {
        assert_eq!(encode(&[]), b"[]\n");
    }

    #[test]
    fn fields_are_in_order_and_html_is_escaped_as_in_go() {
        let record = Record {
            pod: "p".into(),
            cmdline: "a <b> && \"c\" \u{2028}\u{2029} é \u{1b}\n".into(),
            kind: "app".into(),
            ..Record::default()
        };
        let text = String::from_utf8(encode(std::slice::from_ref(&record))).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"[{"pod":"p","namespace":"","process":"","#,
                r#""cmdline":"a \u003cb\u003e \u0026\u0026 \"c\" \u2028\u2029 é \u001b\n","#,
                r#""regex":"","status":"","type":"app","name":"","timestamp":""}]"#,
                "\n"
            )
        );
        assert_eq!(serde_json::from_str::<Vec<Record>>(&text).unwrap(), [record]);
    }

    #[test]
    fn a_cut_text_takes_at_most_its_limit_in_a_body() {
        let every: String = ('\0'..'\u{3000}').chain(['\u{fffd}', '\u{1f600}']).collect();
        let taken = |text: &str| {
            let record = Record { cmdline: text.to_owned(), ..Record::default() };
            encode(&[record]).len() - encode(&[Record::default()]).len()
        };
        assert_eq!(cut(&every, taken(&every)), every);
        for most in (0..400).chain([4095, 4096, taken(&every) - 1]) {
            let part = cut(&every, most);
            assert!(every.starts_with(part) && taken(part) <= most && most - taken(part) < 6, "{most}");
            let rest = excerpt(&every, every.len() / 2, most.max(100));
            assert!(taken(&rest) <= most.max(100), "{most}");
        }
    }

    #[test]
    fn a_shortened_command_line_contains_the_match() {
        let text = format!("/bin/a {} --url=pool {}", "x".repeat(70_000), "y".repeat(70_000));
        let shortened = excerpt(&text, text.find("--url").unwrap(), 400);
        assert!(shortened.starts_with("/bin/a xxx") && shortened.contains("xx --url=pool yy"), "{shortened}");
        assert_eq!(excerpt(&text, 3, 400), text[..400]);
        assert_eq!(excerpt("short", 9, 400), "short");
        // If the match is near the end of the excerpt's first part, the excerpt repeats no text.
        let near = excerpt(&text, 395, 400);
        assert!(near.starts_with("/bin/a ") && near.contains(GAP), "{near}");
    }

    #[test]
    fn a_stamp_is_rfc_3339_with_milliseconds_and_offset() {
        let at: Zoned = "2025-12-22T18:30:00.0425+08:00[+08:00]".parse().unwrap();
        assert_eq!(stamp(&at), "2025-12-22T18:30:00.042+08:00");
    }
}
