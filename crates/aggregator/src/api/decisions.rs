//! `/api/v1/decisions`: who decided what, when, why, and on what evidence.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use procscan_core::names::Text;
use procscan_core::state::Declaration;
use procscan_core::state::incident::{AppRef, Decision, LoggedKind};
use serde::{Deserialize, Serialize};

use super::Api;
use super::problem::Problem;
use super::query::{self, LABEL, Parameters, TEXT, TIME, label, limit, set, set_word, text, time, unknown};
use crate::state::{DecisionFilter, LoggedDecision};
use crate::words::DECISIONS;

/// The parameters, as they are named in the refusal of another one.
const PARAMETERS: &str = "namespace, name, decision, actor, since, until, limit";
/// How many are shown without a `limit`.
const LIMIT: usize = 100;
/// How many of the log are looked at, the latest first.
const MAX_LOGGED: usize = 10_000;

/// What the query says. Everything that is given must hold.
#[derive(Default)]
struct Filter {
    namespace: Option<String>,
    name: Option<String>,
    /// One of [`DECISIONS`].
    decision: Option<&'static str>,
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
    /// Nothing where an operator has declared something for more than one App.
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<AppRef>,
    decision: LoggedKind,
    actor: Text,
    reason: Text,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
    /// The incident that it is kept with; nothing if it belongs to none, and then only the leader knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    incident: Option<String>,
    /// The mode that was declared, if one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<Text>,
    /// The name of the exemption that was made or taken back.
    #[serde(skip_serializing_if = "Option::is_none")]
    exemption: Option<Text>,
}

/// An entry of the log beside the incidents.
#[derive(Deserialize)]
#[serde(untagged)]
enum Logged {
    OfApp { incident: String, app: AppRef, decision: Decision },
    OfAll(Declaration),
}

impl Entry {
    fn kept(incident: String, app: AppRef, Decision { at, decision, actor, reason }: Decision) -> Self {
        let (app, incident) = (Some(app), Some(incident));
        Self { at, app, decision, actor, reason, dry_run: false, incident, mode: None, exemption: None }
    }

    fn declared(Declaration { at, decision, mode, exemption, actor, reason }: Declaration) -> Self {
        let decision = LoggedKind::Other(decision.as_str().into());
        Self { at, app: None, decision, actor, reason, dry_run: false, incident: None, mode, exemption }
    }
}

/// The latest first.
pub(super) async fn decisions(
    State(api): State<Api>,
    Parameters(query): Parameters,
) -> Result<Response, Problem> {
    let filter = Filter::of(query)?;
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
    let limit = filter.limit.unwrap_or(LIMIT);
    let more = all.len().saturating_sub(limit);
    all.truncate(limit);
    Ok(Json(Decisions { decisions: all, more }).into_response())
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
        match serde_json::from_str(&logged.body) {
            Ok(Logged::OfApp { incident, app, decision }) => {
                if known.insert((decision.at, app.clone(), decision.decision.clone())) {
                    all.push(Entry::kept(incident, app, decision));
                }
            }
            Ok(Logged::OfAll(declaration)) => all.push(Entry::declared(declaration)),
            // Another version wrote it.
            Err(_) => {}
        }
    }
    all.extend(kept.declared.all().cloned().map(Entry::declared));
    // What belongs to no incident, what was made in dry-run, and what an incident has had to let go.
    let of_journal = api.views.journal.last().into_iter().map(|decision| Entry {
        at: decision.at,
        app: Some(AppRef::from(&decision.app)),
        decision: decision.kind.into(),
        actor: decision.actor.name(),
        reason: decision.reason,
        dry_run: decision.dry_run,
        incident: None,
        mode: None,
        exemption: None,
    });
    let is_new = |entry: &Entry| {
        let is_known = |app: &AppRef| known.contains(&(entry.at, app.clone(), entry.decision.clone()));
        entry.dry_run || !entry.app.as_ref().is_some_and(is_known)
    };
    all.extend(of_journal.filter(is_new));
    all
}

impl Filter {
    fn of(query: Vec<(String, String)>) -> Result<Self, Problem> {
        let mut filter = Self::default();
        for (parameter, value) in query {
            let (name, value) = (parameter.as_str(), value.as_str());
            match name {
                "namespace" => set(&mut filter.namespace, name, value, LABEL, label),
                "name" => set(&mut filter.name, name, value, TEXT, text),
                "decision" => set_word(&mut filter.decision, name, value, &DECISIONS),
                "actor" => set(&mut filter.actor, name, value, TEXT, text),
                "since" => set(&mut filter.since, name, value, TIME, time),
                "until" => set(&mut filter.until, name, value, TIME, time),
                "limit" => set(&mut filter.limit, name, value, query::LIMIT, limit),
                _ => Err(unknown(name, value, PARAMETERS)),
            }?;
        }
        Ok(filter)
    }

    fn wants(&self, entry: &Entry) -> bool {
        let is_app = |is_it: &dyn Fn(&AppRef) -> bool| entry.app.as_ref().is_some_and(is_it);
        self.namespace.as_ref().is_none_or(|wanted| is_app(&|app| **wanted == *app.namespace))
            && self.name.as_ref().is_none_or(|wanted| is_app(&|app| **wanted == *app.name))
            && self.decision.is_none_or(|wanted| entry.decision.as_str() == wanted)
            && self.actor.as_ref().is_none_or(|wanted| **wanted == *entry.actor)
            && self.since.is_none_or(|since| entry.at >= since)
            && self.until.is_none_or(|until| entry.at < until)
    }
}
