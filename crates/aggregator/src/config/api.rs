//! `api`: which accounts may use the HTTP API, and how much memory its answers take.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Problems, token_file, values};

/// Which accounts may use the HTTP API, and how much memory its answers take.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// Who says who asks, and whether they may; see [`super::Config::auth`].
    pub auth: Option<Auth>,
    /// With `tokens`: a file with one line `NAME TOKEN` for each person.
    pub token_file: Option<PathBuf>,
    /// What all answers in flight may take together, in bytes; more are refused until readers have theirs.
    #[serde(deserialize_with = "values::size")]
    pub max_in_flight: usize,
}

impl Default for Api {
    fn default() -> Self {
        Self { auth: None, token_file: None, max_in_flight: 8 << 20 }
    }
}

/// Who says who asks, and whether they may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auth {
    /// The cluster: its accounts and its RBAC.
    Kubernetes,
    /// A file with the tokens of the people who may do everything.
    Tokens,
    /// Nobody: everybody may read, and nobody may change anything.
    None,
}

impl Api {
    /// `auth` is what is in force, written down or not.
    pub(super) fn check(&self, auth: Auth, problems: &mut Problems) {
        let shown = bytesize::ByteSize(self.max_in_flight as u64).display().iec();
        // Below that, few pages have room.
        let allowed = (8 << 20..=4 << 30).contains(&self.max_in_flight);
        problems.require(allowed, "api.max_in_flight", shown, "8MiB to 4GiB");
        match (auth, &self.token_file) {
            (Auth::Tokens, Some(file)) => {
                if let Err(error) = token_file::read(file) {
                    problems.say("api.token_file", format!("{}: {error}", file.display()));
                }
            }
            (Auth::Tokens, None) => {
                problems.refuse("api.token_file", "nothing", "a file's path with `api.auth: tokens`");
            }
            (_, Some(file)) => {
                problems.refuse("api.token_file", file.display(), "none unless `api.auth` is `tokens`");
            }
            (_, None) => {}
        }
    }
}
