//! Asks every target once per round, and hands each answer on as it arrives.
//!
//! A slow, dead, hostile or flooding target costs itself only. It holds one of `collector.concurrency` places for about a second,
//! then one of as many beside them until `collector.timeout`. It also holds memory within `collector.max_body` and the byte budget that all
//! bodies share. Of its answer no more than `collector.max_read` is read. Nothing waits for the slowest target. A target that keeps
//! failing is asked less often, but never forgotten, and competes for places and bytes only with others that fail. Large answers that do
//! not fit into a round take turns (`reading.rs`).

mod body;
mod budget;
mod client;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod health;
mod http;
mod reading;
mod round;
mod sockets;
mod unpack;

use procscan_core::report::Report;

pub use self::budget::Share;
pub use self::client::{Client, ClientOptions};
pub use self::round::{Cadence, Collector};

/// One in so many places, and in so many bytes of the budget, is for targets on probation: those whose last answer failed.
pub(crate) const PROBATION_SHARE: usize = 4;

/// The most bytes of an answer that is decoded where it is waited for: less than a millisecond of work.
pub const SMALL_ANSWER: usize = 64 << 10;

/// What the collector tells.
#[derive(Debug)]
pub enum Observation {
    /// One target's answer, or why there is none; and what it holds of the byte budget until it is taken in.
    Report(Report, Share),
    /// Every target of a round has been asked, and has answered or failed.
    RoundDone(Round),
}

/// One pass over all targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Counted from 1.
    pub number: u64,
    /// Targets that were asked.
    pub asked: usize,
    /// Targets that gave a whole answer.
    pub answered: usize,
    /// Targets that did not.
    pub failed: usize,
    /// Targets that were left alone, because they keep failing, or were still being asked.
    pub skipped: usize,
    /// How long it took.
    pub took: std::time::Duration,
    /// How long after their time targets were asked, on average: what the collector lags behind its schedule.
    pub lag: std::time::Duration,
}
