//! The objects as Higress and Sealos need them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::common::{World, record, record_of, settings};
use procscan_core::decision::Mode;
use procscan_core::names::App;
use procscan_core::plan::{Block, Exposure, Plan};
use procscan_core::policy::OnIngresses;
use procscan_core::resources::wasm_plugin::SENTINEL;
use procscan_core::resources::{Existing, Object, WritePolicy, render, wasm_plugin};
use serde_json::{Value, json};

fn plan_of(apps: usize) -> Plan {
    let mut plan = Plan::empty(Mode::Enforce, crate::common::at(0).wall());
    plan.blocks = (0..apps)
        .map(|i| {
            let namespace = format!("ns-{i:061}");
            Arc::new(Block {
                exposure: Arc::new(Exposure::plain([format!("{i:063}.{namespace}.svc").into()])),
                app: App::new(namespace, "app", "web"),
                since: crate::common::at(0).wall(),
                grounds: Box::default(),
                left: Box::default(),
                reason: "".into(),
            })
        })
        .collect();
    plan
}

fn services(object: &Object) -> Vec<String> {
    let rules = object.spec["matchRules"].as_array().unwrap();
    assert_eq!(rules.len(), 1);
    rules[0]["service"].as_array().unwrap().iter().map(|s| s.as_str().unwrap().to_owned()).collect()
}

/// All Services are listed plainly.
fn shards(plan: &Plan, existing: usize) -> Vec<Object> {
    let mut settings = settings();
    settings.gateway.max_service_entries = usize::MAX;
    let existing = wasm_plugin::existing_shards(existing, false, &settings.gateway);
    render(plan, &settings, existing).into_iter().filter(|object| object.kind == "WasmPlugin").collect()
}

#[test]
fn an_empty_plan_is_one_plugin_with_the_sentinel_and_nothing_else() {
    let objects = render(&plan_of(0), &settings(), Existing::default());
    assert_eq!(objects.len(), 2);
    assert_eq!(
        (objects[0].write_policy, objects[1].write_policy),
        (WritePolicy::Reconcile, WritePolicy::MarkRead)
    );
    let json = serde_json::to_value(&objects[0]).unwrap();
    let expected = serde_json::json!({
        "apiVersion": "extensions.higress.io/v1alpha1",
        "kind": "WasmPlugin",
        "metadata": {
            "name": "procscan-violations",
            "namespace": "higress-system",
            "labels": {"app.kubernetes.io/managed-by": "procscan-aggregator"},
        },
        "spec": {
            "url": "oci://registry.example/plugins/request-block:2.0.0",
            "imagePullPolicy": "IfNotPresent",
            "phase": "AUTHN",
            "priority": 320,
            "failStrategy": "FAIL_OPEN",
            "defaultConfigDisable": true,
            "defaultConfig": {"violations": []},
            "matchRules": [{
                "service": [SENTINEL],
                "configDisable": false,
                "config": {
                    "block_urls": ["/"], "blocked_code": 403, "blocked_message": "blocked", "case_sensitive": true,
                },
            }],
        },
    });
    assert_eq!(json, expected);
}

#[test]
fn a_blocked_app_is_in_the_rule_and_in_the_list_and_its_tenant_is_notified() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0), record_of("ns-a", "web", "zmap", 0)]);
    let plan = world.evaluate().plan;
    let objects = render(&plan, &settings(), Existing::default());
    let [plugin, notification, summary] = &objects[..] else { panic!("{objects:?}") };
    assert_eq!(services(plugin), [SENTINEL, "web.ns-a.svc.cluster.local"]);
    let violation = |process: &str| serde_json::json!({"pod": "web", "namespace": "ns-a", "process": process, "type": "app", "name": "web"});
    assert_eq!(
        plugin.spec["defaultConfig"]["violations"],
        serde_json::json!([violation("xmrig"), violation("zmap")])
    );

    assert_eq!(notification.metadata.namespace, "ns-a");
    assert_eq!(notification.metadata.labels["isRead"], "false");
    assert_eq!(notification.spec["title"], "web is blocked");
    assert_eq!(notification.spec["message"], "Found xmrig, zmap in ns-a. Ask ops.");
    assert_eq!(notification.spec["timestamp"], crate::common::START);
    assert_eq!(notification.spec["from"], "ProcScan");

    assert_eq!((&*summary.metadata.name, &*summary.metadata.namespace), ("procscan-notification", "default"));
    assert_eq!(summary.spec["message"], "检测到 1 个不合规应用");
    assert_eq!(summary.spec["i18ns"]["en"]["message"], "1 non-compliant application detected: 1 blocked");
}

