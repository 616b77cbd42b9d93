//! `/api/v1/violations`: what is known of each violation, with its state and the evidence of each node.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use procscan_core::ledger::{Cleared, Presence};
use procscan_core::names::{Key, NodeName, Text};
use procscan_core::snapshot::{self, Coverage, Snapshot, State as ViolationState};
use serde::Serialize;

use super::filter::Filter;
use super::problem::Problem;
use super::query::Parameters;
use super::{Api, cursor};

/// How many violations are looked through and written in well under a millisecond. More would keep other requests waiting, probes
/// included, so that is done on a thread that may block.
const FEW: usize = 200;

#[derive(Serialize)]
struct Page<'a> {
    violations: Vec<Violation<'a>>,
    coverage: Coverage,
    /// Where the next page begins, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

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
    evidence: Vec<Evidence<'a>>,
}

#[derive(Serialize)]
struct Evidence<'a> {
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
        let evidence = violation.evidence().map(|evidence| Evidence {
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
            evidence_time: violation.speaker.evidence_time.get(),
            observations: violation.observations(),
            evidence: evidence.collect(),
        }
    }
}

pub(super) async fn violations(State(api): State<Api>, Parameters(query): Parameters) -> Response {
    let filter = match Filter::of(query) {
        Ok(filter) => filter,
        Err(problem) => return problem.into_response(),
    };
    let snapshot = api.snapshot().await;
    if snapshot.violations.len() <= FEW {
        return page(&snapshot, &filter);
    }
    // Never closed, so it is always granted.
    let turn = api.pages.acquire_owned().await;
    let made = tokio::task::spawn_blocking(move || {
        // Until the page is made, even if nobody waits for it any more.
        let _turn = turn;
        page(&snapshot, &filter)
    });
    made.await.unwrap_or_else(|_| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the page can't be made").into_response()
    })
}

pub(super) fn page(snapshot: &Snapshot, filter: &Filter) -> Response {
    // They are ordered by key.
    let all = &snapshot.violations;
    let begin = filter.after.as_ref().map_or(0, |last| all.partition_point(|it| it.key <= *last));
    let mut wanted = all.iter().skip(begin).filter(|violation| filter.wants(violation));
    let limit = filter.limit.unwrap_or(usize::MAX);
    let violations: Vec<_> = wanted.by_ref().take(limit).map(Violation::from).collect();
    let last = wanted.next().and(violations.last());
    let next = last.map(|last| cursor::write(last.key));
    Json(Page { violations, coverage: snapshot.coverage, next }).into_response()
}
