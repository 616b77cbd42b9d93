//! Reads the Pod or container of a process from its control groups.
//!
//! The kubelet makes a control group for each Pod and the container runtime one for each container in it. Their drivers
//! `systemd` and `cgroupfs` name them differently. Where kubelet and runtime use different drivers, one takes a name of the
//! other's form literally. A tenant chooses the names of control groups below its container, so the outermost
//! name counts.

/// The Pod or container of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// The process runs on the host itself.
    Outside,
    /// The Pod with this UID; empty when the path belongs to Kubernetes but names no Pod.
    Pod(String),
    /// The container with this ID, of a Pod that the path does not name.
    Container {
        /// 64 hexadecimal digits.
        id: String,
        /// Whether it is certainly a container of Kubernetes. If not, it may still be one.
        is_of_kubernetes: bool,
        /// The UID of a Pod in it, if it is not certainly one of Kubernetes: a node may be a container itself.
        inside: Option<String>,
    },
}

impl Home {
    /// Whether the process is certainly in a Pod.
    pub(crate) fn is_pod(&self) -> bool {
        match self {
            Self::Outside => false,
            Self::Pod(_) => true,
            Self::Container { is_of_kubernetes, inside, .. } => *is_of_kubernetes || inside.is_some(),
        }
    }

    /// Reads `/proc/PID/cgroup`: one line `id:controllers:path` per hierarchy.
    pub(crate) fn of(cgroup: &str) -> Self {
        let paths = || cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2));
        let homes = || paths().filter_map(of_path);
        let pod = homes().find(|home| matches!(home, Self::Pod(_)));
        match pod.or_else(|| homes().next()) {
            Some(home) => home,
            None if paths().any(|path| path.contains("kubepods")) => Self::Pod(String::new()),
            None => Self::Outside,
        }
    }
}

/// The outermost Pod or container of a path.
fn of_path(path: &str) -> Option<Home> {
    let (mut outer, mut parent) = (None, "");
    for segment in path.split('/') {
        if let Some(uid) = pod_uid(segment) {
            return Some(match outer {
                None => Home::Pod(uid),
                Some(id) => Home::Container { id, is_of_kubernetes: false, inside: Some(uid) },
            });
        }
        match container(segment, parent) {
            Some((id, true)) if outer.is_none() => {
                return Some(Home::Container { id, is_of_kubernetes: true, inside: None });
            }
            Some((id, _)) if outer.is_none() => outer = Some(id),
            _ => {}
        }
        parent = segment;
    }
    outer.map(|id| Home::Container { id, is_of_kubernetes: false, inside: None })
}

/// The Pod's UID in one segment of a path: `pod<uid>`, or with systemd `kubepods-besteffort-pod<uid with underscores>.slice`.
/// A runtime with the other driver appends `:cri-containerd:<id>` to the latter. Any parent is accepted, because seen from
/// within a control-group namespace, the upper part of a path is cut off.
fn pod_uid(segment: &str) -> Option<String> {
    let name = segment.split(':').next()?;
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.strip_prefix("pod").or_else(|| Some(slice.rsplit_once("-pod")?.1))?,
        None => name.strip_prefix("pod")?,
    };
    // 36 characters, or 32 for Pods that the kubelet reads from files.
    let is_uid =
        matches!(uid.len(), 32 | 36) && uid.bytes().all(|b| b.is_ascii_hexdigit() || b"-_".contains(&b));
    is_uid.then(|| uid.replace('_', "-"))
}

