//! From the bytes of an answer to its records.

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::record::{RecordRef, Records};
use super::{Answer, LeftOut, Rejection};
use crate::names::{KeyRef, is_dns_label, is_dns_subdomain};

/// How much of one answer is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Records per answer. The rest is read and counted, and its namespaces are noted (see [`LeftOut`]).
    pub records: usize,
    /// Bytes of a process name. It is part of the key, so cutting it may merge two violations of one Pod, which is harmless.
    pub process: usize,
    /// Bytes of a command line.
    pub cmdline: usize,
    /// Bytes of any other field.
    pub field: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { records: 1000, process: 256, cmdline: 4096, field: 512 }
    }
}

/// The answer as a whole is not a list of records; what was read before the trouble is kept all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(String);

/// For an answer of usual size there is room from the start.
const LIKELY: usize = 4 << 10;

/// Decodes a body: `[records]`, `null`, or `{"violations": [records]}`.
///
/// Returns what was good, and the error if the body as a whole is not such a list or breaks off. Bytes that are not
/// UTF-8 become U+FFFD, as Go's encoder would have written them.
pub fn decode(body: &[u8], limits: &Limits) -> (Answer, Result<(), DecodeError>) {
    // Nearly always UTF-8, and that is known sooner than what else it could be.
    let text = std::str::from_utf8(body).map_or_else(|_| String::from_utf8_lossy(body), Cow::Borrowed);
    match read(&text, limits, Care::Little) {
        whole @ (_, Ok(())) => whole,
        (part, Err(_)) => {
            // Both at once would be more than one answer may take.
            drop(part);
            read(&text, limits, Care::Much)
        }
    }
}

pub(super) fn read(text: &str, limits: &Limits, care: Care) -> (Answer, Result<(), DecodeError>) {
    let mut answer = Answer { records: Records::with_capacity(text.len().min(LIKELY)), ..Answer::default() };
    let mut json = serde_json::Deserializer::from_str(text);
    let result = ListSeed { answer: &mut answer, limits, care, nested: false }
        .deserialize(&mut json)
        .and_then(|()| json.end())
        // serde_json's own messages may quote the input: the position and the kind of trouble are enough.
        .map_err(|e| {
            DecodeError(match e.classify() {
                serde_json::error::Category::Eof => format!("the JSON breaks off at byte {}", text.len()),
                serde_json::error::Category::Syntax => {
                    format!("not JSON at line {} column {}", e.line(), e.column())
                }
                _ => "expected an array of records, null, or an object with `violations`".to_owned(),
            })
        });
    (answer, result)
}

/// How a list is read. With little care first, because nearly every list has nothing in it that could not be read so; both come to
/// the same wherever little is enough.
#[derive(Clone, Copy)]
pub(super) enum Care {
    /// Each element as it comes: one that does not parse ends it all.
    Little,
    /// Each element is first cut out as raw text and then parsed by itself, so that one that does not parse leaves its neighbours alone.
    Much,
}

struct ListSeed<'a> {
    answer: &'a mut Answer,
    limits: &'a Limits,
    care: Care,
    /// Inside `{"violations": …}`: one level only, so that a hostile body can't recurse.
    nested: bool,
}

impl<'de> DeserializeSeed<'de> for ListSeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ListSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of records")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self { answer: Answer { records, rejected, left_out, .. }, limits, care, .. } = self;
        loop {
            let Some(Element(wire)) = (match care {
                Care::Little => seq.next_element::<Element<'_>>()?,
                Care::Much => seq.next_element::<&RawValue>()?.map(Element::of),
            }) else {
                return Ok(());
            };
            let taken = match wire {
                Some(wire) if records.len() >= limits.records => Err(leave_out(&wire, left_out)),
                Some(wire) => take_in(&wire, limits, records),
                None => Err(Rejection::NotARecord),
            };
            if let Err(reason) = taken {
                rejected.count(reason);
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if self.nested {
            return Err(de::Error::custom("expected an array"));
        }
        let mut found = false;
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if key == "violations" {
                found = true;
                map.next_value_seed(ListSeed {
                    answer: self.answer,
                    limits: self.limits,
                    care: self.care,
                    nested: true,
                })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        if found { Ok(()) } else { Err(de::Error::custom("no `violations`")) }
    }
}

/// What comes of all kinds of JSON that are never wanted. An array is one of them: a derived struct would also read one as its fields.
macro_rules! others {
    ($de:lifetime, $value:expr) => {
        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn visit_seq<A: SeqAccess<$de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok($value)
        }
    };
}

