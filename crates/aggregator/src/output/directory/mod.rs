//! The objects as YAML files, for GitOps or for `kubectl apply -f`.
//!
//! Every file is written whole or not at all: into a temporary file first, which is flushed and then takes the place of the
//! old one. Files that do not begin with our header are another program's and never touched. A damaged `WasmPlugin` of ours is
//! written anew from what is decided, and what was there is kept beside it.

mod found;
mod lease;
mod lock;
mod memory;
mod writing;

use std::collections::BTreeMap;
use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use procscan_core::plan::Plan;
use procscan_core::policy::Inherited;
use procscan_core::resources::wasm_plugin::{self, Gateway};
use procscan_core::resources::{self, Existing, Object, Settings, Upkeep, notification};
use serde_json::Value;

use self::found::{Found, parse};
use self::lock::Lock;
use self::memory::{Known, Memory, Stamp};
use super::difference::{self, Action, Difference};
use super::persisted::{Listed, Persisted};

/// The first line of our files, by which we know them again.
const HEADER: &str = "# Written by procscan-aggregator; changes are overwritten.\n";
/// What our temporary files' names begin with.
const TEMPORARY: &str = ".procscan-";
/// How many Apps and Services an error names.
const TOLD: usize = 5;
/// What can go wrong, with the file that it went wrong with.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct DirectoryError {
    path: String,
    problem: String,
}

/// What one pass has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Files written.
    pub written: usize,
    /// Files removed.
    pub removed: usize,
}

/// A directory of objects. Clones share what they know of its files.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    memory: Arc<Mutex<Memory>>,
    /// Held as long as any clone is there.
    lock: Arc<Mutex<Lock>>,
    /// This process has made sure that the directory exists, so it is an error if it is missing.
    is_made: bool,
}

