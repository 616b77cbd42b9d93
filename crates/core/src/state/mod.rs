//! What is kept, so that a restart and another leader forget nothing: documents, plain data for people and programs.
//!
//! In a cluster each is an object of its own (`procscan.sealos.io/v1alpha1`), without one a row in a file; the shapes are these.
//!
//! * [`incident`]: one App's incident: what has come of it, on what evidence, and who decided what.
//! * [`exemption`]: what operators have declared not to be enforced.
//! * [`enforcement`]: whether decisions take effect at all.
//! * [`declaration`]: the entries of the log for the two before.
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
