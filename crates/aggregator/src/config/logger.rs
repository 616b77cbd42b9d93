//! `logger`: what is logged, and how.

use serde::Deserialize;

/// What is logged, and how. Logs go to standard error.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Logger {
    /// The least severe level that is logged.
    pub level: Level,
    /// The form of a line.
    pub format: Format,
}

/// Severity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Everything that helps to find a fault.
    Debug,
    /// What an operator wants to know afterwards.
    #[default]
    Info,
    /// What may need somebody.
    Warn,
    /// What does need somebody.
    Error,
}

/// The form of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object per line.
    #[default]
    Json,
    /// For people.
    Text,
}
