//! Exemptions that would open too many tenants: an operator confirms them, and each leader decides about them in the
//! same way.

use procscan_core::decision::Mode;
use procscan_core::exemption::{Exemption, Pattern};
use procscan_core::policy::{Alert, IncidentCommand};
use procscan_core::state;
use serde_json::json;

use crate::common::{MINUTE, World, app, exemption, many_blocked, namespaces, record, record_of};

pub(crate) fn of(namespaces: &str, confirm: Option<usize>) -> Exemption {
    let any = Pattern::Regex(regex::Regex::new(namespaces).unwrap());
    Exemption { confirm, ..exemption(|e| e.namespace = Some(any.clone()), None) }
}

fn gone(world: &mut World, namespaces: &[String]) {
    for namespace in namespaces {
        world.facts.apps.entry(app(namespace)).or_default().gone = true;
    }
}

/// Another leader begins. With `fails_over` it is another replica.
fn change_leader(world: &mut World, fails_over: bool) {
    if fails_over {
        world.follower_ahead = 3600;
        world.fail_over();
    } else {
        world.restart();
    }
}

#[test]
fn a_withheld_exemption_opens_nothing_under_the_next_leader_because_fewer_tenants_are_left() {
    for (left, fails_over) in [(15, false), (15, true), (5, false), (5, true)] {
        let mut world = many_blocked();
        world.policy.exemptions = vec![of("^ns-", None)];
        assert_eq!(world.blocked().len(), 25);
        gone(&mut world, &namespaces(25 - left));
        assert_eq!(world.blocked().len(), left);
        for _ in 0..3 {
            change_leader(&mut world, fails_over);
            let evaluation = world.evaluate();
            assert_eq!(evaluation.plan.blocks.len(), left, "{left} left, {fails_over}");
            assert_eq!(evaluation.alerts.len(), 1, "the alert is raised anew: {:?}", evaluation.alerts);
            let [withheld] = &world.incidents.withheld()[..] else { panic!("one is withheld") };
            assert!(withheld.reason.contains(&format!("`confirm: {left}`")), "{}", withheld.reason);
        }
        // It prevents no new block either, and takes effect with the number.
        world.wait(MINUTE);
        let now = world.clock();
        world.answer("n1", vec![record("ns-new", now)]);
        assert_eq!(world.blocked().len(), left + 1);
        world.policy.exemptions = vec![of("^ns-", Some(left + 1))];
        assert!(world.blocked().is_empty());
        change_leader(&mut world, fails_over);
        assert!(world.blocked().is_empty());
        assert!(world.incidents.withheld().is_empty());
    }
}

/// Some exemptions can't be read for a while. Then this one is read again as it was.
#[test]
fn a_withheld_exemption_stays_withheld_while_it_can_not_be_read() {
    let mut world = many_blocked();
    world.policy.exemptions = vec![of("^ns-", None)];
    assert_eq!(world.blocked().len(), 25);
    let all = std::mem::take(&mut world.policy.exemptions);
    let broken = json!({"namespace": {"regex": "^ns-"}, "until": "soon"});
    world.policy.unread_exemptions = vec![state::exemption::readable(&broken)];
    gone(&mut world, &namespaces(20));
    assert_eq!(world.blocked().len(), 5);
    (world.policy.exemptions, world.policy.unread_exemptions) = (all, Vec::new());
    world.restart();
    assert_eq!(world.blocked().len(), 5);
    assert_eq!(world.incidents.withheld().len(), 1);
}

/// The first exemption covers all tenants, the second only one of them.
#[test]
fn a_withheld_exemption_does_not_withhold_another_one() {
    let mut world = many_blocked();
    world.policy.exemptions = vec![of("^ns-", None)];
    assert_eq!(world.blocked().len(), 25);
    world.restart();
    world.policy.exemptions.push(of("^ns-003$", None));
    assert_eq!(world.blocked().len(), 24);
    assert_eq!(world.incidents.withheld().len(), 1);
}

#[test]
fn an_exemption_in_force_is_not_withheld_by_the_next_leader_because_it_covers_more_tenants_now() {
    for fails_over in [false, true] {
        let mut world = many_blocked();
        world.policy.exemptions = vec![of("^ns-00[0-4]|^ns-1", None)];
        assert_eq!(world.blocked().len(), 20);
        // It covers twenty-five more Apps, none of which is blocked.
        world.wait(MINUTE);
        let now = world.clock();
        let more = |w: &mut World, now: i64| {
            w.answer("n1", namespaces(125)[100..].iter().map(|name| record(name, now)).collect());
        };
        more(&mut world, now);
        assert_eq!(world.blocked().len(), 20);
        change_leader(&mut world, fails_over);
        assert_eq!(world.blocked().len(), 20);
        assert!(world.incidents.withheld().is_empty());
        world.wait(MINUTE);
        let now = world.clock();
        more(&mut world, now);
        assert_eq!(world.blocked().len(), 20);
    }
}

