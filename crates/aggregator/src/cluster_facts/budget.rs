//! Limits the bytes that sweeps read per minute. The API server has to encode all of them, also those that are dropped
//! here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use procscan_core::Moment;

const MINUTE: Duration = Duration::from_mins(1);
/// How many bytes sweeps read per minute: about 100,000 Pods of a usual size, or 18 MB/s.
const PER_MINUTE: usize = 1 << 30;

/// The rest of this minute's bytes. Cheap to clone; all clones share it.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    /// How long each byte that was read delays the next read, in nanoseconds.
    per_byte: u64,
    /// When more may be read, by the monotonic clock.
    free_at: Arc<Mutex<Duration>>,
}

impl Default for Budget {
    fn default() -> Self {
        Self::of(PER_MINUTE)
    }
}

impl Budget {
    /// A budget of `per_minute` bytes.
    pub(super) fn of(per_minute: usize) -> Self {
        let nanoseconds = u64::try_from(MINUTE.as_nanos()).unwrap_or(u64::MAX);
        let per_byte = nanoseconds / u64::try_from(per_minute).unwrap_or(u64::MAX).max(1);
        Self { per_byte, free_at: Arc::default() }
    }

    fn free_at(&self) -> MutexGuard<'_, Duration> {
        self.free_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that `bytes` have been read.
    pub(super) fn spend(&self, bytes: usize, now: Moment) {
        let cost = self.per_byte.saturating_mul(u64::try_from(bytes).unwrap_or(u64::MAX));
        let mut free_at = self.free_at();
        // Bytes that were not read in the last minute may be read at once; older ones are lost.
        *free_at =
            now.uptime().saturating_sub(MINUTE).max(*free_at).saturating_add(Duration::from_nanos(cost));
    }

    /// How long to wait before more is read.
    pub(super) fn wait(&self, now: Moment) -> Duration {
        self.free_at().saturating_sub(now.uptime())
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn at_most_the_bytes_of_one_minute_are_read_at_once_and_the_next_ones_wait() {
        let at = |seconds| Moment::new(Duration::from_secs(seconds), Timestamp::UNIX_EPOCH);
        let budget = Budget::of(60_000);
        assert!(budget.wait(at(1000)).is_zero());
        budget.spend(59_000, at(1000));
        assert!(budget.wait(at(1000)).is_zero());
        budget.spend(11_000, at(1000));
        assert_eq!(budget.wait(at(1000)), Duration::from_secs(10));
        assert!(budget.wait(at(1010)).is_zero());
        budget.spend(1000, at(1010));
        assert_eq!(budget.wait(at(1010)), Duration::from_secs(1));
        budget.spend(usize::MAX, at(1010));
        assert!(budget.wait(at(1010)) > MINUTE);
    }
}
