//! One record of an answer: as a view of the received bytes, and as it is stored.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::names::{Key, KeyRef, Text};

/// One record as the agent gave it: fields over their limit are cut, and end in `…`.
///
/// Dereferences to its [`Claim`]. Serialises to the wire shape: nine strings, in the order that the agents and the seed's API use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Namespace, Pod and process.
    pub key: Key,
    /// The fields that are nearly always the same in each scan. All versions of a record share them in memory while
    /// they do not change.
    pub claim: Arc<Claim>,
    /// When the agent detected it, as it wrote it: RFC 3339 in the node's own zone.
    pub timestamp: Text,
    /// `timestamp` as an instant on the agent's own clock.
    pub detected_at: Timestamp,
}

/// The fields of a record that describe the process and its App.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The command line. Chosen by the tenant, and may hold secrets.
    pub cmdline: Text,
    /// The rule that matched; empty for keyword matches.
    pub regex: Text,
    /// The status by the agent: always `active` upstream.
    pub status: Text,
    /// The App's kind as the agent guesses it; wrong in practice.
    pub kind: Text,
    /// The App's name as the agent guesses it; wrong in practice.
    pub name: Text,
}

impl Record {
    /// A record of which only the key is known.
    pub(crate) fn of(key: Key) -> Self {
        let none = Text::from("");
        let (cmdline, regex, status, kind) = (none.clone(), none.clone(), none.clone(), none.clone());
        let claim = Claim { cmdline, regex, status, kind, name: none.clone() };
        Self { key, claim: Arc::new(claim), timestamp: none, detected_at: Timestamp::MIN }
    }

    /// This record without its command line.
    pub(crate) fn without_cmdline(&self) -> Self {
        let claim = Claim { cmdline: Text::from(""), ..(*self.claim).clone() };
        Self { claim: Arc::new(claim), ..self.clone() }
    }

    /// Whether `newer`, a record of the same key, differs in any field. The time is compared first, because it nearly
    /// always differs.
    pub(crate) fn differs(&self, newer: RecordRef<'_>) -> bool {
        self.detected_at != newer.detected_at
            || *self.timestamp != *newer.timestamp
            || self.view().claim() != newer.claim()
    }

    /// Becomes `newer`, a record of the same key. Texts that have not changed are not allocated again.
    pub(crate) fn renew(&mut self, newer: RecordRef<'_>) {
        if self.view().claim() != newer.claim() {
            let same = |old: &Text, new: &str| if **old == *new { old.clone() } else { new.into() };
            self.claim = Arc::new(Claim {
                cmdline: same(&self.cmdline, newer.cmdline),
                regex: same(&self.regex, newer.regex),
                status: same(&self.status, newer.status),
                kind: same(&self.kind, newer.kind),
                name: same(&self.name, newer.name),
            });
        }
        if *self.timestamp != *newer.timestamp {
            self.timestamp = newer.timestamp.into();
        }
        self.detected_at = newer.detected_at;
    }

    /// This record as a view.
    pub fn view(&self) -> RecordRef<'_> {
        RecordRef {
            key: self.key.view(),
            cmdline: &self.cmdline,
            regex: &self.regex,
            status: &self.status,
            kind: &self.kind,
            name: &self.name,
            timestamp: &self.timestamp,
            detected_at: self.detected_at,
        }
    }

    /// The rule that accuses: the regex, or the process name where an agent's keyword matched.
    pub fn rule(&self) -> &Text {
        if self.regex.is_empty() { &self.key.process } else { &self.regex }
    }
}

impl From<RecordRef<'_>> for Record {
    fn from(seen: RecordRef<'_>) -> Self {
        let KeyRef { namespace, pod, process } = seen.key;
        let mut record = Self::of(Key::new(namespace, pod, process));
        record.renew(seen);
        record
    }
}

impl Deref for Record {
    type Target = Claim;

    fn deref(&self) -> &Claim {
        &self.claim
    }
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.view().serialize(serializer)
    }
}

/// A view of a record, wherever its texts are. The fields are those of [`Record`] and [`Claim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct RecordRef<'a> {
    pub key: KeyRef<'a>,
    pub cmdline: &'a str,
    pub regex: &'a str,
    pub status: &'a str,
    pub kind: &'a str,
    pub name: &'a str,
    pub timestamp: &'a str,
    pub detected_at: Timestamp,
}

impl RecordRef<'_> {
    fn claim(&self) -> [&str; 5] {
        [self.cmdline, self.regex, self.status, self.kind, self.name]
    }
}

impl Serialize for RecordRef<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut s = serializer.serialize_struct("Record", 9)?;
        s.serialize_field("pod", self.key.pod)?;
        s.serialize_field("namespace", self.key.namespace)?;
        s.serialize_field("process", self.key.process)?;
        s.serialize_field("cmdline", self.cmdline)?;
        s.serialize_field("regex", self.regex)?;
        s.serialize_field("status", self.status)?;
        s.serialize_field("type", self.kind)?;
        s.serialize_field("name", self.name)?;
        s.serialize_field("timestamp", self.timestamp)?;
        s.end()
    }
}

