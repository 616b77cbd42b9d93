//! The names of members and the values of enumerations in all JSON below `/api/v1`.

use std::collections::BTreeSet;

use axum::http::Method;
use procscan_core::clearing::Cleared;
use procscan_core::names::Text;
use procscan_core::plan::{Accusation, Dispute, Exposure, HeldApp, Notice, NoticePhase, OtherApps};
use procscan_core::state::incident::{
    self, Accuser, AppRef, BrakeKind, ClearedBy, ClearedEvidence, DoubtedClock, Due, EvidenceStatus, Grace,
    HeldBy, NotificationStatus, NotifiedOf, PodProcess, ReleaseDue, Scope, StickyRelease, WallClock,
};
use procscan_core::state::{IncidentState, IncidentStatus};

use super::refusals::OperatorStage;
use super::*;

fn is_snake_case(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// Members that are times.
const TIMES: [&str; 24] = [
    "at",
    "believed",
    "clock",
    "evidence_time",
    "first_seen",
    "fresh_at",
    "grace_ends",
    "idle_since",
    "last_answer",
    "last_seen",
    "latest_over",
    "opened",
    "release_held",
    "sent_at",
    "since",
    "time",
    "timestamp",
    "changed",
    "unusable_since",
    "until",
    "until_by_clock",
    "written",
    "written_at",
    "written_by_clock",
];
/// Names of objects, operators and processes, texts for people, rules, cursors, and what a request has given.
const NAMES_AND_TEXTS: [&str; 36] = [
    "actor",
    "address",
    "by",
    "detail",
    "error",
    "exact",
    "exemption",
    "exempted",
    "expected",
    "incident",
    "ingresses",
    "left_open",
    "name",
    "namespace",
    "next",
    "node",
    "nothing_closed",
    "of",
    "once_closed",
    "origins",
    "otherwise",
    "parameter",
    "place",
    "pod",
    "pod_uid",
    "process",
    "processes",
    "reason",
    "regex",
    "rule",
    "services",
    "title",
    "type",
    "value",
    "withheld",
    "writer",
];
/// Members that are values of enumerations.
const VALUES: [&str; 11] = [
    "was",
    "brake",
    "cleared",
    "decision",
    "mode",
    "operators",
    "in_force",
    "phase",
    "presence",
    "state",
    "status",
];

/// What a text is, by the name of its member. A member that is in no list here fails the test.
fn kind_of(member: &str) -> Kind {
    match member {
        _ if TIMES.contains(&member) => Kind::Time,
        _ if VALUES.contains(&member) => Kind::Value,
        _ if NAMES_AND_TEXTS.contains(&member) => Kind::Text,
        _ => Kind::Unknown,
    }
}

#[derive(Debug, PartialEq)]
enum Kind {
    Time,
    Value,
    Text,
    Unknown,
}

/// Checks all members below `value`, and collects their names and the values of enumerations. `path` leads to it.
fn walk(value: &Value, path: &[&str], found: &mut BTreeSet<String>) {
    let member = path.iter().rev().find(|step| !step.is_empty()).copied().unwrap_or_default();
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                assert!(is_snake_case(name), "{path:?}: {name}");
                found.insert(name.clone());
                walk(value, &[path, &[name]].concat(), found);
            }
        }
        Value::Array(entries) => entries.iter().for_each(|entry| walk(entry, path, found)),
        Value::String(text) => {
            // `reason` of a failure and `by` of cleared evidence are values of enumerations.
            let is_value = matches!(path, [.., "last_failure", "reason"] | [.., "cleared", "by"]);
            match kind_of(member) {
                _ if is_value => assert!(is_snake_case(text), "{path:?}: {text}"),
                Kind::Value => assert!(is_snake_case(text), "{path:?}: {text}"),
                Kind::Time => assert!(text.parse::<Timestamp>().is_ok(), "{path:?}: {text}"),
                Kind::Text => {}
                Kind::Unknown => panic!("{path:?} is in no list of this test: {text}"),
            }
            if is_value || kind_of(member) == Kind::Value {
                found.insert(text.clone());
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_766_399_400 + second).unwrap()
}

