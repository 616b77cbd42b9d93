//! A point in time, read twice.
//!
//! Durations that decide something (the clearing clock, brake windows, freshness) are measured on `uptime`, which never
//! jumps; `wall` is for people and for what must mean the same thing after a restart. Keeping both in one value makes
//! it hard to subtract the wrong ones.

use std::time::Duration;

use jiff::Timestamp;

/// A point in time on our own clocks. Never compared with an agent's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    /// Monotonic time since an arbitrary origin, which may lie long before the start of the process.
    pub uptime: Duration,
    /// Wall-clock time, for display and for dates set by people.
    pub wall: Timestamp,
}

impl Moment {
    /// How long ago `earlier` was, measured monotonically; zero if it lies ahead.
    pub fn since(self, earlier: Moment) -> Duration {
        self.uptime.saturating_sub(earlier.uptime)
    }

    /// The moment at which the wall clock reads `wall`, reckoned from this one: how what was kept over a restart gets back a
    /// reading of the monotonic clock. As far from now as the wall clock says, so only as right as that.
    #[must_use]
    pub fn at_wall(self, wall: Timestamp) -> Moment {
        let away = wall.duration_since(self.wall);
        let distance = away.unsigned_abs();
        let uptime = if away.is_negative() {
            self.uptime.saturating_sub(distance)
        } else {
            self.uptime.saturating_add(distance)
        };
        Moment { uptime, wall }
    }
}
