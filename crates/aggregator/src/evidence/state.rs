//! What is known of the accused namespaces, and what becomes of what was seen in them. Pure: the looking is done elsewhere, `due` says
//! where to look next, and `said` what is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use procscan_core::Moment;
use procscan_core::names::{PodRef, Text};
use procscan_core::policy::{Facts, Questions};

use super::lookup::Seen;
use super::room::Room;
use super::sweep::{Plan, Swept};
use super::sweeps::Sweeps;
use super::turn::Turns;
use super::waiting::{self, Inquiry};
use super::watches::Told;
use crate::kubernetes::{Refusal, RefusalKind};

/// How many Pods without a known App are looked up one by one with each look at a namespace: a node may name thousands
/// that do not exist, and each costs one of the paced requests.
pub(super) const MAX_STRANGERS: usize = 20;
/// How often what the watches tell is made use of, and the least time between two looks at a namespace in which something has changed.
pub(super) const CONFIRM: Duration = Duration::from_secs(10);

/// The accused namespaces.
#[derive(Default)]
pub(super) struct State {
    epoch: u64,
    pub(super) rooms: BTreeMap<Text, Room>,
    pub(super) inquiries: BTreeMap<Text, Inquiry>,
    pub(super) turns: Turns,
    /// Looks at many namespaces together.
    pub(super) sweeps: Sweeps,
    /// What the watches tell, while there are any.
    pub(super) told: Option<Told>,
    /// Up to when they had told everything when that was last made use of.
    confirmed: Option<Moment>,
    /// The namespaces that are being looked at one by one, and since when.
    pub(super) looking: BTreeMap<Text, Moment>,
    /// Routes are looked at, too.
    pub(super) with_routes: bool,
    /// How many Services were closed when that was last said.
    closed: usize,
    /// The namespaces that hold more than the limit, with the error.
    pub(super) too_large: BTreeMap<Text, String>,
    /// The namespaces that could not be looked at when that was last tried, and why.
    pub(super) failing: BTreeMap<Text, Refusal>,
    /// What was last said to stand in the way.
    pub(super) error: Option<Refusal>,
    /// It is said that some wait too long.
    pub(super) is_late: bool,
}

impl State {
    /// Takes the current questions, and forgets what is not asked any more. Whether the looks that have begun are of an earlier term,
    /// and must not count.
    pub(super) fn ask(&mut self, questions: &Questions, now: Moment) -> bool {
        let is_new_term = questions.epoch != self.epoch;
        if is_new_term {
            // What was known is of an earlier term: an App that was gone may be back.
            (self.epoch, self.rooms) = (questions.epoch, BTreeMap::new());
            self.looking.clear();
            self.sweeps.cancel();
        }
        self.closed = questions.services;
        self.inquiries = waiting::inquiries(questions, &self.rooms, &self.inquiries, now);
        let inquiries = &self.inquiries;
        self.rooms.retain(|namespace, _| inquiries.contains_key(namespace));
        self.too_large.retain(|namespace, _| inquiries.contains_key(namespace));
        self.sweeps.retain(|namespace| inquiries.contains_key(namespace));
        self.failing.retain(|namespace, _| inquiries.contains_key(namespace));
        self.tell();
        is_new_term
    }

