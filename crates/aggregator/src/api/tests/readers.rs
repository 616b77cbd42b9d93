//! What a reader with a right in one namespace sees, and what it does not.

use std::collections::BTreeSet;

use axum::http::Method;
use procscan_core::plan::{Accusation, Dispute, HeldApp, Notice, NoticePhase};
use proptest::prelude::*;

use super::*;
use crate::api::route::{Access, Route};
use crate::state::FileStore;
use crate::state::persisted_state::UnreadExemption;

const ADMIN: &str = "admin-admin-admin-admin";
const TENANT: &str = "tenant-tenant-tenant-a";
const OTHER: &str = "tenant-tenant-tenant-b";
const AUDITOR: &str = "auditor-auditor-auditor";
const SCRAPER: &str = "scraper-scraper-scraper";

/// A service whose token file has an administrator and two tenants.
struct Tenants {
    stage: Stage,
    directory: tempfile::TempDir,
}

/// One entry of every list, of a tenant. Every text of the tenant has its mark.
fn incident_of(namespace: &str, mark: &str) -> Incident {
    let status = json!({
        "state": "Blocked", "opened": "2026-01-02T10:00:00Z", "reason": format!("process {mark}"),
        "processes": [mark], "origins": [format!("Deployment/{mark}")],
        "evidence": [{"pod": format!("pod-{mark}"), "process": mark, "node": "n1", "regex": format!("^{mark}$"),
            "type": "app", "name": format!("app-{mark}"), "firstSeen": "2026-01-02T10:00:00Z",
            "freshAt": "2026-01-02T10:00:00Z", "timestamp": "2026-01-02T10:00:00Z", "observations": 1}],
        "exposure": {"services": [format!("svc-{mark}.{namespace}.svc")]},
        "decisions": [{"at": "2026-01-02T10:00:00Z", "decision": "blocked", "actor": "policy", "reason": format!("process {mark}")}],
        "decided": 1,
    });
    let app = App::new(namespace, "app", format!("app-{mark}"));
    let status = serde_json::from_value(status).unwrap();
    Incident { name: format!("{namespace}-{mark}"), spec: IncidentSpec::of(&app), status }
}

fn decided(tenants: &[(&str, &str)]) -> Decided {
    let mut plan = Plan::empty(Mode::Enforce, Timestamp::UNIX_EPOCH);
    let mut decided = Decided::nothing(plan.clone());
    for (namespace, mark) in tenants {
        let app = App::new(*namespace, "app", format!("app-{mark}"));
        let key = Key::new(*namespace, format!("pod-{mark}"), *mark);
        let node = NodeName::new("n1");
        plan.blocks.push(Arc::new(Block {
            app: app.clone(),
            since: Timestamp::UNIX_EPOCH,
            grounds: [Accusation {
                key: key.clone(),
                rule: (*mark).into(),
                by_keyword: false,
                node: node.clone(),
            }]
            .into(),
            left: Box::default(),
            exposure: Arc::default(),
            reason: (*mark).into(),
        }));
        plan.notices.push(Arc::new(Notice {
            app: app.clone(),
            sent_at: Timestamp::UNIX_EPOCH,
            inherited: false,
            phase: NoticePhase::Blocked,
            processes: [(*mark).into()].into(),
            others: None,
        }));
        let (since, reason) = (Timestamp::UNIX_EPOCH, (*mark).to_owned());
        decided.held.push(HeldApp { app, since, reason: reason.clone(), release: false });
        decided.disputes.push(Dispute { key, node, reason });
        decided
            .withheld
            .push(Withheld { place: format!("Exemption {mark}"), reason: format!("{mark} opens 7 tenants") });
        decided.unverified += 1;
        plan.summary.blocked += 1;
    }
    Decided { plan, ..decided }
}

