//! The persisted state as objects in the aggregator's own namespace.
//!
//! Only the leader writes incidents, and only if the object is still the one that it knows. Each write carries the
//! resourceVersion of the last one, and the leader's mark.

mod events;
#[cfg(test)]
pub(crate) mod fake;
mod known;
pub(super) mod objects;
mod taking_over;
#[cfg(test)]
mod tests;
mod watching;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::DynamicObject;
use kube::{Api, ResourceExt};
use procscan_core::decision::Decision;
use procscan_core::state::Incident;
use serde_json::Value;
use tokio::time::Instant;

use self::events::{Events, QueuedEvent};
use self::objects::{api_resource, body, plural, read_incident};
use self::taking_over::Read;
use super::crd::Resource;
use super::persisted_state::ObjectVersion;
use super::{Loaded, PersistedState, StateError};
use crate::kubernetes::WritePermit;
use crate::kubernetes::{Ask, Cluster, Refusal, RefusalKind};

pub(crate) use self::known::Changed;
use self::known::{AllKnown, Known};
pub(crate) use self::watching::{Relist, Watching};

/// The field manager of our writes of the persisted state.
pub(super) const FIELD_MANAGER: &str = "procscan-aggregator";
/// How many incidents are written at the same time.
const CONCURRENCY: usize = 32;
/// How many objects one answer of a list holds.
const PAGE_SIZE: u32 = 500;
/// How often a write is tried again after an operator has changed the object meanwhile.
const MAX_TRIES: usize = 5;

/// The objects of the aggregator's own namespace.
#[derive(Clone, Debug)]
pub struct Objects {
    pub(super) cluster: Cluster,
    pub(super) namespace: String,
}

/// The writing side of [`Objects`].
#[derive(Debug)]
pub(crate) struct ClusterStore {
    objects: Objects,
    /// The incidents as we last wrote or read them.
    known: AllKnown,
    events: Events,
    /// Asks the task that watches the objects to list them anew; `None` where no task watches them.
    relist: Option<Relist>,
}

impl ClusterStore {
    /// A store that has read and written nothing yet.
    pub(crate) fn new(objects: Objects, relist: Option<Relist>) -> Self {
        let events = Events::start(objects.clone());
        Self { objects, known: AllKnown::default(), events, relist }
    }

    /// See [`Relist::ask`].
    pub(crate) fn relist(&self, with_incidents: bool) -> u64 {
        self.relist.as_ref().map_or(0, |relist| relist.ask(with_incidents))
    }

    /// The incidents that we know in a later version than the watch shows.
    pub(crate) fn unseen(&self, state: &PersistedState) -> BTreeMap<String, ObjectVersion> {
        let all = self.known.all.iter().filter(|_| self.relist.is_some());
        let unseen = all.filter(|(name, known)| !known.version.is_in(state, name));
        unseen.map(|(name, known)| (name.clone(), known.version)).collect()
    }

    /// Reads every incident. `seen` is the state that the watch shows.
    ///
    /// No object is marked as ours, because the first write of each carries the resourceVersion that was read. Until
    /// then a late write of the previous leader may succeed. Nothing follows from it any more, and it is overwritten
    /// like any other change of a status.
    ///
    /// Incidents without decisions are left out. The program that made them ended in between.
    pub(crate) async fn load(
        &mut self,
        permit: &WritePermit,
        seen: &PersistedState,
    ) -> Result<Loaded, StateError> {
        let Read { loaded, known, marks } = self.objects.take_over(seen).await?;
        permit.rank_after(marks.iter().map(String::as_str)).await;
        self.known = known;
        Ok(loaded)
    }

    /// Writes incidents. Returns the names of those that can't be written, with the errors.
    pub(crate) async fn save(
        &mut self,
        permit: &WritePermit,
        incidents: Vec<Incident>,
    ) -> Vec<(String, StateError)> {
        let put = |incident: Incident| {
            let (objects, permit) = (self.objects.clone(), permit.clone());
            let known = self.known.all.get(&incident.name).map(|known| known.resource_version.to_string());
            async move {
                let written = objects.put(&incident, known, &permit).await;
                (incident.name, written)
            }
        };
        let results: Vec<(String, Result<DynamicObject, StateError>)> =
            stream::iter(incidents).map(put).buffer_unordered(CONCURRENCY).collect().await;
        let mut failed = Vec::new();
        for (name, result) in results {
            match result {
                Ok(live) => self.known.written(name, Known::of(&live), &self.objects.namespace),
                Err(error) => {
                    // The write may have been carried out.
                    if let Some(known) = self.known.all.get_mut(&name) {
                        known.observed = None;
                    }
                    failed.push((name, error));
                }
            }
        }
        failed
    }