/// The container's ID in one segment of a path, and whether the container is certainly one of Kubernetes.
fn container(segment: &str, parent: &str) -> Option<(String, bool)> {
    let name = segment.strip_suffix(" (deleted)").unwrap_or(segment);
    let name = name.strip_suffix(".scope").unwrap_or(name);
    // `<runtime>-<id>`, `<slice>:<runtime>:<id>`, or the ID alone.
    let (before, id) = name.rsplit_once([':', '-']).unwrap_or(("", name));
    let runtime = before.rsplit(':').next().unwrap_or_default();
    let is_id = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    // CRI-O's monitor of a container runs on the host.
    if !is_id || runtime.ends_with("conmon") {
        return None;
    }
    let is_of_kubernetes = matches!(runtime, "cri-containerd" | "crio") || parent == "k8s.io";
    Some((id.to_owned(), is_of_kubernetes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f5e6a52-8c1d-4b8a-9a53-3c9d1f0b7a11";
    const STATIC_UID: &str = "0123456789abcdef0123456789abcdef";

    fn id() -> String {
        "4f2a".repeat(16)
    }

    fn of_container(is_of_kubernetes: bool) -> Home {
        Home::Container { id: id(), is_of_kubernetes, inside: None }
    }

    #[test]
    fn every_form_of_control_group_names_the_pod() {
        let (slice, id) = (UID.replace('-', "_"), id());
        for cgroup in [
            format!("0::/kubepods/pod{UID}/4f2a"),
            format!("12:cpuset:/\n11:memory:/kubepods/besteffort/pod{UID}/{id}\n0::/\n"),
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice/cri-containerd-{id}.scope"
            ),
            format!("1:name=systemd:/kubepods.slice/kubepods-pod{slice}.slice/docker-{id}.scope"),
            format!("0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{slice}.slice/x"),
            // The runtime has the driver cgroupfs, and the kubelet systemd.
            format!("0::/kubepods-besteffort-pod{slice}.slice:cri-containerd:{id}"),
            format!(
                "0::/system.slice/containerd.service/kubepods-burstable-pod{slice}.slice:cri-containerd:{id}"
            ),
            format!("5:pids:/system.slice/docker.service/BestEffort.slice/BestEffort-pod{slice}.slice/{id}"),
            // CRI-O, with a group of its own inside the container's.
            format!("0::/kubepods.slice/kubepods-pod{slice}.slice/crio-{id}.scope"),
            format!("0::/kubepods.slice/kubepods-pod{slice}.slice/crio-{id}.scope/container"),
            format!("0::/kubepods/burstable/pod{UID}/crio-{id}"),
            // From within a control-group namespace.
            format!("0::/../../pod{UID}/4f2a"),
            format!("0::/../../../kubepods-pod{slice}.slice/cri-containerd-{id}.scope"),
            format!("0::/pod{UID}"),
            // A group that has been removed, and a cluster in a Pod.
            format!("0::/kubepods/pod{UID}/{id} (deleted)"),
            format!("0::/kubepods/pod{UID}/4f2a/kubepods/pod{STATIC_UID}/nested"),
        ] {
            assert_eq!(Home::of(&cgroup), Home::Pod(UID.to_owned()), "{cgroup}");
        }
        let of_file =
            format!("0::/system.slice/containerd.service/kubepods-pod{STATIC_UID}.slice:cri-containerd:{id}");
        assert_eq!(Home::of(&of_file), Home::Pod(STATIC_UID.to_owned()));
        assert_eq!(Home::of("0::/kubepods.slice/odd"), Home::Pod(String::new()));
    }

    #[test]
    fn a_container_without_a_pod_in_its_path_is_known_by_its_id() {
        let id = id();
        for cgroup in [
            format!("0::/system.slice/cri-containerd-{id}.scope"),
            format!("0::/system.slice:cri-containerd:{id}"),
            format!("0::/x.slice:cri-containerd:{id}"),
            format!("0::/crio-{id}"),
            format!("0::/crio-{id}.scope/container"),
            format!("0::/machine.slice/crio-{id}.scope"),
            format!("3:cpu:/\n0::/k8s.io/{id}"),
            format!("0::/../cri-containerd-{id}.scope (deleted)"),
            format!("0::/crio-{id}/docker/{}", "0".repeat(64)),
        ] {
            assert_eq!(Home::of(&cgroup), of_container(true), "{cgroup}");
        }
        for cgroup in [
            format!("0::/system.slice/docker-{id}.scope"),
            format!("4:memory:/docker/{id}"),
            format!("0::/{id}"),
            format!("0::/system.slice/containerd.service/{id}"),
        ] {
            assert_eq!(Home::of(&cgroup), of_container(false), "{cgroup}");
        }
    }

    #[test]
    fn control_groups_below_a_container_name_no_other_pod() {
        let id = id();
        for outer in ["cri-containerd-", "crio-", "k8s.io/", "x.slice:cri-containerd:"] {
            let cgroup = format!("0::/{outer}{id}/kubepods/pod{UID}");
            assert_eq!(Home::of(&cgroup), of_container(true), "{cgroup}");
        }
        // The node itself may be the container. Only the kubelet's links show that.
        let of_node =
            Home::Container { id: id.clone(), is_of_kubernetes: false, inside: Some(UID.to_owned()) };
        assert_eq!(Home::of(&format!("0::/docker/{id}/kubelet/kubepods/pod{UID}/{id}")), of_node);
    }

    #[test]
    fn a_path_without_a_pod_or_container_is_outside() {
        for cgroup in [
            "",
            "0::/",
            "0::/../..",
            "0::/system.slice/docker-4f2a.scope",
            "0::/user.slice/podman.slice",
            "0::/machine.slice/machine-pod1234.slice",
            "0::/podinfo",
            "junk",
        ] {
            assert_eq!(Home::of(cgroup), Home::Outside, "{cgroup}");
        }
        let monitor = format!("0::/system.slice/crio-conmon-{}.scope", id());
        assert_eq!(Home::of(&monitor), Home::Outside);
    }
}
