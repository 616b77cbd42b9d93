//! Whether an agent can see what runs on its node. One that can't must not answer with a clean list: that would clear what it
//! no longer sees.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{CGROUP_LIMIT, CMDLINE_LIMIT, Home, base_name, read_bounded};

/// Why a scan does not say what runs on the node.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The processes can't be listed at all.
    #[error(transparent)]
    Processes(#[from] io::Error),
    /// They are listed, but not all of them.
    #[error(transparent)]
    Partial(#[from] Partial),
}

/// What keeps an agent from seeing all processes of its node, and what would mend it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Partial {
    /// It has a PID namespace of its own.
    #[error(
        "only processes of the agent's own Pod are seen in {}: give its Pod `hostPID: true`, or mount the node's /proc \
         and name it with --proc",
        .0.display()
    )]
    OwnNamespace(PathBuf),
    /// The first process of every node is not seen.
    #[error(
        "process 1 of this node can't be seen in {}: if it is mounted with hidepid, run the agent as root with the capability \
         SYS_PTRACE, or as a member of the group that the mount's option gid names",
        .0.display()
    )]
    Hidden(PathBuf),
    /// Processes are listed that may not be looked at.
    #[error(
        "{count} processes in {} can't be read ({error}): run the agent as root with the capability SYS_PTRACE",
        root.display()
    )]
    Unreadable {
        /// Where processes are looked for.
        root: PathBuf,
        /// How many.
        count: usize,
        /// What the first of them was refused with.
        error: String,
    },
    /// Processes of Pods run here, and nothing names the Pods.
    #[error("processes of Pods are seen, but {} can't be read, which names the Pods: {error}", root.display())]
    NoPods {
        /// The kubelet's log directories.
        root: PathBuf,
        /// Why not.
        error: String,
    },
    /// An offender's Pod has no name.
    #[error(
        "{count} offending processes are of Pods that {} does not name; the first is process {pid}",
        root.display()
    )]
    UnknownPods {
        /// The kubelet's log directories.
        root: PathBuf,
        /// How many processes.
        count: usize,
        /// The process ID of the first.
        pid: u32,
    },
}

/// Whether `root` shows the processes of a node.
///
/// Kernel threads are in a machine's first PID namespace only, and hidden with `hidepid`: where they are seen, everything is. A node
/// that is a container itself has none; its process 1 is of no Pod, and is not ours.
pub(super) fn of_node(root: &Path) -> Result<(), Partial> {
    let read = |process: &str, file: &str, limit| read_bounded(&root.join(process).join(file), limit);
    if read("2", "comm", CMDLINE_LIMIT).is_ok_and(|name| name.trim_ascii() == b"kthreadd") {
        return Ok(());
    }
    let hidden = |_| Partial::Hidden(root.to_owned());
    let first = read("1", "cgroup", CGROUP_LIMIT).map_err(hidden)?;
    let command = read("1", "cmdline", CMDLINE_LIMIT).map_err(hidden)?;
    // Process 1 itself, or one that it has started.
    let is_of_ours = read("self", "cgroup", CGROUP_LIMIT).is_ok_and(|own| own == first);
    let is_of_a_pod = Home::of(&String::from_utf8_lossy(&first)) != Home::Outside;
    // Containers that share the processes of their Pod have the sandbox's as the first.
    let program = command.split(|byte| *byte == 0).next().unwrap_or_default();
    let is_sandbox = base_name(&String::from_utf8_lossy(program)) == "pause";
    if is_of_ours || is_of_a_pod || is_sandbox {
        return Err(Partial::OwnNamespace(root.to_owned()));
    }
    Ok(())
}

/// What one scan was not allowed to see.
#[derive(Debug, Default)]
pub(super) struct Unseen {
    /// Processes that could not be read, and why the first could not.
    refused: Option<(usize, io::Error)>,
    /// A process of a Pod was seen.
    pub(super) sees_pods: bool,
    /// Offending processes whose Pod has no name, and the first of them.
    unknown: Option<(usize, u32)>,
}

impl Unseen {
    /// What was read, if it was. A process may end at any time, which is no refusal.
    pub(super) fn read<T>(&mut self, read: io::Result<T>) -> Option<T> {
        const NO_SUCH_PROCESS: i32 = 3;
        match read {
            Ok(read) => return Some(read),
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(NO_SUCH_PROCESS) => {}
            Err(error) => match &mut self.refused {
                Some((count, _)) => *count += 1,
                None => self.refused = Some((1, error)),
            },
        }
        None
    }

    /// Process `pid` offends, and its Pod has no name.
    pub(super) fn is_of_unknown_pod(&mut self, pid: u32) {
        self.unknown.get_or_insert((0, pid)).0 += 1;
    }

    /// How many offenders there are whose Pods have no name.
    pub(super) fn unknown_pods(&self) -> usize {
        self.unknown.map_or(0, |(count, _)| count)
    }

    /// Whether a scan that read names from `pods_root`, or could not, has seen everything in `proc_root`.
    pub(super) fn verdict(
        self,
        proc_root: &Path,
        pods_root: &Path,
        names: io::Result<()>,
    ) -> Result<(), Partial> {
        if let Some((count, error)) = self.refused {
            let root = proc_root.to_owned();
            return Err(Partial::Unreadable { root, count, error: error.to_string() });
        }
        match names {
            Err(error) if self.sees_pods => {
                let root = pods_root.to_owned();
                return Err(Partial::NoPods { root, error: error.to_string() });
            }
            _ => {}
        }
        if let Some((count, pid)) = self.unknown {
            return Err(Partial::UnknownPods { root: pods_root.to_owned(), count, pid });
        }
        Ok(())
    }
}
