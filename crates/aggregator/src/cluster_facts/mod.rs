//! Cluster facts: asks the API server about the accused Pods, and about the Services of their Apps.
//!
//! One task owns the facts of the accused namespaces (`State`). The policy sends its requests over a `watch` channel.
//! The task looks the namespaces up, draws conclusions (`namespace_facts`), and returns the facts over another `watch`
//! channel. One pace limits all requests to the API server, so a bad rule or a lying node can't cause more of them.
//! `due` decides which namespaces are looked up next, `turn` has the order, and `waiting` has the accusations that are
//! not judged yet. The log and the details of `/readyz` report accusations that wait too long (`reporting`).
//!
//! **Only direct reads are sources of facts.** A look-up (`lookup`) is a consistent read of one namespace, and
//! `listing` limits its cost. If many wait, a sweep (`sweep`; `sweeps` decides on it) is a consistent read of the whole
//! cluster, but proves no absence. A fact judges only evidence that is older than its first request.
//!
//! **When a namespace is looked up.** Up to `MAX_POLLED_NAMESPACES` accused namespaces are looked up every round. With
//! more, `watches` watch the cluster, one watch for each kind. They note in `changes` which accused namespaces have
//! changed, by fingerprints of the fields that `lookup` reads. Then a namespace is looked up in these cases:
//!
//! - A Pod is accused that was never read, or that belongs to no App with an open incident.
//! - A new block waits for it, such as at the end of a grace period: no block begins by the report of a watch.
//! - Something in it has changed, at most every `state::CONFIRM`.
//! - One more look-up may prove that one of its Apps is gone.
//! - An hour has passed since the last look-up.
//!
//! **Judgements without a look-up** (`waiting::NamespaceLookup::confirm`). The watches allow to judge renewed evidence
//! that was accepted after a direct read, and evidence that is not believed anyway. As long as nothing has changed in a
//! namespace, its facts stay true. They are true at the last moment up to which *all* watches have reported everything.
//! A bookmark that has reached the version of a list shows that everything was reported up to when the list was sent. A
//! fact's `asked` is moved to that moment and no further.
//!
//! **Failures.** A watch that breaks off is resumed where it ended. A watch that has to start anew has missed something,
//! so every accused namespace is looked up again, in turn. A watch that is silent for three minutes, or is refused,
//! proves nothing: then each namespace is looked up every round, as without watches. A failed look-up leaves its Pods
//! unreadable, so nothing new is blocked. A failed sweep leaves all facts as they were, and each namespace is looked up
//! on its own. A slow look-up keeps its place for some seconds; then another one begins.

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

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use procscan_core::Moment;
use procscan_core::names::{PodRef, Text};
use procscan_core::policy::{ClusterFacts, LookupRequests};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::due::{Due, MAX_CONCURRENT_LOOKUPS};
use self::listing::NamespaceReader;
use self::state::{LookupResult, State};
use self::sweep::{Plan, Swept};
pub(crate) use self::waiting::ClusterFactsStatus;
use self::watches::{WatchStates, Watches};
use crate::clock::Clock;
use crate::kubernetes::Cluster;

/// Up to this many accused namespaces are looked up every round, which is less than a request per second. With more,
/// the cluster is watched.
const MAX_POLLED_NAMESPACES: usize = 10;
/// How long changed facts wait for more changes, so that look-ups that end at about the same time are one change. Also
/// how often the next look-ups are chosen.
const LOOKUP_PERIOD: Duration = Duration::from_millis(200);

/// A Pod that is proven gone: its evidence up to `until` is cleared.
#[derive(Clone, Debug)]
pub(crate) struct PodGone {
    /// The Pod.
    pub(crate) pod: PodRef,
    /// The moment up to which its evidence counts for nothing.
    pub(crate) until: Moment,
}

