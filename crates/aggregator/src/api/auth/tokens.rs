//! The word of a token file: who is in it may do everything.
//!
//! A file with a mistake may be half-written, and a slip or a failing disk must not shut out all operators: the last tokens stay.
//! An operator may remove the file on purpose. So while it is gone or must not be read, no token is accepted.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::Instant;

use super::AuthError;
use super::fingerprint::{Fingerprint, Fingerprints};
use crate::config::token_file::{self, Person, TokenFile, TokenFileError};

/// How often the file is read again, when it is asked for. It is small; and its times do not show every change: two within
/// one tick of the file system's clock look like one.
const REFRESH: Duration = Duration::from_secs(1);
/// How long a probe waits for the file.
const MIN_CHECK_PAUSE: Duration = Duration::from_millis(50);

/// The file, and who was in it when it was last read well.
#[derive(Debug)]
pub(super) struct Tokens {
    fingerprints: Arc<Fingerprints>,
    path: PathBuf,
    list: Arc<Mutex<List>>,
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
        Ok(Self { fingerprints: Arc::new(fingerprints), path, list: Arc::new(Mutex::new(list)) })
    }

    /// Whose token it is.
    pub(super) async fn name_of(&self, token: &str) -> Option<Arc<str>> {
        let fingerprint = self.fingerprints.of(token.as_bytes());
        self.look().await.names.get(&fingerprint).cloned()
    }

    /// What is wrong with the file, without its path: every client may read `/readyz`.
    pub(super) async fn trouble(&self) -> Option<String> {
        let Ok(list) = tokio::time::timeout(MIN_CHECK_PAUSE, self.look()).await else {
            return Some("api.token_file is not read in time".to_owned());
        };
        let error = list.error.as_ref()?;
        let then = match list.names.len() {
            0 => "no token is accepted".to_owned(),
            kept => format!("the last {kept} tokens are accepted"),
        };
        Some(format!("api.token_file: {error}; {then}"))
    }

    /// The list, read again if that is due.
    ///
    /// What is read counts even if the caller is dropped meanwhile: a probe waits for a short time only, and a client may go.
    async fn look(&self) -> OwnedMutexGuard<List> {
        let mut list = self.list.clone().lock_owned().await;
        if list.looked_at.elapsed() < REFRESH {
            return list;
        }
        let (path, fingerprints) = (self.path.clone(), self.fingerprints.clone());
        let reading = tokio::task::spawn_blocking(move || {
            match token_file::read(&path) {
                Ok(contents) => list.accept(&contents, &path, &fingerprints),
                Err(error) => list.refuse(&error, &path),
            }
            list.looked_at = Instant::now();
            list
        });
        match reading.await {
            Ok(list) => list,
            // The thread has ended early. The next look reads the file again.
            Err(_) => self.list.clone().lock_owned().await,
        }
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

    fn refuse(&mut self, error: &TokenFileError, path: &Path) {
        let (file, text) = (path.display(), error.to_string());
        if error.is_absence() {
            let taken = std::mem::take(&mut self.names).len();
            if self.error.as_ref() != Some(&text) {
                tracing::error!(%file, error = text, taken, "token file can't be read; none of its tokens is accepted until it can");
            }
        } else if self.error.as_ref() != Some(&text) {
            tracing::error!(%file, error = text, kept = self.names.len(), "token file refused; keeping the last tokens");
        }
        self.error = Some(text);
    }
}
