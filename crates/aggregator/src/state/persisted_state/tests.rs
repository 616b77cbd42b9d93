use procscan_core::decision::Mode;
use serde_json::json;

use super::*;

#[test]
fn an_incident_that_can_not_be_decompressed_is_never_taken_for_one_without_decisions() {
    let spec = serde_json::from_value(json!({"app": {"namespace": "ns-a", "type": "app", "name": "web"}}));
    let status = json!({"state": "Blocked", "opened": "2026-11-27T08:00:00Z"});
    let status: IncidentStatus = serde_json::from_value(status).unwrap();
    let mut incident = IncidentEntry::new(spec.unwrap(), Some(&status), 1, None).unwrap();
    assert_eq!(incident.readable_document("a").unwrap().status, status);
    incident.status.as_mut().unwrap().1.spoil();
    let persisted = PersistedState {
        incidents: BTreeMap::from([("a".into(), Arc::new(incident.clone()))]),
        ..PersistedState::default()
    };
    assert!(incident.status().is_err() && incident.document("a").is_err() && persisted.documents().is_err());
    assert!(incident.readable_document("a").is_none());
}

#[test]
fn the_reason_of_an_exemption_names_its_operator() {
    let reason = |by: Option<&str>| {
        let exemption = json!({"namespace": {"exact": "ns-a"}, "reason": "a contract", "by": by});
        let exemption = serde_json::from_value(exemption).unwrap();
        let persisted = PersistedState {
            exemptions: [("vendor".to_owned(), exemption)].into(),
            ..PersistedState::default()
        };
        let rule = persisted.rules().0.remove(0);
        assert_eq!(rule.place, "Exemption vendor");
        rule.reason
    };
    assert_eq!(reason(Some("alice")), "a contract (Exemption vendor, by alice)");
    for absent in [None, Some(""), Some(" ")] {
        assert_eq!(reason(absent), "a contract (Exemption vendor, by unknown)");
    }
}

/// Two operator commands, of which the leader has carried out none.
#[test]
fn a_command_that_is_done_is_not_pending_and_the_number_from_a_restored_backup_does_not_count() {
    let at = Timestamp::UNIX_EPOCH;
    let spec = json!({
        "app": {"namespace": "ns-a", "type": "app", "name": "web"},
        "approve": {"by": " alice ", "reason": "seen"}, "release": {},
    });
    let pending = |generation: i64, observed: i64| {
        let status = json!({"state": "Held", "opened": at, "observed": observed});
        let status: IncidentStatus = serde_json::from_value(status).unwrap();
        let spec = serde_json::from_value(spec.clone()).unwrap();
        let incident = IncidentEntry::new(spec, Some(&status), generation, Some("kubectl-edit".to_owned()));
        let incident = Arc::new(incident.unwrap());
        let is_done = incident.is_done();
        let persisted =
            PersistedState { incidents: [("a".into(), incident)].into(), ..PersistedState::default() };
        let pending = persisted.pending_commands(at, |_, _| None);
        let pending = pending.iter().map(|command| (command.actor.clone(), command.number));
        (pending.collect::<Vec<_>>(), is_done)
    };
    let both = |number| vec![("alice".to_owned(), number), ("unknown (kubectl-edit)".to_owned(), number)];
    assert_eq!(pending(3, 2), (both(3), false));
    assert_eq!(pending(3, 3), (Vec::new(), true));
    // The number of another object of that name.
    assert_eq!(pending(3, 4), (both(3), false));
}

#[test]
fn a_release_without_an_end_lasts_thirty_days_and_a_digest_shows_changes() {
    let at = Timestamp::UNIX_EPOCH;
    let with_release = |names: &[&str], release: Value| {
        let incidents = names.iter().map(|name| {
            let spec = json!({
                "app": {"namespace": "ns-a", "type": "app", "name": name}, "release": release,
            });
            let incident = IncidentEntry::new(serde_json::from_value(spec).unwrap(), None, 1, None);
            (Text::from(*name), Arc::new(incident.unwrap()))
        });
        PersistedState { incidents: incidents.collect(), ..PersistedState::default() }
    };
    let pending = with_release(&["a"], json!({"by": "bob"})).pending_commands(at, |_, _| None);
    assert!(
        matches!(&pending[..], [PendingCommand { command: IncidentCommand::Release { until, .. }, .. }] if *until == at + DEFAULT_RELEASE_DURATION)
    );
    assert_eq!(with_release(&["a"], json!({"by": "bob"})).pending_commands(at, |_, _| Some(1)), []);

    let (quiet, requesting) =
        (with_release(&["a", "b"], Value::Null).digest(), with_release(&["a", "b"], json!({})).digest());
    assert!(quiet.requests_the_same(&quiet) && !requesting.requests_the_same(&quiet));
    let paused = EnforcementSpec { reason: Some("x".to_owned()), ..EnforcementSpec::default() };
    let paused = PersistedState { enforcement: paused, ..with_release(&["a", "b"], Value::Null) };
    assert!(!paused.digest().requests_the_same(&quiet));
    assert!(quiet.lacks(&requesting).is_empty());
    let gone = with_release(&["b", "c"], Value::Null).digest().lacks(&quiet);
    assert_eq!(gone, BTreeSet::from(["a".into()]));
}

#[test]
fn declarations_by_other_programs_are_shown_beside_the_log_and_none_twice() {
    let at = |second: i64| Timestamp::from_second(second).unwrap();
    let paused = |by: &str| EnforcementSpec { mode: Some(Mode::Paused), reason: None, by: Some(by.into()) };
    let exempt =
        |by: &str| ExemptionSpec { reason: "x".into(), by: Some(by.into()), ..ExemptionSpec::default() };
    let made = |by: &str, second| Declaration::of_exemption("a", &exempt(by), at(second));
    let gone = Declaration::of_withdrawal("a", None, "alice", at(20));
    let all = |log: &[Declaration], mode: &[Declaration], exemptions: &[Declaration]| {
        let exemptions = exemptions.iter().map(|entry| ("a".to_owned(), entry.clone())).collect();
        let declared = Declared { log: log.to_vec(), mode: mode.first().cloned(), exemptions };
        declared.all().map(|entry| entry.at.as_second()).collect::<Vec<_>>()
    };
    let mode_set = |by: &str, second| Declaration::of_mode(&paused(by), at(second));
    assert_eq!(
        all(&[mode_set("alice", 5)], &[mode_set("alice", 9)], &[]),
        [5],
        "the object was written again for the log"
    );
    assert_eq!(all(&[mode_set("alice", 5)], &[mode_set("bob", 9)], &[]), [5, 9], "by kubectl");
    assert_eq!(all(&[], &[], &[made("bob", 7)]), [7]);
    assert_eq!(all(&[made("bob", 8)], &[], &[made("bob", 7)]), [8]);
    assert_eq!(
        all(&[made("bob", 8), gone.clone()], &[], &[made("bob", 30)]),
        [8, 20, 30],
        "made again by kubectl"
    );
    assert_eq!(all(&[made("bob", 8), gone], &[], &[]), [8, 20]);
}
