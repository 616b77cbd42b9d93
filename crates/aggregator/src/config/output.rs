//! `output`: where the objects go.

use std::path::PathBuf;

use serde::Deserialize;

use super::Problems;

/// Where the objects go.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Output {
    /// The kind of place.
    pub mode: Mode,
    /// With `directory`: the directory, made if it is not there.
    pub directory: PathBuf,
}

/// The kind of place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// YAML files in a directory, for GitOps or for `kubectl apply -f`.
    #[default]
    Directory,
}

impl Default for Output {
    fn default() -> Self {
        Self { mode: Mode::default(), directory: PathBuf::from("procscan-objects") }
    }
}

impl Output {
    pub(super) fn check(&self, problems: &mut Problems) {
        let named = !self.directory.as_os_str().is_empty();
        problems.require(named, "output.directory", "\"\"", "a directory's path");
    }
}
