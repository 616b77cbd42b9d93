//! Services that a new leader finds closed in the gateway: none is opened before its routes are known anew.

use std::collections::BTreeSet;

use procscan_core::names::{App, Key, Text};
use procscan_core::plan::Exposure;
use procscan_core::policy::{ClusterFacts, IncidentCommand, InheritedBlock, OnIngresses};

use crate::common::{HOUR, World, app, at, record};

fn texts(names: &[&str]) -> Vec<Text> {
    names.iter().map(|name| Text::from(*name)).collect()
}

/// An exposure with these Services and Ingresses; the `otherwise` Services are reached in other ways too.
fn reached(services: &[&str], ingresses: &[&str], otherwise: &[&str]) -> Exposure {
    Exposure {
        services: texts(services),
        ingresses: texts(ingresses),
        otherwise: texts(otherwise),
        ..Exposure::default()
    }
}

/// The block of the gateway for the App in `namespace`.
fn found(namespace: &str, services: &[&str], ingresses: &[&str], plain: &[&str]) -> InheritedBlock {
    let plain: BTreeSet<&str> = plain.iter().copied().collect();
    let on_ingresses = OnIngresses {
        services: services
            .iter()
            .filter(|name| !plain.contains(**name))
            .map(|name| Text::from(*name))
            .collect(),
        ingresses: texts(ingresses).into_iter().collect(),
    };
    let accused = [Key::new(namespace, "web", "xmrig")].into();
    InheritedBlock {
        app: app(namespace),
        notified_at: None,
        accused,
        is_guess: false,
        services: texts(services),
        on_ingresses,
    }
}

/// A world in which these Apps are blocked, each with its exposure.
fn blocked(apps: &[(&str, Exposure)]) -> World {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    for (namespace, exposure) in apps {
        world.pod_on(namespace, "web", "n1", "web");
        world.facts.apps.get_mut(&app(namespace)).unwrap().exposure = Some(exposure.clone());
    }
    world.answer("n1", apps.iter().map(|(namespace, _)| record(namespace, 0)).collect());
    assert_eq!(world.blocked().len(), apps.len());
    world
}

fn exposure_of(world: &mut World, namespace: &str) -> Exposure {
    let plan = world.evaluate().plan;
    let block = plan.blocks.iter().find(|block| *block.app.namespace == *namespace).unwrap();
    (*block.exposure).clone()
}

#[test]
fn an_ingress_that_only_the_gateway_names_stays_closed_until_it_is_known_anew() {
    let web = "web.ns-a.svc";
    let before = reached(&[web], &["ns-a/first", "ns-a/later"], &[]);
    let mut world = blocked(&[("ns-a", before.clone())]);
    // An earlier version did not persist the Services that it had closed last.
    for incident in world.persisted.values_mut() {
        incident.status.exposure.ingresses = texts(&["ns-a/first"]);
    }
    let facts = std::mem::take(&mut world.facts);
    world.restart();
    let gateway = found("ns-a", &[web], &["ns-a/first", "ns-a/later"], &[]);
    assert!(world.incidents.inherit([gateway], &world.policy, world.now).is_empty());
    assert_eq!(exposure_of(&mut world, "ns-a"), before, "in the form that it had");
    world.facts = facts;
    let now = reached(&[web], &["ns-a/first"], &[]);
    world.facts.apps.get_mut(&app("ns-a")).unwrap().exposure = Some(now.clone());
    assert_eq!(exposure_of(&mut world, "ns-a"), now, "known anew");
}

