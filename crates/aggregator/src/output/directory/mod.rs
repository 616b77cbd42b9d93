//! The objects as YAML files, for GitOps or for `kubectl apply -f`.
//!
//! Every file is written whole or not at all: into a temporary file first, which is flushed and then takes the place of the
//! old one. Files that do not begin with our header are another program's and never touched. A damaged `WasmPlugin` of ours is
//! written anew from what is decided, and what was there is kept beside it.

mod found;
mod lock;
mod memory;

use std::collections::BTreeMap;
use std::fs::{self, DirEntry, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use procscan_core::plan::Plan;
use procscan_core::policy::Inherited;
use procscan_core::resources::wasm_plugin::{self, Gateway};
use procscan_core::resources::{self, Draft, Existing, Object, Settings, Upkeep, notification};
use serde_json::Value;

use self::found::{Damage, Found, parse, parse_plugin};
use self::lock::Lock;
use self::memory::{Known, Memory, Stamp};
use super::difference::{self, Action, Difference};

/// The first line of our files, by which we know them again.
const HEADER: &str = "# Written by procscan-aggregator; changes are overwritten.\n";
/// What our temporary files' names begin with.
const TEMPORARY: &str = ".procscan-";
/// What is added to the name of a damaged file that is kept. `kubectl apply` and the tools of GitOps do not read such a file.
const DAMAGED: &str = ".damaged";

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
    /// It is there, so it is an error if it is gone.
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

    /// Locks the directory for this process, until it ends: two processes that decide apart would undo each other's writes. Fails if
    /// another process has locked it. Where the file system has no locks, the log says so.
    pub fn lock(&self) -> Result<(), DirectoryError> {
        let taken = Lock::take(&self.path)?;
        *self.held() = taken;
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, Lock> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Clears away what a crash has left unfinished. Only for the one process that writes: what another one is just writing looks the
    /// same.
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

    /// The content of one of our files; nothing if it is not ours, or gone.
    fn read(&self, name: &str) -> Result<Option<String>, DirectoryError> {
        Ok(self.find(name)?.and_then(Found::ours))
    }

    /// What has one of our names; nothing if it is gone.
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

    /// Looks at every file, so that whatever somebody has changed is put right with the next pass.
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
                    // It may have been.
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

    /// The Apps that our `WasmPlugin`s block now: what a start inherits. What a damaged file blocked is not among them, and is
    /// an error unless it `is_kept` elsewhere.
    ///
    /// When their tenants were told is in the Notifications.
    pub fn blocked(&self, gateway: &Gateway, is_kept: bool) -> Result<Vec<Inherited>, DirectoryError> {
        let (plugins, damaged) = self.plugins(gateway)?;
        for error in damaged {
            if !is_kept {
                return Err(error);
            }
            tracing::warn!(%error, "a file of ours is damaged: what is kept of the Apps says what stays closed");
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
        self.plugins(gateway).map(drop)
    }

    /// Our `WasmPlugin`s, and what is wrong with the damaged ones.
    fn plugins(&self, gateway: &Gateway) -> Result<(Vec<Value>, Vec<DirectoryError>), DirectoryError> {
        let mut names = self.names()?;
        names.sort();
        let (mut plugins, mut damaged) = (Vec::new(), Vec::new());
        for name in names.into_iter().filter(|name| shard(name, gateway).is_some()) {
            match self.find(&name)?.map(|found| found.plugin()) {
                Some(Ok(Some(object))) => plugins.push(object),
                Some(Err(problem)) => damaged.push(DirectoryError {
                    path: self.path.join(name).display().to_string(),
                    problem: format!(
                        "can't be read, so what is blocked is not known; repair or remove it: {problem}"
                    ),
                }),
                Some(Ok(None)) | None => {}
            }
        }
        Ok((plugins, damaged))
    }

    /// Makes the directory hold exactly the objects of `drafts`, without retired ones, apart from files that are not ours. The
    /// drafts of one directory are always of the same settings.
    ///
    /// What somebody has changed since the last look stays until the next one.
    ///
    /// One file that can't be written stops no other; the first error is returned when everything else is done.
    pub fn apply<'a>(&self, drafts: impl IntoIterator<Item = Draft<'a>>) -> Result<Written, DirectoryError> {
        let mut memory = self.memory();
        if !memory.has_looked {
            self.look(&mut memory)?;
        }
        self.held().keep(&self.path)?;
        let pass = memory.next_pass();
        let mut done = Written::default();
        let mut failed = None;
        for draft in drafts.into_iter().filter(|draft| draft.upkeep != Upkeep::Retired) {
            let name = file_name(draft.kind, &draft.namespace, &draft.name);
            if let Some(known) = memory.files.get_mut(&*name) {
                known.wanted = pass;
            }
            match self.put(&mut memory, &name, &draft) {
                Ok(is_news) => done.written += usize::from(is_news),
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        let is_surplus = |known: &Known| known.text.is_some() && known.wanted != pass;
        let surplus: Vec<Box<str>> = memory
            .files
            .iter()
            .filter(|(_, known)| is_surplus(known))
            .map(|(name, _)| name.clone())
            .collect();
        for name in surplus {
            let path = self.path.join(&*name);
            // Somebody may have put another one in its place since the last look.
            if Found::at(&path).is_ok_and(|found| found.ours().is_none()) {
                memory.files.remove(&*name);
                memory.long_lists.remove(&*name);
                continue;
            }
            self.held().keep(&self.path)?;
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    failed.get_or_insert(error(&path, "can't be removed", &e));
                }
                _ => {
                    memory.files.remove(&*name);
                    memory.long_lists.remove(&*name);
                    done.removed += 1;
                }
            }
        }
        if done != Written::default() {
            self.flush()?;
        }
        failed.map_or(Ok(done), Err)
    }

    /// Makes one file say what the draft does. Whether it had to be written.
    fn put(&self, memory: &mut Memory, name: &str, draft: &Draft<'_>) -> Result<bool, DirectoryError> {
        let from = memory.fingerprint(draft);
        let before = memory.files.get(name).copied().filter(|known| known.text.is_some());
        if before.is_some_and(|known| known.from == Some(from)) {
            return Ok(false);
        }
        let object = draft.object();
        let text = to_yaml(&object).map_err(|problem| DirectoryError { path: name.to_owned(), problem })?;
        let hash = memory.hash(&text);
        if let Some(known) = before
            && (known.text == Some(hash) || self.is_as_good(&object, name)?)
        {
            memory.files.insert(name.into(), known.made_from(from));
            return Ok(false);
        }
        // What we have made ourselves is whole.
        let made = before.filter(|known| known.from.is_some()).and_then(|known| known.text);
        let is_whole = |text: &str| {
            object.kind != wasm_plugin::KIND || made == Some(memory.hash(text)) || parse_plugin(text).is_ok()
        };
        let stamp = self.write(name, &text, is_whole)?;
        let written = Known::new(stamp, hash).made_from(from).wanted_in(memory.pass);
        if object.kind == wasm_plugin::KIND {
            memory.long_lists.insert(name.into(), wasm_plugin::has_long_list(&object.spec));
        }
        memory.files.insert(name.into(), written);
        Ok(true)
    }

    /// A message that says the same at another time is no news.
    fn is_as_good(&self, object: &Object, name: &str) -> Result<bool, DirectoryError> {
        // Only such a message is worth reading for it.
        if object.upkeep != Upkeep::Words {
            return Ok(false);
        }
        let is = self.read(name)?.and_then(|text| parse(&text).ok());
        Ok(is.is_some_and(|is| has_same_words(object, &is)))
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

    /// Writes a file of ours. What is there and not whole is kept beside it.
    fn write(
        &self,
        name: &str,
        text: &str,
        is_whole: impl Fn(&str) -> bool,
    ) -> Result<Stamp, DirectoryError> {
        let path = self.path.join(name);
        let damage = match Found::at(&path) {
            Ok(Found::Ours(text)) => (!is_whole(&text)).then_some(Damage::Unparsable),
            Ok(Found::Cut) => Some(Damage::Cut),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            // A file of that name that is not ours stays what it is.
            Ok(Found::Foreign) | Err(_) => {
                let problem = "is there, but not written by procscan-aggregator; move it away".to_owned();
                return Err(DirectoryError { path: path.display().to_string(), problem });
            }
        };
        self.held().keep(&self.path)?;
        let temporary = self.path.join(format!("{TEMPORARY}{name}"));
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            // When nothing but the renaming is left: a write that fails is tried again, and this is told once.
            let kept = damage.map(|damage| match damage {
                Damage::Unparsable => self.keep_aside(name),
                Damage::Cut => "nothing: it was empty, or cut short".to_owned(),
            });
            fs::rename(&temporary, &path)?;
            if let Some(kept) = kept {
                let file = path.display();
                tracing::error!(
                    alert = "output",
                    %file,
                    kept,
                    "a file of ours was damaged (by a full disk, or by another program), and is written anew as decided"
                );
            }
            // Of the file that we have written, whatever has taken its place since.
            file.metadata().map(|metadata| Stamp::from(&metadata))
        };
        write().map_err(|e| {
            // Best effort: what is left is cleared away at the next start.
            let _ = fs::remove_file(&temporary);
            error(&path, "can't be written", &e)
        })
    }

    /// Keeps a damaged file under a name that is not applied, instead of the one kept before. Where, or why not.
    fn keep_aside(&self, name: &str) -> String {
        let aside = self.path.join(format!("{name}{DAMAGED}"));
        // The one before; if it is not removed, the link fails and says so.
        let _ = fs::remove_file(&aside);
        match fs::hard_link(self.path.join(name), &aside) {
            Ok(()) => aside.display().to_string(),
            Err(e) => error(&aside, "can't be made", &e).to_string(),
        }
    }

    /// Makes renames and removals last.
    fn flush(&self) -> Result<(), DirectoryError> {
        let flushed = File::open(&self.path).and_then(|directory| directory.sync_all());
        flushed.map_err(|e| error(&self.path, "can't be flushed", &e))
    }
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

/// One YAML document. Every text is quoted: YAML 1.1, which `kubectl` reads, takes a bare `on` or `0x1` for something else.
fn to_yaml(object: &Object) -> Result<String, String> {
    let options = serde_saphyr::ser_options! { quote_all: true };
    let mut text = HEADER.to_owned();
    serde_saphyr::to_fmt_writer_with_options(&mut text, object, options).map_err(|e| e.to_string())?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

fn error(path: &Path, what: &str, e: &io::Error) -> DirectoryError {
    DirectoryError { path: path.display().to_string(), problem: format!("{what}: {e}") }
}
