//! `daemonset`: where the agents are.

use procscan_core::names::{LABEL, is_dns_label};
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
    /// The port that the agents listen on. Wins over `api_port_name`.
    #[serde(deserialize_with = "values::optional_port")]
    pub api_port: Option<u16>,
    /// With `discovery.mode: kubernetes`: the name that the Service gives the port.
    pub api_port_name: Option<String>,
    /// The path that lists violations.
    pub api_path: String,
}

impl Default for DaemonSet {
    fn default() -> Self {
        Self {
            namespace: "kube-system".to_owned(),
            service_name: "procscan".to_owned(),
            api_port: None,
            api_port_name: None,
            api_path: "/api/violations".to_owned(),
        }
    }
}

impl DaemonSet {
    /// The port that the agents listen on, where the Service is not asked for it.
    pub fn api_port(&self) -> u16 {
        self.api_port.unwrap_or(9090)
    }

    /// The name of the port, where the Service is asked for it.
    pub fn port_name(&self) -> Option<&str> {
        self.api_port_name.as_deref().filter(|_| self.api_port.is_none())
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        problems.require(
            is_dns_label(&self.namespace),
            "daemonset.namespace",
            quoted(&self.namespace),
            LABEL,
        );
        problems.require(
            is_dns_label(&self.service_name),
            "daemonset.service_name",
            quoted(&self.service_name),
            LABEL,
        );
        let path = &self.api_path;
        let plain = path.starts_with('/') && path.parse::<hyper::Uri>().is_ok();
        problems.require(plain, "daemonset.api_path", quoted(path), "a path that begins with /");
    }
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}
