//! `incidents`: the list of incidents, and the incident that an operator means.

use procscan_core::decision::DecisionKind;
use procscan_core::names::{App, AppParts};

use super::CommandError;
use super::client::{Client, Endpoint};
use super::printed::{self, Table, escaped};
use crate::api::types::{CommandResult, Incident, IncidentPage, IncidentState};
use crate::args;

/// How many incidents an error lists.
const CANDIDATES: usize = 10;

/// `NAME (NAMESPACE/TYPE/APP): STATE, REASON`.
fn line(Incident { name, app, state, reason, .. }: &Incident) -> String {
    let line = format!("{} ({app}): {}", escaped(name), state.name());
    if reason.is_empty() { line } else { format!("{line}, {}", escaped(reason)) }
}

/// What an operator command has changed, as a line for the operator.
pub(super) fn outcome(CommandResult { incident, command }: &CommandResult) -> String {
    let Incident { name, app, state, reason, .. } = incident;
    let is_closed = |state| matches!(state, IncidentState::Blocked | IncidentState::ReleaseHeld);
    let is_blocked = is_closed(*state);
    let what = match (command.decision(), command.was) {
        (Some(DecisionKind::Released), _) if is_blocked => {
            format!("but it is still blocked: {}", escaped(reason))
        }
        (Some(DecisionKind::Released), was) => match was {
            Some(was) if is_closed(was) => "it was blocked, and the gateway opens to it again",
            Some(IncidentState::Held) => "a brake held its block; it is not blocked",
            Some(IncidentState::Grace) => "its tenant was warned; it is not blocked",
            _ => "it was not blocked, and is not blocked for these accusations",
        }
        .to_owned(),
        (Some(DecisionKind::Approved), Some(IncidentState::ReleaseHeld)) if !is_blocked => {
            "a brake held its release; the gateway opens to it again".to_owned()
        }
        (Some(DecisionKind::Approved), Some(IncidentState::Held)) if is_blocked => {
            "a brake held its block; the gateway closes to it".to_owned()
        }
        _ => return line(incident),
    };
    let until = command.until.map(|until| format!(" until {}", printed::time(until))).unwrap_or_default();
    format!("{}: {app}{until}; {what} (incident {})", escaped(command.decision.as_str()), escaped(name))
}

/// Whether `given` is the App as `NAMESPACE/APP` or `NAMESPACE/TYPE/APP`, unchanged or as the commands print it.
fn is_of(app: &App, given: &str) -> bool {
    let AppParts { namespace, kind, name } = &**app;
    let forms = [format!("{namespace}/{name}"), format!("{namespace}/{kind}/{name}")];
    forms.iter().any(|form| given == form || given == escaped(form))
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
    let IncidentPage { incidents, .. } = client.read(&body)?;
    if incidents.is_empty() {
        printed::note("There are no such incidents.");
        return Ok(());
    }
    let mut table = Table::new(["NAME", "TENANT", "TYPE", "APP", "STATE", "SINCE", "REASON"]);
    for Incident { name, app, state, opened, since, reason, .. } in &incidents {
        let since = printed::time(since.unwrap_or(*opened));
        table.push([name, &app.namespace, &app.kind, &app.name, state.name(), &since, reason]);
    }
    Ok(printed::print(&table.to_string())?)
}

/// The name of the open incident that `given` names, by its name or by its App.
pub(super) async fn name_of(client: &Client, given: &str) -> Result<String, CommandError> {
    // Names have no slash, and Apps have one.
    let Some((namespace, _)) = given.split_once('/') else { return Ok(given.to_owned()) };
    let endpoint = Endpoint::at(&["incidents"]).with("namespace", Some(namespace));
    let body = client.list(&endpoint, "incidents", None).await?;
    let IncidentPage { incidents, .. } = client.read(&body)?;
    let is_open = |incident: &Incident| incident.state != IncidentState::Ended;
    let open: Vec<Incident> = incidents.into_iter().filter(is_open).collect();
    let meant: Vec<&Incident> = open.iter().filter(|incident| is_of(&incident.app, given)).collect();
    let shown = escaped(given);
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
        _ => Err(anyhow::anyhow!("{shown} may be any of these: {}; give the name of one", candidates(&meant)).into()),
    }
}

fn candidates(incidents: &[&Incident]) -> String {
    let shown = incidents.iter().take(CANDIDATES);
    let mut texts: Vec<String> = shown
        .map(|Incident { name, app, state, .. }| format!("{} ({app}, {})", escaped(name), state.name()))
        .collect();
    if let Some(more) = incidents.len().checked_sub(CANDIDATES).filter(|more| *more > 0) {
        texts.push(format!("and {more} more"));
    }
    texts.join(", ")
}