/// Answers the policy's requests with facts.
#[derive(Debug)]
pub(crate) struct ClusterFactsTask {
    /// The connection to the API server.
    pub(crate) cluster: Cluster,
    /// How often everything is looked up again.
    pub(crate) interval: Duration,
    /// From this many closed Services on, their Ingresses matter (see `gateway.max_service_entries`).
    pub(crate) max_service_entries: usize,
    /// The clock of the facts.
    pub(crate) clock: Clock,
    /// Has one permit, for one large namespace at a time.
    pub(crate) large: Semaphore,
}

impl ClusterFactsTask {
    /// Runs until cancelled, or until the requests have no sender any more.
    ///
    /// `status` shows why the cluster can't be asked and how long accusations wait.
    pub(crate) async fn run(
        self,
        mut requests: watch::Receiver<Arc<LookupRequests>>,
        facts: watch::Sender<Arc<ClusterFacts>>,
        gone: mpsc::Sender<PodGone>,
        status: watch::Sender<ClusterFactsStatus>,
        cancel: CancellationToken,
    ) {
        let mut work = Work::new(&self, facts, gone, status);
        requests.mark_changed();
        loop {
            let now = self.clock.now();
            if requests.has_changed().unwrap_or(false) {
                work.set_requests(&requests.borrow_and_update(), now);
            }
            work.confirm(now);
            work.publish_if_due(now).await;
            let pause = work.begin_due(now);
            let watch_states = work.state.watch_states.clone();
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = requests.changed() => match changed {
                    // The next pass takes them.
                    Ok(()) => requests.mark_changed(),
                    Err(_) => return,
                },
                // The results are taken one by one, so that no look-up waits for another.
                Some(result) = work.lookups.next() => work.finish_lookup(result),
                (asked, swept) = wait_for(&mut work.sweep) => work.finish_sweep(swept, asked),
                () = reported_change(watch_states.as_ref()) => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Looks up a namespace, from `now` on.
    fn look_up<'a>(
        &'a self,
        state: &State,
        namespace: Text,
        now: Moment,
    ) -> impl Future<Output = LookupResult> + use<'a> {
        let (with_routes, pods) = (state.with_routes, state.urgent(&namespace));
        async move {
            let reader = NamespaceReader::new(&self.cluster, &namespace, &self.large);
            let seen = lookup::look_up(reader, self.clock, &pods, with_routes).await;
            LookupResult { namespace, asked: now, seen }
        }
    }

    /// Looks up many namespaces together, from `now` on.
    async fn sweep(&self, plan: Plan, now: Moment) -> (Moment, Swept) {
        (now, sweep::sweep(&plan, &self.cluster, self.clock).await)
    }
}

/// The facts, and the requests to the API server that run at the moment.
struct Work<'a> {
    task: &'a ClusterFactsTask,
    facts: watch::Sender<Arc<ClusterFacts>>,
    gone: mpsc::Sender<PodGone>,
    status: watch::Sender<ClusterFactsStatus>,
    state: State,
    watches: Option<Watches>,
    lookups: FuturesUnordered<BoxFuture<'a, LookupResult>>,
    sweep: Option<BoxFuture<'a, (Moment, Swept)>>,
    /// Whether the facts have changed since they were last published.
    is_changed: bool,
    /// The Pods that are gone according to the facts that are not published yet.
    cleared: Vec<PodGone>,
    published_at: Option<Moment>,
    /// When the next look-ups were last chosen.
    chosen_at: Option<Moment>,
}

impl<'a> Work<'a> {
    fn new(
        task: &'a ClusterFactsTask,
        facts: watch::Sender<Arc<ClusterFacts>>,
        gone: mpsc::Sender<PodGone>,
        status: watch::Sender<ClusterFactsStatus>,
    ) -> Self {
        Self {
            task,
            facts,
            gone,
            status,
            state: State::default(),
            watches: None,
            lookups: FuturesUnordered::new(),
            sweep: None,
            is_changed: false,
            cleared: Vec::new(),
            published_at: None,
            chosen_at: None,
        }
    }