fn evidence(by: ClearedBy) -> EvidenceStatus {
    EvidenceStatus {
        pod: "web-0".into(),
        pod_uid: Some("U".into()),
        process: "XMRig".into(),
        node: "n1".into(),
        regex: "^X".into(),
        kind: "app".into(),
        name: "web".into(),
        first_seen: at(0),
        fresh_at: at(1),
        timestamp: at(1).to_string().into(),
        observations: 2,
        scan_interval: Some(60),
        hidden_for: Some(1),
        cleared: Some(ClearedEvidence { at: at(2), by, ended: true }),
    }
}

fn texts() -> Vec<Text> {
    vec![text()]
}

fn text() -> Text {
    "Text".into()
}

fn grace() -> Grace {
    let some = Some(at(3));
    Grace {
        until: at(1),
        until_by_clock: at(1),
        told: some,
        told_by_clock: some,
        process: "XMRig".into(),
        regex: "^X".into(),
        idle_since: some,
    }
}

/// The log of an incident, with each kind of decision.
fn log() -> Vec<incident::IncidentDecision> {
    let decision = |kind| json!({"at": at(4), "decision": kind, "actor": "policy", "reason": "Why"});
    let of_incidents = &crate::wire_names::DECISIONS[..11];
    of_incidents.iter().map(|kind| serde_json::from_value(decision(kind)).unwrap()).collect()
}

/// Sets the members of `status` that hold a part of the incident, with a value of each enumeration by `n`.
fn add_parts(status: &mut IncidentStatus, n: usize) {
    let brakes = [BrakeKind::NewApps, BrakeKind::Node, BrakeKind::Rule, BrakeKind::SharedService];
    let cleared =
        [ClearedBy::Clock, ClearedBy::Unreachable, ClearedBy::Hidden, ClearedBy::PodGone, ClearedBy::AppGone];
    let notices = [NotifiedOf::Grace, NotifiedOf::Blocked, NotifiedOf::Recovered];
    let (some, brake, what) = (Some(at(3)), brakes[n % brakes.len()], notices[n % notices.len()]);
    status.wall_clock = Some(WallClock {
        believed: at(0),
        doubted: Some(DoubtedClock { time: at(1), since: at(1) }),
        latest_over: some,
    });
    status.brake = Some(HeldBy { since: at(1), brake, of: Some(text()) });
    status.evidence = cleared.map(evidence).into();
    status.inherited = Some(vec![PodProcess { pod: "web-0".into(), process: "XMRig".into() }]);
    status.cleared = Some(cleared[n % cleared.len()]);
    status.told = Some(NotificationStatus { at: at(1), what, delivered: some, delivered_by_clock: some });
    status.due = Some(Due {
        at: at(1),
        passed: false,
        accusers: vec![Accuser { node: "n1".into(), rule: "^X".into() }],
        held: vec![Scope { brake, of: Some(text()) }],
    });
    status.release_due = Some(ReleaseDue { at: at(1), passed: true, proven: true });
    let release = StickyRelease {
        process: Some(text()),
        rule: Some(text()),
        until: at(9),
        until_by_clock: some,
        by: "a".into(),
    };
    status.releases = vec![release];
}

/// An incident in `state` that has every member.
fn incident(n: usize, state: IncidentState) -> Incident {
    let some = Some(at(3));
    let app = AppRef::from(&App::new("ns-a", "app", "Other"));
    let mut status = IncidentStatus {
        state,
        opened: at(0),
        since: some,
        until: some,
        grace_ends: some,
        clock: some,
        written: some,
        wall_clock: None,
        reason: "Why".into(),
        brake: None,
        release_held: some,
        approved: true,
        exempted: Some("Exemption a".into()),
        withheld: texts(),
        evidence: Vec::new(),
        evidence_omitted: 1,
        processes: texts(),
        inherited: None,
        cleared: None,
        exposure: incident::Exposure {
            services: texts(),
            ingresses: texts(),
            otherwise: Some(texts()),
            left_open: texts(),
            once_closed: texts(),
            nothing_closed: Some(text()),
        },
        origins: texts(),
        formerly: vec![app.clone()],
        also_closes: vec![app],
        also_closes_more: 1,
        told: None,
        grace: Some(grace()),
        due: None,
        release_due: None,
        releases: Vec::new(),
        decisions: log(),
        decided: 11,
        observed: 0,
        writer: Some("W".into()),
    };
    add_parts(&mut status, n);
    let spec = IncidentSpec::of(&App::new("ns-a", "app", format!("web-{n}")));
    Incident { name: format!("web-{n}"), spec, status }
}

