//! A point in time, read from two clocks.
//!
//! Durations that decide something (the clearing clock, brake windows, freshness) are measured on `uptime`, which
//! never jumps. `wall` is for people, and for times that must mean the same after a restart. One value has both, so
//! that it is hard to subtract the wrong ones.

use std::fmt;
use std::num::{NonZeroI64, NonZeroU64};
use std::time::Duration;

use jiff::Timestamp;

/// A point in time on our own clocks, to the nanosecond. Never compared with an agent's clock.
///
/// Ordered by the monotonic clock first. Takes 16 bytes, also as an option (see [`CompactDuration`] and
/// [`CompactTimestamp`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    uptime: CompactDuration,
    wall: CompactTimestamp,
}

impl Moment {
    /// The moment at which the monotonic clock reads `uptime` and the wall clock `wall`. The origin of `uptime` is
    /// arbitrary and may lie long before the start of the process.
    pub fn new(uptime: Duration, wall: Timestamp) -> Self {
        Self { uptime: uptime.into(), wall: wall.into() }
    }

    /// Monotonic time since an arbitrary origin.
    pub fn uptime(self) -> Duration {
        self.uptime.get()
    }

    /// Wall-clock time, for display and for dates set by people.
    pub fn wall(self) -> Timestamp {
        self.wall.get()
    }

    /// How long ago `earlier` was, measured monotonically; zero if it lies ahead.
    pub fn since(self, earlier: Moment) -> Duration {
        self.uptime.saturating_sub(earlier.uptime)
    }

    /// The moment at which the wall clock reads `wall`, calculated from this one. It gives a persisted time a reading
    /// of the monotonic clock, which is only as right as the wall clock.
    #[must_use]
    pub(crate) fn at_wall(self, wall: Timestamp) -> Moment {
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

/// A duration to the nanosecond in 8 bytes, also as an option. A [`Duration`] takes 16, and every App has several. A
/// duration of more than 584 years counts as 584 years.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CompactDuration(
    /// The nanoseconds plus one.
    NonZeroU64,
);

impl CompactDuration {
    /// No time.
    pub(crate) const ZERO: Self = Self(NonZeroU64::MIN);

    /// As a duration.
    pub fn get(self) -> Duration {
        Duration::from_nanos(self.0.get() - 1)
    }

    /// By how much this is longer than `other`; zero if it is not.
    pub(crate) fn saturating_sub(self, other: CompactDuration) -> Duration {
        Duration::from_nanos(self.0.get().saturating_sub(other.0.get()))
    }
}

impl From<Duration> for CompactDuration {
    fn from(duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(NonZeroU64::MIN.saturating_add(nanos))
    }
}

impl fmt::Debug for CompactDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// A time by a wall clock to the nanosecond in 8 bytes, also as an option. A [`Timestamp`] takes 16. A time before
/// 1678 or after 2261 becomes the nearest one in that range.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CompactTimestamp(
    /// The nanoseconds since the epoch, plus one from the epoch on, because zero is not allowed.
    NonZeroI64,
);

impl CompactTimestamp {
    /// As a timestamp.
    pub fn get(self) -> Timestamp {
        let nanos = self.0.get();
        // Every such number is in the range of a timestamp.
        Timestamp::from_nanosecond((nanos - i64::from(nanos > 0)).into()).unwrap_or_default()
    }
}

impl From<Timestamp> for CompactTimestamp {
    fn from(at: Timestamp) -> Self {
        let nearest = if at < Timestamp::UNIX_EPOCH { i64::MIN } else { i64::MAX };
        let nanos = i64::try_from(at.as_nanosecond()).unwrap_or(nearest);
        let nanos = nanos.saturating_add(i64::from(nanos >= 0));
        Self(NonZeroI64::new(nanos).unwrap_or(NonZeroI64::MIN))
    }
}

impl fmt::Debug for CompactTimestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_moment_has_the_times_that_it_was_made_of(uptime in 0..100_000_000_u64, nanos in 0..1_000_000_000_u32, wall in -9_000_000_000_i64..9_000_000_000) {
            let (uptime, wall) = (Duration::new(uptime, nanos), Timestamp::new(wall, 7).unwrap());
            let at = Moment::new(uptime, wall);
            prop_assert_eq!((at.uptime(), at.wall()), (uptime, wall));
            let later = Moment::new(uptime + Duration::from_nanos(1), Timestamp::UNIX_EPOCH);
            prop_assert!(at < later && later.since(at) == Duration::from_nanos(1) && at.since(later).is_zero());
            prop_assert_eq!(Moment::new(uptime, wall), Moment::new(Duration::ZERO, wall - uptime).at_wall(wall));
        }
    }

    proptest! {
        #[test]
        fn times_keep_their_order(times in proptest::collection::vec(any::<i64>().prop_map(i128::from), 2), near in -2..=2_i64) {
            let at = |nanos| Timestamp::from_nanosecond(nanos).unwrap();
            let [a, b] = [at(times[0]), at(times[1])];
            prop_assert_eq!(CompactTimestamp::from(a).cmp(&CompactTimestamp::from(b)), a.cmp(&b));
            let near = at(near.into());
            prop_assert_eq!(CompactTimestamp::from(near).get(), near);
            prop_assert_eq!(CompactTimestamp::from(a).cmp(&CompactTimestamp::from(near)), a.cmp(&near));
        }
    }

    #[test]
    fn a_time_out_of_range_becomes_the_nearest_one_in_range() {
        let ends = [Timestamp::MIN, Timestamp::MAX].map(|wall| Moment::new(Duration::MAX, wall));
        assert!(
            ends[0].wall().to_string().starts_with("1677-")
                && ends[1].wall().to_string().starts_with("2262-")
        );
        assert!(ends[0].uptime() > Duration::from_hours(24 * 365 * 580) && ends[0] < ends[1]);
        assert_eq!(
            [
                size_of::<Option<Moment>>(),
                2 * size_of::<Option<CompactDuration>>(),
                2 * size_of::<Option<CompactTimestamp>>()
            ],
            [16; 3]
        );
    }
}
