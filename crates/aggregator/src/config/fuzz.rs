//! Laws of configurations.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a surprise stops the run")]

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Config, ConfigError, tree};

const NAME: &str = "config.yaml";

type Variables = Vec<(String, String)>;

fn parse(text: &str, variables: Variables) -> Result<Config, ConfigError> {
    let variables = variables.into_iter().map(|(name, value)| (name, value.into()));
    Config::parse(text, NAME, variables, Timestamp::UNIX_EPOCH)
}

/// Laws of a configuration. Lines at the top that begin with `PROCSCAN_` are the environment; the rest is YAML.
///
/// # Panics
/// Where one is broken.
pub fn config(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (variables, text) = split(&text);
    let read = parse(text, variables.clone());
    match &read {
        Err(error) => refused(error, &variables),
        Ok(config) => {
            // A valid configuration can be used.
            config.policy();
            config.settings();
            config.detection();
            config.limits();
        }
    }
    assert_eq!(shown(&read), shown(&parse(text, variables.clone())));

    let Ok(tree @ Value::Object(_)) = tree::parse_yaml(text) else { return };
    // JSON is YAML, too, but for its longest keys.
    let json = tree.to_string();
    if longest_key(&tree) <= 1024 {
        assert_eq!(shown(&parse(&json, variables.clone())), shown(&read), "{json}");
    }
    if variables.is_empty() && read.is_ok() {
        from_the_environment(&tree, &read);
    }
}

fn split(text: &str) -> (Variables, &str) {
    let mut variables = Vec::new();
    let mut rest = text;
    while let Some((line, more)) = rest.split_once('\n')
        && line.starts_with("PROCSCAN_")
        && let Some((name, value)) = line.split_once('=')
        && name.bytes().all(|byte| byte.is_ascii_graphic())
    {
        variables.push((name.to_owned(), value.to_owned()));
        rest = more;
    }
    (variables, rest)
}

/// One line for each mistake, and each begins with where it is.
fn refused(error: &ConfigError, variables: &Variables) {
    let text = error.to_string();
    assert_eq!(text.lines().count(), error.len(), "{text}");
    assert!(!text.is_empty());
    for line in text.lines() {
        let is_place = |place: &str| line.starts_with(&format!("{place}: "));
        assert!(is_place(NAME) || variables.iter().any(|(name, _)| is_place(name)), "no place: {line}");
    }
}

/// The length of the longest key as JSON, in bytes.
fn longest_key(tree: &Value) -> usize {
    match tree {
        Value::Object(map) => {
            let longest = map.iter().map(|(key, value)| json!(key).to_string().len().max(longest_key(value)));
            longest.max().unwrap_or(0)
        }
        Value::Array(list) => list.iter().map(longest_key).max().unwrap_or(0),
        _ => 0,
    }
}

/// Each value of the file can come from the environment instead.
fn from_the_environment(tree: &Value, read: &Result<Config, ConfigError>) {
    let Value::Object(sections) = tree else { return };
    for (section, keys) in sections {
        let Value::Object(keys) = keys else { continue };
        for (key, value) in keys.iter().filter(|(_, value)| !value.is_null()) {
            let mut less = tree.clone();
            less[section.as_str()].as_object_mut().unwrap().remove(key);
            let variable = format!("PROCSCAN_{}__{}", section.to_uppercase(), key.to_uppercase());
            let moved = parse(&less.to_string(), vec![(variable, value.to_string())]);
            assert_eq!(shown(&moved), shown(read), "{section}.{key}: {value}");
        }
    }
}

fn shown(read: &Result<Config, ConfigError>) -> String {
    format!("{read:?}")
}
