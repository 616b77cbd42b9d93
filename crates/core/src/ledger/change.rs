//! Changes in the ledger, for logs and streams.

use serde::Serialize;

use crate::clearing::Cleared;
use crate::names::{Key, NodeName, Text};

/// One change, for logs and streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The violation.
    pub key: Key,
    /// The node whose evidence it is.
    pub node: NodeName,
    /// The change.
    pub kind: ChangeKind,
}

/// A change of one node's evidence of a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// Fresh evidence where there was none, or only a tombstone.
    Appeared,
    /// Listed for the first time, but too old or of unknown age, so it is not evidence yet.
    Sighted,
    /// Fresh evidence has become too old, without proof of absence.
    Unconfirmed,
    /// The violation is absent by that rule.
    Cleared(Cleared),
}

/// A change of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeChange {
    /// The node answers, but none of its answers could be used for longer than `fresh_within`. Its evidence stays until
    /// an answer can be used.
    Unusable,
    /// Its answers can be used again.
    UsableAgain,
    /// Records of its last answer were left out, because there was no room for them. Nothing clears in their
    /// namespaces.
    LeavesOut {
        /// Some of the namespaces. Empty if there are too many to know them.
        namespaces: Vec<Text>,
    },
    /// No record was left out of its last answer any more.
    LeavesNothingOut,
}
