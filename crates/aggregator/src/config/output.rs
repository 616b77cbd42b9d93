//! `output`: where the objects go.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Checks;

/// Where the objects go.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Output {
    /// The place to which the aggregator writes the objects.
    pub(crate) mode: OutputMode,
    /// With `directory`: the directory, which the aggregator makes if it is not there. Without it: `procscan-objects`.
    pub(crate) directory: Option<PathBuf>,
}

/// The place to which the aggregator writes the objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OutputMode {
    /// The cluster itself.
    #[default]
    Cluster,
    /// YAML files in a directory, for GitOps or for `kubectl apply -f`.
    Directory,
}

impl Output {
    /// The directory, with `directory`.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.as_deref().unwrap_or(Path::new("procscan-objects"))
    }

    pub(super) fn check(&self, checks: &mut Checks) {
        const PATH: &str = "output.directory";
        checks.takes(PATH, "a directory's path");
        let Some(directory) = &self.directory else { return };
        let shown = format!("{:?}", directory.display().to_string());
        if directory.as_os_str().is_empty() {
            checks.refuse(PATH, &shown, "a directory's path");
        }
        if self.mode != OutputMode::Directory {
            checks.refuse(PATH, &shown, "none unless `output.mode` is `directory`");
        }
    }
}