impl Directory {
    /// A directory that is read only: nothing is written in it, and if it is not there it counts as empty.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), memory: Arc::default(), lock: Arc::default(), is_made: false }
    }

    /// Makes the directory if it is not there. Another process may be writing in it.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, DirectoryError> {
        let directory = Self { is_made: true, ..Self::at(path) };
        directory.make()?;
        Ok(directory)
    }

    fn make(&self) -> Result<(), DirectoryError> {
        fs::create_dir_all(&self.path).map_err(|e| error(&self.path, "can't be made", &e))
    }

    /// Locks the directory until this process ends: two processes that decide apart would undo each other's writes. With a `lease`
    /// (`namespace/name`) its replicas share it; without one it is for this process alone. Fails if a process has locked it
    /// otherwise, or if it belongs to another Lease. Where the file system has no locks, the log says so.
    pub fn lock(&self, lease: Option<String>) -> Result<(), DirectoryError> {
        let taken = Lock::take(&self.path, lease)?;
        *self.held() = taken;
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, Lock> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes temporary files that a crash has left. Only for the one process that writes: the temporary files of another one look
    /// the same.
    pub fn tidy(&self) -> Result<(), DirectoryError> {
        self.held().keep(&self.path)?;
        for name in self.names()?.iter().filter(|name| name.starts_with(TEMPORARY)) {
            let file = self.path.join(name);
            fs::remove_file(&file).map_err(|e| error(&file, "can't be removed", &e))?;
        }
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
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
            if let Some(text) = self.read(&name)? {
                ours.insert(name, text);
            }
        }
        Ok(ours)
    }

    /// Whether there is a file of ours.
    pub fn has_objects(&self) -> Result<bool, DirectoryError> {
        self.ours().map(|ours| !ours.is_empty())
    }

    /// The content of one of our files; nothing if it is not ours, or gone.
    fn read(&self, name: &str) -> Result<Option<String>, DirectoryError> {
        Ok(self.find(name)?.and_then(Found::ours))
    }

    /// The file of that name; `None` if it is gone.
    fn find(&self, name: &str) -> Result<Option<Found>, DirectoryError> {
        let path = self.path.join(name);
        match Found::at(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            found => found.map(Some).map_err(|e| error(&path, "can't be read", &e)),
        }
    }

    /// Brings what is known of the files up to date. Reads those that somebody has changed; whether there are any, or fewer files.
    fn look(&self, memory: &mut Memory) -> Result<bool, DirectoryError> {
        let look = memory.next_look();
        let mut has_changed = false;
        for entry in self.entries()? {
            let name = entry.file_name();
            // Our own names are ASCII: another one is not ours.
            let Some(name) = name.to_str().filter(|name| is_like_ours(name)) else { continue };
            let stamp = match entry.metadata() {
                Ok(metadata) if metadata.is_symlink() => {
                    fs::metadata(entry.path()).map(|metadata| Stamp::from(&metadata))
                }
                metadata => metadata.map(|metadata| Stamp::from(&metadata)),
            };
            let stamp = match stamp {
                Ok(stamp) => stamp,
                // Removed by somebody between the listing and now.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(error(&entry.path(), "can't be read", &e)),
            };
            if let Some(known) = memory.files.get_mut(name).filter(|known| known.is_like(stamp)) {
                known.seen = look;
                continue;
            }
            has_changed = true;
            let before = memory.files.get(name);
            let now = match self.read(name)? {
                Some(text) => Known::new(stamp, memory.hash(&text)).seen_again(before),
                None => Known::foreign(stamp),
            };
            if before.is_none_or(|before| before.text != now.text) {
                memory.long_lists.remove(name);
            }
            memory.files.insert(name.into(), now.seen_by(look));
        }
        let before = memory.files.len();
        memory.files.retain(|_, known| known.seen == look);
        has_changed |= memory.files.len() < before;
        memory.has_looked = true;
        Ok(has_changed)
    }

    /// Whether the files are no longer as they were left, or have never been looked at.
    pub fn has_changed(&self) -> Result<bool, DirectoryError> {
        let place = match fs::metadata(&self.path) {
            Ok(place) => Stamp::from(&place),
            // Somebody may have removed all of it.
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
    pub fn refresh(&self) -> Result<(), DirectoryError> {
        self.make()?;
        self.look(&mut self.memory()).map(drop)
    }

    /// What is there that must not be given up, as of the last look.
    pub fn existing(&self, gateway: &Gateway) -> Result<Existing, DirectoryError> {
        let mut memory = self.memory();
        if !memory.has_looked {
            self.look(&mut memory)?;
        }
        let mut all = Existing::default();
        let Memory { files, long_lists, .. } = &mut *memory;
        for (file, plugin) in files.keys().filter_map(|file| Some((file, shard(file, gateway)?))) {
            let has_long_list = match long_lists.get(file) {
                Some(known) => *known,
                None => match self.find(file)?.map(|found| found.plugin()) {
                    Some(Ok(Some(object))) => object.get("spec").is_some_and(wasm_plugin::has_long_list),
                    // A damaged one may have had a long list.
                    Some(Err(_)) => true,
                    Some(Ok(None)) | None => continue,
                },
            };
            long_lists.insert(file.clone(), has_long_list);
            let index = wasm_plugin::shard_index(plugin, gateway).unwrap_or_default();
            all.wasm_plugins = all.wasm_plugins.max(index + 1);
            all.has_long_list |= has_long_list;
        }
        Ok(all)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Whatever it says is compared with the files' stamps before it is believed.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The Apps that our `WasmPlugin`s block now: what a start inherits. A damaged file is an error, unless the persisted
    /// Incidents say what it blocked: then the answer leaves it out.
    ///
    /// They say it if they name each App and each Service that can still be read in our files. If they lack one, the state
    /// is older than the files, and may also lack Apps that can't be read any more. Where nothing can be read, the
    /// Incidents count as well, because each block is persisted before it is written.
    ///
    /// When their tenants were told is in the Notifications.
    pub fn blocked(
        &self,
        gateway: &Gateway,
        persisted: Option<&Persisted>,
    ) -> Result<Vec<Inherited>, DirectoryError> {
        let (mut plugins, mut damaged) = (Vec::new(), Vec::new());
        let shards = self.shards(gateway)?;
        for (name, found) in &shards {
            match found.plugin() {
                Ok(plugin) => plugins.extend(plugin),
                Err(problem) => damaged.push((name, found, problem)),
            }
        }
        if let Some((name, _, problem)) = damaged.first() {
            let error =
                |problem| DirectoryError { path: self.path.join(name).display().to_string(), problem };
            let Some(persisted) = persisted else {
                let next = "can't be read, so what is blocked is not known; repair or remove it";
                return Err(error(format!("{next}: {problem}")));
            };
            let mut listed = Listed::default();
            shards.iter().filter_map(|(_, found)| found.text()).for_each(|text| listed.read(text));
            if let Some(unknown) = first_of(&persisted.lacks(&listed)) {
                return Err(error(format!(
                    "can't be read ({problem}), and no Incident is persisted of blocks that our files list: {unknown}. The state is \
                     probably older than the file, so what is blocked is not known. Restore the latest state, or repair the \
                     file, or remove it if what it closed may be opened"
                )));
            }
        }
        for (name, found, problem) in damaged {
            let mut listed = Listed::default();
            found.text().into_iter().for_each(|text| listed.read(text));
            tracing::warn!(
                file = %self.path.join(name).display(),
                problem,
                legible = !listed.is_empty(),
                "a file of ours is damaged: the persisted Incidents say what stays closed"
            );
        }
        let mut blocked = wasm_plugin::blocked(&plugins, gateway);
        for inherited in &mut blocked {
            let app = &inherited.app;
            let name = file_name("Notification", &app.namespace, &notification::name(app));
            let Some(object) = self.read(&name)?.and_then(|text| parse(&text).ok()) else { continue };
            let told =
                object.pointer("/metadata/annotations").and_then(|all| all.get(notification::INCIDENT));
            inherited.told = told.and_then(Value::as_str).and_then(|told| told.parse::<Timestamp>().ok());
        }
        Ok(blocked)
    }

    /// Whether the directory and our files in it can be read, however damaged the files are.
    pub fn check(&self, gateway: &Gateway) -> Result<(), DirectoryError> {
        self.shards(gateway).map(drop)
    }

    /// The files of our `WasmPlugin`s, ordered by name.
    fn shards(&self, gateway: &Gateway) -> Result<Vec<(String, Found)>, DirectoryError> {
        let mut names = self.names()?;
        names.sort();
        let mut shards = Vec::new();
        for name in names.into_iter().filter(|name| shard(name, gateway).is_some()) {
            if let Some(found) = self.find(&name)? {
                shards.push((name, found));
            }
        }
        Ok(shards)
    }

    /// What writing `plan` would do.
    pub fn preview(&self, plan: &Plan, settings: &Settings) -> Result<Vec<Difference>, DirectoryError> {
        let mut ours = self.ours()?;
        let existing = self.existing(&settings.gateway)?;
        let mut differences = Vec::new();
        for object in resources::render(plan, settings, existing) {
            if object.upkeep == Upkeep::Retired {
                continue;
            }
            let name = file_name(object.kind, &object.metadata.namespace, &object.metadata.name);
            let before = ours.remove(&name);
            let is = before.as_deref().and_then(|text| parse(text).ok());
            if is.as_ref().is_some_and(|is| has_same_words(&object, is)) {
                continue;
            }
            let should = serde_json::to_value(&object).unwrap_or_default();
            let lines = difference::lines("", is.as_ref(), Some(&should));
            if !lines.is_empty() {
                let action = if before.is_some() { Action::Change } else { Action::Create };
                differences.push(Difference { action, object: name, lines });
            }
        }
        let left =
            ours.into_keys().map(|object| Difference { action: Action::Remove, object, lines: Vec::new() });
        differences.extend(left);
        Ok(differences)
    }
}

/// The first few of them, and how many more there are; `None` if there are none.
fn first_of(all: &[String]) -> Option<String> {
    let more = match all.len().saturating_sub(TOLD) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    let first = all.iter().take(TOLD).map(String::as_str).collect::<Vec<_>>().join(", ");
    (!all.is_empty()).then(|| format!("{first}{more}"))
}

fn has_same_words(object: &Object, is: &Value) -> bool {
    object.upkeep == Upkeep::Words
        && is.get("spec").is_some_and(|spec| notification::has_same_words(spec, &object.spec))
}

/// Our files are among those.
fn is_like_ours(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "yaml") && !name.starts_with('.')
}

/// The name of the `WasmPlugin` that a file of ours holds, if it holds one of the gateway's.
fn shard<'a>(file: &'a str, gateway: &Gateway) -> Option<&'a str> {
    let start = file_name("WasmPlugin", &gateway.namespace, "");
    let name = file.strip_prefix(start.trim_end_matches(".yaml"))?.strip_suffix(".yaml")?;
    wasm_plugin::shard_index(name, gateway).map(|_| name)
}

/// Namespaces and names are DNS names, so the parts can't contain what separates them from the rest of a path.
fn file_name(kind: &str, namespace: &str, name: &str) -> String {
    format!("{}_{namespace}_{name}.yaml", kind.to_ascii_lowercase())
}

fn error(path: &Path, what: &str, e: &io::Error) -> DirectoryError {
    DirectoryError { path: path.display().to_string(), problem: format!("{what}: {e}") }
}
