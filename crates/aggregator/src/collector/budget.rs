//! The memory that the bodies of all answers in flight may take together.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use procscan_core::report::{Failure, FailureReason};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::PROBATION_SHARE;

/// What every body may take without asking for its share: enough for an ordinary answer, so that a hostile node which has
/// taken the whole budget does not hold up the others. Bounded by `collector.concurrency`.
const FREE: usize = 16 << 10;
/// The unit of the budget; a semaphore counts no further than 2^32.
const UNIT: usize = 1 << 10;
/// How long a body may exceed its part of the budget: as long as it takes to receive and decode one that is there already.
const OVERDRAFT_TIME: Duration = Duration::from_millis(500);

/// For how long, in all, an agent may keep a body waiting for its next bytes while another waits for the memory of that body.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a body that waits for memory recalls that of another.
const RECALL_EVERY: Duration = Duration::from_millis(100);

/// The bytes that all bodies in flight may take together.
///
/// In two parts: targets whose last answer failed have a small one of their own. Nodes that hold their bodies open for as
/// long as they may, to leave nothing for the others, soon hold up each other only.
///
/// A body takes its share step by step, because its size is not known before. So bodies may have taken all that there is while each of
/// them needs more. Then one of them at a time may exceed its part, for [`OVERDRAFT_TIME`]: it ends, and leaves its share to the others.
///
/// An agent that sends slowly holds the memory of its body for longer. While no other body waits for memory, it may. Otherwise it has
/// [`PATIENCE`], and then its body ends with what has arrived.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    standing: Pool,
    probation: Pool,
}

#[derive(Clone, Debug)]
struct Pool {
    units: Arc<Semaphore>,
    /// How many units there are.
    all: usize,
    /// The one permit to exceed it.
    overdraft: Arc<Semaphore>,
    /// A permit for each body that has to end, because another waits for its memory.
    recalls: Arc<Semaphore>,
}

impl Pool {
    fn new(all: usize) -> Self {
        Self {
            units: Arc::new(Semaphore::new(all)),
            all,
            overdraft: Arc::new(Semaphore::new(1)),
            recalls: Arc::new(Semaphore::new(0)),
        }
    }

    /// Waits until one body more may have ended. While it waits, the first one that has kept others waiting for too long has to end.
    async fn recall_one(&self) {
        let _recall = Recall::new(&self.recalls);
        tokio::time::sleep(RECALL_EVERY).await;
    }

    /// Waits for `patience`, and then until the body that calls it has to end.
    async fn recalled(&self, patience: Duration) {
        tokio::time::sleep(patience).await;
        match self.recalls.acquire().await {
            Ok(permit) => permit.forget(),
            // It is never closed.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        let probation = bytes / PROBATION_SHARE / UNIT;
        Self { standing: Pool::new(bytes / UNIT - probation), probation: Pool::new(probation) }
    }

    /// How many bytes are left, for those whose last answer was whole.
    #[cfg(test)]
    pub(super) fn left(&self) -> usize {
        self.standing.units.available_permits() * UNIT
    }

    /// Whether a body whose target's last answer was whole may exceed the budget.
    #[cfg(test)]
    pub(super) fn has_overdraft(&self) -> bool {
        self.standing.overdraft.available_permits() == 1
    }

    /// A share that has taken nothing yet.
    pub(super) fn lease(&self, is_on_probation: bool) -> Lease {
        let pool = if is_on_probation { &self.probation } else { &self.standing };
        Lease { pool: pool.clone(), held: None, overdraft: None, bytes: 0, waited: Duration::ZERO }
    }
}

/// A request that one body ends; taken back when dropped, if none has.
struct Recall<'a>(&'a Semaphore);

impl<'a> Recall<'a> {
    fn new(recalls: &'a Semaphore) -> Self {
        recalls.add_permits(1);
        Self(recalls)
    }
}

impl Drop for Recall<'_> {
    fn drop(&mut self) {
        // If its own permit was used, it takes that of another waiting body, which adds one again soon.
        self.0.forget_permits(1);
    }
}

/// One body's share of the budget; given back when dropped.
pub(super) struct Lease {
    pool: Pool,
    held: Option<OwnedSemaphorePermit>,
    overdraft: Option<Overdraft>,
    bytes: usize,
    /// How long its agent has kept it waiting while it held a share.
    waited: Duration,
}

/// The right to exceed a part of the budget.
struct Overdraft {
    permit: OwnedSemaphorePermit,
    since: Instant,
}

impl Lease {
    /// By when the body must have ended, if it exceeds its part of the budget.
    pub(super) fn ends_at(&self) -> Option<Instant> {
        self.overdraft.as_ref().map(|overdraft| overdraft.since + OVERDRAFT_TIME)
    }

    /// Waits until the body may take `bytes` in all. The wait ends with the request's own timeout.
    pub(super) async fn cover(&mut self, bytes: usize) -> Result<(), Failure> {
        self.bytes = self.bytes.max(bytes);
        // One that needs more than there is waits until no other has anything.
        let needed = self.bytes.saturating_sub(FREE).div_ceil(UNIT).min(self.pool.all);
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let Some(missing) = needed.checked_sub(held).filter(|missing| *missing > 0) else {
            return Ok(());
        };
        if self.overdraft.is_some() {
            // What it may take has a limit of its own: `collector.max_body`.
            return Ok(());
        }
        let closed = || Failure {
            reason: FailureReason::TooLarge,
            detail: "larger than the whole byte budget".into(),
        };
        let units = u32::try_from(missing).map_err(|_| closed())?;
        let mut units = pin!(self.pool.units.clone().acquire_many_owned(units));
        let mut overdraft = pin!(self.pool.overdraft.clone().acquire_owned());
        let permit = loop {
            tokio::select! {
                biased;
                permit = &mut units => break permit.map_err(|_| closed())?,
                permit = &mut overdraft => {
                    let permit = permit.map_err(|_| closed())?;
                    self.overdraft = Some(Overdraft { permit, since: Instant::now() });
                    return Ok(());
                }
                () = self.pool.recall_one() => {}
            }
        };
        match &mut self.held {
            Some(held) => held.merge(permit),
            None => self.held = Some(permit),
        }
        Ok(())
    }

    /// The result of `receive`, which waits for the agent's next bytes. A failure if the agent has kept its body waiting for more than
    /// [`PATIENCE`] in all, and another body waits for the memory that this one holds.
    pub(super) async fn receive<T>(
        &mut self,
        receive: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        if self.held.is_none() || self.overdraft.is_some() {
            return receive.await;
        }
        let begun = Instant::now();
        let result = tokio::select! {
            biased;
            received = receive => received,
            () = self.pool.recalled(PATIENCE.saturating_sub(self.waited)) => Err(Failure {
                reason: FailureReason::Stalled,
                detail: format!(
                    "the agent kept its answer waiting for {} in all, while others waited for the memory of it (collector.byte_budget)",
                    humantime::format_duration(PATIENCE)
                ),
            }),
        };
        self.waited += begun.elapsed();
        result
    }
}

/// What a report holds of the byte budget; given back when dropped. Kept until its records are taken in, so that many large answers
/// at once wait on their nodes, and not here.
#[derive(Debug, Default)]
pub struct Share {
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
