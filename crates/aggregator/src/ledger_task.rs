//! Owns the [`Ledger`]: applies observations, advances the ledger by the clock, and publishes snapshots.
//!
//! A snapshot costs as much as there are violations. So it is made only after a change that may change a decision,
//! after the first round, and when a reader asks.

mod intake;
mod snapshots;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use procscan_core::ledger::{Ledger, Remembered};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

use self::intake::{LastRound, apply_observation, log};
pub(crate) use self::snapshots::{Progress, SnapshotPublisher, snapshots};
pub use self::snapshots::{Published, Snapshots};
use crate::clock::Clock;
use crate::cluster_facts::PodGone;
use crate::collector::Observation;
use crate::discovery::TargetSet;

/// The longest time between a change and the snapshot that shows it. Changes within it share one snapshot.
const PUBLISH_AFTER: Duration = Duration::from_millis(100);
/// The age at which the last snapshot is dropped. Until then, all evidence that was renewed since is in memory twice.
const DROP_SNAPSHOT_AFTER: Duration = Duration::from_secs(3);
/// The period in which the ledger looks at the clock, because evidence ages without an observation.
const ADVANCE_PERIOD: Duration = Duration::from_secs(1);
/// The most observations that are applied at once, before the other channels have their turn.
const MAX_BATCH: usize = 64;
/// How long answers are collected before they are applied. Waking the task for each answer would cost more than applying it.
const BATCH_WINDOW: Duration = Duration::from_millis(10);

/// Evidence from before the start, or from another leader, that the ledger takes over.
#[derive(Debug)]
pub(crate) struct Reminder {
    /// The evidence.
    pub(crate) evidence: Vec<Remembered>,
    /// Signals that the evidence is in all snapshots from now on.
    pub(crate) done: oneshot::Sender<()>,
}

/// The channels that the ledger reads.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// The collector's observations.
    pub(crate) observations: mpsc::Receiver<Observation>,
    /// The targets that should answer.
    pub(crate) targets: watch::Receiver<Arc<TargetSet>>,
    /// The Pods that are gone.
    pub(crate) gone: mpsc::Receiver<PodGone>,
    /// Evidence from before the start.
    pub(crate) reminders: mpsc::Receiver<Reminder>,
}

/// The advice to operators if every agent refuses the connection. One agent that refuses may be restarting. If all
/// refuse, their API is nearly always off.
pub(crate) const ALL_REFUSE: &str = "every agent refuses the connection, so nothing listens at its port: the API of the ProcScan agent is off \
    until its own configuration has `api: {enabled: true, port: 9090}` and the agent was restarted (its hot reload reports \
    success, and does not start the API); otherwise see daemonset.api_port";

/// Runs until every sender of observations is gone. The last snapshot shows everything that they have sent.
pub(crate) async fn run(ledger: Ledger, clock: Clock, inbox: Inbox, publisher: SnapshotPublisher) {
    let mut task = LedgerTask::new(ledger, clock, inbox, publisher);
    loop {
        let wakeup = task.wakeup().await;
        if matches!(wakeup, Wakeup::NoMoreObservations) {
            break;
        }
        task.handle(wakeup);
        task.schedule();
    }
    task.publish();
}

/// The reason why the task runs again.
enum Wakeup {
    /// Observations are in the batch.
    Observations,
    /// Every sender of observations is gone.
    NoMoreObservations,
    /// There is another set of targets; `false` if its sender is gone.
    Targets(bool),
    /// A Pod is gone; `None` if the sender is.
    PodGone(Option<PodGone>),
    /// The policy reminds the ledger; `None` if the sender is gone.
    Reminder(Option<Reminder>),
    /// The ledger has to look at the clock.
    Advance,
    /// A reader asks for a snapshot.
    SnapshotAsked,
    /// The time for the next snapshot has come.
    PublishDue,
}

struct LedgerTask {
    ledger: Ledger,
    clock: Clock,
    inbox: Inbox,
    publisher: SnapshotPublisher,
    advance: tokio::time::Interval,
    batch: Vec<Observation>,
    /// The earliest time of the next batch.
    next_batch: Instant,
    last_round: LastRound,
    /// When the next snapshot is published; `None` if none is due.
    publish_at: Option<Instant>,
    /// A reader waits for the next snapshot.
    is_asked_for: bool,
    open: OpenChannels,
}

