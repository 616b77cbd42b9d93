//! A clock that runs only while a replica leads, and continues where the leader before left it.
//!
//! Replicas' wall clocks differ and jump, so the time between two of their readings is not known. This clock measures
//! the times that must not end early: the brakes' window, a grace and an incident's end. It adds up the time that
//! leaders have measured monotonically, and counts the time between two leaders as zero. Its readings look like dates
//! because it starts with one.

use std::time::Duration;

use jiff::Timestamp;

use crate::Moment;
use crate::time::CompactTimestamp;

/// The leader clock; see the module.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LeaderClock {
    /// A monotonic time of this process with the reading at that time. `None` before the first reading.
    base: Option<Moment>,
    /// The last reading, with the wall clock's.
    read: Option<(CompactTimestamp, CompactTimestamp)>,
}

impl LeaderClock {
    /// Continues from `newest`, the latest reading that is persisted.
    pub(super) fn restored(newest: Option<CompactTimestamp>, now: Moment) -> Self {
        let read = newest.map(|at| (at, now.wall().into()));
        Self { base: newest.map(|at| Moment::new(now.uptime(), at.get())), read }
    }

    /// The one of the two clocks that is ahead now.
    pub(super) fn or_later(self, other: Self, now: Moment) -> Self {
        let is_ahead = self.base.is_some() && self.at(now.uptime()) >= other.at(now.uptime());
        if is_ahead { self } else { other }
    }

    /// The reading now. The first one is the wall clock's time.
    pub(super) fn read(&mut self, now: Moment) -> CompactTimestamp {
        self.base.get_or_insert(now);
        let reading = self.at(now.uptime());
        self.read = Some((reading, now.wall().into()));
        reading
    }

    /// The last reading, with the wall clock's.
    pub(super) fn last(&self) -> Option<(CompactTimestamp, CompactTimestamp)> {
        self.read
    }

    /// The reading at the monotonic time `uptime`.
    pub(super) fn at(&self, uptime: Duration) -> CompactTimestamp {
        let Some(base) = self.base else { return Timestamp::UNIX_EPOCH.into() };
        let after = uptime.saturating_sub(base.uptime());
        let before = base.uptime().saturating_sub(uptime);
        let reading = base.wall().saturating_add(after).and_then(|at| at.saturating_sub(before));
        reading.unwrap_or(base.wall()).into()
    }

    /// The reading once as much more time has been measured as the wall clock shows until `date`.
    pub(super) fn at_date(&mut self, date: Timestamp, now: Moment) -> CompactTimestamp {
        let left = date.duration_since(now.wall());
        let reading = self.read(now);
        reading.get().saturating_add(left).unwrap_or(date).into()
    }

    /// The moment of the reading `reading`, with `wall` as its wall time for people.
    pub(super) fn moment(&self, reading: CompactTimestamp, wall: Timestamp) -> Moment {
        let uptime = self.base.map_or(Duration::ZERO, |base| base.at_wall(reading.get()).uptime());
        Moment::new(uptime, wall)
    }
}

/// The time from `earlier` to `now`, both readings of the same clock; zero if `earlier` is later.
pub(super) fn age(now: CompactTimestamp, earlier: CompactTimestamp) -> Duration {
    let age = now.get().duration_since(earlier.get());
    if age.is_negative() { Duration::ZERO } else { age.unsigned_abs() }
}
