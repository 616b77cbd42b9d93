//! The accusations of an incident, and those that have cleared.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::clearing::Cleared;
use crate::names::Text;

/// One node's evidence of one violation. The command line stays out, because it may hold secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvidenceStatus {
    /// The Pod.
    pub pod: Text,
    /// The Pod's UID. Absent without a cluster, and in evidence that an earlier version persisted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<Text>,
    /// The process.
    pub process: Text,
    /// The node that reported it.
    pub node: Text,
    /// The regular expression that matched; empty for a keyword.
    pub regex: Text,
    /// The App's type as the agent guesses it.
    #[serde(rename = "type")]
    pub kind: Text,
    /// The App's name as the agent guesses it.
    pub name: Text,
    /// When it was first listed.
    pub first_seen: Timestamp,
    /// When it was last fresh, as of the last write of this object. At most an hour more may have passed.
    pub fresh_at: Timestamp,
    /// The agent's own time of that, as the agent wrote it.
    pub timestamp: Text,
    /// How many different times of the agent were seen.
    pub observations: u64,
    /// How often the agent scans, as far as it was learned, in seconds.
    #[serde(rename = "scanIntervalSeconds", default, skip_serializing_if = "Option::is_none")]
    pub scan_interval: Option<u64>,
    /// For how many seconds its node has answered without fresh evidence of it, as of the last write of this object.
    /// Absent if none of these answers was inconclusive about it. At most an hour more may have passed.
    #[serde(rename = "hiddenForSeconds", default, skip_serializing_if = "Option::is_none")]
    pub hidden_for: Option<u64>,
    /// Set if it has cleared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleared: Option<ClearedEvidence>,
}

/// When and by which rule one node's evidence cleared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClearedEvidence {
    /// When.
    pub at: Timestamp,
    /// By which rule.
    pub by: ClearedBy,
    /// It is no accusation any more. If false, only the Pod is gone, and the App's block goes on.
    pub ended: bool,
}

/// By which rule evidence cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ClearedBy {
    /// Its node has answered for long enough without it.
    Clock,
    /// Its node has not answered for too long.
    Unreachable,
    /// Its node has answered for long, but too many answers were inconclusive about it. They listed another process
    /// instead, or left out records of its namespace.
    Hidden,
    /// Its Pod is gone.
    PodGone,
    /// No Pod of the App is left.
    AppGone,
}

impl From<ClearedBy> for Cleared {
    fn from(by: ClearedBy) -> Self {
        match by {
            ClearedBy::Clock => Self::ByClock,
            ClearedBy::Unreachable => Self::Unreachable,
            ClearedBy::Hidden => Self::Hidden,
            ClearedBy::PodGone | ClearedBy::AppGone => Self::PodGone,
        }
    }
}

/// A process in a Pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct PodProcess {
    /// The Pod.
    pub pod: Text,
    /// The process.
    pub process: Text,
}
