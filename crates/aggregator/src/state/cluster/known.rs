//! What a leader knows of the objects that it writes, and how it notices that others changed them.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::ResourceExt;
use kube::core::{DynamicObject, ObjectMeta};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::objects::stamp;
use crate::state::persisted_state::{IncidentEntry, ObjectVersion, PersistedState};

/// How long the watch may lag behind our own writes before an older version is taken for a restored backup.
const BEHIND: Duration = Duration::from_secs(10);

/// An incident's object, as we last read it or as the API server answered our last write.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) version: Box<str>,
    pub(super) uid: Box<str>,
    pub(super) stamp: ObjectVersion,
    /// The object's generation: it changes with what operators want.
    pub(super) generation: i64,
    /// Up to which generation operators' acts have been done, as its status says. `None` while that is not certain
    /// because a write of ours had no answer.
    pub(super) observed: Option<i64>,
    /// What operators want, by field. Empty for most incidents.
    wanted: BTreeMap<&'static str, Value>,
}

impl Known {
    pub(super) fn of(live: &DynamicObject) -> Self {
        let wanted: BTreeMap<&'static str, Value> = ["approve", "release"]
            .into_iter()
            .filter_map(|field| Some((field, live.data.get("spec")?.get(field)?.clone())))
            .collect();
        Self {
            version: live.resource_version().unwrap_or_default().into(),
            uid: live.uid().unwrap_or_default().into(),
            stamp: stamp(live),
            generation: live.metadata.generation.unwrap_or(0),
            observed: live.data.pointer("/status/observed").and_then(Value::as_i64),
            wanted,
        }
    }

    /// An incident's object as the watch has seen it, for which operators want nothing.
    pub(super) fn of_seen(live: ObjectMeta, stamp: ObjectVersion, observed: i64) -> Self {
        Self {
            version: live.resource_version.unwrap_or_default().into(),
            uid: live.uid.unwrap_or_default().into(),
            stamp,
            generation: live.generation.unwrap_or(0),
            observed: Some(observed),
            wanted: BTreeMap::new(),
        }
    }

    /// Whether the API server has gone back to an earlier state: it answered with `before` first, and with `self` later. Only
    /// its answers prove that, because the watch may be late.
    fn is_older_than(&self, before: &Self) -> bool {
        let is_same_object = self.stamp.uid == before.stamp.uid;
        let is_older_version = self.stamp.version != 0 && self.stamp.version < before.stamp.version;
        is_older_version || (is_same_object && self.generation < before.generation)
    }

    /// The JSON patch that removes what operators wanted, if exactly that has been done. It fails if any of it has
    /// changed by then.
    pub(super) fn clearing(&self) -> Option<Value> {
        if self.wanted.is_empty() || self.observed != Some(self.generation) {
            return None;
        }
        let test = |path: &str, value: Value| json!({"op": "test", "path": path, "value": value});
        let mut operations = vec![
            test("/metadata/uid", self.uid.as_ref().into()),
            test("/metadata/generation", self.generation.into()),
            test("/status/observed", self.generation.into()),
        ];
        for (field, value) in &self.wanted {
            let path = format!("/spec/{field}");
            operations.push(test(&path, value.clone()));
            operations.push(json!({"op": "remove", "path": path}));
        }
        Some(operations.into())
    }
}

/// An incident whose object differs from what we wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Its name.
    pub name: String,
    /// Its generations start anew, from what its status says: it is another object of that name, or one from a backup.
    pub was_replaced: bool,
}

/// The objects of all incidents, by name.
#[derive(Debug, Default)]
pub(super) struct AllKnown {
    pub(super) all: BTreeMap<String, Known>,
    /// The incidents that the watch shows in an older version than we know, and since when.
    behind: BTreeMap<String, Instant>,
    /// The hash of the changed status that was last logged, by name.
    said: BTreeMap<String, u64>,
    /// It was logged that the API server was restored from a backup. It is logged once, although each Incident may show it.
    is_restored: bool,
}

