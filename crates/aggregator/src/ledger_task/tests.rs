use procscan_core::ledger::Detection;
use procscan_core::names::NodeName;
use procscan_core::report::{Failure, FailureReason, Limits, Outcome, Report, Target, decode};
use procscan_core::snapshot::{Snapshot, State};

use super::snapshots::{MAX_SNAPSHOT_AGE, MAX_WAIT_FOR_READERS, READERS_CHECK_PERIOD};
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
        let (gone, reminders) = (mpsc::channel(1).1, mpsc::channel(1).1);
        let inbox = Inbox { observations: inbox, targets, gone, reminders };
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

    /// Reports a violation whose record is `age` old at first sight.
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

fn has_failure(snapshot: &Snapshot, detail: &str) -> bool {
    snapshot.targets.iter().any(|t| t.last_failure.as_ref().is_some_and(|failure| failure.1.detail == detail))
}

#[tokio::test(start_paused = true)]
async fn changes_are_shown_soon() {
    let stage = Stage::new();
    let mut published = stage.snapshots.published();
    let sent = stage.clock.now();
    stage.accuse(Duration::ZERO).await;
    published.wait_for(|published| shows(published, State::Active)).await.unwrap();
    assert!(stage.clock.now().since(sent) <= PUBLISH_AFTER, "{:?}", stage.clock.now().since(sent));

    // So are the changes that time alone brings about.
    published.wait_for(|published| shows(published, State::Unconfirmed)).await.unwrap();
    let aged = stage.clock.now().since(sent);
    assert!(
        aged > Detection::default().max_age && aged < Detection::default().max_age + ADVANCE_PERIOD * 2,
        "{aged:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_without_a_change_is_made_for_a_reader_that_asks() {
    let stage = Stage::new();
    tokio::time::sleep(MAX_SNAPSHOT_AGE).await;
    let mut published = stage.snapshots.published();
    // The targets were a change.
    published.mark_unchanged();
    stage.fail("first").await;
    tokio::time::sleep(MAX_SNAPSHOT_AGE * 60).await;
    assert!(!published.has_changed().unwrap(), "no reader has asked");
    assert!(has_failure(&*stage.snapshots.fresh().await, "first"));

    stage.fail("second").await;
    let before = stage.snapshots.fresh().await;
    assert!(has_failure(&before, "first"), "readers share a fresh snapshot");
    tokio::time::sleep(MAX_SNAPSHOT_AGE).await;
    assert!(has_failure(&*stage.snapshots.fresh().await, "second"));
}

#[tokio::test(start_paused = true)]
async fn a_round_without_a_change_is_counted_and_publishes_no_snapshot() {
    let stage = Stage::new();
    let (mut published, mut progress) = (stage.snapshots.published(), stage.snapshots.progress());
    let done = || Observation::RoundDone(Round::default());
    stage.observations.send(done()).await.unwrap();
    published.wait_for(|snapshot| snapshot.rounds == 1).await.unwrap();
    stage.observations.send(done()).await.unwrap();
    progress.wait_for(|progress| progress.rounds == 2).await.unwrap();
    tokio::time::sleep(MAX_SNAPSHOT_AGE * 60).await;
    assert!(!published.has_changed().unwrap(), "no reader has asked");
    stage.snapshots.ask();
    published.wait_for(|snapshot| snapshot.rounds == 2).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_no_reader_needs_is_dropped_and_made_again_for_a_reader_that_asks() {
    let stage = Stage::new();
    stage.accuse(Duration::ZERO).await;
    let mut published = stage.snapshots.published();
    published.wait_for(|published| shows(published, State::Active)).await.unwrap();
    let shown = Arc::downgrade(&stage.snapshots.fresh().await);
    tokio::time::sleep(DROP_SNAPSHOT_AFTER + ADVANCE_PERIOD).await;
    assert!(shown.upgrade().is_none() && published.borrow_and_update().snapshot.is_none());
    tokio::time::sleep(DROP_SNAPSHOT_AFTER * 20).await;
    assert!(!published.has_changed().unwrap(), "no reader is woken");
    assert_eq!(stage.snapshots.fresh().await.count(State::Active), 1);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_waits_for_the_readers_of_the_one_before_but_not_for_long() {
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
    assert!(waited <= PUBLISH_AFTER + MAX_WAIT_FOR_READERS / 2 + READERS_CHECK_PERIOD, "{waited:?}");

    let read = stage.snapshots.fresh().await;
    published.wait_for(|published| shows(published, State::Unconfirmed)).await.unwrap();
    let aged = stage.clock.now().since(sent);
    assert!(aged < Detection::default().max_age + ADVANCE_PERIOD * 2 + MAX_WAIT_FOR_READERS, "{aged:?}");
    drop(read);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_asks_waits_for_no_other_reader() {
    let stage = Stage::new();
    // The targets were a change.
    tokio::time::sleep(MAX_SNAPSHOT_AGE * 2).await;
    let before = stage.snapshots.fresh().await;
    tokio::time::sleep(MAX_SNAPSHOT_AGE).await;
    let asked = stage.clock.now();
    let after = stage.snapshots.fresh().await;
    assert!(!Arc::ptr_eq(&before, &after) && stage.clock.now().since(asked) < READERS_CHECK_PERIOD);
}

#[tokio::test(start_paused = true)]
async fn the_last_observation_is_shown_before_the_end() {
    let stage = Stage::new();
    stage.fail("last").await;
    drop(stage.observations);
    stage.task.await.unwrap();
    assert!(has_failure(stage.snapshots.published().borrow().snapshot.as_ref().unwrap(), "last"));
    tokio::time::sleep(MAX_SNAPSHOT_AGE).await;
    assert!(has_failure(&*stage.snapshots.fresh().await, "last"), "readers still get it");
}
