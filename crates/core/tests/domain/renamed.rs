//! Apps with earlier names: operators' commands for these names still apply.

use std::time::Duration;

use crate::common::{HOUR, MINUTE, World, at, exemption, record_of};
use procscan_core::decision::DecisionKind;
use procscan_core::exemption::Pattern;
use procscan_core::names::App;
use procscan_core::policy::{Evaluation, IncidentCommand, Lineage, PodState};
use procscan_core::resources::{Existing, render};

/// A world with one node that verifies Pods.
fn world() -> World {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    world
}

/// A Pod of `app`, made by the controller `origin`.
fn pod(world: &mut World, pod: &str, app: &str, origin: &str) {
    world.pod_on("ns-a", pod, "n1", app);
    world.comes_of("ns-a", pod, Lineage { origin: Some(origin.into()), earlier: None });
}

/// The Pod is deleted, and with it its App, unless the App has other Pods.
fn gone(world: &mut World, pod: &str) {
    world.pod_is("ns-a", pod, PodState::Gone);
}

fn app(name: &str) -> App {
    App::new("ns-a", "app", name)
}

/// A miner is found in that Pod a minute later.
fn accuse(world: &mut World, pod: &str) -> Evaluation {
    accuse_of(world, pod, "xmrig")
}

fn accuse_of(world: &mut World, pod: &str, process: &str) -> Evaluation {
    world.wait(MINUTE);
    let now = world.clock();
    world.answer("n1", vec![record_of("ns-a", pod, process, now)]);
    world.evaluate()
}

fn blocked(evaluation: &Evaluation) -> Vec<&str> {
    evaluation.plan.blocks.iter().map(|block| &*block.app.name).collect()
}

fn release(world: &mut World, name: &str) {
    let until = world.now.wall() + Duration::from_secs(24 * HOUR);
    world
        .incidents
        .execute(&IncidentCommand::Release { app: app(name), until }, "ops", &world.policy, world.now)
        .unwrap();
}

#[test]
fn a_release_goes_on_for_the_next_pods_when_their_labels_name_another_app() {
    for restarts in [false, true] {
        let mut world = world();
        pod(&mut world, "web-1", "web", "ReplicaSet/web");
        assert_eq!(blocked(&accuse(&mut world, "web-1")), ["web"]);
        release(&mut world, "web");
        assert!(world.blocked().is_empty());
        // Rolled out anew with another label, hours later.
        gone(&mut world, "web-1");
        world.rounds(60, |world| drop(world.answer("n1", vec![])));
        world.blocked();
        if restarts {
            world.restart();
        }
        pod(&mut world, "web-2", "site", "ReplicaSet/web");
        let evaluation = accuse(&mut world, "web-2");
        assert_eq!(blocked(&evaluation), [""; 0], "restart: {restarts}");
        let decision = evaluation.decisions.iter().find(|it| it.app == app("site")).unwrap();
        assert_eq!(decision.kind, DecisionKind::Exempted);
        assert!(decision.reason.ends_with("; as App ns-a/app/web, its name before"), "{}", decision.reason);
        if restarts {
            world.restart();
        }
        assert_eq!(blocked(&accuse(&mut world, "web-2")), [""; 0]);
        // The release covers that process only, and it ends at its time.
        assert_eq!(blocked(&accuse_of(&mut world, "web-2", "ethminer")), ["site"]);
        assert_eq!(world.persisted.values().filter(|it| *it.spec.app.name == *"site").count(), 1);
    }
}

#[test]
fn a_release_by_the_earlier_name_ends_when_it_says() {
    let mut world = world();
    pod(&mut world, "web-1", "web", "ReplicaSet/web");
    accuse(&mut world, "web-1");
    release(&mut world, "web");
    gone(&mut world, "web-1");
    pod(&mut world, "web-2", "site", "ReplicaSet/web");
    assert_eq!(blocked(&accuse(&mut world, "web-2")), [""; 0]);
    world.rounds(24 * 60 + 1, |world| {
        let now = world.clock();
        world.answer("n1", vec![record_of("ns-a", "web-2", "xmrig", now)]);
    });
    assert_eq!(blocked(&world.evaluate()), ["site"]);
}

