//! What the API writes under `/api/v1` and what it reads there: the handlers and the commands of operators use the same types.
//!
//! All names of members are in `snake_case`, and so are all values of enumerations. The objects in the cluster and the state
//! file have the names of Kubernetes instead, so the API writes none of their documents unchanged.

mod apps;
mod decisions;
mod enforcement;
mod exemptions;
mod incidents;
mod nodes;
mod plan;
mod requests;
mod violations;

pub(crate) use self::apps::{AppPage, ListedApp};
pub(crate) use self::decisions::{Decision, DecisionPage};
pub(crate) use self::enforcement::{Enforcement, EnforcementChange, Mode};
pub(crate) use self::exemptions::{
    Exemption, ExemptionPage, ExemptionSpec, ExemptionState, NewExemption, Withheld,
};
pub(crate) use self::incidents::{
    CommandEffect, CommandResult, Incident, IncidentPage, IncidentState, Pending,
};
pub(crate) use self::nodes::{Node, NodePage};
pub(crate) use self::plan::PlanPage;
pub(crate) use self::requests::{
    ApproveRequest, EnforceRequest, ExemptRequest, Part, Reason, ReleaseRequest, Time,
};
pub(crate) use self::violations::{ClearedBy, Violation, ViolationList, ViolationPage};

use schemars::JsonSchema;
use serde::Serialize;

/// The answer of a probe.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Status {
    /// `ok`.
    pub(crate) status: &'static str,
}

/// For members that are left out where they are `false`.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks like this")]
fn is_false(is: &bool) -> bool {
    !*is
}

/// For members that are left out where they are zero.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks like this")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}
