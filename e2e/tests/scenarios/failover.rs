//! Two replicas, of which only the leader writes. A failure of the leader releases no App and notifies no tenant twice. No late
//! write takes effect.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures_util::TryStreamExt;
use kube::Api;
use kube::ResourceExt;
use kube::api::{DynamicObject, ListParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use procscan_e2e::aggregator::{self, Aggregator};
use procscan_e2e::audit;
use procscan_e2e::cluster::Options;
use procscan_e2e::until;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::world::{Beginning, LIMIT, World, hosts, offender};

/// How often the leader is killed, and how often it is frozen.
const TIMES: usize = 20;
/// How soon the other replica has to write.
const TAKE_OVER: Duration = Duration::from_secs(20);
/// The tenants that are blocked from the beginning.
const FIRST: usize = 3;

/// The aggregator's Lease.
const LEASE: &str = "kube-system/procscan-aggregator";

struct Replicas {
    world: World,
    second: Aggregator,
    pods: Vec<(String, String)>,
    /// Ends with an error when the gateway is opened to an App. It sees every version of the WasmPlugin.
    opened: JoinHandle<anyhow::Result<()>>,
}

impl Replicas {
    /// Starts two replicas, and creates `later` tenants that the scenario may accuse later.
    async fn start(later: usize) -> anyhow::Result<Self> {
        // All tenants offend within minutes, by the same rule, and the brakes must not hold them here.
        let brake = json!({"max_new_tenants": 1000, "max_tenants_per_node": 1000, "max_apps_per_node": 1000, "max_tenants_per_rule": 1000});
        let cluster = Options { audit_bodies: true, ..Options::default() };
        let beginning = Beginning { cluster, config: json!({"brake": brake}), ..Beginning::default() };
        let world = World::begin(beginning).await?;
        let second = Self::spawn(&world, true)?;
        let mut pods = Vec::new();
        for n in 0..FIRST + later {
            let namespace = format!("ns-{n:02}");
            world.stage.namespace(&namespace).await?;
            world.stage.pod(&namespace, "web-0", "sim-0000", &[("app", "web")]).await?;
            world.stage.service(&namespace, "web-x7k2", &[("app", "web")]).await?;
            pods.push((namespace, "web-0".to_owned()));
        }
        let opened = tokio::spawn(until_opened(world.wasm_plugins()));
        let replicas = Self { world, second, pods, opened };
        replicas.accuse(FIRST);
        replicas.until_closed(FIRST, LIMIT).await?;
        for n in 0..FIRST {
            replicas.world.until_notified(&replicas.pods[n].0, "there", |_| true).await?;
        }
        Ok(replicas)
    }

    /// Starts a replica. Each has an identity of its own in the audit log.
    fn spawn(world: &World, is_second: bool) -> anyhow::Result<Aggregator> {
        let cluster = &world.cluster;
        let kubeconfig =
            if is_second { cluster.kubeconfig_second_replica() } else { cluster.kubeconfig_aggregator() };
        let brake = json!({"max_new_tenants": 1000, "max_tenants_per_node": 1000, "max_apps_per_node": 1000, "max_tenants_per_rule": 1000});
        let config = crate::world::config(&json!({"brake": brake})).to_string();
        Aggregator::spawn(&config, &aggregator::Options::kubeconfig(kubeconfig))
    }

    /// From now on the agent of node 0 lists the Pods of the first `count` tenants.
    fn accuse(&self, count: usize) {
        let offenders = self.pods[..count].iter().map(|(namespace, pod)| offender(namespace, pod));
        self.world.fleet.set_offenders(0, offenders.collect());
    }

    /// Waits until the gateway is closed to the first `count` tenants only. Fails if it was opened to an App meanwhile.
    async fn until_closed(&self, count: usize, limit: Duration) -> anyhow::Result<()> {
        let expected = self.hosts(count);
        until(&format!("{count} closed hosts"), limit, async || {
            let closed = self.world.closed().await?;
            ensure!(closed == expected, "closed to {} hosts", closed.len());
            Ok(())
        })
        .await?;
        ensure!(!self.opened.is_finished(), "the gateway was opened to an App, or the watch has ended");
        Ok(())
    }

    fn hosts(&self, count: usize) -> BTreeSet<String> {
        self.pods[..count].iter().map(|(ns, _)| format!("web-x7k2.{ns}.svc.cluster.local")).collect()
    }

    /// Waits until exactly one replica leads. `true` if it is the first one.
    async fn until_one_leads(&self) -> anyhow::Result<bool> {
        until("one replica to lead", TAKE_OVER, async || {
            let leads = async |replica: &Aggregator| match replica.get("/readyz").await {
                Ok((_, ready)) => ready["leader"]["leading"] == true,
                Err(_) => false,
            };
            match (leads(&self.world.aggregator).await, leads(&self.second).await) {
                (true, false) => Ok(true),
                (false, true) => Ok(false),
                both => Err(format!("{both:?}")),
            }
        })
        .await
    }

    /// The versions of the first tenants' Notifications.
    async fn notification_versions(&self) -> anyhow::Result<BTreeSet<String>> {
        let mut versions = BTreeSet::new();
        for (namespace, _) in &self.pods[..FIRST] {
            for object in self.world.notifications(namespace).list(&ListParams::default()).await?.items {
                let version = object.resource_version().unwrap_or_default();
                versions.insert(format!("{namespace}/{}@{version}", object.name_any()));
            }
        }
        Ok(versions)
    }

    /// Fails if an incident has a decision other than a block.
    async fn has_only_blocks(&self, replica: &Aggregator) -> anyhow::Result<()> {
        let all = |body: &Value| body["decisions"].as_array().cloned().unwrap_or_default();
        let blocked = |body: &Value| all(body).iter().filter(|d| d["decision"] == "blocked").count();
        // A replica that was just thawed reads the persisted state first.
        let body = replica
            .wait_for("every block, decided once", LIMIT, "/api/v1/decisions?limit=1000", |body| {
                blocked(body) == self.pods.len()
            })
            .await?;
        let decisions = all(&body);
        let others: Vec<&Value> =
            decisions.iter().filter(|decision| decision["decision"] != "blocked").collect();
        ensure!(others.is_empty(), "{others:?}");
        Ok(())
    }
}

/// Ends with an error as soon as a closed host is opened.
async fn until_opened(plugins: Api<DynamicObject>) -> anyhow::Result<()> {
    let config = watcher::Config::default().fields("metadata.name=procscan-violations");
    let mut versions = std::pin::pin!(watcher(plugins, config).default_backoff().touched_objects());
    let mut closed = BTreeSet::new();
    while let Some(version) = versions.try_next().await? {
        let now = hosts(&version)?;
        let opened: Vec<&String> = closed.difference(&now).collect();
        ensure!(opened.is_empty(), "opened to {opened:?}");
        closed = now;
    }
    bail!("the watch has ended")
}

/// Fails if a replica has logged a decision other than a block.
fn logs_only_blocks(replica: &Aggregator) -> anyhow::Result<()> {
    let logs = replica.logs();
    let other = logs.iter().find(|entry| entry.get("decision").is_some_and(|kind| kind != "blocked"));
    other.map_or(Ok(()), |entry| bail!("{entry}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced_and_releases_no_app() -> anyhow::Result<()> {
    let mut replicas = Replicas::start(TIMES).await?;
    let before = replicas.notification_versions().await?;
    let mut slowest = Duration::ZERO;
    for time in 0..TIMES {
        let is_first = replicas.until_one_leads().await?;
        let killed = Instant::now();
        let leader = if is_first { &replicas.world.aggregator } else { &replicas.second };
        leader.kill()?;
        logs_only_blocks(leader)?;
        replicas.accuse(FIRST + time + 1);
        let replacement = Replicas::spawn(&replicas.world, !is_first)?;
        if is_first {
            replicas.world.aggregator = replacement;
        } else {
            replicas.second = replacement;
        }
        replicas.until_closed(FIRST + time + 1, TAKE_OVER).await.with_context(|| format!("kill {time}"))?;
        let took = killed.elapsed();
        println!("kill {time}: the new block after {took:?}");
        slowest = slowest.max(took);
        let now = replicas.notification_versions().await?;
        ensure!(now == before, "the first tenants were notified again: {now:?}");
    }
    println!("{TIMES} kills; the slowest new block came {slowest:?} after a kill");
    replicas.has_only_blocks(&replicas.second).await?;
    logs_only_blocks(&replicas.world.aggregator)?;
    logs_only_blocks(&replicas.second)?;
    each_is_notified_once(&replicas, true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_leader_writes_nothing_after_it_is_thawed() -> anyhow::Result<()> {
    let replicas = Replicas::start(2 * TIMES).await?;
    let before = replicas.notification_versions().await?;
    let mut slowest = Duration::ZERO;
    for time in 0..TIMES {
        let is_first = replicas.until_one_leads().await?;
        let leader = if is_first { &replicas.world.aggregator } else { &replicas.second };
        // The signal comes at another point of the leader's work each time, so that some writes are still to come.
        let early = FIRST + 2 * time + 1;
        replicas.accuse(early);
        tokio::time::sleep(Duration::from_millis(u64::try_from(time)? * 97 % 1200)).await;
        leader.signal("STOP")?;
        let frozen = Instant::now();
        replicas.accuse(early + 1);
        replicas.until_closed(early + 1, TAKE_OVER).await.with_context(|| format!("freeze {time}"))?;
        let took = frozen.elapsed();
        println!("freeze {time}: the new block after {took:?}");
        slowest = slowest.max(took);
        let other = if is_first { &replicas.second } else { &replicas.world.aggregator };
        other
            .wait_for("the other replica to lead", TAKE_OVER, "/readyz", |ready| {
                ready["leader"]["leading"] == true
            })
            .await?;
        leader.signal("CONT")?;
        leader
            .wait_for("it to follow", LIMIT, "/readyz", |ready| ready["leader"]["leading"] == false)
            .await?;
        let now = replicas.notification_versions().await?;
        ensure!(now == before, "the first tenants were notified again: {now:?}");
    }
    println!("{TIMES} freezes; the slowest new block came {slowest:?} after a freeze");
    for replica in [&replicas.world.aggregator, &replicas.second] {
        replicas.has_only_blocks(replica).await?;
        logs_only_blocks(replica)?;
    }
    each_is_notified_once(&replicas, false).await?;
    only_leaders_write(&replicas)
}

/// Each block has a Notification, and the audit log has at most one write to each. If leaders `were_killed`, the log may lack the
/// success of a write, because its writer was killed before the answer. Then the Notification itself counts.
async fn each_is_notified_once(replicas: &Replicas, were_killed: bool) -> anyhow::Result<()> {
    // The leader writes the gateway first, and the API server logs a write after its answer.
    let writes = until("every tenant to be notified", LIMIT, async || {
        let writes = audit::writes(&replicas.world.cluster.audit_of_aggregator()?)?;
        let is_missing = |(namespace, _): &&(String, String)| writes_to(&writes, namespace).is_empty();
        for (namespace, _) in replicas.pods.iter().filter(is_missing) {
            let there = replicas.world.notifications(namespace).list(&ListParams::default()).await?.items;
            ensure!(
                were_killed && there.len() == 1,
                "{namespace} was not notified: {} Notifications",
                there.len()
            );
        }
        Ok(writes)
    })
    .await?;
    for (namespace, _) in &replicas.pods {
        let found = writes_to(&writes, namespace);
        ensure!(found.len() <= 1, "{found:?}");
    }
    Ok(())
}

/// The writes to the Notifications of a tenant.
fn writes_to<'a>(writes: &'a [audit::Write], namespace: &str) -> Vec<&'a audit::Write> {
    let of_tenant = |write: &&audit::Write| {
        write.resource == "notifications" && write.object.starts_with(&format!("{namespace}/"))
    };
    writes.iter().filter(of_tenant).collect()
}

/// Fails if the audit log has a write to another object than the Lease by a replica without the Lease.
fn only_leaders_write(replicas: &Replicas) -> anyhow::Result<()> {
    let writes = audit::writes(&replicas.world.cluster.audit_of_aggregator()?)?;
    let mut holders: Vec<_> = writes.iter().filter_map(|write| write.holder.as_ref()).collect();
    holders.dedup();
    let wrong = audit::without_lease(&writes, LEASE);
    println!("{} terms, {} writes, {} of them without the Lease", holders.len(), writes.len(), wrong.len());
    ensure!(wrong.is_empty(), "{wrong:#?}");
    ensure!(holders.len() == TIMES + 1, "{holders:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_through_a_follower_is_carried_out_after_the_leader_is_killed() -> anyhow::Result<()> {
    let replicas = Replicas::start(0).await?;
    replicas.world.allow("alice").await?;
    let is_first = replicas.until_one_leads().await?;
    let (leader, follower) = if is_first {
        (&replicas.world.aggregator, &replicas.second)
    } else {
        (&replicas.second, &replicas.world.aggregator)
    };
    let name_of = async |namespace: &str| -> anyhow::Result<String> {
        let path = format!("/api/v1/incidents?namespace={namespace}");
        let found = follower.wait_for("the incident", LIMIT, &path, |body| body["total"] == 1).await?;
        Ok(found["incidents"][0]["name"].as_str().context("no name")?.to_owned())
    };
    let (first, second) = (name_of("ns-00").await?, name_of("ns-01").await?);
    let body = json!({"reason": "a false alarm"});
    let ask = async |incident: &str, token: Option<&str>| {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<(&str, &str)> =
            bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
        follower.send("POST", &format!("/api/v1/incidents/{incident}/release"), &headers, Some(&body)).await
    };
    let alice = Some(replicas.world.cluster.token_of_alice());
    ensure!(ask(&first, None).await?.status == 401);
    let refused = ask(&first, Some(replicas.world.cluster.token_of_bob())).await?;
    ensure!(refused.status == 403, "{:?}", refused.json());
    let released = ask(&first, alice).await?;
    ensure!(released.status == 200, "{} {}", released.status, released.json());
    let all = replicas.hosts(FIRST);
    let until_released = async |count: usize| {
        let released = replicas.hosts(count);
        until("the gateway to be open to the released Apps", LIMIT, async || {
            let closed = replicas.world.closed().await?;
            ensure!(closed == all.difference(&released).cloned().collect(), "{closed:?}");
            Ok(())
        })
        .await
    };
    until_released(1).await?;

    // A release that comes while no replica leads is persisted, and the next leader carries it out.
    leader.kill()?;
    let answer = ask(&second, alice).await?;
    ensure!([200, 202].contains(&answer.status), "{} {}", answer.status, answer.json());
    println!("while no replica leads: {}", answer.status);
    until_released(2).await?;
    follower
        .wait_for("the follower to lead", TAKE_OVER, "/readyz", |ready| ready["leader"]["leading"] == true)
        .await?;
    // The agents still list the Apps.
    let rounds = |ready: &Value| ready["rounds"].as_u64().unwrap_or(0);
    let before = rounds(&follower.get("/readyz").await?.1);
    follower.wait_for("five more rounds", LIMIT, "/readyz", |ready| rounds(ready) >= before + 5).await?;
    until_released(2).await?;
    for namespace in ["ns-00", "ns-01"] {
        let (_, log) = follower.get(&format!("/api/v1/decisions?namespace={namespace}")).await?;
        let log = log["decisions"].as_array().context("no decisions")?;
        let kinds: Vec<_> = log.iter().map(|decision| &decision["decision"]).collect();
        ensure!(kinds == ["released", "blocked"], "{log:?}");
        ensure!(log[0]["actor"] == "alice" && log[0].to_string().contains("a false alarm"), "{log:?}");
    }
    // The audit log has no Notification of another block in between.
    let writes = audit::writes(&replicas.world.cluster.audit_of_aggregator()?)?;
    let count = |namespace: &str| {
        writes.iter().filter(|write| write.object.starts_with(&format!("{namespace}/"))).count()
    };
    ensure!(count("ns-00") == 2 && count("ns-01") == 2, "{} and {}", count("ns-00"), count("ns-01"));
    Ok(())
}
