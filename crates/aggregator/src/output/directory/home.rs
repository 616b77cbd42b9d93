//! The UID that identifies the cluster of an output directory's Lease.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use k8s_openapi::api::core::v1::Namespace;
use kube::Api;

use crate::kubernetes::{Ask, Cluster, RefusalKind};

/// The cluster whose Lease says which process writes.
#[derive(Debug)]
pub(super) struct Home {
    cluster: Cluster,
    /// The namespace of the Lease.
    namespace: String,
    /// The log says already that asking is forbidden.
    is_logged: AtomicBool,
}

impl Home {
    pub(super) fn new(cluster: Cluster, namespace: String) -> Self {
        Self { cluster, namespace, is_logged: AtomicBool::new(false) }
    }

    /// The UID of the Lease's namespace: no other cluster has it. `None` where the cluster forbids to ask for it: a Role may
    /// leave that right out, and waiting does not change that. The log says once what that means for the directory at `path`.
    pub(super) async fn id(&self, path: &Path) -> Result<Option<String>, String> {
        let api: Api<Namespace> = Api::all(self.cluster.client());
        let namespace = Some(self.namespace.as_str());
        let ask = Ask { verb: "get", resource: "namespaces", namespace, name: namespace };
        let found = match self.cluster.ask(ask, api.get_metadata(&self.namespace)).await {
            Ok(found) => found,
            Err(refusal) if refusal.kind == RefusalKind::Forbidden => {
                if !self.is_logged.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        path = %path.display(),
                        error = %refusal,
                        "the UID that identifies this cluster may not be read, so an installation in another cluster that writes \
                         the same output directory is not noticed; allow `get` for the namespace of the Lease"
                    );
                }
                return Ok(None);
            }
            Err(refusal) => {
                return Err(format!("the UID that identifies this cluster is not known: {refusal}"));
            }
        };
        let uid = found.metadata.uid.ok_or_else(|| format!("the namespace {} has no UID", self.namespace))?;
        Ok(Some(uid))
    }
}