impl Tenants {
    async fn with(tenants: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tokens = directory.path().join("tokens");
        let lines = [
            (ADMIN, "admin", ""),
            (TENANT, "tenant-a", "namespace=ns-a"),
            (OTHER, "tenant-b", "namespace=ns-b"),
            (AUDITOR, "auditor", "cmdline namespace=ns-a"),
            (SCRAPER, "scraper", "metrics"),
        ];
        let lines = lines.map(|(token, name, scopes)| format!("{name} {token} {scopes}\n"));
        std::fs::write(&tokens, lines.concat()).unwrap();
        let text = format!(
            "discovery: {{mode: static, targets: [a]}}\noutput: {{mode: directory}}\napi: {{token_file: {}}}\n",
            tokens.display()
        );
        let config = Config::parse(&text, "test", [], Timestamp::UNIX_EPOCH).unwrap();
        let store = FileStore::open(directory.path()).await.unwrap();
        let incidents = tenants.iter().map(|(namespace, mark)| incident_of(namespace, mark)).collect();
        assert!(store.save(incidents).await.is_empty());
        let commands = OperatorCommands::File(store.clone());
        for (namespace, mark) in tenants {
            let spec = json!({"namespace": {"exact": namespace}, "process": {"exact": mark}, "reason": mark, "by": "admin"});
            commands
                .add_exemption(&format!("exemption-{mark}"), &serde_json::from_value(spec).unwrap())
                .await
                .unwrap();
        }
        let mut stage = Stage::under(&config, commands, store.shown());
        stage.decided.send_replace(Arc::new(decided(tenants)));
        stage.list_processes(tenants);
        Self { stage, directory }
    }

    /// All that a reader gets: the status, the headers and the body of each answer.
    async fn all_of(
        &self,
        token: Option<&str>,
        paths: &[String],
    ) -> Vec<(String, StatusCode, HeaderMap, String)> {
        let mut answers = Vec::new();
        for path in paths {
            let (status, headers, body) = self.stage.get_with(token, path).await;
            answers.push((path.clone(), status, headers, body));
        }
        answers
    }
}

impl Stage {
    /// Node n1 lists a process of each tenant, one at a time, so that each hides the one before.
    fn list_processes(&mut self, tenants: &[(&str, &str)]) {
        for (namespace, mark) in tenants {
            let record = json!({"pod": format!("pod-{mark}"), "namespace": namespace, "process": mark,
                "cmdline": format!("/bin/{mark} --password hunter2"), "regex": format!("^{mark}$"), "status": "active",
                "type": "app", "name": format!("app-{mark}"), "timestamp": "2025-12-22T18:30:00+08:00"});
            self.answer("n1", &format!("[{record}]"));
        }
    }
}

/// Every path that reads, with each parameter that takes the names of a tenant.
fn paths(namespace: Option<&str>, names: &[String]) -> Vec<String> {
    let mut all = Vec::new();
    // The stream has no end; it has a test of its own.
    let reading = |route: &&Route| route.method == Method::GET && route.path != "/api/v1/stream";
    for route in all_routes().iter().filter(reading) {
        let paths: Vec<String> = if route.path.contains("{name}") {
            names.iter().map(|name| route.path.replace("{name}", name)).collect()
        } else {
            vec![route.path.to_owned()]
        };
        for path in paths {
            let takes = |name: &str| route.parameters.iter().any(|parameter| parameter.name == name);
            let query =
                namespace.filter(|_| takes("namespace")).map(|namespace| format!("namespace={namespace}"));
            let query: Vec<String> = query.into_iter().collect();
            all.push(format!("{path}?{}", query.join("&")));
            for sort in [
                "key",
                "first_seen",
                "last_seen",
                "app",
                "since",
                "opened",
                "at",
                "name",
                "-key",
                "-app",
                "-at",
                "-opened",
            ] {
                let sort = format!("sort={sort}");
                all.push(format!("{path}?{}", [query.clone(), vec![sort]].concat().join("&")));
            }
            for parameter in
                ["q", "process", "name", "node", "rule", "actor"].into_iter().filter(|name| takes(name))
            {
                for name in names {
                    let filter = format!("{parameter}={name}");
                    all.push(format!("{path}?{}", [query.clone(), vec![filter]].concat().join("&")));
                }
            }
        }
    }
    all
}

