//! Pages of every list, and what the answers in flight may take together.

use procscan_core::plan::{Dispute, HeldApp, Notice, NoticePhase};

use super::*;

/// Everything that is listed, some of it several times.
struct Full {
    stage: Stage,
    _directory: tempfile::TempDir,
}

impl Full {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::open(directory.path()).await.unwrap();
        let operator_commands = OperatorCommands::File(store.clone());
        let at = |n: i64| Timestamp::from_second(1_766_399_400 + n).unwrap();
        let mut incidents = Vec::new();
        for n in 0..7_i64 {
            // Some are opened at the same time, and some decisions are made at the same time.
            let decisions: Vec<Value> = (0..3)
                .map(|m| json!({"at": at(n / 2 + m), "decision": "held", "actor": "policy", "reason": "x"}))
                .collect();
            let status = json!({"state": "Held", "opened": at(n / 2), "decisions": decisions, "decided": 3});
            let spec = IncidentSpec::of(&App::new("ns-a", "app", format!("web-{n}")));
            let status = serde_json::from_value(status).unwrap();
            incidents.push(Incident { name: format!("web-{n}"), spec, status });
        }
        assert!(store.save(incidents).await.is_empty());
        for name in ["a", "b", "c"] {
            let spec = json!({"namespace": {"exact": "ns-a"}, "reason": "x"});
            operator_commands.add_exemption(name, &serde_json::from_value(spec).unwrap()).await.unwrap();
        }
        let mut stage = Stage::over(operator_commands, store.shown());
        stage.decided.send_replace(Arc::new(decided()));
        let nodes: Vec<Target> = (0..9).map(|n| target(&format!("n{n}"))).collect();
        stage.ledger.expect(nodes, 0);
        let records: Vec<String> = (0..5).map(|n| RECORD.replace("xmrig", &format!("p{n}"))).collect();
        stage.answer("n1", &format!("[{}]", records.join(",")));
        Self { stage, _directory: directory }
    }

    async fn ask(&self, path: &str) -> Value {
        let (status, _, body) = self.stage.get(&format!("/api/v1/{path}")).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        json(&body)
    }
}

fn decided() -> Decided {
    let app = |n: usize| App::new("ns-a", "app", format!("web-{n}"));
    let block = |n: usize| {
        Arc::new(Block {
            app: app(n),
            since: Timestamp::UNIX_EPOCH,
            grounds: Box::default(),
            left: [Key::new("ns-a", "web-0", "xmrig")].into(),
            exposure: Arc::default(),
            reason: "".into(),
        })
    };
    let notice = |n: usize| {
        let phase = NoticePhase::Blocked;
        let (sent_at, processes) = (Timestamp::UNIX_EPOCH, Box::default());
        Arc::new(Notice { app: app(n), sent_at, inherited: false, phase, processes, others: None })
    };
    // Not ordered, and one of them twice.
    let held = [(4, true), (2, false), (4, false)];
    let held = held.map(|(n, release)| HeldApp {
        app: app(n),
        since: Timestamp::UNIX_EPOCH,
        reason: String::new(),
        release,
    });
    let dispute = |n: usize| Dispute {
        key: Key::new("ns-a", "web-0", format!("p{n}")),
        node: NodeName::new("n1"),
        reason: String::new(),
    };
    let mut plan = Plan::empty(Mode::Enforce, Timestamp::UNIX_EPOCH);
    plan.blocks = (0..3).map(block).collect();
    plan.notices = (0..4).map(notice).collect();
    let withheld = |n: usize| Withheld { place: format!("Exemption {n}"), reason: String::new() };
    Decided {
        held: held.into(),
        disputes: (0..3).map(dispute).collect(),
        withheld: (0..3).map(withheld).collect(),
        ..Decided::nothing(plan)
    }
}

/// Where the lists of an endpoint are.
const LISTS: &[(&str, &[(&str, usize)])] = &[
    ("violations", &[("violations", 5)]),
    ("nodes", &[("nodes", 9)]),
    ("plan", &[("blocks", 3), ("notices", 4), ("held", 3), ("disputes", 3)]),
    ("incidents", &[("incidents", 7)]),
    // Three of them are exemptions that were made.
    ("decisions", &[("decisions", 24)]),
    ("exemptions", &[("exemptions", 3), ("withheld", 3)]),
];

