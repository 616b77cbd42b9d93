//! `state`: where decisions are kept.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::{Problems, values};

/// Where decisions are kept.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// The kind of place. Without it: where the objects go, so `cluster` with `output.mode: cluster`, else `file`.
    pub mode: Option<StateMode>,
    /// With `cluster`: the namespace of the Incidents, Exemptions and the Lease; the aggregator's own if nothing is said.
    pub namespace: Option<String>,
    /// With `file`: the directory, made if it is not there; `procscan-state` if none is given.
    pub directory: Option<PathBuf>,
    /// How long incidents are kept after they are over.
    #[serde(deserialize_with = "values::duration")]
    pub retention: Duration,
}

/// The kind of place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateMode {
    /// Objects in the cluster.
    Cluster,
    /// A file in a directory, which is one process's alone.
    File,
}

impl Default for State {
    fn default() -> Self {
        Self { mode: None, namespace: None, directory: None, retention: Duration::from_hours(24 * 30) }
    }
}

impl State {
    /// The directory, with `file`.
    pub fn directory(&self) -> &Path {
        self.directory.as_deref().unwrap_or(Path::new("procscan-state"))
    }

    pub(super) fn check(&self, mode: StateMode, problems: &mut Problems) {
        if let Some(directory) = &self.directory {
            let shown = format!("{:?}", directory.display().to_string());
            problems.require(
                !directory.as_os_str().is_empty(),
                "state.directory",
                &shown,
                "a directory's path",
            );
            let allowed = "none unless `state.mode` is `file`";
            problems.require(mode == StateMode::File, "state.directory", &shown, allowed);
        }
        if let Some(namespace) = &self.namespace {
            let shown = format!("{namespace:?}");
            let is_name = procscan_core::names::is_dns_label(namespace);
            problems.require(is_name, "state.namespace", &shown, "a namespace");
            let allowed = "none unless `state.mode` is `cluster`";
            problems.require(mode == StateMode::Cluster, "state.namespace", &shown, allowed);
        }
        problems.require(
            (Duration::from_hours(1)..=Duration::from_hours(24 * 3660)).contains(&self.retention),
            "state.retention",
            humantime::format_duration(self.retention),
            "1h to 3660days",
        );
    }
}
