//! Structural schemas from values: they allow the fields of these values, and no others.

use serde_json::{Map, Value, json};

/// The schema of one value.
pub(super) fn of(value: &Value) -> Value {
    match value {
        // The type of a null is not known.
        Value::Null => json!({"x-kubernetes-preserve-unknown-fields": true, "nullable": true}),
        Value::Bool(_) => json!({"type": "boolean"}),
        Value::Number(number) if number.is_f64() => json!({"type": "number"}),
        Value::Number(_) => json!({"type": "integer", "format": "int64"}),
        Value::String(_) => json!({"type": "string"}),
        Value::Array(items) => match items.iter().map(of).reduce(merge) {
            Some(items) => json!({"type": "array", "items": items}),
            None => json!({"type": "array", "items": {"x-kubernetes-preserve-unknown-fields": true}}),
        },
        Value::Object(fields) => {
            let properties: Map<_, _> =
                fields.iter().map(|(name, value)| (name.clone(), of(value))).collect();
            json!({"type": "object", "properties": properties})
        }
    }
}

/// The schema that allows the values of either of two.
pub(super) fn merge(one: Value, other: Value) -> Value {
    let (Value::Object(mut one), Value::Object(other)) = (one, other) else {
        return json!({"x-kubernetes-preserve-unknown-fields": true});
    };
    match (one.get("type"), other.get("type")) {
        (a, b) if a != b => {
            // One of them was empty or null, so the other one counts.
            let known = if a.is_none() { other } else { one };
            return Value::Object(known);
        }
        _ => {}
    }
    if let (Some(Value::Object(ours)), Some(Value::Object(theirs))) =
        (one.get_mut("properties"), other.get("properties"))
    {
        for (name, schema) in theirs {
            let merged = match ours.remove(name) {
                Some(known) => merge(known, schema.clone()),
                None => schema.clone(),
            };
            ours.insert(name.clone(), merged);
        }
    }
    if let (Some(ours), Some(theirs)) = (one.get("items"), other.get("items")) {
        let merged = merge(ours.clone(), theirs.clone());
        one.insert("items".to_owned(), merged);
    }
    Value::Object(one)
}

/// Allows anything at a path of field names, in which `*` stands for the items of a list.
pub(super) fn open(schema: &mut Value, path: &str) {
    let pointer = path.replace("/*", "/items").split('/').skip(1).fold(String::new(), |pointer, step| {
        let within = if step == "items" { "" } else { "/properties" };
        format!("{pointer}{within}/{step}")
    });
    if let Some(place) = schema.pointer_mut(&pointer) {
        *place = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_is_allowed_and_nothing_else() {
        let schema = of(&json!({"a": [{"b": 1}, {"c": "x"}], "d": [], "e": true}));
        let mut schema = merge(schema, of(&json!({"d": ["y"], "f": {"g": 2}})));
        open(&mut schema, "/a/*/b");
        open(&mut schema, "/f");
        let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let items = json!({"type": "object", "properties": {"b": anything, "c": {"type": "string"}}});
        assert_eq!(
            schema,
            json!({"type": "object", "properties": {
                "a": {"type": "array", "items": items},
                "d": {"type": "array", "items": {"type": "string"}},
                "e": {"type": "boolean"},
                "f": anything,
            }})
        );
    }
}
