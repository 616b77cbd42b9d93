//! Tests of the stage itself, because all other scenarios rely on it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt};
use procscan_agent::simulate::{Fleet, FleetOptions};
use procscan_e2e::aggregator::{self, Aggregator, run_command};
use procscan_e2e::cluster::Options;
use procscan_e2e::crds::{self, Crds};
use procscan_e2e::kubelet::Kubelets;
use procscan_e2e::network::FIRST_NODE;
use procscan_e2e::{Cluster, Stage, until};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(30);

/// The addresses that the Service's slices name, with their nodes.
async fn endpoints(stage: &Stage) -> anyhow::Result<BTreeSet<(String, String)>> {
    let slices: Api<EndpointSlice> = stage.api(procscan_e2e::stage::NAMESPACE);
    let ours = format!("kubernetes.io/service-name={}", procscan_e2e::stage::SERVICE);
    let slices = slices.list(&ListParams::default().labels(&ours)).await?.items;
    let endpoints = slices.into_iter().flat_map(|slice| slice.endpoints);
    let ready = endpoints.filter(|endpoint| {
        endpoint.conditions.as_ref().is_some_and(|conditions| conditions.ready == Some(true))
    });
    Ok(ready.map(|it| (it.node_name.unwrap_or_default(), it.addresses.concat())).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slices_of_the_agents_service_name_agents_that_answer() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let stop = CancellationToken::new();
    let fleet = Fleet::start(FleetOptions { nodes: 5, base: FIRST_NODE, ..FleetOptions::default() }, &stop)?;
    let stage = Stage::new(cluster.admin());
    let _kubelets = Kubelets::start(cluster.admin());
    let targets = fleet.targets();
    stage.nodes(&targets).await?;
    stage.agents(&targets).await?;

    let expected: BTreeSet<_> =
        targets.iter().map(|(node, address)| (node.clone(), address.ip().to_string())).collect();
    until("the slices to name all agents", LIMIT, async || {
        let found = endpoints(&stage).await?;
        ensure!(found == expected, "{found:?}");
        Ok(())
    })
    .await?;

    for (index, (node, address)) in targets.iter().enumerate() {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /api/violations HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("ns-sim-"), "{node}: {answer}");
        assert_eq!(fleet.requests(index), 1);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_verifies_the_server_and_the_aggregator_has_no_right_without_a_role() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options { controllers: false, ..Options::default() }).await?;
    let pods = |client: Client| async move { Api::<Pod>::all(client).list(&ListParams::default()).await };
    pods(cluster.admin()).await?;
    match pods(cluster.aggregator().await?).await {
        Err(kube::Error::Api(status)) => assert_eq!(status.code, 403, "{status:?}"),
        other => panic!("expected a refusal, because the aggregator has no role: {other:?}"),
    }
    let asked = until("the refusal in the audit log", LIMIT, async || {
        let events = cluster.audit_of_aggregator()?;
        ensure!(!events.is_empty(), "no events");
        Ok(events)
    });
    let asked = asked.await?;
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!((&asked[0]["verb"], &asked[0]["responseStatus"]["code"]), (&json!("list"), &json!(403)));

    // The same server, verified with another cluster's certificate authority.
    let other = Cluster::start(Options { controllers: false, ..Options::default() }).await?;
    let mut wrong = Kubeconfig::read_from(other.kubeconfig_admin())?;
    wrong.clusters[0].cluster.as_mut().unwrap().server = Some(cluster.url());
    let wrong = kube::Config::from_custom_kubeconfig(wrong, &KubeConfigOptions::default()).await?;
    let refused = format!("{:?}", pods(Client::try_from(wrong)?).await.unwrap_err());
    assert!(refused.contains("UnknownIssuer") || refused.contains("InvalidCertificate"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_api_server_has_its_data_after_a_restart() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options { controllers: false, ..Options::default() }).await?;
    let before = cluster.admin();
    let maps = |client: Client| Api::<ConfigMap>::namespaced(client, "default");
    let map = serde_json::from_value(json!({"metadata": {"name": "map"}, "data": {"a": "b"}}))?;
    maps(before.clone()).create(&PostParams::default(), &map).await?;
    cluster.stop_apiserver()?;
    maps(before.clone()).get("map").await.unwrap_err();
    cluster.start_apiserver().await?;
    assert_eq!(maps(cluster.admin()).get("map").await?.data, map.data);
    // A client from before the restart works again, because the port and the certificate are the same.
    assert_eq!(maps(before).get("map").await?.data, map.data);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_crds_accept_known_fields_and_refuse_unknown_ones() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options { controllers: false, ..Options::default() }).await?;
    let client = cluster.admin();
    let mut sets = vec![Crds::Generated];
    if Crds::best() == Crds::Contracts {
        sets.push(Crds::Contracts);
    }
    for which in sets {
        crds::install(&client, which).await?;
        let strict = [("fieldValidation", "Strict")];
        let kind = GroupVersionKind::gvk("notification.sealos.io", "v1", "Notification");
        let notification = |message: &str| {
            json!({
                "apiVersion": "notification.sealos.io/v1", "kind": "Notification", "metadata": {"name": "a"},
                "spec": {"title": "t", message: "m", "timestamp": 1, "i18ns": {"zh": {"title": "t", "message": "m"}}},
            })
        };
        let refused = post(&client, &kind, &strict, notification("mesage")).await.unwrap_err().to_string();
        assert!(refused.contains("unknown field \"spec.mesage\""), "{which:?}: {refused}");
        post(&client, &kind, &strict, notification("message")).await?;

        let kind = GroupVersionKind::gvk("extensions.higress.io", "v1alpha1", "WasmPlugin");
        let plugin = |service: &str| {
            let rule = json!({service: ["a.b.svc"], "configDisable": false, "config": {"anything": [1]}});
            json!({
                "apiVersion": "extensions.higress.io/v1alpha1", "kind": "WasmPlugin", "metadata": {"name": "a"},
                "spec": {"url": "oci://x", "defaultConfig": {"any": {"thing": 1}}, "matchRules": [rule]},
            })
        };
        let refused = post(&client, &kind, &strict, plugin("services")).await.unwrap_err().to_string();
        assert!(refused.contains("unknown field \"spec.matchRules[0].services\""), "{which:?}: {refused}");
        post(&client, &kind, &strict, plugin("service")).await?;

        for name in [crds::WASM_PLUGINS, crds::NOTIFICATIONS] {
            crds::remove(&client, name).await?;
        }
    }
    Ok(())
}

