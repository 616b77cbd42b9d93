//! The persisted state, for the commands that only read it.

use std::fs::DirBuilder;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::printed;
use crate::config::{Config, StateMode};
use crate::kubernetes::Cluster;
use crate::run;
use crate::state::sqlite::FILES;
use crate::state::{FileStore, PersistedState};

/// How often the files are copied again because a service has written them meanwhile, and the pause in between.
const MAX_COPY_ATTEMPTS: usize = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// Reads it. `None` if there is no state file.
pub(super) async fn read(
    config: &Config,
    cluster: Option<&Cluster>,
) -> anyhow::Result<Option<PersistedState>> {
    match (config.state_mode(), cluster) {
        (StateMode::Cluster, Some(cluster)) => Ok(Some(run::objects(config, cluster).read().await?)),
        (StateMode::Cluster, None) => anyhow::bail!("state.mode: cluster needs a cluster"),
        (StateMode::File, _) => read_file(config.state.directory()).await,
    }
}

async fn read_file(directory: &Path) -> anyhow::Result<Option<PersistedState>> {
    let place = || format!("state.directory: {}", directory.display());
    if !directory.join(FILES[0]).try_exists().with_context(place)? {
        return Ok(None);
    }
    let copy = Copy::of(directory).await?;
    let store = FileStore::open(&copy.0).await?;
    store.load().await?;
    let persisted = PersistedState::clone(&store.shown().borrow());
    // In the copy a damaged file has been set aside, and there is nothing in its place.
    let is_damaged = store.has_set_aside().await;
    anyhow::ensure!(!is_damaged, "{}: the state is damaged", place());
    Ok(Some(persisted))
}

/// A copy of the state file in the directory for temporary files, removed when dropped. Opening the file itself would create,
/// repair and lock files that a service may be using.
struct Copy(PathBuf);

/// The inode, the size and the last change of a file: they differ if it was written. `None` if it does not exist.
type Stamp = Option<(u64, u64, i64, i64)>;

impl Copy {
    /// Copies the files of `directory`, again if they were written meanwhile.
    async fn of(directory: &Path) -> anyhow::Result<Self> {
        Self::unchanged(directory, || {}).await
    }

    /// The same, and calls `copied` after each copy.
    async fn unchanged(directory: &Path, mut copied: impl FnMut()) -> anyhow::Result<Self> {
        let random = RandomState::new().build_hasher().finish();
        let place = std::env::temp_dir().join(format!("procscan-state-{random:016x}"));
        // Other users of this machine must not read it.
        DirBuilder::new().mode(0o700).create(&place).with_context(|| {
            format!("{} can't be made, where the state is copied to be read", place.display())
        })?;
        let copy = Self(place);
        for _ in 0..MAX_COPY_ATTEMPTS {
            let before = FILES.map(|name| stamp(&directory.join(name)));
            copy.fill(directory)?;
            copied();
            if FILES.map(|name| stamp(&directory.join(name))) == before {
                return Ok(copy);
            }
            tokio::time::sleep(PAUSE).await;
        }
        anyhow::bail!(
            "state.directory: {}: the state is written all the time; try again",
            directory.display()
        )
    }

    fn fill(&self, directory: &Path) -> anyhow::Result<()> {
        for name in FILES {
            let (from, to) = (directory.join(name), self.0.join(name));
            anyhow::ensure!(
                from.metadata().map_or(true, |found| found.is_file()),
                "state.directory: {} is not a regular file",
                from.display()
            );
            let copied = match std::fs::copy(&from, &to) {
                // There is a journal only while something is written; an earlier try may have copied one.
                Err(error) if error.kind() == ErrorKind::NotFound && name != FILES[0] => {
                    match std::fs::remove_file(&to) {
                        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                        _ => Ok(()),
                    }
                }
                copied => copied.map(drop),
            };
            copied.with_context(|| {
                format!("state.directory: {} can't be copied to {}", from.display(), to.display())
            })?;
        }
        Ok(())
    }
}

fn stamp(path: &Path) -> Stamp {
    let found = std::fs::metadata(path).ok()?;
    Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}

impl Drop for Copy {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                printed::note(format_args!("{} can't be removed: {error}", self.0.display()));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_written_while_it_is_copied_is_copied_again_and_not_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let [database, journal] = FILES.map(|name| directory.path().join(name));
        std::fs::write(&database, "0").unwrap();
        std::fs::write(&journal, "half").unwrap();
        let mut times = 0;
        let copy = Copy::unchanged(directory.path(), || {
            times += 1;
            match times {
                1 => std::fs::write(&database, "longer").unwrap(),
                2 => std::fs::remove_file(&journal).unwrap(),
                _ => {}
            }
        });
        let copy = copy.await.unwrap();
        assert_eq!(std::fs::read_to_string(copy.0.join(FILES[0])).unwrap(), "longer");
        assert!(!copy.0.join(FILES[1]).exists(), "of an earlier copy");
        let place = copy.0.clone();
        drop(copy);
        assert!(!place.exists() && times == 3);

        let mut text = String::new();
        let all_the_time = Copy::unchanged(directory.path(), || {
            text.push('x');
            std::fs::write(&database, &text).unwrap();
        });
        let error = all_the_time.await.err().unwrap().to_string();
        assert!(error.ends_with(": the state is written all the time; try again"), "{error}");
        assert_eq!(text.len(), MAX_COPY_ATTEMPTS);
    }

    #[tokio::test]
    async fn what_is_no_regular_file_is_not_copied() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(FILES[0])).unwrap();
        let error = Copy::of(directory.path()).await.err().unwrap().to_string();
        assert!(error.ends_with("state.db is not a regular file"), "{error}");
    }
}
