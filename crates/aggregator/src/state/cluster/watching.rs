//! Keeps [`Kept`] like the objects, on every replica: what operators write shows at once, wherever they write it.

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
use super::objects::{created, declared_mode, exemption, kept, logged, part, plural};
use crate::kubernetes::{self, Refusal};
use crate::state::crd::Resource;
use crate::state::persisted_state::{Declared, IncidentEntry, PersistedState, Unread};

/// Changes within it are shown together: a storm writes many incidents.
const SETTLE: Duration = Duration::from_millis(50);

/// What operators declare, apart from single Incidents.
const DECLARED: [Resource; 2] = [Resource::Exemption, Resource::Enforcement];

/// Watches the objects.
#[derive(Debug)]
pub struct Watching {
    objects: Objects,
    asked: watch::Receiver<Asked>,
}

/// The last request to list anew.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    /// Counted from 1.
    number: u64,
    /// Incidents are many: they are listed anew only if that is asked for.
    with_incidents: bool,
}

/// Asks [`Watching`] to list what operators declare anew: a watch may hang for minutes, or fail, and then shows what they
/// wanted before.
#[derive(Debug)]
pub struct Relist(watch::Sender<Asked>);

impl Relist {
    /// Asks, with or without the Incidents. Returns the number of the request: [`Kept::as_of`] reaches it with lists that
    /// were begun after it.
    pub fn ask(&self, with_incidents: bool) -> u64 {
        let number = self.0.borrow().number + 1;
        self.0.send_replace(Asked { number, with_incidents });
        number
    }
}

type Changes = BoxStream<'static, (Resource, Result<Event<DynamicObject>, watcher::Error>)>;

/// The objects of each kind, as the watch has told of them.
#[derive(Default)]
struct Known {
    kept: PersistedState,
    /// What a list that is still coming in has brought so far.
    coming: BTreeMap<Resource, Part>,
    /// The kinds that have been listed whole.
    listed: BTreeMap<Resource, bool>,
    errors: BTreeMap<Resource, String>,
    /// Why the Enforcement, which applies to all decisions, can't be read.
    unread_enforcement: Option<String>,
    /// The number of the last request to list anew.
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
    /// Watches `objects`. What they are now is asked for by [`Relist`].
    pub fn new(objects: Objects) -> (Self, Relist) {
        let (ask, asked) = watch::channel(Asked::default());
        (Self { objects, asked }, Relist(ask))
    }

