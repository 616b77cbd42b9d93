//! The objects as YAML files, for GitOps or for `kubectl apply -f`.
//!
//! Every file is written whole or not at all: into a temporary file first, which is flushed and then takes the place of the
//! old one. Files that do not begin with our header are somebody else's and never touched.

mod memory;

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use procscan_core::plan::Plan;
use procscan_core::policy::Inherited;
use procscan_core::resources::wasm_plugin::{self, Gateway};
use procscan_core::resources::{self, Draft, Existing, Object, Settings, Upkeep, notification};
use serde_json::Value;

use self::memory::{Known, Memory, Stamp};
use super::difference::{self, Action, Difference};

/// The first line of our files, by which we know them again.
const HEADER: &str = "# Written by procscan-aggregator; changes are overwritten.\n";
/// What our temporary files' names begin with.
const TEMPORARY: &str = ".procscan-";

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
    /// Locked as long as any clone is there.
    lock: Option<Arc<File>>,
}

impl Directory {
    /// Makes the directory if it is not there, and clears away what a crash has left unfinished.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, DirectoryError> {
        let path = path.into();
        fs::create_dir_all(&path).map_err(|e| error(&path, "can't be made", &e))?;
        let directory = Self { path, memory: Arc::default(), lock: None };
        for name in directory.names()? {
            if name.starts_with(TEMPORARY) {
                let file = directory.path.join(&name);
                fs::remove_file(&file).map_err(|e| error(&file, "can't be removed", &e))?;
            }
        }
        Ok(directory)
    }

    /// Locks the directory for this process, until it ends: two processes that decide apart would undo each other's writes. Fails if
    /// another process has locked it. Where the file system has no locks, the log says so.
    pub fn lock(&mut self) -> Result<(), DirectoryError> {
        let handle = File::open(&self.path).map_err(|e| error(&self.path, "can't be opened", &e))?;
        match handle.try_lock() {
            Ok(()) => self.lock = Some(Arc::new(handle)),
            Err(TryLockError::WouldBlock) => {
                let problem = "another process writes there: stop it, or configure another directory";
                return Err(DirectoryError {
                    path: self.path.display().to_string(),
                    problem: problem.to_owned(),
                });
            }
            Err(TryLockError::Error(e)) => tracing::warn!(
                path = %self.path.display(),
                error = %e,
                "the output directory can't be locked; let no other process write there"
            ),
        }
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Result<Vec<String>, DirectoryError> {
        let broken = |e: &io::Error| error(&self.path, "can't be read", e);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(|e| broken(&e))? {
            let entry = entry.map_err(|e| broken(&e))?;
            // Our own names are ASCII: another one is not ours.
            names.extend(entry.file_name().into_string().ok());
        }
        Ok(names)
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
        let path = self.path.join(name);
        match read_ours(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            text => text.map_err(|e| error(&path, "can't be read", &e)),
        }
    }

    /// Brings what is known of the files up to date. Reads those that somebody has changed; whether there are any, or fewer files.
    fn look(&self, memory: &mut Memory) -> Result<bool, DirectoryError> {
        let look = memory.next_look();
        let mut has_changed = false;
        let broken = |e: &io::Error| error(&self.path, "can't be read", e);
        for entry in fs::read_dir(&self.path).map_err(|e| broken(&e))? {
            let entry = entry.map_err(|e| broken(&e))?;
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
    /// Makes the directory again if somebody has removed it.
    pub fn refresh(&self) -> Result<(), DirectoryError> {
        fs::create_dir_all(&self.path).map_err(|e| error(&self.path, "can't be made", &e))?;
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
        let files = files.iter().filter(|(_, file)| file.text.is_some()).map(|(file, _)| file);
        for (file, plugin) in files.filter_map(|file| Some((file, shard(file, gateway)?))) {
            let has_long_list = match long_lists.get(file) {
                Some(known) => *known,
                None => match self.read(file)? {
                    Some(text) => {
                        let object = self.parse(file, &text)?;
                        object.get("spec").is_some_and(wasm_plugin::has_long_list)
                    }
                    None => continue,
                },
            };
            long_lists.insert(file.clone(), has_long_list);
            let index = wasm_plugin::shard_index(plugin, gateway).unwrap_or_default();
            all.wasm_plugins = all.wasm_plugins.max(index + 1);
            all.has_long_list |= has_long_list;
        }
        Ok(all)
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        // Whatever it says is compared with the files' stamps before it is believed.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The Apps that our `WasmPlugin`s block now: what a start inherits.
    ///
    /// When their tenants were told is in the Notifications.
    pub fn blocked(&self, gateway: &Gateway) -> Result<Vec<Inherited>, DirectoryError> {
        let ours = self.ours()?;
        let plugins = ours.iter().filter(|(file, _)| shard(file, gateway).is_some());
        let plugins: Vec<Value> =
            plugins.map(|(file, text)| self.parse(file, text)).collect::<Result<_, _>>()?;
        let mut blocked = wasm_plugin::blocked(&plugins, gateway);
        for inherited in &mut blocked {
            let app = &inherited.app;
            let name = file_name("Notification", &app.namespace, &notification::name(app));
            let Some(text) = ours.get(&name) else { continue };
            let object = self.parse(&name, text)?;
            let told =
                object.pointer("/metadata/annotations").and_then(|all| all.get(notification::INCIDENT));
            inherited.told = told.and_then(Value::as_str).and_then(|told| told.parse::<Timestamp>().ok());
        }
        Ok(blocked)
    }

    fn parse(&self, name: &str, text: &str) -> Result<Value, DirectoryError> {
        serde_saphyr::from_str(text).map_err(|e| DirectoryError {
            path: self.path.join(name).display().to_string(),
            problem: format!("can't be read, so what is blocked is not known; repair or remove it: {e}"),
        })
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
            if read_ours(&path).is_ok_and(|ours| ours.is_none()) {
                memory.files.remove(&*name);
                memory.long_lists.remove(&*name);
                continue;
            }
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
        let stamp = self.write(name, &text)?;
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
        let is = self.read(name)?.and_then(|text| self.parse(name, &text).ok());
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
            let is = ours.remove(&name).map(|text| self.parse(&name, &text)).transpose()?;
            if is.as_ref().is_some_and(|is| has_same_words(&object, is)) {
                continue;
            }
            let should = serde_json::to_value(&object).unwrap_or_default();
            let lines = difference::lines("", is.as_ref(), Some(&should));
            if !lines.is_empty() {
                let action = if is.is_some() { Action::Change } else { Action::Create };
                differences.push(Difference { action, object: name, lines });
            }
        }
        let left =
            ours.into_keys().map(|object| Difference { action: Action::Remove, object, lines: Vec::new() });
        differences.extend(left);
        Ok(differences)
    }

    fn write(&self, name: &str, text: &str) -> Result<Stamp, DirectoryError> {
        let path = self.path.join(name);
        // A file of that name that is not ours stays what it is.
        if path.exists() && !read_ours(&path).is_ok_and(|ours| ours.is_some()) {
            let problem = "is there, but not written by procscan-aggregator; move it away".to_owned();
            return Err(DirectoryError { path: path.display().to_string(), problem });
        }
        let temporary = self.path.join(format!("{TEMPORARY}{name}"));
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            // Of the file that we have written, whatever has taken its place since.
            file.metadata().map(|metadata| Stamp::from(&metadata))
        };
        write().map_err(|e| {
            // Best effort: what is left is cleared away at the next start.
            let _ = fs::remove_file(&temporary);
            error(&path, "can't be written", &e)
        })
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

/// The content of a file that begins with our header; nothing of any other.
fn read_ours(path: &Path) -> io::Result<Option<String>> {
    let mut file = File::open(path)?;
    let mut head = [0; HEADER.len()];
    match file.read_exact(&mut head) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    if head != *HEADER.as_bytes() {
        return Ok(None);
    }
    let mut bytes = head.to_vec();
    file.read_to_end(&mut bytes)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
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
