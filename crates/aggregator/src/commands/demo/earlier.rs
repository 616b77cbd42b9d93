//! What an earlier demo has left: a demo removes it, and begins anew.
//!
//! A demo knows the state of another one by a mark beside it. Where the mark is missing, the objects or the state may be those of a
//! service, and nothing is removed.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::Context;

use crate::config::Config;
use crate::output::Directory;
use crate::state::sqlite::{self, FILES};

/// The name of the mark, and what it says.
const MARK: &str = "made-by-demo";
const MARKED: &str = "A procscan-aggregator demo keeps its state here. The next demo removes it, unless it has the option --keep.\n";

/// Makes `config` ready for a demo: removes the objects and the state of an earlier one, unless it is to `keep` them.
///
/// Fails if a process uses them, or if no demo has made them. Other files are never removed.
pub(super) fn begin(config: &Config, keep: bool) -> anyhow::Result<()> {
    let (objects, state) = (config.output.directory(), config.state.directory());
    let has_objects = Directory::at(objects).has_objects().context("--dir")?;
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
    let is_marked = match std::fs::symlink_metadata(&mark) {
        Ok(found) => found.is_file(),
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(error).with_context(|| mark.display().to_string()),
    };
    if !is_marked {
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
        "the objects and the state of the earlier demo are removed; --keep would have kept them"
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
        removed = directory.clear(&config.settings().gateway)?;
    }
    sqlite::remove(state)?;
    Ok(removed)
}

fn is_there(path: &Path) -> anyhow::Result<bool> {
    path.try_exists().with_context(|| path.display().to_string())
}
