//! The addresses of a headless Service, by name.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use procscan_core::names::NodeName;
use procscan_core::report::Target;

/// How long one look-up may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A name whose A and AAAA records are the agents.
#[derive(Debug)]
pub(crate) struct Dns {
    /// The name, such as `procscan.kube-system.svc.cluster.local`.
    pub(crate) name: String,
    /// The port that the agents listen on.
    pub(crate) port: u16,
}

impl Dns {
    /// Looks up the addresses, each once. DNS has no node names. Agents on the host's network have their node's
    /// address, which then names the node.
    pub(super) async fn find(&self) -> Result<Vec<Target>, String> {
        let lookup = tokio::net::lookup_host((self.name.as_str(), self.port));
        let found = tokio::time::timeout(TIMEOUT, lookup)
            .await
            .map_err(|_| format!("no answer within {}s", TIMEOUT.as_secs()))?
            .map_err(|e| format!("{} has no addresses: {e}", self.name))?;
        let addresses: BTreeSet<SocketAddr> = found.collect();
        Ok(addresses
            .into_iter()
            .map(|address| {
                let text = address.to_string();
                Target { address: text.as_str().into(), node: NodeName::new(text) }
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_becomes_its_addresses() {
        let found = Dns { name: "localhost".into(), port: 9090 }.find().await.unwrap();
        assert!(found.iter().any(|target| &*target.address == "127.0.0.1:9090"), "{found:?}");
        // Too long to be a name, so that no resolver is asked.
        let error = Dns { name: "x".repeat(300), port: 1 }.find().await.unwrap_err();
        assert!(error.contains("has no addresses"), "{error}");
    }
}
