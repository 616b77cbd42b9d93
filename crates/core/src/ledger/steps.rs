//! How often an agent scans, as far as the times of its records tell.

use std::time::Duration;

/// The longest scan interval that is believed: an agent may not make its violations immortal.
pub(super) const MAX_INTERVAL: Duration = Duration::from_hours(1);
/// From how many steps the scan interval is learned: an agent that scans seldom from now on is understood after so many scans.
const STEPS: u8 = 8;

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

    pub(super) fn least(&self) -> Option<Duration> {
        self.known().min()
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
        fn the_least_and_the_largest_of_the_last_steps_are_known(steps in proptest::collection::vec(0..5_000_000_000_u64, 0..30)) {
            let (mut known, mut model) = (Steps::default(), VecDeque::new());
            for step in steps {
                known.push(Duration::from_micros(step));
                model.push_back(Duration::from_micros(step).min(MAX_INTERVAL));
                if model.len() > 8 {
                    model.pop_front();
                }
                prop_assert_eq!(known.least(), model.iter().min().copied());
                prop_assert_eq!(known.largest(), model.iter().max().copied());
            }
        }
    }

    #[test]
    fn a_step_is_never_taken_for_a_shorter_one() {
        let mut steps = Steps::default();
        assert_eq!(steps.least(), None);
        steps.push(Duration::from_nanos(1_000_001));
        assert_eq!(steps.least(), Some(Duration::from_micros(1001)));
    }
}
