//! The facts of one namespace, and the conclusions from one more look-up. Pure: other modules ask the API server.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use procscan_core::Moment;
use procscan_core::identity::Service;
use procscan_core::names::{App, NodeName, PodRef, Text};
use procscan_core::plan::{Exposure, OtherApps, SharedService};
use procscan_core::policy::{AppFact, PodFact, PodIdentity, PodState};

use super::lookup::{NamespaceContents, Pod};

/// The facts that the policy requests of one namespace.
#[derive(Clone, Debug, Default)]
pub(super) struct RequestedFacts {
    /// The accused Pods.
    pub(super) pods: BTreeSet<Text>,
    /// The Apps with an open incident, and the Pods that were accused as theirs.
    pub(super) apps: BTreeMap<App, BTreeSet<(Text, PodIdentity)>>,
}

/// The facts of one namespace.
#[derive(Debug, Default)]
pub(super) struct NamespaceFacts {
    /// When it was last looked up; from before the first request.
    pub(super) asked: Option<Moment>,
    pub(super) pods: BTreeMap<Text, PodFact>,
    /// When Pods were last read directly, for those whose fact is newer because the watches have reported no change.
    pub(super) carried: BTreeMap<Text, Moment>,
    pub(super) apps: BTreeMap<App, AppFact>,
    pub(super) is_terminating: bool,
    /// The accused Pods that the last look-up neither found nor looked up by name: nothing new is known of them.
    unseen: BTreeSet<Text>,
    /// The last sighting of each accused Pod.
    sightings: BTreeMap<Text, PodSighting>,
    /// Since when no Pod of an App has been there.
    empty: BTreeMap<App, Moment>,
}

#[derive(Clone, Debug)]
enum PodSighting {
    /// The UID of the object, and when it was last seen.
    There(Text, Moment),
    /// Its absence has been reported.
    Gone,
}

impl RequestedFacts {
    /// Every Pod that has to be known for sure.
    pub(super) fn all_pods(&self) -> BTreeSet<Text> {
        self.pods.iter().chain(self.of_apps()).cloned().collect()
    }
}

impl RequestedFacts {
    /// The names of the Pods that were accused and belong to Apps with incidents.
    pub(super) fn of_apps(&self) -> impl Iterator<Item = &Text> {
        self.apps.values().flatten().map(|(name, _)| name)
    }
}

impl NamespaceFacts {
    /// Whether one more look-up is needed to know if one of its Apps or Pods is gone.
    pub(super) fn is_waiting(&self) -> bool {
        !self.empty.is_empty() || self.has_unseen()
    }

    /// Whether a Pod has to be looked up by name.
    pub(super) fn has_unseen(&self) -> bool {
        !self.unseen.is_empty()
    }

    /// Whether the facts of a Pod are as new as the last look-up.
    pub(super) fn is_seen(&self, pod: &Text) -> bool {
        !self.unseen.contains(pod)
    }

    /// Whether a Pod has not been read directly since `since`.
    pub(super) fn needs_read(&self, pod: &Text, since: Moment) -> bool {
        let read = self.carried.get(pod).copied().or_else(|| Some(self.pods.get(pod)?.asked));
        read.is_none_or(|read| read.uptime() < since.uptime())
    }

    /// The facts of a Pod are still true at `until`.
    pub(super) fn confirm(&mut self, pod: &Text, until: Moment) {
        let Some(fact) = self.pods.get_mut(pod).filter(|fact| fact.asked < until) else { return };
        self.carried.entry(pod.clone()).or_insert(fact.asked);
        fact.asked = until;
        if let Some(PodSighting::There(_, last)) = self.sightings.get_mut(pod) {
            *last = until.max(*last);
        }
    }

    /// Every Pod that has to be known for sure, the most urgent first: Pods by which an App may be proven gone with this
    /// look-up, Pods without facts, and the others in turn. One look-up may not get to all of them.
    pub(super) fn urgent(&self, requested: &RequestedFacts) -> Vec<Text> {
        let proving: BTreeSet<&Text> = self
            .empty
            .keys()
            .filter_map(|app| requested.apps.get(app))
            .flatten()
            .map(|(name, _)| name)
            .collect();
        let mut all: Vec<Text> = requested.all_pods().into_iter().collect();
        all.sort_by_key(|name| (!proving.contains(name), self.pods.get(name).map(|fact| fact.asked)));
        all
    }

