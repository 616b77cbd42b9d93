//! The read model: the state of the service that the API, the metrics and the live line on a terminal show. It knows neither
//! HTTP nor the caller.

use std::sync::Arc;

use procscan_core::decision::Mode;
use procscan_core::policy::Policy;
use tokio::sync::{mpsc, watch};

use crate::clock::Clock;
use crate::cluster_facts::ClusterFactsStatus;
use crate::collector::Observation;
use crate::decided::Decided;
use crate::discovery::TargetSet;
use crate::kubernetes::Reach;
use crate::leader::Leadership;
use crate::ledger_task::Snapshots;
use crate::output::OutputStatus;
use crate::policy_task::Journal;
use crate::reload::ConfigStatus;
use crate::state::PersistedState;
use crate::tls::TlsStatus;

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
    /// The rules of the configuration.
    pub(crate) policy: watch::Receiver<Arc<Policy>>,
    /// The configuration in force.
    pub(crate) config: watch::Receiver<ConfigStatus>,
    /// The certificate of the HTTP API.
    pub(crate) tls: watch::Receiver<TlsStatus>,
    /// The queues between the parts.
    pub(crate) queues: Queues,
    /// The clock of the service.
    pub(crate) clock: Clock,
}

impl Views {
    /// The mode of the configuration.
    pub(crate) fn configured_mode(&self) -> Mode {
        self.policy.borrow().mode
    }

    /// The mode in force, as far as this replica knows.
    pub(crate) fn mode(&self) -> Mode {
        self.persisted.borrow().enforcement.mode.unwrap_or_else(|| self.configured_mode())
    }

    /// Whether this replica knows which one leads.
    pub(crate) fn knows_leader(&self) -> bool {
        match &*self.leadership.borrow() {
            Leadership::Leading(permit) => permit.holds(),
            Leadership::Following { leader } => leader.is_some(),
        }
    }

    /// Why accusations can't be judged; `None` if they can.
    pub(crate) fn evidence_trouble(&self) -> Option<String> {
        let own = self.cluster_facts.borrow().problem();
        joined([self.without_api_server(|it| it.has_lookups), own])
    }

    /// Why the objects are not all as planned; `None` if they are.
    pub(crate) fn output_trouble(&self) -> Option<String> {
        let OutputStatus { error, left_open, deferred, junk, .. } = self.output.borrow().clone();
        joined([self.without_api_server(|it| it.has_output), joined([error, left_open, deferred, junk])])
    }

    /// Why the state can't be persisted or read; `None` if it can.
    pub(crate) fn state_trouble(&self) -> Option<String> {
        let errors = joined([self.persist_error.borrow().clone(), self.state_error.borrow().clone()]);
        // No watch reports the rows of a state file that can't be read.
        errors.or_else(|| joined(self.persisted.borrow().unreadable().into_values().take(3).map(Some)))
    }

    /// Why the API server can't be reached, if the part that `needs` it does. A part that sends no request at the moment has
    /// no error of its own.
    fn without_api_server(&self, needs: fn(&ApiServer) -> bool) -> Option<String> {
        self.api_server.as_ref().filter(|it| needs(it))?.reach.trouble()
    }

    /// Each part that may fail, and what is wrong with it.
    pub(crate) fn troubles(&self) -> Vec<(&'static str, Option<String>)> {
        let mut troubles = vec![
            ("discovery", self.targets.borrow().error.clone()),
            ("evidence", self.evidence_trouble()),
            ("output", self.output_trouble()),
            ("state", self.state_trouble()),
            ("leader", self.lease_error.borrow().clone()),
            ("config", self.config.borrow().trouble()),
            ("certificate", self.tls.borrow().error.clone()),
        ];
        if let Some(api_server) = &self.api_server {
            troubles.push(("api_server", api_server.reach.trouble()));
        }
        troubles
    }
}

/// All texts on one line; `None` if there are none.
fn joined(texts: impl IntoIterator<Item = Option<String>>) -> Option<String> {
    let texts: Vec<String> = texts.into_iter().flatten().collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

/// The queues between the parts, without a share in keeping them open.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queues {
    observations: Option<mpsc::WeakSender<Observation>>,
}

impl Queues {
    /// Of the channel from the collector to the ledger.
    pub(crate) fn new(observations: &mpsc::Sender<Observation>) -> Self {
        Self { observations: Some(observations.downgrade()) }
    }

    /// How many reports wait for the ledger.
    pub(crate) fn observations(&self) -> usize {
        let sender = self.observations.as_ref().and_then(mpsc::WeakSender::upgrade);
        sender.map_or(0, |sender| sender.max_capacity() - sender.capacity())
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
