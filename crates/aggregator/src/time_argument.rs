//! Times as operators give them, on the command line and in queries: a duration from now, or a point in time.

use std::time::Duration;

use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use procscan_core::exemption::is_too_far;

/// A time as an operator gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimeArgument {
    /// A duration from now, back or ahead.
    Away(Duration),
    /// A point in time.
    At(Timestamp),
}

impl TimeArgument {
    /// The time, if spans go back from `now`.
    pub(crate) fn before(self, now: Timestamp) -> Result<Timestamp, String> {
        self.time(|span| now.checked_sub(span))
    }

    /// The time, with spans counted from `now`. It must be in the future, and at most ten years ahead.
    pub(crate) fn after(self, now: Timestamp) -> Result<Timestamp, String> {
        if self == Self::Away(Duration::ZERO) {
            return Err("invalid value 0s: expected a duration longer than 0, or a time to come".to_owned());
        }
        let time = self.time(|span| now.checked_add(span))?;
        if time <= now {
            return Err(format!("invalid value {time}: expected a time to come"));
        }
        if is_too_far(time, now) {
            return Err(format!("invalid value {time}: expected a time at most ten years ahead"));
        }
        Ok(time)
    }

    fn time(
        self,
        away: impl FnOnce(Duration) -> Result<Timestamp, jiff::Error>,
    ) -> Result<Timestamp, String> {
        // In whole seconds, because it is persisted and people read it.
        let seconds = TimestampRound::new().smallest(Unit::Second).mode(RoundMode::Ceil);
        match self {
            Self::At(time) => Ok(time),
            Self::Away(span) => away(span)
                .and_then(|time| time.round(seconds))
                .map_err(|_| format!("invalid value {}: expected less", humantime::format_duration(span))),
        }
    }
}

/// What an error expects where a time belongs.
const EXPECTED_TIME: &str = "expected a duration with its unit, such as 24h or 30d, or a time with its zone, such as 2026-01-02T10:30:00Z";

/// A time back from now.
pub(crate) fn since(text: &str) -> Result<TimeArgument, String> {
    match until(text)? {
        TimeArgument::Away(Duration::ZERO) => Err(EXPECTED_TIME.to_owned()),
        when => Ok(when),
    }
}

/// A time to come. [`TimeArgument::after`] checks that it is in the future.
pub(crate) fn until(text: &str) -> Result<TimeArgument, String> {
    if let Ok(span) = humantime::parse_duration(text) {
        return Ok(TimeArgument::Away(span));
    }
    text.parse().map(TimeArgument::At).map_err(|_: jiff::Error| EXPECTED_TIME.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_spans_or_moments() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let now = at("2026-01-02T10:30:00.25Z");
        let day = until("24h").unwrap();
        assert_eq!(day.before(now), Ok(at("2026-01-01T10:30:01Z")));
        assert_eq!(day.after(now), Ok(at("2026-01-03T10:30:01Z")));
        assert_eq!(until("30d").unwrap().after(now), Ok(at("2026-02-01T10:30:01Z")));
        let moment = until("2026-01-02T12:00:00+08:00").unwrap();
        assert_eq!(moment.before(now), Ok(at("2026-01-02T04:00:00Z")));
        let over = moment.after(now).unwrap_err();
        assert_eq!(over, "invalid value 2026-01-02T04:00:00Z: expected a time to come");
        assert_eq!(until("2027-01-01T00:00:00Z").unwrap().after(now), Ok(at("2027-01-01T00:00:00Z")));
        let far = until("1000y").unwrap().after(now).unwrap_err();
        assert!(far.ends_with(": expected a time at most ten years ahead"), "{far}");
        assert!(until("10y").unwrap().after(now).is_ok());
        assert_eq!(
            until("9000000y").unwrap().after(now).unwrap_err(),
            "invalid value 9000000years: expected less"
        );
        for bad in ["", "24", "soon", "-1h", "2026-01-02", "2026-01-02T10:30:00"] {
            for error in [since(bad).expect_err(bad), until(bad).expect_err(bad)] {
                assert!(error.starts_with("expected a duration with its unit"), "{error}");
            }
        }
        for zero in ["0", "0s", "0h 0m"] {
            assert!(since(zero).expect_err(zero).starts_with("expected a duration with its unit"));
            let error = until(zero).unwrap().after(now).unwrap_err();
            assert_eq!(error, "invalid value 0s: expected a duration longer than 0, or a time to come");
        }
    }
}
