mod by_hand;
mod kinds;
mod mails;
mod messages;
mod notified;
mod running;
mod taking_over;
mod third_kind;
mod world;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use hyper::{Method, Request, Response};
use jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use procscan_core::decision::Mode;
use procscan_core::names::App;
use procscan_core::plan::{Block, Exposure};
use procscan_core::policy::{ClusterFacts, Incidents};
use procscan_core::resources::{notification, wasm_plugin};
use serde_json::Value;

use super::*;
use crate::clock::Clock;
use crate::config::Config;
use crate::output::difference::Action;

/// The hosts that the `spec` of a `WasmPlugin` closes, with the sentinel.
fn hosts(spec: &Value) -> BTreeSet<&str> {
    wasm_plugin::KIND.blocking().unwrap().closes(spec)
}

/// An API server that keeps `WasmPlugins` in memory.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<Plugins>>);

#[derive(Default)]
struct Plugins {
    objects: BTreeMap<String, Value>,
    /// Writes of this one are refused.
    refused: Option<String>,
    /// What was closed after each write, in all of them together.
    closed: Vec<BTreeSet<String>>,
}

impl Server {
    fn output(&self) -> ClusterOutput {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, std::io::Error>(server.answer(request).await) }
        });
        ClusterOutput {
            permit: WritePermit::always(),
            ..ClusterOutput::new(Cluster::with_client(Client::new(service, "x")))
        }
    }

    /// The `WasmPlugins`, with their versions.
    fn plugins(&self) -> BTreeMap<String, Value> {
        let objects = self.0.lock().unwrap().objects.clone();
        objects.into_iter().filter(|(_, object)| object["kind"] == wasm_plugin::KIND.name()).collect()
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let mut plugins = self.0.lock().unwrap();
        if head.method == Method::GET {
            let items: Vec<&Value> = plugins.objects.values().collect();
            let list = json!({
                "apiVersion": wasm_plugin::KIND.api_version(), "kind": "WasmPluginList",
                "metadata": {"resourceVersion": "1"}, "items": items,
            });
            return answer(200, &list);
        }
        let mut object: Value = serde_json::from_slice(&body).unwrap();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        if plugins.refused.as_ref() == Some(&name) {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 403,
                "reason": "Forbidden", "message": "not today",
            });
            return answer(403, &status);
        }
        let version = plugins.closed.len() + 2;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        plugins.objects.insert(name, object.clone());
        let closed = plugins.closed();
        plugins.closed.push(closed);
        answer(if head.method == Method::POST { 201 } else { 200 }, &object)
    }
}

impl Plugins {
    fn closed(&self) -> BTreeSet<String> {
        let hosts = self.objects.values().flat_map(|object| hosts(&object["spec"]));
        hosts.filter(|host| *host != wasm_plugin::SENTINEL).map(str::to_owned).collect()
    }
}

fn answer(status: u16, body: &Value) -> Response<Body> {
    Response::builder().status(status).body(Body::from(serde_json::to_vec(body).unwrap())).unwrap()
}

fn plan(apps: usize) -> Plan {
    let mut plan = Plan::empty(Mode::Enforce, Timestamp::UNIX_EPOCH);
    plan.blocks = (0..apps)
        .map(|n| Block {
            app: App::new("ns-a", "app", format!("web-{n:03}")),
            since: Timestamp::UNIX_EPOCH,
            grounds: Box::default(),
            left: Box::default(),
            exposure: Arc::new(Exposure::plain([format!("web-{n:03}.ns-a.svc").into()])),
            reason: "".into(),
        })
        .map(Arc::new)
        .collect();
    plan
}

