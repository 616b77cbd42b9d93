//! Refusals, and other failures between the program and the API.

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::fake_api::{Api, PROBLEM, Reply, command, problem, reply, run};

#[test]
fn a_refusal_is_one_line_with_the_next_step() {
    for (status, detail, expected) in [
        (400, "until: a time to come", "400 Bad Request: until: a time to come"),
        (
            401,
            "a bearer token is needed",
            "401 Unauthorized: a bearer token is needed; give a token by --token-file or PROCSCAN_TOKEN",
        ),
        (403, "no account\nmay change \u{1b}[31m", "403 Forbidden: no account\\nmay change \\u{1b}[31m"),
        (
            404,
            "there is no incident i-1",
            "404 Not Found: there is no incident i-1; give the name of one that `procscan-aggregator incidents` lists, \
             or an App as NAMESPACE/APP",
        ),
        (409, "the incident is over", "409 Conflict: the incident is over"),
    ] {
        let api = Api::new(vec![problem("POST ", status, detail)]);
        assert_eq!(api.run(&["approve", "i-1"]).refused(1), expected);
    }
    // A refusal by the cluster's RBAC has the missing rule, so the next step is another right or account.
    let denied = json!({"title": "Forbidden", "status": 403, "detail": "alice may not patch", "rule": {"verbs": ["patch"]}});
    assert_eq!(
        Api::only(403, denied).run(&["approve", "i-1"]).refused(1),
        "403 Forbidden: alice may not patch; ask for that right, or use the token of an account that has it: kubectl \
         create token NAME -n kube-system"
    );
    let mut busy = problem("", 503, "the API server can't be reached");
    let api = Api::new(vec![busy]);
    let see = format!("{}/readyz says what is wrong", api.url());
    let expected = format!("503 Service Unavailable: the API server can't be reached; {see}");
    assert_eq!(api.run(&["decisions"]).refused(1), expected);
    busy = problem("", 503, &"x".repeat(5000));
    busy.headers = &[("retry-after", "5")];
    let api = Api::new(vec![busy]);
    let error = api.run(&["pause"]).refused(1);
    assert!(
        error.starts_with(&format!("503 Service Unavailable: {}…; try again in 5 s; ", "x".repeat(1000))),
        "{error}"
    );
}

/// A proxy resolves `..` in a path, and would ask for another path.
#[test]
fn an_invalid_object_name_is_refused_before_a_request() {
    let api = Api::only(200, "");
    let url = api.url();
    let expected = "expected a Kubernetes name: a-z, 0-9, - and ., 253 characters at most";
    for name in ["..", "web?x", "web#x", "web%2F", "Web"] {
        for command in ["approve", "release"] {
            let error = run(&[command, name, "--url", &url], &[]).refused(2);
            assert_eq!(error, format!("INCIDENT: invalid value {name}: {expected}"));
        }
    }
    let error = run(&["exempt", "--remove", "../incidents/x", "--url", &url], &[]).refused(2);
    assert_eq!(error, format!("--remove: invalid value ../incidents/x: {expected}"));
    assert!(api.was_left_alone());
}

#[test]
fn an_answer_of_another_server_is_recognized() {
    let not_found = |kind, body: &str| Reply { kind, body: body.into(), ..reply("", 404, "") };
    let ours = "is the API of procscan-aggregator there, and of this version?";
    for (answer, args, expected) in [
        (not_found("text/html", "<h1>\u{1b}"), &["decisions"][..], "404 Not Found without a reason; "),
        (not_found("application/json", "{\"detail\": \"x\"}"), &["mode"], "404 Not Found without a reason; "),
        (not_found(PROBLEM, "{"), &["decisions"], "404 Not Found without a reason; "),
        (
            Reply { headers: &[("location", "/")], ..reply("", 302, "") },
            &["pause"],
            "302 Found without a reason; ",
        ),
        (reply("", 200, "<html>"), &["decisions"], "the answer is not what was asked for (expected value"),
        (reply("", 200, "<html>"), &["decisions", "-o", "json"], "the answer is not what was asked for ("),
        (reply("", 200, "{} x"), &["incidents", "-o", "json"], "the answer is not what was asked for ("),
        (reply("", 200, "{\"a\": "), &["incidents", "-o", "yaml"], "the answer is not what was asked for ("),
        (
            Reply { body: b"{\"a\": \"\xff\"}".into(), ..reply("", 200, "") },
            &["incidents", "-o", "json"],
            "the answer is not",
        ),
        (
            reply("", 200, "{\"items\": []}"),
            &["incidents"],
            "the answer is not what was asked for (missing field",
        ),
        (reply("", 200, "{\"a\u{1b}\": 1}"), &["mode"], "the answer is not what was asked for ("),
        (reply("", 200, "[]"), &["approve", "i-1"], "the answer is not what was asked for ("),
        (
            reply("", 502, ""),
            &["approve", "i-1"],
            "502 Bad Gateway without a reason; the command may have been carried out",
        ),
        (reply("", 502, ""), &["mode"], "502 Bad Gateway without a reason; is the API"),
    ] {
        let api = Api::new(vec![answer]);
        let error = api.run(args).refused(1);
        assert!(error.starts_with(&format!("{}: {expected}", api.url())), "{error}");
        assert!(error.ends_with(ours), "{error}");
        let is_done = args == ["approve", "i-1"];
        assert_eq!(
            error.contains("; the command may have been carried out all the same; "),
            is_done,
            "{error}"
        );
        assert!(!error.contains('\u{1b}'));
    }
}