#[test]
fn objects_stay_below_their_limit_and_the_list_gives_way_first() {
    let mut world = World::new(&["n1"]);
    world.policy.brake.max_new_tenants = usize::MAX;
    world.policy.brake.max_tenants_per_node = usize::MAX;
    world.policy.brake.max_apps_per_node = usize::MAX;
    world.policy.brake.max_apps_per_tenant = usize::MAX;
    world.policy.brake.max_tenants_per_rule = usize::MAX;
    let records = (0..900).map(|i| record_of(&format!("ns-{i}"), "web", &"x".repeat(256), 0)).collect();
    world.answer("n1", records);
    let plan = world.evaluate().plan;
    let mut settings = settings();
    settings.max_bytes = 100 * 1024;
    settings.gateway.max_service_entries = 1000;
    let objects = render(&plan, &settings, Existing::default());
    let plugins: Vec<_> = objects.iter().filter(|object| object.kind == "WasmPlugin").collect();
    assert_eq!(plugins.len(), 1, "the Services fit");
    assert_eq!(services(plugins[0]).len(), 901);
    let listed = plugins[0].spec["defaultConfig"]["violations"].as_array().unwrap().len();
    assert!(listed > 100 && listed < 900, "{listed}");
    assert!(serde_json::to_vec(plugins[0]).unwrap().len() <= 100 * 1024);
}

#[test]
fn many_apps_make_several_plugins_and_each_app_stays_in_its_shard() {
    let many = shards(&plan_of(20_000), 0);
    assert!(many.len() > 4, "{}", many.len());
    let mut place: BTreeMap<String, usize> = BTreeMap::new();
    for (index, object) in many.iter().enumerate() {
        let name = if index == 0 {
            "procscan-violations".to_owned()
        } else {
            format!("procscan-violations-{index}")
        };
        assert_eq!(object.metadata.name, name);
        assert!(serde_json::to_vec(object).unwrap().len() <= 512 * 1024);
        for service in services(object).into_iter().skip(1) {
            assert!(place.insert(service, index).is_none());
        }
    }
    assert_eq!(place.len(), 20_000);

    // One App more changes one shard. Without any App every shard stays, with the sentinel only.
    let more = shards(&plan_of(20_001), many.len());
    assert_eq!(more.len(), many.len());
    assert_eq!(more.iter().zip(&many).filter(|(a, b)| a != b).count(), 1);
    let none = shards(&plan_of(0), many.len());
    assert_eq!(none.len(), many.len());
    assert!(none.iter().all(|object| services(object) == [SENTINEL]));
}

/// Every App has two Services: one is on an Ingress, and the other one is reached otherwise.
fn routed(apps: usize) -> Plan {
    let mut plan = plan_of(apps);
    for block in &mut plan.blocks {
        let namespace = block.app.namespace.clone();
        Arc::make_mut(block).exposure = Arc::new(Exposure {
            services: vec![format!("a.{namespace}.svc").into(), format!("b.{namespace}.svc").into()],
            ingresses: vec![format!("{namespace}/in").into()],
            otherwise: vec![format!("b.{namespace}.svc").into()],
            ..Exposure::default()
        });
    }
    plan
}

fn list(object: &Object, pointer: &str) -> Option<Vec<String>> {
    let list = object.spec.pointer(pointer)?.as_array()?.iter();
    Some(list.map(|item| item.as_str().unwrap().to_owned()).collect())
}

