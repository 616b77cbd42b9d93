//! Publishes the [`PersistedState`] as the objects have it, on every replica. So a command shows at once, by
//! whichever program an operator writes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use kube::ResourceExt;
use kube::core::DynamicObject;
use kube::runtime::watcher::{self, Event};
use procscan_core::names::Text;
use procscan_core::state::{Declaration, EnforcementSpec, ExemptionSpec, enforcement};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Objects;
use super::objects::{created, declared_mode, exemption, logged, part, plural, read_incident};
use crate::kubernetes::{self, Refusal};
use crate::state::crd::Resource;
use crate::state::persisted_state::{Declared, IncidentEntry, PersistedState, Unread};

/// Changes within this time are published together, because a storm writes many incidents.
const SETTLE_TIME: Duration = Duration::from_millis(50);

/// The kinds of objects by which operators declare something for more than one App.
const DECLARED: [Resource; 2] = [Resource::Exemption, Resource::Enforcement];

/// Watches the objects.
#[derive(Debug)]
pub(crate) struct Watching {
    objects: Objects,
    asked: watch::Receiver<Asked>,
}

/// The last request for new lists.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    /// Counted from 1.
    number: u64,
    /// Whether Incidents are listed too. They are many, so they are listed only on request.
    with_incidents: bool,
}

/// Asks [`Watching`] for new lists of the declarations. A watch may hang for minutes, or fail, and then shows old
/// ones.
#[derive(Debug)]
pub(crate) struct Relist(watch::Sender<Asked>);

impl Relist {
    /// Requests new lists, with or without the Incidents. Returns the number of the request.
    /// [`PersistedState::as_of`] reaches it with lists that were begun after the request.
    pub(crate) fn ask(&self, with_incidents: bool) -> u64 {
        let number = self.0.borrow().number + 1;
        self.0.send_replace(Asked { number, with_incidents });
        number
    }
}

type Changes = BoxStream<'static, (Resource, Result<Event<DynamicObject>, watcher::Error>)>;

/// The objects of each kind, as the watch has reported them.
#[derive(Default)]
struct Known {
    state: PersistedState,
    /// The parts of unfinished lists that have arrived so far.
    coming: BTreeMap<Resource, Part>,
    /// The kinds of which a whole list has arrived.
    listed: BTreeMap<Resource, bool>,
    errors: BTreeMap<Resource, String>,
    /// Why the Enforcement, which applies to all decisions, can't be read.
    unread_enforcement: Option<String>,
    /// The number of the last request for new lists.
    asked: u64,
    /// The kinds that have not been listed since then.
    asked_for: BTreeSet<Resource>,
}

#[derive(Default)]
struct Part {
    incidents: BTreeMap<Text, Arc<IncidentEntry>>,
    exemptions: BTreeMap<String, ExemptionSpec>,
    enforcement: EnforcementSpec,
    declared: Declared,
    unread: Unread,
    unread_enforcement: Option<String>,
}

impl Watching {
    /// Watches `objects`. New lists of them are requested by [`Relist`].
    pub(crate) fn new(objects: Objects) -> (Self, Relist) {
        let (ask, asked) = watch::channel(Asked::default());
        (Self { objects, asked }, Relist(ask))
    }