#[test]
fn an_exemption_by_the_earlier_name_covers_the_app_as_long_as_it_is_not_blocked() {
    let mut world = world();
    world.policy.exemptions =
        vec![exemption(|exemption| exemption.app = Some(Pattern::Exact("web".into())), None)];
    pod(&mut world, "web-1", "web", "ReplicaSet/web");
    assert_eq!(blocked(&accuse(&mut world, "web-1")), [""; 0]);
    gone(&mut world, "web-1");
    pod(&mut world, "web-2", "site", "ReplicaSet/web");
    let evaluation = accuse(&mut world, "web-2");
    assert_eq!(blocked(&evaluation), [""; 0]);
    let reason = &evaluation.decisions.iter().find(|it| it.app == app("site")).unwrap().reason;
    assert_eq!(&**reason, "exempted: a contract; as App ns-a/app/web, its name before");
    // Another controller's Pods belong to another App.
    pod(&mut world, "shop-1", "shop", "ReplicaSet/shop");
    assert_eq!(blocked(&accuse(&mut world, "shop-1")), ["shop"]);
    world.policy.exemptions.clear();
    assert_eq!(blocked(&accuse(&mut world, "web-2")), ["shop", "site"]);
    // A blocked App is opened by its own name only.
    world.policy.exemptions =
        vec![exemption(|exemption| exemption.app = Some(Pattern::Exact("web".into())), None)];
    assert_eq!(blocked(&world.evaluate()), ["shop", "site"]);
    world.policy.exemptions =
        vec![exemption(|exemption| exemption.app = Some(Pattern::Exact("site".into())), None)];
    assert_eq!(blocked(&world.evaluate()), ["shop"]);
}

#[test]
fn an_unreadable_exemption_that_may_cover_the_earlier_name_leaves_the_app_open() {
    let mut world = world();
    pod(&mut world, "web-1", "web", "ReplicaSet/web");
    world.policy.unread_exemptions =
        vec![exemption(|exemption| exemption.app = Some(Pattern::Exact("web".into())), None)];
    assert_eq!(blocked(&accuse(&mut world, "web-1")), [""; 0]);
    gone(&mut world, "web-1");
    pod(&mut world, "web-2", "site", "ReplicaSet/web");
    assert_eq!(blocked(&accuse(&mut world, "web-2")), [""; 0]);
}

#[test]
fn a_held_app_is_held_under_another_name_too_and_blocked_by_an_approval_only() {
    let mut world = world();
    world.policy.brake.max_new_tenants = 0;
    pod(&mut world, "web-1", "web", "ReplicaSet/web");
    let evaluation = accuse(&mut world, "web-1");
    assert_eq!((blocked(&evaluation).len(), evaluation.held.len()), (0, 1));
    // The storm is over.
    world.policy.brake.max_new_tenants = 20;
    world.rounds(30, |world| drop(world.answer("n1", vec![])));
    gone(&mut world, "web-1");
    pod(&mut world, "web-2", "site", "ReplicaSet/web");
    let evaluation = accuse(&mut world, "web-2");
    assert_eq!(blocked(&evaluation), [""; 0]);
    assert!(evaluation.held.iter().any(|held| held.app == app("site") && !held.release));
    world.restart();
    assert_eq!(blocked(&accuse(&mut world, "web-2")), [""; 0]);
    world
        .incidents
        .execute(&IncidentCommand::Approve { app: app("site") }, "ops", &world.policy, world.now)
        .unwrap();
    assert_eq!(blocked(&accuse(&mut world, "web-2")), ["site"]);
}

/// A tenant with a released App gives its blocked App's Pods the labels of that one, and removes them again.
#[test]
fn no_relabelling_opens_a_block() {
    let mut world = world();
    pod(&mut world, "shop-1", "shop", "ReplicaSet/shop");
    accuse(&mut world, "shop-1");
    release(&mut world, "shop");
    pod(&mut world, "web-1", "web", "ReplicaSet/web");
    assert_eq!(blocked(&accuse(&mut world, "web-1")), ["web"]);
    pod(&mut world, "web-2", "shop", "ReplicaSet/web");
    assert_eq!(blocked(&accuse(&mut world, "web-2")), ["web"]);
    pod(&mut world, "web-3", "web", "ReplicaSet/web");
    for _ in 0..3 {
        assert_eq!(blocked(&accuse(&mut world, "web-3")), ["web"]);
        world.restart();
    }
}

#[test]
fn the_name_that_earlier_versions_gave_the_app_counts_too() {
    let mut world = world();
    world.policy.exemptions =
        vec![exemption(|exemption| exemption.app = Some(Pattern::Exact("nginx".into())), None)];
    world.pod_on("ns-a", "web-1", "n1", "web");
    world.comes_of("ns-a", "web-1", Lineage { origin: None, earlier: Some(app("nginx")) });
    let evaluation = accuse(&mut world, "web-1");
    assert_eq!(blocked(&evaluation), [""; 0]);
    let status = serde_json::to_value(&world.persisted.values().next().unwrap().status).unwrap();
    assert_eq!(status["formerly"][0]["name"], "nginx");
    world.policy.exemptions.clear();
    assert_eq!(blocked(&accuse(&mut world, "web-1")), ["web"]);
}

