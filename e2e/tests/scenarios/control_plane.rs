//! A control plane that is not there, not complete, or does not allow everything.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use procscan_e2e::aggregator::{self, Aggregator, run_command};
use procscan_e2e::crds::{self, Crds};
use procscan_e2e::until;
use serde_json::{Value, json};

use crate::world::{Beginning, LIMIT, OWN, RBAC, ROUNDS, World, config, delete};

/// Scenario 6, first half.
#[tokio::test(flavor = "multi_thread")]
async fn crds_that_come_later_are_picked_up() -> anyhow::Result<()> {
    let world = World::begin(Beginning { crds: None, ..Beginning::default() }).await?;
    let pod = world.tenant("ns-a", "web", "sim-0000").await?;
    world.accuse(0, &[("ns-a", &pod)]);
    world
        .until_logged(&[
            "list wasmplugins.extensions.higress.io in namespace higress-system",
            "is its CRD installed?",
        ])
        .await?;
    let serves = |list: &Value| list["total_count"] == 1;
    world.aggregator.wait_for("the violation", LIMIT, "/api/violations", serves).await?;
    crds::install(&world.cluster.admin(), Crds::best()).await?;
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    world.until_told("ns-a", "there", |_| true).await?;
    Ok(())
}

/// One document of the shipped roles without one verb, and how its absence has to be named.
struct Without {
    documents: Vec<Value>,
    named: [String; 3],
}

/// The Gateway API's routes, as far as the API server has to know them.
const HTTP_ROUTES: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: httproutes.gateway.networking.k8s.io
  annotations: {api-approved.kubernetes.io: "unapproved, for a test"}
spec:
  group: gateway.networking.k8s.io
  scope: Namespaced
  names: {plural: httproutes, singular: httproute, kind: HTTPRoute, listKind: HTTPRouteList}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
"#;

/// The Gateway API's routes, as far as the API server has to know them.
fn without_each_verb() -> anyhow::Result<Vec<Without>> {
    let documents: Vec<Value> =
        RBAC.split("\n---\n").map(|text| Ok(serde_saphyr::from_str(text)?)).collect::<anyhow::Result<_>>()?;
    let mut all = Vec::new();
    for (number, document) in documents.iter().enumerate() {
        // What people may do is no concern of the program.
        if document["metadata"]["name"] == "procscan-operator" {
            continue;
        }
        for (index, rule) in document["rules"].as_array().into_iter().flatten().enumerate() {
            let resource = rule["resources"][0].as_str().context("a resource")?.to_owned();
            let namespace = document["metadata"]["namespace"].as_str();
            for verb in rule["verbs"].as_array().context("verbs")? {
                let verb = verb.as_str().context("a verb")?.to_owned();
                let is_watched = verb == "watch" || (&*verb, &*resource) == ("list", "namespaces");
                let everywhere = if is_watched { "in all namespaces" } else { "in namespace ns-" };
                let namespace = namespace.unwrap_or(everywhere);
                let mut documents = documents.clone();
                let rules = documents[number]["rules"].as_array_mut().context("rules")?;
                rules[index]["verbs"].as_array_mut().context("verbs")?.retain(|other| *other != *verb);
                // Endpoints matter only where EndpointSlices are refused.
                rules.retain(|rule| {
                    !(rule["verbs"] == json!([])
                        || resource == "endpoints" && rule["resources"] == json!(["endpointslices"]))
                });
                all.push(Without { documents, named: [verb, resource.clone(), namespace.to_owned()] });
            }
        }
    }
    Ok(all)
}