    /// Runs until cancelled. `error` has the reason why the objects can't be watched, if there is one. The last known
    /// state stays.
    pub(crate) async fn run(
        mut self,
        shown: watch::Sender<Arc<PersistedState>>,
        error: watch::Sender<Option<String>>,
        cancel: CancellationToken,
    ) {
        let (mut known, mut reported) = (Known::default(), ReportedErrors::default());
        known.asked = self.asked.borrow_and_update().number;
        known.asked_for = Resource::ALL.into();
        let (mut incidents, mut declared) = (self.changes(Resource::Incident), self.declared());
        loop {
            let first = tokio::select! {
                () = cancel.cancelled() => return,
                Ok(()) = self.asked.changed() => {
                    // The old watches end here, so nothing of them comes after the new lists.
                    let Asked { number, with_incidents } = *self.asked.borrow_and_update();
                    known.asked = number;
                    known.asked_for.extend(DECLARED);
                    declared = self.declared();
                    if with_incidents {
                        known.asked_for.insert(Resource::Incident);
                        incidents = self.changes(Resource::Incident);
                    }
                    continue;
                }
                change = declared.next() => change,
                change = incidents.next() => change,
            };
            let Some((resource, change)) = first else { return };
            self.take_in(&mut known, resource, change);
            let settled = tokio::time::sleep(SETTLE_TIME);
            tokio::pin!(settled);
            loop {
                let change = tokio::select! {
                    () = cancel.cancelled() => return,
                    () = &mut settled => break,
                    change = declared.next() => change,
                    change = incidents.next() => change,
                };
                let Some((resource, change)) = change else { return };
                self.take_in(&mut known, resource, change);
            }
            if known.asked_for.is_empty() {
                known.state.as_of = known.asked;
            }
            known.state.is_complete =
                Resource::ALL.iter().all(|resource| known.listed.contains_key(resource));
            shown.send_replace(Arc::new(known.state.clone()));
            reported.updates(&known).iter().for_each(WatchUpdate::log);
            let unreadable = known.unreadable().into_values();
            let problems: Vec<String> = known.errors.values().cloned().chain(unreadable).take(3).collect();
            let now = (!problems.is_empty()).then(|| problems.join("; "));
            error.send_if_modified(|before| {
                let is_changed = *before != now;
                if is_changed {
                    *before = now;
                }
                is_changed
            });
        }
    }

    fn declared(&self) -> Changes {
        stream::select_all(DECLARED.map(|resource| self.changes(resource))).boxed()
    }

    fn changes(&self, resource: Resource) -> Changes {
        kubernetes::watch(self.objects.api(resource), watcher::Config::default())
            .map(move |event| (resource, event))
            .boxed()
    }

    fn take_in(
        &self,
        known: &mut Known,
        resource: Resource,
        change: Result<Event<DynamicObject>, watcher::Error>,
    ) {
        match change {
            Ok(event) => {
                if !matches!(event, Event::Init) {
                    known.errors.remove(&resource);
                }
                known.apply(resource, event);
            }
            Err(error) => {
                let refusal = Refusal::of_watch(&plural(resource), Some(&self.objects.namespace), &error);
                known.errors.insert(resource, refusal.text);
            }
        }
    }
}

impl Known {
    fn apply(&mut self, resource: Resource, event: Event<DynamicObject>) {
        match event {
            Event::Init => drop(self.coming.insert(resource, Part::default())),
            Event::InitApply(object) => self.coming.entry(resource).or_default().put(resource, &object),
            Event::InitDone => {
                let part = self.coming.remove(&resource).unwrap_or_default();
                self.asked_for.remove(&resource);
                self.replace(resource, part);
            }
            Event::Apply(object) => {
                let mut part = Part::default();
                part.put(resource, &object);
                self.change(resource, &object.name_any(), part);
            }
            Event::Delete(object) => self.change(resource, &object.name_any(), Part::default()),
        }
    }

    /// Applies a complete list. An object that can't be read any more counts in its last readable version.
    fn replace(&mut self, resource: Resource, mut part: Part) {
        match resource {
            Resource::Incident => {
                let before = std::mem::take(&mut self.state.incidents);
                let is_unread = |name: &Text| part.unread.incidents.contains_key(name);
                part.incidents.extend(before.into_iter().filter(|(name, _)| is_unread(name)));
                self.state.incidents = part.incidents;
                self.state.unread.incidents = part.unread.incidents;
            }
            Resource::Exemption => {
                let before = std::mem::take(&mut self.state.exemptions);
                let is_unread = |name: &String| part.unread.exemptions.contains_key(name);
                part.exemptions.extend(before.into_iter().filter(|(name, _)| is_unread(name)));
                self.state.exemptions = part.exemptions;
                self.state.declared.exemptions = part.declared.exemptions;
                self.state.unread.exemptions = part.unread.exemptions;
            }
            Resource::Enforcement => {
                self.unread_enforcement = part.unread_enforcement;
                (self.state.declared.log, self.state.declared.mode) = (part.declared.log, part.declared.mode);
                if self.unread_enforcement.is_none() {
                    self.state.enforcement = part.enforcement;
                } else if !self.listed.contains_key(&resource) {
                    // Nothing is decided before the Enforcement could be read once.
                    return;
                }
            }
        }
        self.listed.insert(resource, true);
    }

