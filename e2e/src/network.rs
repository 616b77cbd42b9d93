//! Ports and addresses of the tests' network namespace.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::Context;

/// The API server's own address as Endpoints name it: the last one of the network, beyond the addresses of any fleet.
pub const APISERVER: Ipv4Addr = Ipv4Addr::new(10, 127, 255, 254);

/// The address of the first simulated node.
pub const FIRST_NODE: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 1);

/// The addresses that Pods get from here on, apart from those of the nodes.
pub const FIRST_POD: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// The addresses of Services: outside of the local range, so that no server answers there.
pub const SERVICES: &str = "10.200.0.0/16,fd00:200::/112";

/// Below the range that outgoing connections take their ports from (32768 on): a client that keeps trying to reach a
/// stopped server must not be given the server's port, and connect to itself.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

static NEXT: AtomicU16 = AtomicU16::new(PORTS.start);

/// A port of 127.0.0.1 without a listener. Each port is given out only once.
pub fn free_port() -> anyhow::Result<u16> {
    PORTS
        .map(|_| NEXT.fetch_add(1, Ordering::Relaxed))
        .take_while(|port| PORTS.contains(port))
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .context("no free port is left")
}