fn decided() -> Decided {
    let app = |name: &str| App::new("ns-a", "app", name);
    let others = || OtherApps { named: vec![app("Other")], more: 1 }.non_empty();
    let exposure = Exposure {
        services: vec!["web.ns-a.svc".into()],
        ingresses: vec!["ns-a/Web".into()],
        otherwise: Vec::new(),
        others: others(),
        left_open: ["all.ns-a.svc".into()].into(),
        nothing_closed: Some("Why".into()),
    };
    let key = || Key::new("ns-a", "web-0", "XMRig");
    let ground = Accusation { key: key(), rule: "^X".into(), by_keyword: false, node: NodeName::new("n1") };
    let block = Block {
        app: app("web"),
        since: at(0),
        grounds: [ground].into(),
        left: Box::default(),
        exposure: Arc::new(exposure),
        reason: "Why".into(),
    };
    let phases = [NoticePhase::Grace { until: at(9) }, NoticePhase::Blocked, NoticePhase::Recovered];
    let notice = |phase| {
        let processes = ["XMRig".into()].into();
        Arc::new(Notice {
            app: app("web"),
            sent_at: at(0),
            inherited: true,
            phase,
            processes,
            others: others(),
        })
    };
    let mut plan = Plan::empty(Mode::DryRun, at(0));
    (plan.blocks, plan.notices) = (vec![Arc::new(block)], phases.map(notice).into());
    Decided {
        held: vec![HeldApp { app: app("web"), since: at(0), reason: "Why".into(), release: true }],
        disputes: vec![Dispute { key: key(), node: NodeName::new("n1"), reason: "Why".into() }],
        withheld: vec![Withheld { place: "Exemption all".into(), reason: "Why".into() }],
        ..Decided::nothing(plan)
    }
}

const JSON: Option<&str> = Some("application/json");
const STATES: [IncidentState; 6] = [
    IncidentState::Watched,
    IncidentState::Grace,
    IncidentState::Held,
    IncidentState::Blocked,
    IncidentState::ReleaseHeld,
    IncidentState::Ended,
];

/// All answers of all endpoints, each with everything that it may have.
async fn answers() -> Vec<(String, Value)> {
    let mut operator = OperatorStage::open().await;
    let incidents = STATES.iter().enumerate().map(|(n, state)| incident(n, *state)).collect();
    let OperatorCommands::File(store) = &operator.stage.api.operators.commands else { panic!() };
    assert!(store.save(incidents).await.is_empty());
    operator.stage.decided.send_replace(Arc::new(decided()));
    operator.stage.answer("n1", &format!("[{RECORD}, 7]"));
    let failure = Failure { reason: FailureReason::ConnectTimeout, detail: "Why".into() };
    let report =
        Report { target: target("n2"), at: operator.stage.clock.now(), outcome: Outcome::Failed(failure) };
    operator.stage.ledger.absorb(&report);
    operator.stage.publish();

    let mut answers = Vec::new();
    let all = json!({"exact": "NS_a"});
    let part = json!({"regex": "^X"});
    let date = "2999-01-01T00:00:00Z";
    let exempt = json!({"id": "all", "namespace": part, "app": all, "process": all, "rule": part, "reason": "Why",
        "confirm": 9, "until": (Timestamp::now() + std::time::Duration::from_hours(1))});
    for (method, path, body) in [
        (Method::POST, "exemptions", exempt),
        (Method::PUT, "enforcement", json!({"mode": "dry_run", "reason": "Why"})),
        (Method::PUT, "enforcement", json!({"mode": "dry-run"})),
        (Method::POST, "incidents/web-3/release", json!({})),
        (Method::POST, "incidents/web-5/release", json!({})),
        (Method::POST, "incidents/web-3/release", json!({"until": date})),
        (Method::POST, "incidents/web-3/release", json!({"Until": date})),
    ] {
        let (_, answer) = operator.send(method, &format!("/api/v1/{path}"), JSON, &body.to_string()).await;
        answers.push((format!("{path} {body}"), answer));
    }
    for path in [
        "violations",
        "nodes",
        "plan",
        "incidents",
        "incidents?limit=1",
        "incidents/web-0",
        "decisions?limit=1000",
        "exemptions",
        "enforcement",
        "nodes?limit=0",
        "incidents?State=held",
        "nothing",
    ] {
        let body = operator.stage.get(&format!("/api/v1/{path}")).await.2;
        answers.push((path.to_owned(), json(&body)));
    }
    answers
}