    /// Applies the current state of one object: `part` is empty if it was deleted.
    fn change(&mut self, resource: Resource, name: &str, part: Part) {
        match resource {
            Resource::Incident => {
                self.state.unread.incidents.remove(name);
                if part.incidents.is_empty() && part.unread.incidents.is_empty() {
                    self.state.incidents.remove(name);
                }
                self.state.incidents.extend(part.incidents);
                self.state.unread.incidents.extend(part.unread.incidents);
            }
            Resource::Exemption => {
                self.state.unread.exemptions.remove(name);
                if part.exemptions.is_empty() && part.unread.exemptions.is_empty() {
                    self.state.exemptions.remove(name);
                }
                self.state.declared.exemptions.remove(name);
                self.state.declared.exemptions.extend(part.declared.exemptions);
                self.state.exemptions.extend(part.exemptions);
                self.state.unread.exemptions.extend(part.unread.exemptions);
            }
            Resource::Enforcement if name == enforcement::NAME => {
                self.unread_enforcement = part.unread_enforcement;
                (self.state.declared.log, self.state.declared.mode) = (part.declared.log, part.declared.mode);
                if self.unread_enforcement.is_none() {
                    self.state.enforcement = part.enforcement;
                    self.listed.insert(resource, true);
                }
            }
            Resource::Enforcement => {}
        }
    }

    /// The objects that can't be read, each with a text for people: the error, and its consequence.
    fn unreadable(&self) -> BTreeMap<String, String> {
        let mut all = self.state.unreadable();
        if let Some(error) = &self.unread_enforcement {
            let id = format!("Enforcement {}", enforcement::NAME);
            all.insert(id.clone(), format!("{id} can't be read: {error}"));
        }
        all
    }
}

/// The logged errors of the watch. Each is logged once when it begins, and once when it ends.
#[derive(Default)]
struct ReportedErrors {
    is_lost: bool,
    unreadable: BTreeMap<String, String>,
}

/// A line for the log.
#[derive(Debug, PartialEq, Eq)]
enum WatchUpdate {
    Lost(String),
    Back,
    Unreadable(String),
    Readable(String),
}

impl ReportedErrors {
    /// The lines to log now.
    fn updates(&mut self, known: &Known) -> Vec<WatchUpdate> {
        let mut updates = Vec::new();
        let lost = known.errors.values().next();
        if let Some(error) = lost.filter(|_| !self.is_lost) {
            updates.push(WatchUpdate::Lost(error.clone()));
        } else if lost.is_none() && self.is_lost {
            updates.push(WatchUpdate::Back);
        }
        self.is_lost = lost.is_some();
        let unreadable = known.unreadable();
        let is_new = |(id, text): &(&String, &String)| self.unreadable.get(*id) != Some(*text);
        updates
            .extend(unreadable.iter().filter(is_new).map(|(_, text)| WatchUpdate::Unreadable(text.clone())));
        let is_over = |id: &&String| !unreadable.contains_key(*id);
        updates.extend(self.unreadable.keys().filter(is_over).map(|id| WatchUpdate::Readable(id.clone())));
        self.unreadable = unreadable;
        updates
    }
}

impl WatchUpdate {
    fn log(&self) {
        match self {
            Self::Lost(error) => tracing::error!(
                alert = "state",
                error,
                "the persisted state can't be watched; the last known state counts"
            ),
            Self::Back => tracing::info!("the persisted state can be watched again"),
            Self::Unreadable(error) => tracing::error!(alert = "state", error, "an object can't be read"),
            Self::Readable(object) => {
                tracing::info!(object, "an object was mended or deleted, and is no longer unreadable");
            }
        }
    }
}

