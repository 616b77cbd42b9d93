//! The gateway's objects: kept exactly as they should be.

use std::collections::BTreeSet;

use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use procscan_core::resources::{Object, WritePolicy, wasm_plugin};
use serde_json::json;

use super::ClusterOutput;
use super::live::{Live, closes, difference, is_ours, is_suspended, left_alone, named, with_services};
use crate::kubernetes::Refusal;
use crate::output::Outcome;
use crate::output::difference::surplus;

impl ClusterOutput {
    /// Writes the objects that are kept, the latest shard first: with one shard more, Apps move into the new one. An App that moves is
    /// listed in both for a moment, never in none: what could not be closed in one shard is not opened in another.
    pub(super) async fn reconcile_all(&self, objects: &[Object], live: &[Live], outcome: &mut Outcome) {
        // If an operator has opened the gateway by hand, no further object may close it.
        let is_open = live.iter().any(|live| is_ours(live) && is_suspended(live));
        let mut unclosed: BTreeSet<&str> = BTreeSet::new();
        for object in objects.iter().rev().filter(|object| object.write_policy == WritePolicy::Reconcile) {
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
                Some(_) => self.reconcile(object, listed, outcome).await,
                None if is_plugin => self.reconcile(object, None, outcome).await,
                None => match self.read(object).await {
                    Ok(live) => self.reconcile(object, live.as_ref(), outcome).await,
                    Err(refusal) => Err(refusal),
                },
            };
            outcome.note(kept);
            if before != (outcome.problems.len(), outcome.suspended.len()) {
                unclosed.extend(wanted.difference(&is));
            }
        }
    }

    /// Keeps an object exactly as it should be. Whether something was written.
    async fn reconcile(
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
}