#[tokio::test]
async fn every_route_but_probes_refuses_a_request_without_a_token() {
    let tenants = Tenants::with(&[("ns-a", "alpha")]).await;
    for route in all_routes() {
        let path = route.path.replace("{name}", "ns-a-alpha");
        for token in [None, Some("mallory-mallory-mallory")] {
            let mut request = Request::builder().method(&route.method).uri(&path);
            if let Some(token) = token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let (status, _, body) = tenants.stage.ask(request.body(Body::empty()).unwrap()).await;
            if route.access == Access::Open {
                assert_ne!(status, StatusCode::UNAUTHORIZED, "{} {path}", route.method);
                assert!(!body.contains("alpha"), "{body}");
            } else {
                assert_eq!(status, StatusCode::UNAUTHORIZED, "{} {path}: {body}", route.method);
            }
        }
        // A scraper may read nothing, and change nothing.
        let request = Request::builder()
            .method(&route.method)
            .uri(&path)
            .header("authorization", format!("Bearer {SCRAPER}"));
        let (status, _, body) = tenants.stage.ask(request.body(Body::empty()).unwrap()).await;
        if !matches!(route.access, Access::Open | Access::Authenticated | Access::Path) {
            assert_eq!(status, StatusCode::FORBIDDEN, "{} {path}: {body}", route.method);
        }
    }
}

