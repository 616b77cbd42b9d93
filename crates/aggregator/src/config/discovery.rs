//! `discovery`: how the agents are found.

use std::path::PathBuf;
use std::time::Duration;

use procscan_core::report::Target;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::targets::{self, TargetError};
use super::values::{DurationText, shown};
use super::{Checks, DEFAULT_DOMAIN};

/// How the agents are found.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Discovery {
    /// The source of the agents' addresses.
    pub(crate) mode: DiscoveryMode,
    /// The time between two looks at the source. With `dns` the aggregator resolves the name, with `file` it reads the
    /// file. With `kubernetes` it reads how many agents the DaemonSet should have; a watch reports changes of
    /// the endpoints.
    #[serde(with = "DurationText")]
    pub(crate) refresh: Duration,
    /// With `dns`: the cluster's domain.
    pub(crate) cluster_domain: String,
    /// With `static`: the targets, each `host`, `host:port` or `host:port node=NAME`.
    pub(crate) targets: Vec<String>,
    /// With `file`: a file with one such target per line.
    pub(crate) file: Option<PathBuf>,
}

/// The source of the agents' addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DiscoveryMode {
    /// The endpoints of the Service `daemonset.service_name`, watched.
    #[default]
    Kubernetes,
    /// The addresses of the headless Service `daemonset.service_name`.
    Dns,
    /// The list `targets`.
    Static,
    /// The list in `file`, watched.
    File,
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            mode: DiscoveryMode::default(),
            refresh: Duration::from_secs(10),
            cluster_domain: DEFAULT_DOMAIN.to_owned(),
            targets: Vec::new(),
            file: None,
        }
    }
}

impl Discovery {
    /// `port` is the port of targets without one.
    pub(super) fn check(&self, port: u16, checks: &mut Checks) {
        let allowed = Duration::from_millis(100)..=Duration::from_hours(1);
        checks.duration("discovery.refresh", self.refresh, allowed);
        self.check_targets(port, checks);
        checks.takes("discovery.file", "a file's path");
        match (self.mode, &self.file) {
            (DiscoveryMode::File, None) => {
                checks.say(
                    "discovery.file",
                    "missing value: expected a file's path with `discovery.mode: file`",
                );
            }
            (DiscoveryMode::File, Some(_)) | (_, None) => {}
            (_, Some(file)) => {
                checks.refuse("discovery.file", file.display(), "none unless `discovery.mode` is `file`");
            }
        }
    }

    fn check_targets(&self, port: u16, checks: &mut Checks) {
        const PATH: &str = "discovery.targets";
        checks.takes(PATH, "a list of targets");
        let is_static = self.mode == DiscoveryMode::Static;
        if !is_static && !self.targets.is_empty() {
            checks.refuse(PATH, shown(&json!(self.targets)), "none unless `discovery.mode` is `static`");
        }
        match self.static_targets(port) {
            // Blank entries and comments name none.
            Ok(targets) if targets.is_empty() && is_static => {
                let expected = "at least one host:port with `discovery.mode: static`";
                checks.refuse(PATH, shown(&json!(self.targets)), expected);
            }
            Ok(_) => {}
            Err(error) => checks.say(PATH, error.to_string()),
        }
    }

    /// The targets of the list.
    pub(crate) fn static_targets(&self, port: u16) -> Result<Vec<Target>, TargetError> {
        targets::parse(self.targets.iter().map(String::as_str), port)
    }
}
