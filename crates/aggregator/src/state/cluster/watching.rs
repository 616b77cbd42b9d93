//! Keeps [`Kept`] like the objects, on every replica: what operators write shows at once, wherever they write it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use kube::ResourceExt;
use kube::core::DynamicObject;
use kube::runtime::watcher::{self, Event};
use procscan_core::names::Text;
use procscan_core::state::{EnforcementSpec, ExemptionSpec, enforcement};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Objects;
use super::objects::{kept, part, plural};
use crate::kubernetes::{self, Refusal};
use crate::state::crd::Resource;
use crate::state::kept::{Kept, KeptIncident};

/// Changes within it are shown together: a storm writes many incidents.
const SETTLE: Duration = Duration::from_millis(50);

/// Watches the objects.
#[derive(Debug)]
pub struct Watching {
    /// The objects.
    pub objects: Objects,
}

type Changes = BoxStream<'static, (Resource, Result<Event<DynamicObject>, watcher::Error>)>;

/// The objects of each kind, as the watch has told of them.
#[derive(Default)]
struct Known {
    kept: Kept,
    /// What a list that is still coming in has brought so far.
    coming: BTreeMap<Resource, Part>,
    /// The kinds that have been listed whole.
    listed: BTreeMap<Resource, bool>,
    errors: BTreeMap<Resource, String>,
    unreadable: BTreeMap<(Resource, String), String>,
}

#[derive(Default)]
struct Part {
    incidents: BTreeMap<Text, Arc<KeptIncident>>,
    exemptions: BTreeMap<String, ExemptionSpec>,
    enforcement: EnforcementSpec,
}

impl Watching {
    /// Runs until cancelled. `error` says why the objects can't be watched, if so; the last that was known stays.
    pub async fn run(
        self,
        shown: watch::Sender<Arc<Kept>>,
        error: watch::Sender<Option<String>>,
        cancel: CancellationToken,
    ) {
        let mut changes: Changes =
            stream::select_all(Resource::ALL.map(|resource| self.changes(resource))).boxed();
        let mut known = Known::default();
        loop {
            let first = tokio::select! {
                () = cancel.cancelled() => return,
                change = changes.next() => change,
            };
            let Some((resource, change)) = first else { return };
            self.take_in(&mut known, resource, change);
            let settled = tokio::time::sleep(SETTLE);
            tokio::pin!(settled);
            loop {
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = &mut settled => break,
                    change = changes.next() => match change {
                        Some((resource, change)) => self.take_in(&mut known, resource, change),
                        None => return,
                    },
                }
            }
            known.kept.is_complete = Resource::ALL.iter().all(|resource| known.listed.contains_key(resource));
            shown.send_replace(Arc::new(known.kept.clone()));
            let problems: Vec<String> =
                known.errors.values().chain(known.unreadable.values()).take(3).cloned().collect();
            let now = (!problems.is_empty()).then(|| problems.join("; "));
            error.send_if_modified(|before| {
                let is_news = *before != now;
                if is_news {
                    if let Some(error) = &now {
                        tracing::error!(
                            alert = "state",
                            error,
                            "what is kept can't be watched; the last that is known counts"
                        );
                    } else {
                        tracing::info!("what is kept can be watched again");
                    }
                    *before = now;
                }
                is_news
            });
        }
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
            Event::Init => {
                self.coming.insert(resource, Part::default());
                self.unreadable.retain(|(of, _), _| *of != resource);
            }
            Event::InitApply(object) => {
                let mut part = self.coming.remove(&resource).unwrap_or_default();
                self.put(&mut part, resource, &object);
                self.coming.insert(resource, part);
            }
            Event::InitDone => {
                let mut part = self.coming.remove(&resource).unwrap_or_default();
                // What can't be read any more counts as it was read last.
                let unreadable = |name: &str| self.unreadable.contains_key(&(resource, name.to_owned()));
                match resource {
                    Resource::Incident => {
                        let before = std::mem::take(&mut self.kept.incidents);
                        for (name, incident) in before.into_iter().filter(|(name, _)| unreadable(name)) {
                            part.incidents.entry(name).or_insert(incident);
                        }
                        self.kept.incidents = part.incidents;
                    }
                    Resource::Exemption => {
                        let before = std::mem::take(&mut self.kept.exemptions);
                        for (name, exemption) in before.into_iter().filter(|(name, _)| unreadable(name)) {
                            part.exemptions.entry(name).or_insert(exemption);
                        }
                        self.kept.exemptions = part.exemptions;
                    }
                    Resource::Enforcement if unreadable(enforcement::NAME) => {
                        if !self.listed.contains_key(&resource) {
                            // Nobody knows what operators want: nothing is decided until somebody does.
                            return;
                        }
                    }
                    Resource::Enforcement => self.kept.enforcement = part.enforcement,
                }
                self.listed.insert(resource, true);
            }
            Event::Apply(object) => {
                let mut part = Part::default();
                self.put(&mut part, resource, &object);
                let name = object.name_any();
                match resource {
                    Resource::Incident => self.kept.incidents.extend(part.incidents),
                    Resource::Exemption => self.kept.exemptions.extend(part.exemptions),
                    Resource::Enforcement
                        if name == enforcement::NAME && !self.unreadable.contains_key(&(resource, name)) =>
                    {
                        self.kept.enforcement = part.enforcement;
                        self.listed.insert(resource, true);
                    }
                    Resource::Enforcement => {}
                }
            }
            Event::Delete(object) => {
                let name = object.name_any();
                self.unreadable.remove(&(resource, name.clone()));
                match resource {
                    Resource::Incident => drop(self.kept.incidents.remove(&*name)),
                    Resource::Exemption => drop(self.kept.exemptions.remove(&name)),
                    Resource::Enforcement if name == enforcement::NAME => {
                        self.kept.enforcement = EnforcementSpec::default();
                        self.listed.insert(resource, true);
                    }
                    Resource::Enforcement => {}
                }
            }
        }
    }

    fn put(&mut self, into: &mut Part, resource: Resource, object: &DynamicObject) {
        let name = object.name_any();
        let put = match resource {
            Resource::Incident => kept(object)
                .map(|incident| drop(into.incidents.insert(name.as_str().into(), Arc::new(incident)))),
            Resource::Exemption => {
                part(object, "spec").and_then(|spec: ExemptionSpec| {
                    let rule = spec.rule().map(drop).map_err(|error| format!("spec.{error}"));
                    // It covers nothing, and is shown with the reason.
                    into.exemptions.insert(name.clone(), spec);
                    rule
                })
            }
            Resource::Enforcement if name == enforcement::NAME => {
                part(object, "spec").map(|spec| into.enforcement = spec)
            }
            Resource::Enforcement => Ok(()),
        };
        let id = (resource, name);
        match put {
            Ok(()) => drop(self.unreadable.remove(&id)),
            Err(error) => {
                let text = format!("{} {} can't be read: {error}", resource.kind(), id.1);
                self.unreadable.insert(id, text);
            }
        }
    }
}
