//! Keeps the wanted parts of a JSON text while it is read, and drops the rest.
//!
//! Objects in the cluster carry up to 1.5 MB of their owners' data, mostly annotations. Dropped parts are never held in
//! memory, so an answer takes only the size of its wanted parts.
//!
//! Dropped parts are not checked, only strings and brackets are counted to find their end. A text that breaks off gives
//! a result that breaks off too, and so never passes for a complete one.

/// Which parts of a value are kept.
#[derive(Clone, Copy, Debug)]
pub enum Keep {
    /// All of it.
    All,
    /// These fields of an object. A value that is no object is kept whole.
    Fields(&'static [(&'static str, Keep)]),
    /// This much of each item of a list. A value that is no list is kept whole.
    Items(&'static Keep),
}

/// The longest name of a wanted field, in bytes. Longer names are not held.
const MAX_NAME: usize = 64;

/// Trims a text piece by piece.
#[derive(Debug)]
pub struct Trim {
    kept: Vec<u8>,
    /// The objects and lists around the next value.
    around: Vec<Around>,
    state: State,
}

/// An object or a list of which some parts are wanted.
#[derive(Clone, Copy, Debug)]
struct Around {
    within: Within,
    /// Nothing of it has been kept yet.
    is_empty: bool,
}

#[derive(Clone, Copy, Debug)]
enum Within {
    Fields(&'static [(&'static str, Keep)]),
    Items(&'static Keep),
}

