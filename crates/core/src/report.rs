//! What one agent answered in one round, or why there is no answer.
//!
//! Decoding is tolerant, because agents of other versions answer other shapes and tenants choose some of the bytes: a bad
//! record costs itself only. It is bounded, because a node may be hostile: records per answer and bytes per field.
//!
//! The wire format is that of the upstream agent (labring/CompliK, `procscan/`): a JSON array of objects of nine strings.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::Moment;
use crate::names::{Key, NodeName, Text, is_dns_label, is_dns_subdomain};

/// One agent to ask.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// `host:port`, an IPv6 host in brackets. Identifies the target.
    pub address: Text,
    /// The node that the agent runs on and speaks for.
    pub node: NodeName,
}

/// One target's answer in a round, or why there is none.
#[derive(Clone, Debug)]
pub struct Report {
    /// Who was asked.
    pub target: Target,
    /// When the answer had arrived, or had failed to.
    pub at: Moment,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of asking one target.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The whole list. Only this and `Unchanged` make the clearing clock run.
    Complete(Answer),
    /// A part of the list: what it holds is evidence of presence, what it lacks is evidence of nothing.
    Partial(Answer, Failure),
    /// The same list as in the last complete answer (HTTP 304).
    Unchanged,
    /// No list.
    Failed(Failure),
}

/// A decoded list.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The good records, in the agent's order (which is random).
    pub records: Vec<Record>,
    /// How many records were refused, by reason.
    pub rejected: Rejections,
    /// The agent's own clock when it answered: the HTTP `Date` header.
    pub date: Option<Timestamp>,
}

/// Why there is no answer, or not a whole one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kind of failure, for counting.
    pub reason: FailureReason,
    /// What happened, for people. Bounded by whoever makes it.
    pub detail: String,
}

/// The kinds of failure of asking a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureReason {
    /// The host's name has no address.
    Resolve,
    /// The connection was refused: nothing listens there.
    Refused,
    /// No connection for another reason (no route, for example).
    Connect,
    /// No connection within the connect timeout.
    ConnectTimeout,
    /// No whole answer within the total timeout.
    Timeout,
    /// The connection broke off before the answer was whole.
    Disconnected,
    /// The answer is not HTTP.
    Protocol,
    /// An HTTP status other than 200 and 304.
    Status,
    /// A `Content-Encoding` that was not asked for, or one that does not decode.
    Encoding,
    /// The body is larger than the limit, counted decompressed.
    TooLarge,
    /// The body is not a list of records.
    Malformed,
    /// More records than the limit.
    TooManyRecords,
}

impl FailureReason {
    /// The reason as a label, `snake_case`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Refused => "refused",
            Self::Connect => "connect",
            Self::ConnectTimeout => "connect_timeout",
            Self::Timeout => "timeout",
            Self::Disconnected => "disconnected",
            Self::Protocol => "protocol",
            Self::Status => "status",
            Self::Encoding => "encoding",
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::TooManyRecords => "too_many_records",
        }
    }
}

/// One record as the agent gave it: fields over their limit are cut, and end in `…`.
///
/// Serialises to the wire shape: nine strings, in the order that the agents and the seed's API use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Namespace, Pod and process.
    pub key: Key,
    /// The command line. Chosen by the tenant, and may hold secrets.
    pub cmdline: Text,
    /// The rule that matched; empty for keyword matches.
    pub regex: Text,
    /// What the agent says of it: always `active` upstream.
    pub status: Text,
    /// What the agent takes the App's kind for; wrong in practice.
    pub kind: Text,
    /// What the agent takes the App's name for; wrong in practice.
    pub name: Text,
    /// When the agent detected it, as it wrote it: RFC 3339 in the node's own zone.
    pub timestamp: Text,
    /// `timestamp` as an instant on the agent's own clock.
    pub detected_at: Timestamp,
}

impl Record {
    /// A record of which only the key is known.
    pub(crate) fn of(key: Key) -> Self {
        let none = Text::from("");
        Self {
            key,
            cmdline: none.clone(),
            regex: none.clone(),
            status: none.clone(),
            kind: none.clone(),
            name: none.clone(),
            timestamp: none,
            detected_at: Timestamp::MIN,
        }
    }

    /// The same record, with the texts of `other` where they are equal. Scan after scan brings them anew, and all but the
    /// timestamp stay what they were: whoever holds an older record then holds little that is not here too.
    pub(crate) fn sharing(&self, other: &Self) -> Self {
        let shared = |new: &Text, old: &Text| if new == old { old.clone() } else { new.clone() };
        Self {
            key: if self.key == other.key { other.key.clone() } else { self.key.clone() },
            cmdline: shared(&self.cmdline, &other.cmdline),
            regex: shared(&self.regex, &other.regex),
            status: shared(&self.status, &other.status),
            kind: shared(&self.kind, &other.kind),
            name: shared(&self.name, &other.name),
            timestamp: self.timestamp.clone(),
            detected_at: self.detected_at,
        }
    }

    /// The rule that accuses: the regex, or the process name where an agent's keyword matched.
    pub fn rule(&self) -> &Text {
        if self.regex.is_empty() { &self.key.process } else { &self.regex }
    }
}