/// Declaring it again is a new declaration by the operator.
#[test]
fn an_exemption_that_was_taken_away_and_comes_again_is_counted_anew_by_any_leader() {
    for restarts in [false, true] {
        let mut world = many_blocked();
        world.policy.exemptions = vec![of("^ns-", None)];
        assert_eq!(world.blocked().len(), 25);
        gone(&mut world, &namespaces(15));
        assert_eq!(world.blocked().len(), 10);
        world.policy.exemptions.clear();
        assert_eq!(world.blocked().len(), 10);
        if restarts {
            world.restart();
        }
        world.policy.exemptions = vec![of("^ns-", None)];
        assert!(world.blocked().is_empty(), "{restarts}");
    }
}

#[test]
fn a_withheld_exemption_is_persisted_in_a_few_incidents_and_once() {
    let mut world = many_blocked();
    world.policy.exemptions = vec![of("^ns-", None)];
    let before: Vec<_> = world.persisted.values().cloned().collect();
    world.evaluate();
    let changed = world.persisted.values().zip(&before).filter(|(now, before)| now != before).count();
    assert!((1..=8).contains(&changed), "{changed}");
    let before = world.persisted.clone();
    for _ in 0..3 {
        world.evaluate();
        assert!(world.incidents.dirty().is_empty());
    }
    assert_eq!(world.persisted, before);
}

#[test]
fn namespaces_that_may_not_be_blocked_any_more_open_no_more_tenants_at_once_than_a_brake_allows() {
    let others = regex::Regex::new("^nz-").unwrap();
    for is_protected in [false, true] {
        let mut world = many_blocked();
        let notices = world.evaluate().plan.notices;
        let mistake = |world: &mut World| {
            if is_protected {
                world.policy.protected = vec!["*".into()];
            } else {
                world.policy.namespaces = others.clone();
            }
        };
        mistake(&mut world);
        let evaluation = world.evaluate();
        assert_eq!((evaluation.plan.blocks.len(), evaluation.decisions), (25, vec![]));
        assert_eq!(evaluation.plan.notices, notices, "their tenants' notices stay");
        let [Alert::Exemption { message }] = &evaluation.alerts[..] else {
            panic!("{:?}", evaluation.alerts)
        };
        assert!(message.contains("25 tenants") && message.contains("raise brake.max_releases"), "{message}");
        assert_eq!(world.incidents.withheld().len(), 1);
        assert!(world.evaluate().alerts.is_empty(), "the alert is raised once");
        // The next leader raises the alert, too.
        world.restart();
        world.answer("n1", vec![]);
        let evaluation = world.evaluate();
        assert_eq!((evaluation.plan.blocks.len(), evaluation.alerts.len()), (25, 1));
        // Accusations in their namespaces are not applied, so they stay closed whether the processes run or not.
        // Nothing new is blocked.
        for goes_on in [true, false] {
            world.rounds(100, |world| {
                let now = world.clock();
                let found = namespaces(26).iter().map(|namespace| record(namespace, now)).collect();
                world.answer("n1", if goes_on { found } else { vec![] });
                world.evaluate();
            });
            let evaluation = world.evaluate();
            assert_eq!((evaluation.plan.blocks.len(), evaluation.held.len()), (25, 0));
        }
        // An operator releases some. The others are not opened by that.
        for namespace in &namespaces(25)[..6] {
            let until = world.now.wall() + jiff::SignedDuration::from_hours(1);
            let command = IncidentCommand::Release { app: app(namespace), until };
            world.incidents.execute(&command, "ops", &world.policy, world.now).unwrap();
        }
        assert_eq!(world.blocked().len(), 19);
        // The operator raises the limit, because the change was meant.
        world.policy.brake.max_releases = 25;
        let evaluation = world.evaluate();
        assert_eq!((evaluation.plan.blocks.len(), world.incidents.withheld().len()), (0, 0));
        assert!(evaluation.plan.notices.is_empty());
    }
}

#[test]
fn paused_opens_nothing_in_a_namespace_that_may_not_be_blocked_any_more() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.policy.mode = Mode::Paused;
    world.policy.protected = vec!["ns-a".into()];
    let evaluation = world.evaluate();
    assert_eq!((evaluation.plan.blocks.len(), evaluation.plan.notices.len()), (1, 1));
    world.policy.mode = Mode::Enforce;
    assert!(world.blocked().is_empty());
}

