//! The content of the state file: its tables, its versions, and the check for damage.

use jiff::Timestamp;
use rusqlite::{Connection, Error, Row, Transaction, TransactionBehavior};
use serde::de::IgnoredAny;

use super::error::{StateError, StateErrorKind};
use super::place::Place;
use crate::state::{Document, Kind, LoggedDecision};

/// «`PSAG`»: marks a file as ours.
const APPLICATION_ID: i32 = 0x5053_4147;

/// The steps from each version to the next. A step never changes once it is released; a file of version `n` has had
/// the first `n`.
///
/// `SQLite` guards its own structure, but not the content, so each row has a checksum. `at` is in nanoseconds since
/// 1970.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE file (identity TEXT NOT NULL, generation INTEGER NOT NULL) STRICT;
    INSERT INTO file VALUES (lower(hex(randomblob(16))), 0);
    CREATE TABLE documents (
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        body TEXT NOT NULL,
        checksum INTEGER NOT NULL,
        PRIMARY KEY (kind, name)
    ) STRICT;
    CREATE TABLE decisions (
        id INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        namespace TEXT NOT NULL,
        body TEXT NOT NULL,
        checksum INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX decisions_by_time ON decisions (at, id);
    CREATE INDEX decisions_by_namespace ON decisions (namespace, at, id);
"];

/// The version that this program writes.
#[allow(clippy::cast_possible_wrap, reason = "there are a few")]
pub(super) const LATEST: i64 = MIGRATIONS.len() as i64;

pub(super) const DOCUMENTS: &str = "SELECT kind, name, body, checksum FROM documents ORDER BY kind, name";
const ALL_DECISIONS: &str = "SELECT at, namespace, body, checksum FROM decisions";
/// Newest first: from ?1 to ?2, at most ?3 after the first ?4.
pub(super) const DECISIONS: &str = "SELECT at, namespace, body, checksum FROM decisions
    WHERE at BETWEEN ?1 AND ?2 ORDER BY at DESC, id DESC LIMIT ?3 OFFSET ?4";
/// The same, of the namespace ?5.
pub(super) const DECISIONS_OF: &str = "SELECT at, namespace, body, checksum FROM decisions
    WHERE at BETWEEN ?1 AND ?2 AND namespace = ?5 ORDER BY at DESC, id DESC LIMIT ?3 OFFSET ?4";
/// Up to ?1, at most ?2.
pub(super) const REMOVE_OLDEST: &str = "DELETE FROM decisions WHERE id IN
    (SELECT id FROM decisions WHERE at <= ?1 ORDER BY at, id LIMIT ?2)";

/// Refuses a file of another program or of a newer version. Only reads, so the file stays as it is.
pub(super) fn recognise(connection: &Connection, place: &Place) -> Result<(), StateError> {
    const TRIED: &str = "opened";
    let path = place.database();
    let failed = |e: &Error| StateError::sqlite(&path, TRIED, e);
    let id: i32 =
        connection.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(|e| failed(&e))?;
    if id != APPLICATION_ID {
        let problem = "it is another program's database; move it away, or configure another directory";
        return Err(StateError::new(&path, TRIED, StateErrorKind::Other, problem));
    }
    match version(connection).map_err(|e| failed(&e))? {
        1..=LATEST => Ok(()),
        ..=0 => Err(StateError::new(&path, TRIED, StateErrorKind::Corrupt, "it has lost its version")),
        found => {
            let problem = format!(
                "a newer version of procscan-aggregator has written it: its format is version {found}, and this \
                 program knows versions up to {LATEST}; run the newer program, or configure another directory"
            );
            Err(StateError::new(&path, TRIED, StateErrorKind::Newer, problem))
        }
    }
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Brings the file up to this version, each step whole or not at all.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let from = version(connection)?;
    for (number, step) in (1..).zip(MIGRATIONS).filter(|(number, _)| *number > from) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", number)?;
        transaction.commit()?;
    }
    Ok(())
}

