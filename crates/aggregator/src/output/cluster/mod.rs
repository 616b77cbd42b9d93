//! The objects in the cluster, by server-side apply.
//!
//! The output reads each object before it writes it, writes it only if it differs, and sends the resourceVersion that it has read.
//! If another program was faster, the API server refuses the write, and the next pass reads again. Objects that block are
//! reconciled exactly. A message to a tenant is sent once, and its reader may mark or delete it. What is particular to a kind of object is
//! in [`procscan_core::resources`].

mod deferred;
mod emergency;
mod listing;
mod live;
mod messages;
mod prune;
mod reconcile;
mod requests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use kube::Api;
use kube::api::{Patch, PatchParams};
use procscan_core::plan::Plan;
use procscan_core::policy::InheritedBlock;
use procscan_core::resources::{self, Object, Settings, WritePolicy};
use serde_json::json;

use self::deferred::DeferredMessages;
pub(crate) use self::emergency::LeftBehind;
pub use self::emergency::{Opened, OpenedObject};
use self::listing::{Listed, blocked, existing, marks, served};
use self::live::{Key, Live, difference, found, is_suspended, place, resource};
use self::messages::{Closed, SentMessage};
use self::prune::{TakenOver, Wanted, surplus_objects};
use super::difference::Difference;
use super::{MAX_PROBLEMS_SHOWN, Outcome};
use crate::kubernetes::WritePermit;
use crate::kubernetes::{Ask, Cluster, Refusal, RefusalKind};

/// The field manager of all our writes.
pub(crate) const FIELD_MANAGER: &str = "procscan-aggregator";
/// The annotation by which an operator suspends an object: the output does not write it.
pub const SUSPEND: &str = "procscan-aggregator/suspend";
/// The annotation that says which leader's the object is.
pub const WRITER: &str = "procscan-aggregator/writer";
/// How often an object is marked again that another program changes at the same time.
const TRIES: usize = 5;

/// The cluster's objects, as far as they are ours.
#[derive(Debug)]
pub struct ClusterOutput {
    cluster: Cluster,
    /// The right to write, of the term in which `sent` and the other fields were filled.
    permit: WritePermit,
    /// The term of the last take-over. The output deletes objects only in this term.
    taken_over: Option<TakenOver>,
    /// The messages that need nothing more, by kind, namespace and name.
    sent: BTreeMap<Key, SentMessage>,
    /// The messages that could not be written.
    deferred: DeferredMessages,
    /// Where the comparison of old messages goes on.
    compared: Option<Key>,
}

impl ClusterOutput {
    /// Nothing is read or written yet.
    pub fn new(cluster: Cluster) -> Self {
        Self {
            cluster,
            permit: WritePermit::none(),
            taken_over: None,
            sent: BTreeMap::new(),
            deferred: DeferredMessages::default(),
            compared: None,
        }
    }

    /// The connection to the cluster.
    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Marks, for a new leader, our objects that block Apps, and returns what they block. The mark changes the version, so the API
    /// server refuses late writes of earlier leaders.
    ///
    /// A suspended object is not marked.
    pub async fn take_over(
        &mut self,
        settings: &Settings,
        permit: &WritePermit,
        may_touch: bool,
    ) -> Result<Vec<InheritedBlock>, Refusal> {
        self.permit = permit.clone();
        // Other replicas may have written since.
        self.sent.clear();
        self.deferred.clear();
        self.compared = None;
        let mut marked = BTreeSet::new();
        let mut tries = TRIES;
        loop {
            let listed = served(self.list_all(settings).await)?;
            // Until the policy task uses the answer, the output may still write the former plan of this term.
            let term = self.taken_over.as_mut().filter(|term| term.is_of(permit));
            if term.is_some_and(|term| ends_term(term, &listed, permit)) {
                let ask = Ask { verb: "take over", resource: "objects", namespace: None, name: None };
                return Err(Refusal::not_leading(&ask));
            }
            permit.rank_after(marks(&listed, settings).into_iter()).await;
            match self.mark_all(&listed, may_touch, tries == 0, &mut marked).await {
                Ok(()) => {
                    self.taken_over = Some(TakenOver::new(permit.clone(), &listed));
                    return Ok(blocked(&listed, settings));
                }
                // Another program has changed one of them meanwhile.
                Err(refusal) if refusal.kind == RefusalKind::Conflict && tries > 0 => tries -= 1,
                Err(refusal) => return Err(refusal),
            }
        }
    }

    /// Marks each object once; those in `marked` have been marked in this term.
    ///
    /// An object in a tenant's namespace that can't be marked is skipped, because a tenant must not stop the take-over. The leader
    /// skips it at once if the API server refuses it. If another program changes it each time, the leader skips it after the last
    /// try.
    async fn mark_all(
        &self,
        listed: &[Listed],
        may_touch: bool,
        is_last_try: bool,
        marked: &mut BTreeSet<Key>,
    ) -> Result<(), Refusal> {
        let ours = listed.iter().flat_map(|listed| listed.ours().map(move |live| (listed, live)));
        let to_mark: Vec<_> = ours.filter(|(_, live)| may_touch && !is_suspended(live)).collect();
        for (Listed { kind, is_whole, .. }, live) in to_mark {
            let (kind, is_of_tenant) = (*kind, !is_whole);
            let (namespace, name) = place(live);
            let key = (kind.name(), namespace, name);
            if marked.contains(&key) {
                continue;
            }
            let (_, namespace, name) = &key;
            let api: Api<Live> = Api::namespaced_with(self.cluster.client(), namespace, &resource(kind));
            let mark = json!({"metadata": {
                "resourceVersion": live.metadata.resource_version,
                "annotations": {WRITER: self.permit.mark()},
            }});
            let plural = kind.resource();
            let ask = Ask { verb: "patch", resource: &plural, namespace: Some(namespace), name: Some(name) };
            let by_us = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
            match self.cluster.write(&self.permit, ask, api.patch(name, &by_us, &Patch::Merge(&mark))).await {
                // It was deleted meanwhile, so it blocks no App.
                Err(refusal) if refusal.kind == RefusalKind::NotFound => {}
                Err(refusal) if is_of_tenant && concerns_one_object(&refusal, is_last_try) => {
                    let object = format!("{kind} {namespace}/{name}");
                    tracing::warn!(object, error = %refusal, "the mark of the new leader is not written");
                }
                answer => drop(answer?),
            }
            marked.insert(key);
        }
        Ok(())
    }

