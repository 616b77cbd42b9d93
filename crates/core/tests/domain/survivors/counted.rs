//! The numbers that administrators and followers see, and when a round alone leads to a decision.

use std::time::Duration;

use crate::common::{HOUR, MINUTE, World, app, exemption, record, record_of};
use procscan_core::exemption::Pattern;
use procscan_core::names::Key;
use procscan_core::policy::{Alert, Incidents, InheritedBlock, PodState};

#[test]
fn apps_in_grace_held_and_blocked_are_counted_by_leaders_and_followers() {
    let mut world = World::new(&["n1"]);
    world.policy.brake.max_new_tenants = 3;
    let accuse = |world: &mut World, names: &[&str]| {
        world.wait(1);
        let now = world.clock();
        let records = names.iter().map(|name| record(name, now)).collect();
        world.answer("n1", records);
        world.evaluate()
    };
    accuse(&mut world, &["ns-a", "ns-b", "ns-c", "ns-d", "ns-e", "ns-h"]);
    world.policy.grace = Duration::from_mins(10);
    let summary = accuse(&mut world, &["ns-f", "ns-g"]).plan.summary;
    assert_eq!((summary.blocked, summary.in_grace, summary.held, summary.apps()), (3, 2, 3, 8));
    let follower = world.incidents.current_plan(&world.policy, world.now).summary;
    assert_eq!((follower.blocked, follower.in_grace, follower.held), (3, 2, 3));
}

#[test]
fn the_numbers_are_published_anew_when_one_more_app_waits_or_is_held() {
    let mut world = World::new(&["n1"]);
    world.policy.grace = Duration::from_mins(10);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.evaluate().plan.summary.changed, world.now.wall());
    // One ends and another begins: the number is the same, but the Apps are not.
    world.policy.exemptions =
        vec![exemption(|e| e.namespace = Some(Pattern::Exact("ns-a".to_owned())), None)];
    world.wait(MINUTE);
    world.answer("n1", vec![record("ns-b", 60)]);
    let summary = world.evaluate().plan.summary;
    assert_eq!((summary.in_grace, summary.changed), (1, world.now.wall()));
    let changed = world.now.wall();
    world.wait(MINUTE);
    assert_eq!(world.evaluate().plan.summary.changed, changed);
}

#[test]
fn a_round_is_reason_to_decide_only_where_something_waits_for_answers() {
    let mut world = World::new(&["n1"]);
    assert!(!world.incidents.waits_for_rounds());
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    assert!(!world.incidents.waits_for_rounds(), "clearing clocks need no round");
    // The App is accused, and its Pod could not be read.
    world.policy.verify_pods = true;
    world.pod_is("ns-b", "web", PodState::Unreadable("forbidden".to_owned()));
    world.answer("n1", vec![record("ns-a", 0), record("ns-b", 0)]);
    world.evaluate();
    assert!(world.incidents.waits_for_rounds());
    // The App was blocked before the start.
    let mut incidents = Incidents::default();
    let (notified_at, accused) = (None, [Key::new("ns-a", "web", "xmrig")].into());
    let found = InheritedBlock {
        app: app("ns-a"),
        notified_at,
        is_guess: false,
        accused,
        services: vec!["web.ns-a.svc".into()],
        on_ingresses: procscan_core::policy::OnIngresses::default(),
    };
    incidents.inherit([found], &world.policy, world.now);
    assert!(incidents.waits_for_rounds());
    // The App was blocked for more accusations than were persisted.
    let mut world = World::new(&["n1"]);
    world.answer("n1", (0..70).map(|n| record_of("ns-a", "web", &format!("miner{n}"), 0)).collect());
    assert_eq!(world.blocked(), ["ns-a"]);
    assert!(!world.incidents.waits_for_rounds());
    world.restart();
    assert!(world.incidents.waits_for_rounds());
}

#[test]
fn a_right_clock_raises_no_alert_when_a_date_is_over_and_a_wrong_one_names_the_date() {
    let world = || {
        let mut world = World::new(&["n1"]);
        let until = Some(crate::common::at(HOUR).wall());
        let covers =
            |e: &mut procscan_core::exemption::Exemption| e.namespace = Some(Pattern::Exact("ns-a".into()));
        world.policy.exemptions = vec![exemption(covers, until)];
        world.evaluate();
        world
    };
    let mut right = world();
    right.rounds(120, |w| assert!(w.evaluate().alerts.is_empty()));
    let mut wrong = world();
    wrong.jump(7200);
    let alerts = wrong.evaluate().alerts;
    let [Alert::Clock { message }] = &alerts[..] else { panic!("{alerts:?}") };
    assert!(message.contains(&crate::common::at(HOUR).wall().to_string()), "{message}");
}