    /// Writes decisions as Events of their Incidents, as far as the queue has room for them.
    pub(crate) fn announce(&self, permit: &WritePermit, decisions: &[(String, Decision)]) {
        let mut lost = 0;
        for (name, decision) in decisions {
            let Some(known) = self.known.all.get(name) else { continue };
            let event = QueuedEvent {
                incident: (name.clone(), known.uid.to_string()),
                kind: decision.kind,
                at: decision.at,
                note: format!("{}: {}", decision.actor, decision.reason),
                permit: permit.clone(),
            };
            lost += usize::from(!self.events.enqueue(event));
        }
        if lost > 0 {
            tracing::warn!(
                lost,
                "too many decisions at once for Events; they are persisted in their Incidents"
            );
        }
    }

    /// Removes the commands about an incident after they have been carried out. Our last answered write must say so,
    /// and only exactly those commands are removed. Later ones stay for the next time.
    pub(crate) async fn remove_commands(
        &mut self,
        permit: &WritePermit,
        name: &str,
    ) -> Result<(), StateError> {
        let Some(patch) = self.known.all.get(name).and_then(Known::removal_patch) else { return Ok(()) };
        let place = || format!("Incident {name}");
        let removal = serde_json::from_value(patch)
            .map(Patch::<()>::Json)
            .map_err(|error| StateError::Unwritable(place(), error.to_string()))?;
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let api = self.objects.api(Resource::Incident);
        let ask = self.objects.ask("patch", "incidents.procscan.sealos.io").of(name);
        let request = api.patch(name, &params, &removal);
        match self.objects.cluster.write(permit, ask, request).await {
            Ok(live) => drop(self.known.all.insert(name.to_owned(), Known::of(&live))),
            // A part has changed, so one of the tests in the patch failed.
            Err(refusal)
                if matches!(
                    refusal.kind,
                    RefusalKind::Invalid | RefusalKind::Conflict | RefusalKind::NotFound
                ) => {}
            Err(refusal) => return Err(refusal.into()),
        }
        Ok(())
    }

    /// The incidents whose objects differ from our last writes.
    pub(crate) fn changed(&mut self, state: &PersistedState) -> Vec<Changed> {
        self.known.changed(state)
    }

    /// The API server's time, if it is known.
    pub(crate) fn server_time(&self) -> Option<Timestamp> {
        self.objects.cluster.server_time()
    }

