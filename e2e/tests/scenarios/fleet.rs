//! Discovery and rounds of large fleets, while their targets change.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::ensure;
use k8s_openapi::api::core::v1::Endpoints;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams};
use procscan_agent::simulate::{Fleet, FleetOptions};
use procscan_e2e::aggregator::{self, Aggregator};
use procscan_e2e::cluster::Options;
use procscan_e2e::network::FIRST_NODE;
use procscan_e2e::stage::{NAMESPACE, SERVICE};
use procscan_e2e::{Cluster, Stage};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::world::{GATEWAY, LIMIT, RBAC, config};

/// A configuration with slower rounds, because the same machine simulates all nodes.
fn large() -> Value {
    config(&json!({"aggregator": {"scan_interval": "5s"}, "collector": {"timeout": "4s"}}))
}

async fn fleet_of(
    nodes: usize,
    options: Options,
) -> anyhow::Result<(Cluster, Stage, Fleet, CancellationToken)> {
    let cluster = Cluster::start(Options { controllers: false, ..options }).await?;
    let stop = CancellationToken::new();
    let options = FleetOptions { nodes, base: FIRST_NODE, offenders_per_node: 0, ..FleetOptions::default() };
    let fleet = Fleet::start(options, &stop)?;
    let stage = Stage::new(cluster.admin());
    stage.namespace(GATEWAY).await?;
    cluster.apply(RBAC).await?;
    Ok((cluster, stage, fleet, stop))
}

/// Waits until `nodes` agents are expected, and all of them have answered.
async fn until_fresh(aggregator: &Aggregator, nodes: usize) -> anyhow::Result<Value> {
    aggregator
        .wait_for(&format!("{nodes} agents"), LIMIT, "/readyz", |ready| {
            ready["targets"]["expected"] == nodes && ready["targets"]["fresh"] == nodes
        })
        .await
}

/// Forwards connections to an IPv6 address to an agent of the fleet.
async fn forward(from: SocketAddr, to: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(from).await?;
    tokio::spawn(async move {
        while let Ok((mut inside, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut outside = TcpStream::connect(to).await?;
                tokio::io::copy_bidirectional(&mut inside, &mut outside).await
            });
        }
    });
    Ok(())
}

