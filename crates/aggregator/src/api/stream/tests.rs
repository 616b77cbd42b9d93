use std::collections::BTreeMap;

use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::api::tests::{RECORD, Stage};

/// A client that reads events.
struct Reading {
    body: axum::body::Body,
    text: String,
}

#[derive(Debug)]
struct Received {
    id: Option<String>,
    event: String,
    data: Value,
}

impl Reading {
    async fn of(stage: &Stage, query: &str, last: Option<&str>) -> Self {
        let mut request = Request::get(format!("/api/v1/stream{query}"));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = stage.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body(), text: String::new() }
    }

    /// The next event; `None` at the end.
    async fn next(&mut self) -> Option<Received> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let lines: BTreeMap<&str, &str> =
                    event.lines().filter_map(|line| line.split_once(": ")).collect();
                let received = lines.get("event").map(|event| Received {
                    id: lines.get("id").map(|id| (*id).to_owned()),
                    event: (*event).to_owned(),
                    data: serde_json::from_str(lines["data"]).unwrap(),
                });
                self.text = rest.to_owned();
                match received {
                    Some(received) => return Some(received),
                    None => continue,
                }
            }
            let frame = self.body.frame().await?.unwrap();
            self.text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
        }
    }
}

fn started(stage: &Stage) -> CancellationToken {
    let cancel = CancellationToken::new();
    let (views, commands) = ((*stage.api.views).clone(), stage.api.operators.commands.clone());
    tokio::spawn(stage.api.operators.stream.clone().run(views, commands, cancel.clone()));
    cancel
}

fn record(namespace: &str, process: &str) -> String {
    RECORD.replace("ns-a", namespace).replace("xmrig", process)
}

