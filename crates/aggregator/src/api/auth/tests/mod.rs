mod cluster;

use std::io::Write;
use std::time::Duration;

use axum::response::IntoResponse;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use serde_json::Value;

use self::cluster::Server;
use super::*;

const ALICE: &str = "token-of-alice";
const WITHOUT_CLUSTER: &str = "discovery: {mode: static, targets: [a]}\noutput: {mode: directory}\n";

fn with(token: &str) -> HeaderMap {
    let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
    HeaderMap::from_iter([(header::AUTHORIZATION, value)])
}

fn release_in(namespace: Option<&str>) -> Right {
    let namespace = namespace.map(str::to_owned);
    Right::Object { verb: "release", resource: "incidents", namespace, name: None }
}

/// A problem as a client sees it.
async fn seen<T: std::fmt::Debug>(answer: Result<T, Problem>) -> (u16, HeaderMap, Value) {
    let (head, body) = answer.unwrap_err().into_response().into_parts();
    assert_eq!(head.headers["content-type"], "application/problem+json");
    let body = body.collect().await.unwrap().to_bytes();
    (head.status.as_u16(), head.headers, serde_json::from_slice(&body).unwrap())
}

async fn status<T: std::fmt::Debug>(answer: Result<T, Problem>) -> u16 {
    seen(answer).await.0
}

#[tokio::test]
async fn only_a_bearer_token_is_asked_about() {
    let (server, auth) = Server::start();
    let cases: [(&[&str], u16, &str); 9] = [
        (&[], 401, "Bearer"),
        (&["Basic YWxpY2U6eA=="], 401, "Bearer"),
        (&[ALICE], 401, "Bearer"),
        (&["Bearer"], 400, "Bearer error=\"invalid_request\""),
        (&["Bearer  "], 400, "Bearer error=\"invalid_request\""),
        (&["Bearer a b"], 400, "Bearer error=\"invalid_request\""),
        (&["Bearer \"a\""], 400, "Bearer error=\"invalid_request\""),
        (&["Bearer \u{e9}"], 400, "Bearer error=\"invalid_request\""),
        (&["Bearer token-of-alice", "Bearer token-of-alice"], 400, "Bearer error=\"invalid_request\""),
    ];
    for (values, expected, challenge) in cases {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let (status, headers, _) = seen(auth.authenticate(&headers).await).await;
        assert_eq!(
            (status, headers["www-authenticate"].to_str().unwrap()),
            (expected, challenge),
            "{values:?}"
        );
    }
    assert_eq!(server.asked(), 0);
    let lower =
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static("bearer  token-of-alice"))]);
    assert_eq!(auth.authenticate(&lower).await.unwrap().name, "alice");
}

#[tokio::test(start_paused = true)]
async fn an_account_of_the_token_file_without_scopes_may_do_everything() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_owned();
    let write = |text: &str| std::fs::write(&path, text).unwrap();
    writeln!(file, "alice alice-alice-alice").unwrap();
    let config = format!("{WITHOUT_CLUSTER}api: {{auth: tokens, token_file: {}}}\n", path.display());
    let auth =
        Authenticator::new(&Config::parse(&config, "c", [], jiff::Timestamp::UNIX_EPOCH).unwrap(), None)
            .unwrap();
    let name = async |token: &str| auth.authenticate(&with(token)).await.map(|caller| caller.name.clone());
    let alice = auth.authenticate(&with("alice-alice-alice")).await.unwrap();
    assert_eq!(*alice, Caller::named("alice", Scopes::everything()));
    auth.authorize(&alice, &release_in(None)).await.unwrap();
    let (status, headers, _) = seen(name("alice-alice-alicf").await).await;
    assert_eq!(
        (status, headers["www-authenticate"].to_str().unwrap()),
        (401, "Bearer error=\"invalid_token\"")
    );
    assert_eq!(self::status(auth.authenticate(&HeaderMap::new()).await).await, 401);

    // Another list of the same length at the same time is seen after a second, and not before.
    write("bobby bobby-bobby-bobby\n");
    assert_eq!(name("alice-alice-alice").await.unwrap(), "alice");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(self::status(name("alice-alice-alice").await).await, 401);
    assert_eq!(name("bobby-bobby-bobby").await.unwrap(), "bobby");
    // What is written wrongly changes nothing; an empty list does.
    write("carol\n");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(name("bobby-bobby-bobby").await.unwrap(), "bobby");
    let trouble = auth.trouble().await.unwrap();
    assert!(trouble.contains("line 1") && trouble.ends_with("the last 1 tokens are accepted"), "{trouble}");
    write("");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(self::status(name("bobby-bobby-bobby").await).await, 401);
}

