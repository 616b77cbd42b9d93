//! The composition root: the only place that knows all modules. Owns start and shutdown.

mod persistence;
mod pipeline;
mod serving;
mod stage;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::persistence::Persistence;
pub(crate) use self::persistence::{LEASE, cluster, objects, output};
pub(crate) use self::pipeline::{Pipeline, PipelineInputs};
use self::serving::{Listening, Serving};
use self::stage::{LEADER, Stage};
use crate::api::{self, Authenticator};
use crate::config::Config;
use crate::counters::Counters;
use crate::kubernetes::{Cluster, WritePermit};
use crate::leader::Leadership;
use crate::open_files;
use crate::output::{self, BlockDelays, Directory, Output};
use crate::reload::{ConfigFile, Receivers, Reload};
use crate::views::Views;

/// How many files and sockets may be open beside those of clients and agents: outputs, the state, the API server, the reserve.
const OTHER_FILES: usize = 512;
/// How many requests of new leaders may wait for the output. A term sends one.
const MAX_QUEUED_TAKE_OVERS: usize = 1;

/// The output, opened for writing.
fn opened_output(config: &Config, cluster: Option<&Cluster>, counters: &Counters) -> anyhow::Result<Output> {
    let output = output(config, cluster, |path| {
        Directory::open(path).map(|directory| directory.counted_by(counters.clone()))
    })?;
    if let Output::Directory(directory) = &output {
        // Checked at the start, because a directory that can't be read does not become readable by waiting.
        directory.check()?;
    }
    Ok(output)
}

/// The running service.
#[derive(Debug)]
pub struct Service {
    address: SocketAddr,
    views: Views,
    sources: CancellationToken,
    /// In the order in which they end. Each stage ends when the one before has ended, or when it is cancelled.
    stages: Vec<Stage>,
}

impl Service {
    /// Starts everything. Nothing runs if it fails. The configuration is not read again.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        Self::start_with(config, None).await
    }

    /// Starts everything. Nothing runs if it fails. The configuration is read again if `file`, from which it was read, changes.
    pub(crate) async fn start_with(config: &Config, file: Option<ConfigFile>) -> anyhow::Result<Self> {
        let counters = Counters::default();
        // Twice the concurrency, because as many connections to agents may linger as are in use.
        open_files::raise_limit(
            api::MAX_CONNECTIONS + api::MAX_STREAMS + 2 * config.collector.concurrency + OTHER_FILES,
        );
        let cluster = cluster(config, counters.clone()).await?;
        let mut output = opened_output(config, cluster.as_ref(), &counters)?;
        let listening = Listening::open(config).await?;
        let address = listening.address();
        let (take_over, take_overs) = mpsc::channel(MAX_QUEUED_TAKE_OVERS);
        let (written_tx, written) = watch::channel(Arc::default());
        let (leadership_tx, leadership) = watch::channel(Leadership::Following { leader: None });
        let persistence = Persistence::open(config, cluster.as_ref()).await?;
        persistence::lock(&mut output, persistence.election.as_ref())?;
        let auth = Authenticator::new(config, cluster.as_ref())?;
        let Persistence { store, operator_commands, namespace, persisted, watching, election } = persistence;
        let counted = counters.clone();
        let inputs = PipelineInputs { store, persisted, leadership, take_over, written, counters: counted };
        let own_namespace = cluster.as_ref().and_then(Cluster::own_namespace).map(str::to_owned);
        let mut pipeline = Pipeline::start(config, cluster.as_ref(), inputs)?;
        let stages = &mut pipeline.stages;
        if let Some(cluster) = cluster {
            stages.push(Stage::spawn("reach", cluster.check_while_idle(pipeline.sources.clone())));
        }
        let (settings_tx, settings) = watch::channel(Arc::new(config.settings()));
        if let Some(file) = file {
            let receivers =
                Receivers { policy: pipeline.policy, settings: settings_tx, status: pipeline.config };
            let reload = Reload::new(file, config.clone(), own_namespace, receivers, counters.clone());
            stages.push(Stage::spawn("reload", reload.run(pipeline.sources.clone())));
        }
        let channels = output::Channels {
            take_over: take_overs,
            decided: pipeline.views.decided.clone(),
            delivered: written_tx,
            status: pipeline.output,
            settings,
            delays: BlockDelays::new(pipeline.views.clock, counters.clone()),
        };
        stages.push(Stage::spawn("output", output::run(output, config.aggregator.scan_interval, channels)));
        // The stages that write end before these two, so that another replica can take the Lease at once.
        stages.extend(watching.map(|(watching, show)| {
            let cancel = CancellationToken::new();
            Stage::until(cancel.clone(), "state", watching.run(show, pipeline.state_error, cancel))
        }));
        match election {
            Some(election) => {
                let cancel = CancellationToken::new();
                let task = election.run(leadership_tx, pipeline.lease_error, cancel.clone());
                stages.push(Stage::until(cancel, LEADER, task));
            }
            None => drop(leadership_tx.send_replace(Leadership::Leading(WritePermit::always()))),
        }
        let serving = Serving { views: pipeline.views.clone(), operator_commands, auth, namespace, counters };
        stages.extend(serving.start(config, listening, pipeline.tls, &pipeline.sources));
        tracing::info!(%address, "listening");
        let Pipeline { views, sources, stages, .. } = pipeline;
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
    pub(crate) async fn broken(&mut self) -> &'static str {
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
        let late = stage::end(self.stages).await;
        if late.is_empty() {
            tracing::info!("stopped");
        } else {
            tracing::warn!(?late, "stopped before everything was done");
        }
    }
}
