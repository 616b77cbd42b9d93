//! Reads the configuration again when its file changes, and on SIGHUP.
//!
//! The file is compared by its contents every [`PERIOD`], because the files of a `ConfigMap` are replaced by moving a link. A change
//! counts once two looks have found the same contents, so that a half-written file is not read. A file with a mistake is
//! refused as a whole, and the configuration in force stays. Of a good file, the sections that the running parts can take are
//! applied; the other keys that have changed are named, and need a restart.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use procscan_core::policy::Policy;
use procscan_core::resources::Settings;
use ring::digest;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, ConfigError, Level};
use crate::counters::{Counters, count};
use crate::hex;
use crate::plain_file;

/// How often the file is compared.
const PERIOD: Duration = Duration::from_secs(2);

/// Where the configuration is.
#[derive(Clone, Debug)]
pub(crate) struct ConfigFile {
    /// The file.
    pub(crate) path: PathBuf,
    /// The variables that count over it. They do not change while the process runs.
    pub(crate) variables: Vec<(String, OsString)>,
    /// Asks for the file to be read at once.
    pub(crate) asked: Arc<Notify>,
}

/// The configuration in force, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigStatus {
    /// Tells configurations apart: equal ones have the same.
    pub(crate) hash: String,
    /// When it was read.
    pub(crate) loaded: Timestamp,
    /// Why the file that is there now is refused; `None` if it is in force.
    pub(crate) error: Option<String>,
    /// The keys that differ in the file, and need a restart.
    pub(crate) needs_restart: Vec<String>,
}

impl ConfigStatus {
    /// Of a configuration that has just been read.
    pub(crate) fn of(config: &Config) -> Self {
        let (hash, loaded) = (hash(config), Timestamp::now());
        Self { hash, loaded, error: None, needs_restart: Vec::new() }
    }

    /// What operators should know of it, on one line; `None` if all is in force.
    pub(crate) fn trouble(&self) -> Option<String> {
        let restart = (!self.needs_restart.is_empty()).then(|| {
            format!("these keys have changed and need a restart: {}", self.needs_restart.join(", "))
        });
        let error = self.error.as_ref().map(|error| format!("the file is refused: {error}"));
        match (error, restart) {
            (Some(error), Some(restart)) => Some(format!("{error}; {restart}")),
            (error, restart) => error.or(restart),
        }
    }
}

/// The parts that take a new configuration while they run.
#[derive(Debug)]
pub(crate) struct Receivers {
    /// The policy's rules.
    pub(crate) policy: watch::Sender<Arc<Policy>>,
    /// What the objects look like.
    pub(crate) settings: watch::Sender<Arc<Settings>>,
    /// The status for operators.
    pub(crate) status: watch::Sender<ConfigStatus>,
}

/// Owns the configuration in force.
#[derive(Debug)]
pub(crate) struct Reload {
    file: ConfigFile,
    config: Config,
    /// The namespace of the service itself, which the policy protects.
    own_namespace: Option<String>,
    receivers: Receivers,
    counters: Counters,
    /// The contents that were tried last; `None` before the first look.
    tried: Option<String>,
    /// The sections of the last file without a mistake.
    sections: BTreeSet<String>,
    /// The contents that the last look found, if they have not been tried.
    seen: Option<String>,
}

/// What came of an attempt.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Applied,
    NeedsRestart,
    Refused,
    Unchanged,
}

impl Outcome {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::NeedsRestart => "needs_restart",
            Self::Refused => "refused",
            Self::Unchanged => "unchanged",
        }
    }
}

impl Reload {
    /// `config` is in force, and was read from `file`.
    pub(crate) fn new(
        file: ConfigFile,
        config: Config,
        own_namespace: Option<String>,
        receivers: Receivers,
        counters: Counters,
    ) -> Self {
        // The first look compares the file with `config`: it may have changed since it was read.
        let (tried, sections, seen) = (None, BTreeSet::new(), None);
        Self { file, config, own_namespace, receivers, counters, tried, sections, seen }
    }

