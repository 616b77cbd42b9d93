//! Acts: what is said to the API, and what has come of it.

use jiff::Timestamp;
use serde_json::json;

use crate::played::{Api, Ran, incident, incidents, problem, run, said};

#[test]
fn an_incident_is_approved_by_its_name() {
    let api = Api::only(200, incident("ns-a-web-1", ("app", "web"), "Blocked"));
    let out = api.run(&["approve", "ns-a-web-1", "--reason", "a miner"]).done();
    assert_eq!(out, "ns-a-web-1 (ns-a/app/web): Blocked, process `xmrig` in Pod web-0\n");
    let asked = api.asked();
    assert_eq!(asked.what, "POST /api/v1/incidents/ns-a-web-1/approve");
    assert_eq!(asked.json(), json!({"reason": "a miner"}));
    api.run(&["approve", "ns-a-web.2"]).done();
    let asked = api.asked();
    assert_eq!(asked.what, "POST /api/v1/incidents/ns-a-web.2/approve");
    assert_eq!(asked.json(), json!({}));
}

#[test]
fn an_incident_is_found_by_its_app() {
    let list = [
        incident("ns-a-web-3", ("app", "web"), "Held"),
        incident("ns-a-web-2", ("app", "web"), "Ended"),
        incident("ns-a-lab-1", ("devbox", "lab"), "Blocked"),
        incident("ns-a-lab-2", ("app", "lab"), "Watched"),
        incident("ns-a-odd-1", ("app", "a/b\u{1b}"), "Blocked"),
        incident("ns-a-old-1", ("app", "old"), "Ended"),
    ];
    let api = Api::new(vec![
        said("GET /api/v1/incidents?namespace=ns-a", 200, incidents(&list)),
        said("GET /api/v1/incidents?namespace=ns-b", 200, incidents(&[])),
        said("POST /api/v1/incidents/", 200, &list[0]),
    ]);
    for (said, name) in [
        ("ns-a/web", "ns-a-web-3"),
        ("ns-a/app/web", "ns-a-web-3"),
        ("ns-a/devbox/lab", "ns-a-lab-1"),
        ("ns-a/a/b\u{1b}", "ns-a-odd-1"),
        ("ns-a/app/a/b\\u{1b}", "ns-a-odd-1"),
    ] {
        api.run(&["release", said]).done();
        assert_eq!(api.asked().what, "GET /api/v1/incidents?namespace=ns-a");
        assert_eq!(api.asked().what, format!("POST /api/v1/incidents/{name}/release"), "{said}");
    }
    assert_eq!(
        api.run(&["approve", "ns-a/lab"]).refused(1),
        "ns-a/lab may be any of these, say which: ns-a-lab-1 (ns-a/devbox/lab, Blocked), \
         ns-a-lab-2 (ns-a/app/lab, Watched)"
    );
    assert_eq!(
        api.run(&["approve", "ns-a/old"]).refused(1),
        "there is no open incident of ns-a/old; open in its namespace: ns-a-web-3 (ns-a/app/web, Held), \
         ns-a-lab-1 (ns-a/devbox/lab, Blocked), ns-a-lab-2 (ns-a/app/lab, Watched), \
         ns-a-odd-1 (ns-a/app/a/b\\u{1b}, Blocked)"
    );
    assert_eq!(
        api.run(&["release", "ns-b/web"]).refused(1),
        "there is no open incident of ns-b/web, nor any other in namespace ns-b; `procscan-aggregator incidents` \
         lists all"
    );
    let asked = std::iter::from_fn(|| api.asked.try_recv().ok());
    assert!(asked.into_iter().all(|asked| asked.what.starts_with("GET ")));
}

#[test]
fn errors_list_no_more_incidents_than_can_be_read() {
    let list: Vec<_> = (0..12).map(|n| incident(&format!("i-{n}"), ("app", "web"), "Held")).collect();
    let error = Api::only(200, incidents(&list)).run(&["approve", "ns-a/web"]).refused(1);
    assert!(error.contains("i-9 ") && !error.contains("i-10") && error.ends_with(", and 2 more"), "{error}");
}

/// A date that is far away, and not too far.
fn far_date() -> String {
    let date = Timestamp::from_second(Timestamp::now().as_second() + 9 * 365 * 86_400).unwrap();
    date.to_string()
}

