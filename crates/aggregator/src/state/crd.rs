//! The definitions (CRDs) of the persisted objects, generated from the types in [`procscan_core::state`].

use procscan_core::state::{
    EnforcementSpec, ExemptionSpec, GROUP, IncidentSpec, IncidentStatus, VERSION, enforcement,
};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

/// A kind of object that the state is persisted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Resource {
    /// See [`procscan_core::state::incident`].
    Incident,
    /// See [`procscan_core::state::exemption`].
    Exemption,
    /// See [`procscan_core::state::enforcement`].
    Enforcement,
}

impl Resource {
    /// All kinds.
    pub(crate) const ALL: [Self; 3] = [Self::Incident, Self::Exemption, Self::Enforcement];

    /// The Kubernetes kind.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Incident => "Incident",
            Self::Exemption => "Exemption",
            Self::Enforcement => "Enforcement",
        }
    }

    /// The plural in URLs and in rules of RBAC.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Incident => "incidents",
            Self::Exemption => "exemptions",
            Self::Enforcement => "enforcements",
        }
    }
}

/// The definitions, ready for `kubectl apply`.
pub(crate) fn definitions() -> Vec<Value> {
    let column = |name: &str, path: &str, about: &str| {
        let kind = if path.ends_with("opened") { "date" } else { "string" };
        json!({"name": name, "type": kind, "jsonPath": path, "description": about})
    };
    let wide = |mut column: Value| {
        set(&mut column, "priority", 1.into());
        column
    };
    Resource::ALL
        .map(|resource| match resource {
            Resource::Incident => definition(
                resource,
                "The incident of one App with its state, its evidence and its decisions.",
                &[
                    column("Tenant", ".spec.app.namespace", "The tenant's namespace"),
                    column("Type", ".spec.app.type", "The App's type"),
                    column("App", ".spec.app.name", "The App's name"),
                    column("State", ".status.state", "The state of the incident"),
                    column("Opened", ".status.opened", "When it opened"),
                    wide(column("Brake", ".status.brake.brake", "The brake that holds the block")),
                    wide(column("Reason", ".status.reason", "Why")),
                ],
                &schema::<IncidentSpec>(),
                Some(schema::<IncidentStatus>()),
                None,
            ),
            Resource::Exemption => definition(
                resource,
                "Accusations that are shown but not enforced. All given parts must match.",
                &[
                    column("Namespace", ".spec.namespace.*", "The tenant's namespace"),
                    column("App", ".spec.app.*", "The App's name"),
                    column("Process", ".spec.process.*", "The process name"),
                    column("Rule", ".spec.rule.*", "The rule"),
                    column("Until", ".spec.until", "Until when; for ever without a date"),
                    column("Reason", ".spec.reason", "Why"),
                    wide(column("By", ".spec.by", "The operator that declared it")),
                ],
                &schema::<ExemptionSpec>(),
                None,
                None,
            ),
            Resource::Enforcement => definition(
                resource,
                "The mode, which counts over the configuration.",
                &[
                    column("Mode", ".spec.mode", "The mode that an operator declared"),
                    column("Reason", ".spec.reason", "Why"),
                    column("By", ".spec.by", "The operator that declared it"),
                ],
                &schema::<EnforcementSpec>(),
                None,
                Some(json!([{
                    "rule": format!("self.metadata.name == '{}'", enforcement::NAME),
                    "message": format!("there is one, called {}", enforcement::NAME),
                }])),
            ),
        })
        .to_vec()
}

fn definition(
    resource: Resource,
    about: &str,
    columns: &[Value],
    spec: &Value,
    status: Option<Value>,
    rules: Option<Value>,
) -> Value {
    let kind = resource.kind();
    let mut properties = Map::from_iter([
        ("apiVersion".to_owned(), json!({"type": "string"})),
        ("kind".to_owned(), json!({"type": "string"})),
        ("metadata".to_owned(), json!({"type": "object"})),
        ("spec".to_owned(), spec.clone()),
    ]);
    let mut version = json!({
        "name": VERSION,
        "served": true,
        "storage": true,
        "additionalPrinterColumns": columns,
    });
    if let Some(status) = status {
        properties.insert("status".to_owned(), status);
        set(&mut version, "subresources", json!({"status": {}}));
    }
    let mut schema =
        json!({"type": "object", "description": about, "required": ["spec"], "properties": properties});
    if let Some(rules) = rules {
        set(&mut schema, "x-kubernetes-validations", rules);
    }
    set(&mut version, "schema", json!({"openAPIV3Schema": schema}));
    let plural = resource.plural();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{GROUP}"), "labels": {"app": "procscan-aggregator"}},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": format!("{kind}List"),
                "plural": plural,
                "singular": kind.to_ascii_lowercase(),
                "categories": ["procscan"],
            },
            "versions": [version],
        },
    })
}

fn set(object: &mut Value, name: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(name.to_owned(), value);
    }
}

/// The schema of a type, in the form that the API server demands («structural»).
fn schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    structural(&mut schema);
    schema.to_value()
}

fn structural(schema: &mut Schema) {
    let mut value = std::mem::take(schema).to_value();
    clean(&mut value);
    if let Ok(cleaned) = value.try_into() {
        *schema = cleaned;
    }
}

fn clean(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(clean),
        Value::Object(schema) => {
            // The API server knows few formats, and allows no sets of objects. It would fill in defaults that no user
            // has requested.
            let known = |format: &Value| format == "date-time" || format == "int64";
            if schema.get("format").is_some_and(|format| format.is_string() && !known(format)) {
                schema.remove("format");
            }
            for name in ["title", "$schema", "uniqueItems"] {
                if schema.get(name).is_some_and(|value| !value.is_object()) {
                    schema.remove(name);
                }
            }
            if schema.contains_key("type") || schema.contains_key("oneOf") || schema.contains_key("enum") {
                schema.remove("default");
            }
            // A value that may be missing. It is never null, so the schema is that of the value itself.
            if let Some(Value::Array(variants)) = schema.remove("anyOf") {
                let is_something = |variant: &Value| variant.get("nullable").is_none();
                if let Some(Value::Object(inner)) = variants.into_iter().find(is_something) {
                    for (name, value) in inner {
                        schema.entry(name).or_insert(value);
                    }
                }
            }
            // An enumeration whose values are documented one by one.
            if let Some(Value::Array(variants)) = schema.remove("oneOf") {
                let values = variants.iter().filter_map(|variant| variant.get("enum")?.as_array());
                let values: Vec<Value> = values.flatten().cloned().collect();
                schema.insert("type".to_owned(), "string".into());
                schema.insert("enum".to_owned(), values.into());
            }
            schema.values_mut().for_each(clean);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_are_structural() {
        fn check(place: &str, schema: &Value) {
            let Some(fields) = schema.as_object() else { panic!("{place}: {schema}") };
            for forbidden in
                ["oneOf", "anyOf", "allOf", "$ref", "definitions", "uniqueItems", "default", "title"]
            {
                assert!(!fields.contains_key(forbidden), "{place} has {forbidden}");
            }
            assert!(fields.get("type").is_some_and(Value::is_string), "{place} has no type: {schema}");
            for (name, property) in fields.get("properties").and_then(Value::as_object).into_iter().flatten()
            {
                check(&format!("{place}.{name}"), property);
            }
            if let Some(items) = fields.get("items") {
                check(&format!("{place}[]"), items);
            }
        }
        let definitions = definitions();
        assert_eq!(definitions.len(), 3);
        for definition in definitions {
            let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            check(definition["spec"]["names"]["kind"].as_str().unwrap(), schema);
        }
    }
}
