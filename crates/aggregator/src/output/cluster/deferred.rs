//! Messages that could not be written. Each is set aside, for longer each time, so that no other message waits for it.
//! A tenant can make its own Notification unwritable, for example by filling it up to the API server's limit, but only
//! its own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::live::Key;
use crate::kubernetes::{Refusal, RefusalKind};
use crate::output::DeferredSummary;

/// The pause before a message is tried again; it doubles each time.
const MIN_PAUSE: Duration = Duration::from_secs(5);
const MAX_PAUSE: Duration = Duration::from_mins(5);
/// After this many namespaces in a row without an answer, the API server is taken to be unavailable.
const NAMESPACES_IN_A_ROW: usize = 3;

/// The messages that are set aside, and when each is tried again.
#[derive(Debug, Default)]
pub(super) struct DeferredMessages(BTreeMap<Key, Waiting>);

#[derive(Clone, Debug)]
struct Waiting {
    why: String,
    next: Instant,
    pause: Duration,
}

impl DeferredMessages {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn retain(&mut self, wanted: &BTreeSet<Key>) {
        self.0.retain(|key, _| wanted.contains(key));
    }

    /// Whether the message is not to be tried yet.
    pub(super) fn waits(&self, key: &Key) -> bool {
        self.0.get(key).is_some_and(|waiting| Instant::now() < waiting.next)
    }

    /// Forgets a message that has been written or is not needed any more.
    pub(super) fn forget(&mut self, key: &Key) {
        self.0.remove(key);
    }

    pub(super) fn put(&mut self, key: Key, refusal: Refusal) {
        let pause = self.0.get(&key).map_or(MIN_PAUSE, |waiting| (waiting.pause * 2).min(MAX_PAUSE));
        self.0.insert(key, Waiting { why: refusal.text, next: Instant::now() + pause, pause });
    }

    /// The number of messages, the reasons of the first `most`, and the time of the next try.
    pub(super) fn summary(&self, most: usize) -> DeferredSummary {
        DeferredSummary {
            count: self.0.len(),
            why: self.0.values().take(most).map(|waiting| waiting.why.clone()).collect(),
            next: self.0.values().map(|waiting| waiting.next).min(),
        }
    }
}

/// The messages of one pass that had no answer.
#[derive(Debug, Default)]
pub(super) struct Unanswered {
    in_a_row: Vec<Key>,
    namespaces: BTreeSet<String>,
}

/// Whether a refusal says nothing of the message, only that the API server does not answer. That may concern one
/// namespace only: an admission webhook can fail for it.
pub(super) fn is_no_answer(refusal: &Refusal) -> bool {
    matches!(refusal.kind, RefusalKind::Unavailable | RefusalKind::Unauthenticated)
}

impl Unanswered {
    /// Whether a message of the namespace had no answer in this pass; another one would only take time.
    pub(super) fn has(&self, namespace: &str) -> bool {
        self.namespaces.contains(namespace)
    }

    /// The API server has answered, whatever the answer.
    pub(super) fn note_answer(&mut self) {
        self.in_a_row.clear();
    }

    /// Sets a message without an answer aside. Returns whether the pass should end because the API server seems to be
    /// unavailable; then no message is at fault, and the last ones are tried again soon.
    pub(super) fn put(&mut self, key: Key, refusal: Refusal, aside: &mut DeferredMessages) -> bool {
        aside.put(key.clone(), refusal);
        self.namespaces.insert(key.1.clone());
        self.in_a_row.push(key);
        if self.in_a_row.len() < NAMESPACES_IN_A_ROW {
            return false;
        }
        for key in &self.in_a_row {
            if let Some(waiting) = aside.0.get_mut(key) {
                (waiting.pause, waiting.next) = (MIN_PAUSE, Instant::now() + MIN_PAUSE);
            }
        }
        true
    }
}
