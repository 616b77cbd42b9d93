//! Authentication by a token file.
//!
//! A file with a mistake may be half-written, and a failing disk must not shut out all operators, so the last tokens stay in
//! force. An operator may remove the file on purpose, so no token is accepted while the file is missing or may not be read.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::Instant;

use super::AuthError;
use super::Caller;
use super::fingerprint::{Fingerprint, Fingerprints};
use crate::config::token_file::{self, Account, Scopes, TokenFile, TokenFileError};

/// How often the file is read again at most. It is read even if its times have not changed, because two changes within one tick of
/// the file system's clock have the same time.
const REFRESH: Duration = Duration::from_secs(1);
/// How long a probe waits for the file.
const MIN_CHECK_PAUSE: Duration = Duration::from_millis(50);

/// The file, and the tokens of its last good version.
#[derive(Debug)]
pub(super) struct Tokens {
    fingerprints: Arc<Fingerprints>,
    path: PathBuf,
    list: Arc<Mutex<List>>,
}

#[derive(Debug)]
struct List {
    /// The name and the scopes of each token.
    accounts: HashMap<Fingerprint, Arc<(String, Scopes)>>,
    is_open: bool,
    /// What was wrong with the file when it was last read.
    error: Option<String>,
    looked_at: Instant,
}

impl Tokens {
    pub(super) fn open(path: PathBuf, fingerprints: Fingerprints) -> Result<Self, AuthError> {
        let contents = token_file::read(&path)?;
        let mut list =
            List { accounts: HashMap::new(), is_open: false, error: None, looked_at: Instant::now() };
        list.accept(&contents, &path, &fingerprints);
        Ok(Self { fingerprints: Arc::new(fingerprints), path, list: Arc::new(Mutex::new(list)) })
    }

    /// The account of this token; `None` if there is none.
    pub(super) async fn caller(&self, token: &str) -> Option<Caller> {
        let fingerprint = self.fingerprints.of(token.as_bytes());
        let account = self.look().await.accounts.get(&fingerprint).cloned()?;
        let (name, scopes) = &*account;
        Some(Caller::named(name, scopes.clone()))
    }

    /// What is wrong with the file, without its path.
    pub(super) async fn trouble(&self) -> Option<String> {
        let Ok(list) = tokio::time::timeout(MIN_CHECK_PAUSE, self.look()).await else {
            return Some("api.token_file is not read in time".to_owned());
        };
        let error = list.error.as_ref()?;
        let then = match list.accounts.len() {
            0 => "no token is accepted".to_owned(),
            tokens => format!("the last {tokens} tokens are accepted"),
        };
        Some(format!("api.token_file: {error}; {then}"))
    }

    /// The list, read again if that is due.
    ///
    /// The new list counts even if the caller is dropped meanwhile, because a probe waits for a short time only.
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
        let account = |Account { name, token, scopes }: &Account| {
            (fingerprints.of(token.as_bytes()), Arc::new((name.clone(), scopes.clone())))
        };
        let accounts: HashMap<_, _> = contents.accounts.iter().map(account).collect();
        if self.error.take().is_some() || accounts != self.accounts {
            tracing::info!(%file, tokens = accounts.len(), "token file read");
        }
        if contents.is_open && !self.is_open {
            tracing::warn!(%file, "every user of this machine may read the token file");
        }
        self.accounts = accounts;
        self.is_open = contents.is_open;
    }

    fn refuse(&mut self, error: &TokenFileError, path: &Path) {
        let (file, text) = (path.display(), error.to_string());
        if error.is_absence() {
            let taken = std::mem::take(&mut self.accounts).len();
            if self.error.as_ref() != Some(&text) {
                tracing::error!(alert = "auth", %file, error = text, taken, "token file can't be read; none of its tokens is accepted until it can");
            }
        } else if self.error.as_ref() != Some(&text) {
            tracing::error!(alert = "auth", %file, error = text, tokens = self.accounts.len(), "token file refused; the last tokens stay in force");
        }
        self.error = Some(text);
    }
}
