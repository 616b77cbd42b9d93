//! The directory of the state file: the names of its files, its lock, and where a damaged file is moved.
//!
//! ```text
//! state.db                               the state
//! state.db-journal                       SQLite's: what undoes a change that was cut short
//! state.lock                             locked as long as a process uses the directory
//! state.db.new                           a new file, before it gets its name
//! state.db.corrupt-2026-11-23T05-56-20Z  found damaged then, and set aside
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::OFlags;

use super::error::{StateError, StateErrorKind};

/// The files of the state, the database first. The journal exists only once something has been written.
pub(crate) const FILES: [&str; 2] = [DATABASE, "state.db-journal"];

const DATABASE: &str = "state.db";
const LOCK: &str = "state.lock";
const UNFINISHED: &str = ".new";
const SET_ASIDE_PREFIX: &str = "state.db.corrupt-";
/// The suffixes of the files that `SQLite` makes beside a database.
const COMPANIONS: [&str; 3] = ["-journal", "-wal", "-shm"];
/// How many damaged files stay at most. A disk that damages every file must not be filled with them.
pub(super) const MAX_SET_ASIDE: usize = 5;

/// The directory of the state file.
#[derive(Clone, Debug)]
pub(super) struct Place {
    directory: PathBuf,
}

/// Identifies a file independently of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

/// The properties of a file that are known without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outside {
    pub(super) id: FileId,
    pub(super) len: u64,
}

/// The lock on the directory, for as long as this value lives.
#[derive(Debug)]
pub(super) struct Lock {
    pub(super) file: File,
}

