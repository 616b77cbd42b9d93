//! `exempt`: what is not to be enforced, declared at run time.

use hyper::{Method, StatusCode};
use procscan_core::names::is_dns_subdomain;
use procscan_core::policy::Incidents;
use procscan_core::state::{ExemptionSpec, Match};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::CommandError;
use super::client::{Client, Endpoint, check_name, has_cluster};
use super::operator_commands::{reason, report, until};
use super::printed::{self, Table, escaped};
use crate::args::operators as args;

#[derive(Deserialize)]
struct List {
    exemptions: Vec<Listed>,
    /// `None` if the replica does not lead: only the leader knows it.
    withheld: Option<Vec<Withheld>>,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    /// `None` where only the leader knows it.
    state: Option<String>,
    /// Why it has no effect, if so.
    error: Option<String>,
    /// As it was written: one that can't be read is listed too.
    #[serde(flatten)]
    spec: Value,
}

/// One that has no effect until it is confirmed.
#[derive(Deserialize)]
struct Withheld {
    place: String,
    reason: String,
}

/// The prefix of the place of an exemption that was declared at run time; the others are in the configuration.
const DECLARED: &str = "Exemption ";
/// How operators confirm withheld exemptions.
const HOW_TO_CONFIRM: &str = "To confirm one, take it back with --remove NAME and declare it again with --confirm N, the number of \
    tenants that its reason names. One of the configuration needs `confirm: N` there, and a restart.";
/// The other way, for an object of the cluster.
const HOW_TO_CONFIRM_IN_A_CLUSTER: &str = "In a cluster, this confirms one too: kubectl patch exemption NAME -n kube-system \
    --type=merge -p '{\"spec\":{\"confirm\":N}}'";
/// The note for a list from a replica that does not lead.
const UNKNOWN: &str = "This replica does not lead, so it does not know which exemptions are withheld; /readyz names the leader.";

#[derive(Serialize)]
struct Declared {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(flatten)]
    spec: ExemptionSpec,
}

#[derive(Deserialize)]
struct PersistedExemption {
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
    report(told, |PersistedExemption { name, exemption }| {
        format!("{}: exempt is {}, {}", escaped(&name), escaped(&covers(&json!(exemption))), ends(&exemption))
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
        reason: reason(args.reason.clone())?.unwrap_or_default(),
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
    check_name("--remove", name)?;
    let client = Client::new(service).await?;
    let told = client.tell::<()>(Method::DELETE, &Endpoint::at(&["exemptions", name]), None::<&()>).await;
    let advice = "`procscan-aggregator exempt --list` lists those that were declared at run time";
    report(told.map_err(|e| e.advise(StatusCode::NOT_FOUND, advice))?, |()| {
        format!("{} is taken back", escaped(name))
    })
}

async fn list(args: &args::Exempt) -> Result<(), CommandError> {
    let client = Client::new(&args.service).await?;
    let body = client.list(&Endpoint::at(&["exemptions"]), "exemptions", None).await?;
    if let Some(document) = client.document(&body, args.output)? {
        return Ok(printed::print(&document)?);
    }
    let List { exemptions, withheld } = client.read(&body)?;
    if withheld.is_none() {
        printed::note(UNKNOWN);
    }
    let withheld = withheld.unwrap_or_default();
    if exemptions.is_empty() && withheld.is_empty() {
        printed::note("There are no exemptions but those of the configuration.");
        return Ok(());
    }
    let mut table = Table::new(["NAME", "EXEMPT", "STATE", "UNTIL", "BY", "REASON"]);
    for Listed { name, spec, state, error } in &exemptions {
        let text = |member: &str| spec.get(member).and_then(Value::as_str).unwrap_or_default();
        let until = text("until").parse().map_or("for ever".to_owned(), printed::time);
        let state = state.as_deref().map_or("declared".to_owned(), |state| state.replace('_', " "));
        let reason = match (text("reason"), error) {
            (reason, None) => reason.to_owned(),
            ("", Some(error)) => format!("({error})"),
            (reason, Some(error)) => format!("{reason} ({error})"),
        };
        table.push([name, &covers(spec), &state, &until, text("by"), &reason]);
    }
    for Withheld { place, reason } in withheld.iter().filter(|it| !it.place.starts_with(DECLARED)) {
        table.push([place, "", "withheld", "", "", reason]);
    }
    printed::print(&table.to_string())?;
    // Blocks that stay although the configured namespaces exclude them are confirmed in another way: their reason says how.
    if withheld.iter().any(|it| it.place != Incidents::REFUSALS) {
        printed::note(HOW_TO_CONFIRM);
        if has_cluster() {
            printed::note(HOW_TO_CONFIRM_IN_A_CLUSTER);
        }
    }
    Ok(())
}

/// What it covers, as it is typed.
fn covers(spec: &Value) -> String {
    let part = |name: &str| {
        let part = spec.get(name).filter(|part| !part.is_null())?;
        let member = |member: &str| part.get(member).and_then(Value::as_str);
        Some(match (member("regex"), member("exact").or(part.as_str())) {
            (Some(regex), _) => format!("{name}=/{regex}/"),
            (None, Some(exact)) => format!("{name}={exact}"),
            (None, None) => format!("{name}={part}"),
        })
    };
    ["namespace", "app", "process", "rule"].into_iter().filter_map(part).collect::<Vec<_>>().join(" ")
}

fn ends(spec: &ExemptionSpec) -> String {
    spec.until.map_or("for ever".to_owned(), |until| format!("until {}", printed::time(until)))
}
