//! The counters of events: each part counts its own. [`crate::metrics`] shows them.
//!
//! No label has a value that a tenant chooses, and each label has few values.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// Counters by one label.
pub(crate) type By = Family<[(&'static str, &'static str); 1], Counter>;
/// Counters by several labels, whose values are made at run time from a bounded set.
pub(crate) type ByTexts = Family<Vec<(&'static str, String)>, Counter>;

/// The counters. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters(Arc<Inner>);

impl Deref for Counters {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// What is counted.
#[derive(Debug)]
pub(crate) struct Inner {
    /// Rounds that are done.
    pub(crate) rounds: Counter,
    /// How long they took, in seconds.
    pub(crate) round_duration: Histogram,
    /// Requests to agents that gave no whole answer, by the reason.
    pub(crate) target_failures: By,
    /// Requests to agents that have ended.
    pub(crate) target_requests: Counter,
    /// Decisions, by their kind. Those of dry-run are not counted.
    pub(crate) decisions: By,
    /// From the evidence that led to a block to the write of the block, in seconds.
    pub(crate) time_to_block: Histogram,
    /// Brakes that have begun to hold, by the brake.
    pub(crate) brakes: By,
    /// Requests to the API server, by verb, resource and status.
    pub(crate) api_server_requests: ByTexts,
    /// Objects that were to be written, by their kind and what came of it.
    pub(crate) output_writes: ByTexts,
    /// Incidents that were to be persisted, by what came of it.
    pub(crate) state_writes: By,
    /// Answers of the HTTP API, by their status.
    pub(crate) http_answers: Family<[(&'static str, u64); 1], Counter>,
    /// Connections that found no place, and got an answer only if they asked for a probe.
    pub(crate) connections_beyond: Counter,
    /// Attempts to read the configuration again, by what came of them.
    pub(crate) config_reloads: By,
    /// Attempts to read the certificate again, by what came of them.
    pub(crate) tls_reloads: By,
    /// TLS connections that were not established.
    pub(crate) tls_failures: Counter,
    /// Clients of the stream that were cut off, by the reason.
    pub(crate) stream_cut: By,
    /// Events of the stream.
    pub(crate) stream_events: Counter,
    /// Clients of the stream at present.
    pub(crate) stream_clients: Gauge,
}

/// The buckets of a round's duration, in seconds: from fast rounds of a demo to the longest interval.
const ROUND_BUCKETS: [f64; 12] = [0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 600.0, 3600.0];
/// The buckets of the time to block, in seconds.
const BLOCK_BUCKETS: [f64; 12] = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0];

impl Default for Inner {
    fn default() -> Self {
        Self {
            rounds: Counter::default(),
            round_duration: Histogram::new(ROUND_BUCKETS),
            target_failures: By::default(),
            target_requests: Counter::default(),
            decisions: By::default(),
            time_to_block: Histogram::new(BLOCK_BUCKETS),
            brakes: By::default(),
            api_server_requests: ByTexts::default(),
            output_writes: ByTexts::default(),
            state_writes: By::default(),
            http_answers: Family::default(),
            connections_beyond: Counter::default(),
            config_reloads: By::default(),
            tls_reloads: By::default(),
            tls_failures: Counter::default(),
            stream_cut: By::default(),
            stream_events: Counter::default(),
            stream_clients: Gauge::default(),
        }
    }
}

impl Inner {
    /// A round that is done.
    pub(crate) fn round(&self, took: Duration) {
        self.rounds.inc();
        self.round_duration.observe(took.as_secs_f64());
    }

    /// Incidents that were to be persisted.
    pub(crate) fn state_written(&self, written: usize, failed: usize) {
        for (result, count) in [("written", written), ("failed", failed)] {
            self.state_writes.get_or_create(&[("result", result)]).inc_by(count as u64);
        }
    }

    /// An object that was to be written.
    pub(crate) fn output_write(&self, kind: &str, result: WriteResult) {
        let labels = vec![("kind", kind.to_owned()), ("result", result.as_str().to_owned())];
        self.output_writes.get_or_create(&labels).inc();
    }
}

/// Counts one event with this label.
pub(crate) fn count(counter: &By, label: &'static str, value: &'static str) {
    counter.get_or_create(&[(label, value)]).inc();
}

/// What came of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteResult {
    Written,
    Failed,
}

impl WriteResult {
    fn as_str(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::Failed => "failed",
        }
    }
}
