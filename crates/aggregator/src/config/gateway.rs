//! `gateway`: the WasmPlugin.

use procscan_core::names::{LABEL, is_dns_label, is_dns_subdomain};
use procscan_core::resources::wasm_plugin;
use serde::Deserialize;

use super::{Problems, values};

/// The WasmPlugin.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gateway {
    /// The namespace of the Higress controller.
    pub namespace: String,
    /// Where the gateway gets `request-block` from.
    pub url: String,
    /// The module's SHA-256, in hexadecimal.
    pub sha256: Option<String>,
    /// The Secret to pull it with.
    pub image_pull_secret: Option<String>,
    /// When it is pulled.
    pub image_pull_policy: PullPolicy,
    /// Where in the filter chain it runs.
    pub phase: PluginPhase,
    /// The order within the phase; higher comes first.
    pub priority: i32,
    /// The HTTP status that callers of a blocked App get.
    pub status_code: u16,
    /// The body that they get.
    pub message: String,
    /// The cluster's domain.
    pub cluster_domain: String,
    /// The size of one object above which another one is made. Without one: 512 KiB in a cluster; 192 KiB in a directory,
    /// because `kubectl apply` doubles it in an annotation.
    #[serde(deserialize_with = "values::optional_size")]
    pub max_object_size: Option<usize>,
    /// How many Services are listed without their Ingresses. The gateway compares every request with each of them. With 0
    /// an App without an Ingress is not closed.
    pub max_service_entries: usize,
}

/// `spec.imagePullPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum PullPolicy {
    /// If it is not there.
    #[default]
    IfNotPresent,
    /// Each time.
    Always,
}

/// `spec.phase`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PluginPhase {
    /// Before authentication, where Higress itself runs `request-block`.
    #[default]
    Authn,
    /// Before authorization.
    Authz,
    /// Before statistics.
    Stats,
    /// After all of these.
    #[serde(rename = "UNSPECIFIED_PHASE")]
    Unspecified,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            namespace: "higress-system".to_owned(),
            url: "oci://higress-registry.cn-hangzhou.cr.aliyuncs.com/plugins/request-block:2.0.0".to_owned(),
            sha256: None,
            image_pull_secret: None,
            image_pull_policy: PullPolicy::default(),
            phase: PluginPhase::default(),
            priority: 320,
            status_code: 403,
            message: "This application has been blocked by the platform. See your notifications for details."
                .to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            max_object_size: None,
            max_service_entries: 500,
        }
    }
}

impl Gateway {
    pub(super) fn check(&self, problems: &mut Problems) {
        let quoted = |text: &str| format!("{text:?}");
        problems.require(is_dns_label(&self.namespace), "gateway.namespace", quoted(&self.namespace), LABEL);
        let schemes = ["oci://", "https://", "http://", "file://"];
        problems.require(
            schemes.iter().any(|scheme| self.url.starts_with(scheme) && self.url.len() > scheme.len()),
            "gateway.url",
            quoted(&self.url),
            "an oci://, https://, http:// or file:// address",
        );
        if let Some(sha256) = &self.sha256 {
            let hex = sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit());
            problems.require(hex, "gateway.sha256", quoted(sha256), "64 hexadecimal digits");
        }
        if let Some(secret) = &self.image_pull_secret {
            let allowed = "the name of a Secret";
            problems.require(is_dns_subdomain(secret), "gateway.image_pull_secret", quoted(secret), allowed);
        }
        problems.require(
            (400..=599).contains(&self.status_code),
            "gateway.status_code",
            self.status_code,
            "400 to 599",
        );
        problems.require(
            is_dns_subdomain(&self.cluster_domain),
            "gateway.cluster_domain",
            quoted(&self.cluster_domain),
            "a domain such as cluster.local",
        );
        if let Some(size) = self.max_object_size {
            problems.require(
                ((16 << 10)..=(1 << 20)).contains(&size),
                "gateway.max_object_size",
                bytesize::ByteSize(size as u64).display().iec(),
                "16KiB to 1MiB",
            );
        }
    }

    /// Finds settings by which a block closes nothing.
    pub(super) fn warn(&self, found: &mut Problems) {
        if self.max_service_entries == 0 {
            let problem =
                "with 0 the gateway closes no App without an Ingress, and without a cluster none at all";
            found.say("gateway.max_service_entries", problem);
        }
    }

    pub(super) fn settings(&self, max_bytes: usize) -> wasm_plugin::Gateway {
        wasm_plugin::Gateway {
            namespace: self.namespace.clone(),
            name: "procscan-violations".to_owned(),
            url: self.url.clone(),
            sha256: self.sha256.clone(),
            image_pull_secret: self.image_pull_secret.clone(),
            image_pull_policy: match self.image_pull_policy {
                PullPolicy::IfNotPresent => "IfNotPresent",
                PullPolicy::Always => "Always",
            }
            .to_owned(),
            phase: match self.phase {
                PluginPhase::Authn => "AUTHN",
                PluginPhase::Authz => "AUTHZ",
                PluginPhase::Stats => "STATS",
                PluginPhase::Unspecified => "UNSPECIFIED_PHASE",
            }
            .to_owned(),
            priority: self.priority,
            status_code: self.status_code,
            message: self.message.clone(),
            cluster_domain: self.cluster_domain.clone(),
            max_bytes: self.max_object_size.unwrap_or(max_bytes),
            max_service_entries: self.max_service_entries,
        }
    }
}
