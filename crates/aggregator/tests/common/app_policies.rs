//! A kind of object that exists only in tests: a `ConfigMap` for each blocked App. A kind needs no more than such a file, and an
//! entry in the list of kinds.

use std::collections::BTreeSet;

use procscan_core::names::{App, Text};
use procscan_core::plan::Plan;
use procscan_core::policy::{InheritedBlock, OnIngresses};
use procscan_core::resources::{
    BlockingKind, Draft, Drafts, ExistingObject, FoundObject, Home, Kind, Metadata, Object, ResourceKind,
    Role, Rule, Settings, WritePolicy, notification, wasm_plugin,
};
use serde_json::{Value, json};

/// The namespace of all objects of [`IN_ONE_NAMESPACE`].
pub const NAMESPACE: &str = "procscan-policies";

/// The kind with all objects in [`NAMESPACE`].
pub const IN_ONE_NAMESPACE: Kind = Kind::of(&AppPolicies { namespace: Some(NAMESPACE) });

/// The kind with each object in its tenant's namespace.
pub const IN_TENANTS_NAMESPACES: Kind = Kind::of(&AppPolicies { namespace: None });

/// The kinds of the product, and [`IN_ONE_NAMESPACE`].
pub const KINDS: &[Kind] = &[wasm_plugin::KIND, notification::KIND, IN_ONE_NAMESPACE];

/// The kinds of the product, and [`IN_TENANTS_NAMESPACES`].
pub const KINDS_IN_TENANTS: &[Kind] = &[wasm_plugin::KIND, notification::KIND, IN_TENANTS_NAMESPACES];

#[derive(Debug)]
struct AppPolicies {
    namespace: Option<&'static str>,
}

/// The namespace and the name of an App's policy. Without `namespace` it is in its tenant's namespace.
pub fn place(app: &App, namespace: Option<&str>) -> (String, String) {
    let of_tenant = app.namespace.to_string();
    // Two tenants may have Apps of the same name.
    let name = format!("{of_tenant}.{}", notification::name(app));
    (namespace.map_or(of_tenant, str::to_owned), name)
}

/// A content that blocks no App.
fn open() -> Value {
    json!({"state": "open"})
}

fn content((app, services): &(App, Vec<Text>)) -> Value {
    let services: Vec<&str> = services.iter().map(AsRef::as_ref).collect();
    json!({
        "state": "closed", "namespace": &*app.namespace, "type": &*app.kind, "name": &*app.name,
        "services": services.join(" "),
    })
}

/// The App that a content blocks, with its Services.
fn block(content: &Value) -> Option<(App, Vec<Text>)> {
    let text = |field| content.get(field).and_then(Value::as_str);
    let app = App::new(text("namespace")?, text("type")?, text("name")?);
    let services = text("services")?.split_whitespace().map(Text::from).collect();
    text("state").filter(|state| *state == "closed").map(|_| (app, services))
}

impl ResourceKind for AppPolicies {
    fn name(&self) -> &'static str {
        "ConfigMap"
    }

    fn api_version(&self) -> &'static str {
        "v1"
    }

    fn plural(&self) -> &'static str {
        "configmaps"
    }

    fn content_field(&self) -> &'static str {
        "data"
    }

    fn home<'a>(&'a self, _: &'a Settings) -> Home<'a> {
        self.namespace.map_or(Home::Tenants, Home::Namespace)
    }

    fn is_our_name(&self, namespace: &str, name: &str, _: &Settings) -> bool {
        let is_home = self.namespace.is_none_or(|home| home == namespace);
        is_home
            && name.split_once('.').is_some_and(|(tenant, rest)| {
                rest.starts_with("procscan-") && (self.namespace.is_some() || tenant == namespace)
            })
    }

    fn drafts<'a>(&'static self, plan: &'a Plan, _: &'a Settings, _: &[ExistingObject]) -> Drafts<'a> {
        Box::new(plan.blocks.iter().map(move |it| {
            let (namespace, name) = place(&it.app, self.namespace);
            let metadata = Metadata::new(name.clone(), namespace.clone());
            let make = move |inputs: &(App, Vec<Text>)| Object {
                kind: Kind::of(self),
                metadata: metadata.clone(),
                spec: content(inputs),
                write_policy: WritePolicy::Reconcile,
            };
            let inputs = (it.app.clone(), it.exposure.services.clone());
            Draft::new(Kind::of(self), namespace, name, WritePolicy::Reconcile, inputs, make)
        }))
    }

    fn role(&self) -> Role<'_> {
        Role::Blocks(self)
    }

    fn rules(&self, _: &Settings) -> Vec<Rule> {
        let verbs: &[&str] = match self.namespace {
            Some(_) => &["list", "create", "patch", "delete"],
            None => &["get", "list", "create", "patch", "delete"],
        };
        vec![Rule { namespace: self.namespace.map(str::to_owned), verbs, names: Vec::new() }]
    }
}

impl BlockingKind for AppPolicies {
    fn blocked(&self, objects: &[FoundObject<'_>], _: &Settings) -> Vec<InheritedBlock> {
        let inherited = |found: &FoundObject<'_>| {
            let (app, services) = block(found.object.get("data")?)?;
            // A tenant can write any policy into its own namespace, so a policy there counts for the tenant's own Apps only.
            let is_its_place =
                place(&app, self.namespace) == (found.namespace.to_string(), found.name.to_string());
            is_its_place.then(|| InheritedBlock {
                app,
                notified_at: None,
                accused: [].into(),
                is_guess: false,
                services,
                on_ingresses: OnIngresses::default(),
            })
        };
        objects.iter().filter_map(inherited).collect()
    }

    fn namespaces(&self, content: &Value, _: &Settings) -> BTreeSet<Text> {
        block(content).into_iter().map(|(app, _)| app.namespace.clone()).collect()
    }

    fn is_whole(&self, content: &Value) -> bool {
        content.get("state") == open().get("state") || block(content).is_some()
    }

    fn first_form(&self, object: &Object) -> Object {
        Object { spec: open(), ..object.clone() }
    }

    fn open(&self, _: &FoundObject<'_>) -> Value {
        json!({"data": open()})
    }
}
