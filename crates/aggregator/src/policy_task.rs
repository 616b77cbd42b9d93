//! The only owner of the book of incidents: evaluates each snapshot, logs every decision, publishes the plan.

use std::sync::Arc;

use procscan_core::plan::{HeldApp, Plan};
use procscan_core::policy::{Alert, Book, Decision, DecisionKind, Evaluation, Facts, Policy};
use procscan_core::snapshot::Snapshot;
use tokio::sync::watch;

use crate::clock::Clock;

/// What the policy has decided as of the last snapshot.
#[derive(Clone, Debug)]
pub struct Decided {
    /// What should be true outside.
    pub plan: Plan,
    /// The Apps that brakes hold.
    pub held: Vec<HeldApp>,
    /// Evidence that is not believed.
    pub disputed: usize,
    /// Evidence that can't be judged.
    pub unverified: usize,
    /// Rounds that were done when it was decided. Before the first, the plan knows too little to be written.
    pub rounds: u64,
}

/// Runs until nobody publishes snapshots any more; the last one is evaluated too.
pub async fn run(
    mut book: Book,
    policy: Policy,
    clock: Clock,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    decided: watch::Sender<Arc<Decided>>,
) {
    let facts = Facts::default();
    while snapshots.changed().await.is_ok() {
        let snapshot = snapshots.borrow_and_update().clone();
        let Evaluation { plan, held, decisions, alerts, disputed, unverified } =
            book.evaluate(&snapshot, &policy, &facts, clock.now());
        decisions.iter().for_each(log);
        alerts.iter().for_each(raise);
        let now = Decided { plan, held, disputed, unverified, rounds: snapshot.rounds };
        decided.send_if_modified(|before| {
            let is_news = before.plan != now.plan
                || before.held != now.held
                || (before.disputed, before.unverified) != (now.disputed, now.unverified)
                // Only the first round makes a difference to anybody.
                || (before.rounds == 0) != (now.rounds == 0);
            if is_news {
                *before = Arc::new(now);
            }
            is_news
        });
    }
}

fn log(decision: &Decision) {
    let Decision { app, kind, actor, reason, dry_run, .. } = decision;
    let decision = kind.as_str();
    match kind {
        DecisionKind::Blocked | DecisionKind::Held | DecisionKind::ReleaseHeld | DecisionKind::Disputed => {
            tracing::warn!(%app, decision, %actor, reason, dry_run, "decision");
        }
        _ => tracing::info!(%app, decision, %actor, reason, dry_run, "decision"),
    }
}

fn raise(alert: &Alert) {
    match alert {
        Alert::Brake { message, .. } => tracing::error!(alert = "brake", detail = message, "a brake holds"),
        Alert::Notices { waiting } => tracing::warn!(
            alert = "notices",
            waiting,
            "more tenants are to be told than notification.max_per_round; the rest is told in the next rounds"
        ),
    }
}
