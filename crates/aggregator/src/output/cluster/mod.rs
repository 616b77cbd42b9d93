//! The objects in the cluster, by server-side apply.
//!
//! Each object is read before it is written, written only if it differs, and written with the resourceVersion that was read:
//! whoever was faster wins, and the next pass looks again. The gateway's objects are kept exactly as they should be. Tenants'
//! Notifications are messages: written when they are news, and the reader may mark or delete them.

mod aside;
mod emergency;
mod live;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::discovery::ApiResource;
use kube::{Api, ResourceExt};
use procscan_core::plan::{Notice, Plan};
use procscan_core::policy::Inherited;
use procscan_core::resources::notification::{self, IS_READ};
use procscan_core::resources::wasm_plugin::{self, Gateway};
use procscan_core::resources::{self, Object, Settings, Upkeep};
use serde_json::{Value, json};

use self::aside::{Aside, Unanswered};
pub use self::emergency::LeftBehind;
use self::live::{
    Key, Live, closes, difference, existing, has_same_words, hash, hash_of, is_ours, is_suspended, key,
    left_alone, named, plural, resource, with_labels_of, with_services,
};
use super::difference::{Difference, surplus};
use super::{LeftOpen, Outcome, TOLD};
use crate::kubernetes::{Ask, Cluster, Refusal, RefusalKind};
use crate::leader::Pen;

/// Who we are to the API server.
pub const FIELD_MANAGER: &str = "procscan-aggregator";
/// The annotation by which an operator keeps us from writing an object.
pub const SUSPEND: &str = "procscan-aggregator/suspend";
/// The annotation that says which leader's the object is.
pub const WRITER: &str = "procscan-aggregator/writer";
/// How often an object is marked again that somebody changes at the same time.
const TRIES: usize = 5;
/// How many messages that were written before are compared again in one pass: drift in them is no emergency.
const COMPARED_AGAIN: usize = 20;

/// The cluster's objects, as far as they are ours.
#[derive(Debug)]
pub struct ClusterOutput {
    cluster: Cluster,
    /// The right to write, of the term in which `told` and the others were learned.
    pen: Pen,
    /// The messages that need nothing more, by kind, namespace and name.
    told: BTreeMap<Key, Told>,
    /// The messages that could not be written.
    aside: Aside,
    /// Where the comparison of old messages goes on.
    compared: Option<Key>,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    /// Of the object as it was wanted.
    hash: u64,
    /// Of the time at which it was news.
    news: u64,
    /// It is there as we wrote it, so drift is put right.
    is_ours: bool,
}

