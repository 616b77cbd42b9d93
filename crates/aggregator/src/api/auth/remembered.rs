//! Answers that hold for a short time.

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
    answer: T,
    until: Instant,
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
            .map(|answer| answer.answer.clone())
    }

    pub(super) fn put(&self, question: Fingerprint, answer: T, lifetime: Duration) {
        let now = Instant::now();
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        answers.retain(|_, answer| answer.until > now);
        if answers.len() >= MAX_REMEMBERED && !answers.contains_key(&question) {
            // The answer that ends first goes. Answers about invalid tokens end soonest.
            let first = answers.iter().min_by_key(|(_, answer)| answer.until).map(|(question, _)| *question);
            first.and_then(|first| answers.remove(&first));
        }
        answers.insert(question, Answer { answer, until: now + lifetime });
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
        let remembered = Remembered::default();
        remembered.put(of(0), 0, Duration::from_secs(10));
        for n in 1..=5 * MAX_REMEMBERED {
            remembered.put(of(n), n, Duration::from_secs(3));
        }
        assert_eq!(remembered.0.lock().unwrap().len(), MAX_REMEMBERED);
        // A flood of answers that end soon does not drive out those that hold longer.
        assert_eq!(
            (remembered.get(&of(0)), remembered.get(&of(5 * MAX_REMEMBERED))),
            (Some(0), Some(5 * MAX_REMEMBERED))
        );
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!((remembered.get(&of(0)), remembered.get(&of(5 * MAX_REMEMBERED))), (Some(0), None));
        remembered.put(of(1), 1, Duration::from_secs(3));
        assert_eq!(remembered.0.lock().unwrap().len(), 2);
    }
}
