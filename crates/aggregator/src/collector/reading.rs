//! How much of large answers is read in a round.
//!
//! Text that is not kept is read all the same, because records follow it. That takes time, and a node can send without end. So an
//! answer has a limit, and all large answers of a round have a common one. If they do not fit into a round together, they take
//! turns: those that have waited longest are read whole, and of the others only the beginning is read. Answers that are larger than
//! their limit have turns of their own, so that they hold up each other only.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use procscan_core::report::{Failure, FailureReason};

/// How many bytes are read of every answer, however many answers are large.
const ALWAYS_READ: usize = 1 << 20;
/// How many times `collector.max_read` is read of all large answers of a round together.
const LARGEST_PER_ROUND: usize = 16;
/// One in so many of these bytes is for answers that are larger than `collector.max_read`.
const OVERSIZED_SHARE: usize = 8;
/// An answer that was read in part is taken to be so many times as long as that part.
const GROWTH: usize = 6;
/// A target without a large answer for so many rounds is asked like any other.
const REMEMBERED_ROUNDS: u64 = 8;

/// What is read of large answers. Counted on both sides of decompression: the larger number counts.
#[derive(Debug)]
pub(super) struct Reading {
    /// The most of one answer (`collector.max_read`), in bytes.
    max: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    round: u64,
    /// The targets whose answers were large lately, by address.
    large: BTreeMap<Box<str>, Large>,
    /// How many bytes are left in this round for answers that become large in it.
    unassigned: usize,
}

/// What is known of a target whose answers are large.
#[derive(Debug, Default)]
struct Large {
    /// How many bytes its next answer is expected to have.
    expected: usize,
    /// Its last answer that was read up to `collector.max_read` was larger.
    is_oversized: bool,
    /// How many bytes of its answer are read in this round; nothing if it was not yet large when the round began.
    may_read: Option<usize>,
    /// The last round in which all of its answer was read, or `collector.max_read` of it. A target that was given too little keeps its
    /// place in the line.
    last_turn: u64,
    /// The last round in which its answer was large.
    last_seen: u64,
}

impl Reading {
    pub(super) fn new(max: usize) -> Self {
        let state = State { round: 0, large: BTreeMap::new(), unassigned: ordinary(max) };
        Self { max, state: Mutex::new(state) }
    }

    /// An answer of the target with this address, of which nothing is read yet.
    pub(super) fn begin(self: &Arc<Self>, address: &str) -> Read {
        let assigned = self.state().large.get(address).and_then(|large| large.may_read);
        Read { reading: self.clone(), address: address.into(), assigned, bytes: 0, cut: None }
    }

