//! `kubernetes`: how the cluster is reached, where it is needed.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Checks;
use super::values::DurationText;

/// How the cluster is reached, where it is needed.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Kubernetes {
    /// The longest time for one request.
    #[serde(with = "DurationText")]
    pub(crate) request_timeout: Duration,
    /// The most requests per second with which the aggregator looks up Pods, Services and Notifications.
    pub(crate) requests_per_second: u32,
    /// A kubeconfig file. Without it: `$KUBECONFIG`, `~/.kube/config`, or the Pod's own ServiceAccount, whichever is there
    /// first.
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig file. Without it: the file's current context.
    pub(crate) context: Option<String>,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(15),
            requests_per_second: 20,
            kubeconfig: None,
            context: None,
        }
    }
}

impl Kubernetes {
    pub(super) fn check(&self, checks: &mut Checks) {
        let allowed = Duration::from_secs(1)..=Duration::from_mins(2);
        checks.duration("kubernetes.request_timeout", self.request_timeout, allowed);
        checks.number("kubernetes.requests_per_second", self.requests_per_second, 1..=10_000);
        checks.takes("kubernetes.kubeconfig", "a file's path");
    }
}