/// A tenant that makes any number of controllers and labels fills neither memory nor objects.
#[test]
fn names_and_origins_are_remembered_within_bounds() {
    let mut world = world();
    for n in 0..40 {
        let (name, app, origin) =
            (format!("web-{n}"), format!("app-{}", n % 20), format!("ReplicaSet/{}", n / 2));
        pod(&mut world, &name, &app, &origin);
        accuse(&mut world, &name);
    }
    for incident in world.persisted.values() {
        assert!(incident.status.origins.len() <= 8 && incident.status.formerly.len() <= 8);
    }
    // Twelve names, all of the same workload.
    let before = world.persisted.len();
    for n in 0..12 {
        pod(&mut world, &format!("api-{n}"), &format!("api-{n}"), "ReplicaSet/api");
        accuse(&mut world, &format!("api-{n}"));
    }
    assert_eq!(world.persisted.len(), before + 12);
    let formerly = world.persisted.values().map(|incident| incident.status.formerly.len());
    assert_eq!(formerly.max(), Some(8));
    // Twelve origins of one App.
    for n in 0..12 {
        pod(&mut world, &format!("job-{n}"), "job", &format!("Job/job-{n}"));
        accuse(&mut world, &format!("job-{n}"));
    }
    assert_eq!(world.incidents.document(&app("job")).unwrap().status.origins.len(), 8);
    // Tenants see nothing of it.
    let plan = world.evaluate().plan;
    let objects = render(&plan, &crate::common::settings(), Existing::default());
    assert!(objects.iter().all(|object| !object.spec.to_string().contains("ReplicaSet/")));
    assert!(world.now > at(0));
}

fn held(evaluation: &Evaluation) -> Vec<&str> {
    evaluation.held.iter().map(|held| &*held.app.name).collect()
}

#[test]
fn a_blocked_app_is_not_held_because_another_name_of_it_is() {
    let mut world = world();
    world.policy.brake.max_apps_per_tenant = 1;
    pod(&mut world, "api-1", "api", "ReplicaSet/api");
    pod(&mut world, "web-1", "web", "ReplicaSet/web");
    assert_eq!(blocked(&accuse(&mut world, "api-1")), ["api"]);
    assert_eq!(held(&accuse(&mut world, "web-1")), ["web"]);
    // The Pods of `web` get the labels of `api`.
    pod(&mut world, "web-2", "api", "ReplicaSet/web");
    let evaluation = accuse(&mut world, "web-2");
    assert_eq!((blocked(&evaluation), held(&evaluation)), (vec!["api"], vec!["web"]));
}

#[test]
fn a_service_that_was_left_open_holds_no_other_name_of_the_app() {
    let mut world = world();
    world.policy.shared_services = procscan_core::plan::SharedServices::Hold;
    pod(&mut world, "web-1", "web", "ReplicaSet/web");
    assert_eq!(blocked(&accuse(&mut world, "web-1")), ["web"]);
    world.service("ns-a", "all", &["shop", "web"]);
    assert_eq!(held(&accuse(&mut world, "web-1")), ["web"], "for the Service that stays open");
    pod(&mut world, "web-2", "api", "ReplicaSet/web");
    let evaluation = accuse(&mut world, "web-2");
    assert_eq!((blocked(&evaluation), held(&evaluation)), (vec!["api", "web"], vec!["web"]));
}

