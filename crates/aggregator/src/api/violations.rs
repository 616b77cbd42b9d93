//! `/api/v1/violations`: each violation with its state and the evidence of each node.

use axum::extract::State;
use axum::response::Response;
use procscan_core::snapshot::Snapshot;

use super::Api;
use super::filter::Filter;
use super::page::{Page, SMALL_PAGE_ENTRIES};
use super::problem::Problem;
use super::query::Parameters;
use super::types::Violation;

pub(super) async fn violations(
    State(api): State<Api>,
    Parameters(query): Parameters,
) -> Result<Response, Problem> {
    let filter = Filter::of(query)?;
    api.find_room()?;
    let snapshot = api.snapshot().await;
    if snapshot.violations.len() <= SMALL_PAGE_ENTRIES {
        return Ok(api.make_small(page(&snapshot, &filter)));
    }
    drop(snapshot);
    let turn = api.turn().await?;
    let snapshot = api.snapshot().await;
    Ok(api.make(turn, move || page(&snapshot, &filter)).await)
}

pub(super) fn page(snapshot: &Snapshot, filter: &Filter) -> serde_json::Result<Vec<u8>> {
    // They are ordered by key.
    let all = &snapshot.violations;
    let begin = filter.paging.after.as_ref().map_or(0, |last| all.partition_point(|it| it.key <= *last));
    let wanted = all.get(begin..).unwrap_or_default().iter().filter(|violation| filter.wants(violation));
    let mut page = Page::new(filter.paging.limit());
    page.list("violations", wanted.map(Violation::from), |violation| violation.key)?;
    page.member("coverage", &snapshot.coverage)?;
    page.end()
}
