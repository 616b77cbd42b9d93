//! An open state file: it is undamaged, of this version, and used by this process only.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use super::error::{StateError, StateErrorKind};
use super::place::{FileId, Outside, Place};
use super::schema::{self, Identity};

/// How long to wait for another process that uses the file. The directory's lock has been taken by then, so that
/// process is no procscan-aggregator that is just ending.
const BUSY_TIMEOUT: Duration = Duration::from_millis(100);

/// An open state file.
#[derive(Debug)]
pub(super) struct Open {
    connection: Connection,
    outside: Outside,
    /// The journal, once it exists. It stays open, so a crash after another program has deleted it could leave half a
    /// change.
    journal: Option<FileId>,
    pub(super) identity: Identity,
}

impl Open {
    /// Opens the existing file; `None` if there is none.
    ///
    /// After any error the file is as it was, apart from a change that a crash had cut short and that was undone.
    pub(super) fn existing(place: &Place) -> Result<Option<Self>, StateError> {
        let path = place.database();
        let Some(outside) = Outside::at(&path)? else { return Ok(None) };
        // SQLite takes an empty file for a new database. Our files are never empty.
        if outside.len == 0 {
            return Err(StateError::new(&path, "read", StateErrorKind::Corrupt, "it is empty"));
        }
        place.check_companions()?;
        // Gives a precise error. SQLite would only report that it can't open the file, or would open it for reading.
        let attempt = File::options().read(true).write(true).open(&path);
        drop(attempt.map_err(|e| StateError::io(&path, "opened", &e))?);
        let failed = |e: &rusqlite::Error| StateError::sqlite(&path, "opened", e);
        let mut connection = connect(&path).map_err(|e| failed(&e))?;
        schema::recognise(&connection, place)?;
        claim(&mut connection).map_err(|e| failed(&e))?;
        // The file could be opened for writing, so its header forbids it.
        if connection.is_readonly("main").map_err(|e| failed(&e))? {
            let problem = "its header says that it takes a newer SQLite to write it; run the newer program, or \
                           configure another directory";
            return Err(StateError::new(&path, "opened", StateErrorKind::Newer, problem));
        }
        schema::migrate(&mut connection).map_err(|e| failed(&e))?;
        schema::check(&connection, place)?;
        let identity = schema::identity(&connection).map_err(|e| failed(&e))?;
        let mut open = Self { connection, outside, journal: None, identity };
        // The size may have changed by a change that was undone, or by a migration.
        open.outside.len = Outside::at(&path)?.map_or(0, |found| found.len);
        open.check(place)?;
        open.journal = Outside::at(&place.journal())?.map(|found| found.id);
        Ok(Some(open))
    }

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

    /// Checks that the open file is still the one that the next start will find, and that no other program has
    /// written to it.
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

    /// Changes the file as a whole or not at all. The change is durable when this returns.
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
        // A write into a file that has just been deleted does not last.
        self.check(place)?;
        Ok(done)
    }

    pub(super) fn read<T>(
        &self,
        place: &Place,
        read: impl Fn(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StateError> {
        self.check(place)?;
        read(&self.connection).map_err(|e| StateError::sqlite(&place.database(), "read", &e))
    }
}

/// Connects to an existing file. Reads and writes nothing yet.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.execute_batch(
        // Flushed at each commit, including the truncation of the journal that completes the commit.
        "PRAGMA synchronous = FULL;
         PRAGMA foreign_keys = ON;
         PRAGMA trusted_schema = OFF;
         PRAGMA cell_size_check = ON;
         PRAGMA cache_size = -512;
         PRAGMA temp_store = MEMORY;",
    )?;
    Ok(connection)
}

/// Locks the file for this connection alone, until the connection ends.
fn claim(connection: &mut Connection) -> rusqlite::Result<()> {
    // A rollback journal and no WAL. After each commit everything is in the one file. So a copy of it is a backup,
    // and there is no second file whose loss would take commits with it unnoticed. It costs two more flushes for each
    // commit, and commits are few. The journal is truncated, so it takes no space between two commits. In a commit it
    // takes no more than the changed pages.
    connection.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_mode", "TRUNCATE", |_| Ok(()))?;
    connection.transaction_with_behavior(TransactionBehavior::Exclusive)?.commit()
}
