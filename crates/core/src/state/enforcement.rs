//! The mode that operators set at run time. It takes precedence over the configuration.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::decision::Mode;

/// The name of the only object of this kind.
pub const NAME: &str = "procscan";

/// The mode of enforcement, as operators set it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnforcementSpec {
    /// `enforce`, `dry-run` or `paused`. If absent, the configuration decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Why, for other operators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
    /// The operator who set the mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub by: Option<String>,
}
