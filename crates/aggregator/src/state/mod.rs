//! The persisted state: incidents, exemptions, the mode and the operator commands. It outlasts restarts.
//!
//! In a cluster it consists of objects (`cluster`), elsewhere of a file. Only the leader writes incidents, and
//! nothing follows from a decision before it is persisted.
//!
//! The replica that receives an operator command persists it ([`OperatorCommands`]) before it answers. The leader
//! reads the command from the persisted state, carries it out, and notes there that it is done.

pub(crate) mod cluster;
mod command;
mod compressed_json;
pub(crate) mod crd;
mod document;
mod file;
mod operator_commands;
pub(crate) mod persisted_state;
pub mod sqlite;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use procscan_core::decision::Decision;
use procscan_core::names::App;
use procscan_core::state::Incident;

pub(crate) use self::cluster::{Changed, ClusterStore};
pub use self::command::OperatorCommandError;
pub(crate) use self::document::{Batch, DecisionFilter, Document, Kind, LoggedDecision};
pub use self::file::FileStore;
pub use self::operator_commands::OperatorCommands;
pub(crate) use self::persisted_state::{
    IncidentEntry, ObjectVersion, PendingCommand, PersistedState, StateDigest, UnreadExemption,
};
use tokio::time::Instant;

use crate::kubernetes::WritePermit;
use crate::kubernetes::{Refusal, RefusalKind};

/// Why the persisted state can't be read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StateError {
    /// The API server refuses the request.
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
    /// The content can't be read.
    #[error("{0} can't be read: {1}")]
    Unreadable(String, String),
    /// The content has no form in which it could be written.
    #[error("{0} can't be written: {1}")]
    Unwritable(String, String),
    /// A later leader has written the Incident.
    #[error("Incident {0} was written by {1}, a later leader: this replica stops leading")]
    Superseded(String, String),
    /// Another program writes the Incident again and again.
    #[error("Incident {0} is being written by another replica")]
    Contended(String),
}

impl StateError {
    /// Whether this replica has lost the right to write.
    pub(crate) fn is_lost(&self) -> bool {
        match self {
            Self::Cluster(refusal) => refusal.kind == RefusalKind::NotLeading,
            Self::Superseded(..) => true,
            _ => false,
        }
    }

    /// Whether the state in memory is old, so that everything has to be read again.
    pub(crate) fn is_outdated(&self) -> bool {
        matches!(self, Self::Contended(_))
    }
}

/// The persisted incidents.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The incidents with decisions.
    pub incidents: Vec<Incident>,
    /// The incidents that can't be read, by name.
    pub unreadable: BTreeMap<String, Unreadable>,
}

/// An incident that can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its App, if it can be read.
    pub(crate) app: Option<App>,
    /// The error.
    pub(crate) error: String,
}

impl From<Vec<Incident>> for Loaded {
    fn from(incidents: Vec<Incident>) -> Self {
        Self { incidents, unreadable: BTreeMap::new() }
    }
}

/// Where the leader persists incidents.
#[derive(Debug)]
pub(crate) enum Store {
    /// As objects in the cluster.
    Cluster(Box<ClusterStore>),
    /// In a file.
    File(FileStore),
    /// In no place, because the caller only simulates decisions. It begins with these incidents.
    Copy(Vec<Incident>),
}

impl Store {
    /// Reads the declarations of operators if no task watches them: a file that could not be read at the start.
    pub(crate) async fn read_declarations(&mut self) -> Result<(), StateError> {
        match self {
            Self::File(store) if !store.is_known() => store.load().await.map(drop),
            Self::Cluster(_) | Self::File(_) | Self::Copy(_) => Ok(()),
        }
    }

    /// Asks the watch to list the declarations of operators anew, and the incidents too if `with_incidents`. Returns
    /// the [`PersistedState::as_of`] of the state that has the new lists.
    pub(crate) fn relist(&self, with_incidents: bool) -> u64 {
        match self {
            Self::Cluster(store) => store.relist(with_incidents),
            Self::File(_) | Self::Copy(_) => 0,
        }
    }

