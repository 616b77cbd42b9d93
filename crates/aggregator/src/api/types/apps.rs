//! `GET /api/v1/apps`.

use std::collections::BTreeSet;

use jiff::Timestamp;
use procscan_core::names::{App, Text};
use procscan_core::state;
use procscan_core::state::incident::EvidenceStatus;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::incidents::parts::HeldBy;
use super::{IncidentState, is_zero};

/// A page of Apps.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct AppPage {
    /// The Apps.
    pub(crate) apps: Vec<ListedApp>,
    /// How many Apps match, on this page and on all others.
    #[serde(default)]
    pub(crate) total: usize,
    /// The `cursor` of the next page, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<String>,
}

/// An App with an incident, in the state of its last one.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ListedApp {
    #[serde(flatten)]
    pub(crate) app: App,
    /// The state of its last incident.
    pub(crate) state: IncidentState,
    /// Since when it is in this state.
    pub(crate) since: Timestamp,
    /// Why, for people.
    #[serde(default)]
    pub(crate) reason: Text,
    /// The name of its last incident.
    pub(crate) incident: String,
    /// When that opened.
    pub(crate) opened: Timestamp,
    /// How many incidents of it are persisted.
    pub(crate) incidents: usize,
    /// The brake that holds its block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    brake: Option<HeldBy>,
    /// The names of the accused processes.
    #[serde(default)]
    pub(crate) processes: Vec<Text>,
    /// The rules that accuse it: regular expressions, or processes where a keyword matched.
    #[serde(default)]
    pub(crate) rules: Vec<Text>,
    /// The nodes that accuse it.
    #[serde(default)]
    pub(crate) nodes: Vec<Text>,
    /// Its Services.
    #[serde(default)]
    pub(crate) services: Vec<Text>,
    /// The other Apps that are closed with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) also_closes: Vec<App>,
    /// How many more there are at least.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) also_closes_more: usize,
    /// Until when an operator's release lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) released_until: Option<Timestamp>,
}

/// The rule of one piece of evidence: its regular expression, or the process if a keyword matched.
fn rule(evidence: &EvidenceStatus) -> &Text {
    if evidence.regex.is_empty() { &evidence.process } else { &evidence.regex }
}

impl ListedApp {
    /// An App by its last incident, and how many there are.
    pub(crate) fn of(
        app: App,
        incidents: usize,
        state::Incident { name, status, .. }: state::Incident,
    ) -> Self {
        let all = |text: fn(&EvidenceStatus) -> &Text| -> Vec<Text> {
            let texts: BTreeSet<&Text> = status.evidence.iter().map(text).collect();
            texts.into_iter().cloned().collect()
        };
        Self {
            app,
            state: status.state.into(),
            since: status.since.unwrap_or(status.opened),
            incident: name,
            opened: status.opened,
            incidents,
            rules: all(rule),
            nodes: all(|evidence| &evidence.node),
            reason: status.reason,
            brake: status.brake.map(HeldBy::from),
            processes: status.processes,
            services: status.exposure.services,
            also_closes: status.also_closes.iter().map(App::from).collect(),
            also_closes_more: status.also_closes_more,
            released_until: status.releases.iter().map(|release| release.until).max(),
        }
    }
}