    /// Runs until cancelled. `error` says why the objects can't be watched, if so; the last that was known stays.
    pub async fn run(
        mut self,
        shown: watch::Sender<Arc<PersistedState>>,
        error: watch::Sender<Option<String>>,
        cancel: CancellationToken,
    ) {
        let (mut known, mut said) = (Known::default(), ReportedErrors::default());
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
            let settled = tokio::time::sleep(SETTLE);
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
                known.kept.as_of = known.asked;
            }
            known.kept.is_complete = Resource::ALL.iter().all(|resource| known.listed.contains_key(resource));
            shown.send_replace(Arc::new(known.kept.clone()));
            said.news(&known).iter().for_each(WatchUpdate::log);
            let unreadable = known.unreadable().into_values();
            let problems: Vec<String> = known.errors.values().cloned().chain(unreadable).take(3).collect();
            let now = (!problems.is_empty()).then(|| problems.join("; "));
            error.send_if_modified(|before| {
                let is_news = *before != now;
                if is_news {
                    *before = now;
                }
                is_news
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

    /// Takes a complete list. An object that can't be read any more counts as it was read last.
    fn replace(&mut self, resource: Resource, mut part: Part) {
        match resource {
            Resource::Incident => {
                let before = std::mem::take(&mut self.kept.incidents);
                let is_unread = |name: &Text| part.unread.incidents.contains_key(name);
                part.incidents.extend(before.into_iter().filter(|(name, _)| is_unread(name)));
                self.kept.incidents = part.incidents;
                self.kept.unread.incidents = part.unread.incidents;
            }
            Resource::Exemption => {
                let before = std::mem::take(&mut self.kept.exemptions);
                let is_unread = |name: &String| part.unread.exemptions.contains_key(name);
                part.exemptions.extend(before.into_iter().filter(|(name, _)| is_unread(name)));
                self.kept.exemptions = part.exemptions;
                self.kept.declared.exemptions = part.declared.exemptions;
                self.kept.unread.exemptions = part.unread.exemptions;
            }
            Resource::Enforcement => {
                self.unread_enforcement = part.unread_enforcement;
                (self.kept.declared.log, self.kept.declared.mode) = (part.declared.log, part.declared.mode);
                if self.unread_enforcement.is_none() {
                    self.kept.enforcement = part.enforcement;
                } else if !self.listed.contains_key(&resource) {
                    // Nothing is decided before the Enforcement could be read once.
                    return;
                }
            }
        }
        self.listed.insert(resource, true);
    }

    /// Takes the current state of one object: `part` is empty if it was deleted.
    fn change(&mut self, resource: Resource, name: &str, part: Part) {
        match resource {
            Resource::Incident => {
                self.kept.unread.incidents.remove(name);
                if part.incidents.is_empty() && part.unread.incidents.is_empty() {
                    self.kept.incidents.remove(name);
                }
                self.kept.incidents.extend(part.incidents);
                self.kept.unread.incidents.extend(part.unread.incidents);
            }
            Resource::Exemption => {
                self.kept.unread.exemptions.remove(name);
                if part.exemptions.is_empty() && part.unread.exemptions.is_empty() {
                    self.kept.exemptions.remove(name);
                }
                self.kept.declared.exemptions.remove(name);
                self.kept.declared.exemptions.extend(part.declared.exemptions);
                self.kept.exemptions.extend(part.exemptions);
                self.kept.unread.exemptions.extend(part.unread.exemptions);
            }
            Resource::Enforcement if name == enforcement::NAME => {
                self.unread_enforcement = part.unread_enforcement;
                (self.kept.declared.log, self.kept.declared.mode) = (part.declared.log, part.declared.mode);
                if self.unread_enforcement.is_none() {
                    self.kept.enforcement = part.enforcement;
                    self.listed.insert(resource, true);
                }
            }
            Resource::Enforcement => {}
        }
    }

    /// The objects that can't be read, and what follows from that.
    fn unreadable(&self) -> BTreeMap<String, String> {
        let mut all = self.kept.unreadable();
        if let Some(error) = &self.unread_enforcement {
            let id = format!("Enforcement {}", enforcement::NAME);
            all.insert(id.clone(), format!("{id} can't be read: {error}"));
        }
        all
    }
}

/// What has been logged of the watch: each state once, when it begins and when it ends.
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
    fn news(&mut self, known: &Known) -> Vec<WatchUpdate> {
        let mut news = Vec::new();
        let lost = known.errors.values().next();
        if let Some(error) = lost.filter(|_| !self.is_lost) {
            news.push(WatchUpdate::Lost(error.clone()));
        } else if lost.is_none() && self.is_lost {
            news.push(WatchUpdate::Back);
        }
        self.is_lost = lost.is_some();
        let unreadable = known.unreadable();
        let is_new = |(id, text): &(&String, &String)| self.unreadable.get(*id) != Some(*text);
        news.extend(unreadable.iter().filter(is_new).map(|(_, text)| WatchUpdate::Unreadable(text.clone())));
        let is_over = |id: &&String| !unreadable.contains_key(*id);
        news.extend(self.unreadable.keys().filter(is_over).map(|id| WatchUpdate::Readable(id.clone())));
        self.unreadable = unreadable;
        news
    }
}

impl WatchUpdate {
    fn log(&self) {
        match self {
            Self::Lost(error) => tracing::error!(
                alert = "state",
                error,
                "what is kept can't be watched; the last known state counts"
            ),
            Self::Back => tracing::info!("what is kept can be watched again"),
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
            Resource::Incident => match kept(object) {
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
    fn each_state_is_said_once_when_it_begins_and_when_it_ends() {
        let (mut known, mut said) = (Known::default(), ReportedErrors::default());
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
        assert!(matches!(said.news(&known)[..], [WatchUpdate::Unreadable(_)]));
        assert!(said.news(&known).is_empty());
        // An outage, in which each kind fails in its own words and its own time, and is listed anew after it.
        for (resource, error) in Resource::ALL.into_iter().zip(["timeout", "refused", "reset"]) {
            known.errors.insert(resource, error.to_owned());
            let news = said.news(&known);
            assert_eq!(news.len(), usize::from(resource == Resource::Incident), "{news:?}");
            known.apply(resource, Event::Init);
            assert!(said.news(&known).is_empty(), "it is being listed again");
        }
        known.errors.remove(&Resource::Incident);
        assert!(said.news(&known).is_empty(), "the others are still out");
        list(&mut known, "(");
        assert_eq!(said.news(&known), [WatchUpdate::Back]);
        // Mended.
        known.apply(Resource::Exemption, Event::Apply(exemption("one", "^ns-a$")));
        assert_eq!(said.news(&known), [WatchUpdate::Readable("Exemption one".to_owned())]);
        assert!(said.news(&known).is_empty());
    }

    #[test]
    fn the_log_and_what_the_objects_declare_follow_the_watch() {
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
            let all = known.kept.declared.all();
            all.map(|entry| (entry.decision.as_str().to_owned(), entry.at.to_string())).collect()
        };
        let told = |kind: &str, at: &str| (kind.to_owned(), at.to_owned());
        known.apply(Resource::Enforcement, Event::Apply(by_kubectl("paused")));
        let paused = told("paused", "2026-01-02T10:00:00Z");
        assert_eq!(declared(&known), std::slice::from_ref(&paused));
        let mut made = exemption("one", "^ns-a$");
        made.metadata.creation_timestamp = serde_json::from_value(json!("2026-01-02T11:00:00Z")).unwrap();
        known.apply(Resource::Exemption, Event::Apply(made));
        assert_eq!(declared(&known), [paused.clone(), told("exemption_made", "2026-01-02T11:00:00Z")]);
        known.apply(Resource::Exemption, Event::Delete(exemption("one", "^ns-a$")));
        assert_eq!(declared(&known), [paused]);

        let mut logged = by_kubectl("dry-run");
        let log =
            r#"[7, {"at": "2026-01-01T00:00:00Z", "decision": "resumed", "actor": "bob", "reason": "x"}]"#;
        logged.metadata.annotations = Some([(super::super::objects::LOG.to_owned(), log.to_owned())].into());
        known.apply(Resource::Enforcement, Event::Apply(logged));
        let expected =
            [told("resumed", "2026-01-01T00:00:00Z"), told("mode_changed", "2026-01-02T10:00:00Z")];
        assert_eq!(declared(&known), expected, "an entry that can't be read is left out");
    }
}
