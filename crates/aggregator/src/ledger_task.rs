//! The only owner of the ledger: takes in observations, lets time pass, publishes snapshots.
//!
//! A snapshot costs as much as there are violations, so one is made where somebody has a use for it: when there is news to
//! decide on, when the first round is done, and when a reader asks. Between them nothing is built.

mod intake;

use std::sync::Arc;
use std::time::Duration;

use procscan_core::Moment;
use procscan_core::ledger::{Ledger, Remembered};
use procscan_core::snapshot::{Coverage, Snapshot};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::clock::Clock;
use crate::cluster_facts::PodGone;
use crate::collector::Observation;
use crate::discovery::TargetSet;
use intake::{LastRound, log, take_in};

/// How soon after news a snapshot shows it. News within it share one snapshot.
const PUBLISH_AFTER: Duration = Duration::from_millis(100);
/// The pause after a snapshot, as a multiple of what it took: in a storm of news no more than so much of a core goes into
/// them. At most [`MAX_PAUSE`].
const PAUSE_SHARE: u32 = 10;
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// How long a snapshot that nobody has asked for is put off because the one before is still being read, and how often it is looked whether
/// it is: two at once would be much. Whoever asks waits for no other reader.
const MAX_WAIT_FOR_READERS: Duration = Duration::from_millis(200);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How old a snapshot may be that a reader is given.
const MAX_SNAPSHOT_AGE: Duration = Duration::from_secs(1);
/// How old the last snapshot is let become before it is given up: it is of no use to anybody, and all that has been renewed since is
/// in memory twice because of it.
const DROP_SNAPSHOT_AFTER: Duration = Duration::from_secs(3);
/// How long a reader waits for a newer one. Whoever reads is told something in any case.
const MAX_WAIT_FOR_SNAPSHOT: Duration = Duration::from_millis(500);
/// How often time is let pass: evidence grows old without anybody saying so.
const ADVANCE_PERIOD: Duration = Duration::from_secs(1);
/// How many observations are taken in before others get their turn.
const MAX_BATCH: usize = 64;
/// How long answers are let gather before they are taken in. Agents are asked many at a time, and being woken for each of their
/// answers would cost more than taking it in.
const BATCH_WINDOW: Duration = Duration::from_millis(10);

/// What the ledger has to be reminded of: evidence from before the start, or known to another replica.
#[derive(Debug)]
pub struct Reminder {
    /// The evidence.
    pub evidence: Vec<Remembered>,
    /// It is in the snapshots from now on.
    pub done: oneshot::Sender<()>,
}

/// What the ledger is told.
#[derive(Debug)]
pub struct Inbox {
    /// What the agents have said.
    pub observations: mpsc::Receiver<Observation>,
    /// Who is expected to answer.
    pub targets: watch::Receiver<Arc<TargetSet>>,
    /// The Pods that are gone.
    pub gone: mpsc::Receiver<PodGone>,
    /// What was known before.
    pub reminders: mpsc::Receiver<Reminder>,
}

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

/// What an operator should look at if every agent refuses the connection. One that refuses may be restarting; if all do, it is
/// nearly always this.
pub const ALL_REFUSE: &str = "every agent refuses the connection, so nothing listens at its port: the API of the ProcScan agent is off \
    until its own configuration has `api: {enabled: true, port: 9090}` and the agent was restarted (its hot reload says that it \
    worked, and does not start the API); otherwise see daemonset.api_port";

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
pub struct Publisher {
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
pub fn snapshots(first: Snapshot, clock: Clock) -> (Publisher, Snapshots) {
    let (told, progress) = watch::channel(Progress::of(&first));
    let (sender, latest) = watch::channel(Published::new(first));
    let wanted = Arc::new(Notify::new());
    let (beat, alive) = watch::channel(clock.now());
    let publisher = Publisher {
        latest: sender,
        progress: told,
        wanted: wanted.clone(),
        alive: beat,
        rested: Instant::now(),
        put_off: None,
    };
    (publisher, Snapshots { latest, progress, wanted, alive, clock })
}

impl Publisher {
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

