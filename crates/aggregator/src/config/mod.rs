//! The configuration: one file per section, every key with a default, everything validated before anything starts.
//!
//! Read from YAML, then from the environment: `PROCSCAN_AGGREGATOR__SCAN_INTERVAL=30s` overrides `aggregator.scan_interval`.
//! Unknown keys, bad values and impossible combinations are refused with the path, the value and what is allowed.

mod aggregator;
mod api;
mod collector;
mod daemonset;
mod detection;
mod discovery;
mod enforcement;
mod environment;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod gateway;
mod kubernetes;
mod logger;
mod notification;
mod output;
mod state;
pub mod targets;
#[cfg(test)]
mod tests;
pub mod token_file;
mod unused;
pub(crate) mod values;

use std::fmt;
use std::path::Path;

use jiff::Timestamp;
use procscan_core::ledger::Detection;
use procscan_core::policy::Policy;
use procscan_core::report::Limits;
use procscan_core::resources::{KINDS, Settings};
use serde::Deserialize;

pub use self::aggregator::Aggregator;
pub use self::api::{Api, Auth};
pub use self::collector::Collector;
pub(crate) use self::collector::PROBATION_SHARE;
pub use self::daemonset::DaemonSet;
pub use self::discovery::{Discovery, DiscoveryMode};
pub use self::enforcement::Enforcement;
pub use self::gateway::Gateway;
pub use self::kubernetes::Kubernetes;
pub use self::logger::{Format, Level, Logger};
pub use self::notification::Notification;
pub use self::output::{Output, OutputMode};
pub use self::state::{State, StateMode};
use crate::plain_file;

/// The whole configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The service itself.
    pub aggregator: Aggregator,
    /// Where the agents are.
    pub daemonset: DaemonSet,
    /// What is logged.
    pub logger: Logger,
    /// How the agents are found.
    pub discovery: Discovery,
    /// How the agents are asked.
    pub collector: Collector,
    /// What counts as evidence.
    pub detection: detection::Detection,
    /// Who may be blocked.
    pub enforcement: Enforcement,
    /// How much may happen at once.
    pub brake: enforcement::Brake,
    /// The WasmPlugin.
    pub gateway: Gateway,
    /// The Notifications.
    pub notification: Notification,
    /// Where the objects go.
    pub output: Output,
    /// Where decisions are kept.
    pub state: State,
    /// How the cluster is reached.
    pub kubernetes: Kubernetes,
    /// Who may use the HTTP API.
    pub api: Api,
    /// What is allowed but is probably a mistake, each with its place.
    #[serde(skip)]
    pub warnings: Vec<String>,
}

/// Why a configuration is refused: one line for each mistake, with its place, the value and what is allowed.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

impl ConfigError {
    /// One mistake at `place`: a file, or a file and a path in it.
    pub fn new(place: impl fmt::Display, problem: impl fmt::Display) -> Self {
        Self { problems: vec![one_line(&format!("{place}: {problem}"))] }
    }
}

/// The mistakes that a section finds in itself.
#[derive(Debug, Default)]
struct Problems(Vec<Problem>);

/// A mistake at a path.
#[derive(Debug)]
struct Problem {
    path: String,
    /// The value there that is not allowed; `None` if `text` says all.
    value: Option<String>,
    text: String,
}

impl Problem {
    /// On one line, after its `place`. A duration or a size is shown as `tree` has it.
    fn told(&self, place: &str, tree: &serde_json::Value) -> String {
        let value = self.value.as_ref().map(|value| {
            let written = values::at(tree, &self.path).and_then(serde_json::Value::as_str);
            format!("{} ", written.filter(|written| values::is_quantity(written, value)).unwrap_or(value))
        });
        one_line(&format!("{place}: {}{}", value.unwrap_or_default(), self.text))
    }
}

impl Problems {
    /// `value` at `path` is not one of what is `allowed`.
    fn refuse(&mut self, path: &str, value: impl fmt::Display, allowed: impl fmt::Display) {
        let (path, value) = (path.to_owned(), Some(value.to_string()));
        self.0.push(Problem { path, value, text: format!("is not allowed; allowed is {allowed}") });
    }

    /// Notes a mistake: `text` says what is wrong at `path`.
    fn say(&mut self, path: impl Into<String>, text: impl Into<String>) {
        self.0.push(Problem { path: path.into(), value: None, text: text.into() });
    }

    fn require(&mut self, holds: bool, path: &str, value: impl fmt::Display, allowed: impl fmt::Display) {
        if !holds {
            self.refuse(path, value, allowed);
        }
    }
}

impl Config {
    /// Reads `path` and the environment `variables`.
    pub fn load(
        path: &Path,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let file = path.display();
        let text = plain_file::read_text(path, plain_file::MAX_TEXT)
            .map_err(|e| ConfigError::new(&file, format!("can't be read: {e}")))?;
        Self::parse(&text, &path.display().to_string(), variables)
    }

