//! The composition root: the only place that knows all modules. Owns start and shutdown.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use procscan_core::decision::Mode;
use procscan_core::ledger::Ledger;
use procscan_core::plan::Plan;
use procscan_core::state::EnforcementSpec;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::{self, Authenticator, Operators};
use crate::clock::Clock;
use crate::cluster_facts::{ClusterFactsStatus, ClusterFactsTask};
use crate::collector::{Cadence, Client, ClientOptions, Collector, SMALL_ANSWER};
use crate::config::{Config, DiscoveryMode, OutputMode, StateMode};
use crate::discovery::{self, Dns, Kubernetes, Polled, Port, Source, TargetFile, TargetSet};
use crate::kubernetes::Cluster;
use crate::leader::{self, Election, Leadership, Timing, WritePermit};
use crate::output::cluster::ClusterOutput;
use crate::output::{self, Directory, DirectoryError, Output, OutputStatus};
use crate::policy_task::{Decided, Journal, PolicyTask, TakeOver, WrittenNotifications};
use crate::state::cluster::{Objects, Watching};
use crate::state::{ClusterStore, FileStore, OperatorCommands, PersistedState, Store};
use crate::views::{ApiServer, Views};
use crate::{ledger_task, open_files, policy_task};

/// How many observations may wait for the ledger. A full channel slows the collector down.
const OBSERVATIONS: usize = 256;
/// How many files and sockets may be open beside those of clients and agents: outputs, the state, the API server, the reserve.
const OTHER_FILES: usize = 512;
/// How many Pods that are gone may wait for the ledger. A full channel slows the looking up down.
const PODS_GONE: usize = 256;
/// How long shutdown may take: well within the 5 s that operators are promised.
const DEADLINE: Duration = Duration::from_secs(4);

/// How long after the shutdown began the right to write is given back at the latest.
const HAND_OVER: Duration = Duration::from_millis(600);
/// The stage that holds the right to write.
const LEADER: &str = "leader";

/// How many questions of new leaders may wait for the output. A term has one.
const TAKE_OVERS: usize = 1;

/// The running service.
#[derive(Debug)]
pub struct Service {
    address: SocketAddr,
    views: Views,
    sources: CancellationToken,
    /// In the order in which they end: each ends when the one before has, or when it is told to.
    stages: Vec<Stage>,
}

#[derive(Debug)]
struct Stage {
    name: &'static str,
    task: JoinHandle<()>,
    /// Tells it to end, where nothing else does.
    cancel: Option<CancellationToken>,
}

/// Everything that leads to a decision: no output, no API.
#[derive(Debug)]
pub struct Pipeline {
    /// The read model.
    pub views: Views,
    sources: CancellationToken,
    output: watch::Sender<OutputStatus>,
    keeping: watch::Sender<Option<String>>,
    electing: watch::Sender<Option<String>>,
    stages: Vec<Stage>,
}

/// What the pipeline decides with: where decisions are kept, and what is known beside the agents' word.
#[derive(Debug)]
pub struct Footing {
    /// Where incidents are kept.
    pub store: Store,
    /// What is kept, and what operators want.
    pub kept: watch::Receiver<Arc<PersistedState>>,
    /// Whether this replica leads.
    pub leadership: watch::Receiver<Leadership>,
    /// Says what is blocked, at the beginning of a term.
    pub take_over: mpsc::Sender<TakeOver>,
    /// What has been told.
    pub delivered: watch::Receiver<Arc<WrittenNotifications>>,
}

