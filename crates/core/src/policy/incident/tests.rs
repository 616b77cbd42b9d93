use std::time::Duration;

use jiff::Timestamp;

use super::*;
use crate::ledger::{Reading, SHORT_CMDLINE};
use crate::moment::Span;

fn at(minute: usize) -> Moment {
    Moment::new(Duration::from_mins(minute as u64), Timestamp::UNIX_EPOCH)
}

fn id(node: usize, process: usize) -> EvidenceId {
    (Key::new("ns-a", "web", format!("p{process:04}")), NodeName::new(format!("n{node}")))
}

/// A ground of a violation of that rule, found in that minute.
fn ground(key: &Key, rule: &str, minute: usize) -> Ground {
    let mut record = Record::of(key.clone());
    let claim = Arc::make_mut(&mut record.claim);
    (claim.regex, claim.cmdline) = (rule.into(), "x".repeat(SHORT_CMDLINE + 1).into());
    Ground {
        record: Arc::new(record),
        pod_uid: None,
        fresh_at: at(minute),
        found_at: None,
        evidence_time: Timestamp::UNIX_EPOCH.into(),
        counted_from: at(minute),
        mark: Reading::ZERO,
        first_seen: Timestamp::UNIX_EPOCH.into(),
        scan_interval: None,
        away: Span::ZERO,
        hidden_for: Span::ZERO,
        active: false,
        gone: false,
        observations: 1,
        kept: None,
    }
}

/// An incident with a ground in each of the first `count` minutes.
fn incident(count: usize, rule: impl Fn(usize) -> String) -> Incident {
    let mut incident = Incident::new(at(0));
    for minute in 0..count {
        let id = id(0, minute);
        let ground = ground(&id.0, &rule(minute), minute);
        incident.grounds.insert(id, ground);
    }
    incident
}

fn minutes(incident: &Incident) -> Vec<usize> {
    incident.grounds.values().map(|ground| ground.counted_from.uptime().as_secs() as usize / 60).collect()
}

#[test]
fn of_what_the_ledger_no_longer_knows_the_latest_grounds_stay() {
    let mut flooded = incident(MAX_FORGOTTEN, |_| "a".into());
    flooded.limit_forgotten(|_| false);
    assert_eq!((flooded.grounds.len(), flooded.omitted), (MAX_FORGOTTEN, 0));
    let mut flooded = incident(MAX_FORGOTTEN + 10, |_| "a".into());
    flooded.limit_forgotten(|_| false);
    assert_eq!(minutes(&flooded), (10..MAX_FORGOTTEN + 10).collect::<Vec<_>>());
    assert_eq!((flooded.omitted, flooded.waits_for_all()), (10, true));
    flooded.limit_forgotten(|_| false);
    assert_eq!((flooded.grounds.len(), flooded.omitted), (MAX_FORGOTTEN, 10));
}

#[test]
fn what_is_active_or_known_to_the_ledger_does_not_count() {
    let mut flooded = incident(MAX_FORGOTTEN + 30, |_| "a".into());
    for minute in 0..10 {
        flooded.grounds.get_mut(&id(0, minute)).unwrap().active = true;
    }
    let is_known = |known: &EvidenceId| (10..20).any(|minute| *known == id(0, minute));
    flooded.limit_forgotten(is_known);
    // Twenty do not count, and of the others ten are too many.
    assert_eq!(minutes(&flooded), (0..20).chain(30..MAX_FORGOTTEN + 30).collect::<Vec<_>>());
    // Only what counts loses a long command line: the ledger's budget has those of the others.
    let has_cmdline = |minute| !flooded.grounds.get(&id(0, minute)).unwrap().record.cmdline.is_empty();
    assert_eq!([0, 10, 30].map(has_cmdline), [true, true, false]);
}

#[test]
fn the_last_ground_of_each_rule_on_each_node_stays() {
    let mut flooded = incident(MAX_FORGOTTEN + 10, |minute| if minute < 2 { "b".into() } else { "a".into() });
    for node in [1, 2] {
        let id = id(node, 0);
        let ground = ground(&id.0, "a", 0);
        flooded.grounds.insert(id, ground);
    }
    flooded.limit_forgotten(|_| false);
    // The later one of rule b, one of each of the other nodes, and the latest of rule a.
    let expected = [0, 0].into_iter().chain([1]).chain(13..MAX_FORGOTTEN + 10).collect::<Vec<_>>();
    let mut left = minutes(&flooded);
    left.sort_unstable();
    assert_eq!(left, expected);
    // More rules than there may be grounds: only a node that lies has so many.
    let mut lies = incident(2 * MAX_FORGOTTEN, |minute| format!("rule-{minute}"));
    lies.limit_forgotten(|_| false);
    assert_eq!(lies.grounds.len(), MAX_FORGOTTEN);
}

#[test]
fn what_has_cleared_holds_no_long_command_line() {
    let mut incident = incident(1, |_| "a".into());
    let ground = incident.grounds.remove(&id(0, 0)).unwrap();
    incident.bury(id(0, 0), ground, ClearedGround::AppGone, Timestamp::UNIX_EPOCH);
    let buried = &incident.tombstones.get(&id(0, 0)).unwrap().ground.record;
    assert_eq!((&*buried.cmdline, &*buried.regex), ("", "a"));
}
