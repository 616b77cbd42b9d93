//! Reads times in RFC 3339, as agents write them.

use std::borrow::Cow;

use jiff::Timestamp;
use jiff::fmt::temporal::Pieces;

/// The most digits of a fraction of a second that a timestamp can hold.
const DIGITS: usize = 9;

/// The instant that `text` names. Digits of a fraction beyond nanoseconds are ignored. A time out of the range of a
/// timestamp, such as the last day of 9999, becomes the nearest one in the range.
pub(super) fn instant(text: &str) -> Option<Timestamp> {
    text.parse().ok().or_else(|| unusual(text))
}

/// Reads a text that the usual parser refuses.
fn unusual(text: &str) -> Option<Timestamp> {
    let text = with_nanoseconds(text);
    if let Ok(instant) = text.parse() {
        return Some(instant);
    }
    let pieces = Pieces::parse(text.as_bytes()).ok()?;
    let (date, _, _) = (pieces.date(), pieces.time()?, pieces.offset()?);
    // The text has a date, a time and an offset, and together they are out of the range of a timestamp.
    Some(if date.year() > 0 { Timestamp::MAX } else { Timestamp::MIN })
}

/// Cuts a longer fraction to nanoseconds.
fn with_nanoseconds(text: &str) -> Cow<'_, str> {
    let Some((before, after)) = text.split_once('.') else { return text.into() };
    let digits = after.bytes().take_while(u8::is_ascii_digit).count();
    match (after.get(..DIGITS), after.get(digits..)) {
        (Some(fraction), Some(rest)) if digits > DIGITS => format!("{before}.{fraction}{rest}").into(),
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_rfc_3339_is_read_and_no_other_text() {
        let read = |text: &str| instant(text).map(|instant| instant.to_string());
        for (text, expected) in [
            ("2025-12-22T18:30:00+08:00", "2025-12-22T10:30:00Z"),
            ("2025-12-22T10:30:00.1234567891234Z", "2025-12-22T10:30:00.123456789Z"),
            ("2025-12-22T18:30:00.0000000009+08:00", "2025-12-22T10:30:00Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            ("0001-01-01T00:00:00+08:00", "0000-12-31T16:00:00Z"),
            ("9999-12-31T23:59:59Z", "9999-12-30T22:00:00.999999999Z"),
            ("9999-12-31T23:59:59.99999999999-23:00", "9999-12-30T22:00:00.999999999Z"),
        ] {
            assert_eq!(read(text).as_deref(), Some(expected), "{text}");
        }
        for text in [
            "",
            ".",
            "2025-12-22T10:30:00",
            "2025-12-22T10:30:00.Z",
            "2025-12-22",
            "9999-12-31",
            "9999-12-31T23:59:59",
            "9999-99-31T23:59:59Z",
            "2025-12-22T10:30:00.12345678901",
            "99999-12-31T23:59:59Z",
            "2025-02-30T00:00:00Z",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
