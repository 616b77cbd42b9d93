//! The only owner of the book of incidents: evaluates each snapshot, logs every decision, publishes the plan.

use std::sync::Arc;

use procscan_core::plan::{Dispute, HeldApp, Plan};
use procscan_core::policy::{
    Alert, Book, Decision, DecisionKind, Evaluation, Facts, Inherited, Policy, Questions,
};
use procscan_core::snapshot::Snapshot;
use tokio::sync::{oneshot, watch};

use crate::clock::Clock;

/// What the policy has decided as of the last snapshot.
#[derive(Clone, Debug)]
pub struct Decided {
    /// What should be true outside.
    pub plan: Plan,
    /// The Apps that brakes hold.
    pub held: Vec<HeldApp>,
    /// Evidence that is not believed.
    pub disputes: Vec<Dispute>,
    /// Evidence that can't be judged.
    pub unverified: usize,
    /// The cluster has said all there is to ask. Without a cluster, it never has.
    pub is_answered: bool,
    /// Rounds that were done when it was decided. Before the first, the plan knows too little to be written.
    pub rounds: u64,
}

/// What the policy reads and writes.
#[derive(Debug)]
pub struct Channels {
    /// What was blocked before the start. Nothing is decided before it has come.
    pub inherited: oneshot::Receiver<Vec<Inherited>>,
    /// The ledger.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// What the cluster says of the accusations.
    pub facts: watch::Receiver<Arc<Facts>>,
    /// What the cluster should be asked.
    pub questions: watch::Sender<Arc<Questions>>,
    /// What has been decided.
    pub decided: watch::Sender<Arc<Decided>>,
}

/// Runs until nobody publishes snapshots any more; the last one is evaluated too.
pub async fn run(policy: Policy, clock: Clock, channels: Channels) {
    let Channels { mut inherited, mut snapshots, mut facts, questions, decided } = channels;
    let inherited = loop {
        tokio::select! {
            inherited = &mut inherited => match inherited {
                Ok(inherited) => break inherited,
                Err(_) => return,
            },
            changed = snapshots.changed() => if changed.is_err() { return },
        }
    };
    let mut book = Book::default();
    book.inherit(inherited, &policy, clock.now()).iter().for_each(log);
    snapshots.mark_changed();
    let (mut is_live, mut is_verified) = (true, true);
    let mut has_waited = false;
    while is_live {
        tokio::select! {
            changed = snapshots.changed() => is_live = changed.is_ok(),
            changed = facts.changed(), if is_verified => is_verified = changed.is_ok(),
        }
        let snapshot = snapshots.borrow_and_update().clone();
        let known = facts.borrow_and_update().clone();
        let Evaluation { plan, held, decisions, alerts, disputes, unverified } =
            book.evaluate(&snapshot, &policy, &known, clock.now());
        let asked = book.questions(&snapshot, &policy);
        let is_answered = asked.are_answered_by(&known);
        questions.send_if_modified(|before| {
            let is_news = **before != asked;
            if is_news {
                *before = Arc::new(asked);
            }
            is_news
        });
        decisions.iter().for_each(log);
        let is_waiting = alerts.iter().any(|alert| matches!(alert, Alert::Notices { .. }));
        // As long as tenants wait, each evaluation says so: once is enough for people.
        alerts.iter().filter(|alert| !(has_waited && matches!(alert, Alert::Notices { .. }))).for_each(raise);
        if has_waited && !is_waiting {
            tracing::info!("every tenant has been told");
        }
        has_waited = is_waiting;
        let now = Decided { plan, held, disputes, unverified, is_answered, rounds: snapshot.rounds };
        decided.send_if_modified(|before| {
            let is_news = before.plan != now.plan
                || before.held != now.held
                || before.disputes != now.disputes
                || before.unverified != now.unverified
                || before.is_answered != now.is_answered
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