#[derive(Debug)]
enum State {
    /// Before a value, which is kept so far or dropped.
    Value(Option<&'static Keep>),
    /// In a value that is kept or dropped as a whole.
    Whole { is_kept: bool, depth: usize, text: Text },
    /// In a number, `true`, `false` or `null`.
    Word { is_kept: bool },
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
    /// Trims a value by `keep`.
    pub fn new(keep: &'static Keep) -> Self {
        Self { kept: Vec::new(), around: Vec::new(), state: State::Value(Some(keep)) }
    }

    /// How many bytes are held.
    pub fn held(&self) -> usize {
        self.kept.len()
    }

    /// The kept parts: JSON if the whole text has come and was JSON.
    pub fn into_kept(self) -> Vec<u8> {
        self.kept
    }

    /// Takes in the next piece.
    pub fn take_in(&mut self, piece: &[u8]) {
        let mut rest = piece;
        while let Some((&byte, after)) = rest.split_first() {
            // Most of a large answer is text inside strings, so many bytes are passed at a time.
            if let State::Whole { is_kept, text: Text::Inside, .. } = self.state {
                let plain = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')).unwrap_or(rest.len());
                if plain > 0 {
                    let (text, after) = rest.split_at(plain);
                    if is_kept {
                        self.kept.extend_from_slice(text);
                    }
                    rest = after;
                    continue;
                }
            }
            if self.step(byte) {
                rest = after;
            }
        }
    }

    /// Takes one byte. Returns whether it is consumed: the byte after a number belongs to what is around the number.
    fn step(&mut self, byte: u8) -> bool {
        let is_space = byte.is_ascii_whitespace();
        match &mut self.state {
            State::Value(_) | State::Between | State::Colon(_) if is_space => {}
            State::Value(keep) => {
                let keep = *keep;
                return self.begin(byte, keep);
            }
            State::Whole { is_kept, depth, text } => {
                if *is_kept {
                    self.kept.push(byte);
                }
                *text = text.after(byte);
                match byte {
                    b'{' | b'[' if *text == Text::Outside => *depth += 1,
                    b'}' | b']' if *text == Text::Outside => *depth = depth.saturating_sub(1),
                    _ => {}
                }
                if *depth == 0 && *text == Text::Outside {
                    self.end();
                }
            }
            State::Word { is_kept } => {
                if matches!(byte, b',' | b'}' | b']') || is_space {
                    self.end();
                    return false;
                }
                if *is_kept {
                    self.kept.push(byte);
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
                // Anything else makes the text invalid, and is kept so that the result is invalid too.
                if byte != b':' {
                    self.kept.push(byte);
                }
                self.state = State::Value(*keep);
            }
            State::End => {
                if !is_space {
                    self.kept.push(byte);
                }
            }
        }
        true
    }

    fn begin(&mut self, byte: u8, keep: Option<&'static Keep>) -> bool {
        let is_kept = keep.is_some();
        let within = match (byte, keep) {
            (b'{', Some(Keep::Fields(fields))) => Some(Within::Fields(fields)),
            (b'[', Some(Keep::Items(item))) => Some(Within::Items(item)),
            _ => None,
        };
        if is_kept && matches!(self.around.last().map(|around| around.within), Some(Within::Items(_))) {
            self.separate();
        }
        if let Some(within) = within {
            self.kept.push(byte);
            self.around.push(Around { within, is_empty: true });
            self.state = State::Between;
            return true;
        }
        let (depth, text) = match byte {
            b'{' | b'[' => (1, Text::Outside),
            b'"' => (0, Text::Inside),
            _ => {
                self.state = State::Word { is_kept };
                // An empty word would never end.
                if matches!(byte, b',' | b'}' | b']') {
                    self.kept.push(byte);
                    self.end();
                    return true;
                }
                return false;
            }
        };
        if is_kept {
            self.kept.push(byte);
        }
        self.state = State::Whole { is_kept, depth, text };
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
                self.kept.push(byte);
                self.around.pop();
                self.end();
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
            // Invalid JSON: the byte is kept so that the result is invalid too.
            _ => self.kept.push(byte),
        }
    }

    /// A field with this name begins.
    fn named(&mut self, name: &[u8]) {
        let fields = match self.around.last().map(|around| around.within) {
            Some(Within::Fields(fields)) => fields,
            _ => &[],
        };
        let keep = fields.iter().find(|(field, _)| field.as_bytes() == name).map(|(_, keep)| keep);
        if keep.is_some() {
            self.separate();
            self.kept.push(b'"');
            self.kept.extend_from_slice(name);
            self.kept.extend_from_slice(b"\":");
        }
        self.state = State::Colon(keep);
    }

    /// Writes the comma before the next part that is kept of the innermost object or list.
    fn separate(&mut self) {
        if let Some(around) = self.around.last_mut() {
            if !around.is_empty {
                self.kept.push(b',');
            }
            around.is_empty = false;
        }
    }

    fn end(&mut self) {
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
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;

    static LIST: Keep = Keep::Fields(&[
        ("kind", Keep::All),
        ("items", Keep::Items(&Keep::Fields(&[("a", Keep::All), ("b", Keep::Fields(&[("c", Keep::All)]))]))),
    ]);

    fn trim(text: &[u8], piece: usize) -> Vec<u8> {
        let mut trim = Trim::new(&LIST);
        text.chunks(piece.max(1)).for_each(|piece| trim.take_in(piece));
        trim.into_kept()
    }

    /// What is to be left of it, from the value itself.
    fn wanted(value: &Value, keep: &Keep) -> Value {
        match (value, keep) {
            (Value::Object(object), Keep::Fields(fields)) => {
                let kept = object.iter().filter_map(|(name, value)| {
                    let (_, keep) = fields.iter().find(|(field, _)| field == name)?;
                    Some((name.clone(), wanted(value, keep)))
                });
                Value::Object(kept.collect::<Map<_, _>>())
            }
            (Value::Array(items), Keep::Items(keep)) => items.iter().map(|item| wanted(item, keep)).collect(),
            _ => value.clone(),
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            ".{0,6}".prop_map(Value::from),
            "[\"\\\\{}\\[\\],:]{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 60, 5, |inner| {
            let name = prop_oneof!["[abc]", Just("items".to_owned()), Just("kind".to_owned()), ".{0,3}"];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::vec((name, inner), 0..5)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_wanted_is_kept_and_nothing_else(items in value(), other in value(), piece in 1..9_usize, pretty in any::<bool>()) {
            let whole = json!({"items": items, "other": other, "kind": "x"});
            let text = if pretty { serde_json::to_vec_pretty(&whole) } else { serde_json::to_vec(&whole) }.unwrap();
            let kept: Value = serde_json::from_slice(&trim(&text, piece)).unwrap();
            prop_assert_eq!(kept, wanted(&whole, &LIST));
        }

        #[test]
        fn a_text_that_breaks_off_is_never_taken_for_a_whole_one(items in value(), piece in 1..9_usize, at in 0.0..1.0_f64) {
            let text = serde_json::to_vec(&json!({"items": [items], "other": 1})).unwrap();
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let at = (text.len() as f64 * at) as usize;
            prop_assert!(serde_json::from_slice::<Value>(&trim(&text[..at], piece)).is_err());
        }

        #[test]
        fn no_bytes_at_all_are_too_much(text in proptest::collection::vec(any::<u8>(), 0..60), piece in 1..9_usize) {
            trim(&text, piece);
        }
    }

    #[test]
    fn what_is_not_wanted_is_never_held() {
        let mut trim = Trim::new(&LIST);
        trim.take_in(br#"{"items": [{"z": ""#);
        for _ in 0..1000 {
            trim.take_in(&[b'x'; 1000]);
        }
        assert!(trim.held() < 20 && trim.kept.capacity() < 100);
        trim.take_in(br#"", "a": [1, "\"}"]}, 2 ]}"#);
        assert_eq!(trim.into_kept(), br#"{"items":[{"a":[1, "\"}"]},2]}"#);
    }
}
