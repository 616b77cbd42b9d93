//! What operators do, by kubectl and by the HTTP API: approve, release, exempt, pause.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt;
use kube::api::ListParams;
use procscan_agent::record::Record;
use procscan_e2e::until;
use procscan_e2e::wait::throughout;
use serde_json::{Value, json};

use crate::world::{Beginning, LIMIT, OWN, ROUNDS, World, decisions, delete, offender};

/// A rule that matches every process.
const BAD_RULE: &str = ".*";

/// How many tenants one rule may hit, as the brake is by default.
const BRAKE: usize = 10;

fn by_bad_rule(namespace: &str, pod: &str) -> Record {
    Record { process: "node".to_owned(), regex: BAD_RULE.to_owned(), ..offender(namespace, pod) }
}

/// The names of the Incidents in a state, with the tenants' namespaces.
async fn in_state(world: &World, state: &str) -> anyhow::Result<Vec<(String, String)>> {
    let all = world.incidents().list(&ListParams::default()).await?.items;
    let is_it = all.iter().filter(|incident| incident.data["status"]["state"] == state);
    let namespace = |data: &Value| data["spec"]["app"]["namespace"].as_str().map(str::to_owned);
    is_it.map(|it| Ok((it.name_any(), namespace(&it.data).context("no namespace")?))).collect()
}

async fn until_blocked_and_held(world: &World, blocked: usize, held: usize) -> anyhow::Result<()> {
    let what = format!("{blocked} blocked and {held} held");
    let all = until(&what, LIMIT, async || {
        let now = (in_state(world, "Blocked").await?.len(), in_state(world, "Held").await?.len());
        ensure!(now == (blocked, held), "{now:?}");
        let closed = world.closed().await?;
        ensure!(closed.len() == blocked, "closed to {} hosts", closed.len());
        Ok(())
    });
    all.await.with_context(|| world.last_log_entries())
}

async fn patch(world: &World, kind: &str, name: &str, patch: &Value) -> anyhow::Result<()> {
    world.kubectl(&["patch", kind, name, "-n", OWN, "--type=merge", "-p", &patch.to_string()]).await?;
    Ok(())
}

/// As the operator asks through the API.
async fn post(world: &World, method: &str, path: &str, body: &Value) -> anyhow::Result<(u16, Value)> {
    let bearer = format!("Bearer {}", world.cluster.token_of_alice());
    let answer = world.aggregator.send(method, path, &[("authorization", &bearer)], Some(body)).await?;
    Ok((answer.status, answer.json()))
}

/// The number of nodes, each with a tenant that the bad rule accuses.
const NODES: usize = 40;

/// Creates a tenant for each node. Returns their namespaces.
async fn tenants_of_nodes(world: &World) -> anyhow::Result<Vec<String>> {
    let tenants = (0..NODES).map(async |n| {
        let (namespace, node) = (format!("ns-{n:02}"), format!("sim-{n:04}"));
        world.stage.namespace(&namespace).await?;
        world.stage.pod(&namespace, "web-0", &node, &[("app", "web")]).await?;
        world.stage.service(&namespace, "web", &[("app", "web")]).await?;
        world.stage.running(&namespace, "app=web", 1, LIMIT).await?;
        anyhow::Ok(namespace)
    });
    try_join_all(tenants).await
}

/// The brake holds all Apps but the first ten, and one alert says so.
async fn the_brake_holds(world: &World) -> anyhow::Result<()> {
    until_blocked_and_held(world, BRAKE, NODES - BRAKE).await?;
    throughout("no more are blocked", ROUNDS, async || {
        ensure!(world.closed().await?.len() == BRAKE);
        anyhow::Ok(())
    })
    .await?;
    let logs = world.aggregator.logs();
    let alerts: Vec<_> = logs.iter().filter(|entry| entry["alert"] == "brake").collect();
    ensure!(alerts.len() == 1 && alerts[0]["level"] == "ERROR", "{alerts:#?}");
    ensure!(alerts[0].to_string().contains("the rule `.*` hits more than 10 tenants"), "{alerts:#?}");
    println!("{}", world.kubectl(&["get", "incidents", "-n", OWN]).await?);
    println!("{}", world.kubectl(&["get", "incidents", "-n", OWN, "-o", "wide"]).await?);
    Ok(())
}

/// Approves an Incident through the API. Returns the status and the body of the answer.
async fn approve(world: &World, incident: &str) -> anyhow::Result<(u16, Value)> {
    post(world, "POST", &format!("/api/v1/incidents/{incident}/approve"), &json!({"reason": "this too"}))
        .await
}

