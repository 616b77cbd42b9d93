//! Where decisions are persisted and objects are written, and the election of the replica that may write.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use procscan_core::decision::Mode;
use procscan_core::state::EnforcementSpec;
use tokio::sync::watch;

use crate::config::{Config, OutputMode, StateMode};
use crate::counters::Counters;
use crate::kubernetes::Cluster;
use crate::leader::{self, Election, Timing};
use crate::output::cluster::ClusterOutput;
use crate::output::{Directory, DirectoryError, Output};
use crate::state::cluster::{Objects, Watching};
use crate::state::{ClusterStore, FileStore, OperatorCommands, PersistedState, Store};

/// The name of the Lease by which the replicas agree which of them writes.
pub(crate) const LEASE: &str = "procscan-aggregator";

/// The namespace of the persisted state, if none is configured and the service runs in none.
const DEFAULT_NAMESPACE: &str = "kube-system";

/// The reason of the pause after a damaged state file.
const AFTER_LOSS: &str = "the state file was damaged, and what operators declared and what brakes held is lost with it; before \
    `resume`, look at `incidents --state watched`: each App that it lists and that is still accused may be blocked then; \
    release or exempt those that must not be blocked";

/// Connects to the cluster, if the configuration needs one.
pub(crate) async fn cluster(config: &Config, counters: Counters) -> anyhow::Result<Option<Cluster>> {
    if !config.needs_cluster() {
        return Ok(None);
    }
    Cluster::connect_counted(&config.kubernetes, counters).await.map(Some)
}

/// Where decisions are persisted, and the election of the replica that may write.
pub(super) struct Persistence {
    pub(super) store: Store,
    pub(super) operator_commands: OperatorCommands,
    pub(super) namespace: Option<String>,
    pub(super) persisted: watch::Receiver<Arc<PersistedState>>,
    pub(super) watching: Option<(Watching, watch::Sender<Arc<PersistedState>>)>,
    pub(super) election: Option<Election>,
}

impl Persistence {
    /// Opens the place that the configuration names.
    pub(super) async fn open(config: &Config, cluster: Option<&Cluster>) -> anyhow::Result<Self> {
        match (config.state_mode(), cluster) {
            (StateMode::Cluster, Some(cluster)) => {
                let objects = objects(config, cluster);
                let (show, persisted) = watch::channel(Arc::default());
                let (watching, relist) = Watching::new(objects.clone());
                Ok(Self {
                    persisted,
                    store: Store::Cluster(Box::new(ClusterStore::new(objects.clone(), Some(relist)))),
                    operator_commands: OperatorCommands::Cluster(objects.clone()),
                    namespace: Some(objects.namespace().to_owned()),
                    watching: Some((watching, show)),
                    election: Some(election(config, cluster)),
                })
            }
            (StateMode::Cluster, None) => anyhow::bail!("state.mode: cluster needs a cluster"),
            (StateMode::File, _) => {
                // Operators' releases and exemptions are lost, so no new App is blocked before an operator has looked.
                // Dry-run blocks no App in any case.
                let after_loss = EnforcementSpec {
                    mode: Some(Mode::Paused),
                    by: Some("procscan-aggregator".to_owned()),
                    reason: Some(AFTER_LOSS.to_owned()),
                };
                let after_loss = Some(after_loss).filter(|_| config.policy().mode != Mode::DryRun);
                let store = FileStore::open_with(config.state.directory(), after_loss)
                    .await
                    .context("state.directory")?;
                Ok(Self {
                    persisted: store.shown(),
                    operator_commands: OperatorCommands::File(store.clone()),
                    store: Store::File(store),
                    namespace: None,
                    watching: None,
                    election: cluster
                        .filter(|_| config.needs_lease())
                        .map(|cluster| election(config, cluster)),
                })
            }
        }
    }
}

/// The objects in which decisions are persisted.
pub(crate) fn objects(config: &Config, cluster: &Cluster) -> Objects {
    let namespace =
        config.state.namespace.as_deref().or(cluster.own_namespace()).unwrap_or(DEFAULT_NAMESPACE);
    Objects::new(cluster.clone(), namespace.to_owned())
}

/// The election of the replica that writes to the cluster, even if the decisions are persisted in a file.
fn election(config: &Config, cluster: &Cluster) -> Election {
    Election {
        cluster: cluster.clone(),
        namespace: objects(config, cluster).namespace().to_owned(),
        name: LEASE.to_owned(),
        identity: leader::identity(),
        lease: Timing::default(),
    }
}

/// The output to which objects are written. `open` opens a directory; a caller that only reads passes
/// [`Directory::at`].
pub(crate) fn output(
    config: &Config,
    cluster: Option<&Cluster>,
    open: impl FnOnce(&Path) -> Result<Directory, DirectoryError>,
) -> anyhow::Result<Output> {
    Ok(match (config.output.mode, cluster) {
        (OutputMode::Cluster, Some(cluster)) => {
            Output::Cluster(Box::new(ClusterOutput::new(cluster.clone())))
        }
        (OutputMode::Cluster, None) => anyhow::bail!("output.mode: cluster needs a cluster"),
        (OutputMode::Directory, _) => {
            Output::Directory(open(config.output.directory()).context("output.directory")?)
        }
    })
}

/// Locks the directory of `output`, so that no other process writes there. Processes that share a Lease, which decides
/// which of them writes, may share the directory.
pub(super) fn lock(output: &mut Output, election: Option<&Election>) -> anyhow::Result<()> {
    let Output::Directory(directory) = output else { return Ok(()) };
    let locked = match election {
        Some(Election { cluster, namespace, name, .. }) => directory.lock_for(cluster, namespace, name),
        None => directory.lock(None),
    };
    locked.context("output.directory")
}