    /// When to check for changed objects again, even if the watch shows no change.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.known.next_look()
    }

    /// Accepts an incident's object as it is.
    pub(crate) fn accept(&mut self, state: &PersistedState, name: &str) {
        if let Some(incident) = state.incidents.get(name) {
            self.known.accept(name, incident.version, incident.generation);
        }
    }

    /// Removes incidents whose retention is over.
    pub(crate) async fn remove(&mut self, permit: &WritePermit, names: &[String]) -> Result<(), StateError> {
        for name in names {
            let preconditions = self.known.all.remove(name).map(|known| Preconditions {
                uid: None,
                resource_version: Some(known.resource_version.into()),
            });
            let params = DeleteParams { preconditions, ..DeleteParams::default() };
            let api = self.objects.api(Resource::Incident);
            let ask = self.objects.ask("delete", "incidents.procscan.sealos.io").of(name);
            match self.objects.cluster.write(permit, ask, api.delete(name, &params)).await {
                Err(refusal) if !matches!(refusal.kind, RefusalKind::NotFound | RefusalKind::Conflict) => {
                    return Err(refusal.into());
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Objects {
    /// The objects of `namespace`.
    pub(crate) fn new(cluster: Cluster, namespace: String) -> Self {
        Self { cluster, namespace }
    }

    /// The namespace of the objects.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Reads the whole current state.
    pub(crate) async fn read(&self) -> Result<PersistedState, StateError> {
        let mut all = PersistedState { is_complete: true, ..PersistedState::default() };
        for resource in Resource::ALL {
            for live in self.list(resource).await? {
                let name = live.name_any();
                match resource {
                    Resource::Incident => match read_incident(&live) {
                        Ok(incident) => drop(all.incidents.insert(name.into(), Arc::new(incident))),
                        Err(error) => drop(all.unread.incidents.insert(name.into(), error)),
                    },
                    Resource::Exemption => match objects::exemption(&live) {
                        Ok(spec) => drop(all.exemptions.insert(name, spec)),
                        Err(unread) => drop(all.unread.exemptions.insert(name, unread)),
                    },
                    Resource::Enforcement => {
                        let unreadable =
                            |error| StateError::Unreadable(format!("{} {name}", resource.kind()), error);
                        all.enforcement = objects::part(&live, "spec").map_err(unreadable)?;
                    }
                }
            }
        }
        Ok(all)
    }

    pub(super) fn api(&self, resource: Resource) -> Api<DynamicObject> {
        Api::namespaced_with(self.cluster.client(), &self.namespace, &api_resource(resource))
    }

    pub(super) fn ask<'a>(&'a self, verb: &'static str, resource: &'a str) -> Ask<'a> {
        Ask { verb, resource, namespace: Some(&self.namespace), name: None }
    }

    async fn list(&self, resource: Resource) -> Result<Vec<DynamicObject>, Refusal> {
        let mut all = Vec::new();
        self.pages(resource, PAGE_SIZE, |live| all.push(live)).await?;
        Ok(all)
    }

    /// Lists all objects page by page, and drops each after `take_in` has read it, because many are large.
    async fn pages(
        &self,
        resource: Resource,
        page: u32,
        mut take_in: impl FnMut(DynamicObject),
    ) -> Result<(), Refusal> {
        let (api, plural) = (self.api(resource), plural(resource));
        let mut page = ListParams::default().limit(page);
        loop {
            let found = self.cluster.ask(self.ask("list", &plural), api.list(&page)).await?;
            found.items.into_iter().for_each(&mut take_in);
            match found.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(()),
            }
        }
    }

    pub(super) async fn get(&self, resource: Resource, name: &str) -> Result<DynamicObject, Refusal> {
        let plural = plural(resource);
        self.cluster.ask(self.ask("get", &plural).of(name), self.api(resource).get(name)).await
    }

    /// Writes an incident over the version that is `known`, or makes it. Returns it as it is now.
    async fn put(
        &self,
        incident: &Incident,
        known: Option<String>,
        permit: &WritePermit,
    ) -> Result<DynamicObject, StateError> {
        let mut version = known;
        for _ in 0..MAX_TRIES {
            let over = match version.take() {
                Some(version) => version,
                None => match self.create(incident, permit).await {
                    Ok(live) => live.resource_version().unwrap_or_default(),
                    Err(refusal) if refusal.kind == RefusalKind::Conflict => {
                        self.version_of(incident, permit).await?
                    }
                    Err(refusal) => return Err(refusal.into()),
                },
            };
            match self.write_status(incident, over, permit).await {
                Ok(live) => return Ok(live),
                // An operator has given a command, or another leader has written.
                Err(refusal) if refusal.kind == RefusalKind::Conflict => {
                    version = Some(self.version_of(incident, permit).await?);
                }
                // Another program has deleted it, but the incident still exists.
                Err(refusal) if refusal.kind == RefusalKind::NotFound => {}
                Err(refusal) => return Err(refusal.into()),
            }
        }
        Err(StateError::Contended(incident.name.clone()))
    }

    /// The resourceVersion to write over, unless a later leader has written the status. In that case this replica
    /// must not write any more, whatever its own clock shows. A status that was edited, wiped or restored is
    /// overwritten.
    async fn version_of(&self, incident: &Incident, permit: &WritePermit) -> Result<String, StateError> {
        let live = self.get(Resource::Incident, &incident.name).await?;
        let writer = live.data.pointer("/status/writer").and_then(Value::as_str);
        if let Some(writer) = writer.filter(|writer| permit.is_later(writer)) {
            permit.give_up();
            return Err(StateError::Superseded(incident.name.clone(), writer.to_owned()));
        }
        Ok(live.resource_version().unwrap_or_default())
    }

    async fn create(&self, incident: &Incident, permit: &WritePermit) -> Result<DynamicObject, Refusal> {
        let object = body(&self.namespace, incident, None, None);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let ask = self.ask("create", "incidents.procscan.sealos.io");
        self.cluster.write(permit, ask, self.api(Resource::Incident).create(&params, &object)).await
    }

    async fn write_status(
        &self,
        incident: &Incident,
        over: String,
        permit: &WritePermit,
    ) -> Result<DynamicObject, Refusal> {
        let object = body(&self.namespace, incident, Some(over), Some(permit.mark()));
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let ask = self.ask("update", "incidents.procscan.sealos.io/status").of(&incident.name);
        let api = self.api(Resource::Incident);
        self.cluster.write(permit, ask, api.replace_status(&incident.name, &params, &object)).await
    }
}
