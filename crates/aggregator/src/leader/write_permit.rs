//! The right to write, of one term.
//!
//! It ends by the clock, not by a message: a process that was frozen finds that it has ended before any of its tasks can say so.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// A deadline that has passed whatever time it is.
const DEADLINE_PASSED: u64 = 0;
/// A deadline that no clock gets to.
const NO_DEADLINE: u64 = u64::MAX;

/// The right to write, of one term. Its clones share one deadline, which only the election puts off. Once lost it never comes
/// back: a new term is a new Pen.
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
    /// In nanoseconds since it began.
    deadline: AtomicU64,
    /// Wakes whoever waits for the end of a term that ends before its deadline.
    ended: CancellationToken,
}

impl WritePermit {
    /// A right that nobody else wants, for use without a Lease.
    pub fn always() -> Self {
        Self::of(0, "alone", Instant::now(), NO_DEADLINE)
    }

    /// No right at all.
    pub fn none() -> Self {
        Self::of(0, "nobody", Instant::now(), DEADLINE_PASSED)
    }

    /// A term that lasts so long from the moment before it was asked for.
    pub(super) fn begin(number: u64, identity: &str, asked: Instant, lasts: Duration) -> Self {
        Self::of(number, identity, asked, nanos(lasts))
    }

    /// A right that lasts until `end` is called.
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

    /// Whether one may write now. Reads the clock itself, so no task has to run first for the answer to be true.
    pub fn holds(&self) -> bool {
        // Whoever finds it over makes it so for all: an extension that is on its way comes too late.
        let end = |deadline| (self.elapsed() >= deadline).then_some(DEADLINE_PASSED);
        self.term.deadline.fetch_update(Ordering::AcqRel, Ordering::Acquire, end).is_err()
    }

    /// Which term it is of: the Lease's `leaseTransitions`; 0 without a Lease.
    pub fn term(&self) -> u64 {
        self.term.number
    }

    /// Whose it is: the Lease's `holderIdentity`.
    pub fn identity(&self) -> &str {
        &self.term.identity
    }

    /// The mark that this leader writes into objects; see [`Pen::is_later`].
    pub fn mark(&self) -> String {
        format!("{}{IN_TERM}{}", self.identity(), self.term.rank.load(Ordering::Acquire))
    }

    /// Whether `mark` is that of a later leader. A text without a number is no mark.
    pub fn is_later(&self, mark: &str) -> bool {
        rank_of(mark).is_some_and(|rank| rank >= self.term.rank.load(Ordering::Acquire))
            && mark != self.mark()
    }

    /// Ranks this leader after those whose `marks` objects have at the beginning of a term. Marks of later terms are
    /// there if the Lease was deleted and its terms are counted anew, or if another replica has taken over from this
    /// one. So it waits first: a right that has been renewed meanwhile is ours.
    pub(crate) async fn rank_after<'a>(&self, marks: impl Iterator<Item = &'a str>) {
        let Some(last) = marks.filter(|mark| self.is_later(mark)).filter_map(rank_of).max() else { return };
        if self.while_held(sleep(RENEWED)).await.is_some() {
            self.term.rank.fetch_max(last.saturating_add(1), Ordering::AcqRel);
        }
    }

    /// Ends the term, because a later leader's mark was found.
    pub(crate) fn give_up(&self) {
        self.end();
    }

    /// Puts the deadline off. Whether that was in time.
    pub(super) fn extend(&self, asked: Instant, lasts: Duration) -> bool {
        let later = nanos((asked + lasts).saturating_duration_since(self.term.began));
        let extend = |deadline| (self.elapsed() < deadline).then_some(later.max(deadline));
        self.term.deadline.fetch_update(Ordering::AcqRel, Ordering::Acquire, extend).is_ok()
    }

    /// Ends the term before its deadline.
    pub(super) fn end(&self) {
        self.term.deadline.store(DEADLINE_PASSED, Ordering::Release);
        self.term.ended.cancel();
    }

    /// What `work` comes to, if one may write until it is done. Looked at each time before it goes on: work that was frozen in
    /// the middle must not go on by itself when it thaws.
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

    fn deadline(&self) -> Instant {
        let deadline = Duration::from_nanos(self.term.deadline.load(Ordering::Acquire));
        self.term.began.checked_add(deadline).unwrap_or(self.term.began)
    }

    fn elapsed(&self) -> u64 {
        nanos(self.term.began.elapsed())
    }
}

/// How long a right that is not renewed lasts at most, by any clock that was not stopped: see [`super::Timing`].
const RENEWED: Duration = Duration::from_secs(10);

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
    async fn an_extension_that_was_decided_in_time_comes_too_late_once_somebody_has_found_it_over() {
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
