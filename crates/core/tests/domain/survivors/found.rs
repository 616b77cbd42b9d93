//! Services that a new leader finds closed, and the App that it assigns them to.

use std::collections::BTreeSet;

use crate::common::{World, app, record};
use procscan_core::decision::Mode;
use procscan_core::names::{App, Key};
use procscan_core::policy::{IncidentCommand, InheritedBlock};

/// An object that blocks `app` and closes those Services.
fn found(app: App, accused: &[&str], services: &[&str]) -> InheritedBlock {
    let key = |process: &&str| Key::new(app.namespace.clone(), "web", *process);
    InheritedBlock {
        accused: accused.iter().map(key).collect(),
        is_guess: accused.is_empty(),
        notified_at: None,
        on_ingresses: procscan_core::policy::OnIngresses::default(),
        services: services.iter().map(|service| (*service).into()).collect(),
        app,
    }
}

fn services_of(world: &mut World, app: &App) -> Vec<String> {
    let plan = world.evaluate().plan;
    let block = plan.blocks.iter().find(|block| block.app == *app);
    block.map_or_else(Vec::new, |block| block.exposure.services.iter().map(ToString::to_string).collect())
}

/// The App `web` of `ns-a` is blocked, with its Service `web`.
fn blocked() -> World {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    assert_eq!(services_of(&mut world, &app("ns-a")), ["web.ns-a.svc"]);
    world
}

#[test]
fn a_block_that_is_found_is_inherited_unless_all_its_services_are_another_apps() {
    let other = App::new("ns-a", "app", "api");
    let taken_over = |accused: &[&str], services: &[&str]| {
        let mut world = blocked();
        let decisions =
            world.incidents.inherit([found(other.clone(), accused, services)], &world.policy, world.now);
        decisions.len() == 1 && world.incidents.incident(&other).is_some()
    };
    // No object shows the violations that the App was blocked for, and its only Service is closed for another App.
    assert!(!taken_over(&[], &["web.ns-a.svc"]));
    assert!(taken_over(&["xmrig"], &["web.ns-a.svc"]), "the App was accused itself");
    assert!(taken_over(&[], &["web.ns-a.svc", "api.ns-a.svc"]), "one of the Services is no other App's");
    assert!(taken_over(&[], &[]), "nothing shows that it is another App's");
}

#[test]
fn the_services_of_an_unreadable_app_stay_closed_unless_they_are_another_apps() {
    let other = App::new("ns-a", "app", "api");
    for (services, closed) in [
        (&["web.ns-a.svc", "api.ns-a.svc"][..], &["api.ns-a.svc"][..]),
        // No other Service of it is left.
        (&["web.ns-a.svc"], &["web.ns-a.svc"]),
    ] {
        let mut world = blocked();
        world.incidents.mark_unreadable([other.clone()]);
        world.incidents.inherit([found(other.clone(), &["xmrig"], services)], &world.policy, world.now);
        assert_eq!(services_of(&mut world, &other), closed);
    }
}

#[test]
fn services_that_are_found_closed_are_added_to_a_blocked_app_only() {
    let more = || [found(app("ns-a"), &["xmrig"], &["old.ns-a.svc"])];
    let persisted = |world: &mut World| {
        let document = world.incidents.document(&app("ns-a")).unwrap();
        document
            .status
            .exposure
            .services
            .into_iter()
            .map(|service| service.to_string())
            .collect::<BTreeSet<_>>()
    };
    let mut world = blocked();
    world.incidents.inherit(more(), &world.policy, world.now);
    assert_eq!(persisted(&mut world), ["old.ns-a.svc", "web.ns-a.svc"].map(str::to_owned).into());
    // An operator has released the App, so the Services that the gateway still closes must not be closed again later.
    let mut world = blocked();
    let until = crate::common::at(3600).wall();
    world
        .incidents
        .execute(&IncidentCommand::Release { app: app("ns-a"), until }, "ops", &world.policy, world.now)
        .unwrap();
    world.incidents.inherit(more(), &world.policy, world.now);
    assert_eq!(persisted(&mut world), ["web.ns-a.svc".to_owned()].into());
}

#[test]
fn a_block_that_is_inherited_in_dry_run_is_marked() {
    for mode in [Mode::Enforce, Mode::DryRun, Mode::Paused] {
        let mut world = World::new(&["n1"]);
        world.policy.mode = mode;
        let decisions = world.incidents.inherit([found(app("ns-a"), &[], &[])], &world.policy, world.now);
        assert_eq!(decisions[0].dry_run, mode == Mode::DryRun);
    }
}
