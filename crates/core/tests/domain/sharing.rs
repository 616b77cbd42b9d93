//! Services that expose several Apps: which are closed or held, and whether the tenant is notified.

use std::sync::Arc;

use crate::common::{MINUTE, World, record, settings};
use procscan_core::decision::DecisionKind;
use procscan_core::names::App;
use procscan_core::plan::{Block, SharedServices};
use procscan_core::policy::{Evaluation, IncidentCommand};
use procscan_core::resources::template::Template;
use procscan_core::resources::{Existing, Object, notification, render};
use procscan_core::state::Incident;
use procscan_core::state::incident::BrakeKind;
use serde_json::json;

/// A miner in the App `web`, which has a Service of its own and one that also exposes `shop` and `blog`.
fn world(rule: SharedServices) -> World {
    let mut world = World::new(&["n1"]);
    world.policy.verify_pods = true;
    world.policy.shared_services = rule;
    world.pod_on("ns-a", "web", "n1", "web");
    world.service("ns-a", "web-x7k2", &["web"]);
    share(&mut world);
    world
}

fn share(world: &mut World) {
    world.service("ns-a", "all", &["blog", "shop", "web"]);
}

fn accuse(world: &mut World) -> Evaluation {
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now)]);
    world.evaluate()
}

fn web() -> App {
    App::new("ns-a", "app", "web")
}

fn texts(texts: &[Arc<str>]) -> Vec<&str> {
    texts.iter().map(AsRef::as_ref).collect()
}

/// The Services that are closed, those left open, and the other Apps that are closed too.
fn closed(block: &Block) -> (Vec<&str>, Vec<&str>, Vec<&str>) {
    let others =
        block.exposure.others.iter().flat_map(|others| &others.named).map(|app| &*app.name).collect();
    (texts(&block.exposure.services), texts(&block.exposure.left_open), others)
}

const BOTH: [&str; 2] = ["all.ns-a.svc", "web-x7k2.ns-a.svc"];
const OWN: [&str; 1] = ["web-x7k2.ns-a.svc"];
const SHARED: [&str; 1] = ["all.ns-a.svc"];
const OTHERS: [&str; 2] = ["blog", "shop"];

fn persisted(world: &World) -> &Incident {
    world.persisted.values().next().unwrap()
}

/// The tenant removes the selector, and the endpoints stay. The route to the miner still works.
#[test]
fn a_service_that_was_closed_stays_closed_when_its_selector_is_taken_away() {
    for rule in [SharedServices::Block, SharedServices::Hold, SharedServices::Skip] {
        let mut world = World::new(&["n1"]);
        world.policy.verify_pods = true;
        world.policy.shared_services = rule;
        world.pod_on("ns-a", "web", "n1", "web");
        world.service("ns-a", "web-x7k2", &["web"]);
        let hosts = ["never-closed.ns-a.svc".into(), "web-x7k2.ns-a.svc".into()];
        assert_eq!(closed(&accuse(&mut world).plan.blocks[0]).0, OWN);
        for _ in 0..2 {
            world.wait(MINUTE);
            world.service("ns-a", "web-x7k2", &[]);
            for fact in world.facts.apps.values_mut() {
                fact.selecting_none = hosts.clone().into();
            }
            let block = accuse(&mut world).plan.blocks[0].clone();
            assert_eq!(closed(&block).0, OWN, "{rule:?}");
            assert_eq!(texts(&block.exposure.otherwise), OWN, "it is not known which Ingresses lead to it");
            world.restart();
        }
        // It has been deleted.
        for fact in world.facts.apps.values_mut() {
            fact.selecting_none = Arc::default();
        }
        assert!(closed(&accuse(&mut world).plan.blocks[0]).0.is_empty());
    }
}

