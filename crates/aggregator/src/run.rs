//! The composition root: the only place that knows all modules. Owns start and shutdown.

mod persistence;
mod pipeline;
mod stage;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::persistence::Persistence;
pub(crate) use self::persistence::{LEASE, cluster, objects, output};
pub(crate) use self::pipeline::{Pipeline, PipelineInputs};
use self::stage::{LEADER, Stage};
use crate::api::{self, Authenticator, Operators};
use crate::config::Config;
use crate::kubernetes::WritePermit;
use crate::leader::Leadership;
use crate::open_files;
use crate::output::{self, Directory, Output};
use crate::views::Views;

/// How many files and sockets may be open beside those of clients and agents: outputs, the state, the API server, the reserve.
const OTHER_FILES: usize = 512;
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
        let persistence = Persistence::open(config, cluster.as_ref()).await?;
        persistence::lock(&mut output, persistence.election.as_ref())?;
        let operators = Operators {
            commands: persistence.operator_commands,
            auth: Authenticator::new(config, cluster.as_ref())?,
            namespace: persistence.namespace,
            brake: config.policy().brake,
            anonymous_violations: config.api.anonymous_violations,
            redacts: config.redacts(),
        };
        let inputs = PipelineInputs {
            store: persistence.store,
            persisted: persistence.persisted,
            leadership,
            take_over,
            written,
        };
        let Pipeline { views, sources, output: status, state_error, lease_error, mut stages } =
            Pipeline::start(config, cluster.as_ref(), inputs)?;
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
        if let Some((watching, show)) = persistence.watching {
            let cancel = CancellationToken::new();
            let task = watching.run(show, state_error, cancel.clone());
            stages.push(Stage::until(cancel, "state", task));
        }
        match persistence.election {
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