/// An operator approves three Apps: by kubectl, with a name and without one, and through the API. Returns the hosts that
/// are closed then.
async fn three_are_approved(world: &World, held: [&(String, String); 3]) -> anyhow::Result<BTreeSet<String>> {
    let [(first, of_first), (second, of_second), (third, of_third)] = held;
    let approval = json!({"spec": {"approve": {"by": "alice", "reason": "a miner indeed"}}});
    patch(world, "incident", first, &approval).await?;
    until_blocked_and_held(world, BRAKE + 1, NODES - BRAKE - 1).await?;
    patch(world, "incident", second, &json!({"spec": {"approve": {}}})).await?;
    until_blocked_and_held(world, BRAKE + 2, NODES - BRAKE - 2).await?;
    let (status, answer) = approve(world, third).await?;
    ensure!(status == 200, "{status} {answer}");
    until_blocked_and_held(world, BRAKE + 3, NODES - BRAKE - 3).await?;
    let closed = world.closed().await?;
    for (namespace, actor) in
        [(of_first, "alice"), (of_second, "unknown (kubectl-patch)"), (of_third, "alice")]
    {
        ensure!(closed.contains(&format!("web.{namespace}.svc.cluster.local")), "{namespace}: {closed:?}");
        let done = world
            .until_incident(namespace, "without its command", |incident| {
                incident["spec"]["approve"].is_null()
            })
            .await?;
        let decisions = decisions(&done);
        ensure!(decisions.contains(&("approved".to_owned(), actor.to_owned())), "{decisions:?}");
        world.until_notified(namespace, "there", |message| message.labels()["isRead"] == "false").await?;
    }
    Ok(closed)
}

/// The Events of the Incident that was approved first, and of all that are held.
async fn events_say_what_was_decided(world: &World, approved: &str) -> anyhow::Result<()> {
    let described = world.kubectl(&["describe", "incident", approved, "-n", OWN]).await?;
    let events = described.rsplit("Events:").next().context("no Events")?;
    println!("Events:{events}");
    for text in ["Warning  Held", "Normal   Approved", "alice: ", "a miner indeed"] {
        ensure!(events.contains(text), "{text}: {events}");
    }
    let events = world.stage.api::<Event>(OWN).list(&ListParams::default()).await?.items;
    let held = events.iter().filter(|event| event.reason.as_deref() == Some("Held")).count();
    ensure!(held == NODES - BRAKE, "{held} Events are about what is held");
    Ok(())
}

