//! The wall time that is believed.
//!
//! Wall clocks of leaders differ and jump, and the time between two leaders can't be measured. So the believed time
//! advances by measured time only. A wall clock that is ahead of it is doubted: its time is believed once leaders
//! have measured a day since. A wall clock that is behind is believed at once, because that only delays the end of a
//! date. The believed and the doubted time are persisted, so that the next leader continues with both.

use std::time::Duration;

use jiff::Timestamp;

use crate::Moment;
use crate::state::incident as document;

/// How far the monotonic clock may lag behind a correct wall clock.
pub(super) const TOLERANCE: Duration = Duration::from_secs(5);
/// The longest time that a date stays in doubt after it has passed, because the time between two leaders can't be
/// measured. Also how long a release is remembered after its date.
pub(super) const MAX_DOUBT: Duration = Duration::from_hours(24);

/// The believed time; see the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct BelievedTime {
    /// As of the last update.
    at: Moment,
    doubted: Option<DoubtedTime>,
}

/// A wall clock that is ahead of the believed time.
#[derive(Clone, Copy, Debug)]
struct DoubtedTime {
    /// Its time when the doubt began.
    since: Timestamp,
    /// Its time as of the last update. It advances by measured time only, like the believed one.
    at: Moment,
}

impl DoubtedTime {
    fn new(now: Moment) -> Self {
        Self { since: now.wall(), at: now }
    }

    /// How much time has to be measured until it is believed.
    fn left(&self) -> Duration {
        MAX_DOUBT.saturating_sub(distance(self.since, self.at.wall()))
    }
}

impl BelievedTime {
    /// Nothing is persisted, so the wall clock is believed.
    pub(super) fn new(now: Moment) -> Self {
        Self { at: now, doubted: None }
    }

    /// Continues from the persisted state.
    pub(super) fn restored(persisted: &document::WallClock, now: Moment) -> Self {
        let doubted = persisted
            .doubted
            .map(|doubted| DoubtedTime { since: doubted.since, at: Moment::new(now.uptime(), doubted.time) });
        Self { at: Moment::new(now.uptime(), persisted.believed), doubted }
    }

    /// In the form that is persisted, as of the last update.
    pub(super) fn persisted(&self) -> document::WallClock {
        let doubted =
            self.doubted.map(|DoubtedTime { since, at }| document::DoubtedClock { time: at.wall(), since });
        document::WallClock { believed: self.at.wall(), doubted, latest_over: None }
    }

    /// Takes a reading of the clocks.
    pub(super) fn update(&mut self, now: Moment) {
        self.at = run(self.at, now);
        let mut doubted = self.doubted.map(|it| DoubtedTime { at: run(it.at, now), ..it });
        if let Some(known) = doubted.filter(|it| it.left().is_zero()) {
            (self.at, doubted) = (known.at, None);
        }
        let wall = now.wall();
        if distance(wall, self.at.wall()) > TOLERANCE {
            *self = Self::new(now);
            return;
        }
        let is_ahead = distance(self.at.wall(), wall) > TOLERANCE;
        // Another clock that is behind the doubted one is doubted from now on.
        let known = doubted.filter(|it| distance(wall, it.at.wall()) <= TOLERANCE);
        self.doubted = is_ahead.then(|| known.unwrap_or_else(|| DoubtedTime::new(now)));
    }

    /// How much time has to be measured, from the last update on, until the believed time is `until`.
    pub(super) fn left(&self, until: Timestamp) -> Duration {
        let left = distance(self.at.wall(), until);
        let by_doubted = self.doubted.map(|it| it.left().max(distance(it.at.wall(), until)));
        by_doubted.map_or(left, |by_doubted| left.min(by_doubted))
    }
}

/// The time of a clock that read `at`, after the time that has been measured since.
fn run(at: Moment, now: Moment) -> Moment {
    let wall = at.wall().saturating_add(now.since(at)).unwrap_or(at.wall());
    Moment::new(now.uptime(), wall)
}

/// The time from `earlier` to `later`; zero if `later` is not later.
pub(super) fn distance(earlier: Timestamp, later: Timestamp) -> Duration {
    let distance = later.duration_since(earlier);
    if distance.is_negative() { Duration::ZERO } else { distance.unsigned_abs() }
}
