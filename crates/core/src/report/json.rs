//! The grammar of JSON (RFC 8259), for a text that arrives in pieces.
//!
//! `serde_json` needs a whole string in memory before it returns it, and an agent sends command lines of any length. The scanner
//! holds nothing: it hands the pieces of a string on as they arrive. It is more tolerant than `serde_json` in three points, because
//! tenants choose what is in strings: it takes control characters and lone surrogates, and nesting of any depth.

use memchr::memchr2;

/// How deep containers may be nested for the scanner to check what is in them. Deeper than that it only counts brackets.
const CHECKED_LEVELS: u32 = u128::BITS;

/// What a scanner reads, in the order of the text. A string is `begin_text`, any number of `text`, `end_text`.
pub(super) trait Sink {
    /// An array or an object begins.
    fn open(&mut self, container: Container) -> Result<(), Unexpected>;
    /// The innermost container ends.
    fn close(&mut self) -> Result<(), Unexpected>;
    /// A string begins: the name of a member, or a value.
    fn begin_text(&mut self, role: Role) -> Result<(), Unexpected>;
    /// The next bytes of the string, without escapes. They need not be UTF-8, and may end within a character.
    fn text(&mut self, piece: &[u8]);
    /// Whether nothing more of the string is wanted.
    fn is_full(&self) -> bool;
    /// The string ends.
    fn end_text(&mut self);
    /// Any other value begins.
    fn scalar(&mut self, scalar: Scalar) -> Result<(), Unexpected>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Container {
    Array,
    Object,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Name,
    Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scalar {
    Null,
    Boolean,
    Number,
}

/// A value that its receiver does not allow in this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unexpected;

/// Why a text was not read to its end. Positions are counted in bytes from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScanError {
    /// The byte at this position can't be there.
    Syntax(u64),
    /// The text ends here, within a value.
    Eof(u64),
    /// The receiver does not allow the value that begins here.
    Unexpected,
}

impl From<Unexpected> for ScanError {
    fn from(Unexpected: Unexpected) -> Self {
        Self::Unexpected
    }
}

/// Reads one JSON text.
#[derive(Debug)]
pub(super) struct Scanner {
    state: State,
    /// How many containers are open, up to [`CHECKED_LEVELS`].
    level: u32,
    /// The kinds of the open containers, the innermost one in the lowest bit: 1 for an object.
    objects: u128,
    /// The first half of a surrogate pair, while the second may follow.
    high: Option<u16>,
    /// How many bytes were read.
    read: u64,
}

/// What the next byte can be.
#[derive(Clone, Copy, Debug)]
enum State {
    Value,
    ValueOrEnd,
    NameOrEnd,
    Name,
    Colon,
    CommaOrEnd,
    Text(Role),
    Escape(Role),
    /// Of `\u`, with the digits so far and how many there are.
    Unicode(Role, u16, u8),
    /// The rest of `null`, `true` or `false`.
    Word(&'static [u8]),
    Number(Number),
    /// Deeper than the scanner checks: so many containers are open beyond that.
    Deep(u64),
    DeepText(u64),
    DeepEscape(u64),
    /// Nothing but white space.
    End,
}

/// How far a number has been read (RFC 8259, section 6).
#[derive(Clone, Copy, Debug)]
enum Number {
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    E,
    Sign,
    Exponent,
}

impl Number {
    fn first(byte: u8) -> Option<Self> {
        match byte {
            b'-' => Some(Self::Minus),
            b'0' => Some(Self::Zero),
            b'1'..=b'9' => Some(Self::Integer),
            _ => None,
        }
    }

    fn next(self, byte: u8) -> Option<Self> {
        match (self, byte) {
            (Self::Minus, _) => Self::first(byte).filter(|next| !matches!(next, Self::Minus)),
            (Self::Integer, b'0'..=b'9') => Some(Self::Integer),
            (Self::Zero | Self::Integer, b'.') => Some(Self::Point),
            (Self::Point | Self::Fraction, b'0'..=b'9') => Some(Self::Fraction),
            (Self::Zero | Self::Integer | Self::Fraction, b'e' | b'E') => Some(Self::E),
            (Self::E, b'+' | b'-') => Some(Self::Sign),
            (Self::E | Self::Sign | Self::Exponent, b'0'..=b'9') => Some(Self::Exponent),
            _ => None,
        }
    }