/// Scenario 6, second half: as little as possible is shipped, and what is missing is named.
#[tokio::test(flavor = "multi_thread")]
async fn every_verb_of_the_shipped_roles_is_needed_and_named_when_it_is_missing() -> anyhow::Result<()> {
    // Every route is looked up as soon as anything is blocked.
    let routes = json!({"gateway": {"max_service_entries": 1}});
    let mut world = World::begin(Beginning { config: routes.clone(), ..Beginning::default() }).await?;
    let pod = world.tenant("ns-a", "web", "sim-0000").await?;
    world.cluster.apply(HTTP_ROUTES).await?;
    // One Pod that is there, one that has to be looked up directly, and so many namespaces that the cluster is watched.
    let others: Vec<String> = (0..11).map(|number| format!("ns-other-{number}")).collect();
    let made_up = others.iter().map(|namespace| (namespace.as_str(), "no-such-pod"));
    let accused: Vec<(&str, &str)> =
        [("ns-a", pod.as_str()), ("ns-a", "no-such-pod")].into_iter().chain(made_up).collect();
    world.accuse(0, &accused);
    let cases = without_each_verb()?;
    ensure!(cases.len() == 45, "{} verbs", cases.len());
    world.allow("alice").await?;
    for Without { documents, named } in cases {
        world.aggregator.kill()?;
        let [verb, resource, namespace] = &named;
        if named[..2] == ["patch", "notifications"] {
            // In the case before none could be made.
            world.cluster.apply(RBAC).await?;
            world.restart(&routes)?;
            world.until_told("ns-a", "there", |_| true).await?;
            world.aggregator.kill()?;
        }
        for plugin in world.plugins().await? {
            delete(&world.wasm_plugins(), plugin.metadata.name.as_deref().unwrap_or_default()).await?;
        }
        // What is there is told anew by a patch.
        let is_made = verb == "create";
        for told in
            world.notifications("ns-a").list(&ListParams::default()).await?.into_iter().filter(|_| is_made)
        {
            delete(&world.notifications("ns-a"), told.metadata.name.as_deref().unwrap_or_default()).await?;
        }
        // Each time from the beginning: what is kept has been done.
        let kept = "incidents,exemptions,enforcements";
        world.kubectl(&["delete", kept, "--all", "-n", OWN]).await?;
        leave_history(&world).await?;
        let texts: Vec<String> = documents.iter().map(ToString::to_string).collect();
        world.cluster.apply(&texts.join("\n---\n")).await?;
        world.restart(&routes)?;
        let refusal = format!("cannot {verb} resource");
        let is_for_operators = match (&**resource, &**verb) {
            ("tokenreviews" | "subjectaccessreviews", _) => true,
            ("incidents", verb) => ["get", "patch"].contains(&verb),
            ("exemptions" | "enforcements", verb) => ["create", "patch", "delete"].contains(&verb),
            _ => false,
        };
        if is_for_operators {
            // In the API server's words, or in ours.
            let right = format!("`{verb} {resource}.");
            let is_named = |answers: &str| {
                answers.contains(&refusal) && answers.contains(&**resource) || answers.contains(&right)
            };
            until("the answer to an operator", LIMIT, async || {
                let answers = operate(&world).await?;
                ensure!(is_named(&answers), "{answers}");
                Ok(())
            })
            .await
            .with_context(|| format!("without {named:?}"))?;
        } else {
            // Only the first message that can't be written is named, and that may be the administrators' summary.
            let place = if resource == "notifications" { resource } else { namespace };
            let logged = world.until_logged(&[&refusal, resource, place]).await;
            logged.with_context(|| format!("without {named:?}"))?;
        }
        let list = world.aggregator.wait_for("the list", LIMIT, "/api/violations", |_| true).await?;
        ensure!(list["total_count"].is_u64(), "the API goes on: {list}");
    }
    world.cluster.apply(RBAC).await?;
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    // With the last case's program: nothing has to be restarted once the right is given.
    Ok(())
}

/// An incident that was over long ago: what is to be forgotten.
async fn leave_history(world: &World) -> anyhow::Result<()> {
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    // By the later one the clock of the leaders is known, which has to say so too.
    for (name, at) in [("old", "2020-01-01T00:00:00Z"), ("later", now.as_str())] {
        let spec = json!({"app": {"namespace": format!("ns-{name}"), "type": "app", "name": name}});
        let kept = json!({
            "apiVersion": "procscan.sealos.io/v1alpha1", "kind": "Incident", "metadata": {"name": name}, "spec": spec,
        });
        world.incidents().create(&PostParams::default(), &serde_json::from_value(kept)?).await?;
        let status = json!({"status": {"state": "Ended", "opened": at, "since": at, "clock": at}});
        world.incidents().patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
    }
    Ok(())
}

