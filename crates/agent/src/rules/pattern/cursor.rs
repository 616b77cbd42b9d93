//! The rest of a pattern that is not read yet.

use super::{PatternError, syntax};

/// Go's highest number of repetitions.
const MAX_REPETITIONS: u32 = 1000;

/// How often something is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Repetition {
    pub(super) least: u32,
    /// `None` for any number.
    pub(super) most: Option<u32>,
}

pub(super) struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(pattern: &'a str) -> Self {
        Self { rest: pattern }
    }

    pub(super) fn text(&self) -> &'a str {
        self.rest
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    pub(super) fn bump(&mut self) -> Option<char> {
        let first = self.peek()?;
        self.rest = self.rest.strip_prefix(first)?;
        Some(first)
    }

    pub(super) fn starts_with(&self, text: &str) -> bool {
        self.rest.starts_with(text)
    }

    pub(super) fn eat(&mut self, text: &str) -> bool {
        let after = self.rest.strip_prefix(text);
        self.rest = after.unwrap_or(self.rest);
        after.is_some()
    }

    /// The text before `end`, or the whole rest; and whether `end` was found.
    pub(super) fn split_at(&mut self, end: &str) -> (&'a str, bool) {
        match self.rest.split_once(end) {
            Some((before, after)) => {
                self.rest = after;
                (before, true)
            }
            None => (std::mem::take(&mut self.rest), false),
        }
    }

    /// A repetition and its text. `None` is a brace that stands for itself, because no number of repetitions in Go's form
    /// follows it.
    pub(super) fn repetition(&mut self) -> Result<Option<(Repetition, &'a str)>, PatternError> {
        let whole = self.rest;
        let (least, most) = match self.bump() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            _ => {
                let Some(numbers) = self.braces() else {
                    self.rest = whole.strip_prefix('{').unwrap_or(whole);
                    return Ok(None);
                };
                numbers
            }
        };
        let text = whole.strip_suffix(self.rest).unwrap_or(whole);
        // A preference for longer or shorter matches does not change the verdict.
        self.eat("?");
        let most_or_least = most.unwrap_or(least);
        if least > MAX_REPETITIONS || most_or_least > MAX_REPETITIONS || least > most_or_least {
            return syntax(
                "a number of repetitions beyond 1000, or that is smaller than the one before it",
                text,
            );
        }
        Ok(Some((Repetition { least, most }, text)))
    }

    /// The numbers after an opening brace: `5}`, `5,}` or `5,7}`.
    fn braces(&mut self) -> Option<(u32, Option<u32>)> {
        let least = self.decimal()?;
        let most = if !self.eat(",") {
            Some(least)
        } else if self.starts_with("}") {
            None
        } else {
            Some(self.decimal()?)
        };
        self.eat("}").then_some((least, most))
    }

    /// A number without leading zeros. A number beyond `u32` becomes the largest one, which Go refuses too.
    fn decimal(&mut self) -> Option<u32> {
        let end = self.rest.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at_checked(end)?;
        if digits.is_empty() || digits.len() > 1 && digits.starts_with('0') {
            return None;
        }
        self.rest = rest;
        Some(digits.parse().unwrap_or(u32::MAX))
    }

    /// A single character that is written with a backslash. It may be half of a surrogate pair, which no text has.
    pub(super) fn escape(&mut self) -> Result<u32, PatternError> {
        let whole = self.rest;
        self.eat("\\");
        let value = match self.bump() {
            None => return syntax("a backslash at the end", whole),
            Some('a') => Some(7),
            Some('f') => Some(0xc),
            Some('n') => Some(0xa),
            Some('r') => Some(0xd),
            Some('t') => Some(9),
            Some('v') => Some(0xb),
            Some('x') => self.hexadecimal(),
            Some('0') => Some(self.octal(0)),
            // One digit alone refers to a group.
            Some(digit @ '1'..='7') if self.peek().is_some_and(|next| next.is_digit(8)) => {
                digit.to_digit(8).map(|digit| self.octal(digit))
            }
            Some(sign) if sign.is_ascii() && !sign.is_ascii_alphanumeric() => Some(u32::from(sign)),
            Some(_) => None,
        };
        match value {
            Some(value) => Ok(value),
            None => syntax("an escape that Go does not know", whole.strip_suffix(self.rest).unwrap_or(whole)),
        }
    }

    /// Up to two more octal digits.
    fn octal(&mut self, first: u32) -> u32 {
        let mut value = first;
        for _ in 0..2 {
            let Some(digit) = self.peek().and_then(|next| next.to_digit(8)) else { break };
            self.bump();
            value = value * 8 + digit;
        }
        value
    }

    /// Two digits, or any number of them in braces.
    fn hexadecimal(&mut self) -> Option<u32> {
        if !self.eat("{") {
            let high = self.bump()?.to_digit(16)?;
            return Some(high * 16 + self.bump()?.to_digit(16)?);
        }
        let (digits, is_closed) = self.split_at("}");
        let are_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = u32::from_str_radix(digits.trim_start_matches('0'), 16);
        // Zeros alone leave no digits.
        let value = if digits.bytes().all(|byte| byte == b'0') { 0 } else { value.ok()? };
        (is_closed && are_digits && value <= u32::from(char::MAX)).then_some(value)
    }
}
