//! The evidence of one violation from one node's agent.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::steps::{Longest, MAX_INTERVAL};
use super::{ChangeKind, Remembered};
use crate::Moment;
use crate::clearing::{Cleared, NodeClock, Presence, Reading};
use crate::names::{Key, NodeName, Text};
use crate::report::{Record, RecordRef};
use crate::snapshot::{EvidenceDetails, EvidenceView};
use crate::time::{CompactDuration, CompactTimestamp};

/// How many of an agent's timestamps are remembered per violation.
///
/// While an agent's Pod is being replaced, two agents of one node answer in turn. With only the last timestamp, their
/// two *old* records would look like a change each round.
const MAX_TIMESTAMPS: usize = 4;

/// For how long fresh evidence leaves a violation active: evidence that was reported here, and evidence that is known
/// from before the start only.
#[derive(Clone, Copy, Debug)]
pub(super) struct ActiveFor {
    pub(super) reported: Duration,
    pub(super) recalled: Duration,
}

/// The timestamps seen most recently, the last one last, and the latest of all. Timestamps before 1678 and after 2261
/// count as one each, because no scan has them.
#[derive(Debug)]
struct Timestamps(
    /// The empty places come first.
    [Option<CompactTimestamp>; MAX_TIMESTAMPS],
);

impl Timestamps {
    fn of(only: Timestamp) -> Self {
        let mut of = Self([None; MAX_TIMESTAMPS]);
        of.push(only.into());
        of
    }

    fn iter(&self) -> impl Iterator<Item = CompactTimestamp> {
        self.0.iter().flatten().copied()
    }

    fn last(&self) -> Option<CompactTimestamp> {
        self.iter().last()
    }

    /// Whether `timestamp` is one of them. If so, it is then the one seen last.
    fn see_again(&mut self, timestamp: CompactTimestamp) -> bool {
        let place = self.0.iter().position(|known| *known == Some(timestamp));
        if let Some(rest) = place.and_then(|place| self.0.get_mut(place..)) {
            rest.rotate_left(1);
        }
        place.is_some()
    }

    /// Adds a timestamp that was seen last.
    fn push(&mut self, timestamp: CompactTimestamp) {
        self.make_room();
        if let Some(free) = self.0.first_mut() {
            *free = Some(timestamp);
        }
        self.0.rotate_left(1);
    }

    /// Adds a timestamp that is the first to be forgotten.
    fn push_oldest(&mut self, timestamp: CompactTimestamp) {
        self.make_room();
        if let Some(free) = self.0.iter_mut().rfind(|free| free.is_none()) {
            *free = Some(timestamp);
        }
    }

    /// Makes room for another timestamp: forgets the one that was not seen for longest, but never the latest one of
    /// all.
    fn make_room(&mut self) {
        if self.0.first().is_some_and(Option::is_none) {
            return;
        }
        let latest = self.0.iter().max().copied();
        let oldest = self.0.iter().position(|timestamp| Some(*timestamp) != latest).unwrap_or(0);
        if let Some(before) = self.0.get_mut(..=oldest) {
            before.rotate_right(1);
        }
        if let Some(first) = self.0.first_mut() {
            *first = None;
        }
    }
}

/// The effect of a record that is listed again.
pub(super) struct Listed {
    pub(super) change: Option<ChangeKind>,
    /// The agent may have found the process in its last scan.
    pub(super) is_recent: bool,
}

#[derive(Debug)]
pub(super) struct ViolationEvidence {
    /// Shared with the snapshots that show it. Changed in place while there are none.
    details: Arc<EvidenceDetails>,
    /// They stay after clearing, as the tombstone by which a record that is still listed but does not change stays
    /// cleared.
    timestamps: Timestamps,
    /// How much of its node's answered time was inconclusive about it.
    inconclusive: CompactDuration,
    aged: bool,
    /// When it cleared, and by which rule. Boxed, because little of the listed evidence has cleared.
    cleared: Option<Box<(Moment, Cleared)>>,
    /// It is known from before the start or from another replica, perhaps beside reports to this process. The last
    /// record may have been seen after it was persisted, so another timestamp alone proves nothing yet. The record
    /// must be young as well.
    remembered: bool,
    /// Its last fresh evidence was reported before the start. The scan interval is not learned from it, so the
    /// interval does not extend its freshness.
    is_recalled: bool,
}

