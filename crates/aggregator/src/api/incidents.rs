//! `/api/v1/incidents`, `/api/v1/exemptions`, `/api/v1/enforcement`: the persisted state. Every replica gives the same answer.

use std::cmp::Reverse;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use procscan_core::names::Text;
use procscan_core::policy::Withheld;
use procscan_core::state::EnforcementSpec;
use serde::{Deserialize, Serialize};

use super::Api;
use super::page::{Page, Paging};
use super::problem::Problem;
use super::query::{
    EXPECTED_LABEL, EXPECTED_TEXT, NoParameters, Parameters, label, set, set_name, text, unknown,
};
use super::types::{self, Enforcement, Exemption, ExemptionState, Incident, IncidentState, Mode};
use crate::decided::Decided;
use crate::kubernetes::WritePermit;
use crate::state::persisted_state::IncidentSummary;
use crate::state::{IncidentEntry, PersistedState, UnreadExemption};
use crate::wire_names::STATES;

/// The parameters, as they are named in the refusal of another one.
const PARAMETERS: &str = "namespace, name, state, limit, cursor";

/// The place of an incident in the list: the latest first, and those of one time by name.
type Place = (Reverse<Timestamp>, Text);

/// The filters of a query. All that are given must hold.
#[derive(Default)]
struct Filter {
    namespace: Option<String>,
    name: Option<String>,
    /// One of [`STATES`].
    state: Option<&'static str>,
    paging: Paging<Place>,
}

impl Filter {
    fn of(query: Vec<(String, String)>) -> Result<Self, Problem> {
        let mut filter = Self::default();
        for (parameter, value) in query {
            let (name, value) = (parameter.as_str(), value.as_str());
            match name {
                "namespace" => set(&mut filter.namespace, name, value, EXPECTED_LABEL, label),
                "name" => set(&mut filter.name, name, value, EXPECTED_TEXT, text),
                "state" => set_name(&mut filter.state, name, value, &STATES),
                _ => {
                    let paged = filter.paging.take(name, value);
                    paged.unwrap_or_else(|| Err(unknown(name, value, PARAMETERS)))
                }
            }?;
        }
        Ok(filter)
    }

    fn wants(&self, incident: &IncidentEntry, brief: &IncidentSummary) -> bool {
        let app = &incident.app;
        self.namespace.as_ref().is_none_or(|namespace| **namespace == *app.namespace)
            && self.name.as_ref().is_none_or(|name| **name == *app.name)
            && self.state.is_none_or(|state| IncidentState::from(brief.state).name() == state)
    }
}

/// The latest first.
pub(super) async fn incidents(
    State(api): State<Api>,
    Parameters(query): Parameters,
) -> Result<Response, Problem> {
    let filter = Filter::of(query)?;
    let turn = api.turn().await?;
    let persisted = api.views.persisted.borrow().clone();
    Ok(api.make(turn, move || page(&persisted, &filter)).await)
}

fn page(persisted: &PersistedState, filter: &Filter) -> serde_json::Result<Vec<u8>> {
    let place = |name: &Text, brief: &IncidentSummary| (Reverse(brief.opened.get()), name.clone());
    let mut wanted: Vec<(Place, &IncidentEntry)> = Vec::new();
    let mut total = 0_usize;
    for (name, incident) in &persisted.incidents {
        let Some(brief) = incident.summary().filter(|brief| filter.wants(incident, brief)) else { continue };
        total += 1;
        let place = place(name, brief);
        if filter.paging.after.as_ref().is_none_or(|last| place > *last) {
            wanted.push((place, incident));
        }
    }
    wanted.sort_by(|(a, _), (b, _)| a.cmp(b));
    // Only the incidents of the page are decompressed.
    let shown = wanted.into_iter().filter_map(|(place, incident)| {
        let shown = Incident::from(incident.readable_document(&place.1)?);
        Some(Placed { place, shown })
    });
    let mut page = Page::new(filter.paging.limit());
    page.list("incidents", shown, |incident| incident.place.clone())?;
    page.member("total", &total)?;
    page.end()
}

/// An entry of a page with its place.
#[derive(Serialize)]
#[serde(transparent)]
struct Placed<P, T> {
    #[serde(skip)]
    place: P,
    shown: T,
}

pub(super) async fn incident(
    State(api): State<Api>,
    Path(name): Path<String>,
    _: NoParameters,
) -> Result<Response, Problem> {
    api.find_room()?;
    let persisted = api.views.persisted.borrow().clone();
    match persisted.incidents.get(&*name).map(|incident| incident.document(&name)).transpose() {
        Ok(Some(Some(incident))) => Ok(api.make_small(serde_json::to_vec(&Incident::from(incident)))),
        Ok(_) => Err(Problem::new(StatusCode::NOT_FOUND, "there is no incident of that name")),
        Err(error) => {
            let detail = format!("the incident can't be decompressed: {error}");
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail))
        }
    }
}