    /// Judges what the watches allow to be judged without a look: in namespaces where nothing has changed since the last one. Whether
    /// anything was.
    pub(super) fn confirm(&mut self, now: Moment) -> bool {
        let Some(told) = &self.told else { return false };
        // What has changed and until when that is known belong together: nothing may be told in between.
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
                // What has changed before this look began is known with its end.
                && !self.looking.contains_key(namespace)
                && !self.sweeps.is_at(namespace)
            {
                is_news |= inquiry.confirm(room, until, now);
            }
        }
        is_news
    }

    /// Whether routes are looked at: `max_service_entries` will soon be reached, and the Ingresses should be known by then. It stays so
    /// until there are far fewer.
    pub(super) fn count_services(&mut self, max_service_entries: usize) {
        let seen = self.rooms.values().map(Room::services).sum::<usize>();
        // At the beginning of a term nothing has been looked at, and many may be closed.
        let services = seen.max(self.closed);
        let before = self.with_routes;
        self.with_routes = services * 5 >= max_service_entries * if before { 2 } else { 3 };
        if let Some(told) = self.told.as_ref().filter(|_| self.with_routes && !before) {
            // Until now their routes were not looked at.
            told.changes().look_again_at_all();
        }
    }

    /// Looks at these begin: what changes from now on is news.
    pub(super) fn begin_looks(&mut self, due: &[Text], now: Moment) {
        self.looking.extend(due.iter().map(|namespace| (namespace.clone(), now)));
        self.note_changes_in(due.iter());
    }

    /// What changes in these from now on is news.
    fn note_changes_in<'a>(&self, namespaces: impl Iterator<Item = &'a Text>) {
        let Some(told) = &self.told else { return };
        let mut changes = told.changes();
        namespaces.for_each(|namespace| changes.look_at(namespace));
    }

    /// A sweep over these begins.
    pub(super) fn begin_sweep(&mut self, plan: &Plan) {
        self.note_changes_in(plan.namespaces.iter());
        self.sweeps.begin(plan);
    }

    /// Takes in what a sweep has seen that began at `asked` and has ended at `now`. What it could not see is left to looks of their own.
    /// Returns the Pods that are proven gone, and until when their evidence counts for nothing.
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
                // Nothing that a sweep fails to read is a failure of this namespace's.
                gone.extend(self.take_in(&namespace, Ok(Some(found)), asked, patience).unwrap_or_default());
            } else if let Some(told) = &self.told {
                told.changes().look_again(&namespace);
            }
            if is_missed || self.rooms.get(&namespace).is_some_and(Room::has_unseen) {
                self.sweeps.miss(namespace);
            }
        }
        gone
    }

    /// Takes the result of a look that began at `asked`. Returns the Pods that are proven gone, each with the time
    /// until which its evidence counts for nothing; or why the cluster can't be asked.
    pub(super) fn see(
        &mut self,
        namespace: &Text,
        seen: Result<Option<Seen>, Refusal>,
        asked: Moment,
        patience: Duration,
    ) -> Result<Vec<(PodRef, Moment)>, Refusal> {
        self.looking.remove(namespace);
        self.sweeps.has_been_looked_at(namespace);
        self.take_in(namespace, seen, asked, patience)
    }

    fn take_in(
        &mut self,
        namespace: &Text,
        seen: Result<Option<Seen>, Refusal>,
        asked: Moment,
        patience: Duration,
    ) -> Result<Vec<(PodRef, Moment)>, Refusal> {
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
        let urgent = self.rooms.get(namespace).unwrap_or(&Room::default()).urgent(&inquiry.wanted);
        let of_apps: BTreeSet<&Text> = inquiry.wanted.of_apps().collect();
        let mut left = MAX_STRANGERS;
        let is_in_turn = |pod: &Text| {
            let is_stranger = !of_apps.contains(pod);
            let fits = !is_stranger || left > 0;
            left = left.saturating_sub(usize::from(is_stranger));
            fits
        };
        urgent.into_iter().filter(is_in_turn).collect()
    }

    /// What is known.
    pub(super) fn facts(&self) -> Facts {
        let mut facts = Facts { epoch: self.epoch, ..Facts::default() };
        for (namespace, room) in &self.rooms {
            let pod_ref = |pod: &Text| PodRef { namespace: namespace.clone(), pod: pod.clone() };
            facts.pods.extend(room.pods.iter().map(|(pod, fact)| (pod_ref(pod), fact.clone())));
            facts.apps.extend(room.apps.iter().map(|(app, fact)| (app.clone(), fact.clone())));
            if room.is_terminating {
                facts.terminating.insert(namespace.clone());
            }
        }
        facts
    }
}
