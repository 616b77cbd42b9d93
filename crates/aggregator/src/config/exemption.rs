//! `enforcement.exemptions`: which accusations are not enforced.

use jiff::Timestamp;
use procscan_core::exemption;
use procscan_core::names::is_dns_label;
use procscan_core::policy::Policy;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::Checks;
use super::checks::Problem;
use super::values::{self, A_TIME, Pattern};
use crate::reason;

/// One exemption: all given parts must match.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Exemption {
    /// The namespace of the accused Pod.
    #[serde(default, deserialize_with = "given")]
    namespace: Option<Match>,
    /// The name of the accused App.
    #[serde(default, deserialize_with = "given")]
    app: Option<Match>,
    /// The name of the accused process.
    #[serde(default, deserialize_with = "given")]
    process: Option<Match>,
    /// The rule that the agent names: a regular expression of the agent's own rules.
    #[serde(default, deserialize_with = "given")]
    rule: Option<Match>,
    /// Why the operator declares the exemption.
    reason: String,
    /// The end of the exemption. Without it: the exemption never ends.
    #[serde(default, deserialize_with = "values::time")]
    until: Option<Timestamp>,
    /// The number of tenants that the exemption may open. It is needed if that is more than `brake.max_releases`.
    confirm: Option<usize>,
}

/// A text, or `{regex: …}`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "another value, expected a text, or `{regex: …}` with a valid regular expression"
)]
enum Match {
    Exact(String),
    Regex(Regex),
}

/// `{regex: …}`. Another key in it is refused, because the exemption would match more than its operator meant.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Regex {
    regex: Pattern,
}

/// Reads a part whose key is present. A key without a value is refused, because the exemption would match more than its
/// operator sees.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Match>, D::Error> {
    Match::deserialize(deserializer).map(Some)
}

/// The path of an exemption.
fn place(index: usize) -> String {
    format!("enforcement.exemptions[{index}]")
}

/// A text as a refused value; a long one by its length.
fn refused(text: &str) -> String {
    match text.chars().count() {
        len if len > reason::MAX_REASON_CHARS => format!("of {len} characters"),
        _ => format!("{text:?}"),
    }
}

impl Match {
    fn text(&self) -> &str {
        match self {
            Self::Exact(text) => text,
            Self::Regex(Regex { regex }) => regex.0.as_str(),
        }
    }

    /// What is expected as the `part` of an exemption instead; `None` if it is valid. The API refuses the same.
    fn mistake(&self, part: &str) -> Option<&'static str> {
        let text = self.text();
        if text.is_empty() {
            return Some("a text, or `{regex: …}`, that is not empty");
        }
        if text.chars().count() > reason::MAX_REASON_CHARS {
            return Some("a text of up to 1024 characters");
        }
        let is_name = part != "namespace" || matches!(self, Self::Regex(_)) || is_dns_label(text);
        (!is_name)
            .then_some("the name of a namespace; is it a regular expression? It is written as `{regex: …}`")
    }

    fn pattern(&self) -> exemption::Pattern {
        match self {
            Self::Exact(text) => exemption::Pattern::Exact(text.clone()),
            Self::Regex(Regex { regex }) => exemption::Pattern::Regex(regex.0.clone()),
        }
    }
}

/// What each key of an exemption may hold.
pub(super) fn takes(checks: &mut Checks) {
    for path in [
        "enforcement.exemptions[].namespace",
        "enforcement.exemptions[].app",
        "enforcement.exemptions[].process",
        "enforcement.exemptions[].rule",
    ] {
        checks.takes(path, "a text, or `{regex: …}`");
    }
    checks.takes("enforcement.exemptions[].reason", reason::ALLOWED);
    checks.takes("enforcement.exemptions[].until", A_TIME);
}

impl Exemption {
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

    /// `index` is the place in the list.
    pub(super) fn check(&self, index: usize, checks: &mut Checks) {
        let path = place(index);
        if self.parts().iter().all(|(_, part)| part.is_none()) {
            let expected = "at least one of namespace, app, process, rule: without them it covers nothing";
            checks.refuse(&path, format!("{{reason: {}}}", refused(&self.reason)), expected);
        }
        for (name, part) in self.parts() {
            if let Some((part, expected)) = part.and_then(|part| Some((part, part.mistake(name)?))) {
                checks.refuse(&format!("{path}.{name}"), refused(part.text()), expected);
            }
        }
        if reason::mistake(&self.reason).is_some() {
            checks.refuse(&format!("{path}.reason"), refused(&self.reason), reason::ALLOWED);
        }
    }

    /// Finds parts that cover nothing under `rules`, and an `until` that has passed at `now` or is too far ahead. They are
    /// not refused: an exemption that has passed was valid when it was written, and one that is too far ahead is valid if
    /// this machine's clock is behind.
    pub(super) fn warn(&self, index: usize, now: Timestamp, rules: &Policy, found: &mut Vec<Problem>) {
        let mut warn = |part: &str, problem: String| {
            found.push(Problem::new(format!("{}.{part}", place(index)), problem));
        };
        if let Some(Match::Exact(name)) = &self.namespace
            && let Some(why) = rules.refuses(name)
        {
            warn("namespace", format!("{name:?} is never touched: {why}; the exemption covers nothing"));
        }
        for (part, text) in self.parts() {
            if let Some(Match::Exact(text)) = text
                && part != "namespace"
                && text.len() > 2
                && text.starts_with('/')
                && text.ends_with('/')
            {
                warn(
                    part,
                    format!("{text:?} is the text itself; a regular expression is written as `{{regex: …}}`"),
                );
            }
        }
        let Some(until) = self.until else { return };
        if until <= now {
            warn("until", format!("{until} has passed: the exemption covers nothing"));
        }
        if exemption::is_too_far(until, now) {
            warn(
                "until",
                format!(
                    "{until} is more than ten years after {now}, the time of this machine: the date or the clock is wrong"
                ),
            );
        }
    }
}
