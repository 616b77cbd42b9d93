//! The objects as YAML files, for GitOps or for `kubectl apply -f`.
//!
//! Every file is written whole or not at all: into a temporary file first, which is flushed and then takes the place of the
//! old one. Files that do not begin with our header are another program's and never touched. A damaged file of ours that
//! blocks Apps is written anew from what is decided, and the damaged one stays beside it under another name.

pub(super) mod found;
mod home;
mod lease;
mod lock;
mod memory;
mod reading;
mod temporary;
mod writing;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use procscan_core::names::{App, is_dns_label, is_dns_subdomain};
use procscan_core::plan::Plan;
use procscan_core::resources::{self, Existing, Kind, MessageKind, Object, Settings, WritePolicy};
use serde_json::Value;

use self::found::{Found, parse};
use self::home::Home;
use self::lease::Owner;
use self::lock::Lock;
use self::memory::{Known, Memory, Stamp};
use super::difference::{self, Action, Difference};
use crate::counters::Counters;
use crate::kubernetes::Cluster;

/// The first line of our files, by which we know them again.
const HEADER: &str = "# Written by procscan-aggregator; changes are overwritten.\n";
/// How many Apps and Services, or files, an error names.
const MAX_NAMES_SHOWN: usize = 5;

/// What can go wrong, with the file that it went wrong with.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub(crate) struct DirectoryError {
    path: String,
    problem: String,
}

/// What one pass has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// Files written.
    pub(crate) written: usize,
    /// Files removed.
    pub(crate) removed: usize,
}

/// What one pass has come to, where one file stops no other.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    /// What it has changed.
    pub(crate) written: Written,
    /// The files that could not be written or removed, by name, each with what stands in the way.
    pub(crate) failed: Vec<(String, DirectoryError)>,
    /// Everything else was done; otherwise the rest is left to the next pass.
    pub(crate) is_finished: bool,
}

/// A directory of objects. Clones share what they know of its files.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    memory: Arc<Mutex<Memory>>,
    /// Held as long as any clone is there.
    lock: Arc<Mutex<Lock>>,
    /// This process has made sure that the directory exists, so it is an error if it is missing.
    is_made: bool,
    /// The cluster of its Lease, if it has one.
    home: Option<Arc<Home>>,
    counters: Counters,
}