#[test]
fn a_long_list_names_the_ingresses_too_and_goes_back_only_well_below_its_limit() {
    let form = |apps: usize, has_long_list: bool| {
        let existing = wasm_plugin::existing_shards(1, has_long_list, &settings().gateway);
        let object = render(&routed(apps), &settings(), existing).remove(0);
        let rules = object.spec["matchRules"].as_array().unwrap().len();
        (rules, object)
    };
    let (rules, short) = form(250, false);
    assert_eq!((rules, services(&short).len()), (1, 501));
    let (rules, long) = form(251, false);
    assert_eq!(rules, 2);
    // Services that are reached otherwise stay plain. The gateway looks up the others by their Ingress first.
    let plain = list(&long, "/matchRules/0/service").unwrap();
    assert_eq!((plain.len(), &*plain[0]), (252, SENTINEL));
    assert!(plain[1..].iter().all(|service| service.starts_with("b.")));
    assert_eq!(list(&long, "/matchRules/0/ingress"), None);
    assert_eq!(list(&long, "/matchRules/1/ingress").unwrap().len(), 251);
    assert_eq!(list(&long, "/matchRules/1/service").unwrap().len(), 502);
    assert_eq!((form(201, true).0, form(200, true).0, form(0, true).0), (2, 1, 1));

    let existing = |object: &Object| {
        let value = serde_json::to_value(object).unwrap();
        wasm_plugin::existing([("procscan-violations-2", &value)], &settings().gateway)
    };
    assert_eq!((existing(&long).count, existing(&long).has_long_list), (3, true));
    assert!(!existing(&short).has_long_list);
}

#[test]
fn blocks_are_read_back_with_every_closed_service() {
    let mut world = World::new(&["n1"]);
    world.answer("n1", vec![record("ns-a", 0)]);
    let mut plan = world.evaluate().plan;
    plan.blocks.extend(routed(300).blocks);
    let mut settings = settings();
    let read_back = |plan: &Plan, settings: &procscan_core::resources::Settings| {
        let objects = render(plan, settings, Existing::default());
        let objects: Vec<_> = objects.iter().map(|object| serde_json::to_value(object).unwrap()).collect();
        wasm_plugin::blocked(objects.iter().filter(|o| o["kind"] == "WasmPlugin"), &settings.gateway)
    };
    let closed = |plan: &Plan| -> BTreeSet<String> {
        plan.blocks.iter().flat_map(|b| &b.exposure.services).map(ToString::to_string).collect()
    };
    let all = read_back(&plan, &settings);
    assert_eq!(all.len(), 301);
    let of_list = all.iter().find(|inherited| &*inherited.app.namespace == "ns-a").unwrap();
    assert_eq!(of_list.accused.len(), 1);
    assert!(all.iter().all(|inherited| inherited.app.namespace.starts_with("ns-")));
    // If the list for people was dropped, each Service is inherited as a block of its own, and none is forgotten.
    for max_bytes in [usize::MAX, 60_000] {
        settings.max_bytes = max_bytes;
        let inherited = read_back(&plan, &settings);
        let services: BTreeSet<String> =
            inherited.iter().flat_map(|i| &i.services).map(ToString::to_string).collect();
        assert_eq!(services, closed(&plan), "{max_bytes}");
    }
}

#[test]
fn only_names_that_we_give_are_taken_for_shards() {
    let index = |name| wasm_plugin::shard_index(name, &settings().gateway);
    assert_eq!(index("procscan-violations"), Some(0));
    assert_eq!(index("procscan-violations-7"), Some(7));
    for other in [
        "procscan-violations-0",
        "procscan-violations-07",
        "procscan-violations-x",
        "procscan-violations-",
        "other",
        "procscan-violations-99999",
    ] {
        assert_eq!(index(other), None, "{other}");
    }
}

