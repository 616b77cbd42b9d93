//! The memory that the bodies of all answers in flight may take together.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use procscan_core::report::{Failure, FailureReason};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::PROBATION_SHARE;

/// How many bytes each body may take outside the budget. Enough for an ordinary answer, so that hostile nodes that have taken the whole
/// budget do not delay the others. All bodies together take at most so much times `collector.concurrency`.
const FREE_BYTES: usize = 16 << 10;
/// The unit of the budget, in bytes; a semaphore counts no further than 2^32.
const BYTES_PER_UNIT: usize = 1 << 10;
/// How long a body may exceed its pool. That is enough to receive and decode an answer that the agent has already sent.
const OVERDRAFT_TIME: Duration = Duration::from_millis(500);
/// How much of that time may pass in waits for the agent's bytes while another body waits for memory.
const MAX_OVERDRAFT_WAIT: Duration = Duration::from_millis(375);
/// How long, in all, the waits for an agent's bytes may take while its body holds memory and another body waits for memory.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// How often a body that waits for the agent's bytes looks whether it has to end.
const CHECK_EVERY: Duration = Duration::from_millis(100);
/// The least time between the ends of two bodies that end because others wait: the memory of the first one may be enough.
const END_EVERY: Duration = Duration::from_millis(50);

/// The bytes that all bodies in flight may take together.
///
/// There are two pools: a small one is for targets whose last answer failed. Nodes that hold their bodies open to take all memory fail,
/// and from then on delay each other only.
///
/// A body takes its share step by step, because its size is not known before. So bodies may have taken all that there is while each of
/// them needs more. Then one of them at a time may exceed its pool, for [`OVERDRAFT_TIME`]. It ends in that time, and its share is free
/// for the others.
///
/// A body whose agent sends slowly holds its memory for longer. While another body waits for memory, the waits for the
/// agent's bytes may take [`MAX_WAIT`] in all. Then the body ends, and the records that were decoded are used. A body
/// that exceeds its pool ends when these waits have taken [`MAX_OVERDRAFT_WAIT`].
#[derive(Clone, Debug)]
pub(super) struct Budget {
    healthy: Pool,
    probation: Pool,
}

/// The part of the budget for targets on probation, or for all others.
#[derive(Clone, Debug)]
struct Pool {
    units: Arc<Semaphore>,
    /// How many units the pool has.
    size: u32,
    /// The one permit to exceed the pool.
    overdraft: Arc<Semaphore>,
    shortage: Arc<Mutex<Shortage>>,
}

/// The times in which at least one body waits for memory.
#[derive(Debug, Default)]
struct Shortage {
    /// How many bodies wait.
    waiting: usize,
    /// When the present shortage began.
    since: Option<Instant>,
    /// How long all earlier ones took together.
    before: Duration,
    /// When a body last ended because of a shortage.
    last_end: Option<Instant>,
}

impl Pool {
    fn new(size: usize) -> Self {
        Self {
            units: Arc::new(Semaphore::new(size)),
            size: u32::try_from(size).unwrap_or(u32::MAX),
            overdraft: Arc::new(Semaphore::new(1)),
            shortage: Arc::default(),
        }
    }

    fn shortage(&self) -> MutexGuard<'_, Shortage> {
        self.shortage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long bodies have waited for memory, the present time included. Two bodies that wait at the same time count once.
    fn shortage_time(&self) -> Duration {
        let shortage = self.shortage();
        shortage.before + shortage.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Lets one slow body end, if another body waits and none has ended within [`END_EVERY`]. Returns whether it ends, and notes the time
    /// if so.
    fn try_end_one(&self) -> bool {
        let mut shortage = self.shortage();
        let is_too_soon = shortage.last_end.is_some_and(|last| last.elapsed() < END_EVERY);
        if shortage.since.is_none() || is_too_soon {
            return false;
        }
        shortage.last_end = Some(Instant::now());
        true
    }

    /// Never completes. Until it is dropped, it counts as a body that waits for memory.
    async fn wait(&self) {
        let _waiting = Waiting::new(self);
        std::future::pending::<()>().await;
    }
}

/// A body that waits for memory, until it is dropped.
struct Waiting<'a>(&'a Pool);

impl<'a> Waiting<'a> {
    fn new(pool: &'a Pool) -> Self {
        let mut shortage = pool.shortage();
        shortage.waiting += 1;
        shortage.since.get_or_insert_with(Instant::now);
        Self(pool)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut shortage = self.0.shortage();
        shortage.waiting -= 1;
        if shortage.waiting == 0
            && let Some(since) = shortage.since.take()
        {
            shortage.before += since.elapsed();
        }
    }
}