impl Place {
    /// Makes the directory if it does not exist, for its owner only, because evidence may hold the arguments of
    /// tenants' processes.
    pub(super) fn make(directory: &Path) -> Result<Self, StateError> {
        let failed = |e: &io::Error| StateError::io(directory, "made", e);
        // SQLite takes a relative path that begins with `file:` for a URI.
        let directory = std::path::absolute(directory).map_err(|e| failed(&e))?;
        let missing: Vec<_> = directory.ancestors().take_while(|path| !path.exists()).collect();
        match DirBuilder::new().recursive(true).mode(0o700).create(&directory) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let problem = "it is not a directory; move it away, or configure another directory";
                return Err(StateError::new(&directory, "used", StateErrorKind::Other, problem));
            }
            made => made.map_err(|e| StateError::io(&directory, "made", &e))?,
        }
        for parent in missing.iter().filter_map(|path| path.parent()) {
            flush(parent)?;
        }
        Ok(Self { directory })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn database(&self) -> PathBuf {
        self.directory.join(DATABASE)
    }

    pub(super) fn journal(&self) -> PathBuf {
        companion(&self.database(), "-journal")
    }

    /// Checks that the files that `SQLite` opens beside the database are regular ones, because it would wait for a
    /// pipe without end.
    pub(super) fn check_companions(&self) -> Result<(), StateError> {
        COMPANIONS.iter().try_for_each(|suffix| Outside::at(&companion(&self.database(), suffix)).map(drop))
    }

    /// Takes the lock. `SQLite` locks its file too, but that does not help while there is no file, or while it is
    /// being set aside.
    pub(super) fn lock(&self) -> Result<Lock, StateError> {
        let path = self.directory.join(LOCK);
        let failed = |e: &io::Error| StateError::io(&path, "locked", e);
        Outside::at(&path)?;
        // A link or a pipe that has taken its place since then is neither followed nor waited for.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).map_err(|e| failed(&io::Error::other(e)))?;
        let mut options = OpenOptions::new().write(true).create(true).truncate(false).to_owned();
        let file = options.mode(0o600).custom_flags(flags).open(&path).map_err(|e| failed(&e))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { file }),
            Err(TryLockError::WouldBlock) => Err(StateError::new(
                &self.database(),
                "opened",
                StateErrorKind::Locked,
                "it is in use by another process",
            )),
            Err(TryLockError::Error(e)) => Err(failed(&e)),
        }
    }

    /// Removes every database, including the unfinished one and those that were set aside. The caller must hold the
    /// lock. The lock's file stays, because another process may have opened it by now.
    pub(super) fn clear(&self, _lock: &Lock) -> Result<(), StateError> {
        let path = self.database();
        let mut all = self.set_aside_files()?;
        all.extend([companion(&path, UNFINISHED), path]);
        for database in all {
            for companion in COMPANIONS.map(|suffix| companion(&database, suffix)) {
                remove(&companion)?;
            }
            remove(&database)?;
        }
        flush(&self.directory)
    }

    /// Whether the held lock is still the one that other processes would find.
    pub(super) fn is_locked_by(&self, lock: &Lock) -> bool {
        let found = fs::symlink_metadata(self.directory.join(LOCK)).map(|found| Outside::of(&found).id);
        let held = lock.file.metadata().map(|held| Outside::of(&held).id);
        matches!((found, held), (Ok(found), Ok(held)) if found == held)
    }

    /// Makes a new database. No process ever sees it half made: `make` fills the file that it is given, which is then
    /// renamed.
    pub(super) fn create(&self, make: impl Fn(&Path) -> Result<(), StateError>) -> Result<(), StateError> {
        let path = self.database();
        let unfinished = companion(&path, UNFINISHED);
        // Removes what a crash has left. A journal that has lost its database would be applied to the new one.
        for path in [&path, &unfinished] {
            for companion in COMPANIONS.map(|suffix| companion(path, suffix)) {
                remove(&companion)?;
            }
        }
        remove(&unfinished)?;
        let failed = |e: &io::Error| StateError::io(&unfinished, "made", e);
        let options = OpenOptions::new().write(true).create_new(true).mode(0o600).to_owned();
        drop(options.open(&unfinished).map_err(|e| failed(&e))?);
        make(&unfinished)?;
        fs::rename(&unfinished, &path).map_err(|e| failed(&e))?;
        flush(&self.directory)
    }

    /// Moves a damaged database away, with the files that belong to it. Returns the new path; `None` if the database
    /// is gone already.
    pub(super) fn set_aside(&self, now: Timestamp) -> Result<Option<PathBuf>, StateError> {
        let path = self.database();
        if Outside::at(&path)?.is_none() {
            return Ok(None);
        }
        let name = format!("{SET_ASIDE_PREFIX}{}", now.strftime("%Y-%m-%dT%H-%M-%SZ"));
        let free = |path: &PathBuf| fs::symlink_metadata(path).is_err();
        let first = self.directory.join(&name);
        let mut others = (2..).map(|n: u32| self.directory.join(format!("{name}.{n}")));
        let target = if free(&first) { first } else { others.find(free).unwrap_or(first) };
        // The database is moved first. If this is cut short, the rest of the files do no harm: see `create`.
        for suffix in [""].iter().chain(&COMPANIONS) {
            let from = companion(&path, suffix);
            match fs::rename(&from, companion(&target, suffix)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(StateError::io(&from, "set aside", &e));
                }
                _ => {}
            }
        }
        flush(&self.directory)?;
        let mut all = self.set_aside_files()?;
        // The first one has the longest history, and the last ones show the current damage.
        while all.len() > MAX_SET_ASIDE {
            let surplus = all.remove(1);
            for suffix in [""].iter().chain(&COMPANIONS) {
                remove(&companion(&surplus, suffix))?;
            }
        }
        Ok(Some(target))
    }

    /// The databases that have been set aside, oldest first.
    pub(super) fn set_aside_files(&self) -> Result<Vec<PathBuf>, StateError> {
        let failed = |e: &io::Error| StateError::io(&self.directory, "read", e);
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(|e| failed(&e))? {
            let name = entry.map_err(|e| failed(&e))?.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(SET_ASIDE_PREFIX) && !COMPANIONS.iter().any(|suffix| name.ends_with(suffix)) {
                files.push(self.directory.join(name));
            }
        }
        files.sort();
        Ok(files)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough while a process that is just being started still has a copy.
        let _ = self.file.unlock();
    }
}

impl Outside {
    /// The file at `path` itself, without following a link; `None` if there is none.
    pub(super) fn at(path: &Path) -> Result<Option<Self>, StateError> {
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_file() => Ok(Some(Self::of(&found))),
            Ok(_) => {
                let problem = "it is not a regular file; move it away, or configure another directory";
                Err(StateError::new(path, "used", StateErrorKind::Other, problem))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StateError::io(path, "found", &e)),
        }
    }

    fn of(metadata: &fs::Metadata) -> Self {
        Self { id: FileId { device: metadata.dev(), inode: metadata.ino() }, len: metadata.len() }
    }
}

fn companion(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

fn remove(path: &Path) -> Result<(), StateError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StateError::io(path, "removed", &e)),
        _ => Ok(()),
    }
}

/// Makes changes of names in a directory durable.
fn flush(directory: &Path) -> Result<(), StateError> {
    match File::open(directory).and_then(|directory| directory.sync_all()) {
        // Not every file system supports that for a directory.
        Err(e) if !matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
            Err(StateError::io(directory, "flushed", &e))
        }
        _ => Ok(()),
    }
}