    /// When to look again whether a snapshot may be made: nothing if it may be now.
    fn put_off(&mut self) -> Option<Instant> {
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
    fn has_shown(&self, ledger: &Ledger) -> bool {
        let shown = self.latest.borrow();
        // Before the first round is done, nothing is decided.
        shown.changes == ledger.changes() && (shown.rounds > 0) == (ledger.rounds() > 0)
    }

    fn publish_rounds(&self, ledger: &Ledger, clock: Clock) {
        let rounds = ledger.rounds();
        if self.progress.borrow().rounds != rounds {
            let (coverage, all_refuse) = (ledger.coverage(clock.now()), ledger.all_refuse());
            self.progress.send_replace(Progress { rounds, coverage, all_refuse });
        }
    }
}

/// Runs until every sender of observations is gone; what they have sent is in the last snapshot.
pub async fn run(mut ledger: Ledger, clock: Clock, inbox: Inbox, mut publisher: Publisher) {
    let Inbox { mut observations, mut targets, mut gone, reminders: mut memory } = inbox;
    let mut tick = tokio::time::interval(ADVANCE_PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut publish_at: Option<Instant> = None;
    let mut is_asked_for = false;
    let mut batch = Vec::with_capacity(MAX_BATCH);
    let (mut targets_live, mut gone_live, mut memory_live) = (true, true, true);
    let mut last_round = LastRound::default();
    let wanted = publisher.wanted.clone();
    let mut gathered = Instant::now();
    loop {
        let due = publish_at;
        tokio::select! {
            n = async {
                tokio::time::sleep_until(gathered).await;
                observations.recv_many(&mut batch, MAX_BATCH).await
            } => {
                if n == 0 {
                    break;
                }
                if n < MAX_BATCH {
                    gathered = Instant::now() + BATCH_WINDOW;
                }
                // Whoever is asked is in the set by now: the collector learned of it from the same one.
                if targets.has_changed().unwrap_or(false) {
                    expect(&mut ledger, &mut targets);
                }
                for observation in batch.drain(..) {
                    take_in(&mut ledger, observation, &mut last_round);
                }
                publisher.publish_rounds(&ledger, clock);
            }
            changed = targets.changed(), if targets_live => match changed {
                Ok(()) => expect(&mut ledger, &mut targets),
                Err(_) => targets_live = false,
            },
            pod = gone.recv(), if gone_live => match pod {
                Some(PodGone { pod, until }) => log(&ledger.pod_gone(&pod, until)),
                None => gone_live = false,
            },
            past = memory.recv(), if memory_live => match past {
                Some(Reminder { evidence, done }) => {
                    ledger.remember(evidence, clock.now());
                    publish_at = None;
                    publisher.publish(&mut ledger, clock);
                    // Whoever asked may have ended meanwhile.
                    let _ = done.send(());
                }
                None => memory_live = false,
            },
            _ = tick.tick() => {
                let now = clock.now();
                publisher.alive.send_replace(now);
                log(&ledger.advance(now));
                if now.since(publisher.latest.borrow().at) >= DROP_SNAPSHOT_AFTER {
                    publisher.drop_snapshot();
                }
            }
            () = wanted.notified() => {
                publish_at = Some(publisher.rested);
                is_asked_for = true;
            }
            () = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {
                publish_at = publisher.put_off().filter(|_| !is_asked_for);
                if publish_at.is_none() {
                    is_asked_for = false;
                    publisher.publish(&mut ledger, clock);
                }
            }
        }
        if publish_at.is_none() && !publisher.has_shown(&ledger) {
            publish_at = Some(publisher.rested.max(Instant::now() + PUBLISH_AFTER));
        }
    }
    publisher.publish(&mut ledger, clock);
}

fn expect(ledger: &mut Ledger, targets: &mut watch::Receiver<Arc<TargetSet>>) {
    let set = targets.borrow_and_update().clone();
    ledger.expect(set.targets.iter().cloned(), set.unlisted);
}

#[cfg(test)]
mod tests {
    use procscan_core::ledger::Detection;
    use procscan_core::names::NodeName;
    use procscan_core::report::{Failure, FailureReason, Limits, Outcome, Report, Target, decode};
    use procscan_core::snapshot::State;

    use super::*;
    use crate::collector::{Round, Share};

    const RECORD: &str =
        r#"[{"pod":"p","namespace":"ns-a","process":"xmrig","timestamp":"2026-01-01T00:00:00Z"}]"#;

    struct Stage {
        clock: Clock,
        agent: Target,
        observations: mpsc::Sender<Observation>,
        snapshots: Snapshots,
        _expected: watch::Sender<Arc<TargetSet>>,
        task: tokio::task::JoinHandle<()>,
    }

    impl Stage {
        fn new() -> Self {
            let clock = Clock::start();
            let mut ledger = Ledger::new(Detection::default(), clock.now());
            let agent = Target { address: "n1:9090".into(), node: NodeName::new("n1") };
            let (observations, inbox) = mpsc::channel(4);
            let known = TargetSet { targets: vec![agent.clone()], ..TargetSet::default() };
            let (expected, targets) = watch::channel(Arc::default());
            expected.send_replace(Arc::new(known));
            let (publisher, snapshots) = snapshots(ledger.snapshot(clock.now()), clock);
            let (gone, memory) = (mpsc::channel(1).1, mpsc::channel(1).1);
            let inbox = Inbox { observations: inbox, targets, gone, reminders: memory };
            let task = tokio::spawn(run(ledger, clock, inbox, publisher));
            Self { clock, agent, observations, snapshots, task, _expected: expected }
        }

        async fn report(&self, outcome: Outcome) {
            let report = Report { target: self.agent.clone(), at: self.clock.now(), outcome };
            self.observations.send(Observation::Report(report, Share::default())).await.unwrap();
        }

        async fn fail(&self, detail: &str) {
            let failure = Failure { reason: FailureReason::Timeout, detail: detail.to_owned() };
            self.report(Outcome::Failed(failure)).await;
        }

        /// A violation whose record is `age` old at first sight.
        async fn accuse(&self, age: Duration) {
            let (mut answer, decoded) = decode(RECORD.as_bytes(), &Limits::default());
            decoded.unwrap();
            answer.date = answer.records.get(0).map(|record| record.detected_at + age);
            self.report(Outcome::Complete(answer)).await;
        }
    }

    fn shows(published: &Published, state: State) -> bool {
        published.snapshot.as_ref().is_some_and(|snapshot| snapshot.count(state) == 1)
    }

    fn tells(snapshot: &Snapshot, detail: &str) -> bool {
        snapshot
            .targets
            .iter()
            .any(|t| t.last_failure.as_ref().is_some_and(|failure| failure.1.detail == detail))
    }

    #[tokio::test(start_paused = true)]
    async fn news_are_shown_soon() {
        let stage = Stage::new();
        let mut published = stage.snapshots.published();
        let sent = stage.clock.now();
        stage.accuse(Duration::ZERO).await;
        published.wait_for(|published| shows(published, State::Active)).await.unwrap();
        assert!(stage.clock.now().since(sent) <= PUBLISH_AFTER, "{:?}", stage.clock.now().since(sent));

        // So is what time alone brings about.
        published.wait_for(|published| shows(published, State::Unconfirmed)).await.unwrap();
        let aged = stage.clock.now().since(sent);
        assert!(
            aged > Detection::default().max_age && aged < Detection::default().max_age + ADVANCE_PERIOD * 2,
            "{aged:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_news_is_built_for_whoever_asks() {
        let stage = Stage::new();
        tokio::time::sleep(MAX_SNAPSHOT_AGE).await;
        let mut published = stage.snapshots.published();
        // Whom to ask was news.
        published.mark_unchanged();
        stage.fail("first").await;
        tokio::time::sleep(MAX_SNAPSHOT_AGE * 60).await;
        assert!(!published.has_changed().unwrap(), "nobody has asked");
        assert!(tells(&*stage.snapshots.fresh().await, "first"));

        stage.fail("second").await;
        let before = stage.snapshots.fresh().await;
        assert!(tells(&before, "first"), "readers share what is fresh");
        tokio::time::sleep(MAX_SNAPSHOT_AGE).await;
        assert!(tells(&*stage.snapshots.fresh().await, "second"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_without_news_is_counted_and_shows_nothing() {
        let stage = Stage::new();
        let (mut published, mut progress) = (stage.snapshots.published(), stage.snapshots.progress());
        let done = || Observation::RoundDone(Round::default());
        stage.observations.send(done()).await.unwrap();
        published.wait_for(|snapshot| snapshot.rounds == 1).await.unwrap();
        stage.observations.send(done()).await.unwrap();
        progress.wait_for(|progress| progress.rounds == 2).await.unwrap();
        tokio::time::sleep(MAX_SNAPSHOT_AGE * 60).await;
        assert!(!published.has_changed().unwrap(), "nobody has asked");
        stage.snapshots.ask();
        published.wait_for(|snapshot| snapshot.rounds == 2).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_needs_is_given_up_and_made_anew_for_whoever_asks() {
        let stage = Stage::new();
        stage.accuse(Duration::ZERO).await;
        let mut published = stage.snapshots.published();
        published.wait_for(|published| shows(published, State::Active)).await.unwrap();
        let shown = Arc::downgrade(&stage.snapshots.fresh().await);
        tokio::time::sleep(DROP_SNAPSHOT_AFTER + ADVANCE_PERIOD).await;
        assert!(shown.upgrade().is_none() && published.borrow_and_update().snapshot.is_none());
        tokio::time::sleep(DROP_SNAPSHOT_AFTER * 20).await;
        assert!(!published.has_changed().unwrap(), "nobody is woken");
        assert_eq!(stage.snapshots.fresh().await.count(State::Active), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_waits_for_those_who_read_the_one_before_but_not_for_long() {
        let stage = Stage::new();
        let mut published = stage.snapshots.published();
        let read = stage.snapshots.fresh().await;
        let sent = stage.clock.now();
        stage.accuse(Duration::ZERO).await;
        tokio::time::sleep(PUBLISH_AFTER + MAX_WAIT_FOR_READERS / 2).await;
        assert!(!shows(&published.borrow_and_update(), State::Active), "it is being read");
        drop(read);
        published.wait_for(|published| shows(published, State::Active)).await.unwrap();
        let waited = stage.clock.now().since(sent);
        assert!(waited <= PUBLISH_AFTER + MAX_WAIT_FOR_READERS / 2 + LOOK_AGAIN, "{waited:?}");

        let read = stage.snapshots.fresh().await;
        published.wait_for(|published| shows(published, State::Unconfirmed)).await.unwrap();
        let aged = stage.clock.now().since(sent);
        assert!(aged < Detection::default().max_age + ADVANCE_PERIOD * 2 + MAX_WAIT_FOR_READERS, "{aged:?}");
        drop(read);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_waits_for_no_other_reader() {
        let stage = Stage::new();
        // Whom to ask was news.
        tokio::time::sleep(MAX_SNAPSHOT_AGE * 2).await;
        let before = stage.snapshots.fresh().await;
        tokio::time::sleep(MAX_SNAPSHOT_AGE).await;
        let asked = stage.clock.now();
        let after = stage.snapshots.fresh().await;
        assert!(!Arc::ptr_eq(&before, &after) && stage.clock.now().since(asked) < LOOK_AGAIN);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_of_it_is_shown_before_the_end() {
        let stage = Stage::new();
        stage.fail("last").await;
        drop(stage.observations);
        stage.task.await.unwrap();
        assert!(tells(stage.snapshots.published().borrow().snapshot.as_ref().unwrap(), "last"));
        tokio::time::sleep(MAX_SNAPSHOT_AGE).await;
        assert!(tells(&*stage.snapshots.fresh().await, "last"), "readers are answered all the same");
    }
}
