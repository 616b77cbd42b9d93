//! The part of an incident that operators write: the App, and the commands for it.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::{App, Text};

/// Which App the incident is about, and the operators' commands for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IncidentSpec {
    /// The App. Never changes.
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self == oldSelf", "message": "an incident is of one App for good"}]))]
    pub app: AppRef,
    /// Approves the block or the release that a brake holds. Removed when it has been done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approve: Option<Approval>,
    /// Releases the App, and prevents that these accusations block it again. Removed when it has been done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Release>,
}

impl IncidentSpec {
    /// An incident of `app` without an approval or a release.
    pub fn of(app: &App) -> Self {
        Self { app: AppRef::from(app), approve: None, release: None }
    }
}

/// An App.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct AppRef {
    /// The tenant's namespace.
    pub namespace: Text,
    /// `app` or `devbox`.
    #[serde(rename = "type")]
    pub kind: Text,
    /// Its name.
    pub name: Text,
}

impl From<&App> for AppRef {
    fn from(app: &App) -> Self {
        Self { namespace: app.namespace.clone(), kind: app.kind.clone(), name: app.name.clone() }
    }
}

impl From<&AppRef> for App {
    fn from(app: &AppRef) -> Self {
        Self::new(app.namespace.clone(), app.kind.clone(), app.name.clone())
    }
}

/// An operator's approval.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Approval {
    /// The operator who approves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub by: Option<String>,
    /// Why, for the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
}

/// An operator's release.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Release {
    /// The operator who releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub by: Option<String>,
    /// Why, for the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
    /// Until when these accusations do not block the App again; 30 days if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}
