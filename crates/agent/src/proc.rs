//! One pass over the processes of this node.
//!
//! Pods are found without a container runtime. The paths of a process's control groups name its Pod or container, and the
//! kubelet names its log files after both.

mod cgroup;
mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod listing;
mod names;
mod pod;
mod process;
mod sight;
mod turns;

use std::{collections::HashMap, fs, io, mem, path::PathBuf};

use jiff::Zoned;

use crate::{
    record::{Record, stamp},
    rules::Rules,
};

pub(crate) use self::cgroup::Home;
use self::files::{number, read_bounded};
use self::listing::Listing;
pub(crate) use self::listing::{LeftOut, MOST_RECORDS, Omitted};
use self::names::{Names, Owner};
use self::pod::{PodScan, Turn};
use self::sight::Unseen;
pub(crate) use self::sight::{Partial, ScanError};
pub(crate) use self::turns::Limits;
use self::turns::Tenants;

/// Only namespaces of tenants are reported; this system does not judge the platform's own.
pub(crate) const TENANT_PREFIX: &str = "ns-";

/// Far above the longest real list of control groups (one line per v1 hierarchy).
const CGROUP_LIMIT: u64 = 16 * 1024;

/// The namespace and Pod under which processes outside of any Pod are reported, for machines without Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostIdentity {
    /// Must start with `TENANT_PREFIX`, because other namespaces are not reported.
    pub namespace: String,
    /// Any name, such as that of the machine.
    pub pod: String,
}

/// A running process that broke a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Namespace of its pod.
    pub(crate) namespace: String,
    /// Name of its pod.
    pub(crate) pod: String,
    /// The name that broke the rule; for a keyword, the name of its program as its command line has it. Cut to
    /// [`MOST_PROCESS`](crate::record::MOST_PROCESS).
    pub(crate) process: String,
    /// Its command line, shortened to [`MOST_CMDLINE`](crate::record::MOST_CMDLINE): its beginning and the match. Bytes that are
    /// not UTF-8 became U+FFFD.
    pub(crate) cmdline: String,
    /// The process pattern that matched, cut to [`MOST_REGEX`](crate::record::MOST_REGEX); empty for a keyword.
    pub(crate) regex: String,
    /// The process ID of the oldest process with the same namespace, pod and process name.
    pub(crate) pid: u32,
    /// When that process started, in ticks of the kernel's clock.
    pub(crate) started: u64,
}

impl Finding {
    /// A list has one record for each key.
    fn key(&self) -> (&str, &str, &str) {
        (&self.namespace, &self.pod, &self.process)
    }

    /// The wire record of this finding, seen at `at`.
    pub(crate) fn into_record(self, at: &Zoned) -> Record {
        Record {
            name: self.pod.clone(),
            pod: self.pod,
            namespace: self.namespace,
            process: self.process,
            cmdline: self.cmdline,
            regex: self.regex,
            status: "active".to_owned(),
            kind: "app".to_owned(),
            timestamp: stamp(at),
        }
    }
}

/// The result of one scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    /// The offending processes: one finding per namespace, pod and process name, in that order.
    pub(crate) findings: Vec<Finding>,
    /// The offending processes that are not in `findings`, and the processes that were not read.
    pub(crate) left_out: LeftOut,
    /// All processes that were seen.
    pub(crate) processes: usize,
    /// Processes that break a rule.
    pub(crate) matched: usize,
    /// Processes that are not judged because they are not of tenants, or because a rule exempts their Pods.
    pub(crate) not_of_tenants: usize,
    /// Processes that could not be read. A node's agent then has no list.
    pub(crate) unreadable: usize,
    /// Offending processes that were skipped because the kubelet's directories do not know their pod.
    pub(crate) unknown_pods: usize,
    /// Processes of containers that are skipped: the kubelet's links, which name the pods of containers, can't be read.
    pub(crate) doubtful_containers: usize,
    /// Processes that are skipped because their owners are not known: the paths of their control groups are longer than the
    /// 4,096 bytes that the kernel shows.
    pub(crate) deep_groups: usize,
    /// Processes whose program file could not be seen. They are judged only by the names that a process can choose.
    pub(crate) hidden_programs: usize,
}

/// Scans all processes below `proc_root`.
#[derive(Clone, Debug)]
pub(crate) struct Scanner {
    /// Where the node's processes are mounted, normally `/proc`.
    pub(crate) proc_root: PathBuf,
    /// The kubelet's log directories `<namespace>_<pod>_<uid>`, normally `/var/log/pods`; may be missing where there are no pods.
    pub(crate) pods_root: PathBuf,
    /// The kubelet's links `<pod>_<namespace>_<container>-<id>.log`, normally `/var/log/containers`; needed only where
    /// control groups do not name pods.
    pub(crate) containers_root: PathBuf,
    /// The rules by which processes are judged.
    pub(crate) rules: Rules,
    /// The name under which processes outside of pods are reported. `None` ignores them, and requires that the scanner sees the
    /// whole node. With a name, it is enough that the scanner sees the processes of the agent's user.
    pub(crate) host: Option<HostIdentity>,
    /// The most that a scan reads.
    pub(crate) limits: Limits,
    /// For each Pod that has more than its share, where the last scan stopped.
    turns: HashMap<Owner, Turn>,
}

