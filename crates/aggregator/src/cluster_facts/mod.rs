//! What the cluster itself says of the accusations: asks for the accused Pods and the Services of their Apps.
//!
//! One task owns what is known of the accused namespaces (`State`). It takes the questions from the policy over a
//! `watch` channel, looks, draws conclusions (`room`), and returns facts the same way. All requests together keep to a
//! pace, so that a bad rule or a lying node costs the API server no more than that. `due` decides where to look next,
//! `turn` has the order, and `waiting` knows what has not been judged. Accusations that wait too long are reported
//! (`said`) in the log and in the details of `/readyz`.
//!
//! **What exists is read directly.** A look (`lookup`, through `listing`, which limits the cost of one namespace) is a
//! consistent read of one namespace. If many wait, a sweep (`sweep`; `sweeps` decides on it) is a consistent read of
//! the whole cluster, but proves no absence. These are the only sources of facts. A fact judges only evidence that is
//! older than its first request.
//!
//! **When to look.** Up to `FEW` accused namespaces are looked at every round. With more, `watches` watch the
//! cluster, one watch for each kind, and note in `changes` which accused namespaces have changed, by fingerprints of
//! the fields that `lookup` reads. Then a namespace is looked at when a Pod is accused that was never read or that
//! belongs to no App with an open incident; when a new block waits for it, such as at the end of a grace period, because
//! no block begins by the report of a watch; when something in it has changed, at most every `state::CONFIRM`; when one
//! more look may prove an App in it gone; and once an hour in any case.
//!
//! **What the watches allow to judge without a look** (`waiting::Inquiry::confirm`): renewed evidence that was accepted
//! after a direct read, and evidence that is not believed anyway. As long as nothing has changed in a namespace, what
//! was read of it is still true at the last moment up to which *all* watches have reported everything. A bookmark that
//! has reached the version of a list shows that everything was reported up to when the list was sent. A fact's `asked`
//! is moved to that moment and no further.
//!
//! **What fails how.** A watch that breaks off is resumed where it ended. One that has to start anew has missed
//! something, so every accused namespace is looked at again, in turn. A watch that is silent for three minutes, or is
//! refused, proves nothing: then each namespace is looked at every round, as without watches. A failed look leaves its
//! Pods unreadable, so nothing new is blocked. A failed sweep leaves everything as it was, and each namespace is looked
//! at on its own. A slow look keeps its place for some seconds; then another one begins.

mod budget;
mod changes;
mod due;
mod fields;
mod listing;
mod lookup;
mod namespace_facts;
mod reporting;
mod resource_version;
mod state;
mod sweep;
mod sweeps;
mod turn;
mod waiting;
mod watches;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use procscan_core::Moment;
use procscan_core::names::{PodRef, Text};
use procscan_core::policy::{ClusterFacts, LookupRequests};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::due::MAX_CONCURRENT_LOOKUPS;
use self::listing::Look;
use self::state::{Looked, State};
use self::sweep::{Plan, Swept};
pub use self::waiting::ClusterFactsStatus;
use self::watches::{WatchStates, Watches};
use crate::clock::Clock;
use crate::kubernetes::Cluster;

