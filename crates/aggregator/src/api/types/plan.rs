//! `GET /api/v1/plan`.

use std::sync::Arc;

use procscan_core::plan::{Block, Dispute, HeldApp, Notice, Summary};
use procscan_core::snapshot::Coverage;
use schemars::JsonSchema;
use serde::Serialize;

use super::Mode;

/// A page of the plan.
#[derive(Serialize, JsonSchema)]
pub(crate) struct PlanPage {
    /// The mode in force.
    mode: Mode,
    /// The desired blocks.
    blocks: Vec<Arc<Block>>,
    /// The notices to tenants.
    notices: Vec<Arc<Notice>>,
    /// The Apps that brakes hold.
    held: Vec<HeldApp>,
    /// The accusations that are not believed, 1,000 at most.
    disputes: Vec<Dispute>,
    /// How many disputes there are.
    disputed: usize,
    /// The notice to administrators. Not with `namespace`, because it counts the Apps of all tenants.
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<Summary>,
    /// How many accusations can't be judged yet. Not with `namespace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    unverified: Option<usize>,
    /// How many of the targets answer.
    coverage: Coverage,
    /// The `cursor` of the next page, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}
