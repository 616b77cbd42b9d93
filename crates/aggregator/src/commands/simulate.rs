//! `simulate`: recorded incidents under other rules.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use procscan_core::policy::{Fate, Withheld, simulate, withheld_at_start};

use super::printed::escaped;
use super::run::text;
use super::{CommandError, check_config::warn, kept};
use crate::config::{Config, Level, Logger};
use crate::run;
use crate::telemetry;

/// Replays what is kept where the configuration says, under its rules. Reads only.
pub(super) async fn run(path: &Path, since: Duration) -> Result<(), CommandError> {
    let config = Config::load(path, std::env::vars_os().filter_map(text))?;
    telemetry::init(Logger { level: Level::Error, ..config.logger }, false);
    warn(&config);
    let cluster = run::cluster(&config).await?;
    let no_state =
        || anyhow::anyhow!("state.directory: {}: there is no state", config.state.directory().display());
    let kept = kept::read(&config, cluster.as_ref()).await?.ok_or_else(no_state)?;
    let mut policy = config.policy();
    policy.exemptions.extend(kept.rules().0);
    let now = Timestamp::now();
    let from = now.checked_sub(since).map_err(|_| CommandError::Usage("--since: too long ago".to_owned()))?;
    let documents = kept.documents().map_err(anyhow::Error::msg)?;
    for Withheld { reason, .. } in withheld_at_start(&documents, &policy, now) {
        println!("! {}", escaped(&reason));
    }
    let fates = simulate(&documents, &policy, from, now);
    if show(&fates) { Err(CommandError::Changes) } else { Ok(()) }
}

/// Whether anything would differ.
fn show(fates: &[Fate]) -> bool {
    let fate = |is_blocked: bool| if is_blocked { "blocked" } else { "not blocked" };
    let differing: Vec<&Fate> = fates.iter().filter(|fate| fate.differs()).collect();
    for Fate { app, was_blocked, was, would_be_blocked, would_be } in &differing {
        println!("{app}: was {}, would be {}", fate(*was_blocked), fate(*would_be_blocked));
        println!("  - {was}");
        println!("  + {would_be}");
    }
    let blocked = |of: fn(&Fate) -> bool| fates.iter().filter(|fate| of(fate)).count();
    println!(
        "{} Apps were accused; {} were blocked, {} would be. {} would differ.",
        fates.len(),
        blocked(|fate| fate.was_blocked),
        blocked(|fate| fate.would_be_blocked),
        differing.len()
    );
    !differing.is_empty()
}