    /// Runs until cancelled.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        let mut timer = tokio::time::interval(PERIOD);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let is_asked = tokio::select! {
                () = cancel.cancelled() => return,
                () = self.file.asked.notified() => true,
                _ = timer.tick() => false,
            };
            let path = self.file.path.clone();
            let read =
                tokio::task::spawn_blocking(move || plain_file::read_text(&path, plain_file::MAX_TEXT)).await;
            let Ok(read) = read else { continue };
            self.look(read.map_err(|e| e.to_string()), is_asked);
        }
    }

    /// Looks at the contents of the file. A request is answered at once, also if they have not changed.
    fn look(&mut self, read: Result<String, String>, is_asked: bool) {
        let contents = match &read {
            Ok(text) => text.clone(),
            Err(error) => format!("\0{error}"),
        };
        let is_same = self.tried.as_ref() == Some(&contents);
        if is_same && !is_asked {
            self.seen = None;
            return;
        }
        if !is_asked && self.seen.as_ref() != Some(&contents) {
            self.seen = Some(contents);
            return;
        }
        let is_first = self.tried.is_none();
        (self.tried, self.seen) = (Some(contents), None);
        let loaded = match read {
            Ok(text) => self.load(&text),
            Err(error) => Err(ConfigError::new(self.file.path.display(), format!("can't be read: {error}"))),
        };
        let outcome = match loaded {
            Ok(new) => self.apply(&new),
            Err(error) => self.refuse(&error),
        };
        if is_first && !is_asked && outcome == Outcome::Unchanged {
            return;
        }
        if outcome == Outcome::Unchanged {
            tracing::info!(file = %self.file.path.display(), "the configuration has not changed");
        }
        count(&self.counters.config_reloads, "result", outcome.as_str());
    }

    /// Refuses a file that lacks a section which the last one had, because it may have been cut off: the defaults would enforce
    /// what the section had paused or exempted. After a restart such a file counts.
    fn load(&mut self, text: &str) -> Result<Config, ConfigError> {
        let name = self.file.path.display().to_string();
        let config = Config::check_with_files(text, &name, self.file.variables.clone(), Timestamp::now())?;
        let sections = Config::sections_of(text);
        let gone: Vec<&str> = self.sections.difference(&sections).map(String::as_str).collect();
        if !gone.is_empty() {
            let gone = gone.join(", ");
            let problem = format!(
                "the file no longer has these sections, so it may be cut off: {gone}; leave them in the file with their defaults, \
                 or restart the service"
            );
            return Err(ConfigError::new(name, problem));
        }
        self.sections = sections;
        Ok(config)
    }

    fn apply(&mut self, new: &Config) -> Outcome {
        let in_force = match self.config.with_reloaded(new) {
            Ok(in_force) => in_force,
            // The sections that are applied may hold only together with those that are not.
            Err(error) => return self.refuse(&error),
        };
        let applied = self.config.differences(&in_force);
        let needs_restart = in_force.differences(new);
        for warning in &new.warnings {
            tracing::warn!("{warning}");
        }
        self.config = in_force;
        let mut policy = self.config.policy();
        policy.protected.extend(self.own_namespace.clone());
        if !applied.is_empty() {
            // Of the same configuration, nothing is sent: a new policy would be evaluated.
            self.receivers.policy.send_replace(Arc::new(policy));
            self.receivers.settings.send_replace(Arc::new(self.config.settings()));
            set_level(self.config.logger.level);
        }
        let status = ConfigStatus { needs_restart: needs_restart.clone(), ..ConfigStatus::of(&self.config) };
        self.receivers.status.send_replace(status);
        let file = self.file.path.display();
        if needs_restart.is_empty() && applied.is_empty() {
            return Outcome::Unchanged;
        }
        if !applied.is_empty() {
            tracing::info!(%file, changed = applied.join(", "), "the new configuration is in force");
        }
        if needs_restart.is_empty() {
            return Outcome::Applied;
        }
        tracing::warn!(
            %file,
            keys = needs_restart.join(", "),
            "these keys of the configuration have changed and need a restart of the service"
        );
        Outcome::NeedsRestart
    }

    fn refuse(&self, error: &ConfigError) -> Outcome {
        for line in error.to_string().lines() {
            tracing::error!(
                alert = "config",
                error = line,
                "the new configuration is refused; the one in force stays"
            );
        }
        let error = error.to_string().lines().collect::<Vec<_>>().join("; ");
        self.receivers.status.send_modify(|status| status.error = Some(error));
        Outcome::Refused
    }
}

/// The first 16 hexadecimal digits of the SHA-256 of the configuration.
fn hash(config: &Config) -> String {
    let text = serde_json::to_vec(config).unwrap_or_default();
    let digest = digest::digest(&digest::SHA256, &text);
    let mut hash = hex::encode(digest.as_ref());
    hash.truncate(16);
    hash
}

fn set_level(level: Level) {
    crate::telemetry::set_level(level);
}
