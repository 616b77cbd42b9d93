//! Learns how often an agent scans, from the times of its records.

use std::time::Duration;

use crate::time::CompactDuration;

/// The longest scan interval that is believed. Otherwise an agent could prevent that its violations clear.
pub(super) const MAX_INTERVAL: Duration = Duration::from_hours(1);
/// From how many steps the scan interval is learned: after so many scans a changed interval is known.
const REMEMBERED_STEPS: u8 = 8;
/// From how many steps on the median counts. Of fewer steps, one long pause could pass for the interval.
const MIN_STEPS: usize = 4;

/// The last steps in microseconds, to save memory, because there are many nodes. Rounded up, because too long an
/// interval only delays the release.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// The next step replaces the oldest.
    micros: [u32; REMEMBERED_STEPS as usize],
    /// See [`Steps::usual`]; zero while there are no steps. Computed once for each step, because it is read several times
    /// for each answer.
    usual: u32,
    next: u8,
    count: u8,
}

impl Steps {
    /// Adds a step; it counts as [`MAX_INTERVAL`] at most.
    pub(super) fn push(&mut self, step: Duration) {
        let micros = step.min(MAX_INTERVAL).as_nanos().div_ceil(1000);
        if let Some(place) = self.micros.get_mut(usize::from(self.next)) {
            *place = u32::try_from(micros).unwrap_or(u32::MAX);
        }
        self.next = (self.next + 1) % REMEMBERED_STEPS;
        self.count = self.count.saturating_add(1).min(REMEMBERED_STEPS);
        let mut known = self.micros;
        if let Some(known) = known.get_mut(..usize::from(self.count)) {
            known.sort_unstable();
            let place = if known.len() < MIN_STEPS { 0 } else { known.len() / 2 };
            self.usual = known.get(place).copied().unwrap_or_default();
        }
    }

    /// The median, the larger of two, from [`MIN_STEPS`] steps on. Before that, the shortest step.
    ///
    /// Short steps do not show how often an agent scans: it may have restarted, or a round came between two results
    /// of one scan. A tenant can cause the latter in each scan. Even then half of the steps are true ones.
    pub(super) fn usual(&self) -> Option<Duration> {
        (self.count > 0).then(|| Duration::from_micros(self.usual.into()))
    }
}

/// The longest step is forgotten within this many times its own length.
const REMEMBERED_LONGEST: u32 = 8;

/// The longest of the last steps, [`MAX_INTERVAL`] at most.
///
/// Steps are forgotten by time and not by number. A tenant can cause any number of short steps, but they take only
/// the time that they last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Longest(CompactDuration);

impl Default for Longest {
    fn default() -> Self {
        Self(CompactDuration::ZERO)
    }
}

impl Longest {
    pub(super) fn of(only: Duration) -> Self {
        Self(only.min(MAX_INTERVAL).into())
    }

    pub(super) fn push(&mut self, next: Duration) {
        let left = self.0.saturating_sub((next / REMEMBERED_LONGEST).into());
        self.0 = next.min(MAX_INTERVAL).max(left).into();
    }

    /// The longest step; zero if there was none.
    pub(super) fn get(self) -> CompactDuration {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_middle_one_of_the_last_steps_is_known(steps in proptest::collection::vec(0..5_000_000_000_u64, 0..30)) {
            let (mut known, mut model) = (Steps::default(), VecDeque::new());
            for step in steps {
                known.push(Duration::from_micros(step));
                model.push_back(Duration::from_micros(step).min(MAX_INTERVAL));
                if model.len() > 8 {
                    model.pop_front();
                }
                let mut sorted: Vec<Duration> = model.iter().copied().collect();
                sorted.sort_unstable();
                prop_assert_eq!(known.usual(), sorted.get(if sorted.len() < 4 { 0 } else { sorted.len() / 2 }).copied());
            }
        }
    }

    proptest! {
        /// Any number of steps may come in between.
        #[test]
        fn the_longest_is_known_for_as_long_as_it_lasts_many_times(
            long in 1..3600_u64, parts in proptest::collection::vec(1..500_u64, 0..60)
        ) {
            let mut known = Longest::default();
            known.push(Duration::from_secs(long));
            let mut since = Duration::ZERO;
            for part in parts.into_iter().map(Duration::from_secs) {
                known.push(part);
                since += part;
                let least = Duration::from_secs(long).saturating_sub(since / REMEMBERED_LONGEST);
                prop_assert!(known.get().get() >= least.max(part));
                prop_assert!(known.get().get() <= Duration::from_secs(long).max(Duration::from_secs(500)));
            }
        }
    }

    #[test]
    fn a_long_pause_is_forgotten_when_it_has_passed_eight_times_and_none_is_longer_than_an_hour() {
        let mut known = Longest::default();
        known.push(Duration::from_hours(24));
        assert_eq!(known.get().get(), MAX_INTERVAL);
        for _ in 0..8 * 36 {
            known.push(Duration::from_secs(100));
        }
        assert_eq!(known.get().get(), Duration::from_secs(100));
    }

    #[test]
    fn a_step_is_never_taken_for_a_shorter_one() {
        let mut steps = Steps::default();
        assert_eq!(steps.usual(), None);
        steps.push(Duration::from_nanos(1_000_001));
        assert_eq!(steps.usual(), Some(Duration::from_micros(1001)));
    }
}
