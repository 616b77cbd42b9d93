//! The parts of an incident. The members are described at the types of [`procscan_core::state::incident`].

use jiff::Timestamp;
use procscan_core::names::Text;
use procscan_core::state::incident::{self, LoggedKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::types::{ClearedBy, is_false};

/// See [`incident::WallClock`].
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct WallClock {
    believed: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    doubted: Option<DoubtedClock>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    latest_over: Option<Timestamp>,
}

/// See [`incident::DoubtedClock`].
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct DoubtedClock {
    time: Timestamp,
    since: Timestamp,
}

impl From<incident::WallClock> for WallClock {
    fn from(incident::WallClock { believed, doubted, latest_over }: incident::WallClock) -> Self {
        let doubted = doubted.map(|incident::DoubtedClock { time, since }| DoubtedClock { time, since });
        Self { believed, doubted, latest_over }
    }
}

/// The kinds of brakes on blocks: see [`incident::BrakeKind`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum BrakeKind {
    NewApps,
    Node,
    Rule,
    SharedService,
}

impl From<incident::BrakeKind> for BrakeKind {
    fn from(kind: incident::BrakeKind) -> Self {
        match kind {
            incident::BrakeKind::NewApps => Self::NewApps,
            incident::BrakeKind::Node => Self::Node,
            incident::BrakeKind::Rule => Self::Rule,
            incident::BrakeKind::SharedService => Self::SharedService,
        }
    }
}

/// See [`incident::HeldBy`].
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(in crate::api::types) struct HeldBy {
    since: Timestamp,
    brake: BrakeKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    of: Option<Text>,
}

impl From<incident::HeldBy> for HeldBy {
    fn from(incident::HeldBy { since, brake, of }: incident::HeldBy) -> Self {
        Self { since, brake: brake.into(), of }
    }
}

/// See [`incident::Due`].
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct Due {
    at: Timestamp,
    passed: bool,
    #[serde(default)]
    accusers: Vec<Accuser>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    held: Vec<Scope>,
}

/// See [`incident::Accuser`].
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Accuser {
    node: Text,
    rule: Text,
}

/// See [`incident::Scope`].
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Scope {
    brake: BrakeKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    of: Option<Text>,
}

impl From<incident::Due> for Due {
    fn from(incident::Due { at, passed, accusers, held }: incident::Due) -> Self {
        let accuser = |incident::Accuser { node, rule }| Accuser { node, rule };
        let scope = |incident::Scope { brake, of }| Scope { brake: BrakeKind::from(brake), of };
        let (accusers, held) =
            (accusers.into_iter().map(accuser).collect(), held.into_iter().map(scope).collect());
        Self { at, passed, accusers, held }
    }
}

/// See [`incident::ReleaseDue`].
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct ReleaseDue {
    at: Timestamp,
    passed: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    proven: bool,
}

impl From<incident::ReleaseDue> for ReleaseDue {
    fn from(incident::ReleaseDue { at, passed, proven }: incident::ReleaseDue) -> Self {
        Self { at, passed, proven }
    }
}

/// See [`incident::EvidenceStatus`].
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "IncidentEvidence")]
pub(super) struct Evidence {
    pod: Text,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod_uid: Option<Text>,
    process: Text,
    node: Text,
    regex: Text,
    #[serde(rename = "type")]
    kind: Text,
    name: Text,
    first_seen: Timestamp,
    fresh_at: Timestamp,
    timestamp: Text,
    observations: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scan_interval_seconds: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hidden_for_seconds: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cleared: Option<ClearedEvidence>,
}

/// See [`incident::ClearedEvidence`].
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct ClearedEvidence {
    at: Timestamp,
    by: ClearedBy,
    ended: bool,
}

