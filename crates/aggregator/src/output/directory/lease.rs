//! The file by which an output directory belongs to one Lease of one cluster. A lock does not show which Lease its holder has.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::{DirectoryError, error, temporary};
use crate::plain_file;

/// The name of the file. It begins with a dot, so `kubectl apply` does not read it, and it is no temporary file.
pub(super) const MARKER: &str = ".procscan.lease";
/// How many bytes of the file are read: a namespace and a name have 63 and 253 bytes at most, a UID has 36.
const MAX_MARKER: u64 = 512;

/// The Lease by which a process and its replicas agree which of them writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    /// As `namespace/name`.
    pub(super) lease: String,
    /// The UID of that namespace, which no other cluster has; `None` as long as the API server has not answered, or if it forbids
    /// the request.
    pub(super) cluster: Option<String>,
}

impl Owner {
    /// Reads the text of the file. Earlier versions wrote no UID.
    fn read(text: &str) -> Self {
        let mut words = text.split_whitespace();
        let lease = words.next().unwrap_or_default().to_owned();
        Self { lease, cluster: words.next().map(str::to_owned) }
    }

    fn text(&self) -> String {
        let words = [Some(self.lease.as_str()), self.cluster.as_deref()];
        words.into_iter().flatten().collect::<Vec<_>>().join(" ") + "\n"
    }
}

/// Makes sure that the directory at `path` belongs to `owner`. If the file is missing, empty, or of the same Lease without a
/// UID, it is written. If it names another Lease, or one of another cluster, nothing is changed, and that is an error.
pub(super) fn claim(path: &Path, owner: &Owner) -> Result<(), DirectoryError> {
    let marker = path.join(MARKER);
    let text = match read(&marker) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        text => text.map_err(|e| error(&marker, "can't be read", &e))?,
    };
    let found = Owner::read(&text);
    let of_another = |reason: String| {
        let problem = format!(
            "{reason}: configure another output.directory; if no process uses it there any more, remove this file"
        );
        Err(DirectoryError { path: marker.display().to_string(), problem })
    };
    // A crash may leave an empty file.
    if !found.lease.is_empty() && found.lease != owner.lease {
        return of_another(format!(
            "the Lease `{}` says which process writes this directory, and the Lease of this process is `{}`",
            found.lease.escape_debug(),
            owner.lease
        ));
    }
    match (&found.cluster, &owner.cluster) {
        (Some(found), Some(ours)) if found != ours => of_another(format!(
            "the Lease `{}` of another cluster says which process writes this directory: the UID of its namespace is {}, and in the \
             cluster of this process {ours}",
            owner.lease,
            found.escape_debug()
        )),
        (found_cluster, ours) if found.lease.is_empty() || found_cluster.is_none() && ours.is_some() => {
            write(path, &marker, owner).map_err(|e| error(&marker, "can't be written", &e))
        }
        _ => Ok(()),
    }
}

/// The file by which the directory at `path` belongs to any Lease; `None` if there is none.
pub(super) fn marker(path: &Path) -> Result<Option<PathBuf>, DirectoryError> {
    let marker = path.join(MARKER);
    match fs::symlink_metadata(&marker) {
        Ok(_) => Ok(Some(marker)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(error(&marker, "can't be read", &e)),
    }
}

/// The beginning of the file at `marker`.
fn read(marker: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    plain_file::open_itself(marker)?.take(MAX_MARKER).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Replicas of one Lease may write it at the same time, so each has a temporary file of its own.
fn write(path: &Path, marker: &Path, owner: &Owner) -> io::Result<()> {
    let (temporary, mut file) = temporary::make(path, temporary::LEASE)?;
    let written = file
        .write_all(owner.text().as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&temporary, marker));
    if written.is_err() {
        // Best effort: the next start removes temporary files.
        let _ = fs::remove_file(&temporary);
    }
    written
}
