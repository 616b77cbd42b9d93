//! Answers that are not complete or can't be used, and addresses where nothing listens.

use std::sync::Arc;

use crate::common::{HOUR, MINUTE, World, complete, exemption, failed, record, record_of};
use procscan_core::clearing::Cleared;
use procscan_core::exemption::Pattern;
use procscan_core::ledger::{Detection, NodeChange};
use procscan_core::names::NodeName;
use procscan_core::report::{Answer, Failure, FailureReason, LeftOut, Outcome, Record, Report, Target};
use procscan_core::snapshot::{Coverage, State, TargetState};

const SILENT: [FailureReason; 6] = [
    FailureReason::Resolve,
    FailureReason::Refused,
    FailureReason::Connect,
    FailureReason::ConnectTimeout,
    FailureReason::Timeout,
    FailureReason::Disconnected,
];
const UNUSABLE: [FailureReason; 8] = [
    FailureReason::Stalled,
    FailureReason::CutOff,
    FailureReason::Protocol,
    FailureReason::Status,
    FailureReason::Encoding,
    FailureReason::TooLarge,
    FailureReason::Deferred,
    FailureReason::Malformed,
];

fn in_part(reason: FailureReason) -> Outcome {
    Outcome::Partial(Answer::default(), Failure { reason, detail: "by the test".into() })
}

#[test]
fn only_failures_without_a_sign_of_life_let_the_wait_for_a_lost_node_run() {
    for (reason, is_silent) in SILENT.map(|r| (r, true)).into_iter().chain(UNUSABLE.map(|r| (r, false))) {
        let mut world = World::new(&["n1"]);
        world.answer("n1", vec![record("ns-a", 0)]);
        assert_eq!(world.blocked(), ["ns-a"]);
        world.rounds(26 * 60, |w| drop(w.report("n1", failed(reason))));
        let cleared = world.violation("ns-a").leading.cleared;
        assert_eq!(cleared, is_silent.then_some(Cleared::Unreachable), "{reason:?}");
        assert_eq!(world.blocked().len(), usize::from(!is_silent), "{reason:?}");
        if is_silent {
            continue;
        }
        // An incomplete answer counts as none. Once the node gives no sign of life, the wait for it begins.
        world.rounds(24 * 60, |w| drop(w.report("n1", in_part(reason))));
        world.rounds(24 * 60 - 1, |w| drop(w.fail("n1")));
        assert_eq!(world.blocked(), ["ns-a"], "{reason:?}");
        world.rounds(1, |w| drop(w.fail("n1")));
        assert!(world.blocked().is_empty(), "{reason:?}");
    }
}

#[test]
fn a_node_whose_answers_can_not_be_used_is_reported_once_and_once_when_they_can_again() {
    let mut world = World::new(&["n1"]);
    let change_after = |w: &mut World, outcome: Outcome| {
        w.wait(MINUTE);
        w.report("n1", outcome);
        w.ledger.take_node_change()
    };
    let unusable = || failed(FailureReason::TooLarge);
    assert_eq!(change_after(&mut world, complete(vec![], 60)), None);
    for _ in 0..2 {
        // Three bad answers may be an accident, so the coverage is still fresh.
        assert_eq!([(); 3].map(|()| change_after(&mut world, unusable())), [None, None, None]);
        assert_eq!(change_after(&mut world, complete(vec![], 0)), None);
    }
    let since = world.now.wall() + std::time::Duration::from_secs(MINUTE);
    let mut changes: Vec<_> = (0..30).filter_map(|_| change_after(&mut world, unusable())).collect();
    // A timeout in between does not end it.
    changes.extend(change_after(&mut world, failed(FailureReason::Timeout)));
    changes.extend((0..30).filter_map(|_| change_after(&mut world, in_part(FailureReason::Malformed))));
    assert_eq!(changes, [NodeChange::Unusable]);
    let view = |w: &mut World| w.snapshot().targets[0].clone();
    let shown = view(&mut world);
    assert_eq!(shown.state, TargetState::Unusable);
    assert!(shown.unusable_since.unwrap().get() > since, "without an answer in between");
    assert_eq!(shown.last_failure.unwrap().1.reason, FailureReason::Malformed);
    assert_eq!(world.snapshot().coverage, Coverage { stale: 1, ..Coverage::default() });
    assert_eq!(change_after(&mut world, complete(vec![], 0)), Some(NodeChange::UsableAgain));
    assert_eq!(change_after(&mut world, complete(vec![], 0)), None);
    let shown = view(&mut world);
    assert_eq!((shown.state, shown.unusable_since), (TargetState::Fresh, None));

    let mut never = World::new(&["n1"]);
    change_after(&mut never, unusable());
    assert_eq!(view(&mut never).state, TargetState::Unusable);
    assert_eq!(never.snapshot().coverage, Coverage { never_seen: 1, ..Coverage::default() });
    change_after(&mut never, failed(FailureReason::Refused));
    assert_eq!(view(&mut never).state, TargetState::NeverSeen);
}

