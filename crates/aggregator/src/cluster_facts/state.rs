//! The facts of the accused namespaces, and the conclusions from each look-up. Pure: other modules ask the API server,
//! `due` decides which namespaces are looked up next, and `reporting` reports failures.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use procscan_core::Moment;
use procscan_core::names::{PodRef, Text};
use procscan_core::policy::{ClusterFacts, LookupRequests};

use super::lookup::NamespaceContents;
use super::namespace_facts::NamespaceFacts;
use super::sweep::{Plan, Swept};
use super::sweeps::Sweeps;
use super::turn::Turns;
use super::waiting::{self, NamespaceLookup};
use super::watches::WatchStates;
use crate::kubernetes::{Refusal, RefusalKind};

/// How many Pods without a known App are looked up one by one with each look-up of a namespace: a node may name thousands
/// that do not exist, and each costs one of the paced requests.
pub(super) const MAX_UNKNOWN_PODS: usize = 20;
/// How often the reports of the watches are used, and the least time between two look-ups of a namespace that has changed.
pub(super) const CONFIRM: Duration = Duration::from_secs(10);

/// The result of a look-up of one namespace.
#[derive(Debug)]
pub(super) struct LookupResult {
    pub(super) namespace: Text,
    /// When it began.
    pub(super) asked: Moment,
    /// `None` if the namespace does not exist; or why the cluster can't be asked.
    pub(super) seen: Result<Option<NamespaceContents>, Refusal>,
}

/// The accused namespaces.
#[derive(Default)]
pub(super) struct State {
    epoch: u64,
    pub(super) namespace_facts: BTreeMap<Text, NamespaceFacts>,
    pub(super) lookups: BTreeMap<Text, NamespaceLookup>,
    pub(super) turns: Turns,
    /// The look-ups of many namespaces together.
    pub(super) sweeps: Sweeps,
    /// The reports of the watches, while the cluster is watched.
    pub(super) watch_states: Option<WatchStates>,
    /// Up to when the watches had reported everything when that was last used.
    confirmed: Option<Moment>,
    /// The namespaces that are being looked up one by one, and since when.
    pub(super) in_flight: BTreeMap<Text, Moment>,
    /// Whether routes are looked up, too.
    pub(super) with_routes: bool,
    /// How many Services were closed by the last requests.
    closed: usize,
    /// The namespaces that hold more than the limit, with the error.
    pub(super) too_large: BTreeMap<Text, String>,
    /// The namespaces whose last look-up failed, with the error.
    pub(super) failing: BTreeMap<Text, Refusal>,
    /// The error that was last logged.
    pub(super) error: Option<Refusal>,
    /// Whether the log says that some accusations wait too long.
    pub(super) is_late: bool,
}

impl State {
    /// Takes the current requests, and forgets namespaces that are not requested any more. Returns whether the running
    /// look-ups belong to an earlier term and must not count.
    pub(super) fn set_requests(&mut self, requests: &LookupRequests, now: Moment) -> bool {
        let is_new_term = requests.epoch != self.epoch;
        if is_new_term {
            // The facts are of an earlier term: an App that was gone may be back.
            (self.epoch, self.namespace_facts) = (requests.epoch, BTreeMap::new());
            self.in_flight.clear();
            self.sweeps.cancel();
        }
        self.closed = requests.services;
        self.lookups = waiting::by_namespace(requests, &self.namespace_facts, &self.lookups, now);
        let lookups = &self.lookups;
        self.namespace_facts.retain(|namespace, _| lookups.contains_key(namespace));
        self.too_large.retain(|namespace, _| lookups.contains_key(namespace));
        self.sweeps.retain(|namespace| lookups.contains_key(namespace));
        self.failing.retain(|namespace, _| lookups.contains_key(namespace));
        self.log_failures();
        is_new_term
    }

    /// Judges without a look-up in namespaces where nothing has changed since the last one, according to the watches.
    /// Returns whether anything was judged.
    pub(super) fn confirm(&mut self, now: Moment) -> bool {
        let Some(states) = &self.watch_states else { return false };
        // The changes and the moment up to which they are known belong together, so no watch may report in between.
        let changes = states.changes();
        let Some(until) = changes.reported_until(now) else { return false };
        if self.confirmed.is_some_and(|confirmed| until.since(confirmed) < CONFIRM) {
            return false;
        }
        self.confirmed = Some(until);
        let mut is_changed = false;
        for (namespace, lookup) in &mut self.lookups {
            if let Some(facts) = self.namespace_facts.get_mut(namespace)
                && facts.asked.is_some()
                && !changes.has_changed(namespace)
                // Changes before this look-up began are known when it ends.
                && !self.in_flight.contains_key(namespace)
                && !self.sweeps.is_at(namespace)
            {
                is_changed |= lookup.confirm(facts, until, now);
            }
        }
        is_changed
    }

    /// Decides whether routes are looked up: `max_service_entries` will soon be reached, and the Ingresses should be
    /// known by then. Stays so until there are far fewer Services.
    pub(super) fn count_services(&mut self, max_service_entries: usize) {
        let seen = self.namespace_facts.values().map(NamespaceFacts::services).sum::<usize>();
        // At the beginning of a term nothing has been looked up, but many Services may be closed.
        let services = seen.max(self.closed);
        let before = self.with_routes;
        self.with_routes = services * 5 >= max_service_entries * if before { 2 } else { 3 };
        if let Some(states) = self.watch_states.as_ref().filter(|_| self.with_routes && !before) {
            // Their routes have not been looked up yet.
            states.changes().mark_all_changed();
        }
    }

