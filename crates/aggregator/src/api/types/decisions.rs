//! `GET /api/v1/decisions`.

use jiff::Timestamp;
use procscan_core::decision;
use procscan_core::names::{App, Text};
use procscan_core::state::Declaration;
use procscan_core::state::incident::{self, LoggedKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::is_false;

/// A page of the log of decisions.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct DecisionPage {
    /// The decisions, the latest first.
    pub(crate) decisions: Vec<Decision>,
    /// How many decisions follow this page.
    #[serde(default)]
    pub(crate) more: u64,
    /// The `cursor` of the next page, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<String>,
}

/// An entry of the log of decisions.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Decision {
    pub(crate) at: Timestamp,
    /// `None` if an operator has declared something for more than one App.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) app: Option<App>,
    #[serde(rename = "decision")]
    pub(crate) kind: LoggedKind,
    pub(crate) actor: Text,
    #[serde(default)]
    pub(crate) reason: Text,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) dry_run: bool,
    /// The incident that it is persisted with. Only the leader knows decisions that belong to no incident.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) incident: Option<String>,
    /// The mode that was declared, if one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mode: Option<Text>,
    /// The name of the exemption that was made or removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) exemption: Option<Text>,
}

impl Decision {
    /// A decision of a persisted incident.
    pub(crate) fn of_incident(incident: String, app: App, decision: incident::IncidentDecision) -> Self {
        let incident::IncidentDecision { at, decision: kind, actor, reason } = decision;
        let (app, incident) = (Some(app), Some(incident));
        Self { at, app, kind, actor, reason, dry_run: false, incident, mode: None, exemption: None }
    }

    /// A declaration for more than one App.
    pub(crate) fn of_declaration(declaration: Declaration) -> Self {
        let Declaration { at, decision, mode, exemption, actor, reason } = declaration;
        let kind = LoggedKind::Other(decision.as_str().into());
        // The log has the names of modes as the configuration writes them.
        let mode = mode.map(|mode| mode.replace('-', "_").into());
        Self { at, app: None, kind, actor, reason, dry_run: false, incident: None, mode, exemption }
    }
}

impl From<decision::Decision> for Decision {
    fn from(decision: decision::Decision) -> Self {
        Self {
            at: decision.at,
            app: Some(decision.app),
            kind: decision.kind.into(),
            actor: decision.actor.name(),
            reason: decision.reason,
            dry_run: decision.dry_run,
            incident: None,
            mode: None,
            exemption: None,
        }
    }
}
