//! One pass over the processes of this node.
//!
//! Pods are found without a container runtime: the kernel tells a process's control group, whose path holds the pod's
//! UID, and the kubelet names each pod's log directory after namespace, name and UID. Both are plain files, so the
//! agent needs no socket with the power to start containers.

mod sight;

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use jiff::Zoned;

use crate::{
    record::{Record, stamp},
    rules::Rules,
};

use self::sight::Unseen;
pub use self::sight::{Partial, ScanError};

/// Only namespaces of tenants are reported; those of the platform are not for this system to judge.
pub const TENANT_PREFIX: &str = "ns-";

/// How much of a command line is read. The kernel allows megabytes; no rule needs them.
const CMDLINE_LIMIT: u64 = 64 * 1024;
/// Far above the longest real list of control groups (one line per v1 hierarchy).
const CGROUP_LIMIT: u64 = 16 * 1024;

/// What processes outside of any pod are reported as, for machines without Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostIdentity {
    /// Must start with [`TENANT_PREFIX`], or nothing would be reported.
    pub namespace: String,
    /// Any name.
    pub pod: String,
}

/// A running process that broke a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Namespace of its pod.
    pub namespace: String,
    /// Name of its pod.
    pub pod: String,
    /// Base name of the first word of its command line.
    pub process: String,
    /// Its command line, at most 64 KiB; bytes that are not UTF-8 became U+FFFD.
    pub cmdline: String,
    /// The process pattern that matched; empty for a keyword.
    pub regex: String,
    /// The lowest process ID among those that share namespace, pod and process name.
    pub pid: u32,
}

impl Finding {
    /// The wire record of this finding, seen at `at`.
    pub fn into_record(self, at: &Zoned) -> Record {
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

/// Looks at all processes below `proc_root`.
#[derive(Clone, Debug)]
pub struct Scanner {
    /// Where the node's processes are mounted, normally `/proc`.
    pub proc_root: PathBuf,
    /// The kubelet's log directories `<namespace>_<pod>_<uid>`, normally `/var/log/pods`; may be missing where there are no pods.
    pub pods_root: PathBuf,
    /// What to look for.
    pub rules: Rules,
    /// How to report processes outside of pods; `None` ignores them, and makes this a node's agent, which must see all
    /// of its node. On a person's own machine, what that person may see is enough.
    pub host: Option<HostIdentity>,
    unknown_pods: usize,
}

impl Scanner {
    /// A scanner that has not looked yet.
    pub fn new(proc_root: PathBuf, pods_root: PathBuf, rules: Rules, host: Option<HostIdentity>) -> Self {
        Self { proc_root, pods_root, rules, host, unknown_pods: 0 }
    }

    /// Offending processes the last scan had to skip because the kubelet's directories do not know their pod.
    pub fn unknown_pods(&self) -> usize {
        self.unknown_pods
    }

    /// One pass: what offends now, one finding per namespace, pod and process name, in that order.
    ///
    /// # Errors
    /// Fails if processes can't be listed, or if a node's agent does not see all of its node. A process that ends
    /// during the scan is no error.
    pub fn scan(&mut self) -> Result<Vec<Finding>, ScanError> {
        let is_of_node = self.host.is_none();
        if is_of_node {
            fs::read_dir(&self.proc_root)?;
            sight::of_node(&self.proc_root)?;
        }
        let processes = self.pids()?;
        // After the processes: the kubelet makes a pod's directory before it starts the pod's first process, so the
        // names can't be older than the processes.
        let (pods, names) = match pods_by_uid(&self.pods_root) {
            Ok(pods) => (pods, Ok(())),
            Err(error) => (HashMap::new(), Err(error)),
        };
        let mut unseen = Unseen::default();
        let mut findings = BTreeMap::new();
        for pid in processes {
            // Without names the list is complete only if no pod runs here.
            if names.is_err() && is_of_node && !unseen.sees_pods {
                let home = unseen.read(self.home(pid));
                unseen.sees_pods = matches!(home, Some(Home::Pod(_)));
            }
            if let Some(finding) = self.examine(pid, &pods, &mut unseen) {
                let key = (finding.namespace.clone(), finding.pod.clone(), finding.process.clone());
                findings.entry(key).or_insert(finding);
            }
        }
        self.unknown_pods = unseen.unknown_pods();
        if is_of_node {
            unseen.verdict(&self.proc_root, &self.pods_root, names)?;
        }
        Ok(findings.into_values().collect())
    }

    /// Process IDs in ascending order, without our own.
    fn pids(&self) -> io::Result<Vec<u32>> {
        // `self` speaks the numbers of the mount, which may be another PID namespace than ours.
        let own = fs::read_link(self.proc_root.join("self")).ok().and_then(|link| number(&link));
        let mut pids = Vec::new();
        for entry in fs::read_dir(&self.proc_root)? {
            let pid = number(Path::new(&entry?.file_name()));
            pids.extend(pid.filter(|pid| Some(*pid) != own));
        }
        pids.sort_unstable();
        Ok(pids)
    }

    fn home(&self, pid: u32) -> io::Result<Home> {
        let cgroup = read_bounded(&self.proc_root.join(pid.to_string()).join("cgroup"), CGROUP_LIMIT)?;
        Ok(Home::of(&String::from_utf8_lossy(&cgroup)))
    }

    fn examine(
        &self,
        pid: u32,
        pods: &HashMap<String, (String, String)>,
        unseen: &mut Unseen,
    ) -> Option<Finding> {
        let cmdline = self.proc_root.join(pid.to_string()).join("cmdline");
        let mut cmdline = unseen.read(read_bounded(&cmdline, CMDLINE_LIMIT))?;
        for byte in &mut cmdline {
            if *byte == 0 {
                *byte = b' ';
            }
        }
        let cmdline = String::from_utf8_lossy(&cmdline).trim().to_owned();
        // Kernel threads and zombies have no command line, hence no name.
        let process = base_name(cmdline.split_whitespace().next()?).to_owned();
        let hit = self.rules.judge(std::slice::from_ref(&process), &cmdline)?;

        let (namespace, pod) = match unseen.read(self.home(pid))? {
            Home::Outside => self.host.as_ref().map(|host| (host.namespace.clone(), host.pod.clone()))?,
            Home::Pod(uid) => {
                let pod = pods.get(&uid).cloned();
                if pod.is_none() {
                    unseen.is_of_unknown_pod(pid);
                }
                pod?
            }
        };
        let reported = namespace.starts_with(TENANT_PREFIX) && !self.rules.exempts_pod(&namespace, &pod);
        reported.then_some(Finding { namespace, pod, process, cmdline, regex: hit.regex, pid })
    }
}

/// Where a process lives, read from its control groups.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// In no pod: on the host itself, or in a container of something other than Kubernetes.
    Outside,
    /// In the pod with this UID; empty when the path belongs to Kubernetes but names no pod.
    Pod(String),
}

impl Home {
    /// Reads `/proc/PID/cgroup`: one line `id:controllers:path` per hierarchy.
    pub(crate) fn of(cgroup: &str) -> Self {
        let paths = || cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2));
        // The outermost pod is the node's: a cluster nested in a tenant's pod can make up any path below its own.
        if let Some(uid) = paths().find_map(|path| path.split('/').find_map(pod_uid)) {
            Self::Pod(uid)
        } else if paths().any(|path| path.contains("kubepods")) {
            Self::Pod(String::new())
        } else {
            Self::Outside
        }
    }
}

