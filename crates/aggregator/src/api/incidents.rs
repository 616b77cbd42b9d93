//! `/api/v1/incidents`, `/api/v1/exemptions`, `/api/v1/enforcement`: what is kept. Every replica answers the same.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use procscan_core::policy::{Mode, Withheld};
use procscan_core::state::incident::AppRef;
use procscan_core::state::{Incident, IncidentState, IncidentStatus};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Api;
use super::problem::Problem;
use crate::state::{KeptIncident, UnreadExemption};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    namespace: Option<String>,
    name: Option<String>,
    state: Option<IncidentState>,
}

#[derive(Serialize)]
struct Incidents {
    incidents: Vec<Shown>,
    total: usize,
}

/// An incident as it is shown: the App, and what was decided of it.
#[derive(Serialize)]
pub(super) struct Shown {
    name: String,
    app: AppRef,
    #[serde(flatten)]
    status: IncidentStatus,
}

impl From<Incident> for Shown {
    fn from(incident: Incident) -> Self {
        Self { name: incident.name, app: incident.spec.app, status: incident.status }
    }
}

/// The latest first.
pub(super) async fn incidents(
    State(api): State<Api>,
    filter: Result<Query<Filter>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let filter = match filter {
        Ok(Query(filter)) => filter,
        Err(error) => return Problem::new(StatusCode::BAD_REQUEST, error.body_text()).into_response(),
    };
    let kept = api.views.kept.borrow().clone();
    let is_wanted = |incident: &KeptIncident| {
        let Filter { namespace, name, state } = &filter;
        let app = &incident.app;
        namespace.as_ref().is_none_or(|namespace| **namespace == *app.namespace)
            && name.as_ref().is_none_or(|name| **name == *app.name)
            && state.is_none_or(|state| incident.brief().is_some_and(|brief| brief.state == state))
    };
    let wanted = kept.incidents.iter().filter(|(_, incident)| is_wanted(incident));
    let mut incidents: Vec<Incident> = wanted.filter_map(|(name, incident)| incident.legible(name)).collect();
    incidents.sort_by(|a, b| (b.status.opened, &a.name).cmp(&(a.status.opened, &b.name)));
    let total = incidents.len();
    Json(Incidents { incidents: incidents.into_iter().map(Shown::from).collect(), total }).into_response()
}

pub(super) async fn incident(State(api): State<Api>, Path(name): Path<String>) -> Response {
    let kept = api.views.kept.borrow().clone();
    match kept.incidents.get(&*name).map(|incident| incident.document(&name)).transpose() {
        Ok(Some(Some(incident))) => Json(Shown::from(incident)).into_response(),
        Ok(_) => Problem::new(StatusCode::NOT_FOUND, "there is no incident of that name").into_response(),
        Err(error) => {
            let detail = format!("the incident can't be unpacked: {error}");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail).into_response()
        }
    }
}

#[derive(Serialize)]
struct Exemptions {
    exemptions: Vec<Exemption>,
    /// Exemptions that have no effect until they are confirmed, including those of the configuration. Only the leader
    /// knows them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    withheld: Vec<Withheld>,
}

#[derive(Serialize)]
struct Exemption {
    name: String,
    #[serde(flatten)]
    spec: Value,
    /// What is wrong with it, or why it covers nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Those that operators have declared at run time; those of the configuration are not among them.
pub(super) async fn exemptions(State(api): State<Api>) -> Response {
    let kept = api.views.kept.borrow().clone();
    let now = Timestamp::now();
    let unread = &kept.unread.exemptions;
    let withheld = api.views.decided.borrow().withheld.clone();
    let why_withheld = |name: &str| {
        let place = format!("Exemption {name}");
        withheld.iter().find(|withheld| withheld.place == place).map(|withheld| withheld.reason.clone())
    };
    let mut exemptions: Vec<Exemption> = Vec::new();
    for (name, spec) in kept.exemptions.iter().filter(|(name, _)| !unread.contains_key(*name)) {
        let over = spec.until.filter(|until| *until <= now).map(|until| format!("it was over at {until}"));
        let error = spec.rule().err().map(|error| error.to_string()).or(over).or_else(|| why_withheld(name));
        exemptions.push(Exemption { name: name.clone(), spec: json!(spec), error });
    }
    for (name, UnreadExemption { error, spec }) in unread {
        let then = if kept.exemptions.contains_key(name) {
            "the last version that could be read counts"
        } else {
            "nothing new is blocked that it may cover"
        };
        let (name, error) = (name.clone(), Some(format!("{error}; {then}")));
        exemptions.push(Exemption { name, spec: spec.clone(), error });
    }
    exemptions.sort_by(|a, b| a.name.cmp(&b.name));
    Json(Exemptions { exemptions, withheld }).into_response()
}

#[derive(Serialize)]
struct Enforcement {
    /// What counts.
    mode: Mode,
    /// What operators say at run time; nothing if the configuration counts.
    operators: Option<Mode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
}

pub(super) async fn enforcement(State(api): State<Api>) -> Response {
    let said = api.views.kept.borrow().enforcement.clone();
    let mode = said.mode.unwrap_or(api.views.configured_mode);
    let shown = Enforcement { mode, operators: said.mode, reason: said.reason, by: said.by };
    Json(shown).into_response()
}
