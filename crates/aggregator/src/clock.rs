//! Reads the monotonic and the wall clock together, as one [`Moment`].

use std::time::Duration;

use jiff::Timestamp;
use procscan_core::Moment;
use tokio::time::Instant;

/// The monotonic reading at the start. It is greater than zero, so that events before the start have a reading too.
const READING_AT_START: Duration = Duration::from_hours(24 * 400);

/// A source of [`Moment`]s. Cheap to copy; all copies share their origin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that starts now.
    pub(crate) fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Since when this clock runs.
    pub(crate) fn uptime(&self) -> Duration {
        self.origin.elapsed()
    }

    /// The present reading of both clocks.
    pub(crate) fn now(&self) -> Moment {
        Moment::new(READING_AT_START + self.origin.elapsed(), Timestamp::now())
    }
}
