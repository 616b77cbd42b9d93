//! What has to outlast a restart: incidents, exemptions, what operators want done, and the log of decisions.

mod document;
pub mod sqlite;

pub use self::document::{Batch, DecisionFilter, Document, Kind, LoggedDecision};
