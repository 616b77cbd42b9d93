//! Commands that print lists.

use std::process::{Output, Stdio};

use jiff::Timestamp;
use procscan_core::decision::DecisionKind;
use serde_json::{Value, json};

use crate::fake_api::{Api, Ran, carried_out, command, incident, incidents, reply};

fn decisions() -> Value {
    let entry = |at: &str, (kind, name): (&str, &str), decision: &str, actor: &str, reason: &str| {
        let _: DecisionKind = serde_json::from_value(decision.into()).unwrap();
        json!({
            "at": at, "app": {"namespace": "ns-a", "type": kind, "name": name},
            "decision": decision, "actor": actor, "reason": reason,
        })
    };
    let mut dry = entry("2026-01-02T10:30:00.5Z", ("devbox", "挖矿"), "blocked", "policy", "process `xmrig`");
    dry["dry_run"] = true.into();
    let other = entry("2026-01-02T09:00:00Z", ("app", "web"), "released", "alice@example.com", "asked");
    json!({"decisions": [dry, other], "more": 0})
}

#[test]
fn decisions_are_a_table_json_or_yaml() {
    let api = Api::only(200, decisions());
    assert_eq!(
        api.run(&["decisions"]).done(),
        "TIME                   APP                DECISION            ACTOR               REASON
2026-01-02T10:30:00Z   ns-a/devbox/挖矿   blocked (dry-run)   policy              process `xmrig`
2026-01-02T09:00:00Z   ns-a/app/web       released            alice@example.com   asked\n"
    );
    let asked = api.asked();
    assert_eq!(asked.what, "GET /api/v1/decisions?limit=100");
    assert_eq!(asked.header("host"), Some(&*api.address.to_string()));
    assert_eq!(asked.header("authorization"), None);
    assert_eq!(asked.body, "");

    assert_eq!(api.run(&["decisions", "-o", "json"]).done(), format!("{}\n", decisions()));
    let yaml = api.run(&["decisions", "-o", "yaml"]).done();
    assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), decisions());
    assert!(yaml.lines().count() > 10, "{yaml}");
}

#[test]
fn decisions_are_filtered_by_the_api() {
    let api = Api::only(200, json!({"decisions": [], "more": 0}));
    let before = Timestamp::now();
    let filters = [
        "decisions",
        "--namespace",
        "ns-a",
        "--app",
        "a b",
        "--decision",
        "Release_Held",
        "--actor",
        "system:serviceaccount:kube-system:alice",
        "--since",
        "24h",
        "--limit",
        "7",
    ];
    let Ran { code, out, err } = api.run(&filters);
    assert_eq!((code, &*out, &*err), (0, "", "There are no such decisions.\n"));
    let what = api.asked().what;
    let (head, rest) = what.split_once("&since=").unwrap();
    assert_eq!(
        head,
        "GET /api/v1/decisions?namespace=ns-a&name=a%20b&decision=release_held\
         &actor=system%3Aserviceaccount%3Akube-system%3Aalice"
    );
    let (since, rest) = rest.split_once('&').unwrap();
    assert_eq!(rest, "limit=7");
    let since: Timestamp = since.replace("%3A", ":").parse().unwrap();
    let seconds = before.as_second() - since.as_second();
    assert!((86_395..=86_400).contains(&seconds), "{seconds}");

    api.run(&["decisions", "--since", "2026-01-02T12:00:00+08:00"]);
    assert_eq!(api.asked().what, "GET /api/v1/decisions?since=2026-01-02T04%3A00%3A00Z&limit=100");
}

#[test]
fn a_note_counts_further_decisions() {
    let mut log = decisions();
    log["more"] = 12.into();
    let Ran { code, err, .. } = Api::only(200, log).run(&["decisions"]);
    assert_eq!((code, &*err), (0, "There are 12 more; --limit shows up to 1000.\n"));
}

