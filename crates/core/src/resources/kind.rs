//! What the outputs and the commands know of a kind of object. A kind implements [`ResourceKind`] in a module of its own,
//! and is registered in [`KINDS`](super::KINDS).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Deref;

use serde::{Serialize, Serializer};
use serde_json::Value;

use super::{Drafts, MANAGED_BY, Object, Settings};
use crate::names::{App, Text};
use crate::plan::Plan;
use crate::policy::InheritedBlock;

/// One kind of object that the plan is rendered to.
pub trait ResourceKind: fmt::Debug + Sync {
    /// The Kubernetes kind.
    fn name(&self) -> &'static str;

    /// Group and version; only the version for the core group.
    fn api_version(&self) -> &'static str;

    /// The name of the kind in paths of the API server and for kubectl, without the group.
    fn plural(&self) -> &'static str;

    /// The field of an object that is ours, beside its metadata.
    fn content_field(&self) -> &'static str {
        "spec"
    }

    /// Where its objects are.
    fn home<'a>(&'a self, settings: &'a Settings) -> Home<'a>;

    /// Whether an object of that name may be ours, whichever program wrote it.
    fn is_our_name(&self, namespace: &str, name: &str, settings: &Settings) -> bool;

    /// Whether we have written an object with such a name.
    fn is_ours(&self, object: &FoundObject<'_>) -> bool {
        object.has_our_label() || object.is_written_by_us
    }

    /// Drafts all objects of this kind. `existing` is empty unless the objects are [permanent](BlockingKind::is_permanent).
    fn drafts<'a>(
        &'static self,
        plan: &'a Plan,
        settings: &'a Settings,
        existing: &[ExistingObject],
    ) -> Drafts<'a>;

    /// Whether its objects block Apps, or notify tenants.
    fn role(&self) -> Role<'_>;

    /// The rights that the service needs for it, and no more.
    fn rules(&self, settings: &Settings) -> Vec<Rule>;

    /// The object of this kind that the program before this one wrote: its namespace and its name.
    fn legacy_object(&self) -> Option<(&'static str, &'static str)> {
        None
    }

    /// Whether the object at the place of the [legacy object](Self::legacy_object) is one of ours.
    fn is_legacy_ours(&self, _object: &FoundObject<'_>, _settings: &Settings) -> bool {
        false
    }
}

/// What the objects of a kind are for.
#[derive(Clone, Copy, Debug)]
pub enum Role<'a> {
    /// They block Apps, so the output reconciles them exactly.
    Blocks(&'a dyn BlockingKind),
    /// They notify tenants of blocks. Each is sent once, and its reader may mark or delete it.
    Notifies(&'a dyn MessageKind),
}

/// A kind of object that blocks Apps.
pub trait BlockingKind: ResourceKind {
    /// What our `objects` block. A new leader inherits it.
    fn blocked(&self, objects: &[FoundObject<'_>], settings: &Settings) -> Vec<InheritedBlock>;

    /// The namespaces of the Apps that a content blocks. Their tenants are not notified of a block before it is written.
    fn namespaces(&self, content: &Value, settings: &Settings) -> BTreeSet<Text>;

    /// Whether an object stays when it has left the plan. An object of any other kind is deleted then.
    fn is_permanent(&self) -> bool {
        false
    }

    /// A number from the content of a [permanent](Self::is_permanent) object, which the next drafts need. The content is `None`
    /// if the object can't be read.
    fn note(&self, _content: Option<&Value>) -> u8 {
        0
    }

    /// Whether a content is complete, so that it says what it blocks. A file that was cut off lacks the part that is written
    /// last, and an object may have been edited. The content that [`open`](Self::open) leaves is complete.
    fn is_whole(&self, content: &Value) -> bool;

    /// The form in which an object is created. The content follows at once, with the version of the created object. This form
    /// blocks no App, because a leader whose term is over could create it too.
    fn first_form(&self, object: &Object) -> Object;

    /// The merge patch that makes an object block no App. The caller adds the annotation that keeps the service from closing
    /// it again: a deleted object could not have it.
    fn open(&self, object: &FoundObject<'_>) -> Value;

    /// What a content blocks, if that may move to another object. The output closes it there before it opens it here.
    fn closes<'v>(&self, _content: &'v Value) -> BTreeSet<&'v str> {
        BTreeSet::new()
    }

    /// The same object, which blocks `more` of what [`closes`](Self::closes) returns.
    fn with_more(&self, object: &Object, _more: &[&str]) -> Object {
        object.clone()
    }

    /// Whether an object of our name that another program wrote has no effect, so that nothing is lost by taking it over.
    fn is_inert(&self, _object: &FoundObject<'_>) -> bool {
        false
    }

    /// Which part of the plan can't be blocked by this kind, and why, for people.
    fn left_open(&self, _plan: &Plan, _settings: &Settings, _existing: &[ExistingObject]) -> Option<String> {
        None
    }
}

/// A kind of object that notifies tenants.
pub trait MessageKind: ResourceKind {
    /// The name of the message about an App, in the App's namespace.
    fn message_name(&self, app: &App) -> String;

    /// The annotation with the time of the change that a message reports, in RFC 3339.
    fn change_annotation(&self) -> &'static str;

    /// The label that is `"true"` once a message has been read.
    fn read_label(&self) -> &'static str;

    /// Whether two contents have the same text, whatever their times.
    fn has_same_text(&self, a: &Value, b: &Value) -> bool;

    /// Whether the message of that name stays after its cause is over. The output then updates its text.
    fn stays(&self, name: &str) -> bool;
}

/// One permanent object that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExistingObject {
    /// Its name.
    pub(crate) name: String,
    /// What its kind notes of its content: see [`BlockingKind::note`].
    pub(crate) note: u8,
}

/// Where the objects of a kind are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home<'a> {
    /// All in one namespace, in which tenants can't write. Its objects are listed, whichever program wrote them.
    Namespace(&'a str),
    /// Each in the namespace of its tenant, or in one that operators name. Objects that block are listed by our label, and
    /// are read before they are created.
    ///
    /// A tenant may be able to write there, so marks of leaders do not count. While an object is suspended, the output creates no
    /// further object in the same namespace. Tenants must not be able to write a kind that blocks, because their annotation would
    /// suspend the block.
    Tenants,
}

/// One rule of RBAC for a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The namespace; `None` for all of them.
    pub namespace: Option<String>,
    /// The verbs.
    pub verbs: &'static [&'static str],
    /// The names of the objects that it is for; empty for all of them.
    pub names: Vec<String>,
}