impl Serialize for Record {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut s = serializer.serialize_struct("Record", 9)?;
        s.serialize_field("pod", &self.key.pod)?;
        s.serialize_field("namespace", &self.key.namespace)?;
        s.serialize_field("process", &self.key.process)?;
        s.serialize_field("cmdline", &self.cmdline)?;
        s.serialize_field("regex", &self.regex)?;
        s.serialize_field("status", &self.status)?;
        s.serialize_field("type", &self.kind)?;
        s.serialize_field("name", &self.name)?;
        s.serialize_field("timestamp", &self.timestamp)?;
        s.end()
    }
}

/// How much of one answer is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Records per answer; the rest is counted, and the answer is `Partial`.
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

/// Why a record was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rejection {
    /// Not a JSON object, or one that does not parse.
    NotARecord,
    /// Namespace, pod, process or timestamp is missing or empty.
    MissingField,
    /// A field is not a string.
    WrongType,
    /// The namespace is not a name that Kubernetes allows, so nothing can run there.
    InvalidNamespace,
    /// The pod's name is not one that Kubernetes allows, so there is no such Pod.
    InvalidPod,
    /// The timestamp is not RFC 3339, so it can't be evidence.
    InvalidTimestamp,
    /// Beyond the record limit of one answer.
    OverLimit,
    /// The node already has as many violations in the ledger as one node may.
    NodeQuota,
}

/// How many records were refused, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Rejections(BTreeMap<Rejection, u64>);

impl Rejections {
    /// Counts one more.
    pub fn count(&mut self, reason: Rejection) {
        *self.0.entry(reason).or_default() += 1;
    }

    /// Adds another count to this one.
    pub fn add(&mut self, other: &Rejections) {
        for (reason, n) in &other.0 {
            *self.0.entry(*reason).or_default() += n;
        }
    }

    /// All of them together.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// How many for one reason.
    pub fn of(&self, reason: Rejection) -> u64 {
        self.0.get(&reason).copied().unwrap_or(0)
    }
}

/// The answer as a whole is not a list of records; what was read before the trouble is kept all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(String);

/// Decodes a body: `[records]`, `null`, or `{"violations": [records]}`.
///
/// Returns what was good, and the error if the body as a whole is not such a list or breaks off. Bytes that are not
/// UTF-8 become U+FFFD, as Go's encoder would have written them.
pub fn decode(body: &[u8], limits: &Limits) -> (Answer, Result<(), DecodeError>) {
    // Nearly always UTF-8, and that is known sooner than what else it could be.
    let text = std::str::from_utf8(body).map_or_else(|_| String::from_utf8_lossy(body), Cow::Borrowed);
    let mut answer = Answer::default();
    let mut json = serde_json::Deserializer::from_str(&text);
    let result = ListSeed { answer: &mut answer, limits, nested: false }
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

struct ListSeed<'a> {
    answer: &'a mut Answer,
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
        // Each element is first cut out as raw text and then parsed by itself, so that one that does not parse
        // leaves its neighbours alone.
        while let Some(raw) = seq.next_element::<&RawValue>()? {
            if self.answer.records.len() >= self.limits.records {
                self.answer.rejected.count(Rejection::OverLimit);
                continue;
            }
            match decode_record(raw.get(), self.limits) {
                Ok(record) => self.answer.records.push(record),
                Err(reason) => self.answer.rejected.count(reason),
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
                map.next_value_seed(ListSeed { answer: self.answer, limits: self.limits, nested: true })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        if found { Ok(()) } else { Err(de::Error::custom("no `violations`")) }
    }
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
            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(Field::WrongType)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
                Ok(Field::WrongType)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
                Ok(Field::WrongType)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
                Ok(Field::WrongType)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Field::WrongType)
            }
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

fn decode_record(raw: &str, limits: &Limits) -> Result<Record, Rejection> {
    let is_object = raw.trim_start().starts_with('{');
    // A derived struct also reads an array as its fields in order; only objects are records.
    let wire: WireRecord<'_> = if is_object {
        serde_json::from_str(raw).map_err(|_| Rejection::NotARecord)?
    } else {
        return Err(Rejection::NotARecord);
    };

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
    Ok(Record {
        key: Key::new(namespace, pod, clip(process, limits.process)),
        cmdline: clip(wire.cmdline.optional()?, limits.cmdline),
        regex: clip(wire.regex.optional()?, limits.field),
        status: clip(wire.status.optional()?, limits.field),
        kind: clip(wire.kind.optional()?, limits.field),
        name: clip(wire.name.optional()?, limits.field),
        timestamp: timestamp.into(),
        detected_at,
    })
}

/// Cuts `text` to at most `max` bytes at a character's boundary; a cut one ends in `…` (counted in `max`).
fn clip(text: &str, max: usize) -> Text {
    const MARK: &str = "…";
    if text.len() <= max {
        return Arc::from(text);
    }
    let end = text.floor_char_boundary(max.saturating_sub(MARK.len()));
    Arc::from(format!("{}{MARK}", text.get(..end).unwrap_or_default()))
}

/// How old `record` was when its agent answered, by the agent's own clock; `None` without a `Date`.
///
/// A `Date` has whole seconds and a server may cache it, so a record up to [`DATE_TOLERANCE`] ahead of it counts as new.
/// One further ahead is no evidence of its age at all.
pub fn age_by_own_clock(record: &Record, date: Option<Timestamp>) -> Option<Duration> {
    let age = date?.duration_since(record.detected_at);
    if age.is_negative() {
        (age.unsigned_abs() <= DATE_TOLERANCE).then_some(Duration::ZERO)
    } else {
        Some(age.unsigned_abs())
    }
}

/// How far a record may lie ahead of the `Date` of the answer that holds it.
pub const DATE_TOLERANCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