impl AllKnown {
    /// When to look again whether the watch still lags behind.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.behind.values().min().map(|since| *since + BEHIND)
    }

    /// The incidents whose objects exist with another status than the one that we wrote last, and open ones that we did not write.
    pub(super) fn changed(&mut self, kept: &PersistedState) -> Vec<Changed> {
        let now = Instant::now();
        let mut changed = Vec::new();
        // What is removed is not waited for, and a later object of that name is another one.
        self.behind.retain(|name, _| self.all.contains_key(name) && kept.incidents.contains_key(&**name));
        self.said.retain(|name, _| self.all.contains_key(name));
        let mut live = kept.incidents.iter().peekable();
        let mut strange = Vec::new();
        let mut note = |name: &str, seen: &IncidentEntry| {
            if seen.is_open() && !kept.unread.incidents.contains_key(name) {
                strange.push(Changed { name: name.to_owned(), was_replaced: false });
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
            let is_same_object = seen.version.uid == known.stamp.uid;
            let is_behind = is_same_object && seen.version.version < known.stamp.version;
            if is_behind && now < *self.behind.entry(name.clone()).or_insert(now) + BEHIND {
                continue;
            }
            self.behind.remove(name);
            let is_unread = kept.unread.incidents.contains_key(&**name);
            let was_replaced = !is_same_object
                || seen.generation < known.generation
                || known.observed.is_some_and(|observed| observed > known.generation);
            // The watch shows an unreadable object as it was read last.
            let is_other = is_unread || seen.version.status != known.stamp.status;
            if is_other && self.said.insert(name.clone(), seen.version.status) != Some(seen.version.status) {
                tracing::error!(
                    alert = "state",
                    incident = name,
                    was_replaced,
                    "an Incident's status is not what was written: it was edited, wiped, or restored from a backup; it is \
                     written again, and what its spec asks for is done"
                );
            }
            if is_other || was_replaced {
                changed.push(Changed { name: name.clone(), was_replaced });
            }
        }
        live.for_each(|(other, seen)| note(other, seen));
        changed.extend(strange);
        changed
    }

    /// Notes how the API server has answered a write in `namespace`.
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

    /// Takes the object as it is, because nothing can be written in its place.
    pub(super) fn accept(&mut self, name: &str, seen: ObjectVersion, generation: i64) {
        if let Some(known) = self.all.get_mut(name) {
            (known.stamp, known.version) = (seen, seen.version.to_string().into());
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

    fn stamp(version: u64, status: u64) -> ObjectVersion {
        ObjectVersion { uid: 1, version, status }
    }

    /// So many incidents, as they were written last.
    fn written(incidents: usize) -> AllKnown {
        let all = (0..incidents).map(|n| {
            let meta = ObjectMeta { generation: Some(1), ..ObjectMeta::default() };
            (format!("i-{n}"), Known::of_seen(meta, stamp(5, 5), 1))
        });
        AllKnown { all: all.collect(), ..AllKnown::default() }
    }

    /// What the watch shows of them.
    fn shown(incidents: usize, stamp: ObjectVersion) -> PersistedState {
        let mut kept = PersistedState::default();
        for n in 0..incidents {
            let spec = IncidentSpec::of(&App::new("ns-a", "app", "web"));
            let incident = IncidentEntry::new(spec, None, 1, None).unwrap().with_version(stamp);
            kept.incidents.insert(format!("i-{n}").into(), Arc::new(incident));
        }
        kept
    }

    #[tokio::test(start_paused = true)]
    async fn the_watch_is_not_waited_for_to_show_what_was_removed() {
        for is_removed_here in [true, false] {
            let mut known = written(2);
            assert!(known.changed(&shown(2, stamp(4, 4))).is_empty(), "the watch lags behind");
            assert_eq!(known.next_look(), Some(Instant::now() + BEHIND));
            let left = if is_removed_here { 2 } else { 0 };
            if is_removed_here {
                known.all.clear();
            }
            tokio::time::advance(BEHIND).await;
            assert!(known.changed(&shown(left, stamp(4, 4))).is_empty());
            assert_eq!(known.next_look(), None, "else it is looked again at once, for ever");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_said_of_incidents_is_forgotten_with_them() {
        let mut known = written(100);
        assert_eq!(known.changed(&shown(100, stamp(6, 6))).len(), 100);
        assert_eq!(known.said.len(), 100);
        known.all.retain(|name, _| name == "i-7");
        assert_eq!(known.changed(&shown(100, stamp(6, 6))).len(), 1);
        assert_eq!(known.said.len(), 1);
    }
}