/// Does everything that an operator can do by the API. What it answers.
async fn operate(world: &World) -> anyhow::Result<String> {
    let bearer = format!("Bearer {}", world.cluster.token_of_alice());
    let headers = [("Authorization", bearer.as_str())];
    let (_, incidents) = world.aggregator.get("/api/v1/incidents?namespace=ns-a").await?;
    let name = incidents["incidents"][0]["name"].as_str().unwrap_or("none-yet").to_owned();
    let release = format!("/api/v1/incidents/{name}/release");
    let exemption = json!({"id": "x", "namespace": {"exact": "ns-x"}, "reason": "a test"});
    let mut answers = Vec::new();
    for (method, path, body) in [
        ("POST", release.as_str(), json!({})),
        ("POST", "/api/v1/exemptions", exemption),
        ("DELETE", "/api/v1/exemptions/x", json!({})),
        ("PUT", "/api/v1/enforcement", json!({"mode": null})),
    ] {
        let answer = world.aggregator.send(method, path, &headers, Some(&body)).await?;
        answers.push(format!("{method} {path}: {} {}", answer.status, answer.json()));
    }
    Ok(answers.join("\n"))
}

/// Scenario 11.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_api_server_is_away_rounds_go_on_and_nothing_is_decided_without_evidence()
-> anyhow::Result<()> {
    let mut world = World::start().await?;
    let a = world.tenant("ns-a", "web", "sim-0000").await?;
    let b = world.tenant("ns-b", "web", "sim-0001").await?;
    world.accuse(0, &[("ns-a", &a)]);
    world.until_closed(&["web-x7k2.ns-a"]).await?;
    world.cluster.stop_apiserver()?;
    let rounds = |ready: &Value| ready["rounds"].as_u64().unwrap_or(0);
    let before = rounds(&world.aggregator.get("/readyz").await?.1);
    world.accuse(1, &[("ns-b", &b)]);
    let ready = world
        .aggregator
        .wait_for("five rounds, and what is away to be named", LIMIT, "/readyz", |ready| {
            rounds(ready) >= before + 5 && ready["evidence"]["ok"] == false && ready["output"]["ok"] == false
        })
        .await?;
    ensure!(ready["targets"]["fresh"] == 3, "the agents are asked as before: {ready}");
    let (_, plan) = world.aggregator.get("/api/v1/plan").await?;
    let blocked = |plan: &Value| -> BTreeSet<String> {
        let blocks = plan["blocks"].as_array().cloned().unwrap_or_default();
        blocks.iter().map(|block| block["app"]["namespace"].as_str().unwrap_or_default().to_owned()).collect()
    };
    ensure!(blocked(&plan) == ["ns-a".to_owned()].into(), "{plan}");
    // Who can't reach the API server can't lead either: after a while nobody decides at all.
    let (_, ready) = world.aggregator.get("/readyz").await?;
    let leads = ready["leader"]["leading"] == true;
    ensure!(!leads || plan["unverified"].as_u64() >= Some(1), "{ready} {plan}");
    world.cluster.start_apiserver().await?;
    world.until_closed(&["web-x7k2.ns-a", "web-x7k2.ns-b"]).await?;
    let well = |ready: &Value| {
        ready["evidence"]["ok"] == true && ready["output"]["ok"] == true && ready["discovery"]["ok"] == true
    };
    world.aggregator.wait_for("everything to be well", LIMIT, "/readyz", well).await?;
    for entry in world.aggregator.logs() {
        ensure!(entry["decision"] != "released", "{entry}");
    }
    Ok(())
}