#[test]
fn an_incident_is_released_for_some_time() {
    let api = Api::only(200, incident("i-1", ("app", "web"), "Watched"));
    let before = Timestamp::now().as_second();
    api.run(&["release", "i-1", "--until", "30d", "--reason", "false"]).done();
    let asked = api.asked();
    assert_eq!(asked.what, "POST /api/v1/incidents/i-1/release");
    let body = asked.json();
    assert_eq!(body["reason"], "false");
    let until: Timestamp = body["until"].as_str().unwrap().parse().unwrap();
    let days = 30 * 86_400;
    assert!((days..=days + 5).contains(&(until.as_second() - before)), "{until}");
    assert_eq!(until.subsec_nanosecond(), 0);

    let date = far_date();
    api.run(&["release", "i-1", "--until", &date]).done();
    assert_eq!(api.asked().json(), json!({"until": date}));
    let far = api.run(&["release", "i-1", "--until", "1000y"]).refused(2);
    assert!(far.ends_with("is more than ten years ahead; allowed is up to ten years"), "{far}");
    let over = api.run(&["release", "i-1", "--until", "2020-01-01T00:00:00Z"]).refused(2);
    assert_eq!(over, "--until: 2020-01-01T00:00:00Z is over; allowed is a time to come");
    assert!(api.was_left_alone());
}

#[test]
fn what_is_kept_but_not_done_yet_is_no_failure() {
    let kept = json!({"status": "kept", "detail": "it will be done as soon as a replica leads"});
    for args in [&["approve", "i-1"][..], &["release", "i-1"], &["pause"], &["mode", "enforce"]] {
        let out = Api::only(202, &kept).run(args).done();
        assert_eq!(out, "kept, not done yet: it will be done as soon as a replica leads\n");
    }
    assert_eq!(Api::only(202, "").run(&["approve", "i-1"]).done(), "kept, not done yet\n");
}

#[test]
fn exemptions_match_texts_and_patterns() {
    let until = far_date();
    let spec = json!({
        "namespace": {"exact": "ns-a"}, "app": {"regex": "^web"}, "process": {"exact": "/bin/x"},
        "rule": {"exact": "/"}, "reason": "a course", "until": until, "by": "alice", "confirm": 25,
    });
    let api = Api::only(201, json!({"name": "course", "exemption": spec}));
    let out = api
        .run(&[
            "exempt",
            "--namespace",
            "ns-a",
            "--app",
            "/^web/",
            "--process",
            "/bin/x",
            "--rule",
            "/",
            "--reason",
            "a course",
            "--until",
            &until,
            "--confirm",
            "25",
            "--id",
            "course",
        ])
        .done();
    assert_eq!(
        out,
        format!("course: exempt is namespace=ns-a app=/^web/ process=/bin/x rule=/, until {until}\n")
    );
    let asked = api.asked();
    assert_eq!(asked.what, "POST /api/v1/exemptions");
    let mut expected = spec;
    expected["id"] = "course".into();
    expected.as_object_mut().unwrap().remove("by");
    assert_eq!(asked.json(), expected);

    api.run(&["exempt", "-n", "ns-a", "--reason", "x"]).done();
    assert_eq!(api.asked().json(), json!({"namespace": {"exact": "ns-a"}, "reason": "x"}));
}