#[test]
fn no_app_is_an_earlier_name_of_itself() {
    let mut world = world();
    for (name, app, origin) in
        [("p1", "web", "One"), ("p2", "api", "One"), ("p3", "api", "Two"), ("p4", "web", "Two")]
    {
        pod(&mut world, name, app, &format!("ReplicaSet/{origin}"));
        accuse(&mut world, name);
    }
    let formerly = |name| {
        let names = world.incidents.document(&app(name)).unwrap().status.formerly;
        names.iter().map(|name| name.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!((formerly("web"), formerly("api")), (vec!["api".to_owned()], vec!["web".to_owned()]));
}

/// The workload is made anew under another label.
fn renamed(world: &mut World, from: &str, to: (&str, &str)) -> Evaluation {
    gone(world, from);
    pod(world, to.0, to.1, "ReplicaSet/web");
    accuse(world, to.0)
}

#[test]
fn a_release_goes_on_when_the_workload_comes_back_to_a_name_that_it_had_before() {
    for restarts in [false, true] {
        let mut world = world();
        pod(&mut world, "web-1", "web", "ReplicaSet/web");
        accuse(&mut world, "web-1");
        world.rounds(60, |world| drop(world.answer("n1", vec![])));
        world.evaluate();
        assert_eq!(blocked(&renamed(&mut world, "web-1", ("web-2", "site"))), ["site"]);
        release(&mut world, "site");
        if restarts {
            world.evaluate();
            world.restart();
            world.answer("n1", vec![]);
        }
        let evaluation = renamed(&mut world, "web-2", ("web-3", "web"));
        assert_eq!(blocked(&evaluation), [""; 0], "restart: {restarts}");
        assert_eq!(blocked(&accuse(&mut world, "web-3")), [""; 0]);
        // An accusation that was not released is blocked.
        assert_eq!(blocked(&accuse_of(&mut world, "web-3", "ethminer")), ["web"]);
    }
}

#[test]
fn a_hold_of_an_earlier_name_counts_although_it_began_after_the_names_were_linked() {
    for restarts in [false, true] {
        let mut world = world();
        pod(&mut world, "web-1", "web", "ReplicaSet/web");
        accuse(&mut world, "web-1");
        renamed(&mut world, "web-1", ("web-2", "site"));
        world.policy.brake.max_new_tenants = 0;
        // The blocks of both have ended, and so has the time in which their tenant counts as known.
        gone(&mut world, "web-2");
        world.rounds(60, |world| drop(world.answer("n1", vec![])));
        world.evaluate();
        pod(&mut world, "web-3", "web", "ReplicaSet/web");
        let evaluation = accuse(&mut world, "web-3");
        assert_eq!((blocked(&evaluation), evaluation.held.len()), (vec![], 1));
        world.policy.brake.max_new_tenants = 20;
        if restarts {
            world.restart();
            world.answer("n1", vec![]);
        }
        let evaluation = renamed(&mut world, "web-3", ("web-4", "site"));
        assert_eq!(blocked(&evaluation), [""; 0], "restart: {restarts}");
        assert!(evaluation.held.iter().any(|held| held.app == app("site")), "{:?}", evaluation.held);
        let command = IncidentCommand::Approve { app: app("site") };
        world.incidents.execute(&command, "ops", &world.policy, world.now).unwrap();
        assert_eq!(blocked(&accuse(&mut world, "web-4")), ["site"]);
    }
}

#[test]
fn an_app_that_a_brake_holds_stays_held_for_that_when_it_gets_the_pods_of_another_held_app() {
    let mut world = world();
    world.policy.brake.max_new_tenants = 0;
    pod(&mut world, "web-1", "web", "ReplicaSet/web");
    accuse(&mut world, "web-1");
    (world.policy.brake.max_new_tenants, world.policy.brake.max_apps_per_tenant) = (20, 0);
    pod(&mut world, "site-1", "site", "ReplicaSet/site");
    let why = |evaluation: &Evaluation| {
        let held = evaluation.held.iter().find(|held| held.app == app("site")).unwrap();
        (held.since, held.reason.clone())
    };
    let before = why(&accuse(&mut world, "site-1"));
    assert!(before.1.contains("brake.max_apps_per_tenant"), "{before:?}");
    pod(&mut world, "site-2", "site", "ReplicaSet/web");
    for _ in 0..3 {
        assert_eq!(why(&accuse(&mut world, "site-2")), before);
    }
    assert_eq!(world.incidents.document(&app("site")).unwrap().status.formerly.len(), 1);
}

#[test]
fn an_app_is_not_blocked_while_the_incident_of_an_earlier_name_can_not_be_read() {
    let mut world = world();
    pod(&mut world, "web-1", "web", "ReplicaSet/web");
    accuse(&mut world, "web-1");
    release(&mut world, "web");
    assert_eq!(blocked(&renamed(&mut world, "web-1", ("web-2", "site"))), [""; 0]);
    world.restart();
    world.incidents.mark_unreadable([app("web")]);
    world.answer("n1", vec![]);
    for _ in 0..3 {
        let evaluation = accuse(&mut world, "web-2");
        assert!(blocked(&evaluation).is_empty());
        assert!(evaluation.plan.summary.in_grace == 0);
    }
    // Another App of the same tenant is not one of its names.
    pod(&mut world, "other-1", "other", "ReplicaSet/other");
    assert_eq!(blocked(&accuse(&mut world, "other-1")), ["other"]);
}
