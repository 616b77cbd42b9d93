//! `/api/v1/incidents` and `/api/v1/apps`: what is persisted of each App. Every replica gives the same answer.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use procscan_core::names::{App, Text};
use procscan_core::state;
use procscan_core::state::incident::AppRef;

use super::Api;
use super::page::Page;
use super::parameters::{CURSOR, Given, LIMIT, NAMESPACE, Order, Pairs, Parameter, name, sort, text};
use super::path::Name;
use super::problem::Problem;
use super::reader::Reading;
use super::sort::{Paging, Place, Selection, SortValue};
use super::types::{Incident, IncidentState, ListedApp};
use crate::state::persisted_state::IncidentSummary;
use crate::state::{IncidentEntry, PersistedState};
use crate::wire_names::STATES;

const APP_NAME: Parameter = text("name", "Only Apps with this name.");
const APP_TYPE: Parameter = text("type", "Only Apps of this type.");
const STATE: Parameter = name("state", &STATES, "Only incidents in this state.");
const PROCESS: Parameter = text("process", "Only incidents with evidence of a process of this name.");
const RULE: Parameter = text(
    "rule",
    "Only incidents with evidence by this rule: its regular expression, or the process if a keyword matched.",
);
const NODE: Parameter = text("node", "Only incidents with evidence of this node.");

/// The parameters of the list of incidents.
pub(super) const PARAMETERS: &[Parameter] = &[
    NAMESPACE,
    APP_NAME,
    APP_TYPE,
    STATE,
    PROCESS,
    RULE,
    NODE,
    sort(&["opened", "since", "app"]),
    LIMIT,
    CURSOR,
];
/// The parameters of the list of Apps.
pub(super) const APP_PARAMETERS: &[Parameter] =
    &[NAMESPACE, APP_NAME, APP_TYPE, STATE, PROCESS, RULE, NODE, sort(&["app", "since"]), LIMIT, CURSOR];

/// The filters of a query. All that are given must hold.
pub(super) struct Filter {
    namespace: Option<String>,
    name: Option<String>,
    kind: Option<String>,
    /// One of [`STATES`].
    state: Option<&'static str>,
    evidence: EvidenceFilter,
}

/// The filters by an incident's evidence, for which the incident has to be decompressed.
#[derive(Default)]
struct EvidenceFilter {
    process: Option<String>,
    rule: Option<String>,
    node: Option<String>,
}

impl Filter {
    pub(super) fn of(given: &Given) -> Self {
        Self {
            namespace: given.text("namespace"),
            name: given.text("name"),
            kind: given.text("type"),
            state: given.name("state"),
            evidence: EvidenceFilter {
                process: given.text("process"),
                rule: given.text("rule"),
                node: given.text("node"),
            },
        }
    }

    /// By what is known of each incident without its document.
    fn wants_summary(&self, app: &AppRef, summary: &IncidentSummary) -> bool {
        let is = |wanted: &Option<String>, text: &str| wanted.as_ref().is_none_or(|wanted| wanted == text);
        is(&self.namespace, &app.namespace)
            && is(&self.name, &app.name)
            && is(&self.kind, &app.kind)
            && self.state.is_none_or(|state| IncidentState::from(summary.state).name() == state)
    }

    pub(super) fn wants(&self, name: &str, incident: &IncidentEntry) -> bool {
        let Some(summary) = incident.summary() else { return false };
        self.wants_summary(&incident.app, summary)
            && (self.evidence.is_empty()
                || incident.readable_document(name).is_some_and(|incident| self.evidence.wants(&incident)))
    }
}

impl EvidenceFilter {
    fn is_empty(&self) -> bool {
        self.process.is_none() && self.rule.is_none() && self.node.is_none()
    }

    /// Whether one piece of evidence has all that is asked for.
    fn wants(&self, incident: &state::Incident) -> bool {
        let is = |wanted: &Option<String>, text: &str| wanted.as_ref().is_none_or(|wanted| wanted == text);
        incident.status.evidence.iter().any(|evidence| {
            let rule = if evidence.regex.is_empty() { &evidence.process } else { &evidence.regex };
            is(&self.process, &evidence.process) && is(&self.rule, rule) && is(&self.node, &evidence.node)
        })
    }
}

/// The place of an incident in its list.
fn place(order: Order, name: &Text, incident: &IncidentEntry, summary: &IncidentSummary) -> Place {
    let AppRef { namespace, kind, name: app } = &incident.app;
    let value = match order.by {
        "opened" => vec![summary.opened.get().into()],
        "since" => vec![since(summary).into()],
        _ => [namespace, kind, app].map(SortValue::from).to_vec(),
    };
    Place([value, vec![name.into()]].concat())
}

fn since(summary: &IncidentSummary) -> jiff::Timestamp {
    summary.since.unwrap_or(summary.opened).get()
}

