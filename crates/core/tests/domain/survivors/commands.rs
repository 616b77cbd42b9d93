//! Operators' commands, and how they are recorded.

use crate::common::{HOUR, MINUTE, World, app, record, record_of};
use procscan_core::decision::{Actor, Decision, Mode};
use procscan_core::exemption::is_too_far;
use procscan_core::policy::{IncidentCommand, IncidentCommandError, IssuedBy};

fn release(world: &World) -> IncidentCommand {
    IncidentCommand::Release {
        app: app("ns-a"),
        until: world.now.wall() + jiff::SignedDuration::from_hours(1),
    }
}

fn blocked() -> World {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    world
}

fn execute(world: &mut World, by: IssuedBy<'_>) -> Decision {
    let release = release(world);
    world.incidents.execute(&release, by, &world.policy, world.now).unwrap()
}

#[test]
fn an_operators_reason_is_in_the_log_if_there_is_one() {
    let reason = |text: Option<&str>| {
        let decision = execute(&mut blocked(), IssuedBy { name: "alice", reason: text });
        assert_eq!(decision.actor, Actor::Operator("alice".into()));
        decision.reason.to_string()
    };
    let plain = reason(None);
    assert!(plain.starts_with("released by hand"), "{plain}");
    assert_eq!(reason(Some(" a false hit\n")), format!("{plain} («a false hit»)"));
    assert_eq!(reason(Some("\x1b[2J")), format!("{plain} («\\u{{1b}}[2J»)"));
    assert_eq!(reason(Some("  ")), plain);
}

#[test]
fn an_operator_named_policy_is_logged_as_an_operator() {
    let decision = execute(&mut blocked(), "policy".into());
    assert_eq!(decision.actor, Actor::Operator("policy (an operator)".into()));
    assert_ne!(Actor::named(&decision.actor.name()), Actor::Policy);
    assert_eq!(execute(&mut blocked(), "policymaker".into()).actor, Actor::Operator("policymaker".into()));
}

#[test]
fn the_decision_about_a_command_in_dry_run_is_marked() {
    for mode in [Mode::Enforce, Mode::DryRun, Mode::Paused] {
        let mut world = blocked();
        world.policy.mode = mode;
        assert_eq!(execute(&mut world, "alice".into()).dry_run, mode == Mode::DryRun);
    }
}

#[test]
fn the_number_of_done_commands_never_decreases_by_itself() {
    let mut world = blocked();
    let observed = |world: &World| world.incidents.incident(&app("ns-a")).unwrap().observed();
    for (number, is) in [(3, 3), (2, 3), (5, 5)] {
        world.incidents.note_done_up_to(&app("ns-a"), number);
        assert_eq!(observed(&world), is);
        let observed = world.incidents.document(&app("ns-a")).unwrap().status.observed;
        assert_eq!(observed, is);
    }
    // The object was restored from a backup, so its numbers start lower.
    world.persist();
    world.incidents.restart_numbering(&app("ns-a"), 1);
    assert_eq!(observed(&world), 1);
    assert_eq!(world.incidents.dirty(), [app("ns-a")], "that has to be persisted");
    world.persist();
    world.incidents.restart_numbering(&app("ns-a"), 1);
    assert!(world.incidents.dirty().is_empty(), "nothing has changed");
}

#[test]
fn an_incident_is_persisted_under_one_name() {
    let world = blocked();
    let name = world.incidents.name_of(&app("ns-a")).unwrap();
    assert_eq!(name, world.incidents.document(&app("ns-a")).unwrap().name);
    assert_eq!(name, world.incidents.incident(&app("ns-a")).unwrap().name(&app("ns-a")));
    assert_eq!(world.incidents.name_of(&app("ns-b")), None);
}

fn approve(world: &mut World) -> Result<Decision, IncidentCommandError> {
    world.incidents.execute(&IncidentCommand::Approve { app: app("ns-a") }, "ops", &world.policy, world.now)
}

#[test]
fn an_app_that_no_brake_holds_can_not_be_approved_and_an_ended_incident_takes_no_command() {
    let mut world = blocked();
    assert_eq!(approve(&mut world).unwrap_err(), IncidentCommandError::NotHeld(app("ns-a")));
    assert_eq!(world.blocked(), ["ns-a"]);
    world.rounds(31, |w| drop(w.answer("n1", vec![])));
    assert!(world.blocked().is_empty());
    assert_eq!(approve(&mut world).unwrap_err(), IncidentCommandError::NoIncident(app("ns-a")));
    let release = release(&world);
    let refused = world.incidents.execute(&release, "ops", &world.policy, world.now).unwrap_err();
    assert_eq!(refused, IncidentCommandError::NoIncident(app("ns-a")));
}

/// Finds the App's processes with these numbers.
fn accused_of(world: &mut World, processes: std::ops::Range<usize>) {
    let now = world.clock();
    let records = processes.map(|n| record_of("ns-a", "web", &format!("miner{n}"), now)).collect();
    world.answer("n1", records);
}

