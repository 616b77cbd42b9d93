//! The last events, which all clients of the stream share: a client has no queue of its own, only a place in this one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use procscan_core::names::Text;
use tokio::sync::watch;

/// How many events are kept.
const MAX_EVENTS: usize = 8192;
/// How many bytes of them are kept.
const MAX_BYTES: usize = 8 << 20;

/// The number of the first event. There is one before it, which a client can have seen.
const FIRST: u64 = 1;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A violation has come, gone or changed.
    Violation,
    /// An App has another state.
    App,
    /// A target has come, gone or changed.
    Node,
    /// Something was decided or declared.
    Decision,
    /// Another number of targets answers.
    Coverage,
}

impl Kind {
    /// Its name in the stream.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Violation => "violation",
            Self::App => "app",
            Self::Node => "node",
            Self::Decision => "decision",
            Self::Coverage => "coverage",
        }
    }
}

/// One change.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) number: u64,
    pub(super) kind: Kind,
    /// The namespace that it belongs to; `None` if it is for readers of all namespaces only.
    pub(super) namespace: Option<Text>,
    /// JSON on one line.
    pub(super) data: Bytes,
}

/// The events that are kept, in their order.
#[derive(Debug)]
pub(super) struct Log {
    kept: Mutex<Kept>,
    /// The number of the next event, or `None` at the end.
    head: watch::Sender<Option<u64>>,
    /// Whether changes are looked for.
    is_active: watch::Sender<bool>,
}

#[derive(Debug)]
struct Kept {
    events: VecDeque<Event>,
    bytes: usize,
    next: u64,
}

/// What a client finds at its place.
#[derive(Debug)]
pub(super) enum Found {
    /// The next events, and the place behind them.
    Events(Vec<Event>, u64),
    /// Nothing yet.
    Nothing,
    /// Events are missing, because they are not kept any more.
    Gap,
}

impl Log {
    /// Without events, and without a task that finds changes.
    pub(super) fn new() -> Self {
        let kept = Mutex::new(Kept { events: VecDeque::new(), bytes: 0, next: FIRST });
        Self { kept, head: watch::channel(Some(FIRST)).0, is_active: watch::channel(false).0 }
    }

    /// From now on every change becomes an event.
    pub(super) fn activate(&self) {
        self.is_active.send_replace(true);
    }

    /// Waits until every change becomes an event.
    pub(super) async fn wait_until_active(&self) {
        // The sender is as old as this.
        let _ = self.is_active.subscribe().wait_for(|is_active| *is_active).await;
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds events, and wakes the clients once.
    pub(super) fn add(&self, events: impl IntoIterator<Item = (Kind, Option<Text>, Vec<u8>)>) -> usize {
        let (next, count) = {
            let mut kept = self.kept();
            let first = kept.next;
            for (kind, namespace, data) in events {
                kept.bytes += data.len();
                let event = Event { number: kept.next, kind, namespace, data: data.into() };
                kept.next += 1;
                kept.events.push_back(event);
                while kept.events.len() > MAX_EVENTS || kept.bytes > MAX_BYTES {
                    let Some(oldest) = kept.events.pop_front() else { break };
                    kept.bytes -= oldest.data.len();
                }
            }
            (kept.next, usize::try_from(kept.next - first).unwrap_or(usize::MAX))
        };
        if count > 0 {
            self.head.send_if_modified(|head| head.replace(next) != Some(next));
        }
        count
    }

    /// The place behind the last event.
    pub(super) fn end(&self) -> u64 {
        self.kept().next
    }

    /// Forgets all events: changes are not looked for any more, and the next event follows no earlier one.
    pub(super) fn forget(&self) {
        self.is_active.send_replace(false);
        let mut kept = self.kept();
        kept.events.clear();
        kept.bytes = 0;
        // A place from before is not that of the next event.
        kept.next += 1;
    }

    /// The events from `place` on that `wants` takes, up to so many bytes.
    pub(super) fn read(&self, place: u64, bytes: usize, wants: impl Fn(&Event) -> bool) -> Found {
        let kept = self.kept();
        let first = kept.events.front().map_or(kept.next, |event| event.number);
        if place < first || place > kept.next {
            return Found::Gap;
        }
        if place == kept.next {
            return Found::Nothing;
        }
        let skipped = usize::try_from(place - first).unwrap_or(usize::MAX);
        let (mut found, mut size, mut next) = (Vec::new(), 0, place);
        for event in kept.events.iter().skip(skipped) {
            if size > bytes {
                break;
            }
            next = event.number + 1;
            if wants(event) {
                size += event.data.len();
                found.push(event.clone());
            }
        }
        Found::Events(found, next)
    }

    /// Ends all streams.
    pub(super) fn close(&self) {
        self.head.send_replace(None);
    }

    /// Wakes a client when there are new events, and when the stream ends.
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<u64>> {
        self.head.subscribe()
    }
}

/// A log that many share.
pub(super) type SharedLog = Arc<Log>;

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: usize, size: usize) -> (Kind, Option<Text>, Vec<u8>) {
        (Kind::Node, Some(format!("ns-{}", n % 2).into()), vec![b'x'; size])
    }

    #[test]
    fn a_client_reads_each_event_once_in_order_and_is_told_of_a_gap() {
        let log = Log::new();
        assert!(matches!(log.read(FIRST, 100, |_| true), Found::Nothing));
        assert_eq!(log.add((0..10).map(|n| event(n, 10))), 10);
        let (mut place, mut seen) = (FIRST, Vec::new());
        while let Found::Events(events, next) =
            log.read(place, 25, |event| event.namespace.as_deref() == Some("ns-1"))
        {
            assert!(next > place);
            seen.extend(events.iter().map(|event| event.number));
            place = next;
        }
        assert_eq!((place, seen), (11, vec![2, 4, 6, 8, 10]));
        log.add((0..MAX_EVENTS).map(|n| event(n, 1)));
        assert!(matches!(log.read(10, 100, |_| true), Found::Gap));
        assert!(matches!(log.read(11, 100, |_| true), Found::Events(..)));
        assert!(
            matches!(log.read(log.end() + 1, 100, |_| true), Found::Gap),
            "a place that is not there yet"
        );
        let before = log.end();
        log.forget();
        assert!(matches!(log.read(before, 100, |_| true), Found::Gap));
        assert!(matches!(log.read(log.end(), 100, |_| true), Found::Nothing));
    }

    #[test]
    fn large_events_are_kept_up_to_their_bytes() {
        let log = Log::new();
        log.add((0..20).map(|n| event(n, 1 << 20)));
        let kept = log.kept();
        assert!(kept.events.len() == 8 && kept.bytes <= MAX_BYTES, "{}", kept.events.len());
    }
}
