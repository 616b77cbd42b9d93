//! Publishes snapshots of the ledger, and takes requests for newer ones.

use std::sync::Arc;
use std::time::Duration;

use procscan_core::Moment;
use procscan_core::ledger::Ledger;
use procscan_core::snapshot::{Coverage, Snapshot};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::clock::Clock;

/// The pause after a snapshot, as a multiple of the time that it took. So a storm of changes takes only a part of a
/// core. The pause is at most [`MAX_PAUSE`].
const PAUSE_FACTOR: u32 = 10;
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// How long a snapshot is delayed because the one before is still being read, and how often that is checked. Two
/// snapshots at once would take much memory. A snapshot that a reader has asked for is not delayed.
pub(super) const MAX_WAIT_FOR_READERS: Duration = Duration::from_millis(200);
pub(super) const READERS_CHECK_PERIOD: Duration = Duration::from_millis(5);
/// The maximum age of a snapshot that a reader gets.
pub(super) const MAX_SNAPSHOT_AGE: Duration = Duration::from_secs(1);
/// How long a reader waits for a newer snapshot, before it gets the last one.
const MAX_WAIT_FOR_SNAPSHOT: Duration = Duration::from_millis(500);

/// The progress of the rounds, and the coverage.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    /// Rounds over all targets that are done.
    pub rounds: u64,
    /// As of the end of the last round, or of a later change.
    pub(crate) coverage: Coverage,
    /// Whether every agent refuses the connection: see [`ALL_REFUSE`](super::ALL_REFUSE).
    pub(crate) all_refuse: bool,
}

/// The last publication.
#[derive(Clone, Debug)]
pub struct Published {
    /// The time of the snapshot.
    pub(crate) at: Moment,
    /// The number of the ledger's last change that the snapshot shows (see [`Ledger::changes`]).
    pub(crate) changes: u64,
    /// How many rounds were done at that time.
    pub rounds: u64,
    /// The snapshot; `None` if it was dropped since. A reader asks for another one: see [`Snapshots::fresh`].
    pub snapshot: Option<Arc<Snapshot>>,
}

impl Progress {
    fn of(snapshot: &Snapshot) -> Self {
        Self { rounds: snapshot.rounds, coverage: snapshot.coverage, all_refuse: snapshot.all_refuse() }
    }
}

impl Published {
    fn new(snapshot: Snapshot) -> Self {
        let Snapshot { at, changes, rounds, .. } = snapshot;
        Self { at, changes, rounds, snapshot: Some(Arc::new(snapshot)) }
    }
}

/// The latest snapshot, and a way to ask for a newer one.
#[derive(Clone, Debug)]
pub struct Snapshots {
    latest: watch::Receiver<Published>,
    progress: watch::Receiver<Progress>,
    asked_for: Arc<Notify>,
    alive: watch::Receiver<Moment>,
    clock: Clock,
}

impl Snapshots {
    /// The snapshot of now, or of a moment ago.
    pub async fn fresh(&self) -> Arc<Snapshot> {
        let is_fresh = |snapshot: &Arc<Snapshot>| self.clock.now().since(snapshot.at) < MAX_SNAPSHOT_AGE;
        let mut watch = self.latest.clone();
        let latest = watch.borrow_and_update().snapshot.clone();
        if let Some(latest) = latest.as_ref().filter(|latest| is_fresh(latest)) {
            return latest.clone();
        }
        self.ask();
        let is_newer = |published: &Published| published.snapshot.as_ref().is_some_and(is_fresh);
        let newer = tokio::time::timeout(MAX_WAIT_FOR_SNAPSHOT, watch.wait_for(is_newer)).await;
        let newer = newer.ok().and_then(Result::ok).and_then(|published| published.snapshot.clone());
        // The ledger is late or has ended, so the reader gets the last snapshot.
        match newer.or(latest) {
            Some(snapshot) => snapshot,
            None => self.next(watch).await,
        }
    }

    /// Waits for the next snapshot, without a time limit. When the ledger ends, its last publication has a snapshot.
    async fn next(&self, mut watch: watch::Receiver<Published>) -> Arc<Snapshot> {
        let next = watch.wait_for(|published| published.snapshot.is_some()).await;
        match next.ok().and_then(|published| published.snapshot.clone()) {
            Some(snapshot) => snapshot,
            // The ledger task has ended without a last publication, which ends the process.
            None => std::future::pending().await,
        }
    }

    /// Asks the ledger to publish a newer snapshot.
    pub(crate) fn ask(&self) {
        self.asked_for.notify_one();
    }