/// Checks that the file is undamaged: its structure, and the checksum of every entry.
///
/// Reads the whole file, once at each start. That takes about a second for a log of hundreds of thousands of entries.
pub(super) fn check(connection: &Connection, place: &Place) -> Result<(), StateError> {
    let path = place.database();
    let damaged = |problem: &str| StateError::new(&path, "read", StateErrorKind::Corrupt, problem);
    let failed = |e: Error| match &e {
        Error::QueryReturnedNoRows => damaged("it has lost its identity"),
        _ => StateError::sqlite(&path, "read", &e),
    };
    let structure: String =
        connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(failed)?;
    if structure != "ok" {
        return Err(damaged(&structure));
    }
    // An operator may have added parts of another kind, but our own parts have to be there.
    let there = shape(connection).map_err(failed)?;
    if let Some((name, _)) = expected().map_err(failed)?.iter().find(|part| !there.contains(part)) {
        return Err(damaged(&format!("its {name} is not as it was made")));
    }
    let every = |sql: &str, check: &dyn Fn(&Row<'_>) -> rusqlite::Result<()>| {
        let mut statement = connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            check(row)?;
        }
        Ok(())
    };
    every(DOCUMENTS, &|row| document(row).map(drop)).map_err(failed)?;
    every(ALL_DECISIONS, &|row| decision(row).map(drop)).map_err(failed)?;
    identity(connection).map(drop).map_err(failed)
}

/// The parts of a database, each with the statement that has made it.
fn shape(connection: &Connection) -> rusqlite::Result<Vec<(String, Option<String>)>> {
    let mut statement = connection.prepare("SELECT name, sql FROM sqlite_schema")?;
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// The parts that a file of this version has.
fn expected() -> rusqlite::Result<Vec<(String, Option<String>)>> {
    let mut model = Connection::open_in_memory()?;
    migrate(&mut model)?;
    shape(&model)
}

/// Identifies a file independently of its name, and counts its changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) generation: i64,
}

pub(super) fn identity(connection: &Connection) -> rusqlite::Result<Identity> {
    connection.query_row("SELECT identity, generation FROM file", [], |row| {
        Ok(Identity { name: row.get(0)?, generation: row.get(1)? })
    })
}

/// Counts a change of the file. Belongs to every transaction.
pub(super) fn count(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction.execute("UPDATE file SET generation = generation + 1", []).map(drop)
}

/// A row of [`DOCUMENTS`].
pub(super) fn document(row: &Row<'_>) -> rusqlite::Result<Document> {
    let (kind, name, text): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
    verify(row.get(3)?, &[kind.as_bytes(), name.as_bytes(), text.as_bytes()])?;
    let kind = Kind::from_name(&kind).ok_or_else(|| damaged(format!("there is no kind {kind}")))?;
    Ok(Document { kind, name, body: body(text)? })
}

/// A row of `at, namespace, body, checksum`.
pub(super) fn decision(row: &Row<'_>) -> rusqlite::Result<LoggedDecision> {
    let (at, namespace, text): (i64, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
    verify(row.get(3)?, &[&at.to_be_bytes(), namespace.as_bytes(), text.as_bytes()])?;
    let at = Timestamp::from_nanosecond(at.into()).map_err(|e| damaged(e.to_string()))?;
    Ok(LoggedDecision { at, namespace, body: body(text)? })
}

fn body(text: String) -> rusqlite::Result<String> {
    let _: IgnoredAny = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
    Ok(text)
}

/// A time as it is written. Times outside of the years 1678 to 2261 are limited to these. A clock that shows them is
/// wrong anyway.
pub(super) fn nanoseconds(at: Timestamp) -> i64 {
    let nanoseconds = at.as_nanosecond();
    i64::try_from(nanoseconds).unwrap_or(if nanoseconds < 0 { i64::MIN } else { i64::MAX })
}

/// The CRC-32 of the parts, each with its length, so that no byte can move from one part to the next unnoticed.
pub(super) fn checksum(parts: &[&[u8]]) -> u32 {
    let mut crc = flate2::Crc::new();
    for part in parts {
        crc.update(&(part.len() as u64).to_be_bytes());
        crc.update(part);
    }
    crc.sum()
}

fn verify(written: i64, parts: &[&[u8]]) -> rusqlite::Result<()> {
    if written == i64::from(checksum(parts)) {
        Ok(())
    } else {
        Err(damaged("an entry is not what was written".to_owned()))
    }
}

fn damaged(problem: String) -> Error {
    Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, problem.into())
}
