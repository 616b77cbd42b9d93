//! One record as it is on the wire, before its fields are checked.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Rejection;
use super::gathering::{Gathering, Limits};
use super::instant::instant;
use super::record::RecordRef;
use crate::names::{KeyRef, is_dns_label, is_dns_subdomain};

/// Visits the kinds of JSON that no field and no record may be, and gives `$value` for them. An array is one of them,
/// because a derived struct would read an array as its fields.
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

impl WireRecord<'_> {
    /// Takes in one record, or returns the reason why it is refused. Fields over their limit are cut. A namespace, a
    /// Pod or a timestamp over its limit makes the record invalid.
    pub(super) fn take_in(&self, limits: &Limits, gathering: &mut Gathering) -> Result<(), Rejection> {
        let namespace = self.namespace.required()?;
        let pod = self.pod.required()?;
        let process = self.process.required()?;
        let timestamp = self.timestamp.required()?;
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
            cmdline: &clip(self.cmdline.optional()?, limits.cmdline),
            regex: &clip(self.regex.optional()?, limits.field),
            status: &clip(self.status.optional()?, limits.field),
            kind: &clip(self.kind.optional()?, limits.field),
            name: &clip(self.name.optional()?, limits.field),
            timestamp,
            detected_at,
        });
        Ok(())
    }
}

/// An element of a list; `None` if it is not an object.
pub(super) struct Element<'a>(pub(super) Option<WireRecord<'a>>);

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

/// Cuts `text` to at most `max` bytes at a character's boundary; a cut one ends in `…` (counted in `max`).
pub(crate) fn clip(text: &str, max: usize) -> Cow<'_, str> {
    const MARK: &str = "…";
    if text.len() <= max {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(max.saturating_sub(MARK.len()));
    Cow::Owned(format!("{}{MARK}", text.get(..end).unwrap_or_default()))
}
