//! What has to outlast a restart, in a file: for a service without Kubernetes.
//!
//! `SQLite` keeps it, because what it promises has been tried harder than any format of our own would be: a batch is there whole
//! or not at all, also after a `kill -9` or a power failure, and it is there for good once [`Sqlite::commit`] has returned.
//!
//! Three things are ours. Nobody but us uses the file: another process is refused with its name (`place`). What is damaged is
//! never decided from: it is noticed, down to single flipped bits, set aside loudly, and a new file begins (`schema`,
//! `store`). And a file that is deleted under us is noticed before the next decision relies on it (`open`).
//!
//! After an error the file stays closed until [`Sqlite::recover`] has found out what is in it. Only damage leads to setting a
//! file aside; a full disk, a read-only one, a lock or a newer version are waited out, and whoever is in charge is told.

mod error;
mod open;
mod place;
mod schema;
mod store;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::timeout;

pub use self::error::{StateError, StateErrorKind};
pub use self::place::FILES;
use self::place::Place;
pub use self::store::SetAside;
use self::store::{Aside, Store};
use super::{Batch, DecisionFilter, Document, LoggedDecision};

/// How long the disk may take for one thing, waiting for those before it included.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to open the file: all of it is read.
const MAX_OPEN_TIME: Duration = Duration::from_mins(5);
/// How many decisions are removed at once: others get their turn in between.
const CHUNK: usize = 1000;

/// The state file. Cheap to clone; all clones share it, and do one thing at a time.
#[derive(Clone, Debug)]
pub struct Sqlite {
    directory: Arc<Path>,
    store: Arc<Mutex<Store>>,
    /// Whose turn it is to read the log. Anybody may, and any number at once: they wait for each other here, so that what is to
    /// be written waits for one of them at most.
    reader: Arc<Mutex<()>>,
    aside: Aside,
}

impl Sqlite {
    /// Opens the state in `directory`, and makes both if they are not there. A damaged file is set aside.
    ///
    /// The second part is what people should be warned of, as [`Sqlite::warnings`].
    pub async fn open(directory: &Path) -> Result<(Self, Vec<SetAside>), StateError> {
        let (directory, aside) = (Arc::<Path>::from(directory), Aside::default());
        let (place, told) = (directory.clone(), aside.clone());
        let opened = timeout(MAX_OPEN_TIME, spawn_blocking(move || Store::open(&place, told))).await;
        let store =
            opened.map_err(|_| late(&directory, MAX_OPEN_TIME))?.map_err(|e| died(&directory, &e))??;
        let sqlite = Self { directory, store: Arc::new(Mutex::new(store)), reader: Arc::default(), aside };
        let warnings = sqlite.warnings();
        Ok((sqlite, warnings))
    }

    /// What was found damaged and set aside, and is still there: as of the last opening, recovery or [`Sqlite::retain`].
    pub fn warnings(&self) -> Vec<SetAside> {
        self.aside.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All documents, by kind and name.
    pub async fn load(&self) -> Result<Vec<Document>, StateError> {
        self.ask(OPEN_TIMEOUT, Store::load).await
    }

    /// Writes a batch: all of it, for good, when this returns; or nothing.
    ///
    /// After an error it is not known whether it was written. It can simply be committed again.
    pub async fn commit(&self, batch: &Batch) -> Result<(), StateError> {
        let batch = batch.clone();
        self.ask(OPEN_TIMEOUT, move |store| store.commit(&batch)).await
    }

    /// Opens the file again after an error; does nothing if there was none and all is well.
    ///
    /// Whether it is another file than the one that has been read and written so far: a new one because the old one was deleted
    /// or has been set aside, or an old copy that somebody has put there. Then the caller writes everything again from memory;
    /// it is told so until something has been committed.
    pub async fn recover(&self) -> Result<bool, StateError> {
        self.ask(MAX_OPEN_TIME, Store::recover).await
    }

    /// Entries of the log, newest first.
    pub async fn decisions(&self, filter: DecisionFilter) -> Result<Vec<LoggedDecision>, StateError> {
        let _turn = self.reader.lock().await;
        self.ask(OPEN_TIMEOUT, move |store| store.decisions(&filter)).await
    }

    /// Removes the entries of the log from before `before`, and the oldest beyond `max_rows`. How many.
    pub async fn retain(&self, before: Timestamp, max_rows: usize) -> Result<usize, StateError> {
        let mut removed = 0;
        loop {
            let chunk = self.ask(OPEN_TIMEOUT, move |store| store.retain(before, max_rows, CHUNK)).await?;
            removed += chunk;
            if chunk < CHUNK {
                return Ok(removed);
            }
        }
    }

    /// Whoever waits holds no thread. What has begun is done, even if nobody waits for it any more.
    async fn ask<T: Send + 'static>(
        &self,
        patience: Duration,
        act: impl FnOnce(&mut Store) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StateError> {
        let store = self.store.clone();
        let answer = async move {
            let mut store = store.lock_owned().await;
            spawn_blocking(move || act(&mut store)).await
        };
        let answer = timeout(patience, answer).await.map_err(|_| late(&self.directory, patience))?;
        answer.map_err(|e| died(&self.directory, &e))?
    }
}

/// Removes the state in `directory`, which must be there. Blocks. Fails if a process uses the state; what is there beside it stays.
pub fn remove(directory: &Path) -> Result<(), StateError> {
    let place = Place::make(directory)?;
    place.clear(&place.lock()?)
}

fn late(directory: &Path, patience: Duration) -> StateError {
    let problem = format!("the disk has not answered for {}", humantime::format_duration(patience));
    StateError::new(directory, "used", StateErrorKind::Other, problem)
}

fn died(directory: &Path, error: &JoinError) -> StateError {
    StateError::new(directory, "used", StateErrorKind::Other, error.to_string())
}
