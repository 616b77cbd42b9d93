//! The configuration as a tree of YAML, and how mistakes in it are explained.

use serde_json::Value;

use super::values::{at, plain_type, shown};

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
        // The replaced text is advice for programmers.
        let message =
            e.to_string().replace("set DuplicateKeyPolicy in Options if acceptable", "each key only once");
        format!("not valid YAML: {message}")
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
        let problem = format!("invalid value {}: expected {allowed}", shown(list));
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

/// Says what is wrong in the form «invalid value X: expected Y», from serde's «…, expected …».
pub(super) fn explain(message: &str, value: Option<&Value>) -> String {
    let value = value.map_or(String::new(), |value| format!(" {}", shown(value)));
    let Some((what, expected)) = message.split_once(", expected ") else {
        if let Some(field) = message.strip_prefix("missing field") {
            return format!("missing key{field}");
        }
        return format!("invalid value{value}: {message}");
    };
    if let Some(key) = what.strip_prefix("unknown field ") {
        let renamed = RENAMED.iter().find(|(old, _)| key.trim_matches('`') == *old);
        let hint = renamed.map_or(String::new(), |(_, hint)| format!(" ({hint})"));
        return format!("unknown key {key}{hint}: expected {expected}");
    }
    if let Some(variant) = what.strip_prefix("unknown variant ") {
        return format!("invalid value {variant}: expected {expected}");
    }
    let expected = match expected {
        "string or map" => "one of the names in the example config.yaml",
        other if other.starts_with("struct ") => "a section with its keys below it",
        other => plain_type(other),
    };
    format!("invalid value{value}: expected {expected}")
}