    fn is_whole(self) -> bool {
        matches!(self, Self::Zero | Self::Integer | Self::Fraction | Self::Exponent)
    }
}

impl Default for Scanner {
    fn default() -> Self {
        Self { state: State::Value, level: 0, objects: 0, high: None, read: 0 }
    }
}

impl Scanner {
    /// Reads the next piece. After an error the scanner must not be used again.
    pub(super) fn push(&mut self, piece: &[u8], sink: &mut impl Sink) -> Result<(), ScanError> {
        let mut rest = piece;
        while let Some(byte) = rest.first() {
            let taken = match self.state {
                State::Text(role) => self.text(role, rest, sink),
                State::DeepText(open) => self.deep_text(open, rest),
                _ => usize::from(self.byte(*byte, sink)?),
            };
            self.read += taken as u64;
            rest = rest.get(taken..).unwrap_or_default();
        }
        Ok(())
    }

    /// Whether the text may end here.
    pub(super) fn finish(&self) -> Result<(), ScanError> {
        match self.state {
            State::End => Ok(()),
            State::Number(number) if self.level == 0 && number.is_whole() => Ok(()),
            _ => Err(ScanError::Eof(self.read)),
        }
    }

    /// Takes one byte outside of strings, or one of an escape. Returns false if the byte ends a number and is to be taken again.
    fn byte(&mut self, byte: u8, sink: &mut impl Sink) -> Result<bool, ScanError> {
        let syntax = Err(ScanError::Syntax(self.read));
        if let State::Value
        | State::ValueOrEnd
        | State::NameOrEnd
        | State::Name
        | State::Colon
        | State::CommaOrEnd
        | State::End = self.state
            && matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
        {
            return Ok(true);
        }
        self.state = match (self.state, byte) {
            (State::ValueOrEnd, b']') | (State::NameOrEnd, b'}') => self.close(sink)?,
            (State::Value | State::ValueOrEnd, _) => self.value(byte, sink)?,
            (State::NameOrEnd | State::Name, b'"') => {
                sink.begin_text(Role::Name)?;
                State::Text(Role::Name)
            }
            (State::Colon, b':') => State::Value,
            (State::CommaOrEnd, b',') => {
                if self.is_in_object() {
                    State::Name
                } else {
                    State::Value
                }
            }
            (State::CommaOrEnd, b'}') if self.is_in_object() => self.close(sink)?,
            (State::CommaOrEnd, b']') if !self.is_in_object() => self.close(sink)?,
            (State::Word([expected, rest @ ..]), _) if byte == *expected => {
                if rest.is_empty() {
                    self.after_value()
                } else {
                    State::Word(rest)
                }
            }
            (State::Number(number), _) => match number.next(byte) {
                Some(next) => State::Number(next),
                None if number.is_whole() => {
                    self.state = self.after_value();
                    return Ok(false);
                }
                None => return syntax,
            },
            (State::Escape(role), b'u') => State::Unicode(role, 0, 0),
            (State::Escape(role), _) => {
                let Some(meant) = unescaped(byte) else { return syntax };
                self.end_surrogate(sink);
                sink.text(&[meant]);
                State::Text(role)
            }
            (State::Unicode(role, digits, count), _) => self.unicode(role, digits, count, byte, sink)?,
            (State::Deep(open), b'"') | (State::DeepEscape(open), _) => State::DeepText(open),
            (State::Deep(open), b'[' | b'{') => State::Deep(open + 1),
            (State::Deep(1), b']' | b'}') => State::CommaOrEnd,
            (State::Deep(open), b']' | b'}') => State::Deep(open - 1),
            (State::Deep(open), _) => State::Deep(open),
            _ => return syntax,
        };
        Ok(true)
    }

    fn value(&mut self, first: u8, sink: &mut impl Sink) -> Result<State, ScanError> {
        let (scalar, state) = match first {
            b'"' => {
                sink.begin_text(Role::Value)?;
                return Ok(State::Text(Role::Value));
            }
            b'[' => return self.open(Container::Array, sink),
            b'{' => return self.open(Container::Object, sink),
            b'n' => (Scalar::Null, State::Word(b"ull")),
            b't' => (Scalar::Boolean, State::Word(b"rue")),
            b'f' => (Scalar::Boolean, State::Word(b"alse")),
            _ => match Number::first(first) {
                Some(number) => (Scalar::Number, State::Number(number)),
                None => return Err(ScanError::Syntax(self.read)),
            },
        };
        sink.scalar(scalar)?;
        Ok(state)
    }

    fn open(&mut self, container: Container, sink: &mut impl Sink) -> Result<State, ScanError> {
        if self.level == CHECKED_LEVELS {
            return Ok(State::Deep(1));
        }
        sink.open(container)?;
        self.level += 1;
        self.objects = self.objects << 1 | u128::from(container == Container::Object);
        Ok(match container {
            Container::Array => State::ValueOrEnd,
            Container::Object => State::NameOrEnd,
        })
    }

