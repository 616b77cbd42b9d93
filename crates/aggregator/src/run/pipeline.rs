//! All stages that lead to a decision, without the output and the API.

use std::sync::Arc;

use anyhow::Context;
use procscan_core::ledger::Ledger;
use procscan_core::plan::Plan;
use procscan_core::policy::{ClusterFacts, LookupRequests, Policy};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::stage::Stage;
use crate::clock::Clock;
use crate::cluster_facts::{ClusterFactsStatus, ClusterFactsTask, PodGone};
use crate::collector::{Cadence, Client, ClientOptions, Collector, Observation, SMALL_ANSWER};
use crate::config::{Config, DiscoveryMode, OutputMode};
use crate::counters::Counters;
use crate::decided::{Decided, TakeOver, WrittenNotifications};
use crate::discovery::{self, Dns, Kubernetes, Polled, Port, Source, TargetFile, TargetSet};
use crate::kubernetes::Cluster;
use crate::leader::Leadership;
use crate::output::OutputStatus;
use crate::policy_task::{Journal, PolicyTask};
use crate::reload::ConfigStatus;
use crate::state::{PersistedState, Store};
use crate::tls::TlsStatus;
use crate::views::{ApiServer, Queues, Views};
use crate::{ledger_task, policy_task};

/// How many observations may wait for the ledger. A full channel slows the collector down.
const MAX_QUEUED_OBSERVATIONS: usize = 256;
/// How many Pods that are gone may wait for the ledger. A full channel delays the look-ups.
const MAX_QUEUED_PODS_GONE: usize = 256;
/// All stages that lead to a decision, without the output and the API.
#[derive(Debug)]
pub(crate) struct Pipeline {
    /// The read model.
    pub(crate) views: Views,
    pub(super) sources: CancellationToken,
    pub(super) output: watch::Sender<OutputStatus>,
    pub(super) state_error: watch::Sender<Option<String>>,
    pub(super) lease_error: watch::Sender<Option<String>>,
    pub(super) policy: watch::Sender<Arc<Policy>>,
    pub(super) config: watch::Sender<ConfigStatus>,
    pub(super) tls: watch::Sender<TlsStatus>,
    pub(super) stages: Vec<Stage>,
}

/// All that the pipeline decides with, apart from the agents' reports.
#[derive(Debug)]
pub(crate) struct PipelineInputs {
    /// Where incidents are persisted.
    pub(crate) store: Store,
    /// The persisted state, with the operator commands.
    pub(crate) persisted: watch::Receiver<Arc<PersistedState>>,
    /// Whether this replica leads.
    pub(crate) leadership: watch::Receiver<Leadership>,
    /// Asks the output for the blocks in its objects, at the beginning of a term.
    pub(crate) take_over: mpsc::Sender<TakeOver>,
    /// The notices that the output has written.
    pub(crate) written: watch::Receiver<Arc<WrittenNotifications>>,
    /// What the stages count.
    pub(crate) counters: Counters,
}

