//! How many requests are sent per second.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// Lets a number of requests through per second, evenly, in the order in which they come.
#[derive(Debug)]
pub(super) struct Pace {
    gap: Duration,
    next: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(per_second: u32) -> Self {
        Self { gap: Duration::from_secs(1) / per_second.max(1), next: Mutex::new(Instant::now()) }
    }

    pub(super) async fn turn(&self) {
        let mut next = self.next.lock().await;
        let at = (*next).max(Instant::now());
        *next = at + self.gap;
        drop(next);
        tokio::time::sleep_until(at).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_are_let_through_at_their_pace_and_idle_time_is_not_saved_up() {
        let pace = Pace::new(10);
        tokio::time::sleep(Duration::from_mins(1)).await;
        let start = Instant::now();
        for _ in 0..21 {
            pace.turn().await;
        }
        assert_eq!(start.elapsed(), Duration::from_secs(2));
    }
}