#[tokio::test(start_paused = true)]
async fn every_name_and_every_value_of_an_enumeration_is_in_snake_case() {
    let mut found = BTreeSet::new();
    for (path, answer) in answers().await {
        assert!(answer.is_object(), "{path}: {answer}");
        walk(&answer, &[], &mut found);
    }
    // The states, the decisions, and members and values that have another form in the cluster.
    let expected = crate::wire_names::STATES.iter().chain(&crate::wire_names::DECISIONS[..11]);
    for name in expected.chain(&[
        "first_seen",
        "pod_uid",
        "new_apps",
        "shared_service",
        "by_clock",
        "app_gone",
        "dry_run",
        "connect_timeout",
        "not_a_record",
        "recovered",
        "also_closes_more",
        "written_by_clock",
        "mode_changed",
        "exemption_made",
        "never_seen",
        "persisted",
    ]) {
        assert!(found.contains(*name), "no answer has {name}");
    }
}

/// The commands read the pages as they are written, with every member.
#[tokio::test(start_paused = true)]
async fn what_is_written_is_read_by_the_same_types() {
    let mut pages = 0;
    for (path, answer) in answers().await {
        let again = match path.as_str() {
            "incidents" => json!(serde_json::from_value::<types::IncidentPage>(answer.clone()).unwrap()),
            "incidents/web-0" => json!(serde_json::from_value::<types::Incident>(answer.clone()).unwrap()),
            "decisions?limit=1000" => {
                json!(serde_json::from_value::<types::DecisionPage>(answer.clone()).unwrap())
            }
            "exemptions" => json!(serde_json::from_value::<types::ExemptionPage>(answer.clone()).unwrap()),
            "enforcement" => json!(serde_json::from_value::<types::Enforcement>(answer.clone()).unwrap()),
            _ => continue,
        };
        assert_eq!(again, answer, "{path}");
        pages += 1;
    }
    assert_eq!(pages, 5);
}

#[test]
fn the_effect_of_a_command_is_in_snake_case_too() {
    let command = types::CommandEffect {
        decision: procscan_core::decision::DecisionKind::ReleaseHeld.into(),
        was: Some(types::IncidentState::ReleaseHeld),
        until: Some(at(0)),
    };
    let result = types::CommandResult { incident: types::Incident::from(incident(0, STATES[4])), command };
    walk(&json!(result), &[], &mut BTreeSet::new());
    assert_eq!(json!(result)["command"]["was"], "release_held");
    let again: types::CommandResult = serde_json::from_value(json!(result)).unwrap();
    assert_eq!(json!(again), json!(result));
}

#[test]
fn every_rule_of_clearing_has_the_same_name_for_violations_and_incidents() {
    let of_ledger = [Cleared::ByClock, Cleared::Unreachable, Cleared::Hidden, Cleared::PodGone];
    let of_incidents = [ClearedBy::Clock, ClearedBy::Unreachable, ClearedBy::Hidden, ClearedBy::PodGone];
    for (of_ledger, of_incidents) in of_ledger.into_iter().zip(of_incidents) {
        assert_eq!(types::ClearedBy::from(of_ledger), types::ClearedBy::from(of_incidents));
    }
}
