//! How much of large answers is read in a round.
//!
//! Text that is not kept is read all the same, because records follow it. That takes time, and a node can send without end. So an
//! answer has a limit, and all large answers of a round have a common one. They share it fairly: those that need less get all that
//! they need. Nodes whose last answer failed share a part of their own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use procscan_core::report::{Failure, FailureReason};
use procscan_core::shares::fair_share;

use super::PROBATION_SHARE;

/// How many bytes are read of every answer, however many answers are large.
const ALWAYS_READ: usize = 1 << 20;
/// How many times `collector.max_read` is read of all large answers of a round together.
const LARGEST_PER_ROUND: usize = 4;

/// What is read of large answers. Counted on both sides of decompression: the larger number counts.
#[derive(Debug)]
pub(super) struct Reading {
    /// The most of one answer (`collector.max_read`), in bytes.
    max: usize,
    standing: Pool,
    probation: Pool,
}

/// What is read for targets whose last answers were alike: whole, or failed.
#[derive(Debug)]
struct Pool {
    /// How many bytes beyond [`ALWAYS_READ`] are read of large answers in a round.
    total: usize,
    /// How much of it is used in this round.
    used: AtomicUsize,
    /// The most of one answer in this round.
    share: AtomicUsize,
    /// What the large answers of this round wanted. Those that were cut off may have wanted any amount.
    wants: Mutex<Vec<usize>>,
}

impl Reading {
    pub(super) fn new(max: usize) -> Self {
        let total = max.saturating_mul(LARGEST_PER_ROUND);
        let pool = |total| Pool {
            total,
            used: AtomicUsize::new(0),
            share: AtomicUsize::new(max),
            wants: Mutex::default(),
        };
        let probation = total / PROBATION_SHARE;
        Self { max, standing: pool(total - probation), probation: pool(probation) }
    }

    /// An answer of which nothing is read yet.
    pub(super) fn begin(self: &Arc<Self>, is_on_probation: bool) -> Read {
        Read { reading: self.clone(), is_on_probation, bytes: 0, is_cut: false }
    }

    /// A round begins: what was wanted in the last one says how much of one answer is read in this one.
    pub(super) fn begin_round(&self) {
        for pool in [&self.standing, &self.probation] {
            let mut wants = std::mem::take(&mut *pool.wants());
            let (share, _) = fair_share(&mut wants, pool.total);
            pool.share.store(share.saturating_add(ALWAYS_READ).min(self.max), Ordering::Relaxed);
            pool.used.store(0, Ordering::Relaxed);
        }
    }
}

impl Pool {
    fn wants(&self) -> MutexGuard<'_, Vec<usize>> {
        self.wants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The most of one answer at present.
    fn share(&self) -> usize {
        if self.used.load(Ordering::Relaxed) >= self.total {
            ALWAYS_READ
        } else {
            self.share.load(Ordering::Relaxed)
        }
    }
}

/// How much of one answer has been read.
pub(super) struct Read {
    reading: Arc<Reading>,
    is_on_probation: bool,
    bytes: usize,
    is_cut: bool,
}

impl Read {
    fn pool(&self) -> &Pool {
        if self.is_on_probation { &self.reading.probation } else { &self.reading.standing }
    }

    /// How many bytes of the answer may be read at present, those that are read included.
    pub(super) fn most(&self) -> usize {
        self.pool().share().min(self.reading.max)
    }

    /// Notes that `bytes` of the answer have been read, and fails if that is more than its share.
    pub(super) fn note(&mut self, bytes: usize) -> Result<(), Failure> {
        let most = self.most();
        let before = self.bytes.max(ALWAYS_READ);
        self.bytes = self.bytes.max(bytes);
        self.pool().used.fetch_add(self.bytes.saturating_sub(before), Ordering::Relaxed);
        if bytes <= most { Ok(()) } else { Err(self.cut(most)) }
    }

    /// Notes that the answer is read no further than `most` bytes; returns that as a failure.
    pub(super) fn cut(&mut self, most: usize) -> Failure {
        self.is_cut = true;
        let shown = |bytes: usize| bytesize::ByteSize(bytes as u64).display().iec().to_string();
        let max = self.reading.max;
        let detail = if most == max {
            format!("the answer is larger than {} (collector.max_read)", shown(max))
        } else {
            format!(
                "the answer is larger than {}, its share while many nodes send large answers (collector.max_read is {})",
                shown(most),
                shown(max)
            )
        };
        Failure { reason: FailureReason::TooLarge, detail }
    }
}

impl Drop for Read {
    fn drop(&mut self) {
        let wanted = if self.is_cut { self.reading.max } else { self.bytes };
        if wanted > ALWAYS_READ {
            self.pool().wants().push(wanted - ALWAYS_READ);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn an_answer_is_read_up_to_its_limit_and_the_failure_says_so() {
        let reading = Arc::new(Reading::new(8 * MIB));
        let mut read = reading.begin(false);
        read.note(8 * MIB).unwrap();
        let failure = read.note(8 * MIB + 1).unwrap_err();
        assert_eq!(failure.reason, FailureReason::TooLarge);
        assert!(failure.detail.contains("8.0 MiB (collector.max_read)"), "{failure:?}");
    }

    #[test]
    fn many_large_answers_share_what_is_read_and_one_that_needs_little_is_read_whole() {
        let reading = Arc::new(Reading::new(8 * MIB));
        // 24 MiB beyond what is free, for those whose last answer was whole.
        let round = |wants: &[usize]| -> Vec<bool> {
            let read = wants.iter().map(|want| reading.begin(false).note(*want).is_ok()).collect();
            reading.begin_round();
            read
        };
        assert_eq!(round(&[8 * MIB; 3]), [true; 3]);
        // The fourth finds nothing left in this round, and is read whole from the next one on.
        let wants = [9 * MIB, 9 * MIB, 9 * MIB, 9 * MIB, 3 * MIB];
        assert_eq!(round(&wants), [false, false, false, false, false]);
        assert_eq!(reading.standing.share(), 24 * MIB / 5 + ALWAYS_READ);
        assert_eq!(round(&[3 * MIB, 9 * MIB, 9 * MIB, 9 * MIB]), [true, false, false, false]);
        // Those on probation have a part of their own, and what is free is read in any case.
        assert!(reading.begin(true).note(8 * MIB).is_ok());
        reading.standing.used.store(usize::MAX / 2, Ordering::Relaxed);
        assert!(reading.begin(false).note(ALWAYS_READ).is_ok());
        assert!(reading.begin(false).note(ALWAYS_READ + 1).is_err());
        reading.begin_round();
        reading.begin_round();
        assert_eq!(reading.standing.share(), 8 * MIB, "no answer is large any more");
    }
}
