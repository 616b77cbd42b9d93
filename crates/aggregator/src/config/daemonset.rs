//! `daemonset`: where the agents are.

use procscan_core::names::{LABEL, is_dns_label};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use super::Checks;
use super::values::{self, A_PORT};

/// The port of the agents where neither a number nor a name is given.
const DEFAULT_PORT: u16 = 9090;

/// Where the agents are.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DaemonSet {
    /// The namespace of the agents' Service. The agent's own manifests have `block-system`.
    pub(crate) namespace: String,
    /// The name of the agents' headless Service. The agent's own manifests have `block-procscan`.
    pub(crate) service_name: String,
    /// The port on which the agents listen. If it is set, it is used instead of
    /// `api_port_name`. The default is used only if neither is set.
    #[serde(deserialize_with = "values::optional_port", serialize_with = "port_or_default")]
    pub(crate) api_port: Option<u16>,
    /// With `discovery.mode: kubernetes`: the name of the port in the Service.
    pub(crate) api_port_name: Option<String>,
    /// The path at which an agent lists its violations.
    pub(crate) api_path: String,
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

#[allow(clippy::trivially_copy_pass_by_ref, clippy::ref_option, reason = "serde passes a reference")]
fn port_or_default<S: Serializer>(port: &Option<u16>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(port.unwrap_or(DEFAULT_PORT))
}

impl DaemonSet {
    /// The port on which the agents listen, where the Service is not asked for it.
    pub(crate) fn api_port(&self) -> u16 {
        self.api_port.unwrap_or(DEFAULT_PORT)
    }

    /// The name of the port, where the Service is asked for it.
    pub(crate) fn port_name(&self) -> Option<&str> {
        self.api_port_name.as_deref().filter(|_| self.api_port.is_none())
    }

    pub(super) fn check(&self, checks: &mut Checks) {
        checks.text("daemonset.namespace", Some(&self.namespace), LABEL, is_dns_label);
        checks.text("daemonset.service_name", Some(&self.service_name), LABEL, is_dns_label);
        checks.takes("daemonset.api_port", A_PORT);
        checks.text("daemonset.api_path", Some(&self.api_path), "a path that begins with /", |path| {
            path.starts_with('/') && path.parse::<hyper::Uri>().is_ok()
        });
    }
}
