//! The errors of the state file, as texts for operators.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Error, ErrorCode, ffi};

/// Why the state can't be read or written. One line for people: the file, the attempted action, the problem, and the
/// advice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} can't be {tried}: {problem}", path.display())]
pub struct StateError {
    path: PathBuf,
    tried: &'static str,
    kind: StateErrorKind,
    problem: String,
}

/// The kinds of [`StateError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StateErrorKind {
    /// The disk has no space left.
    Full,
    /// The file may not be written: a read-only file system, or permissions.
    ReadOnly,
    /// Another program has deleted or replaced the file while it was in use.
    Deleted,
    /// The content is damaged. Only for this kind the file is set aside.
    Corrupt,
    /// Another process uses the file.
    Locked,
    /// A newer version of this program has written the file.
    Newer,
    /// Anything else: the disk itself, a directory in its place, a disk that does not answer.
    Other,
}

impl StateErrorKind {
    fn advice(self) -> &'static str {
        match self {
            Self::Full => "make room",
            Self::ReadOnly => {
                "make it writable for the user that this process runs as, or configure another directory"
            }
            Self::Deleted | Self::Corrupt | Self::Newer | Self::Other => "",
            Self::Locked => "end the other process, or give each process a directory of its own",
        }
    }
}

impl StateError {
    pub(super) fn new(
        path: &Path,
        tried: &'static str,
        kind: StateErrorKind,
        problem: impl Into<String>,
    ) -> Self {
        let mut problem = problem.into();
        let advice = kind.advice();
        if !advice.is_empty() {
            problem = format!("{problem}; {advice}");
        }
        Self { path: path.to_owned(), tried, kind, problem }
    }

    pub(super) fn io(path: &Path, tried: &'static str, error: &io::Error) -> Self {
        use StateErrorKind::{Full, Other, ReadOnly};
        let (kind, problem) = match error.kind() {
            io::ErrorKind::StorageFull => (Full, "no space left on the device".to_owned()),
            io::ErrorKind::QuotaExceeded => (Full, "no space left in the disk quota".to_owned()),
            io::ErrorKind::ReadOnlyFilesystem => (ReadOnly, "the file system is read-only".to_owned()),
            io::ErrorKind::PermissionDenied => (ReadOnly, "permission denied".to_owned()),
            _ => (Other, error.to_string()),
        };
        Self::new(path, tried, kind, problem)
    }

    pub(super) fn sqlite(path: &Path, tried: &'static str, error: &Error) -> Self {
        let (kind, problem) = match error {
            Error::SqliteFailure(failure, text) => {
                let (kind, problem) = explain(*failure);
                let detail =
                    text.clone().unwrap_or_else(|| ffi::code_to_str(failure.extended_code).to_owned());
                (kind, problem.map_or_else(|| detail, str::to_owned))
            }
            Error::FromSqlConversionFailure(..)
            | Error::InvalidColumnType(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::Utf8Error(..) => (StateErrorKind::Corrupt, error.to_string()),
            _ => (StateErrorKind::Other, error.to_string()),
        };
        Self::new(path, tried, kind, problem)
    }

    /// The kind.
    pub(crate) fn kind(&self) -> StateErrorKind {
        self.kind
    }

    /// The problem, without the file.
    pub(super) fn problem(&self) -> &str {
        &self.problem
    }
}

/// The kind and the text of a failure of `SQLite`. No text if `SQLite`'s own one is good enough.
fn explain(failure: ffi::Error) -> (StateErrorKind, Option<&'static str>) {
    use StateErrorKind::{Corrupt, Deleted, Full, Locked, Other, ReadOnly};
    match (failure.code, failure.extended_code) {
        (_, ffi::SQLITE_READONLY_DBMOVED) => (Deleted, Some("it has been deleted or replaced")),
        // A write that fails for any other reason than a full disk.
        (_, ffi::SQLITE_IOERR_WRITE) => (
            Other,
            Some("the disk takes no more of it (a failing disk, a quota, or a limit on the size of files)"),
        ),
        (ErrorCode::DiskFull, _) => (Full, Some("no space left on the device")),
        (ErrorCode::ReadOnly | ErrorCode::PermissionDenied, _) => (ReadOnly, None),
        (ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked, _) => {
            (Locked, Some("it is in use by another process"))
        }
        (ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase, _) => (Corrupt, None),
        _ => (Other, None),
    }
}
