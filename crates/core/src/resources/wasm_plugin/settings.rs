//! `gateway` in the configuration: what the `WasmPlugin` looks like, apart from the Apps that it blocks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::size::OptionalSizeText;

/// What the `WasmPlugin` looks like, apart from the Apps that it blocks: the section `gateway` of the configuration.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Gateway {
    /// The object's name; further shards get `-1`, `-2`, …. It is not configurable.
    #[serde(skip)]
    pub name: String,
    /// The namespace of the Higress controller. Higress ignores plugins in other namespaces.
    pub namespace: String,
    /// The address from which the gateway pulls Higress's `request-block`, 2.0.0 or later.
    pub url: String,
    /// When the gateway pulls the module.
    pub image_pull_policy: PullPolicy,
    /// The phase of the filter chain in which the gateway runs the module.
    pub phase: PluginPhase,
    /// The order within the phase; a plugin with a higher number runs first.
    pub priority: i32,
    /// The HTTP status that callers of a blocked App get.
    pub status_code: u16,
    /// The body that callers of a blocked App get. The gateway sends it without a charset, so ASCII is best.
    pub message: String,
    /// The cluster's domain, which ends the host names of Services.
    pub cluster_domain: String,
    /// The most Services that all WasmPlugins together list without Ingresses: the gateway compares every request with
    /// each of them. With more Services, the rules name the Ingresses too. With 0, an App without an Ingress stays
    /// open.
    pub max_service_entries: usize,
    /// The size of one object, in bytes of JSON, above which the aggregator writes another object. Without it: 512KiB
    /// with `output.mode: cluster`, and 192KiB with `directory`, because `kubectl apply` doubles the object in an
    /// annotation.
    #[serde(with = "OptionalSizeText")]
    pub max_object_size: Option<usize>,
    /// The module's SHA-256, which the gateway verifies. Without it the gateway verifies none.
    pub sha256: Option<String>,
    /// The name of the Secret with which the gateway pulls the module. Without it the gateway uses none.
    pub image_pull_secret: Option<String>,
}

/// `spec.imagePullPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// Only if the gateway does not have the module yet.
    #[default]
    IfNotPresent,
    /// Each time that the gateway loads the plugin.
    Always,
}

/// `spec.phase`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum PluginPhase {
    /// Before authentication, where Higress itself runs `request-block`.
    #[default]
    Authn,
    /// Before authorization.
    Authz,
    /// Before statistics.
    Stats,
    /// After the other phases.
    #[serde(rename = "UNSPECIFIED_PHASE")]
    Unspecified,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            name: "procscan-violations".to_owned(),
            namespace: "higress-system".to_owned(),
            url: "oci://higress-registry.cn-hangzhou.cr.aliyuncs.com/plugins/request-block:2.0.0".to_owned(),
            image_pull_policy: PullPolicy::default(),
            phase: PluginPhase::default(),
            priority: 320,
            status_code: 403,
            message: "This application has been blocked by the platform. See your notifications for details."
                .to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            max_service_entries: 500,
            max_object_size: None,
            sha256: None,
            image_pull_secret: None,
        }
    }
}
