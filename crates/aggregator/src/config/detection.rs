//! `detection`: what counts as evidence.

use std::time::Duration;

use procscan_core::ledger;
use serde::Deserialize;

use super::{Aggregator, Collector, Problems, values};

/// What counts as evidence.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Detection {
    /// How old a record may be at first sight, by its agent's own clock, and how long fresh evidence stays fresh; at
    /// least three scans of its node. No new block follows from older evidence, however seldom the node scans.
    #[serde(deserialize_with = "values::duration")]
    pub max_age: Duration,
    /// How long a node has to answer without fresh evidence until a violation clears; at least six of its scans.
    /// Answers that say nothing of the violation do not count.
    #[serde(deserialize_with = "values::duration")]
    pub clear_after: Duration,
    /// The scan interval that is assumed for an agent until its own is learned from its records. Nothing of its node
    /// clears before it has answered for this time and one round.
    #[serde(deserialize_with = "values::duration")]
    pub assumed_scan_interval: Duration,
    /// How long to wait for a node from which nothing of an answer comes. And how long to wait, in answered time, for a
    /// node whose answers say nothing of a violation.
    #[serde(deserialize_with = "values::duration")]
    pub unreachable_limit: Duration,
    /// Offending again within this time continues the same incident.
    #[serde(deserialize_with = "values::duration")]
    pub same_incident: Duration,
}

impl Default for Detection {
    fn default() -> Self {
        let rules = ledger::Detection::default();
        Self {
            max_age: rules.max_age,
            clear_after: rules.clear_after,
            assumed_scan_interval: rules.assumed_interval,
            unreachable_limit: rules.unreachable_limit,
            same_incident: rules.same_incident,
        }
    }
}

impl Detection {
    pub(super) fn check(&self, problems: &mut Problems) {
        let longest = Duration::from_hours(24 * 30);
        for (path, value) in [
            ("detection.max_age", self.max_age),
            ("detection.clear_after", self.clear_after),
            ("detection.unreachable_limit", self.unreachable_limit),
            ("detection.same_incident", self.same_incident),
        ] {
            let allowed = (Duration::from_secs(1)..=longest).contains(&value);
            problems.require(allowed, path, humantime::format_duration(value), "1s to 30days");
        }
        problems.require(
            (Duration::from_secs(1)..=Duration::from_hours(1)).contains(&self.assumed_scan_interval),
            "detection.assumed_scan_interval",
            humantime::format_duration(self.assumed_scan_interval),
            "1s to 1h",
        );
        problems.require(
            self.unreachable_limit >= self.clear_after,
            "detection.unreachable_limit",
            humantime::format_duration(self.unreachable_limit),
            format!("at least detection.clear_after ({})", humantime::format_duration(self.clear_after)),
        );
    }

    pub(super) fn rules(&self, aggregator: &Aggregator, collector: &Collector) -> ledger::Detection {
        let round = aggregator.scan_interval;
        ledger::Detection {
            max_age: self.max_age,
            clear_after: self.clear_after,
            assumed_interval: self.assumed_scan_interval,
            unreachable_limit: self.unreachable_limit,
            same_incident: self.same_incident,
            answer_gap: round,
            // Two rounds may pass between the answers of a target whose offset is early and then late, and an answer may
            // take as long as it is allowed to.
            fresh_within: round.saturating_mul(2) + collector.timeout.min(round),
            max_keys_per_node: collector.max_violations_per_node,
            max_keys: collector.max_violations,
            cmdline_budget: collector.cmdline_budget,
            ..ledger::Detection::default()
        }
    }
}
