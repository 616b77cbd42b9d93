//! A state file that is open: found whole, of this version, and nobody else's.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use super::error::{StateError, StateErrorKind};
use super::place::{FileId, Outside, Place};
use super::schema::{self, Identity};

/// How long another process may take to let go of the file. The directory's lock has been taken by then, so whoever still has
/// it is no procscan-aggregator that is just ending.
const BUSY: Duration = Duration::from_millis(100);

/// An open state file.
#[derive(Debug)]
pub(super) struct Open {
    connection: Connection,
    outside: Outside,
    /// The journal, once there is one: it stays open, so a crash after somebody has deleted it could leave half a change.
    journal: Option<FileId>,
    pub(super) identity: Identity,
}

impl Open {
    /// Opens the file that is there; `None` if there is none.
    ///
    /// Whatever the error, the file is as it was, apart from what a crash had left to be undone.
    pub(super) fn existing(place: &Place) -> Result<Option<Self>, StateError> {
        let path = place.database();
        let Some(outside) = Outside::at(&path)? else { return Ok(None) };
        // SQLite takes an empty file for a new database. Ours begin with content.
        if outside.len == 0 {
            return Err(StateError::new(&path, "read", StateErrorKind::Corrupt, "it is empty"));
        }
        place.check_companions()?;
        // Says precisely why not, where SQLite would only say that it can't, or settle for reading.
        let attempt = File::options().read(true).write(true).open(&path);
        drop(attempt.map_err(|e| StateError::io(&path, "opened", &e))?);
        let failed = |e: &rusqlite::Error| StateError::sqlite(&path, "opened", e);
        let mut connection = connect(&path).map_err(|e| failed(&e))?;
        schema::recognise(&connection, place)?;
        claim(&mut connection).map_err(|e| failed(&e))?;
        // It could be opened for writing, so it is its header that forbids it.
        if connection.is_readonly("main").map_err(|e| failed(&e))? {
            let problem = "its header says that it takes a newer SQLite to write it; run the newer program, or \
                           configure another directory";
            return Err(StateError::new(&path, "opened", StateErrorKind::Newer, problem));
        }
        schema::migrate(&mut connection).map_err(|e| failed(&e))?;
        schema::check(&connection, place)?;
        let identity = schema::identity(&connection).map_err(|e| failed(&e))?;
        let mut open = Self { connection, outside, journal: None, identity };
        // It may have shrunk or grown by what had to be undone or migrated.
        open.outside.len = Outside::at(&path)?.map_or(0, |found| found.len);
        open.check(place)?;
        open.journal = Outside::at(&place.journal())?.map(|found| found.id);
        Ok(Some(open))
    }

    /// Makes a new file.
    pub(super) fn create(place: &Place) -> Result<(), StateError> {
        place.create(|path| {
            let make = || {
                let mut connection = connect(path)?;
                schema::migrate(&mut connection)?;
                connection.close().map_err(|(_, e)| e)
            };
            make().map_err(|e| StateError::sqlite(path, "made", &e))
        })
    }

    /// Whether the file that is open is still the one that the next start will find, with nothing in it that is not ours.
    pub(super) fn check(&self, place: &Place) -> Result<(), StateError> {
        let path = place.database();
        let gone =
            |path: &Path, problem| Err(StateError::new(path, "used", StateErrorKind::Deleted, problem));
        match Outside::at(&path)? {
            None => return gone(&path, "state.db has been deleted while it was in use"),
            Some(found) if found.id != self.outside.id => {
                return gone(
                    &path,
                    "state.db has been deleted while it was in use, and replaced by another file",
                );
            }
            Some(found) if found.len != self.outside.len => {
                return gone(&path, "another program has written to state.db while it was in use");
            }
            Some(_) => {}
        }
        let journal = place.journal();
        if self.journal.is_some() && self.journal != Outside::at(&journal)?.map(|found| found.id) {
            return gone(
                &journal,
                "it has been deleted while it was in use, and a crash could not be undone",
            );
        }
        Ok(())
    }

    /// Does something to the file, all of it or nothing. It lasts when this returns.
    pub(super) fn write<T>(
        &mut self,
        place: &Place,
        change: impl Fn(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StateError> {
        self.check(place)?;
        let path = place.database();
        let mut write = || {
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let done = change(&transaction)?;
            schema::count(&transaction)?;
            transaction.commit()?;
            Ok(done)
        };
        let done = write().map_err(|e| StateError::sqlite(&path, "written", &e))?;
        self.identity.generation += 1;
        let found = Outside::at(&path)?;
        self.outside.len = found.map_or(0, |found| found.len);
        if self.journal.is_none() {
            self.journal = Outside::at(&place.journal())?.map(|found| found.id);
        }
        // What was written into a file that has just been deleted does not last.
        self.check(place)?;
        Ok(done)
    }

    /// Reads from the file.
    pub(super) fn read<T>(
        &self,
        place: &Place,
        read: impl Fn(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StateError> {
        self.check(place)?;
        read(&self.connection).map_err(|e| StateError::sqlite(&place.database(), "read", &e))
    }
}

/// Connects to a file that must be there. Reads and writes nothing yet.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    connection.execute_batch(
        // Flushed at each commit, also the end of the journal that makes it one.
        "PRAGMA synchronous = FULL;
         PRAGMA foreign_keys = ON;
         PRAGMA trusted_schema = OFF;
         PRAGMA cell_size_check = ON;
         PRAGMA cache_size = -512;
         PRAGMA temp_store = MEMORY;",
    )?;
    Ok(connection)
}

/// Takes the file for this connection alone, until it ends.
fn claim(connection: &mut Connection) -> rusqlite::Result<()> {
    // A journal that undoes, not one that is still to be done (WAL): after each commit everything is in the one file, so a copy
    // of it is a backup, and there is no second file whose loss would take commits with it unnoticed. It costs two flushes
    // more for each commit, of which there are few. Truncated, it takes no room between two commits, and in one no more than
    // the pages that are changed.
    connection.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_mode", "TRUNCATE", |_| Ok(()))?;
    connection.transaction_with_behavior(TransactionBehavior::Exclusive)?.commit()
}
