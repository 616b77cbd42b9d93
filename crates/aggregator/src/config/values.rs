//! Types of values: durations, times, ports and regular expressions.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use procscan_core::size;
use regex::Regex;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};
use serde_json::Value;

/// What is expected where a duration is written.
const A_DURATION: &str = "a duration with its unit, such as 60s, 5m or 1h30m";
/// What is expected where a time is written.
pub(crate) const A_TIME: &str = "a date and time with its zone, such as 2027-01-01T00:00:00Z";
/// What is expected where a port is written.
pub(super) const A_PORT: &str = "a port from 1 to 65535";

/// The value at `path` of `tree`, if there is one.
pub(crate) fn at<'a>(tree: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(tree, |value, step| {
        let (key, index) = match step.split_once('[') {
            Some((key, index)) => (key, index.trim_end_matches(']').parse::<usize>().ok()),
            None => (step, None),
        };
        let value = if key.is_empty() { value } else { value.get(key)? };
        match index {
            Some(index) => value.get(index),
            None => Some(value),
        }
    })
}

/// What serde has `expected`, without the names of Rust's types.
pub(crate) fn plain_type(expected: &str) -> &str {
    match expected {
        "usize" | "u64" | "u32" | "u16" => "a whole number from 0 on",
        "i32" | "i64" => "a whole number",
        "a string" => "a text",
        "a sequence" => "a list",
        other => other,
    }
}

/// A value for an error message, cut where it is long.
pub(crate) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// Whether `written` is the duration or the size that is `shown` in another form: `168h` and `7days`, `1024KiB` and `1MiB`.
pub(super) fn is_quantity(written: &str, shown: &str) -> bool {
    let duration = humantime::parse_duration(written).map(duration_text);
    duration.is_ok_and(|it| it == shown) || size::parse(written).is_some_and(|it| size::text(it) == shown)
}

/// `duration` in the largest unit that leaves no fraction, as `config.yaml` has it: `60s`, `5m`, `24h`, `30days`.
pub(super) fn duration_text(duration: Duration) -> String {
    const UNITS: [(u64, u64, &str); 3] = [(86_400, 2, "days"), (3_600, 1, "h"), (60, 2, "m")];
    let (seconds, fraction) = (duration.as_secs(), duration.subsec_nanos());
    let fits = |(unit, least, _): &&(u64, u64, &str)| seconds % unit == 0 && seconds / unit >= *least;
    match UNITS.iter().find(fits).filter(|_| fraction == 0) {
        Some((unit, _, name)) => format!("{}{name}", seconds / unit),
        None if fraction == 0 => format!("{seconds}s"),
        None => humantime::format_duration(duration).to_string(),
    }
}

struct FromText<T> {
    expecting: &'static str,
    parse: fn(&str) -> Result<T, String>,
}

impl<T> Visitor<'_> for FromText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(|why| {
            let why = if why.is_empty() { why } else { format!(" ({why})") };
            E::custom(format_args!("invalid value, expected {}{why}", self.expecting))
        })
    }
}

/// How a duration is written: `#[serde(with = "DurationText")]`. A bare `0` is a mistake too: it has no unit.
#[derive(Debug)]
pub(super) struct DurationText;

impl DurationText {
    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&duration_text(*duration))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let parse = |text: &str| humantime::parse_duration(text).map_err(|_| String::new());
        deserializer.deserialize_any(FromText { expecting: A_DURATION, parse })
    }
}

/// A point in time, with its zone.
pub(crate) fn a_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let parse = |text: &str| text.parse().map_err(|_: jiff::Error| String::new());
    deserializer.deserialize_any(FromText { expecting: A_TIME, parse })
}

/// A point in time, where there may be none.
pub(super) fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    a_time(deserializer).map(Some)
}

/// A TCP port.
pub(super) fn port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    struct Port;
    impl Visitor<'_> for Port {
        type Value = u16;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(A_PORT)
        }
        fn visit_u64<E: de::Error>(self, port: u64) -> Result<u16, E> {
            let port_or_error = u16::try_from(port).ok().filter(|port| *port != 0);
            port_or_error.ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(port), &self))
        }
    }
    deserializer.deserialize_any(Port)
}

/// A TCP port, where there may be none.
pub(super) fn optional_port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    port(deserializer).map(Some)
}

/// A regular expression that compares by its text.
#[derive(Clone, Debug)]
pub(crate) struct Pattern(pub Regex);

impl<'de> de::Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The last line of a regex error says what is wrong, the others point at it.
        let parse = |text: &str| {
            let why =
                |e: regex::Error| e.to_string().lines().last().unwrap_or_default().replacen("error: ", "", 1);
            Regex::new(text).map(Pattern).map_err(why)
        };
        deserializer.deserialize_any(FromText { expecting: "a regular expression", parse })
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_str())
    }
}

/// The types that are written as texts.
macro_rules! written_as_text {
    ($($name:ident),*) => {$(
        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string"})
            }
        }
    )*};
}

written_as_text!(DurationText, Pattern);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_shown_in_the_largest_unit_that_leaves_no_fraction() {
        for (milliseconds, shown) in [
            (0, "0s"),
            (10, "10ms"),
            (60_000, "60s"),
            (90_000, "90s"),
            (120_000, "2m"),
            (1_000_000, "1000s"),
            (3_600_000, "1h"),
            (86_400_000, "24h"),
            (90_000_000, "25h"),
            (172_800_000, "2days"),
        ] {
            let duration = Duration::from_millis(milliseconds);
            assert_eq!(duration_text(duration), shown);
            assert_eq!(humantime::parse_duration(shown), Ok(duration), "{shown}");
        }
    }

    #[test]
    fn a_quantity_is_the_same_in_another_form() {
        assert!(is_quantity("192h", "8days") && is_quantity("1024KiB", "1MiB"));
        assert!(!is_quantity("192h", "9days") && !is_quantity("8", "8"));
    }
}