#[test]
fn a_shared_service_is_closed_and_the_decision_the_plan_and_the_incident_name_the_others() {
    let mut world = world(SharedServices::Block);
    let evaluation = accuse(&mut world);
    let decision = &evaluation.decisions[0];
    assert_eq!(decision.kind, DecisionKind::Blocked);
    let remark = "; its Services expose other Apps too, which are closed with it: app/blog, app/shop";
    assert!(decision.reason.ends_with(remark), "{}", decision.reason);
    let block = &evaluation.plan.blocks[0];
    assert_eq!((closed(block), &block.reason), ((BOTH.into(), vec![], OTHERS.into()), &decision.reason));
    let other = |name| json!({"namespace": "ns-a", "type": "app", "name": name});
    assert_eq!(serde_json::to_value(block).unwrap()["also_closes"], json!([other("blog"), other("shop")]));
    let status = serde_json::to_value(&persisted(&world).status).unwrap();
    assert_eq!(status["alsoCloses"], json!([other("blog"), other("shop")]));
    // The other Apps themselves are not accused.
    assert_eq!(evaluation.plan.blocks.len(), 1);
    world.restart();
    world.facts.apps.clear();
    assert_eq!(closed(&world.evaluate().plan.blocks[0]), (BOTH.into(), vec![], OTHERS.into()), "persisted");
}

#[test]
fn the_apps_that_are_closed_with_an_app_are_named_anew_when_they_change() {
    let mut world = world(SharedServices::Block);
    accuse(&mut world);
    world.service("ns-a", "all", &["shop", "web"]);
    assert_eq!(closed(&world.evaluate().plan.blocks[0]), (BOTH.into(), vec![], vec!["shop"]));
    assert_eq!(persisted(&world).status.also_closes.len(), 1);
    world.service("ns-a", "all", &["web"]);
    assert_eq!(closed(&world.evaluate().plan.blocks[0]), (BOTH.into(), vec![], vec![]));
    let status = serde_json::to_value(&persisted(&world).status).unwrap();
    assert_eq!((status.get("alsoCloses"), status.get("alsoClosesMore")), (None, None));
    let names: Vec<String> = (0..30).map(|n| format!("app-{n:02}")).collect();
    let many: Vec<&str> = names.iter().map(String::as_str).chain(["web"]).collect();
    world.service("ns-a", "all", &many);
    let evaluation = world.evaluate();
    let others = evaluation.plan.blocks[0].exposure.others.as_ref().unwrap();
    assert_eq!((others.named.len(), others.more), (20, 10));
    let status = &persisted(&world).status;
    assert_eq!((status.also_closes.len(), status.also_closes_more), (20, 10));
    assert_eq!(serde_json::to_value(status).unwrap()["alsoClosesMore"], 10);
}

#[test]
fn an_incident_that_an_earlier_version_has_persisted_names_no_others() {
    let mut world = world(SharedServices::Block);
    accuse(&mut world);
    let mut status = serde_json::to_value(&persisted(&world).status).unwrap();
    status.as_object_mut().unwrap().remove("alsoCloses");
    let incident = world.persisted.values_mut().next().unwrap();
    incident.status = serde_json::from_value(status).unwrap();
    world.restart();
    let known = std::mem::take(&mut world.facts.apps);
    assert_eq!(closed(&world.evaluate().plan.blocks[0]), (BOTH.into(), vec![], vec![]));
    world.facts.apps = known;
    assert_eq!(closed(&world.evaluate().plan.blocks[0]), (BOTH.into(), vec![], OTHERS.into()));
}

fn notice(world: &mut World, message: Option<&str>) -> Object {
    let mut settings = settings();
    if let Some(message) = message {
        let template = Template::parse(message, notification::PLACEHOLDERS).unwrap();
        settings.notification.blocked.message = template;
    }
    let plan = world.evaluate().plan;
    let objects = render(&plan, &settings, Existing::default());
    objects.into_iter().find(|object| object.metadata.namespace == "ns-a").unwrap()
}

#[test]
fn the_tenant_is_notified_which_other_apps_are_closed() {
    let mut world = world(SharedServices::Block);
    accuse(&mut world);
    let spec = notice(&mut world, None).spec;
    let en = "Found xmrig in ns-a. Ask ops. It shares a Service with other applications, which are closed with it: blog, shop.";
    assert_eq!(spec["message"], en, "at the end, where the text has no place for it");
    let zh = spec["i18ns"]["zh"]["message"].as_str().unwrap();
    assert!(zh.ends_with("以下应用与其共用同一个 Service，因此一并被关闭：blog、shop。"), "{zh}");
    let placed = notice(&mut world, Some("Blocked.{also_closes} Ask {contact}.")).spec;
    let en = "Blocked. It shares a Service with other applications, which are closed with it: blog, shop. Ask ops.";
    assert_eq!(placed["message"], en);
    world.service("ns-a", "all", &["web"]);
    assert_eq!(notice(&mut world, None).spec["message"], "Found xmrig in ns-a. Ask ops.");
    assert_eq!(notice(&mut world, Some("Blocked.{also_closes} Ask.")).spec["message"], "Blocked. Ask.");
}