/// The node lists violations of so many namespaces, and records of these others were left out when its answer was
/// read. Returns the change.
fn node_change_after(
    world: &mut World,
    listed: usize,
    left_out: &[&str],
    is_whole: bool,
) -> Option<NodeChange> {
    world.wait(MINUTE);
    let now = world.clock();
    let records = (0..listed).map(|n| record(&format!("ns-{n}"), now)).collect();
    let Outcome::Complete(mut answer) = complete(records, now) else { unreachable!() };
    for namespace in left_out {
        answer.left_out.note(namespace);
    }
    let failure = Failure { reason: FailureReason::Deferred, detail: "by the test".into() };
    world.report("n1", if is_whole { Outcome::Complete(answer) } else { Outcome::Partial(answer, failure) });
    world.ledger.take_node_change()
}

fn leaves_out(namespaces: &[&str]) -> NodeChange {
    NodeChange::LeavesOut { namespaces: namespaces.iter().map(|namespace| (*namespace).into()).collect() }
}

#[test]
fn the_ledger_reports_once_that_records_of_a_node_are_left_out_and_once_that_none_are() {
    let mut world = World::with(&["n1"], Detection { max_keys_per_node: 2, ..Detection::default() });
    let change_after = node_change_after;
    assert_eq!(change_after(&mut world, 2, &[], true), None);
    assert_eq!(
        change_after(&mut world, 3, &[], true),
        Some(leaves_out(&["ns-2"])),
        "the ledger has no room for it"
    );
    assert_eq!(change_after(&mut world, 3, &[], true), None);
    assert_eq!(change_after(&mut world, 2, &[], false), None, "the rest of the answer may have had more");
    assert_eq!(change_after(&mut world, 2, &[], true), Some(NodeChange::LeavesNothingOut));
    assert_eq!([true, false].map(|is_whole| change_after(&mut world, 2, &[], is_whole)), [None, None]);
    assert_eq!(
        change_after(&mut world, 2, &["ns-z"], false),
        Some(leaves_out(&["ns-z"])),
        "the part alone has more"
    );
    assert_eq!(change_after(&mut world, 2, &["ns-z"], true), None);
    assert_eq!(change_after(&mut world, 2, &[], true), Some(NodeChange::LeavesNothingOut));
    // Five namespaces are named.
    assert_eq!(change_after(&mut world, 3, &["ns-z"], true), Some(leaves_out(&["ns-2", "ns-z"])));
    assert_eq!(change_after(&mut world, 2, &[], true), Some(NodeChange::LeavesNothingOut));
    let many = ["ns-u", "ns-v", "ns-w", "ns-x", "ns-y", "ns-z"];
    assert_eq!(change_after(&mut world, 2, &many, true), Some(leaves_out(&many[..5])));
}

#[test]
fn the_change_names_each_namespace_without_room_whether_its_records_were_known_or_not() {
    let mut world = World::with(&["n1"], Detection { max_keys_per_node: 2, ..Detection::default() });
    let of = |namespace| ["p", "q"].map(|process| record_of(namespace, "web", process, 0));
    world.answer("n1", of("ns-a").into());
    assert_eq!(world.ledger.take_node_change(), None);
    // Each node has room for one: the known violation of the first namespace makes room, and the other's was never
    // known.
    world.answer("n1", [of("ns-a"), of("ns-b")].concat());
    assert_eq!(world.ledger.take_node_change(), Some(leaves_out(&["ns-a", "ns-b"])));
}

#[test]
fn usable_again_is_reported_before_records_that_are_left_out() {
    let mut world = World::with(&["n1"], Detection { max_keys_per_node: 2, ..Detection::default() });
    world.rounds(5, |w| drop(w.report("n1", failed(FailureReason::TooLarge))));
    assert_eq!(node_change_after(&mut world, 3, &[], true), Some(NodeChange::UsableAgain));
    assert_eq!(node_change_after(&mut world, 3, &[], true), Some(leaves_out(&["ns-2"])));
}

