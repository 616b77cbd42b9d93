//! The last known versions of the objects that a leader writes, by which it notices changes by others.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::ResourceExt;
use kube::core::{DynamicObject, ObjectMeta};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::objects;
use crate::state::persisted_state::{IncidentEntry, ObjectVersion, PersistedState};

/// How long the watch may lag behind our own writes before an older version is taken for a restored backup.
const MAX_WATCH_LAG: Duration = Duration::from_secs(10);

/// An incident's object, as we last read it or as the API server answered our last write.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) resource_version: Box<str>,
    pub(super) uid: Box<str>,
    pub(super) version: ObjectVersion,
    /// The object's generation, which grows with each command.
    pub(super) generation: i64,
    /// The generation up to which all commands are done, by its status. `None` while that is not certain, because a
    /// write of ours had no answer.
    pub(super) observed: Option<i64>,
    /// The requested commands, by field. Empty for most incidents.
    requested: BTreeMap<&'static str, Value>,
}

impl Known {
    pub(super) fn of(live: &DynamicObject) -> Self {
        let requested: BTreeMap<&'static str, Value> = ["approve", "release"]
            .into_iter()
            .filter_map(|field| Some((field, live.data.get("spec")?.get(field)?.clone())))
            .collect();
        Self {
            resource_version: live.resource_version().unwrap_or_default().into(),
            uid: live.uid().unwrap_or_default().into(),
            version: objects::version(live),
            generation: live.metadata.generation.unwrap_or(0),
            observed: live.data.pointer("/status/observed").and_then(Value::as_i64),
            requested,
        }
    }

    /// An incident's object without commands, as the watch has seen it.
    pub(super) fn of_seen(live: ObjectMeta, version: ObjectVersion, observed: i64) -> Self {
        Self {
            resource_version: live.resource_version.unwrap_or_default().into(),
            uid: live.uid.unwrap_or_default().into(),
            version,
            generation: live.generation.unwrap_or(0),
            observed: Some(observed),
            requested: BTreeMap::new(),
        }
    }

    /// Whether the API server has gone back to an earlier state: it answered with `before` first, and with `self` later. Only
    /// its answers prove that, because the watch may be late.
    fn is_older_than(&self, before: &Self) -> bool {
        let is_same_object = self.version.uid == before.version.uid;
        let is_older_version = self.version.version != 0 && self.version.version < before.version.version;
        is_older_version || (is_same_object && self.generation < before.generation)
    }

    /// The JSON patch that removes the commands, if exactly these have been carried out. The patch fails if any of
    /// them has changed by then.
    pub(super) fn removal_patch(&self) -> Option<Value> {
        if self.requested.is_empty() || self.observed != Some(self.generation) {
            return None;
        }
        let test = |path: &str, value: Value| json!({"op": "test", "path": path, "value": value});
        let mut operations = vec![
            test("/metadata/uid", self.uid.as_ref().into()),
            test("/metadata/generation", self.generation.into()),
            test("/status/observed", self.generation.into()),
        ];
        for (field, value) in &self.requested {
            let path = format!("/spec/{field}");
            operations.push(test(&path, value.clone()));
            operations.push(json!({"op": "remove", "path": path}));
        }
        Some(operations.into())
    }
}

/// An incident whose object differs from our last write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Its name.
    pub(crate) name: String,
    /// Whether its generations start anew from the number in its status, because it is another object of that name,
    /// or one from a backup.
    pub(crate) was_replaced: bool,
}

/// The objects of all incidents, by name.
#[derive(Debug, Default)]
pub(super) struct AllKnown {
    pub(super) all: BTreeMap<String, Known>,
    /// The incidents that the watch shows in an older version than we know, and since when.
    behind: BTreeMap<String, Instant>,
    /// The hash of the changed status that was last logged, by name.
    logged: BTreeMap<String, u64>,
    /// Whether it was logged that the API server was restored from a backup. That is logged once, although each
    /// Incident may show it.
    is_restored: bool,
}

