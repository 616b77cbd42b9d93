//! The read model: the state of the service that the API and the live line on a terminal show. It knows neither HTTP nor who asks.

use std::sync::Arc;

use procscan_core::decision::Mode;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::cluster_facts::ClusterFactsStatus;
use crate::decided::Decided;
use crate::discovery::TargetSet;
use crate::kubernetes::Reach;
use crate::leader::Leadership;
use crate::ledger_task::Snapshots;
use crate::output::OutputStatus;
use crate::policy_task::Journal;
use crate::state::PersistedState;

/// Receivers of the state that each part of the service publishes.
#[derive(Clone, Debug)]
pub struct Views {
    /// The snapshots of the ledger.
    pub snapshots: Snapshots,
    /// The last decisions of the policy.
    pub decided: watch::Receiver<Arc<Decided>>,
    /// The targets.
    pub targets: watch::Receiver<Arc<TargetSet>>,
    /// Whether the cluster can be asked about accusations, and how long accusations wait for it.
    pub(crate) cluster_facts: watch::Receiver<ClusterFactsStatus>,
    /// The state of the output.
    pub output: watch::Receiver<OutputStatus>,
    /// The API server; `None` without a cluster.
    pub(crate) api_server: Option<ApiServer>,
    /// The persisted state.
    pub(crate) persisted: watch::Receiver<Arc<PersistedState>>,
    /// Why decisions can't be persisted; `None` if they can.
    pub(crate) persist_error: watch::Receiver<Option<String>>,
    /// Why the persisted state can't be watched; `None` if it can.
    pub(crate) state_error: watch::Receiver<Option<String>>,
    /// Why no leader can be elected; `None` if one can.
    pub(crate) lease_error: watch::Receiver<Option<String>>,
    /// Whether this replica leads.
    pub(crate) leadership: watch::Receiver<Leadership>,
    /// The last decisions of this replica.
    pub(crate) journal: Journal,
    /// The mode of the configuration.
    pub(crate) configured_mode: Mode,
    /// The clock of the service.
    pub(crate) clock: Clock,
}

impl Views {
    /// The mode in force, as far as this replica knows.
    pub(crate) fn mode(&self) -> Mode {
        self.persisted.borrow().enforcement.mode.unwrap_or(self.configured_mode)
    }
}

/// Whether the API server can be reached, and which parts need it.
#[derive(Clone, Debug)]
pub(crate) struct ApiServer {
    /// Whether it can be reached.
    pub(crate) reach: Reach,
    /// Accusations are looked up in it.
    pub(crate) has_lookups: bool,
    /// The objects are written to it.
    pub(crate) has_output: bool,
}
