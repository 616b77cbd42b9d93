//! Requests that are refused: each error names the place, the value there and what is expected.

use super::*;
use crate::state::FileStore;
use axum::http::Method;

const TOKEN: &str = "alice-alice-alice";

/// A service with a state file, and the operator `alice`.
pub(super) struct OperatorStage {
    pub(super) stage: Stage,
    directory: tempfile::TempDir,
}

impl OperatorStage {
    pub(super) async fn open() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tokens = directory.path().join("tokens");
        std::fs::write(&tokens, format!("alice {TOKEN}\n")).unwrap();
        let text = format!(
            "discovery: {{mode: static, targets: [a]}}\noutput: {{mode: directory}}\napi: {{token_file: {}}}\n",
            tokens.display()
        );
        let config = Config::parse(&text, "test", [], jiff::Timestamp::UNIX_EPOCH).unwrap();
        let store = FileStore::open(directory.path()).await.unwrap();
        let status = json!({"state": "Held", "opened": "2026-01-02T10:00:00Z"});
        let spec = IncidentSpec::of(&App::new("ns-a", "app", "web"));
        let incident = Incident { name: "web".into(), spec, status: serde_json::from_value(status).unwrap() };
        assert!(store.save(vec![incident]).await.is_empty());
        let mut stage = Stage::under(&config, OperatorCommands::File(store.clone()), store.shown());
        stage.token = Some(TOKEN);
        Self { stage, directory }
    }

    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        kind: Option<&str>,
        body: &str,
    ) -> (StatusCode, Value) {
        let mut request =
            Request::builder().method(method).uri(path).header("authorization", format!("Bearer {TOKEN}"));
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        let (status, headers, body) =
            self.stage.ask(request.body(Body::from(body.to_owned())).unwrap()).await;
        if status.is_client_error() {
            assert_eq!(headers["content-type"], "application/problem+json");
        }
        (status, if body.is_empty() { Value::Null } else { json(&body) })
    }
}

