//! What operators have declared not to be enforced.

use jiff::Timestamp;
use regex::Regex;

use crate::names::App;
use crate::report::Record;

/// Accusations that are shown but not enforced. All given parts must match.
#[derive(Clone, Debug)]
pub struct Exemption {
    /// The tenant's namespace.
    pub namespace: Option<Pattern>,
    /// The App's name.
    pub app: Option<Pattern>,
    /// The process name.
    pub process: Option<Pattern>,
    /// The rule: the regex that matched, or the process name where there is none.
    pub rule: Option<Pattern>,
    /// Why, for people.
    pub reason: String,
    /// Until when, by our own wall clock; forever if absent.
    pub until: Option<Timestamp>,
}

impl Exemption {
    /// Whether no part is given, so that it covers nothing.
    pub fn is_empty(&self) -> bool {
        [&self.namespace, &self.app, &self.process, &self.rule].iter().all(|part| part.is_none())
    }

    /// Whether it may cover accusations of `app`, as far as its parts for the namespace and the App say, and as long as it is in force.
    /// One without parts may cover anything.
    pub fn may_cover(&self, app: &App) -> bool {
        let parts = [(&self.namespace, &app.namespace), (&self.app, &app.name)];
        parts.iter().all(|(pattern, text)| pattern.as_ref().is_none_or(|pattern| pattern.matches(text)))
    }

    /// Whether it covers `record` as an accusation of `app`, as long as it is in force. One that names nothing covers nothing.
    pub fn covers(&self, app: &App, record: &Record) -> bool {
        let parts = [
            (&self.namespace, &app.namespace),
            (&self.app, &app.name),
            (&self.process, &record.key.process),
            (&self.rule, record.rule()),
        ];
        !self.is_empty()
            && parts
                .iter()
                .all(|(pattern, text)| pattern.as_ref().is_none_or(|pattern| pattern.matches(text)))
    }
}

/// A text to match: as a whole, or by a regular expression.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// The whole text, byte for byte.
    Exact(String),
    /// A regular expression, unanchored.
    Regex(Regex),
}

impl Pattern {
    /// Whether `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == text,
            Self::Regex(regex) => regex.is_match(text),
        }
    }
}
