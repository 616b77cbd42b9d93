//! The configuration: one file per section, every key with a default, everything validated before anything starts.
//!
//! Read from YAML, then from the environment: `PROCSCAN_AGGREGATOR__SCAN_INTERVAL=30s` overrides `aggregator.scan_interval`.
//! Unknown keys, bad values and impossible combinations are refused with the path, the value and what is expected.
//!
//! [`Config::parse`] is pure; `files` reads files and asks the clock. Of the service, this module imports only `reason` and
//! `plain_file`, because every other module may import it.

mod aggregator;
mod api;
mod brake;
mod checks;
mod collector;
mod daemonset;
mod detection;
mod discovery;
mod document;
mod enforcement;
mod environment;
mod exemption;
mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod gateway;
mod kubernetes;
mod logger;
mod notification;
mod output;
#[cfg(test)]
mod reference;
mod reload;
#[cfg(test)]
mod schema;
mod state;
pub mod targets;
#[cfg(test)]
mod tests;
pub(crate) mod token_file;
mod tree;
mod unused;
pub(crate) mod values;

use jiff::Timestamp;
use procscan_core::ledger;
use procscan_core::policy::Policy;
use procscan_core::report::Limits;
use procscan_core::resources::notification::Texts;
use procscan_core::resources::wasm_plugin::Gateway;
use procscan_core::resources::{KINDS, Settings};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;

pub use self::aggregator::Aggregator;
pub(crate) use self::api::{Api, Auth};
pub(crate) use self::brake::Brake;
pub use self::checks::ConfigError;
use self::checks::{Checks, Problem};
pub(crate) use self::collector::Collector;
pub(crate) use self::collector::PROBATION_SHARE;
pub(crate) use self::daemonset::DaemonSet;
pub(crate) use self::detection::Detection;
pub(crate) use self::discovery::{Discovery, DiscoveryMode};
use self::document::Origin;
pub(crate) use self::enforcement::Enforcement;
pub use self::kubernetes::Kubernetes;
pub(crate) use self::logger::{Format, Level, Logger};
pub(crate) use self::output::{Output, OutputMode};
pub(crate) use self::state::{State, StateMode};

/// The domain of most clusters.
const DEFAULT_DOMAIN: &str = "cluster.local";

/// The whole configuration.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The service itself.
    pub aggregator: Aggregator,
    /// Where the agents are.
    pub(crate) daemonset: DaemonSet,
    /// What is logged, and how. Logs go to standard error.
    pub(crate) logger: Logger,
    /// How the agents are found.
    pub(crate) discovery: Discovery,
    /// How the agents are asked.
    pub(crate) collector: Collector,
    /// What counts as evidence.
    pub(crate) detection: Detection,
    /// Which Apps may be blocked.
    pub(crate) enforcement: Enforcement,
    /// How much may happen at once. What exceeds a brake is held until an operator approves it; a brake of 0
    /// holds everything that it counts.
    pub(crate) brake: Brake,
    /// What the WasmPlugin looks like, apart from the Apps that it blocks.
    pub(crate) gateway: Gateway,
    /// What tenants and administrators read. Texts may have the placeholders `{app}`, `{kind}`, `{namespace}`,
    /// `{processes}`, `{contact}`, `{appeal}`, `{also_closes}` and, with grace, `{until}`.
    pub(crate) notification: Texts,
    /// Where the objects go.
    pub(crate) output: Output,
    /// Where the aggregator persists incidents, exemptions and operator commands, so that they outlast a restart.
    pub(crate) state: State,
    /// How the cluster is reached, where it is needed.
    pub kubernetes: Kubernetes,
    /// Which accounts may use the HTTP API, what they see, and how much memory its answers take.
    pub(crate) api: Api,
    /// Values that are valid but probably mistakes, each with its place.
    #[serde(skip)]
    pub(crate) warnings: Vec<String>,
}

impl Config {
    /// Reads `text`, with the values of the environment's `variables` in place of the file's; `name` is the file's name in
    /// errors. The files that the configuration names are not read.
    pub fn parse(
        text: &str,
        name: &str,
        variables: impl IntoIterator<Item = (String, OsString)>,
        now: Timestamp,
    ) -> Result<Self, ConfigError> {
        let (config, origin) = document::read(text, name, variables)?;
        let (checks, warnings) = (config.check(), config.suspicious(now, &origin));
        config.checked(&checks, &warnings, &origin)
    }

    /// The configuration with its `warnings`, or the mistakes that `checks` have found.
    fn checked(
        mut self,
        checks: &Checks,
        warnings: &[Problem],
        origin: &Origin,
    ) -> Result<Self, ConfigError> {
        if checks.problems.is_empty() {
            self.warnings = origin.lines(warnings);
            Ok(self)
        } else {
            Err(ConfigError::of(origin.lines(&checks.problems)))
        }
    }

