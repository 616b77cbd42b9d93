//! Miners that begin and end on healthy nodes, and how soon the output shows it.

use std::collections::{BTreeMap, btree_map::Entry};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::CHANGE_LIMIT;
use crate::fleet::Simulated;
use crate::fleet::micros;
use crate::rounds::plugin;

/// How often the output is checked for changes.
const CHECK_EVERY: Duration = Duration::from_millis(5);
/// A miner clears with the answer this many rounds after the last answer that listed it. This answer is the first one after
/// [`clear_after`].
const ROUNDS_TO_CLEAR: u32 = 7;
/// The rounds before the first miner begins. The ledger learns an agent's scan interval from the times of its answers, and the
/// first two are further apart than later ones. Before these rounds the ledger allows for a restart of the agent, and a miner
/// clears one answer later than [`ROUNDS_TO_CLEAR`].
const ROUNDS_BEFORE_MINERS: u32 = 2;

/// `detection.clear_after` for rounds of this length. It ends between two answers. It is longer than six scans, because the ledger
/// clears nothing sooner.
pub(super) fn clear_after(interval: Duration) -> Duration {
    (interval * ROUNDS_TO_CLEAR).saturating_sub(interval / 2)
}

/// How long changes took to the output.
#[derive(Default)]
pub(super) struct Waits {
    /// Times from the first answer that lists a miner.
    pub(super) begun: Kind,
    /// Times from the answer with which the miner clears.
    pub(super) ended: Kind,
}

/// Changes of one kind.
#[derive(Default)]
pub(super) struct Kind {
    /// How long each took, ordered.
    pub(super) seen: Vec<Duration>,
    /// Changes that were not in the output at the end.
    pub(super) missing: usize,
}

/// A change that is not in the output yet.
struct Change {
    begins: bool,
    /// The miner's Pod, and the time of the answer that shows the change, in microseconds since the epoch.
    answered: Option<(String, u64)>,
}

/// Lets a miner begin on each healthy node, one after the other, and end once it is in the output, as far as `time` allows.
pub(super) fn run(
    fleet: &mut Simulated,
    directory: &Path,
    healthy: usize,
    interval: Duration,
    time: Duration,
) -> anyhow::Result<Waits> {
    let to_clear = interval * (ROUNDS_TO_CLEAR + 1) + CHANGE_LIMIT;
    // A node is asked once a round, and some time is left for the last one.
    let to_begin = interval * 2 + CHANGE_LIMIT;
    let before_miners = interval * ROUNDS_BEFORE_MINERS;
    let time_for_miners = time.saturating_sub(before_miners + to_begin);
    let spread = time_for_miners.saturating_sub(to_clear).max(time_for_miners / 2);
    let pause = spread / u32::try_from(healthy.max(1))?;
    let mut output = Output { objects: directory.join("objects"), files: Vec::new() };
    let mut waiting: BTreeMap<usize, Change> = BTreeMap::new();
    let mut waits = Waits::default();
    let (started, mut begun) = (Instant::now(), 0);
    while started.elapsed() < time {
        while begun < healthy && started.elapsed() >= before_miners + pause * u32::try_from(begun)? {
            fleet.command(&format!("offend {begun}"))?;
            waiting.insert(begun, Change { begins: true, answered: None });
            begun += 1;
        }
        let mut has_changed = output.refresh()?;
        for line in fleet.answers.try_iter() {
            let fields: Vec<&str> = line.split(' ').collect();
            let ["answered", node, pod, at] = fields.as_slice() else {
                anyhow::bail!("invalid report of the fleet: {line}")
            };
            if let Entry::Occupied(mut change) = waiting.entry(node.parse()?) {
                change.get_mut().answered = Some(((*pod).to_owned(), at.parse()?));
                has_changed = true;
            }
        }
        if has_changed {
            for node in seen(&mut waiting, &output, &mut waits) {
                if started.elapsed() + to_clear < time {
                    fleet.command(&format!("calm {node} {ROUNDS_TO_CLEAR}"))?;
                    waiting.insert(node, Change { begins: false, answered: None });
                }
            }
        }
        std::thread::sleep(CHECK_EVERY);
    }
    for change in waiting.values() {
        waits.of(change.begins).missing += 1;
    }
    waits.begun.seen.sort_unstable();
    waits.ended.seen.sort_unstable();
    Ok(waits)
}

