//! `/openapi.json`: the `OpenAPI` 3.1 document of the routes. `docs/openapi.json` is a copy of it, which a test compares.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::reader::Reading;
use super::route::{Access, Route};

/// The body of a problem (RFC 9457).
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
struct ProblemBody {
    /// Always `about:blank`: the title is that of the status.
    #[serde(rename = "type")]
    kind: String,
    /// The status as a text.
    title: String,
    /// The status.
    status: u16,
    /// What is wrong, for people.
    detail: String,
    /// The place of a mistake: a parameter, a header, or a member of the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    parameter: Option<String>,
    /// The value there.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// What is expected there.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<String>,
    /// The account that lacks a right.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    /// The RBAC rule that would give the right.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<Value>,
    /// How many tenants an exemption would open.
    #[serde(skip_serializing_if = "Option::is_none")]
    tenants: Option<usize>,
}

/// The document of `routes`.
pub(super) fn document(routes: &[Route]) -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for route in routes {
        let operation = operation(route, &mut generator);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        if let Value::Object(path) = path {
            path.insert(route.method.as_str().to_ascii_lowercase(), operation);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "ProcScan Aggregator",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": env!("CARGO_PKG_LICENSE"), "identifier": env!("CARGO_PKG_LICENSE")},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": {"token": {
                "type": "http",
                "scheme": "bearer",
                "description": "A token of the cluster, or of the token file (`api.auth`).",
            }},
        },
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut operation = json!({
        "operationId": route.operation,
        "summary": route.summary,
        "description": needs(route),
        "parameters": parameters(route),
        "responses": responses(route, generator),
        "security": if route.access == Access::Open { json!([]) } else { json!([{"token": []}]) },
    });
    if let (Some(body), Value::Object(operation)) = (route.body, &mut operation) {
        let schema = body(generator);
        let body = json!({"required": true, "content": {"application/json": {"schema": schema}}});
        operation.insert("requestBody".to_owned(), body);
    }
    operation
}

/// What the caller needs, as a sentence.
fn needs(route: &Route) -> String {
    let takes_namespace = route.parameters.iter().any(|parameter| parameter.name == "namespace");
    match route.access {
        Access::Open => "Needs no token.".to_owned(),
        Access::Authenticated => "Needs a valid token.".to_owned(),
        Access::Path => format!("Needs the right to get the path {}.", route.path),
        Access::Operate(verb, resource) => {
            format!("Needs the right to {verb} {resource} of procscan.sealos.io.")
        }
        Access::Read(reading) => {
            let verb = if reading == Reading::List { "list" } else { "get" };
            let place = if takes_namespace {
                "in `namespace`, and in all namespaces without it"
            } else {
                "in all namespaces"
            };
            format!("Needs the right to {verb} violations of procscan.sealos.io {place}.")
        }
    }
}

fn parameters(route: &Route) -> Value {
    let in_path = route.path.contains("{name}").then(|| {
        let schema = json!({"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"});
        json!({"name": "name", "in": "path", "required": true, "schema": schema})
    });
    let in_query = route.parameters.iter().map(|parameter| {
        let (name, about, schema) = (parameter.name, parameter.about, parameter.schema());
        json!({"name": name, "in": "query", "description": about, "schema": schema})
    });
    in_path.into_iter().chain(in_query).collect()
}

fn responses(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut responses = Map::new();
    for answer in &route.answers {
        let mut response = json!({"description": answer.about});
        if let (Some((media, schema)), Value::Object(response)) = (answer.body, &mut response) {
            let schema = schema(generator);
            response.insert("content".to_owned(), json!({media: {"schema": schema}}));
        }
        responses.insert(answer.status.to_string(), response);
    }
    let of_access: &[u16] = match route.access {
        Access::Open => &[400],
        Access::Authenticated => &[400, 401, 503],
        Access::Read(_) | Access::Path | Access::Operate(..) => &[400, 401, 403, 503],
    };
    let problem = generator.subschema_for::<ProblemBody>();
    let refusals: BTreeSet<u16> = of_access.iter().chain(route.refusals).copied().collect();
    for status in refusals {
        let title = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        let content = json!({"application/problem+json": {"schema": &problem}});
        responses
            .insert(status.to_string(), json!({"description": title.unwrap_or("Error"), "content": content}));
    }
    Value::Object(responses)
}
