//! `approve`, `release`, `pause`, `resume` and `mode`: commands that change what the service does with an App or with all Apps.

use hyper::{Method, StatusCode};
use jiff::Timestamp;
use procscan_core::decision;
use serde::Serialize;

use super::CommandError;
use super::client::{self, Client, Endpoint, Outcome};
use super::incidents;
use super::printed::{self, escaped};
use crate::api::types::{
    ApproveRequest, CommandResult, EnforceRequest, Enforcement, EnforcementChange, Mode, Reason,
    ReleaseRequest, Time,
};
use crate::args::operators as args;
use crate::reason;
use crate::time_argument::TimeArgument;
use crate::wire_names::mode_name;

pub(super) async fn approve(args: args::Approve) -> Result<(), CommandError> {
    let request = ApproveRequest { reason: reason(args.reason)? };
    let client = Client::new(&args.service).await?;
    of_incident(&client, &args.incident, "approve", &request).await
}

pub(super) async fn release(args: args::Release) -> Result<(), CommandError> {
    let request = ReleaseRequest { reason: reason(args.reason)?, until: until(args.until)? };
    let client = Client::new(&args.service).await?;
    of_incident(&client, &args.incident, "release", &request).await
}

/// Sends a command for the incident that `given` names.
async fn of_incident(
    client: &Client,
    given: &str,
    command: &str,
    request: &(impl Serialize + Sync),
) -> Result<(), CommandError> {
    let name = incidents::name_of(client, given).await?;
    client::check_name("INCIDENT", &name)?;
    let endpoint = Endpoint::at(&["incidents", &name, command]);
    let outcome = client.send::<CommandResult>(Method::POST, &endpoint, Some(request)).await;
    let outcome = outcome.map_err(|e| {
        let advice =
            "give the name of one that `procscan-aggregator incidents` lists, or an App as NAMESPACE/APP";
        e.advise(StatusCode::NOT_FOUND, advice)
    })?;
    report(outcome, |result| incidents::outcome(&result))
}

/// Prints on one line what has come of a command.
pub(super) fn report<T>(outcome: Outcome<T>, done: impl FnOnce(T) -> String) -> Result<(), CommandError> {
    let line = match outcome {
        Outcome::Done(answer) => done(answer),
        Outcome::Pending(detail) if detail.is_empty() => "persisted, not carried out yet".to_owned(),
        Outcome::Pending(detail) => format!("persisted, not carried out yet: {detail}"),
    };
    Ok(printed::print(&format!("{line}\n"))?)
}

/// The text of `--reason`.
pub(super) fn reason(given: Option<String>) -> Result<Option<Reason>, CommandError> {
    let invalid = |mistake| {
        let expected = reason::ALLOWED;
        CommandError::Usage(format!("--reason: invalid value ({mistake}): expected {expected}"))
    };
    given.map(Reason::new).transpose().map_err(invalid)
}

/// The time of `--until`.
pub(super) fn until(until: Option<TimeArgument>) -> Result<Option<Time>, CommandError> {
    let until = until.map(|until| until.after(Timestamp::now()).map(Time)).transpose();
    until.map_err(|e| CommandError::Usage(format!("--until: {e}")))
}

pub(super) async fn pause(args: args::Pause) -> Result<(), CommandError> {
    enforce(&args.service, Some(Mode::Paused), args.reason).await
}

pub(super) async fn resume(args: args::Pause) -> Result<(), CommandError> {
    enforce(&args.service, None, args.reason).await
}

pub(super) async fn mode(args: args::SetMode) -> Result<(), CommandError> {
    if let Some(mode) = args.to {
        return enforce(&args.service, Some(mode.into()), args.reason).await;
    }
    let client = Client::new(&args.service).await?;
    let Enforcement { mode, operators, reason, by } =
        client.read(&client.get(&Endpoint::at(&["enforcement"])).await?)?;
    let line = match operators {
        Some(_) => format!("{}, as {}", name(mode), declared(by.as_deref(), reason.as_deref())),
        None => format!("{}, as the configuration says", name(mode)),
    };
    Ok(printed::print(&format!("{line}\n"))?)
}

async fn enforce(
    service: &args::Service,
    mode: Option<Mode>,
    given: Option<String>,
) -> Result<(), CommandError> {
    let request = EnforceRequest { mode, reason: reason(given)? };
    let client = Client::new(service).await?;
    let outcome = client.send(Method::PUT, &Endpoint::at(&["enforcement"]), Some(&request)).await?;
    report(outcome, |EnforcementChange { mode, in_force, reason, by }| {
        let declared = declared(by.as_deref(), reason.as_deref());
        match mode {
            Some(mode) => format!("{}, as {declared}", name(mode)),
            None => format!("back to {}, the mode of the configuration, as {declared}", name(in_force)),
        }
    })
}

/// The name of a mode on the command line.
fn name(mode: Mode) -> &'static str {
    mode_name(decision::Mode::from(mode))
}

/// Which operator has declared a mode, and why.
fn declared(by: Option<&str>, reason: Option<&str>) -> String {
    let by = by.map_or("operators say".to_owned(), |by| format!("{} says", escaped(by)));
    reason.map_or_else(|| by.clone(), |reason| format!("{by}: {}", escaped(reason)))
}
