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
use crate::decided::{Decided, TakeOver, WrittenNotifications};
use crate::discovery::{self, Dns, Kubernetes, Polled, Port, Source, TargetFile, TargetSet};
use crate::kubernetes::Cluster;
use crate::kubernetes::WritePermit;
use crate::leader::{self, Election, Leadership, Timing};
use crate::output::cluster::ClusterOutput;
use crate::output::{self, Directory, DirectoryError, Output, OutputStatus};
use crate::policy_task::{Journal, PolicyTask};
use crate::state::cluster::{Objects, Watching};
use crate::state::{ClusterStore, FileStore, OperatorCommands, PersistedState, Store};
use crate::views::{ApiServer, Views};
use crate::{ledger_task, open_files, policy_task};

/// How many observations may wait for the ledger. A full channel slows the collector down.
const MAX_QUEUED_OBSERVATIONS: usize = 256;
/// How many files and sockets may be open beside those of clients and agents: outputs, the state, the API server, the reserve.
const OTHER_FILES: usize = 512;
/// How many Pods that are gone may wait for the ledger. A full channel delays the look-ups.
const MAX_QUEUED_PODS_GONE: usize = 256;
/// How long shutdown may take. Operators are promised at most 5 s.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(4);

/// The time after the start of a shutdown at which the Lease is given back at the latest.
const HAND_OVER_AFTER: Duration = Duration::from_millis(600);
/// The name of the stage that holds the Lease.
const LEADER: &str = "leader";

/// How many requests of new leaders may wait for the output. A term sends one.
const MAX_QUEUED_TAKE_OVERS: usize = 1;

/// The running service.
#[derive(Debug)]
pub struct Service {
    address: SocketAddr,
    views: Views,
    sources: CancellationToken,
    /// In the order in which they end. Each stage ends when the one before has ended, or when it is cancelled.
    stages: Vec<Stage>,
}

#[derive(Debug)]
struct Stage {
    name: &'static str,
    task: JoinHandle<()>,
    /// Ends the stage, if no other event ends it.
    cancel: Option<CancellationToken>,
}

/// All stages that lead to a decision, without the output and the API.
#[derive(Debug)]
pub struct Pipeline {
    /// The read model.
    pub views: Views,
    sources: CancellationToken,
    output: watch::Sender<OutputStatus>,
    state_error: watch::Sender<Option<String>>,
    lease_error: watch::Sender<Option<String>>,
    stages: Vec<Stage>,
}

/// All that the pipeline decides with, apart from the agents' reports.
#[derive(Debug)]
pub struct Footing {
    /// Where incidents are persisted.
    pub store: Store,
    /// The persisted state, with the operator commands.
    pub kept: watch::Receiver<Arc<PersistedState>>,
    /// Whether this replica leads.
    pub leadership: watch::Receiver<Leadership>,
    /// Asks the output for the blocks in its objects, at the beginning of a term.
    pub take_over: mpsc::Sender<TakeOver>,
    /// The notices that the output has written.
    pub delivered: watch::Receiver<Arc<WrittenNotifications>>,
}

