//! `daemonset`: where the agents are.

use procscan_core::names::is_dns_label;
use serde::Deserialize;

use super::{Problems, values};

/// Where the agents are.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DaemonSet {
    /// The namespace of the agents' Service.
    pub namespace: String,
    /// The name of the agents' (headless) Service.
    pub service_name: String,
    /// The port that the agents listen on.
    #[serde(deserialize_with = "values::port")]
    pub api_port: u16,
    /// The path that lists violations.
    pub api_path: String,
}

impl Default for DaemonSet {
    fn default() -> Self {
        Self {
            namespace: "kube-system".to_owned(),
            service_name: "procscan".to_owned(),
            api_port: 9090,
            api_path: "/api/violations".to_owned(),
        }
    }
}

impl DaemonSet {
    pub(super) fn check(&self, problems: &mut Problems) {
        let label = "a Kubernetes name: a-z, 0-9 and -, 63 characters at most";
        problems.require(
            is_dns_label(&self.namespace),
            "daemonset.namespace",
            quoted(&self.namespace),
            label,
        );
        problems.require(
            is_dns_label(&self.service_name),
            "daemonset.service_name",
            quoted(&self.service_name),
            label,
        );
        let path = &self.api_path;
        let plain = path.starts_with('/') && path.parse::<hyper::Uri>().is_ok();
        problems.require(plain, "daemonset.api_path", quoted(path), "a path that begins with /");
    }
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}
