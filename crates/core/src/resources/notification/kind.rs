//! How Notifications are found, compared and marked as read.

use serde_json::Value;

use super::{CHANGE_ANNOTATION, IS_READ, SUMMARY_NAME, draft, draft_summary, has_same_text, name};
use crate::names::App;
use crate::plan::Plan;
use crate::resources::{
    Drafts, ExistingObject, FoundObject, Home, Kind, MessageKind, ResourceKind, Role, Rule, Settings,
};

/// The kind.
pub const KIND: Kind = Kind::of(&Notification);

/// What the names of all our Notifications begin with.
const PREFIX: &str = "procscan-";

#[derive(Debug)]
struct Notification;

impl ResourceKind for Notification {
    fn name(&self) -> &'static str {
        "Notification"
    }

    fn api_version(&self) -> &'static str {
        "notification.sealos.io/v1"
    }

    fn plural(&self) -> &'static str {
        "notifications"
    }

    fn home<'a>(&'a self, _: &'a Settings) -> Home<'a> {
        Home::Tenants
    }

    fn is_our_name(&self, _: &str, name: &str, _: &Settings) -> bool {
        name.starts_with(PREFIX)
    }

    /// The desktop replaces all labels, so they do not last.
    fn is_ours(&self, object: &FoundObject<'_>) -> bool {
        object.annotations.contains_key(CHANGE_ANNOTATION)
    }

    fn drafts<'a>(&'static self, plan: &'a Plan, settings: &'a Settings, _: &[ExistingObject]) -> Drafts<'a> {
        Box::new(draft(plan, settings).chain(draft_summary(plan, settings)))
    }

    fn role(&self) -> Role<'_> {
        Role::Notifies(self)
    }

    /// Server-side apply is `patch`, and `create` where there is none yet.
    fn rules(&self, _: &Settings) -> Vec<Rule> {
        vec![Rule { namespace: None, verbs: &["get", "create", "patch"], names: Vec::new() }]
    }

    fn legacy_object(&self) -> Option<(&'static str, &'static str)> {
        Some(("default", SUMMARY_NAME))
    }

    fn is_legacy_ours(&self, object: &FoundObject<'_>, _: &Settings) -> bool {
        self.is_ours(object)
    }
}

impl MessageKind for Notification {
    fn message_name(&self, app: &App) -> String {
        name(app)
    }

    fn change_annotation(&self) -> &'static str {
        CHANGE_ANNOTATION
    }

    fn read_label(&self) -> &'static str {
        IS_READ
    }

    fn has_same_text(&self, a: &Value, b: &Value) -> bool {
        has_same_text(a, b)
    }

    /// The administrators' summary.
    fn stays(&self, name: &str) -> bool {
        name == SUMMARY_NAME
    }
}
