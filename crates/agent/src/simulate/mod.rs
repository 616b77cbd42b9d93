//! A fleet of simulated nodes in one process.
//!
//! One listener serves all nodes. The local address of a connection selects the node, because all of 127.0.0.0/8 is local. So
//! a thousand nodes cost no more than their state, and the aggregator sees a thousand hosts. Nodes misbehave by a call, by a
//! list of faults or by a script.

mod behaviour;
mod http;
mod node;
mod payload;
mod script;
mod stream;
mod wire;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::record::Record;
use node::{Node, offender};

pub use behaviour::{Behaviour, BehaviourError, Fault, Mode, TooManyFaults, spread_faults};
pub use script::{Script, ScriptError};

const MOST_CONNECTIONS: usize = 16 * 1024;
/// A whole fleet may be asked at once; the kernel caps this at its own limit.
const BACKLOG: u32 = 16 * 1024;
/// Nodes scan in this many groups spread over the interval, as agents that were started one after the other do.
const PHASES: u32 = 64;

/// The fleet to simulate.
#[derive(Clone, Debug)]
pub struct FleetOptions {
    /// How many nodes, at least one.
    pub nodes: usize,
    /// Address of node 0; node `i` has the `i`-th address after it.
    pub base: Ipv4Addr,
    /// The port all nodes share; 0 takes a free one.
    pub port: u16,
    /// The address of the one listener. Only the default, all addresses, reaches every node.
    pub listen: Ipv4Addr,
    /// Time between two scans of a node; zero leaves all scans to [`Fleet::scan_now`].
    pub scan_interval: Duration,
    /// How many made-up offenders each node starts with.
    pub offenders_per_node: usize,
    /// Over how many namespaces `ns-sim-0`, `ns-sim-1`, … the offenders are spread.
    pub tenants: usize,
    /// The mode in which all nodes scan at first.
    pub mode: Mode,
    /// The same seed makes the same offenders.
    pub seed: u64,
}

impl Default for FleetOptions {
    fn default() -> Self {
        Self {
            nodes: 10,
            base: Ipv4Addr::new(127, 64, 0, 1),
            port: 9090,
            listen: Ipv4Addr::UNSPECIFIED,
            scan_interval: Duration::from_secs(10),
            offenders_per_node: 1,
            tenants: 100,
            mode: Mode::Correct,
            seed: 0,
        }
    }
}

/// A running fleet. It stops when dropped or cancelled.
///
/// Nodes are numbered from 0. A call with a number outside of the fleet only logs a warning.
#[derive(Debug)]
pub struct Fleet {
    shared: Arc<Shared>,
    port: u16,
    _stop: DropGuard,
}

struct Shared {
    options: FleetOptions,
    nodes: Vec<Mutex<Node>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.options.fmt(to)
    }
}

impl Fleet {
    /// Starts listening and, with an interval, scanning: nodes in correct mode have scanned when this returns. To be
    /// called within a Tokio runtime.
    ///
    /// # Errors
    /// When the nodes do not fit behind `base`, or the port cannot be listened on.
    pub fn start(options: FleetOptions, cancel: &CancellationToken) -> io::Result<Self> {
        let last = u32::try_from(options.nodes.saturating_sub(1)).ok();
        if options.nodes == 0 || last.and_then(|last| u32::from(options.base).checked_add(last)).is_none() {
            let problem =
                format!("{} nodes from {} on exceed the range of addresses", options.nodes, options.base);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        let socket = TcpSocket::new_v4()?;
        // A demo can be started again at once, although the kernel still has its old connections.
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((options.listen, options.port)))?;
        let listener = socket.listen(BACKLOG)?;
        let port = listener.local_addr()?.port();

        let nodes = (0..options.nodes).map(|node| {
            let offenders = (0..options.offenders_per_node)
                .map(|which| offender(options.seed, node, which, options.tenants))
                .collect();
            Mutex::new(Node::new(node, options.mode, offenders))
        });
        let shared = Arc::new(Shared { nodes: nodes.collect(), options });
        let stop = cancel.child_token();
        if !shared.options.scan_interval.is_zero() {
            shared.scan_where(|_, node| node.mode == Mode::Correct);
            let (shared, stop) = (shared.clone(), stop.clone());
            tokio::spawn(async move { stop.run_until_cancelled(keep_scanning(&shared)).await });
        }
        tokio::spawn({
            let (shared, stop) = (shared.clone(), stop.clone());
            async move { stop.run_until_cancelled(accept(listener, shared, &stop)).await }
        });
        Ok(Self { shared, port, _stop: stop.drop_guard() })
    }

