//! Shares in memory the texts that many records have in common: tenants' names, rules, kinds.

use std::collections::HashSet;
use std::sync::Arc;

use crate::names::{Key, KeyRef, Text};
use crate::report::{Claim, Record, RecordRef};

/// How many texts are held before the first search for texts that are no longer used.
const MIN_SWEEP_TEXTS: usize = 1024;

/// Holds each text once. At most twice as many texts as are in use, or [`MIN_SWEEP_TEXTS`].
#[derive(Debug)]
pub(super) struct Texts {
    known: HashSet<Text>,
    /// With so many texts, those that no record uses are dropped.
    full: usize,
}

impl Default for Texts {
    fn default() -> Self {
        Self { known: HashSet::new(), full: MIN_SWEEP_TEXTS }
    }
}

impl Texts {
    /// The record to store, with shared texts for those that other records have too. A Pod, a command line and a time
    /// are nearly always its own.
    pub(super) fn record(&mut self, seen: RecordRef<'_>) -> Record {
        let KeyRef { namespace, pod, process } = seen.key;
        let pod = Text::from(pod);
        let claim = Claim {
            cmdline: seen.cmdline.into(),
            regex: self.one(seen.regex),
            status: self.one(seen.status),
            kind: self.one(seen.kind),
            // The upstream agent gives the Pod's name.
            name: if *seen.name == *pod { pod.clone() } else { seen.name.into() },
        };
        Record {
            key: Key::new(self.one(namespace), pod, self.one(process)),
            claim: Arc::new(claim),
            timestamp: seen.timestamp.into(),
            detected_at: seen.detected_at,
        }
    }

    fn one(&mut self, text: &str) -> Text {
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        if self.known.len() >= self.full {
            self.known.retain(|text| Arc::strong_count(text) > 1);
            self.full = MIN_SWEEP_TEXTS.max(self.known.len() * 2);
        }
        let text = Text::from(text);
        self.known.insert(text.clone());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(namespace: &str) -> Record {
        let mut record = Record::of(Key::new(namespace, "web-0", "xmrig"));
        Arc::make_mut(&mut record.claim).regex = "(?i)xmrig".into();
        record
    }

    #[test]
    fn texts_that_records_have_in_common_are_held_once() {
        let mut texts = Texts::default();
        let (a, b) = (texts.record(record("ns-a").view()), texts.record(record("ns-a").view()));
        assert_eq!(a, record("ns-a"));
        assert!(Arc::ptr_eq(&a.regex, &b.regex) && Arc::ptr_eq(&a.key.namespace, &b.key.namespace));
    }

    #[test]
    fn texts_that_no_record_uses_are_dropped() {
        let mut texts = Texts::default();
        let used = texts.record(record("ns-used").view());
        for n in 0..10 * MIN_SWEEP_TEXTS {
            texts.record(record(&format!("ns-{n}")).view());
        }
        assert!(texts.known.len() <= MIN_SWEEP_TEXTS, "{}", texts.known.len());
        assert!(Arc::ptr_eq(&used.key.namespace, &texts.record(record("ns-used").view()).key.namespace));
    }
}
