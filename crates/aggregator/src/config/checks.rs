//! What is wrong with a configuration, and what each key may hold.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use procscan_core::size;

use super::values;

/// Why a configuration is refused: one line for each mistake, with its place, the value and what is expected.
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
    pub(crate) fn new(place: impl fmt::Display, problem: impl fmt::Display) -> Self {
        Self { problems: vec![one_line(&format!("{place}: {problem}"))] }
    }

    /// The mistakes, each on one line.
    pub(super) fn of(problems: Vec<String>) -> Self {
        Self { problems }
    }

    /// How many mistakes there are.
    #[cfg(any(test, fuzzing))]
    pub(super) fn len(&self) -> usize {
        self.problems.len()
    }
}

/// A mistake at a path, or a value that is probably a mistake.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) path: String,
    /// The value that is refused; `None` if `text` says all.
    pub(super) value: Option<String>,
    pub(super) text: String,
}

impl Problem {
    /// `text` says what is wrong at `path`.
    pub(super) fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self { path: path.into(), value: None, text: text.into() }
    }
}

/// What the validation finds: the mistakes, and what each key may hold.
#[derive(Debug, Default)]
pub(super) struct Checks {
    pub(super) problems: Vec<Problem>,
    /// What each key may hold. The reference in docs/configuration.md is made from it, so that it can't differ from the
    /// validation.
    pub(super) allowed: Vec<(&'static str, String)>,
}

impl Checks {
    /// Notes that `path` may hold what is `expected`. The type of the key has checked it already, or `refuse` follows.
    pub(super) fn takes(&mut self, path: &'static str, expected: impl fmt::Display) {
        self.allowed.push((path, expected.to_string()));
    }

    /// Refuses `value` at `path`. What is `expected` there depends on other keys or on the entry of a list.
    pub(super) fn refuse(&mut self, path: &str, value: impl fmt::Display, expected: impl fmt::Display) {
        let (path, value) = (path.to_owned(), Some(value.to_string()));
        self.problems.push(Problem { path, value, text: format!("expected {expected}") });
    }

    /// Notes a mistake: `text` says what is wrong at `path`.
    pub(super) fn say(&mut self, path: impl Into<String>, text: impl Into<String>) {
        self.problems.push(Problem::new(path, text));
    }

    /// Refuses `value` at `path` unless it `holds`.
    pub(super) fn require(
        &mut self,
        holds: bool,
        path: &'static str,
        value: impl fmt::Display,
        expected: impl fmt::Display,
    ) {
        if !holds {
            self.refuse(path, value, &expected);
        }
        self.takes(path, expected);
    }

    /// `value` at `path` must lie in `allowed`.
    pub(super) fn number<N>(&mut self, path: &'static str, value: N, allowed: RangeInclusive<N>)
    where
        N: PartialOrd + fmt::Display,
    {
        let expected = format!("{} to {}", allowed.start(), allowed.end());
        self.require(allowed.contains(&value), path, value, expected);
    }

    /// `value` at `path` must lie in `allowed`.
    pub(super) fn duration(
        &mut self,
        path: &'static str,
        value: Duration,
        allowed: RangeInclusive<Duration>,
    ) {
        let [shown, least, most] = [value, *allowed.start(), *allowed.end()].map(values::duration_text);
        self.require(allowed.contains(&value), path, shown, format!("{least} to {most}"));
    }

    /// `value` at `path`, in bytes, must lie in `allowed`.
    pub(super) fn size(&mut self, path: &'static str, value: usize, allowed: RangeInclusive<usize>) {
        let [shown, least, most] = [value, *allowed.start(), *allowed.end()].map(size::text);
        self.require(allowed.contains(&value), path, shown, format!("{least} to {most}"));
    }

    /// `value` at `path`, if there is one, must be what is `expected`.
    pub(super) fn text(
        &mut self,
        path: &'static str,
        value: Option<&str>,
        expected: &str,
        holds: impl Fn(&str) -> bool,
    ) {
        self.require(value.is_none_or(holds), path, format!("{:?}", value.unwrap_or_default()), expected);
    }
}

/// A message on one line, also if a library, a key, a text or a file's name has line breaks.
pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
