//! From the bytes of an answer to its records.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::gathering::Gathering;
use super::instant::instant;
use super::record::RecordRef;
use super::stream::Decoder;
use super::{Answer, Rejection};
use crate::names::{KeyRef, is_dns_label, is_dns_subdomain};

/// How much of one answer is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Records per answer, shared fairly among namespaces. The rest is read and counted, and its namespaces are noted (see
    /// [`LeftOut`](super::LeftOut)).
    pub records: usize,
    /// Bytes that all records of an answer take, shared in the same way. While the answer is being read, up to a quarter more.
    pub bytes: usize,
    /// Bytes of a process name. It is part of the key, so cutting it may merge two violations of one Pod, which is harmless.
    pub process: usize,
    /// Bytes of a command line.
    pub cmdline: usize,
    /// Bytes of any other field.
    pub field: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { records: 1000, bytes: 4 << 20, process: 256, cmdline: 4096, field: 512 }
    }
}

/// The answer as a whole is not a list of records; what was read before the trouble is kept all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(String);

/// For an answer of usual size there is room from the start.
const LIKELY_RECORDS: usize = 4 << 10;

impl DecodeError {
    /// The byte at this position, counted from 0, can't be there. The input is not quoted.
    pub(super) fn syntax(at: u64) -> Self {
        Self(format!("not JSON at byte {at}"))
    }

    pub(super) fn eof(at: u64) -> Self {
        Self(format!("the JSON breaks off at byte {at}"))
    }

    pub(super) fn shape() -> Self {
        Self("expected an array of records, null, or an object with `violations`".to_owned())
    }
}

/// Decodes a body: `[records]`, `null`, or `{"violations": [records]}`.
///
/// Returns what was good, and the error if the body as a whole is not such a list or breaks off. Bytes that are not
/// UTF-8 and lone surrogates become U+FFFD, as Go's encoder would have written them.
pub fn decode(body: &[u8], limits: &Limits) -> (Answer, Result<(), DecodeError>) {
    if let Some(answer) = decode_usual(body, limits) {
        return (answer, Ok(()));
    }
    let mut decoder = Decoder::new(limits);
    decoder.push(body);
    decoder.finish()
}

/// Decodes a body in which there is nothing unusual. This is the fastest way, and nearly every body is so; `serde_json` takes no
/// list that has anything odd in it.
pub(super) fn decode_usual(body: &[u8], limits: &Limits) -> Option<Answer> {
    let text = std::str::from_utf8(body).ok()?;
    let mut gathering = Gathering::new(limits, text.len().min(LIKELY_RECORDS));
    let mut json = serde_json::Deserializer::from_str(text);
    ListSeed { gathering: &mut gathering, limits, nested: false }
        .deserialize(&mut json)
        .and_then(|()| json.end())
        .ok()?;
    Some(gathering.finish())
}

struct ListSeed<'a> {
    gathering: &'a mut Gathering,
    limits: &'a Limits,
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
        while let Some(Element(wire)) = seq.next_element::<Element<'_>>()? {
            let taken = match wire {
                Some(wire) => take_in(&wire, self.limits, self.gathering),
                None => Err(Rejection::NotARecord),
            };
            if let Err(reason) = taken {
                self.gathering.rejected.count(reason);
            }
        }
        Ok(())
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
                    gathering: self.gathering,
                    limits: self.limits,
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
pub(super) enum Field<'a> {
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
pub(super) struct WireRecord<'a> {
    #[serde(borrow, default)]
    pub(super) pod: Field<'a>,
    #[serde(borrow, default)]
    pub(super) namespace: Field<'a>,
    #[serde(borrow, default)]
    pub(super) process: Field<'a>,
    #[serde(borrow, default)]
    pub(super) cmdline: Field<'a>,
    #[serde(borrow, default)]
    pub(super) regex: Field<'a>,
    #[serde(borrow, default)]
    pub(super) status: Field<'a>,
    #[serde(borrow, default, rename = "type")]
    pub(super) kind: Field<'a>,
    #[serde(borrow, default)]
    pub(super) name: Field<'a>,
    #[serde(borrow, default)]
    pub(super) timestamp: Field<'a>,
}

/// An element of a list; nothing if it is not an object.
struct Element<'a>(Option<WireRecord<'a>>);

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

/// Takes in one record, or says why not. Fields over their limit are cut. A namespace, a Pod or a timestamp over its limit makes the
/// record invalid.
pub(super) fn take_in(
    wire: &WireRecord<'_>,
    limits: &Limits,
    gathering: &mut Gathering,
) -> Result<(), Rejection> {
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
    if timestamp.len() > limits.field {
        return Err(Rejection::InvalidTimestamp);
    }
    let detected_at = instant(timestamp).ok_or(Rejection::InvalidTimestamp)?;
    gathering.push(RecordRef {
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

/// Cuts `text` to at most `max` bytes at a character's boundary; a cut one ends in `…` (counted in `max`).
pub(crate) fn clip(text: &str, max: usize) -> Cow<'_, str> {
    const MARK: &str = "…";
    if text.len() <= max {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(max.saturating_sub(MARK.len()));
    Cow::Owned(format!("{}{MARK}", text.get(..end).unwrap_or_default()))
}
