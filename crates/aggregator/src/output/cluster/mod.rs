//! The objects in the cluster, by server-side apply.
//!
//! Each object is read before it is written, written only if it differs, and written with the resourceVersion that was read:
//! whoever was faster wins, and the next pass looks again. The gateway's objects are kept exactly as they should be. Tenants'
//! Notifications are messages: written when they are news, and the reader may mark or delete them.

mod deferred;
mod emergency;
mod live;
mod messages;
mod reconcile;
mod requests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use procscan_core::plan::Plan;
use procscan_core::policy::InheritedBlock;
use procscan_core::resources::wasm_plugin::{self, Gateway};
use procscan_core::resources::{self, Object, Settings, WritePolicy};
use serde_json::json;

use self::deferred::DeferredMessages;
pub use self::emergency::LeftBehind;
use self::live::{Key, Live, difference, existing, is_ours, is_suspended, plural, resource};
use self::messages::SentMessage;
use super::difference::Difference;
use super::{LeftOpen, MAX_PROBLEMS_SHOWN, Outcome};
use crate::kubernetes::{Ask, Cluster, Refusal, RefusalKind};
use crate::leader::WritePermit;

/// Who we are to the API server.
pub const FIELD_MANAGER: &str = "procscan-aggregator";
/// The annotation by which an operator keeps us from writing an object.
pub const SUSPEND: &str = "procscan-aggregator/suspend";
/// The annotation that says which leader's the object is.
pub const WRITER: &str = "procscan-aggregator/writer";
/// How often an object is marked again that somebody changes at the same time.
const TRIES: usize = 5;

/// The cluster's objects, as far as they are ours.
#[derive(Debug)]
pub struct ClusterOutput {
    cluster: Cluster,
    /// The right to write, of the term in which `told` and the others were learned.
    permit: WritePermit,
    /// The messages that need nothing more, by kind, namespace and name.
    told: BTreeMap<Key, SentMessage>,
    /// The messages that could not be written.
    aside: DeferredMessages,
    /// Where the comparison of old messages goes on.
    compared: Option<Key>,
}

impl ClusterOutput {
    /// Nothing is read or written yet.
    pub fn new(cluster: Cluster) -> Self {
        Self {
            cluster,
            permit: WritePermit::none(),
            told: BTreeMap::new(),
            aside: DeferredMessages::default(),
            compared: None,
        }
    }

    /// The connection to the cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Marks our `WasmPlugins` as those of a new leader, and says what they block. What a leader before it has still on its
    /// way is refused from then on, because it is for another version of the object.
    ///
    /// A suspended object is not touched, not even for this.
    pub async fn take_over(
        &mut self,
        gateway: &Gateway,
        permit: &WritePermit,
        may_touch: bool,
    ) -> Result<Vec<InheritedBlock>, Refusal> {
        self.permit = permit.clone();
        // Others may have written since.
        self.told.clear();
        self.aside.clear();
        self.compared = None;
        let mut tries = TRIES;
        loop {
            let live = match self.plugins(gateway).await {
                // Where there is no such kind, nothing is blocked by it.
                Err(refusal) if refusal.kind == RefusalKind::NotServed => return Ok(Vec::new()),
                live => live?,
            };
            permit.rank_after(marks(&live)).await;
            match self.mark_all(&live, may_touch).await {
                Ok(()) => {
                    let ours = live.iter().filter(|object| is_ours(object)).map(|object| &object.data);
                    return Ok(wasm_plugin::blocked(ours, gateway));
                }
                // Somebody has changed one of them meanwhile.
                Err(refusal) if refusal.kind == RefusalKind::Conflict && tries > 0 => tries -= 1,
                Err(refusal) => return Err(refusal),
            }
        }
    }

    async fn mark_all(&self, plugins: &[Live], may_touch: bool) -> Result<(), Refusal> {
        let resource = resource(wasm_plugin::API_VERSION, wasm_plugin::KIND);
        let plural = plural(&resource);
        for plugin in plugins.iter().filter(|plugin| may_touch && is_ours(plugin) && !is_suspended(plugin)) {
            let namespace = plugin.namespace().unwrap_or_default();
            let api: Api<Live> = Api::namespaced_with(self.cluster.client(), &namespace, &resource);
            let mark = json!({"metadata": {
                "resourceVersion": plugin.metadata.resource_version,
                "annotations": {WRITER: self.permit.mark()},
            }});
            let name = plugin.name_any();
            let ask =
                Ask { verb: "patch", resource: &plural, namespace: Some(&namespace), name: Some(&name) };
            let by_us = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
            match self.cluster.write(&self.permit, ask, api.patch(&name, &by_us, &Patch::Merge(&mark))).await
            {
                // Deleted meanwhile: then it blocks nobody.
                Err(refusal) if refusal.kind == RefusalKind::NotFound => {}
                marked => drop(marked?),
            }
        }
        Ok(())
    }

