//! `/metrics` by the whole router.

use std::collections::BTreeMap;

use procscan_core::plan::HeldApp;

use super::*;

/// The samples of an answer: the name with its labels, and the value.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    };
    lines.map(sample).collect()
}

#[tokio::test]
async fn the_metrics_say_what_is_true_now() {
    let mut stage = Stage::new();
    stage.answer("n1", &format!("[{RECORD}, 7]"));
    let failure = Failure { reason: FailureReason::TooLarge, detail: String::new() };
    let report = Report { target: target("n2"), at: stage.clock.now(), outcome: Outcome::Failed(failure) };
    stage.ledger.absorb(&report);
    stage.ledger.round_done();
    stage.publish();
    let app = |name: &str| App::new("ns-a", "app", name);
    let held = |name, release| HeldApp {
        app: app(name),
        since: Timestamp::UNIX_EPOCH,
        reason: String::new(),
        release,
    };
    let decided = Decided {
        held: vec![held("a", false), held("b", true), held("c", false)],
        unverified: 4,
        ..Decided::nothing(Plan::empty(Mode::Enforce, Timestamp::UNIX_EPOCH))
    };
    stage.decided.send_replace(Arc::new(decided));
    stage.output.send_replace(OutputStatus { error: Some("disk full".into()), ..OutputStatus::default() });
    let (status, headers, body) = stage.get("/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let samples = samples(&body);
    for (name, value) in [
        ("procscan_targets{state=\"fresh\"}", 1.0),
        ("procscan_targets{state=\"never_seen\"}", 1.0),
        ("procscan_targets_unusable", 1.0),
        ("procscan_violations{state=\"unconfirmed\"}", 1.0),
        ("procscan_records_rejected_total{reason=\"not_a_record\"}", 1.0),
        ("procscan_apps_blocked", 0.0),
        ("procscan_apps_held{what=\"block\"}", 2.0),
        ("procscan_apps_held{what=\"release\"}", 1.0),
        ("procscan_accusations_unverified", 4.0),
        ("procscan_part_ok{part=\"output\"}", 0.0),
        ("procscan_part_ok{part=\"state\"}", 1.0),
        ("procscan_part_ok{part=\"auth\"}", 1.0),
        ("procscan_leader", 1.0),
        ("procscan_leader_known", 1.0),
        ("procscan_enforcement_mode{mode=\"enforce\"}", 1.0),
        ("procscan_enforcement_mode{mode=\"paused\"}", 0.0),
        ("procscan_config_reload_success", 1.0),
        ("procscan_rounds_total", 0.0),
        ("procscan_round_duration_seconds_count", 0.0),
    ] {
        assert_eq!(samples.get(name), Some(&value), "{name}: {body}");
    }
    // A text of the tenant is in no metric.
    assert!(!body.contains("ns-a") && !body.contains("xmrig"), "{body}");
    // Every metric is described, and each counter by the name of its samples.
    for name in samples.keys() {
        let name = name.split('{').next().unwrap();
        let described = |name: &str| {
            body.contains(&format!("# HELP {name} ")) && body.contains(&format!("# TYPE {name} "))
        };
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        assert!(described(name) || family.is_some_and(described), "{name}: {body}");
    }
    let accept = Request::get("/metrics").header("accept", "application/openmetrics-text;version=1.0.0");
    let (_, headers, body) = stage.ask(accept.body(Body::empty()).unwrap()).await;
    assert_eq!(headers["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(body.ends_with("# EOF\n"), "{body}");
}