#[test]
fn the_notification_of_a_warned_tenant_names_nothing_that_is_closed() {
    let mut world = world(SharedServices::Block);
    accuse(&mut world);
    // It was blocked once, and is to be blocked again.
    world.rounds(31, |world| drop(world.answer("n1", vec![])));
    assert!(world.evaluate().plan.blocks.is_empty());
    world.policy.grace = std::time::Duration::from_mins(10);
    let notices = accuse(&mut world).plan.notices;
    assert!(notices[0].others.is_none());
    assert!(!serde_json::to_string(&notices[0]).unwrap().contains("also_closes"));
}

#[test]
fn with_hold_an_operator_decides_and_no_place_of_a_brake_is_taken() {
    let mut world = world(SharedServices::Hold);
    world.policy.brake.max_apps_per_node = 1;
    let evaluation = accuse(&mut world);
    assert_eq!((evaluation.plan.blocks.len(), evaluation.held.len(), evaluation.alerts.len()), (0, 1, 0));
    let why = "Service all.ns-a.svc exposes other Apps too (enforcement.shared_services: hold)";
    assert_eq!(evaluation.held[0].reason, why);
    let reason = &evaluation.decisions[0].reason;
    assert_eq!(evaluation.decisions[0].kind, DecisionKind::Held);
    assert!(reason.starts_with(&format!("{why}: app/blog, app/shop; process `xmrig`")), "{reason}");
    let held = persisted(&world).status.brake.clone().unwrap();
    assert_eq!((held.brake, held.of.as_deref()), (BrakeKind::SharedService, Some("all.ns-a.svc")));
    // Neither time, nor a restart, nor the end of the sharing blocks it.
    for _ in 0..3 {
        world.restart();
        world.wait(MINUTE);
        world.service("ns-a", "all", &["web"]);
        let evaluation = accuse(&mut world);
        assert_eq!((evaluation.plan.blocks.len(), evaluation.held.len()), (0, 1));
        assert_eq!(evaluation.held[0].reason, why);
    }
    // Another tenant's App takes the node's only place.
    world.pod_on("ns-b", "web", "n1", "web");
    let now = world.clock();
    world.answer("n1", vec![record("ns-a", now), record("ns-b", now)]);
    assert_eq!(world.blocked(), ["ns-b"]);
    share(&mut world);
    world
        .incidents
        .execute(&IncidentCommand::Approve { app: web() }, "ops", &world.policy, world.now)
        .unwrap();
    let blocks = world.evaluate().plan.blocks;
    assert_eq!(
        closed(&blocks[0]),
        (BOTH.into(), vec![], OTHERS.into()),
        "after the approval all Services are closed"
    );
}

#[test]
fn an_app_that_shares_nothing_is_not_held() {
    let mut world = world(SharedServices::Hold);
    world.service("ns-a", "all", &["blog", "shop"]);
    assert_eq!(closed(&accuse(&mut world).plan.blocks[0]), (OWN.into(), vec![], vec![]));
}

#[test]
fn with_hold_a_service_that_comes_to_be_shared_after_the_block_stays_as_it_is() {
    let mut world = world(SharedServices::Hold);
    world.service("ns-a", "all", &["web"]);
    assert_eq!(closed(&accuse(&mut world).plan.blocks[0]), (BOTH.into(), vec![], vec![]));
    // The Service was closed before, so it stays closed, and the other Apps are named.
    share(&mut world);
    assert_eq!(closed(&world.evaluate().plan.blocks[0]), (BOTH.into(), vec![], OTHERS.into()));
    // The Service was open before, so it stays open.
    world.service("ns-a", "new", &["mail", "web"]);
    world.evaluate();
    assert_eq!(texts(&persisted(&world).status.exposure.left_open), ["new.ns-a.svc"], "persisted at once");
    world.service("ns-a", "own", &["web"]);
    let expected = (vec![BOTH[0], "own.ns-a.svc", BOTH[1]], vec!["new.ns-a.svc"], OTHERS.to_vec());
    assert_eq!(closed(&world.evaluate().plan.blocks[0]), expected);
    world.restart();
    let known = std::mem::take(&mut world.facts.apps);
    assert_eq!(closed(&world.evaluate().plan.blocks[0]), expected, "persisted");
    world.facts.apps = known;
    assert_eq!(closed(&world.evaluate().plan.blocks[0]), expected);
}

