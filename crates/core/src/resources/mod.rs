//! The plan as Kubernetes objects: pure functions, one module for each kind of object.
//!
//! All that is particular to a kind is in its module, which implements [`ResourceKind`], and in its section of the
//! configuration. To add a kind: write such a module, and add it to [`KINDS`]. The outputs and the commands handle every kind
//! of [`Settings::kinds`] in the same way.

mod draft;
mod existing;
mod kind;
pub mod notification;
mod shards;
pub mod template;
pub mod wasm_plugin;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;

pub use self::draft::Draft;
pub use self::existing::{Existing, union};
pub use self::kind::{
    BlockingKind, ExistingObject, FoundObject, Home, Kind, MessageKind, ResourceKind, Role, Rule,
};

use crate::plan::Plan;

/// What the objects look like, apart from the plan.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The kinds of objects that the plan is rendered to: [`KINDS`], and others in tests.
    pub kinds: &'static [Kind],
    /// The WasmPlugin.
    pub gateway: wasm_plugin::Gateway,
    /// The Notifications.
    pub notification: notification::Texts,
    /// The size of one WasmPlugin, in bytes of JSON, above which another one is made.
    pub max_bytes: usize,
}

/// Drafts, made one after the other: there may be as many as there are Apps.
pub type Drafts<'a> = Box<dyn Iterator<Item = Draft<'a>> + 'a>;

/// All kinds of objects that are made from the plan. What blocks is written in this order.
pub const KINDS: &[Kind] = &[wasm_plugin::KIND, notification::KIND];

/// Drafts all objects of the plan: first those that block, because a message says that something is blocked.
pub fn drafts<'a>(plan: &'a Plan, settings: &'a Settings, existing: Existing) -> Drafts<'a> {
    let blocking = settings.kinds.iter().filter(|kind| kind.blocking().is_some());
    let messages = settings.kinds.iter().filter(|kind| kind.blocking().is_none());
    let kinds = blocking.chain(messages);
    Box::new(kinds.flat_map(move |kind| kind.drafts(plan, settings, existing.of(*kind))))
}

/// Makes all objects of the plan, in the order of [`drafts`].
pub fn render(plan: &Plan, settings: &Settings, existing: Existing) -> Vec<Object> {
    drafts(plan, settings, existing).map(|draft| draft.object()).collect()
}

/// Which parts of the plan can't be blocked, and why, for people: a text for each kind that can't.
pub fn left_open(plan: &Plan, settings: &Settings, existing: &Existing) -> Vec<String> {
    let blocking = settings.kinds.iter().filter_map(|kind| Some((*kind, kind.blocking()?)));
    blocking.filter_map(|(kind, blocking)| blocking.left_open(plan, settings, existing.of(kind))).collect()
}

/// The label that names us. Labels of Notifications do not last (see [`notification`]), so nothing depends on it.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "procscan-aggregator");

/// One Kubernetes object. Serialises as the object itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Kind.
    pub kind: Kind,
    /// Name, namespace, labels, annotations.
    pub metadata: Metadata,
    /// The object's content: its `spec`, or the field that its kind has instead ([`ResourceKind::content_field`]).
    pub spec: Value,
    /// How an output looks after it. Not a part of the object.
    pub write_policy: WritePolicy,
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(4))?;
        map.serialize_entry("apiVersion", self.kind.api_version())?;
        map.serialize_entry("kind", &self.kind)?;
        map.serialize_entry("metadata", &self.metadata)?;
        map.serialize_entry(self.kind.content_field(), &self.spec)?;
        map.end()
    }
}

/// How an object is looked after once it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WritePolicy {
    /// Always exactly like this.
    Reconcile,
    /// A message: written when it reports a change. From then on its reader may mark or delete it.
    SendOnce {
        /// It says that something is blocked, so it has to be.
        of_block: bool,
    },
    /// A message that was written before the start: it reports no change.
    AlreadySent,
    /// A message that is written only if its text differs from the one that is there.
    UpdateText,
    /// A message whose cause is over: if it is still there, it is marked as read.
    MarkRead,
}

/// The part of `metadata` that is ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Metadata {
    /// The object's name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Labels.
    pub labels: serde_json::Map<String, Value>,
    /// Annotations.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub annotations: serde_json::Map<String, Value>,
}

impl Metadata {
    /// The metadata of an object of ours, with our label.
    pub fn new(name: impl Into<String>, namespace: impl Into<String>) -> Self {
        let (label, value) = MANAGED_BY;
        Self {
            name: name.into(),
            namespace: namespace.into(),
            labels: serde_json::Map::from_iter([(label.to_owned(), value.into())]),
            annotations: serde_json::Map::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Maps have the name of a kind as their key, and files have it in lower case.
    fn check_names(kinds: &[Kind]) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        match kinds.iter().find(|kind| !seen.insert(kind.file_prefix())) {
            Some(kind) => Err(format!(
                "two resource kinds have the name {kind}: expected a name for each that differs in more than upper and lower case"
            )),
            None => Ok(()),
        }
    }

    #[test]
    fn each_kind_has_a_name_of_its_own() {
        assert_eq!(check_names(KINDS), Ok(()));
        let twice = [wasm_plugin::KIND, notification::KIND, wasm_plugin::KIND];
        let error = check_names(&twice).unwrap_err();
        assert!(error.contains("two resource kinds have the name WasmPlugin"), "{error}");
    }
}
