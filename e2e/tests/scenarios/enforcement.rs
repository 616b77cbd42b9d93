//! An accusation closes the gateway and notifies the tenant; only evidence opens the gateway again.

use std::time::Duration;

use anyhow::ensure;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, Pod, ResourceQuota};
use kube::ResourceExt;
use kube::api::{DynamicObject, Patch, PatchParams};
use procscan_agent::simulate::Behaviour;
use procscan_e2e::aggregator::{self, run_command};
use procscan_e2e::crds::Crds;
use procscan_e2e::until;
use serde_json::json;

use crate::world::{Beginning, GATEWAY, LIMIT, ROUNDS, World, config, delete};

/// Scenarios 1 and 2, with these CRDs.
async fn a_miner_is_blocked_and_nothing_more_is_written(crds: Crds) -> anyhow::Result<()> {
    let world = World::begin(Beginning { crds: Some(crds), ..Beginning::default() }).await?;
    let pod = world.tenant("ns-a", "web", "sim-0000").await?;
    // Another App of the same tenant, and a Service that selects no Pod of either App.
    world.stage.deployment("ns-a", "innocent", &[], "sim-0000").await?;
    world.stage.service("ns-a", "innocent-1", &[("app", "innocent")]).await?;
    world.stage.service("ns-a", "web", &[("app", "other")]).await?;
    world.accuse(0, &[("ns-a", &pod)]);
    world.until_closed(&["web-x7k2.ns-a"]).await?;

    let plugins = world.plugins().await?;
    ensure!(plugins.len() == 1 && plugins[0].name_any() == "procscan-violations");
    let spec = &plugins[0].data["spec"];
    ensure!(spec["defaultConfigDisable"] == true && spec["failStrategy"] == "FAIL_OPEN", "{spec}");
    let violation =
        json!({"pod": pod, "namespace": "ns-a", "process": "xmrig", "type": "app", "name": "web"});
    ensure!(spec["defaultConfig"]["violations"] == json!([violation]), "{spec}");

    let notification = world.until_notified("ns-a", "unread", |it| it.labels()["isRead"] == "false").await?;
    let spec = &notification.data["spec"];
    ensure!(spec["title"] == "Application web has been blocked", "{spec}");
    ensure!(spec["timestamp"].as_i64().is_some_and(|seconds| seconds > 1_700_000_000), "{spec}");
    ensure!(!spec.to_string().contains("pool.example.com"), "it has a command line: {spec}");

    world.nothing_more_is_written(&["ns-a"], 1, ROUNDS).await?;
    // The shipped rights suffice: the API server refused no request.
    for event in world.cluster.audit_of_aggregator()? {
        let code = event["responseStatus"]["code"].as_i64().unwrap_or(0);
        ensure!(code != 403, "{event}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miner_is_blocked_and_nothing_more_is_written_generated_crds() -> anyhow::Result<()> {
    a_miner_is_blocked_and_nothing_more_is_written(Crds::Generated).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miner_is_blocked_and_nothing_more_is_written_real_crds() -> anyhow::Result<()> {
    if Crds::best() != Crds::Contracts {
        eprintln!("the real CRDs are not here (PROCSCAN_CONTRACTS); the generated ones were used");
        return Ok(());
    }
    a_miner_is_blocked_and_nothing_more_is_written(Crds::Contracts).await
}

/// The grace begins with the written warning: a tenant whose warning is refused at first still has the whole grace.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_warned_first_and_blocked_after_the_grace() -> anyhow::Result<()> {
    let grace = json!({"enforcement": {"grace": "5s"}});
    let world = World::begin(Beginning { config: grace, ..Beginning::default() }).await?;
    let a = world.tenant("ns-a", "web", "sim-0000").await?;
    let b = world.tenant("ns-b", "web", "sim-0001").await?;
    let refused = world.notifications("ns-b");
    let probe = json!({
        "apiVersion": "notification.sealos.io/v1", "kind": "Notification", "metadata": {"name": "probe"},
        "spec": {"from": "probe", "title": "probe", "message": "probe", "timestamp": 1},
    });
    world.fill("ns-b", &refused, "count/notifications.notification.sealos.io", 0, probe).await?;
    world.accuse(0, &[("ns-a", &a)]);
    world.accuse(1, &[("ns-b", &b)]);
    let title = |notice: &DynamicObject| notice.data["spec"]["title"].as_str().unwrap_or_default().to_owned();
    let warning = world.until_notified("ns-a", "the warning", |it| title(it).contains("will be")).await?;
    ensure!(world.closed().await?.is_empty(), "blocked before the grace has ended: {warning:?}");
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    let incident = world.incident("ns-a").await?;
    let log = incident.data["status"]["decisions"].as_array().into_iter().flatten();
    let kinds: Vec<_> = log.map(|decision| &decision["decision"]).collect();
    ensure!(kinds == ["warned", "blocked"], "{incident:?}");
    world.until_notified("ns-a", "the block", |it| title(it).contains("has been blocked")).await?;
    world.stays_closed(&["web-x7k2.ns-a"], ROUNDS).await?;

    delete(&world.stage.api::<ResourceQuota>("ns-b"), "full").await?;
    world.until_notified("ns-b", "the warning", |it| title(it).contains("will be")).await?;
    let closed = world.closed().await?;
    ensure!(
        closed.len() == 1,
        "blocked before the grace has ended: {closed:?}\n{}",
        world.last_log_entries()
    );
    world.until_closed(&["web-x7k2.ns-a", "web-x7k2.ns-b"]).await
}

/// Scenario 3.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_outlasts_silence_and_a_restarted_agent_and_ends_with_the_last_pod() -> anyhow::Result<()> {
    let world = World::start().await?;
    world.stage.namespace("ns-a").await?;
    world.stage.pod("ns-a", "web-0", "sim-0000", &[("app", "web")]).await?;
    world.stage.service("ns-a", "web-x7k2", &[("app", "web")]).await?;
    world.stage.running("ns-a", "app=web", 1, LIMIT).await?;
    world.accuse(0, &[("ns-a", "web-0")]);
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    world.fleet.set_behaviour(0, Behaviour::Hang);
    world.stays_closed(&["web-x7k2.ns-a"], ROUNDS).await?;
    world.accuse(0, &[]);
    world.fleet.restart(0);
    world.fleet.set_behaviour(0, Behaviour::Healthy);
    world.stays_closed(&["web-x7k2.ns-a"], ROUNDS).await?;

    delete(&world.stage.api::<Pod>("ns-a"), "web-0").await?;
    world.until_closed(&[]).await?;
    let plugins = world.plugins().await?;
    ensure!(plugins.len() == 1, "expected one WasmPlugin, with its sentinel only: {plugins:?}");
    ensure!(plugins[0].data["spec"]["defaultConfig"]["violations"] == json!([]));
    world.until_notified("ns-a", "read", |it| it.labels()["isRead"] == "true").await?;
    world.until_logged(&["released", "no Pod of the App remains"]).await?;
    Ok(())
}

/// Scenario 4, first half.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_accuses_pods_of_other_nodes_is_disputed() -> anyhow::Result<()> {
    let world = World::start().await?;
    let pod = world.tenant("ns-a", "web", "sim-0000").await?;
    world.accuse(1, &[("ns-a", &pod), ("ns-a", "no-such-pod"), ("ns-none", "web")]);
    let plan = world
        .aggregator
        .wait_for("three disputes", LIMIT, "/api/v1/plan", |plan| plan["disputed"] == 3)
        .await?;
    ensure!(plan["blocks"] == json!([]), "{plan}");
    let reasons: Vec<_> =
        plan["disputes"].as_array().into_iter().flatten().map(|dispute| &dispute["reason"]).collect();
    ensure!(reasons.contains(&&json!("the Pod runs on node sim-0000")), "{reasons:?}");
    world.stays_closed(&[], ROUNDS).await?;
    // The log has one entry for each namespace.
    world.until_logged(&["disputed", "Pod no-such-pod and 1 more in namespace ns-a"]).await?;
    world.until_logged(&["disputed", "there is no such Pod", "Pod web in namespace ns-none"]).await?;
    // A dispute does not weaken the evidence of the Pod's own node.
    world.accuse(0, &[("ns-a", &pod)]);
    world.until_closed(&["web-x7k2.ns-a"]).await
}