#[test]
fn a_service_that_does_not_answer_is_reported_with_the_next_step() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let error = run(&["pause", "--url", &url], &[]).refused(1);
    assert!(error.starts_with(&format!("{url}: no connection: Connection refused")), "{error}");
    assert!(error.ends_with("; does the service run there?"), "{error}");
    // With a kubeconfig or in a Pod, the service may run in the cluster.
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".kube")).unwrap();
    std::fs::write(home.path().join(".kube/config"), "").unwrap();
    let home = home.path().to_str().unwrap();
    for variable in [("KUBECONFIG", "some-file"), ("KUBERNETES_SERVICE_HOST", "10.0.0.1"), ("HOME", home)] {
        let error = run(&["pause", "--url", &url], &[variable]).refused(1);
        assert!(
            error.ends_with("kubectl port-forward -n kube-system service/procscan-aggregator 8090"),
            "{variable:?}: {error}"
        );
    }

    // The server closes the connection before its answer. The error has a note about that for commands only.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let hang_up = std::thread::spawn(move || {
        for _ in 0..2 {
            drop(silent.accept().unwrap());
        }
    });
    let error = run(&["pause", "--url", &url], &[]).refused(1);
    assert!(error.starts_with(&format!("{url}: the connection broke off: ")), "{error}");
    assert!(error.ends_with("; the command may have been carried out all the same"), "{error}");
    let error = run(&["mode", "--url", &url], &[]).refused(1);
    assert!(error.contains(": the connection broke off: ") && !error.contains("all the same"), "{error}");
    hang_up.join().unwrap();
}

#[test]
fn the_service_is_named_by_the_option_or_the_environment() {
    let api = Api::only(200, json!({"mode": "enforce", "operators": null}));
    run(&["mode"], &[("PROCSCAN_URL", &api.url())]).done();
    assert_eq!(api.asked().what, "GET /api/v1/enforcement");
    run(&["mode", "--url", &format!("{}/behind/a/proxy/", api.url())], &[("PROCSCAN_URL", "nonsense")])
        .done();
    assert_eq!(api.asked().what, "GET /behind/a/proxy/api/v1/enforcement");
    // Plain HTTP where TLS is asked for.
    let over_tls = api.url().replace("http://", "https://");
    let error = run(&["mode", "--url", &over_tls], &[]).refused(1);
    assert!(error.contains("TLS is not established") && error.contains("http://"), "{error}");
    let error = run(&["mode", "--url", &over_tls, "--ca", "/nowhere"], &[]).refused(2);
    assert!(error.starts_with("--ca /nowhere: it can't be read: No such file"), "{error}");
    let error = run(&["mode", "--url", "a\u{1b}:1"], &[]).refused(2);
    assert_eq!(error, "--url: invalid value a\\u{1b}:1: expected http://HOST:PORT or https://HOST:PORT");
}

#[test]
fn the_token_comes_from_a_file_or_the_environment_and_is_never_shown() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("token");
    let path = file.to_str().unwrap();
    let api = Api::only(200, json!({"mode": "enforce", "operators": null}));
    let url = api.url();
    let args = ["mode", "--url", &url, "--token-file", path];
    std::fs::write(&file, "secret-of-the-file\n").unwrap();
    run(&args, &[("PROCSCAN_TOKEN", "another")]).done();
    assert_eq!(api.asked().header("authorization"), Some("Bearer secret-of-the-file"));
    run(&args[..3], &[("PROCSCAN_TOKEN", "secret.of_the~environment")]).done();
    assert_eq!(api.asked().header("authorization"), Some("Bearer secret.of_the~environment"));
    run(&args[..3], &[("PROCSCAN_TOKEN", "")]).done();
    assert_eq!(api.asked().header("authorization"), None);

    let allowed = "there must be a bearer token and nothing else: letters, digits and - . _ ~ + / =";
    for bad in ["", "alice secret", "secret\nsecret", "sécret", "secret\u{1b}"] {
        std::fs::write(&file, bad).unwrap();
        assert_eq!(run(&args, &[]).refused(2), format!("--token-file {path}: {allowed}"));
    }
    let error = run(&args[..3], &[("PROCSCAN_TOKEN", "my secret")]).refused(2);
    assert_eq!(error, format!("PROCSCAN_TOKEN: {allowed}"));
    std::fs::write(&file, "x".repeat((64 << 10) + 1)).unwrap();
    let error = run(&args, &[]).refused(2);
    assert_eq!(error, format!("--token-file {path}: it can't be read: it is larger than 64 KiB"));
    for (path, problem) in
        [("/dev/zero", "it is larger than 64 KiB"), (temp.path().to_str().unwrap(), "Is a directory")]
    {
        let error = run(&["mode", "--url", &url, "--token-file", path], &[]).refused(2);
        assert!(error.starts_with(&format!("--token-file {path}: it can't be read: {problem}")), "{error}");
    }
    std::fs::remove_file(&file).unwrap();
    let error = run(&args, &[]).refused(2);
    assert!(error.starts_with(&format!("--token-file {path}: it can't be read: No such file")), "{error}");
    assert!(api.was_left_alone());
}

#[test]
fn a_signal_ends_a_waiting_command() {
    let api = Api::only(0, "");
    let url = api.url();
    let child = command(&["decisions", "--url", &url]).stderr(Stdio::piped()).spawn().unwrap();
    api.asked.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert_eq!((status.code(), &*stderr), (Some(1), &b"error: interrupted\n"[..]));
}

#[test]
fn each_command_has_help_with_examples() {
    for name in ["decisions", "incidents", "approve", "release", "exempt", "pause", "resume", "mode"] {
        let help = run(&[name, "--help"], &[]).done();
        assert!(help.contains("Example") && help.contains(&format!("procscan-aggregator {name}")), "{help}");
        assert!(help.contains("PROCSCAN_TOKEN") && help.contains("PROCSCAN_URL"), "{help}");
    }
}
