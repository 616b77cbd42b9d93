//! What is known of one node: how long it has answered, how often its agent scans, and its evidence.

use std::time::Duration;

use jiff::Timestamp;

use super::evidence::{ActiveFor, Cleared, Evidence};
use super::{ChangeKind, Detection};
use crate::Moment;
use crate::few::FewMap;
use crate::moment::{Span, WallTime};
use crate::names::{Key, KeyRef};
use crate::report::{FailureReason, Rejections};
use crate::snapshot::NodeView;

/// The longest scan interval that is believed: an agent may not make its violations immortal.
const MAX_INTERVAL: Duration = Duration::from_hours(1);
/// From how many steps the scan interval is learned: an agent that scans seldom from now on is understood after so many scans.
const STEPS: u8 = 8;

/// The last steps, in microseconds: there are many nodes. Rounded up, because too long only means to wait longer.
#[derive(Debug, Default)]
struct Steps {
    /// The next one takes the place of the oldest.
    micros: [u32; STEPS as usize],
    next: u8,
    count: u8,
}

impl Steps {
    /// One more, of [`MAX_INTERVAL`] at most.
    fn push(&mut self, step: Duration) {
        let micros = step.min(MAX_INTERVAL).as_nanos().div_ceil(1000);
        if let Some(place) = self.micros.get_mut(usize::from(self.next)) {
            *place = u32::try_from(micros).unwrap_or(u32::MAX);
        }
        self.next = (self.next + 1) % STEPS;
        self.count = self.count.saturating_add(1).min(STEPS);
    }

    fn least(&self) -> Option<Duration> {
        let known = self.micros.iter().take(self.count.into());
        known.min().map(|micros| Duration::from_micros((*micros).into()))
    }
}

#[derive(Debug)]
pub(super) struct Node {
    /// Answered time, in sum. Clearing clocks are differences of its readings.
    pub(super) odometer: Span,
    /// Answered time since the agent may have restarted. A restarted agent answers `[]` until its first scan, so its
    /// first scan interval of answers says nothing.
    settled: Span,
    since: Moment,
    last_answer: Option<Moment>,
    listed_something: bool,
    /// The last steps between the newest timestamps of its answers.
    steps: Steps,
    latest: Option<WallTime>,
    pub(super) evidence: FewMap<Key, Evidence>,
    pub(super) rejected: Rejections,
    /// When it is looked at next because time has passed, by the monotonic clock.
    pub(super) deadline: Option<Span>,
}

