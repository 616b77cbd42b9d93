use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::*;

/// An API server that knows Alice, and that Alice may release in ns-a.
pub(super) struct Server {
    asked: Mutex<Vec<Value>>,
    /// Token reviews wait here while it is empty.
    gate: Semaphore,
    waiting: AtomicUsize,
    /// Instead of the right answer.
    answer: Mutex<Option<(StatusCode, String)>>,
}

impl Server {
    pub(super) fn start() -> (Arc<Self>, Authenticator) {
        let server = Arc::new(Self {
            asked: Mutex::default(),
            gate: Semaphore::new(1000),
            waiting: AtomicUsize::new(0),
            answer: Mutex::default(),
        });
        let router = Router::new()
            .route("/apis/authentication.k8s.io/v1/tokenreviews", post(Self::token_review))
            .route("/apis/authorization.k8s.io/v1/subjectaccessreviews", post(Self::access_review))
            .with_state(server.clone());
        let cluster = Cluster::with_client(kube::Client::new(router, "default"));
        let authenticator = Authenticator::new(&Config::default(), Some(&cluster)).unwrap();
        (server, authenticator)
    }

    async fn token_review(State(server): State<Arc<Self>>, question: String) -> Response {
        server
            .answer(&question, |question| match question["spec"]["token"].as_str() {
                Some(ALICE) => json!({"authenticated": true, "user": {
                    "username": "alice", "uid": "u-1", "groups": ["ops", "system:authenticated"],
                    "extra": {"example.com/scopes": ["a", "b"]},
                }}),
                _ => json!({"user": {}, "error": "invalid bearer token"}),
            })
            .await
    }

    async fn access_review(State(server): State<Arc<Self>>, question: String) -> Response {
        server
            .answer(&question, |question| {
                let (spec, right) = (&question["spec"], &question["spec"]["resourceAttributes"]);
                let may = spec["user"] == "alice"
                    && ((right["namespace"] == "ns-a"
                        && (right["verb"] == "release" || right["verb"] == "list"))
                        || (right["subresource"] == "cmdline" && right["resource"] == "violations")
                        || spec["nonResourceAttributes"] == json!({"path": "/metrics", "verb": "get"}));
                json!({"allowed": may})
            })
            .await
    }