#[test]
fn exemptions_that_make_no_sense_are_bad_usage() {
    let api = Api::new(Vec::new());
    for (args, why) in [
        (&["--reason", "x"][..], "at least one of namespace, app, process and rule is needed"),
        (&["--app", "/(/", "--reason", "x"], "app.regex: unclosed group"),
        (
            &["--app", "web", "--reason", " "],
            "--reason: an empty reason is not allowed; allowed is a text of up to",
        ),
        (&["--app", "//", "--reason", "x"], "--app: a text, or a regular expression as /REGEX/"),
        (&["--rule", "", "--reason", "x"], "--rule: a text, or a regular expression as /REGEX/"),
        (&["--namespace", "/^ns-", "--reason", "x"], "namespace: `/^ns-` is no namespace's name"),
        (&["--app", "web", "--reason", "x", "--id", "A b"], "--id A b: allowed are small letters"),
        (&["--app", "web", "--reason", "x", "--until", "2020-01-01T00:00:00Z"], "--until: 2020-01-01"),
        (&["--app", "web", "--reason", "x", "--until", "9999-01-01T00:00:00Z"], "--until: 9999-01-01"),
        (
            &["--app", "web", "--reason", "x", "--until", "0s"],
            "--until: 0s: the time must lie ahead; allowed is",
        ),
    ] {
        let args: Vec<_> = ["exempt"].iter().chain(args).copied().collect();
        let error = api.run(&args).refused(2);
        assert!(error.starts_with(why), "{error}");
    }
    for args in [
        &["exempt"][..],
        &["exempt", "--app", "web"],
        &["exempt", "--list", "--app", "web"],
        &["exempt", "--remove", "x", "--reason", "y"],
        &["exempt", "--list", "--remove", "x"],
        &["decisions", "--decision", "no-such"],
        &["decisions", "--limit", "0"],
        &["decisions", "--limit", "1001"],
        &["decisions", "--since", "yesterday"],
        &["decisions", "--token", "secret"],
        &["incidents", "--state", "no-such"],
        &["approve"],
        &["approve", ""],
        &["release", "i-1", "--until", "0s"],
        &["mode", "off"],
        &["mode", "--reason", "x"],
    ] {
        let ran = api.run(args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.err);
        assert!(ran.err.starts_with("error: "), "{}", ran.err);
    }
    assert!(api.was_left_alone());
}

#[test]
fn exemptions_are_listed_with_their_state_and_taken_back() {
    let list = json!({"exemptions": [
        {"name": "a", "namespace": {"exact": "ns-a"}, "rule": {"regex": "^x"}, "reason": "a course", "by": "alice",
         "until": "2026-02-01T00:00:00Z", "state": "over", "error": "it was over at 2026-02-01T00:00:00Z"},
        {"name": "b", "app": {"exact": "web"}, "reason": "ours", "state": "in_force"},
        {"name": "c", "namespace": "ns-c", "reason": 7, "state": "unreadable", "error": "bad; nothing new is blocked"},
    ], "withheld": []});
    let api = Api::new(vec![
        said("GET /api/v1/exemptions", 200, &list),
        said("DELETE /api/v1/exemptions/a.b", 204, ""),
        problem("DELETE /api/v1/exemptions/none", 404, "there is no exemption none"),
    ]);
    assert_eq!(
        api.run(&["exempt", "--list"]).done(),
        "NAME   EXEMPT                     STATE        UNTIL                  BY      REASON
a      namespace=ns-a rule=/^x/   over         2026-02-01T00:00:00Z   alice   a course (it was over at \
         2026-02-01T00:00:00Z)
b      app=web                    in force     for ever                       ours
c      namespace=ns-c             unreadable   for ever                       (bad; nothing new is blocked)\n"
    );
    assert_eq!(api.asked().what, "GET /api/v1/exemptions");
    assert_eq!(api.run(&["exempt", "--list", "-o", "json"]).done(), format!("{list}\n"));
    api.asked();
    assert_eq!(api.run(&["exempt", "--remove", "a.b"]).done(), "a.b is taken back\n");
    let asked = api.asked();
    assert_eq!((&*asked.what, &*asked.body), ("DELETE /api/v1/exemptions/a.b", ""));
    assert_eq!(
        api.run(&["exempt", "--remove", "none"]).refused(1),
        "404 Not Found: there is no exemption none; `procscan-aggregator exempt --list` lists those that were \
         declared at run time"
    );
    let Ran { code, out, err } =
        Api::only(200, json!({"exemptions": [], "withheld": []})).run(&["exempt", "--list"]);
    assert_eq!((code, &*out, &*err), (0, "", "There are no exemptions but those of the configuration.\n"));
}