impl Node {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            odometer: Span::ZERO,
            settled: Span::ZERO,
            since: now,
            last_answer: None,
            listed_something: false,
            steps: Steps::default(),
            latest: None,
            evidence: FewMap::default(),
            rejected: Rejections::default(),
            deadline: None,
        }
    }

    /// Nobody listens there: the agent is down, and will have restarted when it answers again.
    pub(super) fn failed(&mut self, reason: FailureReason) {
        if reason == FailureReason::Refused {
            self.settled = Span::ZERO;
        }
    }

    /// A whole answer. It vouches for the time since the last one, but for no more than `gap`: the time in between that
    /// was not answered counts for nothing, however the failure showed.
    ///
    /// `is_empty` is whether it lists nothing; `None` if it is the same list as before.
    pub(super) fn answered(&mut self, at: Moment, is_empty: Option<bool>, gap: Duration) {
        let credit = self.last_answer.map_or(Duration::ZERO, |last| at.since(last)).min(gap);
        self.last_answer = self.last_answer.max(Some(at));
        let is_empty = is_empty.unwrap_or(!self.listed_something);
        if is_empty && self.listed_something {
            // The upstream agent never takes a record off its list, so this is how its restart looks.
            self.settled = Span::ZERO;
        }
        self.listed_something = !is_empty;
        let warm_up = self.interval();
        let before = self.settled.max(warm_up.into());
        self.settled = (self.settled.get() + credit).into();
        self.odometer = (self.odometer.get() + self.settled.saturating_sub(before)).into();
    }

    /// Learns from the newest timestamp of an answer: the smallest of the last steps between different ones is the scan interval.
    ///
    /// Steps between the records of one answer do not count: they belong to one scan, and would make the interval, and
    /// with it the caution of the clearing clock, too small.
    pub(super) fn learn_interval(&mut self, newest: Option<Timestamp>) {
        let Some(newest) = newest.map(WallTime::from) else { return };
        if let Some(latest) = self.latest
            && newest > latest
        {
            self.steps.push(newest.get().duration_since(latest.get()).unsigned_abs());
        }
        self.latest = Some(newest);
    }

    /// What had been learned before the start, or by another replica. What has been seen here since is known better.
    pub(super) fn remember_interval(&mut self, interval: Duration) {
        if self.steps.least().is_none() {
            self.steps.push(interval);
        }
    }

    /// The learned scan interval; zero while unknown.
    pub(super) fn interval(&self) -> Duration {
        self.steps.least().unwrap_or_default()
    }

    fn offenders(&self) -> usize {
        self.evidence.values().filter(|evidence| evidence.is_offender()).count()
    }

    /// The interval at which one of several offenders can be expected to be listed by an agent that lists one per scan.
    fn turn(&self) -> Duration {
        self.interval().saturating_mul(u32::try_from(self.offenders().max(1)).unwrap_or(u32::MAX))
    }

    pub(super) fn active_for(&self, rules: &Detection) -> ActiveFor {
        let heard = rules.max_age.max(self.turn().saturating_mul(3));
        ActiveFor { heard, recalled: rules.max_age }
    }

    pub(super) fn clock(&self, rules: &Detection) -> NodeClock {
        NodeClock {
            odometer: self.odometer,
            required: rules.clear_after.max(self.turn().saturating_mul(6)).into(),
            since: self.since,
            last_answer: self.last_answer.unwrap_or(self.since),
            unreachable_limit: rules.unreachable_limit.into(),
        }
    }

    /// Lets its evidence clear and grow old, as far as it is time.
    pub(super) fn grow_old(&mut self, rules: &Detection, now: Moment) -> Vec<(Key, ChangeKind)> {
        let mut changes = Vec::new();
        // With each offender less the others' turns come sooner, so what remains is judged again.
        loop {
            let clock = self.clock(rules);
            let before = changes.len();
            for (key, evidence) in self.evidence.iter_mut() {
                if let Some(why) = evidence.try_clear(&clock, now) {
                    changes.push((key.clone(), ChangeKind::Cleared(why)));
                }
            }
            if changes.len() == before {
                break;
            }
        }
        let active_for = self.active_for(rules);
        let aged = self.evidence.iter_mut().filter_map(|(key, evidence)| {
            evidence.try_age(now, active_for).then(|| (key.clone(), ChangeKind::Unconfirmed))
        });
        changes.extend(aged);
        changes
    }

    /// When time alone may change something, by the monotonic clock; never later than it does.
    pub(super) fn next_deadline(&self, rules: &Detection) -> Option<Duration> {
        let (clock, active_for) = (self.clock(rules), self.active_for(rules));
        let keep = rules.same_incident;
        self.evidence.values().map(|evidence| evidence.deadline(&clock, active_for, keep)).min()
    }

    /// What is known of a violation, with its key as it is held here.
    pub(super) fn evidence_of(&mut self, key: KeyRef<'_>) -> Option<(&Key, &mut Evidence)> {
        self.evidence.find_mut(|known| known.view().cmp(&key))
    }

    /// Makes room for `n` more violations by forgetting what can be judged anew, the longest unlisted first.
    ///
    /// What `listed` says is in the answer at hand stays: a tombstone must meet the record that it is for.
    pub(super) fn evict(&mut self, n: usize, listed: impl Fn(&Key) -> bool) -> Vec<Key> {
        if n == 0 {
            return Vec::new();
        }
        let mut expendable: Vec<(Moment, Key)> = self
            .evidence
            .iter()
            .filter(|(key, evidence)| evidence.is_expendable() && !listed(key))
            .map(|(key, evidence)| (evidence.last_seen(), key.clone()))
            .collect();
        expendable.sort_unstable();
        expendable.truncate(n);
        let keys: Vec<Key> = expendable.into_iter().map(|(_, key)| key).collect();
        for key in &keys {
            self.evidence.remove(key);
        }
        keys
    }

    /// Drops tombstones that have lain unlisted for `keep`.
    pub(super) fn expire(&mut self, now: Moment, keep: Duration) -> Vec<Key> {
        let keys: Vec<Key> = self
            .evidence
            .iter()
            .filter(|(_, evidence)| evidence.is_expired(now, keep))
            .map(|(key, _)| key.clone())
            .collect();
        for key in &keys {
            self.evidence.remove(key);
        }
        keys
    }

    pub(super) fn view(&self, rules: &Detection) -> NodeView {
        NodeView {
            clock: self.clock(rules),
            interval: self.steps.least().map(Span::from),
            records: self.evidence.values().filter(|evidence| !evidence.is_cleared()).count(),
            last_answer: self.last_answer.map(|at| at.wall().into()),
            rejected: self.rejected.clone(),
        }
    }
}

