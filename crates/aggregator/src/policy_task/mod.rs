//! The only owner of the book of incidents: evaluates each snapshot, keeps what it decides, and publishes the plan.
//!
//! Decides only while this replica leads. Whoever begins to lead reads what is kept, takes over what the objects block, and
//! reminds the ledger of the evidence that is kept; only then it decides. A plan is published after the decisions that it
//! follows from are kept: when they can't be, no new block and no release follows, and everything else goes on.

mod history;
mod journal;
mod leader_term;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use procscan_core::names::App;
use procscan_core::plan::{Dispute, HeldApp, Plan};
use procscan_core::policy::{ClusterFacts, Incidents, InheritedBlock, LookupRequests, Policy, Withheld};
use procscan_core::time::CompactTimestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

pub use self::journal::Journal;
use self::leader_term::{LeaderTerm, TermEnd};
use crate::clock::Clock;
use crate::leader::{Leadership, WritePermit};
use crate::ledger_task::{Progress, Published, Reminder, Snapshots};
use crate::output::PersistedBlocks;
use crate::state::{PersistedState, Store};

/// What the policy has decided as of the last snapshot.
#[derive(Clone, Debug)]
pub struct Decided {
    /// What should be true outside.
    pub plan: Plan,
    /// The Apps that brakes hold.
    pub held: Vec<HeldApp>,
    /// The exemptions that have no effect because they would open too many tenants. Only the leader knows them.
    pub withheld: Vec<Withheld>,
    /// Evidence that is not believed.
    pub disputes: Vec<Dispute>,
    /// Evidence that can't be judged.
    pub unverified: usize,
    /// The cluster has said all there is to ask. Without a cluster, it never has.
    pub is_answered: bool,
    /// Rounds that were done when it was decided. Before the first, the plan knows too little to be written.
    pub rounds: u64,
    /// The right to make it true; `None` on a replica that shows what another has decided.
    pub permit: Option<WritePermit>,
}

impl Decided {
    /// Nothing is decided yet.
    pub fn nothing(plan: Plan) -> Self {
        Self {
            plan,
            held: Vec::new(),
            withheld: Vec::new(),
            disputes: Vec::new(),
            unverified: 0,
            is_answered: false,
            rounds: 0,
            permit: None,
        }
    }
}

/// A new leader asks what the objects block, and makes them its own.
#[derive(Debug)]
pub struct TakeOver {
    /// The right to write.
    pub permit: WritePermit,
    /// Whether the objects may be touched: not in dry-run.
    pub may_touch: bool,
    /// What the persisted Incidents know, if there are any and all of them can be read: if an object is damaged, they say
    /// what it closed.
    pub persisted: Option<PersistedBlocks>,
    /// What they block.
    pub blocked: oneshot::Sender<Vec<InheritedBlock>>,
}

/// The news that have been written, by App, and as of when they are news.
pub type WrittenNotifications = BTreeMap<App, CompactTimestamp>;

/// What the policy reads and writes.
#[derive(Debug)]
pub struct Channels {
    /// Whether this replica leads.
    pub leadership: watch::Receiver<Leadership>,
    /// What is kept, and what operators want.
    pub persisted: watch::Receiver<Arc<PersistedState>>,
    /// To the output, at the beginning of a term.
    pub take_over: mpsc::Sender<TakeOver>,
    /// To the ledger, at the beginning of a term.
    pub reminders: mpsc::Sender<Reminder>,
    /// The ledger.
    pub snapshots: watch::Receiver<Published>,
    /// How far the rounds have got.
    pub progress: watch::Receiver<Progress>,
    /// Where a snapshot is asked for that there is no news for.
    pub ledger: Snapshots,
    /// What the cluster says of the accusations.
    pub facts: watch::Receiver<Arc<ClusterFacts>>,
    /// What the output has told.
    pub written: watch::Receiver<Arc<WrittenNotifications>>,
    /// What the cluster should be asked.
    pub lookups: watch::Sender<Arc<LookupRequests>>,
    /// What has been decided.
    pub decided: watch::Sender<Arc<Decided>>,
    /// Why what is decided can't be kept, if so.
    pub error: watch::Sender<Option<String>>,
}

/// Decides, while it may.
#[derive(Debug)]
pub struct PolicyTask {
    /// The rules, as the configuration has them.
    pub policy: Policy,
    /// How long incidents are kept after they are over.
    pub retention: Duration,
    /// Where incidents are kept.
    pub store: Store,
    /// What time it is.
    pub clock: Clock,
    /// Where decisions are told.
    pub journal: Journal,
    /// What it reads and writes.
    pub channels: Channels,
}

/// The pause after an evaluation, or after what was kept has been read, as a multiple of what it took: in a storm of news no more
/// than a part of a core goes into them. At most [`MAX_REST`].
const REST_FACTOR: u32 = 4;
const MAX_REST: Duration = Duration::from_millis(500);

/// When to look again for the sake of news alone.
fn rest(took: Duration) -> Instant {
    Instant::now() + took.saturating_mul(REST_FACTOR).min(MAX_REST)
}

impl PolicyTask {
    /// Runs until nobody publishes snapshots any more; the last one is evaluated too.
    pub async fn run(mut self) {
        loop {
            let Some(permit) = self.follow().await else { return };
            match LeaderTerm::new(&mut self, permit).run().await {
                TermEnd::Lost => {}
                TermEnd::Over => return,
            }
        }
    }

    /// Shows what the leader has decided, until this replica leads. Nothing at the end.
    async fn follow(&mut self) -> Option<WritePermit> {
        // A replica without decisions has no questions. Earlier answers do not count when it leads again.
        self.channels.lookups.send_modify(|questions| {
            let was_asked = !questions.pods.is_empty() || !questions.apps.is_empty();
            let epoch = questions.epoch + u64::from(was_asked);
            *questions = Arc::new(LookupRequests { epoch, ..LookupRequests::default() });
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
                let kept = self.channels.persisted.borrow_and_update().clone();
                let is_same = |(before, began): &(Arc<PersistedState>, bool)| {
                    Arc::ptr_eq(before, &kept) && *began == has_begun
                };
                if !shown.as_ref().is_some_and(is_same) {
                    let started = std::time::Instant::now();
                    self.show(&kept).await;
                    rested = rest(started.elapsed());
                    shown = Some((kept, has_begun));
                }
            }
            let Channels { leadership, snapshots, persisted: kept, .. } = &mut self.channels;
            tokio::select! {
                Ok(()) = leadership.changed() => {}
                // The end is announced by the ledger's; a store that is gone for good changes nothing any more.
                changed = snapshots.changed() => if changed.is_err() { return None },
                Ok(()) = kept.changed(), if has_rested => {}
                () = tokio::time::sleep_until(rested), if !has_rested => {}
            }
        }
    }

    async fn show(&mut self, kept: &PersistedState) {
        let snapshot = self.channels.ledger.fresh().await;
        let now = self.clock.now();
        let policy = self.policy_now(kept);
        let documents = match kept.documents() {
            Ok(documents) => documents,
            Err(error) => {
                tracing::error!(
                    alert = "state",
                    error,
                    "an incident can't be unpacked; what was shown before stays"
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
    fn policy_now(&self, kept: &PersistedState) -> Policy {
        let mut policy = self.policy.clone();
        policy.mode = kept.enforcement.mode.unwrap_or(policy.mode);
        let (rules, unread) = kept.rules();
        policy.exemptions.extend(rules);
        policy.unread_exemptions.extend(unread);
        policy
    }
}
