//! Objects as they are in the cluster, and how they compare to what they should be. Pure.

use std::borrow::Cow;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use kube::ResourceExt;
use kube::core::{DynamicObject, GroupVersionKind};
use kube::discovery::ApiResource;
use procscan_core::resources::{FoundObject, Kind, MANAGED_BY, MessageKind, Object, WritePolicy};
use serde_json::Value;

use super::{FIELD_MANAGER, SUSPEND};
use crate::output::difference::{Action, Difference, lines};

/// Kind, namespace and name.
pub(super) type Key = (&'static str, String, String);
/// An object as it is in the cluster.
pub(super) type Live = DynamicObject;

/// As the kinds see it.
pub(super) fn as_found(live: &Live) -> FoundObject<'_> {
    FoundObject {
        namespace: live.metadata.namespace.as_deref().unwrap_or_default().into(),
        name: live.metadata.name.as_deref().unwrap_or_default().into(),
        labels: Cow::Borrowed(live.labels()),
        annotations: Cow::Borrowed(live.annotations()),
        is_written_by_us: live
            .managed_fields()
            .iter()
            .any(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER)),
        object: &live.data,
    }
}

/// Written by us, as far as the object itself shows.
pub(super) fn is_ours(kind: Kind, live: &Live) -> bool {
    kind.is_ours(&as_found(live))
}

/// Its namespace and its name.
pub(super) fn place(live: &Live) -> (String, String) {
    (live.namespace().unwrap_or_default(), live.name_any())
}

/// The same, for people.
pub(super) fn found(live: &Live) -> String {
    let (namespace, name) = place(live);
    format!("{namespace}/{name}")
}

pub(super) fn is_suspended(live: &Live) -> bool {
    live.annotations().get(SUSPEND).is_some_and(|value| value == "true")
}

pub(super) fn has_same_text(message: &dyn MessageKind, object: &Object, live: &Live) -> bool {
    object.kind.content(&live.data).is_some_and(|content| message.has_same_text(content, &object.spec))
}

/// Whether a message is marked as read.
pub(super) fn is_read(message: &dyn MessageKind, live: &Live) -> bool {
    live.labels().get(message.read_label()).is_some_and(|read| read == "true")
}

/// Why an object that we keep is left as it is, if so.
pub(super) fn left_alone(kind: Kind, live: &Live) -> Option<String> {
    let is_inert = || kind.blocking().is_some_and(|blocking| blocking.is_inert(&as_found(live)));
    if !is_ours(kind, live) && !is_inert() {
        return Some(format!(
            "is there, but not written by procscan-aggregator. Delete it, or hand it over with the label {}={}",
            MANAGED_BY.0, MANAGED_BY.1
        ));
    }
    is_suspended(live).then(|| format!("is suspended by the annotation {SUSPEND}"))
}

/// What `write` has to do to make `live` like `object`, without what it remembers.
pub(super) fn difference(object: &Object, live: Option<&Live>) -> Option<Difference> {
    let field = object.kind.content_field();
    let (action, lines) = match (object.write_policy, live, object.kind.message()) {
        (WritePolicy::MarkRead | WritePolicy::AlreadySent, None, _)
        | (WritePolicy::AlreadySent, Some(_), _)
        | (WritePolicy::MarkRead, Some(_), None) => return None,
        (WritePolicy::MarkRead, Some(live), Some(message)) if is_read(message, live) => return None,
        (WritePolicy::MarkRead, Some(_), Some(message)) => {
            (Action::Retire, vec![format!("+ metadata.labels.{}: true", message.read_label())])
        }
        (WritePolicy::UpdateText, Some(live), Some(message)) if has_same_text(message, object, live) => {
            return None;
        }
        (_, None, _) => (Action::Create, lines(field, None, Some(&object.spec))),
        (_, Some(live), _) => {
            if object.write_policy == WritePolicy::Reconcile
                && let Some(why) = left_alone(object.kind, live)
            {
                return Some(Difference { action: Action::Leave, object: named(object), lines: vec![why] });
            }
            let mut all = lines(field, object.kind.content(&live.data), Some(&object.spec));
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
    (object.kind.name(), object.metadata.namespace.clone(), object.metadata.name.clone())
}

pub(super) fn hash(object: &Object) -> u64 {
    hash_of(&serde_json::to_string(object).unwrap_or_default())
}

pub(super) fn hash_of(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

pub(super) fn resource(kind: Kind) -> ApiResource {
    let (group, version) = kind.api_version().split_once('/').unwrap_or(("", kind.api_version()));
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind.name()), kind.plural())
}