impl ViolationEvidence {
    /// `age` is the record's age by its agent's own clock; `None` if the record is not fresh.
    pub(super) fn first_sight(record: Record, at: Moment, mark: Reading, age: Option<Duration>) -> Self {
        let fresh = age.is_some();
        Self {
            timestamps: Timestamps::of(record.detected_at),
            details: Arc::new(EvidenceDetails {
                fresh_at: fresh.then_some(at),
                age: age.map(CompactDuration::from),
                // Set at first sight as well, because the clearing clock starts there.
                mark,
                first_seen: at,
                last_seen: at,
                evidence_time: record.detected_at.into(),
                away: CompactDuration::ZERO,
                observations: 1,
                record: Arc::new(record),
            }),
            inconclusive: mark.inconclusive,
            aged: !fresh,
            cleared: None,
            remembered: false,
            is_recalled: false,
        }
    }

    /// Evidence as it was known before the start. The clearing clock starts at `mark`, and the wait for a lost node
    /// at `now`.
    pub(super) fn remembered(known: &Remembered, now: Moment, mark: Reading) -> Self {
        let past = |wall: Timestamp| now.at_wall(wall.min(now.wall()));
        Self {
            details: Arc::new(EvidenceDetails {
                record: Arc::new(known.record.clone()),
                fresh_at: Some(past(known.fresh_at)),
                age: None,
                mark: Reading { before: known.hidden_for.into(), ..mark },
                first_seen: past(known.first_seen),
                last_seen: past(known.fresh_at),
                evidence_time: known.record.detected_at.into(),
                away: known.away(),
                observations: known.observations,
            }),
            timestamps: Timestamps::of(known.record.detected_at),
            inconclusive: mark.inconclusive,
            aged: false,
            cleared: known.cleared.map(|(at, why)| Box::new((past(at), why))),
            remembered: true,
            is_recalled: true,
        }
    }

    /// Adds the evidence that another replica knew to the evidence that was reported here.
    pub(super) fn merge(&mut self, known: &Remembered, now: Moment) {
        let timestamp = CompactTimestamp::from(known.record.detected_at);
        let is_same = self.timestamps.last() == Some(timestamp);
        if !self.timestamps.iter().any(|known| known == timestamp) {
            self.timestamps.push_oldest(timestamp);
        }
        let past = |wall: Timestamp| now.at_wall(wall.min(now.wall()));
        let details = self.details_mut();
        details.first_seen = details.first_seen.min(past(known.first_seen));
        details.observations = details.observations.max(known.observations);
        details.away = details.away.max(known.away());
        // Reports that the other replica received after the last write are not known here either.
        self.remembered = true;
        if let Some((wall, why)) = known.cleared.filter(|_| !self.is_cleared()) {
            let at = past(wall);
            // The clearing counts if nothing was reported here that was unknown there, or nothing since. The replica
            // that cleared it may have forgotten earlier reports by a restart, but it had the node's answers for the
            // whole clearing time. A wall clock may have been set in between, so it is enough if one of the clocks
            // shows this order.
            let is_since = |fresh: Moment| fresh.uptime() > at.uptime() && fresh.wall() > wall;
            if is_same || !self.details.fresh_at.is_some_and(is_since) {
                self.clear(at, why);
            }
        }
    }

    fn details_mut(&mut self) -> &mut EvidenceDetails {
        Arc::make_mut(&mut self.details)
    }

    fn clear(&mut self, at: Moment, why: Cleared) {
        self.cleared = Some(Box::new((at, why)));
    }

    /// Whether there has been fresh evidence after `gone`, or the Pod was not known to be gone.
    pub(super) fn has_fresh_evidence_since(&self, gone: Option<Moment>) -> bool {
        gone.is_none_or(|gone| self.details.fresh_at.is_some_and(|fresh| fresh.uptime() > gone.uptime()))
    }