/// An object as it was found, in a cluster or in a file.
#[derive(Clone, Debug)]
pub struct FoundObject<'a> {
    /// Its namespace.
    pub namespace: Cow<'a, str>,
    /// Its name.
    pub name: Cow<'a, str>,
    /// Its labels.
    pub labels: Cow<'a, BTreeMap<String, String>>,
    /// Its annotations.
    pub annotations: Cow<'a, BTreeMap<String, String>>,
    /// The API server, or the header of the file, says that we have written it.
    pub is_written_by_us: bool,
    /// The object; its metadata may be missing.
    pub object: &'a Value,
}

impl<'a> FoundObject<'a> {
    /// The object in a file of ours, which says its own namespace and name.
    pub fn of_file(object: &'a Value) -> Self {
        let metadata = |field: &str| object.get("metadata").and_then(|metadata| metadata.get(field));
        let text = |field| metadata(field).and_then(Value::as_str).unwrap_or_default();
        let texts = |field| {
            let all = metadata(field).and_then(Value::as_object).into_iter().flatten();
            Cow::Owned(all.filter_map(|(name, text)| Some((name.clone(), text.as_str()?.into()))).collect())
        };
        Self {
            namespace: text("namespace").into(),
            name: text("name").into(),
            labels: texts("labels"),
            annotations: texts("annotations"),
            is_written_by_us: true,
            object,
        }
    }

    /// Whether it has the label that names us.
    pub fn has_our_label(&self) -> bool {
        let (label, value) = MANAGED_BY;
        self.labels.get(label).is_some_and(|manager| manager == value)
    }
}

/// A registered kind. Equal to another one, and to a text, by its name: no two kinds of one list have the same.
#[derive(Clone, Copy)]
pub struct Kind(&'static dyn ResourceKind);

impl Kind {
    /// The kind that `kind` describes.
    pub const fn of(kind: &'static dyn ResourceKind) -> Self {
        Self(kind)
    }

    /// What there is to know of a kind whose objects block; `None` for any other.
    pub fn blocking(self) -> Option<&'static dyn BlockingKind> {
        match self.0.role() {
            Role::Blocks(kind) => Some(kind),
            Role::Notifies(_) => None,
        }
    }

    /// What there is to know of a kind of messages; `None` for any other.
    pub fn message(self) -> Option<&'static dyn MessageKind> {
        match self.0.role() {
            Role::Notifies(kind) => Some(kind),
            Role::Blocks(_) => None,
        }
    }

    /// Drafts all objects of this kind.
    pub(crate) fn drafts<'a>(
        self,
        plan: &'a Plan,
        settings: &'a Settings,
        existing: &[ExistingObject],
    ) -> Drafts<'a> {
        self.0.drafts(plan, settings, existing)
    }

    /// The group; empty for the core group.
    pub fn group(self) -> &'static str {
        self.api_version().split_once('/').map_or("", |(group, _)| group)
    }

    /// The plural with the group, as refusals name it.
    pub fn resource(self) -> String {
        match self.group() {
            "" => self.plural().to_owned(),
            group => format!("{}.{group}", self.plural()),
        }
    }

    /// The content of an object as it was found.
    pub fn content(self, object: &Value) -> Option<&Value> {
        object.get(self.content_field())
    }

    /// The name of the file with an object. Namespaces and names are those of Kubernetes, so neither contains what separates
    /// the parts.
    pub fn file_name(self, namespace: &str, name: &str) -> String {
        format!("{}{namespace}_{name}.yaml", self.file_prefix())
    }

    /// What the names of the files of this kind begin with.
    pub fn file_prefix(self) -> String {
        format!("{}_", self.name().to_ascii_lowercase())
    }

    /// The namespace and the name of the object in a file of that name; `None` if it is not the file of an object that may
    /// be ours.
    pub fn object_of<'f>(self, file: &'f str, settings: &Settings) -> Option<(&'f str, &'f str)> {
        let place = file.strip_prefix(&self.file_prefix())?.strip_suffix(".yaml")?;
        let (namespace, name) = place.split_once('_')?;
        self.is_our_name(namespace, name, settings).then_some((namespace, name))
    }
}

impl Deref for Kind {
    type Target = dyn ResourceKind;

    fn deref(&self) -> &Self::Target {
        self.0
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Kind {}

impl PartialEq<str> for Kind {
    fn eq(&self, name: &str) -> bool {
        self.name() == name
    }
}

impl PartialEq<&str> for Kind {
    fn eq(&self, name: &&str) -> bool {
        self.name() == *name
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
