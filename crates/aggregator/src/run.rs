//! The composition root: the only place that knows everyone. Owns start and shutdown.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use procscan_core::ledger::Ledger;
use procscan_core::plan::Plan;
use procscan_core::policy::Inherited;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::{self, Views};
use crate::clock::Clock;
use crate::collector::{Cadence, Client, ClientOptions, Collector};
use crate::config::{Config, DiscoveryMode, OutputMode};
use crate::discovery::{self, Dns, Kubernetes, Polled, Port, Source, TargetSet};
use crate::evidence::Evidence;
use crate::kubernetes::Cluster;
use crate::output::cluster::ClusterOutput;
use crate::output::{self, Directory, Output, OutputStatus};
use crate::policy_task::Decided;
use crate::{ledger_task, policy_task};

/// How many observations may wait for the ledger. A full channel slows the collector down.
const OBSERVATIONS: usize = 256;
/// How many Pods that are gone may wait for the ledger. A full channel slows the looking up down.
const PODS_GONE: usize = 256;
/// How long shutdown may take: well within the 5 s that operators are promised.
const DEADLINE: Duration = Duration::from_secs(4);

/// The running service.
#[derive(Debug)]
pub struct Service {
    address: SocketAddr,
    views: Views,
    sources: CancellationToken,
    serving: CancellationToken,
    /// In the order in which they end: each ends when the one before has, the server when it is told to.
    stages: Vec<Stage>,
}

#[derive(Debug)]
struct Stage {
    name: &'static str,
    task: JoinHandle<()>,
}

/// Everything that leads to a decision: no output, no API.
#[derive(Debug)]
pub struct Pipeline {
    /// What others may read.
    pub views: Views,
    sources: CancellationToken,
    output: watch::Sender<OutputStatus>,
    stages: Vec<Stage>,
}

impl Pipeline {
    /// Starts it. What was blocked before the start comes through `inherited`; nothing is decided before.
    pub fn start(
        config: &Config,
        cluster: Option<&Cluster>,
        inherited: oneshot::Receiver<Vec<Inherited>>,
    ) -> anyhow::Result<Self> {
        let clock = Clock::start();
        let now = clock.now();
        let source = source(config, cluster)?;
        let mut ledger = Ledger::new(config.detection(), now);
        let mut policy = config.policy();
        policy.protected.extend(cluster.and_then(Cluster::own_namespace).map(str::to_owned));
        let (targets_tx, targets) = watch::channel(Arc::new(TargetSet::default()));
        let (observations_tx, observations) = mpsc::channel(OBSERVATIONS);
        let (snapshots_tx, snapshot) = watch::channel(Arc::new(ledger.snapshot(now)));
        let (questions_tx, questions) = watch::channel(Arc::default());
        let (facts_tx, facts) = watch::channel(Arc::default());
        let (gone_tx, gone) = mpsc::channel(PODS_GONE);
        let undecided = Decided {
            plan: Plan::empty(policy.mode, now.wall),
            held: Vec::new(),
            disputes: Vec::new(),
            unverified: 0,
            is_answered: false,
            rounds: 0,
        };
        let (decided_tx, decided) = watch::channel(Arc::new(undecided));
        let (output_tx, output) = watch::channel(OutputStatus::default());
        let (evidence_tx, evidence) = watch::channel(None);
        let views = Views { snapshot, decided, targets, evidence, output, clock };

        let sources = CancellationToken::new();
        let collector = Collector::new(cadence(config), Client::new(client(config)), clock, observations_tx);
        let mut stages = vec![
            Stage::spawn(
                "discovery",
                discovery::run(source, config.discovery.refresh, targets_tx, sources.clone()),
            ),
            Stage::spawn("collector", collector.run(views.targets.clone(), sources.clone())),
        ];
        if let Some(cluster) = cluster {
            let evidence = Evidence {
                cluster: cluster.clone(),
                interval: config.aggregator.scan_interval,
                max_service_entries: config.gateway.max_service_entries,
                clock,
            };
            let task = evidence.run(questions, facts_tx, gone_tx, evidence_tx, sources.clone());
            stages.push(Stage::spawn("evidence", task));
        }
        let ledger = ledger_task::run(ledger, clock, observations, views.targets.clone(), gone, snapshots_tx);
        stages.push(Stage::spawn("ledger", ledger));
        let channels = policy_task::Channels {
            inherited,
            snapshots: views.snapshot.clone(),
            facts,
            questions: questions_tx,
            decided: decided_tx,
        };
        stages.push(Stage::spawn("policy", policy_task::run(policy, clock, channels)));
        Ok(Self { views, sources, output: output_tx, stages })
    }

