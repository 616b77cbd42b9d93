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
    world.until_notified("ns-a", "there", |_| true).await?;
    Ok(())
}

/// The shipped roles without one verb, and how its absence has to be named.
struct Without {
    documents: Vec<Value>,
    verb: String,
    resource: String,
    namespace: String,
}

impl Without {
    /// The API server's text for the refusal.
    fn refusal(&self) -> String {
        format!("cannot {} resource", self.verb)
    }

    /// Whether the service needs the right only to carry out the commands of operators.
    fn is_for_operators(&self) -> bool {
        match (&*self.resource, &*self.verb) {
            ("tokenreviews" | "subjectaccessreviews", _) => true,
            ("incidents", verb) => ["get", "patch"].contains(&verb),
            ("exemptions" | "enforcements", verb) => ["create", "patch", "delete"].contains(&verb),
            _ => false,
        }
    }

    /// Waits until the answers to an operator name the right.
    async fn until_an_answer_names_it(&self, world: &World) -> anyhow::Result<()> {
        let Self { verb, resource, .. } = self;
        // The answer has the text of the API server, or ours.
        let (refusal, right) = (self.refusal(), format!("`{verb} {resource}."));
        let is_named = |answers: &str| {
            answers.contains(&refusal) && answers.contains(&**resource) || answers.contains(&right)
        };
        until("the answer to an operator", LIMIT, async || {
            let answers = operate(world).await?;
            ensure!(is_named(&answers), "{answers}");
            Ok(())
        })
        .await
    }

    /// Waits until the log names the right.
    async fn until_the_log_names_it(&self, world: &World) -> anyhow::Result<()> {
        let Self { resource, namespace, .. } = self;
        // The log names only the first message that can't be written, and that may be the administrators' summary.
        let place = if resource == "notifications" { resource } else { namespace };
        world.until_logged(&[&self.refusal(), resource, place]).await.map(drop)
    }
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

/// For each verb of the shipped roles: the roles without it.
fn without_each_verb() -> anyhow::Result<Vec<Without>> {
    let documents: Vec<Value> =
        RBAC.split("\n---\n").map(|text| Ok(serde_saphyr::from_str(text)?)).collect::<anyhow::Result<_>>()?;
    let mut all = Vec::new();
    for (number, document) in documents.iter().enumerate() {
        // The service does not need the rights of operators and readers.
        let is_for_service =
            |name: &Value| name.as_str().is_some_and(|name| name.starts_with("procscan-aggregator"));
        if !is_for_service(&document["metadata"]["name"]) {
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
                let (resource, namespace) = (resource.clone(), namespace.to_owned());
                all.push(Without { documents, verb, resource, namespace });
            }
        }
    }
    Ok(all)
}

/// A world with accusations for which the service needs each of its rights.
async fn accused(config: &Value) -> anyhow::Result<World> {
    let world = World::begin(Beginning { config: config.clone(), ..Beginning::default() }).await?;
    let pod = world.tenant("ns-a", "web", "sim-0000").await?;
    world.cluster.apply(HTTP_ROUTES).await?;
    // One Pod that exists, one that has to be looked up directly, and so many namespaces that the cluster is watched.
    let others: Vec<String> = (0..11).map(|number| format!("ns-other-{number}")).collect();
    let made_up = others.iter().map(|namespace| (namespace.as_str(), "no-such-pod"));
    let accused: Vec<(&str, &str)> =
        [("ns-a", pod.as_str()), ("ns-a", "no-such-pod")].into_iter().chain(made_up).collect();
    world.accuse(0, &accused);
    Ok(world)
}

/// Deletes the objects that the aggregator would write with `verb`, and everything that is persisted.
async fn forget_everything(world: &World, verb: &str) -> anyhow::Result<()> {
    for plugin in world.plugins().await? {
        delete(&world.wasm_plugins(), plugin.metadata.name.as_deref().unwrap_or_default()).await?;
    }
    // A Notification that exists is patched, so it stays unless the verb is `create`.
    if verb == "create" {
        for notice in world.notifications("ns-a").list(&ListParams::default()).await? {
            delete(&world.notifications("ns-a"), notice.metadata.name.as_deref().unwrap_or_default()).await?;
        }
    }
    // A decision that is persisted is not made again.
    let persisted = "incidents,exemptions,enforcements";
    world.kubectl(&["delete", persisted, "--all", "-n", OWN]).await?;
    leave_history(world).await
}