async fn acquire(semaphore: &Arc<Semaphore>, permits: u32) -> OwnedSemaphorePermit {
    match semaphore.clone().acquire_many_owned(permits).await {
        Ok(permit) => permit,
        // It is never closed.
        Err(_) => std::future::pending().await,
    }
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        let probation = bytes / PROBATION_SHARE / BYTES_PER_UNIT;
        Self { healthy: Pool::new(bytes / BYTES_PER_UNIT - probation), probation: Pool::new(probation) }
    }

    /// How many bytes are free for targets that are not on probation.
    #[cfg(test)]
    pub(super) fn left(&self) -> usize {
        self.healthy.units.available_permits() * BYTES_PER_UNIT
    }

    /// Whether the overdraft of targets that are not on probation is free.
    #[cfg(test)]
    pub(super) fn has_overdraft(&self) -> bool {
        self.healthy.overdraft.available_permits() == 1
    }

    /// The lease of a new body, which holds nothing yet.
    pub(super) fn lease(&self, is_on_probation: bool) -> Lease {
        let pool = if is_on_probation { &self.probation } else { &self.healthy };
        Lease {
            pool: pool.clone(),
            held: None,
            overdraft: None,
            bytes: 0,
            waited: Duration::ZERO,
            is_ended: false,
        }
    }
}

/// The share of the budget that one body holds while it is read. Freed when dropped.
pub(super) struct Lease {
    pool: Pool,
    held: Option<OwnedSemaphorePermit>,
    overdraft: Option<Overdraft>,
    /// The most bytes that its body has needed so far.
    bytes: usize,
    /// How long the waits for the agent's bytes have taken while other bodies waited for memory.
    waited: Duration,
    is_ended: bool,
}

/// The permit to exceed a pool.
struct Overdraft {
    permit: OwnedSemaphorePermit,
    since: Instant,
}

impl Lease {
    /// By when the body must have ended, if it exceeds its pool.
    pub(super) fn ends_at(&self) -> Option<Instant> {
        self.overdraft.as_ref().map(|overdraft| overdraft.since + OVERDRAFT_TIME)
    }

    /// Whether the body had to end because its agent was slow. Others wait for its memory, so nothing more is decoded of a large answer.
    /// Of a small one, the bytes that have arrived are decoded.
    pub(super) fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// Waits until the body may take `bytes` in all, or may exceed its pool. Has no time limit of its own: the caller limits the wait.
    pub(super) async fn cover(&mut self, bytes: usize) {
        self.bytes = self.bytes.max(bytes);
        let needed = self.bytes.saturating_sub(FREE_BYTES).div_ceil(BYTES_PER_UNIT);
        // A body that needs more than its pool has waits until no other body holds units of it.
        let needed = u32::try_from(needed).unwrap_or(u32::MAX).min(self.pool.size);
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = needed.saturating_sub(u32::try_from(held).unwrap_or(u32::MAX));
        // A body that exceeds its pool has a limit of its own: `collector.max_body`.
        if missing == 0 || self.overdraft.is_some() {
            return;
        }
        tokio::select! {
            biased;
            permit = acquire(&self.pool.units, missing) => match &mut self.held {
                Some(held) => held.merge(permit),
                None => self.held = Some(permit),
            },
            permit = acquire(&self.pool.overdraft, 1) => {
                self.overdraft = Some(Overdraft { permit, since: Instant::now() });
                self.waited = Duration::ZERO;
            }
            () = self.pool.wait() => {}
        }
    }

    /// The result of `receive`, which waits for the agent's next bytes. Fails with [`FailureReason::Stalled`] if these waits take too long
    /// while the body holds memory that another one waits for, or while it exceeds its pool.
    pub(super) async fn receive<T>(
        &mut self,
        receive: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        if self.held.is_none() && self.overdraft.is_none() {
            return receive.await;
        }
        let begun = self.pool.shortage_time();
        let is_slow = async {
            while !self.has_to_end(self.waited + self.pool.shortage_time().saturating_sub(begun)) {
                tokio::time::sleep(CHECK_EVERY).await;
            }
        };
        let received = tokio::select! {
            // An agent that sends a byte at a time always has some ready.
            biased;
            () = is_slow => None,
            received = receive => Some(received),
        };
        self.waited += self.pool.shortage_time().saturating_sub(begun);
        received.unwrap_or_else(|| {
            self.is_ended = true;
            Err(self.slow())
        })
    }

    fn has_to_end(&self, waited: Duration) -> bool {
        if self.overdraft.is_some() {
            waited >= MAX_OVERDRAFT_WAIT
        } else {
            waited >= MAX_WAIT && self.pool.try_end_one()
        }
    }

    fn slow(&self) -> Failure {
        let limit = if self.overdraft.is_some() { MAX_OVERDRAFT_WAIT } else { MAX_WAIT };
        let limit = humantime::format_duration(limit);
        let detail = format!(
            "the waits for the agent's bytes took {limit} or longer in all, while other answers waited for memory (collector.byte_budget)"
        );
        Failure { reason: FailureReason::Stalled, detail }
    }
}

/// The share of the byte budget that a report holds. Freed when dropped, which is after its records are taken in. Until
/// then further large answers are not read from their nodes.
#[derive(Debug, Default)]
pub(crate) struct Share {
    _held: Option<OwnedSemaphorePermit>,
    _overdraft: Option<OwnedSemaphorePermit>,
}

impl From<Lease> for Share {
    fn from(lease: Lease) -> Self {
        Self { _held: lease.held, _overdraft: lease.overdraft.map(|overdraft| overdraft.permit) }
    }
}

#[cfg(test)]
mod tests;
