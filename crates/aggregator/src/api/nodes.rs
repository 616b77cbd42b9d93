//! `/api/v1/nodes`: each target, how fresh it is, and its last failure.

use axum::extract::State;
use axum::response::Response;
use procscan_core::snapshot::Snapshot;

use super::Api;
use super::page::{Page, Paging, SMALL_PAGE_ENTRIES};
use super::problem::Problem;
use super::query::Parameters;
use super::types::Node;

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
    // Ordered by address.
    let all = &snapshot.targets;
    let begin = paging.after.as_ref().map_or(0, |last| all.partition_point(|it| *it.address <= **last));
    let wanted = all.get(begin..).unwrap_or_default().iter().map(|target| Node::of(target, snapshot));
    let mut page = Page::new(paging.limit());
    page.list("nodes", wanted, |node| node.address.clone())?;
    page.member("coverage", &snapshot.coverage)?;
    page.end()
}
