//! File descriptors: connections of agents, of clients and to the cluster, and files share one limit. Many shells and container
//! runtimes set the soft limit to 1,024 and leave a far higher hard one to programs that know what to do with it. With 1,024, a
//! thousand idle clients of the API leave nothing for the agents, for the probes and for the output.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::api::MAX_CONNECTIONS;

/// For connections to the cluster, files, pipes and timers.
const OTHERS: u64 = 128;

/// Raises the soft limit to the hard one, and warns if that is too few. `concurrency` is how many agents are asked at the same
/// time; as many linger beside them.
pub(crate) fn raise_limit(concurrency: usize) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    if let Err(error) = &raised {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
    // No limit is none that is too low.
    let Some(limit) = (if raised.is_ok() { maximum } else { current }) else { return };
    let needed = (MAX_CONNECTIONS as u64).saturating_add(2 * concurrency as u64).saturating_add(OTHERS);
    if limit < needed {
        tracing::warn!(
            limit,
            needed,
            "the limit of open files is too low: with many clients, agents may not be asked and objects not be written"
        );
    }
}
