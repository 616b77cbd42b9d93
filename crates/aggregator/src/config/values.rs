//! Values with units, and how mistakes in values are told.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use regex::Regex;
use serde::de::{self, Deserializer, Visitor};
use serde_json::Value;

/// What is said of a duration that is none.
const A_DURATION: &str = "a duration with its unit, such as 60s, 5m or 1h30m";
/// What is said of a time that is none.
pub(crate) const A_TIME: &str = "a date and time with its zone, such as 2027-01-01T00:00:00Z";
/// What is said of a size that is none.
const A_SIZE: &str = "a size in bytes with its unit, such as 512KiB or 4MiB";

/// Renamed keys and what to use instead. Their values are not taken over, because they counted something else.
const RENAMED: [(&str, &str); 2] = [
    ("max_new_apps", "brakes count tenants now: use `max_new_tenants`"),
    ("max_namespaces_per_rule", "it is called `max_tenants_per_rule` now"),
];

/// Parses YAML into a tree. Duplicate keys are mistakes.
pub(super) fn parse_yaml(text: &str) -> Result<Value, String> {
    // Snippets would make errors longer than one line; `on` and `no` are words, as in YAML 1.2.
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options).map_err(|e| {
        // What follows is advice for whoever calls the library.
        let message =
            e.to_string().replace("set DuplicateKeyPolicy in Options if acceptable", "each key only once");
        format!("not valid YAML: {message}")
    })
}

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

/// A key without a value is as if it were not there: a section whose keys are all comments is one.
pub(super) fn drop_nulls(tree: &mut Value) {
    if let Value::Object(map) = tree {
        map.retain(|_, value| !value.is_null());
        map.values_mut().for_each(drop_nulls);
    }
}

/// The first list in the place of a section or of an exemption, with its path: serde takes it for the values of the keys in
/// their order.
pub(super) fn misplaced_list(tree: &Value) -> Option<(String, String)> {
    let mut places: Vec<String> = tree.as_object()?.keys().cloned().collect();
    places.extend(["notification.blocked", "notification.grace"].map(str::to_owned));
    let exemptions = at(tree, "enforcement.exemptions").and_then(Value::as_array);
    for index in 0..exemptions.map_or(0, Vec::len) {
        let exemption = format!("enforcement.exemptions[{index}]");
        let parts = ["namespace", "app", "process", "rule"].map(|part| format!("{exemption}.{part}"));
        places.push(exemption);
        places.extend(parts);
    }
    places.into_iter().find_map(|path| {
        let list = at(tree, &path).filter(|value| value.is_array())?;
        let is_part = path.starts_with("enforcement.exemptions[") && !path.ends_with(']');
        let allowed = if is_part {
            "a text, or `{regex: …}`"
        } else {
            "a section with its keys below it, not a list"
        };
        let problem = format!("{} is not allowed; allowed is {allowed}", shown(list));
        Some((path, problem))
    })
}

/// For each key without a value the sections and keys that lead to it, and nothing else.
pub(super) fn nulls(tree: &Value) -> Vec<Value> {
    let Value::Object(map) = tree else { return Vec::new() };
    let below = |(key, value): (&String, &Value)| {
        let found = if value.is_null() { vec![Value::Null] } else { nulls(value) };
        found.into_iter().map(|inner| serde_json::json!({ key: inner })).collect::<Vec<_>>()
    };
    map.iter().flat_map(below).collect()
}

/// Says what is wrong in the form «value is not allowed; allowed is …», from serde's «…, expected …».
pub(super) fn explain(message: &str, value: Option<&Value>) -> String {
    let value = value.map_or("this".to_owned(), shown);
    let Some((what, allowed)) = message.split_once(", expected ") else {
        if let Some(field) = message.strip_prefix("missing field") {
            return format!("there must be{field}");
        }
        return format!("{value} is not allowed: {message}");
    };
    if let Some(key) = what.strip_prefix("unknown field ") {
        let renamed = RENAMED.iter().find(|(old, _)| key.trim_matches('`') == *old);
        let hint = renamed.map_or(String::new(), |(_, hint)| format!(" ({hint})"));
        return format!("unknown key {key}{hint}; allowed is {allowed}");
    }
    if let Some(variant) = what.strip_prefix("unknown variant ") {
        return format!("{variant} is not allowed; allowed is {allowed}");
    }
    let allowed = match allowed {
        "string or map" => "one of the names in the example config.yaml",
        other if other.starts_with("struct ") => "a section with its keys below it",
        other => in_words(other),
    };
    format!("{value} is not allowed; allowed is {allowed}")
}

/// What serde has `expected`, without the names of Rust's types.
pub(crate) fn in_words(expected: &str) -> &str {
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

/// Whether `written` is the duration or the size that is `shown` in another form: `192h` and `8days`, `1MiB` and `1.0 MiB`.
pub(super) fn is_quantity(written: &str, shown: &str) -> bool {
    let duration = humantime::parse_duration(written).map(humantime::format_duration);
    let size = written.parse::<bytesize::ByteSize>();
    duration.is_ok_and(|it| it.to_string() == shown)
        || size.is_ok_and(|it| it.display().iec().to_string() == shown)
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

/// `60s`, `1h30m`. A bare `0` is a mistake too: it has no unit.
pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let parse = |text: &str| humantime::parse_duration(text).map_err(|_| String::new());
    deserializer.deserialize_any(FromText { expecting: A_DURATION, parse })
}

/// `512KiB`, `4MiB`, in bytes.
pub(super) fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let parse = |text: &str| {
        let has_unit = text.trim_end().ends_with(['B', 'b']);
        let bytes = text.parse::<bytesize::ByteSize>().ok().filter(|_| has_unit).ok_or_else(String::new)?;
        usize::try_from(bytes.as_u64()).map_err(|_| String::new())
    };
    deserializer.deserialize_any(FromText { expecting: A_SIZE, parse })
}

/// A size, where there may be none.
pub(super) fn optional_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    size(deserializer).map(Some)
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
            f.write_str("a port from 1 to 65535")
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
pub struct Pattern(pub Regex);

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