    async fn answer(&self, question: &str, status: fn(&Value) -> Value) -> Response {
        let mut question: Value = serde_json::from_str(question).unwrap();
        self.asked.lock().unwrap().push(question.clone());
        if question["kind"] == "TokenReview" {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            self.gate.acquire().await.unwrap().forget();
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(answer) = self.answer.lock().unwrap().clone() {
            return answer.into_response();
        }
        question["status"] = status(&question);
        (StatusCode::CREATED, question.to_string()).into_response()
    }

    fn answers(&self, status: u16, body: &str) {
        *self.answer.lock().unwrap() = Some((StatusCode::from_u16(status).unwrap(), body.to_owned()));
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

#[tokio::test]
async fn the_cluster_says_who_asks() {
    let (server, auth) = Server::start();
    let caller = auth.authenticate(&with(ALICE)).await.unwrap();
    let expected = Caller {
        name: "alice".to_owned(),
        uid: Some("u-1".to_owned()),
        groups: ["ops", "system:authenticated"].map(str::to_owned).to_vec(),
        extra: [("example.com/scopes".to_owned(), ["a", "b"].map(str::to_owned).to_vec())].into(),
        scopes: Scopes::everything(),
    };
    assert_eq!(*caller, expected);
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {"token": ALICE}});
    assert_eq!(*server.asked.lock().unwrap(), [review]);

    let (status, headers, problem) = seen(auth.authenticate(&with("token-of-mallory")).await).await;
    assert_eq!(
        (status, headers["www-authenticate"].to_str().unwrap()),
        (401, "Bearer error=\"invalid_token\"")
    );
    assert!(problem["detail"].as_str().unwrap().contains("does not accept this token"));
    // An account needs both an accepted token and a name.
    for (token, answer) in [
        ("x", r#"{"status": {"authenticated": true}}"#),
        ("y", r#"{"status": {"authenticated": true, "user": {"username": ""}}}"#),
        ("z", r#"{"status": {"user": {"username": "alice"}}}"#),
    ] {
        server.answers(201, answer);
        assert_eq!(self::status(auth.authenticate(&with(token)).await).await, 401, "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_the_cluster_holds_for_some_seconds() {
    let (server, auth) = Server::start();
    let (known, unknown) = (with(ALICE), with("token-of-mallory"));
    // Seconds, and how often the cluster has been asked by then: about Alice at 0 and 10, about Mallory at 0, 3, 6 and 9.
    for (at, asked) in [(0, 2), (2, 2), (3, 3), (5, 3), (6, 4), (9, 5), (10, 6), (11, 6)] {
        for _ in 0..3 {
            assert!(auth.authenticate(&known).await.is_ok());
            assert_eq!(status(auth.clone().authenticate(&unknown).await).await, 401);
        }
        assert_eq!(server.asked(), asked, "at {at}s");
        let next = [2, 3, 5, 6, 9, 10, 11].into_iter().find(|next| *next > at).unwrap_or(at);
        tokio::time::advance(Duration::from_secs(next - at)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_bad_tokens_neither_floods_the_cluster_nor_locks_out_who_is_known() {
    let (server, auth) = Server::start();
    auth.authenticate(&with(ALICE)).await.unwrap();
    server.gate.forget_permits(1000);
    let mut flood = JoinSet::new();
    for n in 0..20 {
        let auth = auth.clone();
        flood.spawn(async move { seen(auth.authenticate(&with(&format!("bad-{n}"))).await).await });
    }
    for _ in 0..12 {
        let (status, headers, problem) = flood.join_next().await.unwrap().unwrap();
        assert_eq!((status, headers["retry-after"].to_str().unwrap()), (503, "1"));
        assert!(problem["detail"].as_str().unwrap().contains("too many"));
    }
    assert_eq!((server.waiting.load(Ordering::Relaxed), server.asked()), (8, 1 + 8));
    // A known account does not wait, and neither does an access review.
    let alice = auth.authenticate(&with(ALICE)).await.unwrap();
    auth.authorize(&alice, &release_in(Some("ns-a"))).await.unwrap();
    assert_eq!(server.waiting.load(Ordering::Relaxed), 8);
    server.gate.add_permits(1000);
    while let Some(answer) = flood.join_next().await {
        assert_eq!(answer.unwrap().0, 401);
    }
    assert_eq!(status(auth.authenticate(&with("bad-20")).await).await, 401);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_the_same_answer_takes_it() {
    let (server, auth) = Server::start();
    server.gate.forget_permits(1000);
    let mut all = JoinSet::new();
    for _ in 0..100 {
        let auth = auth.clone();
        all.spawn(async move { auth.authenticate(&with(ALICE)).await.is_ok() });
    }
    tokio::time::advance(Duration::from_millis(500)).await;
    while server.waiting.load(Ordering::Relaxed) < 8 {
        tokio::task::yield_now().await;
    }
    server.gate.add_permits(1000);
    assert!(all.join_all().await.into_iter().all(|is_known| is_known));
    assert_eq!(server.asked(), 8);
}

/// Answers that are none, and what their problem says.
const NO_ANSWERS: [(u16, &str, [&str; 2]); 4] = [
    (500, "broken", ["not answered `create ", "well"]),
    (429, "", ["not answered `create ", "well"]),
    (201, "{}", ["not answered `create ", "well"]),
    (201, "{\"status\": {\"allowed\": \"yes\", \"authenticated\": \"yes\"}}", ["not answered", "well"]),
];
const FORBIDDEN: (u16, &str, [&str; 2]) = (
    403,
    r#"{"kind": "Status", "status": "Failure", "message": "cannot create", "code": 403}"#,
    ["refuses `create ", "RBAC"],
);

#[tokio::test(start_paused = true)]
async fn without_an_answer_of_the_cluster_no_caller_is_known_and_none_has_a_right() {
    let (server, auth) = Server::start();
    let alice = Caller { name: "alice".to_owned(), ..Caller::anonymous() };
    for (code, body, says) in [FORBIDDEN].into_iter().chain(NO_ANSWERS) {
        server.answers(code, body);
        let who = seen(auth.authenticate(&with(ALICE)).await).await;
        let may = seen(auth.authorize(&alice, &release_in(Some("ns-a"))).await).await;
        for ((status, headers, problem), resource) in [(who, "tokenreviews"), (may, "subjectaccessreviews")] {
            assert_eq!((status, headers["retry-after"].to_str().unwrap()), (503, "5"), "{body}");
            let detail = problem["detail"].as_str().unwrap();
            assert!(says.iter().all(|text| detail.contains(text)) && detail.contains(resource), "{detail}");
            assert!(!detail.contains("broken"), "{detail}");
        }
    }
    // No answer at all.
    server.gate.forget_permits(1000);
    let start = tokio::time::Instant::now();
    assert_eq!(status(auth.authenticate(&with(ALICE)).await).await, 503);
    assert_eq!(start.elapsed(), Duration::from_secs(15));
    // None of that is remembered.
    server.gate.add_permits(1000);
    *server.answer.lock().unwrap() = None;
    auth.authenticate(&with(ALICE)).await.unwrap();
    auth.authorize(&alice, &release_in(Some("ns-a"))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn while_the_cluster_gives_no_answer_an_account_may_read_what_it_could_read_and_change_nothing() {
    let (server, auth) = Server::start();
    let (read, write) = (Right::to_read("list", Some("ns-a")), release_in(Some("ns-a")));
    let denied = Right::to_read("list", Some("ns-b"));
    let alice = auth.authenticate(&with(ALICE)).await.unwrap();
    auth.authorize(&alice, &read).await.unwrap();
    auth.authorize(&alice, &write).await.unwrap();
    assert_eq!(status(auth.authorize(&alice, &denied).await).await, 403);
    assert_eq!(status(auth.authenticate(&with("token-of-mallory")).await).await, 401);
    tokio::time::advance(Duration::from_secs(11)).await;
    for (code, body, _) in NO_ANSWERS {
        server.answers(code, body);
        auth.authenticate(&with(ALICE)).await.unwrap();
        auth.authorize(&alice, &read).await.unwrap();
        assert_eq!(status(auth.authorize(&alice, &write).await).await, 503, "{body}");
        assert_eq!(status(auth.authorize(&alice, &denied).await).await, 503, "{body}");
        assert_eq!(status(auth.authenticate(&with("token-of-mallory")).await).await, 503, "{body}");
    }
    // The API server answers, and refuses the question.
    server.answers(FORBIDDEN.0, FORBIDDEN.1);
    assert_eq!(status(auth.authenticate(&with(ALICE)).await).await, 503);
    assert_eq!(status(auth.authorize(&alice, &read).await).await, 503);
    // Ten minutes after the last answer nothing is kept.
    server.answers(500, "broken");
    tokio::time::advance(Duration::from_mins(10)).await;
    assert_eq!(status(auth.authenticate(&with(ALICE)).await).await, 503);
    assert_eq!(status(auth.authorize(&alice, &read).await).await, 503);
}

#[tokio::test]
async fn rights_to_subresources_and_paths_are_asked_in_the_terms_of_the_cluster() {
    let (server, auth) = Server::start();
    let alice = auth.authenticate(&with(ALICE)).await.unwrap();
    auth.authorize(&alice, &Right::to_cmdlines(None)).await.unwrap();
    auth.authorize(&alice, &Right::Path("/metrics")).await.unwrap();
    let asked = server.asked.lock().unwrap().clone();
    let expected = json!({"group": "procscan.sealos.io", "resource": "violations", "subresource": "cmdline", "verb": "get"});
    assert_eq!(asked[1]["spec"]["resourceAttributes"], expected);
    assert_eq!(asked[2]["spec"]["nonResourceAttributes"], json!({"path": "/metrics", "verb": "get"}));
    let (_, _, problem) = seen(auth.authorize(&alice, &Right::Path("/other")).await).await;
    assert_eq!(problem["rule"], json!({"nonResourceURLs": ["/other"], "verbs": ["get"]}));
    let (_, _, problem) = seen(auth.authorize(&alice, &Right::to_read("list", None)).await).await;
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.ends_with(
        "no RBAC rule allows it; with a right in one namespace, ask for that one: `namespace=NAME`"
    ));
}

#[tokio::test]
async fn an_api_server_that_is_gone_is_reported_as_unreachable() {
    let gone = tower::service_fn(|_: axum::http::Request<kube::client::Body>| async {
        Err::<Response, _>(std::io::Error::from(std::io::ErrorKind::ConnectionRefused))
    });
    let cluster = Cluster::with_client(kube::Client::new(gone, "default"));
    let auth = Authenticator::new(&Config::default(), Some(&cluster)).unwrap();
    let (status, _, problem) = seen(auth.authenticate(&with(ALICE)).await).await;
    assert_eq!(status, 503);
    assert!(problem["detail"].as_str().unwrap().contains("the API server can't be reached"), "{problem}");
    assert!(matches!(Authenticator::new(&Config::default(), None), Err(AuthError::NoCluster)));
}

#[tokio::test(start_paused = true)]
async fn the_cluster_says_who_may() {
    let (server, auth) = Server::start();
    let alice = auth.authenticate(&with(ALICE)).await.unwrap();
    let of_web = |verb| {
        let (namespace, name) = (Some("ns-a".to_owned()), Some("web".to_owned()));
        Right::Object { verb, resource: "incidents", namespace, name }
    };
    let right = of_web("release");
    auth.authorize(&alice, &right).await.unwrap();
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {}, "spec": {
        "user": "alice", "uid": "u-1", "groups": ["ops", "system:authenticated"], "extra": {"example.com/scopes": ["a", "b"]},
        "resourceAttributes": {"group": "procscan.sealos.io", "resource": "incidents", "verb": "release", "namespace": "ns-a", "name": "web"},
    }});
    assert_eq!(server.asked.lock().unwrap()[1], review);

    let (status, _, problem) = seen(auth.authorize(&alice, &release_in(None)).await).await;
    assert_eq!(status, 403);
    assert_eq!(
        problem["detail"],
        "alice may not release incidents.procscan.sealos.io in all namespaces: no RBAC rule allows it"
    );
    let denied = of_web("approve");
    let (_, _, problem) = seen(auth.authorize(&alice, &denied).await).await;
    assert_eq!(
        problem["detail"],
        "alice may not approve incidents.procscan.sealos.io web in namespace ns-a: no RBAC rule allows it"
    );
    let rule = json!({"apiGroups": ["procscan.sealos.io"], "resources": ["incidents"], "verbs": ["approve"], "resourceNames": ["web"]});
    assert_eq!((&problem["rule"], &problem["namespace"]), (&rule, &json!("ns-a")));

    // Remembered for each caller and each right, for three seconds.
    assert_eq!(server.asked(), 4);
    auth.authorize(&alice, &right).await.unwrap();
    assert_eq!(self::status(auth.authorize(&alice, &denied).await).await, 403);
    assert_eq!(server.asked(), 4);
    let bob = Caller { name: "bob".to_owned(), ..(*alice).clone() };
    assert_eq!(self::status(auth.authorize(&bob, &right).await).await, 403);
    let demoted = Caller { groups: Vec::new(), ..(*alice).clone() };
    auth.authorize(&demoted, &right).await.unwrap();
    assert_eq!(server.asked(), 6);
    tokio::time::advance(Duration::from_secs(3)).await;
    // A denial counts over an approval in the same answer.
    server.answers(201, r#"{"status": {"allowed": true, "denied": true}}"#);
    assert_eq!(self::status(auth.authorize(&alice, &right).await).await, 403);
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_log_and_no_problem_shows_a_token() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let (server, auth) = Server::start();
    tracing::info!(?auth, "made");
    auth.authenticate(&with(ALICE)).await.unwrap();
    let mut problems = Vec::new();
    problems.push(seen(auth.authenticate(&with("token-of-mallory")).await).await.2);
    // Answers that can't be read, or repeat the question, as those of API servers do.
    for (code, answer) in [
        (201, r#"{"spec": {"token": "token-of-x"}, "status": "token-of-x"}"#),
        (201, r#"{"spec": {"token": "token-of-x"}}"#),
        (201, r#"{"status": {"error": "token-of-x is unknown"}}"#),
    ] {
        server.answers(code, answer);
        problems.push(seen(auth.authenticate(&with("token-of-x")).await).await.2);
    }
    let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(
        logged.contains("a token was refused") && logged.contains("requests can't be authenticated"),
        "{logged}"
    );
    for text in [logged, json!(problems).to_string()] {
        assert!(!text.contains("token-of-"), "{text}");
    }
}