    /// The progress of the rounds. A round without a change publishes no snapshot.
    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// When the ledger last looked at the clock, which it does every second.
    pub(crate) fn last_advanced(&self) -> Moment {
        *self.alive.borrow()
    }

    /// The last publication. It has all changes that may change a decision. Evidence that was only renewed may be
    /// missing.
    pub fn published(&self) -> watch::Receiver<Published> {
        self.latest.clone()
    }
}

/// Publishes snapshots, and receives requests for them.
#[derive(Debug)]
pub(crate) struct SnapshotPublisher {
    latest: watch::Sender<Published>,
    progress: watch::Sender<Progress>,
    asked_for: Arc<Notify>,
    alive: watch::Sender<Moment>,
    /// The earliest time of the next snapshot.
    rested: Instant,
    /// Since when the next snapshot is delayed by readers.
    delayed_since: Option<Instant>,
}

/// Makes both ends, with a first snapshot.
pub(crate) fn snapshots(first: Snapshot, clock: Clock) -> (SnapshotPublisher, Snapshots) {
    let (progress_tx, progress) = watch::channel(Progress::of(&first));
    let (sender, latest) = watch::channel(Published::new(first));
    let asked_for = Arc::new(Notify::new());
    let (alive_tx, alive) = watch::channel(clock.now());
    let publisher = SnapshotPublisher {
        latest: sender,
        progress: progress_tx,
        asked_for: asked_for.clone(),
        alive: alive_tx,
        rested: Instant::now(),
        delayed_since: None,
    };
    (publisher, Snapshots { latest, progress, asked_for, alive, clock })
}

impl SnapshotPublisher {
    /// Publishes a snapshot of the ledger.
    pub(crate) fn publish(&mut self, ledger: &mut Ledger, clock: Clock) {
        // Real time, whatever the clock of a test shows, because the cost of a snapshot is real.
        let started = std::time::Instant::now();
        // Dropped first, because two snapshots would take much memory. A reader that comes now waits for the new one.
        self.drop_snapshot();
        self.delayed_since = None;
        self.show(ledger.snapshot(clock.now()));
        let pause = started.elapsed().saturating_mul(PAUSE_FACTOR).min(MAX_PAUSE);
        self.rested = Instant::now() + pause;
    }

    /// Waits until a reader asks for a snapshot.
    pub(super) async fn wait_for_request(&self) {
        self.asked_for.notified().await;
    }

    /// The earliest time of the next snapshot.
    pub(super) fn earliest_next(&self) -> Instant {
        self.rested
    }

    /// Notes that the ledger is alive at `now`, and drops a snapshot that is older than `max_age`.
    pub(super) fn note_alive(&self, now: Moment, max_age: Duration) {
        self.alive.send_replace(now);
        if now.since(self.latest.borrow().at) >= max_age {
            self.drop_snapshot();
        }
    }

    /// When to check again whether a snapshot may be made; `None` if it may be made now.
    pub(super) fn delay_for_readers(&mut self) -> Option<Instant> {
        let is_read = |snapshot: &Arc<Snapshot>| Arc::strong_count(snapshot) > 1;
        let is_read = self.latest.borrow().snapshot.as_ref().is_some_and(is_read);
        let now = Instant::now();
        if is_read && now < *self.delayed_since.get_or_insert(now) + MAX_WAIT_FOR_READERS {
            return Some(now + READERS_CHECK_PERIOD);
        }
        None
    }

    /// Publishes `snapshot`.
    pub(crate) fn show(&self, snapshot: Snapshot) {
        self.progress.send_replace(Progress::of(&snapshot));
        self.latest.send_replace(Published::new(snapshot));
    }

    /// Drops the last snapshot. That wakes no reader.
    fn drop_snapshot(&self) {
        self.latest.send_if_modified(|published| {
            published.snapshot = None;
            false
        });
    }

    /// Whether the last publication has every change that may change a decision.
    pub(super) fn has_shown(&self, ledger: &Ledger) -> bool {
        let shown = self.latest.borrow();
        // Nothing is written before the first round is done, so its end is a change too.
        shown.changes == ledger.changes() && (shown.rounds > 0) == (ledger.rounds() > 0)
    }

    pub(super) fn publish_rounds(&self, ledger: &Ledger, clock: Clock) {
        let rounds = ledger.rounds();
        if self.progress.borrow().rounds != rounds {
            let (coverage, all_refuse) = (ledger.coverage(clock.now()), ledger.all_refuse());
            self.progress.send_replace(Progress { rounds, coverage, all_refuse });
        }
    }
}
