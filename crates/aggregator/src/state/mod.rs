//! What has to outlast a restart: incidents, exemptions, and what operators want done.
//!
//! In a cluster these are objects ([`cluster`]), elsewhere a file. Only the leader writes incidents, and nothing follows from a
//! decision before it is kept. Operators' words are written by whoever hears them ([`Desk`]), so that they are kept before they
//! are answered; the leader sees them in what is kept, does them, and says so there.

pub mod cluster;
mod command;
mod compressed_json;
pub mod crd;
mod document;
mod file;
mod operator_commands;
pub mod persisted_state;
pub mod sqlite;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use procscan_core::decision::Decision;
use procscan_core::names::App;
use procscan_core::state::Incident;

pub use self::cluster::{Changed, ClusterStore};
pub use self::command::OperatorCommandError;
pub use self::document::{Batch, DecisionFilter, Document, Kind, LoggedDecision};
pub use self::file::FileStore;
pub use self::operator_commands::OperatorCommands;
pub use self::persisted_state::{
    Declared, IncidentEntry, ObjectVersion, PendingCommand, PersistedState, StateDigest, Unread,
    UnreadExemption,
};
use tokio::time::Instant;

use crate::kubernetes::{Refusal, RefusalKind};
use crate::leader::WritePermit;

/// Why what is kept can't be read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StateError {
    /// The cluster refuses.
    #[error("{0}")]
    Cluster(#[from] Refusal),
    /// The file can't be read or written.
    #[error("{0}")]
    File(sqlite::StateError),
    /// The file could not be opened so far.
    #[error("the state is not open yet")]
    NotOpen,
    /// These kinds were not listed in time.
    #[error("{0} were not listed within {within}", within = humantime::format_duration(*.1))]
    Unlisted(&'static str, Duration),
    /// What is there can't be understood.
    #[error("{0} can't be read: {1}")]
    Unreadable(String, String),
    /// It has no form in which it could be written.
    #[error("{0} can't be written: {1}")]
    Unwritable(String, String),
    /// A later leader has written it.
    #[error("Incident {0} was written by {1}, a later leader: this replica stops leading")]
    Superseded(String, String),
    /// Somebody else writes it.
    #[error("Incident {0} is being written by another replica")]
    Contended(String),
}

impl StateError {
    /// The right to write has passed on.
    pub fn is_lost(&self) -> bool {
        match self {
            Self::Cluster(refusal) => refusal.kind == RefusalKind::NotLeading,
            Self::Superseded(..) => true,
            _ => false,
        }
    }

    /// What is known of it is not what is there: everything has to be read again.
    pub fn is_outdated(&self) -> bool {
        matches!(self, Self::Contended(_))
    }
}

/// Everything that is kept.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The incidents of which something was decided.
    pub incidents: Vec<Incident>,
    /// The incidents that can't be read, by name.
    pub unreadable: BTreeMap<String, Unreadable>,
}

/// An incident that can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its App, if it can be read.
    pub app: Option<App>,
    /// What is wrong with it.
    pub error: String,
}

impl From<Vec<Incident>> for Loaded {
    fn from(incidents: Vec<Incident>) -> Self {
        Self { incidents, unreadable: BTreeMap::new() }
    }
}

/// Where incidents are kept, for the leader.
#[derive(Debug)]
pub enum Store {
    /// As objects in the cluster.
    Cluster(Box<ClusterStore>),
    /// In a file.
    File(FileStore),
    /// Nowhere: whoever only wants to know what would be decided begins with a copy.
    Copy(Vec<Incident>),
}

impl Store {
    /// Reads what operators want, where nothing watches it: a file that could not be read at the start.
    pub async fn read_declarations(&mut self) -> Result<(), StateError> {
        match self {
            Self::File(store) if !store.is_known() => store.load().await.map(drop),
            Self::Cluster(_) | Self::File(_) | Self::Copy(_) => Ok(()),
        }
    }

    /// Asks the watch for what operators declare now, and for the incidents too if `with_incidents`. Returns the
    /// [`Kept::as_of`] that has it.
    pub fn relist(&self, with_incidents: bool) -> u64 {
        match self {
            Self::Cluster(store) => store.relist(with_incidents),
            Self::File(_) | Self::Copy(_) => 0,
        }
    }

