//! The lock of a directory: two processes that decide apart would undo each other's writes.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{DirectoryError, error, lease};

/// Whether this process may write a directory.
#[derive(Debug, Default)]
pub(super) struct Lock {
    /// The Lease (`namespace/name`) by which this process and its replicas agree which of them writes: they share the
    /// directory. Without one the directory is for this process alone.
    lease: Option<String>,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// Nothing was locked: nothing is to be written, or the file system has no locks.
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
    /// Locks the directory at `path`: for this process alone, or for the replicas of `lease`. Fails if a process has locked it
    /// otherwise, or if it belongs to another Lease. Where the file system has no locks, the log says so.
    pub(super) fn take(path: &Path, lease: Option<String>) -> Result<Self, DirectoryError> {
        let handle = File::open(path).map_err(|e| error(path, "can't be opened", &e))?;
        let locked = if lease.is_some() { handle.try_lock_shared() } else { handle.try_lock() };
        let state = match locked {
            Ok(()) => {
                let id = handle.metadata().map_err(|e| error(path, "can't be opened", &e))?.into();
                State::Held(Held { _handle: handle, id })
            }
            Err(TryLockError::WouldBlock) => {
                let problem = "another process writes there: stop it, or configure another directory";
                return Err(DirectoryError { path: path.display().to_string(), problem: problem.to_owned() });
            }
            Err(TryLockError::Error(e)) => {
                tracing::warn!(
                    path = %path.display(),
                    error = %e,
                    "the output directory can't be locked; let no other process write there"
                );
                State::None
            }
        };
        let lock = Self { lease, state };
        lock.claim(path)?;
        Ok(lock)
    }

    /// Makes sure, before a write, that the locked directory is still the one at `path`, and belongs to no other Lease. If it was
    /// removed and made again, the new one is locked, unless another process has locked it.
    pub(super) fn keep(&mut self, path: &Path) -> Result<(), DirectoryError> {
        match &self.state {
            State::None => return self.claim(path),
            State::Held(held) => {
                let found = fs::metadata(path).map_err(|e| error(path, "can't be read", &e))?;
                if Id::from(found) == held.id {
                    return self.claim(path);
                }
            }
            State::Lost => {}
        }
        self.state = State::Lost;
        *self = Self::take(path, self.lease.clone())?;
        tracing::warn!(path = %path.display(), "the output directory was removed and made again; the new one is locked");
        Ok(())
    }

    fn claim(&self, path: &Path) -> Result<(), DirectoryError> {
        self.lease.as_ref().map_or(Ok(()), |lease| lease::claim(path, lease))
    }
}
