//! Objects of one tenant cost the other tenants nothing.

use serde_json::json;

use procscan_core::policy::PodState;

use super::fake::pod;
use super::stage::{Stage, wait};

/// A Pod of that UID with a name of 5 MiB in it.
fn large_pod(uid: &str) -> serde_json::Value {
    let mut large = pod(uid, "web", "n1");
    large["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "x".repeat(5 << 20), "uid": uid}]);
    large
}

#[tokio::test(start_paused = true)]
async fn one_tenants_large_object_takes_away_no_watch() {
    let stage = Stage::new(20, 1000);
    // 1.4 MB of `<` in etcd are 8.4 MB of \u003c in the API server's JSON.
    let backend = json!({"service": {"name": "a"}});
    let path = json!({"path": format!("/{}", "x".repeat(5 << 20)), "pathType": "Exact", "backend": backend});
    let large = json!({"spec": {"rules": [{"http": {"paths": [path]}}]}});
    stage.server.put("ingresses", "aaa", "large", large);
    stage.accuse(false);
    wait(300).await;
    let status = stage.status.borrow().clone();
    assert!(status.is_watched, "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn one_tenants_large_object_prevents_no_sweep() {
    let stage = Stage::new(2000, 20);
    // In the middle of the list.
    stage.server.put("pods", "ns-01000x", "large", large_pod("9"));
    stage.server.put("namespaces", "", "ns-01000x", json!({}));
    stage.accuse(false);
    wait(60).await;
    let judged = stage.names.iter().filter(|namespace| stage.knows(namespace)).count();
    assert_eq!(judged, 2000);
}

#[tokio::test(start_paused = true)]
async fn after_updates_of_one_tenants_large_pod_no_other_namespace_is_looked_up() {
    let stage = Stage::settled(20).await;
    stage.server.store().requests.clear();
    // Of a namespace that is not accused, then of one that is.
    for (namespace, most) in [("ns-other", 11), ("ns-00007", 40)] {
        let requests = stage
            .requests(async {
                for n in 0..8 {
                    stage.server.put("pods", namespace, "large", large_pod(&n.to_string()));
                    wait(10).await;
                }
            })
            .await;
        assert!(requests < most, "{namespace}: {requests}");
        let status = stage.status.borrow().clone();
        assert!(status.is_watched, "{status:?}");
    }
    let looked_up = |namespace: &str| stage.server.store().asked_for(&format!("/namespaces/{namespace}/"));
    assert_eq!((looked_up("ns-00007"), looked_up("ns-00008")), (2, 0), "once a minute");
    // It is too large to be looked up, so its Pods are unreadable, and the status says so.
    assert!(matches!(stage.fact("ns-00007").state, PodState::Unreadable(_)));
    assert!(stage.status.borrow().too_large.is_some());
    assert!(stage.knows(&"ns-00008".into()));
}
