//! When the `until` dates of exemptions and releases have passed.
//!
//! Operators set these dates by a wall clock, and wall clocks jump and differ between replicas. So a date has passed
//! only if two clocks agree. The wall clock has reached it, and as much monotonic time has been measured as was left
//! when the date became known. While the clocks disagree, the date is in doubt: what it covers is neither newly
//! blocked nor opened.
//!
//! A release also persists its end by the leader clock. The dates of exemptions are judged by the persisted believed
//! time (see [`super::believed_time`]), so the next leader continues the doubt.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::believed_time::{BelievedTime, MAX_DOUBT, TOLERANCE, distance};
use super::leader_clock::LeaderClock;
use crate::Moment;
use crate::state::incident as document;
use crate::time::CompactTimestamp;

/// The longest doubt that raises no alert. A stop of the service causes a doubt of its length.
const MAX_SILENT_DOUBT: Duration = Duration::from_mins(10);

/// All dates in use.
#[derive(Clone, Debug, Default)]
pub(super) struct Dates {
    /// When this process began to lead, and the latest time that an earlier leader believed and persisted. The first
    /// evaluation takes both. Dates that appear after it are new.
    start: Option<(Moment, Option<Timestamp>)>,
    /// `None` before the first evaluation if nothing is persisted.
    believed: Option<BelievedTime>,
    /// The latest date of an exemption that was over. The believed time may be earlier, because a date that became
    /// known after the start is judged by the wall clock. The next leader must not take this date for one that lies
    /// ahead.
    latest_over: Option<Timestamp>,
    /// The monotonic time since when the wall clock has been behind it without interruption.
    behind_since: Option<Duration>,
    /// The last evaluation has forgotten which date was over, so such dates lie ahead again.
    pub(super) forgot_latest_over: bool,
    known: BTreeMap<Timestamp, Known>,
}

/// What is known of one date.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// The monotonic time when it became known.
    since: Duration,
    /// How much monotonic time has to pass after `since`.
    needed: Duration,
    /// The date had passed once, or an earlier leader believed that it had.
    was_over: bool,
    /// The monotonic time since when the date has been over without interruption.
    over_since: Option<Duration>,
    /// The alert about the doubt of this date has been raised.
    is_alerted: bool,
}

/// Whether an exemption or a release with a date is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Validity {
    /// In force.
    InForce,
    /// In doubt: what it covers is neither newly blocked nor opened.
    Doubtful,
    /// Over.
    Over,
}

impl Validity {
    /// Whether an exemption or release with this validity covers an App.
    pub(super) fn covers(self, is_blocked: bool) -> bool {
        self == Self::InForce || self == Self::Doubtful && !is_blocked
    }
}

impl Known {
    /// `known_left` is the time left that leaders have not measured yet, as far as it is known.
    fn new(until: Timestamp, known_left: Duration, before: Option<Timestamp>, now: Moment) -> Self {
        let left = distance(now.wall(), until);
        let needed = known_left.clamp(left, left.saturating_add(MAX_DOUBT));
        let was_over = before.is_some_and(|before| distance(before, until) <= TOLERANCE);
        Self { since: now.uptime(), needed, was_over, over_since: None, is_alerted: false }
    }

    fn has_elapsed(&self, now: Moment) -> bool {
        now.uptime().saturating_sub(self.since) >= self.needed.saturating_sub(TOLERANCE)
    }

    /// How long the doubt lasts, if the wall clock does not jump.
    fn doubt_left(&self, until: Timestamp, now: Moment) -> Duration {
        let elapsed = now.uptime().saturating_sub(self.since);
        let unmeasured = self.needed.saturating_sub(TOLERANCE).saturating_sub(elapsed);
        unmeasured.max(distance(now.wall(), until))
    }

    fn validity(&self, until: Timestamp, now: Moment) -> Validity {
        match (now.wall() >= until, self.has_elapsed(now)) {
            (true, true) => Validity::Over,
            (false, _) if !self.was_over => Validity::InForce,
            _ => Validity::Doubtful,
        }
    }
}

impl Dates {
    /// The dates after a start. `before` is the latest time that an earlier leader believed and persisted, and `last` what
    /// the last leader believed.
    pub(super) fn restored(
        before: Option<Timestamp>,
        last: Option<document::WallClock>,
        now: Moment,
    ) -> Self {
        let believed = last.map(|last| BelievedTime::restored(&last, now));
        let latest_over = last.and_then(|last| last.latest_over);
        let before = before.max(latest_over);
        Self {
            start: Some((now, before)),
            believed,
            latest_over,
            behind_since: None,
            forgot_latest_over: false,
            known: BTreeMap::new(),
        }
    }

    /// These dates, if they have been judged in this process already, or else `restored`.
    pub(super) fn or(mut self, restored: Self) -> Self {
        if self.believed.is_none() || self.start.is_some() {
            return restored;
        }
        self.latest_over = self.latest_over.max(restored.latest_over);
        self
    }