/// Scenario 4, second half.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_moves_is_accused_by_its_new_node_only() -> anyhow::Result<()> {
    let world = World::start().await?;
    world.stage.namespace("ns-a").await?;
    world.stage.statefulset("ns-a", "db", &[], "sim-0000").await?;
    world.stage.service("ns-a", "db", &[("app", "db")]).await?;
    world.stage.running("ns-a", "app=db", 1, LIMIT).await?;
    world.accuse(0, &[("ns-a", "db-0")]);
    world.until_closed(&["db.ns-a"]).await?;

    // The old node still lists the record with its old timestamp. The Pod starts on another node, and is clean there.
    world.fleet.set_behaviour(0, Behaviour::StaleTimestamps);
    let sets = world.stage.api::<StatefulSet>("ns-a");
    let moved = json!({"spec": {"template": {"spec": {"nodeName": "sim-0001"}}}});
    sets.patch("db", &PatchParams::default(), &Patch::Merge(moved)).await?;
    until("the Pod on its new node", LIMIT, async || {
        let pod = world.stage.api::<Pod>("ns-a").get("db-0").await?;
        let node = pod.spec.and_then(|spec| spec.node_name);
        ensure!(node.as_deref() == Some("sim-0001"), "on {node:?}");
        Ok(())
    })
    .await?;
    world.stays_closed(&["db.ns-a"], ROUNDS).await?;
    // Fresh evidence of the old node is disputed.
    world.fleet.set_behaviour(0, Behaviour::Healthy);
    world.until_logged(&["disputed", "the Pod runs on node sim-0001"]).await?;
    world.accuse(1, &[("ns-a", "db-0")]);
    world
        .aggregator
        .wait_for("the new node's evidence", LIMIT, "/api/v1/plan", |plan| {
            plan["blocks"][0]["grounds"]
                .as_array()
                .is_some_and(|grounds| grounds.iter().any(|g| g["node"] == "sim-0001"))
        })
        .await?;
    world.stays_closed(&["db.ns-a"], ROUNDS).await
}

