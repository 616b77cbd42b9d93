//! `GET` and `POST /api/v1/exemptions`.

use jiff::Timestamp;
use procscan_core::policy;
use procscan_core::state;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::requests::Part;

/// A page of the exemptions.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ExemptionPage {
    /// The exemptions that operators have declared at run time, by name.
    pub(crate) exemptions: Vec<Exemption>,
    /// The exemptions that need to be confirmed, those of the configuration included. `None` where it is not known, because the
    /// replica does not lead.
    pub(crate) withheld: Option<Vec<Withheld>>,
    /// The `cursor` of the next page, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<String>,
}

/// An exemption in the list.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Exemption {
    pub(crate) name: String,
    /// The members of an [`ExemptionSpec`]; of an exemption that can't be read, the members that were written.
    #[serde(flatten)]
    #[schemars(with = "ExemptionSpec")]
    pub(crate) spec: Value,
    /// Whether it has an effect. `None` where only the leader knows whether it is withheld.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<ExemptionState>,
    /// Why it has no effect, if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

impl Exemption {
    /// An exemption that can be read.
    pub(crate) fn new(
        name: String,
        spec: &state::ExemptionSpec,
        state: Option<ExemptionState>,
        error: Option<String>,
    ) -> Self {
        Self { name, spec: json!(ExemptionSpec::from(spec)), state, error }
    }
}

/// Whether an exemption has an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ExemptionState {
    InForce,
    /// It would open more tenants than it may, and is not confirmed.
    Withheld,
    /// Its date has passed.
    Over,
    /// It has a mistake.
    Unreadable,
}

impl ExemptionState {
    /// The name of the state, as the API writes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::InForce => "in_force",
            Self::Withheld => "withheld",
            Self::Over => "over",
            Self::Unreadable => "unreadable",
        }
    }

    /// The state as a text for people.
    pub(crate) fn as_text(self) -> &'static str {
        match self {
            Self::InForce => "in force",
            Self::Withheld => "withheld",
            Self::Over => "over",
            Self::Unreadable => "unreadable",
        }
    }
}

/// An exemption that has no effect until it is confirmed.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Withheld {
    /// `Exemption NAME`, or its place in the configuration.
    pub(crate) place: String,
    pub(crate) reason: String,
}

impl From<&policy::Withheld> for Withheld {
    fn from(withheld: &policy::Withheld) -> Self {
        Self { place: withheld.place.clone(), reason: withheld.reason.clone() }
    }
}

/// The answer to an operator who has made an exemption.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct NewExemption {
    pub(crate) name: String,
    pub(crate) exemption: ExemptionSpec,
}

/// What an exemption covers, and why.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ExemptionSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<Part>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) app: Option<Part>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) process: Option<Part>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rule: Option<Part>,
    pub(crate) reason: String,
    /// Until when; for ever if it is `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) until: Option<Timestamp>,
    /// How many tenants with blocked Apps it may open at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) confirm: Option<u32>,
    /// The operator who has declared it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) by: Option<String>,
}

impl From<&state::ExemptionSpec> for ExemptionSpec {
    fn from(spec: &state::ExemptionSpec) -> Self {
        let state::ExemptionSpec { namespace, app, process, rule, reason, until, confirm, by } = spec;
        let part = |part: &Option<state::Match>| part.as_ref().map(Part::from);
        Self {
            namespace: part(namespace),
            app: part(app),
            process: part(process),
            rule: part(rule),
            reason: reason.clone(),
            until: *until,
            confirm: *confirm,
            by: by.clone(),
        }
    }
}
