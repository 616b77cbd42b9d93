//! `/api/v1/plan`: who is blocked, who is told, who is held, and why.

use axum::Json;
use axum::extract::State;
use procscan_core::plan::{Block, Dispute, HeldApp, Notice, Summary};
use procscan_core::policy::Mode;
use procscan_core::snapshot::Coverage;
use serde::Serialize;
use std::sync::Arc;

use super::Api;
use super::query::NoParameters;

/// How many disputes are listed.
const MAX_DISPUTES: usize = 1000;

#[derive(Serialize)]
pub(super) struct Plan {
    mode: Mode,
    blocks: Vec<Arc<Block>>,
    notices: Vec<Arc<Notice>>,
    held: Vec<HeldApp>,
    summary: Summary,
    /// How many accusations are not believed, and which, up to a bound: liars may make any number.
    disputed: usize,
    disputes: Vec<Dispute>,
    unverified: usize,
    coverage: Coverage,
}

pub(super) async fn plan(State(api): State<Api>, _: NoParameters) -> Json<Plan> {
    let decided = api.views.decided.borrow().clone();
    let coverage = api.snapshot().await.coverage;
    Json(Plan {
        mode: decided.plan.mode,
        blocks: decided.plan.blocks.clone(),
        notices: decided.plan.notices.clone(),
        held: decided.held.clone(),
        summary: decided.plan.summary,
        disputed: decided.disputes.len(),
        disputes: decided.disputes.iter().take(MAX_DISPUTES).cloned().collect(),
        unverified: decided.unverified,
        coverage,
    })
}