/// Removes the changes that are in the output now. Returns the nodes on which a miner has begun.
fn seen(waiting: &mut BTreeMap<usize, Change>, output: &Output, waits: &mut Waits) -> Vec<usize> {
    let now = micros();
    let mut begun = Vec::new();
    waiting.retain(|node, Change { begins, answered }| {
        let Some((pod, at)) = answered else { return true };
        if output.names(pod) != *begins {
            return true;
        }
        let took = Duration::from_micros(now.saturating_sub(*at));
        if took >= CHANGE_LIMIT {
            let change = if *begins { "begins" } else { "ends" };
            println!("late: the miner of Pod {pod} {change} after {took:.1?}");
        }
        waits.of(*begins).seen.push(took);
        if *begins {
            begun.push(*node);
        }
        false
    });
    begun
}

impl Waits {
    fn of(&mut self, begins: bool) -> &mut Kind {
        if begins { &mut self.begun } else { &mut self.ended }
    }
}

/// The WasmPlugins, as they were last read.
struct Output {
    objects: PathBuf,
    files: Vec<File>,
}

struct File {
    /// Another file has another inode, or another time of its last change.
    version: (u64, SystemTime),
    text: String,
}

impl Output {
    /// Reads the changed files. Returns whether there are any.
    fn refresh(&mut self) -> anyhow::Result<bool> {
        let mut has_changed = false;
        for index in 0.. {
            let path = self.objects.join(plugin(index));
            let Ok(metadata) = path.metadata() else {
                has_changed |= self.files.len() > index;
                self.files.truncate(index);
                break;
            };
            let version = (metadata.ino(), metadata.modified()?);
            if self.files.get(index).is_some_and(|file| file.version == version) {
                continue;
            }
            let file = File { version, text: std::fs::read_to_string(&path)? };
            match self.files.get_mut(index) {
                Some(known) => *known = file,
                None => self.files.push(file),
            }
            has_changed = true;
        }
        Ok(has_changed)
    }

    /// Whether a Pod's Service is closed.
    fn names(&self, pod: &str) -> bool {
        self.files.iter().any(|file| file.text.contains(pod))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_has_the_current_content_of_each_file() {
        let directory = tempfile::tempdir().unwrap();
        let mut output = Output { objects: directory.path().to_owned(), files: Vec::new() };
        let write = |index, text: &str| {
            // The aggregator replaces a file by another one with the same name.
            let temp = directory.path().join(".temp");
            std::fs::write(&temp, text).unwrap();
            std::fs::rename(temp, directory.path().join(plugin(index))).unwrap();
        };
        assert!(!output.refresh().unwrap());
        write(0, "web-1");
        write(1, "web-2");
        assert!(output.refresh().unwrap());
        assert!(output.names("web-1") && output.names("web-2"));
        assert!(!output.refresh().unwrap());
        write(0, "web-3");
        std::fs::remove_file(directory.path().join(plugin(1))).unwrap();
        assert!(output.refresh().unwrap());
        assert!(output.names("web-3") && !output.names("web-1") && !output.names("web-2"));
    }

    #[test]
    fn a_change_counts_once_it_is_answered_and_in_the_output() {
        let version = (0, SystemTime::UNIX_EPOCH);
        let output =
            Output { objects: PathBuf::new(), files: vec![File { version, text: "web-1 web-3".into() }] };
        let answered = |pod: &str| Some((pod.to_owned(), 0));
        let mut waiting = BTreeMap::from([
            (1, Change { begins: true, answered: answered("web-1") }),
            (2, Change { begins: true, answered: answered("web-2") }),
            (3, Change { begins: false, answered: answered("web-3") }),
            (4, Change { begins: false, answered: answered("web-4") }),
            (5, Change { begins: true, answered: None }),
        ]);
        let mut waits = Waits::default();
        assert_eq!(seen(&mut waiting, &output, &mut waits), [1]);
        assert_eq!(waiting.keys().copied().collect::<Vec<_>>(), [2, 3, 5]);
        assert_eq!((waits.begun.seen.len(), waits.ended.seen.len()), (1, 1));
    }
}
