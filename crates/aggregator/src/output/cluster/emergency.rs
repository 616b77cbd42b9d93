//! Opens blocked Apps and removes our objects for an operator, whether the service runs or not.

use kube::Api;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use procscan_core::resources::{BlockingKind, FoundObject, Kind, Settings};

use serde_json::{Value, json};

use super::listing::Listed;
use super::live::{Live, as_found, found, is_ours, place, resource};
use super::{ClusterOutput, FIELD_MANAGER, SUSPEND};
use crate::kubernetes::{Ask, Refusal, RefusalKind};

/// What was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// The objects that block no App any more, and are suspended.
    pub objects: Vec<OpenedObject>,
    /// What could not be opened, and why.
    pub refused: Vec<Refusal>,
}

/// An object that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedObject {
    /// Its kind.
    pub(crate) kind: Kind,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
}

/// An object that an operator has to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeftBehind {
    /// Its kind.
    pub(crate) kind: Kind,
    /// Its namespace.
    pub(crate) namespace: &'static str,
    /// Its name.
    pub(crate) name: &'static str,
}

impl ClusterOutput {
    /// Opens the Apps that our objects block, and suspends the objects so that no replica blocks them again. After a refusal it
    /// goes on with the next object.
    pub async fn unblock_all(&self, settings: &Settings) -> Opened {
        let mut opened = Opened::default();
        for listed in self.list_all(settings).await {
            let listed = match listed {
                Ok(listed) => listed,
                Err(refusal) => {
                    opened.refused.push(refusal);
                    continue;
                }
            };
            let ours: Vec<&Live> = listed.ours().collect();
            for live in ours {
                let mut patch = listed.blocking.open(&as_found(live));
                if let Some(patch) = patch.as_object_mut() {
                    patch.insert("metadata".to_owned(), json!({"annotations": {SUSPEND: "true"}}));
                }
                let (namespace, name) = place(live);
                match self.patch_live(listed.kind, live, &patch).await {
                    // The service has deleted it meanwhile, so it blocks nothing.
                    Err(refusal) if refusal.kind == RefusalKind::NotFound => {}
                    Ok(_) => opened.objects.push(OpenedObject { kind: listed.kind, namespace, name }),
                    Err(refusal) => opened.refused.push(refusal),
                }
            }
        }
        opened
    }

    /// Removes all our objects: messages first, then those that block, and permanent ones last. Only the removal of a permanent
    /// object is noticed by the gateway's users. With `dry_run` it only returns what there is.
    pub async fn uninstall(&self, settings: &Settings, dry_run: bool) -> Result<Vec<String>, Refusal> {
        let mut doomed = Vec::new();
        for kind in removal_order(settings.kinds) {
            doomed.extend(self.ours(kind, settings).await?.into_iter().map(|live| (kind, live)));
        }
        let mut removed = Vec::new();
        for (kind, live) in doomed {
            if !dry_run {
                let (namespace, name) = place(&live);
                let api: Api<Live> = Api::namespaced_with(self.cluster.client(), &namespace, &resource(kind));
                let plural = kind.resource();
                let ask =
                    Ask { verb: "delete", resource: &plural, namespace: Some(&namespace), name: Some(&name) };
                match self.cluster.ask(ask, api.delete(&name, &DeleteParams::default())).await {
                    Err(refusal) if refusal.kind != RefusalKind::NotFound => return Err(refusal),
                    _ => {}
                }
            }
            removed.push(format!("{kind} {}", found(&live)));
        }
        Ok(removed)
    }

    /// Our objects of a kind. A kind that is not served has none.
    async fn ours(&self, kind: Kind, settings: &Settings) -> Result<Vec<Live>, Refusal> {
        let objects = match kind.blocking() {
            Some(blocking) => self.list(kind, blocking, settings).await.map(Listed::into_objects),
            // Labels of messages do not last, so all are listed.
            None => self.objects(kind, None, None).await,
        };
        let is_ours = |live: &Live| {
            let is_our_name =
                kind.is_our_name(&live.namespace().unwrap_or_default(), &live.name_any(), settings);
            is_our_name && is_ours(kind, live)
        };
        match objects {
            Err(refusal) if refusal.kind == RefusalKind::NotServed => Ok(Vec::new()),
            objects => Ok(objects?.into_iter().filter(is_ours).collect()),
        }
    }

    /// The objects of the program before this one. They have no effect where they are, and are not ours to remove.
    pub(crate) async fn left_behind(&self, settings: &Settings) -> Result<Vec<LeftBehind>, Refusal> {
        let mut left = Vec::new();
        for kind in settings.kinds {
            let Some((namespace, name)) = kind.legacy_object() else { continue };
            let plural = kind.resource();
            let api: Api<Live> = Api::namespaced_with(self.cluster.client(), namespace, &resource(*kind));
            let ask = Ask { verb: "get", resource: &plural, namespace: Some(namespace), name: Some(name) };
            let live = match self.cluster.ask(ask, api.get(name)).await {
                Err(refusal) if matches!(refusal.kind, RefusalKind::NotFound | RefusalKind::NotServed) => {
                    continue;
                }
                live => live?,
            };
            let live = FoundObject { namespace: namespace.into(), name: name.into(), ..as_found(&live) };
            if !kind.is_legacy_ours(&live, settings) {
                left.push(LeftBehind { kind: *kind, namespace, name });
            }
        }
        Ok(left)
    }

    async fn patch_live(&self, kind: Kind, live: &Live, patch: &Value) -> Result<Live, Refusal> {
        let (namespace, name) = place(live);
        let plural = kind.resource();
        let api: Api<Live> = Api::namespaced_with(self.cluster.client(), &namespace, &resource(kind));
        let ask = Ask { verb: "patch", resource: &plural, namespace: Some(&namespace), name: Some(&name) };
        let by_us = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        self.cluster.ask(ask, api.patch(&name, &by_us, &Patch::Merge(patch))).await
    }
}

/// Messages first, and permanent objects last.
fn removal_order(kinds: &[Kind]) -> Vec<Kind> {
    let mut kinds = kinds.to_vec();
    kinds.sort_by_key(|kind| kind.blocking().map(BlockingKind::is_permanent));
    kinds
}
