//! Pseudo-random numbers.

/// The same numbers for the same seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % n
    }

    /// True once in `n` times on average.
    pub(super) fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(super) fn seconds(&mut self, least: u64, most: u64) -> u64 {
        least + u64::try_from(self.below(usize::try_from(most - least).unwrap())).unwrap()
    }
}
