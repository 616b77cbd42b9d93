//! What the cluster itself says of the accusations: asks for the accused Pods and the Services of their Apps.
//! Only accused namespaces are looked at, each at most once a second, and again each round. All requests together keep
//! to a pace, so that a bad rule or a lying node costs the API server no more than that. Accusations that wait too long
//! are reported in the log and in the details of `/readyz`.
//! `turn` orders the looks, `waiting` knows what is asked and what has not been judged, `lookup` asks the API server
//! through `listing`, which limits the cost of one namespace, and `room` draws the conclusions.

mod fields;
mod listing;
mod lookup;
mod room;
mod turn;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use procscan_core::Moment;
use procscan_core::names::{PodRef, Text};
use procscan_core::policy::{Facts, Questions};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::listing::Look;
use self::lookup::Seen;
use self::room::Room;
use self::turn::{Candidate, Turns};
pub use self::waiting::EvidenceStatus;
use self::waiting::Inquiry;
use crate::clock::Clock;
use crate::kubernetes::{Cluster, Refusal, RefusalKind};

/// How many namespaces are looked at together.
const BATCH: usize = 8;
/// The least time between two looks at one namespace.
const GAP: Duration = Duration::from_secs(1);
/// How many Pods without a known App are looked up one by one with each look at a namespace: a node may name thousands
/// that do not exist, and each costs one of the paced requests.
const MAX_STRANGERS: usize = 20;

/// A Pod that is proven gone: what was seen of it until then is cleared.
#[derive(Clone, Debug)]
pub struct PodGone {
    /// The Pod.
    pub pod: PodRef,
    /// Until when.
    pub until: Moment,
}

/// Answers the policy's questions.
#[derive(Debug)]
pub struct Evidence {
    /// The connection.
    pub cluster: Cluster,
    /// How often everything is looked at again.
    pub interval: Duration,
    /// From how many closed Services on their Ingresses matter (see `gateway.max_service_entries`).
    pub max_service_entries: usize,
    /// What time it is.
    pub clock: Clock,
    /// Has one permit, for one large namespace at a time.
    pub large: Semaphore,
}

#[derive(Default)]
struct State {
    epoch: u64,
    rooms: BTreeMap<Text, Room>,
    inquiries: BTreeMap<Text, Inquiry>,
    turns: Turns,
    /// How many Services were closed when that was last said.
    closed: usize,
    /// The namespaces that hold more than the limit, with the error.
    too_large: BTreeMap<Text, String>,
    error: Option<Refusal>,
    is_late: bool,
}

impl Evidence {
    /// Runs until cancelled, or until the questions have no sender any more.
    ///
    /// `status` shows why the cluster can't be asked and how long accusations wait.
    pub async fn run(
        self,
        mut questions: watch::Receiver<Arc<Questions>>,
        facts: watch::Sender<Arc<Facts>>,
        gone: mpsc::Sender<PodGone>,
        status: watch::Sender<EvidenceStatus>,
        cancel: CancellationToken,
    ) {
        let mut state = State::default();
        questions.mark_changed();
        loop {
            let now = self.clock.now();
            if questions.has_changed().unwrap_or(false) {
                state.ask(&questions.borrow_and_update(), now);
            }
            state.show(&status, now);
            let (due, next) = state.due(now, self.interval);
            if due.is_empty() {
                tokio::select! {
                    () = cancel.cancelled() => return,
                    changed = questions.changed() => match changed {
                        // The next pass takes them.
                        Ok(()) => questions.mark_changed(),
                        Err(_) => return,
                    },
                    () = tokio::time::sleep(next) => {}
                }
                continue;
            }
            let mut cleared = Vec::new();
            let mut failure = None;
            let mut looks = self.looks(&state, due);
            // Each answer is taken as it comes, so that a large namespace is not held until the others are known.
            loop {
                let (namespace, seen) = tokio::select! {
                    () = cancel.cancelled() => return,
                    seen = looks.next() => match seen {
                        Some(seen) => seen,
                        None => break,
                    },
                };
                match state.see(&namespace, seen, now, self.interval) {
                    Ok(gone) => cleared.extend(gone),
                    Err(refusal) => failure = Some(refusal),
                }
            }
            state.tell(failure);
            facts.send_replace(Arc::new(state.facts()));
            for (pod, until) in cleared {
                // The ledger stops listening only at the end.
                let _ = gone.send(PodGone { pod, until }).await;
            }
        }
    }

    /// Looks at the namespaces that are `due`, all at once.
    fn looks<'a>(
        &'a self,
        state: &State,
        due: Vec<Text>,
    ) -> FuturesUnordered<impl Future<Output = (Text, Result<Option<Seen>, Refusal>)> + use<'a>> {
        // `max_service_entries` will soon be reached, and the Ingresses should be known by then.
        let with_routes = state.services() * 5 >= self.max_service_entries * 3;
        let looks = due.into_iter().map(|namespace| {
            let pods = state.urgent(&namespace);
            async move {
                let look = Look::new(&self.cluster, &namespace, &self.large);
                let seen = lookup::look(look, self.clock, &pods, with_routes).await;
                (namespace, seen)
            }
        });
        looks.collect()
    }
}