impl Pipeline {
    /// Starts the stages. Nothing is decided before this replica leads.
    pub(crate) fn start(
        config: &Config,
        cluster: Option<&Cluster>,
        inputs: PipelineInputs,
    ) -> anyhow::Result<Self> {
        let PipelineInputs { store, persisted, leadership, take_over, written, counters } = inputs;
        let clock = Clock::start();
        let now = clock.now();
        let mut ledger = Ledger::new(config.detection(), now);
        let policy = policy(config, cluster);
        let (channels, source_ends) = SourceChannels::new();
        let SourceEnds { targets, observations, lookups, facts, gone, facts_status } = source_ends;
        let (publisher, snapshots) = ledger_task::snapshots(ledger.snapshot(now), clock);
        let (reminders_tx, reminders) = mpsc::channel(1);
        let undecided = Decided::nothing(Plan::empty(policy.mode, now.wall()));
        let (decided_tx, decided) = watch::channel(Arc::new(undecided));
        let (output_tx, output) = watch::channel(OutputStatus::default());
        let (policy_error_tx, policy_error) = watch::channel(None);
        let (state_error_tx, state_error) = watch::channel(None);
        let (lease_error_tx, lease_error) = watch::channel(None);
        let (policy_tx, policy) = watch::channel(Arc::new(policy));
        let (config_tx, config_status) = watch::channel(ConfigStatus::of(config));
        let (tls_tx, tls) = watch::channel(TlsStatus::default());
        let journal = Journal::new(counters.clone());
        let views = Views {
            snapshots,
            decided,
            targets: targets.clone(),
            cluster_facts: facts_status,
            output,
            api_server: cluster.and_then(|cluster| api_server(config, cluster)),
            persisted: persisted.clone(),
            persist_error: policy_error,
            state_error,
            lease_error,
            leadership: leadership.clone(),
            journal: journal.clone(),
            policy: policy.clone(),
            config: config_status,
            tls,
            queues: Queues::new(&channels.observations),
            clock,
        };

        let sources = CancellationToken::new();
        let mut stages = source_stages(config, cluster, clock, channels, &counters, &sources)?;
        let inbox = ledger_task::Inbox { observations, targets, gone, reminders };
        stages.push(Stage::spawn("ledger", ledger_task::run(ledger, clock, inbox, publisher)));
        let channels = policy_task::Channels {
            leadership,
            persisted,
            take_over,
            reminders: reminders_tx,
            snapshots: views.snapshots.published(),
            progress: views.snapshots.progress(),
            ledger: views.snapshots.clone(),
            facts,
            written,
            lookups,
            decided: decided_tx,
            error: policy_error_tx,
        };
        let retention = config.state.retention;
        let task = PolicyTask { policy, retention, store, clock, journal, counters, channels };
        stages.push(Stage::spawn("policy", task.run()));
        let (output, state_error, lease_error) = (output_tx, state_error_tx, lease_error_tx);
        let (policy, config, tls) = (policy_tx, config_tx, tls_tx);
        Ok(Self { views, sources, output, state_error, lease_error, policy, config, tls, stages })
    }

    /// Stops at once, because the caller has already read the decision.
    pub(crate) fn stop(self) {
        self.sources.cancel();
        for stage in self.stages {
            stage.task.abort();
        }
    }
}

/// The channels of the stages that ask the agents and the cluster.
struct SourceChannels {
    targets: watch::Sender<Arc<TargetSet>>,
    observations: mpsc::Sender<Observation>,
    lookups: watch::Receiver<Arc<LookupRequests>>,
    facts: watch::Sender<Arc<ClusterFacts>>,
    gone: mpsc::Sender<PodGone>,
    facts_status: watch::Sender<ClusterFactsStatus>,
}

/// The ends of [`SourceChannels`] that the other parts of the service have.
struct SourceEnds {
    targets: watch::Receiver<Arc<TargetSet>>,
    observations: mpsc::Receiver<Observation>,
    lookups: watch::Sender<Arc<LookupRequests>>,
    facts: watch::Receiver<Arc<ClusterFacts>>,
    gone: mpsc::Receiver<PodGone>,
    facts_status: watch::Receiver<ClusterFactsStatus>,
}

impl SourceChannels {
    fn new() -> (Self, SourceEnds) {
        let (targets_tx, targets) = watch::channel(Arc::new(TargetSet::default()));
        let (observations_tx, observations) = mpsc::channel(MAX_QUEUED_OBSERVATIONS);
        let (lookups, lookups_rx) = watch::channel(Arc::default());
        let (facts_tx, facts) = watch::channel(Arc::default());
        let (gone_tx, gone) = mpsc::channel(MAX_QUEUED_PODS_GONE);
        let (facts_status_tx, facts_status) = watch::channel(ClusterFactsStatus::default());
        let channels = Self {
            targets: targets_tx,
            observations: observations_tx,
            lookups: lookups_rx,
            facts: facts_tx,
            gone: gone_tx,
            facts_status: facts_status_tx,
        };
        (channels, SourceEnds { targets, observations, lookups, facts, gone, facts_status })
    }
}

