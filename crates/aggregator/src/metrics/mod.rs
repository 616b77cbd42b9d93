//! `/metrics`: the counters of all parts, and what is true now, read from the read model when it is asked for.
//!
//! No label has a value that a tenant chooses, and each label has few values. The agents own `procscan_scan*`,
//! `procscan_threats_*`, `procscan_label_actions_*` and `procscan_notifications_*`.

mod process;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use procscan_core::names::NodeName;
use procscan_core::snapshot::{Snapshot, State, TargetState, TargetView};
use procscan_core::state::IncidentState;
use procscan_core::time::CompactTimestamp;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use self::process::{Process, as_f64};
pub(crate) use self::text::Format;
use crate::counters::Counters;
use crate::telemetry;
use crate::views::Views;

/// The names of our metrics begin with this.
const PREFIX: &str = "procscan";
/// For how long a target has given no whole answer.
const SILENCES: [(&str, Duration); 3] =
    [("10m", Duration::from_mins(10)), ("1h", Duration::from_hours(1)), ("24h", Duration::from_hours(24))];

/// A gauge with a floating-point value.
type Float = Gauge<f64, std::sync::atomic::AtomicU64>;

/// All that the metrics are made from.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    views: Views,
    counters: Counters,
    /// The time between the beginnings of two rounds.
    interval: Duration,
}

impl Metrics {
    pub(crate) fn new(views: Views, counters: Counters, interval: Duration) -> Self {
        Self { views, counters, interval }
    }

    /// The metrics as of now. `auth_trouble` says why tokens can't be checked.
    pub(crate) async fn write(&self, format: Format, auth_trouble: Option<String>) -> String {
        let published = self.views.snapshots.published().borrow().at;
        let age = self.views.clock.now().since(published);
        let snapshot = self.views.snapshots.fresh().await;
        let mut registry = Registry::default();
        let ours = registry.sub_registry_with_prefix(PREFIX);
        events(ours, &self.counters);
        let mut now = Now { registry: ours, views: &self.views };
        now.nodes(&snapshot, age);
        now.decisions();
        now.evidence();
        now.parts(auth_trouble.as_deref());
        now.service();
        now.gauge(
            "round_interval_seconds",
            "The time between the beginnings of two rounds",
            self.interval.as_secs_f64(),
        );
        of_process(&mut registry);
        let mut text = String::new();
        // Writing to a text does not fail.
        let _ = encode(&mut text, &registry);
        format.write(text)
    }
}

/// What the parts have counted.
fn events(registry: &mut Registry, events: &Counters) {
    of_pipeline(registry, events);
    of_api(registry, events);
    registry.register(
        "config_reloads",
        "Attempts to read the configuration again, by what came of them",
        events.config_reloads.clone(),
    );
    registry.register("alerts", "Log entries with an alert, by the alert", telemetry::alerts());
}

fn of_pipeline(registry: &mut Registry, events: &Counters) {
    registry.register("rounds", "Rounds over all targets that are done", events.rounds.clone());
    let took = "How long a round over all targets took";
    registry.register_with_unit("round_duration", took, Unit::Seconds, events.round_duration.clone());
    registry.register(
        "target_failures",
        "Requests to agents that gave no whole answer, by the reason",
        events.target_failures.clone(),
    );
    let help = "Requests to agents that have ended, whatever came of them";
    registry.register("target_requests", help, events.target_requests.clone());
    registry.register("decisions", "Decisions that took effect, by their kind", events.decisions.clone());
    let took = "From the evidence that led to a block to the write of the block; blocks after a grace or an approval do not count";
    registry.register_with_unit("time_to_block", took, Unit::Seconds, events.time_to_block.clone());
    registry.register("brakes", "Brakes that have begun to hold, by the brake", events.brakes.clone());
    registry.register(
        "api_server_requests",
        "Requests to the API server, by verb, resource and status; none means that there was no answer",
        events.api_server_requests.clone(),
    );
    registry.register(
        "output_writes",
        "Objects that were to be written, by their kind and what came of it",
        events.output_writes.clone(),
    );
    registry.register(
        "state_writes",
        "Incidents that were to be persisted, by what came of it",
        events.state_writes.clone(),
    );
}

fn of_api(registry: &mut Registry, events: &Counters) {
    registry.register(
        "http_answers",
        "Answers of the HTTP API, by their status",
        events.http_answers.clone(),
    );
    registry.register(
        "http_connections_beyond",
        "Connections that found all places taken",
        events.connections_beyond.clone(),
    );
    registry.register(
        "tls_certificate_reloads",
        "Attempts to read the certificate again, by what came of them",
        events.tls_reloads.clone(),
    );
    registry.register(
        "tls_handshake_failures",
        "TLS connections that were not established",
        events.tls_failures.clone(),
    );
    registry.register("stream_clients", "Clients of the stream", events.stream_clients.clone());
    registry.register(
        "stream_clients_cut",
        "Clients of the stream that were cut off, by the reason",
        events.stream_cut.clone(),
    );
    registry.register("stream_events", "Events of the stream", events.stream_events.clone());
}

/// What is true now.
struct Now<'a> {
    registry: &'a mut Registry,
    views: &'a Views,
}

