//! The bodies of operators' requests. Members that an endpoint does not know are refused.

use jiff::Timestamp;
use procscan_core::state::{ExemptionSpec, Match};
use schemars::JsonSchema;
use serde::de::{Deserializer, Error as _, Unexpected};
use serde::{Deserialize, Serialize};

use super::Mode;
use crate::config::values;
use crate::reason;

/// `POST /api/v1/incidents/NAME/approve`.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApproveRequest {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<Reason>,
}

/// `POST /api/v1/incidents/NAME/release`.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReleaseRequest {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) until: Option<Time>,
}

/// `POST /api/v1/exemptions`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExemptRequest {
    /// The name of the exemption; made from the time if it is `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"))]
    pub(crate) id: Option<String>,
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<Part>,
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub(crate) app: Option<Part>,
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub(crate) process: Option<Part>,
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub(crate) rule: Option<Part>,
    pub(crate) reason: Reason,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) until: Option<Time>,
    /// How many tenants with blocked Apps it may open at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) confirm: Option<u32>,
}

impl ExemptRequest {
    /// The exemption of the request, declared by the operator `by`. The name is not a part of it.
    pub(crate) fn spec(&self, by: Option<String>) -> ExemptionSpec {
        let part = |part: &Option<Part>| part.as_ref().map(Match::from);
        ExemptionSpec {
            namespace: part(&self.namespace),
            app: part(&self.app),
            process: part(&self.process),
            rule: part(&self.rule),
            reason: self.reason.0.clone(),
            until: self.until.map(|Time(until)| until),
            confirm: self.confirm,
            by,
        }
    }
}

/// Reads a member that is present. `null` is refused, because the exemption would match more than its operator sees.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// `PUT /api/v1/enforcement`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EnforceRequest {
    /// `null` for the mode of the configuration. It must be given, so that a forgotten mode does not lift a pause.
    #[serde(deserialize_with = "Option::deserialize")]
    pub(crate) mode: Option<Mode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<Reason>,
}

/// A part of an exemption: a text, or a regular expression.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Part {
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    exact: Option<PartText>,
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    regex: Option<PartText>,
}

impl Part {
    /// Matches the whole text.
    pub(crate) fn exact(text: &str) -> Self {
        Self { exact: Some(PartText(text.to_owned())), regex: None }
    }

    /// Matches by a regular expression.
    pub(crate) fn regex(regex: &str) -> Self {
        Self { exact: None, regex: Some(PartText(regex.to_owned())) }
    }
}

impl From<&Part> for Match {
    fn from(Part { exact, regex }: &Part) -> Self {
        let text = |text: &Option<PartText>| text.as_ref().map(|PartText(text)| text.clone());
        Self { exact: text(exact), regex: text(regex) }
    }
}

impl From<&Match> for Part {
    fn from(Match { exact, regex }: &Match) -> Self {
        Self { exact: exact.clone().map(PartText), regex: regex.clone().map(PartText) }
    }
}

/// The text of a [`Part`]: up to [`PartText::MAX_CHARS`] characters.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(transparent)]
#[schemars(extend("minLength" = 1, "maxLength" = Self::MAX_CHARS))]
struct PartText(String);

impl PartText {
    /// The same bound as in the CRDs.
    const MAX_CHARS: usize = 1024;
}

impl<'de> Deserialize<'de> for PartText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let len = text.chars().count();
        if len > Self::MAX_CHARS {
            let expected = format!("a text of up to {} characters", Self::MAX_CHARS);
            return Err(D::Error::invalid_length(len, &expected.as_str()));
        }
        Ok(Self(text))
    }
}

/// The reason of an operator command: not blank, and of a bounded length.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(transparent)]
#[schemars(extend("minLength" = 1, "maxLength" = 1024, "pattern" = r"\S"))]
pub(crate) struct Reason(String);

impl Reason {
    /// The error says what is wrong with `text`.
    pub(crate) fn new(text: String) -> Result<Self, String> {
        match reason::mistake(&text) {
            Some(mistake) => Err(mistake),
            None => Ok(Self(text)),
        }
    }
}

impl From<Reason> for String {
    fn from(Reason(text): Reason) -> Self {
        text
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let invalid =
            |mistake: String| D::Error::invalid_value(Unexpected::Other(&mistake), &reason::ALLOWED);
        Self::new(String::deserialize(deserializer)?).map_err(invalid)
    }
}

/// A time with its zone.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct Time(pub(crate) Timestamp);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        values::a_time(deserializer).map(Self)
    }
}
