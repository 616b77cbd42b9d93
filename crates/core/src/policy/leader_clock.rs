//! A clock that runs only while a leader leads, and goes on where the leader before left it.
//!
//! Replicas' wall clocks differ and jump, so how much time has passed between two of them is not known. What must not end early
//! (the brakes' window, a grace, an incident's end) is measured by this clock: it counts the time that leaders have measured
//! monotonically, and the time between two leaders as none. Its readings look like dates, because it begins with one.

use std::time::Duration;

use jiff::Timestamp;

use crate::Moment;
use crate::moment::WallTime;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LeaderClock {
    /// What it read at some monotonic time of this process. Nothing before it is asked for the first time.
    base: Option<Moment>,
    /// What it read last, and the wall clock with it.
    read: Option<(WallTime, WallTime)>,
}

impl LeaderClock {
    /// It goes on from the latest reading that is persisted.
    pub(super) fn restored(newest: Option<WallTime>, now: Moment) -> Self {
        let read = newest.map(|at| (at, now.wall().into()));
        Self { base: newest.map(|at| Moment::new(now.uptime(), at.get())), read }
    }

    /// What it reads now. It begins with the wall clock's time.
    pub(super) fn read(&mut self, now: Moment) -> WallTime {
        self.base.get_or_insert(now);
        let reading = self.at(now.uptime());
        self.read = Some((reading, now.wall().into()));
        reading
    }

    /// What it read when it was last read, and the wall clock with it.
    pub(super) fn last(&self) -> Option<(WallTime, WallTime)> {
        self.read
    }

    /// What it reads at the monotonic time `uptime`.
    pub(super) fn at(&self, uptime: Duration) -> WallTime {
        let Some(base) = self.base else { return Timestamp::UNIX_EPOCH.into() };
        let after = uptime.saturating_sub(base.uptime());
        let before = base.uptime().saturating_sub(uptime);
        let reading = base.wall().saturating_add(after).and_then(|at| at.saturating_sub(before));
        reading.unwrap_or(base.wall()).into()
    }

    /// What it will read when as much time has passed as the wall clock says is left until `date`.
    pub(super) fn at_date(&mut self, date: Timestamp, now: Moment) -> WallTime {
        let left = date.duration_since(now.wall());
        let reading = self.read(now);
        reading.get().saturating_add(left).unwrap_or(date).into()
    }

    /// The moment at which it reads `reading`, with `wall` for people.
    pub(super) fn moment(&self, reading: WallTime, wall: Timestamp) -> Moment {
        let uptime = self.base.map_or(Duration::ZERO, |base| base.at_wall(reading.get()).uptime());
        Moment::new(uptime, wall)
    }
}

/// How long before `now` `earlier` was, both readings of one clock; zero if it was not.
pub(super) fn age(now: WallTime, earlier: WallTime) -> Duration {
    let age = now.get().duration_since(earlier.get());
    if age.is_negative() { Duration::ZERO } else { age.unsigned_abs() }
}
