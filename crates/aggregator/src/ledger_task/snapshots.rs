//! Publishes snapshots of the ledger, and takes requests for newer ones.

use std::sync::Arc;
use std::time::Duration;

use procscan_core::Moment;
use procscan_core::ledger::Ledger;
use procscan_core::snapshot::{Coverage, Snapshot};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::clock::Clock;

/// The pause after a snapshot, as a multiple of what it took: in a storm of news no more than so much of a core goes into
/// them. At most [`MAX_PAUSE`].
const PAUSE_SHARE: u32 = 10;
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// How long a snapshot that nobody has asked for is put off because the one before is still being read, and how often it is looked whether
/// it is: two at once would be much. Whoever asks waits for no other reader.
pub(super) const MAX_WAIT_FOR_READERS: Duration = Duration::from_millis(200);
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How old a snapshot may be that a reader is given.
pub(super) const MAX_SNAPSHOT_AGE: Duration = Duration::from_secs(1);
/// How long a reader waits for a newer one. Whoever reads is told something in any case.
const MAX_WAIT_FOR_SNAPSHOT: Duration = Duration::from_millis(500);

/// How far the rounds have got, and how much of the cluster has answered by then.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Rounds over all targets that are done.
    pub rounds: u64,
    /// As of the end of the last one, or of later news.
    pub coverage: Coverage,
    /// Every agent refuses the connection: see [`ALL_REFUSE`].
    pub all_refuse: bool,
}

/// What was published last.
#[derive(Clone, Debug)]
pub struct Published {
    /// As of when.
    pub at: Moment,
    /// Which of the ledger's news it shows (see [`Ledger::news`]).
    pub changes: u64,
    /// Rounds that were done by then.
    pub rounds: u64,
    /// The snapshot; nothing if it has been given up meanwhile. Whoever needs one asks for it: see [`Snapshots::fresh`].
    pub snapshot: Option<Arc<Snapshot>>,
}

impl Progress {
    fn of(snapshot: &Snapshot) -> Self {
        Self { rounds: snapshot.rounds, coverage: snapshot.coverage, all_refuse: snapshot.all_refuse() }
    }
}

impl Published {
    fn new(snapshot: Snapshot) -> Self {
        let Snapshot { at, changes: news, rounds, .. } = snapshot;
        Self { at, changes: news, rounds, snapshot: Some(Arc::new(snapshot)) }
    }
}

/// The latest snapshot, and a way to ask for a newer one.
#[derive(Clone, Debug)]
pub struct Snapshots {
    latest: watch::Receiver<Published>,
    progress: watch::Receiver<Progress>,
    wanted: Arc<Notify>,
    alive: watch::Receiver<Moment>,
    clock: Clock,
}

impl Snapshots {
    /// What the ledger knows now, or knew a moment ago.
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
        // Late, or ended: the last word is as good as any.
        match newer.or(latest) {
            Some(snapshot) => snapshot,
            None => self.any(watch).await,
        }
    }

    /// The next snapshot, however long it takes. The last one is never given up.
    async fn any(&self, mut watch: watch::Receiver<Published>) -> Arc<Snapshot> {
        let next = watch.wait_for(|published| published.snapshot.is_some()).await;
        match next.ok().and_then(|published| published.snapshot.clone()) {
            Some(snapshot) => snapshot,
            // Only where the ledger has died, which ends the process.
            None => std::future::pending().await,
        }
    }

    /// Asks for a newer one to be published.
    pub fn ask(&self) {
        self.wanted.notify_one();
    }

    /// How far the rounds have got. One without news is no reason for a snapshot.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// When the ledger last looked at the clock, which it does every second.
    pub fn alive(&self) -> Moment {
        *self.alive.borrow()
    }

    /// What was published last. Says what there is to decide on; what has only been renewed may be missing.
    pub fn published(&self) -> watch::Receiver<Published> {
        self.latest.clone()
    }
}

/// Publishes snapshots, and hears who wants one.
#[derive(Debug)]
pub struct SnapshotPublisher {
    latest: watch::Sender<Published>,
    progress: watch::Sender<Progress>,
    wanted: Arc<Notify>,
    alive: watch::Sender<Moment>,
    /// No snapshot before.
    rested: Instant,
    /// Since when the next one is put off.
    put_off: Option<Instant>,
}

/// Both ends, with a first snapshot.
pub fn snapshots(first: Snapshot, clock: Clock) -> (SnapshotPublisher, Snapshots) {
    let (told, progress) = watch::channel(Progress::of(&first));
    let (sender, latest) = watch::channel(Published::new(first));
    let wanted = Arc::new(Notify::new());
    let (beat, alive) = watch::channel(clock.now());
    let publisher = SnapshotPublisher {
        latest: sender,
        progress: told,
        wanted: wanted.clone(),
        alive: beat,
        rested: Instant::now(),
        put_off: None,
    };
    (publisher, Snapshots { latest, progress, wanted, alive, clock })
}

impl SnapshotPublisher {
    /// Shows what the ledger knows.
    pub fn publish(&mut self, ledger: &mut Ledger, clock: Clock) {
        // What a snapshot costs is real time, whatever the clock of a test says.
        let started = std::time::Instant::now();
        // Two would be much; whoever reads meanwhile waits for the new one.
        self.drop_snapshot();
        self.put_off = None;
        self.show(ledger.snapshot(clock.now()));
        let pause = started.elapsed().saturating_mul(PAUSE_SHARE).min(MAX_PAUSE);
        self.rested = Instant::now() + pause;
    }

    /// Waits until a reader asks for a snapshot.
    pub(super) async fn asked(&self) {
        self.wanted.notified().await;
    }

    /// The earliest time of the next snapshot.
    pub(super) fn rested(&self) -> Instant {
        self.rested
    }

    /// Notes that the ledger is alive at `now`, and drops a snapshot that is older than `max_age`.
    pub(super) fn note_alive(&self, now: Moment, max_age: Duration) {
        self.alive.send_replace(now);
        if now.since(self.latest.borrow().at) >= max_age {
            self.drop_snapshot();
        }
    }

    /// When to look again whether a snapshot may be made: nothing if it may be now.
    pub(super) fn put_off(&mut self) -> Option<Instant> {
        let is_read = |snapshot: &Arc<Snapshot>| Arc::strong_count(snapshot) > 1;
        let is_read = self.latest.borrow().snapshot.as_ref().is_some_and(is_read);
        let now = Instant::now();
        if is_read && now < *self.put_off.get_or_insert(now) + MAX_WAIT_FOR_READERS {
            return Some(now + LOOK_AGAIN);
        }
        None
    }

    /// Shows this.
    pub(crate) fn show(&self, snapshot: Snapshot) {
        self.progress.send_replace(Progress::of(&snapshot));
        self.latest.send_replace(Published::new(snapshot));
    }

    /// Gives up the last snapshot. Nobody is woken by it.
    fn drop_snapshot(&self) {
        self.latest.send_if_modified(|published| {
            published.snapshot = None;
            false
        });
    }

    /// Whether nobody misses a newer one who does not ask for it.
    pub(super) fn has_shown(&self, ledger: &Ledger) -> bool {
        let shown = self.latest.borrow();
        // Before the first round is done, nothing is decided.
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
