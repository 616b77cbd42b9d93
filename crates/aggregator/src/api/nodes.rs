//! `/api/v1/nodes`: every target, how fresh it is, and what was last wrong with it.

use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use procscan_core::names::{NodeName, Text};
use procscan_core::report::{FailureReason, Rejections};
use procscan_core::snapshot::{Snapshot, TargetState, TargetView};
use procscan_core::time::CompactTimestamp;
use serde::Serialize;

use super::Api;
use super::page::{Page, Paging, SMALL_PAGE_ENTRIES};
use super::problem::Problem;
use super::query::Parameters;

#[derive(Serialize)]
struct Node {
    #[serde(rename = "node")]
    name: NodeName,
    address: Text,
    state: TargetState,
    last_answer: Option<Timestamp>,
    consecutive_failures: u32,
    last_failure: Option<Failure>,
    /// Since when it has been there without an answer that could be used.
    unusable_since: Option<Timestamp>,
    /// Whether its agent lists all that it finds. Until that is known, the agent is assumed to list one of several.
    lists_several: bool,
    /// The learned interval between the agent's scans.
    scan_interval_seconds: Option<f64>,
    /// Violations of the node that have not cleared.
    violations: usize,
    /// Records refused since the start, by reason.
    rejected_records: Rejections,
}

#[derive(Serialize)]
struct Failure {
    at: Timestamp,
    reason: FailureReason,
    detail: String,
}

impl Node {
    fn of(target: &TargetView, snapshot: &Snapshot) -> Self {
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

pub(super) async fn nodes(
    State(api): State<Api>,
    Parameters(query): Parameters,
) -> Result<Response, Problem> {
    let paging = Paging::of(query)?;
    api.find_room()?;
    let snapshot = api.snapshot().await;
    if snapshot.targets.len() <= SMALL_PAGE_ENTRIES {
        return Ok(api.make_small(page(&snapshot, &paging)));
    }
    drop(snapshot);
    let turn = api.turn().await?;
    let snapshot = api.snapshot().await;
    Ok(api.make(turn, move || page(&snapshot, &paging)).await)
}

fn page(snapshot: &Snapshot, paging: &Paging<String>) -> serde_json::Result<Vec<u8>> {
    // They are ordered by address.
    let all = &snapshot.targets;
    let begin = paging.after.as_ref().map_or(0, |last| all.partition_point(|it| *it.address <= **last));
    let wanted = all.get(begin..).unwrap_or_default().iter().map(|target| Node::of(target, snapshot));
    let mut page = Page::new(paging.limit());
    page.list("nodes", wanted, |node| node.address.clone())?;
    page.member("coverage", &snapshot.coverage)?;
    page.end()
}
