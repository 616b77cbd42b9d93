//! The file by which an output directory belongs to one Lease: a lock can't tell one Lease from another.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::path::Path;

use super::{DirectoryError, TEMPORARY, error};
use crate::plain_file;

/// The name of the file. It begins with a dot, so `kubectl apply` does not read it, and it is no temporary file.
pub(super) const MARKER: &str = ".procscan.lease";
/// How many bytes of the file are read: a namespace and a name have 63 and 253 bytes at most.
const MAX_MARKER: u64 = 512;

/// Makes sure that the directory at `path` belongs to `lease` (`namespace/name`). If the file is missing or empty, it is
/// written. If it names another Lease, nothing is changed, and that is an error.
pub(super) fn claim(path: &Path, lease: &str) -> Result<(), DirectoryError> {
    let marker = path.join(MARKER);
    let found = match read(&marker) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        found => found.map_err(|e| error(&marker, "can't be read", &e))?,
    };
    match found.trim() {
        // A crash may leave an empty file.
        "" => write(path, &marker, lease).map_err(|e| error(&marker, "can't be written", &e)),
        found if found == lease => Ok(()),
        other => Err(DirectoryError {
            path: marker.display().to_string(),
            problem: format!(
                "the Lease `{}` says which process writes this directory, and the Lease of this process is `{lease}`: configure \
                 another output.directory; if no process uses the other Lease any more, remove this file",
                other.escape_debug()
            ),
        }),
    }
}

/// The beginning of the file at `marker`.
fn read(marker: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    plain_file::open(marker)?.take(MAX_MARKER).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Replicas of one Lease may write it at the same time, so each has a temporary file of its own.
fn write(path: &Path, marker: &Path, lease: &str) -> io::Result<()> {
    // The keys of a hasher are random.
    let temporary = path.join(format!("{TEMPORARY}lease-{:016x}", RandomState::new().hash_one(0)));
    let mut file = File::create_new(&temporary)?;
    let written = file
        .write_all(format!("{lease}\n").as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&temporary, marker));
    if written.is_err() {
        // Best effort: what is left is cleared away at the next start.
        let _ = fs::remove_file(&temporary);
    }
    written
}
