//! The write permit of one term.
//!
//! It ends by the clock and not by a message. So a process that was frozen finds that the permit has ended before any
//! of its tasks can report that.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// A deadline that has passed at any time.
const DEADLINE_PASSED: u64 = 0;
/// A deadline that no clock reaches.
const NO_DEADLINE: u64 = u64::MAX;

/// The right to write in one term. Its clones share one deadline, which only the election advances. A lost permit
/// stays lost: a new term has a new permit.
#[derive(Clone, Debug)]
pub struct WritePermit {
    term: Arc<Term>,
}

#[derive(Debug)]
struct Term {
    number: u64,
    identity: String,
    began: Instant,
    /// The number that this leader writes into objects: that of its term, or a greater one if objects have greater ones
    /// already.
    rank: AtomicU64,
    /// In nanoseconds since `began`.
    deadline: AtomicU64,
    /// Wakes the tasks that wait for the end of a term that ends before its deadline.
    ended: CancellationToken,
}

impl WritePermit {
    /// A permit that never ends, for a process without a Lease.
    pub fn always() -> Self {
        Self::of(0, "alone", Instant::now(), NO_DEADLINE)
    }

    /// A permit that has ended.
    pub(crate) fn none() -> Self {
        Self::of(0, "none", Instant::now(), DEADLINE_PASSED)
    }

    /// The permit of a term that lasts for `lasts` from the moment before it was requested.
    pub(crate) fn begin(number: u64, identity: &str, asked: Instant, lasts: Duration) -> Self {
        Self::of(number, identity, asked, nanos(lasts))
    }

    /// A permit that lasts until `end` is called.
    #[cfg(test)]
    pub(crate) fn of_term(number: u64, identity: &str) -> Self {
        Self::of(number, identity, Instant::now(), NO_DEADLINE)
    }

    fn of(number: u64, identity: &str, began: Instant, deadline: u64) -> Self {
        let identity = identity.to_owned();
        let (deadline, ended) = (AtomicU64::new(deadline), CancellationToken::new());
        let rank = AtomicU64::new(number);
        Self { term: Arc::new(Term { number, identity, began, rank, deadline, ended }) }
    }

    /// Whether the holder may write now. Reads the clock itself, so no task has to run first for the answer to be
    /// true.
    pub fn holds(&self) -> bool {
        // A caller that finds the deadline passed ends the permit for all clones. So an extension that is under way
        // comes too late.
        let end = |deadline| (self.elapsed() >= deadline).then_some(DEADLINE_PASSED);
        self.term.deadline.fetch_update(Ordering::AcqRel, Ordering::Acquire, end).is_err()
    }

    /// Whether both are permits of the same term.
    pub(crate) fn is_same_term(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.term, &other.term)
    }

    /// The number of the term: the Lease's `leaseTransitions`; 0 without a Lease.
    pub(crate) fn term(&self) -> u64 {
        self.term.number
    }

    /// The identity of the leader: the Lease's `holderIdentity`.
    pub(crate) fn identity(&self) -> &str {
        &self.term.identity
    }

    /// The mark that this leader writes into objects; see `WritePermit::is_later`.
    pub fn mark(&self) -> String {
        format!("{}{IN_TERM}{}", self.identity(), self.term.rank.load(Ordering::Acquire))
    }

    /// Whether `mark` is that of a later leader. A text without a number is no mark.
    pub(crate) fn is_later(&self, mark: &str) -> bool {
        rank_of(mark).is_some_and(|rank| rank >= self.term.rank.load(Ordering::Acquire))
            && mark != self.mark()
    }

    /// Ranks this leader after the leaders whose `marks` the objects have at the beginning of a term. There are marks
    /// of later terms if the Lease was deleted and its terms are counted anew, or if another replica has taken over.
    /// So this waits first: if the permit is renewed meanwhile, no other replica has taken over.
    pub(crate) async fn rank_after<'a>(&self, marks: impl Iterator<Item = &'a str>) {
        let Some(last) = marks.filter(|mark| self.is_later(mark)).filter_map(rank_of).max() else { return };
        if self.while_held(sleep(MAX_UNRENEWED)).await.is_some() {
            self.term.rank.fetch_max(last.saturating_add(1), Ordering::AcqRel);
        }
    }

    /// Ends the term, because this leader must not write: it has found the mark of a later leader, or blocks that it
    /// has not inherited.
    pub(crate) fn give_up(&self) {
        self.end();
    }

    /// Advances the deadline. Returns whether that was in time.
    pub(crate) fn extend(&self, asked: Instant, lasts: Duration) -> bool {
        let later = nanos((asked + lasts).saturating_duration_since(self.term.began));
        let extend = |deadline| (self.elapsed() < deadline).then_some(later.max(deadline));
        self.term.deadline.fetch_update(Ordering::AcqRel, Ordering::Acquire, extend).is_ok()
    }

    /// Ends the term before its deadline.
    pub(crate) fn end(&self) {
        self.term.deadline.store(DEADLINE_PASSED, Ordering::Release);
        self.term.ended.cancel();
    }

    /// The result of `work`, if the permit holds until it is done. The permit is checked each time before the work
    /// goes on. So work that was frozen in the middle does not go on by itself afterwards.
    pub(crate) async fn while_held<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.lost() => None,
            done = work => Some(done),
        }
    }

    async fn lost(&self) {
        let mut ended = pin!(self.term.ended.cancelled());
        while self.holds() {
            let mut alarm = pin!(sleep_until(self.deadline()));
            std::future::poll_fn(|context| {
                if !self.holds() || ended.as_mut().poll(context).is_ready() {
                    return Poll::Ready(());
                }
                alarm.as_mut().poll(context)
            })
            .await;
        }
    }

    /// For how long the holder may still write without another renewal; `None` if the permit never ends.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        let deadline = self.term.deadline.load(Ordering::Acquire);
        (deadline != NO_DEADLINE).then(|| Duration::from_nanos(deadline.saturating_sub(self.elapsed())))
    }

    fn deadline(&self) -> Instant {
        let deadline = Duration::from_nanos(self.term.deadline.load(Ordering::Acquire));
        self.term.began.checked_add(deadline).unwrap_or(self.term.began)
    }

    fn elapsed(&self) -> u64 {
        nanos(self.term.began.elapsed())
    }
}

/// How long a permit that is not renewed lasts at most, by any clock that was not stopped: see [`crate::leader::Timing`].
const MAX_UNRENEWED: Duration = Duration::from_secs(10);

/// The text between the identity and the number in a mark.
const IN_TERM: &str = " in term ";

fn rank_of(mark: &str) -> Option<u64> {
    mark.rsplit_once(IN_TERM)?.1.parse().ok()
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(NO_DEADLINE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_extension_that_was_decided_in_time_comes_too_late_once_the_permit_was_found_ended() {
        let lasts = Duration::from_secs(1);
        let permit = WritePermit::begin(1, "a", Instant::now(), lasts);
        // The two steps of an extension, on another thread, and what happens between them.
        let deadline = permit.term.deadline.load(Ordering::Acquire);
        tokio::time::advance(lasts).await;
        assert!(!permit.holds());
        let later = deadline + nanos(lasts);
        let extended =
            permit.term.deadline.compare_exchange(deadline, later, Ordering::AcqRel, Ordering::Acquire);
        assert!(extended.is_err());
        assert!(!permit.holds());
    }
}
