//! How much of large answers is read in a round.
//!
//! Text beyond the limits of a record is read all the same, because records follow it. That takes time, and a node can send without end. So each
//! answer has a limit (`collector.max_read`), and all large answers of a round have a budget together. The first part of every answer
//! ([`ALWAYS_READ`]) counts in no budget.
//!
//! A target whose answers were large lately has a part of the budget reserved for its next answer. If the budget is too small for
//! all of these targets, it is reserved for those that have waited longest. Bytes that are not reserved, and the rest of a reservation
//! when its answer ends, are free for any answer. An answer that finds no free bytes is used as far as it was read, and is
//! deferred.
//!
//! The budget is as many bytes as were lately decoded in half of `collector.timeout`, up to [`MAX_BUDGET`] times
//! `collector.max_read`. With a larger budget, all answers would be decoded in part until their time is over, and none to its end.
//! A part of it is for targets on probation, so that their answers delay each other only. Each part is enough for one answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use procscan_core::report::{Failure, FailureReason};

/// How many bytes are read of every answer, however many answers are large.
const ALWAYS_READ: usize = 1 << 20;
/// The largest budget of a round, as a multiple of `collector.max_read`.
const MAX_BUDGET: usize = 64;
/// The budget while the speed of decoding is not known, as a multiple of `collector.max_read`.
const FIRST_BUDGET: usize = 16;
/// The least time of decoding from which its speed is computed.
const MIN_DECODING: Duration = Duration::from_millis(50);
/// How many eighths of the budget are for targets on probation.
const PROBATION_EIGHTHS: usize = 1;
/// A deferred answer is expected to be so many times as long as the part that was read. With a larger factor it takes fewer rounds until
/// such an answer is read whole, but more is reserved than it needs.
const EXPECTED_GROWTH: usize = 6;
/// After so many rounds in which its answers were not large, a target has no reservation any more.
const REMEMBERED_ROUNDS: u64 = 8;

/// The bytes that are read of large answers. They are counted on both sides of decompression, and the larger number counts.
#[derive(Debug)]
pub(super) struct Reading {
    /// The most of one answer (`collector.max_read`), in bytes.
    max: usize,
    /// How long an answer may take (`collector.timeout`).
    timeout: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    round: u64,
    /// The targets whose answers were large lately, by address.
    large: BTreeMap<Box<str>, LargeTarget>,
    healthy: LaneBudget,
    probation: LaneBudget,
}

impl State {
    fn part(&mut self, is_on_probation: bool) -> &mut LaneBudget {
        if is_on_probation { &mut self.probation } else { &mut self.healthy }
    }
}

/// The part of the budget that is for targets on probation, or for all others.
#[derive(Debug)]
struct LaneBudget {
    /// How many of 8 bytes it has.
    eighths: usize,
    /// How many bytes of this round are free.
    free: usize,
    decoded: Decoded,
}

impl LaneBudget {
    fn new(eighths: usize) -> Self {
        Self { eighths, free: 0, decoded: Decoded::default() }
    }

    /// Frees the bytes that the part has in a round, of answers that have up to `max` bytes and take up to `timeout`. They are
    /// always enough for one answer.
    fn begin_round(&mut self, max: usize, timeout: Duration) {
        self.free = (self.decoded.budget(max, timeout) / 8).saturating_mul(self.eighths).max(max);
        self.decoded = Decoded { bytes: self.decoded.bytes / 2, time: self.decoded.time / 2 };
    }
}

/// How many bytes of large answers were decoded in which time. Earlier rounds count by half, a quarter and so on.
#[derive(Debug, Default)]
struct Decoded {
    bytes: usize,
    time: Duration,
}

impl Decoded {
    /// How many bytes are decoded in half of `timeout`, as far as it is known, and no more than [`MAX_BUDGET`] times `max`.
    fn budget(&self, max: usize, timeout: Duration) -> usize {
        if self.time < MIN_DECODING {
            return max.saturating_mul(FIRST_BUDGET);
        }
        // Half of the time, because answers do not arrive evenly.
        let bytes = self.bytes as u128 * timeout.as_micros() / 2 / self.time.as_micros();
        usize::try_from(bytes).unwrap_or(usize::MAX).min(max.saturating_mul(MAX_BUDGET))
    }
}