impl Now<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        let gauge = Float::default();
        gauge.set(value);
        self.registry.register(name, help, gauge);
    }

    fn gauges<'v>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: impl IntoIterator<Item = (&'v str, f64)>,
    ) {
        let family = Family::<[(&'static str, String); 1], Float>::default();
        for (value, number) in values {
            family.get_or_create(&[(label, value.to_owned())]).set(number);
        }
        self.registry.register(name, help, family);
    }

    fn nodes(&mut self, snapshot: &Arc<Snapshot>, age: Duration) {
        let coverage = snapshot.coverage;
        let unusable = snapshot.targets.iter().filter(|target| target.state == TargetState::Unusable).count();
        let states =
            [("fresh", coverage.fresh), ("stale", coverage.stale), ("never_seen", coverage.never_seen)];
        self.gauges(
            "targets",
            "Targets that should answer, by how recently they gave a whole answer",
            "state",
            states.map(|(state, count)| (state, number(count))),
        );
        self.gauge(
            "targets_unusable",
            "Targets that answer, but whose answers can't be used; they count as stale or never_seen too",
            number(unusable),
        );
        let now = snapshot.at.wall();
        let is_silent = |target: &&TargetView, longer_than: Duration| {
            target
                .last_answer
                .map(CompactTimestamp::get)
                .is_none_or(|at| now.duration_since(at).unsigned_abs() > longer_than)
        };
        let silent = SILENCES.map(|(name, longer_than)| {
            let count = snapshot.targets.iter().filter(|target| is_silent(target, longer_than)).count();
            // Before the service has run for so long, no target is known to be silent for it.
            let is_known = self.views.clock.uptime() > longer_than;
            (name, if is_known { number(count) } else { 0.0 })
        });
        self.gauges(
            "targets_silent",
            "Targets without a whole answer for longer than this",
            "longer_than",
            silent,
        );
        let states =
            [("active", State::Active), ("unconfirmed", State::Unconfirmed), ("cleared", State::Cleared)];
        let counts = states.map(|(name, state)| (name, number(snapshot.count(state))));
        self.gauges("violations", "Violations, by their state", "state", counts);
        self.gauge(
            "snapshot_age_seconds",
            "Age of the last snapshot of the ledger before this scrape",
            age.as_secs_f64(),
        );
        let idle = self.views.clock.now().since(self.views.snapshots.last_advanced());
        self.gauge(
            "ledger_idle_seconds",
            "Since when the ledger has not looked at the clock",
            idle.as_secs_f64(),
        );
        let rejected = Family::<[(&'static str, String); 1], Counter>::default();
        for (reason, count) in snapshot.rejected.iter() {
            rejected.get_or_create(&[("reason", reason.as_str().to_owned())]).inc_by(count);
        }
        self.registry.register(
            "records_rejected",
            "Records of agents that were refused, by the reason",
            rejected,
        );
    }

    fn decisions(&mut self) {
        let decided = self.views.decided.borrow().clone();
        self.gauge("apps_blocked", "Apps that the plan blocks", number(decided.plan.blocks.len()));
        let releases = decided.held.iter().filter(|held| held.release).count();
        let held = [("block", decided.held.len() - releases), ("release", releases)];
        self.gauges(
            "apps_held",
            "Apps whose block or release a brake holds until an operator approves it",
            "what",
            held.map(|(what, count)| (what, number(count))),
        );
        self.gauge(
            "exemptions_withheld",
            "Exemptions without effect until they are confirmed; known to the leader only",
            number(decided.withheld.len()),
        );
        self.gauge(
            "disputes",
            "Accusations that are not believed, because the Pod does not run on the accusing node",
            number(decided.disputes.len()),
        );
        let nodes: BTreeSet<&NodeName> = decided.disputes.iter().map(|dispute| &dispute.node).collect();
        self.gauge("disputing_nodes", "Nodes that accuse Pods which do not run on them", number(nodes.len()));
        self.gauge(
            "accusations_unverified",
            "Accusations that can't be judged yet",
            number(decided.unverified),
        );
        let persisted = self.views.persisted.borrow().clone();
        let mut counts = STATES.map(|(name, _)| (name, 0_usize));
        for incident in persisted.incidents.values() {
            let state = incident.summary().map(|summary| summary.state);
            for ((_, count), (_, of)) in counts.iter_mut().zip(STATES) {
                *count += usize::from(state == Some(of));
            }
        }
        let counts = counts.map(|(name, count)| (name, number(count)));
        self.gauges("incidents", "Persisted incidents, by their state", "state", counts);
        self.gauge(
            "objects_unreadable",
            "Persisted objects that can't be read",
            number(persisted.unreadable().len()),
        );
        let mode = crate::wire_names::mode_name(self.views.mode());
        let modes = crate::wire_names::MODES.map(|name| (name, flag(name == mode)));
        self.gauges("enforcement_mode", "1 for the mode of enforcement in force", "mode", modes);
    }

    fn evidence(&mut self) {
        let facts = self.views.cluster_facts.borrow().clone();
        let namespaces = [("waiting", facts.waiting), ("late", facts.late), ("heavy", facts.heavy)];
        self.gauges(
            "lookup_namespaces",
            "Namespaces with accusations that have not been judged: all, those that wait too long, and those too large to be looked up with others",
            "what",
            namespaces.map(|(what, count)| (what, number(count))),
        );
        self.gauge(
            "lookup_longest_wait_seconds",
            "The longest wait of an accusation for its look-up",
            facts.longest_wait.as_secs_f64(),
        );
        self.gauge(
            "cluster_watched",
            "Whether the cluster is watched; otherwise accused namespaces are looked up in every round",
            flag(facts.is_watched),
        );
        let queued = self.views.queues.observations();
        self.gauge("queue_reports", "Reports that wait for the ledger", number(queued));
    }

    /// Whether each part works, as `/readyz` says it.
    fn parts(&mut self, auth_trouble: Option<&str>) {
        let troubles = self.views.troubles();
        let parts = troubles.into_iter().map(|(part, trouble)| (part, flag(trouble.is_none())));
        let parts: Vec<(&str, f64)> = parts.chain([("auth", flag(auth_trouble.is_none()))]).collect();
        self.gauges(
            "part_ok",
            "Whether each part of the service works; /readyz says what is wrong",
            "part",
            parts,
        );
        let output = self.views.output.borrow().clone();
        self.gauge(
            "objects_suspended",
            "Objects that an operator keeps the service from writing",
            number(output.suspended.len()),
        );
        let leadership = self.views.leadership.borrow().clone();
        let permit = leadership.permit();
        self.gauge(
            "leader",
            "Whether this replica leads",
            flag(permit.is_some_and(crate::kubernetes::WritePermit::holds)),
        );
        self.gauge(
            "leader_known",
            "Whether this replica knows which one leads",
            flag(self.views.knows_leader()),
        );
        if let Some(left) = permit.and_then(crate::kubernetes::WritePermit::remaining) {
            self.gauge(
                "permit_remaining_seconds",
                "For how long this replica may still write without renewing its Lease",
                left.as_secs_f64(),
            );
        }
        self.gauge(
            "state_complete",
            "Whether the persisted state has been read",
            flag(self.views.persisted.borrow().is_complete),
        );
    }

    fn service(&mut self) {
        let config = self.views.config.borrow().clone();
        self.gauges("config_info", "The configuration in force", "hash", [(config.hash.as_str(), 1.0)]);
        self.gauge(
            "config_reload_success",
            "Whether the file of the configuration was last read without a mistake",
            flag(config.error.is_none()),
        );
        self.gauge(
            "config_loaded_timestamp_seconds",
            "When the configuration in force was read",
            seconds(config.loaded),
        );
        self.gauge(
            "config_keys_need_restart",
            "Keys of the configuration that have changed and need a restart",
            number(config.needs_restart.len()),
        );
        let tls = self.views.tls.borrow().clone();
        if let Some(expires) = tls.expires {
            self.gauge(
                "tls_certificate_expiry_timestamp_seconds",
                "When the certificate of the HTTP API expires",
                seconds(expires),
            );
        }
        self.gauge(
            "tls_reload_success",
            "Whether the files of the certificate were last read without a mistake",
            flag(tls.error.is_none()),
        );
        self.gauges(
            "build_info",
            "The version of the program",
            "version",
            [(env!("CARGO_PKG_VERSION"), 1.0)],
        );
        self.gauge("uptime_seconds", "Since when the service runs", self.views.clock.uptime().as_secs_f64());
    }
}

/// The states of incidents, with their names.
const STATES: [(&str, IncidentState); 6] = [
    ("watched", IncidentState::Watched),
    ("grace", IncidentState::Grace),
    ("held", IncidentState::Held),
    ("blocked", IncidentState::Blocked),
    ("release_held", IncidentState::ReleaseHeld),
    ("ended", IncidentState::Ended),
];

fn of_process(registry: &mut Registry) {
    let process = Process::read();
    let cpu = Counter::<f64, std::sync::atomic::AtomicU64>::default();
    cpu.inc_by(process.cpu_seconds.unwrap_or_default());
    registry.register_with_unit("process_cpu", "User and system CPU time of the process", Unit::Seconds, cpu);
    let mut gauge = |name: &str, help: &str, value: Option<f64>| {
        let Some(value) = value else { return };
        let gauge = Float::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    gauge(
        "process_resident_memory_bytes",
        "Resident memory of the process",
        process.resident_bytes.map(as_f64),
    );
    gauge("process_virtual_memory_bytes", "Virtual memory of the process", process.virtual_bytes.map(as_f64));
    gauge("process_threads", "Threads of the process", process.threads.map(as_f64));
    gauge("process_open_fds", "Open files and sockets of the process", process.open_files.map(as_f64));
    gauge(
        "process_max_fds",
        "The most files and sockets that the process may open",
        process.max_open_files.map(as_f64),
    );
    gauge("process_start_time_seconds", "When the process started", process.started);
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn number(count: usize) -> f64 {
    as_f64(count as u64)
}

fn seconds(at: Timestamp) -> f64 {
    at.as_duration().as_secs_f64()
}
