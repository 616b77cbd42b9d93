//! Where to look next: at single namespaces, or at many together. Pure.

use std::time::Duration;

use procscan_core::Moment;
use procscan_core::names::Text;

use super::namespace_facts::NamespaceFacts;
use super::state::{CONFIRM, State};
use super::sweep::Plan;
use super::turn::Candidate;
use super::watches::WatchStates;

/// How many namespaces are looked at at the same time.
pub(super) const MAX_CONCURRENT_LOOKUPS: usize = 8;
/// The same during a sweep, which should get most of the paced requests.
const MAX_LOOKUPS_BESIDE_SWEEP: usize = 2;
/// How long a look keeps its place: after it another look begins, so that a slow namespace does not delay the others.
pub(super) const SLOW_LOOKUP: Duration = Duration::from_secs(5);
/// How many looks there may be at the same time, slow ones included: each holds a page of up to 2 MiB.
const MAX_LOOKUPS: usize = 2 * MAX_CONCURRENT_LOOKUPS;
/// The least time between two looks at one namespace.
pub(super) const MIN_LOOKUP_PAUSE: Duration = Duration::from_secs(1);
/// How often a watched namespace without changes is looked at all the same: a change that no watch has reported is found
/// by then. Many that are due at the same time are one sweep, so their times are not spread.
const UNCHANGED: Duration = Duration::from_hours(1);

/// What to do next.
#[derive(Debug)]
pub(super) struct Due {
    /// Many namespaces to look at together.
    pub(super) sweep: Option<Plan>,
    /// The namespaces to look at one by one.
    pub(super) looks: Vec<Text>,
    /// When to ask again if there are none.
    pub(super) next: Duration,
}

/// Why to look at a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// An accusation in it is not judged, or an App not known, and that was not so when the last sweep over it began.
    New,
    /// An accusation in it is not judged although a sweep has passed: its Pod was not listed, and has to be looked up
    /// by name.
    Unlisted,
    /// Something in it has changed, it is not watched, or the last look was long ago.
    Again,
    /// One more look may prove that an App is gone: it looks up the App's Pods by name.
    Proof,
}

impl State {
    /// How many more looks may begin.
    pub(super) fn places(&self, now: Moment) -> usize {
        let slow = self.looking.values().filter(|begun| now.since(**begun) >= SLOW_LOOKUP).count();
        let quick = self.looking.len() - slow;
        let places = if self.sweeps.is_running() { MAX_LOOKUPS_BESIDE_SWEEP } else { MAX_CONCURRENT_LOOKUPS };
        places.saturating_sub(quick).min(MAX_LOOKUPS.saturating_sub(self.looking.len()))
    }

    /// The namespaces to look at now: as many as there are [`Self::places`], or all that wait if there are many.
    pub(super) fn due(&mut self, now: Moment, interval: Duration) -> Due {
        let changes = self.told.as_ref().map(WatchStates::changes);
        let changes = changes.as_ref().filter(|changes| changes.told_until(now).is_some());
        let is_watched = changes.is_some();
        let mut candidates = Vec::new();
        let mut together = Vec::new();
        let mut next = if self.told.is_some() { interval.min(CONFIRM) } else { interval };
        let slow_at = |begun: &Moment| SLOW_LOOKUP.saturating_sub(now.since(*begun));
        let places_at = self.looking.values().map(slow_at).filter(|left| !left.is_zero());
        next = next.min(places_at.min().unwrap_or(next));
        for (namespace, inquiry) in &self.inquiries {
            if self.looking.contains_key(namespace) || self.sweeps.is_at(namespace) {
                continue;
            }
            let room = self.rooms.get(namespace);
            let asked = room.and_then(|room| room.asked);
            let since = inquiry.since(room, is_watched);
            let swept = self.sweeps.passed(namespace);
            let (why, pause) = if since.is_some() || inquiry.has_new_app(room) {
                let is_new = swept.is_none_or(|swept| inquiry.is_newer(room, is_watched, swept));
                (if is_new { Why::New } else { Why::Unlisted }, MIN_LOOKUP_PAUSE.min(interval))
            } else if changes.is_none_or(|_| self.too_large.contains_key(namespace)) {
                (Why::Again, interval)
            } else if changes.is_some_and(|changes| changes.has_changed(namespace)) {
                (Why::Again, CONFIRM.min(interval))
            } else if room.is_some_and(NamespaceFacts::is_waiting) {
                (Why::Proof, interval)
            } else {
                (Why::Again, UNCHANGED)
            };
            let left = asked.map_or(Duration::ZERO, |asked| pause.saturating_sub(now.since(asked)));
            if left > Duration::ZERO {
                next = next.min(left);
                continue;
            }
            let candidate = Candidate {
                namespace,
                nodes: inquiry.nodes(room, is_watched),
                is_known: asked.is_some(),
                since: since.max(asked).unwrap_or(now),
            };
            if matches!(why, Why::New | Why::Again)
                && !self.too_large.contains_key(namespace)
                && !self.sweeps.has_missed(namespace)
            {
                together.push((candidate.is_known, candidate.since, namespace));
            }
            candidates.push(candidate);
        }
        let sweep = self.sweeps.plan(together, self.with_routes, now);
        // Namespaces that are looked at together need no look of their own.
        candidates.retain(|candidate| {
            !sweep.as_ref().is_some_and(|plan| plan.namespaces.contains(candidate.namespace))
        });
        let places = self.places(now);
        Due { looks: self.turns.take(&candidates, places), sweep, next }
    }
}
