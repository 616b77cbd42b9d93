//! `exempt`: exemptions that operators declare at run time.

use hyper::{Method, StatusCode};
use procscan_core::names::is_dns_subdomain;
use procscan_core::policy::Incidents;
use serde_json::{Value, json};

use super::client::{Client, Endpoint, check_name, has_cluster};
use super::operator_commands::report;
use super::printed::{self, Table, escaped};
use super::{CommandError, operator_commands};
use crate::api::types::{
    ExemptRequest, Exemption, ExemptionPage, ExemptionState, NewExemption, Part, Withheld,
};
use crate::args::operators as args;
use crate::reason;

/// The prefix of the place of an exemption that was declared at run time; the others are in the configuration.
const DECLARED: &str = "Exemption ";
/// How operators confirm withheld exemptions.
const HOW_TO_CONFIRM: &str = "To confirm one, remove it with --remove NAME and declare it again with --confirm N, the number of \
    tenants that its reason names. One of the configuration needs `confirm: N` there, and a restart.";
/// The other way, for an object of the cluster.
const HOW_TO_CONFIRM_IN_A_CLUSTER: &str = "In a cluster, this confirms one too: kubectl patch exemption NAME -n kube-system \
    --type=merge -p '{\"spec\":{\"confirm\":N}}'";
/// The note for a list from a replica that does not lead.
const UNKNOWN: &str = "This replica does not lead, so it does not know which exemptions are withheld; /readyz names the leader.";

pub(super) async fn exempt(args: args::Exempt) -> Result<(), CommandError> {
    if args.list {
        return list(&args).await;
    }
    if let Some(name) = &args.remove {
        return remove(&args.service, name).await;
    }
    let request = request(&args)?;
    let client = Client::new(&args.service).await?;
    let outcome = client.send(Method::POST, &Endpoint::at(&["exemptions"]), Some(&request)).await?;
    report(outcome, |NewExemption { name, exemption }| {
        let until =
            exemption.until.map_or("for ever".to_owned(), |until| format!("until {}", printed::time(until)));
        format!("{}: exempt is {}, {until}", escaped(&name), escaped(&covers(&json!(exemption))))
    })
}

/// The request that the arguments make. Mistakes are reported before a request is sent.
fn request(args: &args::Exempt) -> Result<ExemptRequest, CommandError> {
    let parts = [
        ("namespace", &args.namespace),
        ("app", &args.app),
        ("process", &args.process),
        ("rule", &args.rule),
    ];
    if let Some((name, text)) = parts.iter().find(|(_, text)| matches!(text.as_deref(), Some("" | "//"))) {
        let given = text.as_deref().unwrap_or_default();
        let expected = "a text, or a regular expression as /REGEX/";
        return Err(CommandError::Usage(format!("--{name}: invalid value {given:?}: expected {expected}")));
    }
    let part = |text: &Option<String>| text.as_deref().map(part);
    // The parser requires a reason.
    let no_reason = || CommandError::Usage(format!("--reason: missing: expected {}", reason::ALLOWED));
    let request = ExemptRequest {
        id: args.id.clone(),
        namespace: part(&args.namespace),
        app: part(&args.app),
        process: part(&args.process),
        rule: part(&args.rule),
        reason: operator_commands::reason(args.reason.clone())?.ok_or_else(no_reason)?,
        until: operator_commands::until(args.until)?,
        confirm: args.confirm,
    };
    request.spec(None).rule().map_err(|e| CommandError::Usage(e.to_string()))?;
    if let Some(id) = args.id.as_ref().filter(|id| !is_dns_subdomain(id)) {
        let expected = "small letters, digits, hyphens and dots, as in a host name";
        return Err(CommandError::Usage(format!("--id: invalid value {}: expected {expected}", escaped(id))));
    }
    Ok(request)
}

/// A regular expression between slashes, or a whole text.
fn part(text: &str) -> Part {
    match text.strip_prefix('/').and_then(|rest| rest.strip_suffix('/')) {
        Some(regex) => Part::regex(regex),
        None => Part::exact(text),
    }
}

async fn remove(service: &args::Service, name: &str) -> Result<(), CommandError> {
    check_name("--remove", name)?;
    let client = Client::new(service).await?;
    let outcome = client.send::<()>(Method::DELETE, &Endpoint::at(&["exemptions", name]), None::<&()>).await;
    let advice = "`procscan-aggregator exempt --list` lists those that were declared at run time";
    let outcome = outcome.map_err(|e| e.advise(StatusCode::NOT_FOUND, advice))?;
    report(outcome, |()| format!("{} is removed", escaped(name)))
}

async fn list(args: &args::Exempt) -> Result<(), CommandError> {
    let client = Client::new(&args.service).await?;
    let body = client.list(&Endpoint::at(&["exemptions"]), "exemptions", None).await?;
    if let Some(document) = client.document(&body, args.output)? {
        return Ok(printed::print(&document)?);
    }
    let ExemptionPage { exemptions, withheld, .. } = client.read(&body)?;
    if withheld.is_none() {
        printed::note(UNKNOWN);
    }
    let withheld = withheld.unwrap_or_default();
    if exemptions.is_empty() && withheld.is_empty() {
        printed::note("There are no exemptions but those of the configuration.");
        return Ok(());
    }
    printed::print(&table(&exemptions, &withheld).to_string())?;
    // Blocks that stay although the configured namespaces exclude them are confirmed in another way: their reason says how.
    if withheld.iter().any(|it| it.place != Incidents::REFUSALS) {
        printed::note(HOW_TO_CONFIRM);
        if has_cluster() {
            printed::note(HOW_TO_CONFIRM_IN_A_CLUSTER);
        }
    }
    Ok(())
}

fn table(exemptions: &[Exemption], withheld: &[Withheld]) -> Table<6> {
    let mut table = Table::new(["NAME", "EXEMPT", "STATE", "UNTIL", "BY", "REASON"]);
    for Exemption { name, spec, state, error } in exemptions {
        let text = |member: &str| spec.get(member).and_then(Value::as_str).unwrap_or_default();
        let until = text("until").parse().map_or("for ever".to_owned(), printed::time);
        let state = state.map_or("declared", ExemptionState::as_text);
        let reason = match (text("reason"), error) {
            (reason, None) => reason.to_owned(),
            ("", Some(error)) => format!("({error})"),
            (reason, Some(error)) => format!("{reason} ({error})"),
        };
        table.push([name, &covers(spec), state, &until, text("by"), &reason]);
    }
    for Withheld { place, reason } in withheld.iter().filter(|it| !it.place.starts_with(DECLARED)) {
        table.push([place, "", "withheld", "", "", reason]);
    }
    table
}

/// What an exemption covers, as an operator types it.
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