#[tokio::test]
async fn each_list_is_page_by_page_what_it_is_at_once() {
    let full = Full::new().await;
    for (path, lists) in LISTS {
        let whole = full.ask(path).await;
        let all: usize = lists.iter().map(|(_, count)| count).sum();
        assert_eq!(whole.get("next"), None, "{path}");
        for (list, count) in *lists {
            assert_eq!(whole[list].as_array().unwrap().len(), *count, "{path} {list}");
        }
        for limit in 1..=all + 1 {
            let mut seen: Vec<Vec<Value>> = vec![Vec::new(); lists.len()];
            let mut cursor = String::new();
            for pages in 1.. {
                let page = full.ask(&format!("{path}?limit={limit}{cursor}")).await;
                let mut count = 0;
                for ((list, _), seen) in lists.iter().zip(&mut seen) {
                    let entries = page[list].as_array().unwrap();
                    count += entries.len();
                    seen.extend(entries.iter().cloned());
                }
                assert!(count <= limit, "{path}: {count} instead of {limit}");
                // Whatever else there is, is there on each page.
                let others = |page: &Value| {
                    let mut page = page.as_object().unwrap().clone();
                    page.retain(|name, _| {
                        name != "next" && name != "more" && lists.iter().all(|(list, _)| list != name)
                    });
                    page
                };
                assert_eq!(others(&page), others(&whole), "{path}");
                if *path == "decisions" {
                    assert_eq!(page["more"], all - seen[0].len());
                }
                let Some(next) = page["next"].as_str() else { break };
                assert!(count == limit && pages < all, "{path}: pages without end");
                cursor = format!("&cursor={next}");
            }
            for ((list, _), seen) in lists.iter().zip(seen) {
                assert_eq!(whole[list], Value::Array(seen), "{path} {list} by {limit}");
            }
        }
    }
}

#[tokio::test]
async fn without_a_limit_no_page_has_more_than_the_most() {
    let mut stage = Stage::new();
    // A Pod has no more than a few violations.
    let record = |n: usize| RECORD.replace(r#""pod":"p""#, &format!(r#""pod":"p{n:04}""#));
    for node in ["n1", "n2"] {
        let namespace = format!("ns-{node}");
        let records: Vec<String> = (0..700).map(|n| record(n).replace("ns-a", &namespace)).collect();
        stage.answer(node, &format!("[{}]", records.join(",")));
    }
    stage.ledger.expect((0..1400).map(|n| target(&format!("n{n}"))), 0);
    stage.publish();
    for list in ["violations", "nodes"] {
        let first = json(&stage.get(&format!("/api/v1/{list}")).await.2);
        assert_eq!(first[list].as_array().unwrap().len(), 1000, "{list}");
        let next = first["next"].as_str().unwrap();
        let rest = json(&stage.get(&format!("/api/v1/{list}?cursor={next}")).await.2);
        assert_eq!((rest[list].as_array().unwrap().len(), rest.get("next")), (400, None), "{list}");
    }
    // The older list is whole, always.
    assert_eq!(json(&stage.get("/api/violations").await.2)["violations"].as_array().unwrap().len(), 1400);
}

#[tokio::test]
async fn incidents_are_listed_by_their_time_and_those_that_come_meanwhile_move_no_others() {
    let full = Full::new().await;
    let first = full.ask("incidents?limit=3").await;
    let names = |page: &Value| -> Vec<String> {
        page["incidents"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["name"].as_str().unwrap().to_owned())
            .collect()
    };
    // The latest first, those of one time by name, the last first.
    assert_eq!(names(&first), ["web-6", "web-5", "web-4"]);
    let OperatorCommands::File(store) = &full.stage.api.operators.commands else { panic!() };
    let status = json!({"state": "Held", "opened": Timestamp::now()});
    let spec = IncidentSpec::of(&App::new("ns-a", "app", "new"));
    let new = Incident { name: "new".into(), spec, status: serde_json::from_value(status).unwrap() };
    assert!(store.save(vec![new]).await.is_empty());
    let cursor = first["next"].as_str().unwrap();
    let rest = full.ask(&format!("incidents?cursor={cursor}")).await;
    assert_eq!(
        (names(&rest), &rest["total"]),
        (vec!["web-3".into(), "web-2".into(), "web-1".into(), "web-0".into()], &json!(8))
    );
}

/// What has room for so many bytes in flight.
fn stage_for(most: usize) -> Stage {
    let mut config = without_cluster();
    config.api.max_in_flight = most;
    Stage::under(&config, OperatorCommands::Unavailable, watch::channel(Arc::default()).1)
}

#[tokio::test]
async fn beyond_the_budget_lists_are_refused_until_readers_have_theirs() {
    let mut stage = stage_for(10_000);
    stage.answer("n1", &format!("[{RECORD}]"));
    let (_, headers, list) = stage.get("/api/violations").await;
    let etag = headers["etag"].clone();
    let in_flight = stage.api.budget.count(vec![0; 10_000 - list.len()]);
    // The current list does not count.
    assert_eq!(stage.get("/api/v1/violations").await.0, StatusCode::OK);
    let more = stage.api.budget.count(vec![0; list.len()]);
    for path in ["violations", "nodes", "plan", "incidents", "incidents/x", "decisions", "exemptions"] {
        let (status, headers, body) = stage.get(&format!("/api/v1/{path}")).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path}: {body}");
        assert_eq!(
            (&headers["retry-after"], &headers["content-type"]),
            (&"5".parse().unwrap(), &"application/problem+json".parse().unwrap())
        );
        assert!(json(&body)["detail"].as_str().unwrap().contains("api.max_in_flight"), "{body}");
    }
    // What needs no room is answered: probes, the list that is there already, and that it has not changed.
    for path in ["/livez", "/health", "/api/v1/enforcement", "/api/violations"] {
        assert_eq!(stage.get(path).await.0, StatusCode::OK, "{path}");
    }
    let poll = Request::get("/api/violations").header("if-none-match", etag).body(Body::empty()).unwrap();
    assert_eq!(stage.ask(poll).await.0, StatusCode::NOT_MODIFIED);
    // The next list is stored in pieces, because the budget is used up.
    stage.answer("n1", &format!("[{RECORD},{}]", RECORD.replace("ns-a", "ns-b")));
    let gzip = Request::get("/api/violations").header("accept-encoding", "gzip").body(Body::empty()).unwrap();
    for request in [Request::get("/api/violations").body(Body::empty()).unwrap(), gzip] {
        let (status, headers, body) = stage.ask(request).await;
        assert_eq!((status, headers.get("content-encoding")), (StatusCode::OK, None));
        assert_eq!(json(&body)["total_count"], 2);
    }
    assert_eq!(stage.lists.size(), 0);
    drop((in_flight, more));
    let [b, c] = ["ns-b", "ns-c"].map(|namespace| RECORD.replace("ns-a", namespace));
    stage.answer("n1", &format!("[{RECORD},{b},{c}]"));
    assert_eq!(json(&stage.get("/api/violations").await.2)["total_count"], 3);
    assert!(stage.lists.size() > 0);
    assert_eq!(stage.get("/api/v1/violations").await.0, StatusCode::OK);
}

