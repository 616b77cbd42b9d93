//! Checks that an agent can see all processes of its node. An agent that can't must not answer with a clean list, because
//! that would clear processes that still run.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    CGROUP_LIMIT, Home, Scanner,
    files::{base_name, has_ended, read_bounded},
};

/// Longer than the command line of the program in any container's sandbox.
const COMMAND_LIMIT: u64 = 64 * 1024;

/// Why a scan does not show all processes of the node.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScanError {
    /// The processes can't be listed at all.
    #[error(transparent)]
    Processes(#[from] io::Error),
    /// Some processes are not seen.
    #[error(transparent)]
    Partial(#[from] Partial),
}

/// Why an agent does not see all processes of its node, and how to change that.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Partial {
    /// It has a PID namespace of its own.
    #[error(
        "only processes of the agent's own Pod are seen in {}: give its Pod `hostPID: true`, or mount the node's /proc \
         and name it with --proc",
        .0.display()
    )]
    OwnNamespace(PathBuf),
    /// The node's first process is not seen.
    #[error(
        "process 1 of this node can't be seen in {}: if it is mounted with hidepid, run the agent as root with the capability \
         SYS_PTRACE, or as a member of the group that the mount's option gid names",
        .0.display()
    )]
    Hidden(PathBuf),
    /// Some listed processes can't be read.
    #[error(
        "{count} processes in {} can't be read ({error}): run the agent as root with the capability SYS_PTRACE",
        root.display()
    )]
    Unreadable {
        /// The proc file system.
        root: PathBuf,
        /// The number of processes.
        count: usize,
        /// Why the first of them can't be read.
        error: String,
    },
    /// Processes of Pods run here, but the names of the Pods can't be read.
    #[error("processes of Pods are seen, but {} can't be read, which names the Pods: {error}", root.display())]
    NoPods {
        /// The kubelet's log directories.
        root: PathBuf,
        /// Why they can't be read.
        error: String,
    },
    /// The Pod of an offending process has no name.
    #[error(
        "{count} offending processes are of Pods that neither {} nor {} names; the first is process {pid}",
        root.display(),
        containers.display()
    )]
    UnknownPods {
        /// The kubelet's log directories.
        root: PathBuf,
        /// The kubelet's links to the containers' logs.
        containers: PathBuf,
        /// The number of processes.
        count: usize,
        /// The process ID of the first.
        pid: u32,
    },
}

/// Checks that `root` shows the processes of a node.
///
/// Kernel threads exist only in a machine's first PID namespace, and `hidepid` hides them. So an agent that sees them sees all
/// processes. A node that is a container itself has none. Its process 1 belongs to no Pod, and is not in the agent's control
/// group.
pub(super) fn of_node(root: &Path) -> Result<(), Partial> {
    let read = |process: &str, file: &str, limit| read_bounded(&root.join(process).join(file), limit);
    if read("2", "comm", COMMAND_LIMIT).is_ok_and(|name| name.trim_ascii() == b"kthreadd") {
        return Ok(());
    }
    let hidden = |_| Partial::Hidden(root.to_owned());
    let first = read("1", "cgroup", CGROUP_LIMIT).map_err(hidden)?;
    let command = read("1", "cmdline", COMMAND_LIMIT).map_err(hidden)?;
    // Process 1 is the agent itself or has started it.
    let is_of_ours = read("self", "cgroup", CGROUP_LIMIT).is_ok_and(|own| own == first);
    let is_of_a_pod = Home::of(&String::from_utf8_lossy(&first)).is_pod();
    // In a Pod that shares its processes between containers, process 1 is the sandbox's.
    let program = command.split(|byte| *byte == 0).next().unwrap_or_default();
    let is_sandbox = base_name(&String::from_utf8_lossy(program)) == "pause";
    if is_of_ours || is_of_a_pod || is_sandbox {
        return Err(Partial::OwnNamespace(root.to_owned()));
    }
    Ok(())
}

