//! Filters and pages of the violations.

use procscan_core::names::PodRef;

use super::*;

/// Four violations: two active on n1, of which n2 lists one as well, one unconfirmed on n2, one cleared.
fn stage() -> Stage {
    let mut stage = Stage::new();
    let record = |namespace: &str, pod: &str, process: &str, kind: &str, name: &str, regex: &str| {
        json!({"pod": pod, "namespace": namespace, "process": process, "cmdline": "secret", "regex": regex,
            "status": "active", "type": kind, "name": name, "timestamp": "2025-12-22T18:30:00+08:00"})
    };
    let web = record("ns-a", "web-1", "XMRig", "app", "web", "^xm");
    let box_ = record("ns-a", "box-1", "ncat", "devbox", "box", "");
    let gone = record("ns-b", "web-2", "XMRig", "app", "web", "^xm");
    let old = record("ns-c", "old-1", "Грибы", "app", "old", "");
    let date = Some("2025-12-22T10:31:00Z".parse().unwrap());
    for (node, records, date) in [("n1", json!([web, box_, gone]), date), ("n2", json!([old, web]), None)] {
        let (mut answer, _) = decode(records.to_string().as_bytes(), &Limits::default());
        answer.date = date;
        let report =
            Report { target: target(node), at: stage.clock.now(), outcome: Outcome::Complete(answer) };
        stage.ledger.absorb(&report);
    }
    let pod = PodRef { namespace: "ns-b".into(), pod: "web-2".into() };
    stage.ledger.pod_gone(&pod, stage.clock.now());
    stage.publish();
    stage
}

impl Stage {
    async fn page(&self, query: &str) -> Value {
        let (status, _, body) = self.get(&format!("/api/v1/violations{query}")).await;
        assert_eq!(status, StatusCode::OK, "{query}: {body}");
        json(&body)
    }
}

