//! Overrides from the environment: `PROCSCAN_SECTION__KEY=value`.

use std::collections::BTreeMap;
use std::ffi::OsString;

use serde_json::{Map, Value};

use super::ConfigError;
use super::tree::parse_yaml;

/// Sets the values of the variables in `tree`, and returns for each path the variable that has set it.
///
/// Only names with a double underscore are ours: Kubernetes itself sets `PROCSCAN_PORT`, `PROCSCAN_SERVICE_HOST` and more for a
/// Service that is called `procscan`.
pub(super) fn apply(
    tree: &mut Value,
    variables: impl IntoIterator<Item = (String, OsString)>,
) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut set = BTreeMap::new();
    for (variable, value) in variables {
        let Some(name) = variable.strip_prefix("PROCSCAN_") else {
            continue;
        };
        let path: Vec<String> = name.split("__").map(str::to_lowercase).collect();
        let [first, .., last] = &path[..] else { continue };
        if path.iter().any(String::is_empty) {
            continue;
        }
        let text = value.into_string().map_err(|value| {
            let shown = value.to_string_lossy();
            ConfigError::new(&variable, format!("invalid value {shown:?}: expected a text in UTF-8"))
        })?;
        let value = value_of(text).map_err(|problem| ConfigError::new(&variable, problem))?;
        let mut place = &mut *tree;
        for step in path.iter().take(path.len() - 1) {
            let Value::Object(map) = place else {
                return Err(ConfigError::new(&variable, format!("`{first}` has no keys of its own")));
            };
            let next = map.entry(step.clone()).or_insert_with(|| Value::Object(Map::new()));
            if next.is_null() {
                *next = Value::Object(Map::new());
            }
            place = next;
        }
        let Value::Object(map) = place else {
            return Err(ConfigError::new(&variable, format!("`{first}` has no keys of its own")));
        };
        map.insert(last.clone(), value);
        set.insert(path.join("."), variable);
    }
    Ok(set)
}

/// Reads numbers, `true` and `false` as such, and lists, maps and quoted texts as YAML. Any other text stays as it is, because
/// `ticket #5: ask` and a checksum of digits are texts.
fn value_of(text: String) -> Result<Value, String> {
    let is_yaml = text.starts_with(['[', '{', '"', '\'']);
    match text.as_str() {
        _ if is_yaml => parse_yaml(&text),
        "true" => Ok(Value::Bool(true)),
        "false" => Ok(Value::Bool(false)),
        // Only what is written as a number is: `007` and a checksum of zeros are not.
        _ => match text.parse::<serde_json::Number>() {
            Ok(number) if (number.is_i64() || number.is_u64()) && number.to_string() == text => {
                Ok(Value::Number(number))
            }
            _ => Ok(Value::String(text)),
        },
    }
}