/// Scenario 9.
#[tokio::test(flavor = "multi_thread")]
async fn targets_follow_changed_slices_of_fifteen_hundred_nodes() -> anyhow::Result<()> {
    let (cluster, stage, fleet, _stop) = fleet_of(1600, Options::default()).await?;
    let targets = fleet.targets();
    stage.endpoint_slices(&targets[..1500]).await?;
    let kubeconfig = aggregator::Options::kubeconfig(cluster.kubeconfig_aggregator());
    let aggregator = Aggregator::spawn(&large().to_string(), &kubeconfig)?;
    until_fresh(&aggregator, 1500).await?;
    let slices: Api<EndpointSlice> = stage.api(NAMESPACE);
    let all = slices
        .list(&ListParams::default().labels(&format!("kubernetes.io/service-name={SERVICE}")))
        .await?
        .items;
    ensure!(all.len() == 15, "{} slices", all.len());

    // One slice is deleted, one loses an endpoint, and two are added that list 100 known and 100 new nodes.
    crate::world::delete(&slices, &all[0].name_any()).await?;
    until_fresh(&aggregator, 1400).await?;
    let mut endpoints = serde_json::to_value(&all[1])?["endpoints"].clone();
    endpoints.as_array_mut().expect("a list").pop();
    let patch = Patch::Merge(json!({"endpoints": endpoints}));
    slices.patch(&all[1].name_any(), &PatchParams::default(), &patch).await?;
    until_fresh(&aggregator, 1399).await?;
    let slice = |name: &str, family: &str, addresses: &[(IpAddr, &str)]| {
        json!({
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": SERVICE}},
            "addressType": family,
            "ports": [{"name": "api", "port": 9090, "protocol": "TCP"}],
            "endpoints": addresses.iter().map(|(address, node)| json!({"addresses": [address], "nodeName": node})).collect::<Vec<_>>(),
        })
    };
    let twice: Vec<(IpAddr, &str)> =
        targets[1400..1600].iter().map(|(node, address)| (address.ip(), node.as_str())).collect();
    stage.make::<EndpointSlice>(slice("twice-a", "IPv4", &twice[..100])).await?;
    stage.make::<EndpointSlice>(slice("twice-b", "IPv4", &twice[100..])).await?;
    until_fresh(&aggregator, 1499).await?;

    // A node in two slices gets as many requests as any other.
    let before: Vec<u64> = (0..1600).map(|node| fleet.requests(node)).collect();
    let rounds = aggregator.get("/readyz").await?.1["rounds"].as_u64().unwrap_or(0);
    aggregator
        .wait_for("three rounds", LIMIT, "/readyz", |ready| ready["rounds"].as_u64() >= Some(rounds + 3))
        .await?;
    for (node, before) in before.iter().enumerate() {
        let asked = fleet.requests(node) - before;
        // The nodes of the first slice, and the last node of the second.
        let is_gone = node < 100 || node == 199;
        ensure!(
            if is_gone { asked == 0 } else { (2..=5).contains(&asked) },
            "node {node} was asked {asked} times"
        );
    }

    let six: IpAddr = "fd00:64::6".parse::<Ipv6Addr>()?.into();
    forward(SocketAddr::new(six, 9090), targets[0].1).await?;
    stage.make::<EndpointSlice>(slice("six", "IPv6", &[(six, "sim-six")])).await?;
    until_fresh(&aggregator, 1500).await?;
    let nodes = aggregator.get_all("/api/v1/nodes").await?;
    let found = nodes["nodes"].as_array().into_iter().flatten().find(|node| node["node"] == "sim-six");
    ensure!(
        found.is_some_and(|node| node["address"] == "[fd00:64::6]:9090" && node["state"] == "fresh"),
        "{found:?}"
    );
    // The aggregator watches the slices, and does not poll them.
    let lists = cluster
        .audit_of_aggregator()?
        .into_iter()
        .filter(|event| event["verb"] == "list" && event["objectRef"]["resource"] == "endpointslices");
    ensure!(lists.count() <= 2);
    Ok(())
}

/// Scenario 9, last part: a cluster that refuses EndpointSlices.
#[tokio::test(flavor = "multi_thread")]
async fn endpoints_replace_slices_that_the_api_server_refuses() -> anyhow::Result<()> {
    let without = Options {
        apiserver_args: vec!["--runtime-config=discovery.k8s.io/v1=false".into()],
        ..Options::default()
    };
    let (cluster, stage, fleet, _stop) = fleet_of(5, without).await?;
    let targets = fleet.targets();
    let address = |(node, address): &(String, SocketAddr)| json!({"ip": address.ip(), "nodeName": node});
    let addresses = |targets: &[(String, SocketAddr)]| targets.iter().map(address).collect::<Vec<_>>();
    let endpoints = json!({
        "metadata": {"name": SERVICE, "namespace": NAMESPACE},
        "subsets": [{
            "addresses": addresses(&targets[..3]), "notReadyAddresses": addresses(&targets[3..]),
            "ports": [{"name": "api", "port": 9090}],
        }],
    });
    stage.make::<Endpoints>(endpoints).await?;
    let kubeconfig = aggregator::Options::kubeconfig(cluster.kubeconfig_aggregator());
    let aggregator = Aggregator::spawn(&config(&json!({})).to_string(), &kubeconfig)?;
    until_fresh(&aggregator, 5).await?;
    aggregator
        .wait_for_log("the fallback", LIMIT, |entry| entry.to_string().contains("EndpointSlices are refused"))
        .await?;
    let fewer = json!({"subsets": [{"addresses": addresses(&targets[..2]), "ports": [{"name": "api", "port": 9090}]}]});
    stage.api::<Endpoints>(NAMESPACE).patch(SERVICE, &PatchParams::default(), &Patch::Merge(fewer)).await?;
    until_fresh(&aggregator, 2).await?;
    let (_, nodes) = aggregator.get("/api/v1/nodes").await?;
    ensure!(nodes["nodes"][0]["node"] == "sim-0000", "{nodes}");
    Ok(())
}