    /// Names (`sim-0000`, `sim-0001`, …) and addresses of all nodes, in order.
    pub fn targets(&self) -> Vec<(String, SocketAddr)> {
        let address = |node| Some(SocketAddr::from((self.shared.address(node)?, self.port)));
        (0..self.shared.nodes.len())
            .filter_map(|node| Some((format!("sim-{node:04}"), address(node)?)))
            .collect()
    }

    /// Changes how a node answers from the next request on.
    pub fn set_behaviour(&self, node: usize, behaviour: Behaviour) {
        self.with(node, |node| node.behaviour = behaviour);
    }

    /// Changes how a node's scans fill its list, from the next scan on.
    pub(crate) fn set_mode(&self, node: usize, mode: Mode) {
        self.with(node, |node| node.mode = mode);
    }

    /// Changes the offenders on a node; the next scan lists them, with its own timestamp.
    pub fn set_offenders(&self, node: usize, offenders: Vec<Record>) {
        self.with(node, |node| node.offenders = offenders);
    }

    /// Changes how many made-up offenders run on a node; those that stay are the same as before.
    pub fn set_offender_count(&self, node: usize, count: usize) {
        let FleetOptions { seed, tenants, .. } = self.shared.options;
        self.set_offenders(node, (0..count).map(|which| offender(seed, node, which, tenants)).collect());
    }

    /// The offenders that run on a node, whether its agent lists them or not. Their timestamps are empty.
    pub fn offenders(&self, node: usize) -> Vec<Record> {
        self.with(node, |node| node.offenders.clone()).unwrap_or_default()
    }

    /// The Pod of the tenant that a node's behaviour puts beside its offenders, if it does: see
    /// [`Behaviour::LongCmdline`], [`Behaviour::Flood`] and [`Behaviour::FloodLong`].
    pub fn neighbour(&self, node: usize) -> Option<Record> {
        self.with(node, |node| node.neighbour()).flatten()
    }

    /// Scans a node now.
    pub fn scan_now(&self, node: usize) {
        self.with(node, Node::scan);
    }

    /// Restarts a node's agent: its list is empty until the next scan.
    pub fn restart(&self, node: usize) {
        self.with(node, Node::restart);
    }

    /// How many requests a node has received, of any kind.
    pub fn requests(&self, node: usize) -> u64 {
        self.with(node, |node| node.requests).unwrap_or_default()
    }

    /// Gives faults to the last nodes, see [`spread_faults`].
    pub fn inject(&self, faults: &[Fault]) -> Result<(), TooManyFaults> {
        for (node, behaviour) in spread_faults(faults, self.shared.nodes.len())? {
            self.set_behaviour(node, behaviour);
        }
        Ok(())
    }

    fn with<T>(&self, node: usize, act: impl FnOnce(&mut Node) -> T) -> Option<T> {
        let found = self.shared.nodes.get(node);
        if found.is_none() {
            tracing::warn!(node, nodes = self.shared.nodes.len(), "the fleet has no such node");
        }
        found.map(|node| act(&mut lock(node)))
    }
}

impl Shared {
    fn address(&self, node: usize) -> Option<Ipv4Addr> {
        u32::from(self.options.base).checked_add(u32::try_from(node).ok()?).map(Ipv4Addr::from)
    }

    /// The node to which a connection was made.
    fn addressed(&self, stream: &TcpStream) -> Option<&Mutex<Node>> {
        let IpAddr::V4(address) = stream.local_addr().ok()?.ip() else {
            return None;
        };
        let number = u32::from(address).checked_sub(self.options.base.into())?;
        self.nodes.get(usize::try_from(number).ok()?)
    }

    fn scan_where(&self, due: impl Fn(usize, &Node) -> bool) {
        for (number, node) in self.nodes.iter().enumerate() {
            let mut node = lock(node);
            if due(number, &node) {
                node.scan();
            }
        }
    }
}

/// A panic while the lock is held leaves no node half changed, so a poisoned lock is usable.
fn lock(node: &Mutex<Node>) -> MutexGuard<'_, Node> {
    node.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn keep_scanning(shared: &Shared) {
    let every = shared.options.scan_interval.max(Duration::from_millis(100));
    let mut ticks = interval(every / PHASES);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The ticks of the first interval belong to the scans at the start.
    for _ in 0..PHASES {
        ticks.tick().await;
    }
    for phase in (0..PHASES as usize).cycle() {
        ticks.tick().await;
        shared.scan_where(|number, _| number % PHASES as usize == phase);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, stop: &CancellationToken) {
    let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    while let Ok(permit) = permits.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (shared, stop) = (shared.clone(), stop.clone());
                tokio::spawn(async move {
                    // A connection to an address without a node is closed without an answer.
                    if let Some(node) = shared.addressed(&stream) {
                        stop.run_until_cancelled(wire::converse(stream, node)).await;
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                // Most likely all file descriptors are in use; connections in use will be closed.
                tracing::warn!(%error, "cannot accept a connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
