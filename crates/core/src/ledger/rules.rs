//! The rules of evidence.

use std::time::Duration;

/// The rules of evidence.
#[derive(Clone, Debug)]
pub struct Detection {
    /// How old a record may be at first sight, by its agent's own clock, to count as fresh. Also how long fresh
    /// evidence leaves a violation active. At least 3 learned scan intervals of its node are allowed in any case. But
    /// no new block follows from evidence older than this (see [`crate::policy::Policy::max_age`]).
    pub max_age: Duration,
    /// How long a node has to answer, in sum, without fresh evidence of a violation until it clears. Never less than
    /// 6 learned scan intervals of the node. Answers that are inconclusive about the violation do not count.
    pub clear_after: Duration,
    /// The scan interval that is assumed for an agent until its own is learned. Nothing of its node clears before it
    /// has answered for this time and one `answer_gap`. After a possible restart of the agent this time begins again.
    pub assumed_interval: Duration,
    /// How long to wait for a node without any sign of an answer. Also how long to wait, in answered time, for a node
    /// whose answers are inconclusive about a violation.
    pub unreachable_limit: Duration,
    /// Offending again within this time continues the same incident. Tombstones stay as long.
    pub same_incident: Duration,
    /// The most time that one answer counts for: the collector's round interval.
    pub answer_gap: Duration,
    /// How recent a target's last whole answer must be for its coverage to count as fresh.
    pub fresh_within: Duration,
    /// Violations, tombstones included, that one node may have here. A flood on one node takes no room of another
    /// node until `max_keys` is reached. First each rule in each Pod gets one, and namespaces share the rest fairly.
    pub max_keys_per_node: usize,
    /// Violations, tombstones included, that all nodes together may have. Beyond it each node may still have 256, if
    /// `max_keys_per_node` is not smaller. A violation that several nodes list counts once for each of them.
    pub max_keys: usize,
    /// Of the violations of one node, how many one Pod may have, because further names under one rule add nothing
    /// about its App. The default is more than the 64 accusations that a release lists: a release of more covers the
    /// whole App.
    pub max_keys_per_pod: usize,
    /// Bytes that command lines of more than 256 bytes may take in all violations together. One node may have a
    /// sixteenth of it, or 32 KiB whatever the others have. A command line without room is cut to 256 bytes.
    pub cmdline_budget: usize,
}

impl Default for Detection {
    fn default() -> Self {
        Self {
            max_age: Duration::from_mins(30),
            clear_after: Duration::from_mins(30),
            // The interval in the manifest that ships with the agent.
            assumed_interval: Duration::from_secs(1000),
            unreachable_limit: Duration::from_hours(24),
            same_incident: Duration::from_hours(24),
            answer_gap: Duration::from_mins(1),
            fresh_within: Duration::from_secs(150),
            max_keys_per_node: 4000,
            max_keys: 10_000,
            max_keys_per_pod: 100,
            cmdline_budget: 16 << 20,
        }
    }
}