/// How many texts a record has.
const TEXTS: usize = 9;

/// The records of one answer, in two allocations however many they are.
///
/// One thread makes them, and another thread applies them to the ledger and frees them. The ledger knows nearly all of
/// the texts already, so they get no allocations of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    text: String,
    places: Vec<Place>,
}

/// Where the texts of a record are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// In `text`; the first begins where the record before it ends.
    ends: [usize; TEXTS],
    detected_at: Timestamp,
}

impl Records {
    /// No records, with room for about `bytes` bytes.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self { text: String::with_capacity(bytes), places: Vec::new() }
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// The bytes that the records take, without reserved room.
    pub fn bytes(&self) -> usize {
        self.text.len() + self.places.len() * size_of::<Place>()
    }

    /// The bytes that a record takes in [`Records`].
    pub(super) fn bytes_of(record: &RecordRef<'_>) -> usize {
        let KeyRef { namespace, pod, process } = record.key;
        let texts: usize = [namespace, pod, process, record.timestamp].iter().map(|text| text.len()).sum();
        let claim: usize = record.claim().iter().map(|text| text.len()).sum();
        texts + claim + size_of::<Place>()
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Appends a record.
    pub(crate) fn push(&mut self, record: RecordRef<'_>) {
        let RecordRef { key, cmdline, regex, status, kind, name, timestamp, detected_at } = record;
        let KeyRef { namespace, pod, process } = key;
        let texts: [&str; TEXTS] = [namespace, pod, process, cmdline, regex, status, kind, name, timestamp];
        let ends = texts.map(|text| {
            self.text.push_str(text);
            self.text.len()
        });
        self.places.push(Place { ends, detected_at });
    }

    /// The record at `index`, counted from 0.
    pub fn get(&self, index: usize) -> Option<RecordRef<'_>> {
        let Place { ends, detected_at } = self.places.get(index)?;
        let before = index.checked_sub(1).and_then(|index| self.places.get(index));
        let mut start = before.map_or(0, |place| place.ends[TEXTS - 1]);
        let [namespace, pod, process, cmdline, regex, status, kind, name, timestamp] = ends.map(|end| {
            let text = self.text.get(start..end).unwrap_or_default();
            start = end;
            text
        });
        let (key, detected_at) = (KeyRef { namespace, pod, process }, *detected_at);
        Some(RecordRef { key, cmdline, regex, status, kind, name, timestamp, detected_at })
    }

    /// All records, in their order.
    pub fn iter(&self) -> impl Iterator<Item = RecordRef<'_>> {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

impl<'a> FromIterator<RecordRef<'a>> for Records {
    fn from_iter<I: IntoIterator<Item = RecordRef<'a>>>(records: I) -> Self {
        let mut all = Self::default();
        records.into_iter().for_each(|record| all.push(record));
        all
    }
}

impl FromIterator<Record> for Records {
    fn from_iter<I: IntoIterator<Item = Record>>(records: I) -> Self {
        let mut all = Self::default();
        records.into_iter().for_each(|record| all.push(record.view()));
        all
    }
}

/// A list in the wire shape.
impl Serialize for Records {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

/// How old a record of `detected_at` was when its agent answered, by the agent's own clock; `None` without a `Date`.
///
/// A `Date` has whole seconds and a server may cache it, so a record up to [`DATE_TOLERANCE`] ahead of it counts as
/// new. If the record is further ahead, its age is not known, and the result is `None`.
pub(crate) fn age_by_own_clock(detected_at: Timestamp, date: Option<Timestamp>) -> Option<Duration> {
    let age = date?.duration_since(detected_at);
    if age.is_negative() {
        (age.unsigned_abs() <= DATE_TOLERANCE).then_some(Duration::ZERO)
    } else {
        Some(age.unsigned_abs())
    }
}

/// How far a record may lie ahead of the `Date` of the answer that holds it.
const DATE_TOLERANCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_differs_if_anything_but_its_key_does_and_is_the_same_once_it_is_renewed() {
        let known = RecordRef {
            key: KeyRef { namespace: "ns-a", pod: "web-0", process: "xmrig" },
            cmdline: "xmrig -o pool",
            regex: "^xmrig$",
            status: "active",
            kind: "app",
            name: "web",
            timestamp: "2026-01-02T03:04:05Z",
            detected_at: Timestamp::UNIX_EPOCH,
        };
        let others = [
            RecordRef { cmdline: "xmrig -o other", ..known },
            RecordRef { regex: "", ..known },
            RecordRef { status: "gone", ..known },
            RecordRef { kind: "devbox", ..known },
            RecordRef { name: "shop", ..known },
            RecordRef { timestamp: "2026-01-02T04:04:05+01:00", ..known },
            RecordRef { detected_at: Timestamp::MAX, ..known },
        ];
        assert!(!Record::from(known).differs(known));
        for other in others {
            let mut record = Record::from(known);
            assert!(record.differs(other), "{other:?}");
            record.renew(other);
            assert!(!record.differs(other) && record.view() == other, "{other:?}");
        }
    }
}