#[tokio::test]
async fn an_administrator_sees_all_and_a_tenant_sees_its_own() {
    let tenants = Tenants::with(&[("ns-a", "alpha"), ("ns-b", "beta")]).await;
    let lists = [
        "/api/violations",
        "/api/v1/violations",
        "/api/v1/apps",
        "/api/v1/plan",
        "/api/v1/incidents",
        "/api/v1/decisions",
        "/api/v1/exemptions",
        "/api/v1/incidents/ns-a-alpha",
        "/api/v1/exemptions/exemption-alpha",
    ];
    for path in lists {
        let (status, _, body) = tenants.stage.get_with(Some(ADMIN), path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        assert!(body.contains("alpha"), "{path}: {body}");
        assert_eq!(body.contains("beta"), !path.contains("alpha"), "{path}: {body}");
        let (status, _, own) = tenants.stage.get_with(Some(TENANT), &format!("{path}?namespace=ns-a")).await;
        assert_eq!(status, StatusCode::OK, "{path}: {own}");
        assert!(own.contains("alpha") && !own.contains("beta"), "{path}: {own}");
        // Without its namespace, and with another one, it sees nothing; and what exists there makes no difference.
        for query in ["", "?namespace=ns-b", "?namespace=ns-none"] {
            let (status, _, body) = tenants.stage.get_with(Some(TENANT), &format!("{path}{query}")).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{path}{query}: {body}");
            assert!(!body.contains("alpha") && !body.contains("beta"), "{path}: {body}");
        }
    }
    for path in ["/api/v1/nodes", "/api/v1/enforcement"] {
        assert_eq!(tenants.stage.get_with(Some(TENANT), path).await.0, StatusCode::FORBIDDEN, "{path}");
        assert_eq!(tenants.stage.get_with(Some(ADMIN), path).await.0, StatusCode::OK, "{path}");
    }
    // What is another tenant's is answered like what is not there.
    let own = "?namespace=ns-a";
    for kind in ["incidents", "exemptions"] {
        let other = if kind == "incidents" { "ns-b-beta" } else { "exemption-beta" };
        let [there, nowhere] = [other, "no-such"].map(|name| format!("/api/v1/{kind}/{name}{own}"));
        let there = tenants.stage.get_with(Some(TENANT), &there).await;
        let nowhere = tenants.stage.get_with(Some(TENANT), &nowhere).await;
        assert_eq!((there.0, &there.2), (StatusCode::NOT_FOUND, &nowhere.2));
        assert_eq!((&there.1, nowhere.0), (&nowhere.1, StatusCode::NOT_FOUND));
    }
}

#[tokio::test]
async fn command_lines_are_whole_only_with_the_right_to_them() {
    let mut tenants = Tenants::with(&[("ns-a", "alpha"), ("ns-b", "beta")]).await;
    let list = async |tenants: &Tenants, token, query: &str| {
        tenants.stage.get_with(token, &format!("/api/violations{query}")).await
    };
    let (_, whole, body) = list(&tenants, Some(ADMIN), "").await;
    assert!(body.contains("--password hunter2"), "{body}");
    for (token, query, is_whole) in [
        (ADMIN, "?namespace=ns-a", true),
        (AUDITOR, "?namespace=ns-a", true),
        (TENANT, "?namespace=ns-a", false),
        (OTHER, "?namespace=ns-b", false),
    ] {
        let (status, headers, body) = list(&tenants, Some(token), query).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        assert_eq!(body.contains("hunter2"), is_whole, "{token}: {body}");
        assert!(is_whole || body.contains("--password ***"), "{token}: {body}");
        assert_ne!(headers["etag"], whole["etag"]);
    }
    // Without a token only where the configuration says so, and never whole.
    assert_eq!(list(&tenants, None, "").await.0, StatusCode::UNAUTHORIZED);
    let operators = Operators { anonymous_violations: true, ..(*tenants.stage.api.operators).clone() };
    tenants.stage.api.operators = Arc::new(operators);
    tenants.stage.router = routes(tenants.stage.api.clone());
    for query in ["", "?namespace=ns-a"] {
        let (status, headers, body) = list(&tenants, None, query).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        assert!(body.contains("--password ***") && !body.contains("hunter2"), "{body}");
        assert_ne!(headers["etag"], whole["etag"]);
    }
    assert_eq!(list(&tenants, None, "?name=web").await.0, StatusCode::BAD_REQUEST);
    // A token that is not valid is refused all the same.
    assert_eq!(list(&tenants, Some("mallory-mallory-mallory"), "").await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn the_list_of_a_namespace_changes_only_when_it_does_itself() {
    let mut tenants = Tenants::with(&[("ns-a", "alpha"), ("ns-b", "beta")]).await;
    let list = async |tenants: &Tenants| {
        let (status, headers, body) =
            tenants.stage.get_with(Some(TENANT), "/api/violations?namespace=ns-a").await;
        assert_eq!(status, StatusCode::OK);
        (headers["etag"].clone(), body)
    };
    let before = list(&tenants).await;
    let shown = json(&before.1);
    assert_eq!((shown["total_count"].as_u64(), shown.as_object().unwrap().len()), (Some(1), 3));
    // Another tenant's process comes.
    tenants.stage.list_processes(&[("ns-b", "gamma")]);
    assert_eq!(list(&tenants).await, before);
    let known = Request::get("/api/violations?namespace=ns-a")
        .header("authorization", format!("Bearer {TENANT}"))
        .header("if-none-match", before.0.clone());
    assert_eq!(tenants.stage.ask(known.body(Body::empty()).unwrap()).await.0, StatusCode::NOT_MODIFIED);
    tenants.stage.list_processes(&[("ns-a", "delta")]);
    let after = list(&tenants).await;
    assert!(after != before && json(&after.1)["total_count"] == 2, "{after:?}");
    // Compressed, it is the same.
    let request =
        Request::get("/api/violations?namespace=ns-a").header("authorization", format!("Bearer {TENANT}"));
    let request = request.header("accept-encoding", "zstd, identity;q=0").body(Body::empty()).unwrap();
    let (_, headers, body) = tenants.stage.ask_bytes(request).await;
    assert_eq!(headers["content-encoding"], "zstd");
    assert_eq!(zstd::decode_all(&*body).unwrap(), after.1.as_bytes());
}

#[tokio::test]
async fn readiness_has_its_details_for_those_only_that_may_read_everything() {
    let mut tenants = Tenants::with(&[("ns-a", "alpha")]).await;
    let ready = async |tenants: &Tenants, token| tenants.stage.get_with(token, "/readyz").await;
    for (token, has_details) in
        [(None, false), (Some(TENANT), false), (Some("mallory-mallory-mallory"), false), (Some(ADMIN), true)]
    {
        let (status, _, body) = ready(&tenants, token).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(json(&body)["targets"].is_object(), has_details, "{body}");
    }
    tenants.stage.ledger.round_done();
    tenants.stage.publish();
    assert_eq!(ready(&tenants, None).await.2, r#"{"status":"ready"}"#);
    assert_eq!(json(&ready(&tenants, Some(ADMIN)).await.2)["targets"]["expected"], 2);
}

#[tokio::test]
async fn an_operator_of_one_namespace_reaches_no_other() {
    let tenants = Tenants::with(&[("ns-a", "alpha"), ("ns-b", "beta")]).await;
    std::fs::write(
        tenants.directory.path().join("tokens"),
        format!("lead {TENANT} operate namespace=ns-a\n"),
    )
    .unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1010)).await;
    let send = async |method: Method, path: &str, body: &str| {
        let request =
            Request::builder().method(method).uri(path).header("authorization", format!("Bearer {TENANT}"));
        let request =
            request.header("content-type", "application/json").body(Body::from(body.to_owned())).unwrap();
        tenants.stage.ask(request).await
    };
    for (method, path, body, expected) in [
        (Method::POST, "/api/v1/incidents/ns-b-beta/release", "{}", StatusCode::NOT_FOUND),
        (Method::POST, "/api/v1/incidents/ns-b-beta/approve", "{}", StatusCode::NOT_FOUND),
        (Method::POST, "/api/v1/incidents/no-such/release", "{}", StatusCode::NOT_FOUND),
        (Method::DELETE, "/api/v1/exemptions/exemption-beta", "", StatusCode::NOT_FOUND),
        (Method::PUT, "/api/v1/enforcement", r#"{"mode": "paused"}"#, StatusCode::FORBIDDEN),
        (
            Method::POST,
            "/api/v1/exemptions",
            r#"{"process": {"exact": "x"}, "reason": "x"}"#,
            StatusCode::FORBIDDEN,
        ),
        (
            Method::POST,
            "/api/v1/exemptions",
            r#"{"namespace": {"exact": "ns-b"}, "reason": "x"}"#,
            StatusCode::FORBIDDEN,
        ),
        (
            Method::POST,
            "/api/v1/exemptions",
            r#"{"namespace": {"regex": "^ns-a$"}, "reason": "x"}"#,
            StatusCode::FORBIDDEN,
        ),
        (Method::DELETE, "/api/v1/exemptions/exemption-alpha", "", StatusCode::NO_CONTENT),
    ] {
        let (status, _, answer) = send(method.clone(), path, body).await;
        assert_eq!(status, expected, "{method} {path}: {answer}");
        assert!(path.contains("beta") || !answer.contains("beta"), "{answer}");
    }
    let body = r#"{"id": "own", "namespace": {"exact": "ns-a"}, "process": {"exact": "x"}, "reason": "x"}"#;
    let (status, headers, answer) = send(Method::POST, "/api/v1/exemptions", body).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    assert_eq!(headers["location"], "/api/v1/exemptions/own");
}

/// Names that tell tenants apart: no name is a part of another text of an answer.
fn marks() -> impl Strategy<Value = (BTreeSet<String>, BTreeSet<String>)> {
    let mark = |pattern: &'static str| proptest::collection::btree_set(pattern, 1..4);
    (mark("xx[a-z0-9]{6}xx"), mark("zz[a-z0-9]{6}zz"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn no_byte_of_a_tenant_reaches_another_one((own, other) in marks(), own_count in 1..4_usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let both = |with_other: bool| {
                let of_other = other.iter().map(|mark| ("ns-b", mark.as_str())).filter(move |_| with_other);
                let of_own = own.iter().take(own_count).map(|mark| ("ns-a", mark.as_str()));
                of_other.chain(of_own).collect::<Vec<_>>()
            };
            let tenants = Tenants::with(&both(true)).await;
            let alone = Tenants::with(&both(false)).await;
            let names: Vec<String> = other.iter().flat_map(|mark| [mark.clone(), format!("ns-b-{mark}"), format!("exemption-{mark}")]).collect();
            // With its own namespace, and with that of the other tenant.
            for namespace in [Some("ns-a"), Some("ns-b"), None] {
                let asked = paths(namespace, &names);
                let seen = tenants.all_of(Some(TENANT), &asked).await;
                let expected = alone.all_of(Some(TENANT), &asked).await;
                for ((path, status, headers, body), (_, expected_status, _, expected)) in seen.iter().zip(&expected) {
                    // The status is the same as if the other tenant did not exist.
                    assert_eq!(status, expected_status, "{path}: {body}");
                    assert_eq!(shape(body), shape(expected), "{path}");
                    for mark in &other {
                        // A refusal may repeat what the request has said.
                        let asked = path.contains(mark.as_str()) && !status.is_success();
                        assert!(asked || !body.contains(mark.as_str()), "{path}: {body}");
                        assert!(headers.values().all(|value| !value.to_str().unwrap().contains(mark.as_str())), "{path}");
                    }
                }
            }
        });
    }
}

/// An answer without its times and cursors, which differ from one service to another.
fn shape(body: &str) -> Value {
    fn without_times(value: &mut Value) {
        match value {
            Value::Object(members) => {
                members.retain(|name, _| {
                    !["update_time", "next", "first_seen", "last_seen", "at"].contains(&name.as_str())
                });
                members.values_mut().for_each(without_times);
            }
            Value::Array(entries) => entries.iter_mut().for_each(without_times),
            _ => {}
        }
    }
    let mut value = serde_json::from_str(body).unwrap_or_default();
    without_times(&mut value);
    value
}

/// Its last readable version covers the caller's namespace only, but what it covers now is not known.
#[tokio::test]
async fn an_exemption_that_can_not_be_read_is_not_removed_by_an_operator_of_one_namespace() {
    let mut tenants = Tenants::with(&[("ns-a", "alpha")]).await;
    let tokens = tenants.directory.path().join("tokens");
    std::fs::write(&tokens, format!("lead {TENANT} operate namespace=ns-a\nadmin {ADMIN}\n")).unwrap();
    let store = FileStore::open(&tenants.directory.path().join("other")).await.unwrap();
    let commands = OperatorCommands::File(store.clone());
    let spec = json!({"namespace": {"exact": "ns-a"}, "process": {"exact": "alpha"}, "reason": "x"});
    let spec = serde_json::from_value(spec).unwrap();
    commands.add_exemption("exemption-alpha", &spec).await.unwrap();
    let mut persisted = (**store.shown().borrow()).clone();
    let unread = UnreadExemption { error: "no version of it".into(), spec: json!({}) };
    persisted.unread.exemptions.insert("exemption-alpha".to_owned(), unread);
    let text = format!(
        "discovery: {{mode: static, targets: [a]}}\noutput: {{mode: directory}}\napi: {{token_file: {}}}\n",
        tokens.display()
    );
    let config = Config::parse(&text, "test", [], Timestamp::UNIX_EPOCH).unwrap();
    let (_persisted, shown) = tokio::sync::watch::channel(std::sync::Arc::new(persisted));
    tenants.stage = Stage::under(&config, commands, shown);
    for (token, expected) in [(TENANT, StatusCode::NOT_FOUND), (ADMIN, StatusCode::NO_CONTENT)] {
        let request = Request::delete("/api/v1/exemptions/exemption-alpha")
            .header("authorization", format!("Bearer {token}"));
        let (status, _, body) = tenants.stage.ask(request.body(Body::empty()).unwrap()).await;
        assert_eq!(status, expected, "{body}");
    }
}