/// Checks the members that every refusal has.
fn assert_names(problem: &Value, parameter: &str, expected: &str, context: &str) {
    assert_eq!(problem["parameter"], parameter, "{context}: {problem}");
    assert!(problem["value"].is_string(), "{context}: {problem}");
    assert!(problem["expected"].as_str().unwrap_or_default().contains(expected), "{context}: {problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(parameter) && detail.contains("expected "), "{context}: {problem}");
    for word in ["struct", "u32", "usize", "variant", "deserialize", "Deserialize", ", expected"] {
        assert!(!detail.contains(word), "{context}: {problem}");
    }
}

#[tokio::test]
async fn a_name_that_no_object_has_is_refused() {
    let operator = OperatorStage::open().await;
    let json = Some("application/json");
    for name in ["..%2F..%2Fweb", "web%3FdryRun=All", "web%23", "%2E%2E", "web%2Fstatus", "Web"] {
        for (method, path) in [
            (Method::POST, format!("/api/v1/incidents/{name}/approve")),
            (Method::POST, format!("/api/v1/incidents/{name}/release")),
            (Method::DELETE, format!("/api/v1/exemptions/{name}")),
        ] {
            let (status, problem) = operator.send(method, &path, json, "{}").await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {problem}");
            assert_names(&problem, "name", "a Kubernetes name", &path);
        }
    }
    let (status, problem) = operator.send(Method::DELETE, "/api/v1/exemptions/no-such", json, "").await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{problem}");
}

const RELEASE: &str = "/api/v1/incidents/web/release";
const EXEMPT: &str = "/api/v1/exemptions";
const ENFORCE: &str = "/api/v1/enforcement";
const DATE: &str = "2027-01-01T00:00:00Z";
/// Bad bodies: the endpoint, the body, the place of the mistake, and a part of what is expected there.
const BAD_BODIES: &[(&str, &str, &str, &str)] = &[
    (RELEASE, "", "body", "JSON"),
    (RELEASE, "{", "body", "JSON"),
    (RELEASE, "[]", "body", "an object"),
    (RELEASE, r#"["x", null]"#, "body", "an object"),
    (ENFORCE, r#"["paused", "x"]"#, "body", "an object"),
    (EXEMPT, r#"{"reason": "x", "app": ["a", null]}"#, "app", r#"{"exact": "#),
    (RELEASE, r#"{"reasons": "x"}"#, "reasons", "reason, until"),
    (RELEASE, r#"{"reason": 5}"#, "reason", "a text"),
    (RELEASE, r#"{"until": "soon"}"#, "until", DATE),
    (RELEASE, r#"{"until": "2020-01-01T00:00:00Z"}"#, "until", "a time to come"),
    (RELEASE, r#"{"until": "9999-01-01T00:00:00Z"}"#, "until", "ten years"),
    (RELEASE, r#"{"until": "2027-01-01T00:00:00Z", "until": null}"#, "until", "once"),
    ("/api/v1/incidents/web/approve", r#"{"until": null}"#, "until", "reason"),
    (EXEMPT, r#"{"reason": "x", "namespace": {"exact": "a"}, "app": null}"#, "app", r#"{"exact": "#),
    (EXEMPT, r#"{"reason": "x", "app": {"exact": "a", "regex": null}}"#, "app.regex", "a text"),
    (EXEMPT, "{}", "reason", "a value"),
    (EXEMPT, r#"{"reason": "x"}"#, "body", "namespace, app, process"),
    (EXEMPT, r#"{"reason": " ", "app": {"exact": "a"}}"#, "reason", "not blank"),
    (RELEASE, r#"{"reason": ""}"#, "reason", "not blank"),
    ("/api/v1/incidents/web/approve", r#"{"reason": "\t\n"}"#, "reason", "not blank"),
    (ENFORCE, r#"{"mode": "paused", "reason": " "}"#, "reason", "not blank"),
    (ENFORCE, r#"{"mode": null, "reason": ""}"#, "reason", "not blank"),
    (EXEMPT, r#"{"reason": "x", "namespace": "ns-a"}"#, "namespace", r#"{"exact": "#),
    (EXEMPT, r#"{"reason": "x", "namespace": {"exact": "NS"}}"#, "namespace", "1 to 63"),
    (EXEMPT, r#"{"reason": "x", "app": {"exact": ""}}"#, "app", "1 character"),
    (EXEMPT, r#"{"reason": "x", "app": {}}"#, "app", "either"),
    (EXEMPT, r#"{"reason": "x", "app": {"glob": "a*"}}"#, "app.glob", "exact, regex"),
    (EXEMPT, r#"{"reason": "x", "rule": {"regex": "("}}"#, "rule.regex", "a regular expression"),
    (EXEMPT, r#"{"reason": "x", "app": {"exact": "a"}, "confirm": -1}"#, "confirm", "whole number"),
    (EXEMPT, r#"{"reason": "x", "app": {"exact": "a"}, "id": "A b"}"#, "id", "a host name"),
    (EXEMPT, r#"{"reason": "x", "app": {"exact": "a"}, "until": 7}"#, "until", DATE),
    (
        EXEMPT,
        r#"{"reason": "x", "app": {"exact": "a"}, "until": "2020-01-01T00:00:00Z"}"#,
        "until",
        "to come",
    ),
    (
        EXEMPT,
        r#"{"reason": "x", "app": {"exact": "a"}, "until": "9999-01-01T00:00:00Z"}"#,
        "until",
        "ten years",
    ),
    (ENFORCE, "{}", "mode", "a value"),
    (ENFORCE, r#"{"mode": "Paused"}"#, "mode", "`enforce`, `dry_run`, `paused`"),
];

#[tokio::test]
async fn every_bad_body_is_refused_with_its_place_and_what_is_expected_there() {
    let operator = OperatorStage::open().await;
    for (path, body, parameter, expected) in BAD_BODIES {
        let method = if *path == ENFORCE { Method::PUT } else { Method::POST };
        let (status, problem) = operator.send(method, path, Some("application/json"), body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}: {problem}");
        assert_names(&problem, parameter, expected, body);
    }
    let (_, problem) =
        operator.send(Method::POST, RELEASE, Some("application/json"), r#"{"reason": 5}"#).await;
    assert_eq!(problem["detail"], "reason: invalid value 5: expected a text");
    assert_eq!(problem["value"], "5");

    let kinds = [None, Some("text/plain"), Some("application/x-www-form-urlencoded")];
    for kind in kinds {
        let (status, problem) = operator.send(Method::POST, RELEASE, kind, "{}").await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert_names(&problem, "Content-Type", "application/json", &format!("{kind:?}"));
    }
    let long = format!(r#"{{"reason": "{}"}}"#, "x".repeat(70_000));
    let (status, problem) = operator.send(Method::POST, RELEASE, Some("application/json"), &long).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_names(&problem, "body", "64 KiB", "a long one");
    // What is right is taken as before.
    let right = r#"{"id": "a", "reason": "x", "app": {"exact": "a"}, "until": null}"#;
    let kind = Some("application/json; charset=utf-8");
    assert_eq!(operator.send(Method::POST, EXEMPT, kind, right).await.0, StatusCode::CREATED);
}

#[tokio::test]
async fn every_list_refuses_the_same_limits_and_every_unknown_parameter() {
    let operator = OperatorStage::open().await;
    let table: &[(&str, &str, &str)] = &[
        ("decisions?limit=0", "limit", "a whole number from 1 to 1000"),
        ("decisions?limit=1001", "limit", "a whole number from 1 to 1000"),
        ("decisions?limit=99999", "limit", "a whole number from 1 to 1000"),
        ("decisions?limit=ten", "limit", "a whole number from 1 to 1000"),
        ("decisions?limit=1&limit=2", "limit", "a whole number from 1 to 1000"),
        ("decisions?since=yesterday", "since", "2027-01-01T00:00:00Z"),
        ("decisions?until=2027-01-01", "until", "2027-01-01T00:00:00Z"),
        ("decisions?decision=block", "decision", "blocked"),
        ("decisions?namespace=NS_A", "namespace", "1 to 63 of a-z"),
        ("decisions?actor=", "actor", "1 character"),
        ("decisions?app=web", "app", "namespace, name, decision"),
        ("decisions?sort=name", "sort", "one of at"),
        ("decisions?since=0s", "since", "24h"),
        ("incidents?state=gone", "state", "watched, grace, held"),
        ("incidents?state=Held&state=Held", "state", "watched, grace, held"),
        ("incidents?namespace=", "namespace", "1 to 63 of a-z"),
        ("incidents?limit=0", "limit", "a whole number from 1 to 1000"),
        ("incidents?cursor=x", "cursor", "next"),
        (
            "incidents?app=web",
            "app",
            "namespace, name, type, state, process, rule, node, sort, limit, cursor",
        ),
        ("incidents?sort=name", "sort", "one of opened, since, app, maybe with - in front"),
        ("apps?sort=-opened", "sort", "one of app, since"),
        ("decisions?cursor=5b5d", "cursor", "next"),
        ("incidents/web?state=Held", "state", "namespace"),
        ("exemptions/web?state=Held", "state", "namespace"),
        ("nodes?state=ready", "state", "fresh, stale, unusable, never_seen"),
        ("nodes?namespace=ns-a", "namespace", "node, state, q, sort, limit, cursor"),
        ("nodes?limit=1001", "limit", "a whole number from 1 to 1000"),
        ("plan?list=blocked", "list", "blocks, notices, held, disputes"),
        ("plan?cursor=22", "cursor", "next"),
        ("exemptions?name=a", "name", "namespace, state, q, sort, limit, cursor"),
        ("exemptions?cursor=", "cursor", "next"),
        ("enforcement?mode=paused", "mode", "no parameters"),
    ];
    for (query, parameter, expected) in table {
        let (status, headers, body) = operator.stage.get(&format!("/api/v1/{query}")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}: {body}");
        assert_eq!(headers["content-type"], "application/problem+json");
        assert_names(&json(&body), parameter, expected, query);
    }
    // A command is not carried out if a part of the request is not known.
    for (method, path, body) in [
        (Method::POST, "/api/v1/exemptions?dry_run=true", r#"{"reason": "x", "app": {"exact": "a"}}"#),
        (Method::POST, "/api/v1/incidents/web/release?dry_run=true", "{}"),
        (Method::POST, "/api/v1/incidents/web/approve?dry_run=true", "{}"),
        (Method::PUT, "/api/v1/enforcement?dry_run=true", r#"{"mode": "paused"}"#),
        (Method::DELETE, "/api/v1/exemptions/a?dry_run=true", ""),
    ] {
        let (status, problem) = operator.send(method, path, Some("application/json"), body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {problem}");
        assert_names(&problem, "dry_run", "no parameters", path);
    }
    assert_eq!(json(&operator.stage.get("/api/v1/exemptions").await.2)["exemptions"], json!([]));
    for path in ["decisions?limit=1", "decisions?limit=1000", "decisions", "nodes", "plan?", "exemptions"] {
        assert_eq!(operator.stage.get(&format!("/api/v1/{path}")).await.0, StatusCode::OK, "{path}");
    }
    for path in ["/health?x=1", "/livez?x=1", "/readyz?x=1", "/openapi.json?x=1", "/api/violations?x=1"] {
        let (status, _, body) = operator.stage.get(path).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}");
        assert_eq!(json(&body)["parameter"], "x", "{path}: {body}");
    }
}

#[tokio::test]
async fn the_names_of_states_and_decisions_are_those_of_the_command_line_in_any_case() {
    let operator = OperatorStage::open().await;
    let names = async |query: &str| -> Vec<String> {
        let (status, _, body) = operator.stage.get(&format!("/api/v1/incidents?state={query}")).await;
        assert_eq!(status, StatusCode::OK, "{query}: {body}");
        let body = json(&body);
        body["incidents"].as_array().unwrap().iter().map(|it| it["name"].to_string()).collect()
    };
    for query in ["Held", "held", "HELD"] {
        assert_eq!(names(query).await, ["\"web\""], "{query}");
    }
    for name in crate::wire_names::STATES {
        let expected = usize::from(name == "held");
        for query in [name.to_owned(), name.to_uppercase(), name.replace('_', "")] {
            assert_eq!(names(&query).await.len(), expected, "{query}");
        }
    }
    for name in ["blocked", "Release_Held", "EXEMPTED"] {
        let (status, _, body) = operator.stage.get(&format!("/api/v1/decisions?decision={name}")).await;
        assert_eq!(status, StatusCode::OK, "{name}: {body}");
    }
}

#[tokio::test]
async fn a_long_reason_is_refused_as_the_crds_bound_it() {
    let operator = OperatorStage::open().await;
    let (approve, release) = ("/api/v1/incidents/web/approve", "/api/v1/incidents/web/release");
    let (exempt, enforce) = ("/api/v1/exemptions", "/api/v1/enforcement");
    for (path, method, field) in [
        (release, Method::POST, "reason"),
        (approve, Method::POST, "reason"),
        (enforce, Method::PUT, "reason"),
        (exempt, Method::POST, "reason"),
        (exempt, Method::POST, "app.exact"),
        (exempt, Method::POST, "rule.regex"),
    ] {
        let body = |long: &str| {
            let mut body = match path {
                path if path == enforce => serde_json::json!({"mode": "paused"}),
                path if path == exempt => {
                    serde_json::json!({"reason": "x", "app": {"exact": "a"}, "rule": {"regex": "a"}, "confirm": 9})
                }
                _ => serde_json::json!({}),
            };
            match field.split_once('.') {
                Some((part, member)) => body[part][member] = long.into(),
                None => body[field] = long.into(),
            }
            body.to_string()
        };
        // Characters, not bytes. What is to be done to an incident would be waited for: nothing decides here.
        for (long, is_taken) in
            [("\u{e9}".repeat(1024), true), ("x".repeat(1025), false), ("x".repeat(60_000), false)]
        {
            if is_taken && path.contains("/incidents/") {
                continue;
            }
            let (status, answer) =
                operator.send(method.clone(), path, Some("application/json"), &body(&long)).await;
            if is_taken {
                assert!(status.is_success(), "{path} {field}: {answer}");
                continue;
            }
            assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {field}: {answer}");
            assert_names(&answer, field, "up to 1024 characters", path);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pending_command_says_when_it_will_be_carried_out_and_a_change_of_the_mode_says_which_is_in_force()
{
    for (mode, in_force, says, not) in [
        (json!("paused"), "paused", "as soon as a replica leads", "dry-run"),
        (json!("dry_run"), "dry_run", "`mode enforce`", "a replica leads"),
        (Value::Null, "enforce", "as soon as a replica leads", "dry-run"),
    ] {
        // No replica leads.
        let operator = OperatorStage::open().await;
        let send = async |method, path, body: Value| {
            operator.send(method, path, Some("application/json"), &body.to_string()).await
        };
        let (status, answer) = send(Method::PUT, "/api/v1/enforcement", json!({"mode": mode})).await;
        assert_eq!((status, &answer["mode"], &answer["in_force"]), (StatusCode::OK, &mode, &json!(in_force)));
        let (_, shown) = send(Method::GET, "/api/v1/enforcement", Value::Null).await;
        assert_eq!(shown["mode"], in_force);
        let (status, answer) = send(Method::POST, "/api/v1/incidents/web/release", json!({})).await;
        assert_eq!((status, &answer["status"]), (StatusCode::ACCEPTED, &json!("persisted")), "{answer}");
        let detail = answer["detail"].as_str().unwrap();
        assert!(detail.contains(says) && !detail.contains(not), "{detail}");
    }
}

/// A body that never comes.
fn nothing() -> Body {
    Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>())
}

#[tokio::test(start_paused = true)]
async fn a_body_is_waited_for_only_if_its_sender_is_admitted_and_then_not_for_long() {
    let operator = OperatorStage::open().await;
    for (method, path) in [
        (Method::POST, "/api/v1/incidents/web/approve"),
        (Method::POST, "/api/v1/incidents/web/release"),
        (Method::POST, "/api/v1/exemptions"),
        (Method::PUT, "/api/v1/enforcement"),
    ] {
        let ask = async |token: Option<&str>| {
            let begun = tokio::time::Instant::now();
            let mut request =
                Request::builder().method(&method).uri(path).header("content-type", "application/json");
            if let Some(token) = token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let (status, headers, body) = operator.stage.ask(request.body(nothing()).unwrap()).await;
            (status, headers, json(&body), begun.elapsed().as_secs())
        };
        for token in [None, Some("mallory-mallory-mallory")] {
            let (status, _, problem, waited) = ask(token).await;
            assert_eq!((status, waited), (StatusCode::UNAUTHORIZED, 0), "{path}: {problem}");
        }
        let (status, headers, problem, waited) = ask(Some(TOKEN)).await;
        assert_eq!((status, waited), (StatusCode::REQUEST_TIMEOUT, 10), "{path}: {problem}");
        assert_eq!(headers["connection"], "close");
        assert_names(&problem, "body", "within 10s", path);
    }
}

#[tokio::test(start_paused = true)]
async fn readiness_says_what_is_wrong_with_the_token_file() {
    let operator = OperatorStage::open().await;
    let auth = async || json(&operator.stage.get("/readyz").await.2)["auth"].clone();
    assert_eq!(auth().await, json!({"ok": true}));
    let tokens = operator.directory.path().join("tokens");
    std::fs::write(&tokens, "alice\n").unwrap();
    tokio::time::advance(std::time::Duration::from_secs(1)).await;
    let refused = auth().await;
    assert_eq!(refused["ok"], false);
    let error = refused["error"].as_str().unwrap();
    assert!(
        error.starts_with("api.token_file: line 1: ") && error.ends_with("the last 1 tokens are accepted"),
        "{error}"
    );
    // Without the file no token is accepted, so no caller sees the details.
    std::fs::remove_file(tokens).unwrap();
    tokio::time::advance(std::time::Duration::from_secs(1)).await;
    assert_eq!(auth().await, Value::Null);
    let body = r#"{"mode": "paused"}"#;
    let kind = Some("application/json");
    let (status, _) = operator.send(Method::PUT, "/api/v1/enforcement", kind, body).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}
