//! What tells the cluster of an output directory's Lease from other clusters.

use k8s_openapi::api::core::v1::Namespace;
use kube::Api;

use crate::kubernetes::{Ask, Cluster};

/// The cluster whose Lease says which process writes.
#[derive(Clone, Debug)]
pub(super) struct Home {
    pub(super) cluster: Cluster,
    /// The namespace of the Lease.
    pub(super) namespace: String,
}

impl Home {
    /// The UID of the Lease's namespace: no other cluster has it.
    pub(super) async fn id(&self) -> Result<String, String> {
        let api: Api<Namespace> = Api::all(self.cluster.client());
        let namespace = Some(self.namespace.as_str());
        let ask = Ask { verb: "get", resource: "namespaces", namespace, name: namespace };
        let found = self.cluster.ask(ask, api.get_metadata(&self.namespace)).await;
        let found = found.map_err(|refusal| {
            format!("the UID that tells this cluster from others is not known: {refusal}")
        })?;
        found.metadata.uid.ok_or_else(|| format!("the namespace {} has no UID", self.namespace))
    }
}