    fn close(&mut self, sink: &mut impl Sink) -> Result<State, ScanError> {
        sink.close()?;
        self.level = self.level.saturating_sub(1);
        self.objects >>= 1;
        Ok(self.after_value())
    }

    /// Takes the next of the four digits of a `\u` escape.
    fn unicode(
        &mut self,
        role: Role,
        digits: u16,
        count: u8,
        next: u8,
        sink: &mut impl Sink,
    ) -> Result<State, ScanError> {
        let Some(digit) = char::from(next).to_digit(16).and_then(|digit| u16::try_from(digit).ok()) else {
            return Err(ScanError::Syntax(self.read));
        };
        let digits = digits << 4 | digit;
        if count < 3 {
            return Ok(State::Unicode(role, digits, count + 1));
        }
        self.unit(digits, sink);
        Ok(State::Text(role))
    }

    fn after_value(&self) -> State {
        if self.level == 0 { State::End } else { State::CommaOrEnd }
    }

    fn is_in_object(&self) -> bool {
        self.objects & 1 == 1
    }

    /// Takes what is left of a string, up to the next escape; returns how many bytes that is.
    fn text(&mut self, role: Role, rest: &[u8], sink: &mut impl Sink) -> usize {
        if sink.is_full() {
            let skipped = skip_text(rest);
            if skipped > 0 {
                // A surrogate before it is dropped too.
                self.high = None;
                return skipped;
            }
        }
        let end = memchr2(b'"', b'\\', rest);
        let piece = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        let is_end = end.and_then(|end| rest.get(end)) == Some(&b'"');
        if !piece.is_empty() || is_end {
            self.end_surrogate(sink);
        }
        if !piece.is_empty() {
            sink.text(piece);
        }
        if is_end {
            sink.end_text();
            self.state = if role == Role::Name { State::Colon } else { self.after_value() };
        } else if end.is_some() {
            self.state = State::Escape(role);
        }
        piece.len() + usize::from(end.is_some())
    }

    fn deep_text(&mut self, open: u64, rest: &[u8]) -> usize {
        let Some(end) = memchr2(b'"', b'\\', rest) else { return rest.len() };
        let is_end = rest.get(end) == Some(&b'"');
        self.state = if is_end { State::Deep(open) } else { State::DeepEscape(open) };
        end + 1
    }

    /// Takes one UTF-16 code unit of an escape. A surrogate without its other half is U+FFFD.
    fn unit(&mut self, unit: u16, sink: &mut impl Sink) {
        let high = self.high.take();
        let pair = high.and_then(|high| char::decode_utf16([high, unit]).next()?.ok());
        if let Some(character) = pair {
            return character_of(character, sink);
        }
        if high.is_some() {
            character_of(char::REPLACEMENT_CHARACTER, sink);
        }
        match unit {
            0xD800..=0xDBFF => self.high = Some(unit),
            _ => character_of(char::from_u32(u32::from(unit)).unwrap_or(char::REPLACEMENT_CHARACTER), sink),
        }
    }

    /// Anything but the second half follows the first half of a surrogate pair.
    fn end_surrogate(&mut self, sink: &mut impl Sink) {
        if self.high.take().is_some() {
            character_of(char::REPLACEMENT_CHARACTER, sink);
        }
    }
}

/// How many bytes of a string can be passed over before its end, or before an escape that is wrong or not whole.
fn skip_text(text: &[u8]) -> usize {
    let mut at = 0;
    while let Some(rest) = text.get(at..) {
        at += match rest {
            [b'\\', b'u', digits @ ..] => match digits.first_chunk::<4>() {
                Some(digits) if digits.iter().all(u8::is_ascii_hexdigit) => 6,
                _ => break,
            },
            [b'\\', escape, ..] if unescaped(*escape).is_some() => 2,
            [b'\\' | b'"', ..] | [] => break,
            _ => memchr2(b'"', b'\\', rest).unwrap_or(rest.len()),
        };
    }
    at
}

fn character_of(character: char, sink: &mut impl Sink) {
    sink.text(character.encode_utf8(&mut [0; 4]).as_bytes());
}

/// What a backslash before this byte means.
fn unescaped(byte: u8) -> Option<u8> {
    Some(match byte {
        b'"' | b'\\' | b'/' => byte,
        b'b' => 0x08,
        b'f' => 0x0C,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        _ => return None,
    })
}
