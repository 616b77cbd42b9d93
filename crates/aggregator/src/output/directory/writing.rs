//! Makes the directory hold what it should.

use std::fs::{self, File};
use std::io::{self, Write};

use procscan_core::resources::{Draft, Kind, Object, Settings, WritePolicy};

use crate::counters::WriteResult;

use super::found::{Damage, Found, parse, parse_whole};
use super::memory::{Known, Memory, Stamp};
use super::{
    Directory, DirectoryError, HEADER, Pass, Written, error, has_kubernetes_names, has_same_text,
    is_like_ours, temporary,
};

/// The end of the name of a damaged file that is set aside. `kubectl apply` and the tools of GitOps do not read such a file.
const DAMAGED: &str = ".damaged";

impl Directory {
    /// [`Self::apply_while`] to the end. Returns the first error of a file.
    #[cfg(test)]
    pub(crate) fn apply<'a>(
        &self,
        drafts: impl IntoIterator<Item = Draft<'a>>,
    ) -> Result<Written, DirectoryError> {
        let Pass { written, failed, .. } = self.apply_while(drafts, || true)?;
        failed.into_iter().next().map_or(Ok(written), |(_, error)| Err(error))
    }

    /// Makes the directory hold exactly the objects of `drafts`, without retired ones, apart from files that are not ours.
    /// The drafts of one directory are always of the same settings. Changes of other programs since the last look stay
    /// until the next one.
    ///
    /// As soon as `go_on` returns false, it writes only what blocks, removes nothing, and leaves the rest to the next
    /// pass. A file that can't be written stops no other. While a file of a kind that blocks can't be written, no file of
    /// that kind is removed, because the new file may close what the old one closes. It fails only if nothing more can be
    /// done in the directory.
    pub(crate) fn apply_while<'a>(
        &self,
        drafts: impl IntoIterator<Item = Draft<'a>>,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<Pass, DirectoryError> {
        let mut memory = self.memory();
        if !memory.has_looked {
            self.look(&mut memory)?;
        }
        self.held().keep(&self.path)?;
        let pass = memory.next_pass();
        let mut done = Written::default();
        let (mut failed, mut is_finished) = (Vec::new(), true);
        let mut unwritten: Vec<Kind> = Vec::new();
        for draft in drafts.into_iter().filter(|draft| draft.write_policy != WritePolicy::MarkRead) {
            if draft.write_policy != WritePolicy::Reconcile && !go_on() {
                is_finished = false;
                break;
            }
            let name = draft.kind.file_name(&draft.namespace, &draft.name);
            if let Some(known) = memory.files.get_mut(&*name) {
                known.wanted = pass;
            }
            match self.put(&mut memory, &name, &draft) {
                Ok(false) => {}
                Ok(true) => {
                    done.written += 1;
                    self.counters.output_write(draft.kind.name(), WriteResult::Written);
                }
                Err(error) => {
                    self.counters.output_write(draft.kind.name(), WriteResult::Failed);
                    unwritten.extend(draft.kind.blocking().map(|_| draft.kind));
                    failed.push((name, error));
                }
            }
        }
        // After a pass that was broken off it is not known which files are surplus.
        let is_surplus = |name: &str, known: &Known| {
            let is_needed = || unwritten.iter().any(|kind| name.starts_with(&kind.file_prefix()));
            is_finished && known.text.is_some() && known.wanted != pass && !is_needed()
        };
        let surplus = memory.files.iter().filter(|(name, known)| is_surplus(name, known));
        let surplus: Vec<Box<str>> = surplus.map(|(name, _)| name.clone()).collect();
        for name in surplus {
            match self.remove(&mut memory, &name, |found| matches!(found, Found::Ours(_))) {
                Ok(removed) => done.removed += usize::from(removed),
                Err(error) => failed.push((name.into(), error)),
            }
        }
        if done != Written::default() {
            self.flush()?;
        }
        Ok(Pass { written: done, failed, is_finished })
    }

    /// Removes files of objects that block, if they were cut short and the pass that is `done` did not want them.
    pub(crate) fn remove_cut(&self, settings: &Settings, done: &mut Pass) -> Result<(), DirectoryError> {
        let mut memory = self.memory();
        let kinds: Vec<Kind> =
            settings.kinds.iter().filter(|kind| kind.blocking().is_some()).copied().collect();
        let is_unwritten =
            |kind: &Kind| done.failed.iter().any(|(file, _)| file.starts_with(&kind.file_prefix()));
        let is_surplus = |name: &str| {
            let mut of_kind = kinds.iter().filter(|kind| kind.object_of(name, settings).is_some());
            let is_wanted = memory.files.get(name).is_some_and(|known| known.wanted == memory.pass);
            !is_wanted && of_kind.next().is_some_and(|kind| !is_unwritten(kind))
        };
        let surplus = memory.cut.iter().filter(|name| done.is_finished && is_surplus(name));
        let surplus: Vec<Box<str>> = surplus.cloned().collect();
        for name in &surplus {
            match self.remove(&mut memory, name, |found| matches!(found, Found::Cut)) {
                Ok(removed) => done.written.removed += usize::from(removed),
                Err(error) => done.failed.push((name.to_string(), error)),
            }
        }
        if surplus.is_empty() { Ok(()) } else { self.flush() }
    }

    /// Removes a file if `is_same` holds for what is there now: another program may have put its own file in this place since the
    /// last look. Returns whether it was removed.
    fn remove(
        &self,
        memory: &mut Memory,
        name: &str,
        is_same: impl Fn(&Found) -> bool,
    ) -> Result<bool, DirectoryError> {
        let path = self.path.join(name);
        let is_another = Found::at(&path).is_some_and(|found| !is_same(&found));
        if !is_another {
            self.held().keep(&self.path)?;
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(error(&path, "can't be removed", &e));
                }
                _ => {}
            }
        }
        memory.files.remove(name);
        memory.notes.remove(name);
        memory.cut.remove(name);
        Ok(!is_another)
    }

    /// Removes every file of ours, those that were cut short and those that were set aside too. Returns how many. For a
    /// directory that this process has locked, and in which no object is needed any more.
    pub(crate) fn clear(&self, settings: &Settings) -> Result<usize, DirectoryError> {
        let mut removed = 0;
        let blocks = |file: &str| {
            let mut blocking = settings.kinds.iter().filter(|kind| kind.blocking().is_some());
            blocking.any(|kind| kind.object_of(file, settings).is_some())
        };
        for name in self.names()? {
            let path = self.path.join(&name);
            let is_object = is_like_ours(&name);
            if !is_object && !name.strip_suffix(DAMAGED).is_some_and(is_like_ours) {
                continue;
            }
            let is_ours = match Found::at(&path) {
                Some(Found::Ours(_)) => true,
                // An empty file of another name may be another program's.
                Some(Found::Cut) => is_object && blocks(&name),
                Some(Found::Foreign | Found::Junk(_) | Found::Unreadable(_)) | None => false,
            };
            if is_ours {
                fs::remove_file(&path).map_err(|e| error(&path, "can't be removed", &e))?;
                removed += 1;
            }
        }
        self.flush()?;
        Ok(removed)
    }

    /// Makes one file say what the draft does. Whether it had to be written.
    fn put(&self, memory: &mut Memory, name: &str, draft: &Draft<'_>) -> Result<bool, DirectoryError> {
        if !has_kubernetes_names(&draft.namespace, &draft.name) {
            let path = self.path.display().to_string();
            let object = format!("{draft:?}").escape_debug().to_string();
            let problem = format!("{object} is not written: its namespace or its name is no Kubernetes name");
            return Err(DirectoryError { path, problem });
        }
        let from = memory.fingerprint(draft);
        let before = memory.files.get(name).copied().filter(|known| known.text.is_some());
        if before.is_some_and(|known| known.from == Some(from)) {
            return Ok(false);
        }
        let object = draft.object();
        let text = to_yaml(&object).map_err(|problem| DirectoryError { path: name.to_owned(), problem })?;
        let hash = memory.hash(&text);
        if let Some(known) = before
            && (known.text == Some(hash) || self.is_as_good(&object, name))
        {
            memory.files.insert(name.into(), known.made_from(from));
            return Ok(false);
        }
        // A text that we have written is whole.
        let made = before.filter(|known| known.from.is_some()).and_then(|known| known.text);
        let is_whole = |text: &str| {
            object.kind.blocking().is_none()
                || made == Some(memory.hash(text))
                || parse_whole(text, object.kind).is_ok()
        };
        let stamp = self.write(name, &text, is_whole)?;
        let written = Known::new(stamp, hash).made_from(from).wanted_in(memory.pass);
        if let Some(blocking) = object.kind.blocking().filter(|blocking| blocking.is_permanent()) {
            memory.notes.insert(name.into(), blocking.note(Some(&object.spec)));
        }
        memory.files.insert(name.into(), written);
        memory.cut.remove(name);
        Ok(true)
    }

    /// Whether a message that is there has the same text: another time alone is no change.
    fn is_as_good(&self, object: &Object, name: &str) -> bool {
        // Only such a message is worth reading for it.
        object.write_policy == WritePolicy::UpdateText
            && self.read(name).and_then(|text| parse(&text).ok()).is_some_and(|is| has_same_text(object, &is))
    }

    /// Writes a file of ours. If a file in its place can't be parsed, that one is set aside first.
    fn write(
        &self,
        name: &str,
        text: &str,
        is_whole: impl Fn(&str) -> bool,
    ) -> Result<Stamp, DirectoryError> {
        let path = self.path.join(name);
        // A file of that name that is not ours stays what it is.
        let in_the_way = |problem: &str| {
            let problem = format!("{problem}; move it away");
            Err(DirectoryError { path: path.display().to_string(), problem })
        };
        let damage = match Found::at(&path) {
            Some(Found::Ours(text)) => (!is_whole(&text)).then_some(Damage::Unparsable),
            Some(Found::Cut) => Some(Damage::Cut),
            None => None,
            Some(Found::Foreign) => return in_the_way("is there, but not written by procscan-aggregator"),
            Some(Found::Junk(problem) | Found::Unreadable(problem)) => return in_the_way(&problem),
        };
        self.held().keep(&self.path)?;
        let (temporary, mut file) =
            temporary::make(&self.path, name).map_err(|e| error(&path, "can't be written", &e))?;
        let write = || {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            // Only before the last step: a write that fails earlier is tried again, and the damage is to be logged once.
            let aside = damage.map(|damage| match damage {
                Damage::Unparsable => self.set_aside(name),
                Damage::Cut => "nothing: it was empty, or cut short".to_owned(),
            });
            fs::rename(&temporary, &path)?;
            if let Some(aside) = aside {
                let file = path.display();
                tracing::error!(
                    alert = "output",
                    %file,
                    kept = aside,
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

    /// Gives a damaged file a second name that `kubectl` does not read, and replaces the one set aside before. Returns its path or the error.
    fn set_aside(&self, name: &str) -> String {
        let aside = self.path.join(format!("{name}{DAMAGED}"));
        // If the one before can't be removed, or is not ours, the link below fails, and its error is returned.
        if Found::at(&aside).is_some_and(|found| found.ours().is_some()) {
            let _ = fs::remove_file(&aside);
        }
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

/// One YAML document. A text is quoted where YAML 1.1, which `kubectl` reads, or YAML 1.2 takes it for something else without the
/// quotes, such as `on` and `0x1`. Each text has one line.
fn to_yaml(object: &Object) -> Result<String, String> {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    let mut text = HEADER.to_owned();
    serde_saphyr::to_fmt_writer_with_options(&mut text, object, options).map_err(|e| e.to_string())?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}
