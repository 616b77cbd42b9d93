//! Patterns with the meaning that Go's `regexp` gives them.
//!
//! The real agent is a Go program, and its rule files are written for Go. The `regex` crate reads some of the same texts
//! differently (`[a-z&&x]`, `\<`, `a{,5}`, `\d`) and refuses others (`x{`, `\Q..\E`). So this module reads a pattern by Go's
//! grammar and writes it anew, in forms with one meaning only.

mod class;
mod cursor;
mod groups;

use regex::{Regex, RegexBuilder};

use self::{cursor::Cursor, groups::Groups};

/// Deeper patterns are refused: the compiler of the `regex` crate uses the stack for each level.
const MAX_DEPTH: usize = 100;
/// The depth of a pattern of [`MAX_DEPTH`] levels after it is written anew.
const MAX_WRITTEN_DEPTH: u32 = 16 * 100;

/// The problem of a pattern that Go takes and the `regex` crate refuses. No such pattern is known.
pub(super) const NO_FORM: &str = "Go takes it, but the `regex` crate has no form for it";

/// Why a pattern is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PatternError {
    /// Go refuses it too, or this agent does not support it.
    #[error("{problem}: `{part}`")]
    Syntax {
        /// What is wrong.
        problem: &'static str,
        /// The part of the pattern that is wrong.
        part: String,
    },
    /// Groups and repetitions are nested too deep.
    #[error("groups and repetitions are nested deeper than {MAX_DEPTH} levels")]
    Depth,
    /// Its compiled form is too large.
    #[error("its compiled form takes more than {0} bytes")]
    Size(usize),
}

/// A pattern of a rule: its text as the operator wrote it, and its compiled form.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    text: String,
    regex: Regex,
}

impl Pattern {
    /// Reads a pattern as Go does.
    pub(crate) fn new(text: &str) -> Result<Self, PatternError> {
        let regex =
            RegexBuilder::new(&translate(text)?).nest_limit(MAX_WRITTEN_DEPTH).build().map_err(|error| {
                match error {
                    regex::Error::CompiledTooBig(most) => PatternError::Size(most),
                    _ => PatternError::Syntax { problem: NO_FORM, part: text.to_owned() },
                }
            })?;
        Ok(Self { text: text.to_owned(), regex })
    }

    /// The pattern as it was written.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it matches anywhere in `text`.
    pub(crate) fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// The byte where its first match in `text` begins.
    pub(crate) fn find(&self, text: &str) -> Option<usize> {
        self.regex.find(text).map(|found| found.start())
    }
}

/// The flags in force for the rest of a group. `U` is not among them, because a rule does not depend on which of several matches
/// is preferred.
#[derive(Clone, Copy, Debug, Default)]
struct Flags {
    /// `i`: upper and lower case are the same.
    folds: bool,
    /// `m`: `^` and `$` match at each line.
    lines: bool,
    /// `s`: `.` matches a line feed, too.
    dot_all: bool,
}

fn syntax<T>(problem: &'static str, part: impl Into<String>) -> Result<T, PatternError> {
    Err(PatternError::Syntax { problem, part: part.into() })
}

/// Writes a pattern of Go's anew, for the `regex` crate.
fn translate(pattern: &str) -> Result<String, PatternError> {
    let mut groups = Groups::default();
    let mut flags = Flags::default();
    let mut rest = Cursor::new(pattern);
    // Go allows no repetition directly after a repetition.
    let mut is_repeated = false;
    while let Some(first) = rest.peek() {
        let was_repeated = std::mem::take(&mut is_repeated);
        match first {
            '(' if rest.starts_with("(?") => flags = special_group(&mut rest, &mut groups, flags)?,
            '(' => {
                rest.bump();
                groups.open(flags)?;
            }
            ')' => {
                rest.bump();
                flags = groups.close()?;
            }
            '|' => {
                rest.bump();
                groups.alternative();
            }
            '*' | '+' | '?' | '{' => match rest.repetition()? {
                None => groups.push(&literal('{', flags)),
                Some((_, operator)) if was_repeated => {
                    return syntax("a repetition of a repetition", operator);
                }
                Some((repetition, operator)) => {
                    groups.repeat(repetition, operator)?;
                    is_repeated = true;
                }
            },
            '[' => groups.push(&class::bracketed(&mut rest, flags)?),
            '\\' => escaped(&mut rest, &mut groups, flags)?,
            '^' | '$' | '.' => {
                rest.bump();
                groups.push(&point(first, flags));
            }
            plain => {
                rest.bump();
                groups.push(&literal(plain, flags));
            }
        }
    }
    groups.finish()
}