#[test]
fn a_release_covers_each_accusation_by_itself_up_to_a_bound_and_then_the_app() {
    for (processes, is_whole) in [(1, false), (64, false), (65, true)] {
        let mut world = World::new(&["n1"]);
        accused_of(&mut world, 0..processes);
        assert_eq!(world.blocked(), ["ns-a"]);
        execute(&mut world, "ops".into());
        world.wait(MINUTE);
        accused_of(&mut world, 0..processes);
        assert!(world.blocked().is_empty());
        accused_of(&mut world, processes..processes + 1);
        // With so many rules, the brakes decide about another one.
        let evaluation = world.evaluate();
        assert_eq!(evaluation.plan.blocks.is_empty() && evaluation.held.is_empty(), is_whole, "{processes}");
    }
}

#[test]
fn a_release_of_accusations_that_are_not_all_known_after_a_restart_covers_the_app() {
    let mut world = World::new(&["n1"]);
    accused_of(&mut world, 0..70);
    assert_eq!(world.blocked(), ["ns-a"]);
    world.restart();
    execute(&mut world, "ops".into());
    world.wait(MINUTE);
    accused_of(&mut world, 0..70);
    let evaluation = world.evaluate();
    assert!(evaluation.plan.blocks.is_empty() && evaluation.held.is_empty(), "{:?}", evaluation.held);
}

#[test]
fn the_last_release_counts_and_is_forgotten_a_day_after_its_date() {
    let mut world = blocked();
    let until = |hours| crate::common::at(hours * HOUR).wall();
    let release = |world: &mut World, hours| {
        let release = IncidentCommand::Release { app: app("ns-a"), until: until(hours) };
        world.incidents.execute(&release, "ops", &world.policy, world.now).unwrap();
        assert!(world.blocked().is_empty());
    };
    release(&mut world, 50);
    release(&mut world, 1);
    let document = |world: &World| world.incidents.document(&app("ns-a")).unwrap().status;
    assert_eq!(document(&world).exempted.unwrap(), format!("released by ops until {}", until(1)));
    world.rounds(61, |w| {
        let now = w.clock();
        w.answer("n1", vec![record("ns-a", now)]);
        w.evaluate();
    });
    assert_eq!(world.blocked(), ["ns-a"]);
    // Each of two rules has its own date.
    release(&mut world, 30);
    let now = world.clock();
    world.answer("n1", vec![record_of("ns-a", "web", "zmap", now)]);
    assert_eq!(world.blocked(), ["ns-a"]);
    let releases = |world: &mut World| {
        world.evaluate();
        document(world).releases.iter().map(|release| release.until).collect::<Vec<_>>()
    };
    world
        .incidents
        .execute(
            &IncidentCommand::Release { app: app("ns-a"), until: until(2) },
            "ops",
            &world.policy,
            world.now,
        )
        .unwrap();
    assert_eq!(releases(&mut world), [until(2), until(2)]);
    world.wait(HOUR);
    assert_eq!(releases(&mut world), [until(2), until(2)], "not at once: a clock may be wrong for a while");
    world.wait(25 * HOUR);
    assert!(releases(&mut world).is_empty());
}

#[test]
fn actors_are_logged_by_their_names() {
    let person = Actor::Operator("al\x1bice".into());
    assert_eq!((&*Actor::Policy.name(), &*Actor::Policy.to_string()), ("policy", "policy"));
    assert_eq!((&*person.name(), &*person.to_string()), ("al\x1bice", "al\\u{1b}ice"));
    assert_eq!((Actor::named(&"policy".into()), Actor::named(&person.name())), (Actor::Policy, person));
}

#[test]
fn a_date_may_be_ten_years_ahead_and_not_a_moment_more() {
    let now = crate::common::at(0).wall();
    let ten_years = now + jiff::SignedDuration::from_hours(24 * 3653);
    assert!(!is_too_far(ten_years, now));
    assert!(is_too_far(ten_years + jiff::SignedDuration::from_nanos(1), now));
}

#[test]
fn the_reason_of_a_withheld_exemption_has_the_present_number_of_tenants() {
    let mut world = World::new(&["n1"]);
    world.policy.brake.max_releases = 1;
    world.answer("n1", ["ns-a", "ns-b", "ns-c"].map(|namespace| record(namespace, 0)).into());
    assert_eq!(world.blocked().len(), 3);
    let all = |e: &mut procscan_core::exemption::Exemption| {
        e.process = Some(procscan_core::exemption::Pattern::Exact("xmrig".into()));
    };
    world.policy.exemptions = vec![crate::common::exemption(all, None)];
    let why = |world: &mut World| {
        world.evaluate();
        world.incidents.withheld()[0].reason.clone()
    };
    let first = why(&mut world);
    assert!(first.starts_with("Exemption a would open the gateway to 3 tenants at once"), "{first}");
    assert_eq!(why(&mut world), first);
    world.restart();
    assert_eq!(why(&mut world), first, "another leader");
    for namespace in ["ns-a", "ns-b"] {
        let until = world.now.wall() + jiff::SignedDuration::from_hours(1);
        let release = IncidentCommand::Release { app: app(namespace), until };
        world.incidents.execute(&release, "ops", &world.policy, world.now).unwrap();
    }
    // The next leader judges the exemption anew, and knows that it was withheld.
    world.evaluate();
    world.restart();
    let later = why(&mut world);
    assert!(later.contains("when it was first judged") && later.contains("Now it would open 1:"), "{later}");
}
