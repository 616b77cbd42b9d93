//! The persisted state in a file, for a service without Kubernetes. Only one process uses the file, so it always leads.
//!
//! The documents have the form of the objects in a cluster: `spec` is for operators, and `status` for the aggregator. A number in
//! place of the object's generation shows up to which command all have been carried out.
//!
//! A row that can't be read (because another version wrote it, for example) stays byte for byte, and affects only its
//! own App or exemption.

mod loss;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use procscan_core::state::{Declaration, EnforcementSpec, ExemptionSpec, Incident};
use serde_json::json;
use tokio::sync::{Mutex, watch};

use self::rows::{
    Rows, declared, document, enforced, everything, exempted, incident, logged, unreadable, written,
};
use super::command::{IncidentRequest, OperatorCommandError};
use super::sqlite::{self, Sqlite, StateErrorKind};
use super::{Batch, DecisionFilter, Document, Kind, Loaded, LoggedDecision, PersistedState, StateError};

/// How many decisions the log has at most: some tens of MiB.
const MAX_LOG: usize = 100_000;

/// The state in a directory. Clones share it.
#[derive(Clone, Debug)]
pub struct FileStore(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    directory: Box<Path>,
    /// The mode with which a new file begins if the old one was damaged or is gone.
    after_loss: Option<EnforcementSpec>,
    inner: Mutex<Inner>,
    shown: watch::Sender<Arc<PersistedState>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// `None` as long as it could not be opened.
    sqlite: Option<Sqlite>,
    /// The content of the file, as far as it is known.
    persisted: Arc<PersistedState>,
    /// The rows that can't be read, unchanged: they are copied into every file that replaces this one.
    unreadable: Vec<Document>,
    /// Whether all rows have been read at least once.
    is_read: bool,
    /// Whether no decision was persisted in this file yet, and operators have declared no mode.
    is_new: bool,
    /// The error that was last logged for each exemption that can't be read, by name.
    logged_errors: BTreeMap<String, String>,
    /// Whether the last read or write has failed, so that the content of the file has to be read before the next one.
    is_doubtful: bool,
}

impl FileStore {
    /// Opens the state in `directory`. A temporary failure (a full disk, for example) is tried again later. A file that another
    /// process uses, or of a newer version, is an error at once.
    pub async fn open(directory: &Path) -> Result<Self, StateError> {
        Self::open_with(directory, None).await
    }

    /// The same. If the file was damaged, all declarations of operators are lost with it. So the new one begins with
    /// `after_loss`, as long as it is empty and the damaged one is still there.
    pub async fn open_with(
        directory: &Path,
        after_loss: Option<EnforcementSpec>,
    ) -> Result<Self, StateError> {
        let store = Self(Arc::new(Shared {
            directory: directory.into(),
            after_loss,
            inner: Mutex::default(),
            shown: watch::channel(Arc::default()).0,
        }));
        match store.load().await {
            Err(StateError::File(error))
                if matches!(error.kind(), StateErrorKind::Locked | StateErrorKind::Newer) =>
            {
                Err(StateError::File(error))
            }
            Err(error) => {
                tracing::error!(alert = "state", %error, "the state file can't be read yet; trying again");
                Ok(store)
            }
            Ok(_) => Ok(store),
        }
    }

    /// The persisted state, with the commands of operators.
    pub fn shown(&self) -> watch::Receiver<Arc<PersistedState>> {
        self.0.shown.subscribe()
    }

    /// Whether an earlier file was found damaged.
    pub(crate) async fn has_set_aside(&self) -> bool {
        let sqlite = self.0.inner.lock().await.sqlite.clone();
        sqlite.is_some_and(|sqlite| sqlite.warnings().iter().any(|file| file.problem.is_some()))
    }

    /// Whether it has been read.
    pub(super) fn is_known(&self) -> bool {
        self.0.shown.borrow().is_complete
    }