/// The latest first.
pub(super) async fn incidents(
    State(api): State<Api>,
    headers: HeaderMap,
    query: Pairs,
) -> Result<Response, Problem> {
    let (_, given) = api.reader(&headers, Reading::List, query, PARAMETERS).await?;
    let (filter, paging) = (Filter::of(&given), Paging::of(&given, Order::of("opened", true))?);
    let turn = api.turn().await?;
    let persisted = api.views.persisted.borrow().clone();
    Ok(api.make(turn, move || page(&persisted, &filter, &paging)).await)
}

fn page(persisted: &PersistedState, filter: &Filter, paging: &Paging) -> serde_json::Result<Vec<u8>> {
    let (mut selection, mut total) = (Selection::new(paging.clone()), 0_usize);
    for (name, incident) in &persisted.incidents {
        let Some(summary) = incident.summary().filter(|_| filter.wants(name, incident)) else { continue };
        total += 1;
        selection.add(place(paging.order, name, incident, summary), (name, incident));
    }
    let mut page = Page::new(paging.limit);
    page.more(selection.last_of_full().is_some());
    // Only the incidents of the page are decompressed.
    let shown = selection.into_entries().into_iter().filter_map(|(place, (name, incident))| {
        Some((place, Incident::from(incident.readable_document(name)?)))
    });
    page.placed("incidents", paging, shown)?;
    page.member("total", &total)?;
    page.end()
}

/// The parameters of one incident.
pub(super) const ONE: &[Parameter] = &[NAMESPACE];

pub(super) async fn incident(
    State(api): State<Api>,
    Name(name): Name,
    headers: HeaderMap,
    query: Pairs,
) -> Result<Response, Problem> {
    let (reader, _) = api.reader(&headers, Reading::Get, query, ONE).await?;
    api.find_room()?;
    let persisted = api.views.persisted.borrow().clone();
    let found = persisted.incidents.get(&*name).filter(|incident| reader.sees(&incident.app.namespace));
    match found.map(|incident| incident.document(&name)).transpose() {
        Ok(Some(Some(incident))) => Ok(api.make_small(serde_json::to_vec(&Incident::from(incident)))),
        Ok(_) => Err(Problem::new(StatusCode::NOT_FOUND, "there is no incident of that name")),
        Err(error) => {
            let detail = format!("the incident can't be decompressed: {error}");
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail))
        }
    }
}

/// Each App with an incident, in the state of its last one.
pub(super) async fn apps(
    State(api): State<Api>,
    headers: HeaderMap,
    query: Pairs,
) -> Result<Response, Problem> {
    let (_, given) = api.reader(&headers, Reading::List, query, APP_PARAMETERS).await?;
    let (filter, paging) = (Filter::of(&given), Paging::of(&given, Order::of("app", false))?);
    let turn = api.turn().await?;
    let persisted = api.views.persisted.borrow().clone();
    Ok(api.make(turn, move || page_of_apps(&persisted, &filter, &paging)).await)
}

/// The last incident of each App, and how many there are.
struct Last<'a> {
    name: &'a Text,
    incident: &'a IncidentEntry,
    summary: &'a IncidentSummary,
    count: usize,
}

fn page_of_apps(persisted: &PersistedState, filter: &Filter, paging: &Paging) -> serde_json::Result<Vec<u8>> {
    let mut last: BTreeMap<(&Text, &Text, &Text), Last<'_>> = BTreeMap::new();
    for (name, incident) in &persisted.incidents {
        let Some(summary) = incident.summary() else { continue };
        let AppRef { namespace, kind, name: app } = &incident.app;
        let known = last.entry((namespace, kind, app));
        let known = known.or_insert(Last { name, incident, summary, count: 0 });
        known.count += 1;
        if summary.opened > known.summary.opened {
            (known.name, known.incident, known.summary) = (name, incident, summary);
        }
    }
    let (mut selection, mut total) = (Selection::new(paging.clone()), 0_usize);
    for last in last.into_values().filter(|last| filter.wants(last.name, last.incident)) {
        total += 1;
        let AppRef { namespace, kind, name } = &last.incident.app;
        let value = (paging.order.by == "since").then(|| SortValue::from(since(last.summary)));
        let app = [namespace, kind, name].map(SortValue::from);
        selection.add(Place(value.into_iter().chain(app).collect()), last);
    }
    let mut page = Page::new(paging.limit);
    page.more(selection.last_of_full().is_some());
    let shown =
        selection.into_entries().into_iter().filter_map(|(place, Last { name, incident, count, .. })| {
            let app = App::from(&incident.app);
            Some((place, ListedApp::of(app, count, incident.readable_document(name)?)))
        });
    page.placed("apps", paging, shown)?;
    page.member("total", &total)?;
    page.end()
}