    /// Reads `text`; `name` is what errors call it.
    pub fn parse(
        text: &str,
        name: &str,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut tree = values::parse_yaml(text).map_err(|problem| ConfigError::new(name, problem))?;
        if tree.is_null() {
            tree = serde_json::Value::Object(serde_json::Map::new());
        }
        if !tree.is_object() {
            return Err(ConfigError::new(
                name,
                "expected sections such as `aggregator:`, each with its keys",
            ));
        }
        let file = tree.clone();
        let overrides = environment::apply(&mut tree, variables)?;
        let empty = values::nulls(&tree);
        values::drop_nulls(&mut tree);
        let place = |path: &str| {
            // A section that only the environment names is its mistake as a whole.
            let below = || overrides.iter().find(|(set, _)| set.starts_with(&format!("{path}.")));
            let is_in_file = values::at(&file, path).is_some();
            match overrides
                .get(path)
                .or_else(|| below().filter(|_| !is_in_file).map(|(_, variable)| variable))
            {
                Some(variable) => variable.clone(),
                None => format!("{name}: {path}"),
            }
        };
        let refused = |e: serde_path_to_error::Error<serde_json::Error>| {
            let path = e.path().to_string();
            let value = values::at(&tree, &path);
            let problem = values::explain(&e.into_inner().to_string(), value);
            ConfigError::new(if path == "." { name.to_owned() } else { place(&path) }, problem)
        };
        for key in empty {
            // That it has no value is no mistake, but there has to be such a key.
            if let Err(e) = serde_path_to_error::deserialize::<_, Self>(&key)
                && e.inner().to_string().starts_with("unknown field")
            {
                return Err(refused(e));
            }
        }
        let mut config: Self = serde_path_to_error::deserialize(&tree).map_err(refused)?;
        if let Some((path, problem)) = values::misplaced_list(&tree) {
            return Err(ConfigError::new(place(&path), problem));
        }
        let told = |Problems(found): Problems| -> Vec<String> {
            found.iter().map(|problem| problem.told(&place(&problem.path), &tree)).collect()
        };
        let problems = told(config.problems());
        let is_written = |path: &str| values::at(&tree, path).is_some();
        config.warnings = told(config.suspicious(Timestamp::now(), &is_written));
        if problems.is_empty() { Ok(config) } else { Err(ConfigError { problems }) }
    }

    /// What is allowed but is probably a mistake at `now`. A key that is not written down has its default, which is no
    /// mistake.
    fn suspicious(&self, now: Timestamp, is_written: &dyn Fn(&str) -> bool) -> Problems {
        let mut found = Problems::default();
        self.enforcement.warn(now, &self.policy(), &mut found);
        self.gateway.warn(&mut found);
        self.discovery.warn(self.daemonset.api_port(), &mut found);
        unused::warn(self, is_written, &mut found);
        found
    }

    /// Everything that is wrong with values that are well-formed by themselves.
    fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        self.aggregator.check(&mut problems);
        self.daemonset.check(&mut problems);
        self.discovery.check(self.daemonset.api_port(), &mut problems);
        self.collector.check(&mut problems);
        self.detection.check(&mut problems);
        self.enforcement.check(self.looks_at_pods(), &mut problems);
        self.brake.check(&mut problems);
        self.gateway.check(&mut problems);
        self.notification.check(&mut problems);
        self.output.check(&mut problems);
        self.state.check(self.state_mode(), &mut problems);
        self.kubernetes.check(&mut problems);
        self.api.check(self.auth(), &mut problems);
        problems
    }

    /// Whether an accused Pod must be known to run on the accusing node: where there is a cluster to ask, unless it is
    /// switched off.
    pub fn verifies_pods(&self) -> bool {
        self.enforcement.verify_pods.unwrap_or_else(|| {
            self.discovery.mode == DiscoveryMode::Kubernetes || self.output.mode == OutputMode::Cluster
        })
    }

    /// Whether the cluster is asked about accused Pods and their Services.
    pub fn looks_at_pods(&self) -> bool {
        self.verifies_pods() || self.output.mode == OutputMode::Cluster
    }

    /// Whether replicas elect the one that writes: wherever something is written to the cluster, even if the decisions
    /// are kept in a file.
    pub fn needs_lease(&self) -> bool {
        self.output.mode == OutputMode::Cluster || self.state_mode() == StateMode::Cluster
    }

    /// Where decisions are kept: where the objects go, unless something else is said.
    pub fn state_mode(&self) -> StateMode {
        self.state.mode.unwrap_or(match self.output.mode {
            OutputMode::Cluster => StateMode::Cluster,
            OutputMode::Directory => StateMode::File,
        })
    }

    /// Whether anything needs a cluster.
    pub fn needs_cluster(&self) -> bool {
        self.discovery.mode == DiscoveryMode::Kubernetes
            || self.output.mode == OutputMode::Cluster
            || self.state_mode() == StateMode::Cluster
            || self.verifies_pods()
            || self.api.auth == Some(Auth::Kubernetes)
    }

    /// Who says who asks, and whether they may. Unless it is written down: the cluster, where there is one, else the token file,
    /// if there is one.
    pub fn auth(&self) -> Auth {
        self.api.auth.unwrap_or(if self.needs_cluster() {
            Auth::Kubernetes
        } else if self.api.token_file.is_some() {
            Auth::Tokens
        } else {
            Auth::None
        })
    }

    /// The ledger's rules of evidence.
    pub fn detection(&self) -> Detection {
        self.detection.rules(&self.aggregator, &self.collector)
    }

    /// The policy's rules.
    pub fn policy(&self) -> Policy {
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
            max_notices_per_round: self
                .notification
                .per_round(self.kubernetes.requests_per_second, self.aggregator.scan_interval),
        }
    }

    /// How much of one answer is kept.
    pub fn limits(&self) -> Limits {
        self.collector.limits()
    }

    /// What the objects look like.
    pub fn settings(&self) -> Settings {
        // `kubectl apply` doubles an object in an annotation, and those may be 256 KiB in sum.
        let max_bytes = match self.output.mode {
            OutputMode::Cluster => 512 << 10,
            OutputMode::Directory => 192 << 10,
        };
        let (gateway, notification) = (self.gateway.settings(max_bytes), self.notification.settings());
        Settings { kinds: KINDS, gateway, notification }
    }
}

/// A message on one line, whatever a library made of it, and whatever the keys, texts and files in it are called.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
