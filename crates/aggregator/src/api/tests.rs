mod decisions;
mod list;
mod metrics;
mod names;
mod openapi;
mod pages;
mod readers;
mod refusals;
mod violations;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use jiff::Timestamp;
use procscan_core::decision::Mode;
use procscan_core::ledger::{Detection, Ledger};
use procscan_core::names::{App, Key, NodeName};
use procscan_core::plan::{Block, Plan};
use procscan_core::policy::Withheld;
use procscan_core::report::{Failure, FailureReason, Limits, Outcome, Report, Target, decode};
use procscan_core::state::{Incident, IncidentSpec};
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt;

use super::*;
use crate::clock::Clock;
use crate::cluster_facts::ClusterFactsStatus;
use crate::config::Config;
use crate::counters::Counters;
use crate::decided::Decided;
use crate::discovery::TargetSet;
use crate::leader::Leadership;
use crate::ledger_task::{self, SnapshotPublisher, Snapshots};
use crate::output::OutputStatus;
use crate::policy_task::Journal;
use crate::reload::ConfigStatus;
use crate::state::{FileStore, PersistedState};
use crate::tls::TlsStatus;
use crate::views::Queues;

/// The whole router over views that the test sets.
pub(super) struct Stage {
    pub(super) router: Router,
    lists: Arc<ListForms>,
    pub(super) ledger: Ledger,
    pub(super) clock: Clock,
    publisher: SnapshotPublisher,
    snapshots: Snapshots,
    targets: watch::Sender<Arc<TargetSet>>,
    output: watch::Sender<OutputStatus>,
    decided: watch::Sender<Arc<Decided>>,
    pub(super) api: Api,
    /// The token of requests without another one.
    token: Option<&'static str>,
}

pub(super) const RECORD: &str = r#"{"pod":"p","namespace":"ns-a","process":"xmrig","cmdline":"<b>","regex":"^x","status":"active","type":"app","name":"p","timestamp":"2025-12-22T18:30:00+08:00"}"#;

fn target(node: &str) -> Target {
    Target { address: format!("{node}:9090").into(), node: NodeName::new(node) }
}

fn without_cluster() -> Config {
    // On a loopback address, command lines are whole.
    let text = "aggregator: {address: 127.0.0.1}\ndiscovery: {mode: static, targets: [a]}\noutput: {mode: directory}\n";
    Config::parse(text, "test", [], jiff::Timestamp::UNIX_EPOCH).unwrap()
}

impl Stage {
    pub(super) fn new() -> Self {
        Self::at(OperatorCommands::Unavailable)
    }

    fn at(operator_commands: OperatorCommands) -> Self {
        Self::over(operator_commands, watch::channel(Arc::default()).1)
    }

    fn over(operator_commands: OperatorCommands, persisted: watch::Receiver<Arc<PersistedState>>) -> Self {
        Self::under(&without_cluster(), operator_commands, persisted)
    }

    /// With the authentication of `config`.
    fn under(
        config: &Config,
        operator_commands: OperatorCommands,
        persisted: watch::Receiver<Arc<PersistedState>>,
    ) -> Self {
        let clock = Clock::start();
        let now = clock.now();
        // These tests make long lists of long command lines, so none may be cut.
        let rules = Detection { cmdline_budget: usize::MAX, ..Detection::default() };
        let mut ledger = Ledger::new(rules, now);
        ledger.expect([target("n1"), target("n2")], 0);
        let (publisher, snapshots) = ledger_task::snapshots(ledger.snapshot(now), clock);
        let shown = snapshots.clone();
        let (targets, target_sets) = watch::channel(Arc::default());
        let evidence = watch::channel(ClusterFactsStatus::default()).1;
        let (output, outputs) = watch::channel(OutputStatus::default());
        let undecided = Decided::nothing(Plan::empty(Mode::Enforce, now.wall()));
        let (decided, decisions) = watch::channel(Arc::new(undecided));
        let mut policy = config.policy();
        policy.brake.max_releases = 2;
        let views = Views {
            snapshots,
            decided: decisions,
            targets: target_sets,
            cluster_facts: evidence,
            output: outputs,
            api_server: None,
            persisted,
            persist_error: watch::channel(None).1,
            state_error: watch::channel(None).1,
            lease_error: watch::channel(None).1,
            leadership: crate::leader::alone(),
            journal: Journal::default(),
            policy: watch::channel(Arc::new(policy)).1,
            config: watch::channel(ConfigStatus::of(config)).1,
            tls: watch::channel(TlsStatus::default()).1,
            queues: Queues::default(),
            clock,
        };
        let counters = Counters::default();
        let metrics = Metrics::new(views.clone(), counters.clone(), config.aggregator.scan_interval);
        let operators = Operators {
            commands: operator_commands,
            auth: Authenticator::new(config, None).unwrap(),
            namespace: None,
            anonymous_violations: config.api.anonymous_violations,
            redacts: config.redacts(),
            metrics,
            stream: Stream::new(counters),
        };
        let api = Api::new(views, operators, config.api.max_in_flight);
        let (router, lists) = (routes(api.clone()), api.lists.clone());
        Self {
            router,
            lists,
            ledger,
            clock,
            publisher,
            snapshots: shown,
            targets,
            output,
            decided,
            api,
            token: None,
        }
    }

