//! `brake`: how much may happen at once.

use std::time::Duration;

use procscan_core::policy::BrakeRules;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Checks;
use super::values::DurationText;

/// How much may happen at once. What exceeds a brake is held until an operator approves it; a brake of 0
/// holds everything that it counts.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Brake {
    /// The time window in which the brakes count.
    #[serde(with = "DurationText")]
    pub(crate) window: Duration,
    /// The most tenants that get new blocks within the window.
    pub(crate) max_new_tenants: usize,
    /// The most tenants that get new blocks within the window on the reports of one node alone.
    pub(crate) max_tenants_per_node: usize,
    /// The most new blocks within the window on the reports of one node alone.
    pub(crate) max_apps_per_node: usize,
    /// The most tenants that get new blocks by one rule within the window. All keyword hits count as one rule.
    pub(crate) max_tenants_per_rule: usize,
    /// The most new blocks of one tenant within the window.
    pub(crate) max_apps_per_tenant: usize,
    /// The most tenants that the rules release within the window. Releases by an operator, and of Apps that are gone, do
    /// not count.
    pub(crate) max_releases: usize,
    /// The most tenants that are released within the window because the cluster shows that their Apps or namespaces are
    /// gone. More at once may mean that the API server has lost its objects.
    pub(crate) max_gone_tenants: usize,
}

impl Default for Brake {
    fn default() -> Self {
        let rules = BrakeRules::default();
        Self {
            window: rules.window,
            max_new_tenants: rules.max_new_tenants,
            max_tenants_per_node: rules.max_tenants_per_node,
            max_apps_per_node: rules.max_apps_per_node,
            max_tenants_per_rule: rules.max_tenants_per_rule,
            max_apps_per_tenant: rules.max_apps_per_tenant,
            max_releases: rules.max_releases,
            max_gone_tenants: rules.max_gone_tenants,
        }
    }
}

impl Brake {
    pub(super) fn check(&self, checks: &mut Checks) {
        checks.duration("brake.window", self.window, Duration::from_secs(1)..=Duration::from_hours(24));
    }

    pub(super) fn rules(&self) -> BrakeRules {
        BrakeRules {
            window: self.window,
            max_new_tenants: self.max_new_tenants,
            max_tenants_per_node: self.max_tenants_per_node,
            max_apps_per_node: self.max_apps_per_node,
            max_tenants_per_rule: self.max_tenants_per_rule,
            max_apps_per_tenant: self.max_apps_per_tenant,
            max_releases: self.max_releases,
            max_gone_tenants: self.max_gone_tenants,
        }
    }
}
