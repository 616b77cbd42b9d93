//! What people do by hand, with the service alive or dead: open the gateway, and remove what is ours.

use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use procscan_core::resources::notification;
use procscan_core::resources::wasm_plugin::{self, Gateway};
use serde_json::{Value, json};

use super::live::{Live, is_ours, plural, resource};
use super::{ClusterOutput, FIELD_MANAGER, SUSPEND};
use crate::kubernetes::{Ask, Refusal, RefusalKind};

/// The objects that the program before this one wrote, all in [`LEGACY_NAMESPACE`].
const LEGACY_OBJECTS: [(&str, &str, &str); 2] = [
    (wasm_plugin::API_VERSION, wasm_plugin::KIND, "procscan-violations"),
    (notification::API_VERSION, notification::KIND, notification::SUMMARY_NAME),
];
const LEGACY_NAMESPACE: &str = "default";

/// An object that an operator has to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftBehind {
    /// Its kind.
    pub kind: &'static str,
    /// The name of its kind for kubectl.
    pub plural: String,
    /// Its namespace.
    pub namespace: &'static str,
    /// Its name.
    pub name: &'static str,
}

impl ClusterOutput {
    /// Opens the gateway to everybody, and keeps it from being closed again: the rules keep their sentinel only, and the
    /// objects are suspended. Returns what was opened.
    pub async fn unblock_all(&self, gateway: &Gateway) -> Result<Vec<String>, Refusal> {
        let mut opened = Vec::new();
        for live in self.plugins(gateway).await?.iter().filter(|live| is_ours(live)) {
            // Its first rule, with nobody in it; without one it blocks nobody, and is suspended all the same.
            let first = live.data.pointer("/spec/matchRules/0").and_then(Value::as_object).cloned();
            let mut rule = first.unwrap_or_default();
            rule.remove("ingress");
            rule.remove("domain");
            rule.insert("service".to_owned(), json!([wasm_plugin::SENTINEL]));
            let patch = json!({
                "metadata": {"annotations": {SUSPEND: "true"}},
                "spec": {"matchRules": [rule], "defaultConfig": {"violations": [], "omitted": null}},
            });
            self.patch_live(live, &patch).await?;
            opened.push(format!("WasmPlugin {}/{}", gateway.namespace, live.name_any()));
        }
        Ok(opened)
    }

    /// Removes everything that is ours: messages first, then the gateway's objects, whose removal is the one step that its
    /// users notice. `dry_run` only says what there is.
    pub async fn uninstall(&self, gateway: &Gateway, dry_run: bool) -> Result<Vec<String>, Refusal> {
        let mut removed = Vec::new();
        let mut doomed = Vec::new();
        for live in self.messages().await? {
            doomed.push((resource(notification::API_VERSION, notification::KIND), live));
        }
        let plugins = match self.plugins(gateway).await {
            Err(refusal) if refusal.kind == RefusalKind::NotServed => Vec::new(),
            plugins => plugins?,
        };
        let plugins = plugins.into_iter().filter(is_ours);
        doomed.extend(plugins.map(|live| (resource(wasm_plugin::API_VERSION, wasm_plugin::KIND), live)));
        for (resource, live) in doomed {
            let namespace = live.namespace().unwrap_or_default();
            let name = live.name_any();
            if !dry_run {
                let api: Api<Live> = Api::namespaced_with(self.cluster.client(), &namespace, &resource);
                let plural = plural(&resource);
                let ask =
                    Ask { verb: "delete", resource: &plural, namespace: Some(&namespace), name: Some(&name) };
                match self.cluster.ask(ask, api.delete(&name, &DeleteParams::default())).await {
                    Err(refusal) if refusal.kind != RefusalKind::NotFound => return Err(refusal),
                    _ => {}
                }
            }
            removed.push(format!("{} {namespace}/{name}", resource.kind));
        }
        Ok(removed)
    }

    /// The objects of the program before this one. They have no effect where they are, and are not ours to remove.
    pub async fn left_behind(&self, gateway: &Gateway) -> Result<Vec<LeftBehind>, Refusal> {
        let mut found = Vec::new();
        for (version, kind, name) in LEGACY_OBJECTS {
            let resource = resource(version, kind);
            let plural = plural(&resource);
            let api: Api<Live> = Api::namespaced_with(self.cluster.client(), LEGACY_NAMESPACE, &resource);
            let ask =
                Ask { verb: "get", resource: &plural, namespace: Some(LEGACY_NAMESPACE), name: Some(name) };
            let live = match self.cluster.ask(ask, api.get(name)).await {
                Err(refusal) if matches!(refusal.kind, RefusalKind::NotFound | RefusalKind::NotServed) => {
                    continue;
                }
                live => live?,
            };
            let is_ours = match kind {
                wasm_plugin::KIND => gateway.namespace == LEGACY_NAMESPACE,
                _ => live.annotations().contains_key(notification::INCIDENT),
            };
            if !is_ours {
                found.push(LeftBehind { kind, plural, namespace: LEGACY_NAMESPACE, name });
            }
        }
        Ok(found)
    }

    /// Our Notifications, in all namespaces.
    async fn messages(&self) -> Result<Vec<Live>, Refusal> {
        let resource = resource(notification::API_VERSION, notification::KIND);
        let api: Api<Live> = Api::all_with(self.cluster.client(), &resource);
        let plural = plural(&resource);
        let mut all = Vec::new();
        let mut page = ListParams::default().limit(500);
        loop {
            let ask = Ask { verb: "list", resource: &plural, namespace: None, name: None };
            let found = match self.cluster.ask(ask, api.list(&page)).await {
                Err(refusal) if refusal.kind == RefusalKind::NotServed => return Ok(all),
                found => found?,
            };
            // Labels do not last, so it is by name and annotation that they are known.
            let is_message = |live: &Live| {
                live.name_any().starts_with("procscan-")
                    && live.annotations().contains_key(notification::INCIDENT)
            };
            all.extend(found.items.into_iter().filter(is_message));
            match found.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(all),
            }
        }
    }

    async fn patch_live(&self, live: &Live, patch: &Value) -> Result<Live, Refusal> {
        let resource = resource(wasm_plugin::API_VERSION, wasm_plugin::KIND);
        let plural = plural(&resource);
        let namespace = live.namespace().unwrap_or_default();
        let api: Api<Live> = Api::namespaced_with(self.cluster.client(), &namespace, &resource);
        let name = live.name_any();
        let ask = Ask { verb: "patch", resource: &plural, namespace: Some(&namespace), name: Some(&name) };
        let by_us = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        self.cluster.ask(ask, api.patch(&name, &by_us, &Patch::Merge(patch))).await
    }
}
