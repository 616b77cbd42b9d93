//! One command of an operator, and why it is refused.

use procscan_core::state::incident::{Approval, Release};

use super::StateError;
use crate::kubernetes::{Refusal, RefusalKind};

/// A command about one incident.
pub(super) enum IncidentRequest {
    Approve(Approval),
    Release(Release),
}

/// Why a command was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum OperatorCommandError {
    /// There is no such object.
    #[error("there is no {0} {1}")]
    Unknown(&'static str, String),
    /// There is already one of this name.
    #[error("the {0} {1} exists already")]
    Exists(&'static str, String),
    /// Another command about the same object is being carried out.
    #[error("an earlier command about {0} is still being carried out; try again in a moment")]
    Busy(String),
    /// It can't be persisted.
    #[error("{0}")]
    NotPersisted(String),
    /// A value of the command is invalid.
    #[error("{0}")]
    Invalid(String),
}

impl From<Refusal> for OperatorCommandError {
    fn from(refusal: Refusal) -> Self {
        match refusal.kind {
            RefusalKind::Invalid => Self::Invalid(refusal.text),
            _ => Self::NotPersisted(refusal.text),
        }
    }
}

impl From<StateError> for OperatorCommandError {
    fn from(error: StateError) -> Self {
        Self::NotPersisted(error.to_string())
    }
}
