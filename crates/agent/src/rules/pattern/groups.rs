//! The open groups of a pattern, and the text written for each.

use std::mem;

use super::{Flags, MAX_DEPTH, PatternError, cursor::Repetition, syntax};

/// Go's highest number of repetitions of repetitions.
const MAX_PRODUCT: u32 = 1000;

/// A text that was written anew, with the counts by which Go limits patterns.
#[derive(Debug, Default)]
struct Piece {
    text: String,
    /// How often its innermost part is repeated at most.
    product: u32,
    /// The number of groups and repetitions around its innermost part.
    depth: usize,
}

/// A group that is open.
#[derive(Debug, Default)]
struct Group {
    /// The flags in force around it.
    outside: Flags,
    /// All but the last piece of the present alternative, and the alternatives before it.
    before: Piece,
    /// The piece that a repetition would repeat.
    last: Option<Piece>,
}

impl Group {
    /// Moves the last piece to those before it, where no repetition reaches it.
    fn settle(&mut self) {
        if let Some(last) = self.last.take() {
            self.before.text.push_str(&last.text);
            self.before.product = self.before.product.max(last.product);
            self.before.depth = self.before.depth.max(last.depth);
        }
    }

    fn push(&mut self, piece: Piece) {
        self.settle();
        self.last = Some(piece);
    }
}

/// The innermost group, and those around it.
#[derive(Debug, Default)]
pub(super) struct Groups {
    inner: Group,
    outer: Vec<Group>,
}

impl Groups {
    pub(super) fn open(&mut self, flags: Flags) -> Result<(), PatternError> {
        if self.outer.len() >= MAX_DEPTH {
            return Err(PatternError::Depth);
        }
        let group = Group { outside: flags, ..Group::default() };
        self.outer.push(mem::replace(&mut self.inner, group));
        Ok(())
    }

    /// Closes the innermost group. Returns which flags are in force behind it.
    pub(super) fn close(&mut self) -> Result<Flags, PatternError> {
        let Some(outer) = self.outer.pop() else {
            return syntax("a parenthesis that closes nothing", ")");
        };
        let mut group = mem::replace(&mut self.inner, outer);
        group.settle();
        let Piece { text, product, depth } = group.before;
        self.inner.push(Piece { text: format!("(?:{text})"), product, depth: deeper(depth)? });
        Ok(group.outside)
    }

    pub(super) fn alternative(&mut self) {
        self.inner.settle();
        self.inner.before.text.push('|');
    }

    pub(super) fn push(&mut self, text: &str) {
        self.inner.push(Piece { text: text.to_owned(), product: 1, depth: 0 });
    }

    /// Repeats the last piece; `operator` is the text of the repetition in the pattern.
    pub(super) fn repeat(&mut self, repetition: Repetition, operator: &str) -> Result<(), PatternError> {
        let Some(piece) = self.inner.last.take() else {
            return syntax("a repetition of nothing", operator);
        };
        let Repetition { least, most } = repetition;
        let factor = match most {
            Some(0) => 0,
            // Go does not count `*`, `+` and `?`.
            None if least < 2 => 1,
            Some(1) if least == 0 => 1,
            most => most.unwrap_or(least),
        };
        let product = if factor == 0 { 0 } else { factor.saturating_mul(piece.product.max(1)) };
        if product > MAX_PRODUCT {
            return syntax("repetitions of repetitions, more than 1000 in all", operator);
        }
        let count = match most {
            None => format!("{{{least},}}"),
            Some(most) => format!("{{{least},{most}}}"),
        };
        let text = format!("(?:{}){count}", piece.text);
        self.inner.last = Some(Piece { text, product, depth: deeper(piece.depth)? });
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<String, PatternError> {
        if !self.outer.is_empty() {
            return syntax("a parenthesis that is not closed", "(");
        }
        self.inner.settle();
        Ok(self.inner.before.text)
    }
}

fn deeper(depth: usize) -> Result<usize, PatternError> {
    if depth >= MAX_DEPTH { Err(PatternError::Depth) } else { Ok(depth + 1) }
}
