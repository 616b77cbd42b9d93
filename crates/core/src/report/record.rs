//! One record of an answer.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::names::{Key, Text};

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
