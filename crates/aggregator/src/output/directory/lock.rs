//! The lock of a directory: two processes that decide apart would undo each other's writes.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::lease::{self, Owner};
use super::{DirectoryError, error};

/// Whether this process may write a directory.
#[derive(Debug, Default)]
pub(super) struct Lock {
    /// The Lease of this process and its replicas, which share the directory. Without one the directory is for this process
    /// alone.
    owner: Option<Owner>,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// Nothing was locked: nothing is to be written, or the file system has no locks.
    #[default]
    None,
    /// What this process has locked: the directory, the file in it, or, where it can, both.
    Held(Vec<Held>),
    /// This process had locked it, but it was removed and made again, and the new one could not be locked yet.
    Lost,
}

/// A locked directory. The system unlocks it when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Held {
    /// While this is open, no other directory or file gets the same inode.
    _handle: File,
    /// What is locked: the directory itself, or the file in it.
    locked: PathBuf,
    id: Id,
}

/// The file that is locked beside the directory: many network file systems show the lock of a file to other hosts, and that of
/// a directory to processes of the same host only. It begins with a dot, so `kubectl apply` does not read it.
const LOCK: &str = ".procscan.lock";

/// Why a directory is not locked.
enum Unlocked {
    /// Another process has locked it.
    Busy,
    /// It can't be opened, or the file system has no locks.
    Failed(io::Error),
}

impl From<TryLockError> for Unlocked {
    fn from(error: TryLockError) -> Self {
        match error {
            TryLockError::WouldBlock => Self::Busy,
            TryLockError::Error(e) => Self::Failed(e),
        }
    }
}

impl From<io::Error> for Unlocked {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl Held {
    /// Locks what `handle` has open at the path `locked`, for one process or for several.
    fn lock(handle: File, locked: PathBuf, is_shared: bool) -> Result<Self, Unlocked> {
        if is_shared {
            handle.try_lock_shared()?;
        } else {
            handle.try_lock()?;
        }
        let id = handle.metadata()?.into();
        Ok(Self { _handle: handle, locked, id })
    }