impl Pipeline {
    /// Starts it. Nothing is decided before this replica leads.
    pub fn start(config: &Config, cluster: Option<&Cluster>, footing: Footing) -> anyhow::Result<Self> {
        let Footing { store, kept, leadership, take_over, delivered } = footing;
        let clock = Clock::start();
        let now = clock.now();
        let source = source(config, cluster)?;
        let mut ledger = Ledger::new(config.detection(), now);
        let mut policy = config.policy();
        policy.protected.extend(cluster.and_then(Cluster::own_namespace).map(str::to_owned));
        let (targets_tx, targets) = watch::channel(Arc::new(TargetSet::default()));
        let (observations_tx, observations) = mpsc::channel(OBSERVATIONS);
        let (publisher, snapshots) = ledger_task::snapshots(ledger.snapshot(now), clock);
        let (questions_tx, questions) = watch::channel(Arc::default());
        let (facts_tx, facts) = watch::channel(Arc::default());
        let (gone_tx, gone) = mpsc::channel(PODS_GONE);
        let (memory_tx, memory) = mpsc::channel(1);
        let undecided = Decided::nothing(Plan::empty(policy.mode, now.wall()));
        let (decided_tx, decided) = watch::channel(Arc::new(undecided));
        let (output_tx, output) = watch::channel(OutputStatus::default());
        let (evidence_tx, evidence) = watch::channel(ClusterFactsStatus::default());
        let (trouble_tx, trouble) = watch::channel(None);
        let (keeping_tx, keeping) = watch::channel(None);
        let (electing_tx, electing) = watch::channel(None);
        let journal = Journal::default();
        let views = Views {
            snapshots,
            decided,
            targets,
            cluster_facts: evidence,
            output,
            api_server: cluster.and_then(|cluster| api_server(config, cluster)),
            persisted: kept.clone(),
            policy_error: trouble,
            state_error: keeping,
            lease_error: electing,
            leadership: leadership.clone(),
            journal: journal.clone(),
            configured_mode: config.enforcement.mode,
            clock,
        };

        let sources = CancellationToken::new();
        let collector = Collector::new(cadence(config), Client::new(client(config)), clock, observations_tx);
        let mut stages = vec![
            Stage::spawn(
                "discovery",
                discovery::run(source, config.discovery.refresh, targets_tx, sources.clone()),
            ),
            Stage::threaded("collector", collector.run(views.targets.clone(), sources.clone()))?,
        ];
        // Whoever only asks the cluster who somebody is has no right to look at Pods.
        if let Some(cluster) = cluster.filter(|_| config.looks_at_pods()) {
            let evidence = ClusterFactsTask {
                cluster: cluster.clone(),
                interval: config.aggregator.scan_interval,
                max_service_entries: config.gateway.max_service_entries,
                clock,
                large: Semaphore::new(1),
            };
            let task = evidence.run(questions, facts_tx, gone_tx, evidence_tx, sources.clone());
            stages.push(Stage::spawn("evidence", task));
        }
        let inbox =
            ledger_task::Inbox { observations, targets: views.targets.clone(), gone, reminders: memory };
        stages.push(Stage::spawn("ledger", ledger_task::run(ledger, clock, inbox, publisher)));
        let channels = policy_task::Channels {
            leadership,
            persisted: kept,
            take_over,
            reminders: memory_tx,
            snapshots: views.snapshots.published(),
            progress: views.snapshots.progress(),
            ledger: views.snapshots.clone(),
            facts,
            written: delivered,
            lookups: questions_tx,
            decided: decided_tx,
            error: trouble_tx,
        };
        let retention = config.state.retention;
        let policy = PolicyTask { policy, retention, store, clock, journal, channels };
        stages.push(Stage::spawn("policy", policy.run()));
        Ok(Self { views, sources, output: output_tx, keeping: keeping_tx, electing: electing_tx, stages })
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

/// The Lease by which the replicas agree who writes.
pub(crate) const LEASE: &str = "procscan-aggregator";

/// Where decisions are kept, and who may write.
struct Place {
    store: Store,
    operator_commands: OperatorCommands,
    namespace: Option<String>,
    kept: watch::Receiver<Arc<PersistedState>>,
    watching: Option<(Watching, watch::Sender<Arc<PersistedState>>)>,
    election: Option<Election>,
}

/// The reason of the pause after a damaged state file.
const AFTER_LOSS: &str = "the state file was damaged, and what operators declared and what brakes held is lost with it; before \
    `resume`, look at `incidents --state watched`: each App that it lists and that is still accused may be blocked then; \
    release or exempt those that must not be blocked";

/// The namespace of what is kept, where none is said and we run in none.
const DEFAULT_NAMESPACE: &str = "kube-system";

/// The objects in which decisions are kept.
pub fn objects(config: &Config, cluster: &Cluster) -> Objects {
    let namespace =
        config.state.namespace.as_deref().or(cluster.own_namespace()).unwrap_or(DEFAULT_NAMESPACE);
    Objects::new(cluster.clone(), namespace.to_owned())
}

/// The election of the replica that writes to the cluster, even if the decisions are kept in a file.
fn election(config: &Config, cluster: &Cluster) -> Election {
    Election {
        cluster: cluster.clone(),
        namespace: objects(config, cluster).namespace().to_owned(),
        name: LEASE.to_owned(),
        identity: leader::identity(),
        lease: Timing::default(),
    }
}

async fn state(config: &Config, cluster: Option<&Cluster>) -> anyhow::Result<Place> {
    match (config.state_mode(), cluster) {
        (StateMode::Cluster, Some(cluster)) => {
            let objects = objects(config, cluster);
            let (show, kept) = watch::channel(Arc::default());
            let (watching, relist) = Watching::new(objects.clone());
            Ok(Place {
                kept,
                store: Store::Cluster(Box::new(ClusterStore::new(objects.clone(), Some(relist)))),
                operator_commands: OperatorCommands::Cluster(objects.clone()),
                namespace: Some(objects.namespace().to_owned()),
                watching: Some((watching, show)),
                election: Some(election(config, cluster)),
            })
        }
        (StateMode::Cluster, None) => anyhow::bail!("state.mode: cluster needs a cluster"),
        (StateMode::File, _) => {
            // It is not known any more what operators have released or exempted: no new App is blocked before they have looked.
            // Dry-run blocks none anyway.
            let after_loss = EnforcementSpec {
                mode: Some(Mode::Paused),
                by: Some("procscan-aggregator".to_owned()),
                reason: Some(AFTER_LOSS.to_owned()),
            };
            let after_loss = Some(after_loss).filter(|_| config.policy().mode != Mode::DryRun);
            let store = FileStore::open_with(config.state.directory(), after_loss)
                .await
                .context("state.directory")?;
            Ok(Place {
                kept: store.shown(),
                operator_commands: OperatorCommands::File(store.clone()),
                store: Store::File(store),
                namespace: None,
                watching: None,
                election: cluster.filter(|_| config.needs_lease()).map(|cluster| election(config, cluster)),
            })
        }
    }
}

/// Where the objects go. `open` opens a directory; a caller that only reads passes [`Directory::at`].
pub fn output(
    config: &Config,
    cluster: Option<&Cluster>,
    open: impl FnOnce(&Path) -> Result<Directory, DirectoryError>,
) -> anyhow::Result<Output> {
    Ok(match (config.output.mode, cluster) {
        (OutputMode::Cluster, Some(cluster)) => {
            Output::Cluster(Box::new(ClusterOutput::new(cluster.clone())))
        }
        (OutputMode::Cluster, None) => anyhow::bail!("output.mode: cluster needs a cluster"),
        (OutputMode::Directory, _) => {
            Output::Directory(open(config.output.directory()).context("output.directory")?)
        }
    })
}

impl Service {
    /// Starts everything. Nothing runs if it fails.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        // Beside the agents that are asked as many may linger.
        open_files::raise_limit(api::MAX_CONNECTIONS + 2 * config.collector.concurrency + OTHER_FILES);
        let cluster = cluster(config).await?;
        let mut output = output(config, cluster.as_ref(), |path| Directory::open(path))?;
        if let Output::Directory(directory) = &output {
            // A directory that can't be read does not become readable by waiting.
            directory.check()?;
        }
        let wanted = SocketAddr::new(config.aggregator.address, config.aggregator.port);
        let listener =
            TcpListener::bind(wanted).await.with_context(|| format!("can't listen on {wanted}"))?;
        let address = listener.local_addr()?;
        let (take_over, questions) = mpsc::channel(TAKE_OVERS);
        let (delivered_tx, delivered) = watch::channel(Arc::default());
        let (leadership_tx, leadership) = watch::channel(Leadership::Following { leader: None });
        let place = state(config, cluster.as_ref()).await?;
        if let Output::Directory(directory) = &mut output {
            // Where a Lease says which process writes, its replicas may share the directory.
            let locked = match &place.election {
                Some(Election { cluster, namespace, name, .. }) => {
                    directory.lock_for(cluster, namespace, name)
                }
                None => directory.lock(None),
            };
            locked.context("output.directory")?;
        }
        let operators = Operators {
            commands: place.operator_commands,
            auth: Authenticator::new(config, cluster.as_ref())?,
            namespace: place.namespace,
            brake: config.policy().brake,
        };
        let footing = Footing { store: place.store, kept: place.kept, leadership, take_over, delivered };
        let Pipeline { views, sources, output: status, keeping, electing, mut stages } =
            Pipeline::start(config, cluster.as_ref(), footing)?;
        if let Some(cluster) = cluster {
            stages.push(Stage::spawn("reach", cluster.keep_asking(sources.clone())));
        }
        let interval = config.aggregator.scan_interval;
        let channels = output::Channels {
            take_over: questions,
            decided: views.decided.clone(),
            delivered: delivered_tx,
            status,
        };
        stages.push(Stage::spawn("output", output::run(output, config.settings(), interval, channels)));
        // Those who wrote have ended by now: the right to write is given back, so that another replica takes it at once.
        if let Some((watching, show)) = place.watching {
            let cancel = CancellationToken::new();
            let task = watching.run(show, keeping, cancel.clone());
            stages.push(Stage::until(cancel, "state", task));
        }
        match place.election {
            Some(election) => {
                let cancel = CancellationToken::new();
                let task = election.run(leadership_tx, electing, cancel.clone());
                stages.push(Stage::until(cancel, LEADER, task));
            }
            None => drop(leadership_tx.send_replace(Leadership::Leading(WritePermit::always()))),
        }
        let serving = CancellationToken::new();
        let routers = api::routers(views.clone(), operators, config.api.max_in_flight);
        let api = api::serve(listener, routers, serving.clone());
        stages.push(Stage::until(serving, "api", api));
        tracing::info!(%address, "listening");
        Ok(Self { address, views, sources, stages })
    }

    /// Where the HTTP API listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The read model.
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

    /// Stops in order: no more questions, then what has been answered flows through to the output, then the API. The
    /// right to write is given back in time even if something is still being written, so that another replica can go
    /// on.
    pub async fn stop(self) {
        self.sources.cancel();
        let late = end(self.stages).await;
        if late.is_empty() {
            tracing::info!("stopped");
        } else {
            tracing::warn!(?late, "stopped before everything was done");
        }
    }
}

/// Ends the stages in order. The right to write is given back in time even if something is still being written, so that
/// another replica can go on. Returns the names of the stages that did not end by themselves.
async fn end(stages: Vec<Stage>) -> Vec<&'static str> {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let leader = stages.iter().find(|stage| stage.name == LEADER).and_then(|stage| stage.cancel.clone());
    let hand_over = tokio::spawn(async move {
        tokio::time::sleep(HAND_OVER).await;
        if let Some(leader) = leader {
            leader.cancel();
        }
    });
    let mut late = Vec::new();
    for mut stage in stages {
        if let Some(cancel) = &stage.cancel {
            cancel.cancel();
        }
        if stage.task.is_finished() {
            continue;
        }
        if tokio::time::timeout_at(deadline, &mut stage.task).await.is_err() {
            stage.task.abort();
            late.push(stage.name);
        }
    }
    hand_over.abort();
    late
}