    /// The Apps that our objects block now.
    pub(crate) async fn blocked(&self, settings: &Settings) -> Result<Vec<InheritedBlock>, Refusal> {
        Ok(blocked(&served(self.list_all(settings).await)?, settings))
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
        let all = self.list_all(settings).await;
        let (listed, refused): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
        let listed: Vec<Listed> = listed.into_iter().flatten().collect();
        let refused: Vec<Refusal> = refused.into_iter().filter_map(Result::err).collect();
        if let Some(mark) = marks(&listed, settings).into_iter().find(|mark| permit.is_later(mark)) {
            // Our own clock may say otherwise, because this replica may have been stopped for a while.
            tracing::error!(
                alert = "leader",
                mark,
                "a later leader has written the objects; this replica stops leading"
            );
            permit.give_up();
            return outcome;
        }
        let mut term = self.taken_over.as_mut().filter(|term| term.is_of(permit));
        let is_taken_over = term.is_some();
        if term.as_mut().is_some_and(|term| ends_term(term, &listed, permit)) {
            return outcome;
        }
        // If a kind can't be read, a later leader may have written its objects.
        let is_known = refused.iter().all(|refusal| refusal.kind == RefusalKind::NotServed);
        let existing = existing(&listed);
        outcome.left_open = refused.is_empty().then(|| resources::left_open(plan, settings, &existing));
        let objects = resources::render(plan, settings, existing);
        // Where one kind is not served, the Apps are blocked by the others.
        let is_blocked_by_others =
            |refusal: &&Refusal| refusal.kind == RefusalKind::NotServed && !listed.is_empty();
        let harmless = refused.iter().filter(is_blocked_by_others).count();
        let is_readable = refused.len() == harmless;
        outcome.problems.extend(refused.into_iter().map(|refusal| refusal.text));
        let mut open_namespaces = BTreeSet::new();
        for listed in &listed {
            let objects: Vec<&Object> = objects.iter().filter(|object| object.kind == listed.kind).collect();
            let unwritten = self.reconcile_all(listed, &objects, settings, &mut outcome).await;
            let wanted = Wanted::of(&objects);
            if is_known && is_taken_over {
                self.prune(listed, &wanted, &unwritten.services, &mut outcome).await;
            }
            open_namespaces.extend(unwritten.namespaces);
        }
        let messages: Vec<&Object> =
            objects.iter().filter(|object| object.write_policy != WritePolicy::Reconcile).collect();
        let closed = Closed {
            all: outcome.problems.len() == harmless && outcome.suspended.is_empty(),
            open_namespaces: is_readable.then_some(open_namespaces),
        };
        if self.send_all(&messages, &closed, &mut outcome, go_on).await && is_readable {
            self.compare_again(&messages, &mut outcome).await;
        }
        outcome.deferred = self.deferred.summary(MAX_PROBLEMS_SHOWN);
        outcome
    }

    /// What `write` would do.
    pub(crate) async fn preview(&self, plan: &Plan, settings: &Settings) -> Result<Vec<Difference>, Refusal> {
        let listed = served(self.list_all(settings).await)?;
        let objects = resources::render(plan, settings, existing(&listed));
        let mut differences = Vec::new();
        for object in &objects {
            let read;
            let of_kind = listed.iter().find(|listed| listed.kind == object.kind);
            let live = match of_kind.and_then(|listed| listed.get(object)) {
                Some(live) => Some(live),
                // Every object of its namespace has been listed.
                None if of_kind.is_some_and(|listed| listed.is_whole) => None,
                // The kind is not served.
                None if of_kind.is_none() && object.kind.blocking().is_some() => None,
                None => {
                    read = self.read(object).await?;
                    read.as_ref()
                }
            };
            differences.extend(difference(object, live));
        }
        for listed in &listed {
            let wanted = Wanted::of(objects.iter().filter(|object| object.kind == listed.kind));
            differences.extend(surplus_objects(listed, &wanted).into_iter().map(|(live, reason_to_stay)| {
                Difference::removal(format!("{} {}", listed.kind, found(live)), reason_to_stay)
            }));
        }
        Ok(differences)
    }
}

/// Ends the term if its take-over missed objects of a kind that is `listed` now. Returns whether it did.
fn ends_term(term: &mut TakenOver, listed: &[Listed], permit: &WritePermit) -> bool {
    let Some(listed) = listed.iter().find(|listed| term.has_missed(listed)) else { return false };
    let kind = listed.kind.name();
    tracing::error!(
        alert = "leader",
        kind,
        "the API server serves this kind again, and did not when this leader took over; this replica stops leading, so that \
         the next leader inherits what the objects block"
    );
    permit.give_up();
    true
}

/// Whether the API server refused this object only, so that other objects can still be marked.
fn concerns_one_object(refusal: &Refusal, is_last_try: bool) -> bool {
    match refusal.kind {
        RefusalKind::Conflict => is_last_try,
        RefusalKind::Forbidden | RefusalKind::Invalid | RefusalKind::NoNamespace => true,
        _ => false,
    }
}
