//! The wire record, written byte for byte as the agents in the field write it.
//!
//! Those are Go programs whose encoder escapes for HTML. A reader that only ever met our own encoder could come to
//! depend on the unescaped form, so this one escapes too.

use std::io;

use jiff::Zoned;
use serde::{Deserialize, Serialize};
use serde_json::ser::Formatter;

/// One process that broke a rule, as it is listed on the wire. Always nine strings, none of them to be trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Name of the pod the process runs in.
    pub pod: String,
    /// Namespace of that pod, `ns-…`.
    pub namespace: String,
    /// Base name of the first word of the command line.
    pub process: String,
    /// The whole command line, words separated by spaces.
    pub cmdline: String,
    /// The process rule that matched; empty when a keyword of the command line did.
    pub regex: String,
    /// Always `active`.
    pub status: String,
    /// What kind of application the pod belongs to; in practice always `app`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The application's name; in practice always the pod's.
    pub name: String,
    /// When the process was last seen: RFC 3339 in the node's own zone, see [`stamp`].
    pub timestamp: String,
}

/// Encodes `records` as the body of `/api/violations`: a JSON array and a newline, escaped as Go's encoder does.
pub fn encode(records: &[Record]) -> Vec<u8> {
    let mut body = Vec::with_capacity(records.len() * 384 + 3);
    let written = records.serialize(&mut serde_json::Serializer::with_formatter(&mut body, GoEscapes));
    debug_assert!(written.is_ok(), "strings are always written into memory");
    body.push(b'\n');
    body
}

/// Writes a point in time as records carry it. Milliseconds, so that two scans within a second still differ.
pub fn stamp(at: &Zoned) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string()
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
    fn nothing_is_an_array_too() {
        assert_eq!(encode(&[]), b"[]\n");
    }

    #[test]
    fn fields_keep_their_order_and_html_is_escaped_as_go_does() {
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
    fn a_stamp_is_rfc_3339_with_milliseconds_and_offset() {
        let at: Zoned = "2025-12-22T18:30:00.0425+08:00[+08:00]".parse().unwrap();
        assert_eq!(stamp(&at), "2025-12-22T18:30:00.042+08:00");
    }
}
