//! Brakes: how many blocks and releases may happen at once before an operator has to look. [`super::window`] counts
//! them.
//!
//! A bad rule or a lying node accuses many Apps in a short time. Brakes count tenants, because a tenant can make any
//! number of Apps. One tenant's Apps take one place and do not hold another tenant's.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use regex::bytes::{Regex, RegexBuilder};
use serde::Serialize;

use crate::names::{NodeName, Text};
use crate::plan::human;
use crate::report::Record;

/// How much may happen within [`BrakeRules::window`].
#[derive(Clone, Debug)]
pub struct BrakeRules {
    /// The window.
    pub window: Duration,
    /// Tenants with new blocks.
    pub max_new_tenants: usize,
    /// Tenants with new blocks on the reports of one node.
    pub max_tenants_per_node: usize,
    /// New blocks on the reports of one node.
    pub max_apps_per_node: usize,
    /// Tenants with new blocks on hits of one rule.
    pub max_tenants_per_rule: usize,
    /// New blocks of one tenant.
    pub max_apps_per_tenant: usize,
    /// Tenants that the rules release. Releases by operators and releases of Apps that are proven gone do not count.
    pub max_releases: usize,
    /// Tenants that are released because their Apps or namespaces are proven gone.
    pub max_gone_tenants: usize,
}

impl Default for BrakeRules {
    fn default() -> Self {
        Self {
            window: Duration::from_mins(10),
            max_new_tenants: 20,
            max_tenants_per_node: 5,
            max_apps_per_node: 20,
            max_tenants_per_rule: 10,
            max_apps_per_tenant: 50,
            max_releases: 20,
            max_gone_tenants: 20,
        }
    }
}

impl BrakeRules {
    /// How many of one node's places for Apps are reserved for further tenants while `tenants` tenants have places.
    pub(super) fn reserved_per_node(&self, tenants: usize) -> usize {
        self.max_tenants_per_node.saturating_sub(tenants).min(self.max_apps_per_node / 2)
    }
}

/// Which brake holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Brake {
    /// Too many tenants with new blocks.
    NewTenants,
    /// Too many new blocks within one tenant's namespace.
    Tenant(Text),
    /// Too many tenants or Apps blocked on the reports of one node.
    Node(NodeName),
    /// One rule hits too many tenants; an empty text stands for all keyword hits.
    Rule(Text),
    /// Counts nothing. A Service of the App exposes other Apps too, and an operator decides whether they are closed
    /// with it (`enforcement.shared_services: hold`).
    SharedService(Text),
    /// Too many releases.
    Releases,
    /// Too many tenants' Apps are gone at once. The API server may have lost its objects.
    Gone,
}

impl Brake {
    /// The kind of the brake as a label, `snake_case`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NewTenants => "new_tenants",
            Self::Tenant(_) => "tenant",
            Self::Node(_) => "node",
            Self::Rule(_) => "rule",
            Self::SharedService(_) => "shared_service",
            Self::Releases => "releases",
            Self::Gone => "gone",
        }
    }

    /// Why the brake holds, for people.
    pub(super) fn reason(&self, rules: &BrakeRules) -> String {
        let window = human(rules.window);
        match self {
            Self::NewTenants => format!(
                "Apps of more than {} tenants were to be blocked within {window} (brake.max_new_tenants)",
                rules.max_new_tenants
            ),
            Self::Tenant(namespace) => format!(
                "more than {} Apps of the tenant {} were to be blocked within {window} (brake.max_apps_per_tenant)",
                rules.max_apps_per_tenant,
                namespace.escape_debug()
            ),
            Self::Node(node) => format!(
                "Apps of more than {} tenants, more than {} Apps, or more than {} Apps of one tenant were to be blocked within \
                 {window} on reports of node {} (brake.max_tenants_per_node, brake.max_apps_per_node)",
                rules.max_tenants_per_node,
                rules.max_apps_per_node,
                rules.max_apps_per_node.saturating_sub(rules.reserved_per_node(1)),
                node.0.escape_debug()
            ),
            Self::Rule(rule) if rule.is_empty() => format!(
                "keyword hits accuse more than {} tenants within {window} (brake.max_tenants_per_rule)",
                rules.max_tenants_per_rule
            ),
            Self::Rule(rule) => format!(
                "the rule `{}` hits more than {} tenants within {window} (brake.max_tenants_per_rule)",
                rule.escape_debug(),
                rules.max_tenants_per_rule
            ),
            Self::Releases => format!(
                "Apps of more than {} tenants were to be released within {window} (brake.max_releases)",
                rules.max_releases
            ),
            Self::Gone => format!(
                "Apps of more than {} tenants are gone within {window} (brake.max_gone_tenants); has the API server lost its objects?",
                rules.max_gone_tenants
            ),
            Self::SharedService(service) => {
                format!("Service {service} exposes other Apps too (enforcement.shared_services: hold)")
            }
        }
    }
}

/// How many different rules are compiled in one evaluation, and how much memory one of them may take. The limits
/// exist because a lying node can make up any number of rules. Records beyond these limits count as keyword hits. A
/// rule is cut to 512 bytes when it is decoded. It takes less memory than the limit unless it repeats a part by a
/// number, or has many Unicode classes.
const MAX_COMPILED: usize = 64;
const MAX_COMPILED_SIZE: usize = 32 << 10;
/// The most memory that one rule's cache for matching may take.
const MAX_CACHE: usize = 256 << 10;
/// How many pairs of a rule and a process's name are matched in one evaluation. A match can take most of a
/// millisecond, so all of them take a part of a second. Beyond this limit a record counts under its rule if the rule
/// has matched another name.
const MAX_MATCHED: usize = 256;