/// A world with one node that has these addresses.
fn with_addresses(addresses: &[&str]) -> (World, Vec<Target>) {
    let mut world = World::new(&[]);
    let node = NodeName::new("n1");
    let targets: Vec<Target> =
        addresses.iter().map(|address| Target { address: Arc::from(*address), node: node.clone() }).collect();
    world.ledger.expect(targets.clone(), 0);
    (world, targets)
}

fn report(world: &mut World, target: &Target, outcome: Outcome) {
    world.ledger.absorb(&Report { target: target.clone(), at: world.now, outcome });
}

#[test]
fn an_address_that_refuses_restarts_nothing_while_another_one_of_its_node_answers() {
    let (v4, v6) = ("10.0.0.1:9090", "[fd00::1]:9090");
    for (addresses, interval) in [([v4, v6], 60), ([v4, v6], 1000), ([v6, v4], 1000)] {
        let (mut world, targets) = with_addresses(&addresses);
        let scanned = |w: &World| w.clock() / interval * interval;
        let round = |w: &mut World, stamp: i64| {
            for target in &targets {
                let outcome = if *target.address == *v4 {
                    complete(vec![record("ns-a", stamp)], w.clock())
                } else {
                    failed(FailureReason::Refused)
                };
                report(w, target, outcome);
            }
        };
        world.rounds(60, |w| round(w, scanned(w)));
        assert_eq!(world.blocked(), ["ns-a"]);
        let last = scanned(&world);
        let required = 30.max(6 * interval / 60 + 1);
        world.rounds(u64::try_from(required).unwrap() + 1, |w| round(w, last));
        assert!(world.blocked().is_empty(), "{addresses:?}, interval {interval}");
    }
}

#[test]
fn a_node_that_refuses_at_all_its_addresses_has_restarted_when_it_answers_again() {
    let (mut world, targets) = with_addresses(&["10.0.0.1:9090", "[fd00::1]:9090"]);
    let all = |w: &mut World, outcome: &dyn Fn(&World) -> Outcome| {
        for target in &targets {
            let outcome = outcome(w);
            report(w, target, outcome);
        }
    };
    world.rounds(60, |w| all(w, &|w| complete(vec![record("ns-a", w.clock() / 1000 * 1000)], w.clock())));
    assert_eq!(world.blocked(), ["ns-a"]);
    // Two days without reaching its first scan.
    world.rounds(4 * 48, |w| {
        all(w, &|_| failed(FailureReason::Refused));
        for _ in 0..14 {
            w.wait(MINUTE);
            all(w, &|w| complete(vec![], w.clock()));
        }
    });
    assert_eq!(world.blocked(), ["ns-a"]);

    // When one address has left, its last answer does not count for the other.
    let (mut world, targets) = with_addresses(&["10.0.0.1:9090", "10.0.0.2:9090"]);
    world.rounds(60, |w| {
        let outcome = complete(vec![record("ns-a", w.clock() / 1000 * 1000)], w.clock());
        report(w, &targets[0], outcome);
    });
    assert_eq!(world.blocked(), ["ns-a"]);
    world.ledger.expect([targets[1].clone()], 0);
    report(&mut world, &targets[1], complete(vec![], 0));
    world.ledger.expect(targets.clone(), 0);
    report(&mut world, &targets[0], complete(vec![], 0));
    world.ledger.expect([targets[1].clone()], 0);
    world.rounds(4 * 48, |w| {
        report(w, &targets[1], failed(FailureReason::Refused));
        for _ in 0..14 {
            w.wait(MINUTE);
            report(w, &targets[1], complete(vec![], 0));
        }
    });
    assert_eq!(world.blocked(), ["ns-a"]);
}

/// An answer with more records than the limit; `left_out` are the namespaces of the others.
fn cut(records: Vec<Record>, date: i64, left_out: &[&str]) -> Outcome {
    let Outcome::Complete(answer) = complete(records, date) else { unreachable!() };
    let mut names = LeftOut::default();
    for namespace in left_out {
        names.note(namespace);
    }
    Outcome::Complete(Answer { left_out: names, ..answer })
}

