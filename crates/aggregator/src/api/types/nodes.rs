//! `GET /api/v1/nodes`.

use jiff::Timestamp;
use procscan_core::names::{NodeName, Text};
use procscan_core::report::{FailureReason, Rejections};
use procscan_core::snapshot::{Coverage, Snapshot, TargetState, TargetView};
use procscan_core::time::CompactTimestamp;
use schemars::JsonSchema;
use serde::Serialize;

/// A page of targets.
#[derive(Serialize, JsonSchema)]
pub(crate) struct NodePage {
    /// The targets.
    nodes: Vec<Node>,
    /// How many of the targets answer.
    coverage: Coverage,
    /// The `cursor` of the next page, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A target, and what is known of its node.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Node {
    #[serde(rename = "node")]
    name: NodeName,
    pub(crate) address: Text,
    state: TargetState,
    /// The time of its last whole answer.
    last_answer: Option<Timestamp>,
    consecutive_failures: u32,
    last_failure: Option<Failure>,
    /// Since then the node is there, and none of its answers could be used.
    unusable_since: Option<Timestamp>,
    /// Whether its agent has listed two records in one answer. Until then the agent is assumed to list one of several.
    lists_several: bool,
    /// The learned interval between the agent's scans.
    scan_interval_seconds: Option<f64>,
    /// Violations of the node that have not cleared.
    violations: usize,
    /// Records refused since the start, by reason.
    rejected_records: Rejections,
}

/// The last failure of a target.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Failure {
    at: Timestamp,
    reason: FailureReason,
    detail: String,
}

impl Node {
    /// The node of a target in a snapshot.
    pub(crate) fn of(target: &TargetView, snapshot: &Snapshot) -> Self {
        let view = snapshot.nodes.get(&target.node);
        Self {
            name: target.node.clone(),
            address: target.address.clone(),
            state: target.state,
            last_answer: target.last_answer.map(CompactTimestamp::get),
            consecutive_failures: target.consecutive_failures,
            last_failure: target.last_failure.as_deref().map(|(at, failure)| Failure {
                at: *at,
                reason: failure.reason,
                detail: failure.detail.clone(),
            }),
            unusable_since: target.unusable_since.map(CompactTimestamp::get),
            lists_several: view.is_some_and(|view| view.lists_several),
            scan_interval_seconds: view
                .and_then(|view| view.interval)
                .map(|interval| interval.get().as_secs_f64()),
            violations: view.map_or(0, |view| view.records),
            rejected_records: view.map(|view| view.rejected.clone()).unwrap_or_default(),
        }
    }
}