/// Up to this many accused namespaces are looked at every round, which is less than a request per second. With more,
/// the cluster is watched.
const MAX_POLLED_NAMESPACES: usize = 10;
/// How long what was seen waits for more, so that many looks that end at about the same time are one change; also how
/// often the next looks are chosen.
const LOOKUP_PERIOD: Duration = Duration::from_millis(200);

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
pub struct ClusterFactsTask {
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

impl ClusterFactsTask {
    /// Runs until cancelled, or until the questions have no sender any more.
    ///
    /// `status` shows why the cluster can't be asked and how long accusations wait.
    pub async fn run(
        self,
        mut questions: watch::Receiver<Arc<LookupRequests>>,
        facts: watch::Sender<Arc<ClusterFacts>>,
        gone: mpsc::Sender<PodGone>,
        status: watch::Sender<ClusterFactsStatus>,
        cancel: CancellationToken,
    ) {
        let mut state = State::default();
        let mut watches: Option<Watches> = None;
        let mut looks = FuturesUnordered::new();
        let mut sweep = None;
        // Whether something was seen since the facts were last published, and the Pods that are gone according to it.
        let mut is_news = false;
        let mut cleared: Vec<PodGone> = Vec::new();
        let (mut told_at, mut begun_at): (Option<Moment>, Option<Moment>) = (None, None);
        questions.mark_changed();
        loop {
            let now = self.clock.now();
            let left = |at: Option<Moment>| {
                at.map_or(Duration::ZERO, |at| LOOKUP_PERIOD.saturating_sub(now.since(at)))
            };
            if questions.has_changed().unwrap_or(false) {
                if state.ask(&questions.borrow_and_update(), now) {
                    looks.clear();
                    sweep = None;
                }
                self.watch(&mut state, &mut watches);
            }
            is_news |= state.confirm(now);
            let is_idle = looks.is_empty() && sweep.is_none();
            if is_news && (is_idle || left(told_at).is_zero()) {
                facts.send_replace(Arc::new(state.facts()));
                (is_news, told_at) = (false, Some(now));
                for pod_gone in cleared.drain(..) {
                    // The ledger stops listening only at the end.
                    let _ = gone.send(pod_gone).await;
                }
            }
            let mut next = left(begun_at);
            if next.is_zero() || state.places(now) >= MAX_CONCURRENT_LOOKUPS / 2 {
                state.show(&status, now);
                state.count_services(self.max_service_entries);
                let due = state.due(now, self.interval);
                (next, begun_at) = (due.next, Some(now));
                state.begin_looks(&due.looks, now);
                looks.extend(due.looks.into_iter().map(|namespace| self.look(&state, namespace, now)));
                if let Some(plan) = due.sweep {
                    state.begin_sweep(&plan);
                    sweep = Some(Box::pin(self.sweep(plan, now)));
                }
            }
            if is_news {
                next = next.min(left(told_at));
            }
            let told = state.told.clone();
            let news = async {
                match &told {
                    Some(told) => told.news().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = questions.changed() => match changed {
                    // The next pass takes them.
                    Ok(()) => questions.mark_changed(),
                    Err(_) => return,
                },
                // Each is taken as it comes, so no look waits for another.
                Some(looked) = looks.next() => {
                    let gone = state.see(looked, self.interval).unwrap_or_default();
                    cleared.extend(gone.into_iter().map(|(pod, until)| PodGone { pod, until }));
                    is_news = true;
                }
                (asked, swept) = wait_for(&mut sweep) => {
                    sweep = None;
                    let gone = state.see_all(swept, asked, self.clock.now(), self.interval);
                    cleared.extend(gone.into_iter().map(|(pod, until)| PodGone { pod, until }));
                    is_news = true;
                }
                () = news => {}
                () = tokio::time::sleep(next) => {}
            }
        }
    }

    /// Watches the cluster while many namespaces are accused. For a few it is cheaper to look at each every round.
    fn watch(&self, state: &mut State, watches: &mut Option<Watches>) {
        let accused = state.inquiries.len();
        if watches.is_some() && accused <= MAX_POLLED_NAMESPACES / 2 {
            (*watches, state.told) = (None, None);
        } else if watches.is_none() && accused > MAX_POLLED_NAMESPACES {
            let told = WatchStates::default();
            told.changes().note_in(state.inquiries.keys());
            *watches = Some(Watches::start(&self.cluster, self.clock, &told));
            state.told = Some(told);
        } else if let Some(told) = &state.told {
            told.changes().note_in(state.inquiries.keys());
        }
    }

    /// Looks at a namespace, from `now` on.
    fn look<'a>(
        &'a self,
        state: &State,
        namespace: Text,
        now: Moment,
    ) -> impl Future<Output = Looked> + use<'a> {
        let (with_routes, pods) = (state.with_routes, state.urgent(&namespace));
        async move {
            let look = Look::new(&self.cluster, &namespace, &self.large);
            let seen = lookup::look(look, self.clock, &pods, with_routes).await;
            Looked { namespace, asked: now, seen }
        }
    }

    /// Looks at many namespaces together, from `now` on.
    async fn sweep(&self, plan: Plan, now: Moment) -> (Moment, Swept) {
        (now, sweep::sweep(&plan, &self.cluster, self.clock).await)
    }
}

/// Waits for the future, or for ever if there is none.
async fn wait_for<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
