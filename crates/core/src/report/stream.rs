//! Decodes an answer that arrives in pieces to its records.

use super::gathering::{Gathering, Limits};
use super::json::{Container, Role, Scalar, ScanError, Scanner, Sink, Unexpected};
use super::wire_record::{Field, WireRecord};
use super::{Answer, Rejection};

/// The members of a record that are used, in the order of [`WireRecord`]'s fields.
const NAMES: [&[u8]; 9] =
    [b"pod", b"namespace", b"process", b"cmdline", b"regex", b"status", b"type", b"name", b"timestamp"];
/// The member of a top-level object that is the list.
const LIST: &[u8] = b"violations";
/// The longest name that Kubernetes gives to a namespace or a Pod.
const LONGEST_NAME: usize = 253;
/// How many bytes of a string are held beyond its limit. These bytes show that the string is longer, even if a
/// character is cut.
const BEYOND: usize = 4;

/// Decodes a body as it arrives. It holds the records within their [`Limits`] and one record more, however long the
/// texts in the body are. The result is that of [`decode`](super::decode()), however the body is cut into pieces.
#[derive(Debug)]
pub struct Decoder {
    scanner: Scanner,
    list: List,
    broken: Option<DecodeError>,
}

/// The answer as a whole is not a list of records. The records before the error are used all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(String);

impl DecodeError {
    /// The byte at this position, counted from 0, can't be there. The input is not quoted.
    fn syntax(at: u64) -> Self {
        Self(format!("not JSON at byte {at}"))
    }

    fn eof(at: u64) -> Self {
        Self(format!("the JSON breaks off at byte {at}"))
    }

    fn shape() -> Self {
        Self("expected an array of records, null, or an object with `violations`".to_owned())
    }
}

/// The list of records, as far as it has been read.
#[derive(Debug)]
struct List {
    limits: Limits,
    gathering: Gathering,
    place: Place,
    /// How many containers are open in a value that is not used.
    ignored: u64,
    /// The name of the member that is being read.
    name: Vec<u8>,
    /// The record that is being read.
    members: [Member; NAMES.len()],
    /// The record has a member twice, so it is ambiguous.
    is_ambiguous: bool,
    /// The destination of the string that is being read.
    text: Target,
}

/// Where in the body the next value or the next name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Start,
    /// In the object at the top. Whether a list was found in it.
    Top {
        has_list: bool,
    },
    /// At a member of this object. Whether the member is the list.
    TopMember {
        has_list: bool,
        is_list: bool,
    },
    /// In the list. Whether the list is a member of an object.
    List {
        is_nested: bool,
    },
    /// In a record, at a member that is used or not.
    Record {
        is_nested: bool,
        member: Option<usize>,
    },
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Nothing,
    Name,
    Member(usize),
}

/// One member of the record that is being read. Allocated once for all records.
#[derive(Debug, Default)]
struct Member {
    value: Value,
    text: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Value {
    #[default]
    Missing,
    Null,
    Text,
    WrongType,
}

impl Decoder {
    /// A decoder of one body.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        let list = List {
            limits: *limits,
            gathering: Gathering::new(limits, 0),
            place: Place::Start,
            ignored: 0,
            name: Vec::new(),
            members: Default::default(),
            is_ambiguous: false,
            text: Target::Nothing,
        };
        Self { scanner: Scanner::default(), list, broken: None }
    }

    /// Takes the next bytes of the body. Returns false if the body can't be a list of records. Then no further bytes
    /// are read.
    pub fn push(&mut self, piece: &[u8]) -> bool {
        if self.broken.is_none() {
            self.broken = self.scanner.push(piece, &mut self.list).err().map(DecodeError::from);
        }
        self.broken.is_none()
    }

    /// Whether the body can't be a list of records.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// The bytes that the records so far take.
    #[must_use]
    pub fn held(&self) -> usize {
        self.list.gathering.held()
    }

    /// The body ends here. Returns the valid records, and the error if the body as a whole is no list of records or
    /// breaks off.
    pub fn finish(self) -> (Answer, Result<(), DecodeError>) {
        let Self { scanner, list, broken } = self;
        let result = broken.map_or_else(|| scanner.finish().map_err(DecodeError::from), Err);
        (list.gathering.finish(), result)
    }
}

