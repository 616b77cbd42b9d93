//! `api`: who may use the HTTP API.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Problems, token_file};

/// Who may use the HTTP API.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// Who says who asks, and whether they may; see [`super::Config::auth`].
    pub auth: Option<Auth>,
    /// With `tokens`: a file with one line `NAME TOKEN` for each person.
    pub token_file: Option<PathBuf>,
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
