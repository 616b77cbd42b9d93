//! The output of commands. Tenants choose some of the texts, so no text may contain control characters for the terminal.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};

use anyhow::Context;
use jiff::Timestamp;
use unicode_width::UnicodeWidthStr;

/// What is between two columns.
const COLUMN_GAP: usize = 3;

/// The text on one line, with unprintable characters escaped. A text that was escaped before stays as it is.
pub(super) fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '"' | '\'' => shown.push(c),
            c => shown.extend(c.escape_debug()),
        }
    }
    shown
}

/// Rows of `N` cells, aligned by their width on a terminal.
pub(super) struct Table<const N: usize>(Vec<[String; N]>);

impl<const N: usize> Table<N> {
    /// A table without rows.
    pub(super) fn new(head: [&str; N]) -> Self {
        Self(vec![head.map(str::to_owned)])
    }

    /// Adds a row; its texts are escaped here.
    pub(super) fn push(&mut self, row: [&str; N]) {
        self.0.push(row.map(escaped));
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths = [0; N];
        for row in &self.0 {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.width().max(*width);
            }
        }
        for row in &self.0 {
            let mut pending = 0;
            for (width, cell) in widths.iter().zip(row) {
                // The last cell of a row is not padded, because it may be long.
                if !cell.is_empty() {
                    write!(f, "{:pending$}{cell}", "")?;
                    pending = 0;
                }
                pending += width + COLUMN_GAP - cell.width();
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// In whole seconds, as people read times.
pub(super) fn time(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

/// The same JSON with control characters beyond ASCII escaped, because JSON leaves them as they are.
pub(super) fn harmless(json: &str) -> String {
    let mut shown = String::with_capacity(json.len() + 1);
    for c in json.trim_end().chars() {
        match c {
            // It occurs only between values, because within a text it is escaped already.
            '\r' => shown.push(' '),
            c if c >= '\u{7f}' && c.escape_debug().len() > 1 => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(shown, "\\u{unit:04x}");
                }
            }
            c => shown.push(c),
        }
    }
    shown.push('\n');
    shown
}

/// Prints to standard output. A reader may close it when it has read enough: that is no error, and changes no exit code. Any other
/// failure, such as a full disk, is an error.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("standard output can't be written")
        }
        _ => Ok(()),
    }
}

/// Prints a line to standard error. If it can't be written it is lost: there is no other place to say so.
pub(super) fn note(line: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stay_readable_and_have_no_control_characters() {
        assert_eq!(escaped("a `b` \"c\" 'd' 挖矿 \\n"), "a `b` \"c\" 'd' 挖矿 \\n");
        let hostile = "\u{1b}[2J\u{9b}31m\u{7}\r\n\t\0\u{7f}\u{202e}\u{200b}";
        let shown = "\\u{1b}[2J\\u{9b}31m\\u{7}\\r\\n\\t\\0\\u{7f}\\u{202e}\\u{200b}";
        assert_eq!(escaped(hostile), shown);
        assert_eq!(escaped(shown), shown);
    }

    #[test]
    fn columns_are_aligned_by_what_is_shown() {
        let mut table = Table::new(["A", "NAME", "WHY"]);
        table.push(["1", "挖矿", "x"]);
        table.push(["", "\u{1b}", ""]);
        table.push(["1", "", "long enough"]);
        assert_eq!(
            table.to_string(),
            "A   NAME     WHY\n1   挖矿     x\n    \\u{1b}\n1            long enough\n"
        );
    }

    #[test]
    fn json_stays_the_same_json() {
        let value = serde_json::json!({"a": "\u{9b}\u{1b}\u{202e}\u{7f}挖\u{e0001}é"});
        let json = value.to_string();
        let shown = harmless(&format!("{json}\r\n\n"));
        assert_eq!(shown, "{\"a\":\"\\u009b\\u001b\\u202e\\u007f挖\\udb40\\udc01é\"}\n");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