#[test]
fn incidents_are_a_table_json_or_yaml() {
    let mut young = incident("ns-a-lab-2", ("devbox", "lab"), "watched");
    young.as_object_mut().unwrap().remove("since");
    let list = incidents(&[incident("ns-a-web-1", ("app", "web"), "release_held"), young]);
    let api = Api::only(200, &list);
    assert_eq!(
        api.run(&["incidents"]).done(),
        "NAME         TENANT   TYPE     APP   STATE          SINCE                  REASON
ns-a-web-1   ns-a     app      web   release_held   2026-01-02T10:30:00Z   process `xmrig` in Pod web-0
ns-a-lab-2   ns-a     devbox   lab   watched        2026-01-02T10:00:00Z   process `xmrig` in Pod web-0\n"
    );
    assert_eq!(api.asked().what, "GET /api/v1/incidents");
    let json = api.run(&["incidents", "-n", "ns-a", "--app", "web", "--state", "releaseheld", "-o", "json"]);
    assert_eq!(json.done(), format!("{list}\n"));
    assert_eq!(api.asked().what, "GET /api/v1/incidents?namespace=ns-a&name=web&state=release_held");
    let yaml = api.run(&["incidents", "-o", "yaml"]).done();
    assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), list);

    let Ran { code, out, err } = Api::only(200, incidents(&[])).run(&["incidents"]);
    assert_eq!((code, &*out, &*err), (0, "", "There are no such incidents.\n"));
}

#[test]
fn lists_are_read_page_by_page_and_shown_as_one() {
    let all: Vec<Value> = (0..5).map(|n| incident(&format!("i-{n}"), ("app", "web"), "held")).collect();
    let page = |part: &[Value], next: Option<&str>| {
        let mut page = json!({"incidents": part, "total": 5});
        if let Some(next) = next {
            page["next"] = next.into();
        }
        page
    };
    let api = Api::new(vec![
        reply("GET /api/v1/incidents?namespace=ns-a&cursor=c2", 200, page(&all[4..], None)),
        reply("GET /api/v1/incidents?namespace=ns-a&cursor=c1", 200, page(&all[2..4], Some("c2"))),
        reply("GET /api/v1/incidents?namespace=ns-a", 200, page(&all[..2], Some("c1"))),
        reply("POST /api/v1/incidents/", 200, carried_out(all[4].clone(), "released")),
    ]);
    let table = api.run(&["incidents", "-n", "ns-a"]).done();
    assert_eq!(table.lines().filter(|line| line.starts_with("i-")).count(), 5, "{table}");
    let json = api.run(&["incidents", "-n", "ns-a", "-o", "json"]).done();
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), page(&all, None));
    // The command searches all pages for the App.
    let error = api.run(&["release", "ns-a/web"]).refused(1);
    assert!((0..5).all(|n| error.contains(&format!("i-{n} "))), "{error}");

    let mut rest = decisions();
    rest["more"] = 4.into();
    let mut first = rest.clone();
    (first["more"], first["next"]) = (6.into(), "c1".into());
    rest["next"] = "c2".into();
    let api = Api::new(vec![
        reply("GET /api/v1/decisions?limit=2&cursor=c1", 200, &rest),
        reply("GET /api/v1/decisions?limit=4", 200, &first),
    ]);
    let Ran { code, out, err } = api.run(&["decisions", "--limit", "4"]);
    assert_eq!((code, &*err), (0, "There are 4 more; --limit shows up to 1000.\n"));
    assert_eq!(out.lines().count(), 5, "{out}");

    let circle = json!({"incidents": [], "total": 5, "next": "c1"});
    let error = Api::only(200, circle).run(&["incidents"]).refused(1);
    assert!(error.contains("its pages have no end"), "{error}");
}

#[test]
fn a_huge_answer_is_refused_and_a_long_one_is_not() {
    let huge = " ".repeat((64 << 20) + 1);
    let api = Api::only(200, &huge);
    let error = api.run(&["decisions"]).refused(1);
    assert!(error.starts_with(&format!("{}: the answer is larger than 64.0 MiB; ", api.url())), "{error}");
    let long = format!("{}{}", incidents(&[]), &huge[100..]);
    assert_eq!(
        Api::only(200, long).run(&["incidents", "-o", "json"]).done(),
        format!("{}\n", incidents(&[]))
    );
}

