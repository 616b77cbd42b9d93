//! When the dates are over that people have set: the `until` of exemptions and releases.
//!
//! They are dates by a wall clock, and wall clocks jump and differ between replicas. So a date is over only when the wall clock says
//! so and as much monotonic time has passed as was left when the date became known. Where the two disagree it is in doubt: then what
//! it covers is neither blocked anew nor opened. For a release the end by the leader clock is persisted with it, so that the next
//! leader doubts what the leader before doubted.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::leader_clock::LeaderClock;
use crate::Moment;
use crate::moment::WallTime;

/// By how much the monotonic clock may stay behind a wall clock that is set right.
const TOLERANCE: Duration = Duration::from_secs(5);
/// How much longer than its date something may stay in doubt because nobody knows how much time has passed between two leaders. Also
/// how long a release is remembered after its date.
const LINGER: Duration = Duration::from_hours(24);

/// What is known of all dates.
#[derive(Clone, Debug, Default)]
pub(super) struct Dates {
    /// When this process began to lead, and the latest wall time that an earlier leader persisted; until the first evaluation. Dates
    /// that are not known by then are new.
    start: Option<(Moment, Option<Timestamp>)>,
    known: BTreeMap<Timestamp, Known>,
}

/// What is known of one date.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// The monotonic time when it became known.
    since: Duration,
    /// How much monotonic time has to pass from then on.
    needed: Duration,
    /// It has been over once, or an earlier leader has persisted a later time.
    was_over: bool,
    /// The monotonic time since when it has been over without a break.
    over_since: Option<Duration>,
    /// It has been said that it is in doubt.
    is_told: bool,
}

/// What a date means for what it limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Force {
    /// In force.
    Full,
    /// In doubt: nothing is blocked anew, and nothing that is blocked is opened.
    Doubtful,
    /// Over.
    Over,
}

impl Force {
    /// Whether it covers an App that is blocked, or is not.
    pub(super) fn covers(self, is_blocked: bool) -> bool {
        self == Self::Full || self == Self::Doubtful && !is_blocked
    }
}

impl Known {
    /// `known_left` is the time that leaders have not measured yet, where that is persisted.
    fn new(until: Timestamp, known_left: Option<Duration>, before: Option<Timestamp>, now: Moment) -> Self {
        let left = distance(now.wall(), until);
        // No more time is known to have passed since an earlier leader last persisted something.
        let needed = known_left.or_else(|| before.map(|before| distance(before, until)));
        let needed = needed.map_or(left, |needed| needed.clamp(left, left + LINGER));
        let was_over = before.is_some_and(|before| before >= until);
        Self { since: now.uptime(), needed, was_over, over_since: None, is_told: false }
    }

    fn has_elapsed(&self, now: Moment) -> bool {
        now.uptime().saturating_sub(self.since) >= self.needed.saturating_sub(TOLERANCE)
    }

    fn force(&self, until: Timestamp, now: Moment) -> Force {
        match (now.wall() >= until, self.has_elapsed(now)) {
            (true, true) => Force::Over,
            (false, _) if !self.was_over => Force::Full,
            _ => Force::Doubtful,
        }
    }
}

impl Dates {
    /// After a start. `before` is the latest wall time that an earlier leader persisted.
    pub(super) fn restored(before: Option<Timestamp>, now: Moment) -> Self {
        Self { start: Some((now, before)), known: BTreeMap::new() }
    }

    /// Notes which dates there are now, each with what `clock` reads when it is over at the earliest, where that is persisted. Those
    /// that the wall clock alone takes for over, each said once.
    pub(super) fn note(
        &mut self,
        dates: impl IntoIterator<Item = (Timestamp, Option<WallTime>)>,
        clock: &LeaderClock,
        now: Moment,
    ) -> Vec<Timestamp> {
        let mut all = std::mem::take(&mut self.known);
        let (since, before) = self.start.take().unwrap_or((now, None));
        let mut latest: BTreeMap<Timestamp, Option<WallTime>> = BTreeMap::new();
        for (until, by_clock) in dates {
            let known = latest.entry(until).or_default();
            *known = (*known).max(by_clock);
        }
        let reading = clock.at(since.uptime()).get();
        let mut doubtful = Vec::new();
        for (until, by_clock) in latest {
            let known_left = by_clock.map(|by_clock| distance(reading, by_clock.get()));
            let mut known =
                all.remove(&until).unwrap_or_else(|| Known::new(until, known_left, before, since));
            let force = known.force(until, now);
            known.over_since = (force == Force::Over).then(|| known.over_since.unwrap_or(now.uptime()));
            known.was_over |= force == Force::Over;
            if force == Force::Doubtful && now.wall() >= until && !known.is_told {
                known.is_told = true;
                doubtful.push(until);
            }
            self.known.insert(until, known);
        }
        doubtful
    }

    /// What `until` means now. By the wall clock alone, where it has not been noted.
    pub(super) fn force(&self, until: Timestamp, now: Moment) -> Force {
        let by_wall = if now.wall() < until { Force::Full } else { Force::Over };
        self.known.get(&until).map_or(by_wall, |known| known.force(until, now))
    }

    /// Whether `until` has been over for so long that nobody will look for it. Not at once: a wall clock that is wrong for a while
    /// must not undo what an operator has said.
    pub(super) fn is_history(&self, until: Timestamp, now: Moment) -> bool {
        let since = self.known.get(&until).and_then(|known| known.over_since);
        since.is_some_and(|since| now.uptime().saturating_sub(since) >= LINGER)
    }

    /// When one of them may change its meaning.
    pub(super) fn changes(&self, now: Moment) -> impl Iterator<Item = Moment> {
        self.known.iter().flat_map(move |(until, known)| {
            let elapsed = known.since.saturating_add(known.needed.saturating_sub(TOLERANCE));
            [now.at_wall(*until), Moment::new(elapsed, now.wall())]
        })
    }
}

/// From `earlier` to `later`; zero if it is not later.
fn distance(earlier: Timestamp, later: Timestamp) -> Duration {
    let distance = later.duration_since(earlier);
    if distance.is_negative() { Duration::ZERO } else { distance.unsigned_abs() }
}
