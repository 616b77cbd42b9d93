//! `detection`: what counts as evidence.

use std::time::Duration;

use procscan_core::ledger;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{DurationText, duration_text};
use super::{Aggregator, Checks, Collector};

/// What counts as evidence.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Detection {
    /// A record that is seen for the first time is fresh evidence up to this age, by its agent's own clock. Fresh evidence stays
    /// fresh for this time. If three scan intervals of the node are longer, they count instead. Only evidence up to this age leads to
    /// a new block.
    #[serde(with = "DurationText")]
    pub(crate) max_age: Duration,
    /// A violation clears after its node has answered for this time, and at least for six of its scans, without fresh
    /// evidence of it. Answers that say nothing of the violation do not count.
    #[serde(with = "DurationText")]
    pub(crate) clear_after: Duration,
    /// The scan interval that the aggregator assumes for an agent until the agent's records show it. Until
    /// then nothing of its node clears before the node has answered for this time and one round.
    #[serde(with = "DurationText")]
    pub(crate) assumed_scan_interval: Duration,
    /// The time to wait for a node that is silent, or whose answers say nothing of a violation. In the second case only
    /// the time counts in which the node answers. It is at least `clear_after`.
    #[serde(with = "DurationText")]
    pub(crate) unreachable_limit: Duration,
    /// An App that offends again within this time after its incident has ended continues that incident.
    #[serde(with = "DurationText")]
    pub(crate) same_incident: Duration,
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
    pub(super) fn check(&self, checks: &mut Checks) {
        let second = Duration::from_secs(1);
        let spans = second..=Duration::from_hours(24 * 30);
        checks.duration("detection.max_age", self.max_age, spans.clone());
        checks.duration("detection.clear_after", self.clear_after, spans.clone());
        let intervals = second..=Duration::from_hours(1);
        checks.duration("detection.assumed_scan_interval", self.assumed_scan_interval, intervals);
        checks.duration("detection.unreachable_limit", self.unreachable_limit, spans.clone());
        checks.duration("detection.same_incident", self.same_incident, spans);
        if self.unreachable_limit < self.clear_after {
            let [shown, least] = [self.unreachable_limit, self.clear_after].map(duration_text);
            let expected = format!("at least detection.clear_after ({least})");
            checks.refuse("detection.unreachable_limit", shown, expected);
        }
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
            // take as long as its timeout.
            fresh_within: round.saturating_mul(2) + collector.timeout.min(round),
            max_keys_per_node: collector.max_violations_per_node,
            max_keys: collector.max_violations,
            cmdline_budget: collector.cmdline_budget,
            ..ledger::Detection::default()
        }
    }
}