#[tokio::test]
async fn with_one_shard_more_no_app_is_opened_in_between_not_even_when_it_can_not_be_made() {
    let mut settings = Config::default().settings();
    settings.max_bytes = 8 * 1024;
    let server = Server::default();
    let mut output = server.output();
    let mut write = async |apps| {
        let outcome = output.write(&plan(apps), &settings, &WritePermit::always(), || true).await;
        outcome.problems.into_iter().filter(|problem| problem.contains("WasmPlugin")).collect::<Vec<_>>()
    };
    assert_eq!(write(150).await, Vec::<String>::new());
    let (shards, closed) = {
        let plugins = server.0.lock().unwrap();
        (plugins.objects.len(), plugins.closed())
    };
    assert_eq!(closed.len(), 150);
    let apps = 450;
    let more = resources::render(&plan(apps), &settings, resources::Existing::default());
    let many = more.iter().filter(|object| object.kind == wasm_plugin::KIND).count();
    assert!(many > shards, "{many} after {shards}");

    // The first new shard can't be made.
    let refused = format!("procscan-violations-{shards}");
    server.0.lock().unwrap().refused = Some(refused.clone());
    let problems = write(apps).await;
    assert!(problems.iter().any(|problem| problem.contains("not today")), "{problems:?}");
    assert!(
        problems.iter().any(|problem| problem.contains("until another object closes them")),
        "{problems:?}"
    );
    // Whatever has its place is closed all the same.
    assert!(server.0.lock().unwrap().closed().len() > closed.len() * 2);
    server.0.lock().unwrap().refused = None;
    assert_eq!(write(apps).await, Vec::<String>::new());
    let plugins = server.0.lock().unwrap();
    assert_eq!(plugins.closed().len(), apps);
    let first = plugins.closed.iter().position(|now| *now == closed).unwrap();
    for now in &plugins.closed[first..] {
        assert!(closed.is_subset(now), "opened: {:?}", closed.difference(now));
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_meets_the_mark_of_a_later_one_writes_nothing_more() {
    let settings = Config::default().settings();
    let server = Server::default();
    let mut output = server.output();
    let permit = WritePermit::of_term(3, "a");
    output.write(&plan(1), &settings, &permit, || true).await;
    let mark = |mark: &str| {
        for object in server.0.lock().unwrap().objects.values_mut() {
            object["metadata"]["annotations"] = json!({WRITER: mark});
        }
    };
    // The mark of an earlier leader, and its own.
    for earlier in ["b in term 2", "a in term 3"] {
        mark(earlier);
        assert!(output.write(&plan(2), &settings, &permit, || true).await.problems.is_empty());
        assert!(permit.holds());
    }
    let writes = server.0.lock().unwrap().closed.len();
    for later in ["b in term 4", "b in term 3"] {
        mark(later);
        let permit = WritePermit::of_term(3, "a");
        output.write(&plan(0), &settings, &permit, || true).await;
        assert!(!permit.holds(), "{later}");
        assert_eq!(server.0.lock().unwrap().closed.len(), writes);
    }
    // A replica that begins to lead after the Lease was deleted ranks after the marks that are there, once it is
    // certain that it leads.
    mark("b in term 4");
    let permit = WritePermit::of_term(1, "c");
    output.take_over(&settings, &permit, false).await.unwrap();
    assert!(permit.holds() && permit.mark() == "c in term 5");
    assert!(!permit.is_later("b in term 4") && permit.is_later("d in term 6"));
}

/// A plan with Apps that two Ingresses lead to each; one of their two Services is reached in another way too.
fn routed(apps: usize) -> Plan {
    let mut plan = plan(apps);
    for block in &mut plan.blocks {
        let block = Arc::make_mut(block);
        let name = &block.app.name;
        block.exposure = Arc::new(Exposure {
            services: vec![format!("{name}-a.ns-a.svc").into(), format!("{name}-b.ns-a.svc").into()],
            ingresses: vec![format!("ns-a/{name}-first").into(), format!("ns-a/{name}-later").into()],
            otherwise: vec![format!("{name}-b.ns-a.svc").into()],
            ..Exposure::default()
        });
    }
    plan
}

#[tokio::test]
async fn another_leader_writes_nothing_where_nothing_has_changed_in_the_long_form_too() {
    let mut settings = Config::default().settings();
    settings.gateway.max_service_entries = 3;
    for (apps, is_long) in [(1, false), (3, true)] {
        let server = Server::default();
        let plan = routed(apps);
        let outcome = server.output().write(&plan, &settings, &WritePermit::always(), || true).await;
        assert!(outcome.problems.is_empty(), "{outcome:?}");
        let objects = server.plugins();
        assert_eq!(objects.values().any(|object| wasm_plugin::has_long_list(&object["spec"])), is_long);

        // The output is new, and nothing is known of the cluster yet.
        let mut output = server.output();
        let found = output.take_over(&settings, &WritePermit::always(), false).await.unwrap();
        let (mut incidents, policy, now) =
            (Incidents::default(), Config::default().policy(), Clock::start().now());
        assert_eq!(incidents.inherit(found, &policy, now).len(), apps);
        let plan = incidents.plan(&policy, &ClusterFacts::default(), now);
        let outcome = output.write(&plan, &settings, &WritePermit::always(), || true).await;
        assert_eq!(server.plugins(), objects, "{outcome:?}");
    }
}

#[tokio::test]
async fn services_that_the_plain_list_has_no_room_for_are_reported() {
    let mut settings = Config::default().settings();
    settings.gateway.max_service_entries = 2;
    let mut output = Server::default().output();
    let outcome = output.write(&routed(5), &settings, &WritePermit::always(), || true).await;
    let [text] = &outcome.left_open.unwrap()[..] else { panic!("one kind") };
    assert!(
        text.starts_with("3 Services of blocked Apps stay open") && text.contains("room for 2 "),
        "{text}"
    );
    assert!(text.contains("ns-a/app/web-002 (1)"), "{text}");
    settings.gateway.max_service_entries = 5;
    let outcome = output.write(&routed(5), &settings, &WritePermit::always(), || true).await;
    assert_eq!(outcome.left_open.unwrap(), Vec::<String>::new());
}
