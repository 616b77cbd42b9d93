//! `/api/v1/violations`: what is known of each violation, with its state and the evidence of each node.

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use procscan_core::ledger::{Cleared, Presence};
use procscan_core::names::{Key, NodeName, Text};
use procscan_core::snapshot::{self, Coverage, State as ViolationState};
use serde::Serialize;

use super::Api;

#[derive(Serialize)]
pub(super) struct Violations {
    violations: Vec<Violation>,
    coverage: Coverage,
}

/// The command line stays out: what is shown here is for more eyes than the original list.
#[derive(Serialize)]
struct Violation {
    #[serde(flatten)]
    key: Key,
    state: ViolationState,
    rule: Text,
    first_seen: Timestamp,
    last_seen: Timestamp,
    /// The agent's own timestamp of the last fresh evidence.
    evidence_time: Timestamp,
    /// How many different timestamps were seen.
    observations: u64,
    evidence: Vec<Evidence>,
}

#[derive(Serialize)]
struct Evidence {
    node: NodeName,
    presence: Presence,
    /// Whether it ever was fresh; if not, it is never a reason for anything.
    was_fresh: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cleared: Option<Cleared>,
}

impl From<&snapshot::Violation> for Violation {
    fn from(violation: &snapshot::Violation) -> Self {
        let evidence = violation.evidence.iter().map(|evidence| Evidence {
            node: evidence.node.clone(),
            presence: evidence.presence,
            was_fresh: evidence.fresh_at.is_some(),
            cleared: evidence.cleared,
        });
        Self {
            key: violation.key.clone(),
            state: violation.state,
            rule: violation.record.rule().clone(),
            first_seen: violation.first_seen,
            last_seen: violation.last_seen,
            evidence_time: violation.evidence_time,
            observations: violation.observations,
            evidence: evidence.collect(),
        }
    }
}

pub(super) async fn violations(State(api): State<Api>) -> Json<Violations> {
    let snapshot = api.snapshot().await;
    Json(Violations {
        violations: snapshot.violations.iter().map(Violation::from).collect(),
        coverage: snapshot.coverage,
    })
}
