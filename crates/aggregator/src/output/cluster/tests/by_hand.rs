//! What people do by hand: open the gateway, hand objects over, remove what is ours.

use super::world::{ApiServer, MESSAGES, PLUGINS};
use super::*;

const GATEWAY: &str = "higress-system";
const PLUGIN: &str = "procscan-violations";

fn settings() -> Settings {
    Config::default().settings()
}

async fn write(server: &ApiServer, apps: usize) -> Outcome {
    server.output().write(&plan(apps), &settings(), &WritePermit::always(), || true).await
}

fn closed(server: &ApiServer) -> usize {
    let plugin = server.get(PLUGINS, GATEWAY, PLUGIN).unwrap();
    hosts(&plugin["spec"]).into_iter().filter(|host| *host != wasm_plugin::SENTINEL).count()
}

/// A `WasmPlugin` of our name that another program has made.
fn foreign(url: &str) -> Value {
    json!({"metadata": {}, "spec": {"url": url, "matchRules": [{"service": ["shop.ns-b.svc"]}]}})
}

async fn opened(server: &ApiServer) -> Vec<String> {
    let Opened { objects, refused } = server.output().unblock_all(&settings()).await;
    assert_eq!(refused, []);
    objects.iter().map(|it| format!("{} {}/{}", it.kind, it.namespace, it.name)).collect()
}

#[tokio::test]
async fn an_operator_opens_the_gateway_and_it_stays_open_until_the_annotation_is_removed() {
    let server = ApiServer::default();
    write(&server, 3).await;
    server.world().put(PLUGINS, GATEWAY, "procscan-violations-1", foreign("oci://another"));
    server.writes();
    let opened = opened(&server).await;
    assert_eq!(opened, ["WasmPlugin higress-system/procscan-violations"]);
    assert_eq!(server.world().writes[0].manager.as_deref(), Some(FIELD_MANAGER));
    assert_eq!(server.writes(), ["PATCH wasmplugins higress-system/procscan-violations"]);
    let plugin = server.get(PLUGINS, GATEWAY, PLUGIN).unwrap();
    assert_eq!(plugin["metadata"]["annotations"][SUSPEND], "true");
    assert_eq!(plugin["spec"]["matchRules"].as_array().unwrap().len(), 1);
    assert_eq!(plugin["spec"]["matchRules"][0]["service"], json!([wasm_plugin::SENTINEL]));
    assert_eq!(plugin["spec"]["defaultConfig"]["violations"], json!([]));

    server.world().remove(PLUGINS, GATEWAY, "procscan-violations-1");
    let outcome = write(&server, 3).await;
    assert_eq!(outcome.suspended, ["WasmPlugin higress-system/procscan-violations"]);
    assert_eq!((outcome.problems, closed(&server)), (Vec::new(), 0));
    server.world().edit(PLUGINS, GATEWAY, PLUGIN, |plugin| plugin["metadata"]["annotations"] = json!({}));
    let outcome = write(&server, 3).await;
    assert_eq!((outcome.suspended, closed(&server)), (Vec::new(), 3));
}

#[tokio::test]
async fn only_the_value_true_suspends_an_object() {
    let server = ApiServer::default();
    write(&server, 1).await;
    for (value, suspends) in [("false", false), ("true", true)] {
        server.world().edit(PLUGINS, GATEWAY, PLUGIN, |plugin| {
            plugin["metadata"]["annotations"] = json!({SUSPEND: value});
            plugin["spec"]["matchRules"] = json!([]);
        });
        let outcome = write(&server, 1).await;
        assert_eq!(
            (outcome.suspended.len(), closed(&server)),
            (usize::from(suspends), usize::from(!suspends))
        );
    }
}

/// Another program's object of our name is neither written over nor counted; where it loads nothing into the gateway, as
/// the program before this one left it, nothing is lost by taking it over.
#[tokio::test]
async fn an_object_of_another_program_is_left_alone_until_it_is_handed_over() {
    let server = ApiServer::default();
    server.world().put(PLUGINS, GATEWAY, PLUGIN, foreign("oci://another"));
    let before = server.get(PLUGINS, GATEWAY, PLUGIN);
    let outcome = write(&server, 1).await;
    let expected = "WasmPlugin higress-system/procscan-violations is there, but not written by procscan-aggregator. \
                    Delete it, or hand it over with the label app.kubernetes.io/managed-by=procscan-aggregator";
    assert_eq!(outcome.problems, [expected]);
    assert_eq!(server.get(PLUGINS, GATEWAY, PLUGIN), before);
    assert_eq!(server.output().blocked(&settings()).await.unwrap(), [], "what it closes is not ours");
    let preview = server.output().preview(&plan(1), &settings()).await.unwrap();
    let plugin = preview.iter().find(|difference| difference.object.starts_with("WasmPlugin")).unwrap();
    assert_eq!(plugin.action, Action::Leave);
    assert_eq!(format!("{} {}", plugin.object, plugin.lines[0]), expected);

    server.world().edit(PLUGINS, GATEWAY, PLUGIN, |plugin| {
        plugin["metadata"]["labels"] = json!({"app.kubernetes.io/managed-by": "another"});
    });
    assert_eq!(write(&server, 1).await.problems.len(), 1);
    server.world().edit(PLUGINS, GATEWAY, PLUGIN, |plugin| {
        plugin["metadata"]["labels"] = json!({"app.kubernetes.io/managed-by": "procscan-aggregator"});
    });
    assert_eq!((write(&server, 1).await.problems, closed(&server)), (Vec::new(), 1));

    for url in [json!(null), json!("")] {
        let server = ApiServer::default();
        let mut inert = foreign("");
        inert["spec"]["url"] = url;
        server.world().put(PLUGINS, GATEWAY, PLUGIN, inert);
        assert_eq!((write(&server, 1).await.problems, closed(&server)), (Vec::new(), 1));
    }
    // An operator has removed the label: the object's managedFields still name us.
    server.world().edit(PLUGINS, GATEWAY, PLUGIN, |plugin| plugin["metadata"]["labels"] = json!({}));
    assert_eq!((write(&server, 2).await.problems, closed(&server)), (Vec::new(), 2));
}

