//! Persists the state in a file, for a service without Kubernetes.
//!
//! `SQLite` writes the file, because its promises are tested more than a format of our own would be. A batch is there
//! whole or not at all, also after a `kill -9` or a power failure. It is durable once `Sqlite::commit` has
//! returned.
//!
//! Three rules are ours:
//!
//! - Only one process uses the file. Another one is refused with an error that names the file (`place`).
//! - No decision is made from damaged content. Damage is noticed, down to single flipped bits. Then the file is set aside
//!   with an error in the log, and a new file begins (`schema`, `store`).
//! - A file that is deleted while it is in use is noticed before the next decision relies on it (`open`).
//!
//! After an error the file stays closed until `Sqlite::recover` has read its content. Only a damaged file is set
//! aside. A full disk, a read-only disk, a lock or a newer version is reported to the caller, and the file stays.

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

pub(crate) use self::error::{StateError, StateErrorKind};
pub(crate) use self::place::FILES;
use self::place::Place;
pub(crate) use self::store::SetAside;
use self::store::{SetAsideFiles, Store};
use super::{Batch, DecisionFilter, Document, LoggedDecision};

/// How long one operation may take, including the wait for earlier ones.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long opening the file may take. The whole file is read.
const OPEN_TIMEOUT: Duration = Duration::from_mins(5);
/// How many decisions are removed at once. Other operations have their turn in between.
const MAX_REMOVED_AT_ONCE: usize = 1000;

/// The state file. Cheap to clone; all clones share it, and do one operation at a time.
#[derive(Clone, Debug)]
pub struct Sqlite {
    directory: Arc<Path>,
    store: Arc<Mutex<Store>>,
    /// The turn of one reader of the log. Any number may read at once, and they wait for each other here. So a write
    /// waits for one of them at most.
    reader: Arc<Mutex<()>>,
    set_aside: SetAsideFiles,
}

impl Sqlite {
    /// Opens the state in `directory`, and makes both if they do not exist. A damaged file is set aside.
    ///
    /// The second value has the warnings for operators, as `Sqlite::warnings` has them.
    pub async fn open(directory: &Path) -> Result<(Self, Vec<SetAside>), StateError> {
        let (directory, set_aside) = (Arc::<Path>::from(directory), SetAsideFiles::default());
        let (place, files) = (directory.clone(), set_aside.clone());
        let opened = timeout(OPEN_TIMEOUT, spawn_blocking(move || Store::open(&place, files))).await;
        let store =
            opened.map_err(|_| late(&directory, OPEN_TIMEOUT))?.map_err(|e| died(&directory, &e))??;
        let sqlite =
            Self { directory, store: Arc::new(Mutex::new(store)), reader: Arc::default(), set_aside };
        let warnings = sqlite.warnings();
        Ok((sqlite, warnings))
    }

    /// The damaged files that were set aside and are still there: as of the last opening, recovery or
    /// [`Sqlite::retain`].
    pub(crate) fn warnings(&self) -> Vec<SetAside> {
        self.set_aside.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All documents, by kind and name.
    pub(crate) async fn load(&self) -> Result<Vec<Document>, StateError> {
        self.run(OPERATION_TIMEOUT, Store::load).await
    }

    /// Writes a batch: all of it, durably, when this returns; or nothing.
    ///
    /// After an error it is not known whether the batch was written. The caller can commit it again.
    pub(crate) async fn commit(&self, batch: &Batch) -> Result<(), StateError> {
        let batch = batch.clone();
        self.run(OPERATION_TIMEOUT, move |store| store.commit(&batch)).await
    }

    /// Opens the file again after an error. Does nothing if there was no error and the file is unchanged.
    ///
    /// Returns whether it is another file than before. It may be a new one, because the old one was deleted or set
    /// aside, or an old copy that another program has put there. Then the caller writes everything again from memory.
    /// The answer stays the same until a batch has been committed.
    pub(crate) async fn recover(&self) -> Result<bool, StateError> {
        self.run(OPEN_TIMEOUT, Store::recover).await
    }

    /// Entries of the log, newest first.
    pub(crate) async fn decisions(&self, filter: DecisionFilter) -> Result<Vec<LoggedDecision>, StateError> {
        let _turn = self.reader.lock().await;
        self.run(OPERATION_TIMEOUT, move |store| store.decisions(&filter)).await
    }

    /// Removes the entries of the log from before `before`, and the oldest beyond `max_rows`. Returns how many.
    pub(crate) async fn retain(&self, before: Timestamp, max_rows: usize) -> Result<usize, StateError> {
        let mut removed = 0;
        loop {
            let chunk = self
                .run(OPERATION_TIMEOUT, move |store| store.retain(before, max_rows, MAX_REMOVED_AT_ONCE))
                .await?;
            removed += chunk;
            if chunk < MAX_REMOVED_AT_ONCE {
                return Ok(removed);
            }
        }
    }

    /// Runs an operation when its turn comes. A caller that waits holds no thread. An operation that has begun is
    /// completed, even if its caller has stopped waiting.
    async fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        operation: impl FnOnce(&mut Store) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StateError> {
        let store = self.store.clone();
        let answer = async move {
            let mut store = store.lock_owned().await;
            spawn_blocking(move || operation(&mut store)).await
        };
        let answer = timeout(limit, answer).await.map_err(|_| late(&self.directory, limit))?;
        answer.map_err(|e| died(&self.directory, &e))?
    }
}

/// Removes the state in `directory`, which must exist. Blocks. Fails if a process uses the state. Other files stay.
pub(crate) fn remove(directory: &Path) -> Result<(), StateError> {
    let place = Place::make(directory)?;
    place.clear(&place.lock()?)
}

fn late(directory: &Path, limit: Duration) -> StateError {
    let problem = format!("the disk has not answered for {}", humantime::format_duration(limit));
    StateError::new(directory, "used", StateErrorKind::Other, problem)
}

fn died(directory: &Path, error: &JoinError) -> StateError {
    StateError::new(directory, "used", StateErrorKind::Other, error.to_string())
}