/// Scenario 6, second half: the shipped roles have no verb too many, and the service names each one that is missing.
#[tokio::test(flavor = "multi_thread")]
async fn every_verb_of_the_shipped_roles_is_needed_and_named_when_it_is_missing() -> anyhow::Result<()> {
    // Every route is looked up as soon as anything is blocked.
    let routes = json!({"gateway": {"max_service_entries": 1}});
    let mut world = accused(&routes).await?;
    let cases = without_each_verb()?;
    ensure!(cases.len() == 45, "{} verbs", cases.len());
    world.allow("alice").await?;
    for without in cases {
        world.aggregator.kill()?;
        if (&*without.verb, &*without.resource) == ("patch", "notifications") {
            // In the case before, no Notification could be created.
            world.cluster.apply(RBAC).await?;
            world.restart(&routes)?;
            world.until_notified("ns-a", "there", |_| true).await?;
            world.aggregator.kill()?;
        }
        forget_everything(&world, &without.verb).await?;
        let texts: Vec<String> = without.documents.iter().map(ToString::to_string).collect();
        world.cluster.apply(&texts.join("\n---\n")).await?;
        world.restart(&routes)?;
        let named = if without.is_for_operators() {
            without.until_an_answer_names_it(&world).await
        } else {
            without.until_the_log_names_it(&world).await
        };
        let Without { verb, resource, namespace, .. } = &without;
        named.with_context(|| format!("without {verb} {resource} {namespace}"))?;
        // Without reviews there are no readers.
        if ["tokenreviews", "subjectaccessreviews"].contains(&&**resource) {
            world.aggregator.wait_for("the probe", LIMIT, "/livez", |_| true).await?;
        } else {
            let list = world.aggregator.wait_for("the list", LIMIT, "/api/violations", |_| true).await?;
            ensure!(list["total_count"].is_u64(), "the API goes on: {list}");
        }
    }
    // The program of the last case needs no restart once it has the right.
    world.cluster.apply(RBAC).await?;
    world.until_closed(&["web-x7k2.ns-a"]).await
}

/// Creates an Incident that ended long ago, which the service has to delete.
async fn leave_history(world: &World) -> anyhow::Result<()> {
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    // The later one sets the leader clock, by which the first one must also have ended long ago.
    for (name, at) in [("old", "2020-01-01T00:00:00Z"), ("later", now.as_str())] {
        let spec = json!({"app": {"namespace": format!("ns-{name}"), "type": "app", "name": name}});
        let incident = json!({
            "apiVersion": "procscan.sealos.io/v1alpha1", "kind": "Incident", "metadata": {"name": name}, "spec": spec,
        });
        world.incidents().create(&PostParams::default(), &serde_json::from_value(incident)?).await?;
        let status = json!({"status": {"state": "Ended", "opened": at, "since": at, "clock": at}});
        world.incidents().patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
    }
    Ok(())
}

