//! The schedule of rounds: when each target is asked.
//!
//! Each round lasts `interval`. A target has a place of its own in it, by its address. So requests are spread evenly, and each
//! target is asked at even intervals. Targets that are due within the same slot are asked together: waking up costs more than
//! asking. One task owns the schedule; each request is a task of its own, and ends with its report.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use procscan_core::names::Text;
use procscan_core::report::{Failure, FailureReason, Report, Target};
use tokio::sync::{mpsc, watch};
use tokio::task::{self, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::budget::Share;
use super::client::{Client, Exchange};
use super::health::Health;
use super::lane::Lane;
use super::{Observation, PROBATION_SHARE, Round};
use crate::clock::Clock;
use crate::counters::{Counters, count};
use crate::discovery::TargetSet;

/// How often targets are asked, and how many at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cadence {
    /// The length of a round.
    pub(crate) interval: Duration,
    /// How many targets are asked at the same time.
    pub(crate) concurrency: usize,
    /// The most rounds in a row in which a target that keeps failing is not asked.
    pub(crate) max_backoff_rounds: u32,
}

/// The first round is spread over no more than this, so that the first reports come soon after a start.
const FIRST_ROUND_SPREAD: Duration = Duration::from_secs(2);
/// The part of a round over which its requests are spread. The rest is left for the answers.
const ROUND_SHARE_FOR_STARTS: f64 = 0.8;
/// How many slots there are in that part. The most make one slot each second in a round of a minute. Half as many slots cost an
/// eighth less CPU time. A slot of a large fleet has about as many targets as may be asked at once.
const SLOTS_PER_ROUND: [u16; 3] = [12, 24, 48];

/// Asks every target once per round.
#[derive(Debug)]
pub(crate) struct Collector {
    cadence: Cadence,
    client: Client,
    clock: Clock,
    observations: mpsc::Sender<Observation>,
    /// Boxed, because a map has room for up to twice as many as are in it.
    slots: HashMap<Text, Box<Slot>>,
    /// Targets whose last answer was whole, and new ones.
    healthy: Lane,
    /// Targets whose last answer failed. They have places of their own, so that targets that hang delay each other only.
    probation: Lane,
    in_flight: JoinSet<Finished>,
    /// The purpose of each request in flight, which is needed even if the request panics.
    asked: HashMap<task::Id, Asked>,
    round: Current,
    /// Observations that are not sent yet.
    unsent: Vec<Observation>,
    counters: Counters,
}

#[derive(Debug)]
struct Asked {
    address: Text,
    round: u64,
    is_on_probation: bool,
}

/// The state of one target.
#[derive(Debug)]
struct Slot {
    target: Target,
    /// Its place in a round, from 0 to 1.
    place: f64,
    health: Health,
    is_in_flight: bool,
}

#[derive(Debug)]
struct Current {
    counts: Round,
    started: Instant,
    /// The sum of the delays of all requests.
    lag: Duration,
    /// Targets of this round that have not answered or failed yet.
    pending: usize,
    is_open: bool,
}

#[derive(Debug)]
struct Finished {
    report: Report,
    etag: Option<String>,
    share: Share,
}

impl Collector {
    /// A collector that sends its observations to `observations`.
    pub(crate) fn new(
        cadence: Cadence,
        client: Client,
        clock: Clock,
        observations: mpsc::Sender<Observation>,
        counters: Counters,
    ) -> Self {
        let probation = (cadence.concurrency / PROBATION_SHARE).max(1);
        Self {
            cadence,
            client,
            clock,
            observations,
            slots: HashMap::new(),
            healthy: Lane::new(cadence.concurrency.saturating_sub(probation).max(1)),
            probation: Lane::new(probation),
            in_flight: JoinSet::new(),
            asked: HashMap::new(),
            round: Current::begin(0, false),
            unsent: Vec::new(),
            counters,
        }
    }

