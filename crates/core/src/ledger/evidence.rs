//! What one node's agent has said of one violation.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::{ChangeKind, NodeClock, Remembered};
use crate::Moment;
use crate::names::NodeName;
use crate::report::{Record, RecordRef};
use crate::snapshot::{EvidenceView, Heard};

/// How sure one node's evidence makes us that the process is there. Ordered from the strongest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// Fresh evidence.
    Active,
    /// Neither fresh evidence nor proof of absence.
    Unconfirmed,
    /// Proven absent by one of the rules in [`Cleared`].
    Cleared,
}

/// By which rule a violation counts as absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cleared {
    /// Its node has answered for long enough without fresh evidence.
    ByClock,
    /// Its node has not answered for `detection.unreachable_limit`.
    Unreachable,
    /// Its Pod is proven gone.
    PodGone,
}

impl Cleared {
    /// The rule as a label, `snake_case`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ByClock => "by_clock",
            Self::Unreachable => "unreachable",
            Self::PodGone => "pod_gone",
        }
    }
}

/// How many of an agent's timestamps are remembered per violation.
///
/// While an agent's pod is being replaced, two agents of one node answer in turn. With only the last timestamp, their
/// two *old* records would look like a change each round.
const REMEMBERED: usize = 4;

/// For how long fresh evidence keeps a violation active: heard here, or known from before the start only.
#[derive(Clone, Copy, Debug)]
pub(super) struct ActiveFor {
    pub(super) heard: Duration,
    pub(super) recalled: Duration,
}

#[derive(Debug)]
pub(super) struct Evidence {
    /// Shared with the snapshots that show it. Changed in place while there are none.
    heard: Arc<Heard>,
    /// The timestamps seen most recently, the last one last, and the latest of all. Kept after clearing: the tombstone by which a
    /// record that is still listed, but does not change, stays cleared.
    timestamps: Vec<Timestamp>,
    aged: bool,
    cleared: Option<(Moment, Cleared)>,
    /// Known, perhaps among others, from before the start or from another replica. What was seen last may have been seen after it
    /// was kept, so another timestamp alone proves nothing yet: it must be young as well.
    remembered: bool,
    /// Its last fresh evidence was heard before the start. How often its agent scans is not learned from it, so that does not keep
    /// it fresh for longer.
    is_recalled: bool,
}

impl Evidence {
    pub(super) fn first_sight(record: Record, at: Moment, mark: Duration, fresh: bool) -> Self {
        Self {
            timestamps: vec![record.detected_at],
            heard: Arc::new(Heard {
                fresh_at: fresh.then_some(at),
                // At first sight as well: where the clearing clock starts.
                mark,
                first_seen: at,
                last_seen: at,
                evidence_time: record.detected_at,
                observations: 1,
                record: Arc::new(record),
            }),
            aged: !fresh,
            cleared: None,
            remembered: false,
            is_recalled: false,
        }
    }

    /// As it was known before the start. The clearing clock starts at `mark`, and the wait for a lost node `now`.
    pub(super) fn remembered(known: &Remembered, now: Moment, mark: Duration) -> Self {
        let past = |wall: Timestamp| now.at_wall(wall.min(now.wall()));
        Self {
            heard: Arc::new(Heard {
                record: Arc::new(known.record.clone()),
                fresh_at: Some(past(known.fresh_at)),
                mark,
                first_seen: past(known.first_seen),
                last_seen: past(known.fresh_at),
                evidence_time: known.record.detected_at,
                observations: known.observations,
            }),
            timestamps: vec![known.record.detected_at],
            aged: false,
            cleared: known.cleared.map(|(at, why)| (past(at), why)),
            remembered: true,
            is_recalled: true,
        }
    }

    /// Adds what was known elsewhere to what has been heard here.
    pub(super) fn merge(&mut self, known: &Remembered, now: Moment) {
        let timestamp = known.record.detected_at;
        let is_same = self.timestamps.last() == Some(&timestamp);
        if !self.timestamps.contains(&timestamp) {
            self.make_room();
            // As the oldest: it is the first to be forgotten.
            self.timestamps.insert(0, timestamp);
        }
        let past = |wall: Timestamp| now.at_wall(wall.min(now.wall()));
        let heard = self.heard_mut();
        heard.first_seen = heard.first_seen.min(past(known.first_seen));
        heard.observations = heard.observations.max(known.observations);
        // What the other has heard after it was kept is not known here either.
        self.remembered = true;
        if let Some((wall, why)) = known.cleared.filter(|_| self.cleared.is_none()) {
            let at = past(wall);
            // Nothing has been heard here that was not known there when it cleared, or nothing since: whoever cleared it may have
            // forgotten by a restart what was heard here before, but had its node's answers for the whole clearing time. A wall
            // clock may have been set in between, so it is enough if one of the clocks says so.
            let is_since = |fresh: Moment| fresh.uptime() > at.uptime() && fresh.wall() > wall;
            if is_same || !self.heard.fresh_at.is_some_and(is_since) {
                self.cleared = Some((at, why));
            }
        }
    }

    fn heard_mut(&mut self) -> &mut Heard {
        Arc::make_mut(&mut self.heard)
    }

    /// Makes room for another timestamp: forgets the one that was not seen for longest, but never the latest one of all.
    fn make_room(&mut self) {
        if self.timestamps.len() >= REMEMBERED {
            let latest = self.timestamps.iter().max().copied();
            let oldest = self.timestamps.iter().position(|timestamp| Some(*timestamp) != latest);
            self.timestamps.remove(oldest.unwrap_or(0));
        }
    }

