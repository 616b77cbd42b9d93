//! The operations on the state file, one at a time. All of them block.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use rusqlite::params;

use super::error::{StateError, StateErrorKind};
use super::open::Open;
use super::place::{Lock, Place};
use super::schema::{self, Identity, checksum, nanoseconds};
use crate::state::{Batch, DecisionFilter, Document, LoggedDecision};

/// A damaged state file that has been set aside. Operators are warned of it until it is taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Its present path.
    pub(crate) path: PathBuf,
    /// The damage, if it was found since the start.
    pub(crate) problem: Option<String>,
}

impl fmt::Display for SetAside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the state file was damaged")?;
        if let Some(problem) = &self.problem {
            write!(f, " ({problem})")?;
        }
        let path = self.path.display();
        write!(f, " and has been set aside as {path}; look for the cause, then take that file away")
    }
}

/// The damaged files that have been set aside, shared with the readers of warnings.
pub(super) type SetAsideFiles = Arc<Mutex<Vec<SetAside>>>;

/// The state file, or the error by which it was closed.
#[derive(Debug)]
pub(super) struct Store {
    place: Place,
    lock: Lock,
    open: Result<Open, StateError>,
    /// The version of the file that agrees with the caller's memory.
    known: Identity,
    set_aside: SetAsideFiles,
}

impl Store {
    pub(super) fn open(directory: &Path, set_aside: SetAsideFiles) -> Result<Self, StateError> {
        let place = Place::make(directory)?;
        let lock = place.lock()?;
        let open = open(&place, &set_aside)?;
        refresh_set_aside(&place, &set_aside);
        let known = open.identity.clone();
        Ok(Self { place, lock, open: Ok(open), known, set_aside })
    }

    pub(super) fn recover(&mut self) -> Result<bool, StateError> {
        if let Ok(open) = &self.open
            && let Err(error) = open.check(&self.place)
        {
            self.open = Err(error);
        }
        if let Err(error) = &self.open {
            let error = error.clone();
            self.reopen(&error).inspect_err(|error| self.open = Err(error.clone()))?;
        }
        let open = self.open.as_ref().map_err(Clone::clone)?;
        // A commit that has failed may have been carried out.
        let is_known = open.identity.name == self.known.name
            && (open.identity.generation == self.known.generation
                || open.identity.generation == self.known.generation + 1);
        if is_known {
            self.known = open.identity.clone();
        }
        Ok(!is_known)
    }

    fn reopen(&mut self, error: &StateError) -> Result<(), StateError> {
        // The directory itself may be another one by now.
        self.place = Place::make(self.place.directory())?;
        if !self.place.is_locked_by(&self.lock) {
            self.lock = self.place.lock()?;
        }
        // Damage that was found in use counts, even if another check finds none, because it would only be found
        // again.
        if error.kind() == StateErrorKind::Corrupt {
            set_aside(&self.place, error, &self.set_aside)?;
        }
        self.open = Ok(open(&self.place, &self.set_aside)?);
        refresh_set_aside(&self.place, &self.set_aside);
        Ok(())
    }

    /// Runs an operation on the open file. After an error the file stays closed, because its content is not known
    /// before it is opened again.
    fn with<T>(
        &mut self,
        operation: impl FnOnce(&Place, &mut Open) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        let open = self.open.as_mut().map_err(|error| error.clone())?;
        operation(&self.place, open).inspect_err(|error| self.open = Err(error.clone()))
    }

    pub(super) fn load(&mut self) -> Result<Vec<Document>, StateError> {
        self.with(|place, open| {
            open.read(place, |connection| {
                let mut statement = connection.prepare(schema::DOCUMENTS)?;
                statement.query_map([], schema::document)?.collect()
            })
        })
    }

    pub(super) fn commit(&mut self, batch: &Batch) -> Result<(), StateError> {
        self.with(|place, open| {
            open.write(place, |transaction| {
                let mut remove = transaction.prepare("DELETE FROM documents WHERE kind = ?1 AND name = ?2")?;
                for (kind, name) in &batch.remove {
                    remove.execute(params![kind.as_str(), name])?;
                }
                let mut put = transaction.prepare(
                    "INSERT INTO documents (kind, name, body, checksum) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT DO UPDATE SET body = excluded.body, checksum = excluded.checksum",
                )?;
                for Document { kind, name, body } in &batch.put {
                    let kind = kind.as_str();
                    let sum = checksum(&[kind.as_bytes(), name.as_bytes(), body.as_bytes()]);
                    put.execute(params![kind, name, body, sum])?;
                }
                // The caller makes a commit again that seemed to fail, so its entries may be there already.
                let mut add = transaction.prepare(
                    "INSERT INTO decisions (at, namespace, body, checksum) SELECT ?1, ?2, ?3, ?4
                     WHERE NOT EXISTS (SELECT 1 FROM decisions WHERE namespace = ?2 AND at = ?1 AND body = ?3)",
                )?;
                for LoggedDecision { at, namespace, body } in &batch.decisions {
                    let at = nanoseconds(*at);
                    let sum = checksum(&[&at.to_be_bytes(), namespace.as_bytes(), body.as_bytes()]);
                    add.execute(params![at, namespace, body, sum])?;
                }
                Ok(())
            })
        })?;
        self.agree();
        Ok(())
    }

