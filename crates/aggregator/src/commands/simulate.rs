//! `simulate`: recorded incidents under other rules.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use procscan_core::policy::{Fate, simulate};

use super::CommandError;
use super::run::text;
use crate::config::{Config, Level, Logger, StateMode};
use crate::run;
use crate::state::sqlite::FILES;
use crate::state::{FileStore, Kept};
use crate::telemetry;

/// Replays what is kept where the configuration says, under its rules. Reads only.
pub(super) async fn run(path: &Path, since: Duration) -> Result<(), CommandError> {
    let config = Config::load(path, std::env::vars_os().filter_map(text))?;
    telemetry::init(Logger { level: Level::Error, ..config.logger }, false);
    let kept = kept(&config).await?;
    let mut policy = config.policy();
    policy.exemptions.extend(kept.rules().0);
    let now = Timestamp::now();
    let from = now.checked_sub(since).map_err(|_| CommandError::Usage("--since: too long ago".to_owned()))?;
    let documents = kept.documents().map_err(anyhow::Error::msg)?;
    let fates = simulate(&documents, &policy, from, now);
    if show(&fates) { Err(CommandError::Changes) } else { Ok(()) }
}

async fn kept(config: &Config) -> anyhow::Result<Kept> {
    match (config.state_mode(), run::cluster(config).await?) {
        (StateMode::Cluster, Some(cluster)) => Ok(run::objects(config, &cluster).read().await?),
        (StateMode::Cluster, None) => anyhow::bail!("state.mode: cluster needs a cluster"),
        (StateMode::File, _) => {
            let directory = config.state.directory();
            let copy =
                Copy::of(directory).with_context(|| format!("state.directory: {}", directory.display()))?;
            let store = FileStore::open(&copy.0).await?;
            store.load().await?;
            let kept = Kept::clone(&store.shown().borrow());
            // In the copy a damaged file has been set aside, and there is nothing in its place.
            let is_damaged = store.has_set_aside().await;
            anyhow::ensure!(
                !is_damaged,
                "state.directory: {}: the state is damaged, or was being written just now; nothing is simulated",
                directory.display()
            );
            Ok(kept)
        }
    }
}

/// The state file once more, in a place of its own: opening it makes, mends and locks files, and a service may be using it.
struct Copy(PathBuf);

impl Copy {
    fn of(directory: &Path) -> std::io::Result<Self> {
        let copy = Self(std::env::temp_dir().join(format!("procscan-simulate-{}", std::process::id())));
        // What is in it is nobody else's business.
        DirBuilder::new().mode(0o700).create(&copy.0)?;
        for name in FILES {
            match std::fs::copy(directory.join(name), copy.0.join(name)) {
                // There is a journal only while something is written.
                Err(error) if error.kind() == ErrorKind::NotFound && name != FILES[0] => {}
                copied => drop(copied?),
            }
        }
        Ok(copy)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{} can't be removed: {error}", self.0.display());
        }
    }
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