#[test]
fn closed_services_without_persisted_routes_stay_in_their_form() {
    let services = ["a.ns-a.svc", "b.ns-a.svc"];
    let before = reached(&services, &["ns-a/in"], &[]);
    let mut world = blocked(&[("ns-a", before.clone())]);
    for incident in world.persisted.values_mut() {
        (incident.status.exposure.ingresses, incident.status.exposure.otherwise) = (Vec::new(), None);
    }
    world.facts = ClusterFacts::default();
    world.restart();
    world.incidents.inherit([found("ns-a", &services, &["ns-a/in"], &[])], &world.policy, world.now);
    assert_eq!(exposure_of(&mut world, "ns-a"), before);
    // A list without Ingresses closes a Service on every route, and that stays so.
    for (closed, plain) in [(&services[..], &services[..]), (&services[..], &services[1..])] {
        world.restart();
        for incident in world.persisted.values_mut() {
            (incident.status.exposure.ingresses, incident.status.exposure.otherwise) = (Vec::new(), None);
        }
        world.restart();
        world.incidents.inherit([found("ns-a", closed, &["ns-a/in"], plain)], &world.policy, world.now);
        assert_eq!(exposure_of(&mut world, "ns-a").otherwise, texts(&services));
    }
}

#[test]
fn a_service_persisted_as_closed_on_every_route_stays_so_where_the_gateway_names_ingresses_only() {
    let services = ["a.ns-a.svc", "b.ns-a.svc"];
    let before = reached(&services, &["ns-a/in"], &services[1..]);
    let mut world = blocked(&[("ns-a", before.clone())]);
    world.facts = ClusterFacts::default();
    world.restart();
    world.incidents.inherit([found("ns-a", &services, &["ns-a/in"], &[])], &world.policy, world.now);
    assert_eq!(exposure_of(&mut world, "ns-a"), before);
}

#[test]
fn an_app_without_a_persisted_incident_is_closed_in_the_form_in_which_it_is_found() {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    let services = ["a.ns-a.svc", "b.ns-a.svc"];
    world.incidents.inherit([found("ns-a", &services, &["ns-a/in"], &["b.ns-a.svc"])], &world.policy, at(0));
    let expected = reached(&services, &["ns-a/in"], &["b.ns-a.svc"]);
    assert_eq!(exposure_of(&mut world, "ns-a"), expected);
    // The same holds for an App whose incident can't be read.
    let mut world = World::new(&["n1"]);
    world.incidents.mark_unreadable([app("ns-a")]);
    world.incidents.inherit([found("ns-a", &services, &["ns-a/in"], &["b.ns-a.svc"])], &world.policy, at(0));
    assert_eq!(exposure_of(&mut world, "ns-a"), expected);
}

#[test]
fn nothing_is_opened_before_every_app_has_been_looked_up_and_then_all_together() {
    let of = |namespace: &str| {
        (format!("web.{namespace}.svc"), format!("{namespace}/first"), format!("{namespace}/second"))
    };
    let (web_a, first_a, second_a) = of("ns-a");
    let (web_b, first_b, second_b) = of("ns-b");
    let before_a = reached(&[&web_a], &[&first_a], &[&web_a]);
    let before_b = reached(&[&web_b], &[&first_b], &[]);
    let mut world = blocked(&[("ns-a", before_a.clone()), ("ns-b", before_b.clone())]);
    let mut facts = std::mem::take(&mut world.facts);
    world.restart();
    let gateway =
        [found("ns-a", &[&web_a], &[&first_a], &[&web_a]), found("ns-b", &[&web_b], &[&first_b], &[])];
    world.incidents.inherit(gateway, &world.policy, world.now);
    assert_eq!(exposure_of(&mut world, "ns-a"), before_a);

    // Meanwhile the first App has another Ingress, and is reached in no other way.
    let now_a = reached(&[&web_a], &[&second_a], &[]);
    facts.apps.get_mut(&app("ns-a")).unwrap().exposure = Some(now_a.clone());
    let of_b = facts.apps.remove(&app("ns-b"));
    world.facts = facts;
    for _ in 0..2 {
        let either = reached(&[&web_a], &[&first_a, &second_a], &[&web_a]);
        assert_eq!(exposure_of(&mut world, "ns-a"), either, "closed at once, and not opened yet");
        assert_eq!(exposure_of(&mut world, "ns-b"), before_b);
    }
    let now_b = reached(&[&web_b], &[&second_b], &[]);
    world.facts.apps.insert(app("ns-b"), of_b.unwrap());
    world.facts.apps.get_mut(&app("ns-b")).unwrap().exposure = Some(now_b.clone());
    let plan = world.evaluate().plan;
    let exposures: Vec<&Exposure> = plan.blocks.iter().map(|block| &*block.exposure).collect();
    assert_eq!(exposures, [&now_a, &now_b]);
    // From then on each App is opened or closed independently of the others.
    world.facts.apps.get_mut(&app("ns-b")).unwrap().exposure = Some(before_b.clone());
    assert_eq!(exposure_of(&mut world, "ns-b"), before_b);
}

