//! The log of decisions: all of a long one page by page, nothing waits while it is read, and what it says of exemptions.

use procscan_core::state::ExemptionSpec;

use super::*;
use crate::state::cluster::fake::Server;

/// How many rows of the state file are read at once.
const CHUNK: usize = 10_000;

fn at(second: usize) -> Timestamp {
    Timestamp::from_second(1_766_399_400 + i64::try_from(second).unwrap()).unwrap()
}

/// A log of three decisions in each second up to `last`, and of two in the second `last`. `actor` gives the actor of a second.
async fn long_log(store: &FileStore, last: usize, actor: impl Fn(usize) -> &'static str) {
    // In a chunk, those of one second are in this order. On a page they are in the other.
    for app in [2, 1, 0] {
        let seconds: Vec<usize> = (0..=last).filter(|second| app > 0 || *second < last).collect();
        for seconds in seconds.chunks(2000) {
            let decision =
                |n: &usize| json!({"at": at(*n), "decision": "held", "actor": actor(*n), "reason": "x"});
            let decisions: Vec<Value> = seconds.iter().map(decision).collect();
            let status =
                json!({"state": "Held", "opened": at(0), "decisions": decisions, "decided": decisions.len()});
            let spec = IncidentSpec::of(&App::new("ns-a", "app", format!("web-{app}")));
            let status = serde_json::from_value(status).unwrap();
            let incident = Incident { name: format!("web-{app}"), spec, status };
            assert!(store.save(vec![incident]).await.is_empty());
        }
    }
}

/// What the pages with these parameters show: the time and the App of each entry.
async fn pages(stage: &Stage, parameters: &str) -> Vec<(Timestamp, String)> {
    let mut seen = Vec::new();
    let mut cursor = String::new();
    for _ in 0..100 {
        let (status, _, body) = stage.get(&format!("/api/v1/decisions?{parameters}{cursor}")).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        let page = json(&body);
        let entry = |entry: &Value| {
            let app = entry["app"]["name"].as_str().unwrap().to_owned();
            (entry["at"].as_str().unwrap().parse().unwrap(), app)
        };
        seen.extend(page["decisions"].as_array().unwrap().iter().map(entry));
        let Some(next) = page["next"].as_str() else {
            assert_eq!(page["more"], 0);
            return seen;
        };
        cursor = format!("&cursor={next}");
    }
    panic!("pages without end");
}

#[tokio::test]
async fn a_log_of_any_length_is_shown_page_by_page_to_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path()).await.unwrap();
    let last = 8400;
    // The second in which the first chunk ends: two of its three decisions are in it.
    let split = last - (CHUNK - 2).div_ceil(3);
    let actor = |second: usize| match second {
        0..10 => "alice",
        _ if second == split => "bob",
        _ => "policy",
    };
    long_log(&store, last, actor).await;
    let stage = Stage::at(OperatorCommands::File(store));
    let expected = |seconds: std::ops::Range<usize>| -> Vec<(Timestamp, String)> {
        let all = seconds.rev().flat_map(|second| [2, 1, 0].map(|app| (second, app)));
        let all = all.filter(|(second, app)| *app > 0 || *second < last);
        all.map(|(second, app)| (at(second), format!("web-{app}"))).collect()
    };
    let all = pages(&stage, "limit=1000").await;
    assert_eq!(all.len(), 3 * last + 2);
    assert!(all == expected(0..last + 1));
    assert_eq!(pages(&stage, "actor=alice&limit=20").await, expected(0..10), "behind two chunks of others");
    assert_eq!(pages(&stage, "actor=bob&limit=1").await, expected(split..split + 1), "in two chunks");
}

#[tokio::test]
async fn while_the_log_is_not_read_other_lists_are_answered() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path()).await.unwrap();
    let stage = Stage::at(OperatorCommands::File(store.clone()));
    let disk = store.hold().await;
    let mut decisions = std::pin::pin!(stage.get("/api/v1/decisions"));
    assert!(futures_util::FutureExt::now_or_never(decisions.as_mut()).is_none());
    for list in ["violations", "nodes", "plan", "incidents", "exemptions"] {
        assert_eq!(stage.get(&format!("/api/v1/{list}")).await.0, StatusCode::OK, "{list}");
    }
    drop(disk);
    assert_eq!(decisions.await.0, StatusCode::OK);
}

#[tokio::test]
async fn an_exemption_that_is_removed_from_a_cluster_is_logged_with_what_it_covered() {
    let directory = tempfile::tempdir().unwrap();
    let tokens = directory.path().join("tokens");
    std::fs::write(&tokens, "alice alice-alice-alice\n").unwrap();
    let text = format!(
        "discovery: {{mode: static, targets: [a]}}\noutput: {{mode: directory}}\napi: {{token_file: {}}}\n",
        tokens.display()
    );
    let config = Config::parse(&text, "test", [], jiff::Timestamp::UNIX_EPOCH).unwrap();
    let server = Server::default();
    let spec = json!({"namespace": {"exact": "ns-a"}, "reason": "a course"});
    server.put("exemptions", "course", json!({"metadata": {}, "spec": spec}));
    let exemption: ExemptionSpec = serde_json::from_value(spec).unwrap();
    let persisted =
        PersistedState { exemptions: [("course".to_owned(), exemption)].into(), ..PersistedState::default() };
    let persisted = watch::channel(Arc::new(persisted)).1;
    let stage = Stage::under(&config, OperatorCommands::Cluster(server.objects()), persisted);
    let request = Request::delete("/api/v1/exemptions/course")
        .header("authorization", "Bearer alice-alice-alice")
        .body(Body::empty());
    assert_eq!(stage.ask(request.unwrap()).await.0, StatusCode::NO_CONTENT);
    let enforcement = server.get("enforcements", "procscan").unwrap();
    let log = enforcement["metadata"]["annotations"]["procscan-aggregator/declarations"].as_str().unwrap();
    let reason = "Exemption course is removed; it was namespace=ns-a, for ever";
    assert_eq!(json(log)[0]["reason"], reason);
}
