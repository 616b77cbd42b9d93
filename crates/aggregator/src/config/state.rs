//! `state`: where decisions are persisted.

use std::path::{Path, PathBuf};
use std::time::Duration;

use procscan_core::names::{LABEL, is_dns_label};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Checks;
use super::values::DurationText;

/// Where the aggregator persists incidents, exemptions and operator commands, so that they outlast a restart.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct State {
    /// The time for which incidents are persisted after their end.
    #[serde(with = "DurationText")]
    pub(crate) retention: Duration,
    /// The place. Without it: `cluster` with `output.mode: cluster`, else `file`.
    pub(crate) mode: Option<StateMode>,
    /// With `cluster`: the namespace of the Incidents, the Exemptions and the Lease. Without it: the aggregator's own.
    pub(crate) namespace: Option<String>,
    /// With `file`: the directory, which the aggregator makes if it is not there. Without it: `procscan-state`.
    pub(crate) directory: Option<PathBuf>,
}

/// The place where decisions are persisted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StateMode {
    /// Objects in the cluster.
    Cluster,
    /// A file in `directory`, which one process at a time uses.
    File,
}

impl Default for State {
    fn default() -> Self {
        Self { retention: Duration::from_hours(24 * 30), mode: None, namespace: None, directory: None }
    }
}

impl State {
    /// The directory, with `file`.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.as_deref().unwrap_or(Path::new("procscan-state"))
    }

    /// `mode` is the place in force, written down or not.
    pub(super) fn check(&self, mode: StateMode, checks: &mut Checks) {
        let allowed = Duration::from_hours(1)..=Duration::from_hours(24 * 3660);
        checks.duration("state.retention", self.retention, allowed);
        checks.text("state.namespace", self.namespace.as_deref(), LABEL, is_dns_label);
        if let Some(namespace) = self.namespace.as_ref().filter(|_| mode != StateMode::Cluster) {
            let expected = "none unless `state.mode` is `cluster`";
            checks.refuse("state.namespace", format!("{namespace:?}"), expected);
        }
        checks.takes("state.directory", "a directory's path");
        let Some(directory) = &self.directory else { return };
        let shown = format!("{:?}", directory.display().to_string());
        if directory.as_os_str().is_empty() {
            checks.refuse("state.directory", &shown, "a directory's path");
        }
        if mode != StateMode::File {
            checks.refuse("state.directory", &shown, "none unless `state.mode` is `file`");
        }
    }
}
