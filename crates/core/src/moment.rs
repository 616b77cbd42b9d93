//! A point in time, read twice.
//!
//! Durations that decide something (the clearing clock, brake windows, freshness) are measured on `uptime`, which never
//! jumps; `wall` is for people and for what must mean the same thing after a restart. Keeping both in one value makes
//! it hard to subtract the wrong ones.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use jiff::Timestamp;

/// A point in time on our own clocks, to the nanosecond. Never compared with an agent's clock.
///
/// Ordered by the monotonic clock first. Takes 16 bytes, also as an option, because everything that is known of an App has several:
/// therefore an uptime of more than 584 years, and a wall clock before 1678 or after 2261, are taken for the nearest that can be told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    /// In nanoseconds, and one more.
    uptime: NonZeroU64,
    /// In nanoseconds since the epoch.
    wall: i64,
}

impl Moment {
    /// The moment at which the monotonic clock reads `uptime`, since an arbitrary origin that may lie long before the start of the
    /// process, and the wall clock `wall`.
    pub fn new(uptime: Duration, wall: Timestamp) -> Self {
        let uptime = u64::try_from(uptime.as_nanos()).unwrap_or(u64::MAX);
        let nearest = if wall < Timestamp::UNIX_EPOCH { i64::MIN } else { i64::MAX };
        Self {
            uptime: NonZeroU64::MIN.saturating_add(uptime),
            wall: i64::try_from(wall.as_nanosecond()).unwrap_or(nearest),
        }
    }

    /// Monotonic time since an arbitrary origin.
    pub fn uptime(self) -> Duration {
        Duration::from_nanos(self.uptime.get() - 1)
    }

    /// Wall-clock time, for display and for dates set by people.
    pub fn wall(self) -> Timestamp {
        // Every such number is in its range.
        Timestamp::from_nanosecond(self.wall.into()).unwrap_or_default()
    }

    /// How long ago `earlier` was, measured monotonically; zero if it lies ahead.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.uptime.get().saturating_sub(earlier.uptime.get()))
    }

    /// The moment at which the wall clock reads `wall`, reckoned from this one: how what was kept over a restart gets back a
    /// reading of the monotonic clock. As far from now as the wall clock says, so only as right as that.
    #[must_use]
    pub fn at_wall(self, wall: Timestamp) -> Moment {
        let away = wall.duration_since(self.wall());
        let distance = away.unsigned_abs();
        let uptime = if away.is_negative() {
            self.uptime().saturating_sub(distance)
        } else {
            self.uptime().saturating_add(distance)
        };
        Moment::new(uptime, wall)
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Moment").field("uptime", &self.uptime()).field("wall", &self.wall()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_tells_what_it_was_made_of(uptime in 0..100_000_000_u64, nanos in 0..1_000_000_000_u32, wall in -9_000_000_000_i64..9_000_000_000) {
            let (uptime, wall) = (Duration::new(uptime, nanos), Timestamp::new(wall, 7).unwrap());
            let at = Moment::new(uptime, wall);
            prop_assert_eq!((at.uptime(), at.wall()), (uptime, wall));
            let later = Moment::new(uptime + Duration::from_nanos(1), Timestamp::UNIX_EPOCH);
            prop_assert!(at < later && later.since(at) == Duration::from_nanos(1) && at.since(later).is_zero());
            prop_assert_eq!(Moment::new(uptime, wall), Moment::new(Duration::ZERO, wall - uptime).at_wall(wall));
        }
    }

    #[test]
    fn what_can_not_be_told_is_the_nearest_that_can() {
        let ends = [Timestamp::MIN, Timestamp::MAX].map(|wall| Moment::new(Duration::MAX, wall));
        assert!(
            ends[0].wall().to_string().starts_with("1677-")
                && ends[1].wall().to_string().starts_with("2262-")
        );
        assert!(ends[0].uptime() > Duration::from_hours(24 * 365 * 580) && ends[0] < ends[1]);
        assert_eq!(size_of::<Option<Moment>>(), 16);
    }
}