    /// Takes the contents of the namespace: `None` if it does not exist. Returns the Pods that are proven gone, and until when
    /// their evidence counts for nothing.
    ///
    /// An App counts as gone when none of its Pods was there for `patience`: a Pod that is being replaced leaves a gap.
    pub(super) fn update(
        &mut self,
        namespace: &Text,
        requested: &RequestedFacts,
        seen: Option<NamespaceContents>,
        asked: Moment,
        patience: Duration,
    ) -> Vec<(PodRef, Moment)> {
        let exists = seen.is_some();
        let seen = seen.unwrap_or_default();
        self.asked = Some(asked);
        self.is_terminating = seen.is_terminating;
        let is_absent = |name: &Text| {
            !exists || seen.absent.contains(name) || seen.pods.get(name).is_some_and(|pod| pod.has_ended)
        };
        let there = |name: &Text| seen.pods.get(name).filter(|pod| !pod.has_ended);

        let all = requested.all_pods();
        let of_apps: BTreeSet<&Text> = requested.of_apps().collect();
        let mut gone = Vec::new();
        for name in &all {
            let pod_ref = || PodRef { namespace: namespace.clone(), pod: name.clone() };
            match (self.sightings.get(name), there(name)) {
                // Another object of the same name: the accused one is gone, and its evidence with it.
                (Some(PodSighting::There(uid, last)), Some(pod)) if *uid != pod.uid => {
                    gone.push((pod_ref(), *last));
                }
                // Gone before it was seen here, for example after a restart. It belongs to no App with an incident, so no
                // evidence of it was accepted, and there is nothing to clear.
                (None, None) if is_absent(name) && !of_apps.contains(name) => {}
                (None | Some(PodSighting::There(..)), None) if is_absent(name) => {
                    gone.push((pod_ref(), asked));
                    self.sightings.insert(name.clone(), PodSighting::Gone);
                }
                _ => {}
            }
            if let Some(pod) = there(name) {
                self.sightings.insert(name.clone(), PodSighting::There(pod.uid.clone(), asked));
            }
        }
        self.sightings.retain(|name, _| all.contains(name));

        self.pods.retain(|name, _| all.contains(name));
        self.carried.retain(|name, _| all.contains(name));
        self.unseen.clear();
        for name in &all {
            let state = match there(name) {
                Some(pod) => present(pod),
                None if is_absent(name) => PodState::Gone,
                // Its facts stay as old as they were. A Pod that is gone stays gone until it is listed.
                None => {
                    if self.pods.get(name).is_none_or(|fact| fact.state != PodState::Gone) {
                        self.unseen.insert(name.clone());
                    }
                    continue;
                }
            };
            self.pods.insert(name.clone(), PodFact { asked, state });
            self.carried.remove(name);
        }

        self.update_apps(namespace, requested, &seen, is_absent, asked, patience);
        gone
    }

    /// Updates the facts of the Apps. `is_absent` returns whether a Pod is proven not to be there.
    fn update_apps(
        &mut self,
        namespace: &Text,
        requested: &RequestedFacts,
        seen: &NamespaceContents,
        is_absent: impl Fn(&Text) -> bool,
        asked: Moment,
        patience: Duration,
    ) {
        let there = |name: &Text| seen.pods.get(name).filter(|pod| !pod.has_ended);
        // An App that is about to be accused is not requested yet: its Services are needed with its first block.
        let mut apps = requested.apps.clone();
        for name in &requested.pods {
            if let Some(pod) = there(name) {
                apps.entry(pod.app.clone()).or_default();
            }
        }
        let reach = Reach::of(seen);
        let selecting_none = reach.selecting_none(namespace);
        self.apps.clear();
        self.empty.retain(|app, _| apps.contains_key(app));
        for (app, accused) in &apps {
            let own = seen.pods.values().filter(|pod| !pod.has_ended && pod.app == *app);
            // The accused Pods count whatever their labels are now, but not other Pods of the same names.
            let itself = accused.iter().filter_map(|(name, which)| {
                there(name).filter(|pod| match which {
                    PodIdentity::Uid(uid) => *uid == pod.uid,
                    PodIdentity::Unknown => false,
                    PodIdentity::Any => true,
                })
            });
            let pods: Vec<&Pod> = own.chain(itself).collect();
            // If it is not known which Pod was accused, a Pod of that name may be it: the App is not gone, but the
            // Pod's labels close nothing.
            let is_over = |(name, which): &(Text, PodIdentity)| {
                let is_another = |uid: &Text| there(name).is_some_and(|pod| *uid != pod.uid);
                is_absent(name) || matches!(which, PodIdentity::Uid(uid) if is_another(uid))
            };
            let gone = if !pods.is_empty() {
                self.empty.remove(app);
                false
            } else if accused.iter().all(is_over) {
                let since = *self.empty.entry(app.clone()).or_insert(asked);
                since != asked && asked.since(since) >= patience
            } else {
                // None is listed, but not each was looked up by name: that proves neither absence nor presence.
                false
            };
            // Without a Pod there are no labels to match Services with: the facts stay.
            let exposing = if pods.is_empty() { Vec::new() } else { reach.exposing(app, &pods) };
            let exposure = (!pods.is_empty()).then(|| exposure(&exposing, namespace, seen));
            let shared = reach.shared(app, &pods, &exposing, namespace);
            let selecting_none = if pods.is_empty() { Arc::default() } else { selecting_none.clone() };
            self.apps.insert(app.clone(), AppFact { gone, exposure, shared, selecting_none });
        }
    }