#[tokio::test]
async fn the_scopes_of_a_token_say_what_its_account_may_do() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let lines = [
        ("admin", ""),
        ("reader", "read"),
        ("tenant", "namespace=ns-a"),
        ("auditor", "cmdline"),
        ("scraper", "metrics"),
        ("operator", "operate"),
    ];
    let text = lines.map(|(name, scopes)| format!("{name} {name}-{name}-{name}-{name} {scopes}\n")).concat();
    std::fs::write(file.path(), text).unwrap();
    let config = format!("{WITHOUT_CLUSTER}api: {{token_file: {}}}\n", file.path().display());
    let config = Config::parse(&config, "c", [], jiff::Timestamp::UNIX_EPOCH).unwrap();
    let auth = Authenticator::new(&config, None).unwrap();
    let rights = [
        Right::to_read("list", None),
        Right::to_read("get", Some("ns-a")),
        Right::to_read("list", Some("ns-b")),
        Right::to_cmdlines(None),
        Right::to_cmdlines(Some("ns-a")),
        Right::Path("/metrics"),
        release_in(Some("ns-a")),
    ];
    for (name, expected) in [
        ("admin", [true; 7]),
        ("reader", [true, true, true, false, false, true, false]),
        ("tenant", [false, true, false, false, false, false, false]),
        ("auditor", [true, true, true, true, true, true, false]),
        ("scraper", [false, false, false, false, false, true, false]),
        ("operator", [true, true, true, false, false, true, true]),
    ] {
        let caller = auth.authenticate(&with(&format!("{name}-{name}-{name}-{name}"))).await.unwrap();
        for (right, expected) in rights.iter().zip(expected) {
            assert_eq!(auth.may(&caller, right).await.unwrap(), expected, "{name}: {right:?}");
            if !expected {
                let (status, _, problem) = seen(auth.authorize(&caller, right).await).await;
                let detail = problem["detail"].as_str().unwrap();
                assert!(status == 403 && detail.starts_with(&format!("{name} may not ")), "{problem}");
                // It names its own scopes, and nothing of others.
                assert!(detail.contains(&caller.scopes.to_string()), "{problem}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_file_that_is_gone_takes_its_tokens_with_it_until_it_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokens");
    let text = "alice alice-alice-alice\n";
    std::fs::write(&path, text).unwrap();
    let config = format!("{WITHOUT_CLUSTER}api: {{auth: tokens, token_file: {}}}\n", path.display());
    let auth =
        Authenticator::new(&Config::parse(&config, "c", [], jiff::Timestamp::UNIX_EPOCH).unwrap(), None)
            .unwrap();
    let asked =
        async || auth.authenticate(&with("alice-alice-alice")).await.map(|caller| caller.name.clone());
    let gone = || std::fs::remove_file(&path).unwrap();
    let replaced = || {
        gone();
        std::fs::create_dir(&path).unwrap();
    };
    let takings: [(&dyn Fn(), &str); 2] = [(&gone, "No such file"), (&replaced, "a plain file")];
    for (take, says) in takings {
        assert_eq!((asked().await.unwrap(), auth.trouble().await), ("alice".to_owned(), None));
        take();
        tokio::time::advance(Duration::from_secs(1)).await;
        // A probe says so although no request has had a token.
        let trouble = auth.trouble().await.unwrap();
        assert!(trouble.contains(says) && trouble.ends_with("no token is accepted"), "{trouble}");
        assert_eq!(status(asked().await).await, 401);
        if path.is_dir() {
            std::fs::remove_dir(&path).unwrap();
        }
        std::fs::write(&path, text).unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert_eq!((asked().await.unwrap(), auth.trouble().await), ("alice".to_owned(), None));
}

#[test]
fn what_is_read_of_the_token_file_counts_although_the_request_has_gone_meanwhile() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        std::fs::write(&path, "alice alice-alice-alice\n").unwrap();
        let config = format!("{WITHOUT_CLUSTER}api: {{auth: tokens, token_file: {}}}\n", path.display());
        let auth =
            Authenticator::new(&Config::parse(&config, "c", [], jiff::Timestamp::UNIX_EPOCH).unwrap(), None)
                .unwrap();
        let headers = with("alice-alice-alice");
        std::fs::remove_file(&path).unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        // The only thread that could read the file is busy until all present requests have gone.
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = tokio::task::spawn_blocking(move || ended.recv());
        for _ in 0..3 {
            assert!(auth.authenticate(&headers).now_or_never().is_none());
        }
        end.send(()).unwrap();
        thread.await.unwrap().unwrap();
        assert_eq!(status(auth.authenticate(&headers).await).await, 401);
    });
}

#[tokio::test]
async fn where_no_caller_is_identified_every_caller_may_read_and_none_may_change_anything() {
    let auth = Authenticator::new(
        &Config::parse(WITHOUT_CLUSTER, "c", [], jiff::Timestamp::UNIX_EPOCH).unwrap(),
        None,
    )
    .unwrap();
    let caller = auth.authenticate(&with(ALICE)).await.unwrap();
    assert_eq!(caller.name, "anonymous");
    auth.authorize(&caller, &Right::to_read("list", None)).await.unwrap();
    assert!(!auth.may(&caller, &Right::to_cmdlines(None)).await.unwrap());
    let (status, _, problem) = seen(auth.authorize(&caller, &release_in(None)).await).await;
    assert_eq!(status, 403);
    assert!(problem["detail"].as_str().unwrap().contains("`api.auth`"), "{problem}");
}
