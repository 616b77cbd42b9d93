//! `status`: whether each part of a running service works, by `/readyz`.

use serde_json::{Map, Value};

use super::CommandError;
use super::client::Client;
use super::printed::{self, Table};
use crate::args::operators as args;

pub(super) async fn status(args: args::Status) -> Result<(), CommandError> {
    let client = Client::new(&args.service).await?;
    let body = client.readiness().await?;
    let members: Map<String, Value> = client.read(&body)?;
    match client.document(&body, args.output)? {
        Some(document) => printed::print(&format!("{}\n", document.trim_end()))?,
        None => printed::print(&table(&members).to_string())?,
    }
    let failed = failed(&members);
    if failed.is_empty() {
        return Ok(());
    }
    Err(anyhow::anyhow!("not ok: {}", failed.join(", ")).into())
}

/// The parts that do not work.
fn failed(members: &Map<String, Value>) -> Vec<&str> {
    let is_ready = members.get("status").is_some_and(|status| *status == "ready");
    let service = (!is_ready).then_some("service");
    let has_error = |part: &Value| part["ok"] == false || part["error"].is_string();
    let parts = members.iter().filter(|(_, part)| has_error(part)).map(|(name, _)| name.as_str());
    service.into_iter().chain(parts).collect()
}

fn table(members: &Map<String, Value>) -> Table<3> {
    let mut table = Table::new(["PART", "STATE", "DETAIL"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match members.get("status") {
        Some(Value::String(status)) => table.push(["service", status, &rounds(members)]),
        _ => table.push(["service", "not ready", &text(members.get("detail").unwrap_or(&Value::Null))]),
    }
    for (name, part) in members.iter().filter(|(_, part)| part.is_object()) {
        let state = if part["error"].is_string() || part["ok"] == false { "error" } else { "ok" };
        let detail = match &part["error"] {
            Value::String(error) => error.clone(),
            _ => detail(name, part),
        };
        table.push([name, state, &detail]);
    }
    table
}

/// What is worth a look although the part works.
fn detail(name: &str, part: &Value) -> String {
    let text = |member: &str| part[member].as_str().unwrap_or_default();
    match name {
        "targets" => format!("{} of {} have a fresh report", part["fresh"], part["expected"]),
        "leader" if part["leading"] == true => "this replica".to_owned(),
        "leader" => text("name").to_owned(),
        "api_server" => text("address").to_owned(),
        "config" => format!("{}, read at {}", text("hash"), text("loaded")),
        "certificate" => format!("expires at {}", text("expires")),
        "evidence" if part["waiting"].as_u64() > Some(0) => {
            format!("{} namespaces wait to be looked up", part["waiting"])
        }
        _ => String::new(),
    }
}

/// Without the right to read everything, there are no details.
fn rounds(members: &Map<String, Value>) -> String {
    match members.get("rounds") {
        Some(rounds) => format!("{rounds} rounds"),
        None => "a token that may read everything shows more".to_owned(),
    }
}
