//! Decides when the clocks are persisted again although no incident has changed.
//!
//! The leader clock and the believed time are part of each incident's document, and the next leader continues from
//! the latest ones. The time that was measured since the last write is lost to it. Without the writes of this module,
//! a running grace would begin anew, and a date would be in doubt for as long.

use std::time::Duration;

use jiff::Timestamp;

use crate::Moment;
use crate::names::App;
use crate::policy::dates::Dates;
use crate::policy::incident::{Incident, Phase};
use crate::policy::incidents::Incidents;
use crate::policy::leader_clock::{LeaderClock, age};
use crate::time::CompactTimestamp;

/// How much measured time a replica that is killed may lose while a grace runs.
const GRACE_REFRESH: Duration = Duration::from_secs(30);
/// The same while no grace runs, and a date of an exemption or a release is not over.
const DATES_REFRESH: Duration = Duration::from_mins(10);

/// What is persisted of the clocks.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::policy) struct ClockWritten {
    /// The reading of the leader clock; `None` if it is to be persisted as soon as possible.
    reading: Option<CompactTimestamp>,
    latest_over: Option<Timestamp>,
    /// The reading when the write of an incident that was persisted before failed last.
    failed: Option<CompactTimestamp>,
}

impl ClockWritten {
    /// Notes that the clocks are persisted as they are.
    pub(in crate::policy) fn new(clock: &LeaderClock, dates: &Dates) -> Self {
        let reading = clock.last().map(|(reading, _)| reading);
        Self { reading, latest_over: dates.latest_over(), failed: None }
    }
}

impl Incidents {
    /// Asks for the clocks to be persisted, because the process ends. [`Incidents::dirty`] then names an open
    /// incident for them, if there is one.
    pub fn persist_clocks(&mut self) {
        self.written_clocks.reading = None;
    }

    /// Notes that the write of an incident that was persisted before has failed, perhaps of the one that was written
    /// for the clocks. That incident is written again from now on, so the clocks are not tried at once.
    pub(in crate::policy) fn note_failed_write(&mut self) {
        self.written_clocks.failed = self.clock.last().map(|(reading, _)| reading);
    }

    /// The open incident to write because the persisted clocks are outdated. Never one that has ended, because its
    /// document says by the leader clock when it ended.
    pub(in crate::policy) fn to_write_for_clocks(&self) -> Option<&App> {
        let (reading, _) = self.clock.last()?;
        let is_open = |(app, incident): &(&App, &Incident)| {
            let is_persisted = self.committed.get(app).is_some_and(|before| before.is_persisted);
            is_persisted && !matches!(incident.phase(), Phase::Ended { .. })
        };
        let open = self.by_app.iter().find(is_open).map(|(app, _)| app);
        open.filter(|_| self.are_clocks_outdated(reading))
    }

    fn are_clocks_outdated(&self, reading: CompactTimestamp) -> bool {
        let Some(written) = self.written_clocks.reading else { return true };
        if self.written_clocks.failed.is_some_and(|failed| age(reading, failed) < GRACE_REFRESH) {
            return false;
        }
        let limit = match (self.is_grace_running(), self.dates.is_any_ahead()) {
            (true, _) => Some(GRACE_REFRESH),
            (false, true) => Some(DATES_REFRESH),
            (false, false) => None,
        };
        self.dates.latest_over() != self.written_clocks.latest_over
            || limit.is_some_and(|limit| age(reading, written) >= limit)
    }

    fn is_grace_running(&self) -> bool {
        self.by_app.values().any(|incident| matches!(incident.phase(), Phase::Grace { .. }))
    }

    /// When the clocks have to be persisted because a grace runs; `None` if they have to be persisted now.
    pub fn clocks_due(&self, now: Moment) -> Option<Moment> {
        let written = self.written_clocks.reading.filter(|_| self.is_grace_running())?;
        let left = GRACE_REFRESH.checked_sub(age(self.clock.at(now.uptime()), written))?;
        Some(Moment::new(now.uptime().saturating_add(left), now.wall())).filter(|_| !left.is_zero())
    }
}
