//! What differs between an object as it should be and as it is.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value};

/// What would be done to one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// It is not there, and should be.
    Create,
    /// It is there, and should be different.
    Change,
    /// It is there, and its cause is over: it is marked as read.
    Retire,
    /// It is there, and should not be.
    Remove,
    /// It is left as it is, for the reason that is shown.
    Leave,
}

/// One object that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// What would be done.
    pub(crate) action: Action,
    /// The object: kind, namespace, name.
    pub(crate) object: String,
    /// What in it, a line each; `-` is what is there, `+` what should be.
    pub(crate) lines: Vec<String>,
}

impl Difference {
    /// The removal of an object, or the reason why it is left.
    pub(super) fn removal(object: String, why_not: Option<String>) -> Self {
        let action = if why_not.is_some() { Action::Leave } else { Action::Remove };
        Self { action, object, lines: why_not.into_iter().collect() }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::Change => "change",
            Self::Retire => "mark as read",
            Self::Remove => "remove",
            Self::Leave => "leave",
        })
    }
}

/// Compares two values, field by field; lists of texts as sets. Empty if they are the same.
pub(super) fn lines(path: &str, is: Option<&Value>, should: Option<&Value>) -> Vec<String> {
    let mut out = Vec::new();
    compare(path, is, should, &mut out);
    out
}

fn compare(path: &str, is: Option<&Value>, should: Option<&Value>, out: &mut Vec<String>) {
    let (no_fields, no_items) = (Value::Object(Map::new()), Value::Array(Vec::new()));
    let empty = |like: &Value| match like {
        Value::Object(fields) if !fields.is_empty() => Some(no_fields.clone()),
        Value::Array(items) if !items.is_empty() => Some(no_items.clone()),
        _ => None,
    };
    // A value that is only on one side is shown field by field too.
    let (is_like, should_like) = (should.and_then(empty), is.and_then(empty));
    let (is, should) = (is.or(is_like.as_ref()), should.or(should_like.as_ref()));
    match (is, should) {
        (a, b) if a == b => {}
        (Some(Value::Object(is)), Some(Value::Object(should))) => {
            let names: BTreeSet<&String> = is.keys().chain(should.keys()).collect();
            for name in names {
                compare(&format!("{path}.{name}"), is.get(name), should.get(name), out);
            }
        }
        (Some(Value::Array(is)), Some(Value::Array(should))) => {
            let is_plain = |list: &[Value]| {
                list.iter().all(|item| !item.is_array() && (item.is_string() || item.is_object()))
            };
            let texts = |list: &[Value]| list.iter().map(shown).collect::<BTreeSet<String>>();
            let is_rules = path.ends_with(".matchRules");
            if is_rules || !is_plain(is) || !is_plain(should) {
                for index in 0..is.len().max(should.len()) {
                    compare(&format!("{path}[{index}]"), is.get(index), should.get(index), out);
                }
                return;
            }
            let (old, new) = (texts(is), texts(should));
            if old == new {
                out.push(format!("~ {path}: another order"));
            }
            out.extend(old.difference(&new).map(|text| format!("- {path}: {text}")));
            out.extend(new.difference(&old).map(|text| format!("+ {path}: {text}")));
        }
        (is, should) => {
            out.extend(is.map(|value| format!("- {path}: {}", shown(value))));
            out.extend(should.map(|value| format!("+ {path}: {}", shown(value))));
        }
    }
}

/// On one line, with everything unprintable escaped: tenants choose some of it.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    text.chars().flat_map(char::escape_debug).collect::<String>().replace("\\\"", "\"").replace("\\'", "'")
}

/// What has to be set to null so that nothing is left in `is` that `should` does not have. `None` if there is nothing.
pub(super) fn surplus(is: &Value, should: &Value) -> Option<Value> {
    let (Value::Object(is), Value::Object(should)) = (is, should) else { return None };
    let mut nulls = Map::new();
    for (name, value) in is {
        match should.get(name) {
            None => drop(nulls.insert(name.clone(), Value::Null)),
            Some(wanted) => {
                if let Some(below) = surplus(value, wanted) {
                    nulls.insert(name.clone(), below);
                }
            }
        }
    }
    (!nulls.is_empty()).then_some(Value::Object(nulls))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_name_the_field_and_both_values() {
        let is = json!({"a": 1, "same": {"x": [1]}, "list": ["b", "a\n"], "gone": true});
        let should = json!({"a": 2, "same": {"x": [1]}, "list": ["b", "c"], "new": {"y": null}});
        assert_eq!(
            lines("spec", Some(&is), Some(&should)),
            [
                "- spec.a: 1",
                "+ spec.a: 2",
                "- spec.gone: true",
                "- spec.list: a\\n",
                "+ spec.list: c",
                "+ spec.new.y: null"
            ]
        );
        assert!(lines("spec", Some(&is), Some(&is)).is_empty());
        let rules = |service: &str| json!({"matchRules": [{"service": [service]}]});
        assert_eq!(
            lines("spec", Some(&rules("a")), Some(&rules("b"))),
            ["- spec.matchRules[0].service: a", "+ spec.matchRules[0].service: b"]
        );
    }

    #[test]
    fn fields_that_another_program_has_added_are_removed_at_any_depth() {
        let should = json!({"a": {"b": 1}, "list": [1]});
        let is = json!({"a": {"b": 2, "c": 3}, "list": [1, 2], "pluginConfig": {}});
        assert_eq!(surplus(&is, &should), Some(json!({"a": {"c": null}, "pluginConfig": null})));
        assert_eq!(surplus(&should, &is), None);
    }
}