    /// Reads the persisted state. Fails if the Enforcement can't be read. Other rows that can't be read are returned
    /// as such.
    pub async fn load(&self) -> Result<Loaded, StateError> {
        let mut inner = self.0.inner.lock().await;
        let inner = &mut *inner;
        let sqlite = match &inner.sqlite {
            Some(sqlite) => sqlite,
            None => inner.sqlite.insert(Sqlite::open(&self.0.directory).await?.0),
        };
        if inner.is_doubtful {
            // The content that is read now replaces the known one.
            sqlite.recover().await?;
            inner.is_doubtful = false;
        }
        let mut documents = sqlite.load().await.inspect_err(|_| inner.is_doubtful = true)?;
        // The damaged file may have been set aside by an earlier start in dry-run, or by one that was killed before
        // it could log that.
        if documents.is_empty()
            && let Some(lost) = sqlite.warnings().pop()
            && let Some(spec) = self.0.after_loss.as_ref().filter(|_| !inner.is_read)
        {
            documents.push(enforced(spec)?);
            let decisions = vec![declared(&Declaration::of_mode(spec, Timestamp::now()))?];
            sqlite.commit(&Batch { put: documents.clone(), decisions, ..Batch::default() }).await?;
            tracing::error!(
                alert = "state",
                mode = json!(spec.mode).as_str(),
                "{lost}. Lost with it are operators' releases, exemptions and mode, what brakes held, and what counts \
                 in their window. Before `resume`, look at `incidents --state watched`: each App that it lists \
                 and that is still accused may be blocked then, also one that a brake held. Release or exempt those that \
                 must not be blocked"
            );
        }
        if !inner.is_read {
            // A row may have been deleted by hand, but the log has its decisions.
            let any = DecisionFilter { namespace: None, since: None, before: None, skip: 0, limit: 1 };
            inner.is_new = documents.iter().all(|row| row.kind == Kind::Exemption)
                && sqlite.decisions(any).await.inspect_err(|_| inner.is_doubtful = true)?.is_empty();
        }
        let Rows { persisted, unreadable, enforcement } = Rows::of(&documents);
        (inner.persisted, inner.unreadable, inner.is_read) = (Arc::new(persisted), unreadable, true);
        inner.log_unread();
        self.show(inner);
        if let Some(error) = enforcement {
            return Err(error);
        }
        inner.loaded()
    }

    /// Persists incidents, all of them or none. Returns the names of those that can't be persisted, with the errors.
    pub async fn save(&self, incidents: Vec<Incident>) -> Vec<(String, StateError)> {
        let unread = self.0.shown.borrow().unread.incidents.clone();
        let (incidents, unreadable_ones): (Vec<_>, Vec<_>) =
            incidents.into_iter().partition(|incident| !unread.contains_key(&*incident.name));
        let refuse = |incident: Incident| {
            let error = unread.get(&*incident.name).cloned().unwrap_or_default();
            let place = format!("{} {}", Kind::Incident.as_str(), incident.name);
            (incident.name, StateError::Unreadable(place, error))
        };
        let mut failed: Vec<(String, StateError)> = unreadable_ones.into_iter().map(refuse).collect();
        let names: Vec<String> = incidents.iter().map(|incident| incident.name.clone()).collect();
        let change = |state: &mut PersistedState| {
            let mut batch = Batch::default();
            for Incident { name, spec, status } in incidents {
                batch.decisions.extend(logged(&name, &spec, &status)?);
                // Only operators change the spec of a known incident.
                let (spec, generation) = match state.incidents.get(&*name) {
                    Some(known) => (known.spec(), known.generation),
                    None => (spec, 0),
                };
                batch.put.push(written(&name, &spec, Some(&status), generation)?);
                let known = incident(&name, spec, Some(&status), generation)?;
                state.incidents.insert(name.into(), Arc::new(known));
            }
            Ok(batch)
        };
        if let Err::<_, StateError>(error) = self.change(change).await {
            failed.extend(names.into_iter().map(|name| (name, error.clone())));
        }
        failed
    }

    /// Removes the commands about an incident, unless there is a later one.
    pub(crate) async fn remove_commands(&self, name: &str) -> Result<(), StateError> {
        let change = |state: &mut PersistedState| {
            let mut batch = Batch::default();
            if let Some(incident) = state.incidents.get_mut(name).filter(|incident| incident.is_done()) {
                let incident = Arc::make_mut(incident);
                incident.requested = None;
                batch.put.push(document(name, incident)?);
            }
            Ok(batch)
        };
        self.change(change).await
    }

