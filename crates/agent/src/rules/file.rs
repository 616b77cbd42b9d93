//! Rule files of the real agent: a configuration file with a section `detectionRules`, or the `ConfigMap` that has it.
//!
//! Both lists of rules have one type in the real agent. So its files have `commands`, `namespaces` and `podNames` below
//! `blacklist`, and `keywords` below `whitelist`, although the agent does not read them there. Another key is an error, because
//! a misspelt one would exempt a miner without any message. The file's other sections belong to features that this agent does not
//! have.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::RulesError;

// Sections and lists are optional rather than defaulted, because operators comment out all entries and leave the bare key.

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    kind: Option<Value>,
    data: Option<Value>,
    detection_rules: Option<Detection>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Detection {
    pub(super) blacklist: Option<Lists>,
    pub(super) whitelist: Option<Lists>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Lists {
    pub(super) processes: Option<Vec<String>>,
    pub(super) keywords: Option<Vec<String>>,
    pub(super) commands: Option<Vec<String>>,
    pub(super) namespaces: Option<Vec<String>>,
    pub(super) pod_names: Option<Vec<String>>,
}

/// The section `detectionRules` of a file, and its path within a `ConfigMap`, which is empty for a plain file.
pub(super) fn read(text: &str) -> Result<(String, Detection), RulesError> {
    let mut found = Vec::new();
    for document in serde_saphyr::from_multiple::<Document>(text)? {
        if document.kind.as_ref().and_then(Value::as_str) == Some("ConfigMap") {
            let data: BTreeMap<String, Value> =
                document.data.and_then(|data| serde_json::from_value(data).ok()).unwrap_or_default();
            for (key, file) in data {
                let Some(file) = file.as_str() else { continue };
                let place = format!("data[{key}].");
                if let Some(rules) = of_config_map(file).map_err(|error| error.in_file(&place))? {
                    found.push((place, rules));
                }
            }
        } else if let Some(rules) = document.detection_rules {
            found.push((String::new(), rules));
        }
    }
    if found.len() > 1 {
        return Err(RulesError::Several(found.len()));
    }
    found.pop().ok_or(RulesError::Missing)
}

/// The rules in a value of a `ConfigMap`. Other values of it can be of any kind.
fn of_config_map(file: &str) -> Result<Option<Detection>, RulesError> {
    if !file.contains("detectionRules") {
        return Ok(None);
    }
    Ok(serde_saphyr::from_str::<Document>(file)?.detection_rules)
}