#[test]
fn too_many_records_of_one_tenant_delay_no_release_of_another() {
    let mut world = World::new(&["n1"]);
    let answer = |w: &mut World, more: &[Record]| {
        let now = w.clock();
        let flood = (0..50).map(|n| record_of("ns-f", "web", &format!("p{n}"), now));
        w.report("n1", cut(flood.chain(more.iter().cloned()).collect(), now, &["ns-f"]));
    };
    // One process of the flood is found once, and left out from then on.
    let now = world.clock();
    answer(&mut world, &[record("ns-a", now), record_of("ns-f", "other", "xmrig", now)]);
    assert_eq!(world.blocked(), ["ns-a", "ns-f", "ns-f"]);
    world.rounds(30, |w| answer(w, &[]));
    assert_eq!(world.state("ns-a"), State::Cleared);
    assert_eq!(world.blocked(), ["ns-f", "ns-f"]);
    let left_out = |w: &mut World| {
        let mut all = w.snapshot().violations.into_iter();
        all.find(|violation| *violation.key.pod == *"other").unwrap().leading
    };
    world.rounds(23 * 60, |w| answer(w, &[]));
    assert_eq!(left_out(&mut world).cleared, None);
    assert!(left_out(&mut world).hidden_by.is_none());
    assert_eq!(world.blocked().len(), 2);
    world.rounds(60, |w| answer(w, &[]));
    assert_eq!(left_out(&mut world).cleared, Some(Cleared::Hidden));
    assert_eq!(world.blocked(), ["ns-f"]);
}

#[test]
fn an_answer_that_leaves_out_records_of_too_many_tenants_is_inconclusive_about_all_tenants() {
    let names: Vec<String> = (0..=LeftOut::MAX_NAMESPACES).map(|n| format!("ns-{n:04}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (names, is_bounded) in [(&names[1..], true), (&names, false)] {
        let mut world = World::new(&["n1"]);
        world.answer("n1", vec![record("ns-a", 0)]);
        world.rounds(12 * 60, |w| {
            let outcome = cut(vec![record("ns-b", w.clock()), record("ns-c", w.clock())], w.clock(), names);
            w.report("n1", outcome);
        });
        assert_eq!(world.state("ns-a") == State::Cleared, is_bounded);
    }
}

/// The persisted time comes from a wall clock, which may have jumped back since.
#[test]
fn evidence_from_before_a_start_is_no_reason_for_a_new_block_before_it_is_found_again() {
    let mut world = World::new(&["n1"]);
    world.wait(6 * HOUR);
    let found = world.clock();
    world.answer("n1", vec![record("ns-a", found)]);
    world.policy.grace = std::time::Duration::from_secs(5 * MINUTE);
    assert!(world.blocked().is_empty());
    let back = jiff::SignedDuration::from_hours(3);
    world.now = procscan_core::Moment::new(
        world.now.uptime() + std::time::Duration::from_secs(3 * HOUR),
        world.now.wall() + std::time::Duration::from_secs(3 * HOUR) - back,
    );
    world.restart();
    world.policy.grace = std::time::Duration::ZERO;
    for _ in 0..10 {
        let at = world.now;
        world.now = procscan_core::Moment::new(
            at.uptime() + std::time::Duration::from_secs(MINUTE),
            at.wall() + std::time::Duration::from_secs(MINUTE),
        );
        world.answer("n1", vec![record("ns-a", found)]);
        assert!(world.blocked().is_empty());
    }
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    assert_eq!(world.blocked(), ["ns-a"]);
}

/// The evidence of a node that scans seldom stays active for three scans, but no new block follows from it.
#[test]
fn evidence_older_than_max_age_is_no_reason_for_a_new_block() {
    let mut world = World::with(&["n1"], Detection::default());
    let scanned = |w: &World| w.clock() / 3600 * 3600;
    let until = world.now.wall() + std::time::Duration::from_secs(6 * HOUR);
    let covered = || Some(Pattern::Exact("ns-a".to_owned()));
    world.policy.exemptions = vec![exemption(|e| e.namespace = covered(), Some(until))];
    world.rounds(5 * 60, |w| {
        let found = scanned(w);
        w.answer("n1", vec![record("ns-a", found)]);
        assert!(w.blocked().is_empty());
    });
    // When the exemption ends, the last scan is an hour old, and the agent finds nothing more.
    let last = scanned(&world);
    world.rounds(100, |w| {
        w.answer("n1", vec![record("ns-a", last)]);
        assert!(w.blocked().is_empty(), "{} s", w.clock());
    });
    assert_eq!(world.state("ns-a"), State::Active, "it may still be there");
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    // A block stays, however seldom its node scans.
    world.rounds(120, |w| {
        w.answer("n1", vec![record("ns-a", now)]);
        assert_eq!(w.blocked(), ["ns-a"]);
    });
}
