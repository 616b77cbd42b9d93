//! The stages that serve the HTTP API.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::stage::Stage;
use crate::api::{self, Authenticator, Endpoint, Operators, Stream};
use crate::config::Config;
use crate::counters::Counters;
use crate::metrics::Metrics;
use crate::state::OperatorCommands;
use crate::tls::{Loaded, TlsFiles, TlsStatus, TlsWatch};
use crate::views::Views;

/// The socket of the API, and its certificate.
pub(super) struct Listening {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<(TlsFiles, Loaded)>,
}

impl Listening {
    /// Binds the socket that the configuration names, and reads the certificate.
    pub(super) async fn open(config: &Config) -> anyhow::Result<Self> {
        let wanted = SocketAddr::new(config.aggregator.address, config.aggregator.port);
        let listener =
            TcpListener::bind(wanted).await.with_context(|| format!("can't listen on {wanted}"))?;
        let address = listener.local_addr()?;
        let tls = tls_files(config).map(|files| files.load().map(|loaded| (files, loaded)));
        Ok(Self { listener, address, tls: tls.transpose().context("api")? })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The files of TLS that the configuration names; `None` if the API is served without TLS.
fn tls_files(config: &Config) -> Option<TlsFiles> {
    let (certificate, key, client_ca) = config.api.tls()?;
    let client_ca = client_ca.map(Path::to_owned);
    Some(TlsFiles { certificate: certificate.to_owned(), key: key.to_owned(), client_ca })
}

/// What the API answers from.
pub(super) struct Serving {
    pub(super) views: Views,
    pub(super) operator_commands: OperatorCommands,
    pub(super) auth: Authenticator,
    /// The namespace of the persisted state; `None` without a cluster.
    pub(super) namespace: Option<String>,
    pub(super) counters: Counters,
}

impl Serving {
    /// Starts the stages. All but the API itself end with `sources`.
    pub(super) fn start(
        self,
        config: &Config,
        listening: Listening,
        certificate: watch::Sender<TlsStatus>,
        sources: &CancellationToken,
    ) -> Vec<Stage> {
        let Self { views, operator_commands: commands, auth, namespace, counters } = self;
        let mut stages = Vec::new();
        let tls = listening.tls.map(|(files, loaded)| {
            let (watch, tls) = TlsWatch::new(files, &loaded, certificate, counters.clone());
            stages.push(Stage::spawn("certificate", watch.run(sources.clone())));
            tls
        });
        let stream = Stream::new(counters.clone());
        let changes = stream.clone().run(views.clone(), commands.clone(), sources.clone());
        stages.push(Stage::spawn("stream", changes));
        let metrics = Metrics::new(views.clone(), counters.clone(), config.aggregator.scan_interval);
        let operators = Operators {
            commands,
            auth,
            namespace,
            anonymous_violations: config.api.anonymous_violations,
            redacts: config.redacts(),
            metrics,
            stream,
        };
        let routers = api::routers(views, operators, config.api.max_in_flight);
        let needs_client_certificate = config.api.tls_client_ca.is_some();
        let endpoint = Endpoint { listener: listening.listener, tls, needs_client_certificate };
        let serving = CancellationToken::new();
        let api = api::serve(endpoint, routers, counters, serving.clone());
        stages.push(Stage::until(serving, "api", api));
        stages
    }
}