fn pods(page: &Value) -> Vec<&str> {
    page["violations"].as_array().unwrap().iter().map(|shown| shown["pod"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn each_filter_shows_what_it_is_asked_for() {
    let stage = stage();
    let table: &[(&str, &[&str])] = &[
        ("", &["box-1", "web-1", "web-2", "old-1"]),
        ("?", &["box-1", "web-1", "web-2", "old-1"]),
        ("?namespace=ns-a", &["box-1", "web-1"]),
        ("?namespace=ns", &[]),
        ("?name=web", &["web-1", "web-2"]),
        ("?name=WEB", &[]),
        ("?type=devbox", &["box-1"]),
        ("?process=XMRig", &["web-1", "web-2"]),
        ("?process=xmrig", &[]),
        ("?node=n2", &["web-1", "old-1"]),
        ("?node=n", &[]),
        ("?state=active", &["box-1", "web-1"]),
        ("?state=unconfirmed", &["old-1"]),
        ("?state=cleared", &["web-2"]),
        // In the namespace, the Pod, the process, the rule, the node.
        ("?q=NS-B", &["web-2"]),
        ("?q=WEB-", &["web-1", "web-2"]),
        ("?q=mrig", &["web-1", "web-2"]),
        ("?q=%D0%93%D0%A0%D0%98", &["old-1"]),
        ("?q=%5Exm", &["web-1", "web-2"]),
        ("?q=N2", &["web-1", "old-1"]),
        ("?q=.", &[]),
        ("?q=secret", &[]),
        // All must hold.
        ("?q=web&state=active", &["web-1"]),
        ("?namespace=ns-a&name=web&type=app&process=XMRig&node=n1&state=active&q=web-1&limit=1", &["web-1"]),
        ("?namespace=ns-c&name=web", &[]),
        ("?limit=1000", &["box-1", "web-1", "web-2", "old-1"]),
        ("?limit=2", &["box-1", "web-1"]),
    ];
    for (query, expected) in table {
        let page = stage.page(query).await;
        assert_eq!(pods(&page), *expected, "{query}");
        assert_eq!(page["coverage"], json!({"fresh": 2, "stale": 0, "never_seen": 0}));
        assert_eq!(page["next"].is_string(), *query == "?limit=2", "{query}");
    }
    let page = stage.page("?name=box").await;
    let shown = &page["violations"][0];
    assert_eq!(
        (&shown["type"], &shown["name"], &shown["rule"]),
        (&json!("devbox"), &json!("box"), &json!("ncat"))
    );
    assert!(!page.to_string().contains("secret"));
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_with_what_can() {
    let stage = stage();
    let long = "x".repeat(257);
    let cursor = stage.page("?limit=1").await["next"].as_str().unwrap().to_owned();
    let cut = &cursor[..cursor.len() - 1];
    let table = [
        ("namespaces=ns-a", "namespaces", "ns-a", "namespace, name, type"),
        ("sort=", "sort", "", "one of key, first_seen, last_seen, maybe with - in front"),
        ("sort=--key", "sort", "--key", "one of key, first_seen, last_seen"),
        ("Limit=1", "Limit", "1", "limit"),
        ("namespace=", "namespace", "", "1 to 63 of a-z"),
        ("namespace=NS_A", "namespace", "NS_A", "1 to 63 of a-z"),
        ("name=", "name", "", "1 character"),
        ("type=", "type", "", "1 character"),
        ("process=", "process", "", "1 character"),
        ("node=", "node", "", "1 character"),
        ("state=gone", "state", "gone", "one of active, unconfirmed, cleared"),
        ("q=", "q", "", "1 to 256 bytes"),
        (&format!("q={long}"), "q", &long[..200], "1 to 256 bytes"),
        ("limit=0", "limit", "0", "from 1 to 1000"),
        ("limit=1001", "limit", "1001", "from 1 to 1000"),
        ("limit=-1", "limit", "-1", "from 1 to 1000"),
        ("limit=ten", "limit", "ten", "from 1 to 1000"),
        ("limit=", "limit", "", "from 1 to 1000"),
        ("limit=99999999999999999999", "limit", "99999999999999999999", "from 1 to 1000"),
        ("cursor=", "cursor", "", "next"),
        ("cursor=abc", "cursor", "abc", "next"),
        (&format!("cursor={cut}"), "cursor", cut, "next"),
        ("limit=1&limit=2", "limit", "2", "from 1 to 1000"),
        ("state=active&state=active", "state", "active", "one of active, unconfirmed, cleared"),
    ];
    for (query, parameter, value, expected) in table {
        let (status, headers, body) = stage.get(&format!("/api/v1/violations?{query}")).await;
        assert_eq!(
            (status, &headers["content-type"]),
            (StatusCode::BAD_REQUEST, &"application/problem+json".parse().unwrap()),
            "{query}"
        );
        let problem = json(&body);
        assert_eq!((&problem["parameter"], &problem["value"]), (&json!(parameter), &json!(value)), "{query}");
        assert!(problem["expected"].as_str().unwrap().contains(expected), "{query}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(parameter), "{query}: {problem}");
    }
    let (_, _, body) = stage.get("/api/v1/violations?limit=0").await;
    assert_eq!(json(&body)["detail"], r#"limit: invalid value "0": expected a whole number from 1 to 1000"#);
    let (_, _, body) = stage.get("/api/v1/violations?limit=1&limit=2").await;
    assert_eq!(
        json(&body)["detail"],
        "limit: given more than once: expected a whole number from 1 to 1000, once"
    );
}

/// Whatever comes and goes: no violation that stays is missed, none is shown twice.
#[tokio::test]
async fn pages_show_all_that_stay_once_while_others_come_and_go() {
    let mut stage = Stage::new();
    let record = |n: usize| {
        let pod = RECORD.replace(r#""pod":"p""#, &format!(r#""pod":"p-{}""#, n / 3));
        let process = ["a b", "ä/?&", "z"][n % 3];
        pod.replace("xmrig", process).replace("ns-a", if n < 60 { "ns-a" } else { "ns-b" })
    };
    stage.answer("n1", &format!("[{}]", (0..90).map(record).collect::<Vec<_>>().join(",")));
    let whole = stage.shown();
    assert_eq!(whole.violations.len(), 90);
    let stays = |n: usize| n.is_multiple_of(4);
    // A linear congruential generator: the same in every run.
    let mut random = 1_u64;
    let mut comes = move |_| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        random >> 63 == 1
    };
    for limit in [1, 2, 7, 30, 89, 90, 91] {
        for filter in ["", "&namespace=ns-b", "&q=Z"] {
            let mut shown: Vec<Value> = Vec::new();
            let mut cursor = String::new();
            loop {
                let mut now = (*whole).clone();
                let all = now.violations.into_iter().enumerate();
                now.violations = all.filter(|(n, _)| stays(*n) || comes(*n)).map(|(_, it)| it).collect();
                stage.publisher.show(now);
                let page = stage.page(&format!("?limit={limit}{filter}{cursor}")).await;
                let violations = page["violations"].as_array().unwrap();
                assert!(violations.len() <= limit);
                shown.extend(violations.iter().map(|it| json!([it["namespace"], it["pod"], it["process"]])));
                assert!(shown.len() <= 90, "{limit}{filter}: shown twice");
                let Some(next) = page["next"].as_str() else { break };
                assert_eq!(violations.len(), limit);
                cursor = format!("&cursor={next}");
            }
            let keys = whole
                .violations
                .iter()
                .map(|it| &it.key)
                .map(|key| json!([key.namespace, key.pod, key.process]));
            let keys: Vec<Value> = keys.collect();
            let places: Vec<usize> =
                shown.iter().map(|it| keys.iter().position(|key| key == it).unwrap()).collect();
            assert!(places.is_sorted_by(|a, b| a < b), "{limit}{filter}: {places:?}");
            let is_wanted = |n: &usize| match filter {
                "" => true,
                "&q=Z" => keys[*n][2] == "z",
                _ => keys[*n][0] == "ns-b",
            };
            let missed = (0..90).filter(|n| stays(*n)).filter(is_wanted).find(|n| !places.contains(n));
            assert_eq!(missed, None, "{limit}{filter}: {places:?}");
        }
    }
}

#[tokio::test]
async fn a_page_ends_where_its_last_one_went_and_all_of_the_rest_can_be_asked_for() {
    let stage = stage();
    let first = stage.page("?limit=2").await;
    let next = first["next"].as_str().unwrap();
    let mut without = (*stage.shown()).clone();
    without.violations.retain(|it| &*it.key.pod != "web-1");
    stage.publisher.show(without);
    assert_eq!(pods(&stage.page(&format!("?limit=1&cursor={next}")).await), ["web-2"]);
    let rest = stage.page(&format!("?cursor={next}")).await;
    assert_eq!((pods(&rest), rest.get("next")), (vec!["web-2", "old-1"], None));
    let last = stage.page(&format!("?limit=2&cursor={next}")).await;
    assert_eq!((pods(&last), last.get("next")), (vec!["web-2", "old-1"], None));
}

#[tokio::test(start_paused = true)]
async fn what_another_one_hides_is_shown_with_what_hides_it() {
    let mut stage = Stage::new();
    for namespace in ["ns-j", "ns-k"] {
        let (mut answer, _) =
            decode(format!("[{}]", RECORD.replace("ns-a", namespace)).as_bytes(), &Limits::default());
        answer.date = answer.records.get(0).map(|record| record.detected_at);
        let at = stage.clock.now();
        stage.ledger.absorb(&Report { target: target("n1"), at, outcome: Outcome::Complete(answer) });
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
    }
    stage.publish();
    let page = stage.page("").await;
    let hider = json!({"namespace": "ns-k", "pod": page["violations"][1]["pod"], "process": "xmrig"});
    let hidden_by = |n: usize| page["violations"][n]["evidence"][0].get("hidden_by").cloned();
    assert_eq!((hidden_by(0), hidden_by(1)), (Some(hider), None));
}
