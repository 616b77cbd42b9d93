//! What is known of the accused namespaces, and what follows from each look. Pure: other modules look, `due` decides
//! where to look next, and `said` reports what is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use procscan_core::Moment;
use procscan_core::names::{PodRef, Text};
use procscan_core::policy::{ClusterFacts, LookupRequests};

use super::lookup::Seen;
use super::namespace_facts::NamespaceFacts;
use super::sweep::{Plan, Swept};
use super::sweeps::Sweeps;
use super::turn::Turns;
use super::waiting::{self, PodLookup};
use super::watches::WatchStates;
use crate::kubernetes::{Refusal, RefusalKind};

/// How many Pods without a known App are looked up one by one with each look at a namespace: a node may name thousands
/// that do not exist, and each costs one of the paced requests.
pub(super) const MAX_UNKNOWN_PODS: usize = 20;
/// How often the reports of the watches are used, and the least time between two looks at a namespace that has changed.
pub(super) const CONFIRM: Duration = Duration::from_secs(10);

/// The result of a look at one namespace.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) namespace: Text,
    /// When it began.
    pub(super) asked: Moment,
    /// `None` if the namespace does not exist; or why the cluster can't be asked.
    pub(super) seen: Result<Option<Seen>, Refusal>,
}

/// The accused namespaces.
#[derive(Default)]
pub(super) struct State {
    epoch: u64,
    pub(super) rooms: BTreeMap<Text, NamespaceFacts>,
    pub(super) inquiries: BTreeMap<Text, PodLookup>,
    pub(super) turns: Turns,
    /// The looks at many namespaces together.
    pub(super) sweeps: Sweeps,
    /// The reports of the watches, while the cluster is watched.
    pub(super) told: Option<WatchStates>,
    /// Up to when the watches had reported everything when that was last used.
    confirmed: Option<Moment>,
    /// The namespaces that are being looked at one by one, and since when.
    pub(super) looking: BTreeMap<Text, Moment>,
    /// Routes are looked up, too.
    pub(super) with_routes: bool,
    /// How many Services were closed by the last questions.
    closed: usize,
    /// The namespaces that hold more than the limit, with the error.
    pub(super) too_large: BTreeMap<Text, String>,
    /// The namespaces whose last look failed, with the error.
    pub(super) failing: BTreeMap<Text, Refusal>,
    /// The error that was last logged.
    pub(super) error: Option<Refusal>,
    /// It is logged that some wait too long.
    pub(super) is_late: bool,
}

impl State {
    /// Takes the current questions, and forgets what is not asked any more. Returns whether the running looks belong to
    /// an earlier term and must not count.
    pub(super) fn ask(&mut self, questions: &LookupRequests, now: Moment) -> bool {
        let is_new_term = questions.epoch != self.epoch;
        if is_new_term {
            // What was known is of an earlier term: an App that was gone may be back.
            (self.epoch, self.rooms) = (questions.epoch, BTreeMap::new());
            self.looking.clear();
            self.sweeps.cancel();
        }
        self.closed = questions.services;
        self.inquiries = waiting::pod_lookups(questions, &self.rooms, &self.inquiries, now);
        let inquiries = &self.inquiries;
        self.rooms.retain(|namespace, _| inquiries.contains_key(namespace));
        self.too_large.retain(|namespace, _| inquiries.contains_key(namespace));
        self.sweeps.retain(|namespace| inquiries.contains_key(namespace));
        self.failing.retain(|namespace, _| inquiries.contains_key(namespace));
        self.tell();
        is_new_term
    }

    /// Judges what the watches allow to judge without a look: in namespaces where nothing has changed since the last
    /// one. Returns whether anything was judged.
    pub(super) fn confirm(&mut self, now: Moment) -> bool {
        let Some(told) = &self.told else { return false };
        // The changes and the moment up to which they are known belong together, so no watch may report in between.
        let changes = told.changes();
        let Some(until) = changes.told_until(now) else { return false };
        if self.confirmed.is_some_and(|confirmed| until.since(confirmed) < CONFIRM) {
            return false;
        }
        self.confirmed = Some(until);
        let mut is_news = false;
        for (namespace, inquiry) in &mut self.inquiries {
            if let Some(room) = self.rooms.get_mut(namespace)
                && room.asked.is_some()
                && !changes.has_changed(namespace)
                // Changes before this look began are known when it ends.
                && !self.looking.contains_key(namespace)
                && !self.sweeps.is_at(namespace)
            {
                is_news |= inquiry.confirm(room, until, now);
            }
        }
        is_news
    }

