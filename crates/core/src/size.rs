//! Sizes in bytes as operators write them in the configuration: `512KiB`, `4MiB`.

use std::borrow::Cow;
use std::fmt;

use bytesize::ByteSize;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

/// The expected form of a size, for error messages.
pub(crate) const A_SIZE: &str = "a size in bytes with its unit, such as 512KiB or 4MiB";

/// The size in bytes that `text` stands for; `None` if it is no size. A number without a unit is no size.
pub fn parse(text: &str) -> Option<usize> {
    let has_unit = text.trim_end().ends_with(['B', 'b']);
    let size = text.parse::<ByteSize>().ok().filter(|_| has_unit)?;
    usize::try_from(size.as_u64()).ok()
}

/// `bytes` in the largest unit that leaves no fraction: `4MiB`, `1500B`.
pub fn text(bytes: usize) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fits = units.iter().find(|(shift, _)| bytes != 0 && bytes.trailing_zeros() >= *shift);
    fits.map_or_else(|| format!("{bytes}B"), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

/// How a size is written in the configuration: `#[serde(with = "SizeText")]`.
#[derive(Debug)]
pub struct SizeText;

impl SizeText {
    /// Writes `bytes` as [`text`] does.
    pub fn serialize<S: Serializer>(bytes: &usize, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&text(*bytes))
    }

    /// Reads what [`parse`] reads.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl Visitor<'_> for SizeText {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(A_SIZE)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<usize, E> {
        // Without the text, which may contain anything.
        parse(text).ok_or_else(|| E::custom(format_args!("invalid value, expected {A_SIZE}")))
    }
}

impl JsonSchema for SizeText {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string"})
    }
}

/// [`SizeText`] where there may be no size.
#[derive(Debug)]
pub(crate) struct OptionalSizeText;

impl OptionalSizeText {
    /// Writes `bytes` as [`text`] does, or nothing.
    #[allow(clippy::ref_option, reason = "serde passes a reference")]
    pub(crate) fn serialize<S: Serializer>(bytes: &Option<usize>, serializer: S) -> Result<S::Ok, S::Error> {
        bytes.map(text).serialize(serializer)
    }

    /// Reads what [`parse`] reads.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
        SizeText::deserialize(deserializer).map(Some)
    }
}

impl JsonSchema for OptionalSizeText {
    fn schema_name() -> Cow<'static, str> {
        "OptionalSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": ["string", "null"]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_a_unit_and_is_written_in_the_largest_that_leaves_no_fraction() {
        for (written, bytes, shown) in [
            ("0B", 0, "0B"),
            ("1500b", 1500, "1500B"),
            ("4096B", 4096, "4KiB"),
            ("1.5 MiB", 3 << 19, "1536KiB"),
            ("4MiB", 4 << 20, "4MiB"),
            ("1kB", 1000, "1000B"),
            ("16GiB", 16 << 30, "16GiB"),
        ] {
            assert_eq!(parse(written), Some(bytes), "{written}");
            assert_eq!(text(bytes), shown, "{written}");
            assert_eq!(parse(shown), Some(bytes), "{shown}");
        }
        for none in ["", "4096", "B", "4 apples", "-1B"] {
            assert_eq!(parse(none), None, "{none}");
        }
    }
}