#[test]
fn control_characters_of_tenants_are_escaped() {
    let hostile = "x\u{1b}[2J\u{9b}31m\u{7}\r\n\u{202e}\u{7f}";
    let shown = "x\\u{1b}[2J\\u{9b}31m\\u{7}\\r\\n\\u{202e}\\u{7f}";
    let app = json!({"namespace": hostile, "type": hostile, "name": hostile});
    let matches = json!({"exact": hostile});
    let everything = json!({
        "decisions": [{"at": "2026-01-02T10:30:00Z", "app": app, "decision": hostile, "actor": hostile, "reason": hostile}],
        "incidents": [{"name": hostile, "app": app, "state": "held", "opened": "2026-01-02T10:30:00Z", "reason": hostile}],
        "exemptions": [{"name": hostile, "process": matches, "reason": hostile, "by": hostile, "error": hostile}],
        "withheld": [],
        "name": hostile, "app": app, "state": "held", "opened": "2026-01-02T10:30:00Z", "reason": hostile,
        "exemption": {"process": matches, "reason": hostile}, "command": {"decision": hostile},
        "mode": "paused", "operators": "paused", "in_force": "paused", "by": hostile, "detail": hostile,
    });
    let is_harmless = |text: &str| text.chars().all(|c| c == '\n' || !c.is_control());
    let is_bidi = |text: &str| text.contains('\u{202e}');
    for status in [200, 202, 403] {
        let api = Api::only(status, &everything);
        for args in [
            &["decisions"][..],
            &["decisions", "-o", "json"],
            &["incidents"],
            &["exempt", "--list"],
            &["exempt", "--app", "web", "--reason", "x"],
            &["approve", "i-1"],
            &["approve", &format!("{hostile}/{hostile}")],
            &["approve", "ns-b/web"],
            &["pause"],
            &["mode"],
        ] {
            let ran = api.run(args);
            let all = format!("{}{}", ran.out, ran.err);
            assert!(is_harmless(&all) && !is_bidi(&all), "{args:?}: {all:?}");
            let escaped = if args.contains(&"json") && status != 403 { "\\u009b31m" } else { shown };
            assert!(all.contains(escaped), "{args:?}: {all}");
            assert_eq!(
                all.lines().count(),
                if status != 403 && all.contains("REASON") { 2 } else { 1 },
                "{all}"
            );
            if args.contains(&"json") && status != 403 {
                assert_eq!(serde_json::from_str::<Value>(&all).unwrap(), everything);
            }
        }
        if status == 200 {
            let yaml = api.run(&["incidents", "-o", "yaml"]).done();
            assert!(is_harmless(&yaml), "{yaml:?}");
            assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), everything);
        }
    }
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let entry = incident("i-1", ("app", "web"), "held");
    let api = Api::only(200, incidents(&vec![entry; 5000]));
    let url = api.url();
    for format in ["table", "json", "yaml"] {
        let mut child = command(&["incidents", "-o", format, "--url", &url])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        assert_eq!((status.code(), &*stderr), (Some(0), &b""[..]), "{format}");
    }
}

#[test]
fn status_names_each_part_and_fails_if_one_does_not_work() {
    let well = json!({
        "status": "ready", "rounds": 7,
        "targets": {"expected": 3, "fresh": 2, "stale": 1, "never_seen": 0},
        "output": {"ok": true},
        "leader": {"leading": false, "name": "replica-b"},
        "config": {"ok": true, "hash": "00ff", "loaded": "2026-01-02T10:30:00Z"},
    });
    let api = Api::only(200, well.clone());
    assert_eq!(
        api.run(&["status"]).done(),
        "PART      STATE   DETAIL
service   ready   7 rounds
config    ok      00ff, read at 2026-01-02T10:30:00Z
leader    ok      replica-b
output    ok
targets   ok      2 of 3 have a fresh report\n"
    );
    assert_eq!(api.asked().what, "GET /readyz");
    assert_eq!(api.run(&["status", "-o", "json"]).done(), format!("{well}\n"));

    let mut ill = well;
    ill["config"]["ok"] = false.into();
    ill["config"]["error"] = "line 3: \u{1b}[31m".into();
    let api = Api::only(200, ill);
    let ran = api.run(&["status"]);
    assert_eq!((ran.code, ran.err.trim_end()), (1, "error: not ok: config"));
    assert!(ran.out.contains("config    error   line 3: \\u{1b}[31m"), "{}", ran.out);

    // A token without the right, a service before its first round, and another program.
    let api = Api::only(200, json!({"status": "ready"}));
    assert!(api.run(&["status"]).done().contains("a token that may read everything shows more"));
    let begins = json!({"status": 503, "detail": "the first round is not done yet", "output": {"ok": true}});
    let ran = Api::only(503, begins).run(&["status"]);
    assert!(ran.out.contains("service   not ready   the first round is not done yet"), "{}", ran.out);
    assert_eq!((ran.code, ran.err.trim_end()), (1, "error: not ok: service"));
    let error = Api::only(200, json!({"hello": 1})).run(&["status"]).refused(1);
    assert!(error.contains("is the API of procscan-aggregator there"), "{error}");
}