    /// Decides whether routes are looked up: `max_service_entries` will soon be reached, and the Ingresses should be
    /// known by then. Stays so until there are far fewer Services.
    pub(super) fn count_services(&mut self, max_service_entries: usize) {
        let seen = self.rooms.values().map(NamespaceFacts::services).sum::<usize>();
        // At the beginning of a term nothing has been looked at, but many Services may be closed.
        let services = seen.max(self.closed);
        let before = self.with_routes;
        self.with_routes = services * 5 >= max_service_entries * if before { 2 } else { 3 };
        if let Some(told) = self.told.as_ref().filter(|_| self.with_routes && !before) {
            // Their routes have not been looked up yet.
            told.changes().look_again_at_all();
        }
    }

    /// Looks at these namespaces begin: changes from now on are news.
    pub(super) fn begin_looks(&mut self, due: &[Text], now: Moment) {
        self.looking.extend(due.iter().map(|namespace| (namespace.clone(), now)));
        self.note_changes_in(due.iter());
    }

    /// Changes in these namespaces from now on are news.
    fn note_changes_in<'a>(&self, namespaces: impl Iterator<Item = &'a Text>) {
        let Some(told) = &self.told else { return };
        let mut changes = told.changes();
        namespaces.for_each(|namespace| changes.look_at(namespace));
    }

    /// A sweep over these namespaces begins.
    pub(super) fn begin_sweep(&mut self, plan: &Plan) {
        self.note_changes_in(plan.namespaces.iter());
        self.sweeps.begin(plan);
    }

    /// Takes the result of a sweep that began at `asked` and ended at `now`. Namespaces that it could not see need
    /// looks of their own. Returns the Pods that are proven gone, each with the time until which its evidence counts
    /// for nothing.
    pub(super) fn see_all(
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
                let looked = Looked { namespace: namespace.clone(), asked, seen: Ok(Some(found)) };
                gone.extend(self.take_in(looked, patience).unwrap_or_default());
            } else if let Some(told) = &self.told {
                told.changes().look_again(&namespace);
            }
            if is_missed || self.rooms.get(&namespace).is_some_and(NamespaceFacts::has_unseen) {
                self.sweeps.miss(namespace);
            }
        }
        gone
    }

    /// Takes the result of a look. Returns the Pods that are proven gone, each with the time until which its evidence
    /// counts for nothing; or why the cluster can't be asked.
    pub(super) fn see(
        &mut self,
        looked: Looked,
        patience: Duration,
    ) -> Result<Vec<(PodRef, Moment)>, Refusal> {
        self.looking.remove(&looked.namespace);
        self.sweeps.has_been_looked_at(&looked.namespace);
        self.take_in(looked, patience)
    }

    fn take_in(&mut self, looked: Looked, patience: Duration) -> Result<Vec<(PodRef, Moment)>, Refusal> {
        let Looked { namespace, asked, seen } = looked;
        let namespace = &namespace;
        let Some(inquiry) = self.inquiries.get_mut(namespace) else { return Ok(Vec::new()) };
        let room = self.rooms.entry(namespace.clone()).or_default();
        let outcome = match seen {
            Ok(seen) => {
                self.failing.remove(namespace);
                if self.too_large.remove(namespace).is_some() {
                    tracing::info!(%namespace, "an accused namespace can be looked at again");
                }
                Ok(room.see(namespace, &inquiry.wanted, seen, asked, patience))
            }
            Err(refusal) => {
                room.fail(&inquiry.wanted, &refusal.text, asked);
                if let Some(told) = &self.told {
                    told.changes().look_again(namespace);
                }
                if refusal.kind == RefusalKind::TooMuch {
                    // The tenant caused this; the cluster can still be asked.
                    if self.too_large.insert(namespace.clone(), refusal.text.clone()).is_none() {
                        let error = refusal.text;
                        tracing::error!(
                            alert = "evidence",
                            %namespace,
                            error,
                            "an accused namespace is too large to be looked at; nothing is blocked or released in it meanwhile"
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
        inquiry.judge(room, asked);
        self.tell();
        outcome
    }

    /// The Pods of `namespace` that have to be looked up one by one if they are not listed, the most urgent first.
    pub(super) fn urgent(&self, namespace: &Text) -> Vec<Text> {
        let Some(inquiry) = self.inquiries.get(namespace) else { return Vec::new() };
        let urgent = self.rooms.get(namespace).unwrap_or(&NamespaceFacts::default()).urgent(&inquiry.wanted);
        let of_apps: BTreeSet<&Text> = inquiry.wanted.of_apps().collect();
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
        let mut facts = ClusterFacts { epoch: self.epoch, ..ClusterFacts::default() };
        for (namespace, room) in &self.rooms {
            let pod_ref = |pod: &Text| PodRef { namespace: namespace.clone(), pod: pod.clone() };
            facts.pods.extend(room.pods.iter().map(|(pod, fact)| (pod_ref(pod), fact.clone())));
            facts.carried.extend(room.carried.iter().map(|(pod, read)| (pod_ref(pod), *read)));
            facts.apps.extend(room.apps.iter().map(|(app, fact)| (app.clone(), fact.clone())));
            if room.is_terminating {
                facts.terminating.insert(namespace.clone());
            }
        }
        facts
    }
}