    /// Applies a record that is listed again. It is fresh evidence if its timestamp differs from those remembered. An
    /// earlier timestamp counts only if it is young by the agent's own clock, because a clock may be set back. An
    /// earlier record that was found long ago is not fresh.
    ///
    /// `answered` is the reading of its node's odometer. `own_age` returns the record's age by its agent's own clock,
    /// and whether that is young; `None` if the agent does not send its time.
    pub(super) fn listed(
        &mut self,
        record: RecordRef<'_>,
        at: Moment,
        answered: CompactDuration,
        same_incident: Duration,
        own_age: impl Fn(Timestamp) -> Option<(Duration, bool)>,
    ) -> Listed {
        let details = self.details_mut();
        let listed_before = std::mem::replace(&mut details.last_seen, at);
        if details.record.differs(record) {
            Arc::make_mut(&mut details.record).renew(record);
        }
        let timestamp = CompactTimestamp::from(record.detected_at);
        if self.timestamps.see_again(timestamp) {
            return Listed { change: None, is_recent: false };
        }
        let own_age = own_age(record.detected_at);
        let is_later = self.is_later(timestamp);
        let is_fresh_evidence = self.is_fresh_evidence(timestamp, own_age);
        self.timestamps.push(timestamp);
        // An earlier record does not show that the last persisted one was seen again.
        self.remembered &= !is_fresh_evidence && !is_later;
        if !is_fresh_evidence {
            return Listed { change: None, is_recent: own_age.is_none() };
        }

        let was_cleared = self.is_cleared();
        let was_active = self.details.fresh_at.is_some() && !self.aged && !was_cleared;
        let is_new = self.cleared_at().is_some_and(|cleared_at| at.since(cleared_at) > same_incident);
        self.cleared = None;
        let mark = Reading { answered, inconclusive: self.inconclusive, before: CompactDuration::ZERO };
        let details = self.details_mut();
        let away = answered.saturating_sub(details.mark.answered);
        // A violation that had cleared and came back only after longer than this has ended and begun again, because
        // no agent scans so seldom.
        if details.fresh_at.is_some() && (!was_cleared || away <= MAX_INTERVAL * 2) {
            let mut longest = Longest::of(details.away.get());
            longest.push(away);
            details.away = longest.get();
        }
        if is_new {
            (details.first_seen, details.observations) = (at, 0);
        }
        details.observations += 1;
        details.fresh_at = Some(at);
        // The record was found after the last answer that listed an earlier one.
        details.age = Some(own_age.map_or_else(|| at.since(listed_before), |(age, _)| age).into());
        details.evidence_time = timestamp;
        details.mark = mark;
        (self.aged, self.is_recalled) = (false, false);
        Listed { change: (!was_active).then_some(ChangeKind::Appeared), is_recent: true }
    }

    fn is_later(&self, timestamp: CompactTimestamp) -> bool {
        self.timestamps.iter().all(|known| known < timestamp)
    }

    /// Whether a record with another timestamp than those remembered would be fresh evidence; see
    /// [`ViolationEvidence::listed`].
    fn is_fresh_evidence(&self, timestamp: CompactTimestamp, own_age: Option<(Duration, bool)>) -> bool {
        match own_age {
            Some((_, true)) => true,
            Some((_, false)) => self.is_later(timestamp) && !self.remembered,
            None => !self.remembered,
        }
    }

    /// Whether a record with this timestamp would be fresh evidence. `own_age` is as for
    /// [`ViolationEvidence::listed`].
    pub(super) fn would_be_fresh_evidence(
        &self,
        detected_at: Timestamp,
        own_age: Option<(Duration, bool)>,
    ) -> bool {
        let timestamp = CompactTimestamp::from(detected_at);
        self.timestamps.iter().all(|known| known != timestamp) && self.is_fresh_evidence(timestamp, own_age)
    }

    /// Counts `answered` as time in which its node's answers were inconclusive about it.
    pub(super) fn add_inconclusive(&mut self, answered: Duration) {
        self.inconclusive = (self.inconclusive.get() + answered).into();
    }

    /// Clears the evidence if the rules say so. Returns the rule when it clears.
    pub(super) fn try_clear(&mut self, clock: &NodeClock, now: Moment) -> Option<Cleared> {
        if self.is_cleared() {
            return None;
        }
        let why =
            clock.cleared(self.details.mark, self.away(), || self.inconclusive, self.counted_from(), now)?;
        self.clear(now, why);
        Some(why)
    }

    /// Notes that fresh evidence has become too old. Returns whether this happens now.
    pub(super) fn try_age(&mut self, now: Moment, active_for: ActiveFor) -> bool {
        let ages = !self.aged && !self.is_cleared() && !self.is_fresh(now, active_for);
        self.aged |= ages;
        ages
    }

    fn is_fresh(&self, now: Moment, active_for: ActiveFor) -> bool {
        self.details.fresh_at.is_some_and(|at| now.since(at) <= self.active_for(active_for))
    }

    /// From when on its node's answers without it count.
    fn counted_from(&self) -> Moment {
        self.details.fresh_at.unwrap_or(self.details.first_seen)
    }

    fn active_for(&self, limits: ActiveFor) -> Duration {
        if self.is_recalled { limits.recalled } else { limits.reported }
    }

