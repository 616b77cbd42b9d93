//! `GET /api/v1/incidents`, `GET /api/v1/incidents/NAME`, and the answers to `approve` and `release`.

pub(super) mod parts;

use jiff::Timestamp;
use procscan_core::decision::DecisionKind;
use procscan_core::names::{App, Text};
use procscan_core::state;
use procscan_core::state::incident::{self, LoggedKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::parts::{
    Due, Evidence, Exposure, Grace, HeldBy, LoggedDecision, Notified, PodProcess, ReleaseDue, StickyRelease,
    WallClock,
};
use super::{ClearedBy, is_zero};

/// A page of incidents.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct IncidentPage {
    /// The incidents, the latest first.
    pub(crate) incidents: Vec<Incident>,
    /// How many incidents match, on this page and on all others.
    #[serde(default)]
    pub(crate) total: usize,
    /// The `cursor` of the next page, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<String>,
}

/// The state of an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum IncidentState {
    /// Not due, exempt, or released by an operator.
    Watched,
    /// The tenant is warned; the block follows after the grace.
    Grace,
    /// A brake holds the block until an operator approves it.
    Held,
    /// Blocked.
    Blocked,
    /// Blocked; a brake holds the release until an operator approves it.
    ReleaseHeld,
    /// Over.
    Ended,
}

impl IncidentState {
    /// The name of the state, as the API writes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Watched => "watched",
            Self::Grace => "grace",
            Self::Held => "held",
            Self::Blocked => "blocked",
            Self::ReleaseHeld => "release_held",
            Self::Ended => "ended",
        }
    }
}

impl From<state::IncidentState> for IncidentState {
    fn from(state: state::IncidentState) -> Self {
        match state {
            state::IncidentState::Watched => Self::Watched,
            state::IncidentState::Grace => Self::Grace,
            state::IncidentState::Held => Self::Held,
            state::IncidentState::Blocked => Self::Blocked,
            state::IncidentState::ReleaseHeld => Self::ReleaseHeld,
            state::IncidentState::Ended => Self::Ended,
        }
    }
}

/// An incident: all that is persisted of one App. The members are described at [`state::IncidentStatus`].
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Incident {
    pub(crate) name: String,
    pub(crate) app: App,
    pub(crate) state: IncidentState,
    pub(crate) opened: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) since: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grace_ends: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    clock: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    written: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wall_clock: Option<WallClock>,
    #[serde(default)]
    pub(crate) reason: Text,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    brake: Option<HeldBy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    release_held: Option<Timestamp>,
    #[serde(default)]
    approved: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exempted: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    withheld: Vec<Text>,
    #[serde(default)]
    evidence: Vec<Evidence>,
    #[serde(default)]
    evidence_omitted: usize,
    #[serde(default)]
    processes: Vec<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inherited: Option<Vec<PodProcess>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cleared: Option<ClearedBy>,
    #[serde(default)]
    exposure: Exposure,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    origins: Vec<Text>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    formerly: Vec<App>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    also_closes: Vec<App>,
    #[serde(default, skip_serializing_if = "is_zero")]
    also_closes_more: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    notified: Option<Notified>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grace: Option<Grace>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    due: Option<Due>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    release_due: Option<ReleaseDue>,
    #[serde(default)]
    releases: Vec<StickyRelease>,
    #[serde(default)]
    decisions: Vec<LoggedDecision>,
    #[serde(default)]
    decided: u64,
    #[serde(default)]
    observed: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    writer: Option<String>,
}

impl From<state::Incident> for Incident {
    fn from(state::Incident { name, spec, status }: state::Incident) -> Self {
        let apps = |apps: Vec<incident::AppRef>| apps.iter().map(App::from).collect();
        let pods = |pods: Vec<incident::PodProcess>| pods.into_iter().map(PodProcess::from).collect();
        Self {
            name,
            app: App::from(&spec.app),
            state: status.state.into(),
            opened: status.opened,
            since: status.since,
            until: status.until,
            grace_ends: status.grace_ends,
            clock: status.clock,
            written: status.written,
            wall_clock: status.wall_clock.map(WallClock::from),
            reason: status.reason,
            brake: status.brake.map(HeldBy::from),
            release_held: status.release_held,
            approved: status.approved,
            exempted: status.exempted,
            withheld: status.withheld,
            evidence: status.evidence.into_iter().map(Evidence::from).collect(),
            evidence_omitted: status.evidence_omitted,
            processes: status.processes,
            inherited: status.inherited.map(pods),
            cleared: status.cleared.map(ClearedBy::from),
            exposure: status.exposure.into(),
            origins: status.origins,
            formerly: apps(status.formerly),
            also_closes: apps(status.also_closes),
            also_closes_more: status.also_closes_more,
            notified: status.told.map(Notified::from),
            grace: status.grace.map(Grace::from),
            due: status.due.map(Due::from),
            release_due: status.release_due.map(ReleaseDue::from),
            releases: status.releases.into_iter().map(StickyRelease::from).collect(),
            decisions: status.decisions.into_iter().map(LoggedDecision::from).collect(),
            decided: status.decided,
            observed: status.observed,
            writer: status.writer,
        }
    }
}

/// The answer to an operator command that was carried out: the incident, and what the command has changed.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct CommandResult {
    #[serde(flatten)]
    pub(crate) incident: Incident,
    pub(crate) command: CommandEffect,
}

/// What an operator command has changed.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct CommandEffect {
    pub(crate) decision: LoggedKind,
    /// The state of the incident before. `None` if the replica did not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) was: Option<IncidentState>,
    /// Until when a release lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) until: Option<Timestamp>,
}

impl CommandEffect {
    /// The decision, if this version knows it.
    pub(crate) fn decision(&self) -> Option<DecisionKind> {
        self.decision.known()
    }
}

/// The answer to an operator command that is persisted and not carried out yet.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Pending {
    pub(crate) status: PendingStatus,
    pub(crate) detail: String,
}

/// The status of a command that is not carried out yet.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PendingStatus {
    #[default]
    Persisted,
}

impl Pending {
    /// `detail` says when it will be carried out.
    pub(crate) fn new(detail: &str) -> Self {
        Self { status: PendingStatus::Persisted, detail: detail.to_owned() }
    }
}