    /// Locks a file in the directory at `path`. It is open for writing, because without that NFS does not lock it for one
    /// process alone.
    fn in_file(path: &Path, is_shared: bool) -> Result<Self, Unlocked> {
        let locked = path.join(LOCK);
        let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).map_err(io::Error::other)?;
        let mut options = File::options();
        let handle =
            options.read(true).write(true).create(true).truncate(false).custom_flags(flags).open(&locked)?;
        if !handle.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file").into());
        }
        Self::lock(handle, locked, is_shared)
    }

    /// Whether what is locked is still there under its name.
    fn is_in_place(&self) -> io::Result<bool> {
        match fs::metadata(&self.locked) {
            Ok(found) => Ok(Id::from(found) == self.id),
            Err(e) if e.kind() == io::ErrorKind::NotFound && self.locked.ends_with(LOCK) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// Device and inode. They distinguish a directory from another one that is made later at the same path.
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
    pub(super) fn take(path: &Path, owner: Option<Owner>) -> Result<Self, DirectoryError> {
        let handle = File::open(path).map_err(|e| error(path, "can't be opened", &e))?;
        let is_shared = owner.is_some();
        let directory = unless_busy(path, Held::lock(handle, path.to_owned(), is_shared))?;
        let file = unless_busy(path, Held::in_file(path, is_shared))?;
        match (&directory, &file) {
            (_, Ok(_)) => {}
            (Ok(_), Err(e)) => tracing::warn!(
                path = %path.join(LOCK).display(),
                error = %e,
                "this file can't be locked, so a process on another host that writes the same output directory may not be noticed"
            ),
            (Err(e), Err(_)) => tracing::warn!(
                path = %path.display(),
                error = %e,
                "the output directory can't be locked; let no other process write there"
            ),
        }
        let held: Vec<Held> = [directory, file].into_iter().flatten().collect();
        let state = if held.is_empty() { State::None } else { State::Held(held) };
        let lock = Self { owner, state };
        lock.claim(path)?;
        Ok(lock)
    }

    /// Makes sure, before a write, that the locked directory is still the one at `path`, and belongs to no other Lease. If it was
    /// removed and made again, the new one is locked, unless another process has locked it.
    pub(super) fn keep(&mut self, path: &Path) -> Result<(), DirectoryError> {
        match &self.state {
            State::None => return self.claim(path),
            State::Held(all) => {
                let mut is_in_place = true;
                for held in all {
                    is_in_place &= held.is_in_place().map_err(|e| error(path, "can't be read", &e))?;
                }
                if is_in_place {
                    return self.claim(path);
                }
            }
            State::Lost => {}
        }
        self.state = State::Lost;
        *self = Self::take(path, self.owner.clone())?;
        tracing::warn!(path = %path.display(), "the output directory, or its lock, was removed and made again; the new one is locked");
        Ok(())
    }

    /// Makes sure that the directory belongs to no other cluster's Lease, now that the cluster has
    /// been asked for the UID of the Lease's namespace. Without a `uid` only the name of the Lease is compared.
    pub(super) fn identify(&mut self, path: &Path, uid: Option<String>) -> Result<(), DirectoryError> {
        if let (Some(owner), Some(uid)) = (&mut self.owner, uid) {
            owner.cluster = Some(uid);
        }
        self.keep(path)
    }

    fn claim(&self, path: &Path) -> Result<(), DirectoryError> {
        self.owner.as_ref().map_or(Ok(()), |owner| lease::claim(path, owner))
    }
}

/// What was locked, or why it can't be. It is an error if another process has locked it.
fn unless_busy(path: &Path, locked: Result<Held, Unlocked>) -> Result<io::Result<Held>, DirectoryError> {
    match locked {
        Ok(held) => Ok(Ok(held)),
        Err(Unlocked::Failed(e)) => Ok(Err(e)),
        Err(Unlocked::Busy) => {
            let problem = "another process writes there: stop it, or configure another directory";
            Err(DirectoryError { path: path.display().to_string(), problem: problem.to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_file(path: &Path, is_shared: bool) -> Result<Held, Unlocked> {
        Held::in_file(path, is_shared)
    }

    #[test]
    fn the_file_is_locked_for_one_process_or_for_several() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let held = in_file(path, false).ok().unwrap();
        for is_shared in [true, false] {
            assert!(matches!(in_file(path, is_shared), Err(Unlocked::Busy)));
        }
        drop(held);
        let (first, second) = (in_file(path, true).ok(), in_file(path, true).ok());
        assert!(first.is_some() && second.is_some());
        assert!(matches!(in_file(path, false), Err(Unlocked::Busy)));
    }

    #[test]
    fn a_lock_file_that_was_removed_is_noticed_before_the_next_write() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let mut lock = Lock { owner: None, state: State::Held(vec![in_file(path, false).ok().unwrap()]) };
        lock.keep(path).unwrap();
        fs::remove_file(path.join(LOCK)).unwrap();
        // By another process, which found nothing locked.
        let other = Lock::take(path, None).unwrap();
        assert!(lock.keep(path).unwrap_err().to_string().contains("another process writes there"));
        drop(other);
        lock.keep(path).unwrap();
    }

    /// A network file system may show the lock of a directory to processes of the same host only.
    #[test]
    fn two_processes_that_do_not_see_each_others_lock_of_the_directory_see_that_of_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let owner = || Some(Owner { lease: "a/b".to_owned(), cluster: None });
        let other_host = in_file(path, false).ok().unwrap();
        for owner in [None, owner()] {
            let error = Lock::take(path, owner).unwrap_err().to_string();
            assert!(error.contains("another process writes there"), "{error}");
        }
        drop(other_host);
        let ours = Lock::take(path, None).unwrap();
        for is_shared in [true, false] {
            assert!(matches!(in_file(path, is_shared), Err(Unlocked::Busy)));
        }
        drop(ours);
        let _ours = Lock::take(path, owner()).unwrap();
        assert!(in_file(path, true).is_ok() && matches!(in_file(path, false), Err(Unlocked::Busy)));
    }

    #[test]
    fn a_directory_whose_file_can_not_be_locked_is_locked_itself_and_the_log_says_what_is_missing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::create_dir(path.join(LOCK)).unwrap();
        let (logged, _guard) = crate::telemetry::logged::Logged::start();
        let mut lock = Lock::take(path, None).unwrap();
        let lines = logged.lines();
        assert!(
            lines.len() == 1 && lines[0].starts_with("WARN") && lines[0].contains("another host"),
            "{lines:?}"
        );
        assert!(Lock::take(path, None).is_err());
        logged.lines();
        lock.keep(path).unwrap();
        assert_eq!(logged.lines(), Vec::<String>::new());
    }

    #[test]
    fn what_is_no_lock_file_is_neither_followed_nor_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let (path, target) = (directory.path(), directory.path().join("target"));
        std::os::unix::fs::symlink(&target, path.join(LOCK)).unwrap();
        assert!(matches!(in_file(path, false), Err(Unlocked::Failed(_))));
        assert!(!target.exists());
        fs::remove_file(path.join(LOCK)).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, path.join(LOCK), rustix::fs::Mode::RWXU).unwrap();
        assert!(matches!(in_file(path, false), Err(Unlocked::Failed(_))));
    }
}