    /// A round begins: what is read in it is assigned to the targets whose answers were large lately.
    pub(super) fn begin_round(&self) {
        let mut state = self.state();
        let State { round, large, unassigned } = &mut *state;
        *round += 1;
        large.retain(|_, large| large.last_seen + REMEMBERED_ROUNDS >= *round);
        let mut waiting: Vec<&mut Large> = large.values_mut().collect();
        waiting.sort_by_key(|large| (large.last_turn, large.expected));
        let oversized = self.max.saturating_mul(LARGEST_PER_ROUND) / OVERSIZED_SHARE;
        *unassigned = ordinary(self.max);
        let mut left_for_oversized = oversized;
        for large in waiting {
            let left = if large.is_oversized { &mut left_for_oversized } else { &mut *unassigned };
            let needed = large.expected.saturating_sub(ALWAYS_READ);
            let has_turn = needed <= *left;
            *left -= if has_turn { needed } else { 0 };
            large.may_read =
                Some(if has_turn { large.expected.max(ALWAYS_READ) } else { ALWAYS_READ }.min(self.max));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many bytes of a round are for answers within `max`.
fn ordinary(max: usize) -> usize {
    let all = max.saturating_mul(LARGEST_PER_ROUND);
    all - all / OVERSIZED_SHARE
}

/// How much of one answer has been read.
pub(super) struct Read {
    reading: Arc<Reading>,
    address: Box<str>,
    /// What is assigned to its target, if anything is.
    assigned: Option<usize>,
    bytes: usize,
    /// How many bytes were used of an answer that has more.
    cut: Option<usize>,
}

impl Read {
    /// How many bytes of the answer may be read at present, those that are read included.
    pub(super) fn most(&self) -> usize {
        let most = self
            .assigned
            .unwrap_or_else(|| self.bytes.max(ALWAYS_READ).saturating_add(self.reading.state().unassigned));
        most.min(self.reading.max)
    }

    /// Notes that `bytes` of the answer have been read, and fails if it may not have more than before.
    pub(super) fn note(&mut self, bytes: usize) -> Result<(), Failure> {
        if bytes <= self.bytes.max(ALWAYS_READ).min(self.reading.max) {
            self.bytes = self.bytes.max(bytes);
            return Ok(());
        }
        let most = self.most();
        if self.assigned.is_none() {
            let more = bytes - self.bytes.max(ALWAYS_READ).min(bytes);
            let mut state = self.reading.state();
            state.unassigned = state.unassigned.saturating_sub(more);
        }
        self.bytes = bytes;
        if bytes <= most { Ok(()) } else { Err(self.cut(most)) }
    }

    /// Notes that the answer is used no further than `most` bytes; returns that as a failure.
    pub(super) fn cut(&mut self, most: usize) -> Failure {
        self.cut = Some(most);
        let shown = |bytes: usize| bytesize::ByteSize(bytes as u64).display().iec().to_string();
        let max = self.reading.max;
        let is_oversized =
            self.reading.state().large.get(&self.address).is_some_and(|large| large.is_oversized);
        if most >= max || is_oversized {
            let detail = format!("the answer is larger than {} (collector.max_read)", shown(max));
            return Failure { reason: FailureReason::TooLarge, detail };
        }
        let detail = format!(
            "{} of the answer were read, because large answers take turns (collector.max_read)",
            shown(most)
        );
        Failure { reason: FailureReason::Deferred, detail }
    }
}

impl Drop for Read {
    fn drop(&mut self) {
        let used = self.cut.unwrap_or(self.bytes);
        if self.cut.is_none() && used <= ALWAYS_READ {
            return;
        }
        let max = self.reading.max;
        let mut state = self.reading.state();
        let round = state.round;
        let large = state.large.entry(std::mem::take(&mut self.address)).or_default();
        large.last_seen = round;
        if self.cut.is_none_or(|most| most >= max) {
            large.last_turn = round;
        }
        large.expected = match self.cut {
            Some(_) => used.saturating_mul(GROWTH).max(large.expected),
            None => used.saturating_add(used / 4),
        }
        .min(max);
        match self.cut {
            Some(most) if most >= max => large.is_oversized = true,
            Some(_) => {}
            None => large.is_oversized = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;
    const MAX: usize = 8 * MIB;

    /// Targets, each with the length of its answer.
    type Fleet<'a> = [(&'a str, usize)];

    /// Each answer as far as it is read, and why no further.
    fn read(reading: &Arc<Reading>, fleet: &Fleet<'_>) -> Vec<Result<(), FailureReason>> {
        let read_one = |(address, bytes): &(&str, usize)| {
            let mut read = reading.begin(address);
            (0..=*bytes)
                .step_by(MIB / 4)
                .try_for_each(|bytes| read.note(bytes))
                .map_err(|failure| failure.reason)
        };
        fleet.iter().map(read_one).collect()
    }

    /// In which rounds each target's answer was read whole.
    fn whole_in(reading: &Arc<Reading>, fleet: &Fleet<'_>, rounds: usize) -> Vec<Vec<usize>> {
        let mut whole = vec![Vec::new(); fleet.len()];
        for round in 0..rounds {
            reading.begin_round();
            for (whole, result) in whole.iter_mut().zip(read(reading, fleet)) {
                if result.is_ok() {
                    whole.push(round);
                }
            }
        }
        whole
    }

    #[test]
    fn an_answer_is_read_up_to_its_limit_and_the_failure_says_so() {
        for max in [MAX, MIB / 2] {
            let reading = Arc::new(Reading::new(max));
            let mut read = reading.begin("a");
            read.note(max).unwrap();
            let failure = read.note(max + 1).unwrap_err();
            assert_eq!(failure.reason, FailureReason::TooLarge);
            assert!(failure.detail.contains("(collector.max_read)"), "{failure:?}");
        }
    }

    /// How many answers of [`MAX`] bytes fit into a round.
    const FIT: usize = 16;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("node-{number}")).collect()
    }

    fn fleet(names: &[String], bytes: usize) -> Vec<(&str, usize)> {
        names.iter().map(|name| (name.as_str(), bytes)).collect()
    }

    #[test]
    fn large_answers_that_fit_into_a_round_are_read_whole_in_each() {
        let reading = Arc::new(Reading::new(MAX));
        let names = names(FIT);
        assert_eq!(whole_in(&reading, &fleet(&names, MAX), 5), vec![vec![0, 1, 2, 3, 4]; FIT]);
    }

    #[test]
    fn large_answers_take_turns_and_each_is_read_whole_again_and_again() {
        let reading = Arc::new(Reading::new(MAX));
        let names = names(5 * FIT);
        for whole in whole_in(&reading, &fleet(&names, 7 * MIB), 40) {
            // Before it is known how long the answers are, some turns are too short.
            assert!(whole[0] < 10 && whole[whole.len() - 1] >= 34, "{whole:?}");
            let mut later = whole.windows(2).filter(|pair| pair[0] >= 10);
            assert!(later.all(|pair| pair[1] - pair[0] <= 6), "{whole:?}");
        }
    }

    #[test]
    fn answers_without_end_hold_up_each_other_only() {
        let reading = Arc::new(Reading::new(MAX));
        let names = names(10 * FIT);
        let mut fleet = fleet(&names, 9 * MIB);
        fleet.extend([("large", 7 * MIB), ("larger", MAX), ("small", MIB / 2)]);
        let whole = whole_in(&reading, &fleet, 40);
        let (endless, others) = whole.split_at(names.len());
        assert!(endless.iter().all(Vec::is_empty));
        // Before it is known which are endless, each of them has a turn.
        for whole in &others[..2] {
            assert_eq!(whole.iter().filter(|round| **round >= 20).count(), 20, "{whole:?}");
        }
        assert_eq!(others[2].len(), 40);
        let results = read(&reading, &fleet);
        let (endless, _) = results.split_at(names.len());
        assert!(endless.iter().all(|result| *result == Err(FailureReason::TooLarge)), "{results:?}");
    }

    #[test]
    fn answers_without_end_take_turns_and_one_that_ends_again_is_like_any_other() {
        let reading = Arc::new(Reading::new(MAX));
        let names = names(6);
        let mut fleet = fleet(&names, 9 * MIB);
        whole_in(&reading, &fleet, 20);
        let mut turns = vec![0; names.len()];
        for _ in 0..9 {
            reading.begin_round();
            for (turns, name) in turns.iter_mut().zip(&names) {
                *turns += usize::from(reading.state().large[name.as_str()].may_read == Some(MAX));
            }
            read(&reading, &fleet);
        }
        // Two of them in each round.
        assert_eq!(turns, [3; 6]);
        fleet[0].1 = 2 * MIB;
        whole_in(&reading, &fleet, 6);
        let is_oversized = |name: &String| reading.state().large[name.as_str()].is_oversized;
        assert_eq!(names.iter().map(is_oversized).collect::<Vec<_>>(), [false, true, true, true, true, true]);
    }

    #[test]
    fn of_those_that_have_waited_equally_long_the_one_that_needs_least_is_first() {
        let reading = Arc::new(Reading::new(MAX));
        let expecting = |expected| Large { expected, ..Large::default() };
        reading.state().large.extend(names(FIT).into_iter().map(|name| (name.into(), expecting(MAX))));
        reading.state().large.insert("small".into(), expecting(2 * MIB));
        reading.begin_round();
        assert_eq!(reading.state().large["small"].may_read, Some(2 * MIB));
        let may_read_all = reading.state().large.values().filter(|large| large.may_read == Some(MAX)).count();
        assert_eq!(may_read_all, FIT - 1);
    }

    #[test]
    fn an_answer_that_waits_for_its_turn_is_read_in_part_and_no_failure_of_the_agent() {
        let reading = Arc::new(Reading::new(MAX));
        let names = names(FIT + 1);
        let results = read(&reading, &fleet(&names, MAX));
        assert_eq!(results[FIT], Err(FailureReason::Deferred));
        assert!(reading.begin("h").note(ALWAYS_READ).is_ok());
        assert!(reading.begin("h").note(ALWAYS_READ + 1).is_err());
    }

    #[test]
    fn a_target_whose_answers_are_small_again_takes_no_turn() {
        let reading = Arc::new(Reading::new(MAX));
        assert_eq!(whole_in(&reading, &[("a", 9 * MIB)], 1), [[0_usize; 0]]);
        assert_eq!(reading.state().large.len(), 1);
        assert_eq!(whole_in(&reading, &[("a", MIB)], 12)[0].len(), 12);
        assert!(reading.state().large.is_empty());
    }
}
