//! What is kept where the configuration says, for the commands that only read.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::config::{Config, StateMode};
use crate::kubernetes::Cluster;
use crate::run;
use crate::state::sqlite::FILES;
use crate::state::{FileStore, Kept};

/// Reads it. `None` if there is no state file.
pub(super) async fn read(config: &Config, cluster: Option<&Cluster>) -> anyhow::Result<Option<Kept>> {
    match (config.state_mode(), cluster) {
        (StateMode::Cluster, Some(cluster)) => Ok(Some(run::objects(config, cluster).read().await?)),
        (StateMode::Cluster, None) => anyhow::bail!("state.mode: cluster needs a cluster"),
        (StateMode::File, _) => read_file(config.state.directory()).await,
    }
}

async fn read_file(directory: &Path) -> anyhow::Result<Option<Kept>> {
    let place = || format!("state.directory: {}", directory.display());
    if !directory.join(FILES[0]).try_exists().with_context(place)? {
        return Ok(None);
    }
    let copy = Copy::of(directory).with_context(place)?;
    let store = FileStore::open(&copy.0).await?;
    store.load().await?;
    let kept = Kept::clone(&store.shown().borrow());
    // In the copy a damaged file has been set aside, and there is nothing in its place.
    let is_damaged = store.has_set_aside().await;
    anyhow::ensure!(
        !is_damaged,
        "{}: the state is damaged, or was being written just now; try again",
        place()
    );
    Ok(Some(kept))
}

/// The state file once more, in a place of its own: opening it makes, mends and locks files, and a service may be using it.
struct Copy(PathBuf);

impl Copy {
    fn of(directory: &Path) -> std::io::Result<Self> {
        let copy = Self(std::env::temp_dir().join(format!("procscan-state-{}", std::process::id())));
        // Other users of this machine must not read it.
        DirBuilder::new().mode(0o700).create(&copy.0)?;
        for name in FILES {
            match std::fs::copy(directory.join(name), copy.0.join(name)) {
                // There is a journal only while something is written.
                Err(error) if error.kind() == ErrorKind::NotFound && name != FILES[0] => {}
                copied => drop(copied?),
            }
        }
        Ok(copy)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            super::printed::note(format_args!("{} can't be removed: {error}", self.0.display()));
        }
    }
}
