//! Who may write to the cluster: one replica at a time, by a Lease that all of them look at.
//!
//! The leader's right, its [`Pen`], ends by its own monotonic clock, counted from before it asked for the renewal. Another
//! takes over when the Lease has not changed for its whole duration by *its* own clock, counted from after it has seen the
//! change. So the first has ended before the second begins, whatever the wall clocks say and however long an answer takes;
//! the margin is for clocks that run at different speeds.

mod candidate;
mod lease;
pub mod removal;
#[cfg(test)]
mod tests;
mod write_permit;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::candidate::Candidate;
pub use self::write_permit::WritePermit;
use crate::kubernetes::Cluster;

const LEASES: &str = "leases.coordination.k8s.io";
/// The Pod's name, by the downward API.
const POD_NAME: &str = "POD_NAME";
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// Who leads, as this process knows it.
#[derive(Clone, Debug)]
pub enum Leadership {
    /// Somebody else, or nobody.
    Following {
        /// The other's identity, if it is known.
        leader: Option<String>,
    },
    /// This process, as long as the Pen holds: it may have ended without anybody having said so yet.
    Leading(WritePermit),
}

/// When what is done to the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long others wait after the last change. Whole seconds, at most 300.
    pub lease_duration: Duration,
    /// How much earlier the leader's own right ends.
    pub margin: Duration,
    /// How often the leader renews it.
    pub renew: Duration,
    /// How often the others look at it, and the pause after what went wrong.
    pub retry: Duration,
    /// How long one request may take.
    pub request_timeout: Duration,
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
    /// What the Lease calls us. No two processes have the same.
    pub identity: String,
    /// When what is done.
    pub lease: Timing,
}

impl Leadership {
    /// The right to write, if this process leads.
    pub fn permit(&self) -> Option<&WritePermit> {
        match self {
            Self::Following { .. } => None,
            Self::Leading(permit) => Some(permit),
        }
    }
}

impl Default for Timing {
    /// A leader that dies is followed by another within 11 s; one that stops on purpose, within 1 s. An API server that does
    /// not answer for 4 s costs nobody the lead.
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
    /// How long a term lasts from the moment before it was asked for, or for its renewal.
    fn term(&self) -> Duration {
        self.lease_duration.saturating_sub(self.margin)
    }
}

impl Election {
    /// Runs until cancelled; then the lead is given up, and the Lease with it. `error` says what is wrong with the Lease, if
    /// anything is.
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

/// The lead of a process that needs no Lease. Nothing ever changes, and nobody is there to say so: `changed()` fails.
pub fn alone() -> watch::Receiver<Leadership> {
    watch::channel(Leadership::Leading(WritePermit::always())).1
}

/// What the Lease calls this process: the Pod's name, else the host's, and something that the next process of that name does
/// not share.
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
