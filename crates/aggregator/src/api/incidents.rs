//! `/api/v1/incidents`, `/api/v1/exemptions`, `/api/v1/enforcement`: what is kept. Every replica answers the same.

use std::cmp::Reverse;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use procscan_core::decision::Mode;
use procscan_core::names::Text;
use procscan_core::policy::Withheld;
use procscan_core::state::incident::AppRef;
use procscan_core::state::{Incident, IncidentState, IncidentStatus};
use serde::de::value::{Error as ValueError, StrDeserializer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Api;
use super::page::{Page, Paging};
use super::problem::Problem;
use super::query::{
    EXPECTED_LABEL, EXPECTED_TEXT, NoParameters, Parameters, label, set, set_word, text, unknown,
};
use crate::leader::WritePermit;
use crate::policy_task::Decided;
use crate::state::persisted_state::IncidentSummary;
use crate::state::{IncidentEntry, PersistedState, UnreadExemption};
use crate::wire_names::STATES;

/// The parameters, as they are named in the refusal of another one.
const PARAMETERS: &str = "namespace, name, state, limit, cursor";

/// Where an incident is in the list: the latest first, and those of one time by name.
type Place = (Reverse<Timestamp>, Text);

/// What the query says. Everything that is given must hold.
#[derive(Default)]
struct Filter {
    namespace: Option<String>,
    name: Option<String>,
    state: Option<IncidentState>,
    paging: Paging<Place>,
}

impl Filter {
    fn of(query: Vec<(String, String)>) -> Result<Self, Problem> {
        let (mut filter, mut state) = (Self::default(), None);
        for (parameter, value) in query {
            let (name, value) = (parameter.as_str(), value.as_str());
            match name {
                "namespace" => set(&mut filter.namespace, name, value, EXPECTED_LABEL, label),
                "name" => set(&mut filter.name, name, value, EXPECTED_TEXT, text),
                "state" => set_word(&mut state, name, value, &STATES),
                _ => {
                    let paged = filter.paging.take(name, value);
                    paged.unwrap_or_else(|| Err(unknown(name, value, PARAMETERS)))
                }
            }?;
        }
        let word =
            |word: &'static str| IncidentState::deserialize(StrDeserializer::<ValueError>::new(word)).ok();
        filter.state = state.and_then(word);
        Ok(filter)
    }

    fn wants(&self, incident: &IncidentEntry, brief: &IncidentSummary) -> bool {
        let app = &incident.app;
        self.namespace.as_ref().is_none_or(|namespace| **namespace == *app.namespace)
            && self.name.as_ref().is_none_or(|name| **name == *app.name)
            && self.state.is_none_or(|state| brief.state == state)
    }
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
    let turn = api.turn().await?;
    let kept = api.views.persisted.borrow().clone();
    Ok(api.make(turn, move || page(&kept, &filter)).await)
}

fn page(kept: &PersistedState, filter: &Filter) -> serde_json::Result<Vec<u8>> {
    let place = |name: &Text, brief: &IncidentSummary| (Reverse(brief.opened.get()), name.clone());
    let mut wanted: Vec<(Place, &IncidentEntry)> = Vec::new();
    let mut total = 0_usize;
    for (name, incident) in &kept.incidents {
        let Some(brief) = incident.summary().filter(|brief| filter.wants(incident, brief)) else { continue };
        total += 1;
        let place = place(name, brief);
        if filter.paging.after.as_ref().is_none_or(|last| place > *last) {
            wanted.push((place, incident));
        }
    }
    wanted.sort_by(|(a, _), (b, _)| a.cmp(b));
    // Only those of the page are unpacked.
    let shown = wanted.into_iter().filter_map(|(place, incident)| {
        let shown = Shown::from(incident.readable_document(&place.1)?);
        Some(Listed { place, shown })
    });
    let mut page = Page::new(filter.paging.limit());
    page.list("incidents", shown, |listed| listed.place.clone())?;
    page.member("total", &total)?;
    page.end()
}

#[derive(Serialize)]
#[serde(transparent)]
struct Listed {
    #[serde(skip)]
    place: Place,
    shown: Shown,
}

pub(super) async fn incident(
    State(api): State<Api>,
    Path(name): Path<String>,
    _: NoParameters,
) -> Result<Response, Problem> {
    api.find_room()?;
    let kept = api.views.persisted.borrow().clone();
    match kept.incidents.get(&*name).map(|incident| incident.document(&name)).transpose() {
        Ok(Some(Some(incident))) => Ok(api.make_small(serde_json::to_vec(&Shown::from(incident)))),
        Ok(_) => Err(Problem::new(StatusCode::NOT_FOUND, "there is no incident of that name")),
        Err(error) => {
            let detail = format!("the incident can't be unpacked: {error}");
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail))
        }
    }
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