    /// The incidents that were read in a later version than the watch shows.
    pub fn unseen(&self, persisted: &PersistedState) -> BTreeMap<String, ObjectVersion> {
        match self {
            Self::Cluster(store) => store.unseen(persisted),
            Self::File(_) | Self::Copy(_) => BTreeMap::new(),
        }
    }

    /// The time of the API server that keeps the state, if it is known.
    pub fn server_time(&self) -> Option<Timestamp> {
        match self {
            Self::Cluster(store) => store.server_time(),
            Self::File(_) | Self::Copy(_) => None,
        }
    }

    /// Reads everything that is kept. `seen` is what is shown of it already.
    pub async fn load(&mut self, permit: &WritePermit, seen: &PersistedState) -> Result<Loaded, StateError> {
        match self {
            Self::Cluster(store) => store.load(permit, seen).await,
            Self::File(store) => store.load().await,
            Self::Copy(incidents) => Ok(incidents.clone().into()),
        }
    }

    /// For a start that finds Apps blocked: a file in which nothing was decided yet goes on as after damage, because the one
    /// before may be lost. Persisted when this returns.
    ///
    /// Not where Incidents are objects: there a first start beside the `WasmPlugin` of an earlier program is the usual
    /// migration, and it enforces.
    pub async fn begin_after_loss(&self) -> Result<(), StateError> {
        match self {
            Self::File(store) => store.begin_after_loss().await,
            Self::Cluster(_) | Self::Copy(_) => Ok(()),
        }
    }

    /// Keeps incidents. Whatever follows from one may only follow after this. One that can't be kept does not stand in the way of
    /// the others: gives their names, and why.
    pub async fn save(
        &mut self,
        permit: &WritePermit,
        incidents: Vec<Incident>,
    ) -> Vec<(String, StateError)> {
        match self {
            Self::Cluster(store) => store.save(permit, incidents).await,
            Self::File(store) => store.save(incidents).await,
            Self::Copy(_) => Vec::new(),
        }
    }

    /// Tells decisions, by the names of their incidents, to whoever listens where they are kept.
    pub fn announce(&self, permit: &WritePermit, decisions: &[(String, Decision)]) {
        if let Self::Cluster(store) = self {
            store.announce(permit, decisions);
        }
    }

    /// Takes away what operators wanted of an incident, because it has been done.
    pub async fn remove_commands(&mut self, permit: &WritePermit, name: &str) -> Result<(), StateError> {
        match self {
            Self::Cluster(store) => store.remove_commands(permit, name).await,
            Self::File(store) => store.remove_commands(name).await,
            Self::Copy(_) => Ok(()),
        }
    }

    /// The incidents whose objects differ from what was written last.
    pub fn changed(&mut self, persisted: &PersistedState) -> Vec<Changed> {
        match self {
            Self::Cluster(store) => store.changed(persisted),
            Self::File(_) | Self::Copy(_) => Vec::new(),
        }
    }

    /// When to look for changed objects again without any news.
    pub fn next_look(&self) -> Option<Instant> {
        match self {
            Self::Cluster(store) => store.next_look(),
            Self::File(_) | Self::Copy(_) => None,
        }
    }

    /// Takes an incident's object as it is, where nothing can be written in its place.
    pub fn accept(&mut self, persisted: &PersistedState, name: &str) {
        if let Self::Cluster(store) = self {
            store.accept(persisted, name);
        }
    }

    /// Lets go of the log of decisions from before `before`, where there is one beside the incidents.
    pub async fn retain(&mut self, before: Timestamp) -> Result<usize, StateError> {
        match self {
            Self::File(store) => store.retain(before).await,
            Self::Cluster(_) | Self::Copy(_) => Ok(0),
        }
    }

    /// Forgets incidents.
    pub async fn remove(&mut self, permit: &WritePermit, names: &[String]) -> Result<(), StateError> {
        match self {
            Self::Cluster(store) => store.remove(permit, names).await,
            Self::File(store) => store.remove(names).await,
            Self::Copy(_) => Ok(()),
        }
    }
}