    /// Runs until cancelled, or until the observations have no receiver any more. Requests in flight are then dropped.
    pub(crate) async fn run(
        mut self,
        mut targets: watch::Receiver<Arc<TargetSet>>,
        cancel: CancellationToken,
    ) {
        // The first round begins with the first targets.
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = targets.changed() => if changed.is_err() { return },
        }
        let mut rounds = tokio::time::interval(self.cadence.interval);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.update(&targets.borrow_and_update().clone());
        loop {
            let next = self.next_request();
            let done = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                _ = rounds.tick() => self.begin_round(),
                Some(finished) = self.in_flight.join_next_with_id() => self.finish_all(finished),
                Ok(()) = targets.changed() => {
                    let now = targets.borrow_and_update().clone();
                    self.update(&now)
                }
                () = until(next) => self.ask_due(),
            };
            self.unsent.extend(done.map(Observation::RoundDone));
            if self.send(&cancel).await.is_break() {
                return;
            }
        }
    }

    /// When the next target is to be asked.
    fn next_request(&self) -> Option<Instant> {
        self.healthy.next().into_iter().chain(self.probation.next()).min()
    }

    /// Sends the observations, as many at a time as the channel takes, so that the ledger is woken once. A full channel makes the
    /// schedule wait: the ledger sets the pace.
    async fn send(&mut self, cancel: &CancellationToken) -> ControlFlow<()> {
        while !self.unsent.is_empty() {
            let count = self.unsent.len().min(self.observations.max_capacity());
            let permits = tokio::select! {
                () = cancel.cancelled() => return ControlFlow::Break(()),
                permits = self.observations.reserve_many(count) => permits,
            };
            let Ok(permits) = permits else { return ControlFlow::Break(()) };
            for (permit, observation) in permits.zip(self.unsent.drain(..count)) {
                permit.send(observation);
            }
        }
        ControlFlow::Continue(())
    }

    /// Targets come and go. New ones are asked in the current round.
    fn update(&mut self, targets: &TargetSet) -> Option<Round> {
        let now: HashMap<&Text, &Target> =
            targets.targets.iter().map(|target| (&target.address, target)).collect();
        self.slots.retain(|address, slot| now.get(address).is_some_and(|target| **target == slot.target));
        for lane in [&mut self.healthy, &mut self.probation] {
            lane.retain(|address| now.contains_key(address));
        }
        let slots = slots(targets.targets.len(), self.healthy.places());
        let (begin, spread) = (Instant::now(), FIRST_ROUND_SPREAD.min(self.cadence.interval));
        for target in &targets.targets {
            if self.slots.contains_key(&target.address) {
                continue;
            }
            let slot = Slot {
                target: target.clone(),
                place: place_of(target),
                health: Health::default(),
                is_in_flight: false,
            };
            if self.round.is_open {
                self.healthy.push(begin + offset(spread, slot.place, slots), target.address.clone());
            }
            self.slots.insert(target.address.clone(), Box::new(slot));
        }
        self.close_if_done()
    }

    /// Plans the next round. Targets that the last round has not asked, because all places were taken, come first.
    fn begin_round(&mut self) -> Option<Round> {
        let overdue = if self.round.is_open { Some(self.close()) } else { None };
        let number = self.round.counts.number + 1;
        self.round = Current::begin(number, true);
        let now = self.round.started;
        let spread =
            if number == 1 { FIRST_ROUND_SPREAD.min(self.cadence.interval) } else { self.cadence.interval };
        let slots = slots(self.slots.len(), self.healthy.places());
        let waiting: HashSet<Text> =
            self.healthy.waiting().chain(self.probation.waiting()).cloned().collect();
        self.client.begin_round(|address| {
            let (address, slot) = self.slots.get_key_value(address)?;
            let is_asked = waiting.contains(address) || (!slot.is_in_flight && slot.health.is_due(number));
            is_asked.then(|| slot.health.is_failing())
        });
        for (address, slot) in &self.slots {
            if waiting.contains(address) {
                continue;
            }
            if slot.is_in_flight || !slot.health.is_due(number) {
                self.round.counts.skipped += 1;
                continue;
            }
            let lane = if slot.health.is_failing() { &mut self.probation } else { &mut self.healthy };
            lane.push(now + offset(spread, slot.place, slots), address.clone());
        }
        // A round without targets is done at once.
        overdue.or_else(|| self.close_if_done())
    }

    /// Asks the targets that are due, as far as there are places.
    fn ask_due(&mut self) -> Option<Round> {
        let now = Instant::now();
        self.healthy.move_slow_aside(now);
        self.probation.move_slow_aside(now);
        while self.healthy.next().is_some_and(|due| due <= now) {
            self.ask_next(now, false);
        }
        while self.probation.next().is_some_and(|due| due <= now) {
            self.ask_next(now, true);
        }
        // The next target may have been removed.
        self.close_if_done()
    }

    fn ask_next(&mut self, now: Instant, is_on_probation: bool) {
        let lane = if is_on_probation { &mut self.probation } else { &mut self.healthy };
        let Some((due, address)) = lane.pop() else { return };
        let Some(slot) = self.slots.get_mut(&address).filter(|slot| !slot.is_in_flight) else { return };
        slot.is_in_flight = true;
        self.round.counts.asked += 1;
        self.round.pending += 1;
        self.round.lag += now - due;
        let (client, clock) = (self.client.clone(), self.clock);
        let (target, etag) = (slot.target.clone(), slot.health.etag.clone());
        let request = self.in_flight.spawn(async move {
            let Exchange { outcome, etag, share } =
                client.ask(&target.address, etag.as_deref(), is_on_probation).await;
            Finished { report: Report { target, at: clock.now(), outcome }, etag, share }
        });
        lane.begin(request.id(), now);
        let round = self.round.counts.number;
        self.asked.insert(request.id(), Asked { address, round, is_on_probation });
    }

    /// `first` has finished, and perhaps others with it.
    fn finish_all(&mut self, first: Result<(task::Id, Finished), task::JoinError>) -> Option<Round> {
        self.finish(first);
        while let Some(finished) = self.in_flight.try_join_next_with_id() {
            self.finish(finished);
        }
        self.close_if_done()
    }

    fn finish(&mut self, finished: Result<(task::Id, Finished), task::JoinError>) {
        let (id, finished) = match finished {
            Ok((id, finished)) => (id, Some(finished)),
            Err(error) => {
                tracing::error!(%error, "a request ended by a panic");
                (error.id(), None)
            }
        };
        let Some(Asked { address, round, is_on_probation }) = self.asked.remove(&id) else { return };
        let failure = if let Some(finished) = &finished {
            finished.report.outcome.failure().cloned()
        } else {
            let detail = "the request ended by a panic".to_owned();
            Some(Failure { reason: FailureReason::Disconnected, detail })
        };
        let etag = finished.and_then(|Finished { report, etag, share }| {
            self.unsent.push(Observation::Report(report, share));
            etag
        });
        let lane = if is_on_probation { &mut self.probation } else { &mut self.healthy };
        lane.finished(id);
        self.counters.target_requests.inc();
        if let Some(failure) = &failure {
            count(&self.counters.target_failures, "reason", failure.reason.as_str());
        }
        self.count(round, failure.is_none());
        self.note_health(&address, etag, failure);
    }

    /// Counts an answer or a failure, if it belongs to the current round.
    fn count(&mut self, round: u64, is_answer: bool) {
        if round != self.round.counts.number || !self.round.is_open {
            return;
        }
        self.round.pending = self.round.pending.saturating_sub(1);
        if is_answer {
            self.round.counts.answered += 1;
        } else {
            self.round.counts.failed += 1;
        }
    }

    /// Notes and logs the end of a request in the health of its target.
    fn note_health(&mut self, address: &Text, etag: Option<String>, failure: Option<Failure>) {
        let Some(slot) = self.slots.get_mut(address) else { return };
        slot.is_in_flight = false;
        let (address, node) = (&**address, &*slot.target.node.0);
        match failure {
            None => {
                if slot.health.answered(etag) {
                    tracing::info!(address, node, "target answers again");
                }
            }
            // The answer was not read to its end for a reason on our side. So the agent's failures and backoff stay as they are.
            Some(Failure { reason: FailureReason::Deferred, detail }) => {
                tracing::debug!(address, node, reason = "deferred", ?detail, "no whole answer");
            }
            Some(Failure { reason, detail }) => {
                let reason = reason.as_str();
                if slot.health.failed(self.round.counts.number, self.cadence.max_backoff_rounds) {
                    tracing::warn!(address, node, reason, ?detail, "target keeps failing");
                } else {
                    tracing::debug!(address, node, reason, ?detail, "no whole answer");
                }
            }
        }
    }

    fn close_if_done(&mut self) -> Option<Round> {
        let is_idle = self.healthy.is_empty() && self.probation.is_empty();
        (self.round.is_open && self.round.pending == 0 && is_idle).then(|| self.close())
    }

    fn close(&mut self) -> Round {
        self.round.is_open = false;
        self.round.counts.took = self.round.started.elapsed();
        self.round.counts.lag =
            self.round.lag / u32::try_from(self.round.counts.asked.max(1)).unwrap_or(u32::MAX);
        self.counters.round(self.round.counts.took);
        self.round.counts
    }
}

