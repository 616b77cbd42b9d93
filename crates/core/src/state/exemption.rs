//! The persisted form of exemptions.

use jiff::Timestamp;
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::exemption::Exemption;
use crate::exemption::{Pattern, is_too_far};
use crate::names::is_dns_label;

/// Accusations that are shown but not enforced. An accusation is covered if all given parts match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.namespace) || has(self.app) || has(self.process) || has(self.rule)",
    "message": "at least one of namespace, app, process and rule is needed: it would cover nothing",
}]))]
pub struct ExemptionSpec {
    /// The tenant's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Match>,
    /// The App's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<Match>,
    /// The process name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Match>,
    /// The regular expression that matched. An accusation by a keyword has none, so only `process` can cover it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Match>,
    /// Why, for other operators.
    #[schemars(length(min = 1, max = 1024), extend("x-kubernetes-validations" = [{
        "rule": "self.trim().size() > 0", "message": "a reason that the next person understands",
    }]))]
    pub reason: String,
    /// Until when; for ever if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// How many tenants with blocked Apps the exemption may open at once. Needed beyond `brake.max_releases`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<u32>,
    /// The operator who declared it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub by: Option<String>,
}

/// A text to match. Exactly one of the two fields is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.exact) != has(self.regex)", "message": "either exact or regex",
}]))]
pub struct Match {
    /// The whole text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub exact: Option<String>,
    /// A regular expression, unanchored (syntax of Rust's crate `regex`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub regex: Option<String>,
}

/// Why an exemption covers nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExemptionError {
    /// No part is given.
    #[error("at least one of namespace, app, process and rule is needed: it would cover nothing")]
    Empty,
    /// A part has both or neither.
    #[error("{0}: either exact or regex")]
    Either(&'static str),
    /// A part is no regular expression.
    #[error("{0}.regex: {1}")]
    Regex(&'static str, String),
    /// A part is empty, so it would cover nothing or everything.
    #[error("{0}: invalid value \"\": expected a text that is not empty")]
    Blank(&'static str),
    /// No namespace has such a name.
    #[error(
        "namespace: `{0}` is no namespace's name; is it a regular expression (regex, or /.../ on the command line)?"
    )]
    Namespace(String),
    /// The reason is empty.
    #[error("reason: a reason that the next person understands")]
    NoReason,
    /// It would last longer than ten years, which can only be a mistake.
    #[error("until: invalid value {0}: expected a time at most ten years ahead, or none for ever")]
    TooFar(Timestamp),
}

/// The most memory that one compiled pattern may take.
const MAX_PATTERN: usize = 1 << 20;

impl Match {
    fn pattern(&self, part: &'static str) -> Result<Pattern, ExemptionError> {
        match (&self.exact, &self.regex) {
            (Some(text), None) | (None, Some(text)) if text.is_empty() => Err(ExemptionError::Blank(part)),
            (Some(exact), None) => Ok(Pattern::Exact(exact.clone())),
            (None, Some(text)) => {
                let regex = regex::RegexBuilder::new(text).size_limit(MAX_PATTERN).build();
                let last = |error: regex::Error| {
                    let text = error.to_string();
                    text.lines().last().unwrap_or_default().replacen("error: ", "", 1)
                };
                regex.map(Pattern::Regex).map_err(|error| ExemptionError::Regex(part, last(error)))
            }
            _ => Err(ExemptionError::Either(part)),
        }
    }

    /// Matches the whole text.
    pub fn exact(text: impl Into<String>) -> Self {
        Self { exact: Some(text.into()), regex: None }
    }

    /// Matches by a regular expression.
    pub fn regex(regex: &Regex) -> Self {
        Self { exact: None, regex: Some(regex.as_str().to_owned()) }
    }
}

impl ExemptionSpec {
    /// As the policy's rule.
    pub fn rule(&self) -> Result<Exemption, ExemptionError> {
        let part = |part: &Option<Match>, name| part.as_ref().map(|part| part.pattern(name)).transpose();
        let exemption = Exemption {
            place: String::new(),
            namespace: part(&self.namespace, "namespace")?,
            app: part(&self.app, "app")?,
            process: part(&self.process, "process")?,
            rule: part(&self.rule, "rule")?,
            reason: self.reason.clone(),
            until: self.until,
            confirm: self.confirm.and_then(|tenants| usize::try_from(tenants).ok()),
        };
        if exemption.is_empty() {
            return Err(ExemptionError::Empty);
        }
        if let Some(Pattern::Exact(name)) = &exemption.namespace
            && !is_dns_label(name)
        {
            return Err(ExemptionError::Namespace(name.clone()));
        }
        if self.reason.trim().is_empty() {
            return Err(ExemptionError::NoReason);
        }
        Ok(exemption)
    }
}

