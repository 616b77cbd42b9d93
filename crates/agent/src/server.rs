//! The agent: scans on a schedule and answers with the list of the latest scan.
//!
//! Each scan replaces the published list as a whole, unlike a scan of the real agent. So an empty answer means that no process
//! offends, and a listed process ran at its timestamp. An agent that can't see its whole node, or whose scan has failed or
//! takes too long, answers 503 and names the reason. The header `procscan-left-out` counts omitted processes.

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
    time::{Instant, MissedTickBehavior, interval_at, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    proc::{HostIdentity, LeftOut, Scan, ScanError, Scanner, TENANT_PREFIX},
    record::Record,
    rules::Rules,
};

mod connection;
mod metrics;
mod published;
mod troubles;

use connection::Bounded;
use metrics::Metrics;
use published::Published;
use troubles::{Change, Trouble, Troubles};

/// How long running answers may take after cancellation.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a scan may take until the list of the last one is too old for an answer; at least [`LATE_INTERVALS`] intervals.
const SLOWEST_SCAN: Duration = Duration::from_secs(30);
const LATE_INTERVALS: u32 = 3;
/// The shortest interval, because each scan costs CPU time and a shorter one shows hardly more.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// How to run an agent.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address to answer on; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Time between the starts of two scans, at least 100 ms.
    pub scan_interval: Duration,
    /// The rules by which processes are judged.
    pub rules: Rules,
    /// Where the node's processes are mounted.
    pub proc_root: PathBuf,
    /// The kubelet's log directories.
    pub pods_root: PathBuf,
    /// The kubelet's links to the logs of containers.
    pub containers_root: PathBuf,
    /// The name under which processes outside of pods are reported. `None` ignores them, and requires that the agent sees the
    /// whole node.
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
            containers_root: PathBuf::from("/var/log/containers"),
            host: None,
        }
    }
}

/// Why an agent did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The host's namespace is not a tenant's, so its processes would never be reported.
    #[error("the host's namespace `{0}` must start with `{TENANT_PREFIX}`: others are not reported")]
    HostNamespace(String),
    /// The first scan failed, most likely because a root is a wrong path.
    #[error("cannot scan the processes in {}: {source}", proc_root.display())]
    Scan {
        /// The root of the processes.
        proc_root: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The address is taken or not ours.
    #[error("cannot listen on {bind}: {source}")]
    Bind {
        /// The address asked for.
        bind: SocketAddr,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A task of the agent ended early.
    #[error("the agent stopped: {0}")]
    Stopped(io::Error),
}

/// The list of an agent's answers. Cheap to clone: the scans that publish and the server that reads share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Agent {
    current: Arc<Mutex<Current>>,
    metrics: Metrics,
}

/// The current answer.
#[derive(Clone, Debug)]
enum Current {
    /// The result of the last scan.
    List(Arc<Published>),
    /// Why there is no list.
    Nothing(Arc<str>),
}

impl Default for Current {
    fn default() -> Self {
        Self::List(Arc::default())
    }
}

impl Agent {
    /// An agent with an empty list.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Replaces the list. `left_out` counts the processes that are not in it.
    pub(crate) fn publish_part(&self, records: &[Record], left_out: &LeftOut) {
        self.set(Current::List(Arc::new(Published::new(records, left_out))));
    }

    /// Answers 503 until a list is published, because the offending processes are not known.
    pub(crate) fn publish_nothing(&self, why: &str) {
        self.set(Current::Nothing(why.into()));
    }

    fn set(&self, current: Current) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = current;
    }

    fn current(&self) -> Current {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Starts an agent: it has scanned once and is listening when this returns its address. The task ends on `cancel`.
pub async fn start(
    options: Options,
    cancel: CancellationToken,
) -> Result<(SocketAddr, JoinHandle<Result<(), AgentError>>), AgentError> {
    let Options { bind, scan_interval, rules, proc_root, pods_root, containers_root, host } = options;
    if let Some(host) = host.as_ref().filter(|host| !host.namespace.starts_with(TENANT_PREFIX)) {
        return Err(AgentError::HostNamespace(host.namespace.clone()));
    }
    let agent = Agent::new();
    let mut publisher = Publisher { agent: agent.clone(), troubles: Troubles::default() };
    let mut scanner = Scanner::new(proc_root.clone(), pods_root, rules, host);
    scanner.containers_root = containers_root;
    // The first scan comes before the first answer, because an agent without a scan must not answer `[]`.
    let (scanner, seen) = scan(scanner, &agent.metrics).await.map_err(AgentError::Stopped)?;
    match seen {
        Err(ScanError::Processes(source)) => return Err(AgentError::Scan { proc_root, source }),
        seen => publisher.publish(&scanner, seen),
    }

    let refused = |source| AgentError::Bind { bind, source };
    let listener = TcpListener::bind(bind).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    tracing::info!(%address, interval = ?scan_interval, "agent listening");
    let task = tokio::spawn(async move {
        let scans = keep_scanning(publisher, scanner, scan_interval.max(SHORTEST_INTERVAL));
        tokio::select! {
            ended = serve(listener, agent, cancel) => ended,
            Err(failed) = scans => Err(failed),
        }
        .map_err(AgentError::Stopped)
    });
    Ok((address, task))
}

/// Answers for `agent` on `listener` until `cancel`, then finishes the running answers.
///
/// Connections are bounded in number, and dropped 10 s after the last answer.
pub(crate) async fn serve(listener: TcpListener, agent: Agent, cancel: CancellationToken) -> io::Result<()> {
    let routes = Router::new()
        .route("/api/violations", get(violations).fallback(only_get))
        .route("/health", get(health).fallback(only_get))
        .route("/metrics", get(metrics_of).fallback(only_get))
        .with_state(agent);
    let ended = axum::serve(Bounded::new(listener), routes)
        .with_graceful_shutdown(cancel.clone().cancelled_owned())
        .into_future();
    let overdue = async {
        cancel.cancelled().await;
        sleep(SHUTDOWN_TIMEOUT).await;
    };
    tokio::select! {
        ended = ended => ended,
        () = overdue => Ok(()),
    }
}

async fn violations(State(agent): State<Agent>, asked: HeaderMap) -> Response {
    match agent.current() {
        Current::List(published) => published.answer(&asked),
        Current::Nothing(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn metrics_of(State(agent): State<Agent>) -> Response {
    agent.metrics.answer()
}

async fn health() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], "{\"status\":\"ok\"}\n")
}

async fn only_get() -> impl IntoResponse {
    let headers: [(HeaderName, &str); 1] = [(header::ALLOW, "GET, HEAD")];
    (StatusCode::METHOD_NOT_ALLOWED, headers, "method not allowed\n")
}

/// Scans in each interval. It returns only with an error after which no further scan is possible.
async fn keep_scanning(mut publisher: Publisher, mut scanner: Scanner, every: Duration) -> io::Result<()> {
    let metrics = publisher.agent.metrics.clone();
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let seen;
        (scanner, seen) = in_time(scan(scanner, &metrics), every, &mut publisher).await?;
        publisher.publish(&scanner, seen);
    }
}

