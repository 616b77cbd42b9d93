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
    /// Monotonic time since an arbitrary origin (the start of the process).
    pub uptime: Duration,
    /// Wall-clock time, for display and for dates set by people.
    pub wall: Timestamp,
}

impl Moment {
    /// How long ago `earlier` was, measured monotonically; zero if it lies ahead.
    pub fn since(self, earlier: Moment) -> Duration {
        self.uptime.saturating_sub(earlier.uptime)
    }
}
