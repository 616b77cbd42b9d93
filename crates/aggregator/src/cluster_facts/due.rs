//! Decides which namespaces are looked up next, and whether one by one or many together. Pure.

use std::time::Duration;

use procscan_core::Moment;
use procscan_core::names::Text;

use super::namespace_facts::NamespaceFacts;
use super::state::{CONFIRM, State};
use super::sweep::Plan;
use super::turn::Candidate;
use super::watches::WatchStates;

/// How many namespaces are looked up at the same time.
pub(super) const MAX_CONCURRENT_LOOKUPS: usize = 8;
/// The same during a sweep, which should get most of the paced requests.
const MAX_LOOKUPS_BESIDE_SWEEP: usize = 2;
/// How long a look-up keeps its place: after it another look-up begins, so that a slow namespace does not delay the others.
pub(super) const SLOW_LOOKUP: Duration = Duration::from_secs(5);
/// How many look-ups there may be at the same time, slow ones included: each holds a page of up to 2 MiB.
const MAX_LOOKUPS: usize = 2 * MAX_CONCURRENT_LOOKUPS;
/// The least time between two look-ups of one namespace.
pub(super) const MIN_LOOKUP_PAUSE: Duration = Duration::from_secs(1);
/// How often a watched namespace without changes is looked up all the same: a change that no watch has reported is found
/// by then. Many that are due at the same time are one sweep, so their times are not spread.
const UNCHANGED: Duration = Duration::from_hours(1);

/// The look-ups that begin now.
#[derive(Debug)]
pub(super) struct Due {
    /// Many namespaces to look up together.
    pub(super) sweep: Option<Plan>,
    /// The namespaces to look up one by one.
    pub(super) lookups: Vec<Text>,
    /// How long to wait until further look-ups may be due.
    pub(super) next: Duration,
}

/// Why to look up a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// An accusation in it is not judged, or an App is not known. That was not so when the last sweep over it began.
    New,
    /// An accusation in it is not judged although a sweep has passed: its Pod was not listed, and has to be looked up
    /// by name.
    Unlisted,
    /// Something in it has changed, it is not watched, or the last look-up was long ago.
    Again,
    /// One more look-up may prove that an App is gone: it looks up the App's Pods by name.
    Proof,
}

impl State {
    /// How many more look-ups may begin.
    pub(super) fn places(&self, now: Moment) -> usize {
        let slow = self.in_flight.values().filter(|begun| now.since(**begun) >= SLOW_LOOKUP).count();
        let quick = self.in_flight.len() - slow;
        let places = if self.sweeps.is_running() { MAX_LOOKUPS_BESIDE_SWEEP } else { MAX_CONCURRENT_LOOKUPS };
        places.saturating_sub(quick).min(MAX_LOOKUPS.saturating_sub(self.in_flight.len()))
    }

    /// The namespaces to look up now: as many as there are [`Self::places`], or all that wait if there are many.
    pub(super) fn due(&mut self, now: Moment, interval: Duration) -> Due {
        let changes = self.watch_states.as_ref().map(WatchStates::changes);
        let changes = changes.as_ref().filter(|changes| changes.reported_until(now).is_some());
        let is_watched = changes.is_some();
        let mut candidates = Vec::new();
        let mut together = Vec::new();
        let mut next = if self.watch_states.is_some() { interval.min(CONFIRM) } else { interval };
        let slow_at = |begun: &Moment| SLOW_LOOKUP.saturating_sub(now.since(*begun));
        let places_at = self.in_flight.values().map(slow_at).filter(|left| !left.is_zero());
        next = next.min(places_at.min().unwrap_or(next));
        for (namespace, lookup) in &self.lookups {
            if self.in_flight.contains_key(namespace) || self.sweeps.is_at(namespace) {
                continue;
            }
            let facts = self.namespace_facts.get(namespace);
            let asked = facts.and_then(|facts| facts.asked);
            let since = lookup.since(facts, is_watched);
            let swept = self.sweeps.passed(namespace);
            let (reason, pause) = if since.is_some() || lookup.has_new_app(facts) {
                let is_new = swept.is_none_or(|swept| lookup.is_newer(facts, is_watched, swept));
                (if is_new { Reason::New } else { Reason::Unlisted }, MIN_LOOKUP_PAUSE.min(interval))
            } else if changes.is_none_or(|_| self.too_large.contains_key(namespace)) {
                (Reason::Again, interval)
            } else if changes.is_some_and(|changes| changes.has_changed(namespace)) {
                (Reason::Again, CONFIRM.min(interval))
            } else if facts.is_some_and(NamespaceFacts::is_waiting) {
                (Reason::Proof, interval)
            } else {
                (Reason::Again, UNCHANGED)
            };
            let left = asked.map_or(Duration::ZERO, |asked| pause.saturating_sub(now.since(asked)));
            if left > Duration::ZERO {
                next = next.min(left);
                continue;
            }
            let candidate = Candidate {
                namespace,
                nodes: lookup.nodes(facts, is_watched),
                is_known: asked.is_some(),
                since: since.max(asked).unwrap_or(now),
            };
            if matches!(reason, Reason::New | Reason::Again)
                && !self.too_large.contains_key(namespace)
                && !self.sweeps.has_missed(namespace)
            {
                together.push((candidate.is_known, candidate.since, namespace));
            }
            candidates.push(candidate);
        }
        let sweep = self.sweeps.plan(together, self.with_routes, now);
        // Namespaces that are looked up together need no look-up of their own.
        candidates.retain(|candidate| {
            !sweep.as_ref().is_some_and(|plan| plan.namespaces.contains(candidate.namespace))
        });
        let places = self.places(now);
        Due { lookups: self.turns.take(&candidates, places), sweep, next }
    }
}