    /// Checks values that are well-formed by themselves, and what each key may hold.
    fn check(&self) -> Checks {
        let mut checks = Checks::default();
        self.aggregator.check(&mut checks);
        self.daemonset.check(&mut checks);
        self.discovery.check(self.daemonset.api_port(), &mut checks);
        self.collector.check(&mut checks);
        self.detection.check(&mut checks);
        self.enforcement.check(self.looks_at_pods(), &mut checks);
        self.brake.check(&mut checks);
        gateway::check(&self.gateway, &mut checks);
        notification::check(&self.notification, &mut checks);
        self.output.check(&mut checks);
        self.state.check(self.state_mode(), &mut checks);
        self.kubernetes.check(&mut checks);
        self.api.check(self.auth(), &mut checks);
        checks
    }

    /// Finds values that are valid but probably mistakes at `now`. A key that is not written has its default, which is no
    /// mistake.
    fn suspicious(&self, now: Timestamp, origin: &Origin) -> Vec<Problem> {
        let mut found = Vec::new();
        self.enforcement.warn(now, &self.policy(), &mut found);
        gateway::warn(&self.gateway, &mut found);
        unused::warn(self, &|path| origin.is_written(path), &mut found);
        found
    }

    /// Whether the cluster must show an accused Pod on the accusing node: wherever discovery or the output uses a cluster,
    /// unless the configuration switches it off.
    pub(crate) fn verifies_pods(&self) -> bool {
        self.enforcement.verify_pods.unwrap_or_else(|| {
            self.discovery.mode == DiscoveryMode::Kubernetes || self.output.mode == OutputMode::Cluster
        })
    }

    /// Whether the cluster is asked about accused Pods and their Services.
    pub(crate) fn looks_at_pods(&self) -> bool {
        self.verifies_pods() || self.output.mode == OutputMode::Cluster
    }

    /// Whether replicas elect the one that writes: wherever something is written to the cluster, even if a file persists the
    /// decisions.
    pub(crate) fn needs_lease(&self) -> bool {
        self.output.mode == OutputMode::Cluster || self.state_mode() == StateMode::Cluster
    }

    /// The place where decisions are persisted. Unless the configuration names one, it is the place of the objects.
    pub(crate) fn state_mode(&self) -> StateMode {
        self.state.mode.unwrap_or(match self.output.mode {
            OutputMode::Cluster => StateMode::Cluster,
            OutputMode::Directory => StateMode::File,
        })
    }

    /// Whether anything needs a cluster.
    pub(crate) fn needs_cluster(&self) -> bool {
        self.discovery.mode == DiscoveryMode::Kubernetes
            || self.output.mode == OutputMode::Cluster
            || self.state_mode() == StateMode::Cluster
            || self.verifies_pods()
            || self.api.auth == Some(Auth::Kubernetes)
    }

    /// The authority that names the account of a request. Unless the configuration names one: the cluster, where one is
    /// needed, else the token file, if there is one.
    pub(crate) fn auth(&self) -> Auth {
        self.api.auth.unwrap_or(if self.needs_cluster() {
            Auth::Kubernetes
        } else if self.api.token_file.is_some() {
            Auth::Tokens
        } else {
            Auth::None
        })
    }

    /// Whether secrets in command lines are hidden from accounts without a right to whole command lines.
    pub(crate) fn redacts(&self) -> bool {
        self.api.redact.unwrap_or(!self.aggregator.address.is_loopback())
    }

    /// The ledger's rules of evidence.
    pub(crate) fn detection(&self) -> ledger::Detection {
        self.detection.rules(&self.aggregator, &self.collector)
    }

    /// The policy's rules.
    pub(crate) fn policy(&self) -> Policy {
        Policy {
            mode: self.enforcement.mode,
            namespaces: self.enforcement.namespaces.0.clone(),
            protected: self.enforcement.protected_namespaces.clone(),
            verify_pods: self.verifies_pods(),
            shared_services: self.enforcement.shared_services,
            has_plain_list: self.gateway.max_service_entries > 0,
            grace: self.enforcement.grace,
            brake: self.brake.rules(),
            unread_exemptions: Vec::new(),
            exemptions: {
                let exemptions = self.enforcement.exemptions.iter().enumerate();
                exemptions.map(|(index, exemption)| exemption.rule(index)).collect()
            },
            same_incident: self.detection.same_incident,
            max_age: self.detection.max_age,
            unreachable_limit: self.detection.unreachable_limit,
            max_notices_per_round: notification::per_round(
                &self.notification,
                self.kubernetes.requests_per_second,
                self.aggregator.scan_interval,
            ),
        }
    }

    /// The limits of one answer.
    pub(crate) fn limits(&self) -> Limits {
        self.collector.limits()
    }

    /// What the objects look like.
    pub fn settings(&self) -> Settings {
        // `kubectl apply` doubles an object in an annotation, and those may be 256 KiB in sum.
        let max_bytes = match self.output.mode {
            OutputMode::Cluster => 512 << 10,
            OutputMode::Directory => 192 << 10,
        };
        Settings {
            kinds: KINDS,
            gateway: self.gateway.clone(),
            notification: self.notification.clone(),
            max_bytes: self.gateway.max_object_size.unwrap_or(max_bytes),
        }
    }
}
