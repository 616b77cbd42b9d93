//! `/api/v1/nodes`: each target, how fresh it is, and its last failure.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use procscan_core::snapshot::{Snapshot, TargetState, TargetView};
use procscan_core::time::CompactTimestamp;
use regex::Regex;

use super::Api;
use super::page::{Page, SMALL_PAGE_ENTRIES};
use super::parameters::{CURSOR, Given, LIMIT, Order, Pairs, Parameter, name, sort, sought, text};
use super::problem::Problem;
use super::reader::Reading;
use super::sort::{Paging, Place, Selection, SortValue};
use super::types::Node;

/// The parameters of the list of nodes.
pub(super) const PARAMETERS: &[Parameter] = &[
    text("node", "Only targets of this node."),
    name("state", &["fresh", "stale", "unusable", "never_seen"], "Only targets in this state."),
    sought(
        "Only targets with this text in the node, the address or the last failure, in upper or lower case.",
    ),
    sort(&["address", "node", "violations", "last_answer", "failures"]),
    LIMIT,
    CURSOR,
];

struct Filter {
    node: Option<String>,
    state: Option<TargetState>,
    sought: Option<Regex>,
    paging: Paging,
}

pub(super) async fn nodes(
    State(api): State<Api>,
    headers: HeaderMap,
    query: Pairs,
) -> Result<Response, Problem> {
    let (_, given) = api.reader(&headers, Reading::List, query, PARAMETERS).await?;
    let filter = Filter::of(&given)?;
    api.find_room()?;
    let snapshot = api.snapshot().await;
    if snapshot.targets.len() <= SMALL_PAGE_ENTRIES {
        return Ok(api.make_small(page(&snapshot, &filter)));
    }
    drop(snapshot);
    let turn = api.turn().await?;
    let snapshot = api.snapshot().await;
    Ok(api.make(turn, move || page(&snapshot, &filter)).await)
}

impl Filter {
    fn of(given: &Given) -> Result<Self, Problem> {
        let state = given.name("state").map(|state| match state {
            "fresh" => TargetState::Fresh,
            "stale" => TargetState::Stale,
            "unusable" => TargetState::Unusable,
            _ => TargetState::NeverSeen,
        });
        let paging = Paging::of(given, Order::of("address", false))?;
        Ok(Self { node: given.text("node"), state, sought: given.sought(), paging })
    }

    fn wants(&self, target: &TargetView) -> bool {
        let detail = target.last_failure.as_ref().map(|failure| &*failure.1.detail);
        let texts = [&*target.node.0, &*target.address].into_iter().chain(detail);
        self.node.as_ref().is_none_or(|node| **node == *target.node.0)
            && self.state.is_none_or(|state| state == target.state)
            && self.sought.as_ref().is_none_or(|sought| texts.into_iter().any(|text| sought.is_match(text)))
    }

    fn place(&self, target: &TargetView, snapshot: &Snapshot) -> Place {
        let value = match self.paging.order.by {
            "node" => Some(SortValue::from(&target.node.0)),
            "violations" => Some(snapshot.nodes.get(&target.node).map(|node| node.records).into()),
            "last_answer" => Some(target.last_answer.map(CompactTimestamp::get).into()),
            "failures" => Some(SortValue::Number(target.consecutive_failures.into())),
            _ => None,
        };
        Place(value.into_iter().chain([SortValue::from(&target.address)]).collect())
    }
}

fn page(snapshot: &Snapshot, filter: &Filter) -> serde_json::Result<Vec<u8>> {
    let mut selection = Selection::new(filter.paging.clone());
    for target in snapshot.targets.iter().filter(|target| filter.wants(target)) {
        selection.add(filter.place(target, snapshot), target);
    }
    let mut page = Page::new(filter.paging.limit);
    page.more(selection.last_of_full().is_some());
    let entries = selection.into_entries().into_iter();
    page.placed("nodes", &filter.paging, entries.map(|(place, target)| (place, Node::of(target, snapshot))))?;
    page.member("coverage", &snapshot.coverage)?;
    page.end()
}
