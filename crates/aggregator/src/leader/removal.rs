//! Removes the Lease for `uninstall`: last, and only while no replica leads, because a leader would make the removed
//! objects again.

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use tokio::time::{Instant, sleep};

use super::{LEASES, Timing, lease};
use crate::kubernetes::{Ask, Cluster, Refusal, RefusalKind};

/// Why the Lease can't be removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemovalError {
    /// The API server refuses the request.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The service runs.
    #[error(
        "{0} leads, and would make the removed objects again. Stop the service before (kubectl delete --cascade=foreground -f \
         deploy/manifests/deployment.yaml)"
    )]
    Led(String),
}

/// A Lease that no replica holds.
#[derive(Debug)]
pub(crate) struct Unheld {
    cluster: Cluster,
    namespace: String,
    lease: Lease,
}

/// Whether the Lease exists, held or not.
pub(crate) async fn exists(cluster: &Cluster, namespace: &str, name: &str) -> Result<bool, Refusal> {
    Ok(read(cluster, namespace, name).await?.is_some())
}

async fn read(cluster: &Cluster, namespace: &str, name: &str) -> Result<Option<Lease>, Refusal> {
    let api: Api<Lease> = Api::namespaced(cluster.client(), namespace);
    let ask = Ask { verb: "get", resource: LEASES, namespace: Some(namespace), name: Some(name) };
    match cluster.ask(ask, api.get(name)).await {
        Ok(lease) => Ok(Some(lease)),
        Err(refusal) if matches!(refusal.kind, RefusalKind::NotFound | RefusalKind::NoNamespace) => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

impl Unheld {
    /// The Lease, if it exists and no replica holds it. A holder that does not renew it for its whole duration has
    /// ended without giving it back, so this may wait for that long.
    pub(crate) async fn find(
        cluster: &Cluster,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Self>, RemovalError> {
        let Some(first) = read(cluster, namespace, name).await? else { return Ok(None) };
        let mut last = first.clone();
        let lasts = lease::duration(&first).unwrap_or(Timing::default().lease_duration);
        let end = Instant::now() + lasts;
        while let Some(holder) = lease::holder(&last) {
            if last.metadata.resource_version != first.metadata.resource_version {
                return Err(RemovalError::Led(holder.to_owned()));
            }
            if Instant::now() >= end {
                break;
            }
            sleep(Timing::default().retry).await;
            let Some(now) = read(cluster, namespace, name).await? else { return Ok(None) };
            last = now;
        }
        Ok(Some(Self { cluster: cluster.clone(), namespace: namespace.to_owned(), lease: last }))
    }

    /// Removes the Lease if it is unchanged: a replica that has taken it since goes on holding it.
    pub(crate) async fn remove(self) -> Result<(), RemovalError> {
        let metadata = &self.lease.metadata;
        let as_seen = DeleteParams {
            preconditions: Some(Preconditions {
                resource_version: metadata.resource_version.clone(),
                uid: metadata.uid.clone(),
            }),
            ..DeleteParams::default()
        };
        let name = metadata.name.clone().unwrap_or_default();
        let ask =
            Ask { verb: "delete", resource: LEASES, namespace: Some(&self.namespace), name: Some(&name) };
        let api: Api<Lease> = Api::namespaced(self.cluster.client(), &self.namespace);
        match self.cluster.ask(ask, api.delete(&name, &as_seen)).await {
            Ok(_) => Ok(()),
            Err(refusal) if refusal.kind == RefusalKind::NotFound => Ok(()),
            Err(refusal) if refusal.kind == RefusalKind::Conflict => {
                Err(RemovalError::Led("a replica that has started meanwhile".to_owned()))
            }
            Err(refusal) => Err(refusal.into()),
        }
    }
}
