//! `enforcement` and `brake`: who may be blocked, and how much may happen at once.

use std::time::Duration;

use jiff::Timestamp;
use procscan_core::decision::Mode;
use procscan_core::exemption;
use procscan_core::names::is_dns_label;
use procscan_core::plan::SharedServices;
use procscan_core::policy::{BrakeRules, Policy};
use serde::Deserialize;

use super::values::Pattern;
use super::{Problems, values};
use crate::reason;

/// Who may be blocked.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Enforcement {
    /// Whether decisions take effect.
    pub mode: Mode,
    /// Which namespaces are tenants'.
    pub namespaces: Pattern,
    /// Namespaces that are never touched: exact names, or prefixes that end in `*`.
    pub protected_namespaces: Vec<String>,
    /// Whether an accused Pod must be known to run on the accusing node. Without it: where there is a cluster to ask.
    pub verify_pods: Option<bool>,
    /// What happens to Services that expose other Apps as well as the one to be blocked.
    pub shared_services: SharedServices,
    /// How long a tenant is told before the block.
    #[serde(deserialize_with = "values::duration")]
    pub grace: Duration,
    /// What is not enforced.
    pub exemptions: Vec<ExemptionConfig>,
}

/// One exemption: all given parts must match.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExemptionConfig {
    namespace: Option<Match>,
    app: Option<Match>,
    process: Option<Match>,
    rule: Option<Match>,
    reason: String,
    #[serde(default, deserialize_with = "values::time")]
    until: Option<Timestamp>,
    confirm: Option<usize>,
}

/// The path of an exemption in the configuration.
fn place(index: usize) -> String {
    format!("enforcement.exemptions[{index}]")
}

/// A text, or `{regex: …}`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a text, or `{regex: …}` with a valid regular expression")]
enum Match {
    Exact(String),
    Regex { regex: Pattern },
}

impl Match {
    /// What is wrong with it as the `part` of an exemption, and what is allowed instead. The API refuses the same.
    fn mistake(&self, part: &str) -> Option<(String, &'static str)> {
        let text = match self {
            Self::Exact(text) => text,
            Self::Regex { regex } => regex.0.as_str(),
        };
        let len = text.chars().count();
        if text.is_empty() {
            return Some(("\"\"".to_owned(), "a text, or `{regex: …}`, that is not empty"));
        }
        if len > reason::MAX_REASON_CHARS {
            return Some((format!("a text of {len} characters"), "a text of up to 1024 characters"));
        }
        let is_name = part != "namespace" || matches!(self, Self::Regex { .. }) || is_dns_label(text);
        (!is_name).then(|| {
            let allowed =
                "the name of a namespace; is it a regular expression? It is written as `{regex: …}`";
            (format!("{text:?}"), allowed)
        })
    }

    fn pattern(&self) -> exemption::Pattern {
        match self {
            Self::Exact(text) => exemption::Pattern::Exact(text.clone()),
            Self::Regex { regex } => exemption::Pattern::Regex(regex.0.clone()),
        }
    }
}