/// Scenario 5.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_does_not_unblock_itself_by_deleting_its_pods() -> anyhow::Result<()> {
    let world = World::start().await?;
    let mut pod = world.tenant("ns-a", "web", "sim-0000").await?;
    world.accuse(0, &[("ns-a", &pod)]);
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    world.accuse(0, &[]);
    for _ in 0..3 {
        let before = pod.clone();
        delete(&world.stage.api::<Pod>("ns-a"), &pod).await?;
        pod = until("another Pod", LIMIT, async || {
            let pods = world.stage.running("ns-a", "app=web", 1, LIMIT).await?;
            ensure!(pods[0].name_any() != before, "still {before}");
            Ok(pods[0].name_any())
        })
        .await?;
        world.stays_closed(&["web-x7k2.ns-a"], Duration::from_secs(3)).await?;
    }
    // The App's tenant creates another Service.
    world.stage.service("ns-a", "added", &[("app", "web")]).await?;
    world.until_closed(&["added.ns-a", "web-x7k2.ns-a"]).await?;
    delete(&world.stage.api::<Deployment>("ns-a"), "web").await?;
    world.until_closed(&[]).await
}

/// Scenario 12, second half. Another namespace is deleted while its App is blocked.
#[tokio::test(flavor = "multi_thread")]
async fn a_terminating_namespace_is_left_alone() -> anyhow::Result<()> {
    let world = World::start().await?;
    let pod = world.tenant("ns-a", "web", "sim-0000").await?;
    // A finalizer holds the Pod, so the namespace stays in Terminating.
    let keep = json!({"metadata": {"finalizers": ["example.com/keep"]}});
    let pods = world.stage.api::<Pod>("ns-a");
    pods.patch(&pod, &PatchParams::default(), &Patch::Merge(keep)).await?;
    let bound = world.tenant("ns-b", "web", "sim-0001").await?;
    delete(&world.stage.all::<Namespace>(), "ns-a").await?;
    world.accuse(0, &[("ns-a", &pod)]);
    world.accuse(1, &[("ns-b", &bound)]);
    world.until_closed(&["web-x7k2.ns-b"]).await?;
    world.stays_closed(&["web-x7k2.ns-b"], ROUNDS).await?;
    let notifications = world.notifications("ns-a").list(&kube::api::ListParams::default()).await?;
    ensure!(notifications.items.is_empty(), "{notifications:?}");
    let free = json!({"metadata": {"finalizers": null}});
    pods.patch(&pod, &PatchParams::default(), &Patch::Merge(free)).await?;
    delete(&world.stage.all::<Namespace>(), "ns-b").await?;
    world.until_closed(&[]).await
}