    /// Look-ups of these namespaces begin: changes from now on make another look-up necessary.
    pub(super) fn begin_lookups(&mut self, due: &[Text], now: Moment) {
        self.in_flight.extend(due.iter().map(|namespace| (namespace.clone(), now)));
        self.note_changes_in(due.iter());
    }

    /// Changes in these namespaces from now on make another look-up necessary.
    fn note_changes_in<'a>(&self, namespaces: impl Iterator<Item = &'a Text>) {
        let Some(states) = &self.watch_states else { return };
        let mut changes = states.changes();
        namespaces.for_each(|namespace| changes.begin_lookup(namespace));
    }

    /// A sweep over these namespaces begins.
    pub(super) fn begin_sweep(&mut self, plan: &Plan) {
        self.note_changes_in(plan.namespaces.iter());
        self.sweeps.begin(plan);
    }

    /// Takes the result of a sweep that began at `asked` and ended at `now`. Namespaces that it could not see need
    /// look-ups of their own. Returns the Pods that are proven gone, each with the time until which its evidence counts
    /// for nothing.
    pub(super) fn apply_sweep(
        &mut self,
        Swept { mut seen, ended }: Swept,
        asked: Moment,
        now: Moment,
        patience: Duration,
    ) -> Vec<(PodRef, Moment)> {
        let mut gone = Vec::new();
        for namespace in self.sweeps.end(ended, asked, now) {
            let found = seen.remove(&namespace);
            let is_missed = found.is_none();
            if let Some(found) = found {
                // An error of the sweep is no error of this namespace.
                let result = LookupResult { namespace: namespace.clone(), asked, seen: Ok(Some(found)) };
                gone.extend(self.apply(result, patience).unwrap_or_default());
            } else if let Some(states) = &self.watch_states {
                states.changes().mark_changed(&namespace);
            }
            if is_missed || self.namespace_facts.get(&namespace).is_some_and(NamespaceFacts::has_unseen) {
                self.sweeps.miss(namespace);
            }
        }
        gone
    }

    /// Takes the result of a look-up. Returns the Pods that are proven gone, each with the time until which its evidence
    /// counts for nothing; or why the cluster can't be asked.
    pub(super) fn apply_lookup(
        &mut self,
        result: LookupResult,
        patience: Duration,
    ) -> Result<Vec<(PodRef, Moment)>, Refusal> {
        self.in_flight.remove(&result.namespace);
        self.sweeps.was_looked_up(&result.namespace);
        self.apply(result, patience)
    }

    fn apply(&mut self, result: LookupResult, patience: Duration) -> Result<Vec<(PodRef, Moment)>, Refusal> {
        let LookupResult { namespace, asked, seen } = result;
        let namespace = &namespace;
        let Some(lookup) = self.lookups.get_mut(namespace) else { return Ok(Vec::new()) };
        let facts = self.namespace_facts.entry(namespace.clone()).or_default();
        let outcome = match seen {
            Ok(seen) => {
                self.failing.remove(namespace);
                if self.too_large.remove(namespace).is_some() {
                    tracing::info!(%namespace, "an accused namespace can be looked up again");
                }
                Ok(facts.update(namespace, &lookup.requested, seen, asked, patience))
            }
            Err(refusal) => {
                facts.set_unreadable(&lookup.requested, &refusal.text, asked);
                if let Some(states) = &self.watch_states {
                    states.changes().mark_changed(namespace);
                }
                if refusal.kind == RefusalKind::TooMuch {
                    // The tenant caused this; the cluster can still be asked.
                    if self.too_large.insert(namespace.clone(), refusal.text.clone()).is_none() {
                        let error = refusal.text;
                        tracing::error!(
                            alert = "evidence",
                            %namespace,
                            error,
                            "an accused namespace is too large to be looked up; nothing is blocked or released in it meanwhile"
                        );
                    }
                    self.failing.remove(namespace);
                    Ok(Vec::new())
                } else {
                    self.failing.insert(namespace.clone(), refusal.clone());
                    Err(refusal)
                }
            }
        };
        lookup.judge(facts, asked);
        self.log_failures();
        outcome
    }

    /// The Pods of `namespace` that have to be looked up one by one if they are not listed, the most urgent first.
    pub(super) fn urgent(&self, namespace: &Text) -> Vec<Text> {
        let Some(lookup) = self.lookups.get(namespace) else { return Vec::new() };
        let urgent = self
            .namespace_facts
            .get(namespace)
            .unwrap_or(&NamespaceFacts::default())
            .urgent(&lookup.requested);
        let of_apps: BTreeSet<&Text> = lookup.requested.of_apps().collect();
        let mut left = MAX_UNKNOWN_PODS;
        let is_in_turn = |pod: &Text| {
            let is_unknown = !of_apps.contains(pod);
            let fits = !is_unknown || left > 0;
            left = left.saturating_sub(usize::from(is_unknown));
            fits
        };
        urgent.into_iter().filter(is_in_turn).collect()
    }

    /// The facts for the policy.
    pub(super) fn facts(&self) -> ClusterFacts {
        let mut all = ClusterFacts { epoch: self.epoch, ..ClusterFacts::default() };
        for (namespace, facts) in &self.namespace_facts {
            let pod_ref = |pod: &Text| PodRef { namespace: namespace.clone(), pod: pod.clone() };
            all.pods.extend(facts.pods.iter().map(|(pod, fact)| (pod_ref(pod), fact.clone())));
            all.carried.extend(facts.carried.iter().map(|(pod, read)| (pod_ref(pod), *read)));
            all.apps.extend(facts.apps.iter().map(|(app, fact)| (app.clone(), fact.clone())));
            if facts.is_terminating {
                all.terminating.insert(namespace.clone());
            }
        }
        all
    }
}