    pub(super) fn publish(&mut self) {
        self.publisher.publish(&mut self.ledger, self.clock);
    }

    fn shown(&self) -> Arc<Snapshot> {
        self.snapshots.published().borrow().snapshot.clone().unwrap()
    }

    pub(super) fn answer(&mut self, node: &str, body: &str) {
        let (answer, result) = decode(body.as_bytes(), &Limits::default());
        result.unwrap();
        let report =
            Report { target: target(node), at: self.clock.now(), outcome: Outcome::Complete(answer) };
        self.ledger.absorb(&report);
        self.publish();
    }

    async fn ask_bytes(&self, request: Request<Body>) -> (StatusCode, HeaderMap, Bytes) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        (head.status, head.headers, body.collect().await.unwrap().to_bytes())
    }

    async fn ask(&self, request: Request<Body>) -> (StatusCode, HeaderMap, String) {
        let (status, headers, body) = self.ask_bytes(request).await;
        (status, headers, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn get(&self, path: &str) -> (StatusCode, HeaderMap, String) {
        self.get_with(self.token, path).await
    }

    async fn get_with(&self, token: Option<&str>, path: &str) -> (StatusCode, HeaderMap, String) {
        let mut request = Request::get(path);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.ask(request.body(Body::empty()).unwrap()).await
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[tokio::test]
async fn in_a_file_more_decisions_are_logged_than_an_incident_has_and_the_old_ones_go() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path()).await.unwrap();
    let at = |n: i64| Timestamp::from_second(1_766_399_400 + n).unwrap();
    let decision =
        |n: i64| json!({"at": at(n), "decision": "held", "actor": "policy", "reason": n.to_string()});
    for last in [20, 30, 40] {
        let log: Vec<Value> = (last - 20..last).map(decision).collect();
        let status = json!({"state": "Held", "opened": at(0), "decisions": log, "decided": last});
        let spec = IncidentSpec::of(&App::new("ns-a", "app", "web"));
        let incident = Incident { name: "web".into(), spec, status: serde_json::from_value(status).unwrap() };
        assert!(store.save(vec![incident]).await.is_empty());
    }
    let stage = Stage::at(OperatorCommands::File(store.clone()));
    let reasons = async |path: &str| -> Vec<String> {
        let found = json(&stage.get(path).await.2);
        let all = found["decisions"].as_array().unwrap().iter();
        all.map(|entry| entry["reason"].as_str().unwrap().to_owned()).collect()
    };
    let expected: Vec<String> = (0..40).rev().map(|n| n.to_string()).collect();
    assert_eq!(reasons("/api/v1/decisions?namespace=ns-a").await, expected);
    assert_eq!(reasons(&format!("/api/v1/decisions?since={}&until={}", at(3), at(5))).await, ["4", "3"]);
    assert!(reasons("/api/v1/decisions?namespace=ns-b").await.is_empty());
    assert_eq!(store.retain(at(30)).await.unwrap(), 30);
    assert_eq!(reasons("/api/v1/decisions").await, expected[..10]);
}

#[tokio::test]
async fn the_list_of_the_first_readme_has_exactly_its_shape() {
    let mut stage = Stage::new();
    let (status, headers, body) = stage.get("/api/violations").await;
    assert_eq!((status, headers["content-type"].to_str().unwrap()), (StatusCode::OK, "application/json"));
    assert!(
        body.starts_with(r#"{"violations":[],"update_time":""#) && body.ends_with(r#"Z","total_count":0}"#),
        "{body}"
    );

    stage.answer("n1", &format!("[{RECORD}]"));
    let (_, headers, body) = stage.get("/api/violations").await;
    // The fields in the order of the first README, as the agent gave them.
    assert!(body.starts_with(&format!(r#"{{"violations":[{RECORD}],"update_time":""#)), "{body}");
    let list = json(&body);
    assert_eq!(list.as_object().unwrap().len(), 3);
    assert_eq!(list["total_count"], 1);
    list["update_time"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let coverage = ["expected", "fresh", "stale", "never-seen"]
        .map(|part| headers[&format!("x-procscan-targets-{part}")].to_str().unwrap().to_owned());
    assert_eq!(coverage, ["2", "1", "0", "1"]);
}

#[tokio::test]
async fn an_unchanged_list_is_not_sent_again() {
    let mut stage = Stage::new();
    stage.answer("n1", &format!("[{RECORD}]"));
    let (_, headers, before) = stage.get("/api/violations").await;
    let etag = headers["etag"].clone();
    let ask = |tag: String| {
        Request::get("/api/violations").header("if-none-match", tag).body(Body::empty()).unwrap()
    };
    let tag = etag.to_str().unwrap();
    for known in [tag.to_owned(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
        let (status, headers, body) = stage.ask(ask(known)).await;
        assert_eq!((status, body.as_str()), (StatusCode::NOT_MODIFIED, ""));
        assert!(headers.contains_key("x-procscan-targets-fresh"));
    }
    // Another round without a change: the same list, the same time, the same tag.
    stage.answer("n1", &format!("[{RECORD}]"));
    let (_, headers, after) = stage.get("/api/violations").await;
    assert_eq!((&headers["etag"], after), (&etag, before));
    stage.answer("n1", &format!("[{}]", RECORD.replace("18:30:00", "18:40:00")));
    let (status, headers, _) = stage.ask(ask(tag.to_owned())).await;
    assert_eq!(status, StatusCode::OK);
    assert_ne!(headers["etag"], etag);
}

#[tokio::test]
async fn health_is_that_of_the_first_readme() {
    let (status, headers, body) = Stage::new().get("/health").await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, r#"{"status":"ok"}"#));
    assert_eq!(headers["content-type"], "application/json");
}

#[tokio::test]
async fn readiness_comes_with_the_first_round_and_failures_are_named_without_taking_it_away() {
    let mut stage = Stage::new();
    let (status, headers, body) = stage.get("/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(headers["content-type"], "application/problem+json");
    assert_eq!(json(&body)["targets"]["expected"], 2);

    stage.ledger.round_done();
    stage.publish();
    assert_eq!(json(&stage.get("/readyz").await.2)["output"], json!({"ok": true}));
    stage.output.send_replace(OutputStatus {
        error: Some("disk full".into()),
        junk: Some("a.yaml: it is a directory".into()),
        ..OutputStatus::default()
    });
    stage.targets.send_modify(|set| Arc::make_mut(set).error = Some("no answer".into()));
    let (status, _, body) = stage.get("/readyz").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(json(&body)["output"], json!({"ok": false, "error": "disk full; a.yaml: it is a directory"}));
    assert_eq!(json(&body)["discovery"]["error"], "no answer");
}

#[tokio::test]
async fn if_every_agent_refuses_the_connection_readiness_says_what_to_look_at() {
    let mut stage = Stage::new();
    stage.ledger.round_done();
    let refuse = |stage: &mut Stage, node: &str, reason: FailureReason| {
        let failure = Failure { reason, detail: "refused".into() };
        let outcome = Outcome::Failed(failure);
        stage.ledger.absorb(&Report { target: target(node), at: stage.clock.now(), outcome });
        stage.publish();
    };
    let error = async |stage: &Stage| json(&stage.get("/readyz").await.2)["targets"]["error"].clone();
    refuse(&mut stage, "n1", FailureReason::Refused);
    assert_eq!(error(&stage).await, Value::Null, "one of two");
    refuse(&mut stage, "n2", FailureReason::Refused);
    let hint = error(&stage).await;
    let hint = hint.as_str().unwrap();
    for part in
        ["every agent refuses", "`api: {enabled: true, port: 9090}`", "restarted", "daemonset.api_port"]
    {
        assert!(hint.contains(part), "{part}: {hint}");
    }
    refuse(&mut stage, "n1", FailureReason::Timeout);
    assert_eq!(error(&stage).await, Value::Null, "another failure says something else");
    refuse(&mut stage, "n1", FailureReason::Refused);
    stage.answer("n2", "[]");
    assert_eq!(error(&stage).await, Value::Null, "one answers");
}

#[tokio::test(start_paused = true)]
async fn liveness_goes_when_the_loop_makes_no_progress() {
    let stage = Stage::new();
    assert_eq!(stage.get("/livez").await.0, StatusCode::OK);
    tokio::time::advance(std::time::Duration::from_secs(31)).await;
    let (status, _, body) = stage.get("/livez").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(json(&body)["detail"], "no progress for 31s");
}

#[tokio::test]
async fn every_node_is_shown_with_what_is_wrong_with_it() {
    let mut stage = Stage::new();
    stage.answer("n1", &format!("[{RECORD}, 7]"));
    let failure = Failure { reason: FailureReason::Timeout, detail: "no whole answer".into() };
    let report = Report { target: target("n2"), at: stage.clock.now(), outcome: Outcome::Failed(failure) };
    stage.ledger.absorb(&report);
    stage.publish();
    let body = json(&stage.get("/api/v1/nodes").await.2);
    assert_eq!(body["coverage"], json!({"fresh": 1, "stale": 0, "never_seen": 1}));
    assert_eq!(body["nodes"][0]["rejected_records"], json!({"not_a_record": 1}));
    let failed = &body["nodes"][1];
    assert_eq!((failed["node"].as_str(), failed["state"].as_str()), (Some("n2"), Some("never_seen")));
    assert_eq!(failed["last_failure"]["reason"], "timeout");
    assert_eq!((&failed["unusable_since"], &failed["lists_several"]), (&Value::Null, &json!(false)));
}

#[tokio::test]
async fn a_node_that_is_there_but_gives_no_usable_answer_is_shown_as_such() {
    let mut stage = Stage::new();
    let failure = Failure { reason: FailureReason::TooLarge, detail: "the body is larger than 4 MiB".into() };
    let at = stage.clock.now();
    stage.ledger.absorb(&Report { target: target("n1"), at, outcome: Outcome::Failed(failure) });
    stage.answer("n2", &format!("[{RECORD}, {}]", RECORD.replace("ns-a", "ns-b")));
    stage.publish();
    let body = json(&stage.get("/api/v1/nodes").await.2);
    assert_eq!(body["coverage"], json!({"fresh": 1, "stale": 0, "never_seen": 1}));
    let shown = &body["nodes"][0];
    assert_eq!(shown["state"], "unusable");
    assert_eq!(shown["unusable_since"], json!(at.wall()));
    assert_eq!(shown["last_failure"]["detail"], "the body is larger than 4 MiB");
    assert_eq!(body["nodes"][1]["lists_several"], true);
}

#[tokio::test]
async fn every_violation_is_shown_with_its_state_and_without_its_command_line() {
    let mut stage = Stage::new();
    stage.answer("n1", &format!("[{RECORD}]"));
    let body = json(&stage.get("/api/v1/violations").await.2);
    let violation = &body["violations"][0];
    assert_eq!(
        (violation["namespace"].as_str(), violation["state"].as_str()),
        (Some("ns-a"), Some("unconfirmed"))
    );
    assert_eq!(violation["evidence"], json!([{"node": "n1", "presence": "unconfirmed", "was_fresh": false}]));
    assert!(!body.to_string().contains("<b>"));
}

#[tokio::test]
async fn errors_are_problems() {
    let stage = Stage::new();
    let (status, headers, body) = stage.get("/nope").await;
    assert_eq!(
        (status, headers["content-type"].to_str().unwrap()),
        (StatusCode::NOT_FOUND, "application/problem+json")
    );
    assert_eq!(json(&body)["status"], 404);
    let post = Request::post("/api/violations").body(Body::empty()).unwrap();
    let (status, headers, body) = stage.ask(post).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(headers["allow"].to_str().unwrap().contains("GET"));
    assert_eq!(json(&body)["title"], "Method Not Allowed");
    assert_eq!(stage.get("/api/v1/plan").await.0, StatusCode::OK);
}

#[tokio::test]
async fn an_exemption_that_is_withheld_is_shown_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path()).await.unwrap();
    let operator_commands = OperatorCommands::File(store.clone());
    for name in ["all", "one"] {
        let spec = json!({"namespace": {"regex": "."}, "reason": "x"});
        operator_commands.add_exemption(name, &serde_json::from_value(spec).unwrap()).await.unwrap();
    }
    let stage = Stage::over(operator_commands, store.shown());
    let withheld =
        |place: &str| Withheld { place: place.to_owned(), reason: format!("{place} has no effect") };
    let plan = || Plan::empty(Mode::Enforce, Timestamp::UNIX_EPOCH);
    let withheld = vec![withheld("Exemption all"), withheld("enforcement.exemptions[0]")];
    stage.decided.send_replace(Arc::new(Decided { withheld, ..Decided::nothing(plan()) }));
    let found = json(&stage.get("/api/v1/exemptions").await.2);
    assert_eq!(found["exemptions"][0]["error"], "Exemption all has no effect");
    assert_eq!((&found["exemptions"][1]["name"], found["exemptions"][1].get("error")), (&json!("one"), None));
    let configured =
        json!({"place": "enforcement.exemptions[0]", "reason": "enforcement.exemptions[0] has no effect"});
    assert_eq!(found["withheld"][1], configured);
    let states: Vec<&Value> = found["exemptions"].as_array().unwrap().iter().map(|it| &it["state"]).collect();
    assert_eq!(states, ["withheld", "in_force"]);

    // A replica that does not lead knows only what is written in the exemptions.
    let past = json!({"app": {"exact": "a"}, "reason": "x", "until": "2020-01-01T00:00:00Z"});
    OperatorCommands::File(store.clone())
        .add_exemption("past", &serde_json::from_value(past).unwrap())
        .await
        .unwrap();
    let following = watch::channel(Leadership::Following { leader: None });
    let mut views = Views::clone(&stage.api.views);
    (views.leadership, views.decided) = (following.1, watch::channel(Arc::new(Decided::nothing(plan()))).1);
    let api = Api { views: Arc::new(views), ..stage.api.clone() };
    let request = Request::get("/api/v1/exemptions").body(Body::empty()).unwrap();
    let response = routes(api).oneshot(request).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let found: Value = serde_json::from_slice(&body).unwrap();
    let states: Vec<Option<&Value>> =
        found["exemptions"].as_array().unwrap().iter().map(|it| it.get("state")).collect();
    assert_eq!(states, [None, None, Some(&json!("over"))]);
    assert_eq!(found.get("withheld"), Some(&Value::Null), "not known");
}

#[tokio::test]
async fn an_exemption_that_would_open_many_tenants_has_to_confirm_how_many() {
    let stage = Stage::new();
    let block = |namespace: &str| {
        Arc::new(Block {
            app: App::new(namespace, "app", "web"),
            since: Timestamp::UNIX_EPOCH,
            grounds: Box::default(),
            left: [Key::new(namespace, "web-0", "xmrig")].into(),
            exposure: Arc::default(),
            reason: "".into(),
        })
    };
    let mut plan = Plan::empty(Mode::Enforce, Timestamp::UNIX_EPOCH);
    plan.blocks = ["ns-a", "ns-b", "ns-c"].map(block).into();
    stage.decided.send_replace(Arc::new(Decided::nothing(plan)));
    let check = |spec: Value| stage.api.check_opening(&serde_json::from_value(spec).unwrap());
    let all = json!({"regex": "."});
    let response = check(json!({"namespace": all, "reason": "x"})).unwrap_err();
    let response = axum::response::IntoResponse::into_response(response);
    assert_eq!(response.status(), StatusCode::CONFLICT);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let problem: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(problem["tenants"], 3);
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.contains("to 3 tenants at once, more than 2") && detail.contains("--confirm 3"),
        "{detail}"
    );
    assert!(check(json!({"namespace": all, "reason": "x", "confirm": 2})).is_err());
    assert!(check(json!({"namespace": all, "reason": "x", "confirm": 3})).is_ok());
    assert!(
        check(json!({"namespace": {"regex": "[ab]"}, "reason": "x"})).is_ok(),
        "so many may go by themselves"
    );
    assert!(check(json!({"process": {"exact": "zmap"}, "reason": "x"})).is_ok(), "it opens nothing");
}
