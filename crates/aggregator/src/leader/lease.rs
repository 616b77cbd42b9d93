//! Reads and sets the fields of a Lease. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};

/// The range to which the duration in a Lease is limited, in seconds. So a replica leads in the end, whatever duration
/// is written there.
const DURATION_SECONDS: std::ops::RangeInclusive<i32> = 1..=300;

/// The identity of the holder; `None` if the Lease was released.
pub(super) fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

/// How often the holder has changed.
pub(super) fn transitions(lease: &Lease) -> i32 {
    lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or(0)
}

/// How long the Lease is valid after each renewal.
pub(super) fn duration(lease: &Lease) -> Option<Duration> {
    let seconds = lease.spec.as_ref()?.lease_duration_seconds?;
    let seconds = seconds.clamp(*DURATION_SECONDS.start(), *DURATION_SECONDS.end());
    u64::try_from(seconds).ok().map(Duration::from_secs)
}

/// A Lease that does not exist yet.
pub(super) fn new(name: &str) -> Lease {
    let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    Lease { metadata, spec: None }
}

/// The Lease, taken by `identity`. `last` is how often the holder had changed before.
pub(super) fn taken(lease: &Lease, identity: &str, lasts: Duration, last: i32, now: Timestamp) -> Lease {
    let mut taken = renewed(lease, lasts, now);
    let spec = taken.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity = Some(identity.to_owned());
    spec.lease_transitions = Some(last.checked_add(1).unwrap_or(1));
    spec.acquire_time = Some(MicroTime(now));
    taken
}

/// The Lease, valid from `now` on. The time in it is for people, and no candidate reads it.
pub(super) fn renewed(lease: &Lease, lasts: Duration, now: Timestamp) -> Lease {
    let mut renewed = lease.clone();
    let spec = renewed.spec.get_or_insert_with(LeaseSpec::default);
    // Rounded up, because other replicas may wait longer, but never too short.
    let seconds = lasts.as_secs() + u64::from(lasts.subsec_nanos() > 0);
    spec.lease_duration_seconds = Some(i32::try_from(seconds).unwrap_or(*DURATION_SECONDS.end()));
    spec.renew_time = Some(MicroTime(now));
    renewed
}

/// The Lease without a holder, so that any replica can take it at once.
pub(super) fn released(lease: &Lease) -> Lease {
    let mut released = lease.clone();
    if let Some(spec) = &mut released.spec {
        spec.holder_identity = None;
    }
    released
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_duration_is_rounded_up_and_terms_are_counted_whatever_is_written() {
        let now = Timestamp::UNIX_EPOCH;
        let lease = taken(&new("x"), "a", Duration::from_millis(9001), i32::MAX, now);
        assert_eq!(duration(&lease), Some(Duration::from_secs(10)));
        assert_eq!(transitions(&lease), 1);
        assert_eq!(holder(&lease), Some("a"));
        assert_eq!(holder(&released(&lease)), None);
        assert_eq!(
            duration(&renewed(&lease, Duration::from_hours(9_999_999), now)),
            Some(Duration::from_mins(5))
        );
        assert_eq!((holder(&new("x")), transitions(&new("x")), duration(&new("x"))), (None, 0, None));
    }
}
