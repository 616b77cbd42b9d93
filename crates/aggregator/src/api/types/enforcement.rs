//! `GET` and `PUT /api/v1/enforcement`.

use procscan_core::decision;
use schemars::JsonSchema;
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};

/// The mode of enforcement, as the API writes it. Requests may use `dry-run` too, as the configuration does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    Enforce,
    DryRun,
    Paused,
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        match name.as_str() {
            "enforce" => Ok(Self::Enforce),
            "dry_run" | "dry-run" => Ok(Self::DryRun),
            "paused" => Ok(Self::Paused),
            // Not derived with an alias, because the error would list `dry-run` as another mode.
            _ => Err(D::Error::unknown_variant(&name, &["enforce", "dry_run", "paused"])),
        }
    }
}

impl From<decision::Mode> for Mode {
    fn from(mode: decision::Mode) -> Self {
        match mode {
            decision::Mode::Enforce => Self::Enforce,
            decision::Mode::DryRun => Self::DryRun,
            decision::Mode::Paused => Self::Paused,
        }
    }
}

impl From<Mode> for decision::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Enforce => Self::Enforce,
            Mode::DryRun => Self::DryRun,
            Mode::Paused => Self::Paused,
        }
    }
}

/// The mode in force, and what operators have declared.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Enforcement {
    /// The mode in force.
    pub(crate) mode: Mode,
    /// The mode that operators have declared; `None` if the configuration counts.
    pub(crate) operators: Option<Mode>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) by: Option<String>,
}

/// The answer to an operator who declares a mode.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct EnforcementChange {
    /// The mode that was declared; `None` if the configuration counts again.
    pub(crate) mode: Option<Mode>,
    /// The mode in force from now on.
    pub(crate) in_force: Mode,
    pub(crate) reason: Option<String>,
    pub(crate) by: Option<String>,
}