/// A restarted replica reads the blocks from the persisted state, and changes no Notification.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_releases_no_app_and_notifies_no_tenant_twice() -> anyhow::Result<()> {
    let mut world = World::start().await?;
    let pod = world.tenant("ns-a", "web", "sim-0000").await?;
    world.accuse(0, &[("ns-a", &pod)]);
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    let before = world.until_notified("ns-a", "unread", |it| it.labels()["isRead"] == "false").await?;
    for silent in [false, true] {
        if silent {
            world.accuse(0, &[]);
        }
        world.restart(&json!({}))?;
        world.aggregator.wait_for("the first round", LIMIT, "/readyz", |_| true).await?;
        world.stays_closed(&["web-x7k2.ns-a"], ROUNDS).await?;
        let now = world.notifications("ns-a").get(&before.name_any()).await?;
        ensure!(now.resource_version() == before.resource_version(), "{now:?}");
    }
    Ok(())
}

/// `plan`, `unblock-all` and `uninstall` work while the service does not run.
#[tokio::test(flavor = "multi_thread")]
async fn commands_work_while_the_service_does_not_run() -> anyhow::Result<()> {
    let mut world = World::start().await?;
    let pod = world.tenant("ns-a", "web", "sim-0000").await?;
    world.until_installed().await?;
    world.aggregator.kill()?;
    let file = world.cluster.dir().join("config.yaml");
    std::fs::write(&file, config(&json!({})).to_string())?;
    let file = file.to_string_lossy().into_owned();
    let by_service = aggregator::Options::kubeconfig(world.cluster.kubeconfig_aggregator());
    let by_admin = aggregator::Options::kubeconfig(world.cluster.kubeconfig_admin());

    let plan = run_command(&["plan", "--config", &file], &by_service).await?;
    ensure!(plan.code == Some(0) && plan.stdout.contains("Nothing would change"), "{plan:?}");
    world.accuse(0, &[("ns-a", &pod)]);
    world.fleet.scan_now(0);
    let plan = run_command(&["plan", "--config", &file], &by_service).await?;
    ensure!(plan.code == Some(3), "{plan:?}");
    for text in [
        "block ns-a/app/web: process `xmrig`",
        "+ spec.matchRules[0].service: web-x7k2.ns-a.svc.cluster.local",
        "create Notification ns-a/",
    ] {
        ensure!(plan.stdout.contains(text), "{text} is missing: {}", plan.stdout);
    }
    ensure!(world.closed().await?.is_empty(), "`plan` has closed the gateway");

    world.restart(&json!({}))?;
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    world.until_notified("ns-a", "there", |_| true).await?;
    let opened = run_command(&["unblock-all", "--config", &file], &by_admin).await?;
    ensure!(opened.code == Some(0) && opened.stdout.contains("suspended"), "{opened:?}");
    world.until_logged(&["suspended", "WasmPlugin higress-system/procscan-violations"]).await?;
    world.stays_closed(&[], ROUNDS).await?;
    // The command that `unblock-all` prints.
    let resume =
        ["annotate", "wasmplugins", "-n", GATEWAY, "procscan-violations", "procscan-aggregator/suspend-"];
    ensure!(world.cluster.kubectl(&resume).await?.status.success());
    world.until_closed(&["web-x7k2.ns-a"]).await?;

    world.aggregator.kill()?;
    let refused = run_command(&["uninstall", "--config", &file], &by_service).await?;
    ensure!(
        refused.code == Some(1) && refused.stderr.contains("cannot"),
        "the service's own rights allow no uninstall: {refused:?}"
    );
    let dry_run = run_command(&["uninstall", "--dry-run", "--config", &file], &by_admin).await?;
    ensure!(dry_run.code == Some(0) && dry_run.stdout.lines().count() == 4, "{dry_run:?}");
    ensure!(world.plugins().await?.len() == 1);
    let removed = run_command(&["uninstall", "--config", &file], &by_admin).await?;
    let last: Vec<&str> = removed.stdout.lines().rev().take(2).collect();
    ensure!(
        last == [
            "Lease kube-system/procscan-aggregator removed",
            "WasmPlugin higress-system/procscan-violations removed"
        ],
        "{removed:?}"
    );
    ensure!(world.plugins().await?.is_empty() && world.versions(&["ns-a"]).await?.is_empty());
    Ok(())
}
