//! `output`: where the objects go.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Problems;

/// Where the objects go.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Output {
    /// The kind of place.
    pub mode: OutputMode,
    /// With `directory`: the directory, made if it is not there; `procscan-objects` if none is given.
    pub directory: Option<PathBuf>,
}

/// The kind of place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputMode {
    /// The cluster itself.
    #[default]
    Cluster,
    /// YAML files in a directory, for GitOps or for `kubectl apply -f`.
    Directory,
}

impl Output {
    /// The directory, with `directory`.
    pub fn directory(&self) -> &Path {
        self.directory.as_deref().unwrap_or(Path::new("procscan-objects"))
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        let Some(directory) = &self.directory else { return };
        let shown = format!("{:?}", directory.display().to_string());
        problems.require(!directory.as_os_str().is_empty(), "output.directory", &shown, "a directory's path");
        let allowed = "none unless `output.mode` is `directory`";
        problems.require(self.mode == OutputMode::Directory, "output.directory", &shown, allowed);
    }
}