impl AllKnown {
    /// When to check again whether the watch still lags behind.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.behind.values().min().map(|since| *since + MAX_WATCH_LAG)
    }

    /// The incidents whose objects exist with another status than the one that we wrote last, and open ones that we did not write.
    pub(super) fn changed(&mut self, state: &PersistedState) -> Vec<Changed> {
        let now = Instant::now();
        let mut changed = Vec::new();
        // A removed object is not waited for, and a later object of that name is another one.
        self.behind.retain(|name, _| self.all.contains_key(name) && state.incidents.contains_key(&**name));
        self.logged.retain(|name, _| self.all.contains_key(name));
        let mut live = state.incidents.iter().peekable();
        let mut unwritten = Vec::new();
        let mut note = |name: &str, seen: &IncidentEntry| {
            if seen.is_open() && !state.unread.incidents.contains_key(name) {
                unwritten.push(Changed { name: name.to_owned(), was_replaced: false });
            }
        };
        for (name, known) in &self.all {
            while let Some((other, seen)) = live.next_if(|(other, _)| ***other < **name) {
                note(other, seen);
            }
            let Some((_, seen)) = live.next_if(|(other, _)| ***other == **name) else { continue };
            if known.observed.is_none() {
                // A write of ours that had no answer may be there; it is tried again in any case.
                continue;
            }
            let is_same_object = seen.version.uid == known.version.uid;
            let is_behind = is_same_object && seen.version.version < known.version.version;
            if is_behind && now < *self.behind.entry(name.clone()).or_insert(now) + MAX_WATCH_LAG {
                continue;
            }
            self.behind.remove(name);
            let is_unread = state.unread.incidents.contains_key(&**name);
            let was_replaced = !is_same_object
                || seen.generation < known.generation
                || known.observed.is_some_and(|observed| observed > known.generation);
            // The watch shows an unreadable object in its last readable version.
            let is_other = is_unread || seen.version.status != known.version.status;
            if is_other && self.logged.insert(name.clone(), seen.version.status) != Some(seen.version.status)
            {
                tracing::error!(
                    alert = "state",
                    incident = name,
                    was_replaced,
                    "an Incident's status is not what was written: it was edited, wiped, or restored from a backup; it is \
                     written again, and the commands in its spec are carried out"
                );
            }
            if is_other || was_replaced {
                changed.push(Changed { name: name.clone(), was_replaced });
            }
        }
        live.for_each(|(other, seen)| note(other, seen));
        changed.extend(unwritten);
        changed
    }

    /// Notes the API server's answer to a write in `namespace`.
    pub(super) fn written(&mut self, name: String, now: Known, namespace: &str) {
        let is_older = self.all.get(&name).is_some_and(|before| now.is_older_than(before));
        if is_older && !self.is_restored {
            self.is_restored = true;
            tracing::error!(
                alert = "state",
                "the API server was restored from a backup: what operators declared since then (Exemptions, a pause or another \
                 mode) is lost, and only they can declare it again; `kubectl get exemptions,enforcements -n {namespace}` lists \
                 what is left"
            );
        }
        self.all.insert(name, now);
    }

    /// Accepts the object as it is, because nothing can be written in its place.
    pub(super) fn accept(&mut self, name: &str, seen: ObjectVersion, generation: i64) {
        if let Some(known) = self.all.get_mut(name) {
            (known.version, known.resource_version) = (seen, seen.version.to_string().into());
            (known.generation, known.observed) = (generation, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use procscan_core::names::App;
    use procscan_core::state::IncidentSpec;

    use super::*;
    use crate::state::IncidentEntry;

    fn version(version: u64, status: u64) -> ObjectVersion {
        ObjectVersion { uid: 1, version, status }
    }

    /// This number of incidents, as they were written last.
    fn written(incidents: usize) -> AllKnown {
        let all = (0..incidents).map(|n| {
            let meta = ObjectMeta { generation: Some(1), ..ObjectMeta::default() };
            (format!("i-{n}"), Known::of_seen(meta, version(5, 5), 1))
        });
        AllKnown { all: all.collect(), ..AllKnown::default() }
    }

    /// The same incidents as the watch shows them.
    fn shown(incidents: usize, version: ObjectVersion) -> PersistedState {
        let mut state = PersistedState::default();
        for n in 0..incidents {
            let spec = IncidentSpec::of(&App::new("ns-a", "app", "web"));
            let incident = IncidentEntry::new(spec, None, 1, None).unwrap().with_version(version);
            state.incidents.insert(format!("i-{n}").into(), Arc::new(incident));
        }
        state
    }

    #[tokio::test(start_paused = true)]
    async fn the_watch_need_not_show_incidents_that_were_removed() {
        for is_removed_here in [true, false] {
            let mut known = written(2);
            assert!(known.changed(&shown(2, version(4, 4))).is_empty(), "the watch lags behind");
            assert_eq!(known.next_look(), Some(Instant::now() + MAX_WATCH_LAG));
            let left = if is_removed_here { 2 } else { 0 };
            if is_removed_here {
                known.all.clear();
            }
            tokio::time::advance(MAX_WATCH_LAG).await;
            assert!(known.changed(&shown(left, version(4, 4))).is_empty());
            assert_eq!(known.next_look(), None, "otherwise it would be checked again at once, for ever");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn logged_hashes_are_dropped_with_their_incidents() {
        let mut known = written(100);
        assert_eq!(known.changed(&shown(100, version(6, 6))).len(), 100);
        assert_eq!(known.logged.len(), 100);
        known.all.retain(|name, _| name == "i-7");
        assert_eq!(known.changed(&shown(100, version(6, 6))).len(), 1);
        assert_eq!(known.logged.len(), 1);
    }
}
