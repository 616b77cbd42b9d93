//! `/api/v1/violations`: what is known of each violation, with its state and the evidence of each node.

use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use procscan_core::clearing::{Cleared, Presence};
use procscan_core::names::{Key, NodeName, Text};
use procscan_core::snapshot::{self, Snapshot, State as ViolationState};
use serde::Serialize;

use super::Api;
use super::filter::Filter;
use super::page::{Page, SMALL_PAGE_ENTRIES};
use super::problem::Problem;
use super::query::Parameters;

/// The command line stays out: what is shown here is for more eyes than the original list.
#[derive(Serialize)]
struct Violation<'a> {
    #[serde(flatten)]
    key: &'a Key,
    /// What the agent takes the App for; the plan has the App that the cluster names.
    #[serde(rename = "type")]
    kind: &'a Text,
    name: &'a Text,
    state: ViolationState,
    rule: &'a Text,
    first_seen: Timestamp,
    last_seen: Timestamp,
    /// The agent's own timestamp of the last fresh evidence.
    evidence_time: Timestamp,
    /// How many different timestamps were seen.
    observations: u64,
    evidence: Vec<NodeEvidence<'a>>,
}

#[derive(Serialize)]
struct NodeEvidence<'a> {
    node: &'a NodeName,
    presence: Presence,
    /// Whether it ever was fresh; if not, it is never a reason for anything.
    was_fresh: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cleared: Option<Cleared>,
    /// The violation whose record hides this one at present, because the agent lists one of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    hidden_by: Option<&'a Key>,
}

impl<'a> From<&'a snapshot::Violation> for Violation<'a> {
    fn from(violation: &'a snapshot::Violation) -> Self {
        let evidence = violation.evidence().map(|evidence| NodeEvidence {
            node: &evidence.node,
            presence: evidence.presence,
            was_fresh: evidence.fresh_at.is_some(),
            cleared: evidence.cleared,
            hidden_by: evidence.hidden_by.as_deref(),
        });
        Self {
            key: &violation.key,
            kind: &violation.record().kind,
            name: &violation.record().name,
            state: violation.state,
            rule: violation.record().rule(),
            first_seen: violation.first_seen(),
            last_seen: violation.last_seen(),
            evidence_time: violation.leading.evidence_time.get(),
            observations: violation.observations(),
            evidence: evidence.collect(),
        }
    }
}

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