/// The state of a scan that runs.
#[derive(Default)]
struct Seen {
    unseen: Unseen,
    listing: Listing,
    left_out: LeftOut,
}

impl Scanner {
    /// A scanner before its first scan.
    pub(crate) fn new(
        proc_root: PathBuf,
        pods_root: PathBuf,
        rules: Rules,
        host: Option<HostIdentity>,
    ) -> Self {
        Self {
            proc_root,
            pods_root,
            containers_root: PathBuf::from("/var/log/containers"),
            rules,
            host,
            limits: Limits::default(),
            turns: HashMap::new(),
        }
    }

    /// Scans all processes once.
    ///
    /// # Errors
    /// Fails if processes can't be listed, or if a node's agent does not see its whole node. A process that ends
    /// during the scan is no error.
    pub(crate) fn scan(&mut self) -> Result<Scan, ScanError> {
        let is_of_node = self.host.is_none();
        if is_of_node {
            fs::read_dir(&self.proc_root)?;
            sight::of_node(&self.proc_root)?;
        }
        let processes = self.pids()?;
        let all = processes.len();
        // Names are read after the processes: the kubelet makes a pod's directory before it starts the pod's first process, so
        // that each process has a name.
        let (names, names_read) = Names::read(&self.pods_root, &self.containers_root);
        let mut seen = Seen::default();
        let tenants = self.tenants(&processes, &names, &mut seen.unseen);
        let mut before = mem::take(&mut self.turns);
        let mut after = HashMap::new();
        turns::share(tenants, self.limits.scan, |owner, processes, share| {
            let turn = before.remove(&owner).unwrap_or_default();
            let (used, next) = PodScan::new(self, &owner, processes, share, &mut seen).run(turn);
            after.extend(next.map(|next| (owner, next)));
            used
        });
        self.turns = after;

        let Seen { unseen, listing, mut left_out } = seen;
        let (unknown_pods, hidden_programs) = (unseen.unknown_pods(), unseen.hidden_programs);
        let (doubtful_containers, deep_groups) = (unseen.doubtful_containers, unseen.deep_groups);
        let (unreadable, not_of_tenants) = (unseen.unreadable(), unseen.not_of_tenants);
        if is_of_node {
            unseen.verdict(self, names_read)?;
        }
        let matched = listing.processes() + unknown_pods;
        let findings = listing.choose(MOST_RECORDS, &mut left_out);
        Ok(Scan {
            findings,
            left_out,
            processes: all,
            matched,
            not_of_tenants,
            unreadable,
            unknown_pods,
            doubtful_containers,
            deep_groups,
            hidden_programs,
        })
    }

    /// Process IDs in ascending order, without our own.
    fn pids(&self) -> io::Result<Vec<u32>> {
        // `self` has the number of the mount's PID namespace, which may be another than ours.
        let own = fs::read_link(self.proc_root.join("self")).ok().and_then(|link| number(link.as_os_str()));
        let mut pids = Vec::new();
        for entry in fs::read_dir(&self.proc_root)? {
            let pid = number(&entry?.file_name());
            pids.extend(pid.filter(|pid| Some(*pid) != own));
        }
        pids.sort_unstable();
        Ok(pids)
    }

    fn directory(&self, pid: u32) -> PathBuf {
        self.proc_root.join(pid.to_string())
    }

    fn home(&self, pid: u32) -> io::Result<Home> {
        let cgroup = read_bounded(&self.directory(pid).join("cgroup"), CGROUP_LIMIT)?;
        Ok(Home::of(&String::from_utf8_lossy(&cgroup)))
    }

    /// The processes of tenants that are not exempt, by owner. Other processes are not read any further.
    fn tenants(&self, processes: &[u32], names: &Names, unseen: &mut Unseen) -> Tenants {
        let mut tenants = Tenants::new();
        let host = self.host.as_ref();
        for pid in processes {
            let Some(home) = unseen.read_home(self.home(*pid)) else { continue };
            unseen.doubtful_containers += usize::from(names.is_in_doubt(&home));
            let owner = names.owner(home);
            unseen.sees_pods |= owner.is_some();
            let of_host = || host.map(|host| Owner::named((host.namespace.clone(), host.pod.clone())));
            let Some(owner) = owner.or_else(of_host) else {
                unseen.not_of_tenants += 1;
                continue;
            };
            if let Owner::Named { namespace, pod } = &owner
                && (!namespace.starts_with(TENANT_PREFIX) || self.rules.exempts_pod(namespace, pod))
            {
                unseen.not_of_tenants += 1;
                continue;
            }
            let pods = tenants.entry(owner.tenant().to_owned()).or_default();
            pods.entry(owner).or_default().push(*pid);
        }
        tenants
    }
}

#[cfg(test)]
mod tests;
