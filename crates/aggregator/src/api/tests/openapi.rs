//! The `OpenAPI` document.

use std::path::Path;

use super::*;
use crate::api::{all_routes, openapi};

/// The copy of the document for readers and generators of clients.
const COPY: &str = "../../docs/openapi.json";

#[test]
fn the_copy_of_the_document_is_that_of_the_routes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(COPY);
    let document = serde_json::to_string_pretty(&openapi::document(&all_routes())).unwrap() + "\n";
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &document).unwrap();
    }
    let copy = std::fs::read_to_string(&path).unwrap();
    assert!(copy == document, "docs/openapi.json is not of this version: run `make openapi`");
}

/// Every reference below `value`.
fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(members) => {
            found.extend(members.get("$ref").and_then(Value::as_str));
            members.values().for_each(|value| references(value, found));
        }
        Value::Array(entries) => entries.iter().for_each(|entry| references(entry, found)),
        _ => {}
    }
}

#[test]
fn every_reference_leads_to_a_schema_and_every_operation_has_a_name_of_its_own() {
    let document = openapi::document(&all_routes());
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 50, "{found:?}");
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
    let paths = document["paths"].as_object().unwrap();
    let operations: Vec<&str> = paths
        .values()
        .flat_map(|path| path.as_object().unwrap().values())
        .map(|operation| operation["operationId"].as_str().unwrap())
        .collect();
    let distinct: std::collections::BTreeSet<_> = operations.iter().collect();
    assert_eq!((operations.len(), distinct.len()), (all_routes().len(), all_routes().len()));
    // Two types of one name would be told apart by a number.
    let schemas = document["components"]["schemas"].as_object().unwrap();
    assert!(schemas.keys().all(|name| !name.ends_with(|c: char| c.is_ascii_digit())), "{:?}", schemas.keys());
}

#[tokio::test]
async fn the_document_is_served_and_every_method_that_a_path_does_not_take_is_refused_with_those_that_it_does()
 {
    let stage = Stage::new();
    let (status, headers, body) = stage.get("/openapi.json").await;
    assert_eq!((status, headers["content-type"].to_str().unwrap()), (StatusCode::OK, "application/json"));
    let document = json(&body);
    assert_eq!(document["openapi"], "3.1.0");
    for (path, operations) in document["paths"].as_object().unwrap() {
        let path = path.replace("{name}", "web");
        for method in ["DELETE", "GET", "PATCH", "POST", "PUT"] {
            if operations.get(method.to_ascii_lowercase()).is_some() {
                continue;
            }
            let request = Request::builder().method(method).uri(&path).body(Body::empty()).unwrap();
            let (status, headers, body) = stage.ask(request).await;
            assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            assert_eq!(headers["content-type"], "application/problem+json", "{method} {path}: {body}");
            let allowed = headers["allow"].to_str().unwrap();
            for operation in operations.as_object().unwrap().keys() {
                assert!(allowed.contains(&operation.to_ascii_uppercase()), "{method} {path}: {allowed}");
            }
        }
    }
}
