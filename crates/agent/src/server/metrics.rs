//! `/metrics`: how the scans go, in Prometheus' text format.
//!
//! The names begin with `procscan_agent_`, so that they differ from those of the other agents, which count other things. All
//! values but the duration are of the last scan. No label is a tenant's text.

use std::{sync::Arc, time::Duration};

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use prometheus_client::{
    encoding::text::encode,
    metrics::{family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::proc::{Partial, Scan, ScanError};

/// From a node without Pods to one whose scan is late.
const BUCKETS: [f64; 10] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 300.0];

/// A label's name and its value.
type OneLabel = [(&'static str, &'static str); 1];

/// The metrics of an agent's scans. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    scans: Family<OneLabel, Histogram, fn() -> Histogram>,
    seen: Gauge,
    matched: Gauge,
    skipped: Family<OneLabel, Gauge>,
    read_errors: Gauge,
    records: Gauge,
    registry: Arc<Registry>,
}

impl Default for Metrics {
    fn default() -> Self {
        let constructor: fn() -> Histogram = || Histogram::new(BUCKETS);
        let scans = Family::new_with_constructor(constructor);
        let (seen, matched, skipped) = (Gauge::default(), Gauge::default(), Family::default());
        let (read_errors, records) = (Gauge::default(), Gauge::default());
        let mut registry = Registry::with_prefix("procscan_agent");
        registry.register_with_unit(
            "scan_duration",
            "How long scans took, by what came of them: a complete list, a list that leaves something out, or none",
            Unit::Seconds,
            scans.clone(),
        );
        registry.register("processes_seen", "Processes on the node", seen.clone());
        registry.register("processes_matched", "Processes that break a rule", matched.clone());
        let help = "Processes that are not judged or not listed, by the reason";
        registry.register("processes_skipped", help, skipped.clone());
        registry.register("read_errors", "Processes that can't be read", read_errors.clone());
        registry.register("records", "Records of the list", records.clone());
        Self { scans, seen, matched, skipped, read_errors, records, registry: Arc::new(registry) }
    }
}

impl Metrics {
    /// Takes the result of a scan.
    pub(super) fn scanned(&self, seen: &Result<Scan, ScanError>, took: Duration) {
        let result = match seen {
            Ok(scan) if scan.left_out.is_empty() => "complete",
            Ok(_) => "partial",
            Err(_) => "none",
        };
        self.scans.get_or_create(&[("result", result)]).observe(took.as_secs_f64());
        match seen {
            Ok(scan) => self.take(scan),
            Err(ScanError::Partial(Partial::Unreadable { count, .. })) => set(&self.read_errors, *count),
            Err(_) => {}
        }
    }

    fn take(&self, scan: &Scan) {
        let left_out = scan.left_out.total();
        set(&self.seen, scan.processes);
        set(&self.matched, scan.matched);
        set(&self.read_errors, scan.unreadable);
        set(&self.records, scan.findings.len());
        for (reason, count) in [
            // Of the platform, or exempt by a rule.
            ("not_of_tenants", scan.not_of_tenants),
            ("unknown_pod", scan.unknown_pods),
            ("unknown_container", scan.doubtful_containers),
            ("deep_control_group", scan.deep_groups),
            ("scan_share", left_out.processes),
            ("list_share", left_out.offenders),
        ] {
            set(&self.skipped.get_or_create(&[("reason", reason)]), count);
        }
    }

    /// All metrics. Without counters OpenMetrics is valid in Prometheus' older format too: the lines that it adds are comments.
    pub(super) fn answer(&self) -> Response {
        let mut text = String::new();
        // Writing to a text does not fail.
        let _ = encode(&mut text, &self.registry);
        let headers =
            [(header::CONTENT_TYPE, "text/plain; version=0.0.4"), (header::CACHE_CONTROL, "no-store")];
        (headers, text).into_response()
    }
}

fn set(gauge: &Gauge, count: usize) {
    gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
}