/// Which channels still have senders.
struct OpenChannels {
    targets: bool,
    gone: bool,
    reminders: bool,
}

impl LedgerTask {
    fn new(ledger: Ledger, clock: Clock, inbox: Inbox, publisher: SnapshotPublisher) -> Self {
        let mut advance = tokio::time::interval(ADVANCE_PERIOD);
        advance.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            ledger,
            clock,
            inbox,
            publisher,
            advance,
            batch: Vec::with_capacity(MAX_BATCH),
            next_batch: Instant::now(),
            last_round: LastRound::default(),
            publish_at: None,
            is_asked_for: false,
            open: OpenChannels { targets: true, gone: true, reminders: true },
        }
    }

    async fn wakeup(&mut self) -> Wakeup {
        let Inbox { observations, targets, gone, reminders } = &mut self.inbox;
        let (batch, next_batch, publish_at) = (&mut self.batch, self.next_batch, self.publish_at);
        tokio::select! {
            count = async {
                tokio::time::sleep_until(next_batch).await;
                observations.recv_many(batch, MAX_BATCH).await
            } => if count == 0 { Wakeup::NoMoreObservations } else { Wakeup::Observations },
            changed = targets.changed(), if self.open.targets => Wakeup::Targets(changed.is_ok()),
            pod = gone.recv(), if self.open.gone => Wakeup::PodGone(pod),
            reminder = reminders.recv(), if self.open.reminders => Wakeup::Reminder(reminder),
            _ = self.advance.tick() => Wakeup::Advance,
            () = self.publisher.wait_for_request() => Wakeup::SnapshotAsked,
            () = async { tokio::time::sleep_until(publish_at.unwrap_or_else(Instant::now)).await }, if publish_at.is_some() => {
                Wakeup::PublishDue
            }
        }
    }

    fn handle(&mut self, wakeup: Wakeup) {
        match wakeup {
            Wakeup::Observations => self.apply_batch(),
            Wakeup::NoMoreObservations => {}
            Wakeup::Targets(true) => self.expect(),
            Wakeup::Targets(false) => self.open.targets = false,
            Wakeup::PodGone(Some(PodGone { pod, until })) => log(&self.ledger.pod_gone(&pod, until)),
            Wakeup::PodGone(None) => self.open.gone = false,
            Wakeup::Reminder(Some(reminder)) => self.remember(reminder),
            Wakeup::Reminder(None) => self.open.reminders = false,
            Wakeup::Advance => self.advance(),
            Wakeup::SnapshotAsked => {
                self.publish_at = Some(self.publisher.earliest_next());
                self.is_asked_for = true;
            }
            Wakeup::PublishDue => {
                self.publish_at = self.publisher.delay_for_readers().filter(|_| !self.is_asked_for);
                if self.publish_at.is_none() {
                    self.is_asked_for = false;
                    self.publish();
                }
            }
        }
    }

    /// Schedules a snapshot if the last one lacks a change and none is scheduled.
    fn schedule(&mut self) {
        if self.publish_at.is_none() && !self.publisher.has_shown(&self.ledger) {
            self.publish_at = Some(self.publisher.earliest_next().max(Instant::now() + PUBLISH_AFTER));
        }
    }

    fn apply_batch(&mut self) {
        if self.batch.len() < MAX_BATCH {
            self.next_batch = Instant::now() + BATCH_WINDOW;
        }
        // The new targets first: the collector reports only on targets that are in this channel already.
        if self.inbox.targets.has_changed().unwrap_or(false) {
            self.expect();
        }
        for observation in self.batch.drain(..) {
            apply_observation(&mut self.ledger, observation, &mut self.last_round);
        }
        self.publisher.publish_rounds(&self.ledger, self.clock);
    }

    fn expect(&mut self) {
        let set = self.inbox.targets.borrow_and_update().clone();
        self.ledger.expect(set.targets.iter().cloned(), set.unlisted);
    }

    fn remember(&mut self, Reminder { evidence, done }: Reminder) {
        self.ledger.remember(evidence, self.clock.now());
        self.publish_at = None;
        self.publish();
        // The policy may have ended meanwhile.
        let _ = done.send(());
    }

    fn advance(&mut self) {
        let now = self.clock.now();
        log(&self.ledger.advance(now));
        self.publisher.note_alive(now, DROP_SNAPSHOT_AFTER);
    }

    fn publish(&mut self) {
        self.publisher.publish(&mut self.ledger, self.clock);
    }
}
