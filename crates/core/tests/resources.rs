//! The objects: what Higress and Sealos need of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{World, record, record_of, settings};
use procscan_core::names::App;
use procscan_core::plan::{Block, Plan};
use procscan_core::policy::Mode;
use procscan_core::resources::wasm_plugin::SENTINEL;
use procscan_core::resources::{Existing, Object, render};

fn plan_of(apps: usize) -> Plan {
    let mut plan = Plan::empty(Mode::Enforce, common::at(0).wall);
    plan.blocks = (0..apps)
        .map(|i| {
            let namespace = format!("ns-{i:061}");
            Block {
                services: vec![format!("{i:063}.{namespace}.svc").into()],
                app: App::new(namespace, "app", "web"),
                since: common::at(0).wall,
                grounds: Vec::new(),
                accused: BTreeSet::new(),
                reason: String::new(),
            }
        })
        .collect();
    plan
}

fn services(object: &Object) -> Vec<String> {
    let rules = object.spec["matchRules"].as_array().unwrap();
    assert_eq!(rules.len(), 1);
    rules[0]["service"].as_array().unwrap().iter().map(|s| s.as_str().unwrap().to_owned()).collect()
}

fn shards(plan: &Plan, existing: usize) -> Vec<Object> {
    render(plan, &settings(), Existing { wasm_plugins: existing })
        .into_iter()
        .filter(|object| object.kind == "WasmPlugin")
        .collect()
}

#[test]
fn an_empty_plan_is_one_plugin_with_the_sentinel_and_nothing_else() {
    let objects = render(&plan_of(0), &settings(), Existing::default());
    assert_eq!(objects.len(), 1);
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
fn a_blocked_app_is_in_the_rule_and_in_the_list_and_its_tenant_is_told() {
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
    assert_eq!(notification.spec["timestamp"], common::START);
    assert_eq!(notification.spec["from"], "ProcScan");

    assert_eq!((&*summary.metadata.name, &*summary.metadata.namespace), ("procscan-notification", "default"));
    assert_eq!(summary.spec["message"], "检测到 1 个不合规应用");
    assert_eq!(summary.spec["i18ns"]["en"]["message"], "1 non-compliant application detected: 1 blocked");
}

#[test]
fn objects_stay_below_their_limit_and_the_list_gives_way_first() {
    let mut world = World::new(&["n1"]);
    world.policy.brake.max_new_apps = usize::MAX;
    world.policy.brake.max_apps_per_node = usize::MAX;
    world.policy.brake.max_namespaces_per_rule = usize::MAX;
    let records = (0..900).map(|i| record_of(&format!("ns-{i}"), "web", &"x".repeat(256), 0)).collect();
    world.answer("n1", records);
    let plan = world.evaluate().plan;
    let mut settings = settings();
    settings.gateway.max_bytes = 100 * 1024;
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

    // One App more changes one shard; shrinking to none keeps every shard, with the sentinel only.
    let more = shards(&plan_of(20_001), many.len());
    assert_eq!(more.len(), many.len());
    assert_eq!(more.iter().zip(&many).filter(|(a, b)| a != b).count(), 1);
    let none = shards(&plan_of(0), many.len());
    assert_eq!(none.len(), many.len());
    assert!(none.iter().all(|object| services(object) == [SENTINEL]));
}
