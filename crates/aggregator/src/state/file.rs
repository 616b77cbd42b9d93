//! What is kept, in a file: for a service without Kubernetes. One process has it for itself, so it always leads.
//!
//! The documents are those of the cluster, in the same shape, `spec` for operators and `status` for us; a number in place of
//! the object's generation says up to which of the operators' words everything has been done.

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use procscan_core::state::incident::{AppRef, Decision};
use procscan_core::state::{
    EnforcementSpec, ExemptionSpec, Incident, IncidentSpec, IncidentStatus, enforcement,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Mutex, watch};

use super::desk::{DeskError, Want};
use super::sqlite::{self, Sqlite, StateErrorKind};
use super::{Batch, DecisionFilter, Document, Kept, KeptIncident, Kind, LoggedDecision, StateError};

/// How many decisions the log has at most: some tens of MiB.
const MAX_LOG: usize = 100_000;

/// The state in a directory. Clones share it.
#[derive(Clone, Debug)]
pub struct FileStore(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    directory: Box<Path>,
    /// With what to go on if the state was damaged, and with it what operators wanted.
    after_loss: Option<EnforcementSpec>,
    inner: Mutex<Inner>,
    shown: watch::Sender<Arc<Kept>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Nothing as long as it could not be opened.
    sqlite: Option<Sqlite>,
    /// What is in it, as far as we know.
    kept: Arc<Kept>,
    /// The last read or write has failed: before the next one it has to be found out what is there.
    is_doubtful: bool,
}

/// An incident as it is kept.
#[derive(Deserialize)]
struct Body {
    spec: IncidentSpec,
    status: Option<IncidentStatus>,
    generation: i64,
}

/// The same, to be written.
#[derive(Serialize)]
struct BodyRef<'a> {
    spec: &'a IncidentSpec,
    status: Option<&'a IncidentStatus>,
    generation: i64,
}

/// An entry of the log.
#[derive(Serialize)]
struct Entry<'a> {
    incident: &'a str,
    app: &'a AppRef,
    decision: &'a Decision,
}

impl FileStore {
    /// Opens the state in `directory`. What only has to be waited out (a full disk, for example) is tried again later; a file that
    /// is another's, or of a newer version, is an error at once.
    pub async fn open(directory: &Path) -> Result<Self, StateError> {
        Self::open_with(directory, None).await
    }