    /// Removes incidents.
    pub(crate) async fn remove(&self, names: &[String]) -> Result<(), StateError> {
        let change = |state: &mut PersistedState| {
            state.incidents.retain(|name, _| !names.iter().any(|gone| **gone == **name));
            let remove = names.iter().map(|name| (Kind::Incident, name.clone())).collect();
            Ok(Batch { remove, ..Batch::default() })
        };
        self.change(change).await
    }

    /// The log of decisions, the latest first: more of them than the incidents have.
    pub(crate) async fn decisions(&self, filter: DecisionFilter) -> Result<Vec<LoggedDecision>, StateError> {
        let sqlite = self.0.inner.lock().await.sqlite.clone();
        match sqlite {
            Some(sqlite) => Ok(sqlite.decisions(filter).await?),
            None => Ok(Vec::new()),
        }
    }

    /// Removes the entries from before `before` from the log, and the oldest beyond a bound. Returns how many.
    pub(crate) async fn retain(&self, before: Timestamp) -> Result<usize, StateError> {
        let sqlite = self.0.inner.lock().await.sqlite.clone();
        match sqlite {
            Some(sqlite) => Ok(sqlite.retain(before, MAX_LOG).await?),
            None => Ok(0),
        }
    }

    /// Makes all readers and writers of the state wait, like a disk that does not answer.
    #[cfg(test)]
    pub(crate) async fn hold(&self) -> impl Drop + '_ {
        self.0.inner.lock().await
    }

    pub(super) async fn submit(
        &self,
        name: &str,
        request: &IncidentRequest,
    ) -> Result<i64, OperatorCommandError> {
        let mut number = 0;
        let change = |state: &mut PersistedState| {
            if let Some(error) = state.unread.incidents.get(name) {
                return Err(OperatorCommandError::NotPersisted(format!(
                    "Incident {name} can't be read: {error}"
                )));
            }
            let Some(incident) = state.incidents.get_mut(name) else {
                return Err(OperatorCommandError::Unknown("incident", name.to_owned()));
            };
            let incident = Arc::make_mut(incident);
            let observed = incident.summary().map_or(0, |summary| summary.observed);
            let is_pending = incident.generation > observed;
            if !is_pending {
                // A command that has been carried out must not be carried out again with the next one.
                incident.requested = None;
            }
            let requested = incident.requested.get_or_insert_default();
            match request {
                IncidentRequest::Approve(_) if requested.approve.is_some() => {
                    return Err(OperatorCommandError::Busy(name.to_owned()));
                }
                IncidentRequest::Release(_) if requested.release.is_some() => {
                    return Err(OperatorCommandError::Busy(name.to_owned()));
                }
                IncidentRequest::Approve(approval) => requested.approve = Some(approval.clone()),
                IncidentRequest::Release(release) => requested.release = Some(release.clone()),
            }
            incident.generation = incident.generation.max(observed) + 1;
            number = incident.generation;
            Ok(Batch { put: vec![document(name, incident)?], ..Batch::default() })
        };
        self.change(change).await?;
        Ok(number)
    }

    pub(super) async fn add_exemption(
        &self,
        name: &str,
        exemption: &ExemptionSpec,
    ) -> Result<(), OperatorCommandError> {
        let change = |state: &mut PersistedState| {
            if state.exemptions.contains_key(name) || state.unread.exemptions.contains_key(name) {
                return Err(OperatorCommandError::Exists("exemption", name.to_owned()));
            }
            state.exemptions.insert(name.to_owned(), exemption.clone());
            let entry = declared(&Declaration::of_exemption(name, exemption, Timestamp::now()))?;
            Ok(Batch { put: vec![exempted(name, exemption)?], decisions: vec![entry], ..Batch::default() })
        };
        self.change(change).await
    }

    pub(super) async fn remove_exemption(&self, name: &str, by: &str) -> Result<(), OperatorCommandError> {
        let change = |state: &mut PersistedState| {
            let unread = state.unread.exemptions.remove(name);
            let spec = state.exemptions.remove(name);
            if spec.is_none() && unread.is_none() {
                return Err(OperatorCommandError::Unknown("exemption", name.to_owned()));
            }
            let entry = declared(&Declaration::of_withdrawal(name, spec.as_ref(), by, Timestamp::now()))?;
            let remove = vec![(Kind::Exemption, name.to_owned())];
            Ok(Batch { remove, decisions: vec![entry], ..Batch::default() })
        };
        self.change(change).await
    }

    pub(super) async fn set_enforcement(&self, spec: &EnforcementSpec) -> Result<(), OperatorCommandError> {
        let change = |state: &mut PersistedState| {
            (state.enforcement, state.is_complete) = (spec.clone(), true);
            let entry = declared(&Declaration::of_mode(spec, Timestamp::now()))?;
            Ok(Batch { put: vec![enforced(spec)?], decisions: vec![entry], ..Batch::default() })
        };
        self.change(change).await
    }

    /// Changes the persisted state, first in the file. After an error it is unchanged.
    async fn change<E: From<StateError>>(
        &self,
        change: impl FnOnce(&mut PersistedState) -> Result<Batch, E>,
    ) -> Result<(), E> {
        let mut inner = self.0.inner.lock().await;
        let inner = &mut *inner;
        let mut changed = PersistedState::clone(&inner.persisted);
        let batch = change(&mut changed)?;
        if batch == Batch::default() {
            return Ok(());
        }
        // If the file has to be replaced, only rows that have been read could be copied.
        let Some(sqlite) = inner.sqlite.as_ref().filter(|_| inner.is_read) else {
            return Err(StateError::NotOpen.into());
        };
        let committed = async {
            if inner.is_doubtful && sqlite.recover().await? {
                // This is another file than before, so the whole state has to be written into it.
                tracing::warn!("the state is written anew, from memory");
                sqlite.commit(&everything(&inner.persisted, &inner.unreadable)?).await?;
            }
            sqlite.commit(&batch).await.map_err(StateError::File)
        };
        match committed.await {
            Ok(()) => {
                inner.is_doubtful = false;
                inner.is_new &= batch.put.iter().all(|row| row.kind == Kind::Exemption);
                inner.unreadable.retain(|row| rows::is_unreadable(&changed, row));
                inner.persisted = Arc::new(changed);
                inner.log_unread();
                self.show(inner);
                Ok(())
            }
            Err(error) => {
                inner.is_doubtful = true;
                Err(error.into())
            }
        }
    }

    fn show(&self, inner: &Inner) {
        self.0.shown.send_replace(inner.persisted.clone());
    }
}

