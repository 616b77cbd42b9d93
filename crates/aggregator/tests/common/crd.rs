//! Strict validation against a `CustomResourceDefinition`, as an API server does it with `fieldValidation=Strict`.

use std::path::PathBuf;

use serde_json::Value;

/// The real CRDs, or `None` if they are not beside the checkout.
pub fn contracts() -> Option<Vec<Value>> {
    let directory = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/contracts/crds"));
    let Ok(entries) = std::fs::read_dir(&directory) else {
        eprintln!("the real CRDs are not here: this test checks nothing");
        return None;
    };
    let read = |path: PathBuf| serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    Some(entries.map(|entry| read(entry.unwrap().path())).collect())
}

/// Every violation of the schema: its path and the reason.
pub fn problems(crds: &[Value], object: &Value) -> Vec<String> {
    let (group, version) = object["apiVersion"].as_str().unwrap().split_once('/').unwrap();
    let schema = crds
        .iter()
        .filter(|crd| crd["spec"]["group"] == group && crd["spec"]["names"]["kind"] == object["kind"])
        .flat_map(|crd| crd["spec"]["versions"].as_array().unwrap())
        .find(|candidate| candidate["name"] == version && candidate["served"] == true)
        .map(|version| version["schema"]["openAPIV3Schema"].clone());
    let Some(schema) = schema else {
        return vec![format!("no CRD for {group}/{version} {}", object["kind"])];
    };
    let mut problems = Vec::new();
    for (key, value) in object.as_object().unwrap() {
        match key.as_str() {
            "apiVersion" | "kind" => {}
            "metadata" => metadata(value, &mut problems),
            _ => match schema["properties"].get(key) {
                Some(schema) => check(schema, value, key, &mut problems),
                None => problems.push(format!("unknown field {key}")),
            },
        }
    }
    problems
}

/// The part of an object's metadata that a client may set.
fn metadata(metadata: &Value, problems: &mut Vec<String>) {
    for (key, value) in metadata.as_object().unwrap() {
        let good = match key.as_str() {
            "name" | "namespace" => value.as_str().is_some_and(procscan_core::names::is_dns_subdomain),
            "labels" => {
                value.as_object().unwrap().values().all(|v| v.as_str().is_some_and(|v| v.len() <= 63))
            }
            "annotations" => value.as_object().unwrap().values().all(Value::is_string),
            _ => false,
        };
        if !good {
            problems.push(format!("metadata.{key}: {value}"));
        }
    }
}

fn check(schema: &Value, value: &Value, path: &str, problems: &mut Vec<String>) {
    let good = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        other => panic!("{path}: the schema has a type that this validator does not know: {other:?}"),
    };
    let is_allowed_null = value.is_null() && schema["nullable"] == true;
    if !good && !is_allowed_null {
        problems.push(format!("{path}: {value} is not of type {}", schema["type"]));
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        problems.push(format!("{path}: {value} is not one of {allowed:?}"));
    }
    for required in schema["required"].as_array().into_iter().flatten() {
        if value.get(required.as_str().unwrap()).is_none() {
            problems.push(format!("{path}: {required} is missing"));
        }
    }
    for (key, value) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{key}");
        if let Some(schema) = schema["properties"].get(key).or(schema.get("additionalProperties")) {
            check(schema, value, &path, problems);
        } else if schema["x-kubernetes-preserve-unknown-fields"] != true {
            problems.push(format!("{path}: unknown field"));
        }
    }
    for (index, value) in value.as_array().into_iter().flatten().enumerate() {
        check(&schema["items"], value, &format!("{path}[{index}]"), problems);
    }
}