/// A tenant deletes the Service until one look-up has passed, and makes it again so that it selects another App too.
#[test]
fn with_hold_a_service_that_was_closed_once_is_closed_again_when_it_is_made_again() {
    for restarts in [false, true] {
        let mut world = world(SharedServices::Hold);
        world.service("ns-a", "all", &["web"]);
        assert_eq!(closed(&accuse(&mut world).plan.blocks[0]), (BOTH.into(), vec![], vec![]));
        world.service("ns-a", "all", &[]);
        for _ in 0..3 {
            assert_eq!(closed(&world.evaluate().plan.blocks[0]), (OWN.into(), vec![], vec![]));
        }
        if restarts {
            world.restart();
        }
        share(&mut world);
        assert_eq!(closed(&world.evaluate().plan.blocks[0]), (BOTH.into(), vec![], OTHERS.into()));
        // The Service is remembered no longer than needed.
        assert!(persisted(&world).status.exposure.once_closed.is_empty());
        world.service("ns-a", "all", &["blog", "shop"]);
        world.evaluate();
        assert_eq!(texts(&persisted(&world).status.exposure.once_closed), SHARED);
    }
}

#[test]
fn with_hold_a_service_that_is_left_open_is_logged_once_and_an_approval_closes_it() {
    let mut world = world(SharedServices::Hold);
    world.service("ns-a", "all", &["web"]);
    accuse(&mut world);
    world.service("ns-a", "new", &["mail", "web"]);
    let evaluation = world.evaluate();
    let [decision] = &evaluation.decisions[..] else { panic!("{:?}", evaluation.decisions) };
    assert_eq!(decision.kind, DecisionKind::Held);
    let why = "Service new.ns-a.svc exposes other Apps too (enforcement.shared_services: hold)";
    let open = "it stays open until that is approved; the App's other Services are closed";
    assert_eq!(*decision.reason, *format!("{why}: {open}"));
    assert_eq!((&*evaluation.held[0].reason, evaluation.held[0].release), (why, false));
    // Whatever the tenant makes then, nothing is logged again, not even after a restart.
    for name in ["newer", "newest"] {
        world.service("ns-a", name, &["mail", "web"]);
        world.service("ns-a", "new", &[]);
        world.restart();
        let evaluation = world.evaluate();
        assert_eq!((evaluation.decisions.len(), evaluation.held.len()), (0, 1));
        assert_eq!(closed(&evaluation.plan.blocks[0]).0, BOTH);
    }
    world
        .incidents
        .execute(&IncidentCommand::Approve { app: web() }, "ops", &world.policy, world.now)
        .unwrap();
    let evaluation = world.evaluate();
    let names = ["all.ns-a.svc", "newer.ns-a.svc", "newest.ns-a.svc", "web-x7k2.ns-a.svc"];
    assert_eq!(closed(&evaluation.plan.blocks[0]), (names.into(), vec![], vec!["mail"]));
    assert!(evaluation.held.is_empty());
    world.restart();
    assert_eq!(closed(&world.evaluate().plan.blocks[0]).0, names, "after a restart, too");
}

#[test]
fn the_memory_of_closed_services_has_a_bound() {
    let mut world = world(SharedServices::Hold);
    world.service("ns-a", "all", &["web"]);
    for n in 0..1010 {
        world.service("ns-a", &format!("svc-{n:04}"), &["web"]);
    }
    accuse(&mut world);
    for n in 0..1010 {
        world.service("ns-a", &format!("svc-{n:04}"), &[]);
    }
    world.evaluate();
    assert_eq!(persisted(&world).status.exposure.once_closed.len(), 1000);
    assert_eq!(closed(&world.evaluate().plan.blocks[0]).0, BOTH);
}