#[test]
fn a_released_app_is_opened_at_once_and_an_app_without_a_look_up_delays_no_other() {
    let [a, b] = ["ns-a", "ns-b"]
        .map(|name| (name, reached(&[&format!("web.{name}.svc")], &[&format!("{name}/in")], &[])));
    let mut world = blocked(&[a, b]);
    let facts = std::mem::take(&mut world.facts);
    let gateway = ["ns-a", "ns-b"]
        .map(|name| found(name, &[&format!("web.{name}.svc")], &[&format!("{name}/in")], &[]));
    world.restart();
    world.incidents.inherit(gateway.clone(), &world.policy, world.now);
    let release = IncidentCommand::Release { app: app("ns-a"), until: at(2 * HOUR).wall() };
    world.incidents.execute(&release, "ops", &world.policy, world.now).unwrap();
    assert_eq!(world.blocked(), ["ns-b"]);

    // The other App was looked up, but could not be read.
    world.restart();
    world.incidents.inherit([gateway[1].clone()], &world.policy, world.now);
    world.facts = facts;
    world.facts.apps.get_mut(&app("ns-b")).unwrap().exposure = None;
    assert_eq!(exposure_of(&mut world, "ns-b").ingresses, texts(&["ns-b/in"]));
    let now = reached(&["web.ns-b.svc"], &[], &[]);
    world.facts.apps.get_mut(&app("ns-b")).unwrap().exposure = Some(now.clone());
    assert_eq!(exposure_of(&mut world, "ns-b"), now);
}

#[test]
fn the_first_lookup_request_has_the_number_of_closed_services() {
    let mut world = blocked(&[("ns-a", reached(&["a.ns-a.svc", "b.ns-a.svc"], &["ns-a/in"], &[]))]);
    world.facts = ClusterFacts::default();
    world.restart();
    world.evaluate();
    let snapshot = world.snapshot();
    assert_eq!(world.incidents.lookup_requests(&snapshot, &world.policy).services, 2);
}

#[test]
fn services_of_a_lost_incident_stay_closed_although_an_older_one_is_known() {
    // Hours since the older incident ended, whether an incident of an unknown App can't be read, and whether the App
    // stays closed.
    for (hours, is_unknown, is_closed) in
        [(0, false, false), (0, true, true), (72, false, true), (72, true, true)]
    {
        let mut world = World::new(&["n1", "n2"]);
        world.answer("n1", vec![record("ns-a", 0)]);
        assert_eq!(world.blocked(), ["ns-a"]);
        world.rounds(60, |world| drop(world.answer("n1", vec![])));
        assert!(world.blocked().is_empty());
        // Leaders measure the time since then, in which another App is blocked.
        world.wait(hours * HOUR);
        let now = world.clock();
        world.answer("n2", vec![record("ns-b", now)]);
        assert_eq!(world.blocked(), ["ns-b"]);
        world.restart();
        if is_unknown {
            world.incidents.mark_unknown_unreadable();
        }
        let gateway =
            ["ns-a", "ns-b"].map(|namespace| found(namespace, &[&format!("web.{namespace}.svc")], &[], &[]));
        let inherited = world.incidents.inherit(gateway, &world.policy, world.now);
        assert_eq!(inherited.len(), usize::from(is_closed), "{hours} {is_unknown}: {inherited:?}");
        assert_eq!(world.blocked().contains(&"ns-a".to_owned()), is_closed, "{hours} {is_unknown}");
        if is_closed {
            let block = world.evaluate().plan.blocks[0].clone();
            assert_eq!(*block.exposure.services, ["web.ns-a.svc".into()]);
            world.rounds(200, |world| {
                world.answer("n1", vec![]);
                world.answer("n2", vec![]);
                world.evaluate();
            });
            assert!(world.blocked().is_empty(), "the rules release it");
        }
    }
}

