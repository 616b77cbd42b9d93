//! The lock of a directory: two processes that decide apart would undo each other's writes.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{DirectoryError, error};

/// Whether this process has a directory for itself.
#[derive(Debug, Default)]
pub(super) enum Lock {
    /// Nothing was locked: a Lease says which process writes, or the file system has no locks.
    #[default]
    None,
    /// This process has locked the directory.
    Held(Held),
    /// This process had locked it, but it was removed and made again, and the new one could not be locked yet.
    Lost,
}

/// A locked directory. The system unlocks it when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Held {
    /// While this is open, no other directory gets the same inode.
    _handle: File,
    id: Id,
}

/// What tells a directory from another one that is made later at the same path: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id(u64, u64);

impl From<fs::Metadata> for Id {
    fn from(metadata: fs::Metadata) -> Self {
        Self(metadata.dev(), metadata.ino())
    }
}

impl Lock {
    /// Locks the directory at `path`. Fails if another process has locked it. Where the file system has no locks, the log says so.
    pub(super) fn take(path: &Path) -> Result<Self, DirectoryError> {
        let handle = File::open(path).map_err(|e| error(path, "can't be opened", &e))?;
        match handle.try_lock() {
            Ok(()) => {
                let id = handle.metadata().map_err(|e| error(path, "can't be opened", &e))?.into();
                Ok(Self::Held(Held { _handle: handle, id }))
            }
            Err(TryLockError::WouldBlock) => {
                let problem = "another process writes there: stop it, or configure another directory";
                Err(DirectoryError { path: path.display().to_string(), problem: problem.to_owned() })
            }
            Err(TryLockError::Error(e)) => {
                tracing::warn!(
                    path = %path.display(),
                    error = %e,
                    "the output directory can't be locked; let no other process write there"
                );
                Ok(Self::None)
            }
        }
    }

    /// Makes sure, before a write, that the locked directory is still the one at `path`. If it was removed and made again, the
    /// new one is locked, unless another process has locked it.
    pub(super) fn keep(&mut self, path: &Path) -> Result<(), DirectoryError> {
        match self {
            Self::None => return Ok(()),
            Self::Held(held) => {
                let found = fs::metadata(path).map_err(|e| error(path, "can't be read", &e))?;
                if Id::from(found) == held.id {
                    return Ok(());
                }
            }
            Self::Lost => {}
        }
        *self = Self::Lost;
        *self = Self::take(path)?;
        tracing::warn!(path = %path.display(), "the output directory was removed and made again; the new one is locked");
        Ok(())
    }
}
