//! The one place that reads clocks.

use std::time::Duration;

use jiff::Timestamp;
use procscan_core::Moment;
use tokio::time::Instant;

/// What a clock's monotonic reading begins with, so that what happened before the start has a reading too.
const PAST: Duration = Duration::from_hours(24 * 400);

/// A source of [`Moment`]s. Cheap to copy; all copies share their origin.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// What time it is.
    pub fn now(&self) -> Moment {
        Moment::new(PAST + self.origin.elapsed(), Timestamp::now())
    }
}
