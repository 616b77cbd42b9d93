//! Whether decisions take effect: what operators say at run time, over what the configuration says.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::decision::Mode;

/// The name of the only one.
pub const NAME: &str = "procscan";

/// What operators say of all decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnforcementSpec {
    /// `enforce`, `dry-run` or `paused`; what the configuration says if nothing is said here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Why, for the next person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
    /// Who said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub by: Option<String>,
}
