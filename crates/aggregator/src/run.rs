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
use crate::api::{self, Authenticator, Endpoint, Operators};
use crate::config::Config;
use crate::counters::Counters;
use crate::kubernetes::{Cluster, WritePermit};
use crate::leader::Leadership;
use crate::metrics::Metrics;
use crate::open_files;
use crate::output::{self, BlockDelays, Directory, Output};
use crate::reload::{ConfigFile, Receivers, Reload};
use crate::tls::{TlsFiles, TlsWatch};
use crate::views::Views;

/// How many files and sockets may be open beside those of clients and agents: outputs, the state, the API server, the reserve.
const OTHER_FILES: usize = 512;
/// How many requests of new leaders may wait for the output. A term sends one.
const MAX_QUEUED_TAKE_OVERS: usize = 1;

/// The files of TLS that the configuration names; `None` if the API is served without TLS.
fn tls_files(config: &Config) -> Option<TlsFiles> {
    let (certificate, key, client_ca) = config.api.tls()?;
    let client_ca = client_ca.map(std::path::Path::to_owned);
    Some(TlsFiles { certificate: certificate.to_owned(), key: key.to_owned(), client_ca })
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
        open_files::raise_limit(api::MAX_CONNECTIONS + 2 * config.collector.concurrency + OTHER_FILES);
        let cluster = cluster(config, counters.clone()).await?;
        let mut output = output(config, cluster.as_ref(), |path| {
            Directory::open(path).map(|directory| directory.counted_by(counters.clone()))
        })?;
        if let Output::Directory(directory) = &output {
            // Checked at the start, because a directory that can't be read does not become readable by waiting.
            directory.check()?;
        }
        let wanted = SocketAddr::new(config.aggregator.address, config.aggregator.port);
        let listener =
            TcpListener::bind(wanted).await.with_context(|| format!("can't listen on {wanted}"))?;
        let address = listener.local_addr()?;
        let tls = tls_files(config)
            .map(|files| files.load().map(|loaded| (files, loaded)))
            .transpose()
            .context("api")?;
        let (take_over, take_overs) = mpsc::channel(MAX_QUEUED_TAKE_OVERS);
        let (written_tx, written) = watch::channel(Arc::default());
        let (leadership_tx, leadership) = watch::channel(Leadership::Following { leader: None });
        let persistence = Persistence::open(config, cluster.as_ref()).await?;
        persistence::lock(&mut output, persistence.election.as_ref())?;
        let auth = Authenticator::new(config, cluster.as_ref())?;
        let inputs = PipelineInputs {
            store: persistence.store,
            persisted: persistence.persisted,
            leadership,
            take_over,
            written,
            counters: counters.clone(),
        };
        let own_namespace = cluster.as_ref().and_then(Cluster::own_namespace).map(str::to_owned);
        let pipeline = Pipeline::start(config, cluster.as_ref(), inputs)?;
        let Pipeline {
            views,
            sources,
            output: status,
            state_error,
            lease_error,
            policy,
            config: shown,
            tls: certificate,
            mut stages,
        } = pipeline;
        if let Some(cluster) = cluster {
            stages.push(Stage::spawn("reach", cluster.check_while_idle(sources.clone())));
        }
        let (settings_tx, settings) = watch::channel(Arc::new(config.settings()));
        if let Some(file) = file {
            let receivers = Receivers { policy, settings: settings_tx, status: shown };
            let reload = Reload::new(file, config.clone(), own_namespace, receivers, counters.clone());
            stages.push(Stage::spawn("reload", reload.run(sources.clone())));
        }
        let interval = config.aggregator.scan_interval;
        let delays = BlockDelays::new(views.clock, counters.clone());
        let channels = output::Channels {
            take_over: take_overs,
            decided: views.decided.clone(),
            delivered: written_tx,
            status,
            settings,
            delays,
        };
        stages.push(Stage::spawn("output", output::run(output, interval, channels)));
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
        let tls = tls.map(|(files, loaded)| {
            let (watch, tls) = TlsWatch::new(files, &loaded, certificate, counters.clone());
            stages.push(Stage::spawn("certificate", watch.run(sources.clone())));
            tls
        });
        let operators = Operators {
            commands: persistence.operator_commands,
            auth,
            namespace: persistence.namespace,
            anonymous_violations: config.api.anonymous_violations,
            redacts: config.redacts(),
            metrics: Metrics::new(views.clone(), counters.clone()),
        };
        let routers = api::routers(views.clone(), operators, config.api.max_in_flight);
        let endpoint =
            Endpoint { listener, tls, needs_client_certificate: config.api.tls_client_ca.is_some() };
        let api = api::serve(endpoint, routers, counters, serving.clone());
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