impl Directory {
    /// A directory that is read only: nothing is written in it, and if it is not there it counts as empty.
    pub(crate) fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            memory: Arc::default(),
            lock: Arc::default(),
            is_made: false,
            home: None,
            counters: Counters::default(),
        }
    }

    /// Makes the directory if it is not there. Another process may be writing in it.
    pub(crate) fn open(path: impl Into<PathBuf>) -> Result<Self, DirectoryError> {
        let directory = Self { is_made: true, ..Self::at(path) };
        directory.make()?;
        Ok(directory)
    }

    /// With counters for what is written.
    pub(crate) fn counted_by(self, counters: Counters) -> Self {
        Self { counters, ..self }
    }

    /// The objects look different from now on, so no file is taken for written.
    pub(crate) fn forget_drafts(&self) {
        self.memory().forget_drafts();
    }

    fn make(&self) -> Result<(), DirectoryError> {
        fs::create_dir_all(&self.path).map_err(|e| error(&self.path, "can't be made", &e))
    }

    /// Locks the directory until this process ends: two processes that decide apart would undo each other's writes. With a `lease`
    /// (`namespace/name`) its replicas share it; without one it is for this process alone. Fails if a process has locked it
    /// otherwise, or if it belongs to another Lease. Where the file system has no locks, the log says so.
    pub(crate) fn lock(&self, lease: Option<String>) -> Result<(), DirectoryError> {
        let owner = lease.map(|lease| Owner { lease, cluster: None });
        let taken = Lock::take(&self.path, owner)?;
        *self.held() = taken;
        Ok(())
    }

    /// Locks the directory for the replicas of the Lease `name` in `namespace` of `cluster`. See [`Self::lock`].
    pub(crate) fn lock_for(
        &mut self,
        cluster: &Cluster,
        namespace: &str,
        name: &str,
    ) -> Result<(), DirectoryError> {
        self.home = Some(Arc::new(Home::new(cluster.clone(), namespace.to_owned())));
        self.lock(Some(format!("{namespace}/{name}")))
    }

    /// Asks the cluster of the Lease which one it is, and makes sure that the directory belongs to no other cluster. Nothing
    /// may be written before. Without a Lease there is nothing to ask. Where asking is forbidden, only the name of the Lease
    /// counts, and the log says so.
    pub(crate) async fn identify(&self) -> Result<(), String> {
        let Some(home) = &self.home else { return Ok(()) };
        let uid = home.id(&self.path).await?;
        self.held().identify(&self.path, uid).map_err(|error| error.to_string())
    }

    /// The file by which the directory belongs to a Lease; `None` if there is none.
    pub(crate) fn lease_marker(&self) -> Result<Option<PathBuf>, DirectoryError> {
        lease::marker(&self.path)
    }

    fn held(&self) -> MutexGuard<'_, Lock> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes temporary files that a crash has left. Only for the one process that writes: the temporary files of another one look
    /// the same.
    pub(crate) fn tidy(&self, kinds: &[Kind]) -> Result<(), DirectoryError> {
        self.held().keep(&self.path)?;
        let files = self.names()?.into_iter().map(|name| self.path.join(name));
        let mut failed = Ok(());
        for file in files.filter(|file| temporary::is_ours(file, kinds)) {
            let removed = fs::remove_file(&file).map_err(|e| error(&file, "can't be removed", &e));
            failed = failed.and(removed);
        }
        failed
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn entries(&self) -> Result<Vec<DirEntry>, DirectoryError> {
        let read = fs::read_dir(&self.path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        match read {
            Err(e) if e.kind() == io::ErrorKind::NotFound && !self.is_made => Ok(Vec::new()),
            read => read.map_err(|e| error(&self.path, "can't be read", &e)),
        }
    }

    fn names(&self) -> Result<Vec<String>, DirectoryError> {
        // Our own names are ASCII: another one is not ours.
        let names = self.entries()?.into_iter().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.collect())
    }

    /// Our files, with their content.
    fn ours(&self) -> Result<BTreeMap<String, String>, DirectoryError> {
        let mut ours = BTreeMap::new();
        for name in self.names()?.into_iter().filter(|name| is_like_ours(name)) {
            if let Some(text) = self.read(&name) {
                ours.insert(name, text);
            }
        }
        Ok(ours)
    }

    /// The names of the files that were cut short, of objects that block.
    fn cut(&self, settings: &Settings) -> Result<BTreeSet<String>, DirectoryError> {
        let files = self.blocking_files(settings)?.into_iter();
        Ok(files.filter(|file| matches!(file.found, Found::Cut)).map(|file| file.name).collect())
    }

    /// Whether there is a file of ours.
    pub(crate) fn has_objects(&self) -> Result<bool, DirectoryError> {
        self.ours().map(|ours| !ours.is_empty())
    }

    /// The content of one of our files; nothing if it is not ours, or gone.
    fn read(&self, name: &str) -> Option<String> {
        self.find(name).and_then(Found::ours)
    }

    /// The file of that name; `None` if it is gone.
    fn find(&self, name: &str) -> Option<Found> {
        Found::at(&self.path.join(name))
    }

    /// Brings what is known of the files up to date: reads those that have changed. Returns whether any has, or one is gone. A file
    /// that can't be read stops nothing, and is noted.
    fn look(&self, memory: &mut Memory) -> Result<bool, DirectoryError> {
        let look = memory.next_look();
        let mut has_changed = false;
        for entry in self.entries()? {
            let name = entry.file_name();
            // Our own names are ASCII: another one is not ours.
            let Some(name) = name.to_str().filter(|name| is_like_ours(name)) else { continue };
            // Of a link itself. Without a stamp it is read.
            let stamp = entry.metadata().ok().map(|metadata| Stamp::from(&metadata));
            let known = memory.files.get_mut(name);
            if let Some(known) = known.filter(|known| stamp.is_some_and(|stamp| known.is_like(stamp))) {
                known.seen = look;
                continue;
            }
            // `None` if it was removed between the listing and now.
            let Some(found) = self.find(name) else { continue };
            has_changed = true;
            memory.note_junk(name, found.problem(&entry.path()));
            memory.note_cut(name, matches!(found, Found::Cut));
            let before = memory.files.get(name);
            let now = match (&found, stamp) {
                (Found::Unreadable(_), _) | (_, None) => Known::unread(),
                (Found::Ours(text), Some(stamp)) => Known::new(stamp, memory.hash(text)).seen_again(before),
                (Found::Cut | Found::Foreign | Found::Junk(_), Some(stamp)) => Known::foreign(stamp),
            };
            if now.text.is_none() || before.is_none_or(|before| before.text != now.text) {
                memory.notes.remove(name);
            }
            memory.files.insert(name.into(), now.seen_by(look));
        }
        let before = memory.files.len();
        memory.files.retain(|_, known| known.seen == look);
        let Memory { files, junk, cut, .. } = memory;
        junk.retain(|name, _| files.contains_key(name));
        cut.retain(|name| files.contains_key(name));
        has_changed |= memory.files.len() < before;
        memory.has_looked = true;
        Ok(has_changed)
    }

    /// Whether the files are no longer as they were left, or have never been looked at.
    pub(crate) fn has_changed(&self) -> Result<bool, DirectoryError> {
        let place = match fs::metadata(&self.path) {
            Ok(place) => Stamp::from(&place),
            // Another program may have removed the directory.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(e) => return Err(error(&self.path, "can't be read", &e)),
        };
        let mut memory = self.memory();
        if memory.is_enough(place) {
            return Ok(false);
        }
        let has_changed = self.look(&mut memory)?;
        memory.has_seen_all(place);
        Ok(has_changed)
    }

    /// Looks at every file, so that what other programs have changed is put right with the next pass.
    ///
    /// Makes the directory again if it was removed.
    pub(crate) fn refresh(&self) -> Result<(), DirectoryError> {
        self.make()?;
        self.look(&mut self.memory()).map(drop)
    }

    /// What is there that must not be given up, as of the last look.
    pub(crate) fn existing(&self, settings: &Settings) -> Result<Existing, DirectoryError> {
        let mut memory = self.memory();
        if !memory.has_looked {
            self.look(&mut memory)?;
        }
        let mut all = Existing::default();
        let Memory { files, notes, .. } = &mut *memory;
        for kind in settings.kinds {
            let Some(blocking) = kind.blocking().filter(|blocking| blocking.is_permanent()) else { continue };
            for file in files.keys() {
                let Some((_, name)) = kind.object_of(file, settings) else { continue };
                let note = match notes.get(file) {
                    Some(known) => *known,
                    None => match self.find(file).map(|found| found.object(*kind)) {
                        Some(Ok(Some(object))) => blocking.note(kind.content(&object)),
                        Some(Err(_)) => blocking.note(None),
                        Some(Ok(None)) | None => continue,
                    },
                };
                notes.insert(file.clone(), note);
                all.add(*kind, name, note);
            }
        }
        Ok(all)
    }

    /// The first few files from which no program can read objects, and how many more there are, as of the last look; `None` if
    /// there are none. They are left alone.
    pub(crate) fn junk(&self) -> Option<String> {
        let memory = self.memory();
        // Other programs choose the names.
        let place = |name: &str| format!("{}/{}", self.path.display(), name.escape_debug());
        first_of(memory.junk.iter().map(|(name, why)| format!("{}: {why}", place(name))))
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Whatever it says is compared with the files' stamps before it is believed.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What writing `plan` would do.
    pub(crate) fn preview(
        &self,
        plan: &Plan,
        settings: &Settings,
    ) -> Result<Vec<Difference>, DirectoryError> {
        let mut ours = self.ours()?;
        let mut cut = self.cut(settings)?;
        let existing = self.existing(settings)?;
        let mut differences = Vec::new();
        for object in resources::render(plan, settings, existing) {
            if object.write_policy == WritePolicy::MarkRead {
                continue;
            }
            let (namespace, name) = (&object.metadata.namespace, &object.metadata.name);
            if !has_kubernetes_names(namespace, name) {
                continue;
            }
            let name = object.kind.file_name(namespace, name);
            let before = ours.remove(&name);
            cut.remove(&name);
            let is = before.as_deref().and_then(|text| parse(text).ok());
            if is.as_ref().is_some_and(|is| has_same_text(&object, is)) {
                continue;
            }
            let should = serde_json::to_value(&object).unwrap_or_default();
            let lines = difference::lines("", is.as_ref(), Some(&should));
            if !lines.is_empty() {
                let action = if before.is_some() { Action::Change } else { Action::Create };
                differences.push(Difference { action, object: name, lines });
            }
        }
        let left = ours.into_keys().chain(cut);
        let left = left.map(|object| Difference { action: Action::Remove, object, lines: Vec::new() });
        differences.extend(left);
        Ok(differences)
    }
}

/// The first few of them, and how many more there are; `None` if there are none.
fn first_of(all: impl ExactSizeIterator<Item = String>) -> Option<String> {
    let more = match all.len().saturating_sub(MAX_NAMES_SHOWN) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    let first: Vec<String> = all.take(MAX_NAMES_SHOWN).collect();
    (!first.is_empty()).then(|| format!("{}{more}", first.join(", ")))
}

fn has_same_text(object: &Object, is: &Value) -> bool {
    let message = object.kind.message().filter(|_| object.write_policy == WritePolicy::UpdateText);
    let content = object.kind.content(is);
    message.zip(content).is_some_and(|(message, is)| message.has_same_text(is, &object.spec))
}

/// Our files are among those.
fn is_like_ours(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "yaml") && !name.starts_with('.')
}

/// The names of the files with the messages about an App.
pub(super) fn files_of<'a>(app: &'a App, settings: &Settings) -> impl Iterator<Item = String> + use<'a> {
    messages_of(app, settings).map(|(kind, _, name)| kind.file_name(&app.namespace, &name))
}

/// The messages about an App: the kind of each, and its name.
fn messages_of<'a>(
    app: &'a App,
    settings: &Settings,
) -> impl Iterator<Item = (Kind, &'static dyn MessageKind, String)> + use<'a> {
    let kinds = settings.kinds.iter().filter_map(|kind| Some((*kind, kind.message()?)));
    let kinds: Vec<_> = kinds.collect();
    kinds.into_iter().map(|(kind, message)| (kind, message, message.message_name(app)))
}

/// Whether an object of such names can exist. What was persisted may have been edited, so the namespace may be no Kubernetes name.
fn has_kubernetes_names(namespace: &str, name: &str) -> bool {
    is_dns_label(namespace) && is_dns_subdomain(name)
}

fn error(path: &Path, what: &str, e: &io::Error) -> DirectoryError {
    DirectoryError { path: path.display().to_string(), problem: format!("{what}: {e}") }
}
