//! `enforcement`: which Apps may be blocked.

use std::time::Duration;

use jiff::Timestamp;
use procscan_core::decision::Mode;
use procscan_core::plan::SharedServices;
use procscan_core::policy::Policy;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Checks;
use super::checks::Problem;
use super::exemption::{self, Exemption};
use super::values::{DurationText, Pattern};

/// Which Apps may be blocked.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Enforcement {
    /// Whether decisions take effect.
    pub(crate) mode: Mode,
    /// The namespaces that belong to tenants.
    pub(crate) namespaces: Pattern,
    /// The namespaces in which the aggregator never blocks anything: exact names, or the beginning of names and `*`.
    pub(crate) protected_namespaces: Vec<String>,
    /// The handling of a Service that exposes other Apps as well as the one to be blocked. Without a cluster only `block`
    /// is possible.
    pub(crate) shared_services: SharedServices,
    /// The time between the warning of a tenant and the block. An App gets it once in an incident.
    #[serde(with = "DurationText")]
    pub(crate) grace: Duration,
    /// The accusations that are not enforced. An exemption gives at least one of `namespace`, `app`, `process` and
    /// `rule`, and all that it gives must match.
    pub(crate) exemptions: Vec<Exemption>,
    /// Whether the aggregator believes a node only of Pods that the cluster shows on that node. Without it: `true` if
    /// discovery or the output uses a cluster.
    pub(crate) verify_pods: Option<bool>,
}

impl Default for Enforcement {
    fn default() -> Self {
        let protected = ["kube-*", "higress-system", "block-system", "default", "sealos", "sealos-system"];
        Self {
            mode: Mode::default(),
            #[allow(clippy::expect_used, reason = "a constant that the tests compile")]
            namespaces: Pattern(regex::Regex::new("^ns-").expect("a valid pattern")),
            protected_namespaces: protected.map(str::to_owned).to_vec(),
            shared_services: SharedServices::default(),
            grace: Duration::ZERO,
            exemptions: Vec::new(),
            verify_pods: None,
        }
    }
}

/// Whether a namespace can have this name, or, with a `*` at the end, a name that begins like this.
fn may_be_namespace(name: &str) -> bool {
    let (stem, is_whole) = name.strip_suffix('*').map_or((name, true), |stem| (stem, false));
    let may_contain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_ended = !is_whole || (!stem.is_empty() && !stem.ends_with('-'));
    stem.len() <= 63 && stem.bytes().all(may_contain) && !stem.starts_with('-') && is_ended
}

impl Enforcement {
    /// `has_pods`: the cluster is asked about Pods and Services.
    pub(super) fn check(&self, has_pods: bool, checks: &mut Checks) {
        checks.text(
            "enforcement.namespaces",
            Some(self.namespaces.0.as_str()),
            "a regular expression that is not empty, because an empty one matches every namespace",
            |pattern| !pattern.is_empty(),
        );
        self.check_protected(checks);
        if !has_pods && self.shared_services != SharedServices::Block {
            let shared = if self.shared_services == SharedServices::Hold { "hold" } else { "skip" };
            let expected = "block: without a cluster the service can't know which Services are shared";
            checks.refuse("enforcement.shared_services", shared, expected);
        }
        checks.duration("enforcement.grace", self.grace, Duration::ZERO..=Duration::from_hours(24 * 7));
        exemption::takes(checks);
        for (index, exemption) in self.exemptions.iter().enumerate() {
            exemption.check(index, checks);
        }
    }

    fn check_protected(&self, checks: &mut Checks) {
        const PATH: &str = "enforcement.protected_namespaces";
        checks.takes(PATH, "a list of names; a `*` may end a name");
        // An entry that can't be the name of a namespace would protect none, without an error.
        for name in self.protected_namespaces.iter().filter(|name| !may_be_namespace(name)) {
            let expected = "the name of a namespace (lower-case letters, digits and -), or the beginning of one with a * at \
                            its end; no regular expression";
            checks.refuse(PATH, format!("{name:?}"), expected);
        }
    }

    /// Finds exemptions and protected namespaces that cover nothing or everything under `rules` at `now`.
    pub(super) fn warn(&self, now: Timestamp, rules: &Policy, found: &mut Vec<Problem>) {
        let pattern = self.namespaces.0.as_str();
        for (index, entry) in self.protected_namespaces.iter().enumerate() {
            let stem = entry.strip_suffix('*');
            if stem.is_some_and(|stem| self.begin_of_tenants().starts_with(stem)) {
                let problem = format!(
                    "{entry:?} protects every namespace that enforcement.namespaces ({pattern}) matches: no App is blocked"
                );
                found.push(Problem::new(format!("enforcement.protected_namespaces[{index}]"), problem));
            }
        }
        for (index, exemption) in self.exemptions.iter().enumerate() {
            exemption.warn(index, now, rules, found);
        }
    }

    /// The text with which every tenant's namespace begins; empty unless it is certain, because the expression is `^` and
    /// plain characters.
    fn begin_of_tenants(&self) -> &str {
        let begin = self.namespaces.0.as_str().strip_prefix('^').unwrap_or_default();
        let is_plain = begin.chars().all(|it| it.is_ascii_alphanumeric() || it == '-');
        if is_plain { begin } else { "" }
    }
}