/// Where an entry is: the exemptions come first, by name, then those that are withheld, by their place in the list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ExemptionPlace {
    Exemption(String),
    Withheld(usize),
}

/// Those that operators have declared at run time; those of the configuration are not among them.
pub(super) async fn exemptions(
    State(api): State<Api>,
    Parameters(query): Parameters,
) -> Result<Response, Problem> {
    let paging = Paging::of(query)?;
    let turn = api.turn().await?;
    let kept = api.views.persisted.borrow().clone();
    let leads = api.views.leadership.borrow().permit().is_some_and(WritePermit::holds);
    let decided = leads.then(|| api.views.decided.borrow().clone());
    Ok(api.make(turn, move || page_of_exemptions(&kept, decided.as_deref(), &paging)).await)
}

/// `decided` is nothing if this replica does not lead: only the leader knows which exemptions are withheld, those of the
/// configuration included.
fn page_of_exemptions(
    kept: &PersistedState,
    decided: Option<&Decided>,
    paging: &Paging<ExemptionPlace>,
) -> serde_json::Result<Vec<u8>> {
    let is_new = |place: ExemptionPlace| paging.after.as_ref().is_none_or(|last| place > *last);
    let withheld: Option<&[Withheld]> = decided.map(|decided| &*decided.withheld);
    let exemptions = shown_exemptions(kept, withheld);
    let exemptions = exemptions.iter().filter(|it| is_new(ExemptionPlace::Exemption(it.name.clone())));
    let mut page = Page::new(paging.limit());
    page.list("exemptions", exemptions, |it| ExemptionPlace::Exemption(it.name.clone()))?;
    match withheld {
        None => page.member("withheld", &())?,
        Some(withheld) => {
            let withheld = withheld.iter().enumerate().map(|(index, withheld)| Indexed { index, withheld });
            let withheld = withheld.filter(|it| is_new(ExemptionPlace::Withheld(it.index)));
            page.list("withheld", withheld, |it| ExemptionPlace::Withheld(it.index))?;
        }
    }
    page.end()
}

#[derive(Serialize)]
#[serde(transparent)]
struct Indexed<'a> {
    #[serde(skip)]
    index: usize,
    withheld: &'a Withheld,
}

fn shown_exemptions(kept: &PersistedState, withheld: Option<&[Withheld]>) -> Vec<Exemption> {
    let now = Timestamp::now();
    let unread = &kept.unread.exemptions;
    let why_withheld = |name: &str| {
        let place = format!("Exemption {name}");
        withheld
            .into_iter()
            .flat_map(|withheld| withheld.iter())
            .find(|withheld| withheld.place == place)
            .map(|withheld| withheld.reason.clone())
    };
    let in_force = withheld.map(|_| Effect::InForce);
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
    exemptions
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
    let said = api.views.persisted.borrow().enforcement.clone();
    let shown =
        Enforcement { mode: api.views.mode(), operators: said.mode, reason: said.reason, by: said.by };
    Json(shown).into_response()
}
