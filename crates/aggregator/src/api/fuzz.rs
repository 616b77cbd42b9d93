//! Laws of queries for violations.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "whatever is not as expected stops the run"
)]

use std::sync::LazyLock;
use std::time::Duration;

use axum::extract::Query;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use jiff::Timestamp;
use procscan_core::Moment;
use procscan_core::ledger::{Detection, Ledger};
use procscan_core::names::{Key, NodeName};
use procscan_core::report::{Answer, Limits, Outcome, Report, Target, decode};
use procscan_core::snapshot::Snapshot;
use serde_json::Value;

use super::filter::{Filter, PARAMETERS};
use super::parameters::{Given, Pairs};
use super::problem::Problem;
use super::sort::{Place, SortValue};
use super::{Api, cursor, violations};

/// The largest answer to a query that is refused, in bytes.
const MAX_PROBLEM: usize = 8 << 10;

/// Laws of the part of a URL behind the `?`.
///
/// # Panics
/// Where one is broken.
pub fn query(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Some(key) = cursor::read::<Key>(&text) {
        assert_eq!(cursor::write(&key).unwrap(), text, "each place has one name");
    }
    let Ok(uri) = format!("/?{text}").parse::<Uri>() else { return };
    let Ok(Query(query)) = Query::<Vec<(String, String)>>::try_from_uri(&uri) else { return };
    match read(query.clone()) {
        Err(problem) => refused(problem.into_response()),
        Ok(filter) => answered(&query, &filter),
    }
}

fn read(query: Vec<(String, String)>) -> Result<Filter, Problem> {
    Filter::of(&Given::of(Pairs(query), PARAMETERS)?)
}

fn refused(response: Response) {
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let (size, problem) = body(response);
    assert!(size <= MAX_PROBLEM, "{size} bytes");
    for member in ["detail", "parameter", "value", "expected"] {
        assert!(problem[member].is_string(), "{problem}");
    }
}

/// Page by page it is what it is at once, and nothing but what was asked for.
fn answered(query: &[(String, String)], filter: &Filter) {
    let given =
        |name: &str| query.iter().find(|(parameter, _)| parameter == name).map(|(_, value)| value.as_str());
    let without = |names: &[&str]| {
        let others = query.iter().filter(|(name, _)| !names.contains(&name.as_str()));
        others.cloned().collect::<Vec<_>>()
    };
    let all = page(&read(without(&["limit"])).expect("less of it is right, too")).0;
    let mut paged = Vec::new();
    let (first, mut next) = page(filter);
    paged.extend(first);
    let limit = filter.paging.limit;
    assert!(paged.len() <= limit);
    while let Some(cursor) = next {
        assert!(paged.len() < all.len(), "pages without end");
        let mut query = without(&["cursor"]);
        query.push(("cursor".to_owned(), cursor));
        let (more, then) = page(&read(query).expect("what we have given is right"));
        assert!((1..=limit).contains(&more.len()));
        paged.extend(more);
        next = then;
    }
    assert_eq!(paged, all);

    if !given("q").unwrap_or_default().is_ascii() {
        // What upper and lower case of other letters are is a matter of tables.
        return;
    }
    let mut expected: Vec<Value> = page(&read(Vec::new()).expect("nothing is right"))
        .0
        .into_iter()
        .filter(|violation| is_wanted(violation, &given, filter))
        .collect();
    expected.sort_by_key(|violation| place(violation, filter));
    if filter.paging.order.is_descending {
        expected.reverse();
    }
    assert_eq!(all, expected);
}

