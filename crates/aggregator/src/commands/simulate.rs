//! `simulate`: recorded incidents under other rules.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use procscan_core::policy::{SimulatedOutcome, Withheld, simulate, withheld_at_start};

use super::printed::{self, escaped};
use super::service::environment;
use super::{CommandError, check_config::warn, state_copy};
use crate::config::{Config, Level, Logger};
use crate::counters::Counters;
use crate::run;
use crate::telemetry;

/// Replays the persisted state under the rules of a configuration. Only reads.
pub(super) async fn run(path: &Path, since: Duration) -> Result<(), CommandError> {
    let config = Config::load(path, environment())?;
    telemetry::init(Logger { level: Level::Error, ..config.logger }, false);
    warn(&config);
    let cluster = run::cluster(&config, Counters::default()).await?;
    let no_state =
        || anyhow::anyhow!("state.directory: {}: there is no state", config.state.directory().display());
    let persisted = state_copy::read(&config, cluster.as_ref()).await?.ok_or_else(no_state)?;
    let mut policy = config.policy();
    policy.exemptions.extend(persisted.rules().0);
    let now = Timestamp::now();
    let from = now.checked_sub(since).map_err(|_| CommandError::Usage("--since: too long ago".to_owned()))?;
    let documents = persisted.documents().map_err(anyhow::Error::msg)?;
    let mut text = String::new();
    for Withheld { reason, .. } in withheld_at_start(&documents, &policy, now) {
        let _ = writeln!(text, "! {}", escaped(&reason));
    }
    let differs = show(&simulate(&documents, &policy, from, now), &mut text);
    printed::print(&text)?;
    if differs { Err(CommandError::Changes) } else { Ok(()) }
}

/// Adds what would differ to `text`. Returns whether anything would.
fn show(fates: &[SimulatedOutcome], text: &mut String) -> bool {
    let fate = |is_blocked: bool| if is_blocked { "blocked" } else { "not blocked" };
    let differing: Vec<&SimulatedOutcome> = fates.iter().filter(|fate| fate.differs()).collect();
    for SimulatedOutcome { app, was_blocked, was, would_be_blocked, would_be } in &differing {
        let _ = writeln!(text, "{app}: was {}, would be {}", fate(*was_blocked), fate(*would_be_blocked));
        let _ = writeln!(text, "  - {was}\n  + {would_be}");
    }
    let blocked = |of: fn(&SimulatedOutcome) -> bool| fates.iter().filter(|fate| of(fate)).count();
    let _ = writeln!(
        text,
        "{} Apps were accused; {} were blocked, {} would be. {} would differ.",
        fates.len(),
        blocked(|fate| fate.was_blocked),
        blocked(|fate| fate.would_be_blocked),
        differing.len()
    );
    !differing.is_empty()
}
