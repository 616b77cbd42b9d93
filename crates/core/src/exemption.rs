//! Exemptions: accusations that operators have declared not to be enforced.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use regex::Regex;

use crate::hash::stable_hash;
use crate::names::{App, Text};
use crate::plan::{Block, Plan};
use crate::report::Record;

/// How far ahead an `until` may be: ten years. A later date can only be a mistake.
const MAX_AHEAD: SignedDuration = SignedDuration::from_hours(24 * 3653);

/// Whether `until` is more than ten years after `now`.
pub fn is_too_far(until: Timestamp, now: Timestamp) -> bool {
    until.duration_since(now) > MAX_AHEAD
}

/// Accusations that are shown but not enforced. An accusation is covered if all given parts match.
#[derive(Clone, Debug)]
pub struct Exemption {
    /// Where the exemption is declared, for people: `Exemption NAME`, or its place in the configuration.
    pub place: String,
    /// The tenant's namespace.
    pub namespace: Option<Pattern>,
    /// The App's name.
    pub app: Option<Pattern>,
    /// The process name.
    pub process: Option<Pattern>,
    /// The regular expression that matched. An accusation by a keyword has none, so only `process` can cover it.
    pub rule: Option<Pattern>,
    /// Why, for people.
    pub reason: String,
    /// Until when, by our own wall clock; forever if absent.
    pub until: Option<Timestamp>,
    /// The number of tenants with blocked Apps that an operator allows the exemption to open; needed beyond
    /// `brake.max_releases`.
    pub confirm: Option<usize>,
}

impl Exemption {
    fn parts(&self) -> [Option<&Pattern>; 4] {
        [&self.namespace, &self.app, &self.process, &self.rule].map(Option::as_ref)
    }

    /// Whether no part is given, so that the exemption covers nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.parts().iter().all(Option::is_none)
    }

    /// Whether its namespace and App parts match `app`, whatever its `until`. An exemption without parts may cover
    /// any App.
    pub fn may_cover(&self, app: &App) -> bool {
        let parts = [(&self.namespace, &app.namespace), (&self.app, &app.name)];
        parts.iter().all(|(pattern, text)| pattern.as_ref().is_none_or(|pattern| pattern.matches(text)))
    }

    /// Whether it covers `record` as an accusation of `app`, whatever its `until`. An exemption without parts covers
    /// nothing.
    ///
    /// An exemption with a `rule` does not cover a record without a regular expression, by a keyword. Otherwise a
    /// tenant could give its process the text of the rule as a name.
    pub fn covers(&self, app: &App, record: &Record) -> bool {
        self.covers_accusation(
            app,
            &record.key.process,
            Some(&*record.regex).filter(|regex| !regex.is_empty()),
        )
    }

    /// Whether it covers all accusations of `app`, whatever their process and rule and its `until`.
    pub(crate) fn covers_app(&self, app: &App) -> bool {
        self.process.is_none() && self.rule.is_none() && self.covers_accusation(app, "", None)
    }

    fn covers_accusation(&self, app: &App, process: &str, rule: Option<&str>) -> bool {
        let texts = [Some(&*app.namespace), Some(&*app.name), Some(process), rule];
        let matches = |part: &Pattern, text: Option<&str>| text.is_some_and(|text| part.matches(text));
        !self.is_empty()
            && self.parts().iter().zip(texts).all(|(part, text)| part.is_none_or(|part| matches(part, text)))
    }

    /// How many tenants have blocks in `plan` that it would open.
    pub fn opens(&self, plan: &Plan) -> usize {
        let is_opened = |block: &&Block| {
            let of_accusations = block.grounds.iter().map(|accusation| {
                (&accusation.key.process, Some(&*accusation.rule).filter(|_| !accusation.by_keyword))
            });
            let left = block.left.iter().map(|key| (&key.process, None));
            of_accusations
                .chain(left)
                .all(|(process, rule)| self.covers_accusation(&block.app, process, rule))
        };
        let opened = plan.blocks.iter().map(|block| &**block).filter(is_opened);
        opened.map(|block| &block.app.namespace).collect::<BTreeSet<&Text>>().len()
    }

    /// How many tenants it may open at once. `max_releases` is the number that brakes let through
    /// (`brake.max_releases`).
    pub fn may_open(&self, max_releases: usize) -> usize {
        // At least one, because a release by an operator opens one.
        max_releases.max(1).max(self.confirm.unwrap_or(0))
    }

    /// All fields that decide its effect. A changed exemption counts as another one.
    pub(crate) fn identity(&self) -> String {
        let Self { place, until, confirm, .. } = self;
        let parts = self.parts().map(|part| part.map(Pattern::text));
        format!("{place} {parts:?} {until:?} {confirm:?}")
    }

    /// Identifies the exemption in incidents that record that it is withheld.
    pub(crate) fn fingerprint(&self) -> Text {
        format!("{:016x}", stable_hash(&[&self.identity()])).into()
    }
}

/// Matches a text: as a whole, or by a regular expression.
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

    /// Whether the pattern is a regular expression, and its text.
    fn text(&self) -> (bool, &str) {
        match self {
            Self::Exact(exact) => (false, exact),
            Self::Regex(regex) => (true, regex.as_str()),
        }
    }
}
