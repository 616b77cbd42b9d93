//! Keeps the wanted parts of a JSON text while it is read, and drops the rest.
//!
//! Objects in the cluster carry up to 1.5 MB of their owners' data, mostly annotations. Dropped parts are never held in
//! memory, so an answer takes only the size of its wanted parts.
//!
//! Dropped parts are not checked, only strings and brackets are counted to find their end. A text that breaks off gives
//! a result that breaks off too, and so never passes for a complete one.
//!
//! Parts that are only compared, such as those of a watch's events, become a fingerprint while they arrive. They take no
//! memory, so they have no limit.

use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};

/// Which parts of a value are wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keep {
    /// All of it.
    All,
    /// Only these fields of an object. Of a value that is no object, all is wanted.
    Fields(&'static [(&'static str, Keep)]),
    /// This much of each item of a list. Of a value that is no list, all is wanted.
    Items(&'static Keep),
    /// This much of it becomes part of the fingerprint and is not held. The trimmed JSON has `0` in its place.
    Print(&'static Keep),
}

/// How large an item of the answer's list is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    /// All of it.
    pub(crate) read: usize,
    /// The part of it that is wanted.
    pub(crate) wanted: usize,
}

/// The longest name of a wanted field, in bytes. Longer names are not held.
const MAX_NAME: usize = 64;

/// How many objects and lists are around an item of the answer's list: the answer itself and the list.
const AROUND_ITEM: usize = 2;

/// Trims a text piece by piece.
#[derive(Debug)]
pub(crate) struct Trim {
    /// The wanted parts so far.
    wanted: Vec<u8>,
    print: DefaultHasher,
    /// Within a part for the fingerprint; how many objects and lists are around it.
    printing: Option<usize>,
    /// How many bytes have come.
    read: usize,
    /// The sizes of the items of the answer's list; of the last one where it begins, until it has ended.
    items: Vec<Size>,
    /// The objects and lists around the next value.
    around: Vec<Around>,
    state: State,
}

/// An object or a list of which some parts are wanted.
#[derive(Clone, Copy, Debug)]
struct Around {
    within: Within,
    /// No part of it has been wanted yet.
    is_empty: bool,
}

#[derive(Clone, Copy, Debug)]
enum Within {
    Fields(&'static [(&'static str, Keep)]),
    Items(&'static Keep),
}

#[derive(Debug)]
enum State {
    /// Before a value, which is wanted or dropped.
    Value(Option<&'static Keep>),
    /// In a value that is wanted or dropped as a whole.
    Whole { is_wanted: bool, depth: usize, text: Text },
    /// In a number, `true`, `false` or `null`.
    Word { is_wanted: bool },
    /// Between the fields of a wanted object, or between the items of a wanted list.
    Between,
    /// In the name of a field.
    Name { name: Vec<u8>, is_escaped: bool },
    /// Between the name of a field and its value.
    Colon(Option<&'static Keep>),
    /// After the value.
    End,
}

/// Whether a byte is in a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    Outside,
    Inside,
    Escaped,
}

impl Trim {
    /// Trims a value by `keep`, which has no parts for a fingerprint.
    pub(crate) fn new(keep: &'static Keep) -> Self {
        Self::printing(keep, &RandomState::new())
    }

    /// Trims a value by `keep`. Fingerprints are comparable if they were made with the same secret.
    pub(crate) fn printing(keep: &'static Keep, secret: &RandomState) -> Self {
        Self {
            wanted: Vec::new(),
            print: secret.build_hasher(),
            printing: None,
            read: 0,
            items: Vec::new(),
            around: Vec::new(),
            state: State::Value(Some(keep)),
        }
    }

    /// How many bytes are held.
    pub(crate) fn held(&self) -> usize {
        self.wanted.len()
    }

    /// The fingerprint of the parts that are not held.
    pub(crate) fn print(&self) -> u64 {
        self.print.finish()
    }

    /// The size of each item of the answer's list, in their order.
    pub(crate) fn items(&self) -> &[Size] {
        &self.items
    }

    /// The wanted parts: JSON if the whole text has come and was JSON.
    pub(crate) fn into_wanted(self) -> Vec<u8> {
        self.wanted
    }

    /// Takes in the next piece.
    pub(crate) fn take_in(&mut self, piece: &[u8]) {
        let mut rest = piece;
        while let Some((&byte, after)) = rest.split_first() {
            // Most of a large answer is text inside strings, so many bytes are passed at a time.
            if let State::Whole { is_wanted, text: Text::Inside, .. } = self.state {
                let plain = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')).unwrap_or(rest.len());
                if plain > 0 {
                    let (text, after) = rest.split_at(plain);
                    if is_wanted {
                        self.keep(text);
                    }
                    self.read += plain;
                    rest = after;
                    continue;
                }
            }
            if self.step(byte) {
                self.read += 1;
                rest = after;
            }
        }
    }

    fn keep(&mut self, text: &[u8]) {
        if self.printing.is_some() {
            self.print.write(text);
        } else {
            self.wanted.extend_from_slice(text);
        }
    }

