//! The composition root: the only place that knows everyone. Owns start and shutdown.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use procscan_core::ledger::Ledger;
use procscan_core::plan::Plan;
use procscan_core::policy::Book;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::{self, Views};
use crate::clock::Clock;
use crate::collector::{Cadence, Client, ClientOptions, Collector};
use crate::config::{Config, DiscoveryMode};
use crate::discovery::{self, Dns, Source, TargetSet};
use crate::output::{self, Directory, OutputStatus};
use crate::policy_task::Decided;
use crate::{ledger_task, policy_task};

/// How many observations may wait for the ledger. A full channel slows the collector down.
const OBSERVATIONS: usize = 256;
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

impl Service {
    /// Starts everything. Nothing runs if it fails.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        let clock = Clock::start();
        let now = clock.now();
        let directory = Directory::open(config.output_directory()).context("output.directory")?;
        let inherited = directory.blocked(&config.settings().gateway)?;
        if !inherited.is_empty() {
            tracing::info!(
                apps = inherited.len(),
                "blocked before the start, and until the fleet has answered"
            );
        }
        let wanted = SocketAddr::new(config.aggregator.address, config.aggregator.port);
        let listener =
            TcpListener::bind(wanted).await.with_context(|| format!("can't listen on {wanted}"))?;
        let address = listener.local_addr()?;
        let source = source(config)?;

        let mut ledger = Ledger::new(config.detection(), now);
        let policy = config.policy();
        let (targets_tx, targets) = watch::channel(Arc::new(TargetSet::default()));
        let (observations_tx, observations) = mpsc::channel(OBSERVATIONS);
        let (snapshots_tx, snapshot) = watch::channel(Arc::new(ledger.snapshot(now)));
        let undecided = Decided {
            plan: Plan::empty(policy.mode, now.wall),
            held: Vec::new(),
            disputed: 0,
            unverified: 0,
            rounds: 0,
        };
        let (decided_tx, decided) = watch::channel(Arc::new(undecided));
        let (output_tx, output) = watch::channel(OutputStatus::default());
        let views = Views { snapshot, decided, targets, output, clock };

        let (sources, serving) = (CancellationToken::new(), CancellationToken::new());
        let collector = Collector::new(cadence(config), Client::new(client(config)), clock, observations_tx);
        let stages = vec![
            Stage::spawn(
                "discovery",
                discovery::run(source, config.discovery.refresh, targets_tx, sources.clone()),
            ),
            Stage::spawn("collector", collector.run(views.targets.clone(), sources.clone())),
            Stage::spawn(
                "ledger",
                ledger_task::run(ledger, clock, observations, views.targets.clone(), snapshots_tx),
            ),
            Stage::spawn(
                "policy",
                policy_task::run(
                    Book::inherit(inherited, now),
                    policy,
                    clock,
                    views.snapshot.clone(),
                    decided_tx,
                ),
            ),
            Stage::spawn(
                "output",
                output::run(
                    directory,
                    config.settings(),
                    config.aggregator.scan_interval,
                    views.decided.clone(),
                    output_tx,
                ),
            ),
            Stage::spawn("api", api::serve(listener, api::router(views.clone()), serving.clone())),
        ];
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

fn source(config: &Config) -> anyhow::Result<Source> {
    let port = config.daemonset.api_port;
    Ok(match config.discovery.mode {
        DiscoveryMode::Static => Source::Static(config.discovery.static_targets(port)?),
        DiscoveryMode::File => Source::File { path: config.discovery.file.clone().unwrap_or_default(), port },
        DiscoveryMode::Dns => {
            let at = &config.daemonset;
            let name =
                format!("{}.{}.svc.{}", at.service_name, at.namespace, config.discovery.cluster_domain);
            Source::Dns(Dns { name, port })
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
