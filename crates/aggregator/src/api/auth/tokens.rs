//! The word of a token file: who is in it may do everything.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::AuthError;
use super::fingerprint::{Fingerprint, Fingerprints};
use crate::config::token_file::{self, Person, TokenFile};

/// How often the file is read again, when it is asked for. It is small; and its times do not show every change: two within
/// one tick of the file system's clock look like one.
const REFRESH: Duration = Duration::from_secs(1);

/// The file, and who was in it when it was last read well.
#[derive(Debug)]
pub(super) struct Tokens {
    path: PathBuf,
    fingerprints: Fingerprints,
    list: Mutex<List>,
}

#[derive(Debug)]
struct List {
    names: HashMap<Fingerprint, Arc<str>>,
    is_open: bool,
    /// What was wrong with it at the last look.
    error: Option<String>,
    looked_at: Instant,
}

impl Tokens {
    pub(super) fn open(path: PathBuf, fingerprints: Fingerprints) -> Result<Self, AuthError> {
        let contents = token_file::read(&path)?;
        let mut list = List { names: HashMap::new(), is_open: false, error: None, looked_at: Instant::now() };
        list.accept(&contents, &path, &fingerprints);
        Ok(Self { path, fingerprints, list: Mutex::new(list) })
    }

    /// Whose token it is.
    pub(super) async fn name_of(&self, token: &str) -> Option<Arc<str>> {
        let fingerprint = self.fingerprints.of(token.as_bytes());
        let mut list = self.list.lock().await;
        if list.looked_at.elapsed() >= REFRESH {
            list.looked_at = Instant::now();
            let path = self.path.clone();
            let read =
                tokio::task::spawn_blocking(move || token_file::read(&path).map_err(|e| e.to_string()));
            match read.await.unwrap_or_else(|e| Err(e.to_string())) {
                Ok(contents) => list.accept(&contents, &self.path, &self.fingerprints),
                Err(error) => list.keep(error, &self.path),
            }
        }
        list.names.get(&fingerprint).cloned()
    }
}

impl List {
    fn accept(&mut self, contents: &TokenFile, path: &Path, fingerprints: &Fingerprints) {
        let file = path.display();
        let person = |person: &Person| {
            (fingerprints.of(person.token.as_bytes()), Arc::<str>::from(person.name.as_str()))
        };
        let names: HashMap<_, _> = contents.people.iter().map(person).collect();
        if self.error.take().is_some() || names != self.names {
            tracing::info!(%file, tokens = names.len(), "token file read");
        }
        if contents.is_open && !self.is_open {
            tracing::warn!(%file, "every user of this machine may read the token file");
        }
        self.names = names;
        self.is_open = contents.is_open;
    }

    /// It is half-written, perhaps: a slip of whoever writes it must not lock everybody out.
    fn keep(&mut self, error: String, path: &Path) {
        if self.error.as_ref() != Some(&error) {
            tracing::error!(file = %path.display(), error, kept = self.names.len(), "token file refused; keeping the last tokens");
        }
        self.error = Some(error);
    }
}