impl Part {
    fn put(&mut self, resource: Resource, object: &DynamicObject) {
        let name = object.name_any();
        match resource {
            Resource::Incident => match read_incident(object) {
                Ok(incident) => drop(self.incidents.insert(name.into(), Arc::new(incident))),
                Err(error) => drop(self.unread.incidents.insert(name.into(), error)),
            },
            Resource::Exemption => match exemption(object) {
                Ok(spec) => {
                    let declared = Declaration::of_exemption(&name, &spec, created(object));
                    self.declared.exemptions.insert(name.clone(), declared);
                    self.exemptions.insert(name, spec);
                }
                Err(unread) => drop(self.unread.exemptions.insert(name, unread)),
            },
            Resource::Enforcement if name == enforcement::NAME => {
                self.declared.log = logged(object);
                match part(object, "spec") {
                    Ok(spec) => {
                        self.declared.mode = declared_mode(object, &spec);
                        self.enforcement = spec;
                    }
                    Err(error) => self.unread_enforcement = Some(error),
                }
            }
            Resource::Enforcement => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::objects::api_resource;
    use super::*;

    fn exemption(name: &str, regex: &str) -> DynamicObject {
        let spec = json!({"namespace": {"regex": regex}, "reason": "a contract"});
        DynamicObject::new(name, &api_resource(Resource::Exemption)).data(json!({"spec": spec}))
    }

    #[test]
    fn each_error_is_logged_once_when_it_begins_and_when_it_ends() {
        let (mut known, mut reported) = (Known::default(), ReportedErrors::default());
        let list = |known: &mut Known, regex: &str| {
            for resource in Resource::ALL {
                known.errors.remove(&resource);
                known.apply(resource, Event::Init);
            }
            known.apply(Resource::Exemption, Event::InitApply(exemption("one", regex)));
            for resource in Resource::ALL {
                known.apply(resource, Event::InitDone);
            }
        };
        list(&mut known, "(");
        assert!(matches!(reported.updates(&known)[..], [WatchUpdate::Unreadable(_)]));
        assert!(reported.updates(&known).is_empty());
        // An outage, in which each kind fails with its own error and at its own time, and is listed anew after it.
        for (resource, error) in Resource::ALL.into_iter().zip(["timeout", "refused", "reset"]) {
            known.errors.insert(resource, error.to_owned());
            let updates = reported.updates(&known);
            assert_eq!(updates.len(), usize::from(resource == Resource::Incident), "{updates:?}");
            known.apply(resource, Event::Init);
            assert!(reported.updates(&known).is_empty(), "it is being listed again");
        }
        known.errors.remove(&Resource::Incident);
        assert!(reported.updates(&known).is_empty(), "the others still fail");
        list(&mut known, "(");
        assert_eq!(reported.updates(&known), [WatchUpdate::Back]);
        // An operator mends the object.
        known.apply(Resource::Exemption, Event::Apply(exemption("one", "^ns-a$")));
        assert_eq!(reported.updates(&known), [WatchUpdate::Readable("Exemption one".to_owned())]);
        assert!(reported.updates(&known).is_empty());
    }

    #[test]
    fn the_log_and_the_declarations_in_objects_follow_the_watch() {
        let mut known = Known::default();
        let by_kubectl = |mode: &str| {
            let mut object = DynamicObject::new(enforcement::NAME, &api_resource(Resource::Enforcement))
                .data(json!({"spec": {"mode": mode, "by": "alice"}}));
            let fields = json!([{"manager": "kubectl", "operation": "Update", "time": "2026-01-02T10:00:00Z",
                "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:mode": {}}}}]);
            object.metadata.managed_fields = serde_json::from_value(fields).unwrap();
            object
        };
        let declared = |known: &Known| -> Vec<(String, String)> {
            let all = known.state.declared.all();
            all.map(|entry| (entry.decision.as_str().to_owned(), entry.at.to_string())).collect()
        };
        let entry = |kind: &str, at: &str| (kind.to_owned(), at.to_owned());
        known.apply(Resource::Enforcement, Event::Apply(by_kubectl("paused")));
        let paused = entry("paused", "2026-01-02T10:00:00Z");
        assert_eq!(declared(&known), std::slice::from_ref(&paused));
        let mut made = exemption("one", "^ns-a$");
        made.metadata.creation_timestamp = serde_json::from_value(json!("2026-01-02T11:00:00Z")).unwrap();
        known.apply(Resource::Exemption, Event::Apply(made));
        assert_eq!(declared(&known), [paused.clone(), entry("exemption_made", "2026-01-02T11:00:00Z")]);
        known.apply(Resource::Exemption, Event::Delete(exemption("one", "^ns-a$")));
        assert_eq!(declared(&known), [paused]);

        let mut logged = by_kubectl("dry-run");
        let log =
            r#"[7, {"at": "2026-01-01T00:00:00Z", "decision": "resumed", "actor": "bob", "reason": "x"}]"#;
        logged.metadata.annotations = Some([(super::super::objects::LOG.to_owned(), log.to_owned())].into());
        known.apply(Resource::Enforcement, Event::Apply(logged));
        let expected =
            [entry("resumed", "2026-01-01T00:00:00Z"), entry("mode_changed", "2026-01-02T10:00:00Z")];
        assert_eq!(declared(&known), expected, "an entry that can't be read is left out");
    }
}