#[test]
fn one_app_with_thousands_of_services_goes_into_several_plugins_and_forces_none_upon_the_others() {
    let mut plan = plan_of(1000);
    let namespace = plan.blocks[500].app.namespace.clone();
    let hosts: Vec<_> = (0..30_000).map(|n| format!("service-{n:05}.{namespace}.svc").into()).collect();
    Arc::make_mut(&mut plan.blocks[500]).exposure = Arc::new(Exposure::plain(hosts));
    for existing in [0, 3] {
        let made = shards(&plan, existing);
        // 31,000 names of about 100 bytes need 6 objects of 512 KiB. At most double that is allowed, and a few more.
        assert!(made.len() <= 16, "{}", made.len());
        let mut closed = BTreeSet::new();
        for object in &made {
            assert!(serde_json::to_vec(object).unwrap().len() <= 512 * 1024);
            for service in services(object).into_iter().skip(1) {
                assert!(closed.insert(service), "listed once");
            }
        }
        assert_eq!(closed.len(), 999 + 30_000);
        // The blocks that are read back after a start have them all, as one App's.
        let specs: Vec<Value> = made.iter().map(|object| json!({"spec": object.spec})).collect();
        let inherited = wasm_plugin::blocked(&specs, &settings().gateway);
        assert_eq!(inherited.len(), 1000);
        let large = inherited.iter().find(|inherited| inherited.app == plan.blocks[500].app).unwrap();
        assert_eq!(large.services.len(), 30_000);
    }
    // One Service more changes one object.
    let made = shards(&plan, 0);
    let mut hosts = plan.blocks[500].exposure.services.clone();
    hosts.push(format!("zzz.{namespace}.svc").into());
    Arc::make_mut(&mut plan.blocks[500]).exposure = Arc::new(Exposure::plain(hosts));
    let more = shards(&plan, made.len());
    assert_eq!(more.iter().zip(&made).filter(|(a, b)| a != b).count(), 1);
}

/// The Services in the plain lists, and those that are listed with Ingresses, each with all Ingresses of its list.
fn listed(objects: &[Object]) -> (Vec<String>, BTreeMap<String, BTreeSet<String>>) {
    let (mut plain, mut on_ingresses) = (Vec::new(), BTreeMap::<String, BTreeSet<String>>::new());
    for object in objects.iter().filter(|object| object.kind == "WasmPlugin") {
        assert!(serde_json::to_vec(object).unwrap().len() <= 512 * 1024);
        plain.extend(
            list(object, "/matchRules/0/service").unwrap().into_iter().filter(|name| name != SENTINEL),
        );
        let ingresses = list(object, "/matchRules/1/ingress").unwrap_or_default();
        for service in list(object, "/matchRules/1/service").unwrap_or_default() {
            on_ingresses.entry(service).or_default().extend(ingresses.iter().cloned());
        }
    }
    (plain, on_ingresses)
}

const LARGE: usize = 50;
const MANY: usize = 60;

/// A hundred tenants. The App at `LARGE` has 10,000 Services, and the tenant at `MANY` has 2,000 Apps with a Service each.
fn with_two_large_tenants() -> Plan {
    let mut plan = routed(100);
    let reach = |namespace: &str, count: usize| {
        let hosts: Vec<_> = (0..count).map(|n| format!("service-{n:05}.{namespace}.svc").into()).collect();
        Arc::new(Exposure { ingresses: vec![format!("{namespace}/in").into()], ..Exposure::plain(hosts) })
    };
    let namespace = plan.blocks[LARGE].app.namespace.clone();
    Arc::make_mut(&mut plan.blocks[LARGE]).exposure = reach(&namespace, 10_000);
    let model = plan.blocks[MANY].clone();
    let of_one_tenant = (0..2000).map(|n| {
        let mut block = (*model).clone();
        block.app = App::new(model.app.namespace.clone(), "app", format!("many-{n:04}"));
        block.exposure =
            Arc::new(Exposure::plain([format!("many-{n:04}.{}.svc", model.app.namespace).into()]));
        Arc::new(block)
    });
    plan.blocks.splice(MANY..=MANY, of_one_tenant);
    plan
}

