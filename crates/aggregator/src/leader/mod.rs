//! Elects the one replica that may write to the cluster, by a Lease that all replicas read.
//!
//! The leader's [`WritePermit`] ends by the leader's own monotonic clock, counted from before it requested the
//! renewal. Another replica takes over when it has seen no change of the Lease for the whole duration. It counts by
//! *its* own clock, from after it saw the last change. So the first term has ended before the second begins, whatever
//! the wall clocks show and however long an answer takes. The margin is for clocks that run at different speeds.

mod candidate;
mod lease;
pub(crate) mod removal;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::candidate::Candidate;
use crate::kubernetes::{Cluster, WritePermit};

const LEASES: &str = "leases.coordination.k8s.io";
/// The variable that has the Pod's name, by the downward API.
const POD_NAME: &str = "POD_NAME";
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// Which replica leads, as far as this process knows.
#[derive(Clone, Debug)]
pub enum Leadership {
    /// Another replica leads, or none.
    Following {
        /// The leader's identity, if it is known.
        leader: Option<String>,
    },
    /// This process leads as long as the permit holds. The permit may have ended before this value changes.
    Leading(WritePermit),
}

/// The times of the election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long other replicas wait after the last change. Whole seconds, at most 300.
    pub(crate) lease_duration: Duration,
    /// How much earlier the leader's permit ends.
    pub(crate) margin: Duration,
    /// How often the leader renews the Lease.
    pub(crate) renew: Duration,
    /// How often the other replicas read the Lease, and the pause after an error.
    pub(crate) retry: Duration,
    /// How long one request may take.
    pub(crate) request_timeout: Duration,
}

/// A candidate for the Lease.
#[derive(Debug)]
pub struct Election {
    /// The connection.
    pub cluster: Cluster,
    /// The Lease's namespace.
    pub namespace: String,
    /// The Lease's name.
    pub name: String,
    /// The identity of this process in the Lease. No two processes have the same one.
    pub identity: String,
    /// The times of the election.
    pub lease: Timing,
}

impl Leadership {
    /// The write permit, if this process leads.
    pub fn permit(&self) -> Option<&WritePermit> {
        match self {
            Self::Following { .. } => None,
            Self::Leading(permit) => Some(permit),
        }
    }
}

impl Default for Timing {
    /// Another replica follows a leader that dies within 11 s, and a leader that stops on purpose within 1 s. An API
    /// server that does not answer for 4 s ends no term.
    fn default() -> Self {
        Self {
            lease_duration: Duration::from_secs(10),
            margin: Duration::from_secs(2),
            renew: Duration::from_secs(2),
            retry: Duration::from_secs(1),
            request_timeout: Duration::from_secs(2),
        }
    }
}

impl Timing {
    /// How long a permit lasts from the moment before the request for the Lease, or for its renewal.
    fn term(&self) -> Duration {
        self.lease_duration.saturating_sub(self.margin)
    }
}

impl Election {
    /// Runs until cancelled. Then the term ends, and the Lease is given back. `error` has the reason why the Lease
    /// can't be read or written, if there is one.
    pub async fn run(
        self,
        leadership: watch::Sender<Leadership>,
        error: watch::Sender<Option<String>>,
        cancel: CancellationToken,
    ) {
        let mut candidate = Candidate::new(self, leadership, error);
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = candidate.stand() => {}
        }
        candidate.retire().await;
    }
}

/// The leadership of a process that needs no Lease. It never changes and has no sender, so `changed()` fails.
pub(crate) fn alone() -> watch::Receiver<Leadership> {
    watch::channel(Leadership::Leading(WritePermit::always())).1
}

/// The identity of this process in the Lease: the name of the Pod or else of the host, and a random number. So the
/// next process of that name has another identity.
pub fn identity() -> String {
    let host = || std::fs::read_to_string(HOST_NAME).ok();
    identity_of(std::env::var(POD_NAME).ok(), host)
}

fn identity_of(pod: Option<String>, host: impl FnOnce() -> Option<String>) -> String {
    let named = |name: String| Some(name.trim().to_owned()).filter(|name| !name.is_empty());
    let name = pod.and_then(named).or_else(|| host().and_then(named));
    // The keys of a hasher are random.
    let process = RandomState::new().build_hasher().finish();
    format!("{}_{process:016x}", name.as_deref().unwrap_or("procscan-aggregator"))
}
