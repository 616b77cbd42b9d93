//! Asks every target once per round, and passes each answer on as it arrives.
//!
//! A slow, dead, hostile or flooding target costs itself only. It holds one of `collector.concurrency` places for about a second,
//! then one of as many slow places until `collector.timeout`. It also holds memory within `collector.max_body` and the byte budget that all
//! bodies share. Of its answer no more than `collector.max_read` is read. Nothing waits for the slowest target. A target that keeps
//! failing is asked less often, but never forgotten, and competes for places and bytes only with others that fail. Large answers that do
//! not fit into a round take turns (`reading.rs`).

mod body;
mod budget;
mod client;
mod connection;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod health;
mod http;
mod lane;
mod reading;
mod round;
mod unpack;

use procscan_core::report::Report;

pub(crate) use self::budget::Share;
pub(crate) use self::client::{Client, ClientOptions};
pub(crate) use self::round::{Cadence, Collector};
use crate::config::PROBATION_SHARE;

/// The most bytes of an answer that is decoded in the task that waits for it: less than a millisecond of work.
pub(crate) const SMALL_ANSWER: usize = 64 << 10;

/// The reports of the collector.
#[derive(Debug)]
pub(crate) enum Observation {
    /// The report of one target, and its share of the byte budget, which is held until the records are taken in.
    Report(Report, Share),
    /// Every target of a round has been asked, and has answered or failed.
    RoundDone(Round),
}

/// One pass over all targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Round {
    /// Counted from 1.
    pub(crate) number: u64,
    /// Targets that were asked.
    pub(crate) asked: usize,
    /// Targets that gave a whole answer.
    pub(crate) answered: usize,
    /// Targets that gave no answer, or a part of one.
    pub(crate) failed: usize,
    /// Targets that were not asked, because they keep failing or the last request still runs.
    pub(crate) skipped: usize,
    /// How long it took.
    pub(crate) took: std::time::Duration,
    /// How long after their time targets were asked, on average.
    pub(crate) lag: std::time::Duration,
}
