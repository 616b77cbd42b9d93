//! `/api/v1/decisions`: who decided what, when, why, and on what evidence.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use procscan_core::names::Text;
use procscan_core::policy::DecisionKind;
use procscan_core::state::incident::{AppRef, Decision, LoggedKind};
use serde::{Deserialize, Serialize};

use super::Api;
use super::problem::Problem;
use crate::state::{DecisionFilter, LoggedDecision};

/// How many are shown if nothing is said, and at most.
const LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;
/// How many of the log are looked at, the latest first.
const MAX_LOGGED: usize = 10_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    namespace: Option<String>,
    name: Option<String>,
    decision: Option<DecisionKind>,
    actor: Option<String>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    limit: Option<usize>,
}

#[derive(Serialize)]
struct Decisions {
    decisions: Vec<Entry>,
    /// How many there are beyond those that are shown.
    more: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Entry {
    at: Timestamp,
    app: AppRef,
    decision: LoggedKind,
    actor: Text,
    reason: Text,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
    /// The incident that it is kept with; nothing if it belongs to none, and then only the leader knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    incident: Option<String>,
}

/// A decision in the log beside the incidents.
#[derive(Deserialize)]
struct Logged {
    incident: String,
    app: AppRef,
    decision: Decision,
}

impl Entry {
    fn kept(incident: String, app: AppRef, Decision { at, decision, actor, reason }: Decision) -> Self {
        Self { at, app, decision, actor, reason, dry_run: false, incident: Some(incident) }
    }
}

/// The latest first.
pub(super) async fn decisions(
    State(api): State<Api>,
    filter: Result<Query<Filter>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let filter = match filter {
        Ok(Query(filter)) => filter,
        Err(error) => return Problem::new(StatusCode::BAD_REQUEST, error.body_text()).into_response(),
    };
    let logged = api.views.desk.logged(DecisionFilter {
        namespace: filter.namespace.clone(),
        since: filter.since,
        before: filter.until,
        skip: 0,
        limit: MAX_LOGGED,
    });
    let logged = logged.await.unwrap_or_else(|error| {
        // What the incidents have is shown all the same; what is wrong with the file is told where it is written.
        tracing::warn!(%error, "the log of decisions can't be read");
        Vec::new()
    });
    let mut all: Vec<Entry> = all(&api, logged).into_iter().filter(|entry| filter.wants(entry)).collect();
    all.sort_by(|a, b| b.cmp(a));
    let limit = filter.limit.unwrap_or(LIMIT).min(MAX_LIMIT);
    let more = all.len().saturating_sub(limit);
    all.truncate(limit);
    Json(Decisions { decisions: all, more }).into_response()
}

fn all(api: &Api, logged: Vec<LoggedDecision>) -> Vec<Entry> {
    let kept = api.views.kept.borrow().clone();
    let mut all = Vec::new();
    let mut known: BTreeSet<(Timestamp, AppRef, LoggedKind)> = BTreeSet::new();
    for (name, incident) in &kept.incidents {
        let Some(incident) = incident.legible(name) else { continue };
        for decision in incident.status.decisions {
            let app = incident.spec.app.clone();
            known.insert((decision.at, app.clone(), decision.decision.clone()));
            all.push(Entry::kept(name.to_string(), app, decision));
        }
    }
    for logged in logged {
        let Ok(Logged { incident, app, decision }) = serde_json::from_str(&logged.body) else { continue };
        if known.insert((decision.at, app.clone(), decision.decision.clone())) {
            all.push(Entry::kept(incident, app, decision));
        }
    }
    // What belongs to no incident, what was made in dry-run, and what an incident has had to let go.
    let of_journal = api.views.journal.last().into_iter().map(|decision| Entry {
        at: decision.at,
        app: AppRef::from(&decision.app),
        decision: decision.kind.into(),
        actor: decision.actor.name(),
        reason: decision.reason,
        dry_run: decision.dry_run,
        incident: None,
    });
    let is_new = |entry: &Entry| {
        entry.dry_run || !known.contains(&(entry.at, entry.app.clone(), entry.decision.clone()))
    };
    all.extend(of_journal.filter(is_new));
    all
}

impl Filter {
    fn wants(&self, entry: &Entry) -> bool {
        let AppRef { namespace, name, .. } = &entry.app;
        self.namespace.as_ref().is_none_or(|wanted| **wanted == **namespace)
            && self.name.as_ref().is_none_or(|wanted| **wanted == **name)
            && self.decision.is_none_or(|wanted| entry.decision == wanted)
            && self.actor.as_ref().is_none_or(|wanted| **wanted == *entry.actor)
            && self.since.is_none_or(|since| entry.at >= since)
            && self.until.is_none_or(|until| entry.at < until)
    }
}