/// Does everything that an operator can do by the API, and returns the answers.
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
    // A reader that is known by now may go on reading.
    world.aggregator.wait_for("the plan", LIMIT, "/api/v1/plan", |_| true).await?;
    world.cluster.stop_apiserver()?;
    let rounds = |ready: &Value| ready["rounds"].as_u64().unwrap_or(0);
    let before = rounds(&world.aggregator.get("/readyz").await?.1);
    world.accuse(1, &[("ns-b", &b)]);
    let ready = world
        .aggregator
        .wait_for("five rounds, and both parts to report the API server", LIMIT, "/readyz", |ready| {
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
    // A replica that can't reach the API server loses the Lease after a while, and then no replica decides.
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

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/manifests");

/// Applies the manifests one by one, as the seed's README does, and then all of them with kustomize.
async fn apply_manifests(world: &World) -> anyhow::Result<()> {
    let apply = ["apply", "--force-conflicts", "--server-side", "--validate=strict"];
    for file in ["rbac.yaml", "configmap.yaml", "deployment.yaml"] {
        world.kubectl(&[&apply[..], &["-f", &format!("{MANIFESTS}/{file}")]].concat()).await?;
    }
    world.kubectl(&[&apply[..], &["-k", MANIFESTS]].concat()).await?;
    until("the Pods", LIMIT, async || {
        let selector = "app=procscan-aggregator";
        let pods = world.kubectl(&["get", "pods", "-n", "kube-system", "-l", selector, "-o", "name"]).await?;
        ensure!(pods.lines().count() == 2, "{pods}");
        Ok(())
    })
    .await
}

/// The API server admits the Pod of the Deployment to a namespace with the strictest Pod Security Standard.
async fn the_pod_fits_a_restricted_namespace(world: &World) -> anyhow::Result<()> {
    let strict = json!({"metadata": {"name": "strict", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    world.stage.make_global::<Namespace>(strict).await?;
    let deployment = ["get", "deployment", "-n", "kube-system", "procscan-aggregator", "-o", "json"];
    let deployment: Value = serde_json::from_str(&world.kubectl(&deployment).await?)?;
    let pod = json!({"metadata": {"name": "it", "namespace": "strict"}, "spec": deployment["spec"]["template"]["spec"]});
    world.stage.make::<Pod>(pod).await
}

/// The configuration in the `ConfigMap`. `check-config` accepts it.
async fn shipped_config(world: &World) -> anyhow::Result<String> {
    let data = "jsonpath={.data.config\\.yaml}";
    let map =
        world.kubectl(&["get", "configmap", "-n", "kube-system", "procscan-aggregator", "-o", data]).await?;
    let file = world.cluster.dir().join("in-pod.yaml");
    std::fs::write(&file, &map)?;
    let file = file.to_string_lossy().into_owned();
    let checked = run_command(&["check-config", "--config", &file], &aggregator::Options::default()).await?;
    ensure!(checked.code == Some(0), "{checked:?}");
    Ok(map)
}

/// Mounts the files of the ServiceAccount where a Pod has them.
fn mount_service_account(world: &World) -> anyhow::Result<()> {
    let secrets = "/var/run/secrets/kubernetes.io/serviceaccount";
    let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]).output()?;
    ensure!(mounted.status.success(), "{mounted:?}");
    std::fs::create_dir_all(secrets)?;
    std::fs::write(format!("{secrets}/token"), "aggregator")?;
    std::fs::write(format!("{secrets}/namespace"), "kube-system")?;
    std::fs::copy(world.cluster.dir().join("certificates/apiserver.crt"), format!("{secrets}/ca.crt"))?;
    Ok(())
}

/// The environment of a Pod.
fn in_pod(world: &World) -> anyhow::Result<aggregator::Options> {
    let port = world.cluster.url().rsplit(':').next().context("a port")?.to_owned();
    let env = vec![
        ("KUBERNETES_SERVICE_HOST".into(), "127.0.0.1".into()),
        ("KUBERNETES_SERVICE_PORT".into(), port),
        ("POD_NAMESPACE".into(), "kube-system".into()),
        ("PROCSCAN_AGGREGATOR__SCAN_INTERVAL".into(), "1s".into()),
        // Kubernetes sets this in every Pod of the namespace, because of our own Service.
        ("PROCSCAN_AGGREGATOR_PORT".into(), "tcp://10.200.0.9:8090".into()),
    ];
    Ok(aggregator::Options { env, ..aggregator::Options::default() })
}

/// The program has the Pod's configuration, environment and ServiceAccount, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn the_manifests_are_accepted_and_their_configuration_works_inside_a_pod() -> anyhow::Result<()> {
    let world = World::start().await?;
    world.aggregator.kill()?;
    apply_manifests(&world).await?;
    the_pod_fits_a_restricted_namespace(&world).await?;
    let map = shipped_config(&world).await?;
    mount_service_account(&world)?;
    let inside = Aggregator::spawn(&map, &in_pod(&world)?)?;
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
