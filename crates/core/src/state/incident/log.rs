//! The log of an incident: its decisions, each with its actor and reason.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::decision::DecisionKind;
use crate::names::Text;

/// A kind of decision. Kinds that only another version knows are persisted as they are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum LoggedKind {
    /// A kind that this version knows.
    Known(DecisionKind),
    /// A kind that only another version knows.
    Other(Text),
}

impl LoggedKind {
    /// The kind, if this version knows it.
    pub fn known(&self) -> Option<DecisionKind> {
        match self {
            Self::Known(kind) => Some(*kind),
            Self::Other(_) => None,
        }
    }

    /// The kind as a label, `snake_case`.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(kind) => kind.as_str(),
            Self::Other(text) => text,
        }
    }
}

impl From<DecisionKind> for LoggedKind {
    fn from(kind: DecisionKind) -> Self {
        Self::Known(kind)
    }
}

impl PartialEq<DecisionKind> for LoggedKind {
    fn eq(&self, kind: &DecisionKind) -> bool {
        self.known() == Some(*kind)
    }
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IncidentDecision {
    /// When it was decided.
    pub at: Timestamp,
    /// The kind of the decision.
    #[schemars(with = "String")]
    pub decision: LoggedKind,
    /// The actor: `policy` for the rules, else the operator's name.
    pub actor: Text,
    /// Why, for people, with the evidence.
    pub reason: Text,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_that_only_another_version_knows_equals_no_known_kind() {
        let known = LoggedKind::from(DecisionKind::Blocked);
        assert!(known == DecisionKind::Blocked && known != DecisionKind::Released);
        let other = LoggedKind::Other("blocked_twice".into());
        assert!(other != DecisionKind::Blocked && other.as_str() == "blocked_twice");
    }
}