    fn set_requests(&mut self, requests: &LookupRequests, now: Moment) {
        if self.state.set_requests(requests, now) {
            self.lookups.clear();
            self.sweep = None;
        }
        self.watch_if_many();
    }

    /// Watches the cluster while many namespaces are accused. For a few it is cheaper to look up each of them every
    /// round.
    fn watch_if_many(&mut self) {
        let accused = self.state.lookups.len();
        if self.watches.is_some() && accused <= MAX_POLLED_NAMESPACES / 2 {
            (self.watches, self.state.watch_states) = (None, None);
        } else if self.watches.is_none() && accused > MAX_POLLED_NAMESPACES {
            let states = WatchStates::default();
            states.changes().note_in(self.state.lookups.keys());
            self.watches = Some(Watches::start(&self.task.cluster, self.task.clock, &states));
            self.state.watch_states = Some(states);
        } else if let Some(states) = &self.state.watch_states {
            states.changes().note_in(self.state.lookups.keys());
        }
    }

    fn confirm(&mut self, now: Moment) {
        self.is_changed |= self.state.confirm(now);
    }

    /// Publishes changed facts when nothing runs any more, or [`LOOKUP_PERIOD`] after the facts before.
    async fn publish_if_due(&mut self, now: Moment) {
        let is_idle = self.lookups.is_empty() && self.sweep.is_none();
        if !self.is_changed || !(is_idle || period_left(self.published_at, now).is_zero()) {
            return;
        }
        self.facts.send_replace(Arc::new(self.state.facts()));
        (self.is_changed, self.published_at) = (false, Some(now));
        for pod_gone in self.cleared.drain(..) {
            // The ledger stops listening only at the end.
            let _ = self.gone.send(pod_gone).await;
        }
    }

    /// Begins the look-ups and the sweep that are due. Returns when to do this again, or when to publish if that is
    /// sooner.
    fn begin_due(&mut self, now: Moment) -> Duration {
        let mut pause = period_left(self.chosen_at, now);
        if pause.is_zero() || self.state.places(now) >= MAX_CONCURRENT_LOOKUPS / 2 {
            let task = self.task;
            self.state.publish_status(&self.status, now);
            self.state.count_services(task.max_service_entries);
            let Due { sweep, lookups, next } = self.state.due(now, task.interval);
            (pause, self.chosen_at) = (next, Some(now));
            self.state.begin_lookups(&lookups, now);
            for namespace in lookups {
                self.lookups.push(task.look_up(&self.state, namespace, now).boxed());
            }
            if let Some(plan) = sweep {
                self.state.begin_sweep(&plan);
                self.sweep = Some(task.sweep(plan, now).boxed());
            }
        }
        if self.is_changed { pause.min(period_left(self.published_at, now)) } else { pause }
    }

    fn finish_lookup(&mut self, result: LookupResult) {
        let gone = self.state.apply_lookup(result, self.task.interval).unwrap_or_default();
        self.note_gone(gone);
    }

    fn finish_sweep(&mut self, swept: Swept, asked: Moment) {
        self.sweep = None;
        let gone = self.state.apply_sweep(swept, asked, self.task.clock.now(), self.task.interval);
        self.note_gone(gone);
    }

    fn note_gone(&mut self, gone: Vec<(PodRef, Moment)>) {
        self.cleared.extend(gone.into_iter().map(|(pod, until)| PodGone { pod, until }));
        self.is_changed = true;
    }
}

/// How much is left at `now` of the [`LOOKUP_PERIOD`] that began at `begin`.
fn period_left(begin: Option<Moment>, now: Moment) -> Duration {
    begin.map_or(Duration::ZERO, |begin| LOOKUP_PERIOD.saturating_sub(now.since(begin)))
}

/// Waits until the watches have reported a change; for ever if there are none.
async fn reported_change(states: Option<&WatchStates>) {
    match states {
        Some(states) => states.changed().await,
        None => std::future::pending().await,
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
