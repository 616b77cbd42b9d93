//! The agent itself: scans on a schedule and answers for the latest scan.
//!
//! Each scan replaces the published list as a whole. That is what the agents in the field get wrong: here an empty
//! answer means clean, and a listed record means running at its timestamp.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use jiff::Zoned;
use tokio::{
    net::TcpListener,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    proc::{Finding, HostIdentity, Scanner, TENANT_PREFIX},
    record::Record,
    rules::Rules,
};

mod connection;
mod published;

use connection::Bounded;
use published::Published;

/// How long answers under way may take after cancellation.
const FAREWELL: Duration = Duration::from_secs(5);
/// Scanning in a tighter loop than this would cost more than it tells.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// How to run an agent.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address to answer on; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Time between the starts of two scans; at least 100 ms are kept.
    pub scan_interval: Duration,
    /// What to look for.
    pub rules: Rules,
    /// Where the node's processes are mounted.
    pub proc_root: PathBuf,
    /// The kubelet's log directories.
    pub pods_root: PathBuf,
    /// How to report processes outside of pods; `None` ignores them.
    pub host: Option<HostIdentity>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([0, 0, 0, 0], 9090)),
            scan_interval: Duration::from_mins(1),
            rules: Rules::default(),
            proc_root: PathBuf::from("/proc"),
            pods_root: PathBuf::from("/var/log/pods"),
            host: None,
        }
    }
}

/// Why an agent did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The host's identity would never be reported.
    #[error("the host's namespace `{0}` must start with `{TENANT_PREFIX}`: others are not reported")]
    HostNamespace(String),
    /// The first scan failed, most likely because a root is not what it should be.
    #[error("cannot scan the processes in {}: {source}", proc_root.display())]
    Scan {
        /// Where processes were looked for.
        proc_root: PathBuf,
        /// Why that failed.
        source: io::Error,
    },
    /// The address is taken or not ours.
    #[error("cannot listen on {bind}: {source}")]
    Bind {
        /// The address asked for.
        bind: SocketAddr,
        /// Why that failed.
        source: io::Error,
    },
    /// A task of the agent died.
    #[error("the agent stopped: {0}")]
    Stopped(io::Error),
}

/// The list an agent answers with: a cheap handle, shared by the scans that publish and the server that reads.
#[derive(Clone, Debug, Default)]
pub struct Agent {
    published: Arc<Mutex<Arc<Published>>>,
}

impl Agent {
    /// An agent that lists nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the list.
    pub fn publish(&self, records: &[Record]) {
        let published = Arc::new(Published::new(records));
        *self.published.lock().unwrap_or_else(PoisonError::into_inner) = published;
    }

    fn published(&self) -> Arc<Published> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Runs an agent until `cancel`.
pub async fn run(options: Options, cancel: CancellationToken) -> Result<(), AgentError> {
    let (_, task) = start(options, cancel).await?;
    task.await.map_err(|error| AgentError::Stopped(error.into()))?
}

/// Starts an agent: it has scanned once and is listening when this returns its address. The task ends on `cancel`.
pub async fn start(
    options: Options,
    cancel: CancellationToken,
) -> Result<(SocketAddr, JoinHandle<Result<(), AgentError>>), AgentError> {
    let Options { bind, scan_interval, rules, proc_root, pods_root, host } = options;
    if let Some(host) = host.as_ref().filter(|host| !host.namespace.starts_with(TENANT_PREFIX)) {
        return Err(AgentError::HostNamespace(host.namespace.clone()));
    }
    let agent = Agent::new();
    let scanner = Scanner::new(proc_root.clone(), pods_root, rules, host);
    // The first scan comes before the first answer: an agent that has not looked must not say `[]`.
    let (scanner, findings) = scan(scanner).await.map_err(AgentError::Stopped)?;
    let findings = findings.map_err(|source| AgentError::Scan { proc_root, source })?;
    publish(&agent, &scanner, findings);

    let refused = |source| AgentError::Bind { bind, source };
    let listener = TcpListener::bind(bind).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    tracing::info!(%address, interval = ?scan_interval, "agent listening");
    let task = tokio::spawn(async move {
        let scans = keep_scanning(agent.clone(), scanner, scan_interval.max(SHORTEST_INTERVAL));
        tokio::select! {
            ended = serve(listener, agent, cancel) => ended,
            Err(died) = scans => Err(died),
        }
        .map_err(AgentError::Stopped)
    });
    Ok((address, task))
}

/// Answers for `agent` on `listener` until `cancel`, then finishes the answers under way.
///
/// Connections are bounded in number, and dropped 10 s after the last answer.
pub async fn serve(listener: TcpListener, agent: Agent, cancel: CancellationToken) -> io::Result<()> {
    let routes = Router::new()
        .route("/api/violations", get(violations).fallback(only_get))
        .route("/health", get(health).fallback(only_get))
        .with_state(agent);
    let ended = axum::serve(Bounded::new(listener), routes)
        .with_graceful_shutdown(cancel.clone().cancelled_owned())
        .into_future();
    let overdue = async {
        cancel.cancelled().await;
        sleep(FAREWELL).await;
    };
    tokio::select! {
        ended = ended => ended,
        () = overdue => Ok(()),
    }
}

async fn violations(State(agent): State<Agent>, asked: HeaderMap) -> Response {
    agent.published().answer(&asked)
}

async fn health() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], "{\"status\":\"ok\"}\n")
}

async fn only_get() -> impl IntoResponse {
    let headers: [(HeaderName, &str); 1] = [(header::ALLOW, "GET, HEAD")];
    (StatusCode::METHOD_NOT_ALLOWED, headers, "method not allowed\n")
}

/// Ends only with the error that made further scans impossible.
async fn keep_scanning(agent: Agent, mut scanner: Scanner, every: Duration) -> io::Result<()> {
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let findings;
        (scanner, findings) = scan(scanner).await?;
        match findings {
            Ok(findings) => publish(&agent, &scanner, findings),
            Err(error) => tracing::warn!(%error, "scan failed, the last list stays"),
        }
    }
}

/// Scans on a thread where blocking is allowed. The outer error is that of the thread.
async fn scan(mut scanner: Scanner) -> io::Result<(Scanner, io::Result<Vec<Finding>>)> {
    let look = move || {
        let findings = scanner.scan();
        (scanner, findings)
    };
    tokio::task::spawn_blocking(look).await.map_err(io::Error::from)
}

fn publish(agent: &Agent, scanner: &Scanner, findings: Vec<Finding>) {
    let (found, unknown) = (findings.len(), scanner.unknown_pods());
    if unknown > 0 {
        let pods_root = scanner.pods_root.display();
        tracing::warn!(unknown, %pods_root, "offenders skipped: their pods are unknown to the kubelet's directories");
    }
    tracing::debug!(found, "scanned");
    let at = Zoned::now();
    let records: Vec<Record> = findings.into_iter().map(|finding| finding.into_record(&at)).collect();
    agent.publish(&records);
}

#[cfg(test)]
mod tests;