impl Stage {
    fn spawn(name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { name, task: tokio::spawn(task), cancel: None }
    }

    /// On a thread of its own: nothing else delays it, and none of its many tiny tasks wakes another thread.
    fn threaded(
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (done, is_done) = oneshot::channel();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // As a task among those that it starts: to wake what `block_on` itself runs takes a system call each time. A panic has been
            // reported by now, and ends it like anything else.
            let _ = runtime.block_on(runtime.spawn(task));
            // Whoever waits for it may have stopped waiting.
            let _ = done.send(());
        })?;
        // A panic of the thread ends it too.
        Ok(Self::spawn(name, async move { drop(is_done.await) }))
    }

    fn until(
        cancel: CancellationToken,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        Self { cancel: Some(cancel), ..Self::spawn(name, task) }
    }
}

/// What can't be done without the API server.
fn api_server(config: &Config, cluster: &Cluster) -> Option<ApiServer> {
    Some(ApiServer {
        reach: cluster.reach()?.clone(),
        has_evidence: config.looks_at_pods(),
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
    // An answer that takes longer than a round would meet the next one.
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

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_right_to_write_is_given_back_within_a_second_while_something_is_still_being_written() {
        let cancel = CancellationToken::new();
        let (ended_tx, ended) = oneshot::channel();
        let leader = {
            let cancel = cancel.clone();
            async move {
                cancel.cancelled().await;
                let _ = ended_tx.send(Instant::now());
            }
        };
        let start = Instant::now();
        let stages =
            vec![Stage::spawn("output", std::future::pending()), Stage::until(cancel, LEADER, leader)];
        assert_eq!(end(stages).await, ["output"]);
        assert!(ended.await.unwrap() - start < Duration::from_secs(1));
    }
}