impl Pipeline {
    /// Starts the stages. Nothing is decided before this replica leads.
    pub fn start(config: &Config, cluster: Option<&Cluster>, footing: Footing) -> anyhow::Result<Self> {
        let Footing { store, kept: persisted, leadership, take_over, delivered: written } = footing;
        let clock = Clock::start();
        let now = clock.now();
        let source = source(config, cluster)?;
        let mut ledger = Ledger::new(config.detection(), now);
        let mut policy = config.policy();
        policy.protected.extend(cluster.and_then(Cluster::own_namespace).map(str::to_owned));
        let (targets_tx, targets) = watch::channel(Arc::new(TargetSet::default()));
        let (observations_tx, observations) = mpsc::channel(MAX_QUEUED_OBSERVATIONS);
        let (publisher, snapshots) = ledger_task::snapshots(ledger.snapshot(now), clock);
        let (lookups_tx, lookups) = watch::channel(Arc::default());
        let (facts_tx, facts) = watch::channel(Arc::default());
        let (gone_tx, gone) = mpsc::channel(MAX_QUEUED_PODS_GONE);
        let (reminders_tx, reminders) = mpsc::channel(1);
        let undecided = Decided::nothing(Plan::empty(policy.mode, now.wall()));
        let (decided_tx, decided) = watch::channel(Arc::new(undecided));
        let (output_tx, output) = watch::channel(OutputStatus::default());
        let (facts_status_tx, facts_status) = watch::channel(ClusterFactsStatus::default());
        let (policy_error_tx, policy_error) = watch::channel(None);
        let (state_error_tx, state_error) = watch::channel(None);
        let (lease_error_tx, lease_error) = watch::channel(None);
        let journal = Journal::default();
        let views = Views {
            snapshots,
            decided,
            targets,
            cluster_facts: facts_status,
            output,
            api_server: cluster.and_then(|cluster| api_server(config, cluster)),
            persisted: persisted.clone(),
            persist_error: policy_error,
            state_error,
            lease_error,
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
        // A service that uses the cluster only to authenticate clients has no right to read Pods.
        if let Some(cluster) = cluster.filter(|_| config.looks_at_pods()) {
            let cluster_facts = ClusterFactsTask {
                cluster: cluster.clone(),
                interval: config.aggregator.scan_interval,
                max_service_entries: config.gateway.max_service_entries,
                clock,
                large: Semaphore::new(1),
            };
            let task = cluster_facts.run(lookups, facts_tx, gone_tx, facts_status_tx, sources.clone());
            stages.push(Stage::spawn("evidence", task));
        }
        let inbox = ledger_task::Inbox { observations, targets: views.targets.clone(), gone, reminders };
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
            lookups: lookups_tx,
            decided: decided_tx,
            error: policy_error_tx,
        };
        let retention = config.state.retention;
        let policy = PolicyTask { policy, retention, store, clock, journal, channels };
        stages.push(Stage::spawn("policy", policy.run()));
        Ok(Self {
            views,
            sources,
            output: output_tx,
            state_error: state_error_tx,
            lease_error: lease_error_tx,
            stages,
        })
    }

    /// Stops at once, because the caller has already read the decision.
    pub fn stop(self) {
        self.sources.cancel();
        for stage in self.stages {
            stage.task.abort();
        }
    }
}

/// Connects to the cluster, if the configuration needs one.
pub async fn cluster(config: &Config) -> anyhow::Result<Option<Cluster>> {
    if config.needs_cluster() { Ok(Some(Cluster::connect(&config.kubernetes).await?)) } else { Ok(None) }
}

/// The name of the Lease by which the replicas agree which of them writes.
pub(crate) const LEASE: &str = "procscan-aggregator";

/// Where decisions are persisted, and the election of the replica that may write.
struct Place {
    store: Store,
    operator_commands: OperatorCommands,
    namespace: Option<String>,
    persisted: watch::Receiver<Arc<PersistedState>>,
    watching: Option<(Watching, watch::Sender<Arc<PersistedState>>)>,
    election: Option<Election>,
}

/// The reason of the pause after a damaged state file.
const AFTER_LOSS: &str = "the state file was damaged, and what operators declared and what brakes held is lost with it; before \
    `resume`, look at `incidents --state watched`: each App that it lists and that is still accused may be blocked then; \
    release or exempt those that must not be blocked";

/// The namespace of the persisted state, if none is configured and the service runs in none.
const DEFAULT_NAMESPACE: &str = "kube-system";

/// The objects in which decisions are persisted.
pub fn objects(config: &Config, cluster: &Cluster) -> Objects {
    let namespace =
        config.state.namespace.as_deref().or(cluster.own_namespace()).unwrap_or(DEFAULT_NAMESPACE);
    Objects::new(cluster.clone(), namespace.to_owned())
}

/// The election of the replica that writes to the cluster, even if the decisions are persisted in a file.
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
            let (show, persisted) = watch::channel(Arc::default());
            let (watching, relist) = Watching::new(objects.clone());
            Ok(Place {
                persisted,
                store: Store::Cluster(Box::new(ClusterStore::new(objects.clone(), Some(relist)))),
                operator_commands: OperatorCommands::Cluster(objects.clone()),
                namespace: Some(objects.namespace().to_owned()),
                watching: Some((watching, show)),
                election: Some(election(config, cluster)),
            })
        }
        (StateMode::Cluster, None) => anyhow::bail!("state.mode: cluster needs a cluster"),
        (StateMode::File, _) => {
            // Operators' releases and exemptions are lost, so no new App is blocked before an operator has looked.
            // Dry-run blocks no App in any case.
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
                persisted: store.shown(),
                operator_commands: OperatorCommands::File(store.clone()),
                store: Store::File(store),
                namespace: None,
                watching: None,
                election: cluster.filter(|_| config.needs_lease()).map(|cluster| election(config, cluster)),
            })
        }
    }
}

