//! Names of Pods, from the kubelet's log directories. These are plain files, so the agent needs no access to the container
//! runtime's socket, which would let it start containers.

use std::{collections::HashMap, fs, io, path::Path};

use super::cgroup::Home;

/// A Pod's namespace and name.
pub(super) type PodName = (String, String);

/// The names of the Pods and containers of this node, from the kubelet.
#[derive(Debug, Default)]
pub(super) struct Names {
    by_uid: HashMap<String, PodName>,
    /// `None` where the links can't be read.
    by_container: Option<HashMap<String, PodName>>,
}

/// The owner of a process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Owner {
    /// A Pod, or the host if it has a name.
    Named {
        /// The Pod's namespace.
        namespace: String,
        /// The Pod's name.
        pod: String,
    },
    /// The Pod with this UID, or the container with this ID. The kubelet's directories do not name it.
    Unknown(String),
}

impl Owner {
    pub(super) fn named((namespace, pod): PodName) -> Self {
        Self::Named { namespace, pod }
    }

    /// The name under which its share of a scan is counted: its namespace. Each unknown Pod has a share of its own, because its
    /// namespace is not known.
    pub(super) fn tenant(&self) -> &str {
        match self {
            Self::Named { namespace, .. } => namespace,
            Self::Unknown(id) => id,
        }
    }
}

impl Names {
    /// Reads `pods`, with directories `<namespace>_<pod>_<uid>`, and `containers`, with links
    /// `<pod>_<namespace>_<container>-<id>.log`. The latter is needed only where control groups do not name Pods, so that
    /// it may be missing.
    ///
    /// # Errors
    /// Fails if `pods` can't be read.
    pub(super) fn read(pods: &Path, containers: &Path) -> (Self, io::Result<()>) {
        let mut names = Self::default();
        let result = names.read_pods(pods);
        if let Ok(entries) = fs::read_dir(containers) {
            let entries = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
            names.by_container = Some(entries.filter_map(|name| of_container(&name)).collect());
        }
        (names, result)
    }

    fn read_pods(&mut self, root: &Path) -> io::Result<()> {
        for entry in fs::read_dir(root)? {
            let name = entry?.file_name();
            // Neither namespaces, nor Pod names, nor UIDs may contain an underscore.
            let parts = name.to_str().and_then(|name| name.split_once('_'));
            if let Some((namespace, (pod, uid))) =
                parts.and_then(|(n, rest)| Some((n, rest.split_once('_')?)))
            {
                self.by_uid.insert(uid.to_owned(), (namespace.to_owned(), pod.to_owned()));
            }
        }
        Ok(())
    }

    /// Whether `home` may be a container of Kubernetes, and the links that would show it can't be read.
    pub(super) fn is_in_doubt(&self, home: &Home) -> bool {
        self.by_container.is_none() && matches!(home, Home::Container { .. }) && !home.is_pod()
    }

    /// The owner of a process in `home`; `None` for the host, and for containers of other programs than Kubernetes.
    pub(super) fn owner(&self, home: Home) -> Option<Owner> {
        let (known, id) = match home {
            Home::Outside => return None,
            Home::Pod(uid) => (self.by_uid.get(&uid), uid),
            Home::Container { id, is_of_kubernetes, inside } => {
                match self.by_container.as_ref().and_then(|names| names.get(&id)) {
                    None if !is_of_kubernetes => return self.owner(Home::Pod(inside?)),
                    known => (known, id),
                }
            }
        };
        Some(known.cloned().map_or(Owner::Unknown(id), Owner::named))
    }
}

fn of_container(link: &str) -> Option<(String, PodName)> {
    let (pod, rest) = link.strip_suffix(".log")?.split_once('_')?;
    let (namespace, container) = rest.split_once('_')?;
    let (_, id) = container.rsplit_once('-')?;
    Some((id.to_owned(), (namespace.to_owned(), pod.to_owned())))
}