impl ExemptionSpec {
    /// Checks that its `until` is at most ten years after `declared`, the time of its declaration by a trusted clock.
    pub fn check_until(&self, declared: Timestamp) -> Result<(), ExemptionError> {
        match self.until {
            Some(until) if is_too_far(until, declared) => Err(ExemptionError::TooFar(until)),
            _ => Ok(()),
        }
    }
}

/// The readable parts of an exemption that can't be read as a whole, for
/// [`crate::policy::Policy::unread_exemptions`].
pub fn readable(spec: &serde_json::Value) -> Exemption {
    let part = |name: &'static str| {
        let part: Match = Match::deserialize(spec.get(name)?).ok()?;
        let pattern = part.pattern(name).ok()?;
        // A name that no namespace can have is a mistake, so the part is left out.
        let is_none = name == "namespace" && matches!(&pattern, Pattern::Exact(text) if !is_dns_label(text));
        (!is_none).then_some(pattern)
    };
    Exemption {
        place: String::new(),
        namespace: part("namespace"),
        app: part("app"),
        process: None,
        rule: None,
        reason: String::new(),
        until: spec.get("until").and_then(|until| Timestamp::deserialize(until).ok()),
        confirm: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exemption_that_covers_nothing_or_everything_by_mistake_is_refused_with_its_place() {
        let spec = |text: &str| serde_json::from_str::<ExemptionSpec>(text).unwrap().rule().map(drop);
        assert_eq!(spec(r#"{"namespace": {"exact": "ns-a"}, "reason": "a contract"}"#), Ok(()));
        assert_eq!(spec(r#"{"reason": "a contract"}"#), Err(ExemptionError::Empty));
        assert_eq!(spec(r#"{"app": {}, "reason": "x"}"#), Err(ExemptionError::Either("app")));
        let both = r#"{"rule": {"exact": "a", "regex": "b"}, "reason": "x"}"#;
        assert_eq!(spec(both), Err(ExemptionError::Either("rule")));
        assert_eq!(spec(r#"{"app": {"exact": "a"}, "reason": " "}"#), Err(ExemptionError::NoReason));
        assert_eq!(spec(r#"{"app": {"regex": ""}, "reason": "x"}"#), Err(ExemptionError::Blank("app")));
        let namespace = Err(ExemptionError::Namespace("^ns-".to_owned()));
        assert_eq!(spec(r#"{"namespace": {"exact": "^ns-"}, "reason": "x"}"#), namespace);
        let declared: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let until = |until: &str| {
            let text = format!(r#"{{"app": {{"exact": "a"}}, "reason": "x", "until": "{until}"}}"#);
            serde_json::from_str::<ExemptionSpec>(&text).unwrap().check_until(declared)
        };
        assert_eq!(until("2036-01-01T00:00:00Z"), Ok(()));
        assert!(matches!(until("2036-01-03T00:00:00Z"), Err(ExemptionError::TooFar(_))));
        let error = spec(r#"{"process": {"regex": "("}, "reason": "x"}"#).unwrap_err().to_string();
        assert!(error.starts_with("process.regex: "), "{error}");
    }

    #[test]
    fn a_match_is_declared_as_it_is_read() {
        assert_eq!(Match::exact("web").exact.as_deref(), Some("web"));
        let regex = Match::regex(&Regex::new("^web").unwrap());
        assert_eq!((regex.exact.as_deref(), regex.regex.as_deref()), (None, Some("^web")));
        assert!(Match::exact("web").pattern("app").is_ok() && regex.pattern("app").is_ok());
    }

    #[test]
    fn readable_leaves_out_a_name_that_no_namespace_can_have_but_no_other_name() {
        let read = readable(&serde_json::json!({"namespace": {"exact": "NS_a"}, "app": {"exact": "My_App"}}));
        assert!(read.namespace.is_none() && read.app.is_some());
        assert!(readable(&serde_json::json!({"namespace": {"exact": "ns-a"}})).namespace.is_some());
    }
}