    fn agree(&mut self) {
        if let Ok(open) = &self.open {
            self.known.clone_from(&open.identity);
        }
    }

    pub(super) fn decisions(&mut self, filter: &DecisionFilter) -> Result<Vec<LoggedDecision>, StateError> {
        let since = filter.since.map_or(i64::MIN, nanoseconds);
        let last = filter.before.map_or(i64::MAX, |before| nanoseconds(before).saturating_sub(1));
        let (limit, skip) = (whole(filter.limit), whole(filter.skip));
        self.with(|place, open| {
            open.read(place, |connection| match &filter.namespace {
                Some(namespace) => connection
                    .prepare(schema::DECISIONS_OF)?
                    .query_map(params![since, last, limit, skip, namespace], schema::decision)?
                    .collect(),
                None => connection
                    .prepare(schema::DECISIONS)?
                    .query_map(params![since, last, limit, skip], schema::decision)?
                    .collect(),
            })
        })
    }

    /// Removes up to `most` old decisions. Returns how many.
    pub(super) fn retain(
        &mut self,
        before: Timestamp,
        max_rows: usize,
        most: usize,
    ) -> Result<usize, StateError> {
        refresh_set_aside(&self.place, &self.set_aside);
        let is_known = self.open.as_ref().is_ok_and(|open| open.identity == self.known);
        let removed = self.with(|place, open| {
            open.write(place, |transaction| {
                let (last, most) = (nanoseconds(before).saturating_sub(1), whole(most));
                let old = transaction.execute(schema::REMOVE_OLDEST, params![last, most])?;
                let rows: i64 =
                    transaction.query_row("SELECT count(*) FROM decisions", [], |row| row.get(0))?;
                let surplus = (rows - whole(max_rows)).clamp(0, (most - whole(old)).max(0));
                Ok(old + transaction.execute(schema::REMOVE_OLDEST, params![i64::MAX, surplus])?)
            })
        })?;
        // Only a commit of the caller makes another file agree with the caller's memory.
        if is_known {
            self.agree();
        }
        Ok(removed)
    }
}

/// A number as `SQLite` stores it.
fn whole(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Opens the file, makes one if there is none, and sets a damaged one aside.
fn open(place: &Place, files: &SetAsideFiles) -> Result<Open, StateError> {
    let found = match Open::existing(place) {
        Err(error) if error.kind() == StateErrorKind::Corrupt => {
            set_aside(place, &error, files)?;
            None
        }
        found => found?,
    };
    if let Some(open) = found {
        return Ok(open);
    }
    Open::create(place)?;
    Open::existing(place)?.ok_or_else(|| {
        StateError::new(&place.database(), "used", StateErrorKind::Deleted, "state.db has been deleted again")
    })
}

fn set_aside(place: &Place, error: &StateError, files: &SetAsideFiles) -> Result<(), StateError> {
    let Some(path) = place.set_aside(Timestamp::now())? else { return Ok(()) };
    let problem = error.problem().to_owned();
    tracing::error!(
        file = %place.database().display(),
        set_aside = %path.display(),
        problem,
        "the state file is damaged; it has been set aside and a new one is made",
    );
    let mut files = files.lock().unwrap_or_else(PoisonError::into_inner);
    files.push(SetAside { path, problem: Some(problem) });
    Ok(())
}

/// Refreshes the list of files that were set aside. Adds those of earlier starts, and drops those that have been
/// taken away.
fn refresh_set_aside(place: &Place, files: &SetAsideFiles) {
    // If the directory can't be read, the list stays as it is.
    let Ok(paths) = place.set_aside_files() else { return };
    let mut files = files.lock().unwrap_or_else(PoisonError::into_inner);
    let mut problems: BTreeMap<_, _> = files.drain(..).map(|known| (known.path, known.problem)).collect();
    *files =
        paths.into_iter().map(|path| SetAside { problem: problems.remove(&path).flatten(), path }).collect();
}