/// The output to which objects are written. `open` opens a directory; a caller that only reads passes
/// [`Directory::at`].
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
        // Twice the concurrency, because as many connections to agents may linger as are in use.
        open_files::raise_limit(api::MAX_CONNECTIONS + 2 * config.collector.concurrency + OTHER_FILES);
        let cluster = cluster(config).await?;
        let mut output = output(config, cluster.as_ref(), |path| Directory::open(path))?;
        if let Output::Directory(directory) = &output {
            // Checked at the start, because a directory that can't be read does not become readable by waiting.
            directory.check()?;
        }
        let wanted = SocketAddr::new(config.aggregator.address, config.aggregator.port);
        let listener =
            TcpListener::bind(wanted).await.with_context(|| format!("can't listen on {wanted}"))?;
        let address = listener.local_addr()?;
        let (take_over, take_overs) = mpsc::channel(MAX_QUEUED_TAKE_OVERS);
        let (written_tx, written) = watch::channel(Arc::default());
        let (leadership_tx, leadership) = watch::channel(Leadership::Following { leader: None });
        let place = state(config, cluster.as_ref()).await?;
        if let Output::Directory(directory) = &mut output {
            // If a Lease decides which process writes, its replicas may share the directory.
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
        let footing =
            Footing { store: place.store, kept: place.persisted, leadership, take_over, delivered: written };
        let Pipeline { views, sources, output: status, state_error, lease_error, mut stages } =
            Pipeline::start(config, cluster.as_ref(), footing)?;
        if let Some(cluster) = cluster {
            stages.push(Stage::spawn("reach", cluster.check_while_idle(sources.clone())));
        }
        let interval = config.aggregator.scan_interval;
        let channels = output::Channels {
            take_over: take_overs,
            decided: views.decided.clone(),
            delivered: written_tx,
            status,
        };
        stages.push(Stage::spawn("output", output::run(output, config.settings(), interval, channels)));
        // The stages that write end before these two, so that another replica can take the Lease at once.
        if let Some((watching, show)) = place.watching {
            let cancel = CancellationToken::new();
            let task = watching.run(show, state_error, cancel.clone());
            stages.push(Stage::until(cancel, "state", task));
        }
        match place.election {
            Some(election) => {
                let cancel = CancellationToken::new();
                let task = election.run(leadership_tx, lease_error, cancel.clone());
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

    /// The address at which the HTTP API listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The read model.
    pub fn views(&self) -> &Views {
        &self.views
    }

    /// Waits until a stage ends by itself, which is an error. Returns its name.
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

    /// Stops the stages in order. The sources end first, then the tasks up to the output once they have handled the
    /// last answers, and then the API. The Lease is given back in time even while a write is under way, so that
    /// another replica can go on.
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

/// Ends the stages in order. The Lease is given back in time even while a write is under way, so that another replica
/// can go on. Returns the names of the stages that did not end by themselves.
async fn end(stages: Vec<Stage>) -> Vec<&'static str> {
    let deadline = tokio::time::Instant::now() + SHUTDOWN_TIMEOUT;
    let leader = stages.iter().find(|stage| stage.name == LEADER).and_then(|stage| stage.cancel.clone());
    let hand_over = tokio::spawn(async move {
        tokio::time::sleep(HAND_OVER_AFTER).await;
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

    /// Runs a stage on a thread of its own. So no other task delays it, and none of its many tiny tasks wakes another
    /// thread.
    fn threaded(
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (done, is_done) = oneshot::channel();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Spawned as a task, because waking the future that `block_on` itself runs takes a system call each time.
            // A panic of the task has been reported by now, and ends the stage too.
            let _ = runtime.block_on(runtime.spawn(task));
            // The receiver may have been dropped.
            let _ = done.send(());
        })?;
        // A panic of the thread ends the stage too.
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

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_lease_is_given_back_within_a_second_while_a_write_is_under_way() {
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