    /// Takes one byte. Returns whether it is consumed: the byte after a number belongs to the object or list around
    /// the number.
    fn step(&mut self, byte: u8) -> bool {
        let is_space = byte.is_ascii_whitespace();
        match &mut self.state {
            State::Value(_) | State::Between | State::Colon(_) if is_space => {}
            State::Value(keep) => {
                let keep = *keep;
                return self.begin(byte, keep);
            }
            State::Whole { is_wanted, depth, text } => {
                *text = text.after(byte);
                match byte {
                    b'{' | b'[' if *text == Text::Outside => *depth += 1,
                    b'}' | b']' if *text == Text::Outside => *depth = depth.saturating_sub(1),
                    _ => {}
                }
                let is_over = *depth == 0 && *text == Text::Outside;
                if *is_wanted {
                    self.keep(&[byte]);
                }
                if is_over {
                    self.end(1);
                }
            }
            State::Word { is_wanted } => {
                if matches!(byte, b',' | b'}' | b']') || is_space {
                    self.end(0);
                    return false;
                }
                if *is_wanted {
                    self.keep(&[byte]);
                }
            }
            State::Between => self.between(byte),
            State::Name { name, is_escaped } => match byte {
                b'"' if !*is_escaped => {
                    let name = std::mem::take(name);
                    self.named(&name);
                }
                _ => {
                    *is_escaped = byte == b'\\' && !*is_escaped;
                    if name.len() <= MAX_NAME {
                        name.push(byte);
                    }
                }
            },
            State::Colon(keep) => {
                // Anything else makes the text invalid, and is held so that the result is invalid too.
                let keep = *keep;
                if byte != b':' {
                    self.wanted.push(byte);
                }
                self.state = State::Value(keep);
            }
            State::End => {
                if !is_space {
                    self.wanted.push(byte);
                }
            }
        }
        true
    }

    fn begin(&mut self, byte: u8, keep: Option<&'static Keep>) -> bool {
        if keep.is_some() && matches!(self.around.last().map(|around| around.within), Some(Within::Items(_)))
        {
            if self.around.len() == AROUND_ITEM {
                self.items.push(Size { read: self.read, wanted: self.wanted.len() });
            }
            self.separate();
        }
        let mut keep = keep;
        if let Some(Keep::Print(inner)) = keep {
            self.keep(b"0");
            // A part in a part for the fingerprint ends with the outer one.
            self.printing.get_or_insert(self.around.len());
            keep = Some(inner);
        }
        let is_wanted = keep.is_some();
        let within = match (byte, keep) {
            (b'{', Some(Keep::Fields(fields))) => Some(Within::Fields(fields)),
            (b'[', Some(Keep::Items(item))) => Some(Within::Items(item)),
            _ => None,
        };
        if let Some(within) = within {
            self.keep(&[byte]);
            self.around.push(Around { within, is_empty: true });
            self.state = State::Between;
            return true;
        }
        let (depth, text) = match byte {
            b'{' | b'[' => (1, Text::Outside),
            b'"' => (0, Text::Inside),
            _ => {
                self.state = State::Word { is_wanted };
                // An empty word would never end.
                if matches!(byte, b',' | b'}' | b']') {
                    self.keep(&[byte]);
                    self.end(1);
                    return true;
                }
                return false;
            }
        };
        if is_wanted {
            self.keep(&[byte]);
        }
        self.state = State::Whole { is_wanted, depth, text };
        true
    }

    fn between(&mut self, byte: u8) {
        let within = self.around.last().map(|around| around.within);
        match (byte, within) {
            (b',', Some(_)) => {
                if let Some(Within::Items(item)) = within {
                    self.state = State::Value(Some(item));
                }
            }
            (b'}', Some(Within::Fields(_))) | (b']', Some(Within::Items(_))) => {
                self.keep(&[byte]);
                self.around.pop();
                self.end(1);
            }
            (b'"', Some(Within::Fields(_))) => {
                self.state = State::Name { name: Vec::new(), is_escaped: false }
            }
            (_, Some(Within::Items(item))) => {
                self.state = State::Value(Some(item));
                if !self.step(byte) {
                    // The first byte of a number: the new state takes it.
                    self.step(byte);
                }
            }
            // Invalid JSON: the byte is held so that the result is invalid too.
            _ => self.wanted.push(byte),
        }
    }

    /// A field with this name begins.
    fn named(&mut self, name: &[u8]) {
        let fields = match self.around.last().map(|around| around.within) {
            Some(Within::Fields(fields)) => fields,
            _ => &[],
        };
        let keep = fields.iter().find(|(field, _)| field.as_bytes() == name).map(|(_, keep)| keep);
        if matches!(keep, Some(Keep::Print(_))) {
            // Equal values of different fields have to give different fingerprints.
            self.print.write(name);
        }
        if keep.is_some() {
            self.separate();
            self.keep(b"\"");
            self.keep(name);
            self.keep(b"\":");
        }
        self.state = State::Colon(keep);
    }

    /// Writes the comma before the next wanted part of the innermost object or list.
    fn separate(&mut self) {
        if let Some(around) = self.around.last_mut() {
            let is_first = std::mem::replace(&mut around.is_empty, false);
            if !is_first {
                self.keep(b",");
            }
        }
    }

    /// Ends the value. Its last `now` bytes are not counted in `read` yet.
    fn end(&mut self, now: usize) {
        if self.printing == Some(self.around.len()) {
            self.printing = None;
        }
        if self.around.len() == AROUND_ITEM
            && matches!(self.around.last().map(|around| around.within), Some(Within::Items(_)))
            && let Some(item) = self.items.last_mut()
        {
            *item = Size { read: self.read + now - item.read, wanted: self.wanted.len() - item.wanted };
        }
        self.state = if self.around.is_empty() { State::End } else { State::Between };
    }
}

impl Text {
    fn after(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Outside, b'"') | (Self::Escaped, _) => Self::Inside,
            (Self::Inside, b'"') => Self::Outside,
            (Self::Inside, b'\\') => Self::Escaped,
            _ => self,
        }
    }
}

#[cfg(test)]
mod tests;