impl ClusterOutput {
    /// Nothing is read or written yet.
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster, pen: Pen::none(), told: BTreeMap::new(), aside: Aside::default(), compared: None }
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
        pen: &Pen,
        may_touch: bool,
    ) -> Result<Vec<Inherited>, Refusal> {
        self.pen = pen.clone();
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
            pen.rank_after(marks(&live)).await;
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
                "annotations": {WRITER: self.pen.mark()},
            }});
            let ask = Ask { verb: "patch", resource: &plural, namespace: Some(&namespace) };
            let by_us = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
            let (name, mark) = (plugin.name_any(), Patch::Merge(&mark));
            match self.cluster.write(&self.pen, ask, api.patch(&name, &by_us, &mark)).await {
                // Deleted meanwhile: then it blocks nobody.
                Err(refusal) if refusal.kind == RefusalKind::NotFound => {}
                marked => drop(marked?),
            }
        }
        Ok(())
    }

    /// Whether a notice has been written, or there is nobody to write it to.
    pub fn has_told(&self, notice: &Notice) -> bool {
        let name = notification::name(&notice.app);
        let key = (notification::KIND, notice.app.namespace.to_string(), name);
        self.told.get(&key).is_some_and(|told| told.news == hash_of(&notice.told.to_string()))
    }

    /// The Apps that our `WasmPlugins` block now. Read from the gateway's namespace only: tenants can't write there.
    pub async fn blocked(&self, gateway: &Gateway) -> Result<Vec<Inherited>, Refusal> {
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
        pen: &Pen,
        go_on: impl Fn() -> bool,
    ) -> Outcome {
        self.pen = pen.clone();
        let mut outcome = Outcome::default();
        let objects = match self.plugins(&settings.gateway).await {
            Ok(live) => {
                if let Some(mark) = marks(&live).find(|mark| pen.is_later(mark)) {
                    // Our own clock may say otherwise, because this replica may have been stopped for a while.
                    tracing::error!(
                        mark,
                        "a later leader has written the objects; this replica stops leading"
                    );
                    pen.give_up();
                    return outcome;
                }
                let existing = existing(&live, &settings.gateway);
                outcome.left_open = Some(LeftOpen::of(plan, settings, existing));
                let objects = resources::render(plan, settings, existing);
                self.keep_all(&objects, &live, &mut outcome).await;
                objects
            }
            Err(refusal) => {
                outcome.problems.push(refusal.text);
                resources::render(plan, settings, resources::Existing::default())
            }
        };
        let messages: Vec<&Object> = objects.iter().filter(|object| object.upkeep != Upkeep::Kept).collect();
        self.tell_all(&messages, &mut outcome, go_on).await;
        if outcome.problems.is_empty() && !outcome.is_unfinished {
            self.compare_again(&messages, &mut outcome).await;
        }
        outcome.aside = self.aside.told(TOLD);
        outcome
    }

    /// Writes the objects that are kept, the latest shard first: with one shard more, Apps move into the new one. An App that moves is
    /// listed in both for a moment, never in none: what could not be closed in one shard is not opened in another.
    async fn keep_all(&self, objects: &[Object], live: &[Live], outcome: &mut Outcome) {
        // Whoever opens the gateway by hand wants no further object to close it.
        let is_open = live.iter().any(|live| is_ours(live) && is_suspended(live));
        let mut unclosed: BTreeSet<&str> = BTreeSet::new();
        for object in objects.iter().rev().filter(|object| object.upkeep == Upkeep::Kept) {
            let is_plugin = object.kind == wasm_plugin::KIND;
            let listed = live.iter().find(|live| is_plugin && live.name_any() == object.metadata.name);
            let wanted = closes(&object.spec);
            let is = listed.and_then(|live| live.data.get("spec")).map(closes).unwrap_or_default();
            // What moves away stays until it is closed where it moves to.
            let staying: Vec<&str> =
                is.difference(&wanted).copied().filter(|host| unclosed.contains(host)).collect();
            let whole;
            let mut object = object;
            if !staying.is_empty() {
                whole = with_services(object, &staying);
                let (name, count) = (named(object), staying.len());
                outcome.problems.push(format!(
                    "{name} lists {count} Services more until they can be closed in another one"
                ));
                object = &whole;
            }
            let before = (outcome.problems.len(), outcome.suspended.len());
            let kept = match listed {
                None if is_plugin && is_open => {
                    outcome.suspended.push(named(object));
                    Ok(false)
                }
                Some(_) => self.keep(object, listed, outcome).await,
                None if is_plugin => self.keep(object, None, outcome).await,
                None => match self.read(object).await {
                    Ok(live) => self.keep(object, live.as_ref(), outcome).await,
                    Err(refusal) => Err(refusal),
                },
            };
            outcome.note(kept);
            if before != (outcome.problems.len(), outcome.suspended.len()) {
                unclosed.extend(wanted.difference(&is));
            }
        }
    }

    async fn tell_all(&mut self, messages: &[&Object], outcome: &mut Outcome, go_on: impl Fn() -> bool) {
        let wanted: BTreeSet<Key> = messages.iter().map(|object| key(object)).collect();
        self.told.retain(|key, _| wanted.contains(key));
        self.aside.retain(&wanted);
        let is_closed = outcome.problems.is_empty() && outcome.suspended.is_empty();
        let mut unanswered = Unanswered::default();
        for object in messages {
            let key = key(object);
            // Nobody is told of a block that is not there.
            if !is_closed && matches!(object.upkeep, Upkeep::News { of_block: true } | Upkeep::Words) {
                continue;
            }
            if self.told.get(&key).is_some_and(|told| told.hash == hash(object))
                || self.aside.waits(&key)
                || unanswered.has(&key.1)
            {
                continue;
            }
            match self.tell(object).await {
                Ok(written) => {
                    outcome.written += usize::from(written);
                    self.aside.is_done(&key);
                    // A message that its tenant may have deleted is not read, so it proves no answer.
                    if object.upkeep != Upkeep::Known {
                        unanswered.is_interrupted();
                    }
                    if !go_on() {
                        // Something else has been decided meanwhile: the gateway goes before the other messages.
                        outcome.is_unfinished = true;
                        return;
                    }
                }
                Err(refusal) if refusal.kind == RefusalKind::NotLeading => return,
                Err(refusal) if refusal.kind == RefusalKind::NotServed => {
                    // Without the CRD no message can be written.
                    outcome.problems.push(refusal.text);
                    return;
                }
                Err(refusal) if aside::is_no_answer(&refusal) => {
                    let text = refusal.text.clone();
                    if unanswered.put(key, refusal, &mut self.aside) {
                        outcome.problems.push(text);
                        return;
                    }
                }
                Err(refusal) => {
                    unanswered.is_interrupted();
                    self.aside.put(key, refusal);
                }
            }
        }
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
            let live = if object.upkeep == Upkeep::Kept {
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
        let ask = Ask { verb: "list", resource: &plural, namespace: Some(&gateway.namespace) };
        let mut all = self.cluster.ask(ask, api.list(&ListParams::default())).await?.items;
        all.retain(|object| wasm_plugin::shard_index(&object.name_any(), gateway).is_some());
        Ok(all)
    }

    /// Keeps an object exactly as it should be. Whether something was written.
    async fn keep(
        &self,
        object: &Object,
        live: Option<&Live>,
        outcome: &mut Outcome,
    ) -> Result<bool, Refusal> {
        let Some(live) = live else {
            // Made empty first: nothing in the cluster can tell the making of a late leader from that of the present one.
            let empty = wasm_plugin::empty(object);
            let made = self.create(&empty).await?;
            if empty.spec != object.spec {
                self.apply(object, made.metadata.resource_version).await?;
            }
            return Ok(true);
        };
        if is_ours(live) && is_suspended(live) {
            outcome.suspended.push(named(object));
            return Ok(false);
        }
        if let Some(why) = left_alone(live) {
            outcome.problems.push(format!("{} {why}", named(object)));
            return Ok(false);
        }
        if difference(object, Some(live)).is_none() {
            return Ok(false);
        }
        let mut version = live.metadata.resource_version.clone();
        let should = json!({ "spec": object.spec });
        let is = json!({ "spec": live.data.get("spec").cloned().unwrap_or_default() });
        // Apply leaves alone what others have added; but one field too many can switch the rules off.
        if let Some(mut nulls) = surplus(&is, &should) {
            if let Some(nulls) = nulls.as_object_mut() {
                nulls.insert("metadata".to_owned(), json!({ "resourceVersion": version }));
            }
            let patched = self.patch(object, &PatchParams::default(), &Patch::Merge(&nulls)).await?;
            version = patched.metadata.resource_version;
        }
        self.apply(object, version).await?;
        Ok(true)
    }

    /// Writes a message if it is news. Whether something was written.
    async fn tell(&mut self, object: &Object) -> Result<bool, Refusal> {
        let told = Told::of(object);
        let is_news = self.told.get(&key(object)).is_none_or(|before| before.news != told.news);
        if object.upkeep == Upkeep::Known {
            // Its reader may have deleted it since, and then it stays deleted.
            self.told.insert(key(object), Told { is_ours: false, ..told });
            return Ok(false);
        }
        let live = match self.read(object).await {
            // In a namespace that is going there is nobody left to tell.
            Err(refusal) if refusal.kind == RefusalKind::NoNamespace => {
                self.told.insert(key(object), Told { is_ours: false, ..told });
                return Ok(false);
            }
            live => live?,
        };
        let (written, is_ours) = match (object.upkeep, live) {
            (Upkeep::Retired, None) => (Ok(false), false),
            // What it says is no longer so, and it stays where it is.
            (Upkeep::Retired, Some(live)) if is_summary(object) && !has_same_words(object, &live) => {
                (self.apply(object, live.metadata.resource_version).await.map(|_| true), false)
            }
            (Upkeep::Retired, Some(live)) => (self.mark_read(object, &live).await, false),
            (Upkeep::Words, Some(live)) if has_same_words(object, &live) => (Ok(false), false),
            // Told before the start, or by another replica: what it says may have other words now, but it is no news.
            (Upkeep::News { .. }, Some(live)) if is_news && is_told(object, &live) => {
                let is_same = live.data.get("spec") == Some(&object.spec);
                let same = with_labels_of(&live, object);
                let version = live.metadata.resource_version;
                (if is_same { Ok(false) } else { self.apply(&same, version).await.map(|_| true) }, true)
            }
            // Its reader has deleted it, and nothing new has happened.
            (_, None) if !is_news => (Ok(false), false),
            (_, Some(live)) if !is_news => (
                self.apply(&with_labels_of(&live, object), live.metadata.resource_version)
                    .await
                    .map(|_| true),
                true,
            ),
            (_, None) => (self.create(object).await.map(|_| true), true),
            (_, Some(live)) => (self.apply(object, live.metadata.resource_version).await.map(|_| true), true),
        };
        match written {
            Ok(written) => {
                self.told.insert(key(object), Told { is_ours, ..told });
                Ok(written)
            }
            Err(refusal) if refusal.kind == RefusalKind::NoNamespace => {
                self.told.insert(key(object), Told { is_ours: false, ..told });
                Ok(false)
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Its cause is over: there is nothing left to read.
    async fn mark_read(&self, object: &Object, live: &Live) -> Result<bool, Refusal> {
        if live.labels().get(IS_READ).is_some_and(|read| read == "true") {
            return Ok(false);
        }
        let read = json!({
            "metadata": {"labels": {IS_READ: "true"}, "resourceVersion": live.metadata.resource_version},
        });
        let by_us = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        match self.patch(object, &by_us, &Patch::Merge(&read)).await {
            // Deleted meanwhile: that is as good.
            Err(refusal) if refusal.kind == RefusalKind::NotFound => Ok(false),
            patched => patched.map(|_| true),
        }
    }

    /// Compares a few of the messages that were written before, in turn, and puts their texts right.
    async fn compare_again(&mut self, messages: &[&Object], outcome: &mut Outcome) {
        let mut ours: Vec<&&Object> = messages
            .iter()
            .filter(|object| self.told.get(&key(object)).is_some_and(|told| told.is_ours))
            .collect();
        ours.sort_by_key(|object| key(object));
        let start =
            ours.partition_point(|object| self.compared.as_ref().is_some_and(|last| key(object) <= *last));
        let turn: Vec<&&Object> =
            ours.iter().cycle().skip(start).take(COMPARED_AGAIN.min(ours.len())).copied().collect();
        for object in turn {
            self.compared = Some(key(object));
            if self.aside.waits(&key(object)) {
                continue;
            }
            match self.compare(object).await {
                Ok(written) => {
                    outcome.written += usize::from(written);
                    self.aside.is_done(&key(object));
                }
                Err(refusal) if refusal.kind == RefusalKind::NotLeading || aside::is_no_answer(&refusal) => {
                    outcome.problems.push(refusal.text);
                    return;
                }
                Err(refusal) => self.aside.put(key(object), refusal),
            }
        }
    }

    /// Restores what a message says if it was changed. Returns whether something was written.
    async fn compare(&mut self, object: &Object) -> Result<bool, Refusal> {
        let Some(live) = self.read(object).await? else {
            // Its tenant has deleted it.
            self.told.insert(key(object), Told { is_ours: false, ..Told::of(object) });
            return Ok(false);
        };
        if live.data.get("spec") == Some(&object.spec) {
            return Ok(false);
        }
        self.apply(&with_labels_of(&live, object), live.metadata.resource_version.clone()).await?;
        Ok(true)
    }

    async fn read(&self, object: &Object) -> Result<Option<Live>, Refusal> {
        let resource = resource(object.api_version, object.kind);
        let plural = plural(&resource);
        let ask = Ask { verb: "get", resource: &plural, namespace: Some(&object.metadata.namespace) };
        match self.cluster.ask_in_turn(ask, self.api(object, &resource).get(&object.metadata.name)).await {
            Ok(live) => Ok(Some(live)),
            Err(refusal) if refusal.kind == RefusalKind::NotFound => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    /// Makes an object that is not there. If it is there by now, somebody was faster: the next pass looks again.
    async fn create(&self, object: &Object) -> Result<Live, Refusal> {
        let resource = resource(object.api_version, object.kind);
        let plural = plural(&resource);
        let ask = Ask { verb: "create", resource: &plural, namespace: Some(&object.metadata.namespace) };
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let body: Live = serde_json::to_value(object).and_then(serde_json::from_value).map_err(|error| {
            Refusal { kind: RefusalKind::Invalid, subject: named(object), text: error.to_string() }
        })?;
        self.cluster
            .write(&self.pen, ask, self.api(object, &resource).create(&params, &body))
            .await
            .map_err(|refusal| Refusal { text: format!("{}: {}", named(object), refusal.text), ..refusal })
    }

    async fn apply(&self, object: &Object, version: Option<String>) -> Result<Live, Refusal> {
        let mut body = serde_json::to_value(object).unwrap_or_default();
        if let (Some(version), Some(metadata)) =
            (version, body.pointer_mut("/metadata").and_then(Value::as_object_mut))
        {
            metadata.insert("resourceVersion".to_owned(), version.into());
        }
        let params = PatchParams::apply(FIELD_MANAGER).force().validation_strict();
        self.patch(object, &params, &Patch::Apply(&body)).await
    }

    async fn patch(
        &self,
        object: &Object,
        params: &PatchParams,
        patch: &Patch<&Value>,
    ) -> Result<Live, Refusal> {
        let resource = resource(object.api_version, object.kind);
        let plural = plural(&resource);
        let ask = Ask { verb: "patch", resource: &plural, namespace: Some(&object.metadata.namespace) };
        let api = self.api(object, &resource);
        self.cluster
            .write(&self.pen, ask, api.patch(&object.metadata.name, params, patch))
            .await
            .map_err(|refusal| Refusal { text: format!("{}: {}", named(object), refusal.text), ..refusal })
    }

    fn api(&self, object: &Object, resource: &ApiResource) -> Api<Live> {
        Api::namespaced_with(self.cluster.client(), &object.metadata.namespace, resource)
    }
}

/// The marks of the leaders that wrote our objects.
fn marks(live: &[Live]) -> impl Iterator<Item = &str> {
    live.iter()
        .filter(|live| is_ours(live))
        .filter_map(|live| live.annotations().get(WRITER).map(String::as_str))
}

/// Whether what is there has told the same news.
fn is_told(object: &Object, live: &Live) -> bool {
    let news = object.metadata.annotations.get(notification::INCIDENT).and_then(Value::as_str);
    news.is_some() && live.annotations().get(notification::INCIDENT).map(String::as_str) == news
}

fn is_summary(object: &Object) -> bool {
    object.metadata.name == notification::SUMMARY_NAME
}

impl Told {
    /// As we are about to write it.
    fn of(object: &Object) -> Self {
        let news = object.metadata.annotations.get(notification::INCIDENT);
        Self {
            hash: hash(object),
            news: hash_of(news.and_then(Value::as_str).unwrap_or_default()),
            is_ours: true,
        }
    }
}
