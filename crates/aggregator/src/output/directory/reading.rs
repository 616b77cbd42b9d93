//! What our files block, as a start finds them.

use jiff::Timestamp;
use procscan_core::names::App;
use procscan_core::policy::InheritedBlock;
use procscan_core::resources::{FoundObject, Kind, Settings, union};
use serde_json::Value;

use super::found::{Found, parse};
use super::{Directory, DirectoryError, first_of, has_kubernetes_names, messages_of};
use crate::decided::PersistedBlocks;
use crate::output::persisted_blocks::{ListedBlocks, lacks};

/// A file of an object that blocks.
pub(super) struct BlockingFile {
    pub(super) name: String,
    kind: Kind,
    pub(super) found: Found,
}

impl Directory {
    /// The Apps that our objects block now: what a start inherits. A damaged file is an error, unless the persisted
    /// Incidents say what it blocked: then the answer leaves it out.
    ///
    /// They say it if they name each App and each Service that can still be read in our files. If they lack one, the state
    /// is older than the files, and may also lack Apps that can't be read any more. Where nothing can be read, the
    /// Incidents count as well, because each block is persisted before it is written.
    ///
    /// The times at which the tenants were notified are in the messages.
    pub(crate) fn blocked(
        &self,
        settings: &Settings,
        persisted: Option<&PersistedBlocks>,
    ) -> Result<Vec<InheritedBlock>, DirectoryError> {
        let (mut whole, mut damaged) = (Vec::new(), Vec::new());
        let files = self.blocking_files(settings)?;
        for file in &files {
            match file.found.object(file.kind) {
                Ok(object) => whole.extend(object.map(|object| (file.kind, object))),
                Err(problem) => damaged.push((file, problem)),
            }
        }
        if let Some((file, problem)) = damaged.first() {
            self.refuse_damage(&files, file, problem, persisted)?;
        }
        for (file, problem) in damaged {
            let mut listed = ListedBlocks::default();
            file.found.text().into_iter().for_each(|text| listed.read(text));
            tracing::warn!(
                file = %self.path.join(&file.name).display(),
                problem,
                legible = !listed.is_empty(),
                "a file of ours is damaged: the persisted Incidents say what stays closed"
            );
        }
        let of_kind = |kind: &Kind| {
            let objects = whole.iter().filter(|(of, _)| of == kind);
            let found: Vec<FoundObject<'_>> =
                objects.map(|(_, object)| FoundObject::of_file(object)).collect();
            kind.blocking().map(|blocking| blocking.blocked(&found, settings)).unwrap_or_default()
        };
        let mut blocked = union(settings.kinds.iter().flat_map(of_kind));
        for inherited in &mut blocked {
            inherited.notified_at = inherited.notified_at.max(self.notified_at(&inherited.app, settings));
        }
        Ok(blocked)
    }

    /// An error unless the persisted Incidents say what the damaged `file` blocked.
    fn refuse_damage(
        &self,
        files: &[BlockingFile],
        file: &BlockingFile,
        problem: &str,
        persisted: Option<&PersistedBlocks>,
    ) -> Result<(), DirectoryError> {
        let error =
            |problem| DirectoryError { path: self.path.join(&file.name).display().to_string(), problem };
        let Some(persisted) = persisted else {
            let next = "can't be read, so what is blocked is not known; repair or remove it";
            return Err(error(format!("{next}: {problem}")));
        };
        let mut listed = ListedBlocks::default();
        files.iter().filter_map(|file| file.found.text()).for_each(|text| listed.read(text));
        match first_of(lacks(persisted, &listed).into_iter()) {
            None => Ok(()),
            Some(unknown) => Err(error(format!(
                "can't be read ({problem}), and no Incident is persisted of blocks that our files list: {unknown}. The state is \
                 probably older than the file, so what is blocked is not known. Restore the latest state, or repair the \
                 file, or remove it if what it closed may be opened"
            ))),
        }
    }

    /// The time of the last notification of the tenant of an App, by the files of its messages.
    fn notified_at(&self, app: &App, settings: &Settings) -> Option<Timestamp> {
        let times = messages_of(app, settings).filter_map(|(kind, message, name)| {
            // The file may have been edited, so the namespace may be no Kubernetes name.
            if !has_kubernetes_names(&app.namespace, &name) {
                return None;
            }
            let object =
                self.read(&kind.file_name(&app.namespace, &name)).and_then(|text| parse(&text).ok())?;
            let annotations = object.pointer("/metadata/annotations")?;
            annotations.get(message.change_annotation()).and_then(Value::as_str)?.parse::<Timestamp>().ok()
        });
        times.max()
    }

    /// Whether the directory can be read, whatever the files in it are.
    pub(crate) fn check(&self) -> Result<(), DirectoryError> {
        self.names().map(drop)
    }

    /// The files of our objects that block, ordered by name.
    pub(super) fn blocking_files(&self, settings: &Settings) -> Result<Vec<BlockingFile>, DirectoryError> {
        let mut names = self.names()?;
        names.sort();
        let blocking: Vec<Kind> =
            settings.kinds.iter().filter(|kind| kind.blocking().is_some()).copied().collect();
        let file_of = |name: String| {
            let kind = *blocking.iter().find(|kind| kind.object_of(&name, settings).is_some())?;
            let found = self.find(&name)?;
            Some(BlockingFile { name, kind, found })
        };
        Ok(names.into_iter().filter_map(file_of).collect())
    }
}