fn point(sign: char, flags: Flags) -> String {
    let text = match (sign, flags) {
        ('^', Flags { lines: true, .. }) => "(?m:^)",
        ('^', _) => r"\A",
        ('$', Flags { lines: true, .. }) => "(?m:$)",
        ('$', _) => r"\z",
        (_, Flags { dot_all: true, .. }) => "(?s:.)",
        _ => r"[^\x{a}]",
    };
    text.to_owned()
}

/// A character that stands for itself.
fn literal(plain: char, flags: Flags) -> String {
    let text = if plain.is_ascii_alphanumeric() {
        plain.to_string()
    } else {
        format!(r"\x{{{:x}}}", u32::from(plain))
    };
    if flags.folds && (!plain.is_ascii() || plain.is_ascii_alphabetic()) {
        return format!("(?i:{text})");
    }
    text
}

/// Writes the pattern part after a backslash, outside of brackets.
fn escaped(rest: &mut Cursor<'_>, groups: &mut Groups, flags: Flags) -> Result<(), PatternError> {
    if rest.eat(r"\Q") {
        let (quoted, _) = rest.split_at(r"\E");
        quoted.chars().for_each(|plain| groups.push(&literal(plain, flags)));
        return Ok(());
    }
    let points = [(r"\A", r"\A"), (r"\z", r"\z"), (r"\b", r"(?-u:\b)"), (r"\B", r"(?-u:\B)")];
    if let Some((_, text)) = points.iter().find(|(sign, _)| rest.eat(sign)) {
        groups.push(text);
        return Ok(());
    }
    if let Some(class) = class::named(rest, flags)? {
        groups.push(&class);
        return Ok(());
    }
    let whole = rest.text();
    let Some(plain) = char::from_u32(rest.escape()?) else {
        // Go reads it as U+FFFD in some places, and in others as a pattern that matches nothing.
        let part = whole.strip_suffix(rest.text()).unwrap_or(whole);
        return syntax("half of a surrogate pair, which no text has", part);
    };
    groups.push(&literal(plain, flags));
    Ok(())
}

/// Writes the pattern part after `(?`: flags for a group of their own or for the rest of this one, or a group with a name.
/// Returns the flags in force after it.
fn special_group(rest: &mut Cursor<'_>, groups: &mut Groups, flags: Flags) -> Result<Flags, PatternError> {
    const PROBLEM: &str = "flags or a kind of group that Go does not know";
    let whole = rest.text();
    if rest.eat("(?P<") || rest.eat("(?<") {
        let (name, is_closed) = rest.split_at(">");
        let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !is_closed || !is_name {
            return syntax("no name of a group", whole);
        }
        groups.open(flags)?;
        return Ok(flags);
    }
    rest.eat("(?");
    let mut new = flags;
    let (mut value, mut is_complete) = (true, true);
    while let Some(sign) = rest.bump() {
        match sign {
            'i' => new.folds = value,
            'm' => new.lines = value,
            's' => new.dot_all = value,
            'U' => {}
            '-' if value => {
                (value, is_complete) = (false, false);
                continue;
            }
            ':' | ')' if is_complete => {
                if sign == ':' {
                    groups.open(flags)?;
                }
                return Ok(new);
            }
            _ => return syntax(PROBLEM, whole),
        }
        is_complete = true;
    }
    syntax(PROBLEM, whole)
}

#[cfg(test)]
mod tests;