    /// Whether there has been fresh evidence after `gone`, or nothing was known to be gone.
    pub(super) fn is_news_since(&self, gone: Option<Moment>) -> bool {
        gone.is_none_or(|gone| self.heard.fresh_at.is_some_and(|fresh| fresh.uptime() > gone.uptime()))
    }

    /// The record is listed again. It is fresh evidence if its timestamp differs from those remembered, unless it is an earlier one
    /// and by the agent's own clock not young: a clock may be set back, but to list what was found long ago is no news.
    ///
    /// `is_young` says nothing where the agent does not tell its time.
    pub(super) fn listed(
        &mut self,
        record: RecordRef<'_>,
        at: Moment,
        mark: Duration,
        same_incident: Duration,
        is_young: impl Fn(Timestamp) -> Option<bool>,
    ) -> Option<ChangeKind> {
        let heard = self.heard_mut();
        heard.last_seen = at;
        if heard.record.view() != record {
            Arc::make_mut(&mut heard.record).renew(record);
        }
        if let Some(known) = self.timestamps.iter().position(|t| *t == record.detected_at) {
            let timestamp = self.timestamps.remove(known);
            self.timestamps.push(timestamp);
            return None;
        }
        let is_later = self.timestamps.iter().all(|t| *t < record.detected_at);
        self.make_room();
        self.timestamps.push(record.detected_at);
        let is_news = match is_young(record.detected_at) {
            Some(true) => true,
            Some(false) => is_later && !self.remembered,
            None => !self.remembered,
        };
        // One that is earlier says nothing of what was seen last by whoever kept it.
        self.remembered &= !is_news && !is_later;
        if !is_news {
            return None;
        }

        let was_active = self.heard.fresh_at.is_some() && !self.aged && self.cleared.is_none();
        let is_new = self.cleared.take().is_some_and(|(cleared_at, _)| at.since(cleared_at) > same_incident);
        let heard = self.heard_mut();
        if is_new {
            (heard.first_seen, heard.observations) = (at, 0);
        }
        heard.observations += 1;
        heard.fresh_at = Some(at);
        heard.evidence_time = record.detected_at;
        heard.mark = mark;
        (self.aged, self.is_recalled) = (false, false);
        (!was_active).then_some(ChangeKind::Appeared)
    }

    /// Clears if the rules say so; the rule, the first time.
    pub(super) fn try_clear(&mut self, clock: &NodeClock, now: Moment) -> Option<Cleared> {
        if self.cleared.is_some() {
            return None;
        }
        let why = clock.cleared(self.heard.mark, self.counted_from(), now)?;
        self.cleared = Some((now, why));
        Some(why)
    }

    /// Whether this is the moment at which fresh evidence has become too old.
    pub(super) fn try_age(&mut self, now: Moment, active_for: ActiveFor) -> bool {
        let ages = !self.aged && self.cleared.is_none() && !self.is_fresh(now, active_for);
        self.aged |= ages;
        ages
    }

    fn is_fresh(&self, now: Moment, active_for: ActiveFor) -> bool {
        self.heard.fresh_at.is_some_and(|at| now.since(at) <= self.active_for(active_for))
    }

    /// From when on its node's silence counts.
    fn counted_from(&self) -> Moment {
        self.heard.fresh_at.unwrap_or(self.heard.first_seen)
    }

    fn active_for(&self, limits: ActiveFor) -> Duration {
        if self.is_recalled { limits.recalled } else { limits.heard }
    }

    /// When time alone changes what it amounts to, by the monotonic clock.
    pub(super) fn deadline(&self, clock: &NodeClock, active_for: ActiveFor, keep: Duration) -> Duration {
        // Most limits are passed only after their last moment.
        const AFTER: Duration = Duration::from_nanos(1);
        let after = |at: Moment, limit: Duration| at.uptime().saturating_add(limit).saturating_add(AFTER);
        if let Some((at, _)) = self.cleared {
            return after(at.max(self.heard.last_seen), keep);
        }
        let is_clear = clock.odometer.saturating_sub(self.heard.mark) >= clock.required;
        let lost = if is_clear { Duration::ZERO } else { clock.lost_at(self.counted_from()) };
        match self.heard.fresh_at.filter(|_| !self.aged) {
            Some(at) => lost.min(after(at, self.active_for(active_for))),
            None => lost,
        }
    }

    pub(super) fn is_cleared(&self) -> bool {
        self.cleared.is_some()
    }

    pub(super) fn is_offender(&self) -> bool {
        self.heard.fresh_at.is_some() && self.cleared.is_none()
    }

    /// Whether forgetting it loses nothing that can't be judged anew: a tombstone, or a record never believed.
    pub(super) fn is_expendable(&self) -> bool {
        self.is_cleared() || self.heard.fresh_at.is_none()
    }

    pub(super) fn last_seen(&self) -> Moment {
        self.heard.last_seen
    }

    /// Whether it has been a tombstone, and unlisted, for `keep`.
    pub(super) fn is_expired(&self, now: Moment, keep: Duration) -> bool {
        self.cleared.is_some_and(|(at, _)| now.since(at) > keep) && now.since(self.heard.last_seen) > keep
    }

    pub(super) fn view(&self, node: &NodeName, now: Moment, active_for: ActiveFor) -> EvidenceView {
        let presence = match self.cleared {
            Some(_) => Presence::Cleared,
            // What has grown old once is not young again because its node has accused others since, and may now take longer for each.
            None if !self.aged && self.is_fresh(now, active_for) => Presence::Active,
            None => Presence::Unconfirmed,
        };
        EvidenceView {
            node: node.clone(),
            presence,
            cleared: self.cleared.map(|(_, why)| why),
            heard: self.heard.clone(),
        }
    }
}
