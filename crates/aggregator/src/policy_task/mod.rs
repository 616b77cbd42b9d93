//! Owns the [`Incidents`]: evaluates each snapshot, persists the decisions, and publishes the plan.
//!
//! The task decides only while this replica leads. A new leader reads the persisted state, takes over the blocks in
//! the objects, and reminds the ledger of the persisted evidence. Only then it decides.
//!
//! A plan is published after its decisions are persisted. If they can't be persisted, no new block and no release
//! follows, and everything else goes on.

mod history;
mod journal;
mod leader_term;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use procscan_core::policy::{ClusterFacts, Incidents, LookupRequests, Policy};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

pub(crate) use self::journal::Journal;
use self::leader_term::{LeaderTerm, TermEnd};
use crate::clock::Clock;
use crate::counters::Counters;
use crate::decided::{Decided, TakeOver, WrittenNotifications};
use crate::kubernetes::WritePermit;
use crate::leader::Leadership;
use crate::ledger_task::{Progress, Published, Reminder, Snapshots};
use crate::state::{PersistedState, Store};

/// The channels of the policy task.
#[derive(Debug)]
pub(crate) struct Channels {
    /// Whether this replica leads.
    pub(crate) leadership: watch::Receiver<Leadership>,
    /// The persisted state, with the operator commands.
    pub(crate) persisted: watch::Receiver<Arc<PersistedState>>,
    /// To the output, at the beginning of a term.
    pub(crate) take_over: mpsc::Sender<TakeOver>,
    /// To the ledger, at the beginning of a term.
    pub(crate) reminders: mpsc::Sender<Reminder>,
    /// The ledger's snapshots.
    pub(crate) snapshots: watch::Receiver<Published>,
    /// The progress of the rounds.
    pub(crate) progress: watch::Receiver<Progress>,
    /// Asks the ledger for a snapshot if no change has published one.
    pub(crate) ledger: Snapshots,
    /// The cluster facts.
    pub(crate) facts: watch::Receiver<Arc<ClusterFacts>>,
    /// The notices that the output has written.
    pub(crate) written: watch::Receiver<Arc<WrittenNotifications>>,
    /// The look-up requests.
    pub(crate) lookups: watch::Sender<Arc<LookupRequests>>,
    /// The decisions.
    pub(crate) decided: watch::Sender<Arc<Decided>>,
    /// Why decisions can't be persisted; `None` if they can.
    pub(crate) error: watch::Sender<Option<String>>,
}

/// Decides while this replica leads.
#[derive(Debug)]
pub(crate) struct PolicyTask {
    /// The rules from the configuration, which may change while the task runs.
    pub(crate) policy: watch::Receiver<Arc<Policy>>,
    /// How long incidents stay persisted after their end.
    pub(crate) retention: Duration,
    /// Where incidents are persisted.
    pub(crate) store: Store,
    /// The clock of this process.
    pub(crate) clock: Clock,
    /// The log and the list of the last decisions.
    pub(crate) journal: Journal,
    /// Counts what is persisted.
    pub(crate) counters: Counters,
    /// The channels to the other tasks.
    pub(crate) channels: Channels,
}

/// The pause after an evaluation, or after the persisted state was read, as a multiple of its duration. So a storm of
/// changes takes only a part of a core. The pause is at most [`MAX_REST`].
const REST_FACTOR: u32 = 4;
const MAX_REST: Duration = Duration::from_millis(500);

/// The end of the pause after an evaluation that took `took`. Until then a change is not evaluated.
fn pause_end(took: Duration) -> Instant {
    Instant::now() + took.saturating_mul(REST_FACTOR).min(MAX_REST)
}

impl PolicyTask {
    /// Runs until the ledger has ended. The last snapshot is evaluated too.
    pub(crate) async fn run(mut self) {
        loop {
            let Some(permit) = self.follow().await else { return };
            match LeaderTerm::new(&mut self, permit).run().await {
                TermEnd::Lost => {}
                TermEnd::Over => return,
            }
        }
    }

    /// Shows the leader's decisions until this replica leads. Returns `None` if the ledger has ended.
    async fn follow(&mut self) -> Option<WritePermit> {
        // A replica that follows requests no look-ups. When it leads again, earlier answers do not count.
        self.channels.lookups.send_modify(|lookups| {
            let was_asked = !lookups.pods.is_empty() || !lookups.apps.is_empty();
            let epoch = lookups.epoch + u64::from(was_asked);
            *lookups = Arc::new(LookupRequests { epoch, ..LookupRequests::default() });
        });
        self.channels.error.send_replace(None);
        let mut shown = None;
        let mut rested = Instant::now();
        loop {
            if let Some(permit) =
                self.channels.leadership.borrow_and_update().permit().filter(|permit| permit.holds())
            {
                return Some(permit.clone());
            }
            let has_begun = self.channels.snapshots.borrow_and_update().rounds > 0;
            let has_rested = Instant::now() >= rested;
            if has_rested {
                let state = self.channels.persisted.borrow_and_update().clone();
                let is_same = |(before, began): &(Arc<PersistedState>, bool)| {
                    Arc::ptr_eq(before, &state) && *began == has_begun
                };
                if !shown.as_ref().is_some_and(is_same) {
                    let started = std::time::Instant::now();
                    self.show(&state).await;
                    rested = pause_end(started.elapsed());
                    shown = Some((state, has_begun));
                }
            }
            let Channels { leadership, snapshots, persisted, .. } = &mut self.channels;
            tokio::select! {
                Ok(()) = leadership.changed() => {}
                // Only the end of the ledger ends this task. A store that has ended changes nothing any more.
                changed = snapshots.changed() => if changed.is_err() { return None },
                Ok(()) = persisted.changed(), if has_rested => {}
                Ok(()) = self.policy.changed() => shown = None,
                () = tokio::time::sleep_until(rested), if !has_rested => {}
            }
        }
    }

    async fn show(&mut self, state: &PersistedState) {
        let snapshot = self.channels.ledger.fresh().await;
        let now = self.clock.now();
        let policy = self.policy_now(state);
        let documents = match state.documents() {
            Ok(documents) => documents,
            Err(error) => {
                tracing::error!(
                    alert = "state",
                    error,
                    "an incident can't be decompressed; the decisions that were shown before stay"
                );
                return;
            }
        };
        let incidents = Incidents::restore(&documents, &snapshot, now);
        let plan = incidents.current_plan(&policy, now);
        let held = incidents.held(&policy);
        let shown = Decided { held, rounds: snapshot.rounds, ..Decided::nothing(plan) };
        self.channels.decided.send_replace(Arc::new(shown));
    }

    /// The policy with operators' exemptions and mode.
    fn policy_now(&self, state: &PersistedState) -> Policy {
        let mut policy = Policy::clone(&self.policy.borrow());
        policy.mode = state.enforcement.mode.unwrap_or(policy.mode);
        let (rules, unread) = state.rules();
        policy.exemptions.extend(rules);
        policy.unread_exemptions.extend(unread);
        policy
    }
}