/// The same question, asked of what is shown.
fn is_wanted<'a>(violation: &Value, given: &impl Fn(&str) -> Option<&'a str>, filter: &Filter) -> bool {
    let text = |name: &str| violation[name].as_str().unwrap();
    let nodes: Vec<&str> = violation["evidence"]
        .as_array()
        .unwrap()
        .iter()
        .map(|evidence| evidence["node"].as_str().unwrap())
        .collect();
    let is_equal = ["namespace", "name", "type", "process"]
        .iter()
        .all(|name| given(name).is_none_or(|wanted| wanted == text(name)));
    let is_in_state =
        given("state").is_none_or(|wanted| wanted.replace('_', "").eq_ignore_ascii_case(text("state")));
    let is_found = given("q").is_none_or(|sought| {
        let sought = sought.to_ascii_lowercase();
        let has = |text: &str| text.to_ascii_lowercase().contains(&sought);
        ["namespace", "pod", "process", "rule"].iter().any(|name| has(text(name)))
            || nodes.iter().any(|n| has(n))
    });
    is_equal
        && is_in_state
        && is_found
        && given("node").is_none_or(|wanted| nodes.contains(&wanted))
        && filter.paging.is_new(&place(violation, filter))
}

/// The place of a violation, by what is shown of it.
fn place(violation: &Value, filter: &Filter) -> Place {
    let text = |name: &str| violation[name].as_str().unwrap();
    let key = ["namespace", "pod", "process"].map(|name| SortValue::from(text(name)));
    let value = match filter.paging.order.by {
        "key" => None,
        time => Some(SortValue::from(text(time).parse::<Timestamp>().unwrap())),
    };
    Place(value.into_iter().chain(key).collect())
}

fn page(filter: &Filter) -> (Vec<Value>, Option<String>) {
    let (reader, _) = Api::anonymous_reader(Pairs(Vec::new()), &[]).expect("it sees everything");
    let page: Value = serde_json::from_slice(&violations::page(&SNAPSHOT, filter, &reader).unwrap()).unwrap();
    let next = page["next"].as_str().map(str::to_owned);
    (page["violations"].as_array().unwrap().clone(), next)
}

fn body(response: Response) -> (usize, Value) {
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).now_or_never().unwrap().unwrap();
    (bytes.len(), serde_json::from_slice(&bytes).unwrap())
}

/// A few violations, in every state, with names that share parts.
static SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(|| {
    let at = |minutes: u64| {
        Moment::new(
            Duration::from_mins(minutes),
            Timestamp::from_second(1_766_399_400).unwrap() + Duration::from_mins(minutes),
        )
    };
    let record = |namespace: &str, pod: &str, process: &str, minutes: u64| {
        let timestamp = at(minutes).wall();
        format!(
            r#"{{"namespace":"{namespace}","pod":"{pod}","process":"{process}","regex":"^{process}","type":"app","name":"{pod}","timestamp":"{timestamp}"}}"#
        )
    };
    let target = |node: &str| Target { address: format!("{node}:9090").into(), node: NodeName::new(node) };
    let mut ledger = Ledger::new(Detection::default(), at(0));
    ledger.expect(["n0", "n1", "N2"].map(target), 0);
    let mut answer = |node: &str, minutes: u64, records: &[String]| {
        let (answer, result) = decode(format!("[{}]", records.join(",")).as_bytes(), &Limits::default());
        result.unwrap();
        let answer = Answer { date: Some(at(minutes).wall()), ..answer };
        ledger.absorb(&Report { target: target(node), at: at(minutes), outcome: Outcome::Complete(answer) });
    };
    for minute in 1..=45 {
        let cleared = if minute < 5 {
            record("ns-a", "web", "gone", minute)
        } else {
            record("ns-a", "web", "xmrig", minute)
        };
        answer("n0", minute, &[cleared, record("ns-a", "web-0", "XMRig", minute)]);
        answer(
            "n1",
            minute,
            &[record("ns-b", "web", "a b%c", minute), record("ns-a", "web", "xmrig", minute)],
        );
    }
    let old = (0..6).map(|n| record("ns-c", &format!("p.{n}"), "nmap", 1)).collect::<Vec<_>>();
    answer("N2", 45, &old);
    ledger.advance(at(45));
    ledger.snapshot(at(45))
});
