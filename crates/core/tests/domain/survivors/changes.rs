//! Which events count as a change, and for which readers.

use std::time::Duration;

use crate::common::{HOUR, MINUTE, World, at, complete, record, record_of, target};
use procscan_core::decision::DecisionKind;
use procscan_core::names::{NodeName, PodRef};
use procscan_core::report::{Answer, Outcome, Rejection, Report, Target};
use procscan_core::snapshot::{State, TargetState};

#[test]
fn new_evidence_counts_as_a_change_and_renewed_evidence_does_not() {
    let mut world = World::new(&["n1"]);
    let mut counts = world.snapshot();
    // Whether there was a change, and whether anything that is shown has changed.
    let mut since = |world: &mut World| {
        let now = world.snapshot();
        let before = std::mem::replace(&mut counts, now.clone());
        (now.changes > before.changes, now.revision > before.revision, now.rounds - before.rounds)
    };
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(since(&mut world), (true, true, 0), "it has appeared");
    assert_eq!(since(&mut world), (false, false, 0));
    world.wait(MINUTE);
    world.answer("n1", vec![record("ns-a", 60)]);
    assert_eq!(since(&mut world), (false, true, 0), "it is renewed");
    world.ledger.round_done();
    world.ledger.round_done();
    assert_eq!(since(&mut world), (false, true, 2));
    assert_eq!((world.ledger.rounds(), world.ledger.revision()), (2, counts_of(&mut world)));
    world.ledger.pod_gone(&record("ns-a", 0).key.pod_ref(), world.now);
    assert_eq!(since(&mut world), (true, true, 0), "its Pod is gone");
    world.ledger.pod_gone(&record("ns-b", 0).key.pod_ref(), world.now);
    assert_eq!(since(&mut world), (false, false, 0), "the ledger does not know that Pod");
    world.wait(MINUTE);
    world.answer("n1", vec![record("ns-a", 120)]);
    since(&mut world);
    world.wait(31 * MINUTE);
    assert_eq!(since(&mut world), (true, true, 0), "it has grown old");
    world.wait(MINUTE);
    assert_eq!(since(&mut world), (false, false, 0));
    world.rounds(35, |w| drop(w.answer("n1", vec![])));
    assert!(since(&mut world).0, "it has cleared");
    world.wait(24 * HOUR + 1);
    let (is_change, is_shown, _) = since(&mut world);
    assert!(is_change && is_shown, "its tombstone is forgotten");
}

fn counts_of(world: &mut World) -> u64 {
    world.snapshot().revision
}

#[test]
fn proof_of_one_pod_is_none_of_others_and_an_earlier_proof_does_not_replace_a_later_one() {
    let mut world = World::new(&["n1"]);
    let others = || [record("ns-a", 10), record_of("ns-a", "api", "xmrig", 10), record("ns-b", 10)];
    world.wait(10);
    world.answer("n1", others().into());
    let pod = PodRef { namespace: "ns-a".into(), pod: "web".into() };
    world.ledger.pod_gone(&pod, at(20));
    world.ledger.pod_gone(&pod, at(5));
    let states: Vec<State> = world.snapshot().violations.iter().map(|violation| violation.state).collect();
    assert_eq!(states, [State::Active, State::Cleared, State::Active]);
}

#[test]
fn an_address_that_is_another_nodes_now_is_a_target_without_an_answer() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![]);
    let state =
        |world: &mut World| world.snapshot().targets.iter().map(|target| target.state).collect::<Vec<_>>();
    world.ledger.expect([target("n1")], 0);
    assert_eq!(state(&mut world), [TargetState::Fresh], "nothing has changed");
    let moved = || Target { node: NodeName::new("n2"), ..target("n1") };
    world.ledger.expect([moved()], 0);
    assert_eq!(state(&mut world), [TargetState::NeverSeen]);
    world.ledger.absorb(&Report { target: moved(), at: world.now, outcome: complete(vec![], 0) });
    assert_eq!(state(&mut world), [TargetState::Fresh]);
}

#[test]
fn refused_records_of_an_answer_are_counted_once_however_often_it_is_reported() {
    let mut world = World::new(&["n1"]);
    let mut answer = Answer::default();
    answer.rejected.count(Rejection::NodeQuota);
    for _ in 0..2 {
        world.report("n1", Outcome::Complete(answer.clone()));
        assert_eq!(world.snapshot().rejected.total(), 1);
    }
    world.wait(MINUTE);
    world.report("n1", Outcome::Complete(answer));
    assert_eq!(world.snapshot().rejected.total(), 2);
}

#[test]
fn a_limit_of_none_holds_everything() {
    for set in [
        (|rules| rules.max_new_tenants = 0) as fn(&mut procscan_core::policy::BrakeRules),
        |rules| rules.max_apps_per_tenant = 0,
        |rules| rules.max_tenants_per_rule = 0,
        |rules| rules.max_tenants_per_node = 0,
        |rules| rules.max_apps_per_node = 0,
    ] {
        let mut world = World::new(&["n1"]);
        set(&mut world.policy.brake);
        world.answer("n1", vec![record("ns-a", 0)]);
        assert_eq!((world.blocked().len(), world.held().len()), (0, 1));
    }
}

#[test]
fn a_warning_says_how_long_the_grace_is() {
    for (minutes, duration) in [(5, "5m"), (65, "1h 5m"), (300, "5h"), (26 * 60, "1d 2h")] {
        let mut world = World::new(&["n1"]);
        world.policy.grace = Duration::from_mins(minutes);
        world.answer("n1", vec![record("ns-a", 0)]);
        let decisions = world.evaluate().decisions;
        assert_eq!(decisions[0].kind, DecisionKind::Warned);
        assert!(
            decisions[0].reason.ends_with(&format!("to be blocked in {duration}")),
            "{}",
            decisions[0].reason
        );
    }
}