/// By what a node's evidence clears: readings of the node's odometer of answered time.
#[derive(Clone, Copy, Debug)]
pub struct NodeClock {
    /// Answered time of the node, in sum.
    pub odometer: Span,
    /// How much answered time without fresh evidence proves absence on this node.
    pub required: Span,
    /// When the node was first asked.
    pub since: Moment,
    /// The last whole answer, or when the node was first asked.
    pub last_answer: Moment,
    /// How long to wait for a node that never returns.
    pub unreachable_limit: Span,
}

impl NodeClock {
    /// Whether evidence that was last fresh at `since`, when the odometer read `mark`, has cleared by `now`.
    pub fn cleared(&self, mark: Span, since: Moment, now: Moment) -> Option<Cleared> {
        if self.odometer.saturating_sub(mark) >= self.required.get() {
            return Some(Cleared::ByClock);
        }
        (now.uptime() >= self.lost_at(since)).then_some(Cleared::Unreachable)
    }

    /// When the wait for the node ends if it never returns, for evidence that was last fresh at `since`; by the monotonic clock.
    pub(super) fn lost_at(&self, since: Moment) -> Duration {
        // Partial answers may have brought fresh evidence after the last whole one: silence counts from the later.
        self.last_answer.max(since).uptime().saturating_add(self.unreachable_limit.get())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_least_of_the_last_steps_is_the_interval(steps in proptest::collection::vec(0..5_000_000_000_u64, 0..30)) {
            let (mut known, mut model) = (Steps::default(), VecDeque::new());
            for step in steps {
                known.push(Duration::from_micros(step));
                model.push_back(Duration::from_micros(step).min(MAX_INTERVAL));
                if model.len() > 8 {
                    model.pop_front();
                }
                prop_assert_eq!(known.least(), model.iter().min().copied());
            }
        }
    }

    #[test]
    fn a_time_that_can_not_be_told_is_no_step_when_it_comes_again() {
        let mut node = Node::new(Moment::new(Duration::ZERO, Timestamp::UNIX_EPOCH));
        for _ in 0..3 {
            node.learn_interval(Some(Timestamp::MAX));
        }
        assert_eq!(node.steps.least(), None);
    }

    #[test]
    fn a_step_is_never_taken_for_a_shorter_one() {
        let mut steps = Steps::default();
        assert_eq!(steps.least(), None);
        steps.push(Duration::from_nanos(1_000_001));
        assert_eq!(steps.least(), Some(Duration::from_micros(1001)));
    }
}