/// A restart neither approves nor releases an App, and decides nothing again.
async fn a_restart_changes_nothing(world: &mut World, closed: &BTreeSet<String>) -> anyhow::Result<()> {
    world.restart(&json!({}))?;
    world
        .aggregator
        .wait_for("the first round", LIMIT, "/readyz", |ready| ready["leader"]["leading"] == true)
        .await?;
    throughout("held as before", ROUNDS, async || {
        let now = in_state(world, "Held").await?.len();
        ensure!(now == NODES - BRAKE - 3, "{now} held");
        ensure!(world.closed().await? == *closed, "another set is closed");
        anyhow::Ok(())
    })
    .await?;
    let logs = world.aggregator.logs();
    let decided = logs.iter().find(|entry| entry.get("decision").is_some_and(|kind| kind != "disputed"));
    ensure!(decided.is_none(), "the restarted replica has decided again: {decided:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_rule_blocks_ten_and_each_further_one_only_by_approval() -> anyhow::Result<()> {
    let mut world = World::begin(Beginning { nodes: NODES, ..Beginning::default() }).await?;
    world.allow("alice").await?;
    let tenants = tenants_of_nodes(&world).await?;
    for (node, namespace) in tenants.iter().enumerate() {
        world.fleet.set_offenders(node, vec![by_bad_rule(namespace, "web-0")]);
    }
    the_brake_holds(&world).await?;
    let held = in_state(&world, "Held").await?;
    let [first, second, third, ..] = &held[..] else { anyhow::bail!("{held:?}") };
    let closed = three_are_approved(&world, [first, second, third]).await?;

    // An approval of an App that is blocked already is refused, or changes nothing.
    let (status, answer) = approve(&world, &third.0).await?;
    ensure!((400..500).contains(&status) || status == 200, "{status} {answer}");
    println!("approved once more: {status} {answer}");

    events_say_what_was_decided(&world, &first.0).await?;
    a_restart_changes_nothing(&mut world, &closed).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exemption_releases_at_once_and_counts_as_long_as_it_is_there() -> anyhow::Result<()> {
    let world = World::start().await?;
    world.allow("alice").await?;
    let a = world.tenant("ns-a", "web", "sim-0000").await?;
    let b = world.tenant("ns-b", "web", "sim-0001").await?;
    world.accuse(0, &[("ns-a", &a)]);
    world.accuse(1, &[("ns-b", &b)]);
    world.until_closed(&["web-x7k2.ns-a", "web-x7k2.ns-b"]).await?;
    let exemption = |name: &str, spec: &Value| {
        json!({
            "apiVersion": "procscan.sealos.io/v1alpha1", "kind": "Exemption",
            "metadata": {"name": name, "namespace": OWN}, "spec": spec,
        })
        .to_string()
    };
    let spec =
        json!({"namespace": {"exact": "ns-a"}, "process": {"regex": "^xm"}, "reason": "a course on mining"});
    world.cluster.apply(&exemption("course", &spec)).await?;
    world.until_closed(&["web-x7k2.ns-b"]).await?;
    world.until_notified("ns-a", "read", |message| message.labels()["isRead"] == "true").await?;
    println!("{}", world.kubectl(&["get", "exemptions", "-n", OWN]).await?);
    world.stays_closed(&["web-x7k2.ns-b"], ROUNDS).await?;
    let released = world.incident("ns-a").await?.data["status"]["decisions"][1].clone();
    ensure!(released["decision"] == "released", "{released}");
    ensure!(released["reason"].to_string().contains("a course on mining"), "{released}");
    println!("{released}");
    delete(&world.of_state("Exemption"), "course").await?;
    world.until_closed(&["web-x7k2.ns-a", "web-x7k2.ns-b"]).await?;

    // An operator adds an exemption through the API, and removes it.
    let body = json!({"id": "by-api", "namespace": {"exact": "ns-b"}, "reason": "asked for by its owner"});
    let (status, answer) = post(&world, "POST", "/api/v1/exemptions", &body).await?;
    ensure!(status == 201, "{status} {answer}");
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    let persisted = world.of_state("Exemption").get("by-api").await?;
    ensure!(persisted.data["spec"]["by"] == "alice", "{:?}", persisted.data);
    let bearer = format!("Bearer {}", world.cluster.token_of_alice());
    let headers = [("authorization", bearer.as_str())];
    let gone = world.aggregator.send("DELETE", "/api/v1/exemptions/by-api", &headers, None).await?;
    ensure!(gone.status == 204, "{gone:?}");
    world.until_closed(&["web-x7k2.ns-a", "web-x7k2.ns-b"]).await?;

    // An exemption that is over covers nothing.
    let spec = json!({"namespace": {"exact": "ns-a"}, "reason": "it was", "until": "2020-01-01T00:00:00Z"});
    world.cluster.apply(&exemption("over", &spec)).await?;
    world.stays_closed(&["web-x7k2.ns-a", "web-x7k2.ns-b"], ROUNDS).await
}

/// The API server refuses the mistakes that the CRD's schema covers. The aggregator names the other mistakes.
#[tokio::test(flavor = "multi_thread")]
async fn an_exemption_that_makes_no_sense_is_refused_or_named_and_covers_nothing() -> anyhow::Result<()> {
    let world = World::start().await?;
    let pod = world.tenant("ns-a", "web", "sim-0000").await?;
    world.accuse(0, &[("ns-a", &pod)]);
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    let apply = async |name: &str, spec: Value| {
        let exemption = json!({
            "apiVersion": "procscan.sealos.io/v1alpha1", "kind": "Exemption",
            "metadata": {"name": name, "namespace": OWN}, "spec": spec,
        });
        world.cluster.apply(&exemption.to_string()).await.map_err(|error| error.to_string())
    };
    for (spec, text) in [
        (json!({"reason": "everybody"}), "at least one of namespace, app, process and rule"),
        (json!({"namespace": {"exact": "ns-a"}}), "spec.reason"),
        (json!({"namespace": {"exact": "ns-a"}, "reason": ""}), "spec.reason"),
        (
            json!({"namespace": {"exact": "ns-a"}, "reason": "  "}),
            "a reason that the next person understands",
        ),
        (json!({"namespace": {"exact": "ns-a", "regex": "x"}, "reason": "both"}), "either exact or regex"),
        (json!({"namespace": {}, "reason": "neither"}), "either exact or regex"),
    ] {
        let refused = apply("wrong", spec.clone()).await;
        let refused = refused.err().with_context(|| format!("{spec} was accepted"))?;
        ensure!(refused.contains(text), "{spec}: {refused}");
    }
    let bad = json!({"namespace": {"regex": "ns-(a"}, "reason": "a bracket is missing"});
    apply("bracket", bad).await.map_err(anyhow::Error::msg)?;
    world.until_logged(&["Exemption", "bracket"]).await?;
    world
        .aggregator
        .wait_for("its name", LIMIT, "/readyz", |ready| {
            ready["state"]["ok"] == false && ready["state"]["error"].to_string().contains("bracket")
        })
        .await?;
    world.stays_closed(&["web-x7k2.ns-a"], ROUNDS).await?;
    delete(&world.of_state("Exemption"), "bracket").await?;
    world
        .aggregator
        .wait_for("no more of it", LIMIT, "/readyz", |ready| ready["state"]["ok"] == true)
        .await?;
    // There is one Enforcement, with one of three modes.
    for (name, spec) in [("other", json!({"mode": "paused"})), ("procscan", json!({"mode": "off"}))] {
        let enforcement = json!({
            "apiVersion": "procscan.sealos.io/v1alpha1", "kind": "Enforcement",
            "metadata": {"name": name, "namespace": OWN}, "spec": spec,
        });
        ensure!(world.cluster.apply(&enforcement.to_string()).await.is_err(), "{enforcement} was accepted");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn while_paused_only_what_operators_do_takes_effect() -> anyhow::Result<()> {
    let world = World::start().await?;
    world.allow("alice").await?;
    let a = world.tenant("ns-a", "web", "sim-0000").await?;
    let c = world.tenant("ns-c", "web", "sim-0002").await?;
    world.stage.namespace("ns-b").await?;
    world.stage.pod("ns-b", "web-0", "sim-0001", &[("app", "web")]).await?;
    world.stage.service("ns-b", "web-x7k2", &[("app", "web")]).await?;
    world.accuse(0, &[("ns-a", &a)]);
    world.accuse(1, &[("ns-b", "web-0")]);
    world.until_closed(&["web-x7k2.ns-a", "web-x7k2.ns-b"]).await?;

    let paused = json!({
        "apiVersion": "procscan.sealos.io/v1alpha1", "kind": "Enforcement",
        "metadata": {"name": "procscan", "namespace": OWN},
        "spec": {"mode": "paused", "reason": "a release is under way", "by": "alice"},
    });
    world.cluster.apply(&paused.to_string()).await?;
    let mode = |mode: &'static str| move |body: &Value| body["mode"] == mode;
    world.aggregator.wait_for("paused", LIMIT, "/api/v1/enforcement", mode("paused")).await?;
    println!("{}", world.kubectl(&["get", "enforcements", "-n", OWN]).await?);
    // No new App is blocked, and no App is released although its Pod is gone.
    world.accuse(2, &[("ns-c", &c)]);
    world.accuse(1, &[]);
    delete(&world.stage.api::<Pod>("ns-b"), "web-0").await?;
    world.stays_closed(&["web-x7k2.ns-a", "web-x7k2.ns-b"], ROUNDS).await?;

    let name = world.incident("ns-a").await?.name_any();
    patch(&world, "incident", &name, &json!({"spec": {"release": {"by": "alice", "reason": "by hand"}}}))
        .await?;
    world.until_closed(&["web-x7k2.ns-b"]).await?;
    let done = world
        .until_incident("ns-a", "without its command", |incident| incident["spec"]["release"].is_null())
        .await?;
    ensure!(
        decisions(&done).contains(&("released".to_owned(), "alice".to_owned())),
        "{:?}",
        decisions(&done)
    );

    // By the API, an operator goes back to the mode of the configuration.
    let body = json!({"mode": null, "reason": "done"});
    let (status, answer) = post(&world, "PUT", "/api/v1/enforcement", &body).await?;
    ensure!(status == 200, "{status} {answer}");
    world.aggregator.wait_for("enforcing", LIMIT, "/api/v1/enforcement", mode("enforce")).await?;
    world.until_closed(&["web-x7k2.ns-c"]).await?;
    // The agents go on listing the process, which does not count against the App that the operator released.
    world.stays_closed(&["web-x7k2.ns-c"], ROUNDS).await?;
    let of_a = world.incident("ns-a").await?;
    ensure!(of_a.data["status"]["state"] == "Watched", "{:?}", of_a.data);

    delete(&world.of_state("Enforcement"), "procscan").await?;
    world
        .aggregator
        .wait_for("the configuration's", LIMIT, "/api/v1/enforcement", |body| {
            body["mode"] == "enforce" && body["operators"].is_null() && body["by"].is_null()
        })
        .await?;
    Ok(())
}
