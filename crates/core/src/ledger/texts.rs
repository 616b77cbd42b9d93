//! Texts that many records have in common: tenants' names, rules, kinds.

use std::collections::HashSet;
use std::sync::Arc;

use crate::names::{Key, Text};
use crate::report::Record;

/// How many texts are held before it is looked for the first time which of them are still in use.
const MANY: usize = 1024;

/// Holds each text once. At most twice as many as are in use, or [`MANY`].
#[derive(Debug)]
pub(super) struct Texts {
    known: HashSet<Text>,
    /// With so many it is time to let go of those that nobody else holds.
    full: usize,
}

impl Default for Texts {
    fn default() -> Self {
        Self { known: HashSet::new(), full: MANY }
    }
}

impl Texts {
    /// The same record, with what others have too as they have it. A Pod, a command line and a time are nearly always its own.
    pub(super) fn share(&mut self, record: &Record) -> Record {
        Record {
            key: Key::new(
                self.one(&record.key.namespace),
                record.key.pod.clone(),
                self.one(&record.key.process),
            ),
            cmdline: record.cmdline.clone(),
            regex: self.one(&record.regex),
            status: self.one(&record.status),
            kind: self.one(&record.kind),
            name: record.name.clone(),
            timestamp: record.timestamp.clone(),
            detected_at: record.detected_at,
        }
    }

    fn one(&mut self, text: &Text) -> Text {
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        if self.known.len() >= self.full {
            self.known.retain(|text| Arc::strong_count(text) > 1);
            self.full = MANY.max(self.known.len() * 2);
        }
        self.known.insert(text.clone());
        text.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(namespace: &str) -> Record {
        Record { regex: "(?i)xmrig".into(), ..Record::of(Key::new(namespace, "web-0", "xmrig")) }
    }

    #[test]
    fn what_records_have_in_common_is_held_once() {
        let mut texts = Texts::default();
        let (a, b) = (texts.share(&record("ns-a")), texts.share(&record("ns-a")));
        assert_eq!(a, record("ns-a"));
        assert!(Arc::ptr_eq(&a.regex, &b.regex) && Arc::ptr_eq(&a.key.namespace, &b.key.namespace));
    }

    #[test]
    fn what_nobody_holds_any_more_is_let_go() {
        let mut texts = Texts::default();
        let kept = texts.share(&record("ns-kept"));
        for n in 0..10 * MANY {
            texts.share(&record(&format!("ns-{n}")));
        }
        assert!(texts.known.len() <= MANY, "{}", texts.known.len());
        assert!(Arc::ptr_eq(&kept.key.namespace, &texts.share(&record("ns-kept")).key.namespace));
    }
}
