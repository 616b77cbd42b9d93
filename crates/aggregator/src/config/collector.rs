//! `collector`: how the agents are asked.

use std::time::Duration;

use procscan_core::report::Limits;
use serde::Deserialize;

use super::{Problems, values};

/// Targets on probation, whose last answer failed, share one in so many places and one in so many bytes of the budget.
pub(crate) const PROBATION_SHARE: usize = 4;

/// How the agents are asked.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Collector {
    /// How many agents are asked at the same time.
    pub concurrency: usize,
    /// How long a connection may take to be made.
    #[serde(deserialize_with = "values::duration")]
    pub connect_timeout: Duration,
    /// How long an answer may take from the first packet to the last byte, a retry included. Never more than a round.
    #[serde(deserialize_with = "values::duration")]
    pub timeout: Duration,
    /// How many bytes of memory the records of one answer may take. Namespaces share them fairly.
    #[serde(deserialize_with = "values::size")]
    pub max_body: usize,
    /// How many bytes of one answer are read, text that is too long to be kept included. The larger side of decompression counts.
    /// Never less than `max_body`.
    #[serde(deserialize_with = "values::size")]
    pub max_read: usize,
    /// What all bodies in flight may take together.
    #[serde(deserialize_with = "values::size")]
    pub byte_budget: usize,
    /// The most records of one answer. Namespaces share them fairly.
    pub max_records: usize,
    /// The longest command line that is kept.
    #[serde(deserialize_with = "values::size")]
    pub max_cmdline: usize,
    /// How many bytes the command lines of more than 256 bytes may take in all violations together. One node may take a sixteenth of it,
    /// and 32 KiB whatever the others take. A command line that does not fit is cut to 256 bytes.
    #[serde(deserialize_with = "values::size")]
    pub cmdline_budget: usize,
    /// How many violations, those that have cleared lately included, one node may have. Each Pod has one first, and namespaces share the
    /// rest fairly.
    pub max_violations_per_node: usize,
    /// How many violations, those that have cleared lately included, all nodes together may have. Beyond it each node may still have 256,
    /// within `max_violations_per_node`.
    pub max_violations: usize,
    /// For how many rounds at most an agent that keeps failing is left alone.
    pub max_backoff_rounds: u32,
}

impl Default for Collector {
    fn default() -> Self {
        Self {
            concurrency: 256,
            connect_timeout: Duration::from_secs(3),
            timeout: Duration::from_secs(10),
            max_body: 4 << 20,
            max_read: 64 << 20,
            byte_budget: 32 << 20,
            max_records: 1000,
            max_cmdline: 4096,
            cmdline_budget: 16 << 20,
            max_violations_per_node: 4000,
            max_violations: 10_000,
            max_backoff_rounds: 4,
        }
    }
}

impl Collector {
    pub(super) fn check(&self, problems: &mut Problems) {
        let in_range = |value: usize, least: usize, most: usize| (least..=most).contains(&value);
        problems.require(
            in_range(self.concurrency, 2, 8192),
            "collector.concurrency",
            self.concurrency,
            "2 to 8192",
        );
        for (path, value) in
            [("collector.connect_timeout", self.connect_timeout), ("collector.timeout", self.timeout)]
        {
            let allowed = (Duration::from_millis(10)..=Duration::from_mins(5)).contains(&value);
            problems.require(allowed, path, humantime::format_duration(value), "10ms to 5m");
        }
        let (kib, mib) = (1 << 10, 1 << 20);
        let shown = |bytes: usize| bytesize::ByteSize(bytes as u64).display().iec().to_string();
        let (body, budget) = (self.max_body, self.byte_budget);
        problems.require(
            in_range(body, 4 * kib, 256 * mib),
            "collector.max_body",
            shown(body),
            "4KiB to 256MiB",
        );
        problems.require(
            in_range(self.max_read, 64 * kib, 1 << 30),
            "collector.max_read",
            shown(self.max_read),
            "64KiB to 1GiB",
        );
        problems.require(
            budget >= body.saturating_mul(2 * PROBATION_SHARE) && budget >= 8 * mib && budget <= 16 << 30,
            "collector.byte_budget",
            shown(budget),
            // While an answer is decoded, its records take up to a quarter more, and its decoder takes memory too. Nodes whose
            // last answer failed have only a part of the budget: if such an answer does not fit into it, they can't return.
            format!(
                "at least 8MiB, at least {} times collector.max_body ({}), and 16GiB at most",
                2 * PROBATION_SHARE,
                shown(body)
            ),
        );
        problems.require(
            in_range(self.max_records, 1, 100_000),
            "collector.max_records",
            self.max_records,
            "1 to 100000",
        );
        problems.require(
            in_range(self.max_cmdline, 64, mib),
            "collector.max_cmdline",
            shown(self.max_cmdline),
            "64B to 1MiB",
        );
        problems.require(
            self.cmdline_budget <= 16 << 30,
            "collector.cmdline_budget",
            shown(self.cmdline_budget),
            "0B to 16GiB",
        );
        problems.require(
            in_range(self.max_violations_per_node, 1, 1_000_000),
            "collector.max_violations_per_node",
            self.max_violations_per_node,
            "1 to 1000000",
        );
        problems.require(
            in_range(self.max_violations, 1, 10_000_000),
            "collector.max_violations",
            self.max_violations,
            "1 to 10000000",
        );
        // More than a few rounds would make a node's return a secret for too long.
        problems.require(
            self.max_backoff_rounds <= 10,
            "collector.max_backoff_rounds",
            self.max_backoff_rounds,
            "0 to 10",
        );
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
