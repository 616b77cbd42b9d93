//! The grace of an incident.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::Text;

/// A grace that has begun. The tenant is given one in an incident, and another one after an operator's release or an
/// exemption.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Grace {
    /// When it ends.
    pub until: Timestamp,
    /// When it ends, by the clock that runs only while a replica leads.
    pub until_by_clock: Timestamp,
    /// When its warning was written, if it was.
    #[serde(rename = "toldAt", default, skip_serializing_if = "Option::is_none")]
    pub told: Option<Timestamp>,
    /// When its warning was written, by the clock that runs only while a replica leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told_by_clock: Option<Timestamp>,
    /// The process of an accusation that it was given for.
    pub process: Text,
    /// The rule that the process matches; empty for a keyword of the command line.
    #[serde(default)]
    pub regex: Text,
    /// Since when exemptions or releases have covered all accusations of the App, by the clock that runs only while a
    /// replica leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_since: Option<Timestamp>,
}