/// Waits for a scan. If it takes too long (a file below `/proc` can block), the server answers 503 instead of an old list.
async fn in_time<T>(scan: impl Future<Output = T>, every: Duration, publisher: &mut Publisher) -> T {
    let mut scan = std::pin::pin!(scan);
    let patience = SLOWEST_SCAN.max(every.saturating_mul(LATE_INTERVALS));
    if let Ok(done) = timeout(patience, &mut scan).await {
        return done;
    }
    publisher.publish_nothing("late", &format!("a scan has not ended within {} s", patience.as_secs()));
    scan.await
}

/// Scans on a thread where blocking is allowed. The outer error is that of the thread.
async fn scan(mut scanner: Scanner, metrics: &Metrics) -> io::Result<(Scanner, Result<Scan, ScanError>)> {
    let begun = Instant::now();
    let work = move || {
        let seen = scanner.scan();
        (scanner, seen)
    };
    let (scanner, seen) = tokio::task::spawn_blocking(work).await.map_err(io::Error::from)?;
    metrics.scanned(&seen, begun.elapsed());
    Ok((scanner, seen))
}

/// Publishes the results of scans, and logs their problems.
struct Publisher {
    agent: Agent,
    troubles: Troubles,
}

impl Publisher {
    fn publish(&mut self, scanner: &Scanner, seen: Result<Scan, ScanError>) {
        let seen = match seen {
            Ok(seen) => seen,
            Err(why) => return self.publish_nothing(why.kind(), &why.to_string()),
        };
        self.log_changes(troubles_of(&seen, scanner));
        tracing::debug!(found = seen.findings.len(), left_out = %seen.left_out.total(), "scanned");
        let at = Zoned::now();
        let records: Vec<Record> =
            seen.findings.into_iter().map(|finding| finding.into_record(&at)).collect();
        self.agent.publish_part(&records, &seen.left_out);
    }

    fn publish_nothing(&mut self, kind: &str, why: &str) {
        let text = format!("answering 503, because the list would not be complete: {why}");
        self.log_changes(vec![Trouble { kind: format!("answering 503 ({kind})"), text }]);
        self.agent.publish_nothing(why);
    }

    fn log_changes(&mut self, present: Vec<Trouble>) {
        for change in self.troubles.update(present, Instant::now()) {
            match change {
                Change::Begun(text) => tracing::warn!("{text}"),
                Change::Over(kind) => tracing::info!("no longer: {kind}"),
            }
        }
    }
}

/// The problems of a scan whose list is published nevertheless.
fn troubles_of(seen: &Scan, scanner: &Scanner) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    if seen.unknown_pods > 0 {
        let text = format!(
            "{} offending processes are skipped: {} does not name their Pods",
            seen.unknown_pods,
            scanner.pods_root.display()
        );
        troubles.push(Trouble { kind: "offending processes of Pods without a name".into(), text });
    }
    if seen.doubtful_containers > 0 && scanner.host.is_none() {
        let text = format!(
            "{} processes of containers are skipped: {} can't be read, so it is not known whether they are of Pods",
            seen.doubtful_containers,
            scanner.containers_root.display()
        );
        troubles.push(Trouble { kind: "containers that may be of Pods".into(), text });
    }
    if seen.deep_groups > 0 {
        let text = format!(
            "{} processes are skipped: the kernel does not say what Pods they are of, because the paths of their control groups \
             are too long",
            seen.deep_groups
        );
        troubles.push(Trouble { kind: "processes in control groups with too long a path".into(), text });
    }
    // An agent that names its host may run without root, and then sees its own user's programs only.
    if seen.hidden_programs > 0 && scanner.host.is_none() {
        let text = format!(
            "the programs of {} processes can't be seen, so that only names are judged which a process can choose: run the \
             agent as root with the capability SYS_PTRACE",
            seen.hidden_programs
        );
        troubles.push(Trouble { kind: "programs that can't be seen".into(), text });
    }
    for (namespace, omitted) in &seen.left_out.0 {
        let kind = format!("more in {namespace} than its share of the scan or of the list");
        let text = format!("there is {kind}; left out: {omitted}");
        troubles.push(Trouble { kind, text });
    }
    troubles
}

#[cfg(test)]
mod tests;
