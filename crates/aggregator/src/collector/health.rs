//! The recent failures of a target, and when it is asked again.

/// A target's recent history.
#[derive(Debug, Default)]
pub(super) struct Health {
    consecutive_failures: u32,
    /// The first round in which it is to be asked again.
    next_round: u64,
    /// The tag of its last whole answer, for `If-None-Match`.
    pub(super) etag: Option<String>,
}

/// After this many failures in a row or fewer, the target is asked in the very next round.
const MAX_FAILURES_WITHOUT_BACKOFF: u32 = 2;

impl Health {
    /// Whether it is to be asked in `round`.
    pub(super) fn is_due(&self, round: u64) -> bool {
        round >= self.next_round
    }

    /// Whether its last request failed.
    pub(super) fn is_failing(&self) -> bool {
        self.consecutive_failures > 0
    }

    /// Notes a whole answer. Returns whether it ends a time of failures that was logged.
    pub(super) fn answered(&mut self, etag: Option<String>) -> bool {
        let was_lost = self.consecutive_failures > MAX_FAILURES_WITHOUT_BACKOFF;
        *self = Self { etag, ..Self::default() };
        was_lost
    }

    /// Notes a failure. After each one beyond [`MAX_FAILURES_WITHOUT_BACKOFF`], twice as many rounds are left out, up to
    /// `max`. Returns whether this is the first failure with a backoff.
    pub(super) fn failed(&mut self, round: u64, max: u32) -> bool {
        self.consecutive_failures = self.consecutive_failures.saturating_add(1);
        let left_out = match self.consecutive_failures.checked_sub(MAX_FAILURES_WITHOUT_BACKOFF + 1) {
            Some(beyond) => 1_u32.checked_shl(beyond).unwrap_or(u32::MAX).min(max),
            None => 0,
        };
        self.next_round = round + 1 + u64::from(left_out);
        self.consecutive_failures == MAX_FAILURES_WITHOUT_BACKOFF + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_keeps_failing_is_asked_less_often_but_never_forgotten() {
        let mut health = Health::default();
        let mut asked = Vec::new();
        for round in 1..=30 {
            if health.is_due(round) {
                asked.push(round);
                let is_first = health.failed(round, 4);
                assert_eq!(is_first, asked.len() == 3);
            }
        }
        assert_eq!(asked, [1, 2, 3, 5, 8, 13, 18, 23, 28]);
        assert!(health.answered(None) && !health.answered(None));
        assert!(health.is_due(29) && !health.is_failing());
        let mut patient = Health::default();
        assert_eq!((1..200).filter(|round| patient.failed(*round, u32::MAX)).count(), 1);
    }
}