#[tokio::test]
async fn an_answer_counts_until_its_reader_has_it_and_a_list_once_for_all_its_readers() {
    let mut stage = stage_for(10_000);
    let ask = async |stage: &Stage, path: &str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = stage.router.clone().oneshot(request).await.unwrap();
        let length = response.headers().get("content-length").map(|it| it.to_str().unwrap().to_owned());
        (response, length)
    };
    let used = |stage: &Stage| stage.api.budget.used() - stage.lists.size();
    stage.answer("n1", &format!("[{RECORD}]"));
    // These answers are not read.
    let mut pages = Vec::new();
    for _ in 0..3 {
        let (page, _) = ask(&stage, "/api/v1/violations").await;
        let before = used(&stage);
        pages.push(page);
        assert!(before > 300 * pages.len(), "{before}");
    }
    drop(pages);
    assert_eq!(used(&stage), 0);

    let mut lists = Vec::new();
    for _ in 0..1000 {
        lists.push(ask(&stage, "/api/violations").await.0);
    }
    assert_eq!(used(&stage), 0);
    let size = stage.lists.size();
    stage.answer("n1", &format!("[{}]", RECORD.replace("ns-a", "ns-b")));
    stage.get("/api/violations").await;
    // One body for a thousand readers, as long as one of them is there.
    assert_eq!(used(&stage), size);
    lists.truncate(1);
    assert_eq!(used(&stage), size);
    lists.clear();
    assert_eq!(used(&stage), 0);
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_their_turn_but_not_for_ever() {
    let stage = Stage::new();
    let turn = stage.api.pages.clone().acquire_owned().await.unwrap();
    let begun = tokio::time::Instant::now();
    let (status, headers, _) = stage.get("/api/v1/decisions").await;
    assert_eq!((status, begun.elapsed().as_secs()), (StatusCode::SERVICE_UNAVAILABLE, 5));
    assert_eq!(headers["retry-after"], "1");
    drop(turn);
    assert_eq!(stage.get("/api/v1/decisions").await.0, StatusCode::OK);
}

#[tokio::test]
async fn in_the_reserve_only_probes_are_answered() {
    let stage = Stage::new();
    let (views, operators) = (Views::clone(&stage.api.views), Operators::clone(&stage.api.operators));
    let reserve = routers(views, operators, 1).reserve;
    for (path, status) in [
        ("/livez", StatusCode::OK),
        ("/health", StatusCode::OK),
        // No round is done.
        ("/readyz", StatusCode::SERVICE_UNAVAILABLE),
        ("/api/violations", StatusCode::SERVICE_UNAVAILABLE),
        ("/api/v1/plan", StatusCode::SERVICE_UNAVAILABLE),
    ] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = reserve.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), status, "{path}");
        assert_eq!(response.headers().contains_key("retry-after"), path.starts_with("/api"), "{path}");
    }
}