    /// The Apps that our `WasmPlugins` block now. Read from the gateway's namespace only: tenants can't write there.
    pub async fn blocked(&self, gateway: &Gateway) -> Result<Vec<InheritedBlock>, Refusal> {
        match self.plugins(gateway).await {
            Ok(live) => {
                let ours = live.iter().filter(|object| is_ours(object)).map(|object| &object.data);
                Ok(wasm_plugin::blocked(ours, gateway))
            }
            // Where there is no such kind, nothing is blocked by it.
            Err(refusal) if refusal.kind == RefusalKind::NotServed => Ok(Vec::new()),
            Err(refusal) => Err(refusal),
        }
    }

    /// Makes the cluster like the plan, as far as `go_on` lets it. Problems stop nothing but what they are about.
    pub async fn write(
        &mut self,
        plan: &Plan,
        settings: &Settings,
        permit: &WritePermit,
        go_on: impl Fn() -> bool,
    ) -> Outcome {
        self.permit = permit.clone();
        let mut outcome = Outcome::default();
        let objects = match self.plugins(&settings.gateway).await {
            Ok(live) => {
                if let Some(mark) = marks(&live).find(|mark| permit.is_later(mark)) {
                    // Our own clock may say otherwise, because this replica may have been stopped for a while.
                    tracing::error!(
                        mark,
                        "a later leader has written the objects; this replica stops leading"
                    );
                    permit.give_up();
                    return outcome;
                }
                let existing = existing(&live, &settings.gateway);
                outcome.left_open = Some(LeftOpen::of(plan, settings, existing));
                let objects = resources::render(plan, settings, existing);
                self.reconcile_all(&objects, &live, &mut outcome).await;
                objects
            }
            Err(refusal) => {
                outcome.problems.push(refusal.text);
                resources::render(plan, settings, resources::Existing::default())
            }
        };
        let messages: Vec<&Object> =
            objects.iter().filter(|object| object.write_policy != WritePolicy::Reconcile).collect();
        self.send_all(&messages, &mut outcome, go_on).await;
        if outcome.problems.is_empty() && !outcome.is_unfinished {
            self.compare_again(&messages, &mut outcome).await;
        }
        outcome.deferred = self.aside.told(MAX_PROBLEMS_SHOWN);
        outcome
    }

    /// What `write` would do.
    pub async fn preview(&self, plan: &Plan, settings: &Settings) -> Result<Vec<Difference>, Refusal> {
        let live = match self.plugins(&settings.gateway).await {
            Err(refusal) if refusal.kind == RefusalKind::NotServed => Vec::new(),
            live => live?,
        };
        let mut differences = Vec::new();
        for object in resources::render(plan, settings, existing(&live, &settings.gateway)) {
            let read;
            let live = if object.write_policy == WritePolicy::Reconcile {
                live.iter().find(|live| live.name_any() == object.metadata.name)
            } else {
                read = self.read(&object).await?;
                read.as_ref()
            };
            differences.extend(difference(&object, live));
        }
        Ok(differences)
    }

    /// Every WasmPlugin of the gateway's namespace whose name could be ours.
    async fn plugins(&self, gateway: &Gateway) -> Result<Vec<Live>, Refusal> {
        let resource = resource(wasm_plugin::API_VERSION, wasm_plugin::KIND);
        let api: Api<Live> = Api::namespaced_with(self.cluster.client(), &gateway.namespace, &resource);
        let plural = plural(&resource);
        let ask = Ask { verb: "list", resource: &plural, namespace: Some(&gateway.namespace), name: None };
        let mut all = self.cluster.ask(ask, api.list(&ListParams::default())).await?.items;
        all.retain(|object| wasm_plugin::shard_index(&object.name_any(), gateway).is_some());
        Ok(all)
    }
}

/// The marks of the leaders that wrote our objects.
fn marks(live: &[Live]) -> impl Iterator<Item = &str> {
    live.iter()
        .filter(|live| is_ours(live))
        .filter_map(|live| live.annotations().get(WRITER).map(String::as_str))
}