impl State {
    /// Takes the current questions, and forgets what is not asked any more.
    fn ask(&mut self, questions: &Questions, now: Moment) {
        if questions.epoch != self.epoch {
            // What was known is of an earlier term: an App that was gone may be back.
            (self.epoch, self.rooms) = (questions.epoch, BTreeMap::new());
        }
        self.closed = questions.services;
        self.inquiries = waiting::inquiries(questions, &self.rooms, &self.inquiries, now);
        let inquiries = &self.inquiries;
        self.rooms.retain(|namespace, _| inquiries.contains_key(namespace));
        self.too_large.retain(|namespace, _| inquiries.contains_key(namespace));
    }

    /// The namespaces to look at now, at most [`BATCH`], and when the next one is due if there are none.
    fn due(&mut self, now: Moment, interval: Duration) -> (Vec<Text>, Duration) {
        let mut candidates = Vec::new();
        let mut next = interval;
        for (namespace, inquiry) in &self.inquiries {
            let room = self.rooms.get(namespace);
            let asked = room.and_then(|room| room.asked);
            let since = inquiry.since();
            let has_new_app =
                || inquiry.wanted.apps.keys().any(|app| room.is_none_or(|room| !room.apps.contains_key(app)));
            let is_waited_for = since.is_some() || has_new_app();
            let pause = if is_waited_for { GAP.min(interval) } else { interval };
            let left = asked.map_or(Duration::ZERO, |asked| pause.saturating_sub(now.since(asked)));
            if left > Duration::ZERO {
                next = next.min(left);
                continue;
            }
            candidates.push(Candidate {
                namespace,
                nodes: inquiry.nodes(room),
                is_known: asked.is_some(),
                since: since.max(asked).unwrap_or(now),
            });
        }
        (self.turns.take(&candidates, BATCH), next)
    }

    /// Takes the result of a look that began at `asked`. Returns the Pods that are proven gone, each with the time
    /// until which its evidence counts for nothing; or why the cluster can't be asked.
    fn see(
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
                if self.too_large.remove(namespace).is_some() {
                    tracing::info!(%namespace, "an accused namespace can be looked at again");
                }
                Ok(room.see(namespace, &inquiry.wanted, seen, asked, patience))
            }
            Err(refusal) => {
                room.fail(&inquiry.wanted, &refusal.text, asked);
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
                    Ok(Vec::new())
                } else {
                    Err(refusal)
                }
            }
        };
        inquiry.judge(room, asked);
        outcome
    }

    /// The Pods of `namespace` that have to be looked up one by one if they are not listed, the most urgent first.
    fn urgent(&self, namespace: &Text) -> Vec<Text> {
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

    fn services(&self) -> usize {
        let seen = self.rooms.values().map(Room::services).sum::<usize>();
        // At the beginning of a term nothing has been looked at, and many may be closed.
        seen.max(self.closed)
    }

    fn facts(&self) -> Facts {
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

    /// Says once what is wrong, and once that it is no longer.
    fn tell(&mut self, failure: Option<Refusal>) {
        // The same in another namespace is no news.
        let subject = |refusal: &Refusal| (refusal.kind, refusal.subject.clone());
        match (&self.error, &failure) {
            (before, Some(now)) if before.as_ref().map(subject) != Some(subject(now)) => {
                tracing::error!(
                    error = now.text,
                    "accusations can't be verified; nothing new is blocked on them meanwhile"
                );
            }
            (Some(_), None) => tracing::info!("accusations can be verified again"),
            _ => {}
        }
        self.error = failure;
    }

    /// Shows the status. Logs when accusations begin to wait too long, and when that ends.
    fn show(&mut self, status: &watch::Sender<EvidenceStatus>, now: Moment) {
        let error = self.error.as_ref().map(|refusal| refusal.text.clone());
        let too_large = self.too_large.values().next().cloned();
        let current = EvidenceStatus { too_large, ..waiting::status(&self.inquiries, error, now) };
        let is_late = current.late > 0;
        if is_late && !self.is_late {
            tracing::error!(
                alert = "evidence",
                late = current.late,
                waiting = current.waiting,
                longest_wait = %humantime::format_duration(current.longest_wait),
                "accused namespaces have waited too long to be looked at; nothing new is blocked in them meanwhile"
            );
        } else if self.is_late && !is_late {
            tracing::info!(waiting = current.waiting, "no accused namespace waits too long any more");
        }
        self.is_late = is_late;
        status.send_if_modified(|shown| {
            let is_news = *shown != current;
            *shown = current;
            is_news
        });
    }
}

#[cfg(test)]
mod tests;