/// The processes and files that one scan could not read.
#[derive(Debug, Default)]
pub(super) struct Unseen {
    /// The number of processes that could not be read, and the error of the first.
    refused: Option<(usize, io::Error)>,
    /// A process of a Pod was seen.
    pub(super) sees_pods: bool,
    /// The number of processes in containers that may be of Kubernetes, where the kubelet's links can't be read.
    pub(super) doubtful_containers: usize,
    /// The number of processes in control groups with too long a path.
    pub(super) deep_groups: usize,
    /// The number of processes whose program could not be seen.
    pub(super) hidden_programs: usize,
    /// The number of processes that are not of tenants, or of Pods that a rule exempts.
    pub(super) not_of_tenants: usize,
    /// The number of offending processes whose Pod has no name, and the ID of the first.
    unknown: Option<(usize, u32)>,
}

impl ScanError {
    /// The same text for the same kind of error, for any count.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Processes(_) => "processes",
            Self::Partial(Partial::OwnNamespace(_)) => "own namespace",
            Self::Partial(Partial::Hidden(_)) => "hidden",
            Self::Partial(Partial::Unreadable { .. }) => "unreadable",
            Self::Partial(Partial::NoPods { .. }) => "no pods",
            Self::Partial(Partial::UnknownPods { .. }) => "unknown pods",
        }
    }
}

impl Unseen {
    /// The result if it was read. A missing file is no refusal: a process may end at any time.
    pub(super) fn read<T>(&mut self, read: io::Result<T>) -> Option<T> {
        match read {
            Ok(read) => return Some(read),
            Err(error) if has_ended(&error) => {}
            Err(error) => match &mut self.refused {
                Some((count, _)) => *count += 1,
                None => self.refused = Some((1, error)),
            },
        }
        None
    }

    /// The owner of a process, if it was read. A process whose control group has too long a path is only counted. A tenant can
    /// make such groups, and they must not make the list partial.
    pub(super) fn read_home(&mut self, read: io::Result<Home>) -> Option<Home> {
        if read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidFilename) {
            self.deep_groups += 1;
            return None;
        }
        self.read(read)
    }

    /// The program of a process, if it can be read. If not, the process is judged by its other names, so that the list is not
    /// partial.
    pub(super) fn read_program(&mut self, read: io::Result<PathBuf>) -> Option<PathBuf> {
        match read {
            Ok(program) => return Some(program),
            Err(error) if has_ended(&error) => {}
            Err(_) => self.hidden_programs += 1,
        }
        None
    }

    /// Notes that process `pid` offends and its Pod has no name.
    pub(super) fn is_of_unknown_pod(&mut self, pid: u32) {
        self.unknown.get_or_insert((0, pid)).0 += 1;
    }

    /// The number of processes that could not be read.
    pub(super) fn unreadable(&self) -> usize {
        self.refused.as_ref().map_or(0, |(count, _)| *count)
    }

    /// The number of offending processes whose Pods have no name.
    pub(super) fn unknown_pods(&self) -> usize {
        self.unknown.map_or(0, |(count, _)| count)
    }

    /// Fails unless the scan of `scanner` saw all processes. `names` is the result of reading the names of Pods.
    pub(super) fn verdict(self, scanner: &Scanner, names: io::Result<()>) -> Result<(), Partial> {
        if let Some((count, error)) = self.refused {
            let root = scanner.proc_root.clone();
            return Err(Partial::Unreadable { root, count, error: error.to_string() });
        }
        match names {
            Err(error) if self.sees_pods => {
                let root = scanner.pods_root.clone();
                return Err(Partial::NoPods { root, error: error.to_string() });
            }
            _ => {}
        }
        if let Some((count, pid)) = self.unknown {
            let (root, containers) = (scanner.pods_root.clone(), scanner.containers_root.clone());
            return Err(Partial::UnknownPods { root, containers, count, pid });
        }
        Ok(())
    }
}