/// A target whose answers are large.
#[derive(Debug)]
struct LargeTarget {
    /// How many bytes its next answer is expected to have.
    expected: usize,
    /// The reservation for its answer in this round, until the answer begins.
    reservation: Option<Reservation>,
    /// The last round in which the target had a reservation or its answer was read whole; before that, the round of its
    /// first large answer. A reservation counts even if it was not used. Otherwise a target that never uses one would
    /// stay first in the order, and others would get none.
    last_served: u64,
    /// The last round in which its answer was large.
    last_large: u64,
}

/// The bytes that are reserved for one answer.
#[derive(Clone, Copy, Debug)]
struct Reservation {
    /// How many bytes beyond [`ALWAYS_READ`].
    bytes: usize,
    /// When the target was served before.
    last_served: u64,
}

impl Reading {
    /// For answers of up to `max` bytes that take up to `timeout`.
    pub(super) fn new(max: usize, timeout: Duration) -> Self {
        let [mut standing, mut probation] = [8 - PROBATION_EIGHTHS, PROBATION_EIGHTHS].map(LaneBudget::new);
        for part in [&mut standing, &mut probation] {
            part.begin_round(max, timeout);
        }
        let state = State { round: 0, large: BTreeMap::new(), healthy: standing, probation };
        Self { max, timeout, state: Mutex::new(state) }
    }

    /// Begins a round. For the address of a target, `asked` returns `None` if the round does not ask it, and otherwise whether it is on
    /// probation.
    pub(super) fn begin_round(&self, asked: impl Fn(&str) -> Option<bool>) {
        let mut state = self.state();
        let State { round, large, healthy: standing, probation } = &mut *state;
        *round += 1;
        for part in [&mut *standing, &mut *probation] {
            part.begin_round(self.max, self.timeout);
        }
        large.retain(|_, large| large.last_large + REMEMBERED_ROUNDS >= *round);
        let mut waiting = Vec::new();
        for (address, large) in large {
            large.reservation = None;
            if let Some(is_on_probation) = asked(address) {
                waiting.push((is_on_probation, large));
            }
        }
        waiting.sort_by_key(|(_, large)| (large.last_served, large.expected));
        for (is_on_probation, large) in waiting {
            let needed = large.expected.saturating_sub(ALWAYS_READ);
            let part = if is_on_probation { &mut *probation } else { &mut *standing };
            if let Some(left) = part.free.checked_sub(needed) {
                part.free = left;
                large.reservation = Some(Reservation { bytes: needed, last_served: large.last_served });
                large.last_served = *round;
            }
        }
    }

    /// An answer of the target with this address begins.
    pub(super) fn begin(self: &Arc<Self>, address: &str, is_on_probation: bool) -> Read {
        let mut state = self.state();
        let reservation = state.large.get_mut(address).and_then(|large| large.reservation.take());
        Read {
            reading: self.clone(),
            address: address.into(),
            is_on_probation,
            round: state.round,
            reserved: reservation.map_or(0, |reservation| reservation.bytes),
            reservation,
            bytes: 0,
            end: ReadEnd::Broken,
        }
    }

    /// How many bytes the next answer of a target is expected to have, if its answers were large lately.
    #[cfg(test)]
    pub(super) fn expected(&self, address: &str) -> Option<usize> {
        self.state().large.get(address).map(|large| large.expected)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much of one answer has been read.
pub(super) struct Read {
    reading: Arc<Reading>,
    address: Box<str>,
    is_on_probation: bool,
    /// The round in which it began.
    round: u64,
    reservation: Option<Reservation>,
    /// How many bytes of the reservation are left.
    reserved: usize,
    /// How many bytes of the answer have been read.
    bytes: usize,
    end: ReadEnd,
}

/// How the reading of an answer has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReadEnd {
    /// All of it was read.
    Whole,
    /// So many bytes of it were used, and the rest has to wait.
    Deferred(usize),
    /// It has more than `collector.max_read`.
    TooLarge,
    /// By a failure, or not yet.
    Broken,
}

impl Read {
    /// How many bytes of the answer may be read at present, those that were read included.
    pub(super) fn most(&self) -> usize {
        let free = self.reading.state().part(self.is_on_probation).free;
        let most = self.bytes.max(ALWAYS_READ).saturating_add(self.reserved).saturating_add(free);
        most.min(self.reading.max)
    }