impl From<incident::EvidenceStatus> for Evidence {
    fn from(evidence: incident::EvidenceStatus) -> Self {
        let cleared =
            |incident::ClearedEvidence { at, by, ended }| ClearedEvidence { at, by: by.into(), ended };
        Self {
            pod: evidence.pod,
            pod_uid: evidence.pod_uid,
            process: evidence.process,
            node: evidence.node,
            regex: evidence.regex,
            kind: evidence.kind,
            name: evidence.name,
            first_seen: evidence.first_seen,
            fresh_at: evidence.fresh_at,
            timestamp: evidence.timestamp,
            observations: evidence.observations,
            scan_interval_seconds: evidence.scan_interval,
            hidden_for_seconds: evidence.hidden_for,
            cleared: evidence.cleared.map(cleared),
        }
    }
}

/// See [`incident::PodProcess`].
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct PodProcess {
    pod: Text,
    process: Text,
}

impl From<incident::PodProcess> for PodProcess {
    fn from(incident::PodProcess { pod, process }: incident::PodProcess) -> Self {
        Self { pod, process }
    }
}

/// See [`incident::Exposure`].
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
pub(super) struct Exposure {
    #[serde(default)]
    services: Vec<Text>,
    #[serde(default)]
    ingresses: Vec<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    otherwise: Option<Vec<Text>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    left_open: Vec<Text>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    once_closed: Vec<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nothing_closed: Option<Text>,
}

impl From<incident::Exposure> for Exposure {
    fn from(exposure: incident::Exposure) -> Self {
        let incident::Exposure { services, ingresses, otherwise, left_open, once_closed, nothing_closed } =
            exposure;
        Self { services, ingresses, otherwise, left_open, once_closed, nothing_closed }
    }
}

/// The last notice to the tenant: see [`incident::NotificationStatus`].
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct Notified {
    /// Of which phase.
    phase: NotifiedPhase,
    /// When it was decided.
    sent_at: Timestamp,
    /// When it was written to the cluster, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    written_at: Option<Timestamp>,
    /// The same by the clock that runs only while a replica leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    written_by_clock: Option<Timestamp>,
}

/// The phase that a notice is of.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum NotifiedPhase {
    Grace,
    Blocked,
    Recovered,
}

impl From<incident::NotificationStatus> for Notified {
    fn from(notice: incident::NotificationStatus) -> Self {
        let phase = match notice.what {
            incident::NotifiedOf::Grace => NotifiedPhase::Grace,
            incident::NotifiedOf::Blocked => NotifiedPhase::Blocked,
            incident::NotifiedOf::Recovered => NotifiedPhase::Recovered,
        };
        let (written_at, written_by_clock) = (notice.delivered, notice.delivered_by_clock);
        Self { phase, sent_at: notice.at, written_at, written_by_clock }
    }
}

/// See [`incident::Grace`].
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct Grace {
    until: Timestamp,
    until_by_clock: Timestamp,
    /// When its warning was written to the cluster, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    written_at: Option<Timestamp>,
    /// The same by the clock that runs only while a replica leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    written_by_clock: Option<Timestamp>,
    process: Text,
    #[serde(default)]
    regex: Text,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    idle_since: Option<Timestamp>,
}

impl From<incident::Grace> for Grace {
    fn from(grace: incident::Grace) -> Self {
        Self {
            until: grace.until,
            until_by_clock: grace.until_by_clock,
            written_at: grace.told,
            written_by_clock: grace.told_by_clock,
            process: grace.process,
            regex: grace.regex,
            idle_since: grace.idle_since,
        }
    }
}

/// An accusation that an operator's release covers: see [`incident::StickyRelease`].
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct StickyRelease {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    process: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rule: Option<Text>,
    until: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until_by_clock: Option<Timestamp>,
    by: Text,
}

impl From<incident::StickyRelease> for StickyRelease {
    fn from(release: incident::StickyRelease) -> Self {
        let incident::StickyRelease { process, rule, until, until_by_clock, by } = release;
        Self { process, rule, until, until_by_clock, by }
    }
}

/// An entry of the incident's own log: see [`incident::IncidentDecision`].
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct LoggedDecision {
    at: Timestamp,
    decision: LoggedKind,
    actor: Text,
    reason: Text,
}

impl From<incident::IncidentDecision> for LoggedDecision {
    fn from(incident::IncidentDecision { at, decision, actor, reason }: incident::IncidentDecision) -> Self {
        Self { at, decision, actor, reason }
    }
}