impl From<sqlite::StateError> for StateError {
    fn from(error: sqlite::StateError) -> Self {
        Self::File(error)
    }
}

impl Inner {
    /// The incidents as they were just read.
    fn loaded(&self) -> Result<Loaded, StateError> {
        let unread = &self.persisted.unread.incidents;
        let incidents = self.unreadable.iter().filter(|row| row.kind == Kind::Incident);
        let unreadable = incidents.filter_map(|row| {
            let error = unread.get(&*row.name)?;
            Some((row.name.clone(), unreadable(row, error)))
        });
        let documents = self.persisted.documents();
        let incidents =
            documents.map_err(|error| StateError::Unreadable(Kind::Incident.as_str().to_owned(), error))?;
        Ok(Loaded { incidents, unreadable: unreadable.collect() })
    }

    /// Logs each exemption that can't be read once. The policy logs incidents, because it decides nothing about their
    /// Apps.
    fn log_unread(&mut self) {
        let mut unread = self.persisted.unreadable();
        unread.retain(|object, _| object.starts_with(Kind::Exemption.as_str()));
        for (object, error) in &unread {
            if self.logged_errors.get(object) != Some(error) {
                tracing::error!(alert = "state", error, "an object can't be read");
            }
        }
        for object in self.logged_errors.keys().filter(|object| !unread.contains_key(*object)) {
            tracing::info!(object, "an object was mended or deleted, and is no longer unreadable");
        }
        self.logged_errors = unread;
    }
}
