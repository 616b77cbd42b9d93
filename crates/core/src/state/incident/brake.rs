//! The brakes' part of an incident: which brake holds it, and which places it takes.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::Text;

/// Which brake holds the block, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeldBy {
    /// Since when.
    pub since: Timestamp,
    /// The kind of brake.
    pub brake: BrakeKind,
    /// The subject that the brake counts. With `Node` it is the node; with `Rule` the rule, empty for all keyword hits.
    /// With `NewApps` it is the namespace of a tenant with too many Apps, or nothing; with `SharedService` the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Text>,
}

/// The kinds of brakes on blocks. Each has the name under which it was first written, because versions that do not
/// know another name could not read the incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BrakeKind {
    /// `brake.max_new_tenants`; with a namespace in `of`, `brake.max_apps_per_tenant`. `NewTenants` is read as the same,
    /// and not written.
    #[serde(alias = "NewTenants")]
    NewApps,
    /// `brake.max_tenants_per_node` and `brake.max_apps_per_node`.
    Node,
    /// `brake.max_tenants_per_rule`.
    Rule,
    /// `enforcement.shared_services: hold`.
    SharedService,
}

/// A brake on blocks, and the subject that it counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Scope {
    /// The kind of brake.
    pub brake: BrakeKind,
    /// The node, rule, tenant or Service, as in the status's `brake`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Text>,
}

/// When and on which reports an App was to be blocked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Due {
    /// When, by the clock that runs only while a replica leads.
    pub at: Timestamp,
    /// No brake held it.
    pub passed: bool,
    /// The nodes and rules that accused the App.
    #[serde(default)]
    pub accusers: Vec<Accuser>,
    /// The brakes that held it. An entry with none counts for all brakes although `passed` is false. Then an operator
    /// has released the App since, or an earlier version wrote this.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<Scope>,
}

/// When an App was to be released without an operator's command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReleaseDue {
    /// When, by the clock that runs only while a replica leads.
    pub at: Timestamp,
    /// No brake held it.
    pub passed: bool,
    /// The cluster proved that the App is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub proven: bool,
}

/// A node and a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Accuser {
    /// The node.
    pub node: Text,
    /// The rule's regex; empty for keyword hits.
    pub rule: Text,
}