impl ExemptionConfig {
    /// Its parts, with their keys.
    fn parts(&self) -> [(&'static str, Option<&Match>); 4] {
        [
            ("namespace", self.namespace.as_ref()),
            ("app", self.app.as_ref()),
            ("process", self.process.as_ref()),
            ("rule", self.rule.as_ref()),
        ]
    }

    /// The policy's rule; `index` is the place in the list.
    pub(super) fn rule(&self, index: usize) -> exemption::Exemption {
        let part = |part: &Option<Match>| part.as_ref().map(Match::pattern);
        exemption::Exemption {
            place: place(index),
            namespace: part(&self.namespace),
            app: part(&self.app),
            process: part(&self.process),
            rule: part(&self.rule),
            reason: self.reason.clone(),
            until: self.until,
            confirm: self.confirm,
        }
    }
}

impl Default for Enforcement {
    fn default() -> Self {
        let protected = ["kube-*", "higress-system", "block-system", "default", "sealos", "sealos-system"];
        Self {
            mode: Mode::default(),
            #[allow(clippy::expect_used, reason = "a constant that the tests compile")]
            namespaces: Pattern(regex::Regex::new("^ns-").expect("a valid pattern")),
            protected_namespaces: protected.map(str::to_owned).to_vec(),
            verify_pods: None,
            shared_services: SharedServices::default(),
            grace: Duration::ZERO,
            exemptions: Vec::new(),
        }
    }
}

/// Whether a namespace can be called so, or, with a `*` at the end, begin so.
fn may_be_namespace(name: &str) -> bool {
    let (stem, is_whole) = name.strip_suffix('*').map_or((name, true), |stem| (stem, false));
    let may_contain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_ended = !is_whole || (!stem.is_empty() && !stem.ends_with('-'));
    stem.len() <= 63 && stem.bytes().all(may_contain) && !stem.starts_with('-') && is_ended
}

impl Enforcement {
    /// `has_pods`: the cluster is asked about Pods and Services.
    pub(super) fn check(&self, has_pods: bool, problems: &mut Problems) {
        let shared = match self.shared_services {
            SharedServices::Block => "block",
            SharedServices::Hold => "hold",
            SharedServices::Skip => "skip",
        };
        problems.require(
            has_pods || self.shared_services == SharedServices::Block,
            "enforcement.shared_services",
            shared,
            "block: without a cluster the service can't know which Services are shared",
        );
        problems.require(
            !self.namespaces.0.as_str().is_empty(),
            "enforcement.namespaces",
            "\"\"",
            "a regular expression that is not empty: it would match every namespace",
        );
        problems.require(
            self.grace <= Duration::from_hours(24 * 7),
            "enforcement.grace",
            humantime::format_duration(self.grace),
            "0s to 7days",
        );
        for name in &self.protected_namespaces {
            // What can't be the name of a namespace would protect none, without a word.
            problems.require(
                may_be_namespace(name),
                "enforcement.protected_namespaces",
                format!("{name:?}"),
                "the name of a namespace (lower-case letters, digits and -), or the beginning of one with a * at its end; no regular \
                 expression",
            );
        }
        for (index, exemption) in self.exemptions.iter().enumerate() {
            let path = place(index);
            if exemption.parts().iter().all(|(_, part)| part.is_none()) {
                let allowed = "at least one of namespace, app, process, rule: it would cover nothing";
                problems.refuse(&path, format!("an exemption for {:?}", exemption.reason), allowed);
            }
            for (name, part) in exemption.parts() {
                if let Some((what, allowed)) = part.and_then(|part| part.mistake(name)) {
                    problems.refuse(&format!("{path}.{name}"), what, allowed);
                }
            }
            if let Some(what) = reason::mistake(&exemption.reason) {
                problems.refuse(&format!("{path}.reason"), what, reason::ALLOWED);
            }
        }
    }
}

impl Enforcement {
    /// Finds exemptions and protected namespaces that cover nothing or everything under `rules`, and exemptions whose `until`
    /// has passed at `now`, or is too far ahead. They are not refused: one that has passed was valid when it was written, and
    /// one that is too far ahead is valid if this machine's clock is behind.
    pub(super) fn warn(&self, now: Timestamp, rules: &Policy, found: &mut Problems) {
        let pattern = self.namespaces.0.as_str();
        for (index, entry) in self.protected_namespaces.iter().enumerate() {
            let stem = entry.strip_suffix('*');
            // Only where it is certain: after `^` the expression has no special characters.
            let begins = pattern.strip_prefix('^').unwrap_or_default();
            let literal =
                begins.find(|it: char| !it.is_ascii_alphanumeric() && it != '-').unwrap_or(begins.len());
            let begins = begins.get(..literal).filter(|it| it.len() == begins.len()).unwrap_or_default();
            if stem.is_some_and(|stem| begins.starts_with(stem)) {
                let problem = format!(
                    "{entry:?} protects every namespace that enforcement.namespaces ({pattern}) matches: no App is blocked"
                );
                found.say(format!("enforcement.protected_namespaces[{index}]"), problem);
            }
        }
        for (index, exemption) in self.exemptions.iter().enumerate() {
            if let Some(Match::Exact(name)) = &exemption.namespace
                && let Some(why) = rules.refuses(name)
            {
                let problem = format!("{name:?} is never touched: {why}; the exemption covers nothing");
                found.say(format!("{}.namespace", place(index)), problem);
            }
            for (part, text) in exemption.parts() {
                if let Some(Match::Exact(text)) = text
                    && part != "namespace"
                    && text.len() > 2
                    && text.starts_with('/')
                    && text.ends_with('/')
                {
                    let problem = format!(
                        "{text:?} is the text itself; a regular expression is written as `{{regex: …}}`"
                    );
                    found.say(format!("{}.{part}", place(index)), problem);
                }
            }
            if let Some(until) = exemption.until.filter(|until| *until <= now) {
                let problem = format!("{until} has passed: the exemption covers nothing");
                found.say(format!("{}.until", place(index)), problem);
            }
            if let Some(until) = exemption.until.filter(|until| exemption::is_too_far(*until, now)) {
                let problem = format!(
                    "{until} is more than ten years after {now}, the time of this machine: the date or the clock is wrong"
                );
                found.say(format!("{}.until", place(index)), problem);
            }
        }
    }
}

/// How much may happen at once.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Brake {
    /// The window.
    #[serde(deserialize_with = "values::duration")]
    pub window: Duration,
    /// Tenants with new blocks within the window.
    pub max_new_tenants: usize,
    /// Tenants with new blocks within the window that rest on one node's word.
    pub max_tenants_per_node: usize,
    /// New blocks within the window that rest on one node's word.
    pub max_apps_per_node: usize,
    /// Tenants with new blocks by one rule within the window.
    pub max_tenants_per_rule: usize,
    /// New blocks of one tenant within the window.
    pub max_apps_per_tenant: usize,
    /// Tenants that are released within the window by the rules: neither by an operator nor because their App is gone.
    pub max_releases: usize,
    /// Tenants that are released within the window because the cluster proves that their Apps or namespaces are gone.
    pub max_gone_tenants: usize,
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
    pub(super) fn check(&self, problems: &mut Problems) {
        problems.require(
            (Duration::from_secs(1)..=Duration::from_hours(24)).contains(&self.window),
            "brake.window",
            humantime::format_duration(self.window),
            "1s to 1day",
        );
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