    /// The same. If the file was damaged, and everything that operators wanted is lost with it, the new one begins with
    /// `after_loss`: for as long as there is nothing in it and the damaged one is still there.
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
                tracing::error!(alert = "state", %error, "what is kept can't be read yet; trying again");
                Ok(store)
            }
            Ok(_) => Ok(store),
        }
    }

    /// What is kept, and what operators want.
    pub fn shown(&self) -> watch::Receiver<Arc<Kept>> {
        self.0.shown.subscribe()
    }

    /// Whether what was there was found damaged.
    pub async fn has_set_aside(&self) -> bool {
        let sqlite = self.0.inner.lock().await.sqlite.clone();
        sqlite.is_some_and(|sqlite| sqlite.warnings().iter().any(|aside| aside.problem.is_some()))
    }

    /// Whether it has been read.
    pub(super) fn is_known(&self) -> bool {
        self.0.shown.borrow().is_complete
    }

    /// Reads everything that is kept.
    pub async fn load(&self) -> Result<Vec<Incident>, StateError> {
        let mut inner = self.0.inner.lock().await;
        let inner = &mut *inner;
        let sqlite = match &inner.sqlite {
            Some(sqlite) => sqlite,
            None => inner.sqlite.insert(Sqlite::open(&self.0.directory).await?.0),
        };
        if inner.is_doubtful {
            // Whatever is there now is what is known.
            sqlite.recover().await?;
            inner.is_doubtful = false;
        }
        let mut documents = sqlite.load().await.inspect_err(|_| inner.is_doubtful = true)?;
        // Also if it was set aside by an earlier start that was killed before it could say so, or by one in dry-run.
        if documents.is_empty()
            && let Some(lost) = sqlite.warnings().pop()
            && let Some(spec) = self.0.after_loss.as_ref().filter(|_| !inner.kept.is_complete)
        {
            documents.push(enforced(spec)?);
            sqlite.commit(&Batch { put: documents.clone(), ..Batch::default() }).await?;
            tracing::error!(
                alert = "state",
                mode = json!(spec.mode).as_str(),
                "{lost}. Releases, exemptions and the mode that operators had set are lost with it"
            );
        }
        inner.kept = Arc::new(kept(&documents)?);
        self.show(inner);
        inner
            .kept
            .documents()
            .map_err(|error| StateError::Unreadable(Kind::Incident.as_str().to_owned(), error))
    }

    /// Keeps incidents, all of them or none. Gives the names of those that can't be kept, and why.
    pub async fn save(&self, incidents: Vec<Incident>) -> Vec<(String, StateError)> {
        let names: Vec<String> = incidents.iter().map(|incident| incident.name.clone()).collect();
        let change = |kept: &mut Kept| {
            let mut batch = Batch::default();
            for Incident { name, spec, status } in incidents {
                batch.decisions.extend(logged(&name, &spec, &status)?);
                // What operators want is theirs.
                let (spec, generation) = match kept.incidents.get(&*name) {
                    Some(known) => (known.spec(), known.generation),
                    None => (spec, 0),
                };
                batch.put.push(written(&name, &spec, Some(&status), generation)?);
                let known = incident(&name, spec, Some(&status), generation)?;
                kept.incidents.insert(name.into(), Arc::new(known));
            }
            Ok(batch)
        };
        match self.change(change).await {
            Ok(()) => Vec::new(),
            Err::<_, StateError>(error) => names.into_iter().map(|name| (name, error.clone())).collect(),
        }
    }

    /// Takes away what operators wanted of an incident, unless they want something else since.
    pub async fn clear_orders(&self, name: &str) -> Result<(), StateError> {
        let change = |kept: &mut Kept| {
            let mut batch = Batch::default();
            if let Some(incident) = kept.incidents.get_mut(name).filter(|incident| incident.is_done()) {
                let incident = Arc::make_mut(incident);
                (incident.approve, incident.release) = (None, None);
                batch.put.push(document(name, incident)?);
            }
            Ok(batch)
        };
        self.change(change).await
    }

    /// Forgets incidents.
    pub async fn remove(&self, names: &[String]) -> Result<(), StateError> {
        let change = |kept: &mut Kept| {
            kept.incidents.retain(|name, _| !names.iter().any(|gone| **gone == **name));
            let remove = names.iter().map(|name| (Kind::Incident, name.clone())).collect();
            Ok(Batch { remove, ..Batch::default() })
        };
        self.change(change).await
    }

    /// The log of decisions, the latest first: more of them than the incidents have.
    pub async fn decisions(&self, filter: DecisionFilter) -> Result<Vec<LoggedDecision>, StateError> {
        let sqlite = self.0.inner.lock().await.sqlite.clone();
        match sqlite {
            Some(sqlite) => Ok(sqlite.decisions(filter).await?),
            None => Ok(Vec::new()),
        }
    }

    /// Lets go of the log from before `before`, and of the oldest beyond a bound. How many entries.
    pub async fn retain(&self, before: Timestamp) -> Result<usize, StateError> {
        let sqlite = self.0.inner.lock().await.sqlite.clone();
        match sqlite {
            Some(sqlite) => Ok(sqlite.retain(before, MAX_LOG).await?),
            None => Ok(0),
        }
    }

    pub(super) async fn want(&self, name: &str, want: &Want) -> Result<i64, DeskError> {
        let mut number = 0;
        let change = |kept: &mut Kept| {
            let Some(incident) = kept.incidents.get_mut(name) else {
                return Err(DeskError::Unknown("incident", name.to_owned()));
            };
            let incident = Arc::make_mut(incident);
            let observed = incident.brief().map_or(0, |brief| brief.observed);
            let waits = incident.generation > observed;
            if !waits {
                // What has been done is not to be done again with the next word.
                (incident.approve, incident.release) = (None, None);
            }
            match want {
                Want::Approve(_) if waits && incident.approve.is_some() => {
                    return Err(DeskError::Busy(name.to_owned()));
                }
                Want::Release(_) if waits && incident.release.is_some() => {
                    return Err(DeskError::Busy(name.to_owned()));
                }
                Want::Approve(approval) => incident.approve = Some(Box::new(approval.clone())),
                Want::Release(release) => incident.release = Some(Box::new(release.clone())),
            }
            incident.generation = incident.generation.max(observed) + 1;
            number = incident.generation;
            Ok(Batch { put: vec![document(name, incident)?], ..Batch::default() })
        };
        self.change(change).await?;
        Ok(number)
    }

    pub(super) async fn exempt(&self, name: &str, exemption: &ExemptionSpec) -> Result<(), DeskError> {
        let change = |kept: &mut Kept| {
            if kept.exemptions.contains_key(name) {
                return Err(DeskError::Exists("exemption", name.to_owned()));
            }
            kept.exemptions.insert(name.to_owned(), exemption.clone());
            Ok(Batch { put: vec![exempted(name, exemption)?], ..Batch::default() })
        };
        self.change(change).await
    }

    pub(super) async fn withdraw(&self, name: &str) -> Result<(), DeskError> {
        let change = |kept: &mut Kept| {
            if kept.exemptions.remove(name).is_none() {
                return Err(DeskError::Unknown("exemption", name.to_owned()));
            }
            Ok(Batch { remove: vec![(Kind::Exemption, name.to_owned())], ..Batch::default() })
        };
        self.change(change).await
    }

    pub(super) async fn enforce(&self, spec: &EnforcementSpec) -> Result<(), DeskError> {
        let change = |kept: &mut Kept| {
            kept.enforcement = spec.clone();
            Ok(Batch { put: vec![enforced(spec)?], ..Batch::default() })
        };
        self.change(change).await
    }

    /// Changes what is kept, in the file first. After an error it is as it was.
    async fn change<E: From<StateError>>(
        &self,
        change: impl FnOnce(&mut Kept) -> Result<Batch, E>,
    ) -> Result<(), E> {
        let mut inner = self.0.inner.lock().await;
        let inner = &mut *inner;
        let mut changed = Kept::clone(&inner.kept);
        let batch = change(&mut changed)?;
        if batch == Batch::default() {
            return Ok(());
        }
        let Some(sqlite) = &inner.sqlite else { return Err(StateError::NotOpen.into()) };
        let committed = async {
            if inner.is_doubtful && sqlite.recover().await? {
                // Another file than before: everything that was in the old one belongs into it.
                tracing::warn!("the state is written anew, from memory");
                sqlite.commit(&everything(&inner.kept)?).await?;
            }
            sqlite.commit(&batch).await.map_err(StateError::File)
        };
        match committed.await {
            Ok(()) => {
                inner.is_doubtful = false;
                inner.kept = Arc::new(Kept { is_complete: true, ..changed });
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
        self.0.shown.send_replace(inner.kept.clone());
    }
}

impl From<sqlite::StateError> for StateError {
    fn from(error: sqlite::StateError) -> Self {
        Self::File(error)
    }
}

fn document(name: &str, incident: &KeptIncident) -> Result<Document, StateError> {
    // What can't be unpacked must not be written as if nothing had been decided.
    let status =
        incident.status().map_err(|error| StateError::Unwritable(place(Kind::Incident, name), error))?;
    written(name, &incident.spec(), status.as_ref(), incident.generation)
}

fn incident(
    name: &str,
    spec: IncidentSpec,
    status: Option<&IncidentStatus>,
    generation: i64,
) -> Result<KeptIncident, StateError> {
    KeptIncident::new(spec, status, generation, None)
        .map_err(|error| StateError::Unwritable(place(Kind::Incident, name), error))
}

fn written(
    name: &str,
    spec: &IncidentSpec,
    status: Option<&IncidentStatus>,
    generation: i64,
) -> Result<Document, StateError> {
    let body = BodyRef { spec, status, generation };
    Ok(Document { kind: Kind::Incident, name: name.to_owned(), body: json(Kind::Incident, name, &body)? })
}

fn exempted(name: &str, spec: &ExemptionSpec) -> Result<Document, StateError> {
    Ok(Document { kind: Kind::Exemption, name: name.to_owned(), body: json(Kind::Exemption, name, spec)? })
}

fn enforced(spec: &EnforcementSpec) -> Result<Document, StateError> {
    let (kind, name) = (Kind::Enforcement, enforcement::NAME);
    Ok(Document { kind, name: name.to_owned(), body: json(kind, name, spec)? })
}

fn json(kind: Kind, name: &str, of: &impl Serialize) -> Result<String, StateError> {
    // Nothing of ours is without a form in JSON; if it were, nothing may be lost silently.
    serde_json::to_string(of).map_err(|e| StateError::Unwritable(place(kind, name), e.to_string()))
}

fn place(kind: Kind, name: &str) -> String {
    format!("{} {name}", kind.as_str())
}

fn logged(
    name: &str,
    spec: &IncidentSpec,
    status: &IncidentStatus,
) -> Result<Vec<LoggedDecision>, StateError> {
    let entry = |decision: &Decision| {
        let entry = Entry { incident: name, app: &spec.app, decision };
        Ok(LoggedDecision {
            at: decision.at,
            namespace: spec.app.namespace.to_string(),
            body: json(Kind::Incident, name, &entry)?,
        })
    };
    status.decisions.iter().map(entry).collect()
}

/// Everything that is kept, to be written into an empty file.
fn everything(kept: &Kept) -> Result<Batch, StateError> {
    let mut batch = Batch::default();
    for (name, incident) in &kept.incidents {
        batch.put.push(document(name, incident)?);
        if let Ok(Some(status)) = incident.status() {
            batch.decisions.extend(logged(name, &incident.spec(), &status)?);
        }
    }
    for (name, spec) in &kept.exemptions {
        batch.put.push(exempted(name, spec)?);
    }
    batch.put.push(enforced(&kept.enforcement)?);
    Ok(batch)
}

fn kept(documents: &[Document]) -> Result<Kept, StateError> {
    let mut kept = Kept { is_complete: true, ..Kept::default() };
    for Document { kind, name, body } in documents {
        match kind {
            Kind::Incident => {
                let Body { spec, status, generation } = read(*kind, name, body)?;
                let incident = incident(name, spec, status.as_ref(), generation)?;
                kept.incidents.insert(name.as_str().into(), Arc::new(incident));
            }
            Kind::Exemption => drop(kept.exemptions.insert(name.clone(), read(*kind, name, body)?)),
            Kind::Enforcement => kept.enforcement = read(*kind, name, body)?,
        }
    }
    Ok(kept)
}

fn read<T: DeserializeOwned>(kind: Kind, name: &str, body: &str) -> Result<T, StateError> {
    serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(body)).map_err(|error| {
        StateError::Unreadable(place(kind, name), format!("{}: {}", error.path(), error.inner()))
    })
}