impl Current {
    fn begin(number: u64, is_open: bool) -> Self {
        let counts = Round { number, ..Round::default() };
        Self { counts, started: Instant::now(), lag: Duration::ZERO, pending: 0, is_open }
    }
}

/// A target's place in every round, from 0 to 1. The same in every run, so that a restart asks at even distances too.
fn place_of(target: &Target) -> f64 {
    let mut hasher = DefaultHasher::new();
    target.address.hash(&mut hasher);
    f64::from(u32::try_from(hasher.finish() >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}

/// The number of slots in a round over so many targets.
fn slots(targets: usize, places: usize) -> u16 {
    let [fewest, ..] = SLOTS_PER_ROUND;
    let wanted = targets / places;
    SLOTS_PER_ROUND.into_iter().rfind(|slots| usize::from(*slots) <= wanted).unwrap_or(fewest)
}

/// When a target is asked within a round that is spread over `spread`: at the beginning of its slot.
fn offset(spread: Duration, place: f64, slots: u16) -> Duration {
    let slots = f64::from(slots);
    spread.mul_f64(ROUND_SHARE_FOR_STARTS * (place * slots).floor() / slots)
}

/// Waits until `due`, or for ever if there is nothing to wait for.
async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use procscan_core::report::Outcome;

    use super::*;

    #[test]
    fn a_slot_has_about_as_many_targets_as_may_be_asked_at_once() {
        let of = |targets| slots(targets, 192);
        assert_eq!((of(0), of(200), of(4_607), of(4_608), of(9_216), of(65_000)), (12, 12, 12, 24, 48, 48));
        let offsets: Vec<_> =
            [0.0, 0.04, 0.5, 1.0].map(|place| offset(Duration::from_mins(1), place, 12)).into();
        assert_eq!(offsets, [0, 0, 24, 48].map(Duration::from_secs));
    }

    fn collector(observations: mpsc::Sender<Observation>) -> Collector {
        use crate::collector::ClientOptions;
        let options = ClientOptions {
            path: "/".to_owned(),
            connect_timeout: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            max_read: 0,
            small: 0,
            byte_budget: 0,
            limits: procscan_core::report::Limits::default(),
        };
        let cadence = Cadence { interval: Duration::from_secs(1), concurrency: 4, max_backoff_rounds: 1 };
        Collector::new(cadence, Client::new(options), Clock::start(), observations, Counters::default())
    }

    #[tokio::test]
    async fn a_deferred_answer_changes_nothing_in_the_health_of_its_target() {
        let (mut collector, mut requests) = (collector(mpsc::channel(1).0), JoinSet::new());
        let address: Text = "10.0.0.1:9090".into();
        let target = Target { address: address.clone(), node: procscan_core::names::NodeName::new("n1") };
        let slot = Slot { target: target.clone(), place: 0.0, health: Health::default(), is_in_flight: true };
        collector.slots.insert(address.clone(), Box::new(slot));
        let mut finish = |reason| {
            let id = requests.spawn(std::future::pending::<()>()).id();
            let asked = Asked { address: address.clone(), round: 0, is_on_probation: false };
            collector.asked.insert(id, asked);
            let failure = Failure { reason, detail: String::new() };
            let outcome = Outcome::Partial(procscan_core::report::Answer::default(), failure);
            let report = Report { target: target.clone(), at: collector.clock.now(), outcome };
            collector.finish(Ok((id, Finished { report, etag: None, share: Share::default() })));
            let health = &collector.slots[&address].health;
            (health.is_failing(), health.is_due(1))
        };
        for _ in 0..10 {
            assert_eq!(finish(FailureReason::Deferred), (false, true));
        }
        assert_eq!(finish(FailureReason::TooLarge), (true, true));
        assert_eq!(finish(FailureReason::Deferred), (true, true));
        assert_eq!([(); 2].map(|()| finish(FailureReason::TooLarge)), [(true, true), (true, false)]);
    }

    #[tokio::test]
    async fn more_observations_than_the_channel_holds_are_sent_in_order_and_none_is_lost() {
        let (observations, mut received) = mpsc::channel(2);
        let mut collector = collector(observations);
        let round = |number| Observation::RoundDone(Round { number, ..Round::default() });
        collector.unsent = (1..=5).map(round).collect();
        let receive = async {
            let mut numbers = Vec::new();
            while let Some(Observation::RoundDone(round)) = received.recv().await {
                numbers.push(round.number);
                if numbers.len() == 5 {
                    break;
                }
            }
            numbers
        };
        let cancel = CancellationToken::new();
        let (done, numbers) = tokio::join!(collector.send(&cancel), receive);
        assert_eq!((done, numbers), (ControlFlow::Continue(()), vec![1, 2, 3, 4, 5]));
    }
}