impl From<ScanError> for DecodeError {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::Syntax(at) => Self::syntax(at),
            ScanError::Eof(at) => Self::eof(at),
            ScanError::Unexpected => Self::shape(),
        }
    }
}

impl List {
    /// Notes a value that is neither the list nor a record. An element of the list is counted as no record.
    fn refuse(&mut self, value: Value) -> Result<(), Unexpected> {
        match self.place {
            Place::Start | Place::End | Place::Top { .. } | Place::TopMember { is_list: true, .. } => {
                return Err(Unexpected);
            }
            Place::TopMember { has_list, is_list: false } => self.place = Place::Top { has_list },
            Place::List { .. } => self.gathering.rejected.count(Rejection::NotARecord),
            Place::Record { member, .. } => {
                if let Some(member) = member.and_then(|member| self.members.get_mut(member)) {
                    member.value = value;
                }
            }
        }
        Ok(())
    }

    fn begin_record(&mut self, is_nested: bool) {
        self.members.iter_mut().for_each(|member| member.value = Value::Missing);
        self.is_ambiguous = false;
        self.place = Place::Record { is_nested, member: None };
    }

    fn end_record(&mut self) {
        let [pod, namespace, process, cmdline, regex, status, kind, name, timestamp] =
            self.members.each_ref().map(Member::field);
        let wire = WireRecord { pod, namespace, process, cmdline, regex, status, kind, name, timestamp };
        let taken = if self.is_ambiguous {
            Err(Rejection::NotARecord)
        } else {
            wire.take_in(&self.limits, &mut self.gathering)
        };
        if let Err(reason) = taken {
            self.gathering.rejected.count(reason);
        }
    }

    /// The name of a member has been read.
    fn named(&mut self) {
        match &mut self.place {
            Place::Top { has_list } => {
                let (has_list, is_list) = (*has_list, self.name == LIST);
                self.place = Place::TopMember { has_list: has_list || is_list, is_list };
            }
            Place::Record { member, .. } => {
                *member = NAMES.iter().position(|name| self.name == *name);
                let value = member.and_then(|member| self.members.get(member)).map(|member| member.value);
                self.is_ambiguous |= value.is_some_and(|value| value != Value::Missing);
            }
            _ => {}
        }
    }

    /// How many bytes of the text that is being read are held at most.
    fn limit(&self) -> usize {
        let Limits { process, cmdline, field, .. } = self.limits;
        let limit = match self.text {
            Target::Nothing => return 0,
            Target::Name => LIST.len(),
            Target::Member(0 | 1) => LONGEST_NAME,
            Target::Member(2) => process,
            Target::Member(3) => cmdline,
            Target::Member(_) => field,
        };
        limit.saturating_add(BEYOND)
    }

    /// How many more bytes of the text that is being read are held.
    fn room(&self) -> usize {
        let held = match self.text {
            Target::Nothing => 0,
            Target::Name => self.name.len(),
            Target::Member(place) => self.members.get(place).map_or(0, |member| member.text.len()),
        };
        self.limit().saturating_sub(held)
    }
}

impl Member {
    fn field(&self) -> Field<'_> {
        match self.value {
            Value::Missing | Value::Null => Field::Missing,
            Value::Text => Field::Text(String::from_utf8_lossy(&self.text)),
            Value::WrongType => Field::WrongType,
        }
    }
}