#[test]
fn with_skip_the_service_stays_open_and_the_reason_names_it() {
    let mut world = world(SharedServices::Skip);
    let evaluation = accuse(&mut world);
    assert_eq!(closed(&evaluation.plan.blocks[0]), (OWN.into(), SHARED.into(), vec![]));
    let remark = "; left open, because other Apps are exposed by it too (enforcement.shared_services): Service all.ns-a.svc";
    assert!(evaluation.decisions[0].reason.ends_with(remark), "{}", evaluation.decisions[0].reason);
    assert_eq!(texts(&persisted(&world).status.exposure.left_open), SHARED);
    world.service("ns-a", "all", &["web"]);
    assert_eq!(closed(&world.evaluate().plan.blocks[0]), (BOTH.into(), vec![], vec![]));
    assert!(persisted(&world).status.exposure.left_open.is_empty());
    share(&mut world);
    assert_eq!(closed(&world.evaluate().plan.blocks[0]), (OWN.into(), SHARED.into(), vec![]));
}

#[test]
fn a_changed_rule_for_shared_services_takes_effect_at_once() {
    let mut world = world(SharedServices::Skip);
    accuse(&mut world);
    world.policy.shared_services = SharedServices::Hold;
    assert_eq!(closed(&world.evaluate().plan.blocks[0]), (OWN.into(), SHARED.into(), vec![]));
    world.policy.shared_services = SharedServices::Block;
    assert_eq!(closed(&world.evaluate().plan.blocks[0]), (BOTH.into(), vec![], OTHERS.into()));
}

/// Whether the shared Service selects no Pod that runs. Endpoints that are made by hand may still lead to the miner.
fn select_none(world: &mut World, selects_none: bool) {
    for fact in world.facts.apps.values_mut() {
        fact.selecting_none = SHARED.into_iter().filter(|_| selects_none).map(Into::into).collect();
    }
}

/// The tenant removes the selector of the shared Service.
fn strip_selector(world: &mut World) {
    world.service("ns-a", "all", &[]);
    select_none(world, true);
}

/// The Service was closed before it was shared, and `skip` leaves a Service open only while it is shared.
#[test]
fn with_skip_a_service_that_was_closed_once_is_closed_again_when_its_selector_is_taken_away() {
    for restarts in [false, true] {
        let mut world = world(SharedServices::Skip);
        world.service("ns-a", "all", &["web"]);
        assert_eq!(closed(&accuse(&mut world).plan.blocks[0]).0, BOTH);
        share(&mut world);
        for _ in 0..3 {
            assert_eq!(closed(&accuse(&mut world).plan.blocks[0]), (OWN.into(), SHARED.into(), vec![]));
        }
        if restarts {
            world.restart();
        }
        strip_selector(&mut world);
        assert_eq!(closed(&accuse(&mut world).plan.blocks[0]), (BOTH.into(), vec![], vec![]));
        // The Service selects Pods of both Apps that have not started.
        share(&mut world);
        assert_eq!(closed(&accuse(&mut world).plan.blocks[0]), (BOTH.into(), vec![], vec![]));
        select_none(&mut world, false);
        assert_eq!(closed(&accuse(&mut world).plan.blocks[0]), (OWN.into(), SHARED.into(), vec![]));
    }
}

/// Nothing shows that the Service is the App's, as with every other Service without a selector.
#[test]
fn a_service_that_was_never_closed_stays_open_when_its_selector_is_taken_away() {
    let mut world = world(SharedServices::Skip);
    assert_eq!(closed(&accuse(&mut world).plan.blocks[0]), (OWN.into(), SHARED.into(), vec![]));
    strip_selector(&mut world);
    assert_eq!(closed(&accuse(&mut world).plan.blocks[0]), (OWN.into(), vec![], vec![]));
    // As soon as the Service selects the App alone, it is closed.
    select_none(&mut world, false);
    world.service("ns-a", "all", &["web"]);
    assert_eq!(closed(&accuse(&mut world).plan.blocks[0]), (BOTH.into(), vec![], vec![]));
}

#[test]
fn a_service_that_was_closed_once_stays_closed_when_the_rule_is_changed_from_skip_to_hold() {
    let mut world = world(SharedServices::Block);
    assert_eq!(closed(&accuse(&mut world).plan.blocks[0]).0, BOTH);
    world.policy.shared_services = SharedServices::Skip;
    assert_eq!(closed(&world.evaluate().plan.blocks[0]), (OWN.into(), SHARED.into(), vec![]));
    world.policy.shared_services = SharedServices::Hold;
    assert_eq!(closed(&world.evaluate().plan.blocks[0]), (BOTH.into(), vec![], OTHERS.into()));
}
