//! Reconciles the objects that block.

use std::collections::BTreeSet;

use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use procscan_core::names::Text;
use procscan_core::resources::{Object, Settings};
use serde_json::json;

use super::ClusterOutput;
use super::listing::Listed;
use super::live::{Live, difference, is_ours, is_suspended, left_alone, named};
use crate::kubernetes::{Refusal, RefusalKind};
use crate::output::Outcome;
use crate::output::difference::surplus;

/// What the objects that are not written as planned should block.
#[derive(Default)]
pub(super) struct Unwritten {
    /// The Services that could not be closed.
    pub(super) services: BTreeSet<String>,
    /// The namespaces of the Apps.
    pub(super) namespaces: BTreeSet<Text>,
}

impl ClusterOutput {
    /// Writes the objects of one kind, the last one first, because Services may move to a new last object. A Service that moves is
    /// closed in its new object first, so it is never open. If that fails, it stays closed in the old object.
    pub(super) async fn reconcile_all(
        &self,
        listed: &Listed,
        objects: &[&Object],
        settings: &Settings,
        outcome: &mut Outcome,
    ) -> Unwritten {
        // An operator who suspends an object opens its Apps, so no further object may close them.
        let open: BTreeSet<String> =
            listed.ours().filter(|live| is_suspended(live)).filter_map(ResourceExt::namespace).collect();
        let mut unwritten = Unwritten::default();
        for object in objects.iter().rev() {
            let blocking = listed.blocking;
            let live = listed.get(object);
            let wanted = blocking.closes(&object.spec);
            let content = live.and_then(|live| listed.kind.content(&live.data));
            let is = content.map(|content| blocking.closes(content)).unwrap_or_default();
            // A Service that moves stays in this object until the other object closes it.
            let staying: Vec<&str> =
                is.difference(&wanted).copied().filter(|host| unwritten.services.contains(*host)).collect();
            let whole;
            let mut object = *object;
            if !staying.is_empty() {
                whole = blocking.with_more(object, &staying);
                let (name, count) = (named(object), staying.len());
                outcome
                    .problems
                    .push(format!("{name} lists {count} more Services until another object closes them"));
                object = &whole;
            }
            let before = (outcome.problems.len(), outcome.suspended.len());
            let done = match live {
                None if open.contains(&object.metadata.namespace) => {
                    outcome.suspended.push(named(object));
                    Ok(false)
                }
                None if !listed.is_whole => match self.read(object).await {
                    Ok(live) => self.reconcile(listed, object, live.as_ref(), outcome).await,
                    Err(refusal) => Err(refusal),
                },
                live => self.reconcile(listed, object, live, outcome).await,
            };
            let is_gone = |refusal: &Refusal| refusal.kind == RefusalKind::NoNamespace && !listed.is_whole;
            // A namespace that does not exist, or is being deleted, has nothing to block.
            outcome.note(if done.as_ref().is_err_and(is_gone) { Ok(false) } else { done });
            if before != (outcome.problems.len(), outcome.suspended.len()) {
                unwritten.services.extend(wanted.difference(&is).map(|host| (*host).to_owned()));
                unwritten.namespaces.extend(blocking.namespaces(&object.spec, settings));
            }
        }
        unwritten
    }

    /// Reconciles one object. Returns whether it was written.
    async fn reconcile(
        &self,
        listed: &Listed,
        object: &Object,
        live: Option<&Live>,
        outcome: &mut Outcome,
    ) -> Result<bool, Refusal> {
        let Some(live) = live else {
            let first = listed.blocking.first_form(object);
            let made = self.create(&first).await?;
            if first.spec != object.spec {
                self.apply(object, made.metadata.resource_version).await?;
            }
            return Ok(true);
        };
        if is_ours(object.kind, live) && is_suspended(live) {
            outcome.suspended.push(named(object));
            return Ok(false);
        }
        if let Some(why) = left_alone(object.kind, live) {
            outcome.problems.push(format!("{} {why}", named(object)));
            return Ok(false);
        }
        if difference(object, Some(live)).is_none() {
            return Ok(false);
        }
        let mut version = live.metadata.resource_version.clone();
        let field = object.kind.content_field();
        let should = json!({ field: object.spec });
        let is = json!({ field: object.kind.content(&live.data).cloned().unwrap_or_default() });
        // Server-side apply leaves fields of other programs, but one surplus field can switch the rules off.
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
}
