//! Operator commands: their requests, and their output for each answer.

use jiff::Timestamp;
use serde_json::json;

use crate::fake_api::{Api, Ran, carried_out, incident, incidents, problem, reply, run};

#[test]
fn an_incident_is_approved_by_its_name() {
    let api = Api::only(200, carried_out(incident("ns-a-web-1", ("app", "web"), "blocked"), "approved"));
    let out = api.run(&["approve", "ns-a-web-1", "--reason", "a miner"]).done();
    assert_eq!(out, "ns-a-web-1 (ns-a/app/web): blocked, process `xmrig` in Pod web-0\n");
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
        incident("ns-a-web-3", ("app", "web"), "held"),
        incident("ns-a-web-2", ("app", "web"), "ended"),
        incident("ns-a-lab-1", ("devbox", "lab"), "blocked"),
        incident("ns-a-lab-2", ("app", "lab"), "watched"),
        incident("ns-a-odd-1", ("app", "a/b\u{1b}"), "blocked"),
        incident("ns-a-old-1", ("app", "old"), "ended"),
    ];
    let api = Api::new(vec![
        reply("GET /api/v1/incidents?namespace=ns-a", 200, incidents(&list)),
        reply("GET /api/v1/incidents?namespace=ns-b", 200, incidents(&[])),
        reply("POST /api/v1/incidents/", 200, carried_out(list[0].clone(), "released")),
    ]);
    for (given, name) in [
        ("ns-a/web", "ns-a-web-3"),
        ("ns-a/app/web", "ns-a-web-3"),
        ("ns-a/devbox/lab", "ns-a-lab-1"),
        ("ns-a/a/b\u{1b}", "ns-a-odd-1"),
        ("ns-a/app/a/b\\u{1b}", "ns-a-odd-1"),
    ] {
        api.run(&["release", given]).done();
        assert_eq!(api.asked().what, "GET /api/v1/incidents?namespace=ns-a");
        assert_eq!(api.asked().what, format!("POST /api/v1/incidents/{name}/release"), "{given}");
    }
    assert_eq!(
        api.run(&["approve", "ns-a/lab"]).refused(1),
        "ns-a/lab may be any of these: ns-a-lab-1 (ns-a/devbox/lab, blocked), \
         ns-a-lab-2 (ns-a/app/lab, watched); give the name of one"
    );
    assert_eq!(
        api.run(&["approve", "ns-a/old"]).refused(1),
        "there is no open incident of ns-a/old; open in its namespace: ns-a-web-3 (ns-a/app/web, held), \
         ns-a-lab-1 (ns-a/devbox/lab, blocked), ns-a-lab-2 (ns-a/app/lab, watched), \
         ns-a-odd-1 (ns-a/app/a/b\\u{1b}, blocked)"
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
fn an_error_lists_ten_incidents_at_most() {
    let list: Vec<_> = (0..12).map(|n| incident(&format!("i-{n}"), ("app", "web"), "held")).collect();
    let error = Api::only(200, incidents(&list)).run(&["approve", "ns-a/web"]).refused(1);
    assert!(
        error.contains("i-9 ")
            && !error.contains("i-10")
            && error.ends_with(", and 2 more; give the name of one"),
        "{error}"
    );
}

/// A date nine years ahead, within the limit of ten.
fn far_date() -> String {
    let date = Timestamp::from_second(Timestamp::now().as_second() + 9 * 365 * 86_400).unwrap();
    date.to_string()
}

#[test]
fn an_incident_is_released_for_some_time() {
    let api = Api::only(200, carried_out(incident("i-1", ("app", "web"), "watched"), "released"));
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
    assert!(far.ends_with(": expected a time at most ten years ahead"), "{far}");
    let over = api.run(&["release", "i-1", "--until", "2020-01-01T00:00:00Z"]).refused(2);
    assert_eq!(over, "--until: invalid value 2020-01-01T00:00:00Z: expected a time to come");
    assert!(api.was_left_alone());
}

#[test]
fn a_command_that_is_persisted_and_not_carried_out_yet_is_no_failure() {
    let pending =
        json!({"status": "persisted", "detail": "it will be carried out as soon as a replica leads"});
    for args in [&["approve", "i-1"][..], &["release", "i-1"], &["pause"], &["mode", "enforce"]] {
        let out = Api::only(202, &pending).run(args).done();
        assert_eq!(
            out,
            "persisted, not carried out yet: it will be carried out as soon as a replica leads\n"
        );
    }
    assert_eq!(Api::only(202, "").run(&["approve", "i-1"]).done(), "persisted, not carried out yet\n");
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
fn invalid_exemptions_are_bad_usage() {
    let api = Api::new(Vec::new());
    for (args, expected) in [
        (&["--reason", "x"][..], "at least one of namespace, app, process and rule is needed"),
        (&["--app", "/(/", "--reason", "x"], "app.regex: unclosed group"),
        (
            &["--app", "web", "--reason", " "],
            "--reason: invalid value (an empty reason): expected a text of up to",
        ),
        (
            &["--app", "//", "--reason", "x"],
            "--app: invalid value \"//\": expected a text, or a regular expression as /REGEX/",
        ),
        (
            &["--rule", "", "--reason", "x"],
            "--rule: invalid value \"\": expected a text, or a regular expression as /REGEX/",
        ),
        (&["--namespace", "/^ns-", "--reason", "x"], "namespace: `/^ns-` is no namespace's name"),
        (
            &["--app", "web", "--reason", "x", "--id", "A b"],
            "--id: invalid value A b: expected small letters",
        ),
        (
            &["--app", "web", "--reason", "x", "--until", "2020-01-01T00:00:00Z"],
            "--until: invalid value 2020-01-01",
        ),
        (
            &["--app", "web", "--reason", "x", "--until", "9999-01-01T00:00:00Z"],
            "--until: invalid value 9999-01-01",
        ),
        (&["--app", "web", "--reason", "x", "--until", "0s"], "--until: invalid value 0s: expected"),
    ] {
        let args: Vec<_> = ["exempt"].iter().chain(args).copied().collect();
        let error = api.run(&args).refused(2);
        assert!(error.starts_with(expected), "{error}");
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
fn exemptions_are_listed_with_their_state_and_removed() {
    let list = json!({"exemptions": [
        {"name": "a", "namespace": {"exact": "ns-a"}, "rule": {"regex": "^x"}, "reason": "a course", "by": "alice",
         "until": "2026-02-01T00:00:00Z", "state": "over", "error": "it was over at 2026-02-01T00:00:00Z"},
        {"name": "b", "app": {"exact": "web"}, "reason": "ours", "state": "in_force"},
        {"name": "c", "namespace": "ns-c", "reason": 7, "state": "unreadable", "error": "bad; nothing new is blocked"},
    ], "withheld": []});
    let api = Api::new(vec![
        reply("GET /api/v1/exemptions", 200, &list),
        reply("DELETE /api/v1/exemptions/a.b", 204, ""),
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
    assert_eq!(api.run(&["exempt", "--remove", "a.b"]).done(), "a.b is removed\n");
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
    // The list has only a withheld exemption of the configuration.
    let list = json!({"exemptions": [], "withheld": [withheld(configured)]});
    let Ran { out, err, .. } = Api::only(200, &list).run(&["exempt", "--list"]);
    assert!(out.contains("enforcement.exemptions[0]"), "{out}");
    assert!(!err.contains("There are no exemptions"), "{err}");
    // A follower does not know which exemptions are withheld.
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
fn a_reason_that_is_blank_or_too_long_is_bad_usage_for_every_command() {
    let api = Api::new(Vec::new());
    let long = "\u{e9}".repeat(1025);
    for command in [
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
            let args: Vec<_> = command.iter().copied().chain(["--reason", reason]).collect();
            let error = api.run(&args).refused(2);
            let expected = format!(
                "--reason: invalid value ({what}): expected a text of up to 1024 characters that is not blank"
            );
            assert_eq!(error, expected, "{command:?}");
        }
    }
    assert!(api.was_left_alone());
}

#[test]
fn the_mode_is_shown_and_changed() {
    let api = Api::new(vec![
        reply(
            "GET ",
            200,
            json!({"mode": "paused", "operators": "paused", "reason": "a bad rule", "by": "alice"}),
        ),
        reply(
            "PUT ",
            200,
            json!({"mode": "paused", "in_force": "paused", "reason": "a bad rule", "by": "alice"}),
        ),
    ]);
    assert_eq!(api.run(&["mode"]).done(), "paused, as alice says: a bad rule\n");
    let asked = api.asked();
    assert_eq!((&*asked.what, &*asked.body), ("GET /api/v1/enforcement", ""));
    for (args, body) in [
        (&["pause", "--reason", "a bad rule"][..], json!({"mode": "paused", "reason": "a bad rule"})),
        (&["pause"], json!({"mode": "paused"})),
        (&["mode", "dry-run"], json!({"mode": "dry_run"})),
        (&["mode", "enforce", "--reason", "x"], json!({"mode": "enforce", "reason": "x"})),
    ] {
        assert_eq!(api.run(args).done(), "paused, as alice says: a bad rule\n");
        let asked = api.asked();
        assert_eq!((&*asked.what, asked.json()), ("PUT /api/v1/enforcement", body));
    }
    let api = Api::only(200, json!({"mode": null, "in_force": "dry_run", "reason": null, "by": "alice"}));
    assert_eq!(
        api.run(&["resume"]).done(),
        "back to dry-run, the mode of the configuration, as alice says\n"
    );
    assert_eq!(api.asked().json(), json!({"mode": null}));
    let api = Api::only(200, json!({"mode": "dry_run", "operators": null}));
    assert_eq!(api.run(&["mode"]).done(), "dry-run, as the configuration says\n");
}