    /// The namespace could not be looked up: nothing is known, and nothing follows.
    pub(super) fn set_unreadable(&mut self, requested: &RequestedFacts, why: &str, asked: Moment) {
        self.asked = Some(asked);
        self.empty.clear();
        self.unseen.clear();
        self.carried.clear();
        let unreadable = PodFact { asked, state: PodState::Unreadable(why.to_owned()) };
        self.pods = requested.all_pods().into_iter().map(|name| (name, unreadable.clone())).collect();
        self.apps = requested.apps.keys().map(|app| (app.clone(), AppFact::default())).collect();
    }

    /// How many Services are known to be closed.
    pub(super) fn services(&self) -> usize {
        self.apps
            .values()
            .filter_map(|app| app.exposure.as_ref())
            .map(|exposure| exposure.services.len())
            .sum()
    }
}

fn present(pod: &Pod) -> PodState {
    PodState::Present {
        uid: pod.uid.clone(),
        created: pod.created,
        // Nothing runs in a Pod without a node, so no node's report of it is true.
        node: NodeName::new(pod.node.as_deref().unwrap_or("(none yet)")),
        host_ips: pod.host_ips.clone(),
        app: pod.app.clone(),
        lineage: pod.lineage.clone(),
    }
}

/// Which Services of a namespace expose which Pods.
struct Reach<'a> {
    seen: &'a NamespaceContents,
    /// The Pods that each Service selects and that have not ended, by the Service's index; found when they are asked for.
    selected: Vec<OnceCell<Vec<&'a Pod>>>,
}

impl<'a> Reach<'a> {
    fn of(seen: &'a NamespaceContents) -> Self {
        Self { seen, selected: seen.services.iter().map(|_| OnceCell::new()).collect() }
    }

    /// The indices of the Services that expose `app`, whose Pods are `pods`.
    fn exposing(&self, app: &App, pods: &[&Pod]) -> Vec<usize> {
        let services = self.seen.services.iter().enumerate();
        let exposes = |service: &Service| service.exposes(app, pods.iter().map(|pod| &pod.labels));
        services.filter(|(_, service)| exposes(service)).map(|(place, _)| place).collect()
    }

    /// The Services that select no running Pod, ordered. A Pod that has not started does not run: no traffic reaches it.
    fn selecting_none(&self, namespace: &Text) -> Arc<[Text]> {
        let runs = |pod: &&Pod| !pod.has_ended && !pod.is_pending;
        let selects =
            |service: &Service| self.seen.pods.values().filter(runs).any(|pod| service.selects(&pod.labels));
        let services = self.seen.services.iter().filter(|service| !selects(service));
        let names: BTreeSet<Text> = services.map(|service| host(&service.name, namespace)).collect();
        names.into_iter().collect()
    }

    fn selected(&self, place: usize) -> &[&'a Pod] {
        let (Some(cell), Some(service)) = (self.selected.get(place), self.seen.services.get(place)) else {
            return &[];
        };
        cell.get_or_init(|| {
            let running = self.seen.pods.values().filter(|pod| !pod.has_ended);
            running.filter(|pod| service.selects(&pod.labels)).collect()
        })
    }

    /// Those of the Services `exposing` that expose other Apps too. `pods` belong to `app`, whatever their labels.
    fn shared(&self, app: &App, pods: &[&Pod], exposing: &[usize], namespace: &Text) -> Vec<SharedService> {
        let mut shared: Vec<SharedService> = Vec::new();
        for place in exposing {
            let is_its_own = |pod: &Pod| pod.app == *app || pods.iter().any(|own| own.uid == pod.uid);
            let others = self.selected(*place).iter().filter(|pod| !is_its_own(pod));
            let others = OtherApps::of(others.map(|pod| &pod.app).collect());
            if let Some(service) = self.seen.services.get(*place).filter(|_| !others.named.is_empty()) {
                shared.push(SharedService { service: host(&service.name, namespace), others });
            }
        }
        shared.sort_unstable_by(|a, b| a.service.cmp(&b.service));
        shared
    }
}

fn host(service: &Text, namespace: &Text) -> Text {
    format!("{service}.{namespace}.svc").into()
}

fn exposure(exposing: &[usize], namespace: &Text, seen: &NamespaceContents) -> Exposure {
    let services = exposing.iter().filter_map(|place| seen.services.get(*place));
    let names: BTreeSet<&Text> = services.map(|service| &service.name).collect();
    let host = |name: &&Text| host(name, namespace);
    let Some(routes) = &seen.routes else {
        return Exposure::plain(names.iter().map(host));
    };
    let ingresses: BTreeSet<&Text> =
        names.iter().filter_map(|name| routes.ingresses.get(*name)).flatten().collect();
    Exposure {
        services: names.iter().map(host).collect(),
        ingresses: ingresses.iter().map(|name| Text::from(format!("{namespace}/{name}"))).collect(),
        otherwise: names.iter().filter(|name| routes.otherwise.contains(**name)).map(host).collect(),
        ..Exposure::default()
    }
}

#[cfg(test)]
mod tests;
