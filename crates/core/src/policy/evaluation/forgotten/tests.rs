use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::*;
use crate::Moment;
use crate::clearing::Reading;
use crate::decision::Mode;
use crate::ledger::{Detection, Ledger, SHORT_CMDLINE};
use crate::names::Key;
use crate::policy::incident::accepted_evidence::ClearingCause;
use crate::policy::{BrakeRules, ClusterFacts, Incidents, Policy, SharedServices};
use crate::report::{Answer, Claim, Outcome, Report, Target};
use crate::time::CompactDuration;

const NONE: [usize; 0] = [];

fn at(minute: usize) -> Moment {
    Moment::new(Duration::from_mins(minute as u64), Timestamp::UNIX_EPOCH)
}

fn id(node: usize, process: usize) -> EvidenceId {
    (Key::new("ns-a", "web", format!("p{process:04}")), NodeName::new(format!("n{node}")))
}

/// Accepted evidence of a violation of that rule, found in that minute.
fn accepted(key: &Key, rule: &str, minute: usize) -> AcceptedEvidence {
    let mut record = Record::of(key.clone());
    let claim = Arc::make_mut(&mut record.claim);
    (claim.regex, claim.cmdline) = (rule.into(), "x".repeat(SHORT_CMDLINE + 1).into());
    AcceptedEvidence {
        record: Arc::new(record),
        pod_uid: None,
        fresh_at: at(minute),
        found_at: None,
        evidence_time: Timestamp::UNIX_EPOCH.into(),
        counted_from: at(minute),
        mark: Reading::ZERO,
        first_seen: Timestamp::UNIX_EPOCH.into(),
        scan_interval: None,
        away: CompactDuration::ZERO,
        hidden_for: CompactDuration::ZERO,
        active: false,
        covered: false,
        gone: false,
        observations: 1,
        persisted: None,
    }
}