/// Creates an object in `default`. Unlike the client's own methods, it takes query parameters.
async fn post(
    client: &Client,
    kind: &GroupVersionKind,
    parameters: &[(&str, &str)],
    object: serde_json::Value,
) -> anyhow::Result<()> {
    let resource = ApiResource::from_gvk(kind);
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &resource);
    let query: Vec<_> = parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut request = kube::core::Request::new(api.resource_url())
        .create(&PostParams::default(), serde_json::to_vec(&object)?)?;
    *request.uri_mut() = format!("{}?{}", api.resource_url(), query.join("&")).parse()?;
    client.request_text(request).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_pods_of_workloads_are_replaced() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let stage = Stage::new(cluster.admin());
    let _kubelets = Kubelets::start(cluster.admin());
    stage.node("sim-0000", &["10.64.0.1".parse()?, "fd00:64::1".parse()?]).await?;
    stage.namespace("ns-a").await?;
    stage.deployment("ns-a", "web", &[("tier", "front")], "sim-0000").await?;
    stage.statefulset("ns-a", "db", &[], "sim-0000").await?;
    stage.service("ns-a", "web", &[("app", "web")]).await?;
    stage.ingress("ns-a", "web", "web.example.com", "web").await?;

    let [old] = &stage.running("ns-a", "app=web,tier=front", 1, LIMIT).await?[..] else { unreachable!() };
    let status = old.status.as_ref().unwrap();
    assert_eq!(status.host_ip.as_deref(), Some("10.64.0.1"));
    assert_eq!(status.host_ips.as_ref().unwrap().len(), 2);
    assert!(status.pod_ip.as_deref().unwrap().starts_with("10.96."), "{status:?}");

    stage.api::<Pod>("ns-a").delete(&old.name_any(), &DeleteParams::default()).await?;
    until("another Pod in its place", LIMIT, async || {
        let pods = stage.running("ns-a", "app=web", 1, LIMIT).await?;
        ensure!(pods[0].uid() != old.uid(), "still the deleted Pod");
        Ok(())
    })
    .await?;
    let database = stage.running("ns-a", "app=db", 1, LIMIT).await?;
    assert_eq!(database[0].name_any(), "db-0");

    // The garbage collector and the namespace controller delete the tenant's objects.
    let output = cluster.kubectl(&["delete", "namespace", "ns-a", "--timeout=30s"]).await?;
    assert!(output.status.success(), "{output:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_of_a_large_fleet_are_created_directly() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let stop = CancellationToken::new();
    let fleet =
        Fleet::start(FleetOptions { nodes: 1000, base: FIRST_NODE, ..FleetOptions::default() }, &stop)?;
    let stage = Stage::new(cluster.admin());
    stage.nodes(&fleet.targets()).await?;
    stage.endpoint_slices(&fleet.targets()).await?;
    assert_eq!(endpoints(&stage).await?.len(), 1000);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_aggregator_starts_and_answers_and_stops() -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let fleet = Fleet::start(FleetOptions { nodes: 3, base: FIRST_NODE, ..FleetOptions::default() }, &stop)?;
    let targets: Vec<_> = fleet.targets().iter().map(|(_, address)| address.to_string()).collect();
    let config = json!({
        "aggregator": {"scan_interval": "1s"},
        "discovery": {"mode": "static", "targets": targets},
        "output": {"mode": "directory"},
    });
    let aggregator = Aggregator::spawn(&config.to_string(), &aggregator::Options::default())?;
    aggregator.wait_for("the first round", LIMIT, "/readyz", |_| true).await?;
    aggregator.wait_for_log("an INFO entry", LIMIT, |entry| entry["level"] == "INFO").await?;
    let (status, body) = aggregator.get("/no-such-path").await?;
    assert_eq!(status, 404, "{body}");
    assert!(aggregator.stop().await?.success());

    let options = aggregator::Options::default();
    let checked = run_command(&["check-config", "--config", "no-such-file"], &options).await?;
    assert_eq!(checked.code, Some(2), "{checked:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_can_run_without_an_api_group() -> anyhow::Result<()> {
    let without = vec!["--runtime-config=discovery.k8s.io/v1=false".to_owned()];
    let cluster =
        Cluster::start(Options { controllers: false, apiserver_args: without, ..Options::default() }).await?;
    let stage = Stage::new(cluster.admin());
    let refused = endpoints(&stage).await.unwrap_err();
    let status = refused.downcast_ref::<kube::Error>();
    assert!(matches!(status, Some(kube::Error::Api(status)) if status.code == 404), "{refused:?}");
    Ok(())
}
