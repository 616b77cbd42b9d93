//! The persisted state, so that a restart and another leader forget nothing: documents, plain data for people and
//! programs.
//!
//! In a cluster each document is an object (`procscan.sealos.io/v1alpha1`), and without one a row in a file. The
//! shapes are the same.
//!
//! * [`incident`]: one App's incident: its state, its evidence, and its decisions.
//! * [`exemption`]: accusations that operators have declared not to be enforced.
//! * [`enforcement`]: the mode that operators set.
//! * [`declaration`]: the entries of the log for exemptions and the mode.
//!
//! In an object, `spec` belongs to operators and `status` to the aggregator.

pub mod declaration;
pub mod enforcement;
pub mod exemption;
pub mod incident;

/// The API group of the documents.
pub const GROUP: &str = "procscan.sealos.io";
/// The version of their shapes.
pub const VERSION: &str = "v1alpha1";

pub use self::declaration::{Declaration, DeclarationKind};
pub use self::enforcement::EnforcementSpec;
pub use self::exemption::{ExemptionError, ExemptionSpec, Match};
pub use self::incident::{Incident, IncidentSpec, IncidentState, IncidentStatus};