#[test]
fn the_plain_list_has_a_bound_and_one_tenant_takes_nothing_from_the_others() {
    let plan = with_two_large_tenants();
    let settings = settings();
    let objects = render(&plan, &settings, Existing::default());
    let (on_every_route, on_ingresses) = listed(&objects);
    assert_eq!(on_every_route.len(), 500);
    let of = |namespace: &str| {
        on_every_route.iter().filter(|host| host.contains(&format!(".{namespace}."))).count()
    };
    // The 98 others get the one place that they need, and those two tenants share the rest.
    let [namespace, of_many] = [LARGE, MANY].map(|place| plan.blocks[place].app.namespace.clone());
    let (one, many) = (of(&namespace), of(&of_many));
    assert_eq!((one, many), (201, 201));
    assert!(plan.blocks.iter().all(|block| of(&block.app.namespace) > 0));
    // A Service without room is closed on its Ingresses.
    for service in &plan.blocks[LARGE].exposure.services {
        let host = format!("{service}.cluster.local");
        assert!(on_ingresses[&host].contains(&format!("{namespace}/in")), "{host}");
    }
    let surplus = wasm_plugin::surplus(&plan, &settings.gateway, wasm_plugin::Shards::default());
    let left: usize = surplus.iter().map(|surplus| surplus.services.len()).sum();
    assert_eq!(left, 10_000 - 201 + 2000 - 201);
    let listed_or_left = on_every_route.len() + left;
    assert_eq!(listed_or_left, plan.blocks.iter().map(|block| block.exposure.otherwise.len()).sum::<usize>());
    for left in &surplus {
        assert!(
            left.services.iter().all(|service| !on_every_route.contains(&format!("{service}.cluster.local")))
        );
    }
}

/// Each of the Apps inherits all Services, and there is room for each Service once.
#[test]
fn a_service_of_several_apps_takes_one_place() {
    let mut settings = settings();
    let mut found = routed(100);
    let model = found.blocks[50].clone();
    let same = (0..500).map(|n| {
        let app = App::new(model.app.namespace.clone(), "app", format!("same-{n:03}"));
        Arc::new(Block { app, ..(*model).clone() })
    });
    found.blocks.splice(50..51, same);
    settings.gateway.max_service_entries = 100;
    assert_eq!(listed(&render(&found, &settings, Existing::default())).0.len(), 100);
    assert!(wasm_plugin::surplus(&found, &settings.gateway, wasm_plugin::Shards::default()).is_empty());
    settings.gateway.max_service_entries = 200;
    let short = render(&found, &settings, Existing::default());
    assert_eq!(short[0].spec["matchRules"].as_array().unwrap().len(), 1, "there are 200 Services");
}

#[test]
fn without_room_for_all_the_apps_that_were_blocked_first_keep_their_places() {
    let mut plan = with_two_large_tenants();
    let mut settings = settings();
    settings.gateway.max_service_entries = 10;
    let last = plan.blocks.last_mut().unwrap();
    Arc::make_mut(last).since -= jiff::SignedDuration::from_secs(1);
    let first = last.exposure.otherwise[0].clone();
    let (on_every_route, _) = listed(&render(&plan, &settings, Existing::default()));
    assert_eq!(on_every_route.len(), 10);
    assert!(on_every_route.contains(&format!("{first}.cluster.local")));
    // Without room no Service is listed, and with enough room none is left out.
    settings.gateway.max_service_entries = 0;
    assert_eq!(listed(&render(&plan, &settings, Existing::default())).0.len(), 0);
    settings.gateway.max_service_entries = 20_000;
    assert!(wasm_plugin::surplus(&plan, &settings.gateway, wasm_plugin::Shards::default()).is_empty());
}

