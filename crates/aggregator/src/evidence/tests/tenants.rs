//! What one tenant makes costs the other tenants nothing.

use serde_json::json;

use super::fake::pod;
use super::stage::{Stage, wait};

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
    let mut large = pod("9", "large", "n1");
    large["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "x".repeat(5 << 20), "uid": "7"}]);
    // In the middle of the list.
    stage.server.put("pods", "ns-01000x", "large", large);
    stage.server.put("namespaces", "", "ns-01000x", json!({}));
    stage.accuse(false);
    wait(60).await;
    let judged = stage.names.iter().filter(|namespace| stage.knows(namespace)).count();
    assert_eq!(judged, 2000);
}
