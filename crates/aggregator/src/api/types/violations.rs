//! `GET /api/v1/violations`.

use jiff::Timestamp;
use procscan_core::clearing::{Cleared, Presence};
use procscan_core::names::{Key, NodeName, Text};
use procscan_core::snapshot::{self, Coverage, State};
use procscan_core::state::incident;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The list of `GET /api/violations`.
#[derive(Deserialize, JsonSchema)]
#[expect(dead_code, reason = "the list is written from the records; this is its schema")]
pub(crate) struct ViolationList {
    /// The active and unconfirmed violations, ordered by namespace, Pod and process.
    violations: Vec<ListedViolation>,
    /// When the list last changed.
    update_time: Timestamp,
    /// How many violations there are.
    total_count: usize,
}

/// A violation as the agent last gave it.
#[derive(Deserialize, JsonSchema)]
#[expect(dead_code, reason = "the list is written from the records; this is its schema")]
struct ListedViolation {
    pod: String,
    namespace: String,
    process: String,
    /// Secrets in it are replaced by `***`, unless the caller has the right to whole command lines.
    cmdline: String,
    regex: String,
    status: String,
    #[serde(rename = "type")]
    kind: String,
    name: String,
    timestamp: String,
}

/// A page of violations.
#[derive(Serialize, JsonSchema)]
pub(crate) struct ViolationPage<'a> {
    /// The violations.
    violations: Vec<Violation<'a>>,
    /// How many of the targets answer.
    coverage: Coverage,
    /// The `cursor` of the next page, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A violation with the evidence of each node. It has no command line, because command lines may hold secrets.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Violation<'a> {
    #[serde(flatten)]
    pub(crate) key: &'a Key,
    /// The type of the App as the agent gives it; the plan has the App that the cluster names.
    #[serde(rename = "type")]
    kind: &'a Text,
    /// The name of the App as the agent gives it.
    name: &'a Text,
    state: State,
    rule: &'a Text,
    first_seen: Timestamp,
    last_seen: Timestamp,
    /// The agent's own timestamp of the last fresh evidence.
    evidence_time: Timestamp,
    /// How many different timestamps were seen.
    observations: u64,
    evidence: Vec<Evidence<'a>>,
}

/// The evidence of one node.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Evidence<'a> {
    node: &'a NodeName,
    presence: Presence,
    /// Whether it ever was fresh; if not, it is never a reason for anything.
    was_fresh: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cleared: Option<ClearedBy>,
    /// The violation whose record hides this one at present, because the agent lists one of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    hidden_by: Option<&'a Key>,
}

/// By which rule evidence cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ClearedBy {
    /// Its node has answered for long enough without it.
    ByClock,
    /// Its node has not answered for too long.
    Unreachable,
    /// Its node has answered for long, but too many answers did not show whether the process was there.
    Hidden,
    /// Its Pod is gone.
    PodGone,
    /// No Pod of the App is left.
    AppGone,
}

impl From<Cleared> for ClearedBy {
    fn from(cleared: Cleared) -> Self {
        match cleared {
            Cleared::ByClock => Self::ByClock,
            Cleared::Unreachable => Self::Unreachable,
            Cleared::Hidden => Self::Hidden,
            Cleared::PodGone => Self::PodGone,
        }
    }
}

impl From<incident::ClearedBy> for ClearedBy {
    fn from(cleared: incident::ClearedBy) -> Self {
        match cleared {
            incident::ClearedBy::Clock => Self::ByClock,
            incident::ClearedBy::Unreachable => Self::Unreachable,
            incident::ClearedBy::Hidden => Self::Hidden,
            incident::ClearedBy::PodGone => Self::PodGone,
            incident::ClearedBy::AppGone => Self::AppGone,
        }
    }
}

impl<'a> Violation<'a> {
    /// A violation, for a reader that `sees` what belongs to some namespaces.
    pub(crate) fn of(violation: &'a snapshot::Violation, sees: impl Fn(&str) -> bool) -> Self {
        let evidence = violation.evidence().map(|evidence| Evidence {
            node: &evidence.node,
            presence: evidence.presence,
            was_fresh: evidence.fresh_at.is_some(),
            cleared: evidence.cleared.map(ClearedBy::from),
            // Another tenant may have the process that hides this one.
            hidden_by: evidence.hidden_by.as_deref().filter(|key| sees(&key.namespace)),
        });
        Self {
            key: &violation.key,
            kind: &violation.record().kind,
            name: &violation.record().name,
            state: violation.state,
            rule: violation.record().rule(),
            first_seen: violation.first_seen(),
            last_seen: violation.last_seen(),
            evidence_time: violation.leading.evidence_time.get(),
            observations: violation.observations(),
            evidence: evidence.collect(),
        }
    }
}