#[test]
fn in_a_long_list_each_service_of_a_large_app_stands_with_each_of_its_ingresses() {
    for ingresses in [3, 500] {
        let mut plan = routed(400);
        let namespace = plan.blocks[50].app.namespace.clone();
        let name = |kind: &str, n: usize| format!("{kind}-{n:05}");
        Arc::make_mut(&mut plan.blocks[50]).exposure = Arc::new(Exposure {
            services: (0..1500).map(|n| format!("{}.{namespace}.svc", name("service", n)).into()).collect(),
            ingresses: (0..ingresses).map(|n| format!("{namespace}/{}", name("ingress", n)).into()).collect(),
            ..Exposure::default()
        });
        let objects = render(&plan, &settings(), Existing::default());
        let (on_every_route, on_ingresses) = listed(&objects);
        assert_eq!(on_every_route.len(), 399, "none of its Services is reached otherwise");
        for service in &plan.blocks[50].exposure.services {
            let of_service = &on_ingresses[&format!("{service}.cluster.local")];
            let all = plan.blocks[50].exposure.ingresses.iter();
            assert!(all.clone().all(|ingress| of_service.contains(&**ingress)), "{service}");
        }
        assert!(objects.len() < 24, "{}", objects.len());
        // The blocks that are read back have all of them.
        let specs: Vec<Value> = objects.iter().map(|object| json!({"spec": object.spec})).collect();
        let inherited = wasm_plugin::blocked(&specs, &settings().gateway);
        let large = inherited.iter().find(|found| found.app == plan.blocks[50].app).unwrap();
        let exposure = &plan.blocks[50].exposure;
        assert_eq!((large.services.len(), large.on_ingresses.services.len()), (1500, 1500));
        assert!(large.on_ingresses.ingresses.iter().eq(&exposure.ingresses));
    }
}

#[test]
fn blocks_are_read_back_from_a_long_list_as_they_are_closed() {
    let mut plan = routed(300);
    for max_bytes in [512 * 1024, 30_000] {
        let mut settings = settings();
        settings.max_bytes = max_bytes;
        let objects = render(&plan, &settings, Existing::default());
        let values: Vec<Value> = objects.iter().map(|object| json!({"spec": object.spec})).collect();
        let inherited = wasm_plugin::blocked(&values, &settings.gateway);
        assert!(inherited.len() >= 300);
        for found in &inherited {
            let namespace = &found.app.namespace;
            assert_eq!(found.on_ingresses.ingresses, [format!("{namespace}/in").into()].into());
            let own = plan.blocks.iter().find(|block| block.app == found.app);
            let Some(block) = own else { continue };
            assert_eq!(found.services, block.exposure.services);
            assert_eq!(found.on_ingresses.services, [block.exposure.services[0].clone()].into());
        }
    }
    // A short list closes everything on every route.
    plan.blocks.truncate(100);
    let objects = render(&plan, &settings(), Existing::default());
    let values: Vec<Value> = objects.iter().map(|object| json!({"spec": object.spec})).collect();
    let inherited = wasm_plugin::blocked(&values, &settings().gateway);
    assert!(inherited.iter().all(|found| found.on_ingresses == OnIngresses::default()));
}

#[test]
fn the_namespaces_of_an_object_are_those_of_its_apps_whether_they_are_listed_or_not() {
    let kind = wasm_plugin::KIND.blocking().unwrap();
    let mut plan = routed(300);
    // Nothing of the first App is closed.
    Arc::make_mut(&mut plan.blocks[0]).exposure = Arc::default();
    for max_bytes in [512 * 1024, 30_000] {
        let mut settings = settings();
        settings.max_bytes = max_bytes;
        let objects = render(&plan, &settings, Existing::default());
        let plugins: Vec<&Object> = objects.iter().filter(|object| object.kind == "WasmPlugin").collect();
        assert_eq!(plugins.len() > 1, max_bytes == 30_000);
        for plugin in plugins {
            let found = kind.namespaces(&plugin.spec, &settings);
            let blocked = wasm_plugin::blocked([&json!({"spec": plugin.spec})], &settings.gateway);
            let expected: BTreeSet<_> =
                blocked.into_iter().map(|found| found.app.namespace.clone()).collect();
            assert!(found == expected, "{max_bytes}: {}", plugin.metadata.name);
        }
    }
    let of = |spec: Value| kind.namespaces(&spec, &settings());
    assert_eq!(of(json!({"defaultConfig": {"violations": [{"namespace": "ns-a"}]}})), ["ns-a".into()].into());
    assert_eq!(
        of(json!({"matchRules": [{"service": ["web.ns-b.svc.cluster.local"]}]})),
        ["ns-b".into()].into()
    );
    assert_eq!(of(json!({"matchRules": [{"ingress": ["ns-c/in"]}]})), ["ns-c".into()].into());
}
