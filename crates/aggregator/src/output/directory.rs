//! The objects as YAML files, for GitOps or for `kubectl apply -f`.
//!
//! Every file is written whole or not at all: into a temporary file first, which is flushed and then takes the place of the
//! old one. Files that do not begin with our header are somebody else's and never touched.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use procscan_core::resources::wasm_plugin::Gateway;
use procscan_core::resources::{Existing, Object};

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

/// A directory of objects.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Makes the directory if it is not there, and clears away what a crash has left unfinished.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, DirectoryError> {
        let path = path.into();
        fs::create_dir_all(&path).map_err(|e| error(&path, "can't be made", &e))?;
        let directory = Self { path };
        for name in directory.names()? {
            if name.starts_with(TEMPORARY) {
                let file = directory.path.join(&name);
                fs::remove_file(&file).map_err(|e| error(&file, "can't be removed", &e))?;
            }
        }
        Ok(directory)
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
        for name in self.names()? {
            let path = self.path.join(&name);
            if path.extension().is_none_or(|extension| extension != "yaml") || name.starts_with('.') {
                continue;
            }
            match read_ours(&path) {
                Ok(Some(text)) => drop(ours.insert(name, text)),
                Ok(None) => {}
                // Removed by somebody between the listing and now.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(error(&path, "can't be read", &e)),
            }
        }
        Ok(ours)
    }

    /// What is there that must not be given up.
    pub fn existing(&self, gateway: &Gateway) -> Result<Existing, DirectoryError> {
        let first = file_name("WasmPlugin", &gateway.namespace, &gateway.name);
        let stem = first.trim_end_matches(".yaml");
        let shard = |name: &str| {
            let rest = name.strip_prefix(stem)?.strip_suffix(".yaml")?;
            if rest.is_empty() {
                Some(1)
            } else {
                rest.strip_prefix('-')?.parse::<usize>().ok().map(|n| n + 1)
            }
        };
        // A file with a huge number in its name, put there by somebody, is no reason to make as many shards.
        let shards = self.ours()?.keys().filter_map(|name| shard(name)).filter(|n| *n <= 1024).max();
        Ok(Existing { wasm_plugins: shards.unwrap_or(0) })
    }

    /// Makes the directory hold exactly `objects`, apart from files that are not ours.
    pub fn apply(&self, objects: &[Object]) -> Result<Written, DirectoryError> {
        let mut ours = self.ours()?;
        let mut done = Written::default();
        for object in objects {
            let name = file_name(object.kind, &object.metadata.namespace, &object.metadata.name);
            let text = to_yaml(object).map_err(|problem| DirectoryError { path: name.clone(), problem })?;
            if ours.remove(&name).is_some_and(|old| old == text) {
                continue;
            }
            self.write(&name, &text)?;
            done.written += 1;
        }
        for name in ours.keys() {
            let path = self.path.join(name);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(error(&path, "can't be removed", &e));
                }
                _ => done.removed += 1,
            }
        }
        if done != Written::default() {
            self.flush()?;
        }
        Ok(done)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), DirectoryError> {
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
            fs::rename(&temporary, &path)
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
