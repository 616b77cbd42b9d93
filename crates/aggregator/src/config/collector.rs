//! `collector`: how the agents are asked.

use std::ops::RangeInclusive;
use std::time::Duration;

use procscan_core::report::Limits;
use procscan_core::size::{self, SizeText};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Checks;
use super::values::DurationText;

/// Targets on probation, whose last answer failed, share one in so many places and one in so many bytes of the budget.
pub(crate) const PROBATION_SHARE: usize = 4;

/// How many answers of `max_body` must fit into the budget. While an answer is decoded, its records take up to a quarter
/// more, and its decoder takes memory too. Targets on probation have only a part of the budget: if such an answer does not
/// fit into the part, they can't return.
const ANSWERS_IN_BUDGET: usize = 2 * PROBATION_SHARE;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;
const BYTE_BUDGET: RangeInclusive<usize> = 8 * MIB..=16 * GIB;

/// How the agents are asked.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Collector {
    /// The most agents that the collector asks at the same time; slow requests do not count. A request that is not answered after a
    /// second becomes slow: it makes room for another one, and goes on until `collector.timeout`. There are at most as many slow
    /// requests.
    pub(crate) concurrency: usize,
    /// The longest time to connect to an agent.
    #[serde(with = "DurationText")]
    pub(crate) connect_timeout: Duration,
    /// The longest time for one answer, from the first packet to the last byte, a retry included. It is never more than
    /// `aggregator.scan_interval`.
    #[serde(with = "DurationText")]
    pub(crate) timeout: Duration,
    /// The memory that the records of one answer may take. Namespaces share it fairly.
    #[serde(with = "SizeText")]
    pub(crate) max_body: usize,
    /// The most bytes that the collector reads of one answer. Texts that it then cuts count in full, and of a compressed
    /// answer the larger side counts. The collector always reads `max_body`.
    #[serde(with = "SizeText")]
    pub(crate) max_read: usize,
    /// The memory that all answers in flight may take together; one answer may exceed it. It is at least 8 times
    /// `max_body`.
    #[serde(with = "SizeText")]
    pub(crate) byte_budget: usize,
    /// The most records of one answer. Namespaces share them fairly.
    pub(crate) max_records: usize,
    /// The longest command line. The collector cuts longer ones.
    #[serde(with = "SizeText")]
    pub(crate) max_cmdline: usize,
    /// The bytes that the command lines of more than 256 bytes may take in all violations together. One node may take a
    /// sixteenth of them, and 32KiB in any case. A command line that does not fit is cut to 256 bytes.
    #[serde(with = "SizeText")]
    pub(crate) cmdline_budget: usize,
    /// The most violations of one node, those that have cleared lately included. First each rule in each Pod gets one, and
    /// namespaces share the rest fairly.
    pub(crate) max_violations_per_node: usize,
    /// The most violations of all nodes together, those that have cleared lately included. Beyond it each node may still
    /// have 256, within `max_violations_per_node`.
    pub(crate) max_violations: usize,
    /// The most rounds for which the collector leaves out an agent that keeps failing.
    pub(crate) max_backoff_rounds: u32,
}

impl Default for Collector {
    fn default() -> Self {
        Self {
            concurrency: 256,
            connect_timeout: Duration::from_secs(3),
            timeout: Duration::from_secs(10),
            max_body: 4 * MIB,
            max_read: 64 * MIB,
            byte_budget: 32 * MIB,
            max_records: 1000,
            max_cmdline: 4 * KIB,
            cmdline_budget: 16 * MIB,
            max_violations_per_node: 4000,
            max_violations: 10_000,
            max_backoff_rounds: 4,
        }
    }
}

impl Collector {
    pub(super) fn check(&self, checks: &mut Checks) {
        let timeouts = Duration::from_millis(10)..=Duration::from_mins(5);
        let bodies = 4 * KIB..=256 * MIB;
        checks.number("collector.concurrency", self.concurrency, 2..=8192);
        checks.duration("collector.connect_timeout", self.connect_timeout, timeouts.clone());
        checks.duration("collector.timeout", self.timeout, timeouts);
        checks.size("collector.max_body", self.max_body, bodies.clone());
        checks.size("collector.max_read", self.max_read, 64 * KIB..=GIB);
        self.check_budget(bodies.contains(&self.max_body), checks);
        checks.number("collector.max_records", self.max_records, 1..=100_000);
        checks.size("collector.max_cmdline", self.max_cmdline, 64..=MIB);
        checks.size("collector.cmdline_budget", self.cmdline_budget, 0..=16 * GIB);
        checks.number("collector.max_violations_per_node", self.max_violations_per_node, 1..=1_000_000);
        checks.number("collector.max_violations", self.max_violations, 1..=10_000_000);
        // After more than a few rounds, an agent that answers again would go unnoticed for too long.
        checks.number("collector.max_backoff_rounds", self.max_backoff_rounds, 0..=10);
    }

    /// The budget must hold [`ANSWERS_IN_BUDGET`] of the longest answers.
    fn check_budget(&self, is_body_valid: bool, checks: &mut Checks) {
        const PATH: &str = "collector.byte_budget";
        let (least, most) = (*BYTE_BUDGET.start(), *BYTE_BUDGET.end());
        let [shown_least, shown_most, body, budget] =
            [least, most, self.max_body, self.byte_budget].map(size::text);
        checks.takes(PATH, format!("{shown_least} to {shown_most}"));
        let needed = if is_body_valid { self.max_body * ANSWERS_IN_BUDGET } else { 0 };
        if needed <= least && !BYTE_BUDGET.contains(&self.byte_budget) {
            checks.refuse(PATH, budget, format!("{shown_least} to {shown_most}"));
        } else if !(needed..=most).contains(&self.byte_budget) {
            let why = format!("{ANSWERS_IN_BUDGET} times collector.max_body, which is {body}, and more");
            checks.refuse(PATH, budget, format!("{} to {shown_most} ({why})", size::text(needed)));
        }
    }

    pub(super) fn limits(&self) -> Limits {
        Limits {
            records: self.max_records,
            bytes: self.max_body,
            cmdline: self.max_cmdline,
            ..Limits::default()
        }
    }
}
