//! `/api/v1/incidents`, `/api/v1/exemptions`, `/api/v1/enforcement`: what is kept. Every replica answers the same.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use procscan_core::policy::{Mode, Withheld};
use procscan_core::state::incident::AppRef;
use procscan_core::state::{Incident, IncidentState, IncidentStatus};
use serde::de::value::{Error as ValueError, StrDeserializer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Api;
use super::problem::Problem;
use super::query::{LABEL, NoParameters, Parameters, TEXT, label, set, set_word, text, unknown};
use crate::leader::Pen;
use crate::state::{KeptIncident, UnreadExemption};
use crate::words::STATES;

/// The parameters, as they are named in the refusal of another one.
const PARAMETERS: &str = "namespace, name, state";

/// What the query says. Everything that is given must hold.
#[derive(Default)]
struct Filter {
    namespace: Option<String>,
    name: Option<String>,
    state: Option<IncidentState>,
}

impl Filter {
    fn of(query: Vec<(String, String)>) -> Result<Self, Problem> {
        let (mut filter, mut state) = (Self::default(), None);
        for (parameter, value) in query {
            let (name, value) = (parameter.as_str(), value.as_str());
            match name {
                "namespace" => set(&mut filter.namespace, name, value, LABEL, label),
                "name" => set(&mut filter.name, name, value, TEXT, text),
                "state" => set_word(&mut state, name, value, &STATES),
                _ => Err(unknown(name, value, PARAMETERS)),
            }?;
        }
        let word =
            |word: &'static str| IncidentState::deserialize(StrDeserializer::<ValueError>::new(word)).ok();
        filter.state = state.and_then(word);
        Ok(filter)
    }
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
    Parameters(query): Parameters,
) -> Result<Response, Problem> {
    let filter = Filter::of(query)?;
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
    Ok(Json(Incidents { incidents: incidents.into_iter().map(Shown::from).collect(), total }).into_response())
}

pub(super) async fn incident(State(api): State<Api>, Path(name): Path<String>, _: NoParameters) -> Response {
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
    /// Exemptions that have no effect until they are confirmed, including those of the configuration. `None` if this
    /// replica does not lead: only the leader knows them.
    withheld: Option<Vec<Withheld>>,
}

#[derive(Serialize)]
struct Exemption {
    name: String,
    #[serde(flatten)]
    spec: Value,
    /// Whether it has an effect; left out where only the leader knows whether it is withheld.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<Effect>,
    /// What is wrong with it, or why it covers nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Whether an exemption has an effect.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Effect {
    InForce,
    /// It would open more tenants than it may, and is not confirmed.
    Withheld,
    /// Its time is over.
    Over,
    /// It has a mistake.
    Unreadable,
}

/// Those that operators have declared at run time; those of the configuration are not among them.
pub(super) async fn exemptions(State(api): State<Api>, _: NoParameters) -> Response {
    let kept = api.views.kept.borrow().clone();
    let now = Timestamp::now();
    let unread = &kept.unread.exemptions;
    let leads = api.views.leadership.borrow().pen().is_some_and(Pen::holds);
    let withheld = leads.then(|| api.views.decided.borrow().withheld.clone());
    let why_withheld = |name: &str| {
        let place = format!("Exemption {name}");
        withheld
            .iter()
            .flatten()
            .find(|withheld| withheld.place == place)
            .map(|withheld| withheld.reason.clone())
    };
    let in_force = leads.then_some(Effect::InForce);
    let mut exemptions: Vec<Exemption> = Vec::new();
    for (name, spec) in kept.exemptions.iter().filter(|(name, _)| !unread.contains_key(*name)) {
        let (state, error) = if let Err(error) = spec.rule() {
            (Some(Effect::Unreadable), Some(error.to_string()))
        } else if let Some(until) = spec.until.filter(|until| *until <= now) {
            (Some(Effect::Over), Some(format!("it was over at {until}")))
        } else if let Some(why) = why_withheld(name) {
            (Some(Effect::Withheld), Some(why))
        } else {
            (in_force, None)
        };
        exemptions.push(Exemption { name: name.clone(), spec: json!(spec), state, error });
    }
    for (name, UnreadExemption { error, spec }) in unread {
        let then = if kept.exemptions.contains_key(name) {
            "the last version that could be read counts"
        } else {
            "nothing new is blocked that it may cover"
        };
        let (name, error) = (name.clone(), Some(format!("{error}; {then}")));
        exemptions.push(Exemption { name, spec: spec.clone(), state: Some(Effect::Unreadable), error });
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

pub(super) async fn enforcement(State(api): State<Api>, _: NoParameters) -> Response {
    let said = api.views.kept.borrow().enforcement.clone();
    let shown = Enforcement { mode: api.mode(), operators: said.mode, reason: said.reason, by: said.by };
    Json(shown).into_response()
}