#[cfg(test)]
mod tests {
    use procscan_core::names::App;
    use procscan_core::state::incident::{Approval, Release};

    use super::*;

    #[tokio::test]
    async fn only_what_has_been_done_is_cleared_away_and_the_next_word_waits_for_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::open(directory.path()).await.unwrap();
        let at = Timestamp::UNIX_EPOCH;
        let status = json!({"state": "Held", "opened": at, "observed": 0});
        let mut status: IncidentStatus = serde_json::from_value(status).unwrap();
        let spec = IncidentSpec::of(&App::new("ns-a", "app", "web"));
        let save = |status: &IncidentStatus| {
            let incident = Incident { name: "a".to_owned(), spec: spec.clone(), status: status.clone() };
            store.save(vec![incident])
        };
        assert!(save(&status).await.is_empty());
        let alice = Want::Approve(Approval { by: Some("alice".into()), reason: None });
        let bob = Want::Release(Release { by: Some("bob".into()), ..Release::default() });
        assert_eq!(store.want("a", &alice).await.unwrap(), 1);
        // Bob speaks after the leader has looked, and before it has kept what it did.
        assert_eq!(store.want("a", &bob).await.unwrap(), 2);
        status.observed = 1;
        assert!(save(&status).await.is_empty());
        store.clear_orders("a").await.unwrap();
        let kept = store.shown().borrow().incidents["a"].clone();
        assert!(kept.release.is_some() && kept.approve.is_some());
        status.observed = 2;
        assert!(save(&status).await.is_empty());
        store.clear_orders("a").await.unwrap();
        let kept = store.shown().borrow().incidents["a"].clone();
        assert!(kept.release.is_none() && kept.approve.is_none());
        assert_eq!(store.want("a", &alice).await.unwrap(), 3);
    }
}
