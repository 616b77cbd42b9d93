//! The objects and the state of an earlier demo: a demo removes them, and begins anew.
//!
//! A demo knows the state of another one by a mark beside it. Where the mark is missing, the objects or the state may be those of a
//! service, and nothing is removed. A service that uses what a demo has made removes the mark.

use std::fs::DirBuilder;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::config::{Config, OutputMode, StateMode};
use crate::output::Directory;
use crate::state::sqlite::{self, FILES};

/// The name of the mark, and its text.
const MARK: &str = "made-by-demo";
const MARKED: &str = "The state of a procscan-aggregator demo is here. The next demo removes it, unless it has the option --keep.\n";

/// Where a demo with its objects in the directory `objects` has its state: beside them, so that an operator who removes those to
/// begin anew finds it too.
pub(super) fn state_of(objects: &Path) -> PathBuf {
    // Without a slash at the end, behind which it would be in the directory.
    let mut state = objects.components().collect::<PathBuf>().into_os_string();
    state.push("-state");
    state.into()
}

/// Removes the marks of demos from what a service with `config` uses, so that no later demo removes its objects or its state. For a
/// service that has locked them.
pub(in crate::commands) fn unmark(config: &Config) {
    let of_objects =
        (config.output.mode == OutputMode::Directory).then(|| state_of(config.output.directory()));
    let of_state = (config.state_mode() == StateMode::File).then(|| config.state.directory().to_owned());
    for mark in [of_objects, of_state].into_iter().flatten().map(|state| state.join(MARK)) {
        let removed = is_file(&mark).and_then(|is_marked| {
            if is_marked {
                std::fs::remove_file(&mark)?;
            }
            Ok(is_marked)
        });
        match removed {
            Ok(false) => {}
            Ok(true) => tracing::info!(
                mark = %mark.display(),
                "the mark of a demo is removed: no demo removes these objects and this state any more"
            ),
            Err(error) => tracing::warn!(
                mark = %mark.display(),
                %error,
                "the mark of a demo can't be removed: the next demo with this directory removes what this service leaves there"
            ),
        }
    }
}

/// Makes the places of `config` ready for a demo: removes the objects and the state of an earlier one, unless `keep` is set.
///
/// Fails if a process uses them, or if no demo has made them. Other files are never removed.
pub(super) fn begin(config: &Config, keep: bool) -> anyhow::Result<()> {
    let (objects, state) = (config.output.directory(), config.state.directory());
    let directory = Directory::at(objects);
    if let Some(marker) = directory.lease_marker().context("--dir")? {
        anyhow::bail!(
            "--dir: {} belongs to a Lease, as {} shows: give another directory, or remove this file if no service uses the \
             directory any more",
            objects.display(),
            marker.display()
        );
    }
    let has_objects = directory.has_objects().context("--dir")?;
    let database = state.join(FILES[0]);
    let has_state = database.try_exists().with_context(|| database.display().to_string())?;
    let mark = state.join(MARK);
    if !has_objects && !has_state {
        // For its owner only, as a service makes it.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(state);
        made.with_context(|| format!("{} can't be made", state.display()))?;
        return std::fs::write(&mark, MARKED).with_context(|| format!("{} can't be made", mark.display()));
    }
    if keep {
        return Ok(());
    }
    if !is_file(&mark).with_context(|| mark.display().to_string())? {
        let what = if has_objects { objects } else { state };
        anyhow::bail!(
            "--dir: {} is not empty, and {} does not show that a demo has made it: give another directory, move it away, \
             or go on from it with --keep",
            what.display(),
            mark.display()
        );
    }
    let removed = remove(config).context("what the earlier demo has left can't be removed")?;
    tracing::info!(
        objects = %objects.display(),
        files = removed,
        state = %state.display(),
        "the objects and the state of the earlier demo are removed; --keep would leave them"
    );
    Ok(())
}

/// Removes the objects first: while they are there without the state, a service takes the state for lost.
fn remove(config: &Config) -> anyhow::Result<usize> {
    let (objects, state) = (config.output.directory(), config.state.directory());
    let mut removed = 0;
    if is_there(objects)? {
        let directory = Directory::at(objects);
        directory.lock(None)?;
        removed = directory.clear(&config.settings())?;
    }
    sqlite::remove(state)?;
    Ok(removed)
}

fn is_file(mark: &Path) -> io::Result<bool> {
    match std::fs::symlink_metadata(mark) {
        Ok(found) => Ok(found.is_file()),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_there(path: &Path) -> anyhow::Result<bool> {
    path.try_exists().with_context(|| path.display().to_string())
}