#[test]
fn a_released_app_is_not_inherited_as_blocked_however_old_the_release_is() {
    for is_unknown in [false, true] {
        let mut world = World::new(&["n1"]);
        world.answer("n1", vec![record("ns-a", 0)]);
        world.evaluate();
        let until = world.now.wall() + jiff::SignedDuration::from_hours(24 * 30);
        world
            .incidents
            .execute(&IncidentCommand::Release { app: app("ns-a"), until }, "ops", &world.policy, world.now)
            .unwrap();
        world.rounds(60, |world| drop(world.answer("n1", vec![])));
        world.evaluate();
        world.wait(72 * HOUR);
        let now = world.clock();
        world.answer("n1", vec![record("ns-b", now)]);
        world.evaluate();
        world.restart();
        if is_unknown {
            world.incidents.mark_unknown_unreadable();
        }
        let gateway = [found("ns-a", &["web.ns-a.svc"], &[], &[])];
        assert!(world.incidents.inherit(gateway, &world.policy, world.now).is_empty());
        assert_eq!(world.blocked(), ["ns-b"]);
    }
}

#[test]
fn a_block_of_the_gateway_belongs_to_another_incident_once_the_older_one_can_not_go_on() {
    for (more, is_closed) in [(0, false), (1, true)] {
        let mut world = World::new(&["n1", "n2"]);
        world.answer("n1", vec![record("ns-a", 0)]);
        assert_eq!(world.blocked(), ["ns-a"]);
        let mut ended = world.now;
        while !world.blocked().is_empty() {
            world.wait(60);
            world.answer("n1", vec![]);
            world.ledger.round_done();
            ended = world.now;
        }
        world.wait(world.policy.same_incident.as_secs() - world.now.since(ended).as_secs() + more);
        let now = world.clock();
        world.answer("n2", vec![record("ns-b", now)]);
        assert_eq!(world.blocked(), ["ns-b"]);
        world.restart();
        let gateway = [found("ns-a", &["web.ns-a.svc"], &[], &[])];
        let inherited = world.incidents.inherit(gateway, &world.policy, world.now);
        assert_eq!(!inherited.is_empty(), is_closed, "{more} s more: {inherited:?}");
    }
}

/// A kind may name Apps for certain and carry no Pods.
#[test]
fn an_app_that_is_named_without_pods_is_inherited_unless_it_is_guessed_and_explained() {
    for is_guess in [true, false] {
        let mut world = blocked(&[("ns-a", reached(&["web.ns-a.svc"], &[], &["web.ns-a.svc"]))]);
        let other = App::new("ns-a", "app", "other");
        let of_other = InheritedBlock {
            app: other.clone(),
            accused: BTreeSet::new(),
            is_guess,
            ..found("ns-a", &["web.ns-a.svc"], &[], &["web.ns-a.svc"])
        };
        let decisions = world.incidents.inherit([of_other], &world.policy, world.now);
        let apps: Vec<App> = decisions.into_iter().map(|decision| decision.app).collect();
        assert_eq!(apps, if is_guess { vec![] } else { vec![other] }, "{is_guess}");
    }
}
