//! Decodes the bytes of an answer to its records.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::gathering::{Gathering, Limits};
use super::stream::{DecodeError, Decoder};
use super::wire_record::Element;
use super::{Answer, Rejection};

/// The room that is allocated before decoding. It is enough for an answer of usual size.
const LIKELY_RECORDS: usize = 4 << 10;

/// Decodes a body: `[records]`, `null`, or `{"violations": [records]}`.
///
/// Returns the valid records, and the error if the body as a whole is not such a list or breaks off. Bytes that are not
/// UTF-8 and lone surrogates become U+FFFD, as Go's encoder would have written them.
pub fn decode(body: &[u8], limits: &Limits) -> (Answer, Result<(), DecodeError>) {
    if let Some(answer) = decode_usual(body, limits) {
        return (answer, Ok(()));
    }
    let mut decoder = Decoder::new(limits);
    decoder.push(body);
    decoder.finish()
}

/// Decodes a body in which nothing is unusual; `None` for other bodies, because `serde_json` refuses them. Nearly every
/// body is usual, and this way is the fastest.
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
                Some(wire) => wire.take_in(self.limits, self.gathering),
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
