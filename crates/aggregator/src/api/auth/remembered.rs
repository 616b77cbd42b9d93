//! Answers that hold for a short time, and longer while no other answer is to be had.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::fingerprint::Fingerprint;

/// How many answers are remembered.
const MAX_REMEMBERED: usize = 1024;

/// Answers by the fingerprint of the question, each until its time is over; a bounded number of them.
pub(super) struct Remembered<T>(Mutex<HashMap<Fingerprint, Answer<T>>>);

struct Answer<T> {
    value: T,
    /// Until then the question is not asked again.
    until: Instant,
    /// Until then the answer counts if there is no other one.
    kept_until: Instant,
}

/// How long an answer counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetime {
    /// How long the question is not asked again.
    pub(super) holds: Duration,
    /// How long the answer counts while there is no other one; at least as long as it `holds`.
    pub(super) kept: Duration,
}

impl<T> Default for Remembered<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> fmt::Debug for Remembered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remembered")
    }
}

impl<T: Clone> Remembered<T> {
    pub(super) fn get(&self, question: &Fingerprint) -> Option<T> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        answers
            .get(question)
            .filter(|answer| answer.until > Instant::now())
            .map(|answer| answer.value.clone())
    }

    /// The last answer, for a question that can't be asked at the moment.
    pub(super) fn kept(&self, question: &Fingerprint) -> Option<T> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = answers.get(question).filter(|answer| answer.kept_until > Instant::now());
        answer.map(|answer| answer.value.clone())
    }

    pub(super) fn put(&self, question: Fingerprint, answer: T, Lifetime { holds, kept }: Lifetime) {
        let now = Instant::now();
        let (until, kept_until) = (now + holds, now + kept.max(holds));
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        answers.retain(|_, answer| answer.kept_until > now);
        if answers.len() >= MAX_REMEMBERED && !answers.contains_key(&question) {
            // The answer that ends first goes. Answers about invalid tokens end soonest.
            let first =
                answers.iter().min_by_key(|(_, answer)| answer.kept_until).map(|(question, _)| *question);
            first.and_then(|first| answers.remove(&first));
        }
        answers.insert(question, Answer { value: answer, until, kept_until });
    }
}

#[cfg(test)]
mod tests {
    use super::super::fingerprint::Fingerprints;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn answers_end_and_their_number_is_bounded() {
        let fingerprints = Fingerprints::new().unwrap();
        let of = |n: usize| fingerprints.of(&n.to_be_bytes());
        let for_seconds = |seconds| Lifetime { holds: Duration::from_secs(seconds), kept: Duration::ZERO };
        let remembered = Remembered::default();
        remembered.put(of(0), 0, for_seconds(10));
        for n in 1..=5 * MAX_REMEMBERED {
            remembered.put(of(n), n, for_seconds(3));
        }
        assert_eq!(remembered.0.lock().unwrap().len(), MAX_REMEMBERED);
        // A flood of answers that end soon does not drive out those that hold longer.
        assert_eq!(
            (remembered.get(&of(0)), remembered.get(&of(5 * MAX_REMEMBERED))),
            (Some(0), Some(5 * MAX_REMEMBERED))
        );
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!((remembered.get(&of(0)), remembered.get(&of(5 * MAX_REMEMBERED))), (Some(0), None));
        remembered.put(of(1), 1, for_seconds(3));
        assert_eq!(remembered.0.lock().unwrap().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_no_longer_holds_is_kept_for_a_time() {
        let question = Fingerprints::new().unwrap().of(b"question");
        let remembered = Remembered::default();
        let lifetime = Lifetime { holds: Duration::from_secs(10), kept: Duration::from_mins(1) };
        remembered.put(question, 7, lifetime);
        for (seconds, holds, kept) in
            [(0, true, true), (10, false, true), (49, false, true), (1, false, false)]
        {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            assert_eq!(
                (remembered.get(&question).is_some(), remembered.kept(&question).is_some()),
                (holds, kept)
            );
        }
    }
}