#[test]
fn exemptions_that_are_withheld_are_listed_with_the_reason_and_how_to_confirm_them() {
    let why = |place: &str| format!("{place} would open 25 tenants: write `confirm: 25`");
    let withheld = |place: &str| json!({"place": place, "reason": why(place)});
    let (object, configured) = ("Exemption all", "enforcement.exemptions[0]");
    let list = json!({
        "exemptions": [{"name": "all", "namespace": {"regex": "."}, "reason": "x", "state": "withheld", "error": why(object)}],
        "withheld": [withheld(object), withheld(configured)],
    });
    let Ran { code, out, err } = Api::only(200, &list).run(&["exempt", "--list"]);
    assert_eq!(
        (code, &*out),
        (
            0,
            "NAME                        EXEMPT          STATE      UNTIL      BY   REASON
all                         namespace=/./   withheld   for ever        x (Exemption all would open 25 tenants: write \
             `confirm: 25`)
enforcement.exemptions[0]                   withheld                   enforcement.exemptions[0] would open 25 \
             tenants: write `confirm: 25`\n"
        )
    );
    assert!(!err.contains("kubectl"), "{err}");
    for part in ["--remove NAME", "--confirm N", "configuration"] {
        assert!(err.contains(part), "{part}: {err}");
    }
    let api = Api::only(200, &list);
    let Ran { err, .. } = run(&["exempt", "--list", "--url", &api.url()], &[("KUBECONFIG", "some-file")]);
    for part in ["kubectl patch exemption NAME", r#"{"spec":{"confirm":N}}"#, "--confirm N"] {
        assert!(err.contains(part), "{part}: {err}");
    }
    // Only those of the configuration are withheld.
    let list = json!({"exemptions": [], "withheld": [withheld(configured)]});
    let Ran { out, err, .. } = Api::only(200, &list).run(&["exempt", "--list"]);
    assert!(out.contains("enforcement.exemptions[0]"), "{out}");
    assert!(!err.contains("There are no exemptions"), "{err}");
    // A replica that does not lead does not know it.
    let list =
        json!({"exemptions": [{"name": "b", "app": {"exact": "web"}, "reason": "ours"}], "withheld": null});
    let Ran { out, err, .. } = Api::only(200, &list).run(&["exempt", "--list"]);
    assert_eq!(
        out,
        "NAME   EXEMPT    STATE      UNTIL      BY   REASON\nb      app=web   declared   for ever        ours\n"
    );
    assert!(err.contains("does not lead") && err.contains("withheld"), "{err}");
}

#[test]
fn a_reason_that_is_blank_or_too_long_is_bad_usage_for_every_act() {
    let api = Api::new(Vec::new());
    let long = "\u{e9}".repeat(1025);
    for act in [
        &["approve", "i-1"][..],
        &["release", "i-1"],
        &["exempt", "--app", "web"],
        &["pause"],
        &["resume"],
        &["mode", "enforce"],
    ] {
        for (reason, what) in
            [("", "an empty reason"), (" \t", "an empty reason"), (&long, "a reason of 1025 characters")]
        {
            let args: Vec<_> = act.iter().copied().chain(["--reason", reason]).collect();
            let error = api.run(&args).refused(2);
            let said = format!(
                "--reason: {what} is not allowed; allowed is a text of up to 1024 characters that is not blank"
            );
            assert_eq!(error, said, "{act:?}");
        }
    }
    assert!(api.was_left_alone());
}

#[test]
fn the_mode_is_shown_and_changed() {
    let api = Api::new(vec![
        said(
            "GET ",
            200,
            json!({"mode": "paused", "operators": "paused", "reason": "a bad rule", "by": "alice"}),
        ),
        said("PUT ", 200, json!({"mode": "paused", "reason": "a bad rule", "by": "alice"})),
    ]);
    assert_eq!(api.run(&["mode"]).done(), "paused, as alice says: a bad rule\n");
    let asked = api.asked();
    assert_eq!((&*asked.what, &*asked.body), ("GET /api/v1/enforcement", ""));
    for (args, body) in [
        (&["pause", "--reason", "a bad rule"][..], json!({"mode": "paused", "reason": "a bad rule"})),
        (&["pause"], json!({"mode": "paused"})),
        (&["mode", "dry-run"], json!({"mode": "dry-run"})),
        (&["mode", "enforce", "--reason", "x"], json!({"mode": "enforce", "reason": "x"})),
    ] {
        assert_eq!(api.run(args).done(), "paused, as alice says: a bad rule\n");
        let asked = api.asked();
        assert_eq!((&*asked.what, asked.json()), ("PUT /api/v1/enforcement", body));
    }
    let api = Api::only(200, json!({"mode": null, "in_force": "dry-run", "reason": null, "by": "alice"}));
    assert_eq!(
        api.run(&["resume"]).done(),
        "back to dry-run, the mode of the configuration, as alice says\n"
    );
    assert_eq!(api.asked().json(), json!({"mode": null}));
    let api = Api::only(200, json!({"mode": "dry-run", "operators": null}));
    assert_eq!(api.run(&["mode"]).done(), "dry-run, as the configuration says\n");
}
