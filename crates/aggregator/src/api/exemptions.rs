//! `/api/v1/exemptions` and `/api/v1/enforcement`: what operators have declared.

use std::cmp::Ordering;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use procscan_core::policy::Withheld;
use procscan_core::state::{EnforcementSpec, ExemptionSpec};

use super::Api;
use super::page::Page;
use super::parameters::{CURSOR, Given, LIMIT, NAMESPACE, Order, Pairs, Parameter, name, sort, sought};
use super::path::Name;
use super::problem::Problem;
use super::reader::{Reader, Reading};
use super::sort::{Paging, Place, SortValue};
use super::types::{self, Enforcement, Exemption, ExemptionState, Mode};
use crate::decided::Decided;
use crate::kubernetes::WritePermit;
use crate::state::{PersistedState, UnreadExemption};

/// The parameters of the list of exemptions.
pub(super) const PARAMETERS: &[Parameter] = &[
    Parameter { about: "Only exemptions of exactly this namespace.", ..NAMESPACE },
    name("state", &["in_force", "withheld", "over", "unreadable"], "Only exemptions in this state."),
    sought("Only exemptions with this text in their name or their reason, in upper or lower case."),
    sort(&["name"]),
    LIMIT,
    CURSOR,
];

/// The parameters of one exemption.
pub(super) const ONE: &[Parameter] =
    &[Parameter { about: "Only an exemption of exactly this namespace.", ..NAMESPACE }];

struct Filter {
    reader: Reader,
    state: Option<&'static str>,
    sought: Option<regex::Regex>,
    paging: Paging,
}

impl Filter {
    fn of(reader: Reader, given: &Given) -> Result<Self, Problem> {
        let paging = Paging::of(given, Order::of("name", false))?;
        Ok(Self { reader, state: given.name("state"), sought: given.sought(), paging })
    }

    fn wants(&self, exemption: &Exemption) -> bool {
        let reason = exemption.spec.get("reason").and_then(|reason| reason.as_str()).unwrap_or_default();
        sees(&self.reader, exemption)
            && self.state.is_none_or(|state| exemption.state.is_some_and(|it| it.name() == state))
            && self
                .sought
                .as_ref()
                .is_none_or(|sought| sought.is_match(&exemption.name) || sought.is_match(reason))
    }

    fn wants_withheld(&self, withheld: &Withheld) -> bool {
        // The reason counts the tenants that would be opened.
        self.reader.namespace().is_none()
            && self.state.is_none_or(|state| state == ExemptionState::Withheld.name())
            && self
                .sought
                .as_ref()
                .is_none_or(|sought| sought.is_match(&withheld.place) || sought.is_match(&withheld.reason))
    }
}

/// Whether the reader may see an exemption. One that may cover Apps of several namespaces tells of them all.
fn sees(reader: &Reader, exemption: &Exemption) -> bool {
    let namespace = exemption.spec.pointer("/namespace/exact").and_then(|namespace| namespace.as_str());
    reader.namespace().is_none() || namespace.is_some_and(|namespace| reader.sees(namespace))
}

/// The exemptions that operators have declared at run time. Those of the configuration are not listed unless they are withheld.
pub(super) async fn exemptions(
    State(api): State<Api>,
    headers: HeaderMap,
    query: Pairs,
) -> Result<Response, Problem> {
    let (reader, given) = api.reader(&headers, Reading::List, query, PARAMETERS).await?;
    let filter = Filter::of(reader, &given)?;
    let turn = api.turn().await?;
    let (persisted, decided) = (api.views.persisted.borrow().clone(), api.decided_by_leader());
    Ok(api.make(turn, move || page(&persisted, decided.as_deref(), &filter)).await)
}

/// One of them.
pub(super) async fn exemption(
    State(api): State<Api>,
    Name(name): Name,
    headers: HeaderMap,
    query: Pairs,
) -> Result<Response, Problem> {
    let (reader, _) = api.reader(&headers, Reading::Get, query, ONE).await?;
    let (persisted, decided) = (api.views.persisted.borrow().clone(), api.decided_by_leader());
    let all = shown(&persisted, decided.as_deref().map(|decided| &*decided.withheld));
    let found = all.into_iter().find(|exemption| exemption.name == name && sees(&reader, exemption));
    let found =
        found.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "there is no exemption of that name"))?;
    Ok(Json(masked(&reader, found)).into_response())
}

