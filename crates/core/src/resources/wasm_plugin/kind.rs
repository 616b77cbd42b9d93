//! How the `WasmPlugins` are found, written, opened and removed.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    Gateway, SENTINEL, Shards, Surplus, blocked, draft, has_long_list, is_whole, namespaces, shard_index,
    shard_name, surplus,
};
use crate::names::Text;
use crate::plan::Plan;
use crate::policy::InheritedBlock;
use crate::resources::{
    BlockingKind, Drafts, Existing, ExistingObject, FoundObject, Home, Kind, Object, ResourceKind, Role,
    Rule, Settings,
};

/// The kind.
pub const KIND: Kind = Kind::of(&WasmPlugin);

/// How many shards the service may write. They hold 32 MiB of rules with the default size of an object.
const WRITABLE_SHARDS: usize = 64;
/// The note of a shard that lists Ingresses beside the Services.
const LONG_LIST: u8 = 1;
/// How many Apps with Services that stay open are named.
const MAX_APPS_SHOWN: usize = 3;

#[derive(Debug)]
struct WasmPlugin;

impl ResourceKind for WasmPlugin {
    fn name(&self) -> &'static str {
        "WasmPlugin"
    }

    fn api_version(&self) -> &'static str {
        "extensions.higress.io/v1alpha1"
    }

    fn plural(&self) -> &'static str {
        "wasmplugins"
    }

    fn home<'a>(&'a self, settings: &'a Settings) -> Home<'a> {
        Home::Namespace(&settings.gateway.namespace)
    }

    fn is_our_name(&self, namespace: &str, name: &str, settings: &Settings) -> bool {
        namespace == settings.gateway.namespace && shard_index(name, &settings.gateway).is_some()
    }

    fn drafts<'a>(
        &'static self,
        plan: &'a Plan,
        settings: &'a Settings,
        existing: &[ExistingObject],
    ) -> Drafts<'a> {
        draft(plan, settings, noted(existing, &settings.gateway))
    }

    fn role(&self) -> Role<'_> {
        Role::Blocks(self)
    }

    fn rules(&self, settings: &Settings) -> Vec<Rule> {
        let namespace = Some(settings.gateway.namespace.clone());
        let names = (0..WRITABLE_SHARDS).map(|index| shard_name(index, &settings.gateway)).collect();
        vec![
            // RBAC can't bind these verbs to names.
            Rule { namespace: namespace.clone(), verbs: &["list", "create"], names: Vec::new() },
            Rule { namespace, verbs: &["patch"], names },
        ]
    }

    fn legacy_object(&self) -> Option<(&'static str, &'static str)> {
        Some(("default", "procscan-violations"))
    }

    fn is_legacy_ours(&self, object: &FoundObject<'_>, settings: &Settings) -> bool {
        object.namespace == settings.gateway.namespace
    }
}

impl BlockingKind for WasmPlugin {
    fn blocked(&self, objects: &[FoundObject<'_>], settings: &Settings) -> Vec<InheritedBlock> {
        blocked(objects.iter().map(|found| found.object), &settings.gateway)
    }

    fn namespaces(&self, content: &Value, settings: &Settings) -> BTreeSet<Text> {
        namespaces(content, &settings.gateway)
    }

    /// The gateway drains its connections when a plugin is removed.
    fn is_permanent(&self) -> bool {
        true
    }

    fn note(&self, content: Option<&Value>) -> u8 {
        // A damaged one may have had a long list.
        if content.is_none_or(has_long_list) { LONG_LIST } else { 0 }
    }

    fn is_whole(&self, content: &Value) -> bool {
        is_whole(content)
    }

    fn first_form(&self, object: &Object) -> Object {
        let mut empty = object.clone();
        let first = object.spec.pointer("/matchRules/0").cloned();
        if let (Some(spec), Some(Value::Object(mut rule))) = (empty.spec.as_object_mut(), first) {
            rule.insert("service".to_owned(), json!([SENTINEL]));
            spec.insert("matchRules".to_owned(), json!([rule]));
            spec.insert("defaultConfig".to_owned(), json!({"violations": []}));
        }
        empty
    }

    fn open(&self, object: &FoundObject<'_>) -> Value {
        // The first rule, with the sentinel only. Without a first rule, the new one blocks no App either.
        let first = object.object.pointer("/spec/matchRules/0").and_then(Value::as_object).cloned();
        let mut rule = first.unwrap_or_default();
        rule.remove("ingress");
        rule.remove("domain");
        rule.insert("service".to_owned(), json!([SENTINEL]));
        json!({"spec": {"matchRules": [rule], "defaultConfig": {"violations": [], "omitted": null}}})
    }

    /// The Services, by their hosts.
    fn closes<'v>(&self, content: &'v Value) -> BTreeSet<&'v str> {
        let rules = content.get("matchRules").and_then(Value::as_array).into_iter().flatten();
        let hosts = rules.filter_map(|rule| rule.get("service")?.as_array()).flatten();
        hosts.filter_map(Value::as_str).collect()
    }

    fn with_more(&self, object: &Object, more: &[&str]) -> Object {
        let mut object = object.clone();
        let list = object.spec.pointer_mut("/matchRules/0/service").and_then(Value::as_array_mut);
        if let Some(list) = list {
            list.extend(more.iter().map(|host| Value::from(*host)));
        }
        object
    }

    /// The gateway loads nothing for it. The program before this one left such objects.
    fn is_inert(&self, object: &FoundObject<'_>) -> bool {
        object.object.pointer("/spec/url").and_then(Value::as_str).is_none_or(str::is_empty)
    }

    fn left_open(&self, plan: &Plan, settings: &Settings, existing: &[ExistingObject]) -> Option<String> {
        let gateway = &settings.gateway;
        let surplus = surplus(plan, gateway, noted(existing, gateway));
        let services: usize = surplus.iter().map(|surplus| surplus.services.len()).sum();
        let of_app = |surplus: &Surplus<'_>| format!("{} ({})", surplus.app, surplus.services.len());
        let apps: Vec<String> = surplus.iter().take(MAX_APPS_SHOWN).map(of_app).collect();
        (services > 0).then(|| {
            format!(
                "{services} Services of blocked Apps stay open where no Ingress leads to them: the plain list has room for {} \
                 (gateway.max_service_entries): {}",
                gateway.max_service_entries,
                apps.join(", ")
            )
        })
    }
}

fn noted(existing: &[ExistingObject], gateway: &Gateway) -> Shards {
    let mut shards = Shards::default();
    for object in existing {
        shards.add(&object.name, object.note == LONG_LIST, gateway);
    }
    shards
}

/// So many shards that exist, all with the long list or none.
pub fn existing_shards(count: usize, has_long_list: bool, gateway: &Gateway) -> Existing {
    let mut existing = Existing::default();
    for index in 0..count {
        existing.add(KIND, shard_name(index, gateway), if has_long_list { LONG_LIST } else { 0 });
    }
    existing
}