/// Finds the rule that a record counts under. Lives for one evaluation.
#[derive(Debug, Default)]
pub(super) struct RuleNames {
    compiled: HashMap<Text, Option<Regex>>,
    /// Whether a rule matches a name.
    matched: HashMap<(Text, Text), bool>,
    /// Rules that have matched a name.
    sound: HashSet<Text>,
    keyword: Option<Text>,
}

impl RuleNames {
    /// The rule of `record`: its regular expression, or an empty text for a keyword hit.
    ///
    /// The agent takes `regex` out of its own message, and takes a wrong part of it where a keyword contains `'`. So
    /// a rule counts only if it compiles and matches the process's name, as the agent's own rules do.
    pub(super) fn of(&mut self, record: &Record) -> Text {
        if !record.regex.is_empty() && self.matches(&record.regex, &record.key.process) {
            return record.regex.clone();
        }
        self.keyword.get_or_insert_with(|| Text::from("")).clone()
    }

    fn matches(&mut self, rule: &Text, process: &Text) -> bool {
        let pair = (rule.clone(), process.clone());
        if let Some(matches) = self.matched.get(&pair) {
            return *matches;
        }
        if self.matched.len() >= MAX_MATCHED {
            return self.sound.contains(rule);
        }
        if self.compiled.len() >= MAX_COMPILED && !self.compiled.contains_key(rule) {
            return false;
        }
        let compiled = self.compiled.entry(rule.clone()).or_insert_with(|| {
            let mut builder = RegexBuilder::new(rule);
            builder.size_limit(MAX_COMPILED_SIZE).dfa_size_limit(MAX_CACHE);
            // With the classes of ASCII, as in Go, most rules take much less memory. Others need those of Unicode.
            builder.unicode(false).build().or_else(|_| builder.unicode(true).build()).ok()
        });
        let matches = compiled.as_ref().is_some_and(|rule| rule.is_match(process.as_bytes()));
        if matches {
            self.sound.insert(rule.clone());
        }
        self.matched.insert(pair, matches);
        matches
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::names::Key;

    fn hit(process: &str, rule: &str) -> Record {
        let mut record = Record::of(Key::new("ns-a", "web", process));
        Arc::make_mut(&mut record.claim).regex = rule.into();
        record
    }

    #[test]
    fn each_brake_has_a_label_without_a_tenants_name() {
        let (text, node): (Text, NodeName) = ("ns-a".into(), NodeName::new("n1"));
        let labels = [
            Brake::NewTenants,
            Brake::Tenant(text.clone()),
            Brake::Node(node),
            Brake::Rule(text.clone()),
            Brake::SharedService(text),
            Brake::Releases,
            Brake::Gone,
        ];
        let expected = ["new_tenants", "tenant", "node", "rule", "shared_service", "releases", "gone"];
        assert_eq!(labels.map(|brake| brake.kind()), expected);
    }

    #[test]
    fn ordinary_rules_count_and_unusable_ones_are_keyword_hits() {
        let mut rules = RuleNames::default();
        let names: Vec<String> = (0..60).map(|n| format!("miner{n}")).collect();
        let many = format!("^({})$", names.join("|"));
        assert!(many.len() > 400);
        for (process, rule) in [
            ("xmrig", "^xmrig$"),
            ("XMRig-6.21", "(?i)^xmrig([-_.]\\w+)*"),
            ("nc -l -p", "^nc.*-l.*-p"),
            ("miner59", many.as_str()),
            ("矿工", "矿工"),
            ("矿工", "[矿币]工"),
            ("kdevtmpfsi", "[[:alpha:]]{6,12}"),
        ] {
            assert_eq!(&*rules.of(&hit(process, rule)), rule);
        }
        for rule in ["(?:(?:a|[ab])?){1000}", "a{1000}", "(", "^other$"] {
            assert_eq!(&*rules.of(&hit(&"a".repeat(256), rule)), "", "{rule}");
        }
    }

    #[test]
    fn the_number_of_matches_has_a_limit_and_known_ones_do_not_count_again() {
        let mut rules = RuleNames::default();
        let name = |n: usize| format!("miner{n}");
        for n in 0..MAX_MATCHED {
            assert_eq!(&*rules.of(&hit(&name(n), "^miner")), "^miner");
        }
        // One rule does not count under two names: it has matched before.
        assert_eq!(&*rules.of(&hit(&name(MAX_MATCHED), "^miner")), "^miner");
        assert_eq!(&*rules.of(&hit(&name(0), "^miner")), "^miner");
        assert_eq!(&*rules.of(&hit("xmrig", "^xmrig$")), "");
    }

    #[test]
    fn the_number_of_rules_has_a_limit_and_known_ones_still_count() {
        let mut rules = RuleNames::default();
        let rule = |n: usize| format!("^miner{n}");
        for n in 0..MAX_COMPILED {
            assert_eq!(*rules.of(&hit(&format!("miner{n}"), &rule(n))), *rule(n));
        }
        assert_eq!(&*rules.of(&hit("xmrig", "^xmrig$")), "");
        assert_eq!(*rules.of(&hit("miner0x", &rule(0))), *rule(0));
    }
}
