//! Two replicas, one writer: whatever happens to the leader, nobody is released or told twice, and no late write counts.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kube::ResourceExt;
use kube::api::ListParams;
use procscan_e2e::aggregator::{self, Aggregator};
use procscan_e2e::until;
use serde_json::{Value, json};

use crate::world::{Beginning, LIMIT, World, offender};

/// How often the leader is killed, and how often it is frozen.
const TIMES: usize = 20;
/// How soon another has to write.
const TAKE_OVER: Duration = Duration::from_secs(20);
/// Those who are blocked from the beginning.
const FIRST: usize = 3;

struct Replicas {
    world: World,
    second: Aggregator,
    pods: Vec<(String, String)>,
}

impl Replicas {
    async fn start() -> anyhow::Result<Self> {
        // Everybody offends within minutes, by the same rule: what brakes do is not the question here.
        let brake = json!({"max_new_apps": 1000, "max_apps_per_node": 1000, "max_namespaces_per_rule": 1000});
        let more = json!({"brake": brake});
        let world = World::begin(Beginning { config: more, ..Beginning::default() }).await?;
        let second = Self::spawn(&world, true)?;
        let mut pods = Vec::new();
        for n in 0..FIRST + TIMES {
            let namespace = format!("ns-{n:02}");
            world.stage.namespace(&namespace).await?;
            world.stage.pod(&namespace, "web-0", "sim-0000", &[("app", "web")]).await?;
            world.stage.service(&namespace, "web-x7k2", &[("app", "web")]).await?;
            pods.push((namespace, "web-0".to_owned()));
        }
        let replicas = Self { world, second, pods };
        replicas.accuse(FIRST);
        replicas.until_closed(FIRST, LIMIT).await?;
        for n in 0..FIRST {
            replicas.world.until_told(&replicas.pods[n].0, "told", |_| true).await?;
        }
        Ok(replicas)
    }

    /// Another replica. Each has an identity of its own in the audit log.
    fn spawn(world: &World, is_second: bool) -> anyhow::Result<Aggregator> {
        let cluster = &world.cluster;
        let kubeconfig =
            if is_second { cluster.kubeconfig_second_replica() } else { cluster.kubeconfig_aggregator() };
        let brake = json!({"max_new_apps": 1000, "max_apps_per_node": 1000, "max_namespaces_per_rule": 1000});
        let config = crate::world::config(&json!({"brake": brake})).to_string();
        Aggregator::spawn(&config, &aggregator::Options::kubeconfig(kubeconfig))
    }

    /// From now on the first so many offend, and go on offending.
    fn accuse(&self, count: usize) {
        let offenders = self.pods[..count].iter().map(|(namespace, pod)| offender(namespace, pod));
        self.world.fleet.set_offenders(0, offenders.collect());
    }

    /// Waits until the gateway is closed to the first so many, and to nobody else, and is never opened to anybody meanwhile.
    async fn until_closed(&self, count: usize, limit: Duration) -> anyhow::Result<()> {
        let expected = self.hosts(count);
        let before = self.hosts(count.saturating_sub(1));
        let is_started = count > FIRST;
        until(&format!("{count} closed hosts"), limit, async || {
            let closed = self.world.closed().await?;
            // Nothing that comes later makes this good.
            assert!(!is_started || closed.is_superset(&before), "opened to some: {closed:?}");
            ensure!(closed == expected, "closed to {} hosts", closed.len());
            Ok(())
        })
        .await
    }

    fn hosts(&self, count: usize) -> BTreeSet<String> {
        self.pods[..count].iter().map(|(ns, _)| format!("web-x7k2.{ns}.svc.cluster.local")).collect()
    }