#[tokio::test(start_paused = true)]
async fn a_client_gets_every_change_once_in_order_and_goes_on_where_it_was() {
    let mut stage = Stage::new();
    stage.answer("n1", &format!("[{}]", record("ns-a", "before")));
    let cancel = started(&stage);
    let mut client = Reading::of(&stage, "?event=violation", None).await;
    let begin = client.next().await.unwrap();
    assert_eq!((begin.event.as_str(), begin.data), ("begin", json!({})));
    // What was there before is no change.
    stage.answer("n1", &format!("[{},{}]", record("ns-a", "before"), record("ns-a", "one")));
    let one = client.next().await.unwrap();
    assert_eq!(one.event, "violation");
    assert_eq!((&one.data["change"], &one.data["violation"]["process"]), (&json!("added"), &json!("one")));
    drop(client);
    stage.answer("n1", &format!("[{},{}]", record("ns-a", "one"), record("ns-b", "two")));
    tokio::time::sleep(2 * PERIOD).await;
    let mut client = Reading::of(&stage, "?event=violation", one.id.as_deref()).await;
    let two = client.next().await.unwrap();
    assert_eq!(two.data["violation"]["process"], "two");
    // The same again, from the beginning.
    let mut again = Reading::of(&stage, "?event=violation", begin.id.as_deref()).await;
    for expected in ["one", "two"] {
        assert_eq!(again.next().await.unwrap().data["violation"]["process"], expected);
    }
    // All streams end with the service.
    cancel.cancel();
    assert!(client.next().await.is_none() && again.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_identifier_that_is_not_known_and_a_place_that_is_not_kept_are_a_gap() {
    let mut stage = Stage::new();
    let _cancel = started(&stage);
    let mut client = Reading::of(&stage, "", Some("0123-7")).await;
    let gap = client.next().await.unwrap();
    assert!(gap.event == "gap" && gap.data["detail"].as_str().unwrap().contains("snapshot"), "{gap:?}");
    // It goes on after the gap.
    stage.answer("n1", &format!("[{}]", record("ns-a", "one")));
    let kinds = [client.next().await.unwrap().event, client.next().await.unwrap().event];
    assert!(kinds.contains(&"violation".to_owned()), "{kinds:?}");
    // Without clients for a minute, changes are not looked for.
    let last = gap.id.clone();
    drop(client);
    tokio::time::sleep(LINGER + 4 * PERIOD).await;
    let mut client = Reading::of(&stage, "", last.as_deref()).await;
    assert_eq!(client.next().await.unwrap().event, "gap");
    let count =
        |reason| stage.api.operators.stream.counters.stream_cut.get_or_create(&[("reason", reason)]).get();
    assert_eq!(count("behind"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_hears_nothing_else_hears_that_the_stream_is_alive() {
    let stage = Stage::new();
    let _cancel = started(&stage);
    let mut client = Reading::of(&stage, "", None).await;
    client.next().await.unwrap();
    for _ in 0..3 {
        let frame = client.body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(&frame[..], b": alive\n\n");
    }
    assert_eq!(stage.api.operators.stream.clients(), 1);
    drop(client);
    assert_eq!(stage.api.operators.stream.clients(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_renewed_time_is_no_change_and_the_end_of_a_violation_is() {
    let mut stage = Stage::new();
    stage.answer("n1", &format!("[{}]", record("ns-a", "one")));
    let _cancel = started(&stage);
    let mut client = Reading::of(&stage, "?event=violation", None).await;
    client.next().await.unwrap();
    for minute in 31..35 {
        let later = record("ns-a", "one").replace("18:30:00", &format!("18:{minute}:00"));
        stage.answer("n1", &format!("[{later}]"));
        tokio::time::sleep(2 * PERIOD).await;
    }
    // It became active with the first new time; then nothing has changed.
    assert_eq!(client.next().await.unwrap().data["violation"]["state"], "active");
    let pod = procscan_core::names::PodRef { namespace: "ns-a".into(), pod: "p".into() };
    stage.ledger.pod_gone(&pod, stage.clock.now());
    stage.publish();
    let gone = client.next().await.unwrap();
    assert_eq!(
        (&gone.data["change"], &gone.data["violation"]["state"]),
        (&json!("changed"), &json!("cleared"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_one_namespace_gets_the_events_of_that_one_only() {
    let mut stage = Stage::new();
    let _cancel = started(&stage);
    let mut own = Reading::of(&stage, "?namespace=ns-a", None).await;
    let mut all = Reading::of(&stage, "", None).await;
    let begins = [own.next().await.unwrap(), all.next().await.unwrap()];
    for n in 0..5 {
        let records: Vec<String> = (0..=n)
            .flat_map(|n| [record("ns-b", &format!("zz{n}")), record("ns-a", &format!("xx{n}"))])
            .collect();
        stage.answer("n1", &format!("[{}]", records.join(",")));
        tokio::time::sleep(2 * PERIOD).await;
    }
    let mut ids = vec![begins[0].id.clone().unwrap()];
    for n in 0..5 {
        let event = own.next().await.unwrap();
        assert_eq!(
            (event.event.as_str(), &event.data["violation"]["process"]),
            ("violation", &json!(format!("xx{n}")))
        );
        assert!(
            !event.data.to_string().contains("zz") && !event.data.to_string().contains("ns-b"),
            "{event:?}"
        );
        ids.push(event.id.unwrap());
    }
    // An identifier tells nothing of how many events there were elsewhere.
    assert!(
        ids.iter().all(|id| id.len() == ids[0].len() && id.bytes().all(|byte| byte.is_ascii_hexdigit())),
        "{ids:?}"
    );
    let mut counts = BTreeMap::<String, usize>::new();
    while counts.values().sum::<usize>() < 11 {
        let event = all.next().await.unwrap();
        *counts.entry(event.event).or_default() += 1;
    }
    assert!(counts["violation"] >= 9, "{counts:?}");
    // It resumes by its own identifier, and not by that of another reader.
    let mut again = Reading::of(&stage, "?namespace=ns-a", Some(&ids[3])).await;
    assert_eq!(again.next().await.unwrap().data["violation"]["process"], "xx3");
    let mut other = Reading::of(&stage, "?namespace=ns-b", Some(&ids[3])).await;
    assert_eq!(other.next().await.unwrap().event, "gap");
}
