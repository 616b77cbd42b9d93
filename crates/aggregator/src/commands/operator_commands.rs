//! `approve`, `release`, `pause`, `resume` and `mode`: what operators want done, and whether decisions take effect.

use hyper::{Method, StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::CommandError;
use super::client::{self, Client, Endpoint, Outcome};
use super::incidents::{self, Incident};
use super::printed::{self, escaped};
use crate::args::operators as args;

/// What is said with an act.
#[derive(Serialize)]
struct CommandBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

pub(super) async fn approve(args: args::Approve) -> Result<(), CommandError> {
    let words = CommandBody { reason: reason(args.reason)?, until: None };
    let client = Client::new(&args.service).await?;
    of_incident(&client, &args.incident, "approve", &words).await
}

pub(super) async fn release(args: args::Release) -> Result<(), CommandError> {
    let words = CommandBody { reason: reason(args.reason)?, until: until(args.until)? };
    let client = Client::new(&args.service).await?;
    of_incident(&client, &args.incident, "release", &words).await
}

async fn of_incident(
    client: &Client,
    said: &str,
    act: &str,
    words: &CommandBody,
) -> Result<(), CommandError> {
    let name = incidents::name_of(client, said).await?;
    client::check_name("INCIDENT", &name)?;
    let endpoint = Endpoint::at(&["incidents", &name, act]);
    let told = client.tell::<Incident>(Method::POST, &endpoint, Some(words)).await;
    let told = told.map_err(|e| {
        let advice =
            "give the name of one that `procscan-aggregator incidents` lists, or an App as NAMESPACE/APP";
        e.advise(StatusCode::NOT_FOUND, advice)
    })?;
    report(told, |incident| incident.outcome())
}

/// What has come of a word, on one line.
pub(super) fn report<T>(outcome: Outcome<T>, done: impl FnOnce(T) -> String) -> Result<(), CommandError> {
    let line = match outcome {
        Outcome::Done(what) => done(what),
        Outcome::Kept(detail) if detail.is_empty() => "kept, not done yet".to_owned(),
        Outcome::Kept(detail) => format!("kept, not done yet: {detail}"),
    };
    Ok(printed::print(&format!("{line}\n"))?)
}

/// The text of `--reason`.
pub(super) fn reason(given: Option<String>) -> Result<Option<String>, CommandError> {
    let mistake = given.as_deref().and_then(crate::reason::mistake);
    mistake.map_or(Ok(given), |what| {
        let allowed = crate::reason::ALLOWED;
        Err(CommandError::Usage(format!("--reason: {what} is not allowed; allowed is {allowed}")))
    })
}

/// The time of `--until`.
pub(super) fn until(until: Option<args::TimeArgument>) -> Result<Option<Timestamp>, CommandError> {
    let until = until.map(|until| until.after(Timestamp::now())).transpose();
    until.map_err(|e| CommandError::Usage(format!("--until: {e}")))
}

/// What the API says of enforcement.
#[derive(Deserialize)]
struct Enforcement {
    /// What counts; after a change, what was said.
    mode: Option<String>,
    /// The mode in force after a change.
    #[serde(default)]
    in_force: Option<String>,
    /// What operators say.
    #[serde(default)]
    operators: Option<String>,
    reason: Option<String>,
    by: Option<String>,
}

/// What is to be said of enforcement.
#[derive(Serialize)]
struct Enforce {
    /// `null`: what the configuration says.
    mode: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

pub(super) async fn pause(args: args::Pause) -> Result<(), CommandError> {
    enforce(&args.service, Enforce { mode: Some("paused"), reason: reason(args.reason)? }).await
}

pub(super) async fn resume(args: args::Pause) -> Result<(), CommandError> {
    enforce(&args.service, Enforce { mode: None, reason: reason(args.reason)? }).await
}

pub(super) async fn mode(args: args::SetMode) -> Result<(), CommandError> {
    if args.to.is_some() {
        return enforce(&args.service, Enforce { mode: args.to, reason: reason(args.reason)? }).await;
    }
    let client = Client::new(&args.service).await?;
    let shown: Enforcement = client.read(&client.get(&Endpoint::at(&["enforcement"])).await?)?;
    let mode = escaped(shown.mode.as_deref().unwrap_or("unknown"));
    let line = match &shown.operators {
        Some(_) => format!("{mode}, as {}", said(&shown)),
        None => format!("{mode}, as the configuration says"),
    };
    Ok(printed::print(&format!("{line}\n"))?)
}

async fn enforce(service: &args::Service, words: Enforce) -> Result<(), CommandError> {
    let client = Client::new(service).await?;
    let told = client.tell(Method::PUT, &Endpoint::at(&["enforcement"]), Some(&words)).await?;
    report(told, |told: Enforcement| match (&told.mode, &told.in_force) {
        (Some(mode), _) => format!("{}, as {}", escaped(mode), said(&told)),
        (None, Some(mode)) => {
            format!("back to {}, the mode of the configuration, as {}", escaped(mode), said(&told))
        }
        (None, None) => format!("back to what the configuration says, as {}", said(&told)),
    })
}

/// Who says so, and why.
fn said(enforcement: &Enforcement) -> String {
    let by =
        enforcement.by.as_deref().map_or("operators say".to_owned(), |by| format!("{} says", escaped(by)));
    match &enforcement.reason {
        Some(reason) => format!("{by}: {}", escaped(reason)),
        None => by,
    }
}
