//! `logger`: what is logged, and how.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is logged, and how. Logs go to standard error.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Logger {
    /// The least severe level that is logged.
    pub(crate) level: Level,
    /// The form of a line.
    pub(crate) format: Format,
}

/// Severity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// Details that help to find a fault.
    Debug,
    /// Events that an operator may look up later.
    #[default]
    Info,
    /// Trouble that an operator may have to look at.
    Warn,
    /// Trouble that an operator has to look at.
    Error,
}

/// The form of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// One JSON object per line.
    #[default]
    Json,
    /// Text for people.
    Text,
}