/// The seed's three lines and its checks, and the configuration that is in them.
#[tokio::test(flavor = "multi_thread")]
async fn the_manifests_are_accepted_and_their_configuration_works_inside_a_pod() -> anyhow::Result<()> {
    let world = World::start().await?;
    world.aggregator.kill()?;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/manifests");
    let kubectl = async |args: &[&str]| -> anyhow::Result<String> {
        let output = world.cluster.kubectl(args).await?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    for file in ["rbac.yaml", "configmap.yaml", "deployment.yaml"] {
        kubectl(&[
            "apply",
            "--force-conflicts",
            "--server-side",
            "--validate=strict",
            "-f",
            &format!("{folder}/{file}"),
        ])
        .await?;
    }
    kubectl(&["apply", "--force-conflicts", "--server-side", "--validate=strict", "-k", folder]).await?;
    until("the Pod", LIMIT, async || {
        let pods =
            kubectl(&["get", "pods", "-n", "kube-system", "-l", "app=procscan-aggregator", "-o", "name"])
                .await?;
        ensure!(pods.lines().count() == 2, "{pods}");
        Ok(())
    })
    .await?;
    // What the hardened Pod may do is judged by the cluster itself.
    let strict = json!({"metadata": {"name": "strict", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    world.stage.make_global::<Namespace>(strict).await?;
    let deployment =
        kubectl(&["get", "deployment", "-n", "kube-system", "procscan-aggregator", "-o", "json"]).await?;
    let deployment: Value = serde_json::from_str(&deployment)?;
    let pod = json!({"metadata": {"name": "it", "namespace": "strict"}, "spec": deployment["spec"]["template"]["spec"]});
    world.stage.make::<Pod>(pod).await?;

    // As in the Pod: its configuration, its ServiceAccount's files, and nothing else.
    let map = kubectl(&[
        "get",
        "configmap",
        "-n",
        "kube-system",
        "procscan-aggregator",
        "-o",
        "jsonpath={.data.config\\.yaml}",
    ])
    .await?;
    let file = world.cluster.dir().join("in-pod.yaml");
    std::fs::write(&file, &map)?;
    let file = file.to_string_lossy().into_owned();
    let checked = run_command(&["check-config", "--config", &file], &aggregator::Options::default()).await?;
    ensure!(checked.code == Some(0), "{checked:?}");
    let secrets = "/var/run/secrets/kubernetes.io/serviceaccount";
    let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]).output()?;
    ensure!(mounted.status.success(), "{mounted:?}");
    std::fs::create_dir_all(secrets)?;
    std::fs::write(format!("{secrets}/token"), "aggregator")?;
    std::fs::write(format!("{secrets}/namespace"), "kube-system")?;
    std::fs::copy(world.cluster.dir().join("certificates/apiserver.crt"), format!("{secrets}/ca.crt"))?;
    let port = world.cluster.url().rsplit(':').next().context("a port")?.to_owned();
    let options = aggregator::Options {
        env: vec![
            ("KUBERNETES_SERVICE_HOST".into(), "127.0.0.1".into()),
            ("KUBERNETES_SERVICE_PORT".into(), port),
            ("POD_NAMESPACE".into(), "kube-system".into()),
            ("PROCSCAN_AGGREGATOR__SCAN_INTERVAL".into(), "1s".into()),
            // What a Service of our own name sets in every Pod of the namespace.
            ("PROCSCAN_AGGREGATOR_PORT".into(), "tcp://10.200.0.9:8090".into()),
        ],
        ..aggregator::Options::default()
    };
    let inside = Aggregator::spawn(&map, &options)?;
    let ready =
        inside.wait_for("the first round", LIMIT, "/readyz", |ready| ready["targets"]["fresh"] == 3).await?;
    ensure!(ready["discovery"]["ok"] == true && ready["output"]["ok"] == true, "{ready}");
    ensure!(inside.stop().await?.success());
    let unmounted = std::process::Command::new("umount").arg("/run").output()?;
    ensure!(unmounted.status.success(), "{unmounted:?}");
    Ok(())
}

/// An empty discovery says what it looked for and what may have been meant.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_discovery_names_services_that_are_called_alike() -> anyhow::Result<()> {
    let world = World::start().await?;
    world.aggregator.kill()?;
    let kubeconfig = aggregator::Options::kubeconfig(world.cluster.kubeconfig_aggregator());
    let lost = Aggregator::spawn(
        &config(&json!({"daemonset": {"service_name": "procscan-agent"}})).to_string(),
        &kubeconfig,
    )?;
    let hint = lost
        .wait_for_log("the hint", LIMIT, |entry| {
            let text = entry.to_string();
            text.contains(
                "the Service kube-system/procscan-agent has no endpoints; there is kube-system/procscan ",
            )
        })
        .await?;
    ensure!(hint["level"] == "WARN", "{hint}");
    world.stays_closed(&[], ROUNDS).await
}