/// Starts the stages that ask the agents and the cluster.
fn source_stages(
    config: &Config,
    cluster: Option<&Cluster>,
    clock: Clock,
    channels: SourceChannels,
    counters: &Counters,
    cancel: &CancellationToken,
) -> anyhow::Result<Vec<Stage>> {
    let SourceChannels { targets, observations, lookups, facts, gone, facts_status } = channels;
    let source = source(config, cluster)?;
    let collector =
        Collector::new(cadence(config), Client::new(client(config)), clock, observations, counters.clone());
    let collecting = collector.run(targets.subscribe(), cancel.clone());
    let discovery = discovery::run(source, config.discovery.refresh, targets, cancel.clone());
    let mut stages = vec![Stage::spawn("discovery", discovery), Stage::threaded("collector", collecting)?];
    // A service that uses the cluster only to authenticate clients has no right to read Pods.
    if let Some(cluster) = cluster.filter(|_| config.looks_at_pods()) {
        let cluster_facts = ClusterFactsTask {
            cluster: cluster.clone(),
            interval: config.aggregator.scan_interval,
            max_service_entries: config.gateway.max_service_entries,
            clock,
            large: Semaphore::new(1),
        };
        let task = cluster_facts.run(lookups, facts, gone, facts_status, cancel.clone());
        stages.push(Stage::spawn("evidence", task));
    }
    Ok(stages)
}

/// The configured policy. It also protects the namespace that the service runs in.
fn policy(config: &Config, cluster: Option<&Cluster>) -> Policy {
    let mut policy = config.policy();
    policy.protected.extend(cluster.and_then(Cluster::own_namespace).map(str::to_owned));
    policy
}

/// The parts of the service that need the API server.
fn api_server(config: &Config, cluster: &Cluster) -> Option<ApiServer> {
    Some(ApiServer {
        reach: cluster.reach()?.clone(),
        has_lookups: config.looks_at_pods(),
        has_output: config.output.mode == OutputMode::Cluster,
    })
}

fn source(config: &Config, cluster: Option<&Cluster>) -> anyhow::Result<Source> {
    let at = &config.daemonset;
    let port = at.api_port();
    Ok(match config.discovery.mode {
        DiscoveryMode::Kubernetes => Source::Watched(Box::new(Kubernetes {
            cluster: cluster.cloned().context("discovery.mode: kubernetes needs a cluster")?,
            namespace: at.namespace.clone(),
            service: at.service_name.clone(),
            port: match at.port_name() {
                Some(name) => Port::Name(name.to_owned()),
                None => Port::Number(port),
            },
        })),
        DiscoveryMode::Static => Source::Polled(Polled::Static(config.discovery.static_targets(port)?)),
        DiscoveryMode::File => {
            let path = config.discovery.file.clone().unwrap_or_default();
            Source::Polled(Polled::File(TargetFile::new(path, port)))
        }
        DiscoveryMode::Dns => {
            let name =
                format!("{}.{}.svc.{}", at.service_name, at.namespace, config.discovery.cluster_domain);
            Source::Polled(Polled::Dns(Dns { name, port }))
        }
    })
}

fn cadence(config: &Config) -> Cadence {
    Cadence {
        interval: config.aggregator.scan_interval,
        concurrency: config.collector.concurrency,
        max_backoff_rounds: config.collector.max_backoff_rounds,
    }
}

fn client(config: &Config) -> ClientOptions {
    let collector = &config.collector;
    // An answer that takes longer than a round would overlap with the next round.
    let timeout = collector.timeout.min(config.aggregator.scan_interval);
    ClientOptions {
        path: config.daemonset.api_path.clone(),
        connect_timeout: collector.connect_timeout.min(timeout),
        timeout,
        max_read: collector.max_read.max(collector.max_body),
        small: SMALL_ANSWER,
        byte_budget: collector.byte_budget,
        limits: config.limits(),
    }
}
