//! `/api/v1/violations`: each violation with its state and the evidence of each node.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use procscan_core::snapshot::Snapshot;

use super::Api;
use super::filter::{Filter, PARAMETERS};
use super::page::{Page, SMALL_PAGE_ENTRIES};
use super::parameters::Pairs;
use super::problem::Problem;
use super::reader::{Reader, Reading};
use super::sort::Selection;
use super::types::Violation;

pub(super) async fn violations(
    State(api): State<Api>,
    headers: HeaderMap,
    query: Pairs,
) -> Result<Response, Problem> {
    let (reader, given) = api.reader(&headers, Reading::List, query, PARAMETERS).await?;
    let filter = Filter::of(&given)?;
    api.find_room()?;
    let snapshot = api.snapshot().await;
    if snapshot.violations.len() <= SMALL_PAGE_ENTRIES {
        return Ok(api.make_small(page(&snapshot, &filter, &reader)));
    }
    drop(snapshot);
    let turn = api.turn().await?;
    let snapshot = api.snapshot().await;
    Ok(api.make(turn, move || page(&snapshot, &filter, &reader)).await)
}

pub(super) fn page(snapshot: &Snapshot, filter: &Filter, reader: &Reader) -> serde_json::Result<Vec<u8>> {
    let all = &snapshot.violations;
    let mut page = Page::new(filter.paging.limit);
    if filter.is_by_key() {
        let is_shown = |place: &_| !filter.paging.is_new(place);
        let begin = all.partition_point(|violation| is_shown(&filter.place(violation)));
        let wanted = all.get(begin..).unwrap_or_default().iter().filter(|violation| filter.wants(violation));
        let shown = wanted.map(|violation| {
            (filter.place(violation), Violation::of(violation, |namespace| reader.sees(namespace)))
        });
        page.placed("violations", &filter.paging, shown)?;
    } else {
        let mut selection = Selection::new(filter.paging.clone());
        for violation in all.iter().filter(|violation| filter.wants(violation)) {
            selection.add(filter.place(violation), violation);
        }
        page.more(selection.last_of_full().is_some());
        let entries = selection.into_entries().into_iter();
        let shown = entries
            .map(|(place, violation)| (place, Violation::of(violation, |namespace| reader.sees(namespace))));
        page.placed("violations", &filter.paging, shown)?;
    }
    page.member("coverage", &snapshot.coverage)?;
    page.end()
}