/// A field of a record before it is known to be a string.
#[derive(Default)]
enum Field<'a> {
    #[default]
    Missing,
    Text(Cow<'a, str>),
    WrongType,
}

impl<'de: 'a, 'a> Deserialize<'de> for Field<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldVisitor;
        impl<'de> Visitor<'de> for FieldVisitor {
            type Value = Field<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Self::Value, E> {
                Ok(Field::Text(Cow::Borrowed(v)))
            }
            fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
                Ok(Field::Text(Cow::Owned(v.to_owned())))
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Field::Missing)
            }
            others!('de, Field::WrongType);
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Field::WrongType)
            }
        }
        deserializer.deserialize_any(FieldVisitor)
    }
}

impl Field<'_> {
    fn required(&self) -> Result<&str, Rejection> {
        match self {
            Field::Text(text) if !text.is_empty() => Ok(text),
            Field::Text(_) | Field::Missing => Err(Rejection::MissingField),
            Field::WrongType => Err(Rejection::WrongType),
        }
    }

    fn optional(&self) -> Result<&str, Rejection> {
        match self {
            Field::Text(text) => Ok(text),
            Field::Missing => Ok(""),
            Field::WrongType => Err(Rejection::WrongType),
        }
    }
}

#[derive(Deserialize)]
struct WireRecord<'a> {
    #[serde(borrow, default)]
    pod: Field<'a>,
    #[serde(borrow, default)]
    namespace: Field<'a>,
    #[serde(borrow, default)]
    process: Field<'a>,
    #[serde(borrow, default)]
    cmdline: Field<'a>,
    #[serde(borrow, default)]
    regex: Field<'a>,
    #[serde(borrow, default)]
    status: Field<'a>,
    #[serde(borrow, default, rename = "type")]
    kind: Field<'a>,
    #[serde(borrow, default)]
    name: Field<'a>,
    #[serde(borrow, default)]
    timestamp: Field<'a>,
}

/// An element of a list; nothing if it is not an object.
struct Element<'a>(Option<WireRecord<'a>>);

impl<'a> Element<'a> {
    fn of(raw: &'a RawValue) -> Self {
        serde_json::from_str(raw.get()).unwrap_or(Self(None))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Element<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ElementVisitor;
        impl<'de> Visitor<'de> for ElementVisitor {
            type Value = Element<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a record")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                WireRecord::deserialize(MapAccessDeserializer::new(map)).map(|wire| Element(Some(wire)))
            }
            fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
                Ok(Element(None))
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Element(None))
            }
            others!('de, Element(None));
        }
        deserializer.deserialize_any(ElementVisitor)
    }
}

fn take_in(wire: &WireRecord<'_>, limits: &Limits, records: &mut Records) -> Result<(), Rejection> {
    let namespace = wire.namespace.required()?;
    let pod = wire.pod.required()?;
    let process = wire.process.required()?;
    let timestamp = wire.timestamp.required()?;
    if !is_dns_label(namespace) {
        return Err(Rejection::InvalidNamespace);
    }
    if !is_dns_subdomain(pod) {
        return Err(Rejection::InvalidPod);
    }
    let detected_at: Timestamp = timestamp.parse().map_err(|_| Rejection::InvalidTimestamp)?;
    if timestamp.len() > limits.field {
        return Err(Rejection::InvalidTimestamp);
    }
    records.push(RecordRef {
        key: KeyRef { namespace, pod, process: &clip(process, limits.process) },
        cmdline: &clip(wire.cmdline.optional()?, limits.cmdline),
        regex: &clip(wire.regex.optional()?, limits.field),
        status: &clip(wire.status.optional()?, limits.field),
        kind: &clip(wire.kind.optional()?, limits.field),
        name: &clip(wire.name.optional()?, limits.field),
        timestamp,
        detected_at,
    });
    Ok(())
}

/// Notes the namespace of a record that is left out. An invalid name is ignored: no namespace has it.
fn leave_out(wire: &WireRecord<'_>, left_out: &mut LeftOut) -> Rejection {
    match wire.namespace.required() {
        Ok(namespace) if is_dns_label(namespace) => left_out.note(namespace),
        _ => {}
    }
    Rejection::OverLimit
}

/// Cuts `text` to at most `max` bytes at a character's boundary; a cut one ends in `…` (counted in `max`).
fn clip(text: &str, max: usize) -> Cow<'_, str> {
    const MARK: &str = "…";
    if text.len() <= max {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(max.saturating_sub(MARK.len()));
    Cow::Owned(format!("{}{MARK}", text.get(..end).unwrap_or_default()))
}