    /// Whether any date is not over yet.
    pub(super) fn is_any_ahead(&self) -> bool {
        self.known.values().any(|known| known.over_since.is_none())
    }

    /// The latest date of an exemption that was over.
    pub(super) fn latest_over(&self) -> Option<Timestamp> {
        self.latest_over
    }

    /// The wall time that is believed, in the form that is persisted.
    pub(super) fn persisted(&self) -> Option<document::WallClock> {
        let latest_over = self.latest_over;
        self.believed.as_ref().map(|believed| document::WallClock { latest_over, ..believed.persisted() })
    }

    /// Takes the dates in use, each with the earliest reading of `clock` at which it has passed, if that is
    /// persisted. Returns those that will be in doubt for longer than [`MAX_SILENT_DOUBT`], each once.
    pub(super) fn note(
        &mut self,
        dates: impl IntoIterator<Item = (Timestamp, Option<CompactTimestamp>)>,
        clock: &LeaderClock,
        now: Moment,
    ) -> Vec<Timestamp> {
        let mut all = std::mem::take(&mut self.known);
        let is_start = self.start.is_some();
        let (since, before) = self.start.take().unwrap_or((now, None));
        let is_forgotten = self.forget_latest_over(now);
        self.forgot_latest_over = is_forgotten;
        let believed = self.believed.get_or_insert_with(|| BelievedTime::new(since));
        believed.update(since);
        let mut latest: BTreeMap<Timestamp, Option<CompactTimestamp>> = BTreeMap::new();
        for (until, by_clock) in dates {
            let known = latest.entry(until).or_default();
            *known = (*known).max(by_clock);
        }
        let reading = clock.at(since.uptime()).get();
        let mut doubtful = Vec::new();
        for (until, by_clock) in latest {
            let mut known = all.remove(&until).unwrap_or_else(|| {
                let known_left = match by_clock {
                    Some(by_clock) => distance(reading, by_clock.get()),
                    // A new date that lies ahead was set by a clock like this one.
                    None if !is_start && since.wall() < until => Duration::ZERO,
                    None => believed.left(until),
                };
                let mut new = Known::new(until, known_left, before, since);
                // All the time that the operator asked for has been measured. So the date has passed, even if the
                // wall clock is behind the one of an earlier leader.
                new.was_over |= by_clock.is_some_and(|by_clock| by_clock.get() <= reading);
                new
            });
            if is_forgotten && by_clock.is_none() && now.wall() < until {
                (known.was_over, known.is_alerted) = (false, false);
            }
            let validity = known.validity(until, now);
            known.over_since = (validity == Validity::Over).then(|| known.over_since.unwrap_or(now.uptime()));
            known.was_over |= validity == Validity::Over;
            if validity == Validity::Over && by_clock.is_none() {
                self.latest_over = self.latest_over.max(Some(until));
            }
            if validity == Validity::Doubtful
                && !known.is_alerted
                && known.doubt_left(until, now) > MAX_SILENT_DOUBT
            {
                known.is_alerted = true;
                doubtful.push(until);
            }
            self.known.insert(until, known);
        }
        believed.update(now);
        doubtful
    }

    /// Forgets which date was over when the wall clock has been behind it for [`MAX_DOUBT`] without interruption,
    /// because an earlier clock was ahead. Otherwise exemptions would stay in doubt until that date, which may be
    /// years ahead. Returns whether it has forgotten the date now.
    fn forget_latest_over(&mut self, now: Moment) -> bool {
        let is_behind = self.latest_over.is_some_and(|over| distance(now.wall(), over) > TOLERANCE);
        self.behind_since = is_behind.then(|| self.behind_since.unwrap_or(now.uptime()));
        let is_forgotten =
            self.behind_since.is_some_and(|since| now.uptime().saturating_sub(since) >= MAX_DOUBT);
        if is_forgotten {
            (self.latest_over, self.behind_since) = (None, None);
        }
        is_forgotten
    }

    /// The validity of `until` now; [`Validity::Doubtful`] if [`Dates::note`] has not noted it.
    pub(super) fn validity(&self, until: Timestamp, now: Moment) -> Validity {
        self.known.get(&until).map_or(Validity::Doubtful, |known| known.validity(until, now))
    }

    /// Whether `until` passed so long ago that its release can be forgotten. Not at once, so that a wall clock that
    /// is wrong for a while does not delete an operator's release.
    pub(super) fn is_history(&self, until: Timestamp, now: Moment) -> bool {
        let since = self.known.get(&until).and_then(|known| known.over_since);
        since.is_some_and(|since| now.uptime().saturating_sub(since) >= MAX_DOUBT)
    }

    /// The moments at which the validity of a date may change.
    pub(super) fn changes(&self, now: Moment) -> impl Iterator<Item = Moment> {
        self.known.iter().flat_map(move |(until, known)| {
            let elapsed = known.since.saturating_add(known.needed.saturating_sub(TOLERANCE));
            [now.at_wall(*until), Moment::new(elapsed, now.wall())]
        })
    }
}
