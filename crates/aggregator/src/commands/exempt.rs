//! `exempt`: what is not to be enforced, declared at run time.

use hyper::{Method, StatusCode};
use procscan_core::names::is_dns_subdomain;
use procscan_core::state::{ExemptionSpec, Match};
use serde::{Deserialize, Serialize};

use super::CommandError;
use super::acts::{report, until};
use super::client::{Client, Endpoint};
use super::printed::{self, Table, escaped};
use crate::args::operators as args;

#[derive(Deserialize)]
struct List {
    exemptions: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    #[serde(flatten)]
    spec: ExemptionSpec,
    /// Why it covers nothing, if so.
    error: Option<String>,
}

#[derive(Serialize)]
struct Declared {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(flatten)]
    spec: ExemptionSpec,
}

#[derive(Deserialize)]
struct Kept {
    name: String,
    exemption: ExemptionSpec,
}

pub(super) async fn exempt(args: args::Exempt) -> Result<(), CommandError> {
    if args.list {
        return list(&args).await;
    }
    if let Some(name) = &args.remove {
        return remove(&args.service, name).await;
    }
    let declared = declared(&args)?;
    let client = Client::new(&args.service).await?;
    let told = client.tell(Method::POST, &Endpoint::at(&["exemptions"]), Some(&declared)).await?;
    report(told, |Kept { name, exemption }| {
        format!("{}: exempt is {}, {}", escaped(&name), escaped(&covers(&exemption)), ends(&exemption))
    })
}

/// What the arguments say. Mistakes are told before anybody is asked.
fn declared(args: &args::Exempt) -> Result<Declared, CommandError> {
    let part = |text: &Option<String>| text.as_deref().map(matching);
    let spec = ExemptionSpec {
        namespace: part(&args.namespace),
        app: part(&args.app),
        process: part(&args.process),
        rule: part(&args.rule),
        reason: args.reason.clone().unwrap_or_default(),
        until: until(args.until)?,
        confirm: args.confirm,
        by: None,
    };
    let parts = [
        ("namespace", &args.namespace),
        ("app", &args.app),
        ("process", &args.process),
        ("rule", &args.rule),
    ];
    if let Some((name, _)) = parts.iter().find(|(_, text)| matches!(text.as_deref(), Some("" | "//"))) {
        return Err(CommandError::Usage(format!("--{name}: a text, or a regular expression as /REGEX/")));
    }
    spec.rule().map_err(|e| CommandError::Usage(e.to_string()))?;
    if let Some(id) = args.id.as_ref().filter(|id| !is_dns_subdomain(id)) {
        let allowed = "allowed are small letters, digits, hyphens and dots, as in a host name";
        return Err(CommandError::Usage(format!("--id {}: {allowed}", escaped(id))));
    }
    Ok(Declared { id: args.id.clone(), spec })
}

/// A regular expression between slashes, or a whole text.
fn matching(text: &str) -> Match {
    match text.strip_prefix('/').and_then(|rest| rest.strip_suffix('/')) {
        Some(regex) => Match { exact: None, regex: Some(regex.to_owned()) },
        None => Match::exact(text),
    }
}

async fn remove(service: &args::Service, name: &str) -> Result<(), CommandError> {
    let client = Client::new(service).await?;
    let told = client.tell::<()>(Method::DELETE, &Endpoint::at(&["exemptions", name]), None::<&()>).await;
    let advice = "`procscan-aggregator exempt --list` lists those that were declared at run time";
    report(told.map_err(|e| e.advise(StatusCode::NOT_FOUND, advice))?, |()| {
        format!("{} is taken back", escaped(name))
    })
}

async fn list(args: &args::Exempt) -> Result<(), CommandError> {
    let client = Client::new(&args.service).await?;
    let body = client.get(&Endpoint::at(&["exemptions"])).await?;
    if let Some(document) = printed::document(&client, &body, args.output)? {
        return Ok(printed::print(&document)?);
    }
    let List { exemptions } = client.read(&body)?;
    if exemptions.is_empty() {
        eprintln!("There are no exemptions but those of the configuration.");
        return Ok(());
    }
    let mut table = Table::new(["NAME", "EXEMPT", "UNTIL", "BY", "REASON"]);
    for Listed { name, spec, error } in &exemptions {
        let until = spec.until.map_or("for ever".to_owned(), printed::time);
        let reason = match error {
            Some(error) => format!("covers nothing: {error}; {}", spec.reason),
            None => spec.reason.clone(),
        };
        table.push([name, &covers(spec), &until, spec.by.as_deref().unwrap_or_default(), &reason]);
    }
    Ok(printed::print(&table.to_string())?)
}

/// What it covers, as it is typed.
fn covers(spec: &ExemptionSpec) -> String {
    let ExemptionSpec { namespace, app, process, rule, .. } = spec;
    let parts = [("namespace", namespace), ("app", app), ("process", process), ("rule", rule)];
    let part = |(name, part): (&str, &Option<Match>)| match part.as_ref()? {
        Match { regex: Some(regex), .. } => Some(format!("{name}=/{regex}/")),
        Match { exact, .. } => Some(format!("{name}={}", exact.as_deref().unwrap_or_default())),
    };
    parts.into_iter().filter_map(part).collect::<Vec<_>>().join(" ")
}

fn ends(spec: &ExemptionSpec) -> String {
    spec.until.map_or("for ever".to_owned(), |until| format!("until {}", printed::time(until)))
}
