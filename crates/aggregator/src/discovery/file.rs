//! A list of targets in a file that may change at any time, also while it is read.
//!
//! A program that writes the file in place empties it first, so the list is short for a moment. So a target that is
//! no longer listed is dropped only when two reads in a row find the same list without it. A file that names no
//! target drops none.
//!
//! If the last line does not end, its target may have only the beginning of an address or of a node's name. So such a
//! file changes nothing.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};
use std::path::PathBuf;

use procscan_core::report::Target;

use crate::config::targets;
use crate::plain_file;

/// Why a list whose last line does not end is not applied.
const UNFINISHED: &str =
    "the last line does not end with a newline, so the file may be cut off: the targets stay as they are";

/// The file, and the state of the last reads.
#[derive(Debug)]
pub(crate) struct TargetFile {
    /// The path of the file.
    pub(super) path: PathBuf,
    /// The port of targets without one.
    port: u16,
    /// The hash of the text that was evaluated last. Nearly always the next text is the same.
    evaluated: Option<u64>,
    /// The hash of the list that was read last, if it drops targets or its last line does not end.
    shorter: Option<u64>,
}

impl TargetFile {
    /// The list in the file at `path`. `port` is that of targets without one.
    pub(crate) fn new(path: PathBuf, port: u16) -> Self {
        Self { path, port, evaluated: None, shorter: None }
    }

    /// Reads the file. `known` are the current targets. `None` if they stay as they are, and an earlier error too.
    pub(super) async fn find(&mut self, known: &[Target]) -> Option<Result<Vec<Target>, String>> {
        let path = self.path.clone();
        let read = move || plain_file::read_text(&path, plain_file::MAX_TEXT);
        let read = tokio::task::spawn_blocking(read).await.unwrap_or_else(|e| Err(e.into()));
        let text = match read {
            Ok(text) => text,
            Err(e) => {
                (self.evaluated, self.shorter) = (None, None);
                return Some(Err(self.problem(format!("can't be read: {e}"))));
            }
        };
        let now = Some(hash(&text));
        if self.evaluated == now {
            self.shorter = None;
            return None;
        }
        let found = match targets::parse(text.lines(), self.port) {
            Ok(found) if found.is_empty() => Err(self.problem(targets::EMPTY)),
            Ok(found) => {
                // The targets in `found` are ordered by address.
                let lists = |target: &Target| {
                    let place = found.binary_search_by(|other| other.address.cmp(&target.address));
                    place.ok().and_then(|place| found.get(place)) == Some(target)
                };
                let lists_all = known.iter().all(lists);
                let is_changed = !lists_all || found.len() != known.len();
                // The first list is applied in any case, because without it there are no targets at all.
                let is_unfinished = is_changed && !known.is_empty() && !text.ends_with('\n');
                // Compares the list and not the text, because a program may write the time into a comment.
                let shorter = (!lists_all || is_unfinished).then(|| hash(&found));
                if shorter.is_some() && self.shorter != shorter {
                    self.shorter = shorter;
                    return None;
                }
                if is_unfinished { Err(self.problem(UNFINISHED)) } else { Ok(found) }
            }
            Err(e) => Err(self.problem(e)),
        };
        (self.evaluated, self.shorter) = (now, None);
        Some(found)
    }

    fn problem(&self, what: impl std::fmt::Display) -> String {
        format!("{}: {what}", self.path.display())
    }
}