#[test]
fn an_exemption_that_would_open_many_tenants_has_no_effect_until_it_is_confirmed_with_their_number() {
    let mut world = many_blocked();
    assert_eq!(of(".*", None).opens(&world.evaluate().plan), 25);
    world.policy.exemptions = vec![of(".*", None)];
    let evaluation = world.evaluate();
    assert_eq!(evaluation.plan.blocks.len(), 25);
    let [Alert::Exemption { message }] = &evaluation.alerts[..] else { panic!("{:?}", evaluation.alerts) };
    assert!(message.contains("Exemption a would open the gateway to 25 tenants"), "{message}");
    assert!(message.contains("`confirm: 25`"), "{message}");
    let withheld = world.incidents.withheld();
    assert_eq!(withheld.len(), 1);
    assert_eq!((&*withheld[0].place, &withheld[0].reason), ("Exemption a", message));
    // The alert is raised once. Neither a smaller number nor a falling number of tenants confirms the exemption.
    world.policy.exemptions = vec![of(".*", Some(24))];
    let evaluation = world.evaluate();
    assert_eq!((evaluation.plan.blocks.len(), evaluation.alerts.len()), (25, 1));
    let evaluation = world.evaluate();
    assert_eq!((evaluation.plan.blocks.len(), evaluation.alerts.len()), (25, 0));
    gone(&mut world, &namespaces(20));
    assert_eq!(world.blocked().len(), 5);
    world.wait(MINUTE);
    let now = world.clock();
    world.answer("n1", vec![record("ns-new", now)]);
    for _ in 0..3 {
        assert_eq!(world.blocked().len(), 6, "the exemption opens no App at all");
    }
    assert_eq!(world.incidents.withheld().len(), 1, "it is listed as long as it is withheld");
    world.policy.exemptions = vec![of(".*", Some(6))];
    assert!(world.blocked().is_empty());
    assert!(world.incidents.withheld().is_empty());

    // With the number the exemption takes effect at once. An exemption for few tenants needs no number.
    let mut world = many_blocked();
    world.policy.exemptions = vec![of(".*", Some(25))];
    assert!(world.blocked().is_empty());
    let mut world = many_blocked();
    world.policy.exemptions = vec![of("^ns-00|^ns-01", None)];
    assert_eq!(world.blocked().len(), 5);
}

#[test]
fn blocks_that_two_exemptions_open_only_together_count_for_the_second() {
    let mut world = many_blocked();
    world.wait(MINUTE);
    let both = namespaces(25)
        .into_iter()
        .flat_map(|name| [record_of(&name, "web", "xmrig", 60), record_of(&name, "web", "zmap", 60)]);
    world.answer("n1", both.collect());
    let of_process = |process: &str| exemption(|e| e.process = Some(Pattern::Exact(process.into())), None);
    world.policy.exemptions = vec![of_process("xmrig")];
    let evaluation = world.evaluate();
    assert_eq!((evaluation.plan.blocks.len(), evaluation.alerts.len()), (25, 0));
    world.policy.exemptions.push(of_process("zmap"));
    let evaluation = world.evaluate();
    assert_eq!((evaluation.plan.blocks.len(), evaluation.alerts.len()), (25, 1));
    // The first one stays in effect.
    world.answer("n1", vec![record_of("ns-other", "web", "xmrig", 60)]);
    assert_eq!(world.blocked().len(), 25);
}

#[test]
fn blocks_that_another_exemption_opens_do_not_count_for_the_next() {
    let mut world = many_blocked();
    world.policy.exemptions = vec![of("^ns-01", None), of("^ns-0[12]", None)];
    let evaluation = world.evaluate();
    assert_eq!((evaluation.plan.blocks.len(), evaluation.alerts.len()), (10, 0));
    let mut world = many_blocked();
    world.policy.brake.max_releases = 10;
    world.policy.exemptions = vec![of("^ns-01", None), of("^ns-0[12]", None)];
    let evaluation = world.evaluate();
    assert_eq!(
        (evaluation.plan.blocks.len(), evaluation.alerts.len()),
        (10, 0),
        "the first exemption opens ten, and the second opens five"
    );
}

#[test]
fn one_tenant_may_be_opened_whatever_the_brake_on_releases_says() {
    let mut world = World::new(&["n1"]);
    world.policy.brake.max_releases = 0;
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.policy.exemptions = vec![of(".*", None)];
    assert!(world.blocked().is_empty());
}
