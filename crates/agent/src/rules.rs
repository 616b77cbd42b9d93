//! Detection rules in the format of the real agent.
//!
//! The file of a real agent works unchanged, and so does the `ConfigMap` that has it.

mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod pattern;

use file::Detection;

pub(crate) use self::pattern::{Pattern, PatternError};

/// Why a rules file was refused.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// Not YAML, or not of the expected shape; the source names the place.
    #[error("cannot read the rules: {0}")]
    Shape(Box<serde_saphyr::Error>),
    /// The same, in a file of a `ConfigMap`.
    #[error("{place} cannot read the rules: {source}")]
    ShapeInside {
        /// The entry of the `ConfigMap`.
        place: String,
        /// What is wrong, and where in the entry.
        source: Box<serde_saphyr::Error>,
    },
    /// The file has no `detectionRules`, so no process could be detected.
    #[error("the rules have no section `detectionRules`")]
    Missing,
    /// Several sections are given, and it is not known which one applies.
    #[error("the file has {0} sections `detectionRules`; one is allowed")]
    Several(usize),
    /// All rules are refused, so no process could be detected.
    #[error("no pattern of the blacklist can be used; the first: {0}")]
    NoneLeft(Refused),
    /// A pattern of the whitelist can't be used. Without it, the agent would accuse processes that the pattern exempts.
    #[error("{0}; without this exemption, what it exempts would be accused")]
    Exemption(Refused),
}

impl From<serde_saphyr::Error> for RulesError {
    fn from(error: serde_saphyr::Error) -> Self {
        Self::Shape(Box::new(error))
    }
}

impl RulesError {
    fn in_file(self, place: &str) -> Self {
        match self {
            Self::Shape(source) => {
                Self::ShapeInside { place: format!("{}:", place.trim_end_matches('.')), source }
            }
            other => other,
        }
    }
}

/// A rule that is not in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct Refused {
    /// The path of the entry, or of the list, within the file.
    pub(crate) place: String,
    /// What is wrong with it.
    pub(crate) problem: Problem,
}

/// Why a rule is not in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Problem {
    /// It is not a regular expression of Go.
    #[error("`{pattern}` is not a regular expression that this agent understands: {source}")]
    Pattern {
        /// The entry as written.
        pattern: String,
        /// What is wrong with it.
        source: PatternError,
    },
    /// It is empty.
    #[error("an empty pattern would match everything, and is taken for a mistake")]
    Empty,
    /// Agents read no list of this name here.
    #[error("agents do not read this list; the number of its patterns without effect is {0}")]
    NotRead(usize),
}

/// The rule that a process broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    /// The index of the name that matched; `None` for a keyword.
    pub(crate) name: Option<usize>,
    /// Text of the process pattern; empty when a keyword of the command line matched.
    pub(crate) regex: String,
    /// The byte of the command line where the keyword's match begins; 0 for a name.
    pub(crate) at: usize,
}

/// The patterns that accuse processes, and those that exempt them. All are regular expressions of Go, without implied anchors.
#[derive(Clone, Debug)]
pub struct Rules {
    processes: Vec<Pattern>,
    keywords: Vec<Pattern>,
    exempt_processes: Vec<Pattern>,
    exempt_commands: Vec<Pattern>,
    exempt_namespaces: Vec<Pattern>,
    exempt_pods: Vec<Pattern>,
    refused: Vec<Refused>,
}