/// The pod UID in one segment of a control group's path: `pod<uid>`, or with systemd
/// `kubepods-besteffort-pod<uid with underscores>.slice`. No `kubepods` parent is demanded of the first form: seen
/// from within a control-group namespace, the upper part of the path is cut off.
fn pod_uid(segment: &str) -> Option<String> {
    let uid = match segment.strip_suffix(".slice") {
        Some(slice) if slice.contains("kubepods") => slice.rsplit_once("-pod")?.1,
        Some(_) => return None,
        None => segment.strip_prefix("pod")?,
    };
    // 36 characters, or 32 for pods that the kubelet reads from files.
    let shaped =
        matches!(uid.len(), 32 | 36) && uid.bytes().all(|b| b.is_ascii_hexdigit() || b"-_".contains(&b));
    shaped.then(|| uid.replace('_', "-"))
}

fn pods_by_uid(root: &Path) -> io::Result<HashMap<String, (String, String)>> {
    let mut pods = HashMap::new();
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name();
        // Neither namespaces, nor pod names, nor UIDs may contain an underscore.
        let parts = name.to_str().and_then(|name| name.split_once('_'));
        if let Some((namespace, (pod, uid))) = parts.and_then(|(n, rest)| Some((n, rest.split_once('_')?))) {
            pods.insert(uid.to_owned(), (namespace.to_owned(), pod.to_owned()));
        }
    }
    Ok(pods)
}

fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn base_name(word: &str) -> &str {
    let word = word.trim_end_matches('/');
    word.rsplit_once('/').map_or(word, |(_, base)| base)
}

fn number(name: &Path) -> Option<u32> {
    name.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests;
