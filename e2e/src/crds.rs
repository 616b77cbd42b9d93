//! The kinds that the aggregator writes: Higress's WasmPlugin and Sealos's Notification.
//!
//! The real CRDs are used if they are available. Otherwise CRDs are made from the objects that the aggregator renders. They have
//! exactly these fields, so that the API server refuses others.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::wait::until;

mod sample;
mod schema;

/// Names the folder with the real CRDs.
const CONTRACTS: &str = "PROCSCAN_CONTRACTS";

const LIMIT: Duration = Duration::from_secs(30);

/// The full name of the WasmPlugin's CRD.
pub const WASM_PLUGINS: &str = "wasmplugins.extensions.higress.io";

/// The full name of the Notification's CRD.
pub const NOTIFICATIONS: &str = "notifications.notification.sealos.io";

/// The CRDs to install.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crds {
    /// The real ones, from the folder that `PROCSCAN_CONTRACTS` names, or beside the checkout.
    Contracts,
    /// Made from the objects that the aggregator renders.
    Generated,
}

impl Crds {
    /// The real ones if they are available.
    pub fn best() -> Self {
        if contracts().is_some() { Self::Contracts } else { Self::Generated }
    }

    /// The CRDs themselves.
    pub fn load(self) -> anyhow::Result<Vec<CustomResourceDefinition>> {
        match self {
            Self::Contracts => {
                let folder = contracts()
                    .with_context(|| format!("the real CRDs are not here; {CONTRACTS} may say where"))?;
                let files: Vec<_> = std::fs::read_dir(&folder)?.collect::<Result<_, _>>()?;
                let texts = files.iter().map(|file| std::fs::read_to_string(file.path()));
                let crds = texts.map(|text| Ok(serde_saphyr::from_str::<Value>(&text?)?));
                crds.map(|crd: anyhow::Result<Value>| Ok(serde_json::from_value(crd?)?)).collect()
            }
            Self::Generated => [
                (WASM_PLUGINS, "WasmPlugin", &["/defaultConfig", "/matchRules/*/config"][..]),
                (NOTIFICATIONS, "Notification", &[]),
            ]
            .into_iter()
            .map(|(name, kind, open)| Ok(serde_json::from_value(generate(name, kind, open)?)?))
            .collect(),
        }
    }
}

/// Installs them and waits until objects can be made.
pub async fn install(client: &Client, which: Crds) -> anyhow::Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in which.load()? {
        let name = crd.name_any();
        api.create(&PostParams::default(), &crd).await.with_context(|| format!("installing {name}"))?;
        until(&format!("{name} to be established"), LIMIT, async || {
            let status = api.get(&name).await?.status.context("no status yet")?;
            let conditions = status.conditions.unwrap_or_default();
            let established = conditions
                .iter()
                .any(|condition| condition.type_ == "Established" && condition.status == "True");
            ensure!(established, "{conditions:?}");
            Ok(())
        })
        .await?;
        // A CRD is established a little earlier than it is served.
        let (group, plural) = (crd.spec.group.as_str(), crd.spec.names.plural.as_str());
        let version = crd.spec.versions.first().context("a CRD without versions")?.name.as_str();
        until(&format!("{name} to be served"), LIMIT, async || {
            let served = client.list_api_group_resources(&format!("{group}/{version}")).await?;
            ensure!(served.resources.iter().any(|resource| resource.name == plural), "{served:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Removes a CRD with all its objects and waits until it is gone.
pub async fn remove(client: &Client, name: &str) -> anyhow::Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    api.delete(name, &DeleteParams::default()).await.with_context(|| format!("removing {name}"))?;
    until(&format!("{name} to be gone"), LIMIT, async || {
        ensure!(api.get_opt(name).await?.is_none(), "still there");
        Ok(())
    })
    .await
}

/// Switches on or off that the API server serves the objects of a CRD. They stay stored.
pub async fn set_served(client: &Client, name: &str, is_served: bool) -> anyhow::Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut crd = api.get(name).await?;
    for version in &mut crd.spec.versions {
        version.served = is_served;
    }
    api.replace(name, &PostParams::default(), &crd).await.with_context(|| format!("serving {name}"))?;
    Ok(())
}

fn contracts() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/contracts/crds");
    let folder = std::env::var_os(CONTRACTS).map_or_else(|| PathBuf::from(beside), PathBuf::from);
    folder.is_dir().then_some(folder)
}

/// A CRD for all objects of a kind that the sample renders. Fields below `open` may have any value.
fn generate(name: &str, kind: &str, open: &[&str]) -> anyhow::Result<Value> {
    let objects = sample::objects()?;
    let mut specs = objects.iter().filter(|object| object.kind == kind).map(|object| &object.spec);
    let first = specs.next().with_context(|| format!("the sample has no {kind}"))?;
    let version = objects
        .iter()
        .find(|object| object.kind == kind)
        .map(|object| object.kind.api_version())
        .unwrap_or_default();
    let (group, version) = version.split_once('/').context("an apiVersion without a group")?;
    let mut spec = schema::of(first);
    for other in specs {
        spec = schema::merge(spec, schema::of(other));
    }
    for path in open {
        schema::open(&mut spec, path);
    }
    let plural = name.split('.').next();
    Ok(json!({
        "metadata": {"name": name},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {
                "kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": kind.to_lowercase(),
            },
            "versions": [{
                "name": version,
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "properties": {
                        "spec": spec,
                        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    },
                }},
            }],
        },
    }))
}
