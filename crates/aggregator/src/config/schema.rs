//! The JSON Schema of the configuration in `docs/config.schema.json`, by which editors complete keys and underline mistakes.
//! `make config-schema` writes it. `check-config` checks more: the bounds of numbers, and keys that depend on each other.

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::Config;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/config.schema.json");

fn schema() -> Value {
    let settings = SchemaSettings::default().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<Config>().to_value();
    schema["title"] = json!("The configuration of procscan-aggregator");
    schema
}

#[test]
fn the_schema_in_the_documents_is_that_of_the_types() {
    let expected = format!("{:#}\n", schema());
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(FILE, &expected).unwrap();
    }
    assert!(std::fs::read_to_string(FILE).unwrap() == expected, "run `make config-schema`");
}

/// Every key of the sections, with the types that the schema allows.
#[test]
fn the_schema_knows_each_key_and_refuses_others() {
    let schema = schema();
    let config = serde_json::to_value(Config::default()).unwrap();
    for (name, section) in config.as_object().unwrap() {
        let of_section = &schema["properties"][name];
        assert_eq!(of_section["additionalProperties"], false, "{name}");
        for (key, value) in section.as_object().unwrap() {
            let of_key = &of_section["properties"][key];
            assert!(of_key["description"].is_string(), "{name}.{key} has no description: {of_key}");
            let types = match &of_key["type"] {
                Value::Array(types) => types.clone(),
                Value::Null => continue,
                one => vec![one.clone()],
            };
            let own = match value {
                Value::Null => "null",
                Value::Bool(_) => "boolean",
                Value::Number(_) => "integer",
                Value::String(_) => "string",
                Value::Array(_) => "array",
                Value::Object(_) => "object",
            };
            assert!(types.contains(&json!(own)), "{name}.{key}: {own} is none of {types:?}");
        }
    }
}