    /// Notes that `bytes` of the answer have been read in all. Fails if that is more than [`Self::most`].
    pub(super) fn note(&mut self, bytes: usize) -> Result<(), Failure> {
        let most = self.most();
        if let Some(more) = bytes.checked_sub(self.bytes.max(ALWAYS_READ)) {
            let from_free = more.saturating_sub(self.reserved);
            self.reserved = self.reserved.saturating_sub(more);
            let mut state = self.reading.state();
            let part = state.part(self.is_on_probation);
            part.free = part.free.saturating_sub(from_free);
        }
        self.bytes = self.bytes.max(bytes);
        if bytes <= most { Ok(()) } else { Err(self.cut(most)) }
    }

    /// Notes that to decode so many bytes took so long.
    pub(super) fn note_decoded(&self, bytes: usize, time: Duration) {
        let mut state = self.reading.state();
        let decoded = &mut state.part(self.is_on_probation).decoded;
        decoded.bytes = decoded.bytes.saturating_add(bytes);
        decoded.time = decoded.time.saturating_add(time);
    }

    /// Notes that all of the answer has been read.
    pub(super) fn end(&mut self) {
        self.end = ReadEnd::Whole;
    }

    /// Cuts the answer after `limit` bytes. Returns the failure to report.
    pub(super) fn cut(&mut self, limit: usize) -> Failure {
        if limit < self.reading.max {
            self.end = ReadEnd::Deferred(limit);
            let part = shown(limit);
            let detail = format!(
                "only the first {part} of the answer was read in this round: large answers take turns"
            );
            return Failure { reason: FailureReason::Deferred, detail };
        }
        self.end = ReadEnd::TooLarge;
        let detail = format!("the answer is larger than {} (collector.max_read)", shown(limit));
        Failure { reason: FailureReason::TooLarge, detail }
    }

    /// Returns the failure to report if `failure` came while the answer waited for memory or to be decoded. If the time ran out in
    /// that wait, the answer is deferred, because the target did not cause the wait. A reservation counts all the same, because an
    /// agent can send its answer so late that there is never time for it.
    pub(super) fn defer_if_stalled(&self, failure: Failure) -> Failure {
        if failure.reason != FailureReason::Stalled {
            return failure;
        }
        let detail = format!(
            "the answer waited for memory (collector.byte_budget) or to be decoded, and there was no time left for it; {} of it had been read",
            shown(self.bytes)
        );
        Failure { reason: FailureReason::Deferred, detail }
    }
}

fn shown(bytes: usize) -> String {
    bytesize::ByteSize(bytes as u64).display().iec().to_string()
}

impl Drop for Read {
    fn drop(&mut self) {
        let max = self.reading.max;
        let mut state = self.reading.state();
        if self.round == state.round {
            state.part(self.is_on_probation).free += self.reserved;
        }
        let State { round, large, .. } = &mut *state;
        let used = match self.end {
            ReadEnd::Deferred(most) => most,
            ReadEnd::TooLarge => max,
            ReadEnd::Whole | ReadEnd::Broken => self.bytes,
        };
        let is_large = used > ALWAYS_READ || matches!(self.end, ReadEnd::Deferred(_) | ReadEnd::TooLarge);
        let large = if is_large {
            let first =
                LargeTarget { expected: 0, reservation: None, last_served: *round, last_large: *round };
            let large = large.entry(std::mem::take(&mut self.address)).or_insert(first);
            large.last_large = *round;
            large
        } else if let Some(large) = large.get_mut(&self.address) {
            large
        } else {
            return;
        };
        match (self.end, self.reservation) {
            (ReadEnd::Whole, _) => large.last_served = *round,
            // The reservation was too small, so the target keeps its place in the order.
            (ReadEnd::Deferred(_), Some(reservation)) => {
                large.last_served = reservation.last_served;
            }
            _ => {}
        }
        // A quarter more, so that an answer that grows a little is still read whole.
        let grown = used.saturating_add(used / 4);
        large.expected = match self.end {
            ReadEnd::Whole => grown.max(large.expected / 2),
            ReadEnd::Deferred(most) => most.saturating_mul(EXPECTED_GROWTH).max(large.expected),
            ReadEnd::TooLarge => max,
            ReadEnd::Broken => grown.max(large.expected),
        }
        .min(max);
    }
}

#[cfg(test)]
mod tests;