impl Rules {
    /// Reads the `detectionRules` of a rules file, or of the `ConfigMap` that has it. Other sections are ignored.
    ///
    /// A pattern of the blacklist that can't be used is left out, see [`refused`](Self::refused); the others are in force.
    ///
    /// # Errors
    /// Fails if the file has a wrong shape, if no blacklist rule can be used, or if a whitelist pattern can't be used.
    pub fn from_yaml(text: &str) -> Result<Self, RulesError> {
        let (place, Detection { blacklist, whitelist }) = file::read(text)?;
        let (black, white) = (blacklist.unwrap_or_default(), whitelist.unwrap_or_default());
        let mut reader = Reader { place: format!("{place}detectionRules."), refused: Vec::new() };
        let rules = Self {
            processes: reader.compile("blacklist.processes", black.processes),
            keywords: reader.compile("blacklist.keywords", black.keywords),
            exempt_processes: reader.compile("whitelist.processes", white.processes),
            exempt_commands: reader.compile("whitelist.commands", white.commands),
            exempt_namespaces: reader.compile("whitelist.namespaces", white.namespaces),
            exempt_pods: reader.compile("whitelist.podNames", white.pod_names),
            refused: Vec::new(),
        };
        reader.is_not_read("blacklist.commands", black.commands);
        reader.is_not_read("blacklist.namespaces", black.namespaces);
        reader.is_not_read("blacklist.podNames", black.pod_names);
        reader.is_not_read("whitelist.keywords", white.keywords);
        if rules.are_empty() {
            let of_blacklist = |refused: &&Refused| refused.place.contains("detectionRules.blacklist");
            if let Some(first) = reader.refused.iter().find(of_blacklist) {
                return Err(RulesError::NoneLeft(first.clone()));
            }
        }
        // Without the exemption, processes that it exempts would be accused.
        let of_whitelist = |refused: &&Refused| {
            refused.place.contains("detectionRules.whitelist")
                && !matches!(refused.problem, Problem::NotRead(_))
        };
        if let Some(first) = reader.refused.iter().find(of_whitelist) {
            return Err(RulesError::Exemption(first.clone()));
        }
        Ok(Self { refused: reader.refused, ..rules })
    }

    /// The rules of the file that are not in force.
    pub fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// Whether the blacklist has no rule, so that no process is reported.
    pub fn are_empty(&self) -> bool {
        self.processes.is_empty() && self.keywords.is_empty()
    }

    /// Judges a process by its names and its whole command line. Names come before keywords.
    ///
    /// A process can choose some of its names, so a name exempts no other name. It does exempt a keyword.
    pub(crate) fn judge(&self, names: &[String], cmdline: &str) -> Option<Hit> {
        let by_name = names.iter().enumerate().find_map(|(index, name)| {
            let pattern = self.processes.iter().find(|pattern| pattern.is_match(name))?;
            let regex = pattern.as_str().to_owned();
            (!any(&self.exempt_processes, name)).then_some(Hit { name: Some(index), regex, at: 0 })
        });
        let by_keyword = || {
            let at = self.keywords.iter().find_map(|pattern| pattern.find(cmdline))?;
            let is_exempt = names.iter().any(|name| any(&self.exempt_processes, name));
            (!is_exempt).then_some(Hit { name: None, regex: String::new(), at })
        };
        let hit = by_name.or_else(by_keyword)?;
        (!any(&self.exempt_commands, cmdline)).then_some(hit)
    }

    /// Whether a part of a command line can exempt its process.
    pub(crate) fn exempts_commands(&self) -> bool {
        !self.exempt_commands.is_empty()
    }

    /// Whether all processes of this pod are exempt, by its namespace or its name.
    pub(crate) fn exempts_pod(&self, namespace: &str, pod: &str) -> bool {
        any(&self.exempt_namespaces, namespace) || any(&self.exempt_pods, pod)
    }
}

impl Default for Rules {
    /// A short list of miners and mass scanners, and two command lines that only they have. Patterns of names are anchored, and
    /// keywords include the option in front. So an editor or a search with such a name among its arguments matches none.
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
            refused: Vec::new(),
        })
    }
}

fn any(patterns: &[Pattern], text: &str) -> bool {
    patterns.iter().any(|pattern| pattern.is_match(text))
}

/// Reads the lists of a file.
struct Reader {
    /// Where the lists are.
    place: String,
    refused: Vec<Refused>,
}

impl Reader {
    fn compile(&mut self, list: &str, patterns: Option<Vec<String>>) -> Vec<Pattern> {
        let mut compiled = Vec::new();
        for (index, pattern) in patterns.unwrap_or_default().into_iter().enumerate() {
            let problem = match Pattern::new(&pattern) {
                _ if pattern.is_empty() => Problem::Empty,
                Ok(pattern) => {
                    compiled.push(pattern);
                    continue;
                }
                Err(source) => Problem::Pattern { pattern, source },
            };
            self.refused.push(Refused { place: format!("{}{list}[{index}]", self.place), problem });
        }
        compiled
    }

    fn is_not_read(&mut self, list: &str, patterns: Option<Vec<String>>) {
        let count = patterns.map_or(0, |patterns| patterns.len());
        if count > 0 {
            let problem = Problem::NotRead(count);
            self.refused.push(Refused { place: format!("{}{list}", self.place), problem });
        }
    }
}

#[cfg(test)]
mod tests;