    /// When time alone changes its presence, by the monotonic clock.
    pub(super) fn deadline(&self, clock: &NodeClock, active_for: ActiveFor, lifetime: Duration) -> Duration {
        // Most limits are passed only after their last moment.
        const AFTER: Duration = Duration::from_nanos(1);
        let after = |at: Moment, limit: Duration| at.uptime().saturating_add(limit).saturating_add(AFTER);
        if let Some(at) = self.cleared_at() {
            return after(at.max(self.details.last_seen), lifetime);
        }
        let is_clear =
            clock.cleared_by_answers(self.details.mark, self.away(), || self.inconclusive).is_some();
        let lost = if is_clear { Duration::ZERO } else { clock.lost_at(self.counted_from()) };
        match self.details.fresh_at.filter(|_| !self.aged) {
            Some(at) => lost.min(after(at, self.active_for(active_for))),
            None => lost,
        }
    }

    pub(super) fn away(&self) -> CompactDuration {
        self.details.away
    }

    pub(super) fn is_cleared(&self) -> bool {
        self.cleared.is_some()
    }

    fn cleared_at(&self) -> Option<Moment> {
        self.cleared.as_deref().map(|(at, _)| *at)
    }

    fn cleared_by(&self) -> Option<Cleared> {
        self.cleared.as_deref().map(|(_, why)| *why)
    }

    /// Whether forgetting it loses nothing that can't be judged anew: a tombstone, or a record that was never
    /// believed.
    pub(super) fn is_expendable(&self) -> bool {
        self.is_cleared() || self.details.fresh_at.is_none()
    }

    /// Whether fresh evidence has become too old.
    pub(super) fn has_aged(&self) -> bool {
        self.aged
    }

    pub(super) fn first_seen(&self) -> Moment {
        self.details.first_seen
    }

    /// The regular expression that the last record names. If a keyword of the agent matched, it is empty or a part of
    /// the keyword.
    pub(super) fn rule(&self) -> &Text {
        &self.details.record.regex
    }

    /// The command line of the last record, cut if there was no room for all of it.
    pub(super) fn cmdline(&self) -> &str {
        &self.details.record.cmdline
    }

    pub(super) fn last_seen(&self) -> Moment {
        self.details.last_seen
    }

    /// Whether it has been a tombstone, and unlisted, for `lifetime`.
    pub(super) fn is_expired(&self, now: Moment, lifetime: Duration) -> bool {
        self.cleared_at().is_some_and(|at| now.since(at) > lifetime)
            && now.since(self.details.last_seen) > lifetime
    }

    pub(super) fn view(
        &self,
        node: &NodeName,
        now: Moment,
        active_for: ActiveFor,
        hidden_by: Option<&Arc<Key>>,
    ) -> EvidenceView {
        let presence = match self.cleared_by() {
            Some(_) => Presence::Cleared,
            // Evidence that has grown old does not become young again when its node is found to scan less often.
            None if !self.aged && self.is_fresh(now, active_for) => Presence::Active,
            None => Presence::Unconfirmed,
        };
        EvidenceView {
            node: node.clone(),
            presence,
            cleared: self.cleared_by(),
            inconclusive: self.inconclusive,
            hidden_by: hidden_by.filter(|_| !self.is_cleared()).cloned(),
            details: self.details.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_last_timestamps_and_the_latest_are_remembered(seen in proptest::collection::vec((0..9_i64, any::<bool>()), 1..40)) {
            let at = |second| CompactTimestamp::from(Timestamp::from_second(second).unwrap());
            let (mut known, mut model) = (Timestamps::of(Timestamp::UNIX_EPOCH), vec![at(0)]);
            for (second, is_last) in seen {
                let timestamp = at(second);
                let place = model.iter().position(|known| *known == timestamp);
                if is_last {
                    prop_assert_eq!(known.see_again(timestamp), place.is_some());
                }
                if place.is_none() && model.len() == MAX_TIMESTAMPS {
                    let latest = *model.iter().max().unwrap();
                    let oldest = model.iter().position(|known| *known != latest).unwrap();
                    model.remove(oldest);
                }
                match (place, is_last) {
                    (Some(place), true) => model[place..].rotate_left(1),
                    (Some(_), false) => {}
                    (None, true) => {
                        known.push(timestamp);
                        model.push(timestamp);
                    }
                    (None, false) => {
                        known.push_oldest(timestamp);
                        model.insert(0, timestamp);
                    }
                }
                prop_assert_eq!(known.iter().collect::<Vec<_>>(), model.clone());
                prop_assert_eq!(known.last(), model.last().copied());
            }
        }
    }
}
