//! How often an agent scans, as far as the times of its records tell.

use std::time::Duration;

/// The longest scan interval that is believed: an agent may not make its violations immortal.
pub(super) const MAX_INTERVAL: Duration = Duration::from_hours(1);
/// From how many steps the scan interval is learned: an agent that scans seldom from now on is understood after so many scans.
const STEPS: u8 = 8;
/// How many steps have a middle: of fewer, one long pause would be taken for the interval.
const ENOUGH: usize = 4;

/// The last steps, in microseconds: there are many nodes. Rounded up, because too long only means to wait longer.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// The next one takes the place of the oldest.
    micros: [u32; STEPS as usize],
    next: u8,
    count: u8,
}

impl Steps {
    /// One more, of [`MAX_INTERVAL`] at most.
    pub(super) fn push(&mut self, step: Duration) {
        let micros = step.min(MAX_INTERVAL).as_nanos().div_ceil(1000);
        if let Some(place) = self.micros.get_mut(usize::from(self.next)) {
            *place = u32::try_from(micros).unwrap_or(u32::MAX);
        }
        self.next = (self.next + 1) % STEPS;
        self.count = self.count.saturating_add(1).min(STEPS);
    }

    fn known(&self) -> impl Iterator<Item = Duration> {
        let known = self.micros.iter().take(self.count.into());
        known.map(|micros| Duration::from_micros((*micros).into()))
    }

    /// The middle one, the larger of two, from [`ENOUGH`] steps on; before, the least.
    ///
    /// Short steps say little of how often an agent scans: it may have restarted, or a round has come between two results of one scan, which
    /// a tenant can bring about in each scan. Half of the steps are the scan's own even then.
    pub(super) fn usual(&self) -> Option<Duration> {
        let mut known = self.micros;
        let known = known.get_mut(..usize::from(self.count))?;
        known.sort_unstable();
        let place = if known.len() < ENOUGH { 0 } else { known.len() / 2 };
        known.get(place).map(|micros| Duration::from_micros((*micros).into()))
    }

    pub(super) fn largest(&self) -> Option<Duration> {
        self.known().max()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_middle_and_the_largest_of_the_last_steps_are_known(steps in proptest::collection::vec(0..5_000_000_000_u64, 0..30)) {
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
                prop_assert_eq!(known.largest(), model.iter().max().copied());
            }
        }
    }

    #[test]
    fn a_step_is_never_taken_for_a_shorter_one() {
        let mut steps = Steps::default();
        assert_eq!(steps.usual(), None);
        steps.push(Duration::from_nanos(1_000_001));
        assert_eq!(steps.usual(), Some(Duration::from_micros(1001)));
    }
}