fn hash(what: impl Hash) -> u64 {
    BuildHasherDefault::<DefaultHasher>::new().hash_one(what)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::sync::watch;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::discovery::{Polled, Source, TargetSet, run};

    /// Names of nodes, and the error.
    type Shown = (Vec<String>, Option<String>);

    struct Stage {
        _directory: tempfile::TempDir,
        path: PathBuf,
        file: TargetFile,
        known: Vec<Target>,
    }

    impl Stage {
        fn new(text: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("targets");
            fs::write(&path, text).unwrap();
            let file = TargetFile::new(path.clone(), 9090);
            Self { _directory: directory, path, file, known: Vec::new() }
        }

        /// Reads the file once. Returns addresses, or an error.
        async fn read(&mut self) -> Option<Result<Vec<String>, String>> {
            let found = self.file.find(&self.known).await?;
            Some(found.map(|found| {
                self.known.clone_from(&found);
                found.into_iter().map(|target| target.address.to_string()).collect()
            }))
        }

        fn is_empty(&self) -> String {
            format!("{}: it names no target", self.path.display())
        }
    }

    fn list<const N: usize>(all: [&str; N]) -> Vec<String> {
        all.map(str::to_owned).into()
    }

    #[tokio::test]
    async fn a_file_whose_last_line_does_not_end_changes_no_target() {
        let whole = "a:1 node=node-1\nb:1 node=node-2\n";
        let mut stage = Stage::new(whole);
        assert!(stage.read().await.unwrap().is_ok());
        let known = stage.known.clone();
        let unfinished = Some(Err(format!("{}: {UNFINISHED}", stage.path.display())));
        let longer = format!("{whole}c:1 node=node");
        for cut in (1..whole.len() - 1).map(|end| &whole[..end]).chain([longer.as_str()]) {
            fs::write(&stage.path, cut).unwrap();
            let mut found = stage.read().await;
            if cut.ends_with('\n') {
                assert_eq!(found, None, "{cut}");
                continue;
            }
            if targets::parse(cut.lines(), 9090).is_ok() {
                assert_eq!(found, None, "{cut}");
                found = stage.read().await;
                assert_eq!(found, unfinished, "{cut}");
            }
            assert!(matches!(found, Some(Err(_))), "{cut}");
            assert_eq!(stage.read().await, None, "the same again");
        }
        assert_eq!(stage.known, known);
        // With the same targets the last line need not end. Nor need that of the first list.
        for same in [whole.trim_end(), whole] {
            fs::write(&stage.path, same).unwrap();
            assert!(stage.read().await.unwrap().is_ok());
        }
        let mut first = Stage::new(whole.trim_end());
        assert!(first.read().await.unwrap().is_ok());
        assert_eq!(first.known, known);
    }

    #[tokio::test]
    async fn a_file_without_targets_drops_none_and_is_an_error_until_it_names_one() {
        let mut stage = Stage::new("a:1\nb:1\n");
        assert_eq!(stage.read().await, Some(Ok(list(["a:1", "b:1"]))));
        for empty in ["", "# nothing\n\n"] {
            fs::write(&stage.path, empty).unwrap();
            assert_eq!(stage.read().await, Some(Err(stage.is_empty())));
            assert_eq!(stage.read().await, None, "the same again");
        }
        fs::write(&stage.path, "a:1\nb:1\n").unwrap();
        assert_eq!(stage.read().await, Some(Ok(list(["a:1", "b:1"]))));
    }

    #[tokio::test]
    async fn a_file_that_is_empty_from_the_start_is_an_error_that_names_it() {
        let mut stage = Stage::new("\n");
        assert_eq!(stage.read().await, Some(Err(stage.is_empty())));
        fs::write(&stage.path, "a:1\n").unwrap();
        assert_eq!(stage.read().await, Some(Ok(list(["a:1"]))));
    }

    #[tokio::test]
    async fn targets_are_dropped_only_if_two_reads_in_a_row_find_the_same_list_without_them() {
        let mut stage = Stage::new("a:1\nb:1\nc:1\n");
        assert_eq!(stage.read().await, Some(Ok(list(["a:1", "b:1", "c:1"]))));
        // Written in place: an address may be cut in two as well.
        for part in ["a", "a:1\nb:1\nc:1\n", "a:1\nb:1", "a:1\nb"] {
            fs::write(&stage.path, part).unwrap();
            assert_eq!(stage.read().await, None, "{part}");
        }
        fs::write(&stage.path, "a:1\nb:1\nc:1\nd:1\n").unwrap();
        assert_eq!(
            stage.read().await,
            Some(Ok(list(["a:1", "b:1", "c:1", "d:1"]))),
            "a longer list counts at once"
        );
        fs::write(&stage.path, "a:1\n").unwrap();
        assert_eq!(stage.read().await, None);
        assert_eq!(stage.read().await, Some(Ok(list(["a:1"]))));
    }

    #[tokio::test]
    async fn targets_are_dropped_although_the_text_changes_at_each_read() {
        let mut stage = Stage::new("# 1\na:1\nb:1\n");
        assert_eq!(stage.read().await, Some(Ok(list(["a:1", "b:1"]))));
        fs::write(&stage.path, "# 2\na:1\n").unwrap();
        assert_eq!(stage.read().await, None);
        fs::write(&stage.path, "# 3\na:1\n").unwrap();
        assert_eq!(stage.read().await, Some(Ok(list(["a:1"]))));
    }

    #[tokio::test]
    async fn mistakes_name_the_file_and_drop_no_target() {
        let mut stage = Stage::new("a:1\n");
        assert_eq!(stage.read().await, Some(Ok(list(["a:1"]))));
        fs::write(&stage.path, "a:1\nb:0\n").unwrap();
        let path = stage.path.display().to_string();
        let error = stage.read().await.unwrap().unwrap_err();
        assert!(error.starts_with(&format!("{path}: entry 2: ")), "{error}");
        fs::remove_file(&stage.path).unwrap();
        let error = stage.read().await.unwrap().unwrap_err();
        assert!(error.starts_with(&format!("{path}: can't be read: ")), "{error}");
    }

    /// In the published set, the last targets stay, and the error gives the reason.
    #[tokio::test]
    async fn the_published_targets_stay_while_the_file_names_none() {
        let stage = Stage::new("a:1\n");
        let (show, mut shown) = watch::channel(Arc::new(TargetSet::default()));
        let cancel = CancellationToken::new();
        let source = Source::Polled(Polled::File(stage.file));
        let task = tokio::spawn(run(source, Duration::from_millis(1), show, cancel.clone()));
        let of = |set: &TargetSet| -> Shown {
            (set.targets.iter().map(|target| target.node.to_string()).collect(), set.error.clone())
        };
        let mut next = async || {
            let changed = tokio::time::timeout(Duration::from_secs(30), shown.changed());
            changed.await.unwrap().unwrap();
            of(&shown.borrow_and_update())
        };
        assert_eq!(next().await, (vec!["a:1".to_owned()], None));
        fs::write(&stage.path, "").unwrap();
        let error = format!("{}: it names no target", stage.path.display());
        assert_eq!(next().await, (vec!["a:1".to_owned()], Some(error)));
        fs::write(&stage.path, "a:1\n").unwrap();
        assert_eq!(next().await, (vec!["a:1".to_owned()], None));
        cancel.cancel();
        task.await.unwrap();
    }
}
