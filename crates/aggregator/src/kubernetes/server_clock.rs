//! The API server's clock, read from the `Date` of its answers.

use std::sync::{Arc, Mutex, PoisonError};

use hyper::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use procscan_core::Moment;
use tokio::time::Instant;

/// The API server's clock at its last answer. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct ServerClock(Arc<Mutex<Option<Reading>>>);

#[derive(Clone, Copy, Debug)]
struct Reading {
    /// When the answer arrived.
    arrived: Instant,
    /// Its `Date`, in whole seconds.
    date: Timestamp,
}

impl ServerClock {
    /// Notes the `Date` of an answer that has just arrived. Only successful answers count, because an error may come
    /// from a proxy.
    pub(super) fn note(&self, status: StatusCode, headers: &HeaderMap) {
        let date = headers.get(header::DATE).filter(|_| status.is_success());
        let date = date.and_then(|date| date.to_str().ok());
        // An HTTP date has the form of an RFC 2822 date in GMT.
        let date = date.and_then(|date| jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date).ok());
        if let Some(date) = date {
            self.set(date);
        }
    }

    /// Notes that the clock reads `date` now.
    pub(super) fn set(&self, date: Timestamp) {
        let reading = Reading { arrived: Instant::now(), date };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reading);
    }

    /// Its reading now: that of the last answer plus the time since by our monotonic clock.
    pub(super) fn time(&self) -> Option<Timestamp> {
        let Reading { arrived, date } = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        date.checked_add(arrived.elapsed()).ok()
    }

    /// See [`super::Cluster::moment_of`].
    pub(super) fn moment_of(&self, at: Timestamp, now: Moment) -> Option<Moment> {
        let Reading { arrived, date } = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        let age = date.duration_since(at) + arrived.elapsed().try_into().ok()?;
        let age = age.try_into().unwrap_or_default();
        let wall = now.wall().saturating_sub(age).unwrap_or(Timestamp::MIN);
        Some(Moment::new(now.uptime().saturating_sub(age), wall))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper::header::HeaderValue;

    use super::*;

    fn headers(date: &'static str) -> HeaderMap {
        [(header::DATE, HeaderValue::from_static(date))].into_iter().collect()
    }

    fn at(seconds: u64) -> Moment {
        Moment::new(Duration::from_secs(seconds), Timestamp::UNIX_EPOCH)
    }

    #[tokio::test(start_paused = true)]
    async fn an_age_is_measured_by_the_servers_clock_and_from_then_on_by_ours() {
        let clock = ServerClock::default();
        let created: Timestamp = "2026-11-28T09:55:00Z".parse().unwrap();
        assert_eq!(clock.moment_of(created, at(10_000)), None, "nothing has been answered yet");
        clock.note(StatusCode::OK, &headers("Sat, 28 Nov 2026 10:00:00 GMT"));
        // Our own clock shows another time, which does not matter.
        let moment = clock.moment_of(created, at(10_000)).unwrap();
        assert_eq!(moment.uptime(), Duration::from_secs(9_700));
        assert_eq!(moment.wall(), Timestamp::from_second(-300).unwrap());
        tokio::time::advance(Duration::from_mins(1)).await;
        assert_eq!(clock.moment_of(created, at(10_060)).map(Moment::uptime), Some(moment.uptime()));
        let later = "2026-11-28T10:00:30Z".parse().unwrap();
        assert_eq!(
            clock.moment_of(later, at(10_060)),
            Some(Moment::new(Duration::from_secs(10_030), Timestamp::from_second(-30).unwrap()))
        );
        let future = "2026-11-28T10:01:01Z".parse().unwrap();
        assert_eq!(clock.moment_of(future, at(10_060)), Some(at(10_060)), "a clock that was set back");
    }

    #[tokio::test(start_paused = true)]
    async fn only_successful_answers_with_a_date_set_the_clock() {
        let clock = ServerClock::default();
        clock.note(StatusCode::BAD_GATEWAY, &headers("Sat, 28 Nov 2026 10:00:00 GMT"));
        clock.note(StatusCode::OK, &headers("today"));
        clock.note(StatusCode::OK, &HeaderMap::new());
        assert_eq!(clock.moment_of(Timestamp::UNIX_EPOCH, at(10_000)), None);
        clock.note(StatusCode::OK, &headers("Sat, 28 Nov 2026 10:00:00 GMT"));
        clock.note(StatusCode::OK, &headers("Sat, 28 Nov 2026 10:00:07 GMT"));
        clock.note(StatusCode::OK, &HeaderMap::new());
        let date = "2026-11-28T10:00:00Z".parse().unwrap();
        assert_eq!(clock.moment_of(date, at(10_000)).unwrap().uptime(), Duration::from_secs(9_993));
    }
}
