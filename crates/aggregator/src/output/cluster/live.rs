//! Objects as they are in the cluster, and how they compare to what they should be. Pure.

use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use kube::ResourceExt;
use kube::core::{DynamicObject, GroupVersionKind};
use kube::discovery::ApiResource;
use procscan_core::resources::notification::{self, IS_READ};
use procscan_core::resources::wasm_plugin::{self, Gateway};
use procscan_core::resources::{self, MANAGED_BY, Object, WritePolicy};
use serde_json::Value;

use super::{FIELD_MANAGER, SUSPEND};
use crate::output::difference::{Action, Difference, lines};

/// Kind, namespace and name.
pub(super) type Key = (&'static str, String, String);
/// An object as it is in the cluster.
pub(super) type Live = DynamicObject;

pub(super) fn existing(live: &[Live], gateway: &Gateway) -> resources::Existing {
    let ours: Vec<(String, &Value)> = live
        .iter()
        .filter(|object| is_ours(object))
        .map(|object| (object.name_any(), &object.data))
        .collect();
    wasm_plugin::existing(ours.iter().map(|(name, data)| (name.as_str(), *data)), gateway)
}

/// Written by us, as far as the object itself tells.
pub(super) fn is_ours(live: &Live) -> bool {
    let (label, value) = MANAGED_BY;
    live.labels().get(label).is_some_and(|manager| manager == value)
        || live.managed_fields().iter().any(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER))
}

/// Loads nothing into the gateway, as what the program before this one left behind: nothing is lost by taking it over.
pub(super) fn is_inert(live: &Live) -> bool {
    live.data.pointer("/spec/url").and_then(Value::as_str).is_none_or(str::is_empty)
}

/// The Services that a WasmPlugin's `spec` closes, by their hosts.
pub(super) fn closes(spec: &Value) -> BTreeSet<&str> {
    let rules = spec.get("matchRules").and_then(Value::as_array).into_iter().flatten();
    let hosts = rules.filter_map(|rule| rule.get("service")?.as_array()).flatten();
    hosts.filter_map(Value::as_str).collect()
}

/// The same WasmPlugin, which closes `hosts` as well.
pub(super) fn with_services(object: &Object, hosts: &[&str]) -> Object {
    let mut object = object.clone();
    let list = object.spec.pointer_mut("/matchRules/0/service").and_then(Value::as_array_mut);
    if let Some(list) = list {
        list.extend(hosts.iter().map(|host| Value::from(*host)));
    }
    object
}

pub(super) fn is_suspended(live: &Live) -> bool {
    live.annotations().get(SUSPEND).is_some_and(|value| value == "true")
}

pub(super) fn has_same_words(object: &Object, live: &Live) -> bool {
    live.data.get("spec").is_some_and(|spec| notification::has_same_words(spec, &object.spec))
}

/// Why an object that we keep is left as it is, if so.
pub(super) fn left_alone(live: &Live) -> Option<String> {
    if !is_ours(live) && !is_inert(live) {
        return Some(format!(
            "is there, but not written by procscan-aggregator. Delete it, or hand it over with the label {}={}",
            MANAGED_BY.0, MANAGED_BY.1
        ));
    }
    is_suspended(live).then(|| format!("is suspended by the annotation {SUSPEND}"))
}

/// What `write` has to do to make `live` like `object`, without what it remembers.
pub(super) fn difference(object: &Object, live: Option<&Live>) -> Option<Difference> {
    let is_read = |live: &Live| live.labels().get(IS_READ).is_some_and(|read| read == "true");
    let (action, lines) = match (object.write_policy, live) {
        (WritePolicy::MarkRead | WritePolicy::AlreadySent, None) | (WritePolicy::AlreadySent, Some(_)) => {
            return None;
        }
        (WritePolicy::MarkRead, Some(live)) if is_read(live) => return None,
        (WritePolicy::MarkRead, Some(_)) => {
            (Action::Retire, vec![format!("+ metadata.labels.{IS_READ}: true")])
        }
        (WritePolicy::UpdateText, Some(live)) if has_same_words(object, live) => return None,
        (_, None) => (Action::Create, lines("spec", None, Some(&object.spec))),
        (_, Some(live)) => {
            if object.write_policy == WritePolicy::Reconcile
                && let Some(why) = left_alone(live)
            {
                return Some(Difference { action: Action::Leave, object: named(object), lines: vec![why] });
            }
            let mut all = lines("spec", live.data.get("spec"), Some(&object.spec));
            for (name, value) in &object.metadata.labels {
                let is = live.labels().get(name).map(|label| Value::from(label.clone()));
                all.extend(self::lines(&format!("metadata.labels.{name}"), is.as_ref(), Some(value)));
            }
            if all.is_empty() {
                return None;
            }
            (Action::Change, all)
        }
    };
    Some(Difference { action, object: named(object), lines })
}

/// The labels of a message are its reader's once it is written: they stay as they are.
pub(super) fn with_labels_of(live: &Live, object: &Object) -> Object {
    let mut object = object.clone();
    let labels = object.metadata.labels.iter().filter_map(|(name, _)| {
        live.labels().get(name).map(|value| (name.clone(), Value::from(value.clone())))
    });
    object.metadata.labels = labels.collect();
    object
}

pub(super) fn named(object: &Object) -> String {
    format!("{} {}/{}", object.kind, object.metadata.namespace, object.metadata.name)
}

pub(super) fn key(object: &Object) -> Key {
    (object.kind, object.metadata.namespace.clone(), object.metadata.name.clone())
}

pub(super) fn hash(object: &Object) -> u64 {
    hash_of(&serde_json::to_string(object).unwrap_or_default())
}

pub(super) fn hash_of(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

pub(super) fn resource(api_version: &str, kind: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

pub(super) fn plural(resource: &ApiResource) -> String {
    format!("{}.{}", resource.plural, resource.group)
}
