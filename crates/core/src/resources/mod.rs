//! The plan as Kubernetes objects: pure functions, one module for each kind of object.
//!
//! To add a kind: write a module with a function from [`Plan`] to [`Draft`]s of [`Object`]s, and add it to [`KINDS`]. Nothing else
//! needs to know of it; every output writes what is registered here.

mod draft;
pub mod notification;
mod shards;
pub mod template;
pub mod wasm_plugin;

use serde::Serialize;
use serde_json::Value;

pub use self::draft::Draft;

use crate::plan::Plan;

/// What the objects look like, apart from the plan.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The WasmPlugin.
    pub gateway: wasm_plugin::Gateway,
    /// The Notifications.
    pub notification: notification::Texts,
}

/// What exists already and must not be given up: see [`wasm_plugin`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Existing {
    /// How many `WasmPlugins` there are.
    pub wasm_plugins: usize,
    /// They list Ingresses beside the Services.
    pub has_long_list: bool,
}

/// A kind of object that is made from the plan.
pub struct Kind {
    /// The Kubernetes kind.
    pub name: &'static str,
    /// Drafts all objects of this kind.
    pub draft: for<'a> fn(&'a Plan, &'a Settings, Existing) -> Drafts<'a>,
}

/// Drafts, made one after the other: there may be as many as there are Apps.
pub type Drafts<'a> = Box<dyn Iterator<Item = Draft<'a>> + 'a>;

/// All kinds of objects that are made from the plan.
pub const KINDS: &[Kind] = &[
    Kind { name: "WasmPlugin", draft: wasm_plugin::draft },
    Kind { name: "Notification", draft: notification::draft },
    Kind { name: "Notification (summary)", draft: notification::draft_summary },
];

/// Drafts all objects of the plan, in the order of [`KINDS`].
pub fn drafts<'a>(plan: &'a Plan, settings: &'a Settings, existing: Existing) -> Drafts<'a> {
    Box::new(KINDS.iter().flat_map(move |kind| (kind.draft)(plan, settings, existing)))
}

/// Makes all objects of the plan, in the order of [`KINDS`].
pub fn render(plan: &Plan, settings: &Settings, existing: Existing) -> Vec<Object> {
    drafts(plan, settings, existing).map(|draft| draft.object()).collect()
}

/// The label that names us. Labels of Notifications do not last (see [`notification`]), so nothing depends on it.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "procscan-aggregator");

/// One Kubernetes object. Serialises as the object itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Object {
    /// Group and version.
    pub api_version: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Name, namespace, labels, annotations.
    pub metadata: Metadata,
    /// The object's `spec`.
    pub spec: Value,
    /// How an output looks after it. Not a part of the object.
    #[serde(skip)]
    pub write_policy: WritePolicy,
}

/// How an object is looked after once it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WritePolicy {
    /// Always exactly like this.
    Reconcile,
    /// A message: written when it is news. From then on its reader may mark or delete it.
    SendOnce {
        /// It says that something is blocked, so it has to be.
        of_block: bool,
    },
    /// A message that was written before the start: no news.
    AlreadySent,
    /// A message that is news only if its words differ from those that are there.
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
    fn new(name: impl Into<String>, namespace: impl Into<String>) -> Self {
        let (label, value) = MANAGED_BY;
        Self {
            name: name.into(),
            namespace: namespace.into(),
            labels: serde_json::Map::from_iter([(label.to_owned(), value.into())]),
            annotations: serde_json::Map::new(),
        }
    }
}