/// The place of an entry: the exemptions come first, by name, then the withheld ones, by their place in the list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ExemptionPlace {
    Exemption(String),
    Withheld(usize),
}

/// The exemptions that operators have declared at run time. Those of the configuration are not listed unless they are withheld.
pub(super) async fn exemptions(
    State(api): State<Api>,
    Parameters(query): Parameters,
) -> Result<Response, Problem> {
    let paging = Paging::of(query)?;
    let turn = api.turn().await?;
    let persisted = api.views.persisted.borrow().clone();
    let leads = api.views.leadership.borrow().permit().is_some_and(WritePermit::holds);
    let decided = leads.then(|| api.views.decided.borrow().clone());
    Ok(api.make(turn, move || page_of_exemptions(&persisted, decided.as_deref(), &paging)).await)
}

/// `decided` is `None` if this replica does not lead: only the leader knows which exemptions are withheld, those of the configuration
/// included.
fn page_of_exemptions(
    persisted: &PersistedState,
    decided: Option<&Decided>,
    paging: &Paging<ExemptionPlace>,
) -> serde_json::Result<Vec<u8>> {
    let is_new = |place: ExemptionPlace| paging.after.as_ref().is_none_or(|last| place > *last);
    let withheld: Option<&[Withheld]> = decided.map(|decided| &*decided.withheld);
    let exemptions = shown_exemptions(persisted, withheld);
    let exemptions = exemptions.iter().filter(|it| is_new(ExemptionPlace::Exemption(it.name.clone())));
    let mut page = Page::new(paging.limit());
    page.list("exemptions", exemptions, |it| ExemptionPlace::Exemption(it.name.clone()))?;
    match withheld {
        None => page.member("withheld", &())?,
        Some(withheld) => {
            let placed = |(index, withheld)| Placed {
                place: ExemptionPlace::Withheld(index),
                shown: types::Withheld::from(withheld),
            };
            let withheld = withheld.iter().enumerate().map(placed);
            let withheld = withheld.filter(|withheld| is_new(withheld.place.clone()));
            page.list("withheld", withheld, |withheld| withheld.place.clone())?;
        }
    }
    page.end()
}

fn shown_exemptions(persisted: &PersistedState, withheld: Option<&[Withheld]>) -> Vec<Exemption> {
    let now = Timestamp::now();
    let unread = &persisted.unread.exemptions;
    let why_withheld = |name: &str| {
        let place = format!("Exemption {name}");
        withheld
            .into_iter()
            .flat_map(|withheld| withheld.iter())
            .find(|withheld| withheld.place == place)
            .map(|withheld| withheld.reason.clone())
    };
    let in_force = withheld.map(|_| ExemptionState::InForce);
    let mut exemptions: Vec<Exemption> = Vec::new();
    for (name, spec) in persisted.exemptions.iter().filter(|(name, _)| !unread.contains_key(*name)) {
        let (state, error) = if let Err(error) = spec.rule() {
            (Some(ExemptionState::Unreadable), Some(error.to_string()))
        } else if let Some(until) = spec.until.filter(|until| *until <= now) {
            (Some(ExemptionState::Over), Some(format!("its date has passed: {until}")))
        } else if let Some(why) = why_withheld(name) {
            (Some(ExemptionState::Withheld), Some(why))
        } else {
            (in_force, None)
        };
        exemptions.push(Exemption::new(name.clone(), spec, state, error));
    }
    for (name, UnreadExemption { error, spec }) in unread {
        let then = if persisted.exemptions.contains_key(name) {
            "the last version that could be read counts"
        } else {
            "nothing new is blocked that it may cover"
        };
        let (name, error) = (name.clone(), Some(format!("{error}; {then}")));
        exemptions.push(Exemption {
            name,
            spec: spec.clone(),
            state: Some(ExemptionState::Unreadable),
            error,
        });
    }
    exemptions.sort_by(|a, b| a.name.cmp(&b.name));
    exemptions
}

pub(super) async fn enforcement(State(api): State<Api>, _: NoParameters) -> Response {
    let EnforcementSpec { mode: operators, reason, by } = api.views.persisted.borrow().enforcement.clone();
    let mode = api.views.mode().into();
    let shown = Enforcement { mode, operators: operators.map(Mode::from), reason, by };
    Json(shown).into_response()
}