impl Api {
    /// The decisions, if this replica leads: only the leader knows which exemptions are withheld, those of the configuration
    /// included.
    fn decided_by_leader(&self) -> Option<std::sync::Arc<Decided>> {
        let leads = self.views.leadership.borrow().permit().is_some_and(WritePermit::holds);
        leads.then(|| self.views.decided.borrow().clone())
    }
}

/// Without what counts the Apps of other tenants.
fn masked(reader: &Reader, exemption: Exemption) -> Exemption {
    if reader.namespace().is_none() || exemption.state != Some(ExemptionState::Withheld) {
        return exemption;
    }
    Exemption { error: Some("it is withheld until an operator confirms it".to_owned()), ..exemption }
}

/// The place of an entry: the exemptions come first, by name, then the withheld ones, by their place in the list. In the
/// reverse order the withheld ones come first.
fn place(list: usize, name: impl Into<SortValue>) -> Place {
    Place(vec![list.into(), name.into()])
}

/// `decided` is `None` if this replica does not lead.
fn page(
    persisted: &PersistedState,
    decided: Option<&Decided>,
    filter: &Filter,
) -> serde_json::Result<Vec<u8>> {
    let paging = &filter.paging;
    let withheld: Option<&[Withheld]> = decided.map(|decided| &*decided.withheld);
    let mut exemptions: Vec<(Place, Exemption)> = shown(persisted, withheld)
        .into_iter()
        .filter(|exemption| filter.wants(exemption))
        .map(|exemption| (place(0, &*exemption.name), masked(&filter.reader, exemption)))
        .filter(|(place, _)| paging.is_new(place))
        .collect();
    let listed = withheld.unwrap_or_default().iter().enumerate();
    let mut listed: Vec<(Place, types::Withheld)> = listed
        .filter(|(_, withheld)| filter.wants_withheld(withheld))
        .map(|(index, withheld)| (place(1, index), types::Withheld::from(withheld)))
        .filter(|(place, _)| paging.is_new(place))
        .collect();
    let mut page = Page::new(paging.limit);
    let is_known = withheld.is_some() && filter.reader.namespace().is_none();
    if paging.order.is_descending {
        exemptions.sort_by(|(a, _), (b, _)| Ordering::reverse(a.cmp(b)));
        listed.reverse();
        withheld_member(&mut page, paging, is_known, listed)?;
        page.placed("exemptions", paging, exemptions)?;
    } else {
        page.placed("exemptions", paging, exemptions)?;
        withheld_member(&mut page, paging, is_known, listed)?;
    }
    page.end()
}

fn withheld_member(
    page: &mut Page,
    paging: &Paging,
    is_known: bool,
    listed: Vec<(Place, types::Withheld)>,
) -> serde_json::Result<()> {
    if is_known { page.placed("withheld", paging, listed).map(drop) } else { page.member("withheld", &()) }
}

fn shown(persisted: &PersistedState, withheld: Option<&[Withheld]>) -> Vec<Exemption> {
    let now = Timestamp::now();
    let unread = &persisted.unread.exemptions;
    let readable = persisted.exemptions.iter().filter(|(name, _)| !unread.contains_key(*name));
    let mut exemptions: Vec<Exemption> =
        readable.map(|(name, spec)| shown_exemption(name, spec, withheld, now)).collect();
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

fn shown_exemption(
    name: &str,
    spec: &ExemptionSpec,
    withheld: Option<&[Withheld]>,
    now: Timestamp,
) -> Exemption {
    let place = format!("Exemption {name}");
    let why_withheld = withheld.into_iter().flatten().find(|withheld| withheld.place == place);
    let (state, error) = if let Err(error) = spec.rule() {
        (Some(ExemptionState::Unreadable), Some(error.to_string()))
    } else if let Some(until) = spec.until.filter(|until| *until <= now) {
        (Some(ExemptionState::Over), Some(format!("its date has passed: {until}")))
    } else if let Some(withheld) = why_withheld {
        (Some(ExemptionState::Withheld), Some(withheld.reason.clone()))
    } else {
        (withheld.map(|_| ExemptionState::InForce), None)
    };
    Exemption::new(name.to_owned(), spec, state, error)
}

/// The mode in force. It takes no parameters.
pub(super) async fn enforcement(
    State(api): State<Api>,
    headers: HeaderMap,
    query: Pairs,
) -> Result<Response, Problem> {
    api.reader(&headers, Reading::Get, query, &[]).await?;
    let EnforcementSpec { mode: operators, reason, by } = api.views.persisted.borrow().enforcement.clone();
    let mode = api.views.mode().into();
    let shown = Enforcement { mode, operators: operators.map(Mode::from), reason, by };
    Ok(Json(shown).into_response())
}