/// An incident with accepted evidence of each of these, found in those minutes.
fn incident(all: impl IntoIterator<Item = (EvidenceId, &'static str, usize)>) -> Incident {
    let mut incident = Incident::new(at(0));
    for (id, rule, minute) in all {
        let found = accepted(&id.0, rule, minute);
        incident.accepted.insert(id, found);
    }
    incident
}

/// The processes of node `n0` that are dropped, by their numbers.
fn dropped(incident: &Incident, is_forgotten: impl Fn(usize) -> bool) -> Vec<usize> {
    let number = |(key, _): &EvidenceId| key.process.trim_start_matches('p').parse::<usize>().unwrap();
    let beyond = incident.beyond_limit(|id, _| is_forgotten(number(id)));
    beyond.iter().map(number).collect()
}

#[test]
fn of_violations_that_the_ledger_has_forgotten_the_latest_evidence_stays() {
    let flood = |count| incident((0..count).map(|n| (id(0, n), "a", n)));
    assert_eq!(dropped(&flood(MAX_FORGOTTEN), |_| true), NONE);
    assert_eq!(dropped(&flood(MAX_FORGOTTEN + 3), |_| true), [0, 1, 2]);
    // Violations that the ledger knows do not count.
    assert_eq!(dropped(&flood(MAX_FORGOTTEN + 3), |n| n > 1), [2]);
    assert_eq!(dropped(&flood(MAX_FORGOTTEN + 3), |n| n > 2), NONE);
    // Of equally late evidence the one stays that was hidden for less time before.
    let mut equal = incident((0..=MAX_FORGOTTEN).map(|n| (id(0, n), "a", 0)));
    equal.accepted.get_mut(&id(0, 5)).unwrap().mark.before = Duration::from_secs(1).into();
    assert_eq!(dropped(&equal, |_| true), [5]);
}

#[test]
fn each_node_has_a_limit_of_its_own() {
    let of = |node, count| (0..count).map(move |n| (id(node, n), "a", 1 - node));
    let incident = incident(of(0, MAX_FORGOTTEN).chain(of(1, MAX_FORGOTTEN)));
    assert_eq!(dropped(&incident, |_| true), NONE);
}

#[test]
fn the_last_evidence_of_each_rule_in_each_pod_stays_before_later_evidence() {
    let other = (Key::new("ns-a", "other", "p0002"), NodeName::new("n0"));
    let old = [(id(0, 0), "b", 0), (id(0, 1), "b", 1), (other, "a", 2)];
    let incident = incident(old.into_iter().chain((3..MAX_FORGOTTEN + 3).map(|n| (id(0, n), "a", n))));
    assert_eq!(dropped(&incident, |_| true), [0, 3, 4]);
}

#[test]
fn evidence_that_nothing_covers_stays_before_covered_evidence() {
    let old = (0..2).map(|n| (id(0, n), "b", n));
    let mut incident = incident(old.chain((2..MAX_FORGOTTEN + 2).map(|n| (id(0, n), "a", n))));
    for n in 2..MAX_FORGOTTEN + 2 {
        incident.accepted.get_mut(&id(0, n)).unwrap().covered = true;
    }
    assert_eq!(dropped(&incident, |_| true), [2, 3]);
}

/// If the last accusation of a rule is covered, the last one that nothing covers still counts as its last.
#[test]
fn the_last_uncovered_evidence_of_a_rule_stays_although_later_evidence_is_covered() {
    let old = [(id(0, 0), "a", 0), (id(0, 1), "a", 1)];
    let mut incident = incident(old.into_iter().chain((2..MAX_FORGOTTEN + 2).map(|n| (id(0, n), "b", n))));
    incident.accepted.get_mut(&id(0, 1)).unwrap().covered = true;
    assert_eq!(dropped(&incident, |_| true), [1, 2]);
}

#[test]
fn only_evidence_that_the_ledger_has_forgotten_loses_its_long_command_line() {
    let mut incident = incident((0..3).map(|n| (id(0, n), "a", n)));
    incident.drop_cmdlines(|known, _| *known == id(0, 1));
    let lengths: Vec<usize> =
        incident.accepted.values().map(|accepted| accepted.record.cmdline.len()).collect();
    assert_eq!(lengths, [SHORT_CMDLINE + 1, 0, SHORT_CMDLINE + 1]);
    let short = Record {
        claim: Arc::new(Claim {
            cmdline: "x".into(),
            ..(*incident.accepted.get(&id(0, 0)).unwrap().record.claim).clone()
        }),
        ..Record::of(id(0, 0).0)
    };
    incident.accepted.get_mut(&id(0, 0)).unwrap().record = Arc::new(short);
    incident.drop_cmdlines(|_, _| true);
    let left: Vec<&str> = incident.accepted.values().map(|accepted| &*accepted.record.cmdline).collect();
    assert_eq!(left, ["x", "", ""]);
}

fn policy() -> Policy {
    Policy {
        mode: Mode::Enforce,
        namespaces: regex::Regex::new("^ns-").unwrap(),
        protected: Vec::new(),
        verify_pods: false,
        shared_services: SharedServices::default(),
        has_plain_list: true,
        grace: Duration::ZERO,
        brake: BrakeRules::default(),
        exemptions: Vec::new(),
        unread_exemptions: Vec::new(),
        same_incident: Duration::MAX,
        max_age: Duration::MAX,
        unreachable_limit: Duration::MAX,
        max_notices_per_round: 1,
    }
}

/// The ledger has room for one violation of the Pod. The miner, which ran once, makes room for a later process.
#[test]
fn a_block_holds_no_command_line_that_the_ledger_has_dropped() {
    let mut ledger = Ledger::new(Detection { max_keys_per_pod: 1, ..Detection::default() }, at(0));
    let target = Target { address: "n1:9090".into(), node: NodeName::new("n1") };
    ledger.expect([target.clone()], 0);
    let mut incidents = Incidents::default();
    let mut lengths = |minute, process| {
        let now = at(minute);
        ledger.advance(now);
        let found = accepted(&Key::new("ns-a", "web", process), "a", minute).record;
        let record =
            Record { timestamp: now.wall().to_string().into(), detected_at: now.wall(), ..(*found).clone() };
        let answer =
            Answer { records: [record].into_iter().collect(), date: Some(now.wall()), ..Answer::default() };
        ledger.absorb(&Report { target: target.clone(), at: now, outcome: Outcome::Complete(answer) });
        incidents.decide(&ledger.snapshot(now), &policy(), &ClusterFacts::default(), now);
        let (_, incident) = incidents.incidents().next().unwrap();
        incident.accepted.values().map(|accepted| accepted.record.cmdline.len()).collect::<Vec<_>>()
    };
    assert_eq!(lengths(0, "miner"), [SHORT_CMDLINE + 1]);
    assert_eq!(lengths(200, "other"), [0, SHORT_CMDLINE + 1]);
}

#[test]
fn a_tombstone_holds_no_long_command_line() {
    let mut incident = incident([(id(0, 0), "a", 0)]);
    let accepted = incident.accepted.remove(&id(0, 0)).unwrap();
    incident.add_tombstone(id(0, 0), accepted, ClearingCause::AppGone, Timestamp::UNIX_EPOCH);
    let record = &incident.tombstones.get(&id(0, 0)).unwrap().evidence.record;
    assert_eq!((&*record.cmdline, &*record.regex), ("", "a"));
}
