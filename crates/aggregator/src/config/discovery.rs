//! `discovery`: how the agents are found.

use std::path::PathBuf;
use std::time::Duration;

use procscan_core::report::Target;
use serde::Deserialize;

use super::{Problems, targets, values};
use crate::plain_file;

/// How the agents are found.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Discovery {
    /// Where the addresses come from.
    pub mode: DiscoveryMode,
    /// With `static`: the targets, as `host`, `host:port` or `host:port node=NAME`.
    pub targets: Vec<String>,
    /// With `file`: a file with one such target per line.
    pub file: Option<PathBuf>,
    /// With `dns`: how often the name is resolved. With `file`: how often the file is looked at. With `kubernetes`, where
    /// changes come by themselves: how often the number of agents that should exist is looked up.
    #[serde(deserialize_with = "values::duration")]
    pub refresh: Duration,
    /// With `dns`: the cluster's domain.
    pub cluster_domain: String,
}

/// Where the agents' addresses come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiscoveryMode {
    /// The EndpointSlices of the Service `daemonset.service_name`.
    #[default]
    Kubernetes,
    /// The A and AAAA records of the headless Service `daemonset.service_name`.
    Dns,
    /// A list in the configuration.
    Static,
    /// A list in a file that is watched.
    File,
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            mode: DiscoveryMode::default(),
            targets: Vec::new(),
            file: None,
            refresh: Duration::from_secs(10),
            cluster_domain: "cluster.local".to_owned(),
        }
    }
}

impl Discovery {
    pub(super) fn check(&self, port: u16, problems: &mut Problems) {
        let least = Duration::from_millis(100);
        let shown = humantime::format_duration(self.refresh);
        problems.require(
            (least..=Duration::from_hours(1)).contains(&self.refresh),
            "discovery.refresh",
            shown,
            "100ms to 1h",
        );
        let is_static = self.mode == DiscoveryMode::Static;
        // Blank entries and comments name none.
        if is_static && self.static_targets(port).is_ok_and(|targets| targets.is_empty()) {
            let value = if self.targets.is_empty() { "an empty list" } else { "a list without a target" };
            let allowed = "at least one host:port with `discovery.mode: static`";
            problems.refuse("discovery.targets", value, allowed);
        }
        if !is_static && !self.targets.is_empty() {
            problems.refuse("discovery.targets", "a list", "none unless `discovery.mode` is `static`");
        }
        match (self.mode, &self.file) {
            // A list that is wrong from the start is a mistake to be told now; one that becomes wrong later is not.
            (DiscoveryMode::File, Some(file)) => match plain_file::read_text(file, plain_file::MAX_TEXT) {
                Ok(text) => {
                    if let Err(error) = targets::parse(text.lines(), port) {
                        problems.say("discovery.file", format!("{}: {error}", file.display()));
                    }
                }
                Err(e) => {
                    let allowed = format!("a file that can be read ({e})");
                    problems.refuse("discovery.file", file.display(), allowed);
                }
            },
            (DiscoveryMode::File, None) => {
                problems.refuse("discovery.file", "nothing", "a file's path with `discovery.mode: file`");
            }
            (_, Some(file)) => {
                problems.refuse("discovery.file", file.display(), "none unless `discovery.mode` is `file`");
            }
            (_, None) => {}
        }
        if let Err(error) = self.static_targets(port) {
            problems.say("discovery.targets", error.to_string());
        }
    }

    /// Finds a file of targets that names none: agents may be added later, but until then nothing is collected.
    pub(super) fn warn(&self, port: u16, found: &mut Problems) {
        let Some(file) = self.file.as_ref().filter(|_| self.mode == DiscoveryMode::File) else { return };
        let text = plain_file::read_text(file, plain_file::MAX_TEXT).unwrap_or_default();
        if targets::parse(text.lines(), port).is_ok_and(|targets| targets.is_empty()) {
            found.say("discovery.file", format!("{}: {}", file.display(), targets::EMPTY));
        }
    }

    /// The targets of the list.
    pub fn static_targets(&self, port: u16) -> Result<Vec<Target>, targets::TargetError> {
        targets::parse(self.targets.iter().map(String::as_str), port)
    }
}
