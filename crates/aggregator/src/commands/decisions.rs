//! `decisions`: the log, for people.

use jiff::Timestamp;

use super::CommandError;
use super::client::{Client, Endpoint};
use super::printed::{self, Table};
use crate::api::types::{Decision, DecisionPage};
use crate::args;

pub(super) async fn decisions(args: args::operators::Decisions) -> Result<(), CommandError> {
    let since = args.since.map(|since| since.before(Timestamp::now())).transpose();
    let since = since.map_err(|e| CommandError::Usage(format!("--since: {e}")))?;
    let client = Client::new(&args.service).await?;
    let endpoint = Endpoint::at(&["decisions"])
        .with("namespace", args.namespace)
        .with("name", args.app)
        .with("decision", args.decision)
        .with("actor", args.actor)
        .with("since", since);
    let most = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let body = client.list(&endpoint, "decisions", Some(most)).await?;
    if let Some(document) = client.document(&body, args.output)? {
        return Ok(printed::print(&document)?);
    }
    let DecisionPage { decisions, more, .. } = client.read(&body)?;
    if decisions.is_empty() {
        printed::note("There are no such decisions.");
        return Ok(());
    }
    let mut table = Table::new(["TIME", "APP", "DECISION", "ACTOR", "REASON"]);
    for Decision { at, app, exemption, kind, actor, reason, dry_run, .. } in &decisions {
        let of = match (app, exemption) {
            (Some(app), _) => app.to_string(),
            (None, Some(exemption)) => format!("(exemption {exemption})"),
            (None, None) => "(all)".to_owned(),
        };
        let decision = format!("{}{}", kind.as_str(), if *dry_run { " (dry-run)" } else { "" });
        table.push([&printed::time(*at), &of, &decision, actor, reason]);
    }
    printed::print(&table.to_string())?;
    if more > 0 {
        printed::note(format_args!("There are {more} more; --limit shows up to 1000."));
    }
    Ok(())
}
