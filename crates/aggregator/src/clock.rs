//! The one place that reads clocks.

use jiff::Timestamp;
use procscan_core::Moment;
use tokio::time::Instant;

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
        Moment { uptime: self.origin.elapsed(), wall: Timestamp::now() }
    }
}
