//! `incidents`: what is kept of each App, for people; and which of them somebody means.

use std::fmt;

use jiff::Timestamp;
use procscan_core::names::{App, AppParts};
use procscan_core::state::IncidentState;
use serde::Deserialize;

use super::CommandError;
use super::client::{Client, Endpoint};
use super::printed::{self, Table, escaped};
use crate::args;

/// How many incidents an error lists.
const CANDIDATES: usize = 10;

#[derive(Deserialize)]
struct List {
    incidents: Vec<Incident>,
}

/// What people are shown of an incident.
#[derive(Deserialize)]
pub(super) struct Incident {
    name: String,
    app: App,
    state: String,
    opened: Timestamp,
    since: Option<Timestamp>,
    #[serde(default)]
    reason: String,
    /// What an act has changed, in the answer to one.
    act: Option<Act>,
}

/// What an operator's act has changed.
#[derive(Deserialize)]
struct Act {
    decision: String,
    /// The state before.
    was: Option<String>,
    /// The end of a release.
    until: Option<Timestamp>,
}

/// `NAME (NAMESPACE/TYPE/APP): STATE, REASON`.
impl fmt::Display for Incident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, app, state, reason, .. } = self;
        write!(f, "{} ({app}): {}", escaped(name), escaped(state))?;
        if reason.is_empty() { Ok(()) } else { write!(f, ", {}", escaped(reason)) }
    }
}

impl Incident {
    /// What an act has changed, as a line for the operator.
    pub(super) fn outcome(&self) -> String {
        let Self { name, app, state, act, .. } = self;
        let Some(Act { decision, was, until }) = act else { return self.to_string() };
        let was = was.as_deref().unwrap_or_default();
        let is_blocked = matches!(&**state, "Blocked" | "ReleaseHeld");
        let until = until.map(|until| format!(" until {}", printed::time(until))).unwrap_or_default();
        let what = match (&**decision, was) {
            ("released", _) if is_blocked => format!("but it is still blocked: {}", escaped(&self.reason)),
            ("released", "Blocked" | "ReleaseHeld") => {
                "it was blocked, and the gateway opens to it again".to_owned()
            }
            ("released", "Held") => "a brake held its block; it is not blocked".to_owned(),
            ("released", "Grace") => "its tenant was warned; it is not blocked".to_owned(),
            ("released", _) => "it was not blocked, and is not blocked for these accusations".to_owned(),
            ("approved", "ReleaseHeld") if !is_blocked => {
                "a brake held its release; the gateway opens to it again".to_owned()
            }
            ("approved", "Held") if is_blocked => {
                "a brake held its block; the gateway closes to it".to_owned()
            }
            _ => return self.to_string(),
        };
        format!("{decision}: {app}{until}; {what} (incident {})", escaped(name))
    }

    fn is_open(&self) -> bool {
        self.state != format!("{:?}", IncidentState::Ended)
    }

    /// Whether `said` is its App as `NAMESPACE/APP` or `NAMESPACE/TYPE/APP`, as it is or as it is shown.
    fn is_of(&self, said: &str) -> bool {
        let AppParts { namespace, kind, name } = &*self.app;
        let forms = [format!("{namespace}/{name}"), format!("{namespace}/{kind}/{name}")];
        forms.iter().any(|form| said == form || said == escaped(form))
    }
}

pub(super) async fn incidents(args: args::operators::Incidents) -> Result<(), CommandError> {
    let client = Client::new(&args.service).await?;
    let endpoint = Endpoint::at(&["incidents"])
        .with("namespace", args.namespace)
        .with("name", args.app)
        .with("state", args.state);
    let body = client.list(&endpoint, "incidents", None).await?;
    if let Some(document) = client.document(&body, args.output)? {
        return Ok(printed::print(&document)?);
    }
    let List { incidents } = client.read(&body)?;
    if incidents.is_empty() {
        printed::note("There are no such incidents.");
        return Ok(());
    }
    let mut table = Table::new(["NAME", "TENANT", "TYPE", "APP", "STATE", "SINCE", "REASON"]);
    for Incident { name, app, state, opened, since, reason, .. } in &incidents {
        let since = printed::time(since.unwrap_or(*opened));
        table.push([name, &app.namespace, &app.kind, &app.name, state, &since, reason]);
    }
    Ok(printed::print(&table.to_string())?)
}

/// The name of the open incident that is `said` by its name or by its App.
pub(super) async fn name_of(client: &Client, said: &str) -> Result<String, CommandError> {
    // No name has a slash, and no App goes without.
    let Some((namespace, _)) = said.split_once('/') else { return Ok(said.to_owned()) };
    let endpoint = Endpoint::at(&["incidents"]).with("namespace", Some(namespace));
    let body = client.list(&endpoint, "incidents", None).await?;
    let List { incidents } = client.read(&body)?;
    let open: Vec<Incident> = incidents.into_iter().filter(Incident::is_open).collect();
    let meant: Vec<&Incident> = open.iter().filter(|incident| incident.is_of(said)).collect();
    let shown = escaped(said);
    match meant[..] {
        [incident] => Ok(incident.name.clone()),
        [] if open.is_empty() => Err(anyhow::anyhow!(
            "there is no open incident of {shown}, nor any other in namespace {}; `procscan-aggregator incidents` \
             lists all",
            escaped(namespace)
        )
        .into()),
        [] => {
            let open = candidates(&open.iter().collect::<Vec<_>>());
            Err(anyhow::anyhow!("there is no open incident of {shown}; open in its namespace: {open}").into())
        }
        _ => Err(anyhow::anyhow!("{shown} may be any of these, say which: {}", candidates(&meant)).into()),
    }
}

fn candidates(incidents: &[&Incident]) -> String {
    let shown = incidents.iter().take(CANDIDATES);
    let mut texts: Vec<String> = shown
        .map(|Incident { name, app, state, .. }| format!("{} ({app}, {})", escaped(name), escaped(state)))
        .collect();
    if let Some(more) = incidents.len().checked_sub(CANDIDATES).filter(|more| *more > 0) {
        texts.push(format!("and {more} more"));
    }
    texts.join(", ")
}