    /// Whether each replica leads, the first one first.
    async fn until_one_leads(&self) -> anyhow::Result<bool> {
        until("one of them to lead", TAKE_OVER, async || {
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

    /// The versions of what the first tenants were told.
    async fn told(&self) -> anyhow::Result<BTreeSet<String>> {
        let mut versions = BTreeSet::new();
        for (namespace, _) in &self.pods[..FIRST] {
            for told in self.world.notifications(namespace).list(&ListParams::default()).await?.items {
                let version = told.resource_version().unwrap_or_default();
                versions.insert(format!("{namespace}/{}@{version}", told.name_any()));
            }
        }
        Ok(versions)
    }

    /// No decision but blocks, in any incident.
    async fn nobody_was_released(&self, replica: &Aggregator) -> anyhow::Result<()> {
        let all = |body: &Value| body["decisions"].as_array().cloned().unwrap_or_default();
        let blocked = |body: &Value| all(body).iter().filter(|d| d["decision"] == "blocked").count();
        // One that has just thawed has to be told first.
        let body = replica
            .wait_for("every block, decided once", LIMIT, "/api/v1/decisions?limit=1000", |body| {
                blocked(body) == FIRST + TIMES
            })
            .await?;
        let decisions = all(&body);
        let others: Vec<&Value> =
            decisions.iter().filter(|decision| decision["decision"] != "blocked").collect();
        ensure!(others.is_empty(), "{others:?}");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_killed_is_followed_by_another_and_nothing_is_forgotten() -> anyhow::Result<()> {
    let mut replicas = Replicas::start().await?;
    let told = replicas.told().await?;
    let mut slowest = Duration::ZERO;
    for time in 0..TIMES {
        let is_first = replicas.until_one_leads().await?;
        let killed = Instant::now();
        if is_first {
            replicas.world.aggregator.kill()?;
        } else {
            replicas.second.kill()?;
        }
        replicas.accuse(FIRST + time + 1);
        let replacement = Replicas::spawn(&replicas.world, !is_first)?;
        if is_first {
            replicas.world.aggregator = replacement;
        } else {
            replicas.second = replacement;
        }
        replicas.until_closed(FIRST + time + 1, TAKE_OVER).await.with_context(|| format!("kill {time}"))?;
        slowest = slowest.max(killed.elapsed());
        ensure!(replicas.told().await? == told, "the first tenants are not told again");
    }
    println!("{TIMES} kills; the slowest new block came {slowest:?} after one");
    replicas.nobody_was_released(&replicas.second).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_frozen_writes_nothing_more_when_it_thaws() -> anyhow::Result<()> {
    let replicas = Replicas::start().await?;
    let told = replicas.told().await?;
    let mut slowest = Duration::ZERO;
    for time in 0..TIMES {
        let is_first = replicas.until_one_leads().await?;
        let leader = if is_first { &replicas.world.aggregator } else { &replicas.second };
        // In the middle of its work: what it was about to write is still to come.
        replicas.accuse(FIRST + time + 1);
        tokio::time::sleep(Duration::from_millis(u64::try_from(time)? * 97 % 1200)).await;
        leader.signal("STOP")?;
        let frozen = Instant::now();
        replicas.until_closed(FIRST + time + 1, TAKE_OVER).await.with_context(|| format!("freeze {time}"))?;
        slowest = slowest.max(frozen.elapsed());
        let other = if is_first { &replicas.second } else { &replicas.world.aggregator };
        other
            .wait_for("the other to lead", TAKE_OVER, "/readyz", |ready| ready["leader"]["leading"] == true)
            .await?;
        leader.signal("CONT")?;
        leader.wait_for("it to know", LIMIT, "/readyz", |ready| ready["leader"]["leading"] == false).await?;
        ensure!(replicas.told().await? == told, "the first tenants are not told again");
    }
    println!("{TIMES} freezes; the slowest new block came {slowest:?} after one");
    replicas.nobody_was_released(&replicas.second).await?;
    only_leaders_write(&replicas.world)
}

/// By the API server's own log: nothing but the Lease is written by anybody but the last who has written the Lease.
fn only_leaders_write(world: &World) -> anyhow::Result<()> {
    let mut events: Vec<Value> = world.cluster.audit_of_aggregator()?;
    events.retain(|event| {
        let is_write = ["create", "update", "patch", "delete"].iter().any(|verb| event["verb"] == *verb);
        let code = event["responseStatus"]["code"].as_i64().unwrap_or(0);
        is_write && (200..300).contains(&code)
    });
    events.sort_by_key(|event| event["stageTimestamp"].as_str().unwrap_or_default().to_owned());
    let mut leader: Option<&str> = None;
    let (mut terms, mut writes) = (0, 0);
    for event in &events {
        let uid = event["user"]["uid"].as_str().context("no UID")?;
        match event["objectRef"]["resource"].as_str() {
            Some("leases") => {
                terms += usize::from(leader != Some(uid));
                leader = Some(uid);
            }
            // Questions, not writes.
            Some("tokenreviews" | "subjectaccessreviews") => {}
            _ => {
                writes += 1;
                ensure!(leader == Some(uid), "a write of {uid}, while {leader:?} leads: {event}");
            }
        }
    }
    println!("{terms} terms, {writes} writes, each by its leader");
    ensure!(terms > TIMES && writes > TIMES, "{terms} terms, {writes} writes");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_through_a_follower_outlives_its_leader() -> anyhow::Result<()> {
    let replicas = Replicas::start().await?;
    let kubectl = async |args: &[&str]| -> anyhow::Result<()> {
        let output = replicas.world.cluster.kubectl(args).await?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    kubectl(&[
        "create",
        "rolebinding",
        "-n",
        "kube-system",
        "alice",
        "--clusterrole=procscan-operator",
        "--user=alice",
    ])
    .await?;
    let is_first = replicas.until_one_leads().await?;
    let (leader, follower) = if is_first {
        (&replicas.world.aggregator, &replicas.second)
    } else {
        (&replicas.second, &replicas.world.aggregator)
    };
    let incidents = follower
        .wait_for("the incidents on the follower", LIMIT, "/api/v1/incidents?namespace=ns-00", |body| {
            body["total"] == 1
        })
        .await?;
    let name = incidents["incidents"][0]["name"].as_str().context("no name")?.to_owned();
    let path = format!("/api/v1/incidents/{name}/release");
    let body = json!({"reason": "a false alarm"});
    let ask = async |token: Option<&str>| {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<(&str, &str)> =
            bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
        follower.send("POST", &path, &headers, Some(&body)).await
    };
    ensure!(ask(None).await?.status == 401);
    let refused = ask(Some(replicas.world.cluster.token_of_bob())).await?;
    ensure!(refused.status == 403, "{:?}", refused.json());
    let released = ask(Some(replicas.world.cluster.token_of_alice())).await?;
    ensure!(released.status == 200, "{} {}", released.status, released.json());

    let open: BTreeSet<String> = replicas.hosts(1);
    let expected: BTreeSet<String> = replicas.hosts(FIRST).difference(&open).cloned().collect();
    let is_open = async || {
        let closed = replicas.world.closed().await?;
        ensure!(closed == expected, "{closed:?}");
        Ok(())
    };
    until("the gateway to be open to the released one", LIMIT, is_open).await?;
    leader.kill()?;
    follower
        .wait_for("the follower to lead", TAKE_OVER, "/readyz", |ready| ready["leader"]["leading"] == true)
        .await?;
    // The agents go on accusing.
    let rounds = |ready: &Value| ready["rounds"].as_u64().unwrap_or(0);
    let before = rounds(&follower.get("/readyz").await?.1);
    follower.wait_for("five more rounds", LIMIT, "/readyz", |ready| rounds(ready) >= before + 5).await?;
    is_open().await?;
    let (_, log) = follower.get("/api/v1/decisions?namespace=ns-00").await?;
    let released = log["decisions"].as_array().into_iter().flatten().find(|d| d["decision"] == "released");
    let released = released.context("no such decision")?;
    ensure!(released["actor"] == "alice" && released.to_string().contains("a false alarm"), "{released}");
    Ok(())
}