    /// The incidents that were read in a later version than the watch shows.
    pub(crate) fn unseen(&self, persisted: &PersistedState) -> BTreeMap<String, ObjectVersion> {
        match self {
            Self::Cluster(store) => store.unseen(persisted),
            Self::File(_) | Self::Copy(_) => BTreeMap::new(),
        }
    }

    /// The API server's time, if it is known; `None` for a file.
    pub(crate) fn server_time(&self) -> Option<Timestamp> {
        match self {
            Self::Cluster(store) => store.server_time(),
            Self::File(_) | Self::Copy(_) => None,
        }
    }

    /// Reads all incidents. `seen` is the state that the watch shows already.
    pub(crate) async fn load(
        &mut self,
        permit: &WritePermit,
        seen: &PersistedState,
    ) -> Result<Loaded, StateError> {
        match self {
            Self::Cluster(store) => store.load(permit, seen).await,
            Self::File(store) => store.load().await,
            Self::Copy(incidents) => Ok(incidents.clone().into()),
        }
    }

    /// For a start that finds Apps blocked. A file in which nothing was decided yet goes on as after damage, because
    /// the file before may be lost. That is persisted when this returns.
    ///
    /// Does nothing if Incidents are objects. There a first start beside the `WasmPlugin` of an earlier program is
    /// the usual migration, and it enforces.
    pub(crate) async fn begin_after_loss(&self) -> Result<(), StateError> {
        match self {
            Self::File(store) => store.begin_after_loss().await,
            Self::Cluster(_) | Self::Copy(_) => Ok(()),
        }
    }

    /// Persists incidents. Nothing may follow from a decision before this. An incident that can't be persisted does
    /// not hinder the others. Returns the names of those that can't be persisted, with the errors.
    pub(crate) async fn save(
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

    /// Writes decisions as Events of their incidents, which are given by name. Does nothing for a file.
    pub(crate) fn announce(&self, permit: &WritePermit, decisions: &[(String, Decision)]) {
        if let Self::Cluster(store) = self {
            store.announce(permit, decisions);
        }
    }

    /// Removes the commands about an incident that have been carried out.
    pub(crate) async fn remove_commands(
        &mut self,
        permit: &WritePermit,
        name: &str,
    ) -> Result<(), StateError> {
        match self {
            Self::Cluster(store) => store.remove_commands(permit, name).await,
            Self::File(store) => store.remove_commands(name).await,
            Self::Copy(_) => Ok(()),
        }
    }

    /// The incidents whose objects differ from the last write.
    pub(crate) fn changed(&mut self, persisted: &PersistedState) -> Vec<Changed> {
        match self {
            Self::Cluster(store) => store.changed(persisted),
            Self::File(_) | Self::Copy(_) => Vec::new(),
        }
    }

    /// When to check for changed objects again, even if the watch shows no change.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        match self {
            Self::Cluster(store) => store.next_look(),
            Self::File(_) | Self::Copy(_) => None,
        }
    }

    /// Accepts an incident's object as it is, because nothing can be written in its place.
    pub(crate) fn accept(&mut self, persisted: &PersistedState, name: &str) {
        if let Self::Cluster(store) = self {
            store.accept(persisted, name);
        }
    }

    /// Removes the entries from before `before` from the log of decisions, if there is one beside the incidents.
    pub(crate) async fn retain(&mut self, before: Timestamp) -> Result<usize, StateError> {
        match self {
            Self::File(store) => store.retain(before).await,
            Self::Cluster(_) | Self::Copy(_) => Ok(0),
        }
    }

    /// Removes incidents.
    pub(crate) async fn remove(&mut self, permit: &WritePermit, names: &[String]) -> Result<(), StateError> {
        match self {
            Self::Cluster(store) => store.remove(permit, names).await,
            Self::File(store) => store.remove(names).await,
            Self::Copy(_) => Ok(()),
        }
    }
}