    /// Stops at once: whoever wants to know has read what it has decided.
    pub fn stop(self) {
        self.sources.cancel();
        for stage in self.stages {
            stage.task.abort();
        }
    }
}

/// The cluster, where the configuration needs one.
pub async fn cluster(config: &Config) -> anyhow::Result<Option<Cluster>> {
    if config.needs_cluster() { Ok(Some(Cluster::connect(&config.kubernetes).await?)) } else { Ok(None) }
}

/// Where the objects go.
pub fn output(config: &Config, cluster: Option<&Cluster>) -> anyhow::Result<Output> {
    Ok(match (config.output.mode, cluster) {
        (OutputMode::Cluster, Some(cluster)) => {
            Output::Cluster(Box::new(ClusterOutput::new(cluster.clone())))
        }
        (OutputMode::Cluster, None) => anyhow::bail!("output.mode: cluster needs a cluster"),
        (OutputMode::Directory, _) => {
            Output::Directory(Directory::open(config.output.directory()).context("output.directory")?)
        }
    })
}

impl Service {
    /// Starts everything. Nothing runs if it fails.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        let cluster = cluster(config).await?;
        let output = output(config, cluster.as_ref())?;
        if let Output::Directory(directory) = &output {
            // A directory that can't be read does not become readable by waiting.
            directory.blocked(&config.settings().gateway)?;
        }
        let wanted = SocketAddr::new(config.aggregator.address, config.aggregator.port);
        let listener =
            TcpListener::bind(wanted).await.with_context(|| format!("can't listen on {wanted}"))?;
        let address = listener.local_addr()?;
        let (inherited_tx, inherited) = oneshot::channel();
        let Pipeline { views, sources, output: status, mut stages } =
            Pipeline::start(config, cluster.as_ref(), inherited)?;
        let serving = CancellationToken::new();
        let interval = config.aggregator.scan_interval;
        let output =
            output::run(output, config.settings(), interval, inherited_tx, views.decided.clone(), status);
        stages.push(Stage::spawn("output", output));
        let api = api::serve(listener, api::router(views.clone()), serving.clone());
        stages.push(Stage::spawn("api", api));
        tracing::info!(%address, "listening");
        Ok(Self { address, views, sources, serving, stages })
    }

    /// Where the HTTP API listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the API reads.
    pub fn views(&self) -> &Views {
        &self.views
    }

    /// Waits until a stage ends by itself, which none should; its name.
    pub async fn broken(&mut self) -> &'static str {
        std::future::poll_fn(|context| {
            for stage in &mut self.stages {
                if std::pin::Pin::new(&mut stage.task).poll(context).is_ready() {
                    return std::task::Poll::Ready(stage.name);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }

    /// Stops in order: no more questions, then what has been answered flows through to the output, then the API.
    pub async fn stop(self) {
        self.sources.cancel();
        let deadline = tokio::time::Instant::now() + DEADLINE;
        let mut late = Vec::new();
        for mut stage in self.stages {
            if stage.name == "api" {
                self.serving.cancel();
            }
            if stage.task.is_finished() {
                continue;
            }
            if tokio::time::timeout_at(deadline, &mut stage.task).await.is_err() {
                stage.task.abort();
                late.push(stage.name);
            }
        }
        if late.is_empty() {
            tracing::info!("stopped");
        } else {
            tracing::warn!(?late, "stopped before everything was done");
        }
    }
}

impl Stage {
    fn spawn(name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { name, task: tokio::spawn(task) }
    }
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
            Source::Polled(Polled::File { path, port })
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
    // An answer that takes longer than a round would meet the next one.
    let timeout = collector.timeout.min(config.aggregator.scan_interval);
    ClientOptions {
        path: config.daemonset.api_path.clone(),
        connect_timeout: collector.connect_timeout.min(timeout),
        timeout,
        max_body: collector.max_body,
        byte_budget: collector.byte_budget,
        limits: config.limits(),
    }
}