fn message(annotation: &str) -> Value {
    json!({"metadata": {"annotations": {annotation: "2026-01-02T03:04:05Z"}}, "spec": {}})
}

#[tokio::test]
async fn uninstalling_removes_all_our_objects_and_no_others_and_messages_first() {
    let server = ApiServer::default();
    write(&server, 1).await;
    server.world().objects.retain(|(plural, ..), _| plural == PLUGINS);
    {
        let mut world = server.world();
        // More than a page.
        for n in 0..501 {
            world.put(
                MESSAGES,
                &format!("ns-{n:03}"),
                "procscan-abc",
                message(notification::CHANGE_ANNOTATION),
            );
        }
        world.put(MESSAGES, "ns-000", "debt", message(notification::CHANGE_ANNOTATION));
        world.put(MESSAGES, "ns-000", "procscan-fan-club", message("another"));
        world.put(PLUGINS, GATEWAY, "procscan-violations-1", foreign("oci://another"));
        world.put(PLUGINS, GATEWAY, "waf", foreign("oci://waf"));
    }
    server.writes();
    let would = server.output().uninstall(&settings(), true).await.unwrap();
    assert_eq!((would.len(), server.writes().len()), (502, 0), "dry");
    let done = server.output().uninstall(&settings(), false).await.unwrap();
    assert_eq!(done, would);
    assert_eq!(done[0], "Notification ns-000/procscan-abc");
    assert_eq!(done[501], "WasmPlugin higress-system/procscan-violations", "its users notice only this one");
    let writes = server.writes();
    assert_eq!(writes.len(), 502);
    assert_eq!(writes[501], "DELETE wasmplugins higress-system/procscan-violations");
    let left: Vec<_> = server.world().objects.keys().map(|(_, _, name)| name.clone()).collect();
    assert_eq!(left, ["debt", "procscan-fan-club", "procscan-violations-1", "waf"]);
}

#[tokio::test]
async fn uninstalling_goes_on_where_something_is_gone_already_and_ends_where_it_is_refused() {
    let stage = async || {
        let server = ApiServer::default();
        write(&server, 1).await;
        server.world().objects.retain(|(plural, ..), _| plural == PLUGINS);
        server.world().put(MESSAGES, "ns-a", "procscan-abc", message(notification::CHANGE_ANNOTATION));
        server
    };
    let both = ["Notification ns-a/procscan-abc", "WasmPlugin higress-system/procscan-violations"];
    // Its tenant deletes the message at the same moment.
    let server = stage().await;
    server.before(|world, asked| {
        if asked.method == Method::DELETE {
            world.remove(MESSAGES, "ns-a", "procscan-abc");
        }
        None
    });
    assert_eq!(server.output().uninstall(&settings(), false).await.unwrap(), both);
    assert!(server.world().objects.is_empty());
    // A kind that is not installed has no objects.
    for (plural, left) in [(MESSAGES, both[1]), (PLUGINS, both[0])] {
        let server = stage().await;
        server.world().unserved.insert(plural.to_owned());
        assert_eq!(server.output().uninstall(&settings(), false).await.unwrap(), [left]);
    }
    for method in [Method::GET, Method::DELETE] {
        for plural in [MESSAGES, PLUGINS] {
            let server = stage().await;
            let verb = method.clone();
            server.before(move |_, asked| {
                (asked.method == verb && asked.plural == plural).then(|| (403, "not today".to_owned()))
            });
            let refusal = server.output().uninstall(&settings(), false).await.unwrap_err();
            assert!(refusal.text.ends_with("not today (403)"), "{method} {plural}: {}", refusal.text);
            assert!(server.get(PLUGINS, GATEWAY, PLUGIN).is_some(), "{method} {plural}");
        }
    }
}
