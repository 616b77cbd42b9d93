//! Decisions: the entries of the log, each with its actor and its reason.

use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::{App, Text};

/// Whether decisions take effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Decisions take effect.
    #[default]
    Enforce,
    /// Decisions are made and logged; no decision is persisted, and no object of the plan is written.
    DryRun,
    /// Existing blocks stay; only operators block or release anything new.
    Paused,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The time of the decision, by our own wall clock.
    pub at: Timestamp,
    /// The App.
    pub app: App,
    /// The kind of the decision.
    pub kind: DecisionKind,
    /// The actor: the rules or an operator.
    pub actor: Actor,
    /// The reason, as a text for people. Tenants' texts in it are escaped.
    pub reason: Text,
    /// Whether the decision was made in dry-run and had no effect.
    pub dry_run: bool,
}

/// The kinds of decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DecisionKind {
    /// A block that no persisted incident explains: an earlier version made it, or the incident was lost.
    Inherited,
    /// The tenant is warned. The block follows after the grace.
    Warned,
    /// Blocked.
    Blocked,
    /// Released.
    Released,
    /// The block is held by a brake until an operator approves it.
    Held,
    /// The release is held by a brake until an operator approves it.
    ReleaseHeld,
    /// An operator approved what a brake held.
    Approved,
    /// Not enforced, because an exemption or a release covers it, or the namespace may not be blocked.
    Exempted,
    /// Not believed, because a node accused a Pod that does not run on it.
    Disputed,
    /// The incident is over without a block.
    Closed,
    /// An operator's command had no effect. The reason says why.
    Refused,
}

impl DecisionKind {
    /// The kind as a label, `snake_case`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inherited => "inherited",
            Self::Warned => "warned",
            Self::Blocked => "blocked",
            Self::Released => "released",
            Self::Held => "held",
            Self::ReleaseHeld => "release_held",
            Self::Approved => "approved",
            Self::Exempted => "exempted",
            Self::Disputed => "disputed",
            Self::Closed => "closed",
            Self::Refused => "refused",
        }
    }
}

/// The actor of a decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// The rules.
    Policy,
    /// An operator, by the authenticated name.
    Operator(Text),
}

/// The name of the rules in the log.
const POLICY: &str = "policy";

impl Actor {
    /// The actor's name: `policy` for the rules.
    pub fn name(&self) -> Text {
        match self {
            Self::Policy => POLICY.into(),
            Self::Operator(name) => name.clone(),
        }
    }

    /// The actor of that name.
    pub fn named(name: &Text) -> Self {
        if **name == *POLICY { Self::Policy } else { Self::Operator(name.clone()) }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy => f.write_str(POLICY),
            Self::Operator(name) => write!(f, "{}", name.escape_debug()),
        }
    }
}
