//! Thousands of accused namespaces with the default limits: all are judged, and then few requests are sent.
//!
//! With `PROCSCAN_E2E_FULL` there are 2,000 namespaces in rounds of a minute, which takes five minutes; without it 300
//! in rounds of 30 s, which takes two: the Incidents alone take 15 s to write at the default pace.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use procscan_agent::record::Record;
use procscan_e2e::aggregator::{self, Aggregator};
use procscan_e2e::wait::until_every;
use procscan_e2e::{Stage, until};
use serde_json::{Value, json};

use crate::world::{Beginning, LIMIT, World, offender, scene};

const NODES: usize = 20;
const LONG: Duration = Duration::from_mins(5);
const SECOND: Duration = Duration::from_secs(1);

fn namespace(number: usize) -> String {
    format!("ns-{number:05}")
}

/// Creates a tenant with one App: a Pod and a Service.
async fn make(stage: &Stage, number: usize) -> anyhow::Result<()> {
    let (namespace, node) = (namespace(number), format!("sim-{:04}", number % NODES));
    stage.namespace(&namespace).await?;
    stage.pod(&namespace, "web-0", &node, &[("app", "web")]).await?;
    let spec = json!({"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"port": 80}]});
    let service = json!({"metadata": {"name": "web", "namespace": namespace}, "spec": spec});
    stage.make::<Service>(service).await
}

/// What the node's agent lists for that many tenants.
fn listed(node: usize, tenants: usize) -> Vec<Record> {
    (0..tenants)
        .filter(|number| number % NODES == node)
        .map(|number| offender(&namespace(number), "web-0"))
        .collect()
}

/// The aggregator's requests to the API server since then, by verb and resource.
fn asked(world: &World, since: Timestamp) -> anyhow::Result<BTreeMap<String, usize>> {
    let mut all = BTreeMap::new();
    for event in world.cluster.audit_of_aggregator()? {
        let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        // The audit log has an entry when a watch begins, and one when it ends.
        let is_begin = text("/verb") != "watch" || text("/stage") == "ResponseStarted";
        let at: Timestamp = text("/requestReceivedTimestamp").parse()?;
        if at >= since && is_begin {
            *all.entry(format!("{} {}", text("/verb"), text("/objectRef/resource"))).or_default() += 1;
        }
    }
    Ok(all)
}

/// How many tenants there are, how long a round lasts, and how long requests are counted.
struct Size {
    tenants: usize,
    round: Duration,
    quiet: u64,
    is_full: bool,
}

impl Size {
    fn from_env() -> Self {
        let is_full = std::env::var_os("PROCSCAN_E2E_FULL").is_some();
        let (tenants, round, quiet) = if is_full { (2000, 60, 60) } else { (300, 30, 30) };
        Self { tenants, round: Duration::from_secs(round), quiet, is_full }
    }
}

/// A world with all tenants, in which no agent lists anything yet.
async fn with_tenants(size: &Size) -> anyhow::Result<World> {
    let mut beginning = Beginning { nodes: NODES, ..Beginning::default() };
    beginning.has_kubelets = false;
    beginning.cluster.controllers = false;
    // Each round finds all evidence renewed.
    beginning.scan_interval = size.round / 8;
    let scene = scene(beginning).await?;
    let numbers = stream::iter(0..size.tenants).map(Ok::<_, anyhow::Error>);
    numbers.try_for_each_concurrent(32, |number| make(&scene.1, number)).await?;
    // Everything else has its default.
    let config = json!({"aggregator": {"scan_interval": format!("{}s", size.round.as_secs())}});
    let kubeconfig = aggregator::Options::kubeconfig(scene.0.kubeconfig_aggregator());
    let world = World::of(Aggregator::spawn(&config.to_string(), &kubeconfig)?, scene);
    world.until_installed().await?;
    Ok(world)
}

/// Waits until all tenants are blocked or held, for two rounds at most. Returns how long that took.
async fn until_all_are_judged(world: &World, size: &Size) -> anyhow::Result<Duration> {
    let begun = tokio::time::Instant::now();
    until_every(SECOND, "all to be judged", 2 * size.round, async || {
        let plan = world.aggregator.get_all("/api/v1/plan").await?;
        let count = |part: &str| plan[part].as_array().map_or(0, Vec::len);
        let (blocked, held) = (count("blocks"), count("held"));
        ensure!(
            blocked + held == size.tenants,
            "{blocked} blocked, {held} held, {} not judged",
            plan["unverified"]
        );
        Ok(())
    })
    .await
    .with_context(|| world.last_log_entries())?;
    Ok(begun.elapsed())
}

/// The start is over when no request waits any more.
async fn until_the_start_is_over(world: &World) -> anyhow::Result<()> {
    until_every(SECOND, "rest", LONG, async || {
        let (_, ready) = world.aggregator.get("/readyz").await?;
        let last = asked(world, Timestamp::now() - SignedDuration::from_secs(10))?;
        let is_quiet = last.values().sum::<usize>() <= 20;
        ensure!(is_quiet && ready["evidence"]["watched"] == true, "{last:?} {}", ready["evidence"]);
        Ok(())
    })
    .await
}

async fn few_requests_are_sent(world: &World, size: &Size, judged: Duration) -> anyhow::Result<()> {
    let Size { tenants, quiet, is_full, .. } = *size;
    let since = Timestamp::now();
    tokio::time::sleep(Duration::from_secs(quiet)).await;
    let all = asked(world, since)?;
    let sum: usize = all.values().sum();
    eprintln!(
        "{tenants} namespaces judged after {judged:.1?}; {sum} requests in {quiet} s of quiet: {all:?}"
    );
    // Leases, the agents' DaemonSet and our own objects are read by time or by rounds, which are shorter here than the
    // default.
    ensure!(!is_full || sum < usize::try_from(quiet)?, "{sum} requests in {quiet} s: {all:?}");
    // No request is about the accused namespaces, except that a watch may be renewed, and that a list of each kind
    // follows a bookmark.
    let kinds = ["namespaces", "pods", "services", "ingresses", "httproutes"];
    let of_tenants = all.iter().filter(|(what, _)| {
        kinds.iter().any(|kind| what.ends_with(&format!(" {kind}"))) && *what != "get services"
    });
    let of_tenants: usize = of_tenants.map(|(_, count)| count).sum();
    ensure!(of_tenants <= 3 * kinds.len(), "{all:?}");
    let (_, ready) = world.aggregator.get("/readyz").await?;
    ensure!(ready["evidence"]["late"] == 0, "{}", ready["evidence"]);
    Ok(())
}

/// One tenant more: its agent is asked once a round, and its accusation is judged at once.
async fn a_new_accusation_is_judged_at_once(world: &World, size: &Size) -> anyhow::Result<()> {
    let tenants = size.tenants;
    make(&world.stage, tenants).await?;
    let node = tenants % NODES;
    let before = world.fleet.requests(node);
    world.fleet.set_offenders(node, listed(node, tenants + 1));
    until("the next answer", size.round + LIMIT, async || {
        ensure!(world.fleet.requests(node) > before, "not yet");
        Ok(())
    })
    .await?;
    let answered = tokio::time::Instant::now();
    let name = namespace(tenants);
    // A decision needs nothing more after the Services of the namespace have been read.
    until("the read of its Services", LIMIT, async || {
        let events = world.cluster.audit_of_aggregator()?;
        let is_read = |event: &Value| {
            let of = &event["objectRef"];
            of["resource"] == "services" && of["namespace"] == name.as_str()
        };
        ensure!(events.iter().any(is_read), "not yet");
        Ok(())
    })
    .await?;
    eprintln!("a new accusation is looked up after {:.1?}", answered.elapsed());
    ensure!(answered.elapsed() < Duration::from_secs(3), "{:?}", answered.elapsed());
    world.until_logged(&["\"decision\"", &name]).await?;
    eprintln!("and decided on after {:.1?}", answered.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_namespaces_are_judged_within_two_rounds_and_then_cost_less_than_a_request_a_second()
-> anyhow::Result<()> {
    let size = Size::from_env();
    let world = with_tenants(&size).await?;
    for node in 0..NODES {
        world.fleet.set_offenders(node, listed(node, size.tenants));
    }
    let judged = until_all_are_judged(&world, &size).await?;
    until_the_start_is_over(&world).await?;
    few_requests_are_sent(&world, &size, judged).await?;
    a_new_accusation_is_judged_at_once(&world, &size).await
}