impl Sink for List {
    fn open(&mut self, container: Container) -> Result<(), Unexpected> {
        if self.ignored > 0 {
            self.ignored += 1;
            return Ok(());
        }
        match (self.place, container) {
            (Place::Start, Container::Array) => self.place = Place::List { is_nested: false },
            (Place::Start, Container::Object) => self.place = Place::Top { has_list: false },
            (Place::TopMember { is_list: true, .. }, Container::Array) => {
                self.place = Place::List { is_nested: true };
            }
            (Place::List { is_nested }, Container::Object) => self.begin_record(is_nested),
            _ => {
                self.refuse(Value::WrongType)?;
                self.ignored = 1;
            }
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), Unexpected> {
        if self.ignored > 0 {
            self.ignored -= 1;
            return Ok(());
        }
        self.place = match self.place {
            Place::List { is_nested: true } => Place::Top { has_list: true },
            Place::Record { is_nested, .. } => {
                self.end_record();
                Place::List { is_nested }
            }
            Place::Top { has_list: false } => return Err(Unexpected),
            _ => Place::End,
        };
        Ok(())
    }

    fn begin_text(&mut self, role: Role) -> Result<(), Unexpected> {
        self.text = Target::Nothing;
        if self.ignored > 0 {
            return Ok(());
        }
        if role == Role::Name {
            self.name.clear();
            self.text = Target::Name;
            return Ok(());
        }
        self.refuse(Value::Text)?;
        if let Place::Record { member: Some(place), .. } = self.place
            && let Some(member) = self.members.get_mut(place)
        {
            member.text.clear();
            self.text = Target::Member(place);
        }
        Ok(())
    }

    fn text(&mut self, piece: &[u8]) {
        let room = self.room().min(piece.len());
        let text = match self.text {
            Target::Nothing => return,
            Target::Name => &mut self.name,
            Target::Member(place) => match self.members.get_mut(place) {
                Some(member) => &mut member.text,
                None => return,
            },
        };
        text.extend_from_slice(piece.get(..room).unwrap_or_default());
    }

    fn is_full(&self) -> bool {
        self.room() == 0
    }

    fn end_text(&mut self) {
        if self.text == Target::Name {
            self.named();
        }
        self.text = Target::Nothing;
    }

    fn scalar(&mut self, scalar: Scalar) -> Result<(), Unexpected> {
        if self.ignored > 0 {
            return Ok(());
        }
        match (self.place, scalar) {
            (Place::Start, Scalar::Null) => self.place = Place::End,
            (Place::TopMember { is_list: true, .. }, Scalar::Null) => {
                self.place = Place::Top { has_list: true };
            }
            (_, Scalar::Null) => self.refuse(Value::Null)?,
            (_, Scalar::Boolean | Scalar::Number) => self.refuse(Value::WrongType)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_too_long_is_held_up_to_its_limit_and_a_few_bytes_more() {
        let limits = Limits { process: 50, cmdline: 60, field: 70, ..Limits::default() };
        // The body comes in pieces that end anywhere, in escapes as well.
        let long = format!("{}{}", "\\u00e9\\n".repeat(500), "x".repeat(500));
        let names = NAMES.map(|name| std::str::from_utf8(name).unwrap());
        let members = [long.as_str()].into_iter().chain(names).map(|name| format!(r#""{name}":"{long}""#));
        let body = format!("[{{{}", members.collect::<Vec<_>>().join(","));
        let mut decoder = Decoder::new(&limits);
        let mut longest_name = 0;
        for piece in body.as_bytes().chunks(7) {
            assert!(decoder.push(piece));
            longest_name = longest_name.max(decoder.list.name.len());
        }
        let held = decoder.list.members.each_ref().map(|member| member.text.len());
        let expected = [LONGEST_NAME, LONGEST_NAME, 50, 60, 70, 70, 70, 70, 70];
        for (held, limit) in
            held.into_iter().chain([longest_name]).zip(expected.into_iter().chain([LIST.len()]))
        {
            assert!(held > limit && held <= limit + BEYOND, "{held} of {limit}");
        }
    }
}
